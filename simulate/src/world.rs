//! The simulated cluster: everything that lives, and the order in which it happens.
//!
//! Invariants: one thread, virtual time; the same plan, trace and components give the same history. Times of
//! machines and networks are the constants here, and are told in the report. Must never read a clock of the
//! machine.

use crate::agents::Agent;
use crate::guests::Guests;
use crate::master::Master;
use crate::measure::{Measure, OfFramework};
use crate::plan::Plan;
use crate::queue::{Event, Queue};
use crate::random::random_of;
use crate::report::Sample;
use crate::tasks::Process;
use crate::trace::{Request, Trace, What};
use crate::{Refused, duration};
use std::collections::BTreeMap;
use tessera_master_core::Request as Asked;
use tessera_types::{FrameworkId, Quantities};

/// One way between the master and an agent.
pub(crate) const NET_US: u64 = 500;
/// From a command to its entry on stable storage.
pub(crate) const COMMIT_US: u64 = 2_000;
/// A turn of a guest, whatever it really takes.
pub(crate) const TURN_US: u64 = 1_000;
/// From an agent's decision to a task's first instruction.
pub(crate) const START_US: u64 = 10_000;
/// A sandbox.
pub(crate) const PREPARE_US: u64 = 5_000;
/// From a signal to a task's end.
pub(crate) const KILL_US: u64 = 10_000;
/// A worker process.
pub(crate) const WORKER_US: u64 = 50_000;
/// A component's bytes, or a framework's state.
pub(crate) const FETCH_US: u64 = 5_000;
/// Compiling a component.
pub(crate) const COMPILE_US: u64 = 1_000_000;
/// Building an instance.
pub(crate) const BUILD_US: u64 = 5_000;

/// Those, as the report names them.
pub(crate) const MODEL: [(&str, u64); 10] = [
    ("network_one_way_us", NET_US),
    ("commit_us", COMMIT_US),
    ("turn_us", TURN_US),
    ("task_start_us", START_US),
    ("sandbox_us", PREPARE_US),
    ("kill_us", KILL_US),
    ("worker_start_us", WORKER_US),
    ("fetch_us", FETCH_US),
    ("compile_us", COMPILE_US),
    ("build_us", BUILD_US),
];

/// Time between two ticks of the master.
const TICK_US: u64 = 100_000;
/// Time between two signs of life of the agents.
const BEAT_US: u64 = 1_000_000;
/// Samples of one simulation.
const SAMPLES: u64 = 120;
/// Shortest time between two.
const SAMPLE_MIN_US: u64 = 1_000_000;
/// A turn whose outcome takes so long waits for something.
const LONG_COMMIT_US: u64 = 50_000;
/// Of the whole.
const PPM: i128 = 1_000_000;

/// How far a simulation is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Virtual time.
    pub at_ms: u64,
    /// Tasks that were placed.
    pub placements: u64,
}

/// Everything.
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) trace: &'a Trace,
    pub(crate) now_us: u64,
    pub(crate) queue: Queue,
    pub(crate) random: tessera_virtual::Random,
    pub(crate) master: Master,
    pub(crate) agents: Vec<Agent>,
    pub(crate) guests: Guests,
    pub(crate) processes: BTreeMap<u64, Process>,
    pub(crate) measure: Measure,
    numbers: u64,
    failed: Option<String>,
}

fn ppm(part: i64, whole: i64) -> u64 {
    if whole <= 0 || part <= 0 {
        return 0;
    }
    u64::try_from(i128::from(part) * PPM / i128::from(whole)).unwrap_or(0)
}

