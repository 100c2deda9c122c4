//! Before every route: requests are answered by the leader, whichever master they came to.
//!
//! Invariants: a request is passed on at most once; it is sent again only when acting twice is the same as
//! acting once, or when nobody can have acted on it; everything that waits has a deadline. Reads that the
//! leader answers are linearizable; others say so. Whoever is told that nobody leads knows that nothing was done.
//! Must never look at what a request means.

use super::{Api, conditions};
use super::error::{ApiError, Fate};
use super::idempotency::{NUMBER, applies, number_text};
use super::state::hex;
use super::visit::{self, Sender};
use crate::forward::{FORWARDED_BY, ForwardError};
use crate::members::Topology;
use crate::peer::Given;
use crate::stage::{StagedBody, Staging};
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a leader is waited for: an election takes about a second.
const LEADER_WAIT: Duration = Duration::from_secs(2);

/// How long a request is tried again whose leader went away under it.
const REPEAT_FOR: Duration = Duration::from_secs(10);

/// Pause before a request is tried again with the same leader.
const REPEAT_PAUSE: Duration = Duration::from_millis(50);

/// What changes the leader itself: a repetition would go to the one that has just taken over.
const ONCE: &str = "/v1/masters/transfer";

/// Uploads are known by what they are: one that comes again is the same.
const UPLOAD: &str = "/v1/components";

/// Largest body that is kept in memory so that it can be sent again; larger ones are on disk for that.
const KEPT_BODY_BYTES_MAX: u64 = 1 << 20;

/// Random bytes of a key that is made here: it must not meet another one.
const KEY_BYTES: usize = 16;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The index to which the answering master has applied the log.
const APPLIED_INDEX: HeaderName = HeaderName::from_static("tessera-applied-index");

/// Which reads do not have to be the newest.
const CONSISTENCY: &str = "consistency";

/// A request that may be sent several times.
struct Kept {
    parts: request::Parts,
    body: KeptBody,
}

enum KeptBody {
    /// It is small.
    Bytes(Bytes),
    /// It is large, and went to another master or is about to.
    Staged(Arc<StagedBody>),
    /// It is large, or of unknown length, and still comes in.
    Coming(Body),
    /// It went by.
    Gone,
}

impl Kept {
    async fn of(request: Request) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let length = announced(&parts.headers);
        if length.is_none_or(|length| length > KEPT_BODY_BYTES_MAX) {
            return Ok(Self { parts, body: KeptBody::Coming(body) });
        }
        let bytes = body
            .collect()
            .await
            .map_err(ApiError::broken_off)?
            .to_bytes();
        Ok(Self { parts, body: KeptBody::Bytes(bytes) })
    }

    /// The request for the next attempt, if there is one more to be had.
    fn next(&mut self) -> Option<Request> {
        let body = match std::mem::replace(&mut self.body, KeptBody::Gone) {
            KeptBody::Bytes(bytes) => {
                self.body = KeptBody::Bytes(bytes.clone());
                Body::from(bytes)
            }
            KeptBody::Staged(staged) => {
                let body = Body::from_stream(staged.read());
                self.body = KeptBody::Staged(staged);
                body
            }
            KeptBody::Coming(body) => body,
            KeptBody::Gone => return None,
        };
        Some(Request::from_parts(self.parts.clone(), body))
    }

    /// Take in what still comes, so that it can be passed on more than once; whether there was anything.
    async fn stage(&mut self, staging: &Arc<Staging>) -> Result<bool, ApiError> {
        let body = match std::mem::replace(&mut self.body, KeptBody::Gone) {
            KeptBody::Coming(body) => body,
            kept => {
                self.body = kept;
                return Ok(false);
            }
        };
        let staged = staging.keep(announced(&self.parts.headers), body).await?;
        self.parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(staged.len()));
        self.body = KeptBody::Staged(staged);
        Ok(true)
    }

    const fn is_here(&self) -> bool {
        matches!(self.body, KeptBody::Bytes(_) | KeptBody::Staged(_))
    }

    /// It asks for a change.
    fn changes(&self) -> bool {
        !matches!(self.parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    /// Acting twice on it is the same as acting once.
    fn repeatable(&self) -> bool {
        if self.parts.uri.path() == ONCE {
            return false;
        }
        let headers = &self.parts.headers;
        let known = self.parts.uri.path() == UPLOAD
            || headers.contains_key(IDEMPOTENCY_KEY)
            || headers.contains_key(NUMBER);
        self.is_here() && (!self.changes() || known)
    }
}

/// So that the leader knows a request again: by the number that this master gives it, which it keeps as long as this is
/// there, or by a key, which schedulers see and which needs no session. Reads need neither.
pub fn ensure_known(api: &Api, parts: &mut request::Parts, leader: u64) -> Result<(), ApiError> {
    let reads = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if reads || parts.headers.contains_key(IDEMPOTENCY_KEY) || parts.headers.contains_key(NUMBER) {
        return Ok(());
    }
    if applies(parts.uri.path()) && let Some(given) = api.writes.number(leader) {
        return number(parts, given);
    }
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random)
        .map_err(|_| ApiError::internal("the system gave no random bytes"))?;
    let key = HeaderValue::from_str(&format!("auto-{}", hex(&random)))
        .map_err(|_| ApiError::internal("a key could not be made"))?;
    parts.headers.insert(IDEMPOTENCY_KEY, key);
    Ok(())
}

