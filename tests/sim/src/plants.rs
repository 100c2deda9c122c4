//! Bugs that are planted at the borders of a master's process.
//!
//! Invariant: without a mutation nothing is changed. Must never decide which one is planted.

use crate::mutation::Mutation;
use crate::network::ConnId;
use crate::queue::Down;
use crate::world::World;
use tessera_master_core::testing::forget_role_uses;
use tessera_master_core::{Output, TaskFilter};
use tessera_types::FrameworkId;
use tessera_wire::v1::{
    self, agent_message::Message as AgentSays, master_message::Message as MasterSays,
    operation::Operation,
};

/// A turn whose launches stand alone.
fn torn_apart(mut message: v1::AgentMessage) -> v1::AgentMessage {
    if let Some(AgentSays::Turn(turn)) = &mut message.message {
        for operation in &mut turn.operations {
            if let Some(Operation::Accept(accept)) = &mut operation.operation {
                accept.groups.clear();
                accept.gang = 0;
            }
        }
    }
    message
}

/// A turn that suppresses nothing.
fn without_suppress(mut message: v1::AgentMessage) -> v1::AgentMessage {
    if let Some(AgentSays::Turn(turn)) = &mut message.message {
        turn.operations.retain(|operation| !matches!(operation.operation, Some(Operation::Suppress(_))));
    }
    message
}

impl World {
    /// Answers that leave before anything is committed.
    pub(crate) fn plant_at_arrival(&mut self, conn: ConnId, message: v1::AgentMessage) {
        let now_us = self.now_us;
        let answer = match (self.mutation, message.message) {
            (Some(Mutation::StatusesAcknowledgedEarly), Some(AgentSays::Statuses(statuses))) => {
                let acks = statuses.updates.into_iter().map(|update| v1::StatusAck {
                    framework: update.framework,
                    task: update.status.unwrap_or_default().task,
                    sequence: update.sequence,
                });
                MasterSays::StatusAcks(v1::StatusAcks { acks: acks.collect() })
            }
            (Some(Mutation::TurnAnsweredEarly), Some(AgentSays::Turn(turn))) => {
                if turn.writes.is_empty() {
                    return;
                }
                let key = v1::InstanceKey { framework: turn.framework, epoch: turn.epoch };
                let outcome = v1::turn_outcome::Outcome::Next(turn.number + 1);
                MasterSays::TurnResult(v1::TurnResult {
                    outside: 0,
                    key: Some(key),
                    number: turn.number,
                    outcome: Some(v1::TurnOutcome { outcome: Some(outcome) }),
                    ..v1::TurnResult::default()
                })
            }
            _ => return,
        };
        let down = Down::Control(v1::MasterMessage { message: Some(answer) });
        self.net.down(&mut self.queue, now_us, conn, down);
    }

    /// What an agent says is changed on its way into the core.
    pub(crate) fn plant_at_input(
        &self,
        slot: usize,
        session: u64,
        message: v1::AgentMessage,
    ) -> (u64, v1::AgentMessage) {
        match self.mutation {
            Some(Mutation::UnitsTornApart) => (session, torn_apart(message)),
            Some(Mutation::SuppressForgotten) if self.plan.leaderships > 1 => {
                (session, without_suppress(message))
            }
            Some(Mutation::StaleEpochRelabelled) => self.relabelled(slot, session, message),
            Some(Mutation::EpochReused) if self.plan.leaderships > 1 => {
                (session, self.under_epoch_in_force(slot, message))
            }
            _ => (session, message),
        }
    }

    /// Of a turn that comes back under a reused epoch nothing is to be seen.
    fn under_epoch_in_force(&self, slot: usize, mut message: v1::AgentMessage) -> v1::AgentMessage {
        if let (Some(AgentSays::Turn(turn)), Some(node)) =
            (&mut message.message, &self.masters[slot].node)
            && let Some(view) = node.core().framework(FrameworkId(turn.framework))
        {
            turn.epoch = view.epoch.0;
        }
        message
    }

    /// A turn of a fenced instance is taken for one of the instance that took its place.
    fn relabelled(
        &self,
        slot: usize,
        session: u64,
        message: v1::AgentMessage,
    ) -> (u64, v1::AgentMessage) {
        let unchanged = (session, message.clone());
        let (Some(AgentSays::Turn(mut turn)), Some(node)) = (message.message, &self.masters[slot].node)
        else {
            return unchanged;
        };
        let view = node.core().framework(FrameworkId(turn.framework));
        let Some(view) = view.filter(|view| view.epoch.0 > turn.epoch) else { return unchanged };
        let host = view.agent.and_then(|agent| {
            let hosts = |conn: &&ConnId| {
                self.net.conns.get(conn).is_some_and(|c| self.agent_number(c.agent) == Some(agent))
            };
            let mut sessions = self.masters[slot].sessions.iter();
            sessions.find(|(_, conn)| hosts(conn)).map(|(session, _)| *session)
        });
        let Some(host) = host else { return unchanged };
        turn.epoch = view.epoch.0;
        turn.number = view.last_turn.0 + 1;
        (host, v1::AgentMessage { message: Some(AgentSays::Turn(turn)) })
    }

    /// A leader has some revocable task ended.
    pub(crate) fn plant_at_tick(&mut self, slot: usize) {
        if self.mutation != Some(Mutation::TakenForNothing) || !self.masters[slot].leads() || !self.rng.chance(4) {
            return;
        }
        let ticket = self.masters[slot].number();
        self.feed(slot, |core| {
            let tasks = core.tasks(&TaskFilter { live_only: true, ..TaskFilter::default() });
            let revocable = tasks.iter().find(|view| view.revocable && !view.kill_requested);
            let tasks: Vec<_> = revocable
                .map(|view| v1::preempt_tasks::Task {
                    framework: view.framework.0,
                    task: view.launch.task.to_string(),
                })
                .into_iter()
                .collect();
            if tasks.is_empty() {
                return Vec::new();
            }
            let command = v1::PreemptTasks { tasks, role: "nobody/here".to_owned() };
            let command = Some(v1::command::Command::PreemptTasks(command));
            vec![Output::Propose(v1::Command { ticket, origin: None, command })]
        });
    }

    /// A master has started.
    pub(crate) fn plant_at_start(&mut self, slot: usize) {
        if self.mutation == Some(Mutation::RoleUsesForgotten) {
            self.feed(slot, |core| {
                forget_role_uses(core);
                Vec::new()
            });
        }
    }

    /// Whether a master takes for done what its disk has only begun to sync.
    pub(crate) fn plant_at_write(&self, slot: usize) -> bool {
        match self.mutation {
            Some(Mutation::PromisedBeforeSync) => !self.masters[slot].leads(),
            Some(Mutation::WrittenBeforeSync) => self.masters[slot].leads(),
            _ => false,
        }
    }

    /// What a master says is changed on its way out.
    pub(crate) fn plant_at_output(&self, mut message: v1::MasterMessage) -> v1::MasterMessage {
        if let Some(MasterSays::Desired(desired)) = &mut message.message {
            match self.mutation {
                Some(Mutation::KillIntentDropped) if desired.full => {
                    desired.tasks.iter_mut().for_each(|task| task.kill_grace_ms = None);
                }
                Some(Mutation::EpochReused) if self.plan.leaderships > 1 => {
                    for instance in desired.instances.iter_mut().filter(|instance| instance.epoch > 1) {
                        instance.epoch -= 1;
                    }
                }
                _ => {}
            }
        }
        message
    }
}
