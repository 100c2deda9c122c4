//! What operators asked for, as far as it decides what may become of tasks.
//!
//! Invariants: it learns of a wish when it is uttered, before the cluster can; a task that was given up may run
//! on until its agent hears of it, and no longer than the run. Must never look into the cluster.

use crate::oracle::TaskName;
use std::collections::{BTreeMap, BTreeSet};
use tessera_master_core::{Keep, UnreachablePolicy};
use tessera_types::{AgentId, LimitName, Reason, TaskState, TaskStatus};

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// Agents that are to be taken for gone.
    pub(crate) gone: BTreeSet<AgentId>,
    /// Agents that will be worked on, or are to be emptied.
    pub(crate) asked_back: BTreeSet<AgentId>,
    /// Limits that were set at some time.
    pub(crate) limited: BTreeSet<LimitName>,
    /// Frameworks that give tasks up whose agent is away.
    impatient: BTreeSet<u64>,
    /// Tasks that were given up while their agent was away, or was declared gone.
    given_up: BTreeSet<TaskName>,
    /// Tasks of an agent for which another machine speaks.
    usurped: BTreeSet<TaskName>,
    /// Live tasks of each framework, and how many it was allowed.
    live: BTreeMap<u64, (u64, u64)>,
}

impl Wishes {
    /// A framework is created with a policy, or is to have it.
    pub(crate) fn on_policy(&mut self, framework: u64, policy: UnreachablePolicy) {
        if policy.keep == Keep::Last && policy.replace_after_ms.is_some() {
            self.impatient.insert(framework);
        }
    }

    /// Whether a task was given up.
    pub(crate) fn is_given_up(&self, name: &TaskName) -> bool {
        self.given_up.contains(name)
    }

    /// The masters have a state of before.
    pub(crate) fn forget_live(&mut self) {
        self.live.clear();
    }

    /// Two machines speak for the agent of these tasks.
    pub(crate) fn on_two_machines(&mut self, tasks: Vec<TaskName>) {
        self.usurped.extend(tasks);
    }

    /// Whether what runs may be on either of two machines.
    pub(crate) fn is_usurped(&self, name: &TaskName) -> bool {
        self.usurped.contains(name)
    }

    /// Whether a launch was refused for a limit that somebody set.
    pub(crate) fn limits_launches(&self, text: &str) -> bool {
        let name = LimitName::LiveTasks;
        self.limited.contains(&name) && text.contains(&format!("limit {name}:"))
    }

    /// A task ended on this agent. Says whether it was given up, which somebody must have wanted.
    pub(crate) fn on_end(&mut self, name: &TaskName, status: &TaskStatus) -> Option<bool> {
        let wanted = match (status.state, status.reason) {
            (TaskState::Gone, Reason::UnreachableTooLong) => self.impatient.contains(&name.0),
            (TaskState::GoneByOperator, Reason::AgentRemoved) => self.gone.contains(&status.agent),
            (TaskState::Gone | TaskState::GoneByOperator, _) => false,
            _ if self.is_usurped(name) => true,
            _ => return None,
        };
        self.given_up.insert(name.clone());
        Some(wanted)
    }

    /// So many tasks of a framework live, and so many may; those that are above it were there before.
    pub(crate) fn on_live(&mut self, framework: u64, live: u64, most: u64) -> Result<(), String> {
        let (before, allowed) = self.live.insert(framework, (live, most)).unwrap_or((live, most));
        if live > before && live > most.max(allowed) {
            return Err(format!("f{framework} has {live} live tasks, {} are allowed", most.max(allowed)));
        }
        Ok(())
    }
}
