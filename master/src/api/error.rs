//! The one place where failures become HTTP.
//!
//! Invariants: every refusal has the same envelope: a code, the field, what was attempted and which
//! rule, and the way out. Layers below know nothing of status codes.

use super::codes;
use super::visit::request_id;
use crate::files::FileError;
use crate::inspect::{COME_AGAIN_S, InspectError};
use crate::node_handle::{NoAnswer, NotLeading};
use crate::oci::OciError;
use crate::stage::StageError;
use crate::shelf::IntakeError;
use crate::store::UploadError;
use crate::upkeep::components::FetchError;
use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tessera_master_core::{Forbidden, HttpFailure, LookupError, RequestError, RowsError};

/// A refusal on its way out.
#[derive(Clone, Debug, Serialize)]
pub struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    field: Option<String>,
    message: String,
    hint: Option<String>,
    #[serde(skip)]
    retry_after_s: Option<u32>,
    /// Another master may answer it, or this one in a moment; whether it may have been carried out.
    #[serde(skip)]
    repeat: Option<Fate>,
}

/// What there are lists of.
const LISTED: [&str; 4] = ["agent", "component", "framework", "task"];

/// Code of failures after which nobody here knows whether the request was carried out.
pub const OUTCOME_UNKNOWN: &str = codes::OUTCOME_UNKNOWN;

/// What is known of a request that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was not carried out.
    Untouched,
    /// It may have been.
    Unknown,
}

/// Marks refusals that only mean that the leader changed or stands still: what is safe to repeat is to be repeated.
const REPEAT: HeaderName = HeaderName::from_static("tessera-repeat");
const UNTOUCHED: &str = "untouched";
const UNKNOWN: &str = "unknown";

impl Fate {
    /// What another master's refusal, or one of this master, says.
    pub fn of(answer: &Response) -> Option<Self> {
        let said = answer.headers().get(REPEAT)?;
        Some(if *said == *UNTOUCHED { Self::Untouched } else { Self::Unknown })
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Refusal<'a>,
}

/// A refusal as it is sent.
#[derive(Serialize)]
struct Refusal<'a> {
    #[serde(flatten)]
    error: &'a ApiError,
    /// The same request may succeed later.
    retryable: bool,
    request_id: String,
}

