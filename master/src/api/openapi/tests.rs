//! The document is what the code says, is whole, and refers to nothing that is not there.

use super::*;

/// Asks for the document to be written anew.
const WRITE: &str = "TESSERA_WRITE_DOCS";

#[test]
fn the_stored_document_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap();
    assert!(stored == text, "docs/openapi.json is not what the code says; write it anew: {WRITE}=1 cargo test -p tessera-master openapi");
}

/// Every operation with its path and method.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &'_ Value)| -> Vec<(String, String)> {
        methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())).collect()
    };
    let all: Vec<(String, String)> = paths.iter().flat_map(of).collect();
    all.into_iter().map(|(path, method)| (path.clone(), method.clone(), &document["paths"][&path][&method])).collect()
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get("$ref") {
                found.push(to.clone());
            }
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_reference_resolves_and_every_definition_is_used() {
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    for to in &found {
        let at = to.strip_prefix('#').expect("references stay in the document");
        assert!(document.pointer(at).is_some(), "{to}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(found.contains(&format!("#{DEFINITIONS}/{name}")), "{name} is used nowhere");
    }
}

#[test]
fn every_operation_says_what_it_is() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name}: its id is another's, too");
        let summary = operation["summary"].as_str().unwrap();
        assert!(summary.len() >= 8 && summary.ends_with('.'), "{name}: {summary}");
        let mut parts: BTreeSet<&str> = BTreeSet::new();
        for parameter in operation["parameters"].as_array().unwrap() {
            let shared = parameter["$ref"].as_str().map(|to| document.pointer(&to[1..]).unwrap());
            let parameter = shared.unwrap_or(parameter);
            let what = parameter["description"].as_str().unwrap_or_default();
            assert!(what.len() > 5, "{name}: parameter {} says nothing", parameter["name"]);
            assert!(parameter["schema"].is_object(), "{name}: {parameter}");
            if parameter["in"] == "path" {
                assert!(parameter["example"].as_str().is_some_and(|example| !example.is_empty()), "{name}: {parameter}");
                parts.insert(parameter["name"].as_str().unwrap());
            }
        }
        let in_path: BTreeSet<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(parts, in_path, "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name} answers nothing");
        assert!(responses.keys().any(|status| status.starts_with('4')), "{name} refuses nothing");
        for response in responses.values() {
            let shared = response["$ref"].as_str().map(|to| document.pointer(&to[1..]).unwrap());
            let response = shared.unwrap_or(response);
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {response}");
        }
    }
    assert!(ids.len() > 60, "{}", ids.len());
}

#[test]
fn examples_fit_their_routes() {
    for endpoint in endpoints() {
        for body in &endpoint.bodies {
            if let Sent::Document(_, example) = body {
                assert!(serde_json::from_str::<Value>(example).is_ok(), "{}: {example}", endpoint.id);
            }
        }
        let mut schemas = Schemas::new();
        let known = endpoint.query.map(|query| query_parameters(&endpoint, query, &mut schemas)).unwrap_or_default();
        let known: BTreeSet<&str> = known.iter().filter_map(|parameter| parameter["name"].as_str()).collect();
        let (path, query) = endpoint.example.split_once('?').unwrap_or((endpoint.example, ""));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, _) = pair.split_once('=').unwrap();
            assert!(known.contains(name), "{}: {name}", endpoint.id);
        }
        let mut filled = endpoint.path.replace("{*", "{");
        for (name, part) in example_parts(&endpoint) {
            filled = filled.replace(&format!("{{{name}}}"), &part);
        }
        assert_eq!(filled, path, "{}", endpoint.id);
    }
}

/// Fields of documents that clients send are described: of each somebody has to know what it does.
#[test]
fn everything_that_is_sent_is_described() {
    let document = document();
    let mut bodies = Vec::new();
    for (_, _, operation) in operations(&document) {
        references(&operation["requestBody"], &mut bodies);
    }
    for body in bodies {
        let schema = document.pointer(body.strip_prefix('#').unwrap()).unwrap();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            assert!(field["description"].is_string(), "{body}: {name} says nothing");
        }
        assert!(schema["properties"].is_null() || schema["additionalProperties"] == false, "{body} takes unknown fields");
    }
}
