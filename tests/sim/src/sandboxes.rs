//! Members of task groups whose sandbox could not be made: none of such a group may start.
//!
//! Invariant: what an agent's crash takes before it is on stable storage was never said, and counts for nothing. Must
//! never look into an agent.

use crate::oracle::TaskName;
use std::collections::BTreeMap;

/// The groups, by framework and unit; those that are not on stable storage with their agent and its last write then.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes {
    failed: BTreeMap<TaskName, Option<(usize, u64)>>,
}

impl Sandboxes {
    /// A member of a group cannot be prepared; its agent has made so many writes.
    pub(crate) fn on_failed(&mut self, unit: TaskName, agent: usize, writes: u64) {
        self.failed.entry(unit).or_insert(Some((agent, writes)));
    }

    /// A write of an agent is on stable storage.
    pub(crate) fn on_synced(&mut self, agent: usize, write: u64) {
        for note in self.failed.values_mut() {
            *note = note.filter(|(on, writes)| *on != agent || *writes >= write);
        }
    }

    /// An agent's process ends.
    pub(crate) fn on_crash(&mut self, agent: usize) {
        self.failed.retain(|_, note| note.is_none_or(|(on, _)| on != agent));
    }

    /// Whether nothing of a group may start.
    pub(crate) fn has_failed(&self, unit: &TaskName) -> bool {
        self.failed.contains_key(unit)
    }
}
