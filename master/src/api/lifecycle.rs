//! Changing a framework that runs: its component, its configuration, and its release from quarantine.
//! Names are checked here; whether a change is possible is decided by the core.

use super::Api;
use super::error::ApiError;
use super::extract::{Document, Path};
use super::views::FrameworkJson;
use super::{frameworks, lookup};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{Principal, Request};
use tessera_types::Digest;

type Answer = Result<(StatusCode, Json<FrameworkJson>), ApiError>;

/// A new component.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    component: String,
}

/// An earlier component; the one before if none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    version: Option<u64>,
}

/// A whole configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewConfig {
    config: BTreeMap<String, String>,
    expected_version: Option<u64>,
}

/// The configuration in force.
#[derive(Serialize)]
pub struct ConfigJson {
    config: BTreeMap<String, String>,
    config_version: u64,
    config_seen: u64,
}

/// Change the component.
pub async fn upgrade(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(text): Path<String>,
    Document(upgrade): Document<Upgrade>,
) -> Answer {
    let framework = lookup::framework(&api.node, text).await?;
    let component: Digest = upgrade
        .component
        .parse()
        .map_err(|error: tessera_types::DigestError| ApiError::invalid("component", error.to_string()))?;
    let request = Request::UpgradeFramework { framework, component };
    api.node.request(principal, request).await?;
    let view = frameworks::view(&api, framework).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// Go back to an earlier component.
pub async fn roll_back(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(text): Path<String>,
    Document(to): Document<RollBack>,
) -> Answer {
    let framework = lookup::framework(&api.node, text).await?;
    if to.version == Some(0) {
        return Err(ApiError::invalid("version", "versions count from 1")
            .hint("leave it out for the version before"));
    }
    let request = Request::RollBackFramework { framework, version: to.version };
    api.node.request(principal, request).await?;
    let view = frameworks::view(&api, framework).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// Start a quarantined scheduler again.
pub async fn release(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(text): Path<String>,
) -> Answer {
    let framework = lookup::framework(&api.node, text).await?;
    api.node
        .request(principal, Request::ReleaseFramework { framework })
        .await?;
    let view = frameworks::view(&api, framework).await?;
    Ok((StatusCode::OK, Json(view)))
}

async fn show_config(api: &Api, framework: tessera_types::FrameworkId) -> Result<Json<ConfigJson>, ApiError> {
    let view = api
        .node
        .query(move |core, _| core.framework(framework))
        .await?
        .ok_or_else(|| ApiError::not_found("framework", framework))?;
    Ok(Json(ConfigJson {
        config: view.config.into_iter().collect(),
        config_version: view.config_version,
        config_seen: view.config_seen,
    }))
}

/// The configuration in force, and what the scheduler has seen of it.
pub async fn config(
    State(api): State<Api>,
    Path(text): Path<String>,
) -> Result<Json<ConfigJson>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    show_config(&api, framework).await
}

/// Replace the configuration.
pub async fn set_config(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(text): Path<String>,
    Document(new): Document<NewConfig>,
) -> Result<Json<ConfigJson>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let request = Request::SetConfig {
        framework,
        config: new.config.into_iter().collect(),
        expected_version: new.expected_version,
    };
    api.node.request(principal, request).await?;
    show_config(&api, framework).await
}
