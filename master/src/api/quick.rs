//! The short way of the one request that comes by the thousand: a write of a key of state. It does without
//! the route's layers, each of which takes as much time as the write.
//!
//! Invariants: it decides nothing that the route does not decide alike; whoever is not plainly allowed, and
//! whatever is not plainly well-formed or done, goes the ordinary way, which says what is wrong. Must never
//! answer with a refusal of its own, but that the fate of a write is not known.

use super::error::ApiError;
use super::state::{expected, tag_header};
use super::{Api, idempotency};
use crate::node_handle::Asker;
use axum::http::header::{AUTHORIZATION, ETAG};
use axum::http::{HeaderValue, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tessera_master_core::{
    Action, Expected, Object, Once, Principal, Request, RequestError, authorize,
};
use tessera_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use tessera_wire::v1;

/// A write that nothing speaks against so far.
pub struct Write {
    principal: Principal,
    framework: String,
    key: String,
    value: Bytes,
    expected: Expected,
    once: Option<Once>,
    tag: HeaderValue,
}

impl Write {
    /// Of a request with its whole body, if it is one.
    pub fn of(api: &Api, parts: &request::Parts, body: &Bytes) -> Option<Self> {
        if parts.method != Method::PUT || body.len() > VALUE_BYTES_MAX || parts.uri.query().is_some() {
            return None;
        }
        let path = parts.uri.path().strip_prefix("/v1/frameworks/")?;
        let (framework, key) = path.split_once("/state/")?;
        if framework.contains('/') || !api.token.matches(parts.headers.get(AUTHORIZATION)?.to_str().ok()?) {
            return None;
        }
        let principal = Principal::administrator();
        authorize(&principal, Action::Change, &Object::Framework { role: None }).ok()?;
        // What is written in another way than it is has to be read by the route.
        if path.contains('%') || key.is_empty() || key.len() > KEY_BYTES_MAX {
            return None;
        }
        Some(Self {
            principal,
            framework: framework.to_owned(),
            key: key.to_owned(),
            value: body.clone(),
            expected: expected(&parts.headers).ok()?,
            once: idempotency::once(parts, body).ok()?,
            tag: tag_header(body).ok()?,
        })
    }

    fn done(self) -> Response {
        (StatusCode::NO_CONTENT, [(ETAG, self.tag)]).into_response()
    }

    /// Done by this master, which leads.
    pub async fn here(self, api: &Api) -> Option<Response> {
        let names = &api.node.names;
        let framework = names.find(&api.node, self.framework.clone()).await?;
        let request = Request::WriteState {
            framework,
            key: self.key.clone(),
            value: Some(self.value.to_vec()),
            expected: self.expected,
        };
        let asker = Asker { principal: self.principal.clone(), once: self.once.clone() };
        match api.node.request(asker, request).await {
            Ok(_) => Some(self.done()),
            Err(error @ (RequestError::Unavailable(_) | RequestError::NotLeader)) => {
                Some(ApiError::from(error).into_response())
            }
            Err(_) => {
                names.forget(&self.framework);
                None
            }
        }
    }

    /// Done by the leader.
    pub async fn there(self, api: &Api, leader: u64) -> Option<Response> {
        let once = self.once.as_ref()?;
        let write = v1::PassedWrite {
            number: 0,
            framework: self.framework.clone(),
            write: Some(v1::WriteState {
                framework: 0,
                key: self.key.clone(),
                value: Some(self.value.to_vec()),
                condition: self.expected.condition(),
            }),
            idempotency_key: once.key.clone(),
            fingerprint: once.fingerprint.0.to_vec(),
        };
        api.writes.pass_on(leader, write).await.then(|| self.done())
    }
}