/// The request is known by this number, as long as it is there.
pub fn number(parts: &mut request::Parts, given: Given) -> Result<(), ApiError> {
    let text = HeaderValue::from_str(&number_text(given.numbered()))
        .map_err(|_| ApiError::internal("a number could not be written"))?;
    parts.headers.insert(NUMBER, text);
    parts.extensions.insert(Arc::new(given));
    Ok(())
}

/// How long the body is; nothing when that is not known before.
pub fn announced(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    match headers.get(header::CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok(),
        None => Some(0),
    }
}

/// Answered by whichever master is asked: about this master, or from rows that say how new they are.
pub fn is_local(path: &str) -> bool {
    matches!(path, "/health" | "/metrics" | "/v1/events" | "/v1/version" | "/v1/openapi.json" | "/v1/audit")
}

/// Takes `consistency` out of a query: handlers refuse parameters that they do not know.
fn take_consistency(uri: &Uri) -> Result<(Uri, bool), ApiError> {
    let Some(query) = uri.query().filter(|query| query.contains(CONSISTENCY)) else {
        return Ok((uri.clone(), false));
    };
    let mut stale = false;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=').filter(|(name, _)| *name == CONSISTENCY) {
            Some((_, "stale")) => stale = true,
            Some((_, "linearizable")) => stale = false,
            Some((_, other)) => {
                let other: String = other.chars().take(40).collect();
                let rule = format!("{other:?} is neither `linearizable` nor `stale`");
                return Err(ApiError::invalid(CONSISTENCY, rule));
            }
            None => rest.push(pair),
        }
    }
    let path = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let uri = path
        .parse()
        .map_err(|_| ApiError::invalid(CONSISTENCY, "the rest of the query cannot be read"))?;
    Ok((uri, stale))
}

/// Has the leader answer: this master, if it leads, or the one that does.
pub async fn by_leader(api: State<Api>, request: Request, next: Next) -> Response {
    if let Some(route) = request.extensions().get::<MatchedPath>() {
        visit::met(route);
    }
    led(api, request, next).await
}

