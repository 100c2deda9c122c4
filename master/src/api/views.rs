//! What the API shows, as JSON. Field names are the API's promise; the core's views stop here.

use super::error::ApiError;
use crate::files::{FileBytes, RANGE_BYTES_MAX};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{AgentView, ComponentView, Core, FrameworkView, TaskFilter, TaskView};
use tessera_types::{AgentId, Quantities};

/// A list, and the log index that it is true at.
#[derive(Serialize)]
pub struct List<T> {
    /// Index of the last applied entry.
    pub index: u64,
    /// The items.
    pub items: Vec<T>,
}

/// An agent.
#[derive(Serialize)]
pub struct AgentJson {
    id: String,
    hostname: String,
    state: &'static str,
    total: Quantities,
    reserved: Quantities,
    used: Quantities,
    offered: Quantities,
    free: Quantities,
    attributes: BTreeMap<String, String>,
    tasks: usize,
    schedulers: usize,
    version: String,
    registered_ms: u64,
    unreachable_ms: Option<u64>,
}

impl From<AgentView> for AgentJson {
    fn from(view: AgentView) -> Self {
        let state = match (view.connected, view.unreachable_ms) {
            (true, _) => "connected",
            (false, None) => "disconnected",
            (false, Some(_)) => "unreachable",
        };
        Self {
            id: view.id.to_string(),
            hostname: view.hostname,
            state,
            total: view.total,
            reserved: view.reserved,
            used: view.used,
            offered: view.offered,
            free: view.free,
            attributes: view.attributes.into_iter().collect(),
            tasks: view.tasks,
            schedulers: view.schedulers,
            version: view.version,
            registered_ms: view.registered_ms,
            unreachable_ms: view.unreachable_ms,
        }
    }
}

/// A component.
#[derive(Serialize)]
pub struct ComponentJson {
    digest: String,
    size: u64,
    world: &'static str,
    uploaded_by: String,
    uploaded_ms: u64,
    created: bool,
}

impl ComponentJson {
    /// A component; `created` says whether this call made it known.
    pub fn of(view: ComponentView, created: bool) -> Self {
        Self {
            digest: view.digest.to_string(),
            size: view.size_bytes,
            world: view.world.name(),
            uploaded_by: view.principal,
            uploaded_ms: view.added_ms,
            created,
        }
    }
}

/// A framework.
#[derive(Serialize)]
pub struct FrameworkJson {
    id: String,
    name: String,
    role: String,
    component: String,
    config: BTreeMap<String, String>,
    state: &'static str,
    why: Vec<String>,
    agent: Option<String>,
    epoch: u64,
    turns: u64,
    suppressed: bool,
    state_bytes: u64,
    state_keys: u64,
    timers: usize,
    tasks: BTreeMap<&'static str, usize>,
    tasks_total: u64,
    used: Quantities,
    offered: Quantities,
    failures: u64,
    last_error: Option<String>,
    created_ms: u64,
    /// For handlers that go on to ask the agent.
    #[serde(skip)]
    pub agent_id: Option<AgentId>,
}

impl FrameworkJson {
    /// A framework, with the states of its live tasks counted.
    pub fn of(view: FrameworkView, core: &mut Core) -> Self {
        let state = match () {
            () if view.removing => "removing",
            () if view.agent.is_none() => "waiting",
            () if view.ready => "running",
            () if view.last_error.is_some() => "backing-off",
            () => "starting",
        };
        let filter = TaskFilter {
            framework: Some(view.id),
            live_only: true,
            ..TaskFilter::default()
        };
        let mut tasks = BTreeMap::new();
        for task in core.tasks(&filter) {
            *tasks.entry(task.state.name()).or_insert(0) += 1;
        }
        let why = core
            .explain(view.id)
            .into_iter()
            .map(|w| format!("{}: {}", w.what, w.why))
            .collect();
        Self {
            id: view.id.to_string(),
            name: view.name.to_string(),
            role: view.role.to_string(),
            component: view.component.to_string(),
            config: view.config.into_iter().collect(),
            state,
            why,
            agent: view.agent.map(|agent| agent.to_string()),
            epoch: view.epoch.0,
            turns: view.last_turn.0,
            suppressed: view.suppressed,
            state_bytes: view.state_bytes,
            state_keys: view.state_keys,
            timers: view.timers,
            tasks,
            tasks_total: view.tasks_total,
            used: view.used,
            offered: view.offered,
            failures: view.failures,
            last_error: view.last_error,
            created_ms: view.created_ms,
            agent_id: view.agent,
        }
    }
}

/// A task.
#[derive(Serialize)]
pub struct TaskJson {
    framework: String,
    framework_name: String,
    task: String,
    name: String,
    agent: Option<String>,
    state: &'static str,
    reason: &'static str,
    message: String,
    exit_code: Option<i32>,
    signal: Option<i32>,
    attempt: u32,
    resources: Quantities,
    spec: String,
    kill_requested: bool,
    launched_ms: u64,
    updated_ms: u64,
    why: Option<&'static str>,
}

impl TaskJson {
    /// A task, live or finished.
    pub fn of(view: TaskView, core: &Core) -> Self {
        let framework_name = core
            .framework(view.framework)
            .map_or_else(String::new, |f| f.name.to_string());
        let connected = core.agent(view.agent).is_some_and(|agent| agent.connected);
        let why = match view.state {
            tessera_types::TaskState::Staging if connected => {
                Some("the agent has been told and has not answered yet")
            }
            tessera_types::TaskState::Staging => Some("the agent is not connected"),
            tessera_types::TaskState::Unreachable => Some("the agent does not answer"),
            _ => None,
        };
        Self {
            framework: view.framework.to_string(),
            framework_name,
            task: view.launch.task.to_string(),
            name: view.name,
            agent: (view.agent != AgentId(0)).then(|| view.agent.to_string()),
            state: view.state.name(),
            reason: view.status.reason.code(),
            message: view.status.message,
            exit_code: view.status.exit_code,
            signal: view.status.signal,
            attempt: view.attempt,
            resources: view.resources,
            spec: view.launch.spec.to_string(),
            kill_requested: view.kill_requested,
            launched_ms: view.created_ms,
            updated_ms: view.status.at_ms,
            why,
        }
    }
}

/// Which bytes of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeQuery {
    offset: Option<u64>,
    length: Option<u32>,
}

impl RangeQuery {
    /// Offset and length within their bounds.
    pub fn checked(&self) -> Result<(u64, u32), ApiError> {
        let length = self.length.unwrap_or(RANGE_BYTES_MAX);
        if length == 0 || length > RANGE_BYTES_MAX {
            return Err(ApiError::invalid(
                "length",
                format!("1 to {RANGE_BYTES_MAX}"),
            ));
        }
        Ok((self.offset.unwrap_or(0), length))
    }
}

/// Bytes of a file, and where they stand in it.
pub fn file_response(offset: u64, bytes: FileBytes) -> Response {
    let mut response = Response::new(Body::from(bytes.data));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert("x-tessera-offset", HeaderValue::from(offset));
    headers.insert("x-tessera-size", HeaderValue::from(bytes.size));
    response
}
