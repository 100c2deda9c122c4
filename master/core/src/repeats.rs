//! Requests that may come again: each is carried out once, and a repetition is answered as the first was.
//!
//! Owns the table of results of requests with a key of their user. Invariants: a result is kept in the entry that made
//! the change, so that there is never one without the other; what was refused changed nothing and is not kept; of
//! each principal the newest [`REQUESTS_OF_PRINCIPAL_MAX`] of the last [`REQUEST_KEPT_MS`] are kept, and beyond
//! [`REQUESTS_MAX`] of all, the one with the most makes room; a step of the clock ages none by more than
//! [`CLOCK_JUMP_MAX_MS`]. Must never be asked by anything but commands and reads.

use crate::api::RequestError;
use crate::apply::Apply;
use crate::codec;
use crate::effect::CommandResult;
use crate::limits::{
    CLOCK_JUMP_MAX_MS, IDEMPOTENCY_KEY_BYTES_MAX, REQUEST_KEPT_MS, REQUESTS_BEFORE_MAX, REQUESTS_MAX,
    REQUESTS_OF_PRINCIPAL_MAX,
};
use crate::numbered::{self, Numbered};
use crate::rows;
use crate::state::{Meta, State};
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

/// How a repetition of a request is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// By a key of its sender.
    Key(Once),
    /// By the number that the master gave it that passed it on.
    Number(Numbered),
}

impl From<Once> for Known {
    fn from(once: Once) -> Self {
        Self::Key(once)
    }
}

impl From<Numbered> for Known {
    fn from(numbered: Numbered) -> Self {
        Self::Number(numbered)
    }
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
pub(crate) fn of(origin: &v1::Origin) -> Result<Option<Known>, RequestError> {
    if let Some(number) = origin.number {
        return Ok(Some(Known::Number(number.into())));
    }
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
    Ok(Some(Known::Key(Once { key: key.clone(), fingerprint })))
}

impl Known {
    /// As commands have it.
    pub(crate) fn origin(self, principal: String) -> v1::Origin {
        let origin = v1::Origin { principal, ..v1::Origin::default() };
        match self {
            Self::Key(once) => v1::Origin {
                idempotency_key: once.key,
                fingerprint: once.fingerprint.0.to_vec(),
                ..origin
            },
            Self::Number(numbered) => v1::Origin { number: Some(numbered.into()), ..origin },
        }
    }
}

impl Meta {
    /// The time by which results grow old: that of the log, without its jumps.
    pub(crate) const fn age_ms(&self) -> TimeMs {
        if self.steady_ms == 0 { self.time_ms } else { self.steady_ms }
    }

    /// The log's time goes on.
    pub(crate) fn advance(&mut self, time_ms: TimeMs) {
        let before = self.time_ms;
        self.time_ms = before.max(time_ms);
        if self.cluster_version < numbered::SINCE {
            return;
        }
        self.steady_ms = match self.steady_ms {
            0 => self.time_ms,
            steady => steady.saturating_add((self.time_ms - before).min(CLOCK_JUMP_MAX_MS)),
        };
    }
}

impl State {
    /// What became of this request before, if it was one.
    pub(crate) fn repeated(
        &self,
        principal: &str,
        known: &Known,
    ) -> Option<Result<&CommandResult, RequestError>> {
        let once = match known {
            Known::Key(once) => once,
            Known::Number(numbered) => return self.numbered(*numbered),
        };
        let number = self.request_numbers.get(&(principal.to_owned(), once.key.clone()))?;
        let kept = self.requests.get(number)?;
        if kept.at_ms.saturating_add(REQUEST_KEPT_MS) < self.meta.age_ms() {
            return None;
        }
        if kept.fingerprint != once.fingerprint {
            return Some(Err(RequestError::KeyReused { key: once.key.clone() }));
        }
        Some(Ok(&kept.result))
    }

    /// A result has this number.
    pub(crate) fn index_request(&mut self, key: &RequestKey, number: u64) {
        match self.requests_of.get_mut(&key.0) {
            Some(numbers) => numbers.insert(number),
            None => self.requests_of.entry(key.0.clone()).or_default().insert(number),
        };
        self.request_numbers.insert(key.clone(), number);
    }

    /// Which result makes room for one more of a principal; none if there is room.
    fn surplus(&self, principal: &str) -> Option<u64> {
        let (number, oldest) = self.requests.first_key_value()?;
        let old = oldest.at_ms.saturating_add(REQUEST_KEPT_MS) < self.meta.age_ms();
        if old || (self.meta.cluster_version < numbered::SINCE && self.requests.len() >= REQUESTS_BEFORE_MAX) {
            return Some(*number);
        }
        let own = self.requests_of.get(principal);
        let busiest = match own.filter(|own| own.len() >= REQUESTS_OF_PRINCIPAL_MAX) {
            Some(own) => own,
            None if self.requests.len() < REQUESTS_MAX => return None,
            None => self.requests_of.values().max_by_key(|numbers| numbers.len())?,
        };
        busiest.first().copied()
    }
}

impl Apply<'_> {
    /// Keep what became of a request.
    pub(crate) fn keep_result(&mut self, known: Known, result: &CommandResult) {
        if matches!(result, CommandResult::Refused(_)) {
            return;
        }
        let once = match known {
            Known::Key(once) => once,
            Known::Number(numbered) => return self.keep_numbered(numbered, result),
        };
        while let Some(number) = self.state.surplus(&self.principal) {
            self.forget_result(number);
        }
        let kept = KeptRequest {
            key: (self.principal.clone(), once.key),
            fingerprint: once.fingerprint,
            at_ms: self.state.meta.age_ms(),
            result: result.clone(),
        };
        let Some(row) = codec::encode_request(&kept) else { return };
        let number = self.state.meta.requests_next;
        self.state.meta.requests_next += 1;
        if let Some(old) = self.state.request_numbers.get(&kept.key).copied() {
            self.forget_result(old);
        }
        self.rows.put(rows::REQUESTS, number.to_be_bytes().to_vec(), row);
        self.state.index_request(&kept.key, number);
        self.state.requests.insert(number, kept);
    }

    fn forget_result(&mut self, number: u64) {
        self.rows.delete(rows::REQUESTS, number.to_be_bytes().to_vec());
        let Some(gone) = self.state.requests.remove(&number) else { return };
        self.state.request_numbers.remove(&gone.key);
        if let Some(of) = self.state.requests_of.get_mut(&gone.key.0) {
            of.remove(&number);
            if of.is_empty() {
                self.state.requests_of.remove(&gone.key.0);
            }
        }
    }
}
