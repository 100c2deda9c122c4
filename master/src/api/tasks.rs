//! `/v1/tasks`: showing and killing tasks, and reading files of their sandboxes. Reads of finished
//! tasks come from the bounded history.

use super::Api;
use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Document, Path, Query};
use super::lookup;
use super::paging::{self, List, Place};
use super::task_views::TaskJson;
use super::views::{RangeQuery, file_response};
use crate::files::Range;
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use tessera_master_core::{Piece, Request, RequestError, TaskLine, TaskPick, TaskPlace};
use tessera_types::{FrameworkId, TaskId, TaskState};

/// Which tasks.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TasksQuery {
    /// Only of this framework: its id, name, or `tenant:name`.
    framework: Option<String>,
    /// Only of frameworks in this role, or below it.
    role: Option<String>,
    /// Only on this agent.
    agent: Option<String>,
    /// Only in one of these states, with commas between: `TASK_RUNNING,TASK_LOST`.
    state: Option<String>,
    /// Only those that have not ended.
    live: Option<bool>,
    /// Only those whose name begins like this.
    name: Option<String>,
    /// Only of this task group.
    group: Option<u64>,
    /// Tasks of one page, 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// A place in the list of tasks, as cursors have it.
pub fn write_task_place(place: &TaskPlace) -> String {
    match place {
        TaskPlace::Memory(framework, task) => format!("m{framework}/{task}"),
        TaskPlace::History(framework, number) => format!("h{framework}/{number}"),
    }
}

/// The reverse.
pub fn read_task_place(text: &str) -> Option<TaskPlace> {
    let (kind, rest) = text.split_at_checked(1)?;
    let (framework, rest) = rest.split_once('/')?;
    let framework = framework.parse().ok()?;
    match kind {
        "m" => Some(TaskPlace::Memory(framework, rest.parse().ok()?)),
        "h" => Some(TaskPlace::History(framework, rest.parse().ok()?)),
        _ => None,
    }
}

struct At(TaskPlace);

impl Place for At {
    fn write(&self) -> String {
        format!("t{}", write_task_place(&self.0))
    }

    fn read(text: &str) -> Option<Self> {
        read_task_place(text.strip_prefix('t')?).map(Self)
    }
}

/// Live and lately finished tasks.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<TasksQuery>,
) -> Result<Json<List<TaskJson>>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let states = query.state.iter().flat_map(|states| states.split(','));
    let pick = TaskPick {
        states: states.map(parse_state).collect::<Result<_, _>>()?,
        role: query.role.as_deref().map(lookup::role).transpose()?,
        agent: query.agent.as_deref().map(lookup::agent).transpose()?,
        live: query.live.unwrap_or(false),
        name: query.name,
        group: query.group,
        killed: false,
        framework: lookup::some_framework(&api.node, query.framework).await?,
    };
    let list = paging::gather(&api.node, query.after.as_deref(), limit, move |core, rows, after: Option<At>, budget| {
        let piece = core.tasks_from(&pick, after.map(|At(place)| place), budget, rows)?;
        Ok(Piece { found: piece.found, next: piece.next.map(At) })
    });
    let List { index, items, next } = list.await?;
    // Beside the loop: many small texts.
    let items = items.into_iter().map(TaskJson::of).collect();
    Ok(Json(List { index, items, next }))
}

fn parse_state(text: &str) -> Result<TaskState, ApiError> {
    TaskState::ALL
        .into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| {
            let names: Vec<&str> = TaskState::ALL.iter().map(|state| state.name()).collect();
            ApiError::invalid("state", format!("one of {}", names.join(", ")))
        })
}

async fn find(api: &Api, framework: FrameworkId, task: &TaskId) -> Result<TaskLine, ApiError> {
    let wanted = task.clone();
    let found = api.node.query(move |core, rows| core.task_line(framework, &wanted, rows)).await??;
    found.ok_or_else(|| ApiError::not_found("task", task))
}

/// One task, also a finished one that is still remembered.
pub async fn inspect(
    State(api): State<Api>,
    Path((framework, task)): Path<(String, String)>,
) -> Result<Json<TaskJson>, ApiError> {
    let framework = lookup::framework(&api.node, framework).await?;
    let line = find(&api, framework, &lookup::task(&task)?).await?;
    Ok(Json(TaskJson::with_history(line)))
}

/// How to kill.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// Time between TERM and KILL; the spec's when absent.
    grace_ms: Option<u64>,
}

/// End a task.
pub async fn kill(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path((framework, task)): Path<(String, String)>,
    Query(dry): Query<DryRun>,
    Document(kill): Document<Kill>,
) -> Result<Response, ApiError> {
    let max = tessera_types::limits::GRACE_MAX_MS;
    if kill.grace_ms.is_some_and(|grace| grace > max) {
        return Err(ApiError::invalid("grace_ms", format!("at most {max}")));
    }
    let framework = lookup::framework(&api.node, framework).await?;
    let task = lookup::task(&task)?;
    let request = Request::KillTask { framework, task: task.clone(), grace_ms: kill.grace_ms };
    if dry.asked() {
        let state = find(&api, framework, &task).await?.view.state;
        let would = match state.is_terminal() {
            true => format!("nothing: {task} is {state} already"),
            false => format!("{task}, which is {state}, gets TERM and, when its grace is over, KILL"),
        };
        return dry_run::rehearse(&api, asker, request, vec![would]).await;
    }
    let refused = match api.node.request(asker, request).await {
        Ok(_) => return Ok(StatusCode::ACCEPTED.into_response()),
        Err(refused) => refused,
    };
    // The core keeps what has ended apart; whoever looks sees it all the same.
    match find(&api, framework, &task).await {
        Ok(found) if matches!(refused, RequestError::NotFound { .. }) => {
            let rule = format!("{task} is {} already", found.view.state);
            Err(ApiError::conflict("task", rule).hint("there is nothing to be killed"))
        }
        Ok(_) | Err(_) => Err(refused.into()),
    }
}

/// A range of a file in a task's sandbox.
pub async fn file(
    State(api): State<Api>,
    Path((framework, task, path)): Path<(String, String, String)>,
    Query(range): Query<RangeQuery>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, framework).await?;
    let task = lookup::task(&task)?;
    let agent = find(&api, framework, &task).await?.view.agent;
    let (offset, length) = range.checked()?;
    let range = Range {
        framework,
        task: task.to_string(),
        path,
        offset,
        length,
    };
    Ok(file_response(
        offset,
        api.files.read(agent, range).await?,
    ))
}
