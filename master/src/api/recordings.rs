//! `/v1/frameworks/<framework>/recordings`: what agents recorded of the lives of a scheduler's instances.
//! They are files of agents and no state of the cluster: who is not connected has none to show.

use super::error::ApiError;
use super::extract::{Path, Query};
use super::{Api, frameworks, lookup};
use crate::files::{FileError, FileLane, RANGE_BYTES_MAX, Range};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use tessera_types::{AgentId, FrameworkId};

/// Agents asked for recordings of a scheduler that has no place now.
const AGENTS_MAX: usize = 64;

/// Bytes of one agent's list: a recording takes about 120, and a framework has at most 64 on an agent.
const LIST_BYTES_MAX: u64 = 64 << 10;

/// Longest id of a recording.
const ID_BYTES_MAX: usize = 64;

/// Whose recordings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordingsQuery {
    /// Those of this agent.
    agent: Option<String>,
}

/// What agents have.
#[derive(Serialize, JsonSchema)]
pub struct Recordings {
    /// One each, as the agents tell them.
    items: Vec<Value>,
}

/// All recordings, the newest life last.
pub async fn list(
    State(api): State<Api>,
    Path(text): Path<String>,
    Query(on): Query<RecordingsQuery>,
) -> Result<Json<Recordings>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let items = find(&api, framework, on).await?;
    Ok(Json(Recordings {
        items: items.into_iter().map(|(_, item)| item).collect(),
    }))
}

/// The bytes of one recording, as far as they go now.
pub async fn content(
    State(api): State<Api>,
    Path((text, id)): Path<(String, String)>,
    Query(on): Query<RecordingsQuery>,
) -> Result<Response, ApiError> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(known) {
        return Err(ApiError::invalid(
            "recording",
            "an id is like e3-1: a-z 0-9 -",
        ));
    }
    let framework = lookup::framework(&api.node, text).await?;
    let found = find(&api, framework, on).await?;
    let (agent, _) = found
        .into_iter()
        .find(|(_, item)| item["id"] == id.as_str())
        .ok_or_else(|| {
            ApiError::not_found("recording", &id).hint("`tessera framework recordings` shows them")
        })?;
    let range = move |offset| Range {
        framework,
        task: String::new(),
        path: format!("recordings/{id}"),
        offset,
        length: RANGE_BYTES_MAX,
    };
    let first = api.files.read(agent, range(0)).await?;
    // A life that goes on is recorded further; what is sent ends where it ended at the beginning.
    let size = first.size;
    let mut response = Response::new(stream_file(
        api.files.clone(),
        agent,
        first.data,
        size,
        range,
    ));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

/// The rest of a file range by range: the next one is asked for when the last one was taken.
fn stream_file(
    files: Arc<FileLane>,
    agent: AgentId,
    first: Vec<u8>,
    size: u64,
    range: impl Fn(u64) -> Range + Send + 'static,
) -> Body {
    let pieces = stream::try_unfold(
        (Some(first), 0),
        move |(ready, sent): (Option<Vec<u8>>, u64)| {
            let (files, next) = (files.clone(), range(sent));
            async move {
                let left = size.saturating_sub(sent);
                if left == 0 {
                    return Ok(None);
                }
                let mut data = match ready {
                    Some(data) => data,
                    None => files.read(agent, next).await?.data,
                };
                data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                if data.is_empty() {
                    return Err(FileError::Refused(
                        "the recording was deleted meanwhile".into(),
                    ));
                }
                let sent = sent + data.len() as u64;
                Ok::<_, FileError>(Some((Bytes::from(data), (None, sent))))
            }
        },
    );
    Body::from_stream(pieces)
}