async fn led(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    if is_local(request.uri().path()) {
        // It is answered here, whatever is asked for.
        return match take_consistency(request.uri()) {
            Ok((uri, _)) => {
                *request.uri_mut() = uri;
                next.run(request).await
            }
            Err(error) => error.into_response(),
        };
    }
    // All the rest is for those who have a token; nobody else's body is kept, or passed on.
    if matches!(request.extensions().get::<Sender>(), Some(Sender::Stranger | Sender::Wrong)) {
        return ApiError::unauthenticated().into_response();
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // Below other paths, parameters belong to schedulers.
    let ours = request.uri().path().starts_with("/v1/");
    if ours && reads {
        match take_consistency(request.uri()) {
            Ok((uri, stale)) => {
                *request.uri_mut() = uri;
                if stale {
                    return local(&api, request, next).await;
                }
            }
            Err(error) => return error.into_response(),
        }
    }
    match Kept::of(request).await {
        Ok(kept) => attempts(&api, kept, next).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    }
}

/// Answered from what this master has applied, however old that is.
async fn local(api: &Api, request: Request, next: Next) -> Response {
    let index = api.node.query_status(|_, _, status| status.applied.index).await;
    let mut response = next.run(request).await;
    if let Ok(index) = index {
        response.headers_mut().insert(APPLIED_INDEX, HeaderValue::from(index));
    }
    response
}

async fn attempts(api: &Api, mut kept: Kept, next: Next) -> Result<Response, ApiError> {
    let mut began = Instant::now();
    let passed_on = kept.parts.headers.contains_key(FORWARDED_BY);
    let mut topology = api.node.topology();
    let mut last = ApiError::no_leader("no master leads the cluster now");
    // Whether somebody may have acted on an earlier attempt.
    let mut unknown = kept.parts.extensions.remove::<Tried>().is_some();
    // The first answer that nobody can have acted on may come late; later ones have been waited for long.
    let mut patience = if unknown { REPEAT_FOR } else { LEADER_WAIT };
    loop {
        let view = topology.borrow_and_update().clone();
        let leader = view.leader_rest().map(|(node, address)| (node, address.to_owned()));
        let outcome = match leader {
            _ if view.leads => Some(here(api, &mut kept, &next).await),
            _ if passed_on => return Err(ApiError::no_leader("this master does not lead")),
            Some((leader, address)) => {
                may_be_ignored(api, &kept.parts).await?;
                ensure_known(api, &mut kept.parts, leader)?;
                if kept.stage(&api.staging).await? {
                    // That took as long as its sender did, and there may be another leader by now.
                    began = Instant::now();
                    continue;
                }
                let Some(request) = kept.next() else { return Err(last) };
                let wait_for_other = kept.repeatable();
                let sent = api.forwarder.send(&address, view.node(), request);
                Some(there(sent, &mut topology, leader, wait_for_other).await)
            }
            None => None,
        };
        match outcome {
            Some(Outcome::Answer(response)) => {
                let fate = Fate::of(&response).filter(|_| kept.repeatable());
                let Some(fate) = fate.filter(|_| !passed_on) else { return Ok(response) };
                if began.elapsed() >= REPEAT_FOR {
                    return match unknown && fate == Fate::Untouched {
                        true => Err(ApiError::outcome_unknown(LOST)),
                        false => Ok(response),
                    };
                }
                unknown |= fate == Fate::Unknown;
                patience = REPEAT_FOR;
            }
            Some(Outcome::Untouched(why)) => {
                last = ApiError::no_leader(why);
                if !kept.is_here() {
                    return Err(last);
                }
                patience = REPEAT_FOR;
            }
            Some(Outcome::Unknown(why)) => {
                unknown |= kept.changes();
                last = if unknown { ApiError::outcome_unknown(why) } else { ApiError::no_leader(why) };
                if !kept.repeatable() {
                    return Err(last);
                }
                patience = REPEAT_FOR;
            }
            None => {}
        }
        if began.elapsed() >= patience {
            return Err(if unknown { ApiError::outcome_unknown(LOST) } else { last });
        }
        // A change of the leader, or a moment: whichever comes first. Without a leader only a change helps.
        let pause = match view.leader_rest() {
            None if !view.leads => patience.saturating_sub(began.elapsed()),
            _ => REPEAT_PAUSE,
        };
        let _ = tokio::time::timeout(pause, topology.changed()).await;
    }
}

/// The cluster version from which on every master hears the conditions of a request.
const HEARS_CONDITIONS: u32 = 4;

/// Whether a request says under what conditions it is to be carried out, or that it is not to be.
fn is_guarded(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let ours = uri.path().starts_with("/v1/");
    let named = |pair: (_, _)| pair.0 == "dry_run";
    let dry = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).any(named);
    // Keys of state have had tags from the beginning.
    let conditional = conditions::NAMES.iter().any(|name| headers.contains_key(name)) && !uri.path().contains("/state/");
    changes && ours && (dry || conditional)
}

/// While an earlier version may lead, which would carry out what is only to be tried.
async fn may_be_ignored(api: &Api, parts: &request::Parts) -> Result<(), ApiError> {
    if !is_guarded(&parts.method, &parts.uri, &parts.headers)
        || api.node.query_status(|core, _, _| core.cluster_version()).await? >= HEARS_CONDITIONS
    {
        return Ok(());
    }
    let rule = "masters of an earlier version are in this cluster: one of them may lead, and would not hear `dry_run` or `If-Match`";
    Err(ApiError::conflict("cluster_version", rule).hint("finish the upgrade first: `tessera version` shows the cluster version, `tessera operator raft list` the masters"))
}

/// What came of one attempt.
enum Outcome {
    Answer(Response),
    /// Nobody can have acted on it.
    Untouched(String),
    /// Somebody may have acted on it.
    Unknown(String),
}

/// Marks a request that went a short way before, on which somebody may have acted.
#[derive(Clone, Copy)]
pub struct Tried;

/// What is said of a request that was tried with several leaders.
const LOST: &str = "the leader went away or stood still before it answered, and the request may have been acted on";

