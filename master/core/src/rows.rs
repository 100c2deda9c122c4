//! Stored rows: table numbers, keys, and the changes that one log entry makes.
//!
//! Owns [`Rows`], [`RowChange`] and the overlay through which commands of one entry see each other's
//! rows. Invariants: a row is written at most once per entry; keys order as their ids do. Must never
//! interpret a value.

use std::collections::BTreeMap;
use tessera_types::{AgentId, Digest, FrameworkId, TaskId};

/// The one row of counters.
pub const META: u8 = 1;
/// Agents by number.
pub const AGENTS: u8 = 2;
/// Components by digest.
pub const COMPONENTS: u8 = 3;
/// Frameworks by number.
pub const FRAMEWORKS: u8 = 4;
/// Specs by framework and digest.
pub const SPECS: u8 = 5;
/// Tasks that are live or have unconsumed updates, by framework and id.
pub const TASKS: u8 = 6;
/// Task ids that were ever used, by framework and id.
pub const USED_IDS: u8 = 7;
/// State of schedulers, by framework and key.
pub const VALUES: u8 = 8;
/// Ended tasks, by framework and number.
pub const HISTORY: u8 = 9;
/// Events, by (index, n).
pub const EVENTS: u8 = 10;
/// Answers to requests with an idempotency key, by number.
pub const ANSWERS: u8 = 11;
/// Timers by framework and id.
pub const TIMERS: u8 = 12;
/// What an upgrade that is not folded in yet has written over the values, by framework and key:
/// [`WRITTEN`] and the value, or [`DELETED`].
pub const GENERATION: u8 = 13;
/// Limits that are set, by role; the empty role is the cluster.
pub const LIMITS: u8 = 14;
/// Results of requests that may come again, by number.
pub const REQUESTS: u8 = 15;
/// Agents that were declared gone, by key.
pub const GONE: u8 = 16;
/// Requests that a scheduler took in and has not answered, by framework and number.
pub const OPEN: u8 = 17;
/// Sessions of masters that pass requests on, and results in them, by session and number.
pub const SESSIONS: u8 = 18;

/// What is said of roles, by role.
pub const ROLES: u8 = 19;

/// First byte of a row of [`GENERATION`] that holds a value.
pub(crate) const WRITTEN: u8 = 1;
/// The row of [`GENERATION`] of a key that was deleted.
pub(crate) const DELETED: u8 = 0;

/// Rows that one page of a scan returns: bounds the memory that loading takes beside the state.
pub(crate) const SCAN_PAGE: usize = 512;

/// The rows could not be read. The replica has to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading rows: {0}")]
pub struct RowsError(pub String);

/// Reads committed rows.
pub trait Rows {
    /// One row.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, RowsError>;

    /// At most `limit` rows whose keys begin with `prefix` and are greater than `after`, in order.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RowsError>;
}

/// One changed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// Write a row.
    Put {
        /// Which table.
        table: u8,
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Remove a row, if it is there.
    Delete {
        /// Which table.
        table: u8,
        /// Key.
        key: Vec<u8>,
    },
    /// Remove every row whose key begins so.
    DeletePrefix {
        /// Which table.
        table: u8,
        /// Leading bytes.
        prefix: Vec<u8>,
    },
}

impl RowChange {
    /// Which table changes.
    #[must_use]
    pub const fn table(&self) -> u8 {
        match self {
            Self::Put { table, .. } | Self::Delete { table, .. } | Self::DeletePrefix { table, .. } => *table,
        }
    }
}

/// Key of an agent.
pub(crate) fn agent_key(agent: AgentId) -> Vec<u8> {
    agent.0.to_be_bytes().to_vec()
}

/// Key of a framework, and prefix of everything that it owns.
pub(crate) fn framework_key(framework: FrameworkId) -> Vec<u8> {
    framework.0.to_be_bytes().to_vec()
}

/// Key of something that a framework owns.
pub(crate) fn owned_key(framework: FrameworkId, rest: &[u8]) -> Vec<u8> {
    let mut key = framework_key(framework);
    key.extend_from_slice(rest);
    key
}

/// Key of a task.
pub(crate) fn task_key(framework: FrameworkId, task: &TaskId) -> Vec<u8> {
    owned_key(framework, task.as_str().as_bytes())
}

/// Key of a spec.
pub(crate) fn spec_key(framework: FrameworkId, spec: &Digest) -> Vec<u8> {
    owned_key(framework, &spec.0)
}

/// Key of an ended task.
pub(crate) fn history_key(framework: FrameworkId, number: u64) -> Vec<u8> {
    owned_key(framework, &number.to_be_bytes())
}

