//! The records of version 1, as they lie in the state: JSON under `task/`.

use tessera_sdk::Error;
use tessera_sdk::state::Map;

use crate::book::Record;

/// The records.
pub const TASKS: Map<Record> = Map::new("task/");

/// The number that a key stands for.
pub fn number(key: &str) -> Result<u32, Error> {
    key.parse()
        .map_err(|_| Error::failed(format!("bad key {key}")))
}
