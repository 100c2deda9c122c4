//! `/v1/tasks`: showing and killing tasks, and reading files of their sandboxes. Reads of finished
//! tasks come from the bounded history.

use super::Api;
use super::error::ApiError;
use super::extract::{Document, Path, Query};
use super::lookup;
use super::views::{List, RangeQuery, TaskJson, file_response};
use crate::files::Range;
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tessera_master_core::{Request, TaskFilter, TaskView};
use tessera_types::{FrameworkId, TaskId, TaskState};

/// Tasks of one answer when nothing is said, and at most.
const LIST_MAX: usize = 1_000;

/// Which tasks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    framework: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
}

/// Live and lately finished tasks.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<TaskJson>>, ApiError> {
    let state = query.state.as_deref().map(parse_state).transpose()?;
    let limit = query.limit.unwrap_or(LIST_MAX);
    if limit == 0 || limit > LIST_MAX {
        return Err(ApiError::invalid("limit", format!("1 to {LIST_MAX}")));
    }
    let framework = match query.framework {
        Some(text) => Some(lookup::framework(&api.node, text).await?),
        None => None,
    };
    let answer = api
        .node
        .query_status(move |core, rows, status| {
            let filter = TaskFilter {
                framework,
                limit,
                ..TaskFilter::default()
            };
            let mut tasks = core.tasks(&filter);
            let finished_of: Vec<FrameworkId> = match framework {
                Some(id) => vec![id],
                None => core.frameworks().into_iter().map(|view| view.id).collect(),
            };
            for id in finished_of {
                let room = limit.saturating_sub(tasks.len());
                if room == 0 {
                    break;
                }
                tasks.extend(core.history(id, None, room, rows)?);
            }
            if let Some(state) = state {
                tasks.retain(|task| task.state == state);
            }
            let items = tasks
                .into_iter()
                .map(|view| TaskJson::of(view, core))
                .collect();
            Ok::<_, tessera_master_core::RowsError>(List {
                index: status.applied.index,
                items,
            })
        })
        .await??;
    Ok(Json(answer))
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

async fn find(
    api: &Api,
    framework: FrameworkId,
    task: &TaskId,
) -> Result<(TaskView, TaskJson), ApiError> {
    let wanted = task.clone();
    api.node
        .query(move |core, rows| {
            let view = core.task(framework, &wanted, rows)?;
            Ok::<_, tessera_master_core::RowsError>(
                view.map(|v| (v.clone(), TaskJson::of(v, core))),
            )
        })
        .await??
        .ok_or_else(|| ApiError::not_found("task", task))
}

/// One task, also a finished one that is still remembered.
pub async fn inspect(
    State(api): State<Api>,
    Path((framework, task)): Path<(String, String)>,
) -> Result<Json<TaskJson>, ApiError> {
    let framework = lookup::framework(&api.node, framework).await?;
    let (_, json) = find(&api, framework, &lookup::task(&task)?).await?;
    Ok(Json(json))
}

/// How to kill.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    grace_ms: Option<u64>,
}

/// End a task.
pub async fn kill(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path((framework, task)): Path<(String, String)>,
    Document(kill): Document<Kill>,
) -> Result<StatusCode, ApiError> {
    let max = tessera_types::limits::GRACE_MAX_MS;
    if kill.grace_ms.is_some_and(|grace| grace > max) {
        return Err(ApiError::invalid("grace_ms", format!("at most {max}")));
    }
    let framework = lookup::framework(&api.node, framework).await?;
    let task = lookup::task(&task)?;
    let request = Request::KillTask {
        framework,
        task,
        grace_ms: kill.grace_ms,
    };
    api.node.request(asker, request).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A range of a file in a task's sandbox.
pub async fn file(
    State(api): State<Api>,
    Path((framework, task, path)): Path<(String, String, String)>,
    Query(range): Query<RangeQuery>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, framework).await?;
    let task = lookup::task(&task)?;
    let (view, _) = find(&api, framework, &task).await?;
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
        api.files.read(view.agent, range).await?,
    ))
}
