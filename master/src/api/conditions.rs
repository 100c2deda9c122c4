//! `ETag` and `If-Match` of what has a version.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderValue, header};

/// The tag of a version.
pub fn tag(version: u64) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&format!("\"{version}\"")).map_err(|error| ApiError::internal(error.to_string()))
}

/// What `If-Match` says, without quotes; nothing if it says nothing.
pub fn if_match(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim);
    let tag = text.and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
    tag.map(Some).ok_or_else(|| ApiError::invalid("if-match", "one tag, as `ETag` gives it"))
}

/// The version that has to be in force.
pub fn expected_version(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(tag) = if_match(headers)? else { return Ok(None) };
    tag.parse().map(Some).map_err(|_| ApiError::invalid("if-match", "one tag, as `ETag` gives it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written() {
        let with = |text: &str| HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_str(text).unwrap())]);
        assert_eq!(expected_version(&HeaderMap::new()).unwrap(), None);
        let headers = HeaderMap::from_iter([(header::IF_MATCH, tag(7).unwrap())]);
        assert_eq!(expected_version(&headers).unwrap(), Some(7));
        for bad in ["7", "\"x\"", "*", "\"1\", \"2\"", "W/\"1\""] {
            assert!(expected_version(&with(bad)).is_err(), "{bad}");
        }
    }
}
