//! Sessions with agents: registration, silence, the end.
//!
//! Invariants: an agent has at most one session; a session without a registered agent is given nothing;
//! whatever breaks a rule ends the session with field and rule.

use super::standby::Compiled;
use super::{Desk, Pending};
use crate::api::Output;
use crate::limits::AGENT_KEY_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, Digest, Epoch, FrameworkId, TaskId};
use tessera_wire::v1::{self, agent_message::Message as In, master_message::Message as Out};
use tessera_wire::{SESSION_PROTOCOL, WireError, go_together, tasks_hash};

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) register: v1::Register,
    /// Set once the agent is registered.
    pub(crate) agent: Option<AgentId>,
    pub(crate) last_beat_ms: u64,
    /// Messages of statuses that wait for their commit.
    pub(crate) statuses_in_flight: usize,
    /// It named resources that the cluster did not know of when it began.
    pub(crate) knew_more: bool,
}

/// What tells a desired instance from what the agent was told of it, beside limits: its epoch, and the
/// version of its configuration.
pub(crate) type InstanceKey = (FrameworkId, Epoch, u64);

/// What the leader knows of an agent, with or without a session.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) session: Option<u64>,
    /// Since when there is none, or has been one.
    pub(crate) since_ms: u64,
    pub(crate) unreachable_proposed: bool,
    pub(crate) generation: u64,
    pub(crate) acknowledged: u64,
    /// The sets of tasks are being compared; nothing is desired before.
    pub(crate) comparing: bool,
    /// Everything has to be sent.
    pub(crate) full: bool,
    /// What the agent was told: task and kill grace.
    pub(crate) sent: BTreeMap<(FrameworkId, TaskId), Option<u64>>,
    pub(crate) sent_instances: Vec<InstanceKey>,
    /// Which limits it was told.
    pub(crate) sent_limits: u64,
    /// What it was told to compile ahead.
    pub(crate) sent_ahead: BTreeSet<Digest>,
    pub(crate) compiled: Compiled,
    pub(crate) changed: BTreeSet<(FrameworkId, TaskId)>,
}

impl Link {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            session: None,
            since_ms: now_ms,
            unreachable_proposed: false,
            generation: 0,
            acknowledged: 0,
            comparing: false,
            full: true,
            sent: BTreeMap::new(),
            sent_instances: Vec::new(),
            sent_limits: 0,
            sent_ahead: BTreeSet::new(),
            compiled: Compiled::default(),
            changed: BTreeSet::new(),
        }
    }
}

/// A beat that was under way when its machine went down may come so long after the first words of the machine
/// that was started anew; what is heard later is a second machine.
const LATE_BEAT_MS: u64 = 3_000;

