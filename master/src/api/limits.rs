//! `/v1/limits`: the table of limits as it is in force for a role or for the whole cluster, and what an
//! operator sets in it. Must never enforce a limit.

use super::Api;
use super::conditions;
use super::dry_run;
use super::error::ApiError;
use super::extract::{Document, Query};
use super::state::hex;
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{LimitSource, LimitView, Request};
use tessera_types::{LimitName, LimitRow, LimitUnit, RoleName};

/// Whose limits; the cluster's without a role.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsQuery {
    /// The role; the whole cluster without it.
    role: Option<String>,
}

/// Whose limits are changed; the cluster's without a role.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuery {
    /// The role; the whole cluster without it.
    role: Option<String>,
    /// `true`: nothing is changed, and the answer says what would be.
    dry_run: Option<bool>,
}

/// What to set and what to leave to the parent role again.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Values by the names of limits.
    #[serde(default)]
    set: BTreeMap<String, u64>,
    /// Names of limits that the parent role decides again.
    #[serde(default)]
    unset: Vec<String>,
}

/// The limits of one role.
#[derive(Serialize, JsonSchema)]
pub struct LimitsJson {
    /// Whose; null is the cluster.
    role: Option<String>,
    limits: Vec<LimitJson>,
}

#[derive(Serialize, JsonSchema)]
struct LimitJson {
    name: &'static str,
    /// `bytes`, `ms`, `count` and so on.
    #[schemars(with = "String")]
    unit: LimitUnit,
    value: u64,
    default: u64,
    min: u64,
    max: u64,
    from: String,
    what: &'static str,
}

impl From<LimitView> for LimitJson {
    fn from(view: LimitView) -> Self {
        let LimitRow {
            name,
            unit,
            default,
            min,
            max,
            what,
        } = view.name.row();
        let from = match view.from {
            LimitSource::Default => "default".to_owned(),
            LimitSource::Cluster => "cluster".to_owned(),
            LimitSource::Role(role) => role,
        };
        Self {
            name,
            unit,
            value: view.value,
            default,
            min,
            max,
            from,
            what,
        }
    }
}

/// An empty role is none, so that scripts can leave a variable empty.
fn role(named: Option<&str>) -> Result<Option<RoleName>, ApiError> {
    let named = named.filter(|role| !role.is_empty());
    named
        .map(|role| role.parse())
        .transpose()
        .map_err(|error: tessera_types::NameError| ApiError::invalid("role", error.to_string()))
}

fn name(field: &'static str) -> impl Fn(&str) -> Result<LimitName, ApiError> {
    move |text| {
        text.parse()
            .map_err(|error: tessera_types::LimitError| ApiError::invalid(field, error.to_string()))
    }
}

async fn show(api: &Api, role: Option<RoleName>) -> Result<Response, ApiError> {
    let shown = role.as_ref().map(ToString::to_string);
    let (limits, tag) = api
        .node
        .query(move |core, _| (core.limits(role.as_ref()), core.limits_tag(role.as_ref())))
        .await?;
    let tag = HeaderValue::from_str(&format!("\"{}\"", hex(&tag)))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let shown = LimitsJson { role: shown, limits: limits.into_iter().map(Into::into).collect() };
    Ok(([(header::ETAG, tag)], Json(shown)).into_response())
}

/// The tag that the limits of the role have to have.
fn expected(headers: &HeaderMap) -> Result<Option<Vec<u8>>, ApiError> {
    let Some(text) = conditions::if_match(headers)? else { return Ok(None) };
    let byte = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let tag: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    tag.map(Some).ok_or_else(conditions::another)
}

/// What is in force.
pub async fn list(
    State(api): State<Api>,
    Query(whose): Query<LimitsQuery>,
) -> Result<Response, ApiError> {
    show(&api, role(whose.role.as_deref())?).await
}

/// Set some, unset some: all or nothing.
pub async fn change(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Query(whose): Query<ChangeQuery>,
    headers: HeaderMap,
    Document(change): Document<Change>,
) -> Result<Response, ApiError> {
    let expected = expected(&headers)?;
    let role = role(whose.role.as_deref())?;
    let set: Vec<(LimitName, u64)> = change
        .set
        .iter()
        .map(|(text, value)| Ok((name("set")(text)?, *value)))
        .collect::<Result<_, ApiError>>()?;
    let unset: Vec<LimitName> = change
        .unset
        .iter()
        .map(|text| name("unset")(text))
        .collect::<Result<_, _>>()?;
    if let Some((both, _)) = set.iter().find(|(name, _)| unset.contains(name)) {
        return Err(ApiError::invalid(
            "unset",
            format!("{both} is to be set and unset at once"),
        ));
    }
    let request = Request::SetLimits {
        role: role.clone(),
        set,
        unset,
        expected,
    };
    if whose.dry_run.unwrap_or(false) {
        return dry_run::rehearse(&api, asker, request, Vec::new()).await;
    }
    api.node.request(asker, request).await?;
    show(&api, role).await
}
