//! The document of the API, OpenAPI 3.1: made of the table of routes and the types of its handlers.
//!
//! Invariant: what is served is what the code says, and a test holds what is stored in `docs/openapi.json` equal to it.

use super::codes::{self, CODES};
use super::endpoint::{Answered, Endpoint, SchemaOf, Sent};
use super::idempotency;
use super::leader::is_local;
use super::paging::PAGE_MAX;
use super::table::endpoints;
use axum::http::Method;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// As it is served.
pub fn text() -> &'static str {
    // Made of maps and texts, which always encode.
    static TEXT: LazyLock<String> = LazyLock::new(|| serde_json::to_string(&document()).unwrap_or_default());
    &TEXT
}

/// Where definitions are in the document.
const DEFINITIONS: &str = "/components/schemas";

/// What each part of a path is.
const PARTS: &[(&str, &str)] = &[
    ("agent", "An agent's id, for example `a1`."),
    ("child", "The id of a child of an executor."),
    ("digest", "A component: `sha256:` and 64 hex digits."),
    ("executor", "An executor's id."),
    ("framework", "An id (`f1`), a name, or `tenant:name` where several tenants use the name."),
    ("key", "1 to 255 bytes of UTF-8; a `/` in it may stand as it is."),
    ("node", "The number of a master."),
    ("offer", "An offer's id, for example `o12`."),
    ("path", "A path; a `/` in it stands as it is."),
    ("recording", "A recording's id, for example `e3-1`."),
    ("role", "A role, for example `eng/search`; a `/` in it stands as it is."),
    ("task", "A task's id."),
];

/// Every request may meet these.
const ALWAYS: &[&str] = &[
    codes::INVALID_ARGUMENT,
    codes::UNAUTHENTICATED,
    codes::PERMISSION_DENIED,
    codes::RATE_LIMITED,
    codes::HEADERS_TOO_LARGE,
    codes::INTERNAL,
    codes::UNAVAILABLE,
    codes::NO_LEADER,
    codes::JOINING,
];

/// Every request that changes something may meet these, too.
const CHANGES: &[&str] = &[codes::OUTCOME_UNKNOWN, codes::IDEMPOTENCY_MISMATCH, codes::TOO_LARGE];

/// Schemas of what is sent, and of what is answered: a field with a default may be left out of the first only.
struct Schemas {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = DEFINITIONS.into();
        settings.meta_schema = None;
    })
}

impl Schemas {
    fn new() -> Self {
        Self {
            sent: settings().for_deserialize().into_generator(),
            answered: settings().for_serialize().into_generator(),
        }
    }

    /// All definitions; those of what is sent get another name where they differ.
    fn definitions(mut self, document: &mut Value) -> Value {
        let mut all = self.answered.take_definitions(true);
        let mut sent = Value::Object(self.sent.take_definitions(true));
        // A new name changes whatever refers to it, which may differ then in its turn.
        let differs = |name: &str, sent: &Value| all.get(name).is_some_and(|answered| *answered != sent[name]);
        let names: Vec<String> = sent.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        while let Some(name) = names.iter().find(|name| !sent[name.as_str()].is_null() && differs(name, &sent)) {
            let other = format!("{name}Sent");
            let (from, to) = (format!("#{DEFINITIONS}/{name}"), format!("#{DEFINITIONS}/{other}"));
            for_bodies(document, &mut |value| rename(value, &from, &to));
            rename(&mut sent, &from, &to);
            sent[other.as_str()] = sent[name.as_str()].take();
        }
        if let Value::Object(sent) = sent {
            all.extend(sent.into_iter().filter(|(_, schema)| !schema.is_null()));
        }
        Value::Object(all)
    }
}

/// Every request body of the document.
fn for_bodies(document: &mut Value, with: &mut impl FnMut(&mut Value)) {
    let paths = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for operation in paths.filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        if let Some(body) = operation.get_mut("requestBody") {
            with(body);
        }
    }
}

fn rename(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text == from => to.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rename(field, from, to)),
        _ => {}
    }
}

/// The document as the code says it.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut tags = BTreeSet::new();
    for endpoint in endpoints() {
        tags.insert(endpoint.tag);
        let path = endpoint.path.replace("{*", "{");
        let methods = match &endpoint.method {
            Some(method) => vec![method.clone()],
            None => vec![Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE],
        };
        for method in methods {
            let operation = operation(&endpoint, &method, &mut schemas);
            let name = method.as_str().to_ascii_lowercase();
            paths.entry(path.clone()).or_default().insert(name, operation);
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tessera",
            "version": "v1",
            "summary": "A cluster manager with schedulers of its users.",
            "description": "Any master answers; one that does not lead passes requests on. docs/api.md is the page for people.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:5050"}],
        "security": [{"token": []}],
        "tags": tags.into_iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`admin.token` in the data directory of the masters."}},
            "headers": {
                "RequestId": {"description": "Names the request.", "schema": {"type": "string"}},
                "Tag": {"description": "For `If-Match`.", "schema": {"type": "string"}},
            },
            "parameters": common_parameters(),
            "responses": refusals(),
            "schemas": {},
        },
    });
    let mut definitions = schemas.definitions(&mut document);
    definitions["Refusal"] = refusal();
    document["components"]["schemas"] = definitions;
    document
}

