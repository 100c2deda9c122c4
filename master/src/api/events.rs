//! `/v1/events`: changes as they are committed, as server-sent events.
//!
//! Invariants: one reader for all watchers reads new events once and keeps the newest; whoever is behind those reads
//! rows, a page at a time. A watcher holds one piece of the stream and nothing else, so that a slow one costs nothing
//! and learns from `gap` that it missed some.

use super::error::ApiError;
use super::extract::Query;
use super::{Api, lookup};
use crate::node_handle::NodeHandle;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tessera_master_core::{Core, EventId, EventRecord, Rows, RowsError};
use tessera_types::{AgentId, FrameworkId, RoleName, TaskId};
use tokio::sync::watch;

/// Events read at once.
const PAGE: usize = 512;

/// Events that are kept for all watchers: two seconds of the busiest cluster.
const KEPT_MAX: usize = 10_000;

/// Bytes of those.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Bytes of one piece of a watcher's stream: what it holds in memory.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Pause between two readings: many events make one piece, and nobody notices.
const READ_EVERY: Duration = Duration::from_millis(10);

/// How long a watcher that has seen more than this master knows waits for it: another master may be ahead of it.
const AHEAD_WAIT: Duration = Duration::from_secs(5);

/// A sign of life for whoever waits.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Frameworks whose roles are remembered, for events of those that are gone.
const ROLES_MAX: usize = 20_000;

/// Kinds of a filter.
const KINDS_MAX: usize = 32;

/// Which events.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Beginnings of kinds, with commas between: `task.,framework.failed`.
    kind: Option<String>,
    /// Only of this framework: its id, name, or `tenant:name`.
    framework: Option<String>,
    /// Only of tasks with this id.
    task: Option<String>,
    /// Only of this agent.
    agent: Option<String>,
    /// Only of frameworks in this role, or below it.
    role: Option<String>,
    /// What follows this event, as `Last-Event-ID` says it, which counts more.
    after: Option<String>,
}

/// One event, as `data:` has it; `id:` names it.
#[derive(Serialize, JsonSchema)]
pub struct EventJson {
    /// What happened, for example `task.TASK_RUNNING`.
    kind: String,
    /// The framework, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    framework: Option<String>,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    at_ms: u64,
    /// Details for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    /// Who caused it; absent for the cluster itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    principal: String,
}

fn id_text(id: EventId) -> String {
    format!("{}-{}", id.index, id.n)
}

fn parse_id(text: &str) -> Option<EventId> {
    let (index, n) = text.split_once('-')?;
    Some(EventId { index: index.parse().ok()?, n: n.parse().ok()? })
}

/// One event, ready to be sent.
#[derive(Clone)]
struct Line {
    id: EventId,
    kind: String,
    framework: Option<FrameworkId>,
    task: Option<TaskId>,
    agent: Option<AgentId>,
    role: Option<RoleName>,
    bytes: Bytes,
}

impl Line {
    fn of(record: EventRecord, role: Option<RoleName>) -> Self {
        let EventRecord { id, at_ms, kind, framework, task, agent, text, principal } = record;
        let json = EventJson {
            kind: kind.clone(),
            framework: framework.map(|id| id.to_string()),
            task: task.as_ref().map(ToString::to_string),
            agent: agent.map(|id| id.to_string()),
            at_ms,
            text,
            principal,
        };
        // Every field is text or a number, which always encodes, on one line.
        let data = serde_json::to_string(&json).unwrap_or_default();
        let bytes = Bytes::from(format!("id: {}\ndata: {data}\n\n", id_text(id)));
        Self { id, kind, framework, task, agent, role, bytes }
    }
}

/// Which events a watcher wants.
#[derive(Clone, Debug, Default)]
struct Filter {
    kinds: Vec<String>,
    framework: Option<FrameworkId>,
    task: Option<TaskId>,
    agent: Option<AgentId>,
    role: Option<RoleName>,
}

impl Filter {
    fn takes(&self, line: &Line) -> bool {
        let in_role = |role: &RoleName| line.role.as_ref().is_some_and(|of| of.lineage().any(|above| above == role.as_str()));
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| line.kind.starts_with(kind.as_str())))
            && (self.framework.is_none() || self.framework == line.framework)
            && (self.task.is_none() || self.task == line.task)
            && (self.agent.is_none() || self.agent == line.agent)
            && self.role.as_ref().is_none_or(in_role)
    }
}

