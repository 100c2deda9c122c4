//! A state that was restored from a saved snapshot, and what agents bring that it does not know.
//!
//! The cluster went on after the snapshot: it gave out numbers, placed schedulers and launched tasks. Owns how the
//! restored state keeps clear of all that. Invariants: a number, an epoch or a group that may have been given out
//! after the snapshot is never given out again; a task that the state cannot know of is not taken for one that was
//! given up. Must never guess what became of a task: what its agent does not say is lost.

use crate::api::Config;
use crate::apply::Dirty;
use crate::codec::{self, LoadError};
use crate::limits::RESTORES_KEPT_MAX;
use crate::rows::{self, RowChange, Rows};
use crate::state::{Agent, State};
use crate::{check_version, commands};
use std::ops::RangeInclusive;
use tessera_types::{AgentId, FrameworkId, Resources, TaskId};

/// Numbers of agents and frameworks, and epochs, that are passed over: more than are given out between two saved
/// snapshots.
pub(crate) const GAP: u64 = 1_000_000;

/// Numbers of task groups that are passed over: more than a framework may launch tasks.
const GROUPS_GAP: u64 = 1 << 32;

/// What an agent's counts of a task begin with: below everything that it reports, and above nothing heard.
const HEARD: u64 = 1;

/// Numbers that the cluster may have given out after the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    pub(crate) agents: RangeInclusive<u64>,
    pub(crate) frameworks: RangeInclusive<u64>,
}

impl State {
    /// Whether the state may be older than what agents have seen.
    pub(crate) fn is_restored(&self) -> bool {
        !self.meta.restores.is_empty()
    }

    /// Whether the agent may have got its number after a snapshot that was restored.
    pub(crate) fn is_lost_agent(&self, agent: AgentId) -> bool {
        let mut restores = self.meta.restores.iter();
        !self.agents.contains_key(&agent) && restores.any(|restore| restore.agents.contains(&agent.0))
    }

    /// The same of a framework.
    pub(crate) fn is_lost_framework(&self, framework: FrameworkId) -> bool {
        let mut restores = self.meta.restores.iter();
        restores.any(|restore| restore.frameworks.contains(&framework.0))
    }

    /// Note that the state is that of a saved snapshot from now on; what is to be written.
    fn restore(&mut self, version: u32) -> Vec<Dirty> {
        let meta = &mut self.meta;
        let agents = meta.next_agent + 1..=meta.next_agent + GAP;
        let frameworks = meta.next_framework + 1..=meta.next_framework + GAP;
        (meta.next_agent, meta.next_framework) = (*agents.end(), *frameworks.end());
        meta.restores.push(Restore { agents, frameworks });
        let excess = meta.restores.len().saturating_sub(RESTORES_KEPT_MAX);
        meta.restores.drain(..excess);
        // There is one master, and it is of this build.
        meta.cluster_version = meta.cluster_version.max(version);
        let mut dirty = Vec::new();
        for (id, framework) in &mut self.frameworks {
            // Instances of after the snapshot have seen what the state does not have.
            framework.epoch.0 += GAP;
            framework.next_group += GROUPS_GAP;
            dirty.push(Dirty::Framework(*id));
            // Its agent was told of it since, for all that is known: it is not to be launched a second time.
            let live = framework.tasks.iter_mut().filter(|(_, task)| !task.state.is_terminal());
            for (task, row) in live.filter(|(_, task)| task.agent_sequence == 0) {
                row.agent_sequence = HEARD;
                dirty.push(Dirty::Task(*id, task.clone()));
            }
        }
        dirty
    }
}

impl Agent {
    /// What the strangers on it take together.
    pub(crate) fn strangers_take(&self) -> Resources {
        self.strangers.values().fold(Resources::ZERO, |sum, charge| sum.plus(charge))
    }

    /// It runs these tasks that the state does not know, and no others.
    pub(crate) fn set_strangers(&mut self, strangers: std::collections::BTreeMap<(FrameworkId, TaskId), Resources>) {
        self.charged.take(&self.strangers_take());
        self.strangers = strangers;
        self.charged.add(&self.strangers_take());
    }
}

/// The changes that make the rows of a saved snapshot those of a new cluster, to be written before it is started.
///
/// # Errors
/// When the rows make no state that this build understands.
pub fn restored(rows: &dyn Rows, config: &Config) -> Result<Vec<RowChange>, LoadError> {
    let mut state = codec::load(rows)?;
    check_version(&state, config)?;
    if config.understands < commands::RESTORE_VERSION {
        return Ok(Vec::new());
    }
    let dirty = state.restore(config.understands);
    let mut changes = Vec::with_capacity(dirty.len() + 1);
    for dirty in &dirty {
        let (table, key, value) = state.row(dirty);
        changes.push(match value {
            Some(value) => RowChange::Put { table, key, value },
            None => RowChange::Delete { table, key },
        });
    }
    changes.push(RowChange::Put { table: rows::META, key: b"meta".to_vec(), value: state.meta.encode() });
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemRows;

    fn saved(cluster_version: u32) -> MemRows {
        let mut state = State::default();
        (state.meta.next_agent, state.meta.next_framework) = (7, 3);
        state.meta.cluster_version = cluster_version;
        let mut rows = MemRows::default();
        rows.write(vec![RowChange::Put { table: rows::META, key: b"meta".to_vec(), value: state.meta.encode() }]);
        rows
    }

    #[test]
    fn a_restored_state_keeps_clear_of_what_was_given_out_since() {
        let mut rows = saved(1);
        for _ in 0..RESTORES_KEPT_MAX + 2 {
            let changes = restored(&rows, &Config::default()).unwrap();
            rows.write(changes);
        }
        let state = codec::load(&rows).unwrap();
        assert_eq!(state.meta.cluster_version, crate::CLUSTER_VERSION);
        assert_eq!(state.meta.restores.len(), RESTORES_KEPT_MAX);
        let last = state.meta.restores.last().unwrap();
        assert_eq!((*last.agents.end(), *last.frameworks.end()), (state.meta.next_agent, state.meta.next_framework));
        assert_eq!(last.agents.clone().count(), GAP as usize);
        for (agent, lost) in [(7, false), (last.agents.start() - 1, true), (state.meta.next_agent, true), (state.meta.next_agent + 1, false)] {
            assert_eq!(state.is_lost_agent(AgentId(agent)), lost, "{agent}");
        }
    }

    #[test]
    fn a_build_restores_what_it_understands() {
        let older = Config { understands: commands::RESTORE_VERSION - 1, ..Config::default() };
        assert_eq!(restored(&saved(1), &older), Ok(Vec::new()));
        let newer = restored(&saved(crate::CLUSTER_VERSION + 1), &Config::default());
        assert!(matches!(newer, Err(LoadError::NewerCluster { .. })), "{newer:?}");
    }
}
