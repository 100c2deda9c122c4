//! One request from its arrival to its answer: its id, who sends it, the log line, and its record in the audit.
//!
//! Invariants: every answer carries `X-Request-Id`, and a refusal has it in its envelope; what changes something, what
//! was refused to a caller, and what takes the whole state away is on record at the master that was asked, also when
//! nobody waits for the answer any more. What strangers were refused, and what was beyond a rate, is counted. Reads of
//! the rest, calls of schedulers and writes of keys of state, which come by the thousand, are in the log at `debug`
//! only. Must never put a body, a token or the query of a request on record.

use super::audit::Draft;
use super::error::Refused;
use super::refusals::Whose;
use super::{Api, door::Ways};
use crate::trace::Traced;
use axum::extract::MatchedPath;
use axum::http::header::{AUTHORIZATION, LOCATION};
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

/// Status in the log, the metrics and the audit of a request whose caller hung up before it was answered.
const HUNG_UP: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    // It has three digits, which is all that is asked of one.
    Err(_) => StatusCode::BAD_REQUEST,
};

/// What is known of a request while it is answered.
struct Current {
    id: Arc<str>,
    route: OnceLock<MatchedPath>,
}

tokio::task_local! {
    static CURRENT: Arc<Current>;
}

/// The id of the request that this task answers; empty outside of one.
pub fn request_id() -> String {
    CURRENT.try_with(|current| current.id.to_string()).unwrap_or_default()
}

/// The id that is to go with a request to another master.
pub fn request_id_header() -> Option<HeaderValue> {
    CURRENT.try_with(|current| HeaderValue::from_str(&current.id).ok()).ok().flatten()
}

