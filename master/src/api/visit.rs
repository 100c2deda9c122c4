//! One request from its arrival to its answer: its id, who sends it, the log line, and its record in the audit.
//!
//! Invariants: every answer carries `X-Request-Id`, and a refusal has it in its envelope; what changes something, what
//! was refused to a caller, and what takes the whole state away is on record at the master that was asked. Reads of
//! the rest, calls of schedulers and writes of keys of state, which come by the thousand, are in the log at `debug`
//! only. Must never put a body, a token or the query of a request on record.

use super::audit::{Audit, Draft};
use super::error::Refused;
use super::{Api, door::Ways};
use crate::trace::Traced;
use axum::extract::MatchedPath;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use axum::response::Response;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tessera_master_core::Principal;

/// Names a request, from its client to the logs of all masters that it passes.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names the trace that a request belongs to.
pub const TRACE: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of an id that a client chooses.
const ID_BYTES_MAX: usize = 128;

/// Bytes of a path that a record repeats.
const PATH_BYTES_MAX: usize = 512;

tokio::task_local! {
    static CURRENT: Arc<str>;
}

/// The id of the request that this task answers; empty outside of one.
pub fn request_id() -> String {
    CURRENT.try_with(|id| id.to_string()).unwrap_or_default()
}

/// The id that is to go with a request to another master.
pub fn request_id_header() -> Option<HeaderValue> {
    CURRENT.try_with(|id| HeaderValue::from_str(id).ok()).ok().flatten()
}

/// An id that no other request of this process has, and hardly one of another.
fn new_id() -> Arc<str> {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    // Without random bytes there is still the number.
    let process = PROCESS.get_or_init(|| getrandom::u32().unwrap_or(0));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{process:08x}-{number:x}").into()
}

fn chosen_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = !text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.into())
}

/// Who sends a request, as far as its head shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Somebody with a token that is known.
    Known(Principal),
    /// Nobody who can be known: no token.
    Stranger,
    /// A token that is none.
    Wrong,
}

impl Sender {
    /// Of a request's headers.
    pub fn of(api: &Api, headers: &HeaderMap) -> Self {
        match headers.get(AUTHORIZATION).map(HeaderValue::to_str) {
            Some(Ok(header)) if api.token.matches(header) => Self::Known(Principal::administrator()),
            // A wrong token is refused everywhere, so that a typing error is noticed.
            Some(_) => Self::Wrong,
            None => Self::Stranger,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Known(principal) => &principal.name,
            Self::Stranger | Self::Wrong => "",
        }
    }
}

/// One request.
pub struct Visit {
    id: Arc<str>,
    method: Method,
    uri: Uri,
    began: Instant,
    remote: SocketAddr,
    /// Who sends it.
    pub sender: Sender,
    /// The trace that it belongs to.
    pub traced: Option<Traced>,
}

impl Visit {
    /// Of a request that has just come.
    pub fn of<B>(api: &Api, request: &Request<B>, remote: SocketAddr) -> Self {
        Self {
            id: chosen_id(request.headers()).unwrap_or_else(new_id),
            method: request.method().clone(),
            uri: request.uri().clone(),
            began: Instant::now(),
            remote,
            sender: Sender::of(api, request.headers()),
            traced: api.node.tracer.as_ref().and_then(|tracer| {
                let header = request.headers().get(TRACE).and_then(|value| value.to_str().ok());
                tracer.of_request(header, reads(request.method()))
            }),
        }
    }

    /// Where it comes from.
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Answer it: whatever is refused meanwhile names its id.
    pub async fn answered(&self, answer: impl Future<Output = Response>) -> Response {
        CURRENT.scope(Arc::clone(&self.id), answer).await
    }

