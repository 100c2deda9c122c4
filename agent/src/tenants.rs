//! Numbers of tenants on this agent, and the users of their workers that follow from them.
//!
//! Invariants: a tenant's number is on disk before anything is done under it, and is never given to
//! another tenant; workers of one tenant and kind have one user, and share it with nobody. This file
//! must never change the identity of a process.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tessera_agent_core::WorkerKind;
use tessera_oci::record;

/// Name of the record.
const TENANTS_FILE: &str = "tenants.json";
/// Version of the record.
const TENANTS_VERSION: u32 = 1;
/// Tenants that one agent has ever hosted: a bound on the numbers that are set aside for their workers.
const TENANTS_MAX: u32 = 65_535;
/// Users of one tenant: one per kind of worker.
const USERS_PER_TENANT: u32 = 2;
/// Users that are set aside for workers: the pair behind the last tenant's is for no tenant.
pub const WORKER_UIDS: u32 = (TENANTS_MAX + 1) * USERS_PER_TENANT;
/// The compiler's among them, which hosts no tenant's guests.
pub const COMPILER: u32 = WORKER_UIDS - 1;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    numbers: BTreeMap<String, u32>,
}

/// All tenants that this agent has hosted.
#[derive(Debug)]
pub struct Tenants {
    dir: PathBuf,
    /// First user of workers; none where workers have the agent's own user.
    first_uid: Option<u32>,
    numbers: Mutex<BTreeMap<String, u32>>,
}

/// What belongs to a kind of worker.
const fn offset(kind: WorkerKind) -> u32 {
    match kind {
        WorkerKind::Schedulers => 0,
        WorkerKind::Tasks => 1,
    }
}

impl Tenants {
    /// Read what is on record.
    ///
    /// # Errors
    /// When it cannot be read, or was written by a newer agent.
    pub fn open(work_dir: &Path, first_uid: Option<u32>) -> io::Result<Self> {
        let found: Option<Record> = record::read(&work_dir.join(TENANTS_FILE))?;
        let numbers = match found {
            Some(record) if record.version > TENANTS_VERSION => {
                let text = format!(
                    "{TENANTS_FILE} is of version {}; this agent reads up to {TENANTS_VERSION}",
                    record.version
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Some(record) => record.numbers,
            None => BTreeMap::new(),
        };
        Ok(Self {
            dir: work_dir.to_owned(),
            first_uid,
            numbers: Mutex::new(numbers),
        })
    }

    fn numbers(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tenants on record.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.numbers().keys().cloned().collect()
    }

    /// The user and group of a tenant's worker, put on record the first time; none where workers have
    /// the agent's own.
    ///
    /// # Errors
    /// When the disk refuses, or there are no numbers left.
    pub fn owner(&self, tenant: &str, kind: WorkerKind) -> io::Result<Option<(u32, u32)>> {
        let number = self.number(tenant)?;
        Ok(self.first_uid.map(|first| {
            let uid = first + number * USERS_PER_TENANT + offset(kind);
            (uid, uid)
        }))
    }

    /// A tenant's number, put on record the first time.
    ///
    /// # Errors
    /// When the disk refuses, or there are no numbers left.
    pub fn number(&self, tenant: &str) -> io::Result<u32> {
        let mut numbers = self.numbers();
        if let Some(number) = numbers.get(tenant) {
            return Ok(*number);
        }
        let number = numbers.values().max().map_or(0, |last| last + 1);
        if number >= TENANTS_MAX {
            return Err(io::Error::other(format!(
                "tenants: at most {TENANTS_MAX} on one agent; use an empty work directory"
            )));
        }
        let mut all = numbers.clone();
        all.insert(tenant.to_owned(), number);
        let record = Record {
            version: TENANTS_VERSION,
            numbers: all,
        };
        record::write(&self.dir, TENANTS_FILE, &record, true)?;
        *numbers = record.numbers;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorkerKind::{Schedulers, Tasks};

    #[test]
    fn numbers_stay_with_their_tenants() {
        let dir = tempfile::tempdir().unwrap();
        let tenants = Tenants::open(dir.path(), Some(1_000)).unwrap();
        let mut seen = Vec::new();
        for (tenant, kind) in [("b", Tasks), ("a", Schedulers), ("a", Tasks)] {
            seen.push(tenants.owner(tenant, kind).unwrap().unwrap().0);
        }
        assert_eq!(seen, [1_001, 1_002, 1_003]);
        let again = Tenants::open(dir.path(), Some(1_000)).unwrap();
        assert_eq!(again.owner("a", Tasks).unwrap(), Some((1_003, 1_003)));
        assert_eq!(again.owner("c", Schedulers).unwrap(), Some((1_004, 1_004)));
        assert_eq!(again.names(), ["a", "b", "c"]);
    }

    #[test]
    fn without_users_there_are_still_numbers_and_a_newer_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tenants = Tenants::open(dir.path(), None).unwrap();
        assert_eq!(tenants.owner("a", Tasks).unwrap(), None);
        assert_eq!(tenants.names(), ["a"]);
        std::fs::write(
            dir.path().join(TENANTS_FILE),
            r#"{"version":2,"numbers":{}}"#,
        )
        .unwrap();
        let refused = Tenants::open(dir.path(), None).unwrap_err();
        assert!(refused.to_string().contains("version 2"), "{refused}");
    }

    #[test]
    fn there_is_a_last_number() {
        let dir = tempfile::tempdir().unwrap();
        let full = format!(r#"{{"version":1,"numbers":{{"z":{}}}}}"#, TENANTS_MAX - 1);
        std::fs::write(dir.path().join(TENANTS_FILE), full).unwrap();
        let tenants = Tenants::open(dir.path(), Some(5)).unwrap();
        assert_eq!(
            tenants.owner("z", Tasks).unwrap().map(|(uid, _)| uid),
            Some(5 + WORKER_UIDS - 1 - USERS_PER_TENANT)
        );
        assert!(tenants.owner("a", Tasks).is_err());
    }
}
