//! Writes JSON documents as YAML.
//!
//! Invariant: what a YAML 1.2 reader makes of it is the document that it was made from; whatever a reader could
//! take for something else is quoted. Must never write.

use serde_json::Value;

/// The document, ending with a line break.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(value, 0, &mut out),
        other => {
            out.push_str(&scalar(other));
            out.push('\n');
        }
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

/// A map or a list that is not empty, each entry on lines of its own.
fn block(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                out.push_str(&format!("{indent}{}:", plain_or_quoted(name)));
                below(value, depth + 1, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_empty(item) {
                    out.push_str(&format!("{indent}- {}\n", scalar(item)));
                    continue;
                }
                // The first line of what is below stands behind the dash.
                let mut inner = String::new();
                block(item, depth + 1, &mut inner);
                out.push_str(&format!("{indent}- {}", inner.trim_start_matches(' ')));
            }
        }
        _ => {}
    }
}

fn below(value: &Value, depth: usize, out: &mut String) {
    if is_empty(value) {
        out.push_str(&format!(" {}\n", scalar(value)));
    } else {
        out.push('\n');
        block(value, depth, out);
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// As it is if nothing but a string can be read out of it, else in JSON's quotes, which are YAML's, too.
fn plain_or_quoted(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' ' | '(' | ')' | ';');
    let starts = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let ends = !text.ends_with(' ');
    // What YAML 1.1 took for something else; many readers still do.
    let special = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if starts && ends && text.chars().all(word) && !special.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::text;
    use serde_json::json;

    #[test]
    fn documents_are_written_as_yaml() {
        for (value, expected) in [
            (json!({}), "{}\n"),
            (json!("a"), "a\n"),
            (json!({"a": 1, "b": [], "c": {"d": null}}), "a: 1\nb: []\nc:\n  d: null\n"),
            (json!({"items": [{"a": 1, "b": [2, 3]}, 4]}), "items:\n  - a: 1\n    b:\n      - 2\n      - 3\n  - 4\n"),
            (json!({"t": "true", "n": "1", "e": "", "s": "a: b", "q": "say \"x\"\n"}),
                "t: \"true\"\n\"n\": \"1\"\ne: \"\"\ns: \"a: b\"\nq: \"say \\\"x\\\"\\n\"\n"),
            (json!([[1], {"a": "b c"}]), "- - 1\n- a: b c\n"),
            (json!({"d": "sha256:00", "p": "eng/search", "dash": "-x", "No": 0}), "d: \"sha256:00\"\np: eng/search\ndash: \"-x\"\n\"No\": 0\n"),
        ] {
            // Maps are ordered by name unless the order of a document is kept.
            let text = text(&value);
            let mut lines: Vec<&str> = text.lines().collect();
            let mut wanted: Vec<&str> = expected.lines().collect();
            if value.as_object().is_some_and(|map| map.values().all(|value| !value.is_array() && !value.is_object())) {
                lines.sort_unstable();
                wanted.sort_unstable();
            }
            assert_eq!(lines, wanted, "{value}");
        }
    }
}
