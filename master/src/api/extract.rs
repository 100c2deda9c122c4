//! What handlers take from a request, and where they say that something was made; a part that cannot be read is
//! refused with the envelope that everything else has.

use super::error::ApiError;
use super::idempotency::BODY_BYTES_MAX;
use super::json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// The query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let found = serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(query));
        found.map(Self).map_err(|error| json::refused(&error.path().to_string(), "query", &error.inner().to_string()))
    }
}

/// The parts of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|found| Self(found.0))
            .map_err(|error| ApiError::invalid("path", error.body_text()))
    }
}

/// A document, whatever the request calls it. No body is the same as `{}`.
pub struct Document<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await.map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::too_large("body", format!("a document has at most {BODY_BYTES_MAX} bytes"))
            } else {
                ApiError::invalid("body", error.body_text())
            }
        })?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        json::read(text).map(Self)
    }
}

/// Where what was made is to be found.
pub fn location(path: &str) -> Result<[(HeaderName, HeaderValue); 1], ApiError> {
    let value = HeaderValue::from_str(path).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok([(header::LOCATION, value)])
}
