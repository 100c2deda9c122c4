//! What the cluster says happened, in its events.
//!
//! Invariant: each event is read once, in order. Must never change the run.

use super::{Oracle, TaskName};
use crate::clocks::wrong_time;
use crate::disk::FaultyDisk;
use tessera_master::node::{Node, Settled};
use tessera_types::Reason;

/// So many agents may be given up at once; more are a fault of the masters' network.
const AT_ONCE_MAX: usize = 3;
/// Less time than the next ones have to wait for, in ms.
const AT_ONCE_MS: u64 = 250;
/// Events read at a time.
const EVENTS_PAGE: usize = 500;

impl Oracle {
    pub(super) fn check_events(&mut self, node: &Node<FaultyDisk>, settled: &Settled, lines: &mut Vec<String>) {
        let after = self.events_last;
        loop {
            let rows = node.rows();
            let page = match node.core().events(Some(self.events_last), EVENTS_PAGE, &rows) {
                Ok(page) => page,
                Err(error) => return self.violate(format!("events cannot be read: {error}")),
            };
            self.ensure(!page.gap, || "events are missing for a watcher that was not behind".to_owned());
            self.ensure(page.last >= after, || "the newest event's id falls".to_owned());
            if page.events.is_empty() {
                break;
            }
            for event in page.events {
                let before = self.events_last;
                self.ensure(event.id > before, || "event ids do not rise".to_owned());
                self.events_last = event.id;
                let task = event.task.map(|task| task.to_string()).unwrap_or_default();
                let framework = event.framework.map(|id| id.to_string()).unwrap_or_default();
                lines.push(format!("event: {} {framework} {task} {}", event.kind, event.text));
                if let Some(id) = event.framework {
                    self.note_of_task(&event.kind, (id.0, task.clone()), &event.text);
                }
                let refused = event.kind == "launch.refused";
                let above = refused && self.wishes.limits_launches(&event.text);
                if above {
                    self.saw("tasks above a limit are dropped");
                }
                let duplicate = refused && !above && !self.is_restored();
                self.note_event(&event.kind, event.at_ms);
                if let Some(wrong) = wrong_time(event.at_ms, self.now_us) {
                    self.violate(wrong);
                }
                self.ensure(!duplicate, || format!("a launch of {task} was refused: {}", event.text));
            }
        }
        if let Some(last) = settled.events {
            self.ensure(last >= after, || "watchers are woken for an old event".to_owned());
        }
    }

    /// What is said of a task.
    fn note_of_task(&mut self, kind: &str, name: TaskName, text: &str) {
        match kind {
            "task.kill" => self.note_end_wanted(name, text),
            "task.preempted" => self.note_taken(name, text),
            "task.TASK_DROPPED" if text.starts_with(Reason::Quota.code()) => {
                self.saw("a launch beyond a quota limit is dropped");
            }
            "task.TASK_DROPPED" if text.starts_with(Reason::Revocable.code()) => {
                self.saw("a launch that is wrongly said to be revocable, or not, is dropped");
            }
            _ => {}
        }
    }

    /// What the cluster itself says came up.
    pub(super) fn note_event(&mut self, kind: &str, at_ms: u64) {
        match kind {
            "agent.unreachable" => {
                let last = self.given_up.len().checked_sub(AT_ONCE_MAX).and_then(|at| self.given_up.get(at));
                // The leader's clock may stand still, and its disk may be slow.
                let paced = |(then_ms, then_us): &(u64, u64)| {
                    at_ms >= then_ms + AT_ONCE_MS || self.now_us >= then_us + AT_ONCE_MS * 1_000
                };
                let braked = last.is_none_or(paced);
                self.ensure(braked, || format!("more than {AT_ONCE_MAX} agents are given up within {AT_ONCE_MS} ms"));
                self.given_up.push((at_ms, self.now_us));
            }
            "agents.expiry-held" => self.saw("the brake is on"),
            "agent.copied" => self.saw("a copy of a work directory is refused"),
            _ => {}
        }
    }
}
