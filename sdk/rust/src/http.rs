//! Serving HTTP under `/frameworks/<name>/`: requests, routes and responses.
//!
//! Everything but [`Request::respond`] is free of calls to the host. A request is answered at most
//! once, and its answer leaves when the turn commits. Must never trust anything in a request: paths
//! and queries are decoded leniently, bodies are only parsed on demand.

use std::cell::Cell;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::bindings::tessera::framework::events::{HttpAnswer, HttpRequest};
use crate::host::http as host;

/// Most bytes of a response's body, as the contract says.
pub const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Most bytes of answers in one turn, except for short ones: everything that a turn asks for must
/// stay below 1 MiB, and launches must find room beside the answers.
const MAX_TURN_BYTES: usize = 512 * 1024;
/// Answers up to this many bytes are sent in any case; a batch has at most 256 requests.
const SHORT_BYTES: usize = 1024;

thread_local! {
    static ANSWERED_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Begin to count answers anew; called by the runtime after each turn.
pub(crate) fn reset_answered() {
    ANSWERED_BYTES.set(0);
}

/// A request to the framework.
#[derive(Clone, Debug)]
pub struct Request {
    id: u64,
    /// Upper-case method.
    pub method: String,
    /// Path after the framework's prefix, as it was sent.
    pub path: String,
    /// Query after the `?`, as it was sent.
    pub query: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// At most 1 MiB.
    pub body: Vec<u8>,
    /// Who asks, as authenticated by the cluster.
    pub principal: String,
    segments: Vec<String>,
}

impl Request {
    /// Method and decoded path segments, made for `match`. Empty segments are left out, so `/tasks`
    /// and `/tasks/` are the same route.
    ///
    /// ```ignore
    /// let (method, path) = request.route();
    /// match (method, path.as_slice()) {
    ///     ("GET", []) => index(),
    ///     ("GET", ["tasks", id]) => show(id),
    ///     _ => Response::not_found("no such route"),
    /// }
    /// ```
    pub fn route(&self) -> (&str, Vec<&str>) {
        (
            &self.method,
            self.segments.iter().map(String::as_str).collect(),
        )
    }

    /// The decoded value of `name` in the query; the first one if there are several.
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true) == name).then(|| decode(value, true))
        })
    }

    /// The value of `name` in the query as a number, or `default` without one; an answer with
    /// status 400 if it is no number.
    pub fn query_number(&self, name: &str, default: usize) -> Result<usize, Response> {
        match self.query_value(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                Response::error(
                    400,
                    format!("query parameter `{name}` must be a whole number, not `{text}`"),
                )
            }),
        }
    }

    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; an answer with status 400 that names the fault if it is none.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Response> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Response::error(
                400,
                format!("the body is not the JSON that is expected: {error}"),
            )
        })
    }

    /// Answer the request. A body above 64 KiB is replaced by an error, as the cluster refuses it;
    /// when one turn has answered with 512 KiB already, longer answers become a 503 that asks to
    /// come again.
    pub fn respond(self, response: Response) -> Result<(), Error> {
        let answer = response.limited().within_turn(ANSWERED_BYTES.get());
        ANSWERED_BYTES.set(ANSWERED_BYTES.get().saturating_add(answer.body.len()));
        host::respond(
            self.id,
            &HttpAnswer {
                status: answer.status,
                headers: answer.headers,
                body: answer.body,
            },
        )?;
        Ok(())
    }
}

impl From<HttpRequest> for Request {
    fn from(request: HttpRequest) -> Self {
        let segments = request
            .path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| decode(part, false))
            .collect();
        Self {
            id: request.id,
            method: request.method.to_ascii_uppercase(),
            path: request.path,
            query: request.query.unwrap_or_default(),
            headers: request.headers,
            body: request.body,
            principal: request.principal,
            segments,
        }
    }
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// At most 64 KiB.
    pub body: Vec<u8>,
}

