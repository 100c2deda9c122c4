//! Performing effects: what applied commands mean for those who wait here.

use super::sessions::Link;
use super::{Desk, Pending};
use crate::api::{Output, RequestError};
use crate::effect::{CommandResult, Effect};
use crate::query::reply;
use tessera_types::AgentId;
use tessera_wire::WireError;
use tessera_wire::v1::{self, master_message::Message as Out};

impl Desk<'_> {
    /// Perform one effect.
    pub(crate) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Done { term, ticket, result } => {
                if term == self.leader.term {
                    self.done(ticket, result);
                }
                self.leader.given_back.clear();
            }
            Effect::GivenBack { framework, agent, resources } => {
                self.leader.given_back.push((framework, agent, resources));
            }
            Effect::Answer { request, answer } => self.answer(request, Ok(answer)),
            Effect::Notice { framework, status } => {
                if let Some(instance) = self.leader.instances.get_mut(&framework) {
                    instance.notice(status);
                }
                self.leader.dirty_frameworks.insert(framework);
            }
            Effect::Task { agent, framework, task } => {
                // When it has ended, what it took is free.
                self.leader.offers.look_at(agent);
                self.leader.offers.look_at_framework(framework);
                if let Some(link) = self.leader.links.get_mut(&agent) {
                    link.changed.insert((framework, task));
                    self.leader.dirty_links.insert(agent);
                }
            }
            Effect::Agent(agent) => self.agent_changed(agent),
            Effect::Hosting(agent) => {
                self.leader.dirty_links.insert(agent);
            }
            Effect::Limits => self.limits_changed(),
            Effect::Role(role) => self.role_changed(role),
            Effect::Freed => self.leader.allocate = true,
            Effect::Traced { framework, task, state } => self.trace_task(framework, &task, state),
            Effect::Ended { state, reason } => *self.leader.tally.ended.entry((state, reason)).or_default() += 1,
            Effect::Framework(framework) => {
                self.leader.dirty_frameworks.insert(framework);
                self.leader.allocate = true;
            }
            Effect::StateWritten { framework, key, count } => {
                self.state_written(framework, key, count);
            }
            Effect::Events { .. } => {}
        }
    }

    fn agent_changed(&mut self, agent: AgentId) {
        let now_ms = self.now.mono_ms;
        self.withdraw_agent(agent);
        self.leader.offers.agent_changed(agent);
        if let Some(row) = self.state.agents.get(&agent) {
            // A registration may be committed after its own session ended and another boot's began.
            let session = self.session_of(agent);
            let other = session.filter(|id| {
                self.leader.sessions.get(id).is_some_and(|session| session.register.boot != row.boot)
            });
            if let Some(session) = other {
                self.close(session, "the agent speaks from a machine that was started since");
            }
            self.leader.links.entry(agent).or_insert_with(|| Link::new(now_ms));
            self.leader.dirty_links.insert(agent);
        } else {
            self.agent_gone(agent);
        }
        for (id, instance) in &mut self.leader.instances {
            instance.agents.insert(agent);
            self.leader.dirty_frameworks.insert(*id);
        }
    }

    fn done(&mut self, ticket: u64, result: CommandResult) {
        let Some(pending) = self.leader.pending.remove(&ticket) else { return };
        match pending {
            Pending::Request { ticket } => {
                let result = reply(self.state, result);
                self.leader.out.push(Output::Reply { ticket, result });
            }
            Pending::Register { session } => self.register_done(session, result),
            Pending::Reconcile { session } => self.compared(session),
            Pending::Statuses { session, acks } => {
                if let Some(record) = self.leader.sessions.get_mut(&session) {
                    record.statuses_in_flight = record.statuses_in_flight.saturating_sub(1);
                    self.send(session, Out::StatusAcks(v1::StatusAcks { acks }));
                }
            }
            Pending::Turn(pending) => self.turn_done(ticket, &pending, result),
            Pending::Place { framework } => {
                if let Some(instance) = self.leader.instances.get_mut(&framework) {
                    instance.placing = None;
                }
                self.leader.dirty_frameworks.insert(framework);
            }
            Pending::RollBack { framework } => {
                self.lifecycle_done(framework, |care| care.rolling_back = false);
            }
            Pending::Merge { framework } => {
                self.lifecycle_done(framework, |care| care.merging = false);
            }
            Pending::Due(due) => {
                self.leader.due.remove(&due);
            }
            Pending::Preempt { tasks } => self.preempted(tasks),
            Pending::Unreachable { agent } => self.give_up_decided(agent, true),
            Pending::Strangers { .. } | Pending::Nobody => {}
        }
    }

    fn register_done(&mut self, session: u64, result: CommandResult) {
        if !self.leader.sessions.contains_key(&session) {
            return;
        }
        match result {
            CommandResult::Agent(agent) => {
                let old = self.session_of(agent).filter(|old| *old != session);
                if let Some(old) = old {
                    self.close(old, "a newer session of the agent took its place");
                }
                self.registered(session, agent);
            }
            CommandResult::Refused(RequestError::Invalid { field, rule }) => {
                self.refuse(session, &WireError::new(field, rule));
            }
            CommandResult::Refused(error) => {
                self.refuse(session, &WireError::new("register", error.to_string()));
            }
            CommandResult::Done
            | CommandResult::Component { .. }
            | CommandResult::Framework(_)
            | CommandResult::Version(_)
            | CommandResult::Placed(_)
            | CommandResult::Turn(_) => {}
        }
    }

    /// The replica did not take these commands, or lost them.
    pub(crate) fn propose_failed(&mut self, tickets: &[u64]) {
        for ticket in tickets {
            let Some(pending) = self.leader.pending.remove(ticket) else { continue };
            match pending {
                Pending::Request { ticket } => {
                    let error = RequestError::Unavailable("the log does not take commands now".into());
                    self.leader.out.push(Output::Reply { ticket, result: Err(error) });
                }
                Pending::Register { session }
                | Pending::Reconcile { session }
                | Pending::Strangers { session }
                | Pending::Statuses { session, .. } => {
                    self.close(session, "the log does not take commands now; try again");
                }
                Pending::Turn(pending) => self.turn_lost(*ticket, &pending),
                Pending::Place { framework } => {
                    if let Some(instance) = self.leader.instances.get_mut(&framework) {
                        instance.placing = None;
                    }
                }
                Pending::RollBack { framework } => {
                    self.lifecycle_done(framework, |care| care.rolling_back = false);
                }
                Pending::Merge { framework } => {
                    self.lifecycle_done(framework, |care| care.merging = false);
                }
                Pending::Due(due) => {
                    self.leader.due.remove(&due);
                }
                Pending::Preempt { .. } => self.preempted(0),
                Pending::Unreachable { agent } => self.give_up_decided(agent, false),
                Pending::Nobody => {}
            }
        }
    }
}
