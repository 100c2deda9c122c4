//! Requests to schedulers that wait for an answer.
//!
//! Invariants: each gets exactly one answer; at most [`HTTP_IN_FLIGHT_MAX`] wait for one scheduler. Must
//! never hold an answer: those leave at once, or are committed.

use super::Desk;
use crate::api::{HttpFailure, Output};
use crate::auth::{Action, Object, Principal, authorize};
use crate::codec::ROW_VERSION;
use crate::limits::{
    HTTP_IN_FLIGHT_MAX, HTTP_RETRY_AFTER_S, HTTP_TARGET_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX,
};
use crate::rows::{self, Rows};
use crate::state::AnswerKey;
use prost::Message;
use std::collections::BTreeMap;
use tessera_types::limits::{HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_REQUEST_BYTES_MAX};
use tessera_types::{Digest, FrameworkId, HttpAnswer, HttpRequest};
use tessera_wire::v1;

/// A request whose caller is gone is forgotten after so many times the timeout: the scheduler may answer
/// late, and a repeated idempotency key must find that answer.
const FORGET_AFTER_TIMEOUTS: u64 = 10;

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// None once the caller is gone: the request may still be answered, and the answer stored.
    ticket: Option<u64>,
    pub(crate) framework: FrameworkId,
    pub(crate) request: HttpRequest,
    since_ms: u64,
}

/// All of them, by the number that the scheduler sees.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) by_request: BTreeMap<u64, Waiter>,
    by_ticket: BTreeMap<u64, u64>,
}

fn failure(status: u16, code: &'static str, message: impl Into<String>) -> HttpFailure {
    let retry_after_s = (status == 503).then_some(HTTP_RETRY_AFTER_S);
    HttpFailure { status, retry_after_s, code, message: message.into() }
}

/// Says that this master does not lead.
pub(crate) fn not_leader() -> HttpFailure {
    failure(503, "NO_LEADER", "this master does not lead")
}

/// What makes two requests with one key the same.
pub(super) fn request_hash(request: &HttpRequest) -> Digest {
    let mut same = request.clone();
    same.id = 0;
    same.headers.clear();
    Digest::of(&v1::HttpRequest::from(&same).encode_to_vec())
}

/// What is to be known of a request while it is open.
pub(super) fn opened(request: &HttpRequest) -> v1::OpenedRequest {
    let key = request.idempotency_key.clone();
    v1::OpenedRequest {
        request: request.id,
        principal: request.principal.clone(),
        request_hash: match key {
            Some(_) => request_hash(request).0.to_vec(),
            None => Vec::new(),
        },
        idempotency_key: key.unwrap_or_default(),
    }
}

/// What is done with a request that may come in.
enum Admitted {
    /// It was answered before.
    Answered(HttpAnswer),
    /// Its scheduler has it already, and still owes the answer.
    Taken(u64),
    /// It is new.
    New,
}

