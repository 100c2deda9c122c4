//! REST `/v1` and the door into schedulers.
//!
//! Invariants: every route stands behind [`authenticate`] and names its action to `authorize`, the
//! route table below being the only place where routes are made; handlers hold no state of their own.
//! This module must never change state but through the node's handle.

mod agents;
mod components;
pub mod door;
mod error;
mod events;
mod executors;
mod extract;
mod frameworks;
mod health;
mod idempotency;
pub mod joining;
mod leader;
mod lifecycle;
mod limits;
mod lookup;
mod masters;
mod proxy;
mod quick;
mod recordings;
mod state;
mod tasks;
mod views;

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
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, delete, get, patch, post, put};
use error::ApiError;
pub use error::OUTCOME_UNKNOWN;
pub use lookup::framework_in;
use std::ops::Deref;
use std::sync::Arc;
use tessera_master_core::{Action, Object, Principal, PrincipalKind, authorize};

/// Characters of an unknown path that its refusal repeats.
const PATH_SHOWN_MAX: usize = 200;

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
}

/// A route: its path, what its callers need to be allowed to do to what, and its handlers.
struct Route {
    path: &'static str,
    action: Action,
    object: Object,
    handlers: MethodRouter<Api>,
}

fn route(path: &'static str, action: Action, object: Object, handlers: MethodRouter<Api>) -> Route {
    Route {
        path,
        action,
        object,
        handlers,
    }
}

/// A framework, before it is known which.
const fn framework() -> Object {
    Object::Framework { role: None }
}

/// Every route there is.
fn routes() -> Vec<Route> {
    let parts = [master_routes(), cluster_routes(), agent_routes(), framework_routes(), lifecycle_routes(), executor_routes(), task_routes(), state_routes()];
    parts.into_iter().flatten().collect()
}

fn master_routes() -> Vec<Route> {
    vec![
        route("/v1/masters", Action::Read, Object::Cluster, get(masters::list)),
        route(
            "/v1/masters/{node}",
            Action::Change,
            Object::Cluster,
            delete(masters::remove),
        ),
        route(
            "/v1/masters/{node}/promote",
            Action::Change,
            Object::Cluster,
            post(masters::promote),
        ),
        route(
            "/v1/masters/transfer",
            Action::Change,
            Object::Cluster,
            post(masters::transfer),
        ),
        // It holds everything that tenants keep, and not only what is shown.
        route(
            "/v1/snapshot",
            Action::Change,
            Object::Cluster,
            get(masters::save),
        ),
    ]
}

fn cluster_routes() -> Vec<Route> {
    vec![
        route(
            "/health",
            Action::Health,
            Object::Cluster,
            get(health::health),
        ),
        route(
            "/metrics",
            Action::Read,
            Object::Cluster,
            get(health::metrics),
        ),
        route(
            "/v1/components",
            Action::Read,
            Object::Component,
            get(components::list),
        ),
        route(
            "/v1/components",
            Action::Create,
            Object::Component,
            post(components::add),
        ),
        route(
            "/v1/components/{digest}",
            Action::Read,
            Object::Component,
            get(components::inspect),
        ),
        route(
            "/v1/components/{digest}",
            Action::Remove,
            Object::Component,
            delete(components::remove),
        ),
        route(
            "/v1/components/{digest}/content",
            Action::Read,
            Object::Component,
            get(components::content),
        ),
        route(
            "/v1/limits",
            Action::Read,
            Object::Limits { role: None },
            get(limits::list),
        ),
        route(
            "/v1/limits",
            Action::Change,
            Object::Limits { role: None },
            patch(limits::change),
        ),
        route(
            "/v1/events",
            Action::Read,
            Object::Cluster,
            get(events::stream),
        ),
    ]
}

fn agent_routes() -> Vec<Route> {
    use Action::{Change, Kill, Read, Remove};
    let agent = |path, action, handlers| route(path, action, Object::Agent, handlers);
    let maintenance = "/v1/agents/{agent}/maintenance";
    vec![
        agent("/v1/agents", Read, get(agents::list)),
        agent("/v1/agents/{agent}", Read, get(agents::inspect)),
        agent("/v1/agents/{agent}/caches", Read, get(agents::caches)),
        agent("/v1/agents/{agent}/deactivate", Change, post(agents::deactivate)),
        agent("/v1/agents/{agent}/activate", Change, post(agents::activate)),
        agent("/v1/agents/{agent}/drain", Change, post(agents::drain)),
        agent("/v1/agents/{agent}/end-strangers", Kill, post(agents::end_strangers)),
        agent("/v1/agents/{agent}/gone", Remove, post(agents::gone)),
        agent(maintenance, Change, post(agents::maintain)),
        agent(maintenance, Change, delete(agents::cancel_maintenance)),
    ]
}

