//! `/v1/components`: what is sent or pulled is streamed to disk, judged in another process, and only then
//! known.

use super::Api;
use super::dry_run;
use super::error::ApiError;
use super::extract::{Document, Path, Query, location};
use super::paging::{self, ComponentPlace, List};
use super::views::{ComponentJson, UsesJson};
use crate::inspect::Inspection;
use crate::node_handle::Asker;
use crate::oci::Reference;
use crate::shelf::IntakeError;
use crate::store::{Staged, UploadError};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, FromRequest, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::{Piece, Principal, Reply, Request, StateVersions, World};
use tessera_types::{Digest, LimitName};
use tokio_stream::wrappers::ReceiverStream;

/// Parameters of an upload.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadQuery {
    /// What the bytes have to have: `sha256:` and 64 hex digits.
    digest: Option<String>,
    /// `true`: it is judged and not kept, and the answer says what would be.
    #[serde(default)]
    dry_run: bool,
}

/// Where a component is to be pulled from.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `oci://HOST[:PORT]/REPOSITORY` with `:TAG` or `@sha256:…`.
    source: String,
    /// Leave out TLS; for a registry on the master's own machine.
    #[serde(default)]
    plain_http: bool,
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error: tessera_types::DigestError| ApiError::invalid("digest", error.to_string()))
}

/// Take a component: its bytes, or a document that says where they are.
pub async fn add(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Query(query): Query<UploadQuery>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let named = query.digest.as_deref().map(digest).transpose()?;
    let limits = api
        .node
        .query(|core, _| core.effective_limits(None))
        .await?;
    let most = limits.get(LimitName::ComponentBytes);
    let (staged, source) = if is_json(request.headers()) {
        if named.is_some() {
            return Err(
                ApiError::invalid("digest", "a source names its digest itself")
                    .hint("write oci://HOST/REPOSITORY@sha256:…"),
            );
        }
        let Document(source) = Document::<Source>::from_request(request, &()).await?;
        pull(&api, &source, most).await?
    } else {
        if api.puller.wants_signatures() && !api.allow_unsigned_uploads {
            return Err(ApiError::unsigned_upload());
        }
        let staged = receive(&api, request, most, named).await?;
        (staged, String::new())
    };
    let dry = query.dry_run;
    if let Some(known) = known(&api, staged.digest).await? {
        if dry {
            return Ok(dry_run::answer(vec![format!("nothing: {} is there already", staged.digest)], Vec::new()));
        }
        // Its file may have been lost or damaged: whoever sends it again brings it back.
        api.store.keep(staged).await?;
        return Ok((StatusCode::OK, Json(known)).into_response());
    }
    let made = api.store.beside();
    let inspection = api
        .inspector
        .inspect(staged.path(), made.path(), &limits)
        .await?;
    let sent = staged.digest;
    match api.store.take(made, most).await? {
        Some(made) => keep(&api, principal, made, Some(sent), &inspection, source, dry).await,
        None => keep(&api, principal, staged, None, &inspection, source, dry).await,
    }
}

/// A document has to be called one: bytes are what everything else is.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

async fn pull(api: &Api, source: &Source, most: u64) -> Result<(Staged, String), ApiError> {
    let reference: Reference =
        source
            .source
            .parse()
            .map_err(|error: crate::oci::ReferenceError| {
                ApiError::invalid("source", error.to_string())
            })?;
    let upload = api.store.begin(most).await?;
    let pulled = api
        .puller
        .pull(&reference, source.plain_http, most, upload)
        .await?;
    Ok((pulled.staged, pulled.source.to_string()))
}

async fn receive(
    api: &Api,
    request: HttpRequest,
    most: u64,
    named: Option<Digest>,
) -> Result<Staged, ApiError> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > most) {
        return Err(IntakeError::TooLarge { most }.into());
    }
    let mut upload = api.store.begin(most).await?;
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece
            .map_err(|error| ApiError::invalid("body", format!("the upload broke off: {error}")))?;
        upload.write(&piece).await?;
    }
    Ok(upload.finish(named).await?)
}

async fn known(api: &Api, digest: Digest) -> Result<Option<ComponentJson>, ApiError> {
    let view = api
        .node
        .query(move |core, _| core.component(&digest))
        .await?;
    Ok(view.map(|view| ComponentJson::of(view, false)))
}