/// The code of a refusal, for records of this master.
#[derive(Clone, Copy)]
pub struct Refused(pub &'static str);

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            field: None,
            message: message.into(),
            hint: None,
            retry_after_s: None,
            repeat: None,
        }
    }

    /// Nobody leads now, or can say so in time: nothing was carried out.
    pub fn no_leader(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "NO_LEADER", message);
        error.retry_after_s = Some(1);
        error.repeat = Some(Fate::Untouched);
        error
    }

    /// What became of it is not known: a repetition under the same key finds out.
    pub fn outcome_unknown(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, OUTCOME_UNKNOWN, message);
        error.retry_after_s = Some(1);
        error.repeat = Some(Fate::Unknown);
        error.hint("send it again under the same Idempotency-Key, or look what became of it")
    }

    /// This master has not joined its cluster yet.
    pub fn joining(state: &str) -> Self {
        let text = format!("this master has not joined its cluster yet: {state}");
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "JOINING", text);
        error.retry_after_s = Some(1);
        error.hint("ask another master of the cluster; the log of this one says more")
    }

    /// It collides with what is there.
    pub fn conflict(field: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "CONFLICT", message);
        error.field = Some(field.to_owned());
        error
    }

    /// What a field names does not exist.
    pub fn missing(field: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message);
        error.field = Some(field.to_owned());
        error
    }

    /// A field breaks a rule.
    pub fn invalid(field: impl Into<String>, rule: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", rule);
        error.field = Some(field.into());
        error
    }

    /// The body did not come to its end.
    pub fn broken_off(error: impl std::fmt::Display) -> Self {
        Self::invalid("body", format!("the request broke off: {error}"))
    }

    /// The thing named does not exist.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", format!("there is no {what} {name}"));
        error.field = Some(what.to_owned());
        match LISTED.contains(&what) {
            true => error.hint(format!("`tessera {what} ls` shows those that there are")),
            false => error,
        }
    }

    /// The path exists, but not for this method.
    pub fn wrong_method(method: &Method) -> Self {
        let text = format!("{method} is not possible here");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "INVALID_ARGUMENT", text)
            .hint("the header `Allow` names the methods that are")
    }

    /// The caller showed no valid token.
    pub fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHENTICATED",
            "the request does not carry the cluster's token",
        )
        .hint("send `Authorization: Bearer <token>`; the token is in the master's data directory, in admin.token")
    }

    /// It cannot be done now, but can be tried again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
        error.retry_after_s = Some(1);
        error
    }

    /// More headers, or bytes of them, than allowed.
    pub fn headers_too_large(rule: impl Into<String>) -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let mut error = Self::new(status, codes::HEADERS_TOO_LARGE, rule);
        error.field = Some("headers".into());
        error
    }

    /// More requests than this master takes of one caller.
    pub fn rate_limited(whose: &str, per_s: u64, retry_after_s: u32) -> Self {
        let text = format!("{whose} may send {per_s} requests a second to this master");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, codes::RATE_LIMITED, text);
        error.retry_after_s = Some(retry_after_s);
        error.hint("wait as long as `Retry-After` says; the operator of the master may allow more: --requests-per-s")
    }

    /// What is in force is not what the caller expects.
    pub fn precondition(rule: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::PRECONDITION_FAILED, codes::PRECONDITION_FAILED, rule);
        error.field = Some("if-match".into());
        error.hint("read it again, and decide anew")
    }

    /// Larger than allowed.
    pub fn too_large(field: &str, rule: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", rule);
        error.field = Some(field.to_owned());
        error
    }

    /// Components have to be signed, and bytes alone are not.
    pub fn unsigned_upload() -> Self {
        let text = "components have to be signed here, and uploaded bytes carry no signature";
        let mut error = Self::new(StatusCode::FORBIDDEN, "PERMISSION_DENIED", text);
        error.field = Some("body".into());
        error.hint("push and sign it in a registry and name that; or the operator allows uploads with --allow-unsigned-uploads")
    }

    /// This master is broken; the log says more.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message)
    }

    /// The field that breaks a rule.
    #[cfg(test)]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// What was attempted, and which rule.
    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Another field is to blame.
    #[must_use]
    pub fn of(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Say what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = Refusal { error: &self, retryable: codes::is_retryable(self.code), request_id: request_id() };
        let mut response = (self.status, Json(Envelope { error: refusal })).into_response();
        response.extensions_mut().insert(Refused(self.code));
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(fate) = self.repeat {
            let said = if fate == Fate::Untouched { UNTOUCHED } else { UNKNOWN };
            response.headers_mut().insert(REPEAT, HeaderValue::from_static(said));
        }
        response
    }
}

impl From<NoAnswer> for ApiError {
    fn from(none: NoAnswer) -> Self {
        Self::unavailable(none.to_string())
    }
}

impl From<NotLeading> for ApiError {
    fn from(error: NotLeading) -> Self {
        Self::no_leader(error.to_string())
    }
}

impl From<Forbidden> for ApiError {
    fn from(forbidden: Forbidden) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "PERMISSION_DENIED",
            forbidden.to_string(),
        )
    }
}

impl From<RowsError> for ApiError {
    fn from(error: RowsError) -> Self {
        tracing::error!(%error, "reading rows for a request");
        Self::internal("the state could not be read")
    }
}

impl From<LookupError> for ApiError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::NotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", error.to_string())
                    .hint("`tessera framework ls` shows them all")
            }
            LookupError::Ambiguous(_) => Self::invalid("framework", error.to_string())
                .hint("use its id, as `tessera framework ls` shows it"),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::Forbidden(forbidden) => forbidden.into(),
            RequestError::NotFound { what, name } => Self::not_found(what, name),
            RequestError::Conflict { field, .. } => {
                let code = if field == "name" {
                    "ALREADY_EXISTS"
                } else {
                    "CONFLICT"
                };
                let mut error = Self::new(StatusCode::CONFLICT, code, text);
                error.field = Some(field.to_string());
                error
            }
            RequestError::Invalid { field, .. } => Self::invalid(field.to_string(), text),
            RequestError::Precondition { .. } => {
                let status = StatusCode::PRECONDITION_FAILED;
                let mut error = Self::new(status, "PRECONDITION_FAILED", text);
                error.field = Some("if-match".into());
                error
            }
            RequestError::Limit { .. } => Self::new(StatusCode::CONFLICT, "CONFLICT", text),
            RequestError::KeyReused { .. } => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                let mut error = Self::new(status, "IDEMPOTENCY_MISMATCH", text);
                error.field = Some("idempotency-key".into());
                error.hint("send another request under another key")
            }
            RequestError::NotLeader => Self::no_leader(text),
            RequestError::Unavailable(_) => Self::outcome_unknown(text),
        }
    }
}

