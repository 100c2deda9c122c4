//! The chunks of all texts, and where each of them stands.
//!
//! Invariants: `waiting` holds exactly the chunks in [`Phase::Waiting`], `in_flight` counts those
//! in [`Phase::Launched`]. A chunk is done once; news of any but its latest launch changes nothing.
//! Pure: the caller writes the chunks that changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Failures of a chunk's tasks after which it is given up.
pub const MAX_FAILURES: u32 = 5;
/// Launches of a chunk after which it is given up even if none of them failed by itself: bounds
/// what a cluster that loses everything can cost.
pub const MAX_LAUNCHES: u32 = 100;
/// Tasks at a time. The results of all of them, at most a chunk of 24 KiB each, can arrive in one
/// turn, which writes at most 1 MiB.
pub const MAX_IN_FLIGHT: usize = 32;

/// What counts a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pipeline of coreutils.
    Native,
    /// The component `wordcount-task`.
    Wasm,
    /// The component `wordcount-executor`.
    Executor,
}

/// Where a chunk stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For an offer.
    Waiting,
    /// A task has it.
    Launched(Kind),
    /// Its counts are in the state.
    Done(Kind),
    /// Given up, and why.
    Failed(String),
}

/// One chunk, as it is kept under `chunk/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Words in it; what a task counts must add up to this.
    pub words: u64,
    /// How often it was launched.
    pub launches: u32,
    /// How often its task failed by itself.
    pub failures: u32,
    /// Where it stands.
    pub phase: Phase,
}

impl Chunk {
    /// A chunk that waits.
    pub fn new(words: u64) -> Self {
        Self {
            words,
            launches: 0,
            failures: 0,
            phase: Phase::Waiting,
        }
    }
}

/// How a task ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With counts that add up.
    Counted,
    /// By a fault of its own.
    Failed(String),
    /// It never started, or was taken away.
    Lost,
}

/// Totals of all chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All chunks.
    pub total: usize,
    /// Done by native tasks.
    pub native_done: usize,
    /// Done by Wasm tasks.
    pub wasm_done: usize,
    /// Done by the executor.
    pub executor_done: usize,
    /// Given up.
    pub failed: usize,
    /// Launches beyond the first of each chunk.
    pub repeated: u64,
}

/// All chunks by number.
#[derive(Debug, Default)]
pub struct Jobs {
    chunks: BTreeMap<u32, Chunk>,
    waiting: BTreeSet<u32>,
    in_flight: usize,
}

impl Jobs {
    /// Add a chunk read from the state, or a new one.
    pub fn insert(&mut self, number: u32, chunk: Chunk) {
        match chunk.phase {
            Phase::Waiting => drop(self.waiting.insert(number)),
            Phase::Launched(_) => self.in_flight += 1,
            Phase::Done(_) | Phase::Failed(_) => {}
        }
        self.chunks.insert(number, chunk);
    }

    /// The number that a new chunk gets.
    pub fn next_number(&self) -> u32 {
        self.chunks
            .last_key_value()
            .map_or(0, |(last, _)| last.saturating_add(1))
    }

    /// Look up a chunk.
    pub fn get(&self, number: u32) -> Option<&Chunk> {
        self.chunks.get(&number)
    }

    /// Numbers and ids of the tasks to launch next, as many as may be in flight, oldest first.
    pub fn next_tasks(&self) -> impl Iterator<Item = (u32, String)> {
        let most = MAX_IN_FLIGHT.saturating_sub(self.in_flight);
        self.waiting.iter().take(most).map(|number| {
            let launches = self.chunks.get(number).map_or(0, |chunk| chunk.launches);
            (*number, task_id(*number, launches.saturating_add(1)))
        })
    }

    /// Whether another task can be launched.
    pub fn wants_offers(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight < MAX_IN_FLIGHT
    }

