//! `/frameworks/<name>/…`: requests into schedulers.

use super::Api;
use super::error::ApiError;
use super::extract::Path;
use super::lookup;
use super::visit::REQUEST_ID;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tessera_master_core::Principal;
use tessera_types::HttpRequest;
use tessera_types::limits::{HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_REQUEST_BYTES_MAX};

/// The scheduler's root.
pub async fn root(
    api: State<Api>,
    principal: Extension<Principal>,
    Path(framework): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    pass_on(api, principal, framework, "/".into(), request).await
}

/// Anything below the root.
pub async fn call(
    api: State<Api>,
    principal: Extension<Principal>,
    Path((framework, path)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    pass_on(api, principal, framework, format!("/{path}"), request).await
}

async fn pass_on(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    framework: String,
    path: String,
    request: Request,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, framework).await?;
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, HTTP_REQUEST_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::too_large(
                    "body",
                    format!("a scheduler takes at most {HTTP_REQUEST_BYTES_MAX} bytes"),
                )
            } else {
                ApiError::invalid("body", format!("the request broke off: {error}"))
            }
        })?;
    let request = HttpRequest {
        id: 0,
        method: parts.method.as_str().to_owned(),
        path,
        query: parts.uri.query().map(str::to_owned),
        headers: headers_for_guest(&parts.headers)?,
        body: body.to_bytes().to_vec(),
        principal: principal.name.clone(),
        idempotency_key: parts
            .headers
            .get("idempotency-key")
            .map(|value| {
                value.to_str().map(str::to_owned).map_err(|_| {
                    ApiError::invalid("idempotency-key", "visible ASCII characters only")
                })
            })
            .transpose()?,
    };
    let answer = api.node.http(principal, framework, request).await?;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    // A length for a body that these never have would confuse whoever reads the connection.
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut response = Response::new(if bodiless {
        Body::empty()
    } else {
        Body::from(answer.body)
    });
    *response.status_mut() = status;
    for (name, value) in answer.headers {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) else {
            continue;
        };
        if !belongs_to_connection(&name) {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}

/// Headers that speak of one connection and its framing, or of one attempt; neither side's reach the other. The token
/// must not reach a tenant's code at all.
fn belongs_to_connection(name: &HeaderName) -> bool {
    [
        header::AUTHORIZATION,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::COOKIE,
        header::HOST,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ]
    .contains(name)
        || name.as_str() == "keep-alive"
        || *name == REQUEST_ID
}

fn headers_for_guest(headers: &HeaderMap) -> Result<Vec<(String, String)>, ApiError> {
    let mut given = Vec::new();
    for (name, value) in headers {
        if belongs_to_connection(name) {
            continue;
        }
        // What is not text cannot be shown to a guest, whose headers are text.
        let Ok(value) = value.to_str() else { continue };
        if name.as_str().len() + value.len() > HTTP_HEADER_BYTES_MAX {
            return Err(ApiError::too_large(
                name.as_str(),
                format!("at most {HTTP_HEADER_BYTES_MAX} bytes"),
            ));
        }
        given.push((name.as_str().to_owned(), value.to_owned()));
    }
    if given.len() > HTTP_HEADERS_MAX {
        return Err(ApiError::too_large(
            "headers",
            format!("at most {HTTP_HEADERS_MAX}"),
        ));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_never_reaches_a_guest() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer secret"),
        );
        headers.insert(header::COOKIE, HeaderValue::from_static("a=b"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain"));
        let given = headers_for_guest(&headers).unwrap();
        assert_eq!(given, [("accept".to_owned(), "text/plain".to_owned())]);
    }

    #[test]
    fn too_many_headers_are_refused() {
        let mut headers = HeaderMap::new();
        for n in 0..=HTTP_HEADERS_MAX {
            let name = HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_static("1"));
        }
        assert!(headers_for_guest(&headers).is_err());
    }
}
