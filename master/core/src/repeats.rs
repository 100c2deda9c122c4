//! Requests that may come again: each is carried out once, and a repetition is answered as the first was.
//!
//! Owns the table of their results. Invariants: a result is kept in the entry that made the change, so that
//! there is never one without the other; what was refused changed nothing and is not kept; the newest
//! [`REQUESTS_MAX`] of the last [`REQUEST_KEPT_MS`] are kept. Must never be asked by anything but commands
//! and reads.

use crate::api::RequestError;
use crate::apply::Apply;
use crate::codec;
use crate::effect::CommandResult;
use crate::limits::{IDEMPOTENCY_KEY_BYTES_MAX, REQUEST_KEPT_MS, REQUESTS_MAX};
use crate::rows;
use crate::state::State;
use tessera_types::{Digest, TimeMs};
use tessera_wire::v1;

/// What tells a repetition of a request from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// Chosen by the sender; unique for its principal.
    pub key: String,
    /// Of everything that the request says.
    pub fingerprint: Digest,
}

/// Names a kept result: who asked, and under which key.
pub(crate) type RequestKey = (String, String);

/// A kept result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptRequest {
    pub(crate) key: RequestKey,
    pub(crate) fingerprint: Digest,
    pub(crate) at_ms: TimeMs,
    pub(crate) result: CommandResult,
}

/// The request of a command's origin, if it may come again.
pub(crate) fn of(origin: &v1::Origin) -> Result<Option<Once>, RequestError> {
    let key = &origin.idempotency_key;
    if key.is_empty() {
        return Ok(None);
    }
    let invalid = |rule: String| RequestError::Invalid { field: "idempotency_key", rule };
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(invalid(format!("1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes")));
    }
    let fingerprint = Digest::from_slice(&origin.fingerprint);
    let fingerprint = fingerprint.map_err(|error| invalid(format!("fingerprint: {error}")))?;
    Ok(Some(Once { key: key.clone(), fingerprint }))
}

impl State {
    /// What became of this request before, if it was one.
    pub(crate) fn repeated(
        &self,
        principal: &str,
        once: &Once,
        time_ms: TimeMs,
    ) -> Option<Result<&CommandResult, RequestError>> {
        let number = self.request_numbers.get(&(principal.to_owned(), once.key.clone()))?;
        let kept = self.requests.get(number)?;
        if kept.at_ms.saturating_add(REQUEST_KEPT_MS) < time_ms {
            return None;
        }
        if kept.fingerprint != once.fingerprint {
            return Some(Err(RequestError::KeyReused { key: once.key.clone() }));
        }
        Some(Ok(&kept.result))
    }
}

impl Apply<'_> {
    /// Keep what became of a request.
    pub(crate) fn keep_result(&mut self, once: Once, result: &CommandResult) {
        if matches!(result, CommandResult::Refused(_)) {
            return;
        }
        self.drop_old_requests();
        let kept = KeptRequest {
            key: (self.principal.clone(), once.key),
            fingerprint: once.fingerprint,
            at_ms: self.time_ms,
            result: result.clone(),
        };
        let Some(row) = codec::encode_request(&kept) else { return };
        let number = self.state.meta.requests_next;
        self.state.meta.requests_next += 1;
        self.rows.put(rows::REQUESTS, number.to_be_bytes().to_vec(), row);
        if let Some(old) = self.state.request_numbers.insert(kept.key.clone(), number) {
            self.state.requests.remove(&old);
            self.rows.delete(rows::REQUESTS, old.to_be_bytes().to_vec());
        }
        self.state.requests.insert(number, kept);
    }

    fn drop_old_requests(&mut self) {
        while let Some((number, oldest)) = self.state.requests.first_key_value() {
            let old = oldest.at_ms.saturating_add(REQUEST_KEPT_MS) < self.time_ms;
            if !old && self.state.requests.len() < REQUESTS_MAX {
                return;
            }
            let number = *number;
            if let Some(gone) = self.state.requests.remove(&number) {
                self.state.request_numbers.remove(&gone.key);
            }
            self.rows.delete(rows::REQUESTS, number.to_be_bytes().to_vec());
        }
    }
}
