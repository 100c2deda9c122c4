//! `/v1/frameworks`: creating, showing and removing frameworks, and reading their logs. Changes go
//! through the node; names are checked before anything is proposed.

use super::Api;
use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Document, Path, Query, location};
use super::{lookup, recordings};
use super::paging::{self, FrameworkPlace, List};
use super::views::{FrameworkJson, PolicyJson, RangeQuery, file_response};
use crate::files::Range;
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use tessera_master_core::{Piece, Reply, Request, RequestError, UnreachablePolicy};
use tessera_types::{Digest, FrameworkId, FrameworkName, RoleName};

/// What a framework is created from.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Unique within the tenant, which is the first part of the role.
    name: String,
    /// Its role; `default` when absent.
    #[serde(default = "default_role")]
    role: String,
    /// Digest of a scheduler, `sha256:…`.
    component: String,
    /// Given to the scheduler.
    #[serde(default)]
    config: BTreeMap<String, String>,
    /// What becomes of its tasks whose agent does not answer.
    unreachable: Option<PolicyJson>,
}

fn default_role() -> String {
    "default".into()
}

/// What is shown of a framework.
pub async fn view(api: &Api, id: FrameworkId) -> Result<FrameworkJson, ApiError> {
    api.node
        .query(move |core, _| core.framework(id).map(|view| FrameworkJson::of(view, core)))
        .await?
        .ok_or_else(|| ApiError::not_found("framework", id))
}

/// Create a framework; the same again is no error.
pub async fn create(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Query(dry): Query<DryRun>,
    Document(create): Document<Create>,
) -> Result<Response, ApiError> {
    let invalid = |field: &'static str| move |rule: String| ApiError::invalid(field, rule);
    let name: FrameworkName = create
        .name
        .parse()
        .map_err(|error: tessera_types::NameError| invalid("name")(error.to_string()))?;
    if name.as_str().parse::<FrameworkId>().is_ok() {
        return Err(
            ApiError::invalid("name", "a name must not look like an id, as `f1` does")
                .hint("paths and commands take either, and could not tell them apart"),
        );
    }
    let role: RoleName = create
        .role
        .parse()
        .map_err(|error: tessera_types::NameError| invalid("role")(error.to_string()))?;
    let component: Digest = create
        .component
        .parse()
        .map_err(|error: tessera_types::DigestError| invalid("component")(error.to_string()))?;
    let config: Vec<(String, String)> = create.config.into_iter().collect();
    let unreachable: UnreachablePolicy = create.unreachable.map(Into::into).unwrap_or_default();
    let request = Request::CreateFramework {
        name: name.clone(),
        role: role.clone(),
        component,
        config: config.clone(),
        unreachable,
    };
    if dry.asked() {
        return dry_run::rehearse(&api, asker, request, Vec::new()).await;
    }
    match api.node.request(asker, request).await {
        Ok(Reply::Framework(id)) => {
            let place = location(&format!("/v1/frameworks/{id}"))?;
            Ok((StatusCode::CREATED, place, Json(view(&api, id).await?)).into_response())
        }
        Ok(Reply::Component { .. } | Reply::Version(_) | Reply::Done) => Err(ApiError::internal("an unexpected reply")),
        Err(conflict @ RequestError::Conflict { .. }) => {
            let same = api
                .node
                .query(move |core, _| {
                    let id = core
                        .framework_by_name(Some(role.tenant()), name.as_str())
                        .ok()?;
                    let found = core.framework(id)?;
                    let same = found.role == role
                        && found.component == component
                        && found.config == config
                        && found.unreachable == unreachable;
                    same.then_some(id)
                })
                .await?;
            match same {
                Some(id) => Ok((StatusCode::OK, Json(view(&api, id).await?)).into_response()),
                None => Err(conflict.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Which frameworks.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FrameworksQuery {
    /// Only those in this role, or below it.
    role: Option<String>,
    /// Frameworks of one page, 1 to 1000; all without it.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// All frameworks.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<FrameworksQuery>,
) -> Result<Json<List<FrameworkJson>>, ApiError> {
    let limit = paging::limit_or_all(query.limit, query.after.as_deref())?;
    let role = query.role.as_deref().map(lookup::role).transpose()?;
    let list = paging::gather(&api.node, query.after.as_deref(), limit, move |core, _, after: Option<FrameworkPlace>, budget| {
        let piece = core.frameworks_from(role.as_ref(), after.map(|place| place.0), budget);
        let found = piece.found.into_iter().map(|view| FrameworkJson::of(view, core)).collect();
        Ok(Piece { found, next: piece.next.map(FrameworkPlace) })
    });
    list.await.map(Json)
}

/// One framework.
pub async fn inspect(
    State(api): State<Api>,
    Path(text): Path<String>,
) -> Result<Json<FrameworkJson>, ApiError> {
    let id = lookup::framework(&api.node, text).await?;
    view(&api, id).await.map(Json)
}

/// Remove a framework; its tasks are killed.
pub async fn remove(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let request = Request::RemoveFramework { framework };
    if dry.asked() {
        let live = api.node.query(move |core, _| core.framework(framework).map_or(0, |view| view.tasks_live)).await?;
        let would = vec![format!("{live} tasks are killed, and the framework and its state are no more once they have ended")];
        return dry_run::rehearse(&api, asker, request, would).await;
    }
    api.node.request(asker, request).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

/// A range of the scheduler's log, from the agent that hosts it or did last.
pub async fn log(
    State(api): State<Api>,
    Path(text): Path<String>,
    Query(range): Query<RangeQuery>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let agent = recordings::last_host(&api, framework).await?;
    let (offset, length) = range.checked()?;
    let range = Range {
        framework,
        task: String::new(),
        path: "scheduler.log".into(),
        offset,
        length,
    };
    Ok(file_response(offset, api.files.read(agent, range).await?))
}
