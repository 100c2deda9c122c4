//! A thin client of the REST API: addresses, token, retries and the error envelope.
//!
//! Invariants: a request is sent again only when the master cannot have acted on it, or when acting
//! twice is the same as acting once; retries end after [`RETRY_FOR`]. Must never decide anything.

use crate::connection::ConnectionArgs;
use crate::error::{CliError, Kind};
use crate::output;
use crate::wait::Meter;
use reqwest::{Method, Response, Url};
use serde_json::Value;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a command waits for a master that does not answer or is not ready: longer than a
/// restart of one takes, short enough for a person.
pub const RETRY_FOR: Duration = Duration::from_secs(10);
/// Between attempts, unless the master says otherwise.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// Longest pause that a master can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// Time for a connection to loopback or to a near network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than a scheduler may take for an answer (30 s).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes of an answer that is held in memory: lists of 1,000 tasks are far below it.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// For one of several masters: somewhat longer than masters try themselves (10 s).
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);
/// After so long a person is told that masters are waited for.
const SAID_AFTER: Duration = Duration::from_secs(2);
/// How long a file may take: the largest recording at the pace of a slow line.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);

/// Bytes of an upload between two looks at how much has gone.
const UPLOAD_PIECE_BYTES: usize = 64 << 10;

/// What a request carries besides its path.
#[derive(Clone, Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// A JSON document.
    Json(Value),
    /// Bytes as they are.
    Bytes(Vec<u8>),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    url: Url,
    body: Body,
    headers: Vec<(&'static str, String)>,
    retry_for: Duration,
    /// Whether acting twice is the same as acting once.
    repeatable: bool,
    /// How long the whole exchange may take; none is for ever.
    within: Option<Duration>,
    /// What people are told while the bytes are on their way.
    progress: Option<String>,
}

impl Request {
    /// Its method, and the parts of its path as they are sent.
    pub fn route(&self) -> (&str, Vec<&str>) {
        (self.method.as_str(), self.url.path_segments().map(Iterator::collect).unwrap_or_default())
    }

    /// With a query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl ToString) -> Self {
        self.url
            .query_pairs_mut()
            .append_pair(name, &value.to_string());
        self
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a JSON document.
    #[must_use]
    pub fn json(mut self, value: Value) -> Self {
        self.body = Body::Json(value);
        self
    }

    /// With bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: Vec<u8>) -> Self {
        self.body = Body::Bytes(bytes);
        self
    }

    /// Show people how much of the bytes has gone, under these words.
    #[must_use]
    pub fn progress(mut self, what: impl Into<String>) -> Self {
        self.progress = Some(what.into());
        self
    }

    /// Acting twice on it is the same as acting once.
    #[must_use]
    pub fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// Acting twice on it would be something else than acting once.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.repeatable = false;
        self
    }

    /// Try for so long.
    #[must_use]
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = time;
        self
    }

    /// The answer is a stream without an end.
    #[must_use]
    pub fn endless(mut self) -> Self {
        self.within = None;
        self
    }

    /// The whole exchange may take so long.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }
}

/// Unlike any other: made from the time, this process, and the addresses that it was given.
pub fn idempotency_key(prefix: &str) -> String {
    use std::hash::{BuildHasher, Hasher};
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    // Seeded by the operating system in every process.
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    format!("{prefix}-{time:x}-{:x}-{random:x}", std::process::id())
}

/// A connection to the masters, one at a time.
#[derive(Clone, Debug)]
pub struct Client {
    bases: Vec<Url>,
    /// Which of them is asked; any of them answers, and the next one is when it does not.
    current: Arc<AtomicUsize>,
    token: String,
    http: reqwest::Client,
}

impl Client {
    /// From flags and environment.
    ///
    /// # Errors
    /// When the address is wrong or there is no token.
    pub fn connect(args: &ConnectionArgs) -> Result<Self, CliError> {
        let connection = args.resolve()?;
        Self::to(connection.bases()?, connection.token()?)
    }