impl Desk<'_> {
    /// A request comes in.
    pub(crate) fn http(
        &mut self,
        ticket: u64,
        principal: &Principal,
        framework: FrameworkId,
        mut request: HttpRequest,
        rows: &dyn Rows,
    ) {
        request.principal.clone_from(&principal.name);
        match self.admit(principal, framework, &request, rows) {
            Err(refused) => self.answer_ticket(ticket, Err(refused)),
            Ok(Admitted::Answered(answer)) => self.answer_ticket(ticket, Ok(answer)),
            Ok(Admitted::Taken(id)) => {
                request.id = id;
                self.take_over(id);
                self.wait_for(ticket, framework, request);
            }
            Ok(Admitted::New) => {
                let id = self.leader.fresh();
                request.id = id;
                self.trace_request(framework, &request);
                self.wait_for(ticket, framework, request);
                if let Some(instance) = self.leader.instances.get_mut(&framework) {
                    instance.http.push_back(id);
                }
                self.leader.dirty_frameworks.insert(framework);
            }
        }
    }

    /// Whoever waits for the answer of a request that came again has most likely gone away unnoticed.
    fn take_over(&mut self, request: u64) {
        let waiter = self.leader.waiters.by_request.get_mut(&request);
        let Some(older) = waiter.and_then(|waiter| waiter.ticket.take()) else { return };
        self.leader.waiters.by_ticket.remove(&older);
        let text = "the request came again under its key, and that one is answered";
        self.answer_ticket(older, Err(failure(409, "IN_PROGRESS", text)));
    }

    fn wait_for(&mut self, ticket: u64, framework: FrameworkId, request: HttpRequest) {
        let (id, since_ms) = (request.id, self.now.mono_ms);
        self.leader.waiters.by_ticket.insert(ticket, id);
        let waiter = Waiter { ticket: Some(ticket), framework, request, since_ms };
        self.leader.waiters.by_request.insert(id, waiter);
    }

    fn admit(
        &mut self,
        principal: &Principal,
        framework: FrameworkId,
        request: &HttpRequest,
        rows: &dyn Rows,
    ) -> Result<Admitted, HttpFailure> {
        let row = self.state.frameworks.get(&framework);
        let role = row.map(|row| row.role.to_string());
        authorize(principal, Action::Call, &Object::Framework { role })
            .map_err(|error| failure(403, "PERMISSION_DENIED", error.to_string()))?;
        if row.is_none_or(|row| row.removing) {
            return Err(failure(404, "NOT_FOUND", format!("there is no framework {framework}")));
        }
        validate(request)?;
        let unable = match row {
            Some(row) if row.quarantine.is_some() => {
                let text = format!("the scheduler is quarantined; `tessera framework release {}` lets it run again", row.name);
                Some(("QUARANTINED", text))
            }
            Some(row) if row.migrating() => {
                Some(("MIGRATING", "the scheduler's state is being migrated".to_owned()))
            }
            _ => None,
        };
        if let Some(key) = &request.idempotency_key
            && let Some(answer) = self.stored_answer(framework, key, request, rows)?
        {
            return Ok(Admitted::Answered(answer));
        }
        if let Some((code, text)) = unable {
            return Err(failure(503, code, text));
        }
        if let Some(taken) = self.taken(framework, request)? {
            return Ok(Admitted::Taken(taken));
        }
        let waiting = self.leader.waiters.by_request.values().filter(|w| w.framework == framework);
        if waiting.count() >= HTTP_IN_FLIGHT_MAX {
            let text = format!("{HTTP_IN_FLIGHT_MAX} requests wait for this scheduler already");
            return Err(failure(503, "TOO_MANY_REQUESTS_IN_FLIGHT", text));
        }
        // The record exists from the first settling of a framework on.
        if !self.leader.instances.contains_key(&framework) {
            return Err(failure(503, "NOT_PLACED", "the scheduler is being placed"));
        }
        Ok(Admitted::New)
    }

    /// The number under which this request came before and is not answered yet.
    fn taken(&self, framework: FrameworkId, request: &HttpRequest) -> Result<Option<u64>, HttpFailure> {
        let Some(key) = &request.idempotency_key else { return Ok(None) };
        let same_key = |waiter: &&Waiter| {
            waiter.framework == framework
                && waiter.request.principal == request.principal
                && waiter.request.idempotency_key.as_deref() == Some(key)
        };
        if let Some(waiter) = self.leader.waiters.by_request.values().find(same_key) {
            if request_hash(&waiter.request) != request_hash(request) {
                return Err(failure(422, "KEY_REUSED", "the key was used for another request"));
            }
            return Ok(Some(waiter.request.id));
        }
        let lost = self.leader.instances.get(&framework).map(|instance| &instance.lost_requests);
        let mut open = self.state.open_requests(framework).filter(|(id, _)| {
            lost.is_none_or(|lost| !lost.contains(id))
        });
        let found = open.find(|(_, open)| open.principal == request.principal && open.key == *key);
        let Some((id, open)) = found else { return Ok(None) };
        if open.request_hash != request_hash(request).0 {
            return Err(failure(422, "KEY_REUSED", "the key was used for another request"));
        }
        Ok(Some(id))
    }

    fn stored_answer(
        &self,
        framework: FrameworkId,
        key: &str,
        request: &HttpRequest,
        rows: &dyn Rows,
    ) -> Result<Option<HttpAnswer>, HttpFailure> {
        let hash = request_hash(request);
        let answer_key = AnswerKey {
            framework,
            principal: request.principal.clone(),
            key: key.to_owned(),
        };
        let Some(number) = self.state.answer_numbers.get(&answer_key) else { return Ok(None) };
        let unreadable = |text: String| failure(500, "STATE_UNREADABLE", text);
        let row = rows
            .get(rows::ANSWERS, &number.to_be_bytes())
            .map_err(|error| unreadable(error.to_string()))?
            .ok_or_else(|| unreadable("a stored answer is missing".into()))?;
        let row = v1::AnswerRow::decode(row.as_slice()).map_err(|e| unreadable(e.to_string()))?;
        if row.version > ROW_VERSION {
            return Err(unreadable("a stored answer is of a newer version".into()));
        }
        if row.request_hash != hash.0 {
            return Err(failure(422, "KEY_REUSED", "the key was used for another request"));
        }
        let answer = row.answer.unwrap_or_default().try_into();
        Ok(Some(answer.map_err(|error: tessera_wire::WireError| unreadable(error.to_string()))?))
    }

    fn answer_ticket(&mut self, ticket: u64, answer: Result<HttpAnswer, HttpFailure>) {
        self.leader.out.push(Output::Answer { ticket, answer });
    }

    /// Answer a request, if it still waits here and belongs to the framework.
    pub(super) fn answer(&mut self, request: u64, answer: Result<HttpAnswer, HttpFailure>) {
        let Some(waiter) = self.leader.waiters.by_request.remove(&request) else { return };
        if let Some(instance) = self.leader.instances.get_mut(&waiter.framework) {
            instance.http.retain(|id| *id != request);
        }
        if let Some(ticket) = waiter.ticket {
            self.leader.waiters.by_ticket.remove(&ticket);
            self.answer_ticket(ticket, answer);
        }
    }

    /// The caller hung up. What the scheduler has seen stays known, so that a repeated key finds it.
    pub(crate) fn http_gone(&mut self, ticket: u64) {
        let Some(request) = self.leader.waiters.by_ticket.remove(&ticket) else { return };
        let Some(waiter) = self.leader.waiters.by_request.get_mut(&request) else { return };
        waiter.ticket = None;
        if let Some(instance) = self.leader.instances.get_mut(&waiter.framework)
            && let Some(at) = instance.http.iter().position(|id| *id == request)
        {
            instance.http.remove(at);
            self.leader.waiters.by_request.remove(&request);
        }
    }

    /// Requests that a failed turn had taken in.
    pub(super) fn fail_http(&mut self, requests: &[u64], status: u16, code: &'static str, text: &str) {
        for request in requests {
            self.answer(*request, Err(failure(status, code, text)));
        }
    }

    /// Requests that its scheduler will not see for now.
    pub(super) fn fail_queued_http(&mut self, framework: FrameworkId, code: &'static str, text: &str) {
        let Some(instance) = self.leader.instances.get_mut(&framework) else { return };
        let queued: Vec<u64> = std::mem::take(&mut instance.http).into();
        self.fail_http(&queued, 503, code, text);
    }

    /// All requests of a framework that is no more.
    pub(super) fn fail_all_http(&mut self, framework: FrameworkId) {
        let waiters = self.leader.waiters.by_request.iter();
        let all: Vec<u64> =
            waiters.filter(|(_, w)| w.framework == framework).map(|(id, _)| *id).collect();
        self.fail_http(&all, 404, "NOT_FOUND", "the framework was removed");
    }

    pub(super) fn tick_http(&mut self) {
        let (now_ms, timeout) = (self.now.mono_ms, self.config.http_timeout_ms);
        let age = |waiter: &Waiter| now_ms.saturating_sub(waiter.since_ms);
        let waiters = self.leader.waiters.by_request.values();
        let late: Vec<u64> =
            waiters.filter(|w| age(w) >= timeout).filter_map(|waiter| waiter.ticket).collect();
        for ticket in late {
            self.http_gone(ticket);
            let text = format!("the scheduler did not answer within {timeout} ms");
            self.answer_ticket(ticket, Err(failure(504, "SCHEDULER_TIMEOUT", text)));
        }
        let forgotten = timeout.saturating_mul(FORGET_AFTER_TIMEOUTS);
        self.leader.waiters.by_request.retain(|_, waiter| age(waiter) < forgotten);
    }
}

