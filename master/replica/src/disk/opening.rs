//! Opening a RocksDB so that nothing that was synced can be missing unnoticed.
//!
//! Owns: the options of recovery, and the checks around it. RocksDB finds damaged and missing files of tables, and
//! files of its write-ahead log that are missing or shorter than they were, if they are followed by others. What it
//! does not find is refused here: a missing `CURRENT`, beside which it would begin anew, and a log that ends before
//! what was synced.
//! Invariants: what a power failure may leave is opened: a torn end of the log, wherever among its files, beyond
//! which nothing was synced. Everything else is refused, each time that it is tried.
//! Must never: repair.

use std::path::Path;

use rocksdb::{ColumnFamilyDescriptor, DB, DBRecoveryMode, Options};

use super::mark::{self, Mark};
use super::rocks::{META, io, open_error};
use crate::error::DiskError;

/// Meta record of a database that has a [`Mark`].
const MARKED: &[u8] = b"marked";

/// RocksDB's words for a file of the write-ahead log that ends before it did when the next one was begun. It says so
/// only if nothing else is wrong with that file, and it was never synced as a whole: that is on record elsewhere.
const TORN_BEFORE_THE_LAST: [&str; 2] = [
    "Mismatched last sequence number recorded in the WAL",
    "Mismatched size of the WAL",
];

/// Opens or creates the database in `dir`.
pub(super) fn open(
    dir: &Path,
    mut options: Options,
    families: impl Fn() -> Vec<ColumnFamilyDescriptor>,
) -> Result<(DB, Mark), DiskError> {
    refuse_without_current(dir)?;
    let mark = Mark::read(dir)?;
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    // Each file of the log says how its predecessor ended. The bindings have no setter for it.
    let mut options = options
        .get_options_from_string("track_and_verify_wals=true")
        .map_err(io("set the options of the database"))?;
    let db = match DB::open_cf_descriptors(&options, dir, families()) {
        Err(error) if is_torn_before_the_last(&error) => {
            // A later file may reach the disk before the end of an earlier one. A sync is done only when it is through
            // with both, so nothing of the later one was promised: the log ends where the earlier one does.
            tracing::warn!(%error, "the power failed before the end of the log was on the disk; nobody was promised it");
            options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
            DB::open_cf_descriptors(&options, dir, families())
        }
        other => other,
    };
    let db = db.map_err(open_error)?;
    let mark = check_mark(&db, dir, mark)?;
    Ok((db, mark))
}

fn is_torn_before_the_last(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    TORN_BEFORE_THE_LAST.iter().any(|words| text.contains(words))
}

/// RocksDB takes a directory without this file for an empty one, and what is in it for left over.
fn refuse_without_current(dir: &Path) -> Result<(), DiskError> {
    let failed = |error: std::io::Error| DiskError::Io {
        operation: "read the directory of the database",
        detail: error.to_string(),
    };
    if dir.join("CURRENT").try_exists().map_err(failed)? {
        return Ok(());
    }
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let path = Path::new(&name);
        let of_tables_or_log = path.extension().is_some_and(|ending| ending == "sst" || ending == "log");
        if of_tables_or_log || name == mark::FILE {
            return Err(DiskError::Corrupt {
                what: "database".to_owned(),
                detail: format!("there is {}, and no file CURRENT", path.display()).into(),
            });
        }
    }
    Ok(())
}

/// Compares a database that was opened with its mark. One of an older build gets its first one.
fn check_mark(db: &DB, dir: &Path, mark: Option<Mark>) -> Result<Mark, DiskError> {
    let meta = db.cf_handle(META).ok_or_else(|| DiskError::Corrupt {
        what: format!("column family {META}"),
        detail: "missing".into(),
    })?;
    let marked = db.get_cf(meta, MARKED).map_err(io("read a meta record"))?.is_some();
    let (needed, found) = (mark.as_ref().map_or(0, Mark::changes), db.latest_sequence_number());
    if found < needed {
        return Err(DiskError::Corrupt {
            what: "database".to_owned(),
            detail: format!("it ends at change {found}, and {needed} changes were synced").into(),
        });
    }
    match (mark, marked) {
        (Some(mark), true) => Ok(mark),
        (None, true) => Err(mark::damaged("it is missing")),
        (Some(_), false) if needed > 0 => Err(DiskError::Corrupt {
            what: "database".to_owned(),
            detail: "its records are missing".into(),
        }),
        // A crash may come between the two.
        (mark, false) => {
            let mark = mark.map_or_else(|| Mark::create(dir), Ok)?;
            let mut synced = rocksdb::WriteOptions::default();
            synced.set_sync(true);
            let put = db.put_cf_opt(meta, MARKED, [], &synced);
            put.map_err(io("write a meta record"))?;
            Ok(mark)
        }
    }
}
