//! `tessera sim`: schedulers as users upload them, against a simulated cluster.
//!
//! The core of the master, the core of an agent for each simulated one, and the engine that runs guests on
//! agents are the real ones; machines, networks and tasks are models. Map: `plan` and `trace` are what is
//! asked for, `world` the order of things, `master`, `agents`, `tasks` and `guests` what lives in it,
//! `measure` what is counted, `report` and `text` what is told.
//!
//! Invariants: everything but real times follows from plan, trace and components; nothing of a user's ends
//! the process. This crate must never know Raft, HTTP, a file format of a cluster, or reach a real cluster.

mod agents;
mod duration;
mod guests;
mod histogram;
mod master;
mod measure;
mod plan;
mod queue;
mod random;
pub mod report;
mod tasks;
mod text;
mod trace;
mod world;

pub use guests::File;
pub use plan::{Plan, SchedulerPlan};
pub use text::text;
pub use world::Progress;

use guests::Guests;
use report::{
    ClusterReport, FORMAT, FrameworkReport, Real, RealTurns, Report, Requests, Setting, Times, Turns,
};
use serde::Serialize;
use std::time::Duration;
use tessera_types::LimitName;
use trace::{DEFAULT_MEAN_MS, Trace};
use world::{MODEL, World};

/// Why nothing was simulated, or not to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// What is wrong, and with what.
    pub error: String,
    /// The way out.
    pub hint: String,
}

impl Refused {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: String::new() }
    }

    /// With a way out.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }
}

/// The files that a plan names, as they were read.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Of each scheduler, in the order of the plan.
    pub schedulers: Vec<File>,
    /// The other components.
    pub components: Vec<File>,
    /// The trace.
    pub trace: String,
}

/// Simulate. `watch` is told how far it is, and says whether to go on.
///
/// # Errors
/// When the trace or a component cannot be used, or the simulator has a fault.
pub fn simulate(plan: &Plan, files: &Files, watch: impl FnMut(Progress) -> bool) -> Result<Report, Refused> {
    let trace = Trace::parse(&files.trace, plan)?;
    let guests = Guests::load(&files.schedulers, &files.components)?;
    let mut world = World::new(plan, &trace, guests)?;
    let stopped = world.run(watch)?;
    if stopped || world.measure.samples.is_empty() {
        world.sample();
    }
    Ok(report(&mut world, stopped))
}

fn report(world: &mut World<'_>, stopped: bool) -> Report {
    let frameworks: Vec<FrameworkReport> =
        (0..world.plan.schedulers.len()).map(|index| of_framework(world, index)).collect();
    let measure = &world.measure;
    let samples = measure.samples.len().max(1) as u64;
    let mean = |of: fn(&report::Sample) -> u64| measure.samples.iter().map(of).sum::<u64>() / samples;
    let most = |of: fn(&report::Sample) -> u64| measure.samples.iter().map(of).max().unwrap_or(0);
    let (sum, min, count) = measure.fairness;
    let cluster = ClusterReport {
        placements: frameworks.iter().map(|framework| framework.placements).sum(),
        cpus_used_ppm: mean(|sample| sample.cpus_used_ppm),
        mem_used_ppm: mean(|sample| sample.mem_used_ppm),
        cpus_used_max_ppm: most(|sample| sample.cpus_used_ppm),
        mem_used_max_ppm: most(|sample| sample.mem_used_ppm),
        fairness_ppm: sum.checked_div(count),
        fairness_min_ppm: (count > 0).then_some(min),
        fairness_samples: count,
        agents_lost: measure.agents_lost,
        agents_back: measure.agents_back,
        events: measure.events.clone(),
    };
    let plan = world.plan;
    Report {
        format: FORMAT,
        setting: Setting {
            seed: plan.seed,
            agents: plan.agents,
            agent_size: plan.agent_size,
            for_ms: plan.for_ms,
            simulated_ms: world.now_us / 1_000,
            faults_per_hour: plan.faults_per_hour,
            default_run_time: format!("exponential, mean {}", duration::show(DEFAULT_MEAN_MS)),
            model: MODEL.into_iter().collect(),
        },
        stopped,
        cluster,
        frameworks,
        samples: measure.samples.clone(),
        notes: measure.notes.clone(),
        real: Real { turns: real_turns(world), ..Real::default() },
    }
}

fn of_framework(world: &mut World<'_>, index: usize) -> FrameworkReport {
    let id = world.master.framework(index);
    let view = id.and_then(|id| world.master.core.framework(id));
    let waits = id.map(|id| world.master.core.explain(id)).unwrap_or_default();
    let unanswered = world.unanswered(index);
    let samples = world.measure.samples.len().max(1) as u64;
    let planned = &world.plan.schedulers[index];
    let of = &world.measure.frameworks[index];
    FrameworkReport {
        name: planned.name.to_string(),
        role: planned.role.to_string(),
        component: view.as_ref().map(|view| view.component.to_string()).unwrap_or_default(),
        phase: view.as_ref().map(|view| view.phase.name().to_owned()).unwrap_or_default(),
        epoch: view.as_ref().map_or(0, |view| view.epoch.0),
        placements: of.placements,
        tasks_live: view.as_ref().map_or(0, |view| view.tasks_live as u64),
        states: of.states.clone(),
        reasons: of.reasons.clone(),
        launch_to_running: Times::of(&of.launch_to_running),
        asked_to_running: Times::of(&of.asked_to_running),
        share_ppm: of.share_sum / samples,
        share_max_ppm: of.share_max,
        turns: Turns {
            committed: of.committed,
            discarded: of.discarded,
            refused: of.refused,
            events: of.events,
            offers: of.offers,
            operations: of.operations,
            commit: Times::of(&of.commit),
        },
        requests: Requests {
            sent: of.sent,
            repeated: of.repeated,
            answered: of.answered.clone(),
            unanswered,
            times: Times::of(&of.answers),
        },
        limits: of.limits(),
        failures: of.failures(),
        failures_untold: of.failures_untold,
        quarantined_by: view.as_ref().and_then(|view| Some(view.quarantine.as_ref()?.rule.to_string())),
        quarantined_at_ms: of.quarantined_at_us.map(|us| us / 1_000),
        state_bytes: view.as_ref().map_or(0, |view| view.state_bytes),
        state_keys: view.as_ref().map_or(0, |view| view.state_keys),
        waits: waits.into_iter().map(|waiting| format!("{}: {}", waiting.what, waiting.why)).collect(),
        errors_logged: of.errors_logged(),
    }
}

fn real_turns(world: &World<'_>) -> Vec<RealTurns> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let planned = world.plan.schedulers.iter().zip(&world.measure.frameworks);
    planned
        .map(|(planned, of)| RealTurns {
            framework: planned.name.to_string(),
            turns: of.cpu.us.total(),
            p50_us: of.cpu.us.percentile(50),
            p99_us: of.cpu.us.percentile(99),
            max_us: of.cpu.us.max(),
            max_turn: of.cpu.max_turn,
            total_ms: ms(of.cpu.total),
            near_limit: of.cpu.near_limit,
            minute_max_ms: ms(of.cpu.minute_max),
            minute_limit_ms: world
                .master
                .core
                .effective_limits(Some(&planned.role))
                .get(LimitName::MinuteCpuMs),
        })
        .collect()
}