    /// Its answer is on its way.
    pub fn end(self, ways: &Ways, audit: &Audit, response: &mut Response) {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let status = response.status();
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(
            request_id = &*self.id,
            principal = self.sender.name(),
            remote = %self.remote,
            method = %self.method,
            path = self.uri.path(),
            status = status.as_u16(),
            ms,
            "answered"
        );
        let route = response.extensions_mut().remove::<MatchedPath>();
        let route = route.as_ref().map(MatchedPath::as_str).unwrap_or_default();
        // Writes of state that went the short way have met no route.
        let quick = route.is_empty() && self.method == Method::PUT && status == StatusCode::NO_CONTENT;
        let counted = if quick { STATE_KEY } else { route };
        if let (Some(traced), Some(tracer)) = (self.traced, ways.tracer()) {
            let attributes = vec![
                ("http.request.method", self.method.as_str().to_owned()),
                ("http.route", counted.to_owned()),
                ("http.response.status_code", status.as_u16().to_string()),
                ("tessera.request_id", self.id.to_string()),
            ];
            tracer.put(traced.span(attributes, status.is_server_error()));
        }
        ways.metrics().http.answered(counted, self.method.as_str(), status.as_u16(), self.began.elapsed());
        if !is_recorded(&self.method, route, status) {
            return;
        }
        let code = response.extensions().get::<Refused>().map(|refused| refused.0);
        let end = self.uri.path().floor_char_boundary(PATH_BYTES_MAX);
        audit.note(Draft {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            request_id: self.id.to_string(),
            principal: self.sender.name().to_owned(),
            remote: self.remote.to_string(),
            method: self.method.as_str().to_owned(),
            operation: ways.operation(&self.method, route).unwrap_or_default().to_owned(),
            object: self.uri.path()[..end].to_owned(),
            status: status.as_u16(),
            outcome: outcome(status, code),
            code: code.map(str::to_owned),
            dry_run: self.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "dry_run=true")),
            ms,
        });
    }
}

/// The master answers with everything that tenants keep.
const SNAPSHOT: &str = "/v1/snapshot";
/// Keys of state.
const STATE_KEY: &str = "/v1/frameworks/{framework}/state/{*key}";

/// Whether such a request changes nothing.
fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether an answer goes on record.
fn is_recorded(method: &Method, route: &str, status: StatusCode) -> bool {
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    let reads = reads(method);
    let plain = route == STATE_KEY || route.is_empty() || route.starts_with("/frameworks/");
    refused || route == SNAPSHOT || !reads && !plain
}

/// What became of it, in one word.
fn outcome(status: StatusCode, code: Option<&str>) -> &'static str {
    match (status.as_u16(), code) {
        (_, Some(super::codes::OUTCOME_UNKNOWN)) => "unknown",
        (200..=399, _) => "done",
        (400..=499, _) => "refused",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients_are_taken_when_they_can_be_shown() {
        let with = |text: &str| HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(text.as_bytes()).unwrap())]);
        let long = "x".repeat(ID_BYTES_MAX);
        for (text, taken) in [("a-1", true), (long.as_str(), true), ("", false), ("a b", false), ("\u{e9}", false)] {
            assert_eq!(chosen_id(&with(text)).is_some(), taken, "{text:?}");
        }
        assert!(chosen_id(&with(&format!("{long}x"))).is_none());
        assert_ne!(new_id(), new_id());
    }

    #[test]
    fn changes_and_refusals_go_on_record() {
        let ok = StatusCode::OK;
        for (method, route, status, recorded) in [
            (Method::POST, "/v1/frameworks", ok, true),
            (Method::GET, "/v1/frameworks", ok, false),
            (Method::GET, "/v1/frameworks", StatusCode::UNAUTHORIZED, true),
            (Method::GET, SNAPSHOT, ok, true),
            (Method::PUT, STATE_KEY, ok, false),
            (Method::PUT, STATE_KEY, StatusCode::FORBIDDEN, true),
            (Method::POST, "/frameworks/{framework}/{*path}", ok, false),
            (Method::DELETE, "/v1/roles/{*role}", StatusCode::CONFLICT, true),
        ] {
            assert_eq!(is_recorded(&method, route, status), recorded, "{method} {route} {status}");
        }
    }
}
