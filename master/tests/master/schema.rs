//! As much of JSON Schema as the document of the API uses: what does not fit is named with its place.

use serde_json::Value;

/// What is wrong with a value, if anything.
pub fn misfit(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(to) = schema["$ref"].as_str() {
        let target = document.pointer(to.strip_prefix('#')?)?;
        return misfit(document, target, value, at);
    }
    if schema == &Value::Bool(true) {
        return None;
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(options) = schema[several].as_array() {
            let all: Vec<String> = options.iter().filter_map(|option| misfit(document, option, value, at)).collect();
            if all.len() == options.len() {
                return Some(all.join(" | "));
            }
        }
    }
    if let Some(wrong) = kind(schema, value) {
        return Some(format!("{at}: {wrong}"));
    }
    if let Some(known) = schema["enum"].as_array().filter(|known| !known.contains(value)) {
        return Some(format!("{at}: {value} is none of {known:?}"));
    }
    match value {
        Value::Object(fields) => object(document, schema, fields, at),
        Value::Array(items) => {
            let of = &schema["items"];
            let each = items.iter().enumerate();
            each.filter(|_| !of.is_null()).find_map(|(n, item)| misfit(document, of, item, &format!("{at}[{n}]")))
        }
        _ => None,
    }
}

fn kind(schema: &Value, value: &Value) -> Option<String> {
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = kinds.contains(&found) || found == "integer" && kinds.contains(&"number");
    (!fits).then(|| format!("{value} is {found}, not {kinds:?}"))
}

fn object(document: &Value, schema: &Value, fields: &serde_json::Map<String, Value>, at: &str) -> Option<String> {
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            return Some(format!("{at}: {required} is missing"));
        }
    }
    // Parts that are written into one object: each field is some part's.
    let parts: Vec<&Value> = schema["allOf"].as_array().into_iter().flatten().collect();
    if let Some(wrong) = parts.iter().find_map(|part| misfit(document, part, &Value::Object(fields.clone()), at)) {
        return Some(wrong);
    }
    let others = &schema["additionalProperties"];
    fields.iter().find_map(|(name, field)| {
        let place = format!("{at}.{name}");
        match (&schema["properties"][name], others) {
            (Value::Null, Value::Bool(false)) => Some(format!("{place} is not in the document")),
            (Value::Null, Value::Object(_)) => misfit(document, others, field, &place),
            (Value::Null, _) if !parts.is_empty() || schema["properties"].is_null() || !schema["$ref"].is_null() => None,
            (Value::Null, _) => Some(format!("{place} is not in the document")),
            (of, _) => misfit(document, of, field, &place),
        }
    })
}

#[test]
fn what_does_not_fit_is_found() {
    use serde_json::json;
    let document = json!({"components": {"schemas": {"A": {
        "type": "object",
        "properties": {"n": {"type": ["integer", "null"]}, "more": {"$ref": "#/components/schemas/A"}},
        "required": ["n"],
    }}}});
    let schema = json!({"$ref": "#/components/schemas/A"});
    for (value, fits) in [
        (json!({"n": 1}), true),
        (json!({"n": null, "more": {"n": 2}}), true),
        (json!({"n": 1.5}), false),
        (json!({}), false),
        (json!({"n": 1, "other": 2}), false),
        (json!({"n": 1, "more": {"n": "x"}}), false),
        (json!([]), false),
    ] {
        assert_eq!(misfit(&document, &schema, &value, "").is_none(), fits, "{value}");
    }
}
