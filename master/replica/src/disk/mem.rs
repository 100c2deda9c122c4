//! A simulated disk that forgets what was not synced.
//!
//! Owns: the synced state, the batches written since, and injected faults.
//! Invariants: `crash` keeps the synced state and a prefix of the unsynced batches, as a
//! write-ahead log does; readers see every batch, synced or not.
//! Must never: be used outside tests and simulations; it holds everything twice.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskBatch, Durability, MetaKey, prefix_end, row_key};
use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

/// Unsynced batches kept apart; older ones become durable, as writeback by a kernel would do.
const MAX_UNSYNCED_BATCHES: usize = 4_096;

/// A handle to one simulated disk. Clones share it, so a simulator keeps one while a replica
/// owns another.
#[derive(Debug, Clone, Default)]
pub struct MemDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    visible: Image,
    synced: Image,
    unsynced: VecDeque<DiskBatch>,
    fail_next_sync: bool,
    syncs: u64,
    writes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Image {
    meta: BTreeMap<MetaKey, Vec<u8>>,
    log: BTreeMap<u64, Vec<u8>>,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Image {
    fn write(&mut self, batch: DiskBatch) {
        self.meta.extend(batch.meta);
        for range in batch.log_remove {
            self.log.retain(|index, _| !range.contains(index));
        }
        self.log.extend(batch.log_put);
        if batch.rows_clear {
            self.rows.clear();
        }
        for change in batch.rows {
            match change {
                RowChange::Put { table, key, value } => {
                    self.rows.insert(row_key(table, &key), value);
                }
                RowChange::Delete { table, key } => {
                    self.rows.remove(&row_key(table, &key));
                }
                RowChange::DeletePrefix { table, prefix } => {
                    let prefix = row_key(table, &prefix);
                    self.rows.retain(|key, _| !key.starts_with(&prefix));
                }
            }
        }
    }
}

impl MemDisk {
    /// An empty disk.
    pub fn new() -> Self {
        MemDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss: of the batches not synced, only the first `survivors` remain. The replica on
    /// this disk must have been dropped.
    pub fn crash(&mut self, survivors: usize) {
        let mut inner = self.lock();
        let kept: Vec<DiskBatch> = inner.unsynced.drain(..).take(survivors).collect();
        for batch in kept {
            inner.synced.write(batch);
        }
        inner.visible = inner.synced.clone();
        inner.fail_next_sync = false;
    }

    /// Batches that a crash now could lose; an upper bound for `survivors`.
    pub fn unsynced_batches(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// The next synced write fails, and like after a failed fsync its batch may or may not
    /// survive the crash that must follow.
    pub fn fail_next_sync(&mut self) {
        self.lock().fail_next_sync = true;
    }

    /// Takes back a fault that was not met yet.
    pub fn clear_faults(&mut self) {
        self.lock().fail_next_sync = false;
    }

    /// Synced writes so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// All writes so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// All rows in order: (table, key, value). For comparing replicas.
    pub fn all_rows(&self) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
        let split = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            key.split_first()
                .map(|(table, key)| (*table, key.to_vec(), value.clone()))
        };
        self.lock().visible.rows.iter().filter_map(split).collect()
    }
}

impl RowReader for MemDisk {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.lock().visible.rows.get(&row_key(table, key)).cloned())
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, DiskError> {
        let prefix = row_key(table, prefix);
        let after = after.map(|key| row_key(table, key));
        let start = match &after {
            Some(after) if *after >= prefix => after.clone(),
            _ => prefix.clone(),
        };
        let end = prefix_end(&prefix);
        let inner = self.lock();
        let rows = inner
            .visible
            .rows
            .range(start..)
            .take_while(|(key, _)| end.as_ref().is_none_or(|end| *key < end))
            .filter(|(key, _)| after.as_ref() != Some(*key))
            .filter_map(|(key, value)| Some((key.get(1..)?.to_vec(), value.clone())))
            .take(limit)
            .collect();
        Ok(rows)
    }
}

impl Disk for MemDisk {
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let mut inner = self.lock();
        inner.writes += 1;
        inner.visible.write(batch.clone());
        inner.unsynced.push_back(batch);
        if durability == Durability::Synced {
            if std::mem::take(&mut inner.fail_next_sync) {
                let detail = "injected fault".to_owned();
                return Err(DiskError::Io {
                    operation: "sync",
                    detail,
                });
            }
            inner.syncs += 1;
        }
        let keep = if durability == Durability::Synced {
            0
        } else {
            MAX_UNSYNCED_BATCHES
        };
        while inner.unsynced.len() > keep {
            if let Some(oldest) = inner.unsynced.pop_front() {
                inner.synced.write(oldest);
            }
        }
        Ok(())
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.lock().visible.meta.get(&key).cloned())
    }

    fn log_read(
        &self,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, DiskError> {
        let mut bytes = 0;
        let mut records = Vec::new();
        if range.is_empty() {
            return Ok(records);
        }
        for (index, record) in self.lock().visible.log.range(range) {
            bytes += record.len() as u64;
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            records.push((*index, record.clone()));
        }
        Ok(records)
    }

    fn reclaim_log(&mut self, _below: u64) -> Result<(), DiskError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> DiskBatch {
        let row = RowChange::Put {
            table: 1,
            key: key.to_vec(),
            value: value.to_vec(),
        };
        DiskBatch {
            rows: vec![row],
            ..DiskBatch::default()
        }
    }

    #[test]
    fn a_crash_keeps_the_synced_and_a_prefix_of_the_rest() {
        for survivors in 0..4 {
            let mut disk = MemDisk::new();
            assert_eq!(disk.write(put(b"a", b"1"), Durability::Synced), Ok(()));
            for key in [b"b", b"c", b"d"] {
                assert_eq!(disk.write(put(key, b"2"), Durability::Replayable), Ok(()));
            }
            assert_eq!(disk.all_rows().len(), 4);
            disk.crash(survivors);
            assert_eq!(disk.all_rows().len(), 1 + survivors.min(3));
        }
    }

    #[test]
    fn a_failed_sync_leaves_the_outcome_open() {
        for survivors in 0..2 {
            let mut disk = MemDisk::new();
            disk.fail_next_sync();
            assert!(disk.write(put(b"a", b"1"), Durability::Synced).is_err());
            disk.crash(survivors);
            assert_eq!(disk.all_rows().len(), survivors);
        }
    }
}