/// Answered by this master. A read waits until its rows are the newest.
async fn here(api: &Api, kept: &mut Kept, next: &Next) -> Outcome {
    if matches!(kept.parts.method, Method::GET | Method::HEAD) && api.node.barrier().await.is_err() {
        return Outcome::Untouched("this master stopped leading, or could not make sure of it in time".to_owned());
    }
    match kept.next() {
        Some(request) => Outcome::Answer(next.clone().run(request).await),
        None => Outcome::Unknown("the leader changed, and the request is too large to be sent again".to_owned()),
    }
}

/// Answered by another master, unless it stops leading first, or this master hears of no leader any more: it may be
/// this one that was cut off. What cannot go to the next leader gets some time more.
async fn there(
    sent: impl Future<Output = Result<Response, ForwardError>>,
    topology: &mut watch::Receiver<Topology>,
    leader: u64,
    repeatable: bool,
) -> Outcome {
    let leads_no_more = async {
        if topology.wait_for(|now| now.leader != Some(leader)).await.is_err() {
            // The loop is gone, and the process ends.
            std::future::pending::<()>().await;
        }
        if !repeatable {
            tokio::time::sleep(LEADER_WAIT).await;
        }
    };
    tokio::select! {
        answer = sent => match answer {
            Ok(response) => Outcome::Answer(response),
            Err(error @ ForwardError::Unreached { .. }) => {
                Outcome::Untouched(error.to_string())
            }
            Err(error @ ForwardError::Unanswered { .. }) => {
                Outcome::Unknown(error.to_string())
            }
        },
        () = leads_no_more => Outcome::Unknown(LOST.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_replica::{ClusterId, Identity};

    #[test]
    fn consistency_is_taken_out_of_the_query() {
        for (given, left, stale) in [
            ("/v1/tasks", "/v1/tasks", false),
            ("/v1/tasks?consistency=stale", "/v1/tasks", true),
            ("/v1/tasks?a=b&consistency=stale&c=d", "/v1/tasks?a=b&c=d", true),
            ("/v1/tasks?consistency=linearizable", "/v1/tasks", false),
            ("/v1/tasks?myconsistency=1", "/v1/tasks?myconsistency=1", false),
        ] {
            let (uri, found) = take_consistency(&given.parse().unwrap()).unwrap();
            assert_eq!((uri.to_string().as_str(), found), (left, stale), "{given}");
        }
        assert!(take_consistency(&"/v1/x?consistency=weak".parse().unwrap()).is_err());
    }

    #[test]
    fn what_an_earlier_version_would_not_hear_is_known() {
        let tagged = HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_static("\"1\""))]);
        let plain = HeaderMap::new();
        for (method, uri, headers, guarded) in [
            (Method::DELETE, "/v1/frameworks/x?dry_run=true", &plain, true),
            (Method::DELETE, "/v1/frameworks/x?dry%5Frun=true", &plain, true),
            (Method::DELETE, "/v1/frameworks/x", &plain, false),
            (Method::PATCH, "/v1/limits?role=a", &plain, false),
            (Method::PATCH, "/v1/limits?role=a", &tagged, true),
            (Method::PUT, "/v1/frameworks/x/state/k", &tagged, false),
            (Method::GET, "/v1/limits", &tagged, false),
            (Method::POST, "/frameworks/x/?dry_run=true", &plain, false),
        ] {
            assert_eq!(is_guarded(&method, &uri.parse().unwrap(), headers), guarded, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn a_leader_that_is_not_heard_of_any_more_is_not_waited_for() {
        for lost in [None, Some(3)] {
            let identity = Identity { cluster: ClusterId([1; 16]), node: 1 };
            let led = |leader| Topology { leader, ..Topology::new(identity) };
            let (topology, mut watched) = watch::channel(led(Some(2)));
            let waits = there(std::future::pending(), &mut watched, 2, true);
            let loses = async {
                topology.send_replace(led(lost));
                std::future::pending::<()>().await;
            };
            let outcome = tokio::select! { outcome = waits => outcome, () = loses => unreachable!() };
            assert!(matches!(outcome, Outcome::Unknown(_)), "{lost:?}");
        }
    }

    #[test]
    fn lengths_are_known_or_not() {
        let with = |name: HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
        };
        assert_eq!(announced(&HeaderMap::new()), Some(0));
        assert_eq!(announced(&with(header::CONTENT_LENGTH, "7")), Some(7));
        assert_eq!(announced(&with(header::CONTENT_LENGTH, "x")), None);
        assert_eq!(announced(&with(header::TRANSFER_ENCODING, "chunked")), None);
    }
}