/// Recordings with the agents that have them: those of the agent that is named or hosts the scheduler,
/// or else of all that are connected.
async fn find(
    api: &Api,
    framework: FrameworkId,
    on: RecordingsQuery,
) -> Result<Vec<(AgentId, Value)>, ApiError> {
    let agents = agents(api, framework, on).await?;
    let asked = agents.len();
    let lists = agents
        .into_iter()
        .map(|agent| list_of(&api.files, agent, framework));
    let mut found = Vec::new();
    let mut failed = None;
    for list in futures::future::join_all(lists).await {
        match list {
            Ok(items) => found.extend(items),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        // That one of many does not answer must not hide what the others have.
        Some(error) if found.is_empty() || asked == 1 => Err(error.into()),
        _ => Ok(found),
    }
}

/// The agent that hosts a scheduler, or hosted it last, as far as connected agents know: one that failed too often has
/// no place, and what it wrote is wanted all the more.
pub async fn last_host(api: &Api, framework: FrameworkId) -> Result<AgentId, ApiError> {
    let agents = agents(api, framework, RecordingsQuery { agent: None }).await?;
    if let [only] = agents[..] {
        return Ok(only);
    }
    let lists = agents.into_iter().map(|agent| list_of(&api.files, agent, framework));
    let found = futures::future::join_all(lists).await.into_iter().flatten().flatten();
    let newest = found.filter_map(|(agent, item)| Some((life(item["id"].as_str()?)?, agent))).max();
    newest.map(|(_, agent)| agent).ok_or_else(|| {
        ApiError::unavailable(format!("framework {framework} has no place, and no agent that is connected has hosted it"))
    })
}

/// Epoch and number of a recording, which say the order of lives.
fn life(id: &str) -> Option<(u64, u64)> {
    let (epoch, number) = id.strip_prefix('e')?.split_once('-')?;
    Some((epoch.parse().ok()?, number.parse().ok()?))
}

async fn agents(api: &Api, framework: FrameworkId, on: RecordingsQuery) -> Result<Vec<AgentId>, ApiError> {
    if let Some(named) = on.agent {
        let agent = named.parse().map_err(|error: tessera_types::NameError| {
            ApiError::invalid("agent", error.to_string())
        })?;
        return Ok(vec![agent]);
    }
    if let Some(agent) = frameworks::view(api, framework).await?.agent_id {
        return Ok(vec![agent]);
    }
    let connected: Vec<AgentId> = api
        .node
        .query(|core, _| {
            let agents = core.agents().into_iter();
            agents
                .filter(|agent| agent.connected)
                .map(|agent| agent.id)
                .collect()
        })
        .await?;
    if connected.len() > AGENTS_MAX {
        return Err(ApiError::invalid(
            "agent",
            format!("the scheduler has no place now, and more than {AGENTS_MAX} agents may have recordings"),
        )
        .hint("name one with ?agent=a1; `tessera events` says where the scheduler was"));
    }
    Ok(connected)
}

async fn list_of(
    files: &FileLane,
    agent: AgentId,
    framework: FrameworkId,
) -> Result<Vec<(AgentId, Value)>, FileError> {
    let range = Range {
        framework,
        task: String::new(),
        path: "recordings".into(),
        offset: 0,
        length: RANGE_BYTES_MAX,
    };
    let list = files.read(agent, range).await?;
    let unreadable =
        |why: String| FileError::Refused(format!("agent {agent}'s list of recordings: {why}"));
    if list.size > LIST_BYTES_MAX {
        return Err(unreadable(format!("{} bytes are too many", list.size)));
    }
    let mut items: Vec<Value> =
        serde_json::from_slice(&list.data).map_err(|error| unreadable(error.to_string()))?;
    for item in &mut items {
        let Value::Object(fields) = item else {
            return Err(unreadable("an item is no object".into()));
        };
        fields.insert("agent".into(), agent.to_string().into());
    }
    Ok(items.into_iter().map(|item| (agent, item)).collect())
}

#[cfg(test)]
mod tests {
    use super::life;

    #[test]
    fn lives_are_in_the_order_of_their_numbers() {
        assert!(life("e10-1") > life("e9-2") && life("e9-10") > life("e9-2"));
        assert_eq!(["", "e1", "x1-2", "e-1"].map(life), [None; 4]);
    }
}
