//! The disk behind a replica: three ordered maps (meta, log, rows) and one atomic batch.
//!
//! Owns: the [`Disk`] contract, which RocksDB and the simulator fulfil.
//! Invariants: a batch is all or nothing, and readable at once; batches become durable in the order
//! in which they were written, so a sync makes every earlier one durable too; after a crash a prefix
//! of the unsynced batches may survive, never a later one without an earlier one. Staged rows are
//! beside the rows in use until a batch adopts them, as one step with everything else in it.
//! Must never: interpret a log record, a meta record or a row.

mod mark;
mod mem;
mod opening;
mod rocks;

use std::ops::Range;

pub use mem::MemDisk;
pub use rocks::RocksDisk;

use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

/// Names a meta record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaKey {
    /// Format version, cluster and node.
    Identity,
    /// Term, vote, commit index.
    HardState,
    /// Applied entry, commit, members.
    Applied,
    /// Last entry cut off the front of the log.
    Truncated,
    /// What the members say of themselves, and node ids.
    Members,
}

/// A row: table, key, value.
pub type Row = (u8, Vec<u8>, Vec<u8>);

/// Names one staging of rows on one disk, so that a late writer cannot disturb a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageId(pub u64);

/// The rows of one moment, whatever is written later. Used on any thread; holds the space of rows
/// that were replaced meanwhile, so it must not be kept for ever.
pub trait DiskView: Send {
    /// Rows of all tables that follow `after` in disk order, until their sizes reach `max_bytes`;
    /// at least one if there is one.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn page(&self, after: Option<(u8, &[u8])>, max_bytes: usize) -> Result<Vec<Row>, DiskError>;
}

/// Collects rows beside those in use, on any thread.
pub trait StageWriter: Send {
    /// Adds rows. Not synced: a synced batch that adopts them makes them durable as well.
    ///
    /// # Errors
    /// When the disk cannot be written. `Ok(false)` says that a newer staging took its place, or
    /// that the rows were adopted.
    fn put(&mut self, rows: Vec<Row>) -> Result<bool, DiskError>;
}

/// Whether a write may be lost in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Returns only when this batch and all earlier ones are on stable storage.
    Synced,
    /// Does not wait for the disk. May be lost, together with what follows it, until a [`DiskSync`]
    /// is done that began after it; what it says must not be promised to anybody before.
    Unsynced,
}

/// One atomic write. Parts take effect in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskBatch {
    /// Meta records to replace.
    pub meta: Vec<(MetaKey, Vec<u8>)>,
    /// Index ranges to remove from the log.
    pub log_remove: Vec<Range<u64>>,
    /// Log records to write, by index.
    pub log_put: Vec<(u64, Vec<u8>)>,
    /// The rows staged under this id replace every row.
    pub adopt: Option<StageId>,
    /// Row changes, in order.
    pub rows: Vec<RowChange>,
}

/// Makes durable what was written to a disk. Used beside the owner's thread, which goes on writing.
pub trait DiskSync: Send {
    /// Returns when every batch that was written before this call is on stable storage.
    ///
    /// # Errors
    /// After an error it is unknown how much is durable; the process must stop.
    fn sync(&mut self) -> Result<(), DiskError>;

    /// Tells that the log below `index` was removed by a batch that is durable, so that space can
    /// be given back.
    ///
    /// # Errors
    /// When the disk cannot do it.
    fn reclaim_log(&mut self, below: u64) -> Result<(), DiskError>;
}

/// What a replica needs from its disk. One owner; not shared.
pub trait Disk: RowReader {
    /// Writes `batch` as one unit.
    ///
    /// # Errors
    /// After an error it is unknown how much is durable; the caller must stop.
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError>;

    /// Reads a meta record.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError>;

    /// Log records with index in `range`, in order, until their sizes reach `max_bytes`; at
    /// least one if there is one. Missing indices are skipped: the caller looks for gaps.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn log_read(&self, range: Range<u64>, max_bytes: u64)
    -> Result<Vec<(u64, Vec<u8>)>, DiskError>;

    /// The rows as they are now.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn view(&self) -> Result<Box<dyn DiskView>, DiskError>;

    /// Forgets all staged rows and starts to stage others. What is staged is lost with a restart.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError>;

    /// Another thread's hold on the disk, to sync it.
    fn syncer(&self) -> Box<dyn DiskSync>;
}

fn not_staged() -> DiskError {
    DiskError::Io {
        operation: "adopt staged rows",
        detail: "another staging took their place".to_owned(),
    }
}

/// The smallest byte string greater than every string with `prefix`, or `None` if there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end)
}

/// The table number followed by the key: how rows are ordered on a disk.
pub(crate) fn row_key(table: u8, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 1);
    full.push(table);
    full.extend_from_slice(key);
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_follows_every_key_with_it() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff]), None);
        assert_eq!(prefix_end(&[]), None);
    }
}