fn operation(endpoint: &Endpoint, method: &Method, schemas: &mut Schemas) -> Value {
    let id = match endpoint.method {
        Some(_) => endpoint.id.to_owned(),
        None => format!("{}{}", endpoint.id, method.as_str().chars().next().map(String::from).unwrap_or_default() + &method.as_str()[1..].to_ascii_lowercase()),
    };
    let (responses, refused) = responses(endpoint, schemas);
    let mut operation = json!({
        "operationId": id,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "parameters": parameters(endpoint, method, schemas),
        "responses": responses,
        "x-codes": refused,
    });
    if endpoint.path == "/health" {
        operation["security"] = json!([]);
    }
    let mut content = Map::new();
    for body in &endpoint.bodies {
        match body {
            Sent::Document(schema, example) => {
                // Examples are constants, which a test reads.
                let example: Value = serde_json::from_str(example).unwrap_or_default();
                let schema = schema(&mut schemas.sent);
                content.insert("application/json".into(), json!({"schema": schema, "example": example}));
            }
            Sent::Bytes => drop(content.insert("application/octet-stream".into(), json!({}))),
        }
    }
    if endpoint.method.is_none() && !matches!(*method, Method::GET | Method::DELETE) {
        content.insert("*/*".into(), json!({}));
    }
    if !content.is_empty() {
        operation["requestBody"] = json!({"content": content});
    }
    operation
}

/// The example's part for each part of a path.
fn example_parts<'a>(endpoint: &Endpoint) -> BTreeMap<&'a str, String> {
    let (path, _) = endpoint.example.split_once('?').unwrap_or((endpoint.example, ""));
    let mut parts = BTreeMap::new();
    let mut example = path.split('/');
    for part in endpoint.path.split('/') {
        let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        match name.map(|name| (name.strip_prefix('*'), name)) {
            Some((Some(name), _)) => drop(parts.insert(name, example.by_ref().collect::<Vec<_>>().join("/"))),
            Some((None, name)) => drop(parts.insert(name, example.next().unwrap_or_default().to_owned())),
            None => drop(example.next()),
        }
    }
    parts
}

fn example_query(endpoint: &Endpoint, name: &str, schema: &Value) -> Option<Value> {
    let (_, query) = endpoint.example.split_once('?')?;
    let (_, value) = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name)?;
    let plain = schema.to_string().contains("\"integer\"") || schema.to_string().contains("\"boolean\"");
    Some(if plain { serde_json::from_str(value).unwrap_or_default() } else { value.into() })
}

fn parameters(endpoint: &Endpoint, method: &Method, schemas: &mut Schemas) -> Vec<Value> {
    let mut parameters = Vec::new();
    for (name, example) in example_parts(endpoint) {
        let what = PARTS.iter().find(|(part, _)| *part == name).map_or("", |(_, what)| what);
        parameters.push(json!({
            "name": name, "in": "path", "required": true, "description": what,
            "schema": {"type": "string"}, "example": example,
        }));
    }
    if let Some(query) = endpoint.query {
        parameters.extend(query_parameters(endpoint, query, schemas));
    }
    let mut common = |name: &str| parameters.push(json!({"$ref": format!("#/components/parameters/{name}")}));
    common("RequestId");
    let idempotent = idempotency::applies(endpoint.path) || endpoint.method.is_none();
    if *method != Method::GET && idempotent {
        common("IdempotencyKey");
    }
    if endpoint.conditional && *method != Method::GET {
        common("IfMatch");
    }
    if endpoint.id == "watchEvents" {
        common("LastEventId");
    }
    if *method == Method::GET && endpoint.path.starts_with("/v1/") && !is_local(endpoint.path) {
        common("Consistency");
    }
    parameters
}

/// Parameters that many operations have.
fn common_parameters() -> Value {
    let text = json!({"type": "string"});
    let header = |name: &str, what: &str| json!({"name": name, "in": "header", "description": what, "schema": text});
    json!({
        "RequestId": header("X-Request-Id", "1 to 128 visible ASCII characters that name the request in answers, logs and the audit; made when absent."),
        "IdempotencyKey": header("Idempotency-Key", "1 to 255 visible ASCII characters: under one key the request is carried out once."),
        "IfMatch": header("If-Match", "An `ETag`: refused unless that is still in force."),
        "LastEventId": header("Last-Event-ID", "What follows this event."),
        "Consistency": {
            "name": "consistency", "in": "query",
            "description": "`stale`: the master that is asked answers from what it has applied, also when nobody leads.",
            "schema": {"type": "string", "enum": ["linearizable", "stale"], "default": "linearizable"},
        },
    })
}