impl Desk<'_> {
    /// A session begins with its registration.
    pub(crate) fn session_open(&mut self, session: u64, register: v1::Register) {
        if let Err(error) = self.check_register(&register) {
            self.refuse(session, &error);
            return;
        }
        if let Some(agent) = self.gone(&register) {
            self.refuse_gone(session, agent);
            return;
        }
        let known = self.state.agent_keys.get(&register.agent_key).copied();
        if let Some(agent) = known
            && let Err(error) = self.check_boot(agent, &register.boot)
        {
            self.refuse(session, &error);
            return;
        }
        if let Some(old) = known.and_then(|agent| self.session_of(agent)) {
            self.close(old, "a newer session of the agent took its place");
        }
        let unchanged = known.and_then(|agent| Some((agent, self.state.agents.get(&agent)?)));
        let unchanged = unchanged.filter(|(_, row)| {
            let mut description = register.description.clone().unwrap_or_default();
            description.attributes.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
            description.missing.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
            row.boot == register.boot
                && row.unreachable_ms.is_none()
                && row.description() == description
        });
        let named = register.description.as_ref().and_then(|description| description.total.as_ref());
        let knew_more = !self.state.knows_kinds() && named.is_some_and(|total| !total.items.is_empty());
        let record = Session {
            register: register.clone(),
            knew_more,
            agent: None,
            last_beat_ms: self.now.mono_ms,
            statuses_in_flight: 0,
        };
        self.leader.sessions.insert(session, record);
        if let Some((agent, _)) = unchanged {
            self.registered(session, agent);
            return;
        }
        // What got its number after the snapshot from which the state was restored gets another one.
        let lost = self.state.is_lost_agent(AgentId(register.agent));
        let command = v1::RegisterAgent {
            agent: if lost { 0 } else { register.agent },
            agent_key: register.agent_key,
            boot: register.boot,
            description: register.description,
        };
        let command = v1::command::Command::RegisterAgent(command);
        self.propose("", command, Pending::Register { session });
    }

    /// Whether the agent may speak from a machine that was started so. After a reboot nothing is heard of the
    /// boot before; who hears of both has two machines with copies of one work directory before it.
    fn check_boot(&mut self, agent: AgentId, boot: &str) -> Result<(), WireError> {
        let Some(row) = self.state.agents.get(&agent) else { return Ok(()) };
        let over = row.boots_before.iter().any(|before| before == boot);
        let heard_ms = self.leader.heard_ms(agent).unwrap_or(0);
        // What speaks for the boot that was taken meanwhile is no rival of it.
        let rival = self.leader.rivals.get(&agent).filter(|(rival, _)| rival == boot && row.boot != *boot);
        let since_ms = rival.map(|(_, at_ms)| *at_ms).filter(|_| !self.leader.stands_still(self.now.mono_ms));
        let copied = since_ms.is_some_and(|at_ms| heard_ms > at_ms + LATE_BEAT_MS);
        if copied && !over {
            let command = v1::RefuseBoot { agent: agent.0, boot: boot.to_owned() };
            let command = v1::command::Command::RefuseBoot(command);
            self.propose("", command, Pending::Nobody);
        }
        if copied || over {
            let rule = format!(
                "{agent} runs on another machine, and this one has a copy of its work directory; empty the \
                 directory here, and this machine becomes an agent of its own"
            );
            return Err(WireError::new("register.boot", rule));
        }
        let session = self.session_of(agent).and_then(|session| self.leader.sessions.get(&session));
        if session.is_some_and(|session| session.register.boot != boot) {
            let since_ms = since_ms.unwrap_or(self.now.mono_ms);
            self.leader.rivals.insert(agent, (boot.to_owned(), since_ms));
            let rule = format!(
                "{agent} still has a session of before its machine was started anew, or of a machine with a copy of its work directory"
            );
            return Err(WireError::new("register.agent_key", rule));
        }
        Ok(())
    }

    /// Whether the agent was declared gone. One that this cluster gave a number, and does not know any
    /// more, was, long ago.
    fn gone(&self, register: &v1::Register) -> Option<AgentId> {
        let agent = AgentId(register.agent);
        let ours = register.cluster == self.state.meta.cluster;
        let given = (1..=self.state.meta.next_agent).contains(&agent.0);
        let lost = self.state.is_lost_agent(agent);
        let forgotten = ours && given && !lost && !self.state.agents.contains_key(&agent);
        let gone = self.state.gone.get(&register.agent_key).map(|gone| gone.agent);
        gone.or_else(|| forgotten.then_some(agent))
    }

    fn check_register(&self, register: &v1::Register) -> Result<(), WireError> {
        let refuse = |field, rule: String| Err(WireError::new(field, rule));
        if !go_together(SESSION_PROTOCOL, register.protocol) {
            let rule = format!(
                "this master speaks {SESSION_PROTOCOL}, not {}; use a build that is at most one version away",
                register.protocol
            );
            return refuse("register.protocol", rule);
        }
        let cluster = &self.state.meta.cluster;
        if cluster.is_empty() {
            return refuse("register.cluster", "the cluster is being created, try again".into());
        }
        if !register.cluster.is_empty() && register.cluster != *cluster {
            let rule = format!("the agent belongs to cluster {}, this is {cluster}", register.cluster);
            return refuse("register.cluster", rule);
        }
        if register.agent_key.is_empty() || register.agent_key.len() > AGENT_KEY_BYTES_MAX {
            return refuse("register.agent_key", format!("1 to {AGENT_KEY_BYTES_MAX} bytes"));
        }
        if register.boot.len() > AGENT_KEY_BYTES_MAX {
            return refuse("register.boot", format!("at most {AGENT_KEY_BYTES_MAX} bytes"));
        }
        if register.agent != 0 {
            let agent = AgentId(register.agent);
            match self.state.agents.get(&agent) {
                None if self.gone(register).is_some() || self.state.is_lost_agent(agent) => {}
                None => {
                    let rule = format!("{agent} is not known here; with an empty work directory it becomes a new agent");
                    return refuse("register.agent", rule);
                }
                Some(row) if row.key != register.agent_key => {
                    return refuse("register.agent_key", format!("is not that of {agent}"));
                }
                Some(_) => {}
            }
        }
        let description = register.description.as_ref();
        description.ok_or_else(|| WireError::missing("register.description"))?.resources()?;
        Ok(())
    }

    /// The agent is known; from here on the session counts.
    pub(crate) fn registered(&mut self, session: u64, agent: AgentId) {
        let Some(record) = self.leader.sessions.get_mut(&session) else { return };
        record.agent = Some(agent);
        let theirs = std::mem::take(&mut record.register.tasks_hash);
        let ours = self.tasks_hash(agent);
        // Strangers are no part of what the state has.
        let strangers = self.state.agents.get(&agent).is_some_and(|row| !row.strangers.is_empty());
        let equal = ours.as_slice() == theirs && !strangers;
        let now_ms = self.now.mono_ms;
        let link = self.leader.links.entry(agent).or_insert_with(|| Link::new(now_ms));
        *link = Link {
            session: Some(session),
            comparing: !equal,
            generation: link.generation,
            ..Link::new(now_ms)
        };
        let registered = v1::Registered {
            agent: agent.0,
            cluster: self.state.meta.cluster.clone(),
            term: self.leader.term,
            session,
            tasks_equal: equal,
            // The shell knows where the masters are.
            masters: Vec::new(),
            repeat_statuses: !equal && self.state.is_restored(),
        };
        self.send(session, Out::Registered(registered));
        self.leader.dirty_links.insert(agent);
        self.leader.offers.look_at(agent);
        self.leader.allocate = true;
        self.touch_unplaced();
    }

    fn tasks_hash(&self, agent: AgentId) -> [u8; 32] {
        let Some(row) = self.state.agents.get(&agent) else { return [0; 32] };
        tasks_hash(row.tasks.iter().filter_map(|(framework, id)| {
            let task = self.state.task(*framework, id)?;
            Some((*framework, id, task.attempt, task.state))
        }))
    }

    /// One message of an agent.
    pub(crate) fn agent_message(&mut self, session: u64, message: v1::AgentMessage) {
        let Some(record) = self.leader.sessions.get_mut(&session) else { return };
        record.last_beat_ms = self.now.mono_ms;
        let Some(agent) = record.agent else {
            self.refuse(session, &WireError::new("message", "the agent is not registered yet"));
            return;
        };
        let result = match message.message {
            Some(In::TaskSet(set)) => self.on_task_set(session, agent, set),
            Some(In::Statuses(statuses)) => self.on_statuses(session, agent, statuses),
            Some(In::DesiredAck(ack)) => self.on_desired_ack(agent, &ack),
            Some(In::InstanceReady(ready)) => self.on_instance_ready(agent, &ready),
            Some(In::InstanceFailed(failed)) => self.on_instance_failed(agent, failed),
            Some(In::Turn(turn)) => self.on_turn(session, agent, turn),
            Some(In::FromExecutor(message)) => self.on_from_executor(agent, message),
            Some(In::ExecutorLost(lost)) => self.on_executor_lost(agent, lost),
            Some(In::CompiledAhead(compiled)) => self.on_compiled_ahead(agent, compiled),
            Some(In::Register(_)) => Err(WireError::new("register", "only as the first message")),
            None => Err(WireError::missing("message")),
        };
        if let Err(error) = result {
            self.refuse(session, &error);
        }
    }

    fn on_desired_ack(&mut self, agent: AgentId, ack: &v1::DesiredAck) -> Result<(), WireError> {
        let Some(link) = self.leader.links.get_mut(&agent) else { return Ok(()) };
        if ack.generation > link.generation {
            return Err(WireError::new("desired_ack.generation", "was never sent"));
        }
        link.acknowledged = link.acknowledged.max(ack.generation);
        Ok(())
    }

    /// End a session that broke a rule.
    pub(crate) fn refuse(&mut self, session: u64, error: &WireError) {
        self.refuse_as(session, error, false);
    }

    /// The agent was declared gone: its session ends, and it is told to end what it runs.
    fn refuse_gone(&mut self, session: u64, agent: AgentId) {
        let rule = format!("{agent} was declared gone; it ends its tasks and comes back as a new agent");
        self.refuse_as(session, &WireError::new("register.agent", rule), true);
    }

    fn refuse_as(&mut self, session: u64, error: &WireError, gone: bool) {
        let (field, rule) = (error.field.to_owned(), error.rule.clone());
        self.send(session, Out::Refused(v1::Refused { field, rule, gone }));
        self.close(session, &error.to_string());
    }

    /// What is known of an agent that is no more.
    pub(super) fn agent_gone(&mut self, agent: AgentId) {
        let session = self.session_of(agent);
        if let Some(session) = session {
            self.refuse_gone(session, agent);
        }
        self.leader.links.remove(&agent);
        self.leader.dirty_links.remove(&agent);
        self.leader.rivals.remove(&agent);
    }

    pub(crate) fn close(&mut self, session: u64, reason: &str) {
        self.leader.out.push(Output::CloseSession { session, reason: reason.to_owned() });
        self.session_closed(session);
    }

    /// What agents named before the cluster knew of it they name again, with their next session.
    pub(super) fn close_those_that_knew_more(&mut self) {
        if !self.state.knows_kinds() {
            return;
        }
        let sessions = self.leader.sessions.iter().filter(|(_, session)| session.knew_more);
        let sessions: Vec<u64> = sessions.map(|(session, _)| *session).collect();
        for session in sessions {
            self.close(session, "all masters know of the agent's resources now, which it names again");
        }
    }

    /// A session is over, whoever ended it.
    pub(crate) fn session_closed(&mut self, session: u64) {
        let Some(record) = self.leader.sessions.remove(&session) else { return };
        let Some(agent) = record.agent else { return };
        if let Some(link) = self.leader.links.get_mut(&agent)
            && link.session == Some(session)
        {
            let generation = link.generation;
            // Silence counts from the last sign of life.
            *link = Link { generation, ..Link::new(record.last_beat_ms) };
            self.withdraw_agent(agent);
            self.instances_cut_off();
        }
    }

    /// The session of an agent that is registered.
    pub(crate) fn session_of(&self, agent: AgentId) -> Option<u64> {
        self.leader.links.get(&agent).and_then(|link| link.session)
    }
}
