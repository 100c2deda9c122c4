//! `/health` and `/metrics`.

use super::Api;
use super::error::ApiError;
use crate::metrics::{self, Sources};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tessera_telemetry::ROLES_SHOWN_MAX;

#[derive(Serialize, JsonSchema)]
pub struct HealthJson {
    status: &'static str,
    /// Whether it is this one that leads.
    leader: bool,
    node: u64,
    /// Who leads, if that is known.
    leader_node: Option<u64>,
    term: u64,
    index: u64,
    version: &'static str,
    agents_connected: usize,
}

/// 200 when this master leads, or knows who does and passes requests on; 503 otherwise.
pub async fn health(State(api): State<Api>) -> Response {
    let health = api
        .node
        .query_status(|core, _, status| HealthJson {
            status: "ok",
            // It may have lost the lead a moment ago, and its core hears of that next.
            leader: core.is_leader() && status.leader == Some(status.node),
            node: status.node,
            leader_node: status.leader,
            term: status.term,
            index: status.applied.index,
            version: env!("CARGO_PKG_VERSION"),
            agents_connected: core.counts().agents_connected,
        })
        .await;
    match health {
        Ok(health) if health.leader => Json(health).into_response(),
        Ok(health) if health.leader_node.is_some_and(|leader| leader != health.node) => {
            Json(health).into_response()
        }
        Ok(health) => {
            let health = HealthJson { status: "no leader", ..health };
            (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
        }
        Err(stopped) => ApiError::from(stopped).into_response(),
    }
}

/// Numbers in Prometheus's text format.
pub async fn metrics(State(api): State<Api>) -> Result<Response, ApiError> {
    let (gauges, status) =
        api.node.query_status(|core, _, status| (core.gauges(ROLES_SHOWN_MAX), status.clone())).await?;
    let text = metrics::write(&Sources {
        metrics: &api.node.metrics,
        gauges: &gauges,
        status: &status,
        queue: api.node.queue(),
        watchers: api.events.watchers(),
        passed_on: api.writes.done(),
    });
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