/// The newest events.
#[derive(Default)]
struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    /// All that follow this one are there; nothing before the first reading.
    after: Option<EventId>,
}

impl Kept {
    fn push(&mut self, line: Line) {
        self.bytes += line.bytes.len();
        self.lines.push_back(line);
        while self.lines.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some(old) = self.lines.pop_front() else { return };
            self.bytes -= old.bytes.len();
            self.after = Some(old.id);
        }
    }

    /// What a watcher has not seen, up to one piece; nothing if it is too far behind.
    fn piece(&self, seen: EventId, filter: &Filter) -> Option<(EventId, Bytes)> {
        if self.after.is_none_or(|after| seen < after) {
            return None;
        }
        let from = self.lines.partition_point(|line| line.id <= seen);
        Some(gather(self.lines.range(from..), seen, filter))
    }
}

/// As many lines as make one piece, and the last that was looked at.
fn gather<'a>(lines: impl Iterator<Item = &'a Line>, mut seen: EventId, filter: &Filter) -> (EventId, Bytes) {
    let mut piece = BytesMut::new();
    for line in lines {
        if filter.takes(line) {
            if !piece.is_empty() && piece.len() + line.bytes.len() > PIECE_BYTES_MAX {
                break;
            }
            piece.extend_from_slice(&line.bytes);
        }
        seen = line.id;
    }
    (seen, piece.freeze())
}

/// Roles of frameworks, those of gone ones included as long as they are remembered.
#[derive(Default)]
struct Roles(BTreeMap<FrameworkId, RoleName>);

impl Roles {
    fn of(&mut self, core: &Core, framework: FrameworkId) -> Option<RoleName> {
        if let Some(role) = self.0.get(&framework) {
            return Some(role.clone());
        }
        let role = core.role_of(framework)?;
        if self.0.len() >= ROLES_MAX {
            self.0.clear();
        }
        self.0.insert(framework, role.clone());
        Some(role)
    }
}

/// Some lines after an event, and the floor if there is a gap before them.
type Page = (Vec<Line>, Option<EventId>);

fn read(core: &Core, rows: &dyn Rows, after: EventId, roles: &mut Roles) -> Result<Page, RowsError> {
    let page = core.events(Some(after), PAGE, rows)?;
    let lines = page.events.into_iter().map(|record| {
        let role = record.framework.and_then(|framework| roles.of(core, framework));
        Line::of(record, role)
    });
    Ok((lines.collect(), page.gap.then_some(page.floor)))
}

/// What all watchers share.
pub struct Hub {
    node: NodeHandle,
    kept: Mutex<Kept>,
    roles: Mutex<Roles>,
    /// The newest event that is kept, and how many watchers there are.
    newest: watch::Sender<EventId>,
    watchers: watch::Sender<usize>,
}

impl Hub {
    /// With nobody watching.
    pub fn new(node: NodeHandle) -> Arc<Self> {
        Arc::new(Self {
            node,
            kept: Mutex::default(),
            roles: Mutex::default(),
            newest: watch::Sender::default(),
            watchers: watch::Sender::default(),
        })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // A panic while holding the lock cannot leave the lines half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New events; with a floor, older ones are not whole any more.
    fn keep(&self, lines: Vec<Line>, gap: Option<EventId>) {
        let mut kept = self.kept();
        if gap.is_some() {
            *kept = Kept { after: gap, ..Kept::default() };
        }
        for line in lines {
            kept.push(line);
        }
    }

    async fn page(self: &Arc<Self>, after: EventId) -> Option<Page> {
        let hub = Arc::clone(self);
        let asked = self.node.query(move |core, rows| {
            let mut roles = hub.roles.lock().unwrap_or_else(PoisonError::into_inner);
            read(core, rows, after, &mut roles)
        });
        match asked.await {
            Ok(Ok(page)) => Some(page),
            Ok(Err(error)) => {
                tracing::error!(%error, "reading events");
                None
            }
            Err(_) => None,
        }
    }

    /// The newest event that this master has applied.
    async fn last(&self) -> Option<EventId> {
        Some(self.node.query(|core, rows| core.events(None, 1, rows)).await.ok()?.ok()?.last)
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        *self.watchers.borrow()
    }

    /// Reads new events while somebody watches. Ends with the node.
    pub async fn run(self: Arc<Self>) {
        let mut newest = self.node.events();
        let mut watchers = self.watchers.subscribe();
        loop {
            if watchers.wait_for(|watchers| *watchers > 0).await.is_err() {
                return;
            }
            let last = *newest.borrow_and_update();
            *self.kept() = Kept { after: Some(last), ..Kept::default() };
            self.newest.send_replace(last);
            let mut after = last;
            while *watchers.borrow() > 0 {
                match self.page(after).await {
                    // Whoever was not told reads rows until all is well again.
                    None => tokio::time::sleep(KEEP_ALIVE.min(Duration::from_secs(1))).await,
                    Some((lines, gap)) => {
                        let full = lines.len() >= PAGE;
                        after = lines.last().map_or(after, |line| line.id);
                        self.keep(lines, gap);
                        self.newest.send_replace(after);
                        if full {
                            continue;
                        }
                        tokio::time::sleep(READ_EVERY).await;
                    }
                }
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    changed = watchers.changed() => if changed.is_err() { return },
                }
            }
            *self.kept() = Kept::default();
        }
    }
}

