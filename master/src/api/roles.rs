//! `/v1/roles`: weights, priorities and quota of roles, what each uses, and its share.

use super::amounts::{self, AmountsJson};
use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Document, Path, Query};
use super::paging::{self, List, RolePlace};
use super::{Api, conditions, lookup};
use crate::node_handle::Asker;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use tessera_master_core::{Piece, Request, RoleChange, RoleView};
use tessera_types::{MEM, DISK, Quantities, RoleName, RolePolicy};

/// Which roles.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolesQuery {
    /// Roles of one page, 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// A role.
#[derive(Serialize, JsonSchema)]
pub struct RoleJson {
    /// Its name.
    role: String,
    /// Its weight among the roles beside it.
    #[schemars(with = "f64")]
    weight: Number,
    /// Whose guarantee is met first; the higher the earlier.
    priority: u16,
    /// What it gets before others get more than theirs: `cpus`, `mem_mib`, `disk_mib`, and names of other resources.
    #[schemars(with = "BTreeMap<String, f64>")]
    guarantee: AmountsJson,
    /// What it never passes, with all roles below.
    #[schemars(with = "BTreeMap<String, f64>")]
    limit: AmountsJson,
    /// The smallest offer that is worth making.
    #[schemars(with = "BTreeMap<String, f64>")]
    min_offer: AmountsJson,
    /// Agents are kept free for requests of it that fit nowhere else.
    hold_back: bool,
    /// Changes with every change of the above; 0 when nothing is said of it.
    version: u64,
    /// Something is said of it.
    set: bool,
    /// Charged to its frameworks, and those of roles below.
    #[schemars(with = "BTreeMap<String, f64>")]
    used: AmountsJson,
    /// Offered to them now.
    #[schemars(with = "BTreeMap<String, f64>")]
    offered: AmountsJson,
    /// Used beside that, and may be taken back.
    #[schemars(with = "BTreeMap<String, f64>")]
    revocable: AmountsJson,
    /// The largest part that it has of any kind of resource, in millionths of the cluster's, offers included.
    share_ppm: u64,
    /// The kind of which it has that part; null when it has nothing.
    dominant: Option<String>,
    /// What it would have if everybody wanted more than there is.
    fair_share_ppm: u64,
    /// Frameworks in the role itself.
    frameworks: usize,
    /// Roles right below it.
    children: Vec<String>,
}

impl From<RoleView> for RoleJson {
    fn from(view: RoleView) -> Self {
        let RolePolicy { weight_milli, priority, guarantee, limit, min_offer, hold_back, version } = view.policy;
        Self {
            role: view.role,
            weight: amounts::decimal(weight_milli.into()),
            priority,
            guarantee: amounts::write(&guarantee),
            limit: amounts::write(&limit),
            min_offer: amounts::write_quantities(min_offer),
            hold_back,
            version,
            set: view.set,
            used: amounts::write_resources(&view.used),
            offered: amounts::write_resources(&view.offered),
            revocable: amounts::write_resources(&view.revocable),
            share_ppm: view.share_ppm,
            dominant: view.dominant.map(|kind| match kind.as_str() {
                MEM | DISK => format!("{kind}_mib"),
                _ => kind,
            }),
            fair_share_ppm: view.fair_share_ppm,
            frameworks: view.frameworks,
            children: view.children,
        }
    }
}

/// What is said of a role from now on. What is absent stays, null goes back to the default.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RolePut {
    /// A number, 0.001 to 1000000.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<f64>")]
    weight: Option<Value>,
    /// 0 to 1000.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<u32>")]
    priority: Option<Value>,
    /// All of it: `{"cpus": 4.5, "mem_mib": 1024, "gpus": 2}`.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<BTreeMap<String, AmountSaid>>")]
    guarantee: Option<Value>,
    /// All of it.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<BTreeMap<String, AmountSaid>>")]
    limit: Option<Value>,
    /// `cpus`, `mem_mib`, `disk_mib`.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<BTreeMap<String, AmountSaid>>")]
    min_offer: Option<Value>,
    /// Keep agents free for requests that fit nowhere else.
    #[serde(deserialize_with = "said")]
    #[schemars(with = "Option<bool>")]
    hold_back: Option<Value>,
}

/// An amount: a number, or a text with a unit.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it only describes what is read by hand")]
pub enum AmountSaid {
    /// At most three decimal places.
    Number(f64),
    /// For example `4GiB`.
    Text(String),
}

/// Null is said, too.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn object<'a>(field: &str, value: &'a Value) -> Result<Option<&'a Map<String, Value>>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) => Ok(Some(map)),
        _ => Err(ApiError::invalid(field, "an object of amounts, or null")),
    }
}