fn framework_routes() -> Vec<Route> {
    vec![
        route(
            "/v1/frameworks",
            Action::Read,
            framework(),
            get(frameworks::list),
        ),
        route(
            "/v1/frameworks",
            Action::Create,
            framework(),
            post(frameworks::create),
        ),
        route(
            "/v1/frameworks/{framework}",
            Action::Read,
            framework(),
            get(frameworks::inspect),
        ),
        route(
            "/v1/frameworks/{framework}",
            Action::Remove,
            framework(),
            axum::routing::delete(frameworks::remove),
        ),
        route(
            "/v1/frameworks/{framework}/log",
            Action::ReadLogs,
            framework(),
            get(frameworks::log),
        ),
        route(
            "/frameworks/{framework}",
            Action::Call,
            framework(),
            any(proxy::root),
        ),
        route(
            "/frameworks/{framework}/",
            Action::Call,
            framework(),
            any(proxy::root),
        ),
        route(
            "/frameworks/{framework}/{*path}",
            Action::Call,
            framework(),
            any(proxy::call),
        ),
    ]
}

fn lifecycle_routes() -> Vec<Route> {
    vec![
        route(
            "/v1/frameworks/{framework}/upgrade",
            Action::Change,
            framework(),
            post(lifecycle::upgrade),
        ),
        route(
            "/v1/frameworks/{framework}/rollback",
            Action::Change,
            framework(),
            post(lifecycle::roll_back),
        ),
        route(
            "/v1/frameworks/{framework}/release",
            Action::Change,
            framework(),
            post(lifecycle::release),
        ),
        route(
            "/v1/frameworks/{framework}/config",
            Action::Read,
            framework(),
            get(lifecycle::config),
        ),
        route(
            "/v1/frameworks/{framework}/config",
            Action::Change,
            framework(),
            put(lifecycle::set_config),
        ),
        route(
            "/v1/frameworks/{framework}/recordings",
            Action::ReadLogs,
            framework(),
            get(recordings::list),
        ),
        route(
            "/v1/frameworks/{framework}/recordings/{recording}",
            Action::ReadLogs,
            framework(),
            get(recordings::content),
        ),
    ]
}

fn executor_routes() -> Vec<Route> {
    vec![
        route(
            "/v1/frameworks/{framework}/executors",
            Action::Read,
            framework(),
            get(executors::list),
        ),
        route(
            "/v1/frameworks/{framework}/executors/{executor}/children/{child}/files/{*path}",
            Action::ReadLogs,
            framework(),
            get(executors::file),
        ),
    ]
}

fn state_routes() -> Vec<Route> {
    let key = "/v1/frameworks/{framework}/state/{*key}";
    let read = |path, handlers| route(path, Action::Read, framework(), handlers);
    let change = |handlers| route(key, Action::Change, framework(), handlers);
    vec![
        read("/v1/frameworks/{framework}/state", get(state::list)),
        read(key, get(state::get)),
        change(put(state::put)),
        change(delete(state::delete)),
    ]
}

fn task_routes() -> Vec<Route> {
    vec![
        route("/v1/tasks", Action::Read, framework(), get(tasks::list)),
        route(
            "/v1/tasks/{framework}/{task}",
            Action::Read,
            framework(),
            get(tasks::inspect),
        ),
        route(
            "/v1/tasks/{framework}/{task}/kill",
            Action::Kill,
            framework(),
            post(tasks::kill),
        ),
        route(
            "/v1/tasks/{framework}/{task}/files/{*path}",
            Action::ReadLogs,
            framework(),
            get(tasks::file),
        ),
    ]
}

/// The whole API.
fn router(api: Api) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let guard = Guard {
            token: api.token.clone(),
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
        .hint("the API begins with /v1, schedulers answer under /frameworks/<name>/")
}

/// What stands before a route.
#[derive(Clone)]
struct Guard {
    token: Token,
    action: Action,
    object: Object,
}

/// Finds out who asks and whether they may; the principal travels with the request.
async fn authenticate(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let header = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let principal = match header {
        Some(header) if guard.token.matches(header) => Principal::administrator(),
        // A wrong token is refused everywhere, so that a typing error is noticed.
        Some(_) => return ApiError::unauthenticated().into_response(),
        None => Principal::anonymous(),
    };
    if let Err(forbidden) = authorize(&principal, guard.action, &guard.object) {
        return match principal.kind {
            PrincipalKind::Anonymous => ApiError::unauthenticated().into_response(),
            PrincipalKind::Administrator => ApiError::from(forbidden).into_response(),
        };
    }
    request.extensions_mut().insert(principal);
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Health is for load balancers; everything else needs somebody with a name.
    #[test]
    fn nothing_but_health_is_open_to_strangers() {
        let stranger = Principal::anonymous();
        for route in routes() {
            let allowed = authorize(&stranger, route.action, &route.object).is_ok();
            assert_eq!(allowed, route.path == "/health", "{}", route.path);
        }
    }
}
