//! `/v1/frameworks/{framework}/state`: the keys of a framework's state, read and written by users.
//!
//! Invariants: a value is bytes and nothing is said of what they mean; its tag (`ETag`) is a function of
//! its bytes alone, so that every master says the same; what is written is one replicated command.

use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Path, Query};
use super::paging::List;
use super::{Api, lookup};
use crate::node_handle::Asker;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::{Expected, Request, RequestError, RowsError, TAG_BYTES, value_tag};
use tessera_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Keys of one answer when nothing is said, and at most.
const LIST_MAX: usize = 1_000;

/// Rows of values that are read at once: a value has up to 256 KiB.
const PAGE: usize = 64;

/// Which keys.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateQuery {
    /// Only keys that begin like this.
    prefix: Option<String>,
    /// Only keys after this one: `next` of the page before.
    after: Option<String>,
    /// Keys of one page, 1 to 1000.
    limit: Option<usize>,
}

/// A key, without its value.
#[derive(Serialize, JsonSchema)]
pub struct KeyJson {
    /// The key.
    key: String,
    /// Of its value.
    bytes: usize,
    /// Its value's tag.
    etag: String,
}

/// How a value is named in `ETag`, `If-Match` and lists.
fn tag_text(value: &[u8]) -> String {
    format!("\"{}\"", hex(&value_tag(value)))
}

/// Bytes as two digits each.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |half: u8| DIGITS[usize::from(half & 0xf)];
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(*byte));
    }
    text
}

pub fn tag_header(value: &[u8]) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&tag_text(value)).map_err(|error| ApiError::internal(error.to_string()))
}

fn checked_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(ApiError::invalid("key", format!("1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Keys of the state, a page at a time.
pub async fn list(
    State(api): State<Api>,
    Path(text): Path<String>,
    Query(query): Query<StateQuery>,
) -> Result<Json<List<KeyJson>>, ApiError> {
    let limit = query.limit.unwrap_or(LIST_MAX);
    if limit == 0 || limit > LIST_MAX {
        return Err(ApiError::invalid("limit", format!("1 to {LIST_MAX}")));
    }
    let framework = lookup::framework(&api.node, text).await?;
    let prefix = query.prefix.unwrap_or_default();
    let mut after = query.after.unwrap_or_default();
    let keys = api
        .node
        .query_status(move |core, rows, status| {
            let mut items: Vec<KeyJson> = Vec::new();
            let mut next = None;
            // The first key of a prefix may be the prefix itself, which comes after nothing of its own.
            if after.as_str() < prefix.as_str() {
                after.clone_from(&prefix);
                if let Some(value) = core.state_value(framework, &prefix, rows)?.filter(|_| !prefix.is_empty()) {
                    items.push(shown(prefix.clone(), &value));
                }
            }
            'pages: while next.is_none() {
                let from = (!after.is_empty()).then_some(after.as_str());
                let page = core.state_page(framework, from, PAGE, rows)?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.key);
                for entry in page {
                    if !entry.key.starts_with(&prefix) {
                        break 'pages;
                    }
                    if items.len() >= limit {
                        next = items.last().map(|last| last.key.clone());
                        break 'pages;
                    }
                    items.push(shown(entry.key, &entry.value.unwrap_or_default()));
                }
            }
            Ok::<_, RowsError>(List { index: status.applied.index, items, next })
        })
        .await??;
    Ok(Json(keys))
}

fn shown(key: String, value: &[u8]) -> KeyJson {
    KeyJson { key, bytes: value.len(), etag: tag_text(value) }
}

/// The value of a key.
pub async fn get(
    State(api): State<Api>,
    Path((text, key)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    checked_key(&key)?;
    let framework = lookup::framework(&api.node, text).await?;
    let asked = key.clone();
    let value = api.node.query(move |core, rows| core.state_value(framework, &asked, rows)).await??;
    let value = value.ok_or_else(|| ApiError::not_found("key", format!("{key:?} in this state")))?;
    let tag = tag_header(&value)?;
    let bytes = HeaderValue::from_static("application/octet-stream");
    let headers = [(header::ETAG, tag), (header::CONTENT_TYPE, bytes)];
    Ok((headers, value).into_response())
}

/// Write a key.
pub async fn put(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path((text, key)): Path<(String, String)>,
    Query(dry): Query<DryRun>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let value = match Limited::new(body, VALUE_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes().to_vec(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ApiError::too_large("body", format!("a value has at most {VALUE_BYTES_MAX} bytes")));
        }
        Err(error) => return Err(ApiError::invalid("body", error.to_string())),
    };
    let tag = tag_header(&value)?;
    let foreseen = write(&api, asker, (text, key), &headers, Some(value), &dry).await?;
    Ok(foreseen.unwrap_or_else(|| (StatusCode::NO_CONTENT, [(header::ETAG, tag)]).into_response()))
}

/// Delete a key; one that is not there is no error.
pub async fn delete(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(path): Path<(String, String)>,
    Query(dry): Query<DryRun>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let foreseen = write(&api, asker, path, &headers, None, &dry).await?;
    Ok(foreseen.unwrap_or_else(|| StatusCode::NO_CONTENT.into_response()))
}

async fn write(
    api: &Api,
    asker: Asker,
    (text, key): (String, String),
    headers: &HeaderMap,
    value: Option<Vec<u8>>,
    dry: &DryRun,
) -> Result<Option<Response>, ApiError> {
    checked_key(&key)?;
    let expected = expected(headers)?;
    let framework = lookup::framework(&api.node, text).await?;
    let absent = expected == Expected::Absent;
    let request = Request::WriteState { framework, key: key.clone(), value: value.clone(), expected };
    if !dry.asked() {
        return match api.node.request(asker, request).await {
            Err(RequestError::Precondition { .. }) if absent => {
                Err(ApiError::precondition("the key has a value already").of("if-none-match"))
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(None),
        };
    }
    let asked = key.clone();
    let there = api.node.query(move |core, rows| core.state_value(framework, &asked, rows)).await??;
    let events = dry_run::foresee(api, asker, request).await?;
    Ok(Some(dry_run::answer(vec![foreseen(&key, there.as_deref(), value.as_deref())], events)))
}

/// What a write would do to a key.
fn foreseen(key: &str, there: Option<&[u8]>, value: Option<&[u8]>) -> String {
    let bytes = |value: &[u8]| if value.len() == 1 { "1 byte".to_owned() } else { format!("{} bytes", value.len()) };
    match (there, value) {
        (None, None) => format!("nothing: there is no key {key:?}"),
        (Some(there), Some(value)) if there == value => format!("nothing: the key {key:?} has this value"),
        (None, Some(value)) => format!("add the key {key:?} with {}", bytes(value)),
        (Some(there), Some(value)) => format!("write the key {key:?}: {} in place of {}", bytes(value), bytes(there)),
        (Some(there), None) => format!("delete the key {key:?} and its {}", bytes(there)),
    }
}

/// What the caller says must be there.
pub fn expected(headers: &HeaderMap) -> Result<Expected, ApiError> {
    let said = |name: HeaderName| {
        let text = headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
        text.map(str::to_owned)
    };
    match (said(header::IF_MATCH), said(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expected::Anything),
        (Some(text), None) if text == "*" => Ok(Expected::Present),
        (Some(text), None) => parse_tag(&text).map(Expected::Same).ok_or_else(|| {
            ApiError::invalid("if-match", "one tag of a key of state, as `ETag` gives it, or `*`: the key has a value")
        }),
        (None, Some(text)) if text == "*" => Ok(Expected::Absent),
        (None, Some(_)) => {
            Err(ApiError::invalid("if-none-match", "only `*`: the key has no value yet"))
        }
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("if-none-match", "not together with `If-Match`"))
        }
    }
}

