//! A version of `versioned-1` that can start from nothing but its own state: an upgrade to it is refused.

#[path = "../../versioned-1/src/book.rs"]
mod book;
#[path = "../../versioned-2/src/format2.rs"]
mod format2;

use std::collections::BTreeMap;

use book::{Format, Record};
use tessera_sdk::Error;

tessera_sdk::scheduler!(book::Book<Alone>, state_version = 3);

struct Alone;

impl Format for Alone {
    const VERSION: u32 = 3;

    fn load() -> Result<BTreeMap<u32, Record>, Error> {
        format2::Two::load()
    }

    fn save(id: u32, record: &Record) -> Result<(), Error> {
        format2::Two::save(id, record)
    }
}
