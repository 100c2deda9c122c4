//! Spans of what this agent does for the traces that masters name: launches, and what the guest of a scheduler takes for a
//! turn.
//!
//! Invariants: what belongs to no trace costs a look at a field; what is remembered is bounded, ends with the task's state or
//! the turn's result, and is only of this process; whoever works never waits for a span. Must never be needed for
//! the agent to work.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};
use tessera_agent_core::{Action, TaskKey};
use tessera_telemetry::export::Queue;
use tessera_telemetry::span::Span;
use tessera_types::trace::LAUNCH;
use tessera_types::{FrameworkId, TaskState, TraceId};
use tessera_wire::v1;
use v1::agent_message::Message;

/// Launches that have not come to a task that runs. More than an agent starts at once; of others there are no spans.
const LAUNCHES_MAX: usize = 4_096;
/// Schedulers whose turns wait for their results; an agent hosts fewer.
const TURNS_MAX: usize = 4_096;

/// A launch on its way.
struct Launch {
    /// With the span of the turn that launched it.
    id: TraceId,
    /// When it was heard of.
    heard_us: u64,
    /// When everything it needs was there, and it was started.
    start_us: Option<u64>,
}

/// What is known of traces.
pub struct Tracer {
    queue: Queue,
    /// As spans name it.
    agent: String,
    launches: BTreeMap<TaskKey, Launch>,
    /// By framework, the last turn of each.
    turns: BTreeMap<u64, (u64, u64, v1::TurnCost)>,
}

impl Tracer {
    /// One whose spans go there.
    pub const fn new(queue: Queue) -> Self {
        Self { queue, agent: String::new(), launches: BTreeMap::new(), turns: BTreeMap::new() }
    }

    /// It is this agent.
    pub fn i_am(&mut self, agent: u64) {
        self.agent = format!("a{agent}");
    }

    /// What is to run: what is new of it and belongs to a trace is followed.
    pub fn on_desired(&mut self, desired: &v1::Desired, known: impl Fn(&TaskKey) -> bool) {
        for task in &desired.tasks {
            let Some(id) = TraceId::of_bytes(&task.trace) else { continue };
            let Some(launch) = &task.launch else { continue };
            let Ok(key) = TaskKey::parse(FrameworkId(task.framework), &launch.task) else { continue };
            if task.kill_grace_ms.is_some() || self.launches.contains_key(&key) || known(&key) {
                continue;
            }
            if self.launches.len() >= LAUNCHES_MAX {
                self.queue.spans().lost(1);
                continue;
            }
            self.launches.insert(key, Launch { id, heard_us: now_us(), start_us: None });
        }
    }

    /// Something is about to be done.
    pub fn on_action(&mut self, action: &Action) {
        if self.launches.is_empty() {
            return;
        }
        match action {
            Action::StartNative { key, .. } | Action::StartWasm { key, .. } => self.on_start(key),
            Action::Send(Message::Statuses(statuses)) => {
                for update in &statuses.updates {
                    self.on_status(update.framework, update.status.as_ref());
                }
            }
            Action::Forgotten { key } => {
                self.launches.remove(key);
            }
            _ => {}
        }
    }

    fn on_start(&mut self, key: &TaskKey) {
        if let Some(launch) = self.launches.get_mut(key) {
            launch.start_us = Some(now_us());
        }
    }

    fn on_status(&mut self, framework: u64, status: Option<&v1::TaskStatus>) {
        let Some(status) = status else { return };
        let Ok(state) = TaskState::try_from(status.state()) else { return };
        let runs = state == TaskState::Running;
        if !runs && !state.is_terminal() {
            return;
        }
        let framework = FrameworkId(framework);
        let Ok(key) = TaskKey::parse(framework, &status.task) else { return };
        let Some(launch) = self.launches.remove(&key) else { return };
        // The same that the leader gives it.
        let above = launch.id.of_task(LAUNCH, framework, &key.task, status.attempt);
        let own = above.child("agent", "");
        let end_us = status.at_ms.saturating_mul(1_000).max(launch.heard_us);
        let attributes = || {
            vec![
                ("tessera.framework", framework.to_string()),
                ("tessera.task", status.task.clone()),
                ("tessera.agent", self.agent.clone()),
                ("tessera.state", state.to_string()),
            ]
        };
        let span = |name, id: TraceId, parent, start_us, end_us| Span {
            trace: id.trace,
            id: id.span,
            parent: Some(parent),
            name,
            server: false,
            start_us,
            end_us,
            attributes: attributes(),
            failed: !runs && state != TaskState::Killed,
        };
        self.queue.put(span("agent", own, above.span, launch.heard_us, end_us));
        // One that an executor runs is prepared and started by nobody here.
        let Some(start_us) = launch.start_us else { return };
        self.queue.put(span("prepare", own.child("prepare", ""), own.span, launch.heard_us, start_us));
        self.queue.put(span("start", own.child("start", ""), own.span, start_us, end_us.max(start_us)));
    }

    /// A turn goes to the leader, which knows whether it is of a trace.
    pub fn on_turn(&mut self, turn: &v1::Turn) {
        let Some(cost) = turn.cost else { return };
        if self.turns.len() < TURNS_MAX || self.turns.contains_key(&turn.framework) {
            self.turns.insert(turn.framework, (turn.epoch, turn.number, cost));
        }
    }