/// One watcher.
struct Watcher {
    hub: Arc<Hub>,
    newest: watch::Receiver<EventId>,
    seen: EventId,
    filter: Filter,
    hello: bool,
    /// Nothing but its own word says that there is such an event as it has seen.
    unproved: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.watchers.send_modify(|watchers| *watchers = watchers.saturating_sub(1));
    }
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if std::mem::take(&mut self.hello) {
            return Some((Ok(Bytes::from_static(b": following\n\n")), self));
        }
        if std::mem::take(&mut self.unproved)
            && let Some(piece) = self.beyond().await
        {
            return Some((Ok(piece), self));
        }
        loop {
            self.newest.mark_unchanged();
            let piece = self.hub.kept().piece(self.seen, &self.filter);
            let (seen, piece) = match piece {
                Some(piece) => piece,
                None => self.behind().await?,
            };
            let moved = seen != self.seen;
            self.seen = seen;
            if !piece.is_empty() {
                return Some((Ok(piece), self));
            }
            if moved {
                continue;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Ok(Bytes::from_static(b":\n\n")), self)),
            }
        }
    }

    /// What it is told if it has seen what nobody has written: another cluster's events, or those of before this one
    /// was restored. It follows from the newest one on.
    async fn beyond(&mut self) -> Option<Bytes> {
        let (hub, seen) = (Arc::clone(&self.hub), self.seen);
        if seen <= hub.last().await? {
            return None;
        }
        // Whoever leads for sure has everything that was ever shown; others may have less than the one that was asked before.
        if hub.node.barrier().await.is_err() {
            let mut newest = hub.node.events();
            // When the time is over, or the node gone, what is there says it.
            let _ = tokio::time::timeout(AHEAD_WAIT, newest.wait_for(|newest| *newest >= seen)).await;
        }
        let last = hub.last().await?;
        if seen <= last {
            return None;
        }
        self.seen = last;
        let (missed, floor) = (id_text(seen), id_text(last));
        // With an id, so that it goes on after this one when it comes again.
        Some(format!("id: {floor}\nevent: gap\ndata: {{\"missed_after\":\"{missed}\",\"floor\":\"{floor}\"}}\n\n").into())
    }

    /// From rows, because it is behind what is kept.
    async fn behind(&self) -> Option<(EventId, Bytes)> {
        let (lines, gap) = self.hub.page(self.seen).await?;
        let (seen, piece) = gather(lines.iter(), self.seen, &self.filter);
        let Some(floor) = gap else { return Some((seen, piece)) };
        let missed = format!(
            "event: gap\ndata: {{\"missed_after\":\"{}\",\"floor\":\"{}\"}}\n\n",
            id_text(self.seen),
            id_text(floor)
        );
        Some((seen, [missed.as_bytes(), &piece].concat().into()))
    }
}

