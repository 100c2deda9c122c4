//! Traces: from a request over offer, turn and commit to a task that runs, and its end.
//!
//! Owns which launches belong to a trace, and the spans that the leader makes of them. Invariants: when nothing is traced,
//! nothing is looked at and nothing is carried; ids follow from what they name, so that two leaders give the same span
//! the same id; what is remembered here is bounded and goes with the leader, what is needed longer stands in the row of
//! the task. Must never change what is decided.

use crate::leader::Desk;
use crate::limits::{TRACE_SPANS_MAX, TRACE_SUBMITTED_MAX, TRACE_SUBMITTED_MS};
use crate::state::Task;
use std::collections::BTreeMap;
use tessera_types::trace::LAUNCH;
use tessera_types::{Digest, Epoch, FrameworkId, HttpRequest, TaskId, TaskState, TraceId, TurnNumber};

/// The cluster version from which on masters keep the trace of a task.
pub(crate) const SINCE: u32 = 4;

/// The header that names a trace between programs.
const HEADER: &str = "traceparent";

/// Offers of one turn that get spans: the first say as much as all.
const OFFERS_SHOWN_MAX: usize = 8;

/// What is traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// Somebody takes spans.
    pub on: bool,
    /// Of a million turns with launches that belong to no trace, so many begin one.
    pub sample_ppm: u32,
}

fn first(digest: &Digest) -> [u8; 8] {
    digest.0.first_chunk::<8>().copied().unwrap_or_default()
}

/// Something that took time within a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSpan {
    /// Trace and id.
    pub id: TraceId,
    /// What it was done for.
    pub parent: Option<[u8; 8]>,
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: u64,
    /// What is to be known of it.
    pub attributes: Vec<(&'static str, String)>,
    /// It failed.
    pub failed: bool,
}

/// What the leader remembers of traces.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// Requests that a scheduler got and that may lead to launches, and when.
    submitted: BTreeMap<FrameworkId, (TraceId, u64)>,
    spans: Vec<TraceSpan>,
    dropped: u64,
}

impl Traces {
    fn put(&mut self, span: TraceSpan) {
        if self.spans.len() < TRACE_SPANS_MAX {
            self.spans.push(span);
        } else {
            self.dropped += 1;
        }
    }

    /// Spans since the last call, and how many there was no room for.
    pub(crate) fn take(&mut self) -> (Vec<TraceSpan>, u64) {
        (std::mem::take(&mut self.spans), std::mem::take(&mut self.dropped))
    }
}

/// A turn with launches that belong to a trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnTrace {
    /// With the turn's span.
    pub(crate) id: TraceId,
    proposed_ms: u64,
}