impl From<HttpFailure> for ApiError {
    fn from(failure: HttpFailure) -> Self {
        if failure.code == "NO_LEADER" {
            return Self::no_leader(failure.message);
        }
        if failure.code == OUTCOME_UNKNOWN {
            return Self::outcome_unknown(failure.message);
        }
        let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut error = Self::new(status, failure.code, failure.message);
        error.retry_after_s = failure.retry_after_s;
        error
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Refused(text) => Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", text),
            FileError::NotConnected(_) | FileError::Busy | FileError::TimedOut(_) => {
                Self::unavailable(error.to_string())
            }
        }
    }
}

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Bytes(error) => error.into(),
            UploadError::Io(source) => {
                tracing::error!(%source, "storing an upload");
                Self::internal("the component could not be stored")
            }
        }
    }
}

impl From<IntakeError> for ApiError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::TooLarge { .. } => Self::too_large("body", error.to_string()),
            IntakeError::Empty => Self::invalid("body", error.to_string()),
            IntakeError::WrongDigest { .. } => Self::invalid("digest", error.to_string())
                .hint("the bytes were damaged on the way, or the digest is another file's"),
        }
    }
}

impl From<StageError> for ApiError {
    fn from(error: StageError) -> Self {
        let text = error.to_string();
        match error {
            StageError::TooLarge(_) => Self::too_large("body", text),
            StageError::BrokeOff(_) => Self::invalid("body", text),
            StageError::Full => Self::unavailable(text),
            StageError::Io(source) => {
                tracing::error!(%source, "keeping a request that is to be passed on");
                Self::unavailable(text).hint("send it to the leader itself, or make room on this master's disk")
            }
        }
    }
}

impl From<OciError> for ApiError {
    fn from(error: OciError) -> Self {
        let text = error.to_string();
        let forbidden = |text: String| {
            let mut error = Self::new(StatusCode::FORBIDDEN, "PERMISSION_DENIED", text);
            error.field = Some("source".into());
            error
        };
        match error {
            OciError::Upload(error) => error.into(),
            OciError::NotAllowed(registry) => forbidden(text).hint(format!(
                "the operator lists registries by starting the master with --component-registry {registry}"
            )),
            OciError::PlainBeyondLoopback(_) => Self::invalid("plain_http", text)
                .hint("leave out plain_http; registries elsewhere are reached by TLS"),
            OciError::PrivateAddress(_) => forbidden(text)
                .hint("if it is yours, have the operator list it with --component-registry, too"),
            OciError::NotSigned(_) => forbidden(text)
                .hint("sign it with the key of this cluster: cosign sign --key cosign.key REFERENCE"),
            OciError::NeedsCredentials(_) => forbidden(text)
                .hint("only what everybody may read can be pulled; fetch it yourself and upload the bytes"),
            OciError::NotFound(_) => {
                let mut error = Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", text);
                error.field = Some("source".into());
                error
            }
            OciError::TooLarge { .. } => Self::too_large("source", text)
                .hint("strip the component, or raise the limit: tessera role limits --set component-bytes=…"),
            OciError::NotAComponent(_) => Self::invalid("source", text)
                .hint("push it as a Wasm artifact, for example with `wkg oci push`"),
            OciError::WrongDigest { .. } | OciError::WrongSize { .. } | OciError::BadAnswer(_) => {
                Self::invalid("source", text)
            }
            OciError::NoRoots => {
                Self::unavailable(text).hint("install ca-certificates where the master runs")
            }
            OciError::Unreachable { .. } | OciError::Tls(_) | OciError::TimedOut => {
                Self::unavailable(text)
            }
        }
    }
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        Self::unavailable(error.to_string()).hint("see that a majority of the masters run, and try again")
    }
}

impl From<InspectError> for ApiError {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Unusable(text) => Self::invalid("component", text),
            InspectError::Busy(_) => {
                let mut busy = Self::unavailable(error.to_string());
                busy.retry_after_s = Some(COME_AGAIN_S);
                busy.hint = Some(format!("send it again in {COME_AGAIN_S} s"));
                busy
            }
            InspectError::Spawn { .. } | InspectError::NoVerdict(_) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "judging an upload"
                );
                Self::internal(error.to_string())
            }
        }
    }
}
