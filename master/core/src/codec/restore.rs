//! What a restore leaves in the state, to and from rows.

use super::{LoadError, bad};
use crate::restore::Restore;
use crate::rows;
use std::collections::BTreeMap;
use tessera_types::{FrameworkId, Resources, TaskId};
use tessera_wire::v1;

impl From<&Restore> for v1::Restore {
    fn from(restore: &Restore) -> Self {
        Self {
            agents_after: restore.agents.start().saturating_sub(1),
            agents_to: *restore.agents.end(),
            frameworks_after: restore.frameworks.start().saturating_sub(1),
            frameworks_to: *restore.frameworks.end(),
        }
    }
}

impl From<v1::Restore> for Restore {
    fn from(row: v1::Restore) -> Self {
        Self {
            agents: row.agents_after.saturating_add(1)..=row.agents_to,
            frameworks: row.frameworks_after.saturating_add(1)..=row.frameworks_to,
        }
    }
}

/// Tasks that the state does not know, for an agent's row.
pub(super) fn strangers(strangers: &BTreeMap<(FrameworkId, TaskId), Resources>) -> Vec<v1::Stranger> {
    let row = |((framework, task), charge): (&(FrameworkId, TaskId), &Resources)| v1::Stranger {
        framework: framework.0,
        task: task.to_string(),
        charge: Some(charge.into()),
    };
    strangers.iter().map(row).collect()
}

/// The reverse.
pub(super) fn read_strangers(
    rows: Vec<v1::Stranger>,
) -> Result<BTreeMap<(FrameworkId, TaskId), Resources>, LoadError> {
    let read = |row: v1::Stranger| {
        let task = TaskId::try_from(row.task).map_err(|error| bad(rows::AGENTS, error))?;
        Ok(((FrameworkId(row.framework), task), row.charge.unwrap_or_default().into()))
    };
    rows.into_iter().map(read).collect()
}