async fn filter(api: &Api, query: EventsQuery) -> Result<Filter, ApiError> {
    let kinds: Vec<String> = query.kind.iter().flat_map(|kinds| kinds.split(',')).filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    if kinds.len() > KINDS_MAX {
        return Err(ApiError::invalid("kind", format!("at most {KINDS_MAX}")));
    }
    let framework = match query.framework {
        // Events of one that is gone are asked for by its id.
        Some(text) => Some(match text.parse() {
            Ok(id) => id,
            Err(_) => lookup::framework_here(&api.node, text).await?,
        }),
        None => None,
    };
    Ok(Filter {
        kinds,
        framework,
        task: query.task.as_deref().map(lookup::task).transpose()?,
        agent: query.agent.as_deref().map(lookup::agent).transpose()?,
        role: query.role.as_deref().map(lookup::role).transpose()?,
    })
}

/// Follow events, from `Last-Event-ID` on, or from now on.
pub async fn stream(
    State(api): State<Api>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let said = match (headers.get("last-event-id"), &query.after) {
        (Some(value), _) => Some(("last-event-id", value.to_str().ok().and_then(parse_id))),
        (None, Some(after)) => Some(("after", parse_id(after))),
        (None, None) => None,
    };
    let seen = match said {
        Some((_, Some(id))) => id,
        Some((field, None)) => {
            return Err(ApiError::invalid(field, "an id as the stream sent it, for example 17-0"));
        }
        None => api.node.query(|core, rows| core.events(None, 1, rows)).await??.last,
    };
    let filter = filter(&api, query).await?;
    let hub = Arc::clone(&api.events);
    let newest = hub.newest.subscribe();
    hub.watchers.send_modify(|watchers| *watchers += 1);
    let watcher = Watcher { hub, newest, seen, filter, hello: true, unproved: said.is_some() };
    let mut response = Response::new(Body::from_stream(stream::unfold(watcher, Watcher::next)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(index: u64, kind: &str, role: Option<&str>, bytes: usize) -> Line {
        Line {
            id: EventId { index, n: 0 },
            kind: kind.to_owned(),
            framework: Some(FrameworkId(index % 2)),
            task: None,
            agent: None,
            role: role.map(|role| role.parse().unwrap()),
            bytes: Bytes::from(vec![b'x'; bytes]),
        }
    }

    fn at(index: u64) -> EventId {
        EventId { index, n: 0 }
    }

    #[test]
    fn ids_round_trip() {
        let id = EventId { index: 17, n: 3 };
        assert_eq!(parse_id(&id_text(id)), Some(id));
        for bad in ["", "17", "x-1", "1-", "1-2-3"] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_says_from_where_on_it_is_whole() {
        let mut kept = Kept { after: Some(at(0)), ..Kept::default() };
        for index in 1..=20_000 {
            kept.push(line(index, "task.x", None, 100));
        }
        assert_eq!((kept.lines.len(), kept.after), (KEPT_MAX, Some(at(10_000))));
        assert!(kept.piece(at(9_999), &Filter::default()).is_none(), "too far behind");
        let (seen, piece) = kept.piece(at(10_000), &Filter::default()).unwrap();
        assert_eq!(piece.len(), PIECE_BYTES_MAX / 100 * 100);
        assert_eq!(seen, at(10_000 + piece.len() as u64 / 100));
        kept.push(line(20_001, "task.x", None, KEPT_BYTES_MAX));
        assert_eq!(kept.lines.len(), 1, "bytes have a bound, too");
        assert!(Kept::default().piece(at(0), &Filter::default()).is_none(), "nothing was read yet");
    }

    #[test]
    fn filters_take_beginnings_of_kinds_and_roles_below() {
        let lines = [
            line(1, "task.TASK_RUNNING", Some("eng/search"), 1),
            line(2, "framework.failed", Some("engine"), 1),
            line(3, "agent.lost", None, 1),
        ];
        let by = |filter: Filter| lines.iter().filter(|line| filter.takes(line)).map(|line| line.id.index).collect::<Vec<_>>();
        assert_eq!(by(Filter::default()), [1, 2, 3]);
        assert_eq!(by(Filter { kinds: vec!["task.".into(), "agent".into()], ..Filter::default() }), [1, 3]);
        assert_eq!(by(Filter { role: Some("eng".parse().unwrap()), ..Filter::default() }), [1]);
        assert_eq!(by(Filter { framework: Some(FrameworkId(0)), ..Filter::default() }), [2]);
        let (seen, piece) = gather(lines.iter(), at(0), &Filter { agent: Some(AgentId(9)), ..Filter::default() });
        assert_eq!((seen, piece.len()), (at(3), 0), "what is not wanted is seen all the same");
    }
}
