//! Documents as they are read: an object of known fields, each of them once.
//!
//! Invariant: a refusal names the field, the way to it and the rule that it breaks.

use super::error::ApiError;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use std::collections::HashSet;
use std::fmt;

/// A document of this kind.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(ApiError::invalid("body", "a JSON object").hint(KNOWN));
    }
    parse::<Distinct>(text)?;
    parse(text)
}

/// Where the fields are written down.
const KNOWN: &str = "docs/api.md and GET /v1/openapi.json say what is taken";

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let mut source = serde_json::Deserializer::from_slice(text);
    let found = serde_path_to_error::deserialize(&mut source).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        if inner.is_syntax() || inner.is_eof() {
            return ApiError::invalid("body", format!("a JSON object: {inner}"));
        }
        refused(&path, "body", &inner.to_string())
    })?;
    source.end().map_err(|error| ApiError::invalid("body", format!("one JSON object, and nothing after it: {error}")))?;
    Ok(found)
}

/// A field is not as it has to be.
pub fn refused(path: &str, whole: &'static str, rule: &str) -> ApiError {
    let field = if matches!(path, "" | "." | "?") { whole } else { path };
    ApiError::invalid(field, rule).hint(KNOWN)
}

/// Anything, if it names nothing twice: which of the two is meant nobody can know.
struct Distinct;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Walk)
    }
}

struct Walk;

impl<'de> Visitor<'de> for Walk {
    type Value = Distinct;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("`{key}` is there twice")));
            }
            seen.insert(key);
            map.next_value::<Distinct>()?;
        }
        Ok(Distinct)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Distinct, A::Error> {
        while list.next_element::<Distinct>()?.is_some() {}
        Ok(Distinct)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_str<E>(self, _: &str) -> Result<Distinct, E> {
        Ok(Distinct)
    }

    fn visit_unit<E>(self) -> Result<Distinct, E> {
        Ok(Distinct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        count: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        name: Option<String>,
        #[serde(default)]
        config: BTreeMap<String, String>,
        #[serde(default)]
        list: Vec<Inner>,
    }

    #[test]
    fn what_is_refused_is_named_with_the_way_to_it() {
        for (text, field, rule) in [
            ("[]", "body", "a JSON object"),
            ("7", "body", "a JSON object"),
            (" ", "body", "a JSON object"),
            ("{", "body", "EOF"),
            ("{} {}", "body", "nothing after it"),
            (r#"{"name": 1}"#, "name", "expected a string"),
            (r#"{"nmae": "x"}"#, "nmae", "unknown field `nmae`"),
            (r#"{"config": {"a": 1}}"#, "config.a", "expected a string"),
            (r#"{"config": {"a": "1", "a": "2"}}"#, "config", "`a` is there twice"),
            (r#"{"name": "a", "name": "a"}"#, "body", "`name` is there twice"),
            (r#"{"list": [{"count": 1}, {"count": -1}]}"#, "list[1].count", "expected u32"),
            (r#"{"list": [{"size": 1}]}"#, "list[0].size", "unknown field `size`"),
        ] {
            let error = read::<Outer>(text.as_bytes()).unwrap_err();
            assert_eq!(error.field(), Some(field), "{text}");
            assert!(error.message().contains(rule), "{text}: {}", error.message());
        }
        assert_eq!(read::<Outer>(br#" {"name": "n", "list": [{"count": 3}]}"#).unwrap().list.len(), 1);
    }
}
