//! `/v1/agents`: what each agent has, uses and hosts. Reads only.

use super::Api;
use super::error::ApiError;
use super::extract::Path;
use super::views::{AgentJson, List};
use axum::Json;
use axum::extract::State;
use tessera_types::AgentId;

/// All agents.
pub async fn list(State(api): State<Api>) -> Result<Json<List<AgentJson>>, ApiError> {
    let (index, agents) = api
        .node
        .query_status(|core, _, status| (status.applied.index, core.agents()))
        .await?;
    Ok(Json(List {
        index,
        items: agents.into_iter().map(Into::into).collect(),
    }))
}

/// One agent, by id.
pub async fn inspect(
    State(api): State<Api>,
    Path(agent): Path<String>,
) -> Result<Json<AgentJson>, ApiError> {
    let id: AgentId = agent
        .parse()
        .map_err(|error: tessera_types::NameError| ApiError::invalid("agent", error.to_string()))?;
    let view = api.node.query(move |core, _| core.agent(id)).await?;
    view.map(|view| Json(view.into()))
        .ok_or_else(|| ApiError::not_found("agent", id))
}