    /// What became of it.
    pub fn on_result(&mut self, result: &v1::TurnResult) {
        let Some(key) = result.key else { return };
        let Some((epoch, number, cost)) = self.turns.remove(&key.framework) else { return };
        let Some(id) = TraceId::of_bytes(&result.trace) else { return };
        if (epoch, number) != (key.epoch, result.number) {
            return;
        }
        let own = id.child("handle", "");
        self.queue.put(Span {
            trace: own.trace,
            id: own.span,
            parent: Some(id.span),
            name: "handle",
            server: false,
            start_us: cost.began_us,
            end_us: cost.began_us.saturating_add(cost.wall_us),
            attributes: vec![
                ("tessera.framework", FrameworkId(key.framework).to_string()),
                ("tessera.turn", number.to_string()),
                ("tessera.agent", self.agent.clone()),
                ("tessera.cpu_us", cost.cpu_us.to_string()),
            ],
            failed: false,
        });
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;

    const ID: TraceId = TraceId { trace: [1; 16], span: [2; 8] };

    fn tracer() -> (Tracer, Receiver<Span>) {
        let (queue, spans) = Queue::idle();
        let mut tracer = Tracer::new(queue);
        tracer.i_am(7);
        (tracer, spans)
    }

    fn desired(task: &str, trace: Vec<u8>) -> v1::Desired {
        let launch = Some(v1::Launch { task: task.to_owned(), ..v1::Launch::default() });
        let task = v1::DesiredTask { framework: 3, launch, trace, ..v1::DesiredTask::default() };
        v1::Desired { tasks: vec![task], ..v1::Desired::default() }
    }

    fn status(task: &str, state: v1::TaskState) -> Action {
        let status = v1::TaskStatus { task: task.to_owned(), state: state.into(), attempt: 1, at_ms: u64::MAX / 2_000, ..v1::TaskStatus::default() };
        let update = v1::StatusUpdate { framework: 3, sequence: 1, status: Some(status) };
        Action::Send(Message::Statuses(v1::StatusUpdates { updates: vec![update] }))
    }

    #[test]
    fn a_traced_launch_has_spans_below_the_leaders_when_it_runs_or_never_will() {
        for (state, failed) in [(v1::TaskState::TaskRunning, false), (v1::TaskState::TaskFailed, true)] {
            let (mut tracer, spans) = tracer();
            tracer.on_desired(&desired("x", ID.to_bytes()), |_| false);
            tracer.on_action(&status("x", v1::TaskState::TaskStarting));
            let key = TaskKey::of(FrameworkId(3), "x".parse().unwrap());
            tracer.on_start(&key);
            assert_eq!(spans.try_iter().count(), 0);
            tracer.on_action(&status("x", state));
            tracer.on_action(&status("x", state));
            let found: Vec<Span> = spans.try_iter().collect();
            let names: Vec<&str> = found.iter().map(|span| span.name).collect();
            assert_eq!(names, ["agent", "prepare", "start"]);
            assert_eq!(found[0].parent, Some(ID.of_task(LAUNCH, key.framework, &key.task, 1).span));
            assert!(found[1..].iter().all(|span| span.parent == Some(found[0].id)));
            assert!(found.iter().all(|span| span.failed == failed && span.trace == ID.trace));
            assert!(found[0].attributes.contains(&("tessera.agent", "a7".to_owned())));
        }
    }

    #[test]
    fn what_is_not_traced_known_or_forgotten_has_none() {
        let (mut tracer, spans) = tracer();
        tracer.on_desired(&desired("plain", Vec::new()), |_| false);
        tracer.on_desired(&desired("bad", vec![1; 5]), |_| false);
        tracer.on_desired(&desired("known", ID.to_bytes()), |_| true);
        tracer.on_desired(&desired("gone", ID.to_bytes()), |_| false);
        tracer.on_action(&Action::Forgotten { key: TaskKey::of(FrameworkId(3), "gone".parse().unwrap()) });
        for task in ["plain", "bad", "known", "gone"] {
            tracer.on_action(&status(task, v1::TaskState::TaskRunning));
        }
        assert_eq!((spans.try_iter().count(), tracer.launches.len()), (0, 0));
    }

    #[test]
    fn launches_that_are_followed_are_bounded_and_others_counted() {
        let (mut tracer, _spans) = tracer();
        for at in 0..LAUNCHES_MAX + 3 {
            tracer.on_desired(&desired(&format!("t{at}"), ID.to_bytes()), |_| false);
        }
        assert_eq!((tracer.launches.len(), tracer.queue.spans().dropped()), (LAUNCHES_MAX, 3));
    }

    #[test]
    fn a_turn_of_a_trace_has_the_guests_part_below_it() {
        let cost = v1::TurnCost { cpu_us: 40, wall_us: 90, began_us: 1_000 };
        let turn = v1::Turn { framework: 3, epoch: 1, number: 5, cost: Some(cost), ..v1::Turn::default() };
        let result = |number, trace| v1::TurnResult {
            key: Some(v1::InstanceKey { framework: 3, epoch: 1 }),
            number,
            trace,
            ..v1::TurnResult::default()
        };
        for (number, trace, expected) in [(5, ID.to_bytes(), 1), (5, Vec::new(), 0), (6, ID.to_bytes(), 0)] {
            let (mut tracer, spans) = tracer();
            tracer.on_turn(&turn);
            tracer.on_result(&result(number, trace));
            let found: Vec<Span> = spans.try_iter().collect();
            assert_eq!(found.len(), expected);
            assert!(found.iter().all(|span| span.name == "handle" && span.parent == Some(ID.span) && span.end_us == 1_090));
            assert!(tracer.turns.is_empty());
        }
    }
}
