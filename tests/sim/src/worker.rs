//! Worker processes: they host instances of schedulers and Wasm tasks, and outlive their agent.
//!
//! Invariants: one turn of an instance is outstanding at most, it is kept as it was made until its
//! result comes, and repeated after every hello; committed state changes only by a committed turn; a
//! refused, trapped or killed instance is rebuilt from committed state. Must never know the master.

use crate::builds::Build;
use crate::executor::{Instance, Name, Phase as ExecutorPhase, name_of};
use crate::model::{Model, OUTSIDE_PREFIX, run_of};
use crate::mutation::Mutation;
use crate::queue::Event;
use std::collections::BTreeMap;
use tessera_types::{Event as GuestEvent, Turn, TurnOutcome};
use tessera_virtual::Random;
use tessera_wire::v1::{self, from_worker::Message as FromWorker, to_worker::Message as ToWorker};

/// First pause before an instance is rebuilt after a failure, in us.
const REBUILD_FIRST_US: u64 = 100_000;
/// Longest pause, so that a run can end in time, in us.
const REBUILD_MAX_US: u64 = 2_000_000;

/// What an instance is doing.
#[derive(Debug)]
enum Phase {
    /// Its state comes in.
    Fetching,
    /// It is being built.
    Building { rebuilt: bool },
    /// It waits for a batch.
    Idle,
    /// It handles one.
    Handling(v1::Batch),
    /// Its turn waits for a result.
    Outstanding(v1::Turn),
}

/// One instance.
#[derive(Debug)]
struct Slot {
    key: v1::InstanceKey,
    build: Build,
    /// It carries the state over from this version, and does nothing else.
    migrate_from: Option<u32>,
    config: Vec<(String, String)>,
    /// What the turn under way made of a change of the configuration.
    new_config: Option<Vec<(String, String)>>,
    phase: Phase,
    committed: BTreeMap<String, Vec<u8>>,
    next_turn: u64,
    model: Option<Model>,
    failures: u32,
    /// Of the thing that is waited for.
    serial: u64,
    /// Built anew, and no batch has reached it since.
    rebuilt: bool,
    /// Writes from outside that `committed` has.
    outside: u64,
}

/// A Wasm task.
#[derive(Debug)]
struct WasmTask {
    process: u64,
    state: v1::WasmTaskState,
    ended: bool,
}

/// What a worker wants of the world.
pub(crate) enum Wish {
    /// Tell the agent.
    Say(FromWorker),
    /// Schedule something.
    At(u64, Event),
    /// A task runs for so long and exits with this code.
    Run { process: u64, name: (u64, String), attempt: u32, run_ms: u64, code: i32 },
    /// A task is killed.
    Kill { process: u64 },
    /// A turn was made out of a batch.
    Made { epoch: u64, turn: Turn, batch: v1::Batch },
    /// An executor made a turn.
    Spoke(v1::ExecutorTurn),
    /// An executor's turn was acknowledged.
    Kept { name: Name, number: u64 },
    /// A turn was acknowledged.
    Acknowledged { turn: Turn, next: u64 },
    /// For the log.
    Note(String),
    /// Something that must never happen.
    Violation(String),
}

/// One worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Names the process.
    pub(crate) process: u64,
    agent: usize,
    instances: BTreeMap<u64, Slot>,
    tasks: BTreeMap<(u64, String, u32), WasmTask>,
    executors: BTreeMap<Name, Instance>,
    rng: Random,
    serial: u64,
    /// Handles are slow, as under load.
    pub(crate) slow: bool,
    /// The next handle traps.
    pub(crate) trap_next: bool,
    /// Mutation: the turn is forgotten when the link is made anew.
    forgets_turn: bool,
    /// Mutation: an instance of another epoch begins with the memory of the one before.
    keeps_state: bool,
    /// Mutation: what users wrote is counted and not always taken.
    passes_over: bool,
    /// Mutation: memories of instances that were stopped.
    memories: BTreeMap<u64, Memory>,
}

