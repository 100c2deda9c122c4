//! The schedulers: components as they were given, run by the real engine under the limits of their roles.
//!
//! Invariants: what a guest sees and does follows from what it is given and from the seed of its instance;
//! limits on CPU time hold as on an agent, limits on wall time do not, because time is virtual here. A guest
//! that fails loses its turn and its memory, never its state. Must never decide whether a turn commits.

use crate::master::Known;
use crate::queue::{Event, Later};
use crate::world::{BUILD_US, FETCH_US, TURN_US, World};
use crate::Refused;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_agent_core::WorkerKey;
use tessera_master_core::{StateVersions, World as Made};
use tessera_types::{
    Digest, Epoch, Event as GuestEvent, FrameworkId, LogLevel, Operation, TaskId, Turn, TurnHeader, TurnNumber,
    TurnOutcome, TurnRefusal,
};
use tessera_wire::{effective_limits, v1};
use tessera_wit_host::{
    ExecutorHost, Failure, Inspection, Inspector, Limits, Scheduler, SchedulerHost, SchedulerImage, Start, State,
    TaskHost, ThreadControl, Ticker, World as Judged, new_engine, rebuild_backoff,
};
use tessera_worker::{jail, thread};

/// Wall time of a call: guests have all the time that their CPU time takes on a busy machine.
const WALL: Duration = Duration::from_secs(600);
/// Entries of one page of state.
const PAGE: usize = 1_000;
/// CPU time is counted as on an agent; this process has nobody to stand behind.
const CONTROL: ThreadControl = ThreadControl { cpu_time: thread::cpu_time, set_behind: |_| () };

/// A file that was read.
#[derive(Clone, Debug)]
pub struct File {
    /// As it was named.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// All components, and the instances that live.
pub(crate) struct Guests {
    components: Vec<Known>,
    images: BTreeMap<Digest, SchedulerImage>,
    schedulers: Vec<Digest>,
    slots: BTreeMap<(usize, u64), Slot>,
}

/// What a turn asks for that is counted once it is committed.
struct MadeTurn {
    number: u64,
    turn: v1::Turn,
    launches: Vec<TaskId>,
    operations: u64,
    made_us: u64,
    config: Option<Vec<(String, String)>>,
    told: bool,
}

/// What is told of an instance that failed.
struct Blame {
    reason: &'static str,
    message: String,
    limit: String,
    turn: u64,
}

enum Phase {
    Fetching,
    Building(State),
    Idle(Box<Scheduler>),
    /// The guest has answered; the answer is on its way out of the worker.
    Handled(Box<Scheduler>, Result<Box<MadeTurn>, Blame>),
    Outstanding(Box<Scheduler>, Box<MadeTurn>),
    Over,
}

/// One instance of an agent.
struct Slot {
    desired: v1::DesiredInstance,
    phase: Phase,
    next_turn: u64,
    serial: u64,
    failures: u32,
    was_ready: bool,
    waiting: Option<v1::Batch>,
}

impl Slot {
    const fn key(&self) -> v1::InstanceKey {
        v1::InstanceKey { framework: self.desired.framework, epoch: self.desired.epoch }
    }

