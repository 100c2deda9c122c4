//! A simulated disk that forgets what was not synced.
//!
//! Owns: the synced state, the batches written since, and injected faults.
//! Invariants: `crash` keeps the synced state and a prefix of the unsynced batches, as a
//! write-ahead log does; readers see every batch, synced or not.
//! Must never: be used outside tests and simulations; it holds everything twice.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Disk, DiskBatch, DiskSync, DiskView, Durability, MetaKey, Row, StageId, StageWriter, not_staged,
    prefix_end, row_key,
};
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
    unsynced: VecDeque<Change>,
    /// The staging that may still write, and the number of all so far.
    staging: Option<StageId>,
    stagings: u64,
    fail_next_sync: bool,
    syncs: u64,
    writes: u64,
}

/// One write, in the order in which they become durable.
#[derive(Debug, Clone)]
enum Change {
    Batch(DiskBatch),
    ForgetStaged,
    Stage(Vec<Row>),
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Image {
    meta: BTreeMap<MetaKey, Vec<u8>>,
    log: BTreeMap<u64, Vec<u8>>,
    /// Shared with views; copied by the first write after one was taken.
    rows: Arc<Rows>,
    staged: Rows,
}

impl Image {
    fn take(&mut self, change: Change) {
        match change {
            Change::Batch(batch) => self.write(batch),
            Change::ForgetStaged => self.staged.clear(),
            Change::Stage(rows) => {
                let keyed = rows
                    .into_iter()
                    .map(|(table, key, value)| (row_key(table, &key), value));
                self.staged.extend(keyed);
            }
        }
    }