    /// A waiting chunk was launched.
    pub fn on_launched(&mut self, number: u32, kind: Kind) {
        let was_waiting = self.waiting.remove(&number);
        if let Some(chunk) = self.chunks.get_mut(&number).filter(|_| was_waiting) {
            chunk.launches = chunk.launches.saturating_add(1);
            chunk.phase = Phase::Launched(kind);
            self.in_flight += 1;
        }
    }

    /// The chunk that a task is counting, if it is that chunk's latest launch and not ended yet.
    pub fn current(&self, task: &str) -> Option<(u32, &Chunk)> {
        let (number, launch) = parse_task_id(task)?;
        let chunk = self.chunks.get(&number)?;
        let is_current = matches!(chunk.phase, Phase::Launched(_)) && chunk.launches == launch;
        is_current.then_some((number, chunk))
    }

    /// A task ended. Its chunk if that changed: done, waiting again, or given up.
    pub fn on_ended(&mut self, task: &str, outcome: Outcome) -> Option<u32> {
        let (number, _) = self.current(task)?;
        let chunk = self.chunks.get_mut(&number)?;
        let Phase::Launched(kind) = chunk.phase else {
            return None;
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        let reason = match outcome {
            Outcome::Counted => {
                chunk.phase = Phase::Done(kind);
                return Some(number);
            }
            Outcome::Failed(reason) => {
                chunk.failures = chunk.failures.saturating_add(1);
                reason
            }
            Outcome::Lost => "its task was lost again and again".to_owned(),
        };
        if chunk.failures >= MAX_FAILURES || chunk.launches >= MAX_LAUNCHES {
            chunk.phase = Phase::Failed(reason);
        } else {
            chunk.phase = Phase::Waiting;
            self.waiting.insert(number);
        }
        Some(number)
    }

    /// A waiting chunk can never be launched.
    pub fn on_refused(&mut self, number: u32, reason: String) {
        let was_waiting = self.waiting.remove(&number);
        if let Some(chunk) = self.chunks.get_mut(&number).filter(|_| was_waiting) {
            chunk.phase = Phase::Failed(reason);
        }
    }

    /// Totals.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            total: self.chunks.len(),
            ..Progress::default()
        };
        for chunk in self.chunks.values() {
            progress.repeated += u64::from(chunk.launches.saturating_sub(1));
            match chunk.phase {
                Phase::Done(Kind::Native) => progress.native_done += 1,
                Phase::Done(Kind::Wasm) => progress.wasm_done += 1,
                Phase::Done(Kind::Executor) => progress.executor_done += 1,
                Phase::Failed(_) => progress.failed += 1,
                Phase::Waiting | Phase::Launched(_) => {}
            }
        }
        progress
    }

    /// Why the first chunk that was given up was.
    pub fn first_failure(&self) -> Option<String> {
        self.chunks
            .iter()
            .find_map(|(number, chunk)| match &chunk.phase {
                Phase::Failed(reason) => Some(format!("chunk {number}: {reason}")),
                _ => None,
            })
    }
}

/// The id of a chunk's task: `chunk-12.2` is the second launch of chunk 12.
pub fn task_id(number: u32, launch: u32) -> String {
    format!("chunk-{number}.{launch}")
}

