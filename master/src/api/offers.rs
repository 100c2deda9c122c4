//! `/v1/offers`: what is offered to schedulers and not answered yet. Only the leader knows.

use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Path, Query};
use super::paging::{self, List, OfferPlace};
use super::views::ResourcesJson;
use super::{Api, lookup};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::{Action, Core, Object, OfferView, Piece, authorize};
use tessera_types::{OfferId, RoleName};

/// Which offers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OffersQuery {
    /// Only to this framework: its id, name, or `tenant:name`.
    framework: Option<String>,
    /// Only of this agent.
    agent: Option<String>,
    /// Only to frameworks in this role, or below it.
    role: Option<String>,
    /// Offers of one page, 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// An offer that stands.
#[derive(Serialize, JsonSchema)]
pub struct OfferJson {
    /// Its id.
    id: String,
    /// To whom: the framework's id.
    framework: String,
    /// The framework's name.
    framework_name: String,
    /// The framework's role.
    role: String,
    /// Of which agent.
    agent: String,
    /// How much.
    available: ResourcesJson,
    /// What is launched on it may be taken back at any time.
    revocable: bool,
    /// For how long it has stood.
    age_ms: u64,
}

fn shown(core: &Core, offer: OfferView) -> OfferJson {
    let (framework_name, role) = core.framework_names(offer.framework).map_or_else(Default::default, |(name, role)| (name, role.to_string()));
    OfferJson {
        id: offer.id.to_string(),
        framework: offer.framework.to_string(),
        framework_name,
        role,
        agent: offer.agent.to_string(),
        available: offer.available.into(),
        revocable: offer.revocable,
        age_ms: offer.age_ms,
    }
}

fn is_in(core: &Core, offer: &OfferView, role: &RoleName) -> bool {
    core.role_of(offer.framework).is_some_and(|of| of.lineage().any(|above| above == role.as_str()))
}

/// Offers that stand.
pub async fn list(State(api): State<Api>, Query(query): Query<OffersQuery>) -> Result<Json<List<OfferJson>>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let framework = lookup::some_framework(&api.node, query.framework).await?;
    let agent = query.agent.as_deref().map(lookup::agent).transpose()?;
    let role = query.role.as_deref().map(lookup::role).transpose()?;
    let ask = move |core: &mut Core, _: &dyn tessera_master_core::Rows, after: Option<OfferPlace>, budget: tessera_master_core::Budget| {
        // There are at most as many as agents have parts, all in memory.
        let mut offers = core.offers();
        offers.sort_by_key(|offer| offer.id);
        let wanted = offers.into_iter().filter(|offer| {
            after.as_ref().is_none_or(|after| offer.id.0 > after.0)
                && framework.is_none_or(|only| offer.framework == only)
                && agent.is_none_or(|only| offer.agent == only)
                && role.as_ref().is_none_or(|role| is_in(core, offer, role))
        });
        let mut wanted: Vec<OfferView> = wanted.take(budget.find + 1).collect();
        let more = wanted.len() > budget.find;
        wanted.truncate(budget.find);
        let next = wanted.last().filter(|_| more).map(|last| OfferPlace(last.id.0));
        Ok(Piece { found: wanted.into_iter().map(|offer| shown(core, offer)).collect(), next })
    };
    paging::gather(&api.node, query.after.as_deref(), limit, ask).await.map(Json)
}

/// Take an offer back: its framework is told, and what it was of is offered anew.
pub async fn rescind(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(text): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let offer: OfferId = text
        .parse()
        .map_err(|error: tessera_types::NameError| ApiError::invalid("offer", error.to_string()))?;
    authorize(&asker.principal, Action::Change, &Object::Framework { role: None })?;
    let gone = || ApiError::not_found("offer", offer).hint("it was answered, or is too old; `tessera offer ls` shows those that stand");
    if dry.asked() {
        let standing = api.node.query(move |core, _| core.offers().into_iter().find(|known| known.id == offer).map(|known| shown(core, known))).await?;
        let OfferJson { id, framework_name, agent, .. } = standing.ok_or_else(gone)?;
        let would = format!("take {id}, an offer of {agent}, back from {framework_name}; what it is of is offered anew");
        return Ok(dry_run::answer(vec![would], Vec::new()));
    }
    match api.node.query(move |core, _| core.take_back(offer)).await? {
        Some(true) => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(false) => Err(gone()),
        None => Err(ApiError::no_leader("this master does not lead any more")),
    }
}
