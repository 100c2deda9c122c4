//! `/v1/agents`: what each agent has, uses and hosts; taking one out of use, emptying it, and giving it up.

use super::Api;
use super::error::ApiError;
use super::dry_run::{self, DryRun};
use super::extract::{Document, Path, Query};
use super::lookup;
use super::paging::{self, AgentPlace, List};
use super::views::AgentJson;
use crate::files::{FileError, RANGE_BYTES_MAX, Range};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tessera_master_core::{Maintenance, Piece, Request};
use tessera_telemetry::log::moment;
use tessera_types::{AgentId, FrameworkId};

/// How long the tasks of a drained agent have when nothing is said.
const DRAIN_DEFAULT_MS: u64 = 600_000;

/// Which agents.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentsQuery {
    /// Agents of one page, 1 to 1000; all without it.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// All agents.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<AgentsQuery>,
) -> Result<Json<List<AgentJson>>, ApiError> {
    let limit = paging::limit_or_all(query.limit, query.after.as_deref())?;
    let list = paging::gather(&api.node, query.after.as_deref(), limit, |core, _, after: Option<AgentPlace>, budget| {
        let piece = core.agents_from(after.map(|place| place.0), budget.find);
        Ok(Piece { found: piece.found, next: piece.next.map(AgentPlace) })
    });
    let List { index, items, next } = list.await?;
    Ok(Json(List { index, items: items.into_iter().map(Into::into).collect(), next }))
}

/// One agent, by id.
pub async fn inspect(
    State(api): State<Api>,
    Path(agent): Path<String>,
) -> Result<Json<AgentJson>, ApiError> {
    show(&api, lookup::agent(&agent)?).await
}

async fn show(api: &Api, id: AgentId) -> Result<Json<AgentJson>, ApiError> {
    let view = api.node.query(move |core, _| core.agent(id)).await?;
    view.map(|view| Json(view.into()))
        .ok_or_else(|| ApiError::not_found("agent", id))
}

/// What an agent keeps of components, as it says itself.
pub async fn caches(
    State(api): State<Api>,
    Path(agent): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let agent = lookup::agent(&agent)?;
    let known = api.node.query(move |core, _| core.agent(agent).is_some()).await?;
    if !known {
        return Err(ApiError::not_found("agent", agent));
    }
    let range = Range {
        framework: FrameworkId(0),
        task: String::new(),
        path: "caches".into(),
        offset: 0,
        length: RANGE_BYTES_MAX,
    };
    let told = api.files.read(agent, range).await?;
    let told = serde_json::from_slice(&told.data)
        .map_err(|error| FileError::Refused(format!("agent {agent}'s summary of caches: {error}")))?;
    Ok(Json(told))
}

/// Have what is asked of an agent done, and show it; or only say what would be.
async fn change(
    api: &Api,
    asker: Asker,
    agent: &str,
    dry: &DryRun,
    request: impl FnOnce(AgentId) -> Request,
) -> Result<Response, ApiError> {
    let agent = lookup::agent(agent)?;
    if dry.asked() {
        return dry_run::rehearse(api, asker, request(agent), Vec::new()).await;
    }
    api.node.request(asker, request(agent)).await?;
    Ok(show(api, agent).await?.into_response())
}

/// Place nothing new on an agent.
pub async fn deactivate(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    change(&api, asker, &agent, &dry, |agent| Request::SetAgentMode {
        agent,
        deactivated: true,
        drain_ms: None,
    })
    .await
}

/// Put an agent to use again; a drain is called off.
pub async fn activate(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    change(&api, asker, &agent, &dry, |agent| Request::SetAgentMode {
        agent,
        deactivated: false,
        drain_ms: None,
    })
    .await
}

/// How an agent is emptied.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Tasks that are still there then are killed; ten minutes when absent.
    within_ms: Option<u64>,
}

/// What would be if an agent were left by so many tasks and schedulers.
async fn rehearse_leaving(
    api: &Api,
    asker: Asker,
    agent: AgentId,
    request: Request,
    would: impl FnOnce(usize, usize) -> String,
) -> Result<Response, ApiError> {
    let view = api.node.query(move |core, _| core.agent(agent)).await?;
    let would = view.map(|view| would(view.tasks, view.schedulers));
    dry_run::rehearse(api, asker, request, would.into_iter().collect()).await
}

/// Have everything leave an agent.
pub async fn drain(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
    Document(drain): Document<Drain>,
) -> Result<Response, ApiError> {
    let agent = lookup::agent(&agent)?;
    let drain_ms = Some(drain.within_ms.unwrap_or(DRAIN_DEFAULT_MS));
    let request = Request::SetAgentMode { agent, deactivated: true, drain_ms };
    if dry.asked() {
        let would = |tasks, schedulers| {
            format!("{schedulers} schedulers would move away, and {tasks} tasks have to end or be killed")
        };
        return rehearse_leaving(&api, asker, agent, request, would).await;
    }
    api.node.request(asker, request).await?;
    Ok(show(&api, agent).await?.into_response())
}

/// An agent that is no more.
#[derive(Serialize, JsonSchema)]
pub struct Gone {
    /// Which agent.
    id: String,
    /// `gone`.
    state: &'static str,
}

/// Give an agent up for good.
pub async fn gone(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let agent = lookup::agent(&agent)?;
    let request = Request::MarkGone { agent };
    if dry.asked() {
        let would = |tasks, schedulers| {
            format!("give {agent} up for good: {tasks} tasks are TASK_GONE_BY_OPERATOR, and {schedulers} schedulers are placed elsewhere")
        };
        return rehearse_leaving(&api, asker, agent, request, would).await;
    }
    api.node.request(asker, request).await?;
    Ok(Json(Gone { id: agent.to_string(), state: "gone" }).into_response())
}

/// Have the tasks on an agent end that the restored state does not know.
pub async fn end_strangers(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    change(&api, asker, &agent, &dry, |agent| Request::EndStrangers { agent }).await
}

/// When an agent will be worked on.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// When it begins, in milliseconds since the Unix epoch.
    start_ms: u64,
    /// When it is over.
    end_ms: u64,
}

/// Announce maintenance.
pub async fn maintain(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
    Document(window): Document<Window>,
) -> Result<Response, ApiError> {
    let Window { start_ms, end_ms } = window;
    set_maintenance(&api, asker, &agent, &dry, Some(Maintenance { start_ms, end_ms })).await
}

/// Call maintenance off.
pub async fn cancel_maintenance(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(agent): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    set_maintenance(&api, asker, &agent, &dry, None).await
}

async fn set_maintenance(
    api: &Api,
    asker: Asker,
    agent: &str,
    dry: &DryRun,
    maintenance: Option<Maintenance>,
) -> Result<Response, ApiError> {
    let agent = lookup::agent(agent)?;
    let request = Request::SetMaintenance { agent, maintenance };
    if !dry.asked() {
        api.node.request(asker, request).await?;
        return Ok(show(api, agent).await?.into_response());
    }
    let events = dry_run::foresee(api, asker, request).await?;
    let said = match maintenance {
        Some(Maintenance { start_ms, end_ms }) => {
            format!("announce that {agent} is worked on from {} to {}; frameworks with tasks there are told", moment(start_ms), moment(end_ms))
        }
        None => format!("call off the maintenance of {agent}; frameworks with tasks there are told"),
    };
    let would = events.first().map(|_| said).into_iter().collect();
    Ok(dry_run::answer(would, events))
}
