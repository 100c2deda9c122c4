//! Requests with a key that a scheduler took in and has not answered yet.
//!
//! Owns their table. Invariants: a request is noted in the entry of the very turn that took it in and left it
//! open, so that whatever follows from it is never known without its key: a repetition that comes to the next
//! leader waits for the answer to the first; it is forgotten with its answer, with the instance that took it in,
//! after [`OPEN_KEPT_MS`], and when more than [`OPEN_MAX`] are open. Must never hold a request without a key:
//! nobody can ask for it again.

use crate::apply::Apply;
use crate::codec::{self, LoadError};
use crate::limits::{OPEN_KEPT_MS, OPEN_MAX};
use crate::rows;
use crate::state::State;
use prost::Message;
use tessera_types::{Epoch, FrameworkId, TimeMs};
use tessera_wire::v1;

/// The cluster version from which on they are noted.
pub(crate) const SINCE: u32 = 2;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenRequest {
    pub(crate) principal: String,
    pub(crate) key: String,
    pub(crate) request_hash: Vec<u8>,
    /// Of the instance that took it in.
    epoch: Epoch,
    at_ms: TimeMs,
}

impl State {
    /// One that the framework's instance may still answer.
    pub(crate) fn open_request(&self, framework: FrameworkId, request: u64) -> Option<&OpenRequest> {
        let epoch = self.frameworks.get(&framework)?.epoch;
        let open = self.open.get(&(framework, request))?;
        let stands = open.epoch == epoch && open.at_ms.saturating_add(OPEN_KEPT_MS) >= self.meta.age_ms();
        stands.then_some(open)
    }

    /// All that the framework's instance may still answer.
    pub(crate) fn open_requests(
        &self,
        framework: FrameworkId,
    ) -> impl Iterator<Item = (u64, &OpenRequest)> {
        let all = self.open.range((framework, 0)..=(framework, u64::MAX));
        all.filter_map(move |((_, request), _)| Some((*request, self.open_request(framework, *request)?)))
    }
}

impl Apply<'_> {
    /// Note what a turn took in and left open, after what it answered.
    pub(crate) fn keep_open(&mut self, framework: FrameworkId, opened: Vec<v1::OpenedRequest>) {
        let Some(epoch) = self.state.frameworks.get(&framework).map(|owner| owner.epoch) else { return };
        for request in opened {
            if request.idempotency_key.is_empty() {
                continue;
            }
            let open = OpenRequest {
                principal: request.principal,
                key: request.idempotency_key,
                request_hash: request.request_hash,
                epoch,
                at_ms: self.state.meta.age_ms(),
            };
            self.rows.put(rows::OPEN, key(framework, request.request), open.encode());
            self.state.open.insert((framework, request.request), open);
        }
        let all = self.state.open.range((framework, 0)..=(framework, u64::MAX));
        let all: Vec<u64> = all.map(|((_, request), _)| *request).collect();
        let stand = self.state.open_requests(framework).count();
        let mut surplus = stand.saturating_sub(OPEN_MAX);
        for request in all {
            let stands = self.state.open_request(framework, request).is_some();
            if !stands || surplus > 0 {
                surplus -= usize::from(stands);
                self.close_request(framework, request);
            }
        }
    }

    /// Forget one: it is answered, or never will be.
    pub(crate) fn close_request(&mut self, framework: FrameworkId, request: u64) {
        if self.state.open.remove(&(framework, request)).is_some() {
            self.rows.delete(rows::OPEN, key(framework, request));
        }
    }

    /// Forget all of a framework.
    pub(crate) fn close_requests(&mut self, framework: FrameworkId) {
        let all = self.state.open.range((framework, 0)..=(framework, u64::MAX));
        let all: Vec<u64> = all.map(|((_, request), _)| *request).collect();
        for request in all {
            self.close_request(framework, request);
        }
    }
}

impl OpenRequest {
    /// What was asked under that number.
    pub(crate) fn asked(&self, request: u64) -> v1::OpenedRequest {
        v1::OpenedRequest {
            request,
            principal: self.principal.clone(),
            idempotency_key: self.key.clone(),
            request_hash: self.request_hash.clone(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        v1::OpenRequestRow {
            version: codec::ROW_VERSION,
            principal: self.principal.clone(),
            idempotency_key: self.key.clone(),
            request_hash: self.request_hash.clone(),
            epoch: self.epoch.0,
            at_ms: self.at_ms,
        }
        .encode_to_vec()
    }
}

fn key(framework: FrameworkId, request: u64) -> Vec<u8> {
    rows::owned_key(framework, &request.to_be_bytes())
}

/// Read a row.
pub(crate) fn load(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
    const TABLE: u8 = rows::OPEN;
    let row: v1::OpenRequestRow = codec::decode(TABLE, value)?;
    codec::version(TABLE, row.version)?;
    let (framework, request) = key.split_at_checked(8).ok_or_else(|| codec::bad(TABLE, "a short key"))?;
    let number = |bytes: &[u8]| {
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| codec::bad(TABLE, "a key of another length"))
    };
    let key = (FrameworkId(number(framework)?), number(request)?);
    let open = OpenRequest {
        principal: row.principal,
        key: row.idempotency_key,
        request_hash: row.request_hash,
        epoch: Epoch(row.epoch),
        at_ms: row.at_ms,
    };
    state.open.insert(key, open);
    Ok(())
}
