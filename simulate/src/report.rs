//! The report: what came of a simulation, as a document.
//!
//! Invariants: everything but `real` follows from seed, plan, trace and components; amounts of it are
//! integers. Must never read the world.

use crate::histogram::Histogram;
use crate::plan::AgentSize;
use serde::Serialize;
use std::collections::BTreeMap;

/// Counts this format.
pub(crate) const FORMAT: u32 = 1;

/// Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// How many there are.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ms: u64,
    /// 99 of 100 took no longer.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

impl Times {
    /// Of microseconds.
    pub(crate) fn of(us: &Histogram) -> Self {
        let ms = |us: u64| us.div_ceil(1_000);
        Self {
            count: us.total(),
            p50_ms: ms(us.percentile(50)),
            p99_ms: ms(us.percentile(99)),
            max_ms: ms(us.max()),
        }
    }
}

/// What was simulated.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The seed.
    pub seed: u64,
    /// Agents.
    pub agents: usize,
    /// What each of them offers.
    pub agent_size: AgentSize,
    /// Virtual time that was asked for.
    pub for_ms: u64,
    /// Virtual time that was simulated; less when it was stopped.
    pub simulated_ms: u64,
    /// Agents lost in an hour because of `--faults`.
    pub faults_per_hour: u64,
    /// How long tasks run about which the trace says nothing.
    pub default_run_time: String,
    /// What the simulation takes for the times of machines and networks.
    pub model: BTreeMap<&'static str, u64>,
}

/// The cluster as a whole.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterReport {
    /// Tasks that were placed on an agent.
    pub placements: u64,
    /// Mean of the samples, in parts per million of what reachable agents offer.
    pub cpus_used_ppm: u64,
    /// The same for memory.
    pub mem_used_ppm: u64,
    /// The highest sample.
    pub cpus_used_max_ppm: u64,
    /// The same for memory.
    pub mem_used_max_ppm: u64,
    /// Jain's index of the dominant shares of frameworks that want offers, as a mean over the samples with
    /// at least two of them: 1,000,000 is equal shares, 1/n of it one that has everything. None without such
    /// a sample.
    pub fairness_ppm: Option<u64>,
    /// The lowest.
    pub fairness_min_ppm: Option<u64>,
    /// Samples that had two of them.
    pub fairness_samples: u64,
    /// Agents that were lost.
    pub agents_lost: u64,
    /// Agents that came back.
    pub agents_back: u64,
    /// Everything else that is on the cluster's record, by kind.
    pub events: BTreeMap<String, u64>,
}

/// A limit that a scheduler ran into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitHit {
    /// Its name in the table of limits.
    pub limit: String,
    /// What followed.
    pub effect: &'static str,
    /// How often.
    pub times: u64,
    /// Number of the first turn; 0 is outside of turns.
    pub first_turn: u64,
    /// Number of the last.
    pub last_turn: u64,
    /// When it was the first time.
    pub first_at_ms: u64,
}

/// A failure of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureReport {
    /// Upper-case code.
    pub reason: String,
    /// For people.
    pub message: String,
    /// How often, with this reason and message.
    pub times: u64,
    /// Number of the first turn.
    pub first_turn: u64,
    /// When.
    pub first_at_ms: u64,
}

/// An error in a scheduler's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggedError {
    /// As it was logged.
    pub text: String,
    /// How often.
    pub times: u64,
    /// Number of the first turn; 0 is outside of turns.
    pub first_turn: u64,
    /// When.
    pub first_at_ms: u64,
}

/// Turns of a scheduler.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Turns {
    /// Committed.
    pub committed: u64,
    /// The guest failed: nothing of them was committed.
    pub discarded: u64,
    /// The master refused them.
    pub refused: u64,
    /// Events that they were given.
    pub events: u64,
    /// Offers among these.
    pub offers: u64,
    /// Operations that they asked for.
    pub operations: u64,
    /// From a turn's end to the news that it is committed, in virtual time: longer than usual when the
    /// tenant's turns wait.
    pub commit: Times,
}

