//! `ETag` and `If-Match` of what has a version.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// The tag of a version.
pub fn tag(version: u64) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&format!("\"{version}\"")).map_err(|error| ApiError::internal(error.to_string()))
}

/// Headers that make a request depend on what is there.
pub static NAMES: [HeaderName; 2] = [header::IF_MATCH, header::IF_NONE_MATCH];

/// What `If-Match` says, without quotes; nothing if it says nothing.
pub fn if_match(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    if headers.contains_key(header::IF_NONE_MATCH) {
        let rule = "only for keys of state: this is always there";
        return Err(ApiError::invalid("if-none-match", rule).hint("name the version in If-Match"));
    }
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim);
    let tag = text.and_then(|text| text.strip_prefix('"')?.strip_suffix('"')).filter(|tag| !tag.contains('"'));
    tag.map(Some).ok_or_else(|| ApiError::invalid("if-match", "one tag, as `ETag` gives it"))
}

/// A tag that nothing of this kind ever has.
pub fn another() -> ApiError {
    ApiError::precondition("what is in force has another tag")
}

/// The version that has to be in force.
pub fn expected_version(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(tag) = if_match(headers)? else { return Ok(None) };
    tag.parse().map(Some).map_err(|_| another())
}

/// Whether whoever says `If-None-Match` has it already.
pub fn is_known(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(tag), Ok(known)) = (tag.to_str(), known.to_str()) else { return false };
    known.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;

    #[test]
    fn versions_are_read_as_they_are_written() {
        let with = |text: &str| HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_str(text).unwrap())]);
        assert_eq!(expected_version(&HeaderMap::new()).unwrap(), None);
        let headers = HeaderMap::from_iter([(header::IF_MATCH, tag(7).unwrap())]);
        assert_eq!(expected_version(&headers).unwrap(), Some(7));
        for bad in ["7", "*", "\"1\", \"2\"", "W/\"1\""] {
            assert_eq!(expected_version(&with(bad)).unwrap_err().field(), Some("if-match"), "{bad}");
        }
        let other = expected_version(&with("\"x\"")).unwrap_err();
        assert_eq!(other.into_response().status(), axum::http::StatusCode::PRECONDITION_FAILED);
        let absent = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static("*"))]);
        assert_eq!(expected_version(&absent).unwrap_err().field(), Some("if-none-match"));
    }

    #[test]
    fn what_a_reader_has_is_not_sent_again() {
        let tag = tag(7).unwrap();
        for (known, is) in [("\"7\"", true), ("\"6\", \"7\"", true), ("W/\"7\"", true), ("*", true), ("\"8\"", false), ("7", false)] {
            assert_eq!(is_known(&HeaderValue::from_str(known).unwrap(), &tag), is, "{known}");
        }
    }
}