impl Response {
    fn new(content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            body,
        }
    }

    /// 200 with a value as JSON; 500 if the value has no JSON form.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new("application/json", body),
            Err(error) => Self::error(500, error.to_string()),
        }
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// An error status, and as body `{"error": message}`.
    pub fn error(status: u16, message: impl Into<String>) -> Self {
        let body = serde_json::json!({ "error": message.into() })
            .to_string()
            .into_bytes();
        Self::new("application/json", body).status(status)
    }

    /// 404 and what was not found.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::error(404, message)
    }

    /// 503 and when to ask again.
    pub fn retry_after(seconds: u32, message: impl Into<String>) -> Self {
        Self::error(503, message).header("retry-after", seconds.to_string())
    }

    /// The same with another status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with one header more.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn within_turn(self, answered_bytes: usize) -> Self {
        let total = answered_bytes.saturating_add(self.body.len());
        if self.body.len() <= SHORT_BYTES || total <= MAX_TURN_BYTES {
            return self;
        }
        Self::retry_after(1, "too many long answers at once")
    }

    fn limited(self) -> Self {
        if self.body.len() <= MAX_RESPONSE_BYTES {
            return self;
        }
        Self::error(
            500,
            format!(
                "the answer has {} bytes, at most {MAX_RESPONSE_BYTES} can be sent",
                self.body.len()
            ),
        )
    }
}

/// Undo percent-encoding, and `+` for a blank in queries. What is not well formed stays as it is.
fn decode(text: &str, plus_is_blank: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'%' => match tail
                .split_at_checked(2)
                .and_then(|(hex, after)| Some((hex_byte(hex)?, after)))
            {
                Some((byte, after)) => {
                    out.push(byte);
                    rest = after;
                }
                None => out.push(b'%'),
            },
            b'+' if plus_is_blank => out.push(b' '),
            other => out.push(*other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_byte(hex: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    match hex {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{HttpRequest, MAX_RESPONSE_BYTES, MAX_TURN_BYTES, Request, Response, decode};

    fn request(method: &str, path: &str, query: Option<&str>) -> Request {
        Request::from(HttpRequest {
            id: 1,
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: vec![("Accept".to_owned(), "text/plain".to_owned())],
            body: b"{\"n\":3}".to_vec(),
            principal: "admin".to_owned(),
            idempotency_key: None,
        })
    }

    #[test]
    fn routes_match_on_method_and_decoded_segments() {
        let request = request("get", "/tasks/run%2d1%2Fx/", None);
        let (method, path) = request.route();
        assert!(matches!(
            (method, path.as_slice()),
            ("GET", ["tasks", "run-1/x"])
        ));
        assert!(matches!(
            super::tests::request("GET", "/", None).route().1.as_slice(),
            []
        ));
    }

    #[test]
    fn queries_and_headers_are_found() {
        let request = request("GET", "/counts", Some("top=10&name=a+b%21&flag"));
        assert_eq!(request.query_number("top", 1), Ok(10));
        assert_eq!(request.query_number("absent", 1), Ok(1));
        assert_eq!(request.query_number("name", 1).unwrap_err().status, 400);
        assert_eq!(request.query_value("name").as_deref(), Some("a b!"));
        assert_eq!(request.query_value("flag").as_deref(), Some(""));
        assert_eq!(request.header("accept"), Some("text/plain"));
        let body: serde_json::Value = request.json().unwrap();
        assert_eq!(body["n"], 3);
        assert_eq!(request.json::<Vec<u8>>().unwrap_err().status, 400);
    }

    #[test]
    fn malformed_escapes_stay_as_they_are() {
        assert_eq!(decode("100%", false), "100%");
        assert_eq!(decode("%zz%4", false), "%zz%4");
        assert_eq!(decode("%ff", false), "\u{fffd}");
        assert_eq!(decode("a+b", false), "a+b");
    }

    #[test]
    fn long_answers_leave_room_in_the_turn_and_short_ones_always_go() {
        let long = Response::text("x".repeat(2_000));
        assert_eq!(long.clone().within_turn(0), long);
        assert_eq!(long.within_turn(MAX_TURN_BYTES - 1_999).status, 503);
        let short = Response::text("x".repeat(1_000)).status(201);
        assert_eq!(short.clone().within_turn(MAX_TURN_BYTES), short);
    }

    #[test]
    fn an_answer_that_is_too_large_becomes_an_error() {
        let fits = Response::text("x".repeat(MAX_RESPONSE_BYTES));
        assert_eq!(fits.clone().limited(), fits);
        assert_eq!(
            Response::text("x".repeat(MAX_RESPONSE_BYTES + 1))
                .limited()
                .status,
            500
        );
    }
}