/// Requests of the trace to a scheduler.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Requests {
    /// Sent for the first time.
    pub sent: u64,
    /// Sent again after a 503.
    pub repeated: u64,
    /// Final answers, by status.
    pub answered: BTreeMap<u16, u64>,
    /// Without an answer at the end.
    pub unanswered: u64,
    /// From when it was sent first to its answer, in virtual time.
    pub times: Times,
}

/// One framework.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FrameworkReport {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Its scheduler.
    pub component: String,
    /// What the scheduler is doing at the end.
    pub phase: String,
    /// Placements of the scheduler.
    pub epoch: u64,
    /// Tasks that were placed on an agent.
    pub placements: u64,
    /// Tasks that have not ended.
    pub tasks_live: u64,
    /// How often tasks came into each state.
    pub states: BTreeMap<String, u64>,
    /// The same with the reason, where there was one.
    pub reasons: BTreeMap<String, u64>,
    /// From a committed launch to TASK_RUNNING, in virtual time.
    pub launch_to_running: Times,
    /// From a request with `tasks` to TASK_RUNNING of as many, in order.
    pub asked_to_running: Times,
    /// Mean dominant share over the samples, in parts per million.
    pub share_ppm: u64,
    /// The highest.
    pub share_max_ppm: u64,
    /// Turns.
    pub turns: Turns,
    /// Requests of the trace.
    pub requests: Requests,
    /// Every limit that it ran into.
    pub limits: Vec<LimitHit>,
    /// Its failures.
    pub failures: Vec<FailureReport>,
    /// Failures beyond those that are told.
    pub failures_untold: u64,
    /// The limit that quarantined it.
    pub quarantined_by: Option<String>,
    /// When.
    pub quarantined_at_ms: Option<u64>,
    /// Bytes of state at the end.
    pub state_bytes: u64,
    /// Keys of state at the end.
    pub state_keys: u64,
    /// What is pending at the end, and why.
    pub waits: Vec<String>,
    /// What it logged as errors, the first different ones.
    pub errors_logged: Vec<LoggedError>,
}

/// A moment.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// When.
    pub at_ms: u64,
    /// Agents that are connected.
    pub agents: usize,
    /// Tasks that have not ended.
    pub tasks: usize,
    /// CPU in use, in parts per million of what reachable agents offer.
    pub cpus_used_ppm: u64,
    /// The same for memory.
    pub mem_used_ppm: u64,
    /// Dominant shares, in the order of the frameworks.
    pub shares_ppm: Vec<u64>,
}

/// CPU time of a scheduler's turns on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct RealTurns {
    /// Whose.
    pub framework: String,
    /// Turns.
    pub turns: u64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Its number.
    pub max_turn: u64,
    /// All of them.
    pub total_ms: u64,
    /// Turns that took more than half of the limit `turn-cpu-ms`: on a slower machine they might fail.
    pub near_limit: u64,
    /// The most in one virtual minute; with more than `minute-cpu-ms`, turns would have waited.
    pub minute_max_ms: u64,
    /// That limit.
    pub minute_limit_ms: u64,
}

/// What depends on this machine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Real {
    /// How long the simulation took.
    pub wall_ms: u64,
    /// CPU time of the simulating thread.
    pub cpu_ms: u64,
    /// Turns.
    pub turns: Vec<RealTurns>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this document.
    pub format: u32,
    /// What was simulated.
    pub setting: Setting,
    /// It was stopped before its time.
    pub stopped: bool,
    /// The cluster.
    pub cluster: ClusterReport,
    /// The frameworks, in the order of the plan.
    pub frameworks: Vec<FrameworkReport>,
    /// Moments, in order.
    pub samples: Vec<Sample>,
    /// What the master would have told its operator, the first ones.
    pub notes: Vec<String>,
    /// What depends on this machine, and differs from run to run.
    pub real: Real,
}
