//! Rows in memory and a planted bug, for tests and the simulator, and the allocator alone, for measurements.

pub use crate::allocator::{AllocatorRun, EVEN_MEM_MIB, Fairness, hour_of_churn};

use crate::rows::{RowChange, Rows, RowsError};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Forget what roles use, as a master would that did not count it when it starts: to prove that this is noticed.
pub fn forget_role_uses(core: &mut crate::Core) {
    core.state.role_used.clear();
}

/// Rows in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemRows {
    rows: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
}

impl MemRows {
    /// Write the changes of one entry.
    pub fn write(&mut self, changes: Vec<RowChange>) {
        for change in changes {
            match change {
                RowChange::Put { table, key, value } => {
                    self.rows.insert((table, key), value);
                }
                RowChange::Delete { table, key } => {
                    self.rows.remove(&(table, key));
                }
                RowChange::DeletePrefix { table, prefix } => {
                    self.rows.retain(|(t, key), _| *t != table || !key.starts_with(&prefix));
                }
            }
        }
    }

    /// How many there are of a table.
    #[must_use]
    pub fn count(&self, table: u8) -> usize {
        self.rows.keys().filter(|(t, _)| *t == table).count()
    }
}

impl Rows for MemRows {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, RowsError> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RowsError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded((table, after.to_vec())),
            Some(_) | None => Bound::Included((table, prefix.to_vec())),
        };
        let rows = self.rows.range((start, Bound::Unbounded));
        let rows = rows.take_while(|((t, key), _)| *t == table && key.starts_with(prefix));
        Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}
