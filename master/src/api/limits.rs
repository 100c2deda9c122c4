//! `/v1/limits`: the table of limits as it is in force for a role or for the whole cluster, and what an
//! operator sets in it. Must never enforce a limit.

use super::Api;
use super::error::ApiError;
use super::extract::{Document, Query};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_master_core::{LimitSource, LimitView, Request};
use tessera_types::{LimitName, LimitRow, LimitUnit, RoleName};

/// Whose limits; the cluster's without a role.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    role: Option<String>,
}

/// What to set and what to leave to the parent role again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default)]
    set: BTreeMap<String, u64>,
    #[serde(default)]
    unset: Vec<String>,
}

/// The limits of one role.
#[derive(Serialize)]
pub struct LimitsJson {
    role: Option<String>,
    limits: Vec<LimitJson>,
}

#[derive(Serialize)]
struct LimitJson {
    name: &'static str,
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

impl Whose {
    /// An empty role is none, so that scripts can leave a variable empty.
    fn role(self) -> Result<Option<RoleName>, ApiError> {
        let named = self.role.filter(|role| !role.is_empty());
        named
            .map(|role| role.parse())
            .transpose()
            .map_err(|error: tessera_types::NameError| ApiError::invalid("role", error.to_string()))
    }
}

fn name(field: &'static str) -> impl Fn(&str) -> Result<LimitName, ApiError> {
    move |text| {
        text.parse()
            .map_err(|error: tessera_types::LimitError| ApiError::invalid(field, error.to_string()))
    }
}

async fn show(api: &Api, role: Option<RoleName>) -> Result<Json<LimitsJson>, ApiError> {
    let shown = role.as_ref().map(ToString::to_string);
    let limits = api
        .node
        .query(move |core, _| core.limits(role.as_ref()))
        .await?;
    Ok(Json(LimitsJson {
        role: shown,
        limits: limits.into_iter().map(Into::into).collect(),
    }))
}

/// What is in force.
pub async fn list(
    State(api): State<Api>,
    Query(whose): Query<Whose>,
) -> Result<Json<LimitsJson>, ApiError> {
    show(&api, whose.role()?).await
}

/// Set some, unset some: all or nothing.
pub async fn change(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Query(whose): Query<Whose>,
    Document(change): Document<Change>,
) -> Result<Json<LimitsJson>, ApiError> {
    let role = whose.role()?;
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
    };
    api.node.request(asker, request).await?;
    show(&api, role).await
}