    fn limits(&self) -> Limits {
        let limits = Limits::of(&effective_limits(&self.desired.limits));
        Limits { init_wall: WALL, turn_wall: WALL, ..limits }
    }
}

const fn made(world: Judged) -> Option<Made> {
    match world {
        Judged::Scheduler => Some(Made::Scheduler),
        Judged::Executor => Some(Made::Executor),
        Judged::Command => Some(Made::Command),
        Judged::None => None,
    }
}

fn unusable(file: &File, found: &Inspection) -> Refused {
    let error = found.error.as_ref().map(ToString::to_string).unwrap_or_default();
    let refused = Refused::new(format!("{}: {error}", file.name));
    if file.bytes.starts_with(b"\0asm\x01\0\0\0") {
        refused.hint("`tessera component push` makes a component of a core module, `tessera component get` fetches it")
    } else {
        refused.hint("schedulers are built for wasm32-wasip2 with tessera-sdk, as the guide shows")
    }
}

impl Guests {
    /// Judge and compile every component.
    pub(crate) fn load(schedulers: &[File], others: &[File]) -> Result<Self, Refused> {
        let engine = new_engine().map_err(|error| Refused::new(format!("the engine: {error:#}")))?;
        let ticker = Ticker::start(&engine).map_err(|error| Refused::new(format!("the engine: {error}")))?;
        let ticker = Arc::new(ticker);
        let fault = |what: String| Refused::new(format!("the engine: {what}"));
        let host = SchedulerHost::new(&engine, ticker.clone(), CONTROL).map_err(|e| fault(format!("{e:#}")))?;
        let executors =
            ExecutorHost::new(&engine, ticker.clone(), CONTROL).map_err(|e| fault(format!("{e:#}")))?;
        let tasks = TaskHost::new(&engine, ticker).map_err(|e| fault(format!("{e:#}")))?;
        let inspector = Inspector {
            engine: &engine,
            schedulers: &host,
            executors: &executors,
            tasks: &tasks,
            limits: Limits { init_wall: WALL, ..Limits::default() },
        };
        let mut guests = Self {
            components: Vec::new(),
            images: BTreeMap::new(),
            schedulers: Vec::new(),
            slots: BTreeMap::new(),
        };
        for (at, file) in schedulers.iter().chain(others).enumerate() {
            let digest = Digest::of(&file.bytes);
            if !guests.components.iter().any(|known| known.digest == digest) {
                let mut widened = Ok(());
                let (found, component) = inspector.inspect(&file.bytes, || widened = jail::widen_for_replay());
                widened.map_err(|error| Refused::new(format!("cannot limit this process: {error}")))?;
                let (Some(component), Some(world)) = (component, made(found.world)) else {
                    return Err(unusable(file, &found));
                };
                if world == Made::Scheduler {
                    let image = host.link(&component).map_err(|e| Refused::new(format!("{}: {e}", file.name)))?;
                    guests.images.insert(digest, image);
                }
                let said = found.description;
                let state = StateVersions {
                    writes: said.as_ref().map_or(0, |said| said.writes_state),
                    reads: said.as_ref().map(|said| said.reads_state.clone()).unwrap_or_default(),
                    migrates: said.is_some_and(|said| said.migrates),
                };
                guests.components.push(Known { digest, size_bytes: file.bytes.len() as u64, world, state });
            }
            if at < schedulers.len() {
                if !guests.images.contains_key(&digest) {
                    let known = guests.components.iter().find(|known| known.digest == digest);
                    let world = known.map_or("none", |known| known.world.name());
                    return Err(Refused::new(format!("{}: its world is {world}, not scheduler", file.name))
                        .hint("name the scheduler here, and what its tasks are made of with --component"));
                }
                guests.schedulers.push(digest);
            }
        }
        Ok(guests)
    }

    pub(crate) fn components(&self) -> Vec<Known> {
        self.components.clone()
    }

    /// The component of each scheduler of the plan.
    pub(crate) fn schedulers(&self) -> Vec<Digest> {
        self.schedulers.clone()
    }

    /// An agent's machine went down.
    pub(crate) fn forget_agent(&mut self, agent: usize) {
        self.slots.retain(|(of, _), _| *of != agent);
    }