    /// To this address with this token.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: Url, token: String) -> Result<Self, CliError> {
        Self::to(vec![base], token)
    }

    /// To the first of these addresses that answers.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    fn to(bases: Vec<Url>, token: String) -> Result<Self, CliError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| CliError::failed(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self {
            bases,
            current: Arc::default(),
            token,
            http,
        })
    }

    /// The one that is asked now.
    fn base(&self) -> &Url {
        // There is at least one.
        &self.bases[self.current.load(Ordering::Relaxed) % self.bases.len()]
    }

    /// The same at the master that is asked now.
    fn at_current(&self, url: &Url) -> Url {
        let mut url = url.clone();
        let base = self.base();
        // Both are http URLs with a host, of which neither can fail.
        let _ = url.set_host(base.host_str());
        let _ = url.set_port(base.port());
        url
    }

    fn request(&self, method: Method, segments: &[&str]) -> Request {
        let mut url = self.base().clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        // The masters know a change by its key, and carry it out once.
        let keyed = method != Method::GET && segments.first() == Some(&"v1");
        let repeatable = keyed || method == Method::GET || method == Method::PUT;
        let headers = if keyed {
            vec![("idempotency-key", idempotency_key("cli"))]
        } else {
            Vec::new()
        };
        Request {
            method,
            url,
            body: Body::Empty,
            headers,
            retry_for: RETRY_FOR,
            repeatable,
            within: Some(REQUEST_TIMEOUT),
            progress: None,
        }
    }

    /// Read what stands under these path segments.
    pub fn get(&self, segments: &[&str]) -> Request {
        self.request(Method::GET, segments)
    }

    /// Post to these path segments.
    pub fn post(&self, segments: &[&str]) -> Request {
        self.request(Method::POST, segments)
    }

    /// Replace what stands under these path segments.
    pub fn put(&self, segments: &[&str]) -> Request {
        self.request(Method::PUT, segments)
    }

    /// Change what stands under these path segments.
    pub fn patch(&self, segments: &[&str]) -> Request {
        self.request(Method::PATCH, segments)
    }

    /// Delete what stands under these path segments.
    pub fn delete(&self, segments: &[&str]) -> Request {
        self.request(Method::DELETE, segments)
    }

    /// Send, and hand back whatever answer says success.
    ///
    /// # Errors
    /// The master's refusal, or that nobody answered in time.
    pub async fn send(&self, request: Request) -> Result<Response, CliError> {
        let began = Instant::now();
        let deadline = began + request.retry_for;
        let mut said = false;
        // What a master said says more than that another one does not answer.
        let mut telling: Option<CliError> = None;
        loop {
            let (error, pause) = match self.attempt(&request).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let pause = retry_after(&response);
                    (self.refusal(response).await, pause)
                }
                Err(error) => {
                    // What never reached the master can be sent again, whatever it is.
                    let again = error.is_connect() || request.repeatable;
                    (self.unreachable(&error), again.then_some(RETRY_EVERY))
                }
            };
            // Another master may be well.
            if self.bases.len() > 1 && pause.is_some() {
                self.current.fetch_add(1, Ordering::Relaxed);
            }
            let told = error.status.is_some();
            let Some(pause) = pause.filter(|pause| Instant::now() + *pause < deadline) else {
                return Err(telling.filter(|_| !told && pause.is_some()).unwrap_or(error));
            };
            if !said && began.elapsed() >= SAID_AFTER && output::is_watched() {
                output::note(&format!("{}; trying for {} s", error.message, request.retry_for.as_secs()));
                said = true;
            }
            if told {
                telling = Some(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Response, reqwest::Error> {
        let mut builder = self
            .http
            .request(request.method.clone(), self.at_current(&request.url))
            .bearer_auth(&self.token);
        if let Some(time) = request.within {
            // A master that stands still is no reason to wait while others may be well; where a scheduler or an upload
            // takes its time, that was said.
            let other = self.bases.len() > 1 && request.repeatable && request.url.path().starts_with("/v1/");
            builder = builder.timeout(if other && time == REQUEST_TIMEOUT { ATTEMPT_TIMEOUT } else { time });
        }
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        match &request.body {
            Body::Empty => builder,
            Body::Json(value) => builder.json(value),
            Body::Bytes(bytes) => match &request.progress {
                Some(what) if output::is_watched() => {
                    builder.header("content-length", bytes.len()).body(measured(what.clone(), bytes))
                }
                _ => builder.body(bytes.clone()),
            },
        }
        .send()
        .await
    }

    /// Send, and read the answer as JSON.
    ///
    /// # Errors
    /// As [`Self::send`], and when the answer is no JSON.
    pub async fn json(&self, request: Request) -> Result<Value, CliError> {
        let what = format!("{} {}", request.method, request.url.path());
        let response = self.send(request).await?;
        let bytes = self.body(response).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| CliError::failed(format!("{what} was not answered in JSON: {error}")))
    }

    /// The whole body of an answer.
    ///
    /// # Errors
    /// When it breaks off, or is too large to be held.
    pub async fn body(&self, response: Response) -> Result<Vec<u8>, CliError> {
        if response
            .content_length()
            .is_some_and(|bytes| bytes > ANSWER_BYTES_MAX)
        {
            return Err(CliError::failed(format!(
                "the answer has more than {ANSWER_BYTES_MAX} bytes"
            )));
        }
        response
            .bytes()
            .await
            .map(|bytes| bytes.to_vec())
            .map_err(|error| self.unreachable(&error))
    }

    /// Write what stands under these path segments to a file piece by piece; how many bytes it was.
    ///
    /// # Errors
    /// The master's refusal, that the answer broke off, or that the file cannot be written.
    pub async fn save(&self, request: Request, file: &mut File) -> Result<u64, CliError> {
        let mut response = self.send(request.within(FILE_TIMEOUT)).await?;
        let mut written = 0;
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            written += piece.len() as u64;
            file.write_all(&piece)
                .map_err(|error| CliError::failed(format!("cannot write the file: {error}")))?;
        }
        Ok(written)
    }

    /// An answer that says no, in the words of the master or of a scheduler.
    async fn refusal(&self, response: Response) -> CliError {
        let status = response.status();
        let path = response.url().path().to_owned();
        let text = response.text().await.unwrap_or_default();
        let error = match serde_json::from_str::<Value>(&text) {
            Ok(value) => envelope(&value, status.as_u16()),
            Err(_) => None,
        };
        let error = error.unwrap_or_else(|| {
            let text = text.trim();
            let told = if text.is_empty() {
                "no explanation".to_owned()
            } else {
                text.chars().take(500).collect()
            };
            CliError::new(
                Kind::of_status(status.as_u16()),
                format!("{path} was answered with {status}: {told}"),
            )
        });
        let error = CliError {
            status: Some(status.as_u16()),
            ..error
        };
        match (status.as_u16(), &error.hint) {
            (401, None) => error.hint("the token is not that of this cluster: see --token-file"),
            _ => error,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let what = if error.is_timeout() {
            "in time".to_owned()
        } else {
            format!("({cause})")
        };
        CliError::new(Kind::Unavailable, format!("no answer from {} {what}", self.base().as_str().trim_end_matches('/')))
            .hint("is the cluster running? `tessera dev` starts one; --address or TESSERA_ADDRESS names another")
    }
}

