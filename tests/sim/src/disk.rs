//! A master's disk: the replica's simulated one, with faults on demand.
//!
//! Owns: a countdown to a failing sync, a disk that is full, and the planted bugs of disks. Invariant:
//! without fault or mutation it behaves exactly like [`MemDisk`]. Must never decide when a fault happens,
//! or when a sync ends.

use crate::mutation::Mutation;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_replica::{
    Disk, DiskBatch, DiskError, DiskSync, DiskView, Durability, MemDisk, MetaKey, Row, RowReader, StageId,
    StageWriter,
};

/// Batches with rows that are written before the one whose rows are dropped.
const ROWS_BEFORE_DROP: u64 = 40;
/// Of so many syncs one is left out, where that is planted.
const SYNCS_PER_SKIP: u64 = 3;

#[derive(Debug, Default)]
struct Faults {
    /// Syncs that still succeed before one fails.
    syncs_before_failure: Option<u64>,
    full: bool,
    /// Rows are put aside so often before there is no room for more, once.
    puts_before_full: Option<u64>,
    batches_with_rows: u64,
    syncs: u64,
    /// The record of what was applied before the newest batch with rows.
    applied_before: Option<Vec<u8>>,
}

/// A handle to the disk; clones share it.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    disk: MemDisk,
    faults: Arc<Mutex<Faults>>,
    mutation: Option<Mutation>,
}

impl FaultyDisk {
    /// A disk around what was bootstrapped.
    #[must_use]
    pub fn new(disk: MemDisk, mutation: Option<Mutation>) -> Self {
        Self { disk, faults: Arc::default(), mutation }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sync begins: how many writes it is for.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.disk.writes()
    }

    /// A sync ends that was for so many writes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync_to(&mut self, mark: u64) -> Result<(), DiskError> {
        let mut faults = self.faults();
        let fails = match &mut faults.syncs_before_failure {
            Some(0) => faults.syncs_before_failure.take().is_some(),
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        faults.syncs += 1;
        let skip = faults.syncs.is_multiple_of(SYNCS_PER_SKIP);
        drop(faults);
        if fails {
            self.disk.fail_next_sync();
        } else if self.mutation == Some(Mutation::SyncedBatchLost)
            || self.mutation == Some(Mutation::FsyncSkipped) && skip
        {
            return Ok(());
        }
        self.disk.sync_to(mark)
    }

    /// After so many more syncs one fails.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.faults().syncs_before_failure = Some(syncs);
    }

    /// Whether every write fails.
    pub fn set_full(&self, full: bool) {
        self.faults().full = full;
    }

    /// Once there is no room when rows of a snapshot are put aside after so many times.
    pub fn fill_while_staging(&self, puts: u64) {
        self.faults().puts_before_full = Some(puts);
    }

    /// Power loss; see [`MemDisk::crash`].
    pub fn crash(&mut self, survivors: usize) {
        self.faults().syncs_before_failure = None;
        self.disk.crash(survivors);
    }

    /// See [`MemDisk::unsynced_batches`].
    #[must_use]
    pub fn unsynced_batches(&self) -> usize {
        self.disk.unsynced_batches()
    }

    /// A bit of what is stored turns over; `which` chooses it. Says where.
    pub fn flip(&mut self, which: u64) -> Option<String> {
        self.disk.flip(which)
    }

    /// All rows, for comparing masters.
    #[must_use]
    pub fn all_rows(&self) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
        self.disk.all_rows()
    }
}

impl RowReader for FaultyDisk {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        self.disk.get(table, key)
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, DiskError> {
        self.disk.scan(table, prefix, after, limit)
    }
}

impl Disk for FaultyDisk {
    fn write(&mut self, mut batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let mut faults = self.faults();
        if faults.full {
            return Err(DiskError::Io { operation: "write", detail: "the disk is full".to_owned() });
        }
        if !batch.rows.is_empty() {
            faults.batches_with_rows += 1;
            let at = faults.batches_with_rows == ROWS_BEFORE_DROP;
            if self.mutation == Some(Mutation::RowsDropped) && at {
                batch.rows.clear();
            }
            // The rows are there, and the note that they are is one too old.
            if self.mutation == Some(Mutation::BatchAppliedTwice) {
                faults.applied_before = self.disk.meta(MetaKey::Applied)?;
            }
        }
        drop(faults);
        self.disk.write(batch, Durability::Unsynced)?;
        match durability {
            Durability::Synced => self.sync_to(self.writes()),
            Durability::Unsynced => Ok(()),
        }
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        if key == MetaKey::Applied
            && let Some(before) = &self.faults().applied_before
        {
            return Ok(Some(before.clone()));
        }
        self.disk.meta(key)
    }

    fn log_read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<(u64, Vec<u8>)>, DiskError> {
        self.disk.log_read(range, max_bytes)
    }

    fn view(&self) -> Result<Box<dyn DiskView>, DiskError> {
        self.disk.view()
    }

    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError> {
        let (id, writer) = self.disk.stage()?;
        Ok((id, Box::new(FaultyStage { writer, faults: Arc::clone(&self.faults) })))
    }

    fn syncer(&self) -> Box<dyn DiskSync> {
        Box::new(self.clone())
    }
}

/// Rows of a snapshot are put aside, until the disk is full.
struct FaultyStage {
    writer: Box<dyn StageWriter>,
    faults: Arc<Mutex<Faults>>,
}

impl StageWriter for FaultyStage {
    fn put(&mut self, rows: Vec<Row>) -> Result<bool, DiskError> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = faults.puts_before_full == Some(0);
        faults.puts_before_full = faults.puts_before_full.and_then(|left| left.checked_sub(1));
        if faults.full || filled {
            return Err(DiskError::Io { operation: "write", detail: "the disk is full".to_owned() });
        }
        drop(faults);
        self.writer.put(rows)
    }
}

impl DiskSync for FaultyDisk {
    fn sync(&mut self) -> Result<(), DiskError> {
        self.sync_to(self.writes())
    }

    fn reclaim_log(&mut self, _below: u64) -> Result<(), DiskError> {
        Ok(())
    }
}