fn validate(request: &HttpRequest) -> Result<(), HttpFailure> {
    if request.body.len() > HTTP_REQUEST_BYTES_MAX {
        let text = format!("a body has at most {HTTP_REQUEST_BYTES_MAX} bytes");
        return Err(failure(413, "TOO_LARGE", text));
    }
    let long = |(name, value): &(String, String)| name.len() + value.len() > HTTP_HEADER_BYTES_MAX;
    if request.headers.len() > HTTP_HEADERS_MAX || request.headers.iter().any(long) {
        let text =
            format!("at most {HTTP_HEADERS_MAX} headers of at most {HTTP_HEADER_BYTES_MAX} bytes");
        return Err(failure(431, "HEADERS_TOO_LARGE", text));
    }
    let query = request.query.as_ref().map_or(0, String::len);
    if request.method.len() + request.path.len() + query > HTTP_TARGET_BYTES_MAX {
        let text = format!("method, path and query have at most {HTTP_TARGET_BYTES_MAX} bytes");
        return Err(failure(414, "TARGET_TOO_LONG", text));
    }
    let key = request.idempotency_key.as_ref().map_or(1, String::len);
    if key == 0 || key > IDEMPOTENCY_KEY_BYTES_MAX {
        let text = format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
        return Err(failure(400, "INVALID_KEY", text));
    }
    Ok(())
}
