//! A saved state that was restored: what is expected goes back with it.
//!
//! Invariants: of what was done after the save anything may become, but what runs and is not known is left alone until
//! somebody wants it ended. Must never change the run.

use super::{Group, Oracle, Shadow, TaskName};
use crate::model::unit_of;
use crate::sandboxes::Sandboxes;
use std::collections::{BTreeMap, BTreeSet};
use tessera_master_core::EventId;
use tessera_types::{AgentId, Epoch, TaskState};

/// Numbers that are given out after a restore lie above this, as `docs/operations.md` says.
const RAISED: u64 = 1_000_000;

/// What was expected when a state was saved.
#[derive(Clone)]
pub(crate) struct Saved {
    frameworks: BTreeMap<u64, Shadow>,
    tasks: BTreeMap<TaskName, TaskState>,
    leaving: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    events_last: EventId,
    last_applied: u64,
}

impl Oracle {
    /// What is expected now.
    pub(crate) fn saved(&self) -> Saved {
        Saved {
            frameworks: self.frameworks.clone(),
            tasks: self.tasks.clone(),
            leaving: self.leaving.clone(),
            removed: self.removed.clone(),
            events_last: self.events_last,
            last_applied: self.last_applied,
        }
    }

    /// The cluster goes on from there.
    pub(crate) fn restore(&mut self, saved: Saved) {
        // Those of a framework that was removed since are only known by their processes.
        let started = self.starts.keys().map(|(framework, task, _)| (*framework, task.clone()));
        let names: BTreeSet<TaskName> = self.tasks.keys().cloned().chain(started).collect();
        let changed = |name: &TaskName| {
            let now = saved.tasks.get(name);
            now.is_none() || now != self.tasks.get(name)
        };
        let changed: Vec<TaskName> = names.into_iter().filter(changed).collect();
        let live = saved.tasks.iter().filter(|(_, state)| !state.is_terminal());
        self.uncertain.extend(live.map(|(name, _)| name.clone()));
        // Members of groups end with each other, and what was to end goes on ending.
        let left_alone = |name: &&TaskName| {
            let alone = name.1.matches('.').count() == 1 && unit_of(&name.1) == name.1;
            let unwanted = self.killing.contains(*name) || self.user_kills.contains(*name);
            let emptied = |agent: &AgentId| self.wishes.gone.contains(agent) || self.drained.contains(agent);
            let agent = self.placed.get(*name);
            let removed = self.leaving.contains(&name.0);
            alone && !unwanted && !removed && !saved.tasks.contains_key(*name) && !agent.is_some_and(emptied)
        };
        let strangers: BTreeSet<TaskName> = self.alive.keys().filter(left_alone).cloned().collect();
        if !strangers.is_empty() {
            self.saw("a restored state does not know what runs");
        }
        self.strangers.get_or_insert_default().extend(strangers);
        self.wishes.on_two_machines(changed);
        self.wishes.forget_live();
        (self.frameworks, self.tasks) = (saved.frameworks, saved.tasks);
        (self.leaving, self.removed) = (saved.leaving, saved.removed);
        (self.events_last, self.last_applied) = (saved.events_last, saved.last_applied);
        self.group = Group::default();
        self.sandboxes = Sandboxes::default();
        self.generations.clear();
        self.offered.clear();
        self.flipped.clear();
    }

    /// Whether a turn was made before the restore.
    pub(super) const fn is_of_before(&self, epoch: Epoch) -> bool {
        self.is_restored() && epoch.0 <= RAISED
    }

    /// Whether a saved state was restored.
    pub(super) const fn is_restored(&self) -> bool {
        self.strangers.is_some()
    }

    /// Somebody wants that what is not known ends.
    pub(crate) fn strangers_may_end(&mut self) {
        self.strangers = Some(BTreeSet::new());
    }

    /// Whether a task waits whose id was used before the restore and again after it: an agent that knows it as ended
    /// does not run it once more.
    ///
    /// Or one whose agent was declared gone after the state was saved, and will not come back under its number.
    pub(crate) fn waits_for_used_id(&self) -> bool {
        let waits = |(name, state): (&TaskName, &TaskState)| match state {
            TaskState::Staging => self.wishes.is_usurped(name),
            TaskState::Unreachable => true,
            _ => false,
        };
        self.is_restored() && self.tasks.iter().any(waits)
    }

    /// An agent tells a task to end.
    pub(crate) fn on_signal(&mut self, name: &TaskName) {
        let stranger = self.strangers.as_ref().is_some_and(|strangers| strangers.contains(name));
        // Its agent may have registered anew since, and been declared gone under that number.
        let gone = |on: &AgentId| self.wishes.gone.contains(on) || self.wishes.gone.iter().any(|agent| agent.0 > RAISED);
        let known = self.tasks.contains_key(name) || self.placed.get(name).is_some_and(gone);
        self.ensure(!stranger || known, || {
            format!("f{}/{} is told to end, and the restored state only does not know it", name.0, name.1)
        });
    }
}
