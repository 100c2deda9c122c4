//! What is counted while the world goes on.
//!
//! Invariants: every list is bounded; nothing here changes what happens. Must never read a clock: real times
//! are arguments.

use crate::histogram::Histogram;
use crate::report::{FailureReport, LimitHit, LoggedError, Sample};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tessera_types::TaskId;

/// Different failures of one scheduler that are told.
const FAILURES_MAX: usize = 20;
/// Different errors of one scheduler's log that are told.
const LOGGED_MAX: usize = 10;
/// Notes of the master that are told.
const NOTES_MAX: usize = 50;
/// Tasks that were asked for and do not run yet, of one framework.
const ASKED_MAX: usize = 10_000_000;
const MINUTE_US: u64 = 60_000_000;

/// Real CPU time of turns.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) us: Histogram,
    pub(crate) total: Duration,
    pub(crate) max_turn: u64,
    pub(crate) near_limit: u64,
    minute: u64,
    in_minute: Duration,
    pub(crate) minute_max: Duration,
}

impl Cpu {
    pub(crate) fn add(&mut self, turn: u64, took: Duration, limit: Duration, at_us: u64) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if us >= self.us.max() {
            self.max_turn = turn;
        }
        self.us.add(us);
        self.total += took;
        self.near_limit += u64::from(took > limit / 2);
        let minute = at_us / MINUTE_US;
        if minute != std::mem::replace(&mut self.minute, minute) {
            self.in_minute = Duration::ZERO;
        }
        self.in_minute += took;
        self.minute_max = self.minute_max.max(self.in_minute);
    }
}

/// Of one framework.
#[derive(Debug, Default)]
pub(crate) struct OfFramework {
    pub(crate) placements: u64,
    pub(crate) states: BTreeMap<String, u64>,
    pub(crate) reasons: BTreeMap<String, u64>,
    launched_us: BTreeMap<TaskId, u64>,
    asked_us: VecDeque<u64>,
    pub(crate) launch_to_running: Histogram,
    pub(crate) asked_to_running: Histogram,
    pub(crate) committed: u64,
    pub(crate) discarded: u64,
    pub(crate) refused: u64,
    pub(crate) events: u64,
    pub(crate) offers: u64,
    pub(crate) operations: u64,
    pub(crate) commit: Histogram,
    pub(crate) cpu: Cpu,
    limits: BTreeMap<(String, &'static str), LimitHit>,
    failures: BTreeMap<(String, String), FailureReport>,
    pub(crate) failures_untold: u64,
    pub(crate) quarantined_at_us: Option<u64>,
    errors_logged: BTreeMap<String, LoggedError>,
    pub(crate) sent: u64,
    pub(crate) repeated: u64,
    pub(crate) answered: BTreeMap<u16, u64>,
    pub(crate) answers: Histogram,
    pub(crate) share_sum: u64,
    pub(crate) share_max: u64,
}

impl OfFramework {
    /// Tasks were launched by a turn that is committed.
    pub(crate) fn launched(&mut self, tasks: impl IntoIterator<Item = TaskId>, at_us: u64) {
        self.launched_us.extend(tasks.into_iter().map(|task| (task, at_us)));
    }

    /// So many tasks are asked for.
    pub(crate) fn asked(&mut self, tasks: u64, at_us: u64) {
        for _ in 0..tasks {
            if self.asked_us.len() < ASKED_MAX {
                self.asked_us.push_back(at_us);
            }
        }
    }

    /// A task came into a state, as the cluster's record says it.
    pub(crate) fn on_task(&mut self, task: Option<&TaskId>, state: &str, text: &str, at_us: u64) {
        *self.states.entry(state.to_owned()).or_default() += 1;
        let reason = text.split(':').next().unwrap_or_default();
        if !reason.is_empty() && reason.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            *self.reasons.entry(format!("{state} {reason}")).or_default() += 1;
        }
        let waits = matches!(state, "TASK_STAGING" | "TASK_STARTING");
        self.placements += u64::from(state == "TASK_STAGING");
        if waits {
            return;
        }
        let Some(launched_us) = task.and_then(|task| self.launched_us.remove(task)) else { return };
        if state == "TASK_RUNNING" {
            self.launch_to_running.add(at_us.saturating_sub(launched_us));
            if let Some(asked_us) = self.asked_us.pop_front() {
                self.asked_to_running.add(at_us.saturating_sub(asked_us));
            }
        }
    }

    /// A limit was reached.
    pub(crate) fn on_limit(&mut self, limit: &str, effect: &'static str, turn: u64, at_us: u64, times: u64) {
        let hit = self.limits.entry((limit.to_owned(), effect)).or_insert_with(|| LimitHit {
            limit: limit.to_owned(),
            effect,
            times: 0,
            first_turn: turn,
            last_turn: turn,
            first_at_ms: at_us / 1_000,
        });
        hit.times += times;
        hit.last_turn = turn;
    }