impl RolePut {
    fn change(&self) -> Result<RoleChange, ApiError> {
        let RolePolicy { weight_milli, priority, hold_back, .. } = RolePolicy::default();
        let weight = |value: &Value| match value {
            Value::Null => Ok(weight_milli),
            value => amounts::milli("weight", value).map(|milli| u32::try_from(milli).unwrap_or(u32::MAX)),
        };
        let priority = |value: &Value| match value {
            Value::Null => Ok(u32::from(priority)),
            value => value.as_u64().and_then(|found| u32::try_from(found).ok()).ok_or_else(|| ApiError::invalid("priority", "a whole number, 0 to 1000")),
        };
        let hold_back = |value: &Value| match value {
            Value::Null => Ok(hold_back),
            value => value.as_bool().ok_or_else(|| ApiError::invalid("hold_back", "true, false or null")),
        };
        let amounts = |field: &'static str| {
            move |value: &Value| object(field, value)?.map_or(Ok(Default::default()), |map| amounts::read(field, map))
        };
        let min_offer = |value: &Value| {
            object("min_offer", value)?.map_or(Ok(Quantities::ZERO), |map| amounts::read_quantities("min_offer", map))
        };
        Ok(RoleChange {
            weight_milli: self.weight.as_ref().map(weight).transpose()?,
            priority: self.priority.as_ref().map(priority).transpose()?,
            guarantee: self.guarantee.as_ref().map(amounts("guarantee")).transpose()?,
            limit: self.limit.as_ref().map(amounts("limit")).transpose()?,
            min_offer: self.min_offer.as_ref().map(min_offer).transpose()?,
            hold_back: self.hold_back.as_ref().map(hold_back).transpose()?,
        })
    }
}

/// Roles that have frameworks, or of which something is said, and those above them.
pub async fn list(State(api): State<Api>, Query(query): Query<RolesQuery>) -> Result<Json<List<RoleJson>>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let list = paging::gather(&api.node, query.after.as_deref(), limit, |core, _, after: Option<RolePlace>, budget| {
        let after = after.map(|place| place.0);
        let found = core.roles(after.as_deref(), budget.find);
        let next = found.last().filter(|_| found.len() >= budget.find).map(|last| RolePlace(last.role.clone()));
        Ok(Piece { found: found.into_iter().map(RoleJson::from).collect(), next })
    });
    list.await.map(Json)
}

async fn show(api: &Api, role: RoleName) -> Result<Response, ApiError> {
    let view = api.node.query(move |core, _| core.role(&role)).await?;
    let tag = conditions::tag(view.policy.version)?;
    Ok(([(header::ETAG, tag)], Json(RoleJson::from(view))).into_response())
}

/// One role, also when nothing is said of it.
pub async fn inspect(State(api): State<Api>, Path(role): Path<String>) -> Result<Response, ApiError> {
    show(&api, lookup::role(&role)?).await
}

async fn change(
    api: &Api,
    asker: Asker,
    role: RoleName,
    change: RoleChange,
    headers: &HeaderMap,
    dry: &DryRun,
) -> Result<Response, ApiError> {
    let expected_version = conditions::expected_version(headers)?;
    let request = Request::SetRole { role: role.clone(), change, expected_version };
    if dry.asked() {
        return dry_run::rehearse(api, asker, request, Vec::new()).await;
    }
    api.node.request(asker, request).await?;
    show(api, role).await
}

/// Say something of a role.
pub async fn put(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(role): Path<String>,
    Query(dry): Query<DryRun>,
    headers: HeaderMap,
    Document(put): Document<RolePut>,
) -> Result<Response, ApiError> {
    change(&api, asker, lookup::role(&role)?, put.change()?, &headers, &dry).await
}

/// Back to the defaults.
pub async fn reset(
    State(api): State<Api>,
    Extension(asker): Extension<Asker>,
    Path(role): Path<String>,
    Query(dry): Query<DryRun>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    change(&api, asker, lookup::role(&role)?, RoleChange::reset(), &headers, &dry).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str) -> Result<RoleChange, ApiError> {
        serde_json::from_str::<RolePut>(text).map_err(|error| ApiError::invalid("body", error.to_string()))?.change()
    }

    #[test]
    fn what_is_absent_stays_and_null_goes_back() {
        assert_eq!(change("{}").unwrap(), RoleChange::default());
        let said = change(r#"{"weight": 2.5, "priority": null, "guarantee": {"cpus": 1, "mem_mib": "1GiB"}, "limit": null}"#).unwrap();
        assert_eq!((said.weight_milli, said.priority, said.hold_back), (Some(2_500), Some(0), None));
        assert_eq!(said.guarantee.unwrap().get(MEM), Some(1_024));
        assert!(said.limit.unwrap().is_empty());
        for bad in [r#"{"weights": 1}"#, r#"{"weight": "much"}"#, r#"{"limit": 5}"#, r#"{"priority": -1}"#, r#"{"hold_back": 1}"#] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}
