//! One row of the table of routes.
//!
//! Invariant: a route cannot be made without saying what it does; what it takes and answers is said by the types that
//! its handler has.

use super::Api;
use axum::http::Method;
use axum::routing::MethodRouter;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use tessera_master_core::{Action, Object};

/// Makes the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route that does not say yet what it does.
pub struct Bare {
    method: Option<Method>,
    path: &'static str,
    action: Action,
    object: Object,
    handlers: MethodRouter<Api>,
}

/// What a request may carry.
pub enum Sent {
    /// A document, and one of its kind.
    Document(SchemaOf, &'static str),
    /// Bytes.
    Bytes,
}

/// What an answer carries.
pub enum Answered {
    /// A document.
    Document(SchemaOf),
    /// Bytes of a kind.
    Bytes(&'static str),
    /// Nothing.
    Nothing,
    /// A stream of events.
    Events(SchemaOf),
    /// Whatever a scheduler says.
    Anything,
}

/// A route: its path, what its callers need to be allowed to do to what, its handlers, and what is to be known of it.
pub struct Endpoint {
    /// Nothing for all methods.
    pub method: Option<Method>,
    /// As the router reads it.
    pub path: &'static str,
    /// What is done.
    pub action: Action,
    /// To what.
    pub object: Object,
    /// By whom.
    pub handlers: MethodRouter<Api>,
    /// Its name, once in the whole API.
    pub id: &'static str,
    /// What it belongs to.
    pub tag: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// A path with parameters, as one might ask for it.
    pub example: &'static str,
    /// Its parameters.
    pub query: Option<SchemaOf>,
    /// Bodies that it takes.
    pub bodies: Vec<Sent>,
    /// Answers that are no refusals.
    pub answers: Vec<(u16, Answered)>,
    /// Codes of refusals, beside those that every request may meet.
    pub errors: &'static [&'static str],
    /// What it is about has a tag, and changes may depend on it.
    pub conditional: bool,
}

/// A route.
pub fn endpoint(
    method: Option<Method>,
    path: &'static str,
    action: Action,
    object: Object,
    handlers: MethodRouter<Api>,
) -> Bare {
    Bare { method, path, action, object, handlers }
}

impl Bare {
    /// Its name, what it belongs to, what it does, and an example.
    pub fn about(self, id: &'static str, tag: &'static str, summary: &'static str, example: &'static str) -> Endpoint {
        let Self { method, path, action, object, handlers } = self;
        Endpoint {
            method,
            path,
            action,
            object,
            handlers,
            id,
            tag,
            summary,
            example,
            query: None,
            bodies: Vec::new(),
            answers: Vec::new(),
            errors: &[],
            conditional: false,
        }
    }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Parameters are said one by one, not as a type.
fn parameters_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

impl Endpoint {
    /// It has parameters.
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(parameters_of::<T>);
        self
    }

    /// It takes a document.
    pub fn takes<T: JsonSchema>(mut self, example: &'static str) -> Self {
        self.bodies.push(Sent::Document(schema_of::<T>, example));
        self
    }

    /// It takes bytes.
    pub fn takes_bytes(mut self) -> Self {
        self.bodies.push(Sent::Bytes);
        self
    }

    /// It answers with a document.
    pub fn answers<T: JsonSchema>(mut self, status: u16) -> Self {
        self.answers.push((status, Answered::Document(schema_of::<T>)));
        self
    }

    /// It answers with bytes.
    pub fn answers_bytes(mut self, status: u16, kind: &'static str) -> Self {
        self.answers.push((status, Answered::Bytes(kind)));
        self
    }

    /// It answers with a status alone.
    pub fn answers_nothing(mut self, status: u16) -> Self {
        self.answers.push((status, Answered::Nothing));
        self
    }

    /// It answers with a stream of events.
    pub fn answers_events<T: JsonSchema>(mut self) -> Self {
        self.answers.push((200, Answered::Events(schema_of::<T>)));
        self
    }

    /// Its answer is not this API's.
    pub fn answers_anything(mut self) -> Self {
        self.answers.push((200, Answered::Anything));
        self
    }

    /// It refuses with these codes.
    pub const fn refuses(mut self, errors: &'static [&'static str]) -> Self {
        self.errors = errors;
        self
    }

    /// It has a tag.
    pub const fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// It asks for a change.
    pub fn changes(&self) -> bool {
        self.method.as_ref().is_some_and(|method| *method != Method::GET)
    }
}
