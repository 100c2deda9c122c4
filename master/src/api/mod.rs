//! REST `/v1` and the door into schedulers.
//!
//! Invariants: every route stands behind [`authenticate`] and names its action to `authorize`, the
//! table of routes (`table.rs`) being the only place where routes are made; handlers hold no state of their own.
//! This module must never change state but through the node's handle.

mod agents;
mod amounts;
pub mod audit;
mod audit_list;
mod codes;
mod components;
mod conditions;
pub mod door;
mod dry_run;
mod endpoint;
mod error;
mod events;
mod executors;
mod explain;
mod extract;
mod frameworks;
mod health;
mod idempotency;
mod json;
pub mod joining;
mod leader;
mod lifecycle;
mod limits;
mod lookup;
mod masters;
mod offers;
mod openapi;
mod operations;
mod paging;
mod proxy;
mod quick;
mod rate;
mod recordings;
mod refusals;
mod roles;
mod state;
mod table;
mod task_views;
mod tasks;
mod version;
mod views;
mod visit;

use audit::Audit;
use crate::files::FileLane;
use crate::forward::Forwarder;
use crate::inspect::Inspector;
use crate::node_handle::NodeHandle;
use crate::oci::Puller;
use crate::peer::{Caller, Peers, Writes};
use crate::stage::Staging;
use crate::store::ComponentStore;
use crate::token::Token;
use crate::upkeep::components::Fetcher;
use crate::upkeep::steward::Health;
use axum::Router;
use axum::body::{HttpBody as _, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use error::ApiError;
pub use error::OUTCOME_UNKNOWN;
pub use events::Hub;
pub use lookup::framework_in;
pub use visit::request_id_header;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use visit::Sender;
use tessera_master_core::{Action, Object, Principal, PrincipalKind, authorize};

/// Characters of an unknown path that its refusal repeats.
const PATH_SHOWN_MAX: usize = 200;

/// Bytes of a document that says nothing.
const NOTHING_BYTES_MAX: usize = 64;

/// Characters of a parameter that an answer repeats.
const PARAMETER_SHOWN_MAX: usize = 100;

/// What handlers share. Requests pass it on many times, so that it is one pointer.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

impl From<Shared> for Api {
    fn from(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// All of it.
pub struct Shared {
    /// The node.
    pub node: NodeHandle,
    /// Component bytes.
    pub store: Arc<ComponentStore>,
    /// Files on agents.
    pub files: Arc<FileLane>,
    /// The judge of uploads.
    pub inspector: Arc<Inspector>,
    /// Pulls components from registries.
    pub puller: Arc<Puller>,
    /// Take plain bytes although components have to be signed.
    pub allow_unsigned_uploads: bool,
    /// The administrator's token.
    pub token: Token,
    /// Carries requests to the leader.
    pub forwarder: Arc<Forwarder>,
    /// Keeps large requests meanwhile.
    pub staging: Arc<Staging>,
    /// Asks the other masters.
    pub caller: Caller,
    /// Where they are.
    pub peers: Arc<Peers>,
    /// Component files of other masters.
    pub fetcher: Arc<Fetcher>,
    /// How the other masters are.
    pub health: Arc<Health>,
    /// Writes of state to the leader.
    pub writes: Writes,
    /// Events for watchers.
    pub events: Arc<Hub>,
    /// Who did what.
    pub audit: Arc<Audit>,
}

/// Names of operations by method and route.
fn operations_by_route() -> HashMap<(Method, &'static str), &'static str> {
    let endpoints = table::endpoints().into_iter();
    endpoints.filter_map(|endpoint| Some(((endpoint.method?, endpoint.path), endpoint.id))).collect()
}

/// The whole API.
fn router(api: Api) -> Router {
    let mut router = Router::new();
    for route in table::endpoints() {
        // Below other paths, requests are schedulers' to read.
        let ours = route.path.starts_with("/v1/");
        let changes = ours && route.changes();
        let guard = Guard {
            plain: ours && route.query.is_none(),
            bare: changes && route.bodies.is_empty(),
            unconditional: changes && !route.conditional,
            action: route.action,
            object: route.object,
        };
        let handlers = if idempotency::applies(route.path) {
            route
                .handlers
                .layer(from_fn_with_state(api.clone(), idempotency::know))
        } else {
            route.handlers
        };
        router = router.route(
            route.path,
            handlers.layer(from_fn_with_state(guard, authenticate)),
        );
    }
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown)
        .layer(from_fn_with_state(api.clone(), leader::by_leader))
        .with_state(api)
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method())
}

async fn unknown(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(PATH_SHOWN_MAX).collect();
    ApiError::not_found("route", format!("{} {path}", request.method()))
        .of("path")
        .hint("the API begins with /v1, schedulers answer under /frameworks/<name>/")
}

/// What stands before a route.
#[derive(Clone)]
struct Guard {
    action: Action,
    object: Object,
    /// It takes no parameters.
    plain: bool,
    /// It changes something, and takes no document.
    bare: bool,
    /// It changes something that has no tag.
    unconditional: bool,
}

impl Guard {
    /// What a request says that this route would not hear: whoever says it means something.
    fn unheard(&self, request: &Request) -> Option<ApiError> {
        let query = request.uri().query().unwrap_or_default();
        if self.plain && let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).next() {
            let name: String = name.chars().take(PARAMETER_SHOWN_MAX).collect();
            return Some(json::refused(&name, "query", "this takes no parameters"));
        }
        let condition = conditions::NAMES.iter().find(|name| request.headers().contains_key(*name));
        condition.filter(|_| self.unconditional).map(|name| json::refused(name.as_str(), "headers", "what this changes has no tag"))
    }
}

/// Whether whoever was found to ask may; the principal travels with the request.
async fn authenticate(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let principal = match request.extensions().get::<Sender>() {
        Some(Sender::Known(principal)) => principal.clone(),
        Some(Sender::Wrong) => return ApiError::unauthenticated().into_response(),
        Some(Sender::Stranger) | None => Principal::anonymous(),
    };
    if let Err(forbidden) = authorize(&principal, guard.action, &guard.object) {
        return match principal.kind {
            PrincipalKind::Anonymous => ApiError::unauthenticated().into_response(),
            PrincipalKind::Administrator => ApiError::from(forbidden).into_response(),
        };
    }
    if let Some(error) = guard.unheard(&request) {
        return error.into_response();
    }
    if guard.bare && !request.body().is_end_stream() {
        let body = std::mem::take(request.body_mut());
        // What says nothing is none: some clients always send an object.
        match to_bytes(body, NOTHING_BYTES_MAX).await {
            Ok(body) if matches!(body.trim_ascii(), b"" | b"{}") => {}
            Ok(_) | Err(_) => return json::refused("", "body", "this takes no document").into_response(),
        }
    }
    request.extensions_mut().insert(principal);
    let known = request.headers().get(header::IF_NONE_MATCH).filter(|_| request.method() == Method::GET).cloned();
    let response = next.run(request).await;
    match (known, response.headers().get(header::ETAG)) {
        (Some(known), Some(tag)) if response.status() == StatusCode::OK && conditions::is_known(&known, tag) => (StatusCode::NOT_MODIFIED, [(header::ETAG, tag.clone())]).into_response(),
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Health is for load balancers; everything else needs somebody with a name.
    #[test]
    fn nothing_but_health_is_open_to_strangers() {
        let stranger = Principal::anonymous();
        for route in table::endpoints() {
            let allowed = authorize(&stranger, route.action, &route.object).is_ok();
            assert_eq!(allowed, route.path == "/health", "{}", route.path);
        }
    }
}
