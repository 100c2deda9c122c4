//! Version 2 of `versioned-1` without a migration: it reads old records where there is no new one, and
//! writes new ones.

#[path = "../../versioned-1/src/book.rs"]
mod book;
#[path = "../../versioned-1/src/format1.rs"]
mod format1;
#[path = "../../versioned-1/src/records1.rs"]
mod records1;
#[path = "../../versioned-2/src/format2.rs"]
mod format2;

use std::collections::BTreeMap;

use book::{Format, Record};
use tessera_sdk::Error;

tessera_sdk::scheduler!(book::Book<Lazy>, state_version = 2, reads = [1]);

struct Lazy;

impl Format for Lazy {
    const VERSION: u32 = 2;

    fn load() -> Result<BTreeMap<u32, Record>, Error> {
        let mut records = format1::One::load()?;
        records.extend(format2::Two::load()?);
        Ok(records)
    }

    fn save(id: u32, record: &Record) -> Result<(), Error> {
        format2::Two::save(id, record)
    }
}