fn query_parameters(endpoint: &Endpoint, query: SchemaOf, schemas: &mut Schemas) -> Vec<Value> {
    let schema: Schema = query(&mut schemas.sent);
    let schema = schema.to_value();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let parameter = |(name, mut field): (String, Value)| {
        let what = field.as_object_mut().and_then(|field| field.remove("description")).unwrap_or_default();
        if name == "limit" {
            field = json!({"type": "integer", "minimum": 1, "maximum": PAGE_MAX});
        }
        // What may be left out is no null.
        if let Some(kinds) = field["type"].as_array() {
            let kind = kinds.iter().find(|kind| **kind != "null").cloned();
            field["type"] = kind.unwrap_or_default();
        }
        let mut parameter = json!({"name": name, "in": "query", "description": what, "schema": field});
        if let Some(example) = example_query(endpoint, &name, &parameter["schema"]) {
            parameter["example"] = example;
        }
        parameter
    };
    fields.into_iter().map(parameter).collect()
}

/// Answers by status, and the codes of those that are refusals.
fn responses(endpoint: &Endpoint, schemas: &mut Schemas) -> (Map<String, Value>, Vec<&'static str>) {
    let mut documents: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    let mut responses = Map::new();
    for (status, answered) in &endpoint.answers {
        let mut response = json!({"description": said(*status), "headers": headers(endpoint)});
        match answered {
            Answered::Document(schema) => {
                let schemas_of = documents.entry(*status).or_default();
                schemas_of.push(schema(&mut schemas.answered).to_value());
                let schema = match schemas_of.as_slice() {
                    [one] => one.clone(),
                    several => json!({"anyOf": several}),
                };
                response["content"] = json!({"application/json": {"schema": schema}});
            }
            Answered::Bytes(kind) => response["content"] = json!({*kind: {}}),
            Answered::Events(schema) => {
                let schema = schema(&mut schemas.answered);
                response["content"] = json!({"text/event-stream": {"schema": {"type": "string"}, "x-event-data": schema}});
            }
            Answered::Nothing => {}
            Answered::Anything => response["content"] = json!({"*/*": {}}),
        }
        responses.insert(status.to_string(), response);
    }
    let door = endpoint.method.is_none();
    let mut refused: BTreeSet<&'static str> = ALWAYS.iter().chain(endpoint.errors).copied().collect();
    if endpoint.changes() || door {
        refused.extend(CHANGES);
    }
    if door {
        refused.insert(codes::NOT_FOUND);
        refused.extend(CODES.iter().filter(|code| code.door).map(|code| code.name));
    }
    if endpoint.path == "/health" {
        refused = [codes::RATE_LIMITED, codes::HEADERS_TOO_LARGE].into();
    }
    for status in refused.iter().filter_map(|code| codes::find(code)).flat_map(|code| code.statuses) {
        let shared = json!({"$ref": format!("#/components/responses/Refused{status}")});
        // The path takes the method, or it would not be in the document.
        if *status != 405 {
            responses.entry(status.to_string()).or_insert(shared);
        }
    }
    (responses, refused.into_iter().collect())
}

fn headers(endpoint: &Endpoint) -> Value {
    let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/RequestId"}});
    if endpoint.conditional {
        headers["ETag"] = json!({"$ref": "#/components/headers/Tag"});
    }
    headers
}

const fn said(status: u16) -> &'static str {
    match status {
        200 => "It is done.",
        201 => "It was made.",
        202 => "It is on record, and will be done.",
        204 => "It is done; there is nothing to show.",
        _ => "It is not well.",
    }
}

/// Refusals by status, with all codes that come with it.
fn refusals() -> Map<String, Value> {
    let mut by_status: BTreeMap<u16, Vec<&codes::Code>> = BTreeMap::new();
    for code in CODES {
        for status in code.statuses {
            by_status.entry(*status).or_default().push(code);
        }
    }
    let of = |(status, codes): (u16, Vec<&codes::Code>)| {
        let said: Vec<String> = codes.iter().map(|code| format!("`{}`: {}", code.name, code.what)).collect();
        let each = |code: &&codes::Code| json!({"code": code.name, "retryable": code.retryable, "door": code.door});
        let said = json!({
            "description": said.join(". "),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
            "x-codes": codes.iter().map(each).collect::<Vec<_>>(),
        });
        (format!("Refused{status}"), said)
    };
    by_status.into_iter().filter(|(status, _)| *status != 405).map(of).collect()
}

/// The envelope of refusals.
fn refusal() -> Value {
    let names: Vec<&str> = CODES.iter().map(|code| code.name).collect();
    let text = |what: &str| json!({"type": "string", "description": what});
    let maybe = |what: &str| json!({"type": ["string", "null"], "description": what});
    json!({
        "type": "object",
        "description": "What every refusal is answered with.",
        "properties": {"error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "What programs act on.", "enum": names},
                "field": maybe("The field, parameter or header that it is about."),
                "message": text("Which rule was broken."),
                "hint": maybe("The way out."),
                "retryable": {"type": "boolean", "description": "The same request may succeed later."},
                "request_id": text("Names the request."),
            },
            "required": ["code", "field", "message", "hint", "retryable", "request_id"],
        }},
        "required": ["error"],
        "examples": [{"error": {
            "code": "INVALID_ARGUMENT", "field": "limit", "message": "1 to 1000", "hint": null,
            "retryable": false, "request_id": "5f0c2a91-17",
        }}],
    })
}

#[cfg(test)]
mod tests;