fn parse_tag(text: &str) -> Option<[u8; TAG_BYTES]> {
    let hex = text.strip_prefix('"')?.strip_suffix('"')?;
    if hex.len() != 2 * TAG_BYTES || !hex.is_ascii() {
        return None;
    }
    let mut tag = [0; TAG_BYTES];
    for (at, byte) in tag.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_foreseen_in_words() {
        for (there, value, said) in [
            (None, None, "nothing: there is no key \"k\""),
            (Some("ab"), Some("ab"), "nothing: the key \"k\" has this value"),
            (None, Some("ab"), "add the key \"k\" with 2 bytes"),
            (Some("a"), Some("ab"), "write the key \"k\": 2 bytes in place of 1 byte"),
            (Some("a"), None, "delete the key \"k\" and its 1 byte"),
        ] {
            assert_eq!(foreseen("k", there.map(str::as_bytes), value.map(str::as_bytes)), said);
        }
    }

    #[test]
    fn conditions_are_read_or_refused() {
        let tag = tag_text(b"value");
        let same = Ok(Expected::Same(value_tag(b"value")));
        for (if_match, if_none_match, found) in [
            (None, None, Ok(Expected::Anything)),
            (Some("*"), None, Ok(Expected::Present)),
            (None, Some("*"), Ok(Expected::Absent)),
            (Some(tag.as_str()), None, same),
            (Some("\"abc\""), None, Err(())),
            (Some(tag.trim_matches('"')), None, Err(())),
            (None, Some(tag.as_str()), Err(())),
            (Some("*"), Some("*"), Err(())),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::IF_MATCH, if_match), (header::IF_NONE_MATCH, if_none_match)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            assert_eq!(expected(&headers).map_err(|_| ()), found, "{if_match:?} {if_none_match:?}");
        }
    }
}