/// The chunk and launch in the id of a task.
pub fn parse_task_id(id: &str) -> Option<(u32, u32)> {
    let (number, launch) = id.strip_prefix("chunk-")?.split_once('.')?;
    Some((number.parse().ok()?, launch.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{
        Chunk, Jobs, Kind, MAX_FAILURES, MAX_IN_FLIGHT, MAX_LAUNCHES, Outcome, Phase, Progress,
        task_id,
    };

    fn jobs(chunks: u32) -> Jobs {
        let mut jobs = Jobs::default();
        for _ in 0..chunks {
            let number = jobs.next_number();
            jobs.insert(number, Chunk::new(10));
        }
        jobs
    }

    fn phase(jobs: &Jobs, number: u32) -> &Phase {
        &jobs.get(number).unwrap().phase
    }

    #[test]
    fn a_chunk_is_done_once_whatever_arrives_later() {
        let mut jobs = jobs(1);
        jobs.on_launched(0, Kind::Wasm);
        assert_eq!(jobs.on_ended("chunk-0.1", Outcome::Lost), Some(0));
        jobs.on_launched(0, Kind::Native);
        assert_eq!(
            jobs.on_ended("chunk-0.1", Outcome::Counted),
            None,
            "an older launch"
        );
        assert_eq!(jobs.on_ended("chunk-0.2", Outcome::Counted), Some(0));
        assert_eq!(
            jobs.on_ended("chunk-0.2", Outcome::Counted),
            None,
            "it was done before"
        );
        assert_eq!(
            jobs.on_ended("chunk-9.1", Outcome::Counted),
            None,
            "no such chunk"
        );
        assert_eq!(jobs.on_ended("nonsense", Outcome::Counted), None);
        let expected = Progress {
            total: 1,
            native_done: 1,
            repeated: 1,
            ..Progress::default()
        };
        assert_eq!(jobs.progress(), expected);
    }

    #[test]
    fn failures_are_counted_and_losses_are_not() {
        let mut jobs = jobs(1);
        for launch in 1..=10 {
            jobs.on_launched(0, Kind::Native);
            jobs.on_ended(&task_id(0, launch), Outcome::Lost);
        }
        for failure in 1..=MAX_FAILURES {
            assert_eq!(*phase(&jobs, 0), Phase::Waiting);
            jobs.on_launched(0, Kind::Native);
            jobs.on_ended(
                &task_id(0, 10 + failure),
                Outcome::Failed("exit code 1".to_owned()),
            );
        }
        assert_eq!(*phase(&jobs, 0), Phase::Failed("exit code 1".to_owned()));
        assert!(!jobs.wants_offers());
        assert_eq!(
            jobs.first_failure().as_deref(),
            Some("chunk 0: exit code 1")
        );
    }

    #[test]
    fn even_losses_end_at_some_time() {
        let mut jobs = jobs(1);
        for launch in 1..=MAX_LAUNCHES {
            jobs.on_launched(0, Kind::Native);
            jobs.on_ended(&task_id(0, launch), Outcome::Lost);
        }
        assert!(matches!(phase(&jobs, 0), Phase::Failed(_)));
    }

    #[test]
    fn no_more_than_a_bounded_number_is_in_flight() {
        let mut jobs = jobs(100);
        let first: Vec<(u32, String)> = jobs.next_tasks().collect();
        assert_eq!(first.len(), MAX_IN_FLIGHT);
        assert_eq!(first.first(), Some(&(0, "chunk-0.1".to_owned())));
        for (number, _) in &first {
            jobs.on_launched(*number, Kind::Native);
        }
        assert!(!jobs.wants_offers());
        assert_eq!(jobs.next_tasks().count(), 0);
        jobs.on_ended("chunk-3.1", Outcome::Counted);
        assert!(jobs.wants_offers());
        assert_eq!(
            jobs.next_tasks().next(),
            Some((32, "chunk-32.1".to_owned()))
        );
    }

    #[test]
    fn chunks_read_back_from_the_state_stand_where_they_stood() {
        let mut before = jobs(3);
        before.on_launched(0, Kind::Wasm);
        before.on_launched(1, Kind::Native);
        before.on_ended("chunk-1.1", Outcome::Counted);
        let mut after = Jobs::default();
        for number in 0..3 {
            let kept = serde_json::to_string(before.get(number).unwrap()).unwrap();
            after.insert(number, serde_json::from_str(&kept).unwrap());
        }
        assert_eq!(after.progress(), before.progress());
        assert_eq!(after.next_tasks().next(), Some((2, "chunk-2.1".to_owned())));
        assert_eq!(after.on_ended("chunk-0.1", Outcome::Counted), Some(0));
    }
}
