//! The framework's replicated key-value state, typed.
//!
//! Values are JSON unless the functions that end in `_bytes` are used. Reads see what this turn
//! wrote; everything written in a turn commits with it or not at all. A scheduler's memory must
//! never hold what is not here: it is lost whenever the instance is rebuilt.

use std::cell::Cell;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::host::state as host;

/// Bytes of keys and values that one turn may write, as the contract says.
pub const MAX_TURN_BYTES: usize = 1 << 20;
/// Keys that one turn may write, as the contract says.
pub const MAX_TURN_KEYS: usize = 1_000;
/// Entries fetched by one scan of an iterator; the host answers with at most 1 MiB in any case.
const SCAN_PAGE: u32 = 256;

thread_local! {
    static WRITTEN: Cell<Room> = const { Cell::new(Room { bytes: 0, keys: 0 }) };
}

/// An amount of state writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of keys and values.
    pub bytes: usize,
    /// Keys.
    pub keys: usize,
}

/// What this turn may still write. Counts every write, also of a key that was written before, so
/// that it never promises more than the host allows.
pub fn room() -> Room {
    let written = WRITTEN.get();
    Room {
        bytes: MAX_TURN_BYTES.saturating_sub(written.bytes),
        keys: MAX_TURN_KEYS.saturating_sub(written.keys),
    }
}

/// Begin to count anew; called by the runtime after each turn.
pub(crate) fn reset_room() {
    WRITTEN.set(Room { bytes: 0, keys: 0 });
}

fn count_write(bytes: usize) {
    let written = WRITTEN.get();
    WRITTEN.set(Room {
        bytes: written.bytes.saturating_add(bytes),
        keys: written.keys.saturating_add(1),
    });
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|source| Error::State {
        key: key.to_owned(),
        source,
    })
}

/// Read the value of `key`. Fails if there is one and it is no `T`.
pub fn get<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Error> {
    host::get(key).map(|value| decode(key, &value)).transpose()
}

/// Write `value` under `key`: 1 to 255 bytes of key, at most 256 KiB of value.
pub fn set<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<(), Error> {
    set_bytes(key, &serde_json::to_vec(value)?)
}

/// Read the bytes of `key`.
pub fn get_bytes(key: &str) -> Option<Vec<u8>> {
    host::get(key)
}

/// Write bytes under `key`, with the limits of [`set`].
pub fn set_bytes(key: &str, value: &[u8]) -> Result<(), Error> {
    host::set(key, value)?;
    count_write(key.len().saturating_add(value.len()));
    Ok(())
}

/// Delete `key`. Deleting what is not there is no error.
pub fn delete(key: &str) -> Result<(), Error> {
    host::delete(key)?;
    count_write(key.len());
    Ok(())
}

/// Entries whose keys start with `prefix`, in byte order, as bytes; fetched in pages.
pub fn scan_bytes(prefix: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let prefix = prefix.to_owned();
    let mut page = Vec::new().into_iter();
    let mut after: Option<String> = None;
    let mut ended = false;
    std::iter::from_fn(move || {
        loop {
            if let Some((key, value)) = page.next() {
                after = Some(String::clone(&key));
                return Some((key, value));
            }
            if ended {
                return None;
            }
            let entries = host::scan(&prefix, after.as_deref(), SCAN_PAGE);
            ended = entries.is_empty();
            page = entries.into_iter();
        }
    })
}

/// A collection of values of one type, kept under keys with a common prefix.
///
/// ```
/// # use tessera_sdk::state::Map;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Task;
/// const TASKS: Map<Task> = Map::new("task/");
/// ```
pub struct Map<T> {
    prefix: &'static str,
    values: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Map<T> {
    /// The collection under `prefix`. No other key may start with it.
    pub const fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            values: PhantomData,
        }
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Read the value of `id`.
    pub fn get(&self, id: &str) -> Result<Option<T>, Error> {
        get(&self.key(id))
    }

    /// Write the value of `id`.
    pub fn insert(&self, id: &str, value: &T) -> Result<(), Error> {
        set(&self.key(id), value)
    }

    /// Delete `id`; no error if it is not there.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        delete(&self.key(id))
    }

    /// All ids and values in byte order of the ids, fetched in pages.
    pub fn iter(&self) -> impl Iterator<Item = Result<(String, T), Error>> {
        let length = self.prefix.len();
        scan_bytes(self.prefix).map(move |(key, value)| {
            let value = decode(&key, &value)?;
            Ok((key.get(length..).unwrap_or_default().to_owned(), value))
        })
    }

    /// One page: at most `limit` (1,000) ids and values, after the id `after`.
    pub fn page(&self, after: Option<&str>, limit: u32) -> Result<Vec<(String, T)>, Error> {
        let after = after.map(|id| self.key(id));
        host::scan(self.prefix, after.as_deref(), limit)
            .into_iter()
            .map(|(key, value)| {
                let value = decode(&key, &value)?;
                Ok((
                    key.get(self.prefix.len()..).unwrap_or_default().to_owned(),
                    value,
                ))
            })
            .collect()
    }
}