/// The request that this task answers has met this route, before anything is done.
pub fn met(route: &MatchedPath) {
    // Outside of a request there is nothing to be noted.
    let _ = CURRENT.try_with(|current| current.route.set(route.clone()));
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

/// One request. It is noted when it ends, however it does: when its caller hangs up, it is dropped.
pub struct Visit {
    ways: Arc<Ways>,
    current: Arc<Current>,
    ended: bool,
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
    pub fn of<B>(ways: &Arc<Ways>, request: &Request<B>, remote: SocketAddr) -> Self {
        let id = chosen_id(request.headers()).unwrap_or_else(new_id);
        Self {
            ways: Arc::clone(ways),
            current: Arc::new(Current { id, route: OnceLock::new() }),
            ended: false,
            method: request.method().clone(),
            uri: request.uri().clone(),
            began: Instant::now(),
            remote,
            sender: Sender::of(ways.api(), request.headers()),
            traced: ways.tracer().and_then(|tracer| {
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
        CURRENT.scope(Arc::clone(&self.current), answer).await
    }

    /// Its answer is on its way.
    pub fn end(mut self, response: &mut Response) {
        self.ended = true;
        if let Ok(id) = HeaderValue::from_str(&self.current.id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let status = response.status();
        let code = response.extensions().get::<Refused>().map(|refused| refused.0);
        // What was made is named by its answer; everything else by the request.
        let made = response.headers().get(LOCATION).filter(|_| status.is_success()).and_then(|place| place.to_str().ok());
        self.note(status, code, made);
    }

    /// In the log, the traces, the metrics, and the audit.
    fn note(&self, status: StatusCode, code: Option<&'static str>, made: Option<&str>) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(
            request_id = &*self.current.id,
            principal = self.sender.name(),
            remote = %self.remote,
            method = %self.method,
            path = self.uri.path(),
            status = status.as_u16(),
            ms,
            "{}",
            if self.ended { "answered" } else { "not waited for" }
        );
        let route = self.current.route.get().map(MatchedPath::as_str).unwrap_or_default();
        // Writes of state that went the short way have met no route.
        let quick = route.is_empty() && self.method == Method::PUT && status == StatusCode::NO_CONTENT;
        let counted = if quick { STATE_KEY } else { route };
        if let (Some(traced), Some(tracer)) = (self.traced, self.ways.tracer()) {
            let attributes = vec![
                ("http.request.method", self.method.as_str().to_owned()),
                ("http.route", counted.to_owned()),
                ("http.response.status_code", status.as_u16().to_string()),
                ("tessera.request_id", self.current.id.to_string()),
            ];
            tracer.put(traced.span(attributes, status.is_server_error()));
        }
        self.ways.metrics().http.answered(counted, self.method.as_str(), status.as_u16(), self.began.elapsed());
        let draft = || self.draft(route, status, code, made, ms);
        match on_record(&self.sender, &self.method, route, status) {
            OnRecord::Not => {}
            OnRecord::Alone => self.ways.audit().note(draft()),
            OnRecord::Counted => {
                let whose = match &self.sender {
                    Sender::Known(principal) => Whose::Principal(principal.name.clone()),
                    Sender::Stranger | Sender::Wrong => Whose::Address(self.remote.ip()),
                };
                self.ways.audit().count(whose, status.as_u16(), draft);
            }
        }
    }

    fn draft(&self, route: &str, status: StatusCode, code: Option<&str>, made: Option<&str>, ms: u64) -> Draft {
        let object = made.unwrap_or_else(|| self.uri.path());
        let end = object.floor_char_boundary(PATH_BYTES_MAX);
        Draft {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            request_id: self.current.id.to_string(),
            principal: self.sender.name().to_owned(),
            remote: self.remote.to_string(),
            method: self.method.as_str().to_owned(),
            operation: self.ways.operation(&self.method, route).unwrap_or_default().to_owned(),
            object: object[..end].to_owned(),
            status: status.as_u16(),
            outcome: outcome(status, code),
            code: code.map(str::to_owned),
            dry_run: asks_for_dry_run(&self.uri),
            ms,
            times: 1,
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // Nobody knows how far it came: a change may have been proposed, and be carried out.
        if !self.ended {
            self.note(HUNG_UP, None, None);
        }
    }
}

/// Whether a request only asks what would be; read as the routes read it.
fn asks_for_dry_run(uri: &Uri) -> bool {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).any(|(name, value)| name == "dry_run" && value == "true")
}

/// The master answers with everything that tenants keep.
const SNAPSHOT: &str = "/v1/snapshot";
/// Keys of state.
const STATE_KEY: &str = "/v1/frameworks/{framework}/state/{*key}";

/// Whether such a request changes nothing.
fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// How a request goes on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnRecord {
    Not,
    /// With a record of its own.
    Alone,
    /// With others like it: whoever sends many must not push out what was done.
    Counted,
}

fn on_record(sender: &Sender, method: &Method, route: &str, status: StatusCode) -> OnRecord {
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    let known = matches!(sender, Sender::Known(_));
    if refused && (!known || status == StatusCode::TOO_MANY_REQUESTS) {
        return OnRecord::Counted;
    }
    let plain = route == STATE_KEY || route.is_empty() || route.starts_with("/frameworks/");
    // Strangers change nothing.
    match known && (refused || route == SNAPSHOT || !reads(method) && !plain) {
        true => OnRecord::Alone,
        false => OnRecord::Not,
    }
}

/// What became of it, in one word.
fn outcome(status: StatusCode, code: Option<&str>) -> &'static str {
    match (status.as_u16(), code) {
        _ if status == HUNG_UP => "unknown",
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
    fn changes_go_on_record_and_refusals_of_strangers_are_counted() {
        use OnRecord::{Alone, Counted, Not};
        let (ok, known) = (StatusCode::OK, Sender::Known(Principal::administrator()));
        for (sender, method, route, status, expected) in [
            (&known, Method::POST, "/v1/frameworks", ok, Alone),
            (&known, Method::POST, "/v1/frameworks", HUNG_UP, Alone),
            (&known, Method::GET, "/v1/frameworks", ok, Not),
            (&known, Method::GET, "/v1/frameworks", HUNG_UP, Not),
            (&known, Method::GET, "/v1/frameworks", StatusCode::FORBIDDEN, Alone),
            (&known, Method::GET, SNAPSHOT, ok, Alone),
            (&known, Method::PUT, STATE_KEY, ok, Not),
            (&known, Method::PUT, STATE_KEY, HUNG_UP, Not),
            (&known, Method::PUT, "", HUNG_UP, Not),
            (&known, Method::PUT, STATE_KEY, StatusCode::FORBIDDEN, Alone),
            (&known, Method::POST, "/frameworks/{framework}/{*path}", ok, Not),
            (&known, Method::DELETE, "/v1/roles/{*role}", StatusCode::CONFLICT, Alone),
            (&known, Method::DELETE, "/v1/roles/{*role}", StatusCode::TOO_MANY_REQUESTS, Counted),
            (&Sender::Stranger, Method::GET, "/v1/frameworks", StatusCode::UNAUTHORIZED, Counted),
            (&Sender::Wrong, Method::DELETE, "/v1/roles/{*role}", StatusCode::UNAUTHORIZED, Counted),
            (&Sender::Stranger, Method::POST, "", StatusCode::TOO_MANY_REQUESTS, Counted),
            (&Sender::Stranger, Method::POST, "/health", StatusCode::METHOD_NOT_ALLOWED, Not),
            (&Sender::Stranger, Method::GET, "/health", ok, Not),
        ] {
            assert_eq!(on_record(sender, &method, route, status), expected, "{sender:?} {method} {route} {status}");
        }
    }

    #[test]
    fn a_dry_run_is_one_however_it_is_written() {
        for (uri, dry) in [
            ("/v1/roles/a", false),
            ("/v1/roles/a?dry_run=true", true),
            ("/v1/roles/a?x=1&dry_run=true", true),
            ("/v1/roles/a?dry%5Frun=true", true),
            ("/v1/roles/a?dry_run=%74rue", true),
            ("/v1/roles/a?dry_run=false", false),
            ("/v1/roles/a?x=dry_run=true", false),
        ] {
            assert_eq!(asks_for_dry_run(&uri.parse().unwrap()), dry, "{uri}");
        }
    }
}
