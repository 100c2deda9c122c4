//! The short way of the one request that comes by the thousand: a write of a key of state. It does without
//! the routes and their layers, each of which takes as much time as the write.
//!
//! Invariants: it decides nothing that the route does not decide alike; whoever is not plainly allowed, and
//! whatever is not plainly well-formed or done, goes the ordinary way, which says what is wrong. Whatever may
//! have been done goes there only under its idempotency key. Must never answer with a refusal of its own, but
//! that the fate of a write is not known.

use super::error::ApiError;
use super::leader::{Tried, announced, ensure_known, number};
use super::state::{expected, tag_header};
use super::idempotency::KEY;
use super::{Api, idempotency};
use crate::forward::FORWARDED_BY;
use crate::node_handle::{ANSWER_MAX, Asker, NoAnswer, Requested};
use crate::peer::{Given, Passed};
use axum::http::header::{AUTHORIZATION, ETAG};
use axum::http::{HeaderValue, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::time::Instant;
use tessera_master_core::{
    Action, Expected, Known, Object, Principal, Request, RequestError, authorize,
};
use tessera_types::FrameworkId;
use tessera_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use tessera_wire::v1;

/// Framework and key of a path that is written as it is; what is written in another way has to be read by the
/// route.
fn target(path: &str) -> Option<(&str, &str)> {
    let (framework, key) = path.strip_prefix("/v1/frameworks/")?.split_once("/state/")?;
    let plain = !framework.contains('/') && !path.contains('%');
    (plain && !key.is_empty() && key.len() <= KEY_BYTES_MAX).then_some((framework, key))
}

/// Whether a request is such a write, as far as its head says: then its whole body is wanted.
pub fn is_write(parts: &request::Parts) -> bool {
    parts.method == Method::PUT
        && parts.uri.query().is_none()
        && target(parts.uri.path()).is_some()
        && announced(&parts.headers).is_some_and(|length| length <= VALUE_BYTES_MAX as u64)
}

/// Has the leader do it, if this is plainly possible. A request that gets no answer here goes the ordinary way
/// as it is now: it may have got a key or a number, and somebody may have acted on it.
///
/// What is kept while the answer is not there is little: it is moved and lies about once for every connection.
pub async fn write(api: &Api, parts: &mut request::Parts, body: &Bytes) -> Option<Response> {
    let (leads, leader) = {
        let view = api.node.topology.borrow();
        (view.leads, view.leader)
    };
    let began = Instant::now();
    let answer = if leads {
        let framework = match api.node.names.known(target(parts.uri.path())?.0) {
            Some(framework) => framework,
            None => find(api, parts).await?,
        };
        let sent = Write::of(api, parts, body)?.begin_here(api, framework);
        match sent {
            Some(sent) => sent.answer(api, parts).await,
            None => None,
        }
    } else {
        if parts.headers.contains_key(FORWARDED_BY) {
            return None;
        }
        let leader = leader?;
        // What has no key gets a number, which is written down only for the ordinary way.
        let given = if parts.headers.contains_key(KEY) { None } else { api.writes.number(leader) };
        if given.is_none() {
            ensure_known(api, parts, leader).ok()?;
        }
        let sent = Write::of(api, parts, body)?.begin_there(api, leader, given.as_ref());
        let answer = match sent {
            Some((passed, tag)) => api.writes.answer(passed).await.then(|| done(tag)),
            None => None,
        };
        if let Some(given) = given.filter(|_| answer.is_none()) {
            number(parts, given).ok()?;
        }
        answer
    };
    if answer.is_none() && began.elapsed() >= ANSWER_MAX {
        return Some(ApiError::outcome_unknown(format!("{}; it may have been done", NoAnswer::Late)).into_response());
    }
    if answer.is_none() {
        parts.extensions.insert(Tried);
    }
    answer
}

/// The framework of a path whose name is not remembered. Rare: on the heap, so that no write has room for it.
async fn find(api: &Api, parts: &request::Parts) -> Option<FrameworkId> {
    Box::pin(api.node.names.find(&api.node, target(parts.uri.path())?.0)).await
}

/// It is done.
fn done(tag: HeaderValue) -> Response {
    (StatusCode::NO_CONTENT, [(ETAG, tag)]).into_response()
}

/// A write that nothing speaks against so far.
struct Write<'a> {
    principal: Principal,
    framework: &'a str,
    key: &'a str,
    value: &'a Bytes,
    expected: Expected,
    known: Option<Known>,
    tag: HeaderValue,
}