    fn write(&mut self, batch: DiskBatch) {
        self.meta.extend(batch.meta);
        for range in batch.log_remove {
            self.log.retain(|index, _| !range.contains(index));
        }
        self.log.extend(batch.log_put);
        if batch.adopt.is_some() {
            self.rows = Arc::new(std::mem::take(&mut self.staged));
        }
        if batch.rows.is_empty() {
            return;
        }
        let rows = Arc::make_mut(&mut self.rows);
        for change in batch.rows {
            match change {
                RowChange::Put { table, key, value } => {
                    rows.insert(row_key(table, &key), value);
                }
                RowChange::Delete { table, key } => {
                    rows.remove(&row_key(table, &key));
                }
                RowChange::DeletePrefix { table, prefix } => {
                    let prefix = row_key(table, &prefix);
                    rows.retain(|key, _| !key.starts_with(&prefix));
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
        let kept: Vec<Change> = inner.unsynced.drain(..).take(survivors).collect();
        for change in kept {
            inner.synced.take(change);
        }
        inner.visible = inner.synced.clone();
        inner.staging = None;
        inner.fail_next_sync = false;
    }

    /// Batches that a crash now could lose; an upper bound for `survivors`.
    pub fn unsynced_batches(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// The next sync fails, and like after a failed fsync what it was for may or may not survive
    /// the crash that must follow.
    pub fn fail_next_sync(&mut self) {
        self.lock().fail_next_sync = true;
    }

    /// Takes back a fault that was not met yet.
    pub fn clear_faults(&mut self) {
        self.lock().fail_next_sync = false;
    }

    /// Makes the first `mark` writes durable; see [`MemDisk::writes`].
    ///
    /// # Errors
    /// The fault that was asked for.
    pub fn sync_to(&mut self, mark: u64) -> Result<(), DiskError> {
        self.lock().sync_to(mark)
    }

    /// Syncs so far, those of synced writes among them.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// All writes so far. A sync that begins now is for as many.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// A copy of this disk on which one record is missing.
    #[must_use]
    pub fn without(&self, key: MetaKey) -> MemDisk {
        let mut visible = self.lock().visible.clone();
        visible.meta.remove(&key);
        let inner = Inner {
            synced: visible.clone(),
            visible,
            ..Inner::default()
        };
        MemDisk {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Turns one bit of a stored record over, which must be noticed at the next start: one of the log,
    /// or a meta record. `which` chooses it; says which it was, or none if nothing is stored. Rows are
    /// left out, as a real disk guards them by checksums of its own.
    pub fn flip(&mut self, which: u64) -> Option<String> {
        let mut inner = self.lock();
        let image = &mut inner.synced;
        let count = image.meta.len() + image.log.len();
        let at = usize::try_from(which % count.max(1) as u64).ok()?;
        let meta = image
            .meta
            .iter_mut()
            .map(|(key, record)| (format!("{key:?} record"), record));
        let log = image
            .log
            .iter_mut()
            .map(|(index, record)| (format!("log entry {index}"), record));
        let (name, record) = meta.chain(log).nth(at)?;
        let bit = which / count as u64;
        let byte = usize::try_from(bit / 8).ok()? % record.len().max(1);
        *record.get_mut(byte)? ^= 1 << (bit % 8);
        inner.visible = inner.synced.clone();
        Some(name)
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

impl Inner {
    fn note(&mut self, change: Change) {
        self.writes += 1;
        self.visible.take(change.clone());
        self.unsynced.push_back(change);
    }

    fn sync_to(&mut self, mark: u64) -> Result<(), DiskError> {
        if std::mem::take(&mut self.fail_next_sync) {
            let detail = "injected fault".to_owned();
            return Err(DiskError::Io {
                operation: "sync",
                detail,
            });
        }
        self.syncs += 1;
        let later = self.writes.saturating_sub(mark);
        self.write_back(usize::try_from(later).unwrap_or(usize::MAX));
        Ok(())
    }

    fn write_back(&mut self, keep: usize) {
        while self.unsynced.len() > keep
            && let Some(oldest) = self.unsynced.pop_front()
        {
            self.synced.take(oldest);
        }
    }
}

/// The rows of one moment.
struct MemView(Arc<Rows>);

impl DiskView for MemView {
    fn page(&self, after: Option<(u8, &[u8])>, max_bytes: usize) -> Result<Vec<Row>, DiskError> {
        let start = match after {
            Some((table, key)) => Bound::Excluded(row_key(table, key)),
            None => Bound::Unbounded,
        };
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (key, value) in self.0.range((start, Bound::Unbounded)) {
            let Some((table, key)) = key.split_first() else {
                continue;
            };
            rows.push((*table, key.to_vec(), value.clone()));
            bytes += key.len() + value.len();
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(rows)
    }
}

struct MemStage {
    disk: MemDisk,
    id: StageId,
}

impl StageWriter for MemStage {
    fn put(&mut self, rows: Vec<Row>) -> Result<bool, DiskError> {
        let mut inner = self.disk.lock();
        if inner.staging != Some(self.id) {
            return Ok(false);
        }
        inner.note(Change::Stage(rows));
        inner.write_back(MAX_UNSYNCED_BATCHES);
        Ok(true)
    }
}

impl Disk for MemDisk {
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let mut inner = self.lock();
        if let Some(adopted) = batch.adopt {
            if inner.staging != Some(adopted) {
                return Err(not_staged());
            }
            inner.staging = None;
        }
        inner.note(Change::Batch(batch));
        if durability == Durability::Synced {
            let all = inner.writes;
            return inner.sync_to(all);
        }
        inner.write_back(MAX_UNSYNCED_BATCHES);
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn DiskView>, DiskError> {
        Ok(Box::new(MemView(Arc::clone(&self.lock().visible.rows))))
    }

    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError> {
        let mut inner = self.lock();
        inner.stagings += 1;
        let id = StageId(inner.stagings);
        inner.staging = Some(id);
        inner.note(Change::ForgetStaged);
        drop(inner);
        let disk = self.clone();
        Ok((id, Box::new(MemStage { disk, id })))
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

    fn syncer(&self) -> Box<dyn DiskSync> {
        Box::new(self.clone())
    }
}

impl DiskSync for MemDisk {
    fn sync(&mut self) -> Result<(), DiskError> {
        let all = self.writes();
        self.sync_to(all)
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
                assert_eq!(disk.write(put(key, b"2"), Durability::Unsynced), Ok(()));
            }
            assert_eq!(disk.all_rows().len(), 4);
            disk.crash(survivors);
            assert_eq!(disk.all_rows().len(), 1 + survivors.min(3));
        }
    }

    #[test]
    fn a_sync_is_for_what_was_written_before_it_began() {
        let mut disk = MemDisk::new();
        assert_eq!(disk.write(put(b"a", b"1"), Durability::Unsynced), Ok(()));
        let mark = disk.writes();
        assert_eq!(disk.write(put(b"b", b"1"), Durability::Unsynced), Ok(()));
        assert_eq!(disk.sync_to(mark), Ok(()));
        assert_eq!(disk.unsynced_batches(), 1);
        disk.crash(0);
        assert_eq!(disk.all_rows().len(), 1);
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