/// Key of an event.
pub(crate) fn event_key(index: u64, n: u32) -> Vec<u8> {
    let mut key = index.to_be_bytes().to_vec();
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// Splits a key of something owned.
pub(crate) fn split_owned(key: &[u8]) -> Option<(FrameworkId, &[u8])> {
    let (id, rest) = key.split_first_chunk::<8>()?;
    Some((FrameworkId(u64::from_be_bytes(*id)), rest))
}

/// Every row of a table, a page at a time.
pub(crate) fn for_each(
    rows: &dyn Rows,
    table: u8,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), RowsError>,
) -> Result<(), RowsError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = rows.scan(table, &[], after.as_deref(), SCAN_PAGE)?;
        for (key, value) in &page {
            visit(key, value)?;
        }
        match page.into_iter().last() {
            Some((key, _)) => after = Some(key),
            None => return Ok(()),
        }
    }
}

/// Rows as they are after the commands applied so far of one entry.
pub(crate) struct Overlay<'a> {
    below: &'a dyn Rows,
    changed: BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>,
    removed: Vec<(u8, Vec<u8>)>,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(below: &'a dyn Rows) -> Self {
        Self { below, changed: BTreeMap::new(), removed: Vec::new() }
    }

    pub(crate) fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, RowsError> {
        if let Some(value) = self.changed.get(&(table, key.to_vec())) {
            return Ok(value.clone());
        }
        if self.removed.iter().any(|(t, prefix)| *t == table && key.starts_with(prefix)) {
            return Ok(None);
        }
        self.below.get(table, key)
    }

    /// At most `limit` rows of a prefix after a key, in order.
    pub(crate) fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RowsError> {
        let within = |key: &[u8]| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let from = (table, after.unwrap_or(prefix).to_vec());
        let changed = self.changed.range(from..);
        let changed = changed.take_while(|((t, key), _)| *t == table && key.starts_with(prefix));
        let changed = changed.filter(|((_, key), _)| within(key));
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = changed
            .filter_map(|((_, key), value)| Some((key.clone(), value.clone()?)))
            .collect();
        let hidden = |key: &[u8]| {
            self.changed.contains_key(&(table, key.to_vec()))
                || self.removed.iter().any(|(t, gone)| *t == table && key.starts_with(gone))
        };
        let mut below = 0;
        let mut last = after.map(<[u8]>::to_vec);
        while below < limit {
            let page = self.below.scan(table, prefix, last.as_deref(), limit)?;
            let Some((end, _)) = page.last() else { break };
            last = Some(end.clone());
            for (key, value) in page.into_iter().filter(|(key, _)| !hidden(key)) {
                below += 1;
                found.insert(key, value);
            }
        }
        Ok(found.into_iter().take(limit).collect())
    }

    pub(crate) fn put(&mut self, table: u8, key: Vec<u8>, value: Vec<u8>) {
        self.changed.insert((table, key), Some(value));
    }

    pub(crate) fn delete(&mut self, table: u8, key: Vec<u8>) {
        self.changed.insert((table, key), None);
    }

    pub(crate) fn delete_prefix(&mut self, table: u8, prefix: Vec<u8>) {
        self.changed.retain(|(t, key), _| *t != table || !key.starts_with(&prefix));
        self.removed.push((table, prefix));
    }

    /// The changes; prefixes first, because rows written later lie above them.
    pub(crate) fn into_changes(self) -> Vec<RowChange> {
        let prefixes =
            self.removed.into_iter().map(|(table, prefix)| RowChange::DeletePrefix { table, prefix });
        let rows = self.changed.into_iter().map(|((table, key), value)| match value {
            Some(value) => RowChange::Put { table, key, value },
            None => RowChange::Delete { table, key },
        });
        prefixes.chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemRows;

    #[test]
    fn an_overlay_shows_what_the_entry_changed() {
        let mut rows = MemRows::default();
        rows.write(vec![
            RowChange::Put { table: 8, key: vec![1, 1], value: vec![10] },
            RowChange::Put { table: 8, key: vec![2, 1], value: vec![20] },
        ]);
        let mut overlay = Overlay::new(&rows);
        overlay.put(8, vec![1, 2], vec![11]);
        overlay.delete_prefix(8, vec![1]);
        assert_eq!(overlay.get(8, &[1, 1]), Ok(None));
        assert_eq!(overlay.get(8, &[1, 2]), Ok(None));
        overlay.put(8, vec![1, 1], vec![12]);
        assert_eq!(overlay.get(8, &[1, 1]), Ok(Some(vec![12])));
        assert_eq!(overlay.get(8, &[2, 1]), Ok(Some(vec![20])));
        let changes = overlay.into_changes();
        rows.write(changes);
        assert_eq!(rows.get(8, &[1, 1]), Ok(Some(vec![12])));
        assert_eq!(rows.get(8, &[1, 2]), Ok(None));
        assert_eq!(rows.get(8, &[2, 1]), Ok(Some(vec![20])));
    }
}