    /// Turns whose outcome has taken longer than this.
    pub(crate) fn waiting_since(&mut self, before_us: u64) -> Vec<(u64, u64)> {
        let slots = self.slots.iter_mut();
        let waiting = slots.filter_map(|((_, framework), slot)| match &mut slot.phase {
            Phase::Outstanding(_, made) if made.made_us < before_us && !made.told => {
                made.told = true;
                Some((*framework, made.number))
            }
            _ => None,
        });
        waiting.collect()
    }
}

fn launches(turn: &Turn) -> Vec<TaskId> {
    let mut launches = Vec::new();
    for operation in &turn.operations {
        if let Operation::Accept { launches: members, .. } = operation {
            launches.extend(members.iter().map(|member| member.launch.task.clone()));
        }
    }
    launches
}

fn blame(failure: &Failure, turn: u64) -> Blame {
    Blame {
        reason: failure.code(),
        message: failure.to_string(),
        limit: failure.limit().to_owned(),
        turn,
    }
}

/// What a batch gives to a scheduler.
fn open(batch: v1::Batch) -> Result<(TurnHeader, Vec<GuestEvent>), String> {
    let key = batch.key.unwrap_or_default();
    let header = TurnHeader {
        framework: FrameworkId(key.framework),
        epoch: Epoch(key.epoch),
        number: TurnNumber(batch.number),
        time_ms: batch.time_ms,
    };
    let events = batch.events.into_iter().map(GuestEvent::try_from).collect::<Result<Vec<_>, _>>();
    Ok((header, events.map_err(|error| error.to_string())?))
}

impl World<'_> {
    pub(crate) fn start_instance(&mut self, agent: usize, _worker: &WorkerKey, desired: v1::DesiredInstance) {
        let key = (agent, desired.framework);
        let same = |slot: &Slot| slot.desired.epoch == desired.epoch && !matches!(slot.phase, Phase::Over);
        if self.guests.slots.get(&key).is_some_and(same) {
            return;
        }
        let framework = desired.framework;
        let serial = self.fresh();
        let slot = Slot {
            desired,
            phase: Phase::Fetching,
            next_turn: 0,
            serial,
            failures: 0,
            was_ready: false,
            waiting: None,
        };
        self.guests.slots.insert(key, slot);
        self.later(agent, FETCH_US, Later::Fetch(framework));
    }

    pub(crate) fn update_instance(&mut self, agent: usize, desired: v1::DesiredInstance) {
        if let Some(slot) = self.guests.slots.get_mut(&(agent, desired.framework)) {
            slot.desired.limits = desired.limits;
            let limits = slot.limits();
            if let Phase::Idle(scheduler) = &mut slot.phase {
                scheduler.set_limits(limits);
            }
        }
    }

    pub(crate) fn stop_instance(&mut self, agent: usize, key: v1::InstanceKey) {
        let slot = self.guests.slots.get(&(agent, key.framework));
        if slot.is_some_and(|slot| slot.key() == key) {
            self.guests.slots.remove(&(agent, key.framework));
        }
    }

    /// Fetch the state of an instance, and have it built.
    pub(crate) fn fetch_state(&mut self, agent: usize, framework: u64) {
        let Some(slot) = self.guests.slots.get(&(agent, framework)) else { return };
        if !matches!(slot.phase, Phase::Fetching) {
            return;
        }
        let (key, id) = (slot.key(), FrameworkId(framework));
        let from = self.agents.get(agent).and_then(|a| Some((a.number(), a.session?)));
        let fetched = from.and_then(|(number, session)| {
            self.master.core.state_fetch(number, session, id, Epoch(key.epoch)).ok()
        });
        let (Some(fetched), Some(mut state)) = (fetched, self.state_of(id)) else {
            return self.agent_input(agent, |core, now| core.on_state_failed(key, now));
        };
        state.set_outside(fetched.outside);
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
        slot.next_turn = fetched.next.0;
        slot.phase = Phase::Building(state);
        let build = Event::Build { agent, framework, serial: slot.serial };
        self.queue.at(self.now_us + BUILD_US, build);
    }

    fn state_of(&self, framework: FrameworkId) -> Option<State> {
        let mut state = State::default();
        let mut after: Option<String> = None;
        loop {
            let page = self.master.core.state_page(framework, after.as_deref(), PAGE, &self.master.rows).ok()?;
            let Some(last) = page.last() else { return Some(state) };
            after = Some(last.key.clone());
            state.load(page);
        }
    }

    /// Build an instance.
    pub(crate) fn build_instance(&mut self, agent: usize, framework: u64, serial: u64) {
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
        if slot.serial != serial {
            return;
        }
        let Phase::Building(state) = std::mem::replace(&mut slot.phase, Phase::Over) else { return };
        let digest = Digest::from_slice(&slot.desired.component);
        let Some(image) = digest.ok().and_then(|digest| self.guests.images.get(&digest)) else {
            return self.fail(format!("framework {framework} is of an unknown component"));
        };
        let config = slot.desired.config.iter();
        let start = Start {
            seed: slot.desired.seed,
            config: config.map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
            limits: slot.limits(),
            migrate_from: slot.desired.migrate_from,
        };
        match image.build(&start, state) {
            Ok(mut scheduler) => {
                slot.waiting = None;
                let rebuilt = std::mem::replace(&mut slot.was_ready, true);
                let (key, next_turn) = (Some(slot.key()), slot.next_turn);
                let (logged, outside) = (scheduler.take_logged(), scheduler.outside());
                slot.phase = Phase::Idle(Box::new(scheduler));
                self.count_log(framework, &logged);
                let ready = v1::InstanceReady { key, rebuilt, next_turn, outside };
                self.agent_input(agent, |core, now| core.on_instance_ready(ready, now));
            }
            Err(failed) => {
                let (failure, state, logged) = *failed;
                self.count_log(framework, &logged);
                self.instance_failed(agent, framework, blame(&failure, 0), Some(state));
            }
        }
    }