    /// The guest failed.
    pub(crate) fn on_failure(&mut self, reason: &str, message: &str, turn: u64, at_us: u64) {
        let key = (reason.to_owned(), message.to_owned());
        if !self.failures.contains_key(&key) && self.failures.len() >= FAILURES_MAX {
            self.failures_untold += 1;
            return;
        }
        let failure = self.failures.entry(key).or_insert_with(|| FailureReport {
            reason: reason.to_owned(),
            message: message.to_owned(),
            times: 0,
            first_turn: turn,
            first_at_ms: at_us / 1_000,
        });
        failure.times += 1;
    }

    /// The guest, or the host of it, logged an error.
    pub(crate) fn on_error_logged(&mut self, text: &str, turn: u64, at_us: u64) {
        if let Some(logged) = self.errors_logged.get_mut(text) {
            logged.times += 1;
        } else if self.errors_logged.len() < LOGGED_MAX {
            let (text, first_at_ms) = (text.to_owned(), at_us / 1_000);
            let logged = LoggedError { text: text.clone(), times: 1, first_turn: turn, first_at_ms };
            self.errors_logged.insert(text, logged);
        }
    }

    pub(crate) fn errors_logged(&self) -> Vec<LoggedError> {
        let mut logged: Vec<_> = self.errors_logged.values().cloned().collect();
        logged.sort_by_key(|logged| logged.first_at_ms);
        logged
    }

    pub(crate) fn limits(&self) -> Vec<LimitHit> {
        self.limits.values().cloned().collect()
    }

    pub(crate) fn failures(&self) -> Vec<FailureReport> {
        let mut failures: Vec<_> = self.failures.values().cloned().collect();
        failures.sort_by_key(|failure| failure.first_at_ms);
        failures
    }
}

/// Of everything.
#[derive(Debug, Default)]
pub(crate) struct Measure {
    pub(crate) frameworks: Vec<OfFramework>,
    pub(crate) samples: Vec<Sample>,
    /// Sum and minimum of Jain's index, and of how many samples.
    pub(crate) fairness: (u64, u64, u64),
    pub(crate) agents_lost: u64,
    pub(crate) agents_back: u64,
    pub(crate) events: BTreeMap<String, u64>,
    pub(crate) notes: Vec<String>,
}

impl Measure {
    pub(crate) fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }

    /// The dominant shares of those that want offers now.
    pub(crate) fn on_shares(&mut self, shares_ppm: &[u64]) {
        let Some(index) = jain_ppm(shares_ppm) else { return };
        let (sum, min, samples) = self.fairness;
        let min = if samples == 0 { index } else { min.min(index) };
        self.fairness = (sum + index, min, samples + 1);
    }
}

/// Jain's index: the square of the sum by the sum of squares and the number. None of fewer than two, and
/// where nobody has anything.
pub(crate) fn jain_ppm(shares: &[u64]) -> Option<u64> {
    let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let squares: u128 = shares.iter().map(|share| u128::from(*share) * u128::from(*share)).sum();
    if shares.len() < 2 || squares == 0 {
        return None;
    }
    let index = sum * sum * 1_000_000 / (squares * shares.len() as u128);
    u64::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_for_equal_shares_and_falls_with_their_number() {
        assert_eq!(jain_ppm(&[7, 7, 7]), Some(1_000_000));
        assert_eq!(jain_ppm(&[9, 0, 0]), Some(333_333));
        assert_eq!(jain_ppm(&[3, 1]), Some(800_000));
        assert_eq!((jain_ppm(&[5]), jain_ppm(&[0, 0])), (None, None));
    }

    #[test]
    fn cpu_is_summed_by_virtual_minutes() {
        let mut cpu = Cpu::default();
        let ms = Duration::from_millis;
        cpu.add(1, ms(30), ms(50), 59_000_000);
        cpu.add(2, ms(20), ms(50), 61_000_000);
        cpu.add(3, ms(15), ms(50), 62_000_000);
        assert_eq!((cpu.minute_max, cpu.total, cpu.near_limit, cpu.max_turn), (ms(35), ms(65), 1, 1));
    }

    #[test]
    fn tasks_are_placed_once_and_matched_to_who_asked_first() {
        let mut of = OfFramework::default();
        let task = |name: &str| name.parse::<TaskId>().unwrap();
        of.asked(2, 100);
        of.launched([task("a"), task("b")], 500);
        for (name, state, at_us) in [
            ("a", "TASK_STAGING", 500),
            ("b", "TASK_STAGING", 500),
            ("b", "TASK_DROPPED", 600),
            ("a", "TASK_RUNNING", 900),
            ("a", "TASK_RUNNING", 5_000),
        ] {
            of.on_task(Some(&task(name)), state, "AGENT_LOST: it went", at_us);
        }
        assert_eq!((of.placements, of.launch_to_running.max(), of.asked_to_running.max()), (2, 400, 800));
        assert_eq!(of.reasons.get("TASK_DROPPED AGENT_LOST"), Some(&1));
    }
}
