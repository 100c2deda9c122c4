//! Changing a framework that runs: its component, its configuration, and its release from quarantine.
//! Names are checked here; whether a change is possible is decided by the core.

use super::Api;
use super::conditions;
use super::dry_run::{self, DryRun, ForeseenJson};
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
use tessera_master_core::{FrameworkView, Reply, Request, RequestError};
use tessera_telemetry::log::moment;
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
        let before = seen(api, framework).await?;
        let events = dry_run::foresee(api, asker, request).await?;
        return Ok(dry_run::answer(change_foreseen(&before, &events), events));
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

async fn seen(api: &Api, framework: FrameworkId) -> Result<FrameworkView, ApiError> {
    let view = api.node.query(move |core, _| core.framework(framework)).await?;
    view.ok_or_else(|| ApiError::not_found("framework", framework))
}

/// What a change of the component would do, with what is there now.
fn change_foreseen(before: &FrameworkView, events: &[ForeseenJson]) -> Vec<String> {
    let version = before.versions.last().map_or(0, |last| last.version);
    let told = events.iter().map(|event| match event.parts() {
        ("framework.upgrading", to) => format!(
            "replace version {version}, {}, by {to}, which is on trial until its first turn that does something",
            before.component
        ),
        ("framework.migrating", text) => format!("carry the state over {text}"),
        ("framework.rolled-back", text) => format!("give up the upgrade: {text}"),
        _ => event.told(),
    });
    let mut would: Vec<String> = told.collect();
    if !would.is_empty() {
        would.push(format!("keep {} live tasks and {} bytes of state in {} keys", before.tasks_live, before.state_bytes, before.state_keys));
    }
    would
}

/// Characters of a value that a sentence quotes.
const VALUE_SHOWN: usize = 60;

/// What another configuration would change.
fn config_foreseen(before: &[(String, String)], after: &BTreeMap<String, String>, events: &[ForeseenJson]) -> Vec<String> {
    let before: BTreeMap<&str, &str> = before.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let short = |value: &str| match value.char_indices().nth(VALUE_SHOWN) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    };
    let set = after.iter().filter_map(|(key, value)| match before.get(key.as_str()) {
        Some(old) if *old == value => None,
        Some(old) => Some(format!("set {key} to {} in place of {}", short(value), short(old))),
        None => Some(format!("set {key} to {}, which is not set now", short(value))),
    });
    let unset = before.iter().filter(|(key, _)| !after.contains_key(**key));
    let unset = unset.map(|(key, old)| format!("unset {key}, which is {}", short(old)));
    // What is said of the configuration itself is said above.
    let others = events.iter().filter(|event| event.parts().0 != "framework.config-changed").map(ForeseenJson::told);
    set.chain(unset).chain(others).collect()
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
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let framework = lookup::framework(&api.node, text).await?;
    let request = Request::ReleaseFramework { framework };
    if !dry.asked() {
        api.node.request(asker, request).await?;
        return Ok(Json(frameworks::view(&api, framework).await?).into_response());
    }
    let before = seen(&api, framework).await?;
    let events = dry_run::foresee(&api, asker, request).await?;
    let would = match (&before.quarantine, before.failing.in_a_row) {
        (Some(quarantine), _) => format!("end the quarantine of {} since {}, and start its scheduler", before.name, moment(quarantine.since_ms)),
        (None, 0) => format!("nothing: {} is not quarantined", before.name),
        (None, _) => format!("forget the last failures of {}, which is not quarantined", before.name),
    };
    Ok(dry_run::answer(vec![would], events))
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
    let after = dry.asked().then(|| new.config.clone());
    let request = Request::SetConfig {
        framework,
        config: new.config.into_iter().collect(),
        expected_version: matched.or(new.expected_version),
        unreachable: new.unreachable.map(Into::into),
    };
    if let Some(after) = after {
        let before = seen(&api, framework).await?;
        let events = dry_run::foresee(&api, asker, request).await?;
        return Ok(dry_run::answer(config_foreseen(&before.config, &after, &events), events));
    }
    match api.node.request(asker, request).await {
        Ok(_) => show_config(&api, framework).await,
        Err(RequestError::Conflict { field: "expected_version", rule }) if matched.is_some() => Err(ApiError::precondition(rule)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_compared_key_by_key() {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
        let long = "x".repeat(VALUE_SHOWN + 1);
        let said = config_foreseen(
            &pairs(&[("count", "5"), ("same", "1"), ("old", "é")]),
            &pairs(&[("count", "7"), ("same", "1"), ("new", &long)]).into_iter().collect(),
            &[],
        );
        let cut = "x".repeat(VALUE_SHOWN);
        assert_eq!(
            said,
            [
                "set count to \"7\" in place of \"5\"".to_owned(),
                format!("set new to \"{cut}\"…, which is not set now"),
                "unset old, which is \"é\"".to_owned(),
            ]
        );
    }
}