    /// A batch arrives: the guest is called at once, and its answer leaves the worker after a while.
    pub(crate) fn on_batch(&mut self, agent: usize, batch: v1::Batch) {
        let framework = batch.key.unwrap_or_default().framework;
        let serial = self.fresh();
        let now_us = self.now_us;
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
        match std::mem::replace(&mut slot.phase, Phase::Over) {
            Phase::Idle(scheduler) if batch.number == slot.next_turn => {
                slot.serial = serial;
                let limits = slot.limits();
                let (scheduler, result) = self.call_guest(framework, scheduler, batch, limits);
                let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
                slot.phase = Phase::Handled(scheduler, result);
                self.queue.at(now_us + TURN_US, Event::Turned { agent, framework, serial });
            }
            other => {
                // It may be the next one.
                slot.phase = other;
                slot.waiting = Some(batch);
            }
        }
    }

    fn call_guest(
        &mut self,
        framework: u64,
        mut scheduler: Box<Scheduler>,
        batch: v1::Batch,
        limits: Limits,
    ) -> (Box<Scheduler>, Result<Box<MadeTurn>, Blame>) {
        let number = batch.number;
        let (header, events) = match open(batch) {
            Ok(opened) => opened,
            Err(text) => {
                let message = format!("batch: {text}");
                let blame = Blame { reason: "WORKER_LOST", message, limit: String::new(), turn: number };
                return (scheduler, Err(blame));
            }
        };
        let offers = events.iter().map(|event| match event {
            GuestEvent::Offers(offers) => offers.len() as u64,
            _ => 0,
        });
        let (offers, count) = (offers.sum::<u64>(), events.len() as u64);
        let config = events.iter().rev().find_map(|event| match event {
            GuestEvent::ConfigChanged { config, .. } => Some(config.clone()),
            _ => None,
        });
        let result = scheduler.turn(header, events);
        let (logged, refused) = (scheduler.take_logged(), scheduler.take_refused());
        self.count_log(framework, &logged);
        let now_us = self.now_us;
        if let Some(of) = self.of_framework(framework) {
            of.events += count;
            of.offers += offers;
            of.cpu.add(number, scheduler.cpu_time(), limits.turn_cpu, now_us);
            for (limit, times) in refused {
                of.on_limit(limit, "calls were refused to the guest", number, now_us, times);
            }
        }
        let result = match result {
            Ok(turn) => Ok(Box::new(MadeTurn {
                number,
                turn: v1::Turn::from(&turn),
                launches: launches(&turn),
                operations: turn.operations.len() as u64,
                made_us: now_us + TURN_US,
                config,
                told: false,
            })),
            Err(failure) => Err(blame(&failure, number)),
        };
        (scheduler, result)
    }

    /// What came of a turn leaves the worker.
    pub(crate) fn guest_answers(&mut self, agent: usize, framework: u64, serial: u64) {
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
        if slot.serial != serial {
            return;
        }
        match std::mem::replace(&mut slot.phase, Phase::Over) {
            Phase::Handled(scheduler, Ok(made)) => {
                let turn = made.turn.clone();
                slot.phase = Phase::Outstanding(scheduler, made);
                self.agent_input(agent, |core, now| core.on_turn(turn, now));
            }
            Phase::Handled(scheduler, Err(blame)) => {
                let state = scheduler.into_state();
                if let Some(of) = self.of_framework(framework) {
                    of.discarded += 1;
                }
                self.instance_failed(agent, framework, blame, Some(state));
            }
            other => slot.phase = other,
        }
    }