impl<'a> Write<'a> {
    /// Of a request with its whole body, if it is one.
    fn of(api: &Api, parts: &'a request::Parts, value: &'a Bytes) -> Option<Self> {
        let (framework, key) = target(parts.uri.path())?;
        if value.len() > VALUE_BYTES_MAX
            || !api.token.matches(parts.headers.get(AUTHORIZATION)?.to_str().ok()?)
        {
            return None;
        }
        let principal = Principal::administrator();
        authorize(&principal, Action::Change, &Object::Framework { role: None }).ok()?;
        Some(Self {
            principal,
            framework,
            key,
            value,
            expected: expected(&parts.headers).ok()?,
            known: idempotency::known(parts, value).ok()?,
            tag: tag_header(value).ok()?,
        })
    }

    /// To be done by this master, which leads.
    fn begin_here(self, api: &Api, framework: FrameworkId) -> Option<Begun> {
        let request = Request::WriteState {
            framework,
            key: self.key.to_owned(),
            value: Some(self.value.to_vec()),
            expected: self.expected,
        };
        let known = self.known.is_some();
        let asker = Asker { principal: self.principal, known: self.known };
        let requested = api.node.request_now(asker, request)?;
        Some(Begun { requested, known, tag: self.tag })
    }

    /// To be done by the leader, under this number if it has one.
    fn begin_there(self, api: &Api, leader: u64, given: Option<&Given>) -> Option<(Passed, HeaderValue)> {
        let known = given.map(|given| Known::Number(given.numbered())).or(self.known)?;
        let (once, key, fingerprint) = match known {
            Known::Number(numbered) => (Some(numbered.into()), String::new(), Vec::new()),
            Known::Key(once) => (None, once.key, once.fingerprint.0.to_vec()),
        };
        let write = v1::PassedWrite {
            number: 0,
            framework: self.framework.to_owned(),
            write: Some(v1::WriteState {
                framework: 0,
                key: self.key.to_owned(),
                value: Some(self.value.to_vec()),
                condition: self.expected.condition(),
            }),
            idempotency_key: key,
            fingerprint,
            once,
        };
        Some((api.writes.pass_on(leader, write)?, self.tag))
    }
}

/// A write that this master's loop was asked for.
struct Begun {
    requested: Requested,
    known: bool,
    tag: HeaderValue,
}

impl Begun {
    async fn answer(self, api: &Api, parts: &request::Parts) -> Option<Response> {
        match self.requested.reply().await {
            Ok(_) => Some(done(self.tag)),
            // It may have been done, and nobody would know it again.
            Err(error @ RequestError::Unavailable(_)) if !self.known => {
                Some(ApiError::from(error).into_response())
            }
            Err(RequestError::Unavailable(_) | RequestError::NotLeader) => None,
            Err(_) => {
                api.node.names.forget(target(parts.uri.path())?.0);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    #[test]
    fn only_what_is_plainly_a_write_of_a_key_goes_the_short_way() {
        let key = "k".repeat(KEY_BYTES_MAX);
        let path = |rest: &str| format!("/v1/frameworks/{rest}");
        for (method, path, length, found) in [
            ("PUT", path("a/state/k"), "5", true),
            ("PUT", path("tenant:a/state/k/with/parts"), "0", true),
            ("PUT", path(&format!("a/state/{key}")), "5", true),
            ("PUT", path(&format!("a/state/{key}k")), "5", false),
            ("PUT", path("a/state/"), "5", false),
            ("PUT", path("a/b/state/k"), "5", false),
            ("PUT", path("a/state/k%20"), "5", false),
            ("PUT", path("a/state/k?consistency=stale"), "5", false),
            ("PUT", path("a/config"), "5", false),
            ("PUT", "/frameworks/a/state/k".to_owned(), "5", false),
            ("PUT", path("a/state/k"), "262145", false),
            ("PUT", path("a/state/k"), "x", false),
            ("DELETE", path("a/state/k"), "0", false),
            ("GET", path("a/state/k"), "0", false),
        ] {
            let request = Request::builder().method(method).uri(&path).header("content-length", length);
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(is_write(&parts), found, "{method} {path} {length}");
        }
    }
}
