//! Requests that may come again: a key and a fingerprint travel with each to the core, which carries it out
//! once.
//!
//! Invariants: the fingerprint is of everything that the request says, and of nothing else, so that every
//! master finds the same; a repetition whose object is gone by now is answered by what became of the first.
//! Uploads of components need no key: their digest is one.

use super::{Api, conditions};
use super::error::ApiError;
use crate::node_handle::Asker;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tessera_master_core::{Known, Numbered, Once, Principal, Reply};
use tessera_types::Digest;

/// The header that carries the key.
pub const KEY: &str = "idempotency-key";

/// The header that carries the number of a request that another master passed on: its session knows nobody else.
pub const NUMBER: &str = "tessera-request-number";

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 255;

/// Largest document of a request: what axum reads at most when nothing else is said.
pub const BODY_BYTES_MAX: usize = 2 << 20;

/// What became of a request whose object is not there any more.
#[derive(Serialize)]
struct Repeated {
    repeated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// Whether requests to a route are fingerprinted.
pub fn applies(path: &str) -> bool {
    path.starts_with("/v1/") && path != "/v1/components"
}

/// Stands between authentication and the handlers that change something.
pub async fn know(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (request, asker) = match fingerprint(request).await {
        Ok(found) => found,
        Err(error) => return error.into_response(),
    };
    let response = next.run(request).await;
    match asker.known {
        Some(known) if response.status() == StatusCode::NOT_FOUND => {
            repeated(&api, asker.principal, known)
                .await
                .unwrap_or(response)
        }
        _ => response,
    }
}

async fn fingerprint(request: Request) -> Result<(Request, Asker), ApiError> {
    let (mut parts, mut body) = request.into_parts();
    let principal = parts.extensions.get::<Principal>().cloned();
    let mut asker = Asker::from(principal.unwrap_or_else(Principal::anonymous));
    if parts.method != Method::GET && parts.headers.contains_key(KEY) {
        let bytes = to_bytes(body, BODY_BYTES_MAX)
            .await
            .map_err(|_| ApiError::too_large("body", format!("a document has at most {BODY_BYTES_MAX} bytes")))?;
        asker.known = known(&parts, &bytes)?;
        body = Body::from(bytes);
    } else if parts.method != Method::GET {
        asker.known = number(&parts.headers)?.map(Known::Number);
    }
    parts.extensions.insert(asker.clone());
    Ok((Request::from_parts(parts, body), asker))
}

/// How a repetition of a request with its whole body is known; nothing if it has neither a key nor a number.
pub fn known(parts: &request::Parts, bytes: &[u8]) -> Result<Option<Known>, ApiError> {
    let Some(key) = key(&parts.headers)? else {
        return Ok(number(&parts.headers)?.map(Known::Number));
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut said = format!("{} {target}\n", parts.method).into_bytes();
    for name in &conditions::NAMES {
        for value in parts.headers.get_all(name) {
            said.extend_from_slice(&[name.as_str().as_bytes(), b" ", value.as_bytes(), b"\n"].concat());
        }
    }
    said.extend_from_slice(bytes);
    let fingerprint = Digest::of(&said);
    Ok(Some(Known::Key(Once { key, fingerprint })))
}

/// The number as a header has it.
pub fn number_text(numbered: Numbered) -> String {
    let Numbered { session, number, answered_below } = numbered;
    format!("{session:x}.{number}.{answered_below}")
}

fn number(headers: &HeaderMap) -> Result<Option<Numbered>, ApiError> {
    let Some(value) = headers.get(NUMBER) else { return Ok(None) };
    let parse = |text: &str| {
        let (session, rest) = text.split_once('.')?;
        let (number, answered_below) = rest.split_once('.')?;
        Some(Numbered {
            session: u64::from_str_radix(session, 16).ok()?,
            number: number.parse().ok()?,
            answered_below: answered_below.parse().ok()?,
        })
    };
    let found = value.to_str().ok().and_then(parse);
    found.map(Some).ok_or_else(|| ApiError::invalid(NUMBER, "only masters send it to each other"))
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(KEY) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ApiError::invalid(KEY, "visible ASCII characters only"));
    }
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        return Err(ApiError::invalid(KEY, format!("1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(Some(text.to_owned()))
}

async fn repeated(api: &Api, principal: Principal, known: Known) -> Option<Response> {
    let reply = api
        .node
        .query(move |core, _| core.repeated(&principal, &known))
        .await
        .ok()??;
    let (id, version) = match reply {
        Ok(Reply::Framework(id)) => (Some(id.to_string()), None),
        Ok(Reply::Version(version)) => (None, Some(version)),
        Ok(Reply::Component { .. } | Reply::Done) => (None, None),
        Err(error) => return Some(ApiError::from(error).into_response()),
    };
    let repeated = Repeated {
        repeated: true,
        id,
        version,
    };
    Some(Json(repeated).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue, header};

    async fn found(method: &str, uri: &str, key: Option<&str>, body: &str) -> Option<Known> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(key) = key {
            request = request.header(KEY, key);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        fingerprint(request).await.unwrap().1.known
    }

    #[tokio::test]
    async fn everything_that_a_request_says_is_in_its_fingerprint() {
        let first = found("POST", "/v1/x?a=1", Some("k"), "{}").await.unwrap();
        let again = found("POST", "/v1/x?a=1", Some("k"), "{}").await;
        assert_eq!(again, Some(first.clone()));
        let conditional = Request::put("/v1/x?a=1").header(KEY, "k").header(header::IF_MATCH, "*");
        let conditional = fingerprint(conditional.body(Body::from("{}")).unwrap()).await.unwrap();
        let plain = found("PUT", "/v1/x?a=1", Some("k"), "{}").await;
        assert_ne!(conditional.1.known, plain, "a condition is a part of what is said");
        for (method, uri, body) in [
            ("PUT", "/v1/x?a=1", "{}"),
            ("POST", "/v1/y?a=1", "{}"),
            ("POST", "/v1/x?a=2", "{}"),
            ("POST", "/v1/x?a=1", "{ }"),
        ] {
            let other = found(method, uri, Some("k"), body).await.unwrap();
            assert_ne!(other, first, "{method} {uri} {body}");
        }
        assert_eq!(found("POST", "/v1/x", None, "{}").await, None);
        assert_eq!(found("GET", "/v1/x", Some("k"), "").await, None);
    }

    #[test]
    fn keys_are_visible_characters() {
        let read = |text: &str| key(&HeaderMap::from_iter([(HeaderName::from_static(KEY), HeaderValue::from_str(text).unwrap())]));
        assert_eq!(read("a-1").unwrap().as_deref(), Some("a-1"));
        for text in ["", "a b", "\u{e4}", &"k".repeat(256)] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let numbered = Numbered { session: u64::MAX, number: 7, answered_below: 3 };
        let with = |text: &str| HeaderMap::from_iter([(HeaderName::from_static(NUMBER), text.parse().unwrap())]);
        assert_eq!(number(&with(&number_text(numbered))).unwrap(), Some(numbered));
        assert_eq!(number(&HeaderMap::new()).unwrap(), None);
        for text in ["", "1", "1.2", "x.1.1", "1.-1.0", "1.1.1.1"] {
            assert!(number(&with(text)).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn keys_without_or_with_too_many_bytes_are_refused() {
        for key in ["", &"x".repeat(256)] {
            let request = Request::post("/v1/x").header(KEY, key);
            let request = request.body(Body::empty()).unwrap();
            assert!(fingerprint(request).await.is_err(), "{} bytes", key.len());
        }
    }
}
