//! `?dry_run=true`: what a request would do, without doing it.
//!
//! Invariant: a dry run is refused as the request would be, and changes nothing.

use super::Api;
use super::error::ApiError;
use crate::node_handle::Asker;
use axum::Json;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::Request;

/// Only ask what would be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// `true`: nothing is changed, and the answer says what would be.
    dry_run: Option<bool>,
}

impl DryRun {
    /// Whether it is one.
    pub fn asked(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }
}

/// What a request would do.
#[derive(Serialize, JsonSchema)]
pub struct DryRunJson {
    /// Nothing was changed.
    dry_run: bool,
    /// What would be, in words.
    would: Vec<String>,
    /// The events that would be written.
    events: Vec<ForeseenJson>,
}

/// An event that would be written.
#[derive(Serialize, JsonSchema)]
pub struct ForeseenJson {
    /// Its kind.
    kind: String,
    /// Its text.
    text: String,
}

/// What has to be said of a request, with what the commands say themselves.
pub async fn rehearse(api: &Api, asker: Asker, request: Request, would: Vec<String>) -> Result<Response, ApiError> {
    let events = foresee(api, asker, request).await?;
    let would = match would.is_empty() {
        true => events.iter().map(ForeseenJson::told).collect(),
        false => would,
    };
    Ok(answer(would, events))
}

impl ForeseenJson {
    /// In words.
    pub fn told(&self) -> String {
        match self.text.as_str() {
            "" => self.kind.clone(),
            text => format!("{}: {text}", self.kind),
        }
    }

    /// Its kind and its text.
    pub fn parts(&self) -> (&str, &str) {
        (&self.kind, &self.text)
    }
}

/// The events that a request would write.
pub async fn foresee(api: &Api, asker: Asker, request: Request) -> Result<Vec<ForeseenJson>, ApiError> {
    let removal = matches!(request, Request::RemoveFramework { .. });
    let principal = asker.principal;
    let found = api.node.query(move |core, rows| core.rehearse(&principal, request, rows)).await??;
    // The rehearsal knows of no tasks, which are ended first.
    let events = found.events.into_iter().filter(|(kind, _)| !(removal && kind == "framework.removed"));
    Ok(events.map(|(kind, text)| ForeseenJson { kind, text }).collect())
}

/// What would be; of nothing it is said that it would be nothing.
pub fn answer(mut would: Vec<String>, events: Vec<ForeseenJson>) -> Response {
    if would.is_empty() {
        would.push("nothing: it is so already".to_owned());
    }
    Json(DryRunJson { dry_run: true, would, events }).into_response()
}
