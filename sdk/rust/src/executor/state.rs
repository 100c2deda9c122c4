//! The executor's durable keys and values on its agent, typed.
//!
//! Values are JSON unless the functions that end in `_bytes` are used. Reads see what this turn wrote. It
//! is gone when the executor has ended: what a framework must keep belongs to its scheduler.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::state::decode;
use crate::host::executor_state as host;

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
    Ok(host::set(key, value)?)
}

/// Delete `key`. Deleting what is not there is no error.
pub fn delete(key: &str) -> Result<(), Error> {
    Ok(host::delete(key)?)
}

/// At most `limit` (1,000) entries whose keys start with `prefix`, after the key `after`, in byte order.
pub fn page<T: DeserializeOwned>(
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<(String, T)>, Error> {
    host::scan(prefix, after, limit)
        .into_iter()
        .map(|(key, value)| {
            let value = decode(&key, &value)?;
            Ok((key, value))
        })
        .collect()
}
