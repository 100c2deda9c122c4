//! How much of a database was on stable storage: a small file beside its own.
//!
//! Owns: the file [`FILE`]. Invariants: what it says was on stable storage before it was written, so that a
//! database that holds less has lost something. It is not synced, which would double the cost of every write:
//! after a process ended it is exact, after the power failed it may be some seconds old, and asks for less.
//! Must never: be ahead of the disk, or be trusted when it is damaged.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::codec::{seal, unseal};
use crate::error::DiskError;

/// Beside the files of the database, which leaves names alone that it does not know.
pub(super) const FILE: &str = "SYNCED";
/// A disk writes a sector as a whole or not at all. Two take turns, so that one is whole whatever happens.
const SLOT_BYTES: usize = 512;
/// A number of changes and its checksum.
const RECORD_BYTES: usize = 12;
/// What the checksum covers besides the number.
const BOUND: &[u8] = b"synced mark";

/// The mark of an open database.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    last: Mutex<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    changes: u64,
    /// The slot that holds it.
    slot: usize,
}

fn io(error: &io::Error) -> DiskError {
    DiskError::Io {
        operation: "use the mark of what was synced",
        detail: error.to_string(),
    }
}

pub(super) fn damaged(detail: &'static str) -> DiskError {
    DiskError::Corrupt {
        what: format!("file {FILE} of the database"),
        detail: detail.into(),
    }
}

fn record(changes: u64) -> Vec<u8> {
    seal(changes.to_le_bytes().to_vec(), BOUND)
}

fn number(slot: &[u8]) -> Option<u64> {
    let record = unseal(slot.get(..RECORD_BYTES)?, BOUND)?;
    Some(u64::from_le_bytes(record.try_into().ok()?))
}

impl Mark {
    /// The mark of the database in `dir`, or none if there never was one.
    pub(super) fn read(dir: &Path) -> Result<Option<Mark>, DiskError> {
        let path = dir.join(FILE);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| io(&error))?,
        };
        let mut bytes = [0; 2 * SLOT_BYTES];
        let whole = file.metadata().map_err(|error| io(&error))?.len() == bytes.len() as u64;
        if !whole {
            return Err(damaged("it has another length than it was given"));
        }
        file.read_exact_at(&mut bytes, 0).map_err(|error| io(&error))?;
        let slots = bytes.chunks(SLOT_BYTES).enumerate();
        let found = slots.filter_map(|(slot, bytes)| Some((number(bytes)?, slot))).max();
        let (changes, slot) = found.ok_or_else(|| damaged("checksum mismatch"))?;
        let last = Mutex::new(Last { changes, slot });
        Ok(Some(Mark { file, last }))
    }

    /// A mark that asks for nothing yet.
    pub(super) fn create(dir: &Path) -> Result<Mark, DiskError> {
        let make = || {
            let new = dir.join(format!("{FILE}.new"));
            let mut bytes = record(0);
            bytes.resize(2 * SLOT_BYTES, 0);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(&new, dir.join(FILE))?;
            File::open(dir)?.sync_all()?;
            Ok(file)
        };
        let file = make().map_err(|error| io(&error))?;
        let last = Mutex::new(Last { changes: 0, slot: 0 });
        Ok(Mark { file, last })
    }

    /// How many changes were on stable storage at least.
    pub(super) fn changes(&self) -> u64 {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).changes
    }

    /// So many changes are on stable storage.
    pub(super) fn advance(&self, changes: u64) -> Result<(), DiskError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if changes <= last.changes {
            return Ok(());
        }
        let slot = 1 - last.slot;
        let written = self.file.write_all_at(&record(changes), (slot * SLOT_BYTES) as u64);
        written.map_err(|error| io(&error))?;
        *last = Last { changes, slot };
        Ok(())
    }
}
