//! Version 2 of `versioned-1`. It migrates ten records per turn, and behaves as version 1 was told that
//! the next version shall.

#[path = "../../versioned-1/src/book.rs"]
mod book;
mod format2;
#[path = "../../versioned-1/src/records1.rs"]
mod records1;

use book::Format as _;
use tessera_sdk::{Error, Migration};

/// Records that one turn migrates.
const PER_TURN: u32 = 10;

tessera_sdk::scheduler!(book::Book<format2::Two>, state_version = 2, reads = [1]);
tessera_sdk::migration!(FromOne);

struct FromOne;

impl Migration for FromOne {
    fn step(from: u32) -> Result<bool, Error> {
        if from != 1 {
            return Err(Error::failed(format!("cannot migrate from version {from}")));
        }
        let page = records1::TASKS.page(None, PER_TURN)?;
        for (key, record) in &page {
            format2::Two::save(records1::number(key)?, record)?;
            records1::TASKS.remove(key)?;
        }
        // Not in its first step, so that there is something to undo.
        let is_last = page.len() < PER_TURN as usize;
        match book::mode()?.as_str() {
            "fail-in-migration" if is_last => Err(Error::failed("asked to fail in the migration")),
            "trap-in-migration" if is_last => panic!("asked to panic in the migration"),
            "spin-in-migration" if is_last => loop {
                std::hint::black_box(0);
            },
            _ => Ok(is_last),
        }
    }
}
