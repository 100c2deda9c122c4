//! Version 2 of the state: records as lines of text under `record/`.

use std::collections::BTreeMap;

use tessera_sdk::{Error, state};

use crate::book::{Format, Record};

/// What the keys of records start with.
const PREFIX: &str = "record/";

/// Version 2.
pub struct Two;

fn bad(text: &str) -> Error {
    Error::failed(format!("bad record {text:?}"))
}

fn parse(text: &str) -> Result<Record, Error> {
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or_else(|| bad(text));
    let (launches, launched, ends): (u32, u32, u32) = (number()?, number()?, number()?);
    Ok(Record {
        launches,
        launched: launched == 1,
        state: words.next().map(str::to_owned),
        ends,
    })
}

impl Format for Two {
    const VERSION: u32 = 2;

    fn load() -> Result<BTreeMap<u32, Record>, Error> {
        let entries = state::scan_bytes(PREFIX).map(|(key, value)| {
            let text = String::from_utf8_lossy(&value).into_owned();
            let number = key.get(PREFIX.len()..).and_then(|id| id.parse().ok());
            Ok((number.ok_or_else(|| bad(&key))?, parse(&text)?))
        });
        entries.collect()
    }

    fn save(id: u32, record: &Record) -> Result<(), Error> {
        let Record { launches, launched, state, ends } = record;
        let mut text = format!("{launches} {} {ends}", u32::from(*launched));
        if let Some(state) = state {
            text = format!("{text} {state}");
        }
        state::set_bytes(&format!("{PREFIX}{id:05}"), text.as_bytes())
    }
}
