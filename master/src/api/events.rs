//! `/v1/events`: changes as they are committed, as server-sent events.
//!
//! Invariants: events are read from rows, not queued per watcher: a slow watcher costs nothing and
//! learns from `gap` that it missed some.

use super::Api;
use super::error::ApiError;
use crate::node_handle::NodeHandle;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use tessera_master_core::{EventId, EventRecord, EventsPage};
use tokio::sync::watch;

/// Events read at once for one watcher.
const PAGE: usize = 256;

#[derive(Serialize)]
struct EventJson {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    framework: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    at_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    principal: String,
}

fn id_text(id: EventId) -> String {
    format!("{}-{}", id.index, id.n)
}

fn parse_id(text: &str) -> Option<EventId> {
    let (index, n) = text.split_once('-')?;
    Some(EventId {
        index: index.parse().ok()?,
        n: n.parse().ok()?,
    })
}

fn sse_event(record: EventRecord) -> Event {
    let json = EventJson {
        kind: record.kind,
        framework: record.framework.map(|id| id.to_string()),
        task: record.task.map(|id| id.to_string()),
        agent: record.agent.map(|id| id.to_string()),
        at_ms: record.at_ms,
        text: record.text,
        principal: record.principal,
    };
    let event = Event::default().id(id_text(record.id));
    // Every field is text or a number, which always encodes.
    event.json_data(json).unwrap_or_default()
}

struct Watcher {
    node: NodeHandle,
    newest: watch::Receiver<EventId>,
    after: EventId,
    ready: VecDeque<Event>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            self.newest.mark_unchanged();
            let after = self.after;
            let page = self
                .node
                .query(move |core, rows| core.events(Some(after), PAGE, rows))
                .await;
            let Ok(Ok(EventsPage {
                events, gap, floor, ..
            })) = page
            else {
                return None;
            };
            if gap {
                let text = format!(
                    "{{\"missed_after\":\"{}\",\"floor\":\"{}\"}}",
                    id_text(after),
                    id_text(floor)
                );
                self.ready
                    .push_back(Event::default().event("gap").data(text));
            }
            if let Some(last) = events.last() {
                self.after = last.id;
            }
            self.ready.extend(events.into_iter().map(sse_event));
            if self.ready.is_empty() && self.newest.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// Follow events, from `Last-Event-ID` on, or from now on.
pub async fn stream(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let newest = api.node.events();
    let after = match headers.get("last-event-id") {
        Some(value) => value.to_str().ok().and_then(parse_id).ok_or_else(|| {
            ApiError::invalid(
                "last-event-id",
                "an id as the stream sent it, for example 17-0",
            )
        })?,
        None => {
            api.node
                .query(|core, rows| core.events(None, 1, rows))
                .await??
                .last
        }
    };
    let watcher = Watcher {
        node: api.node.clone(),
        newest,
        after,
        ready: VecDeque::new(),
    };
    let hello = stream::once(async { Ok(Event::default().comment("following")) });
    let events = hello.chain(stream::unfold(watcher, Watcher::next));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        let id = EventId { index: 17, n: 3 };
        assert_eq!(parse_id(&id_text(id)), Some(id));
        for bad in ["", "17", "x-1", "1-", "1-2-3"] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }
}
