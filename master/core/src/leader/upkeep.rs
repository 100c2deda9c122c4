//! What time brings to agents: drains that are over, tasks whose agent was awaited for long enough.
//!
//! Level-triggered: what is due is found in the rows, and proposed once at a time. Must never decide what
//! is done; the commands judge again.

use super::{Desk, Pending};
use crate::commands::give_up_tasks;
use crate::limits::UPKEEP_EVERY_MS;
use std::collections::BTreeSet;
use tessera_types::{AgentId, FrameworkId};
use tessera_wire::v1::{self, command::Command};

/// Something that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// The end of a drain.
    Drain(AgentId),
    /// Tasks of a framework on an agent that does not answer.
    Tasks(AgentId, FrameworkId),
}

impl Desk<'_> {
    pub(super) fn tick_upkeep(&mut self) {
        let now_ms = self.now.mono_ms;
        if now_ms < self.leader.due_looked_ms + UPKEEP_EVERY_MS {
            return;
        }
        self.leader.due_looked_ms = now_ms;
        self.look_for_room();
        let mut due = self.drains_due();
        due.extend(self.tasks_due());
        for due in due {
            if !self.leader.due.insert(due) {
                continue;
            }
            let command = match due {
                Due::Drain(agent) => Command::EndDrain(v1::EndDrain { agent: agent.0 }),
                Due::Tasks(agent, framework) => {
                    Command::GiveUpTasks(v1::GiveUpTasks { agent: agent.0, framework: framework.0 })
                }
            };
            self.propose("", command, Pending::Due(due));
        }
    }

    /// Schedulers on agents that are drained move as soon as there is room elsewhere, and those without a
    /// place are looked at again when others went or limits changed.
    fn look_for_room(&mut self) {
        let drained = |agent: AgentId| {
            self.state.agents.get(&agent).is_some_and(|row| row.drain.is_some())
        };
        let frameworks = self.state.frameworks.iter();
        let stuck = frameworks.filter(|(_, f)| f.agent.is_some_and(drained));
        let stuck: Vec<FrameworkId> = stuck.map(|(id, _)| *id).collect();
        self.leader.dirty_frameworks.extend(stuck);
        if std::mem::take(&mut self.leader.room_came) {
            self.touch_unplaced();
        }
    }

    fn drains_due(&self) -> Vec<Due> {
        let time_ms = self.time_ms();
        let agents = self.state.agents.iter();
        let due = agents.filter(|(_, row)| {
            row.drain.is_some_and(|drain| !drain.over && drain.deadline_ms <= time_ms)
        });
        due.map(|(agent, _)| Due::Drain(*agent)).collect()
    }

    fn tasks_due(&self) -> Vec<Due> {
        let time_ms = self.time_ms();
        let frameworks = self.state.frameworks.iter();
        let impatient: BTreeSet<FrameworkId> = frameworks
            .filter(|(_, framework)| framework.unreachable.replace_after_ms.is_some())
            .map(|(id, _)| *id)
            .collect();
        if impatient.is_empty() {
            return Vec::new();
        }
        let mut due = BTreeSet::new();
        let away = self.state.agents.iter().filter(|(_, row)| row.unreachable_ms.is_some());
        for (agent, row) in away {
            for (id, task) in row.tasks.iter().filter(|(id, _)| impatient.contains(id)) {
                let Some(framework) = self.state.frameworks.get(id) else { continue };
                let Some(task) = framework.tasks.get(task) else { continue };
                if give_up_tasks::due(framework, row, time_ms) && give_up_tasks::waits(framework, task) {
                    due.insert(Due::Tasks(*agent, *id));
                }
            }
        }
        due.into_iter().collect()
    }
}
