//! Version 1 of the state, read and written.

use std::collections::BTreeMap;

use tessera_sdk::Error;

use crate::book::{Format, Record};
use crate::records1::{TASKS, number};

/// Version 1.
pub struct One;

impl Format for One {
    const VERSION: u32 = 1;

    fn load() -> Result<BTreeMap<u32, Record>, Error> {
        TASKS
            .iter()
            .map(|entry| entry.and_then(|(key, record)| Ok((number(&key)?, record))))
            .collect()
    }

    fn save(id: u32, record: &Record) -> Result<(), Error> {
        TASKS.insert(&format!("{id:05}"), record)
    }
}