/// Bytes that tell how many of them have gone.
fn measured(what: String, bytes: &[u8]) -> reqwest::Body {
    let all = bytes.len() as u64;
    let pieces: Vec<Vec<u8>> = bytes.chunks(UPLOAD_PIECE_BYTES).map(<[u8]>::to_vec).collect();
    let (mut meter, mut gone) = (Meter::new(), 0_u64);
    let pieces = pieces.into_iter().map(move |piece| {
        gone += piece.len() as u64;
        meter.show_bytes(&what, gone, all);
        Ok::<_, std::io::Error>(piece)
    });
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

/// Reads Tessera's envelope, and the plain `{"error": "text"}` of many schedulers.
fn envelope(value: &Value, status: u16) -> Option<CliError> {
    let error = value.get("error")?;
    let kind = Kind::of_status(status);
    if let Some(text) = error.as_str() {
        return Some(CliError::new(kind, text));
    }
    let message = error.get("message")?.as_str()?;
    let message = match error.get("field").and_then(Value::as_str) {
        Some(field) if !message.contains(field) => format!("{field}: {message}"),
        _ => message.to_owned(),
    };
    // A fault of a master is looked for in its log by this.
    let message = match error.get("request_id").and_then(Value::as_str) {
        Some(id) if kind == Kind::Failed => format!("{message} (request {})", output::clean(id)),
        _ => message,
    };
    let error_hint = error.get("hint").and_then(Value::as_str);
    let told = CliError::new(kind, message);
    Some(match error_hint {
        Some(hint) => told.hint(hint),
        None => told,
    })
}

/// When to come again after an answer that says that nothing was carried out.
fn retry_after(response: &Response) -> Option<Duration> {
    // Not ready, or asked too often.
    if response.status() != 503 && response.status() != 429 {
        return None;
    }
    let asked = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    Some(
        asked
            .map_or(RETRY_EVERY, Duration::from_secs)
            .min(RETRY_AFTER_MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::{Client, envelope};
    use crate::error::Kind;
    use serde_json::json;
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    #[test]
    fn segments_cannot_leave_their_place() {
        let client = Client::new("http://h:1/".parse().unwrap(), "t".into()).unwrap();
        let request = client
            .get(&["v1", "tasks", "a/../b?c", "x y"])
            .query("state", "A&B=C");
        assert_eq!(
            request.url.as_str(),
            "http://h:1/v1/tasks/a%2F..%2Fb%3Fc/x%20y?state=A%26B%3DC"
        );
    }

    #[test]
    fn changes_have_keys_of_their_own_and_reads_have_none() {
        let client = Client::new("http://h:1/".parse().unwrap(), "t".into()).unwrap();
        let keys = [
            client.post(&["v1", "x"]),
            client.delete(&["v1", "x"]),
            client.get(&["v1", "x"]),
            client.post(&["frameworks", "x"]),
        ]
        .map(|request| (request.headers, request.repeatable));
        assert_eq!(keys[0].0[0].0, "idempotency-key");
        assert_ne!(keys[0], keys[1]);
        assert_eq!(keys[2], (Vec::new(), true));
        assert_eq!(keys[3], (Vec::new(), false));
    }

    #[tokio::test]
    async fn the_error_that_says_most_is_told() {
        // One master answers that nobody leads, and nobody is at the other address.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let body = r#"{"error": {"code": "NO_LEADER", "message": "no master leads the cluster now"}}"#;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = [0; 4_096];
                let _ = stream.read(&mut bytes);
                let head = format!("HTTP/1.1 503 Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        let bases = vec![format!("http://{here}").parse().unwrap(), "http://127.0.0.1:1".parse().unwrap()];
        let client = Client::to(bases, "t".into()).unwrap();
        for retry_ms in [600, 800, 1_000] {
            let request = client.get(&["v1", "agents"]).retry_for(Duration::from_millis(retry_ms));
            let error = client.send(request).await.unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (Kind::Unavailable, "no master leads the cluster now"));
        }
    }

    #[test]
    fn envelopes_become_errors() {
        let value = json!({"error": {"code": "INVALID_ARGUMENT", "field": "role", "message": "too long", "hint": "cut it"}});
        let error = envelope(&value, 400).unwrap();
        assert_eq!(
            (error.kind, error.message.as_str(), error.hint.as_deref()),
            (Kind::Refused, "role: too long", Some("cut it"))
        );
        let fault = json!({"error": {"message": "a fault", "request_id": "r1"}});
        assert_eq!(envelope(&fault, 500).unwrap().message, "a fault (request r1)");
        assert_eq!(envelope(&fault, 404).unwrap().message, "a fault");
        assert_eq!(
            envelope(&json!({"error": "no"}), 404).unwrap().kind,
            Kind::NotFound
        );
        for not_ours in [
            json!({}),
            json!({"error": 1}),
            json!([]),
            json!({"error": {}}),
        ] {
            assert!(envelope(&not_ours, 500).is_none(), "{not_ours}");
        }
    }
}