/// Store what was judged, and make it known.
async fn keep(
    api: &Api,
    principal: Principal,
    staged: Staged,
    sent: Option<Digest>,
    inspection: &Inspection,
    source: String,
    dry: bool,
) -> Result<Response, ApiError> {
    let world = match inspection.world.as_str() {
        "scheduler" => World::Scheduler,
        "command" => World::Command,
        "executor" => World::Executor,
        other => {
            return Err(ApiError::invalid(
                "component",
                format!(
                    "the component's world is {other:?}; it exports neither a scheduler nor an \
                     executor nor wasi:cli/run"
                ),
            )
            .hint("build a scheduler with the SDK, or a command for the target wasm32-wasip2"));
        }
    };
    let (digest, size_bytes) = (staged.digest, staged.size);
    // What was made from other bytes may be known although these are not.
    if let Some(known) = known(api, digest).await? {
        if dry {
            return Ok(dry_run::answer(vec![format!("nothing: {digest}, which is made of it, is there already")], Vec::new()));
        }
        api.store.keep(staged).await?;
        return Ok((StatusCode::OK, Json(known.made_from(sent))).into_response());
    }
    let request = Request::AddComponent {
        digest,
        size_bytes,
        world,
        state: StateVersions {
            writes: inspection.writes_state.unwrap_or_default(),
            reads: inspection.reads_state.clone(),
            migrates: inspection.migrates,
        },
        source,
        report: inspection.report(sent.map(|digest| digest.to_string()).as_deref()),
    };
    if dry {
        let made = if sent.is_some() { "make a component of it and add that: " } else { "add " };
        let would = format!("{made}{digest}, a {} of {size_bytes} bytes", world.name());
        return dry_run::rehearse(api, principal.into(), request, vec![would]).await;
    }
    // Until the state names it, or the upload has failed.
    let _held = api.store.hold(digest);
    api.store.keep(staged).await?;
    api.fetcher.spread(digest, size_bytes).await?;
    match api.node.request(principal, request).await? {
        Reply::Component { view, created } => {
            let status = if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            let place = location(&format!("/v1/components/{digest}"))?;
            let shown = ComponentJson::of(view, created).made_from(sent);
            Ok((status, place, Json(shown)).into_response())
        }
        Reply::Framework(_) | Reply::Version(_) | Reply::Done => {
            Err(ApiError::internal("an unexpected reply"))
        }
    }
}

/// Which components.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ComponentsQuery {
    /// Components of one page, 1 to 1000; all without it.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// All components.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<ComponentsQuery>,
) -> Result<Json<List<ComponentJson>>, ApiError> {
    let limit = paging::limit_or_all(query.limit, query.after.as_deref())?;
    let uses = api.node.query(|core, _| core.component_uses()).await?;
    let list = paging::gather(&api.node, query.after.as_deref(), limit, |core, _, after: Option<ComponentPlace>, budget| {
        let piece = core.components_from(after.map(|place| place.0), budget.find);
        Ok(Piece { found: piece.found, next: piece.next.map(ComponentPlace) })
    });
    let List { index, items, next } = list.await?;
    let items = items.into_iter().map(|view| {
        let uses = uses.get(&view.digest).map_or(&[][..], Vec::as_slice);
        ComponentJson::of(view, false).used_by(uses)
    });
    Ok(Json(List { index, items: items.collect(), next }))
}

/// One component, with what its judgement found.
pub async fn inspect(
    State(api): State<Api>,
    Path(text): Path<String>,
) -> Result<Json<ComponentJson>, ApiError> {
    let digest = digest(&text)?;
    let (view, report, uses) = api
        .node
        .query(move |core, rows| {
            (
                core.component(&digest),
                core.component_report(&digest, rows),
                core.uses_of_component(&digest),
            )
        })
        .await?;
    let view = view.ok_or_else(|| ApiError::not_found("component", digest))?;
    let report = report?.unwrap_or_default();
    let shown = ComponentJson::of(view, false).used_by(&uses);
    Ok(Json(shown.with_report(&report)))
}

/// Parameters of a removal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveQuery {
    /// `true`: nothing is removed, and the answer says who uses it.
    #[serde(default)]
    dry_run: bool,
}

/// What became of a removal, or would.
#[derive(Serialize, JsonSchema)]
pub struct Removal {
    /// Which component.
    digest: String,
    /// It is no more.
    removed: bool,
    /// It was only asked what would be.
    dry_run: bool,
    #[serde(flatten)]
    uses: UsesJson,
}

/// Forget a component that nothing uses.
pub async fn remove(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<Removal>, ApiError> {
    let digest = digest(&text)?;
    let uses = if query.dry_run {
        let known = api.node.query(move |core, _| {
            core.component(&digest).map(|_| core.uses_of_component(&digest))
        });
        let uses = known.await?;
        uses.ok_or_else(|| ApiError::not_found("component", digest))?
    } else {
        api.node
            .request(asker, Request::RemoveComponent { digest })
            .await?;
        Vec::new()
    };
    Ok(Json(Removal {
        digest: digest.to_string(),
        removed: !query.dry_run,
        dry_run: query.dry_run,
        uses: UsesJson::of(&uses),
    }))
}

/// The bytes of a component.
pub async fn content(
    State(api): State<Api>,
    Path(text): Path<String>,
) -> Result<Response, ApiError> {
    let digest = digest(&text)?;
    if known(&api, digest).await?.is_none() {
        return Err(ApiError::not_found("component", digest));
    }
    let (size, pieces) = api.store.send(digest).await.map_err(UploadError::from)?;
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(pieces)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/wasm"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}
