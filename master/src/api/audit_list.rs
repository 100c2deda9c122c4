//! `/v1/audit`: who did what through the master that is asked.

use super::Api;
use super::audit::{Pick, Record};
use super::error::ApiError;
use super::extract::Query;
use super::paging::{self, List, RecordPlace};
use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Which records.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only of this principal.
    principal: Option<String>,
    /// Records of one page, 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
    /// The newest ones instead of the oldest; they have no next page.
    newest: Option<bool>,
}

/// Records of this master, oldest first.
pub async fn list(State(api): State<Api>, Query(query): Query<AuditQuery>) -> Result<Json<List<Record>>, ApiError> {
    let after: Option<RecordPlace> = paging::place(query.after.as_deref())?;
    let newest = query.newest.unwrap_or(false);
    if newest && after.is_some() {
        return Err(ApiError::invalid("newest", "not together with `after`"));
    }
    let pick = Pick {
        after: after.map_or(0, |place| place.0),
        principal: query.principal,
        limit: paging::limit(query.limit)?,
        newest,
    };
    let audit = Arc::clone(&api.audit);
    // The disk may take its time, and nobody else is to wait for it.
    let read = tokio::task::spawn_blocking(move || audit.read(&pick)).await;
    let records = match read {
        Ok(Ok(records)) => records,
        Ok(Err(error)) => {
            tracing::error!(%error, "reading the audit");
            return Err(ApiError::internal("the audit could not be read"));
        }
        Err(error) => return Err(ApiError::internal(error.to_string())),
    };
    Ok(Json(List {
        index: records.last,
        items: records.found.into(),
        next: records.next.map(|number| paging::cursor(&RecordPlace(number))),
    }))
}
