//! `/v1/version` and `/v1/openapi.json`: what this master is and what it can be asked.

use super::error::ApiError;
use super::{Api, openapi};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tessera_telemetry::BUILD;

/// The contract of guests that this build speaks.
const CONTRACT: &str = "tessera:framework@0.1.0";

/// What this master is.
#[derive(Serialize, JsonSchema)]
pub struct SoftwareJson {
    /// Of the software.
    version: &'static str,
    /// The commit that it was built from; absent when the build was not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    /// When it was built; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    built: Option<&'static str>,
    /// The commands that all masters of the cluster understand.
    cluster_version: u32,
    /// The contract of guests.
    contract: &'static str,
    /// The version of this API.
    api: &'static str,
}

/// What the master that is asked is.
pub async fn version(State(api): State<Api>) -> Result<Json<SoftwareJson>, ApiError> {
    let cluster_version = api.node.query(|core, _| core.cluster_version()).await?;
    Ok(Json(SoftwareJson {
        version: BUILD.version,
        commit: said(BUILD.commit),
        built: said(BUILD.built),
        cluster_version,
        contract: CONTRACT,
        api: "v1",
    }))
}

/// What whoever built this said, if anything.
fn said(text: &'static str) -> Option<&'static str> {
    (!text.is_empty()).then_some(text)
}

/// The API as a document.
pub async fn document() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], openapi::text()).into_response()
}
