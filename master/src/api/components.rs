//! `/v1/components`: uploads are streamed to disk, judged in another process, and only then known.

use super::Api;
use super::error::ApiError;
use super::extract::{Path, Query};
use super::views::{ComponentJson, List};
use crate::store::UploadError;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use tessera_master_core::{Principal, Reply, Request, World};
use tessera_types::Digest;
use tessera_types::limits::COMPONENT_BYTES_MAX;

/// Parameters of an upload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadQuery {
    digest: Option<String>,
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error: tessera_types::DigestError| ApiError::invalid("digest", error.to_string()))
}

/// Take a component.
pub async fn upload(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let named = query.digest.as_deref().map(digest).transpose()?;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > COMPONENT_BYTES_MAX) {
        return Err(UploadError::TooLarge.into());
    }
    let mut upload = api.store.begin().await?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece
            .map_err(|error| ApiError::invalid("body", format!("the upload broke off: {error}")))?;
        upload.write(&piece).await?;
    }
    let staged = upload.finish(named).await?;
    let (digest, size_bytes) = (staged.digest, staged.size);
    if let Some(view) = api
        .node
        .query(move |core, _| core.component(&digest))
        .await?
    {
        return Ok((StatusCode::OK, Json(ComponentJson::of(view, false))).into_response());
    }
    let inspection = api.inspector.inspect(staged.path()).await?;
    let world = match inspection.world.as_str() {
        "scheduler" => World::Scheduler,
        "command" => World::Command,
        "executor" => {
            return Err(ApiError::invalid(
                "component",
                "this is an executor; custom executors are not supported by this version",
            ));
        }
        other => {
            return Err(ApiError::invalid(
                "component",
                format!("the component's world is {other:?}; it exports neither a scheduler nor wasi:cli/run"),
            )
            .hint("build a scheduler with the SDK, or a command for the target wasm32-wasip2"));
        }
    };
    api.store.keep(staged).await?;
    let request = Request::AddComponent {
        digest,
        size_bytes,
        world,
    };
    match api.node.request(principal, request).await? {
        Reply::Component { view, created } => {
            let status = if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            Ok((status, Json(ComponentJson::of(view, created))).into_response())
        }
        Reply::Framework(_) | Reply::Done => Err(ApiError::internal("an unexpected reply")),
    }
}

/// All components.
pub async fn list(State(api): State<Api>) -> Result<Json<List<ComponentJson>>, ApiError> {
    let (index, components) = api
        .node
        .query_status(|core, _, status| (status.applied.index, core.components()))
        .await?;
    let items = components
        .into_iter()
        .map(|view| ComponentJson::of(view, false))
        .collect();
    Ok(Json(List { index, items }))
}

/// One component.
pub async fn inspect(
    State(api): State<Api>,
    Path(text): Path<String>,
) -> Result<Json<ComponentJson>, ApiError> {
    let digest = digest(&text)?;
    let view = api
        .node
        .query(move |core, _| core.component(&digest))
        .await?;
    view.map(|view| Json(ComponentJson::of(view, false)))
        .ok_or_else(|| ApiError::not_found("component", digest))
}
