//! The master's disk: the replica's simulated one, with faults on demand.
//!
//! Owns: a countdown to a failing sync, and the planted bugs of disks. Invariant: without fault or
//! mutation it behaves exactly like [`MemDisk`]. Must never decide when a fault happens.

use crate::mutation::Mutation;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use tessera_replica::{
    Disk, DiskBatch, DiskError, DiskView, Durability, MemDisk, MetaKey, RowReader, StageId,
    StageWriter,
};

/// Batches with rows that are written before the one whose rows are dropped.
const ROWS_BEFORE_DROP: u64 = 40;

#[derive(Debug, Default)]
struct Faults {
    /// Synced writes that still succeed before one fails.
    syncs_before_failure: Option<u64>,
    batches_with_rows: u64,
}

/// A handle to the disk; clones share it.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    disk: MemDisk,
    faults: Rc<RefCell<Faults>>,
    mutation: Option<Mutation>,
}

impl FaultyDisk {
    /// A disk around what was bootstrapped.
    #[must_use]
    pub fn new(disk: MemDisk, mutation: Option<Mutation>) -> Self {
        Self { disk, faults: Rc::default(), mutation }
    }

    /// After so many more synced writes one fails.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.faults.borrow_mut().syncs_before_failure = Some(syncs);
    }

    /// Power loss; see [`MemDisk::crash`].
    pub fn crash(&mut self, survivors: usize) {
        self.faults.borrow_mut().syncs_before_failure = None;
        self.disk.crash(survivors);
    }

    /// See [`MemDisk::unsynced_batches`].
    #[must_use]
    pub fn unsynced_batches(&self) -> usize {
        self.disk.unsynced_batches()
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
    fn write(&mut self, mut batch: DiskBatch, mut durability: Durability) -> Result<(), DiskError> {
        let mut faults = self.faults.borrow_mut();
        if !batch.rows.is_empty() {
            faults.batches_with_rows += 1;
            if self.mutation == Some(Mutation::RowsDropped)
                && faults.batches_with_rows == ROWS_BEFORE_DROP
            {
                batch.rows.clear();
            }
        }
        if durability == Durability::Synced {
            match &mut faults.syncs_before_failure {
                Some(0) => {
                    faults.syncs_before_failure = None;
                    self.disk.fail_next_sync();
                }
                Some(left) => *left -= 1,
                None => {}
            }
            if self.mutation == Some(Mutation::SyncedBatchLost) {
                durability = Durability::Replayable;
            }
        }
        drop(faults);
        self.disk.write(batch, durability)
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        self.disk.meta(key)
    }

    fn log_read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<(u64, Vec<u8>)>, DiskError> {
        self.disk.log_read(range, max_bytes)
    }

    fn view(&self) -> Result<Box<dyn DiskView>, DiskError> {
        self.disk.view()
    }

    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError> {
        self.disk.stage()
    }

    fn reclaim_log(&mut self, below: u64) -> Result<(), DiskError> {
        self.disk.reclaim_log(below)
    }
}
