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
use crate::node_handle::{ANSWER_MAX, Asker, NoAnswer};
use axum::http::header::{AUTHORIZATION, ETAG};
use axum::http::{HeaderValue, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::time::Instant;
use tessera_master_core::{
    Action, Expected, Known, Object, Principal, Request, RequestError, authorize,
};
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
pub async fn write(api: &Api, parts: &mut request::Parts, body: &Bytes) -> Option<Response> {
    let (leads, leader) = {
        let view = api.node.topology.borrow();
        (view.leads, view.leader)
    };
    let began = Instant::now();
    let answer = if leads {
        Write::of(api, parts, body)?.here(api).await
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
        let mut write = Write::of(api, parts, body)?;
        if let Some(given) = &given {
            write.known = Some(Known::Number(given.numbered()));
        }
        let answer = write.there(api, leader).await;
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

    fn done(self) -> Response {
        (StatusCode::NO_CONTENT, [(ETAG, self.tag)]).into_response()
    }

    /// Done by this master, which leads.
    async fn here(self, api: &Api) -> Option<Response> {
        let names = &api.node.names;
        let request = Request::WriteState {
            framework: names.find(&api.node, self.framework).await?,
            key: self.key.to_owned(),
            value: Some(self.value.to_vec()),
            expected: self.expected,
        };
        let known = self.known.is_some();
        let asker = Asker { principal: self.principal.clone(), known: self.known.clone() };
        match api.node.request(asker, request).await {
            Ok(_) => Some(self.done()),
            // It may have been done, and nobody would know it again.
            Err(error @ RequestError::Unavailable(_)) if !known => {
                Some(ApiError::from(error).into_response())
            }
            Err(RequestError::Unavailable(_) | RequestError::NotLeader) => None,
            Err(_) => {
                names.forget(self.framework);
                None
            }
        }
    }

    /// Done by the leader.
    async fn there(self, api: &Api, leader: u64) -> Option<Response> {
        let (once, key, fingerprint) = match self.known.as_ref()? {
            Known::Number(numbered) => (Some((*numbered).into()), String::new(), Vec::new()),
            Known::Key(once) => (None, once.key.clone(), once.fingerprint.0.to_vec()),
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
        api.writes.pass_on(leader, write).await.then(|| self.done())
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
