//! `/v1/explain`: why something has not got what it waits for, in words.
//!
//! Invariant: the reasons are those by which it was decided; this file only says what a task waits for.

use super::error::ApiError;
use super::extract::Query;
use super::{Api, lookup};
use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::{Core, Rows, TaskLine, Waiting, Why};
use tessera_telemetry::log::moment;
use tessera_types::{FrameworkId, RoleName, TaskId, TaskState};

/// What is to be explained.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// A role.
    role: Option<String>,
    /// A framework: its id, name, or `tenant:name`.
    framework: Option<String>,
    /// One of the framework's requests, by its id.
    request: Option<String>,
    /// One of the framework's tasks.
    task: Option<String>,
}

/// Why.
#[derive(Serialize, JsonSchema)]
pub struct ExplainJson {
    /// Index of the last applied entry.
    index: u64,
    /// What it is about: `role eng`, `framework words`, `request big of words`, `task job-1 of words`.
    about: String,
    /// In one sentence.
    summary: String,
    /// All reasons, the weightiest first.
    reasons: Vec<ReasonJson>,
}

/// A reason.
#[derive(Serialize, JsonSchema)]
pub struct ReasonJson {
    /// What programs act on.
    code: String,
    /// What stands in the way.
    text: String,
    /// The way out; null when there is none but to wait.
    hint: Option<String>,
    /// Agents that it is so on.
    agents: u32,
}

impl ReasonJson {
    fn plain(code: &str, text: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into(), hint: None, agents: 0 }
    }
}

impl From<Why> for ReasonJson {
    fn from(why: Why) -> Self {
        Self { code: why.code.to_owned(), text: why.text, hint: why.hint, agents: why.agents }
    }
}

impl From<Waiting> for ReasonJson {
    fn from(waiting: Waiting) -> Self {
        Self::plain("WAITING", format!("{}: {}", waiting.what, waiting.why))
    }
}

/// What is asked.
enum About {
    Role(RoleName),
    Framework(FrameworkId),
    Request(FrameworkId, String),
    Task(FrameworkId, TaskId),
}

impl About {
    async fn of(api: &Api, query: ExplainQuery) -> Result<Self, ApiError> {
        let one = || ApiError::invalid("query", "name a role, or a framework, and of that perhaps a request or a task");
        match (query.role, query.framework, query.request, query.task) {
            (Some(role), None, None, None) => Ok(Self::Role(lookup::role(&role)?)),
            (None, Some(framework), request, task) => {
                let framework = lookup::framework(&api.node, framework).await?;
                match (request, task) {
                    (None, None) => Ok(Self::Framework(framework)),
                    (Some(request), None) => Ok(Self::Request(framework, request)),
                    (None, Some(task)) => Ok(Self::Task(framework, lookup::task(&task)?)),
                    (Some(_), Some(_)) => Err(one()),
                }
            }
            _ => Err(one()),
        }
    }

    fn name(&self, core: &Core) -> String {
        let named = |id: &FrameworkId| core.framework_names(*id).map_or_else(|| id.to_string(), |(name, _)| name);
        match self {
            Self::Role(role) => format!("role {role}"),
            Self::Framework(framework) => format!("framework {}", named(framework)),
            Self::Request(framework, request) => format!("request {request} of {}", named(framework)),
            Self::Task(framework, task) => format!("task {task} of {}", named(framework)),
        }
    }
}

/// What a task waits for, or why it is where it is.
fn of_task(line: &TaskLine) -> ReasonJson {
    let view = &line.view;
    let (state, agent, message) = (view.state, view.agent, &view.status.message);
    let because = match (view.status.reason.code(), message.as_str()) {
        ("", "") => String::new(),
        ("", text) => format!(": {text}"),
        (code, "") => format!(": {code}"),
        (code, text) => format!(": {code}, {text}"),
    };
    match state {
        _ if state.is_terminal() => ReasonJson::plain("ENDED", format!("it is {state} since {}{because}", moment(view.status.at_ms))),
        _ if !line.connected => ReasonJson {
            hint: Some("when the agent is back, or has been given up, it goes on: `tessera agent inspect` says how long that takes".into()),
            ..ReasonJson::plain("AGENT_NOT_CONNECTED", format!("{agent} is not connected; the task is {state}"))
        },
        _ if view.kill_requested => ReasonJson::plain("KILLING", format!("it is to end, and {agent} has not said that it has{because}")),
        TaskState::Staging => ReasonJson::plain("STAGING", format!("{agent} has been told and has not answered yet: it may fetch what the task needs")),
        TaskState::Starting => ReasonJson::plain("STARTING", format!("{agent} is starting it{because}")),
        _ => ReasonJson::plain("RUNNING", format!("it is {state} on {agent}{because}")),
    }
}

fn reasons(core: &mut Core, rows: &dyn Rows, about: &About) -> Result<Vec<ReasonJson>, ApiError> {
    match about {
        About::Role(role) => match core.explain_role(role) {
            Some(reasons) => Ok(reasons.into_iter().map(ReasonJson::from).collect()),
            None => Err(ApiError::not_found("role", role).hint("`tessera role ls` shows those of which something is known")),
        },
        About::Framework(framework) => {
            let reasons = core.explain_framework(*framework);
            let reasons = reasons.ok_or_else(|| ApiError::not_found("framework", framework))?;
            let waits = core.explain(*framework).into_iter().map(ReasonJson::from);
            Ok(reasons.into_iter().map(ReasonJson::from).chain(waits).collect())
        }
        About::Request(framework, request) => match core.explain_request(*framework, request) {
            Some(reasons) => Ok(reasons.into_iter().map(ReasonJson::from).collect()),
            None => Err(ApiError::not_found("request", request).hint("requests are those of the scheduler's last `request`")),
        },
        About::Task(framework, task) => match core.task_line(*framework, task, rows)? {
            Some(line) => Ok(vec![of_task(&line)]),
            None => Err(ApiError::not_found("task", task)),
        },
    }
}

/// Why something has not got what it waits for.
pub async fn explain(State(api): State<Api>, Query(query): Query<ExplainQuery>) -> Result<Json<ExplainJson>, ApiError> {
    let about = About::of(&api, query).await?;
    let (index, name, reasons) = api
        .node
        .query_status(move |core, rows, status| (status.applied.index, about.name(core), reasons(core, rows, &about)))
        .await?;
    let reasons = reasons?;
    let summary = match reasons.first() {
        Some(first) => format!("{name}: {}", first.text),
        None => format!("{name} waits for nothing"),
    };
    Ok(Json(ExplainJson { index, about: name, summary, reasons }))
}