/// Committed state, and the number of the next turn.
type Memory = (BTreeMap<String, Vec<u8>>, u64);

fn pairs(pairs: &[v1::Pair]) -> Vec<(String, String)> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

impl Worker {
    pub(crate) fn new(process: u64, agent: usize, rng: Random, mutation: Option<Mutation>) -> Self {
        Self {
            process,
            agent,
            instances: BTreeMap::new(),
            tasks: BTreeMap::new(),
            executors: BTreeMap::new(),
            rng,
            serial: process << 20,
            slow: false,
            trap_next: false,
            forgets_turn: mutation == Some(Mutation::OutstandingTurnForgotten),
            keeps_state: mutation == Some(Mutation::StateKeptOverEpochs),
            passes_over: mutation == Some(Mutation::OutsideWritesPassedOver),
            memories: BTreeMap::new(),
        }
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Whether it has an instance of this framework.
    pub(crate) fn hosts(&self, framework: u64) -> bool {
        self.instances.contains_key(&framework)
    }

    /// Processes of tasks that die with it.
    pub(crate) fn processes(&self) -> Vec<u64> {
        self.tasks.values().filter(|task| !task.ended).map(|task| task.process).collect()
    }

    /// What it says when an agent connects, and what it repeats then.
    pub(crate) fn hello(&mut self) -> (v1::Hello, Vec<Wish>) {
        let mut wishes = Vec::new();
        if self.forgets_turn {
            for slot in self.instances.values_mut() {
                if let Phase::Outstanding(_) = slot.phase {
                    slot.phase = Phase::Idle;
                }
            }
        }
        let instances = self.instances.values().map(|slot| v1::HelloInstance {
            key: Some(slot.key),
            ready: !matches!(slot.phase, Phase::Fetching | Phase::Building { .. }),
            next_turn: slot.next_turn,
            rebuilt: slot.rebuilt,
            outside: slot.outside,
        });
        let hello = v1::Hello {
            version: "sim".to_owned(),
            engine: "engine".to_owned(),
            instances: instances.collect(),
            tasks: self.tasks.values().map(|task| task.state.clone()).collect(),
            executors: self.greeting(),
        };
        for slot in self.instances.values() {
            if let Phase::Outstanding(turn) = &slot.phase {
                wishes.push(Wish::Say(FromWorker::Turn(turn.clone())));
            }
        }
        for instance in self.executors.values() {
            if let ExecutorPhase::Outstanding(turn) = &instance.phase {
                wishes.push(Wish::Say(FromWorker::ExecutorTurn(turn.clone())));
            }
        }
        (hello, wishes)
    }

    fn greeting(&self) -> Vec<v1::HelloExecutor> {
        let instances = self.executors.iter().map(|((framework, executor), instance)| {
            let key = v1::ExecutorKey { framework: *framework, executor: executor.clone() };
            let ready = !matches!(instance.phase, ExecutorPhase::Building);
            v1::HelloExecutor { key: Some(key), ready, next_turn: instance.next_turn }
        });
        instances.collect()
    }

    /// One message of the agent.
    pub(crate) fn on_message(&mut self, now_us: u64, message: ToWorker) -> Vec<Wish> {
        match message {
            ToWorker::StartInstance(start) => {
                self.start_instance(now_us, start.instance.unwrap_or_default())
            }
            ToWorker::StopInstance(stop) => {
                let key = stop.key.unwrap_or_default();
                let epoch = self.instances.get(&key.framework).map(|slot| slot.key.epoch);
                if epoch == Some(key.epoch) {
                    self.remember(key.framework);
                    self.instances.remove(&key.framework);
                }
                Vec::new()
            }
            ToWorker::InstanceState(state) => self.on_state(now_us, state),
            ToWorker::Batch(batch) => self.on_batch(now_us, batch),
            ToWorker::TurnResult(result) => self.on_result(now_us, &result),
            ToWorker::StartTask(start) => self.start_task(&start),
            ToWorker::KillTask(kill) => {
                let task = self.tasks.get(&(kill.framework, kill.task, kill.attempt));
                let task = task.filter(|task| !task.ended);
                task.map(|task| Wish::Kill { process: task.process }).into_iter().collect()
            }
            ToWorker::TaskAck(ack) => {
                self.tasks.remove(&(ack.framework, ack.task, ack.attempt));
                Vec::new()
            }
            ToWorker::StartExecutor(start) => self.start_executor(now_us, start),
            ToWorker::StopExecutor(stop) => {
                self.executors.remove(&name_of(stop.key));
                Vec::new()
            }
            ToWorker::ExecutorBatch(batch) => self.on_executor_batch(now_us, batch),
            ToWorker::ExecutorTurnKept(kept) => {
                let name = name_of(kept.key);
                let instance = self.executors.get_mut(&name);
                if instance.is_some_and(|instance| instance.on_kept(kept.number)) {
                    return vec![Wish::Kept { name, number: kept.number }];
                }
                Vec::new()
            }
            ToWorker::ExecutorLimits(_) | ToWorker::Shutdown(_) => Vec::new(),
        }
    }

    /// What the copy of an instance has of what users write, if it waits for a batch.
    pub(crate) fn outside_of(&self, framework: u64, epoch: u64) -> Option<BTreeMap<String, Vec<u8>>> {
        let slot = self.instances.get(&framework)?;
        let idle = slot.key.epoch == epoch && matches!(slot.phase, Phase::Idle);
        let keys = slot.committed.iter().filter(|(key, _)| key.starts_with(OUTSIDE_PREFIX));
        idle.then(|| keys.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// Mutation: keep the memory of an instance that ends.
    fn remember(&mut self, framework: u64) {
        let slot = self.instances.get(&framework).filter(|_| self.keeps_state);
        if let Some(slot) = slot.filter(|slot| slot.next_turn > 0) {
            self.memories.insert(framework, (slot.committed.clone(), slot.next_turn));
        }
    }

    fn start_instance(&mut self, now_us: u64, instance: v1::DesiredInstance) -> Vec<Wish> {
        let key = v1::InstanceKey { framework: instance.framework, epoch: instance.epoch };
        let known = self.instances.get(&instance.framework);
        if known.is_some_and(|slot| slot.key == key && !matches!(slot.phase, Phase::Fetching)) {
            return Vec::new();
        }
        self.remember(instance.framework);
        let warm = self.memories.remove(&instance.framework);
        let Some(build) = Build::of(&instance.component) else {
            return vec![Wish::Violation("a scheduler of an unknown component is started".to_owned())];
        };
        let serial = self.serial();
        let (is_warm, (committed, next_turn)) = (warm.is_some(), warm.unwrap_or_default());
        let slot = Slot {
            key,
            build,
            migrate_from: instance.migrate_from,
            config: pairs(&instance.config),
            new_config: None,
            phase: Phase::Fetching,
            committed,
            next_turn,
            model: None,
            failures: 0,
            serial,
            rebuilt: false,
            outside: 0,
        };
        self.instances.insert(instance.framework, slot);
        if is_warm { self.build(now_us, key.framework, false, 0) } else { Vec::new() }
    }

    fn on_state(&mut self, now_us: u64, state: v1::InstanceState) -> Vec<Wish> {
        let key = state.key.unwrap_or_default();
        let chunk = state.chunk.unwrap_or_default();
        let Some(slot) = self.instances.get_mut(&key.framework).filter(|slot| slot.key == key) else {
            return Vec::new();
        };
        if !matches!(slot.phase, Phase::Fetching) {
            return Vec::new();
        }
        let entries = chunk.entries.into_iter();
        slot.committed.extend(entries.filter_map(|write| Some((write.key, write.value?))));
        let Some(next_turn) = chunk.next_turn else { return Vec::new() };
        slot.next_turn = next_turn;
        slot.outside = chunk.outside;
        self.build(now_us, key.framework, false, 0)
    }

    fn build(&mut self, now_us: u64, framework: u64, rebuilt: bool, pause_us: u64) -> Vec<Wish> {
        let serial = self.serial();
        let at_us = now_us + pause_us + self.rng.range(500, 30_000);
        let Some(slot) = self.instances.get_mut(&framework) else { return Vec::new() };
        slot.phase = Phase::Building { rebuilt };
        slot.serial = serial;
        slot.model = None;
        vec![Wish::At(at_us, Event::Built { agent: self.agent, framework, serial })]
    }

    /// The instance is there.
    pub(crate) fn on_built(&mut self, framework: u64, serial: u64) -> Vec<Wish> {
        let Some(slot) = self.instances.get_mut(&framework) else { return Vec::new() };
        let Phase::Building { rebuilt } = slot.phase else { return Vec::new() };
        if slot.serial != serial {
            return Vec::new();
        }
        let model = Model::build(slot.build, &slot.config, &slot.committed);
        if let Some(key) = model.foreign().filter(|_| slot.migrate_from.is_none()) {
            let text = format!("{:?} begins with {key} as another version wrote it", slot.build);
            return vec![Wish::Violation(text)];
        }
        slot.model = Some(model);
        slot.rebuilt = rebuilt;
        slot.phase = Phase::Idle;
        vec![Wish::Say(FromWorker::InstanceReady(v1::InstanceReady {
            key: Some(slot.key),
            rebuilt,
            next_turn: slot.next_turn,
            outside: slot.outside,
        }))]
    }

    fn on_batch(&mut self, now_us: u64, batch: v1::Batch) -> Vec<Wish> {
        let key = batch.key.unwrap_or_default();
        let serial = self.serial();
        let slow = self.slow || self.rng.chance(3);
        let takes_us = self.rng.range(200, if slow { 700_000 } else { 6_000 });
        let Some(slot) = self.instances.get_mut(&key.framework).filter(|slot| slot.key == key) else {
            return Vec::new();
        };
        // A batch that crosses a turn still under way is answered by that turn.
        if !matches!(slot.phase, Phase::Idle) || batch.number != slot.next_turn {
            let (number, next) = (batch.number, slot.next_turn);
            return vec![Wish::Note(format!("passes over batch t{number}, is at t{next}"))];
        }
        slot.phase = Phase::Handling(batch);
        slot.rebuilt = false;
        slot.serial = serial;
        let handled = Event::Handled { agent: self.agent, framework: key.framework, serial };
        vec![Wish::At(now_us + takes_us, handled)]
    }

    /// The batch is handled: here is the turn, unless the guest trapped.
    pub(crate) fn on_handled(&mut self, now_us: u64, framework: u64, serial: u64) -> Vec<Wish> {
        let trap = std::mem::take(&mut self.trap_next);
        let Some(slot) = self.instances.get_mut(&framework) else { return Vec::new() };
        if slot.serial != serial || !matches!(slot.phase, Phase::Handling(_)) {
            return Vec::new();
        }
        let Phase::Handling(batch) = std::mem::replace(&mut slot.phase, Phase::Idle) else {
            return Vec::new();
        };
        let migrating = slot.migrate_from.is_some();
        if trap || slot.model.as_ref().is_some_and(|model| model.will_trap(migrating)) {
            let failed = v1::InstanceFailed {
                key: Some(slot.key),
                reason: "TRAPPED".to_owned(),
                message: "the guest trapped".to_owned(),
                will_retry: true,
                limit: String::new(),
                turn: batch.number,
                guest: true,
            };
            let pause_us = REBUILD_FIRST_US << slot.failures.min(5);
            slot.failures += 1;
            let mut wishes = vec![Wish::Say(FromWorker::InstanceFailed(failed))];
            wishes.extend(self.build(now_us, framework, true, pause_us.min(REBUILD_MAX_US)));
            return wishes;
        }
        let Some(model) = &mut slot.model else {
            return vec![Wish::Violation("a batch was handled without an instance".to_owned())];
        };
        let events: Vec<GuestEvent> =
            batch.events.iter().filter_map(|event| event.clone().try_into().ok()).collect();
        if events.len() != batch.events.len() {
            return vec![Wish::Violation("a batch has an event that cannot be read".to_owned())];
        }
        for event in &events {
            let GuestEvent::StateChanged { count, writes } = event else { continue };
            slot.outside = slot.outside.max(*count);
            if self.passes_over && self.rng.chance(20) {
                continue;
            }
            for write in writes {
                match &write.value {
                    Some(value) => slot.committed.insert(write.key.clone(), value.clone()),
                    None => slot.committed.remove(&write.key),
                };
            }
        }
        let header = tessera_types::TurnHeader {
            framework: tessera_types::FrameworkId(slot.key.framework),
            epoch: tessera_types::Epoch(slot.key.epoch),
            number: tessera_types::TurnNumber(batch.number),
            time_ms: batch.time_ms,
        };
        if migrating && !events.is_empty() {
            return vec![Wish::Violation("events reach an instance that migrates".to_owned())];
        }
        slot.new_config = events.iter().rev().find_map(|event| match event {
            GuestEvent::ConfigChanged { config, .. } => Some(config.clone()),
            _ => None,
        });
        let turn = if migrating { model.migrate(header) } else { model.handle(header, &events) };
        let delivered = events.iter().filter_map(|event| match event {
            GuestEvent::Http(request) => Some(request.id),
            _ => None,
        });
        let wire = v1::Turn { requests: delivered.collect(), ..v1::Turn::from(&turn) };
        slot.phase = Phase::Outstanding(wire.clone());
        let epoch = slot.key.epoch;
        vec![Wish::Made { epoch, turn, batch }, Wish::Say(FromWorker::Turn(wire))]
    }

    fn on_result(&mut self, now_us: u64, result: &v1::TurnResult) -> Vec<Wish> {
        let key = result.key.unwrap_or_default();
        let Some(slot) = self.instances.get_mut(&key.framework).filter(|slot| slot.key == key) else {
            return Vec::new();
        };
        let Phase::Outstanding(turn) = &slot.phase else { return Vec::new() };
        if turn.number != result.number {
            return Vec::new();
        }
        let Ok(turn) = Turn::try_from(turn.clone()) else {
            return vec![Wish::Violation("a turn cannot be read back".to_owned())];
        };
        let outcome = result.outcome.clone().map(TurnOutcome::try_from);
        match outcome {
            Some(Ok(TurnOutcome::Committed { next })) => {
                if next.0 > turn.header.number.0 {
                    for write in &turn.writes {
                        match &write.value {
                            Some(value) => slot.committed.insert(write.key.clone(), value.clone()),
                            None => slot.committed.remove(&write.key),
                        };
                    }
                }
                if let Some(config) = slot.new_config.take() {
                    slot.config = config;
                }
                slot.next_turn = next.0;
                slot.phase = Phase::Idle;
                slot.failures = 0;
                vec![Wish::Acknowledged { turn, next: next.0 }]
            }
            Some(Ok(TurnOutcome::Refused(_))) => self.build(now_us, key.framework, true, 0),
            Some(Err(_)) | None => {
                vec![Wish::Violation("a turn's result cannot be read".to_owned())]
            }
        }
    }

    fn start_executor(&mut self, now_us: u64, start: v1::StartExecutor) -> Vec<Wish> {
        let name = name_of(start.key.clone());
        if self.executors.contains_key(&name) {
            return Vec::new();
        }
        let serial = self.serial();
        let at_us = now_us + self.rng.range(500, 30_000);
        match Instance::new(start, serial) {
            Err(wrong) => vec![Wish::Violation(wrong)],
            Ok(instance) => {
                self.executors.insert(name.clone(), instance);
                vec![Wish::At(at_us, Event::ExecutorGoesOn { agent: self.agent, name, serial })]
            }
        }
    }

    fn on_executor_batch(&mut self, now_us: u64, batch: v1::ExecutorBatch) -> Vec<Wish> {
        let name = name_of(batch.key.clone());
        let serial = self.serial();
        let slow = self.slow || self.rng.chance(3);
        let takes_us = self.rng.range(200, if slow { 700_000 } else { 6_000 });
        let Some(instance) = self.executors.get_mut(&name) else { return Vec::new() };
        if !matches!(instance.phase, ExecutorPhase::Idle) || batch.number != instance.next_turn {
            let (number, next) = (batch.number, instance.next_turn);
            return vec![Wish::Note(format!("passes over an executor's batch {number}, is at {next}"))];
        }
        instance.phase = ExecutorPhase::Handling(batch);
        instance.serial = serial;
        vec![Wish::At(now_us + takes_us, Event::ExecutorGoesOn { agent: self.agent, name, serial })]
    }

    /// An executor's instance is built, or has handled its batch.
    pub(crate) fn on_executor_goes_on(&mut self, name: &Name, serial: u64) -> Vec<Wish> {
        let trap = std::mem::take(&mut self.trap_next);
        let key = v1::ExecutorKey { framework: name.0, executor: name.1.clone() };
        let Some(instance) = self.executors.get_mut(name).filter(|i| i.serial == serial) else {
            return Vec::new();
        };
        if let ExecutorPhase::Building = instance.phase {
            instance.phase = ExecutorPhase::Idle;
            let next_turn = instance.next_turn;
            let ready = v1::ExecutorReady { key: Some(key), next_turn };
            return vec![Wish::Say(FromWorker::ExecutorReady(ready))];
        }
        if trap {
            let turn = instance.next_turn;
            self.executors.remove(name);
            return vec![Wish::Say(FromWorker::ExecutorFailure(v1::ExecutorFailure {
                key: Some(key),
                reason: "TRAPPED".to_owned(),
                message: "the executor trapped".to_owned(),
                limit: String::new(),
                turn,
            }))];
        }
        match instance.handle(name) {
            Err(wrong) => vec![Wish::Violation(wrong)],
            Ok(turn) => vec![Wish::Spoke(turn.clone()), Wish::Say(FromWorker::ExecutorTurn(turn))],
        }
    }

    /// Whether it has an instance of this executor.
    pub(crate) fn runs_executor(&self, name: &Name) -> bool {
        self.executors.contains_key(name)
    }

    fn start_task(&mut self, start: &v1::StartWasmTask) -> Vec<Wish> {
        let key = (start.framework, start.task.clone(), start.attempt);
        if let Some(task) = self.tasks.get(&key) {
            return vec![Wish::Say(FromWorker::TaskState(task.state.clone()))];
        }
        let serial = self.serial();
        let state = v1::WasmTaskState {
            framework: start.framework,
            task: start.task.clone(),
            attempt: start.attempt,
            state: v1::TaskState::TaskRunning.into(),
            ..v1::WasmTaskState::default()
        };
        let task = WasmTask { process: serial, state: state.clone(), ended: false };
        self.tasks.insert(key, task);
        let (run_ms, code) = run_of(&start.args);
        let run = Wish::Run {
            process: serial,
            name: (start.framework, start.task.clone()),
            attempt: start.attempt,
            run_ms,
            code,
        };
        vec![run, Wish::Say(FromWorker::TaskState(state))]
    }

    /// A task's process has ended.
    pub(crate) fn on_task_ended(&mut self, process: u64, code: Option<i32>) -> Vec<Wish> {
        let task = self.tasks.values_mut().find(|task| task.process == process && !task.ended);
        let Some(task) = task else { return Vec::new() };
        task.ended = true;
        let (state, reason) = match code {
            Some(0) => (v1::TaskState::TaskFinished, ""),
            Some(_) => (v1::TaskState::TaskFailed, "COMMAND_EXITED"),
            None => (v1::TaskState::TaskKilled, ""),
        };
        task.state.state = state.into();
        reason.clone_into(&mut task.state.reason);
        task.state.exit_code = code;
        vec![Wish::Say(FromWorker::TaskState(task.state.clone()))]
    }
}
