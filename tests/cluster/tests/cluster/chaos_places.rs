//! Where the clients of a workload write and read: each place is a register of its own kind.
//!
//! Invariants: a place holds one value, or none where it can be removed; what a client saw of it is enough to write
//! over just that. Must never send anything itself.

use serde_json::{Value, json};
use tessera_cluster::rest::Answer;

/// A request that can be sent again, under one key.
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// With a document, if there is one.
    pub fn new(method: &'static str, path: impl Into<String>, body: &Value) -> Self {
        let json = !body.is_null();
        Self {
            method,
            path: path.into(),
            headers: if json { vec![("content-type", "application/json".to_owned())] } else { Vec::new() },
            body: if json { body.to_string().into_bytes() } else { Vec::new() },
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same under a key, so that it is carried out once.
    pub fn under(self, key: impl Into<String>) -> Self {
        self.with("idempotency-key", key)
    }
}

/// What a client saw of a place: its value, and what names that in a swap.
#[derive(Clone, Debug)]
pub struct Seen {
    pub value: Option<String>,
    pub name: Option<Name>,
}

/// By what a place knows a value when it is to be swapped.
#[derive(Clone, Debug)]
pub enum Name {
    /// Of a configuration.
    Version(u64),
    /// Of a key's value.
    Tag(String),
    /// There is none.
    Absent,
}

/// It is the key that there is not, and not the framework.
fn is_no_key(document: &Value) -> bool {
    document["error"]["message"].as_str().is_some_and(|message| message.starts_with("there is no key"))
}

/// A register.
#[derive(Clone)]
pub enum Place {
    /// The configuration of a framework.
    Config(String),
    /// A limit of a role.
    Limit(String),
    /// A key of a framework's state, which its scheduler has as well.
    State(String, String),
}

impl Place {
    /// What it is called in a history.
    pub fn key(&self) -> String {
        match self {
            Self::Config(name) | Self::Limit(name) => name.clone(),
            Self::State(framework, key) => format!("{framework}/{key}"),
        }
    }

    fn path(&self) -> String {
        match self {
            Self::Config(name) => format!("/v1/frameworks/{name}/config"),
            Self::Limit(role) => format!("/v1/limits?role={role}"),
            Self::State(framework, key) => format!("/v1/frameworks/{framework}/state/{key}"),
        }
    }

    /// A document in which every master has it, for a further parameter.
    pub fn document(&self) -> String {
        match self {
            Self::Config(_) => format!("{}?", self.path()),
            Self::Limit(_) => format!("{}&", self.path()),
            // All of the framework's, with tags of their values.
            Self::State(framework, _) => format!("/v1/frameworks/{framework}/state?"),
        }
    }

    /// Where its scheduler says what it has there, if that is asked.
    pub fn scheduler_path(&self) -> Option<String> {
        match self {
            Self::State(framework, key) => Some(format!("/frameworks/{framework}/state/{key}")),
            Self::Config(_) | Self::Limit(_) => None,
        }
    }

    /// Reads it.
    pub fn get(&self) -> Request {
        Request::new("GET", self.path(), &Value::Null)
    }

    /// Writes it, whatever it holds or over what was seen.
    pub fn put(&self, value: u64, over: Option<&Name>) -> Request {
        match self {
            Self::Config(_) => {
                let mut body = json!({"config": {"count": "0", "command": "true", "value": value.to_string()}});
                if let Some(Name::Version(version)) = over {
                    body["expected_version"] = (*version).into();
                }
                Request::new("PUT", self.path(), &body)
            }
            Self::Limit(_) => Request::new("PATCH", self.path(), &json!({"set": {"timers": value}})),
            Self::State(..) => {
                let mut request = Request::new("PUT", self.path(), &Value::Null);
                request.body = value.to_string().into_bytes();
                match over {
                    Some(Name::Tag(tag)) => request.with("if-match", tag.clone()),
                    Some(Name::Absent) => request.with("if-none-match", "*"),
                    Some(Name::Version(_)) | None => request,
                }
            }
        }
    }

    /// Removes its value, where that can be done.
    pub fn delete(&self) -> Option<Request> {
        match self {
            Self::State(..) => Some(Request::new("DELETE", self.path(), &Value::Null)),
            Self::Config(_) | Self::Limit(_) => None,
        }
    }

    /// Whether an answer to a swap says that it held something else.
    pub fn differs(&self, answer: &Answer) -> bool {
        match self {
            Self::Config(_) => answer.status == 409,
            Self::State(..) => answer.status == 412,
            Self::Limit(_) => false,
        }
    }

    /// What an answer to a read shows; none if it is no such answer.
    pub fn read(&self, answer: &Answer) -> Option<Seen> {
        let document = answer.json();
        if let Self::State(..) = self {
            return match answer.status {
                200 => Some(Seen { value: Some(answer.text()), name: answer.headers.get("etag").cloned().map(Name::Tag) }),
                404 if is_no_key(&document) => Some(Seen { value: None, name: Some(Name::Absent) }),
                _ => None,
            };
        }
        if answer.status != 200 {
            return None;
        }
        let (value, name) = match self {
            Self::Limit(_) => {
                let limits = document["limits"].as_array()?;
                let timers = limits.iter().find(|limit| limit["name"] == "timers")?;
                (timers["value"].as_u64()?.to_string(), None)
            }
            Self::Config(_) | Self::State(..) => {
                let value = document["config"]["value"].as_str()?.to_owned();
                (value, document["config_version"].as_u64().map(Name::Version))
            }
        };
        Some(Seen { value: Some(value), name })
    }
}