/// The dominant share, in parts per million.
fn dominant_ppm(used: Quantities, total: Quantities) -> u64 {
    let shares = [
        ppm(used.cpus_milli, total.cpus_milli),
        ppm(used.mem_mib, total.mem_mib),
        ppm(used.disk_mib, total.disk_mib),
    ];
    shares.into_iter().max().unwrap_or(0)
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan, trace: &'a Trace, guests: Guests) -> Result<Self, Refused> {
        let total = Quantities::from(plan.agent_size);
        let frameworks = plan.schedulers.iter().map(|_| OfFramework::default());
        Ok(Self {
            plan,
            trace,
            now_us: 0,
            queue: Queue::default(),
            random: random_of(plan.seed, &["world"]),
            master: Master::new().map_err(Refused::new)?,
            agents: (0..plan.agents).map(|_| Agent::new(total)).collect(),
            guests,
            processes: BTreeMap::new(),
            measure: Measure { frameworks: frameworks.collect(), ..Measure::default() },
            numbers: 0,
            failed: None,
        })
    }

    /// A number that was not given out before.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Something happened that cannot: the simulation ends with it.
    pub(crate) fn fail(&mut self, text: String) {
        self.failed.get_or_insert(text);
    }

    /// The virtual time, for people.
    pub(crate) fn clock(&self) -> String {
        duration::show(self.now_us / 1_000)
    }

    pub(crate) fn of_framework(&mut self, framework: u64) -> Option<&mut OfFramework> {
        let index = self.master.frameworks.get(&FrameworkId(framework))?;
        self.measure.frameworks.get_mut(*index)
    }

    pub(crate) fn request_of(&self, line: usize) -> Option<&'a Request> {
        match &self.trace.lines.get(line)?.what {
            What::Ask(request) => Some(request),
            What::Lose { .. } | What::Configure { .. } => None,
        }
    }

    /// Run to the end, or until `watch` says no.
    pub(crate) fn run(&mut self, mut watch: impl FnMut(Progress) -> bool) -> Result<bool, Refused> {
        self.master_begins();
        self.agents_join();
        for (line, what) in self.trace.lines.iter().enumerate() {
            self.queue.at(what.at_ms.saturating_mul(1_000), Event::Line { line, n: 0 });
        }
        self.queue.at(TICK_US, Event::Tick);
        self.queue.at(BEAT_US, Event::Beats);
        self.queue.at(self.sample_us(), Event::Sample);
        let end_us = self.plan.for_ms * 1_000;
        let mut stopped = false;
        while let Some((at_us, event)) = self.queue.pop() {
            if at_us > end_us || stopped {
                break;
            }
            self.now_us = at_us;
            if matches!(event, Event::Tick) {
                let placements = self.measure.frameworks.iter().map(|of| of.placements).sum();
                stopped = !watch(Progress { at_ms: at_us / 1_000, placements });
            }
            self.happen(event);
            if let Some(text) = self.failed.take() {
                let text = format!("the simulation broke at {}: {text}", self.clock());
                return Err(Refused::new(text).hint("this is a fault of the simulator: please report it with its seed"));
            }
        }
        if !stopped {
            self.now_us = end_us;
        }
        Ok(stopped)
    }

    fn sample_us(&self) -> u64 {
        (self.plan.for_ms * 1_000 / SAMPLES).max(SAMPLE_MIN_US)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.master_input(tessera_master_core::Core::on_tick);
                self.look_at_waiting_turns();
                self.queue.at(self.now_us + TICK_US, Event::Tick);
            }
            Event::Beats => {
                self.master_hears_beats();
                self.queue.at(self.now_us + BEAT_US, Event::Beats);
            }
            Event::Commit => self.master_commits(),
            Event::Connect { agent, life } => self.agent_connects(agent, life),
            Event::Register { agent, life, register } => self.agent_registers(agent, life, *register),
            Event::FromAgent { session, message } => {
                self.master_input(|core, now| core.on_agent_message(session, message, now));
            }
            Event::ToAgent { agent, session, message } => self.agent_hears(agent, session, message),
            Event::Closed { agent, session } => self.agent_is_closed(agent, session),
            Event::Wake { agent } => self.agent_wakes(agent),
            Event::Later { agent, life, what } => self.agent_later(agent, life, what),
            Event::TaskEnds { process, signal } => self.task_ends(process, signal),
            Event::Build { agent, framework, serial } => self.build_instance(agent, framework, serial),
            Event::Turned { agent, framework, serial } => self.guest_answers(agent, framework, serial),
            Event::Line { line, n } => self.line(line, n),
            Event::Ask { call } => self.send_call(call),
            Event::Fault => self.fault(),
            Event::Back { agent, life, how } => self.agent_is_back(agent, life, how),
            Event::Sample => {
                self.sample();
                self.queue.at(self.now_us + self.sample_us(), Event::Sample);
            }
        }
    }

    /// A line of the trace is due.
    fn line(&mut self, line: usize, n: u64) {
        let Some(what) = self.trace.lines.get(line) else { return };
        if n + 1 < what.times {
            let next_us = self.now_us + what.every_ms.saturating_mul(1_000);
            self.queue.at(next_us, Event::Line { line, n: n + 1 });
        }
        match &what.what {
            What::Lose { which, for_ms, how } => self.lose(*which, for_ms.map(|ms| ms * 1_000), *how),
            What::Ask(_) => self.ask_scheduler(line, n),
            What::Configure { framework, config } => {
                let Some(framework) = self.master.framework(*framework) else { return };
                let config = config.clone();
                let request = Asked::SetConfig { framework, config, expected_version: None, unreachable: None };
                self.ask_master(request, None);
            }
        }
    }

    /// Turns whose outcome takes long wait for their tenant's tokens: that is a limit, too.
    fn look_at_waiting_turns(&mut self) {
        let now_us = self.now_us;
        for (framework, turn) in self.guests.waiting_since(now_us.saturating_sub(LONG_COMMIT_US)) {
            let waits = self.master.core.explain(FrameworkId(framework));
            for waiting in waits.into_iter().filter(|waiting| waiting.what == "turn") {
                let limit = waiting.why.rsplit(' ').next().unwrap_or_default().to_owned();
                if let Some(of) = self.of_framework(framework) {
                    of.on_limit(&limit, "the turn waited for it", turn, now_us, 1);
                }
            }
        }
    }

    /// Take the figures of the moment.
    pub(crate) fn sample(&mut self) {
        let core = &self.master.core;
        let counts = core.counts();
        let mut shares = vec![0; self.plan.schedulers.len()];
        let mut wanting = Vec::new();
        for (framework, index) in &self.master.frameworks {
            let Some(view) = core.framework(*framework) else { continue };
            let share = dominant_ppm(view.used.quantities, counts.total);
            if let Some(place) = shares.get_mut(*index) {
                *place = share;
            }
            if !view.suppressed && view.quarantine.is_none() {
                wanting.push(share);
            }
        }
        self.measure.on_shares(&wanting);
        for (of, share) in self.measure.frameworks.iter_mut().zip(&shares) {
            of.share_sum += share;
            of.share_max = of.share_max.max(*share);
        }
        self.measure.samples.push(Sample {
            at_ms: self.now_us / 1_000,
            agents: counts.agents_connected,
            tasks: counts.tasks_live,
            cpus_used_ppm: ppm(counts.used.cpus_milli, counts.total.cpus_milli),
            mem_used_ppm: ppm(counts.used.mem_mib, counts.total.mem_mib),
            shares_ppm: shares,
        });
    }

    /// Requests to a scheduler that have no answer yet.
    pub(crate) fn unanswered(&self, framework: usize) -> u64 {
        let calls = self.master.calls.values();
        let of = |call: &&crate::master::Call| self.request_of(call.line).is_some_and(|r| r.framework == framework);
        calls.filter(of).count() as u64
    }
}
