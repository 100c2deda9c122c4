//! Changing a framework that runs: its component, its configuration, and its release from quarantine.
//! Names are checked here; whether a change is possible is decided by the core.

use super::Api;
use super::error::ApiError;
use super::extract::{Document, Path};
use super::views::{FrameworkJson, PolicyJson};
use super::{frameworks, lookup};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{Reply, Request};
use tessera_types::{Digest, FrameworkId};

/// The version that a change of the component made, and the framework with it.
#[derive(Serialize)]
pub struct Changed {
    version: u64,
    #[serde(flatten)]
    framework: FrameworkJson,
}

/// Change the component; answered once the change stands, which is before it is final.
async fn change(
    api: &Api,
    asker: Asker,
    framework: FrameworkId,
    request: Request,
) -> Result<(StatusCode, Json<Changed>), ApiError> {
    let version = match api.node.request(asker, request).await? {
        Reply::Version(version) => version,
        Reply::Component { .. } | Reply::Framework(_) | Reply::Done => {
            return Err(ApiError::internal("an unexpected reply"));
        }
    };
    let framework = frameworks::view(api, framework).await?;
    Ok((StatusCode::ACCEPTED, Json(Changed { version, framework })))
}

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
    unreachable: Option<PolicyJson>,
}

/// The configuration in force.
#[derive(Serialize)]
pub struct ConfigJson {
    config: BTreeMap<String, String>,
    config_version: u64,
    config_seen: u64,
    unreachable: PolicyJson,
}

/// Change the component.
pub async fn upgrade(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Document(upgrade): Document<Upgrade>,
) -> Result<(StatusCode, Json<Changed>), ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let component: Digest =
        upgrade
            .component
            .parse()
            .map_err(|error: tessera_types::DigestError| {
                ApiError::invalid("component", error.to_string())
            })?;
    let request = Request::UpgradeFramework {
        framework,
        component,
    };
    change(&api, asker, framework, request).await
}

/// Go back to an earlier component.
pub async fn roll_back(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Document(to): Document<RollBack>,
) -> Result<(StatusCode, Json<Changed>), ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    if to.version == Some(0) {
        return Err(ApiError::invalid("version", "versions count from 1")
            .hint("leave it out for the version before"));
    }
    let request = Request::RollBackFramework {
        framework,
        version: to.version,
    };
    change(&api, asker, framework, request).await
}

/// Start a quarantined scheduler again.
pub async fn release(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
) -> Result<Json<FrameworkJson>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    api.node
        .request(asker, Request::ReleaseFramework { framework })
        .await?;
    frameworks::view(&api, framework).await.map(Json)
}

async fn show_config(api: &Api, framework: FrameworkId) -> Result<Json<ConfigJson>, ApiError> {
    let view = api
        .node
        .query(move |core, _| core.framework(framework))
        .await?
        .ok_or_else(|| ApiError::not_found("framework", framework))?;
    Ok(Json(ConfigJson {
        config: view.config.into_iter().collect(),
        config_version: view.config_version,
        config_seen: view.config_seen,
        unreachable: view.unreachable.into(),
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
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Document(new): Document<NewConfig>,
) -> Result<Json<ConfigJson>, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let request = Request::SetConfig {
        framework,
        config: new.config.into_iter().collect(),
        expected_version: new.expected_version,
        unreachable: new.unreachable.map(Into::into),
    };
    api.node.request(asker, request).await?;
    show_config(&api, framework).await
}
