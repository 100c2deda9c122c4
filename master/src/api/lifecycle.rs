//! Changing a framework that runs: its component, its configuration, and its release from quarantine.
//! Names are checked here; whether a change is possible is decided by the core.

use super::Api;
use super::conditions;
use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Document, Path, Query};
use super::views::{FrameworkJson, PolicyJson};
use super::{frameworks, lookup};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{Reply, Request, RequestError};
use tessera_types::{Digest, FrameworkId};

/// The version that a change of the component made, and the framework with it.
#[derive(Serialize, JsonSchema)]
pub struct Changed {
    /// The version that this made.
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
    dry: &DryRun,
) -> Result<Response, ApiError> {
    if dry.asked() {
        return dry_run::rehearse(api, asker, request, Vec::new()).await;
    }
    let version = match api.node.request(asker, request).await? {
        Reply::Version(version) => version,
        Reply::Component { .. } | Reply::Framework(_) | Reply::Done => {
            return Err(ApiError::internal("an unexpected reply"));
        }
    };
    let framework = frameworks::view(api, framework).await?;
    Ok((StatusCode::ACCEPTED, Json(Changed { version, framework })).into_response())
}

/// A new component.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// Digest of a scheduler that reads the framework's state, `sha256:…`.
    component: String,
}

/// An earlier component; the one before if none is named.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Of its history; the one before when absent.
    version: Option<u64>,
}

/// A whole configuration.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewConfig {
    /// All of it.
    config: BTreeMap<String, String>,
    /// Refused, 409, if another version is in force. `If-Match` says the same.
    expected_version: Option<u64>,
    /// Stays when absent.
    unreachable: Option<PolicyJson>,
}

/// The configuration in force.
#[derive(Serialize, JsonSchema)]
pub struct ConfigJson {
    /// All of it.
    config: BTreeMap<String, String>,
    /// Counts replacements, from 1.
    config_version: u64,
    /// The newest version that a turn of the scheduler has seen.
    config_seen: u64,
    unreachable: PolicyJson,
}

/// Change the component.
pub async fn upgrade(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(dry): Query<DryRun>,
    Document(upgrade): Document<Upgrade>,
) -> Result<Response, ApiError> {
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
    change(&api, asker, framework, request, &dry).await
}

/// Go back to an earlier component.
pub async fn roll_back(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(dry): Query<DryRun>,
    Document(to): Document<RollBack>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    if to.version == Some(0) {
        return Err(ApiError::invalid("version", "versions count from 1")
            .hint("leave it out for the version before"));
    }
    let request = Request::RollBackFramework {
        framework,
        version: to.version,
    };
    change(&api, asker, framework, request, &dry).await
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

async fn show_config(api: &Api, framework: FrameworkId) -> Result<Response, ApiError> {
    let view = api
        .node
        .query(move |core, _| core.framework(framework))
        .await?
        .ok_or_else(|| ApiError::not_found("framework", framework))?;
    let tag = conditions::tag(view.config_version)?;
    let shown = ConfigJson {
        config: view.config.into_iter().collect(),
        config_version: view.config_version,
        config_seen: view.config_seen,
        unreachable: view.unreachable.into(),
    };
    Ok(([(header::ETAG, tag)], Json(shown)).into_response())
}

/// The configuration in force, and what the scheduler has seen of it.
pub async fn config(State(api): State<Api>, Path(text): Path<String>) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    show_config(&api, framework).await
}

/// Replace the configuration.
pub async fn set_config(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(dry): Query<DryRun>,
    headers: HeaderMap,
    Document(new): Document<NewConfig>,
) -> Result<Response, ApiError> {
    let matched = conditions::expected_version(&headers)?;
    if let (Some(matched), Some(expected)) = (matched, new.expected_version)
        && matched != expected
    {
        return Err(ApiError::invalid("expected_version", "`If-Match` names another version"));
    }
    let framework = lookup::framework(&api.node, text).await?;
    let request = Request::SetConfig {
        framework,
        config: new.config.into_iter().collect(),
        expected_version: matched.or(new.expected_version),
        unreachable: new.unreachable.map(Into::into),
    };
    if dry.asked() {
        return dry_run::rehearse(&api, asker, request, Vec::new()).await;
    }
    match api.node.request(asker, request).await {
        Ok(_) => show_config(&api, framework).await,
        Err(RequestError::Conflict { field: "expected_version", rule }) if matched.is_some() => Err(ApiError::precondition(rule)),
        Err(error) => Err(error.into()),
    }
}