impl Desk<'_> {
    /// A request goes to a scheduler: launches that follow belong to its trace.
    pub(crate) fn trace_request(&mut self, framework: FrameworkId, request: &HttpRequest) {
        if !self.config.traced.on {
            return;
        }
        let header = request.headers.iter().find(|(name, _)| name == HEADER);
        let Some(id) = header.and_then(|(_, text)| TraceId::of_header(text)) else { return };
        let submitted = &mut self.leader.traces.submitted;
        if submitted.len() >= TRACE_SUBMITTED_MAX && !submitted.contains_key(&framework) {
            let now_ms = self.now.mono_ms;
            submitted.retain(|_, (_, at_ms)| now_ms.saturating_sub(*at_ms) < TRACE_SUBMITTED_MS);
        }
        if submitted.len() < TRACE_SUBMITTED_MAX {
            submitted.insert(framework, (id, self.now.mono_ms));
        }
    }

    /// The trace of a turn that launches, if there is one; with spans of the offers that it accepts, as agent and time
    /// at which each was made, and of the turn itself.
    pub(crate) fn trace_turn(
        &mut self,
        framework: FrameworkId,
        (epoch, number): (Epoch, TurnNumber),
        sent_ms: u64,
        offers: &[(String, u64)],
    ) -> Option<TurnTrace> {
        if !self.config.traced.on || offers.is_empty() || self.state.meta.cluster_version < SINCE {
            return None;
        }
        let now_ms = self.now.mono_ms;
        let submitted = self.leader.traces.submitted.remove(&framework);
        let submitted = submitted.filter(|(_, at_ms)| now_ms.saturating_sub(*at_ms) < TRACE_SUBMITTED_MS);
        let (from, root) = match submitted {
            Some((id, _)) => (id, false),
            None => (self.sampled(framework, epoch, number)?, true),
        };
        let wall_ms = self.now.wall_ms;
        let of = format!("{framework} {} {}", epoch.0, number.0);
        let id = from.child("turn", &of);
        for (at, (agent, made_ms)) in offers.iter().take(OFFERS_SHOWN_MAX).enumerate() {
            self.leader.traces.put(TraceSpan {
                id: id.child("offer", &format!("{of} {at}")),
                parent: Some(id.span),
                name: "offer",
                start_ms: wall_ms.saturating_sub(now_ms.saturating_sub(*made_ms)),
                end_ms: wall_ms,
                attributes: vec![("tessera.framework", framework.to_string()), ("tessera.agent", agent.clone())],
                failed: false,
            });
        }
        self.leader.traces.put(TraceSpan {
            id,
            parent: (!root).then_some(from.span),
            name: "turn",
            start_ms: sent_ms.min(wall_ms),
            end_ms: wall_ms,
            attributes: vec![("tessera.framework", framework.to_string()), ("tessera.turn", number.0.to_string())],
            failed: false,
        });
        Some(TurnTrace { id, proposed_ms: wall_ms })
    }

    /// A trace of its own, for as many turns as are to have one: the same for whoever asks.
    fn sampled(&self, framework: FrameworkId, epoch: Epoch, number: TurnNumber) -> Option<TraceId> {
        let of = format!("trace {} {framework} {} {}", self.state.meta.cluster, epoch.0, number.0);
        let digest = Digest::of(of.as_bytes());
        let drawn = u64::from_be_bytes(first(&digest)) % 1_000_000;
        let (_, rest) = digest.0.split_first_chunk::<8>()?;
        let trace = rest.first_chunk::<16>()?;
        (drawn < self.config.traced.sample_ppm.into()).then_some(TraceId { trace: *trace, span: [0; 8] })
    }

    /// A traced turn is applied, or refused.
    pub(crate) fn trace_commit(&mut self, framework: FrameworkId, turn: TurnTrace, committed: bool) {
        let span = TraceSpan {
            id: turn.id.child("commit", ""),
            parent: Some(turn.id.span),
            name: "commit",
            start_ms: turn.proposed_ms,
            end_ms: self.now.wall_ms,
            attributes: vec![("tessera.framework", framework.to_string())],
            failed: !committed,
        };
        self.leader.traces.put(span);
    }

    /// A task of a trace is in another state: its launch ends when it runs, and the task with its end.
    pub(crate) fn trace_task(&mut self, framework: FrameworkId, task: &TaskId, at: TaskState) {
        if !self.config.traced.on {
            return;
        }
        let Some(row) = self.state.task(framework, task) else { return };
        let Some(id) = row.trace.as_deref().copied() else { return };
        let runs = span(row, framework, LAUNCH, id, row.created_ms, self.now.wall_ms);
        let steps = row.steps.of(row.created_ms);
        let running_ms = steps.iter().find(|step| step.state == TaskState::Running).map(|step| step.at_ms);
        match (at, running_ms) {
            (TaskState::Running, _) => self.leader.traces.put(runs),
            (at, Some(began_ms)) if at.is_terminal() => {
                let ended = span(row, framework, "running", id, began_ms, self.now.wall_ms);
                self.leader.traces.put(ended);
            }
            // It ended before it ran.
            (at, None) if at.is_terminal() => self.leader.traces.put(TraceSpan { failed: true, ..runs }),
            _ => {}
        }
    }
}

fn span(row: &Task, framework: FrameworkId, name: &'static str, id: TraceId, start_ms: u64, end_ms: u64) -> TraceSpan {
    let task = &row.launch.task;
    TraceSpan {
        id: id.of_task(name, framework, task, row.attempt),
        parent: Some(id.span),
        name,
        start_ms,
        end_ms,
        attributes: vec![
            ("tessera.framework", framework.to_string()),
            ("tessera.task", task.to_string()),
            ("tessera.agent", row.agent.to_string()),
            ("tessera.state", row.state.to_string()),
            ("tessera.reason", row.status.reason.code().to_owned()),
        ],
        failed: matches!(row.state, TaskState::Failed | TaskState::Error | TaskState::Dropped | TaskState::Lost | TaskState::Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_nobody_takes_are_bounded_and_counted() {
        let mut traces = Traces::default();
        let id = TraceId { trace: [1; 16], span: [2; 8] };
        let span = TraceSpan { id, parent: None, name: "x", start_ms: 1, end_ms: 2, attributes: vec![], failed: false };
        for _ in 0..TRACE_SPANS_MAX + 3 {
            traces.put(span.clone());
        }
        let (spans, dropped) = traces.take();
        assert_eq!((spans.len(), dropped), (TRACE_SPANS_MAX, 3));
        assert_eq!(traces.take(), (Vec::new(), 0));
    }
}
