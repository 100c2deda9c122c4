//! `/health` and `/metrics`.

use super::Api;
use super::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
struct Health {
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
        .query_status(|core, _, status| Health {
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
            let health = Health { status: "no leader", ..health };
            (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
        }
        Err(stopped) => ApiError::from(stopped).into_response(),
    }
}

/// Numbers in Prometheus's text format.
pub async fn metrics(State(api): State<Api>) -> Result<Response, ApiError> {
    let (counts, leader, term, applied) = api
        .node
        .query_status(|core, _, status| {
            (
                core.counts(),
                core.is_leader(),
                status.term,
                status.applied.index,
            )
        })
        .await?;
    let gauges = [
        ("tessera_agents", "Agents known.", counts.agents as u64),
        (
            "tessera_agents_connected",
            "Agents with a session.",
            counts.agents_connected as u64,
        ),
        (
            "tessera_frameworks",
            "Frameworks.",
            counts.frameworks as u64,
        ),
        (
            "tessera_components",
            "Components.",
            counts.components as u64,
        ),
        (
            "tessera_tasks_live",
            "Tasks that have not ended.",
            counts.tasks_live as u64,
        ),
        ("tessera_offers", "Offers that stand.", counts.offers as u64),
        (
            "tessera_http_in_flight",
            "Requests that wait for schedulers.",
            counts.http_in_flight as u64,
        ),
        (
            "tessera_total_cpus_milli",
            "CPU of all agents.",
            amount(counts.total.cpus_milli),
        ),
        (
            "tessera_used_cpus_milli",
            "CPU charged to tasks.",
            amount(counts.used.cpus_milli),
        ),
        (
            "tessera_total_mem_mib",
            "Memory of all agents.",
            amount(counts.total.mem_mib),
        ),
        (
            "tessera_used_mem_mib",
            "Memory charged to tasks.",
            amount(counts.used.mem_mib),
        ),
        (
            "tessera_leader",
            "1 while this master leads.",
            u64::from(leader),
        ),
        ("tessera_term", "Raft term.", term),
        (
            "tessera_applied_index",
            "Index of the last applied entry.",
            applied,
        ),
        (
            "tessera_state_writes_passed_on",
            "Writes of state that came here and went to the leader by the stream that they share.",
            api.writes.done(),
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

fn amount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
