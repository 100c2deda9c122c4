//! A master's disk: the replica's simulated one, with faults on demand.
//!
//! Owns: a countdown to a failing sync, a disk that is full, what goes wrong while a snapshot is taken, and the
//! planted bugs of disks. Invariant:
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

/// What goes wrong with a snapshot that a master takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotFault {
    /// There is no room for its rows.
    FullWhileStaging,
    /// All of its rows are there, and there is no room for the write that takes them over.
    FullAtAdoption,
    /// That write is not synced.
    SyncFails,
    /// The process ends before that write.
    EndsBefore,
    /// It ends right after it.
    EndsAfter,
}

impl SnapshotFault {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::FullWhileStaging, Self::FullAtAdoption, Self::SyncFails, Self::EndsBefore, Self::EndsAfter];

    /// What it is called when it has struck.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FullWhileStaging => "a disk is full while a snapshot is put aside",
            Self::FullAtAdoption => "a disk is full when a snapshot is to be taken over",
            Self::SyncFails => "the sync of a snapshot that is taken over fails",
            Self::EndsBefore => "a master ends before it takes a snapshot over",
            Self::EndsAfter => "a master ends when it has taken a snapshot over",
        }
    }
}

fn full() -> DiskError {
    DiskError::Io { operation: "write", detail: "the disk is full".to_owned() }
}

impl Faults {
    /// Whether this is what goes wrong, and now.
    fn strikes(&mut self, fault: SnapshotFault) -> bool {
        let strikes = self.snapshot == Some(fault);
        if strikes {
            self.struck = self.snapshot.take();
        }
        strikes
    }
}

#[derive(Debug, Default)]
struct Faults {
    /// Syncs that still succeed before one fails.
    syncs_before_failure: Option<u64>,
    full: bool,
    /// Of the snapshot that is being taken, until it strikes.
    snapshot: Option<SnapshotFault>,
    /// What struck, until somebody looks.
    struck: Option<SnapshotFault>,
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

    /// The snapshot that is taken now is to meet this.
    pub fn spoil_snapshot(&self, fault: SnapshotFault) {
        self.faults().snapshot = Some(fault);
    }

    /// All of a snapshot has come. Says whether the process is to end.
    #[must_use]
    pub fn ends_before_adoption(&self) -> bool {
        self.faults().strikes(SnapshotFault::EndsBefore)
    }

    /// What went wrong with a snapshot since somebody looked.
    #[must_use]
    pub fn struck(&self) -> Option<SnapshotFault> {
        self.faults().struck.take()
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        let mut faults = self.faults();
        (faults.snapshot, faults.syncs_before_failure) = (None, None);
    }

    /// Power loss; see [`MemDisk::crash`].
    pub fn crash(&mut self, survivors: usize) {
        let mut faults = self.faults();
        faults.syncs_before_failure = None;
        (faults.snapshot, faults.struck) = (None, None);
        drop(faults);
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
        let adopts = batch.adopt.is_some();
        if faults.full || (adopts && faults.strikes(SnapshotFault::FullAtAdoption)) {
            return Err(full());
        }
        let unsynced = adopts && faults.strikes(SnapshotFault::SyncFails);
        if adopts {
            faults.strikes(SnapshotFault::EndsAfter);
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
        if unsynced {
            self.disk.fail_next_sync();
        }
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
        if faults.full || faults.strikes(SnapshotFault::FullWhileStaging) {
            return Err(full());
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
