//! `/v1/frameworks/<framework>/executors`: a framework's custom executors, their children, and what those wrote.
//!
//! Which executors live is in the cluster's state; of children, and of executors that have ended, their
//! agents alone know. Must never hold up a list for an agent that does not answer: it says so.

use super::error::ApiError;
use super::extract::{Path, Query};
use super::paging::List;
use super::views::{RangeQuery, ResourcesJson, file_response};
use super::{Api, lookup};
use crate::files::{FileError, FileLane, RANGE_BYTES_MAX, Range};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tessera_master_core::ExecutorView;
use tessera_types::{AgentId, ExecutorId, FrameworkId, NameError, TaskId};

/// Agents asked for children at once.
const AGENTS_MAX: usize = 64;

/// Whose executors.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutorsQuery {
    /// Those of this agent, with those that ended there.
    agent: Option<String>,
}

/// An executor on one agent.
#[derive(Serialize, JsonSchema)]
pub struct ExecutorJson {
    executor: String,
    agent: String,
    /// A task of it has not ended.
    live: bool,
    component: Option<String>,
    resources: Option<ResourcesJson>,
    tasks: usize,
    children: Vec<ChildJson>,
    /// The agent has more children than it lists.
    children_more: bool,
    /// Why its children are not known.
    children_unknown: Option<String>,
}

impl ExecutorJson {
    fn ended(executor: String, agent: AgentId) -> Self {
        Self {
            executor,
            agent: agent.to_string(),
            live: false,
            component: None,
            resources: None,
            tasks: 0,
            children: Vec::new(),
            children_more: false,
            children_unknown: None,
        }
    }

    fn living(view: ExecutorView) -> Self {
        Self {
            live: true,
            component: Some(view.component.to_string()),
            resources: Some(view.resources.into()),
            tasks: view.tasks.len(),
            ..Self::ended(view.executor.to_string(), view.agent)
        }
    }
}

/// A child of one.
#[derive(Serialize, JsonSchema)]
struct ChildJson {
    child: String,
    life: u64,
    state: Option<String>,
    live: bool,
}

/// What an agent says of a framework's children.
#[derive(Deserialize)]
struct Told {
    items: Vec<ToldChild>,
    more: bool,
}

#[derive(Deserialize)]
struct ToldChild {
    executor: String,
    life: u64,
    child: String,
    state: Option<String>,
    live: bool,
}

/// Executors that live, and on agents that are asked those of which something is left.
pub async fn list(
    State(api): State<Api>,
    Path(text): Path<String>,
    Query(on): Query<ExecutorsQuery>,
) -> Result<Json<List<ExecutorJson>>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let named = on.agent.as_deref().map(agent).transpose()?;
    let (index, mut living) = api
        .node
        .query_status(move |core, _, status| (status.applied.index, core.executors(framework)))
        .await?;
    living.retain(|view| named.is_none_or(|agent| view.agent == agent));
    let agents: BTreeSet<AgentId> = living.iter().map(|view| view.agent).chain(named).collect();
    let mut items: BTreeMap<(AgentId, String), ExecutorJson> = living
        .into_iter()
        .map(|view| ((view.agent, view.executor.to_string()), ExecutorJson::living(view)))
        .collect();
    if agents.len() > AGENTS_MAX {
        let why = format!("more than {AGENTS_MAX} agents have executors: name one with ?agent=a1");
        for item in items.values_mut() {
            item.children_unknown = Some(why.clone());
        }
    } else {
        let files = &api.files;
        let asked = agents
            .into_iter()
            .map(|agent| async move { (agent, children(files, agent, framework).await) });
        for (agent, told) in futures::future::join_all(asked).await {
            match told {
                Ok(told) => add(&mut items, agent, told),
                Err(error) if named.is_some() => return Err(error.into()),
                Err(error) => {
                    for (_, item) in items.iter_mut().filter(|((on, _), _)| *on == agent) {
                        item.children_unknown = Some(error.to_string());
                    }
                }
            }
        }
    }
    let items = items.into_values().collect();
    Ok(Json(List::whole(index, items)))
}

fn add(items: &mut BTreeMap<(AgentId, String), ExecutorJson>, agent: AgentId, told: Told) {
    for child in told.items {
        let key = (agent, child.executor.clone());
        let item = items
            .entry(key)
            .or_insert_with(|| ExecutorJson::ended(child.executor, agent));
        item.children.push(ChildJson {
            child: child.child,
            life: child.life,
            state: child.state,
            live: child.live,
        });
    }
    for (_, item) in items.iter_mut().filter(|((on, _), _)| *on == agent) {
        item.children_more = told.more;
    }
}

async fn children(
    files: &FileLane,
    agent: AgentId,
    framework: FrameworkId,
) -> Result<Told, FileError> {
    let range = Range {
        framework,
        task: String::new(),
        path: "children".into(),
        offset: 0,
        length: RANGE_BYTES_MAX,
    };
    let list = files.read(agent, range).await?;
    serde_json::from_slice(&list.data)
        .map_err(|error| FileError::Refused(format!("agent {agent}'s list of children: {error}")))
}

fn agent(text: &str) -> Result<AgentId, ApiError> {
    text.parse()
        .map_err(|error: NameError| ApiError::invalid("agent", error.to_string()))
}

/// Which agent has the child, and which part of the file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileQuery {
    /// The agent, where the executor has ended or lives on several.
    agent: Option<String>,
    /// Bytes to pass over.
    offset: Option<u64>,
    /// Bytes to read, at most 65536.
    length: Option<u32>,
}

/// A range of a file in the sandbox of a child, in the newest life that has it.
pub async fn file(
    State(api): State<Api>,
    Path((text, executor, child, path)): Path<(String, String, String, String)>,
    Query(query): Query<FileQuery>,
) -> Result<Response, ApiError> {
    let invalid = |field: &'static str| move |e: NameError| ApiError::invalid(field, e.to_string());
    let executor: ExecutorId = executor.parse().map_err(invalid("executor"))?;
    let child: TaskId = child.parse().map_err(invalid("child"))?;
    let range = RangeQuery {
        offset: query.offset,
        length: query.length,
    };
    let (offset, length) = range.checked()?;
    let framework = lookup::framework(&api.node, text).await?;
    let on = match query.agent.as_deref() {
        Some(named) => agent(named)?,
        None => agent_of(&api, framework, &executor).await?,
    };
    let range = Range {
        framework,
        task: format!("{executor}/{child}"),
        path,
        offset,
        length,
    };
    Ok(file_response(offset, api.files.read(on, range).await?))
}

/// The one agent on which an executor of this name lives.
async fn agent_of(
    api: &Api,
    framework: FrameworkId,
    executor: &ExecutorId,
) -> Result<AgentId, ApiError> {
    let mut living = api.node.query(move |core, _| core.executors(framework)).await?;
    living.retain(|view| view.executor == *executor);
    match living.as_slice() {
        [one] => Ok(one.agent),
        [] => Err(ApiError::not_found("executor", executor)
            .hint("of one that has ended its agent alone knows: name that with ?agent=a1, or --agent a1")),
        several => Err(ApiError::invalid(
            "agent",
            format!("{} agents have an executor {executor}", several.len()),
        )
        .hint("name one with ?agent=a1; `tessera framework executors` shows them")),
    }
}