    /// What became of a turn.
    pub(crate) fn on_turn_result(&mut self, agent: usize, result: &v1::TurnResult) {
        let key = result.key.unwrap_or_default();
        let framework = key.framework;
        let now_us = self.now_us;
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)).filter(|slot| slot.key() == key) else {
            return;
        };
        let ours = matches!(&slot.phase, Phase::Outstanding(_, made) if made.number == result.number);
        let Some(Ok(outcome)) = result.outcome.clone().map(TurnOutcome::try_from) else { return };
        if !ours {
            return;
        }
        let Phase::Outstanding(mut scheduler, made) = std::mem::replace(&mut slot.phase, Phase::Over) else {
            return;
        };
        match outcome {
            TurnOutcome::Committed { next } => {
                scheduler.commit();
                slot.next_turn = next.0;
                slot.failures = 0;
                if let Some(config) = made.config {
                    let pairs = config.into_iter().map(|(key, value)| v1::Pair { key, value });
                    slot.desired.config = pairs.collect();
                }
                slot.phase = Phase::Idle(scheduler);
                let waiting = slot.waiting.take();
                if let Some(of) = self.of_framework(framework) {
                    of.committed += 1;
                    of.operations += made.operations;
                    of.commit.add(now_us.saturating_sub(made.made_us));
                    of.launched(made.launches, made.made_us);
                }
                if let Some(batch) = waiting {
                    self.on_batch(agent, batch);
                }
            }
            TurnOutcome::Refused(refusal) => self.turn_refused(agent, framework, *scheduler, made.number, &refusal),
        }
    }

    fn turn_refused(
        &mut self,
        agent: usize,
        framework: u64,
        scheduler: Scheduler,
        number: u64,
        refusal: &TurnRefusal,
    ) {
        if let Some(of) = self.of_framework(framework) {
            of.refused += 1;
        }
        let limit = match refusal {
            TurnRefusal::Limit { name, .. } => name.clone(),
            _ => String::new(),
        };
        let blame = Blame { reason: "REFUSED", message: refusal.to_string(), limit, turn: number };
        let goes_on = matches!(refusal, TurnRefusal::Limit { .. });
        self.instance_failed(agent, framework, blame, goes_on.then(|| scheduler.into_state()));
    }

    /// An instance is gone; with its state at hand it is built again after a pause.
    fn instance_failed(&mut self, agent: usize, framework: u64, blame: Blame, state: Option<State>) {
        let now_us = self.now_us;
        if let Some(of) = self.of_framework(framework) {
            of.on_failure(blame.reason, &blame.message, blame.turn, now_us);
            if !blame.limit.is_empty() {
                let effect = if blame.turn == 0 { "the instance could not be built" } else { "the turn was discarded" };
                of.on_limit(&blame.limit, effect, blame.turn, now_us, 1);
            }
        }
        let serial = self.fresh();
        let Some(slot) = self.guests.slots.get_mut(&(agent, framework)) else { return };
        slot.failures = slot.failures.saturating_add(1);
        slot.serial = serial;
        slot.waiting = None;
        let will_retry = state.is_some();
        let failed = v1::InstanceFailed {
            key: Some(slot.key()),
            reason: blame.reason.to_owned(),
            message: blame.message,
            will_retry,
            guest: blame.reason != "REFUSED" || !blame.limit.is_empty(),
            limit: blame.limit,
            turn: blame.turn,
        };
        if let Some(state) = state {
            slot.phase = Phase::Building(state);
            let pause = rebuild_backoff(slot.failures);
            let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
            self.queue.at(now_us + pause_us, Event::Build { agent, framework, serial });
        }
        self.agent_input(agent, |core, now| core.on_instance_failed(failed, now));
    }

    fn count_log(&mut self, framework: u64, logged: &tessera_wit_host::Logged) {
        let now_us = self.now_us;
        let Some(of) = self.of_framework(framework) else { return };
        for line in logged.lines.iter().filter(|line| line.level == LogLevel::Error) {
            of.on_error_logged(&line.text, line.turn.0, now_us);
        }
        if logged.dropped > 0 {
            let turn = logged.lines.last().map_or(0, |line| line.turn.0);
            of.on_limit("log-lines, log-bytes", "lines of the log were dropped", turn, now_us, logged.dropped);
        }
    }
}
