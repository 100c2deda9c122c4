//! What lives beside an agent's process and survives it: shims with native tasks, and workers.
//!
//! Invariants: a shim starts its task once, and keeps how it ended until somebody asks; a task that was
//! cancelled is never started. Must never tell an agent that is not there.

use crate::executor::{Name, name_of as name_of_executor};
use crate::model::unit_of;
use crate::mutation::Mutation;
use crate::oracle::{Ended, TaskName};
use crate::queue::{Event, Later};
use crate::worker::{Wish, Worker};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use tessera_agent_core::{
    Action, NativeExit, NativeObservation, SupplyFailure, TaskKey, WorkerHello, WorkerKey, WorkerKind,
};
use tessera_types::{Digest, FrameworkId, Launch, NativeCommand, TaskBody, TaskSpec};
use tessera_master_core::FrameworkView;
use tessera_wire::v1::{self, from_worker::Message as FromWorker, to_worker::Message as ToWorker};

/// SIGTERM.
const TERM: i32 = 15;
/// SIGKILL.
const KILL: i32 = 9;
/// Longer than a task has between the two when others need what it uses, in us.
const SLOW_US: u64 = 3_500_000;

/// One attempt of a native task, as its shim's records say.
#[derive(Clone, Debug)]
enum Native {
    Cancelled,
    Running { process: u64 },
    /// Its shim was killed: what it ran goes on, and nobody will know how that ends.
    Orphaned { process: u64 },
    ShimLost,
    Exited(NativeExit),
    /// It ran when the machine went down.
    Rebooted,
}

/// All of an agent's machine.
#[derive(Debug, Default)]
pub(crate) struct Natives {
    tasks: BTreeMap<(TaskKey, u32), Native>,
    /// Starts under way.
    spawning: BTreeMap<u64, (TaskKey, u32, u64, i32)>,
}

/// A running process of a task.
#[derive(Debug)]
pub(crate) struct Process {
    name: TaskName,
    attempt: u32,
    worker: Option<WorkerKey>,
    /// It takes no notice of SIGTERM.
    stubborn: bool,
}

impl Process {
    /// Whether it is of this task.
    pub(crate) fn is_of(&self, name: &TaskName) -> bool {
        self.name == *name
    }
}

fn name_of(key: &TaskKey) -> TaskName {
    (key.framework.0, key.name())
}

fn key_of(name: &TaskName) -> Option<TaskKey> {
    TaskKey::parse(FrameworkId(name.0), &name.1).ok()
}

fn run_of(spec: &TaskSpec, launch: &Launch) -> (u64, i32) {
    let mut words = match &spec.body {
        TaskBody::Native(NativeCommand::Argv(words)) => words.clone(),
        TaskBody::Native(NativeCommand::Shell(_)) => Vec::new(),
        TaskBody::Wasm { args, .. } => args.clone(),
        TaskBody::Executor(_) => Vec::new(),
    };
    words.extend(launch.args.iter().cloned());
    crate::model::run_of(&words)
}

impl World {
    /// Perform an action that reaches beyond the agent's process.
    pub(crate) fn agent_acts(&mut self, index: usize, action: Action) {
        match action {
            Action::StartNative { key, attempt, spec, launch } => {
                self.start_native(index, key, attempt, run_of(&spec, &launch));
            }
            Action::InspectNative { key, attempt, .. } => self.observe(index, &key, attempt),
            Action::CancelNative { key, attempt, .. } => {
                if let Some(agent) = self.agents.get_mut(index) {
                    let tasks = &mut agent.natives.tasks;
                    tasks.entry((key.clone(), attempt)).or_insert(Native::Cancelled);
                }
                self.observe(index, &key, attempt);
            }
            Action::SignalNative { key, attempt, force } => {
                self.signal(index, &key, attempt, if force { KILL } else { TERM });
            }
            Action::StartWasm { worker, key, attempt, spec, launch, .. } => {
                let (run_ms, code) = run_of(&spec, &launch);
                let start = v1::StartWasmTask {
                    framework: key.framework.0,
                    task: key.name(),
                    attempt,
                    args: vec![run_ms.to_string(), code.to_string()],
                    ..v1::StartWasmTask::default()
                };
                self.tell_worker(index, &worker, ToWorker::StartTask(start));
            }
            Action::Forgotten { .. } => {}
            Action::EnsureComponent { digest } => self.later(index, 30_000, Later::Component(digest)),
            Action::EnsureImage { digest, engine, .. } => {
                self.later(index, 200_000, Later::Image(digest, engine));
            }
            Action::CompileAhead { digest } => self.later(index, 400_000, Later::Ahead(digest)),
            Action::EnsureWorker { worker } => self.later(index, 60_000, Later::Worker(worker)),
            Action::SizeWorker { .. } => {}
            Action::Prepare { key, attempt, .. } => self.later(index, 8_000, Later::Prepared(key, attempt)),
            Action::UpdateInstance { worker, instance, .. } => {
                let start = v1::StartInstance { instance: Some(instance), ..Default::default() };
                self.tell_worker(index, &worker, ToWorker::StartInstance(start));
            }
            Action::LimitExecutor { executor, life, .. } => {
                let name = (executor.framework.0, executor.executor.to_string());
                self.oracle.on_executor_life(index, name, life);
            }
            Action::ExecutorEnded { executor, .. } => {
                let name = (executor.framework.0, executor.executor.to_string());
                self.oracle.on_executor_ended(index, &name);
            }
            Action::StartExecutor { worker, start, state, .. } => {
                let name = name_of_executor(start.key.clone());
                self.oracle.on_executor_start(index, &name, start.next_turn);
                let start = v1::StartExecutor { state, ..*start };
                self.tell_worker(index, &worker, ToWorker::StartExecutor(start));
            }
            Action::StopWorker { worker } => self.later(index, 10_000, Later::StopWorker(worker)),
            Action::StartInstance { worker, instance, .. } => {
                let key = (instance.framework, instance.epoch);
                let start = v1::StartInstance { instance: Some(instance), image: String::new(), ..Default::default() };
                self.tell_worker(index, &worker, ToWorker::StartInstance(start));
                self.fetch_state(index, worker, key);
            }
            Action::ToWorker { worker, message } => self.tell_worker(index, &worker, message),
            Action::Warn(text) => {
                self.journal.line(self.now_us, &format!("agent #{index}: warns {text}"));
            }
            Action::Checkpoint { .. } | Action::Send(_) => {}
        }
    }

    fn later(&mut self, index: usize, most_us: u64, what: Later) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        let at_us = self.now_us + agent.rng.range(300, most_us);
        self.queue.at(at_us, Event::AgentLater { agent: index, life: agent.life, what });
    }

    pub(crate) fn agent_later(&mut self, index: usize, life: u64, what: Later) {
        let there = |agent: &&crate::agent::Agent| agent.life == life && agent.core.is_some();
        if self.agents.get(index).filter(there).is_none() {
            return;
        }
        match what {
            Later::Fetch(serial) => self.ask_state(index, serial),
            Later::Spawn(process) => self.spawn_native(index, process),
            Later::ShimGone(key, attempt) => self.observe(index, &key, attempt),
            Later::Prepared(key, attempt) => {
                let failed = self.faults_on && self.rng.chance(4);
                if failed {
                    let writes = self.agents.get(index).map_or(0, |agent| agent.writes());
                    let (framework, task) = name_of(&key);
                    let unit = (framework, unit_of(&task).to_owned());
                    self.oracle.sandboxes.on_failed(unit, index, writes);
                }
                let result = if failed { Err("no room for its sandbox".to_owned()) } else { Ok(()) };
                self.agent_input(index, |core, now| core.on_prepared(&key, attempt, result, now));
            }
            Later::Component(digest) => {
                let result = self.component(index, digest);
                self.agent_input(index, |core, now| core.on_component(digest, result, now));
            }
            Later::Image(digest, engine) => {
                if let Some(agent) = self.agents.get_mut(index) {
                    agent.images.insert(digest);
                }
                self.agent_input(index, |core, now| core.on_image(digest, engine, Ok(()), now));
            }
            Later::Ahead(digest) => {
                let failed = self.faults_on && self.rng.chance(4);
                let result = if failed {
                    Err(SupplyFailure::Retry("no room for its image".to_owned()))
                } else {
                    self.component(index, digest)
                };
                if let Some(agent) = self.agents.get_mut(index).filter(|_| result.is_ok()) {
                    agent.images.insert(digest);
                }
                self.agent_input(index, |core, now| core.on_compiled_ahead(digest, result, now));
            }
            Later::Worker(worker) => self.link_worker(index, &worker),
            Later::StopWorker(worker) => {
                self.end_worker(index, &worker);
            }
        }
    }

    fn component(&mut self, index: usize, digest: Digest) -> Result<(), SupplyFailure> {
        let Some(agent) = self.agents.get_mut(index) else { return Ok(()) };
        if agent.components.contains(&digest) {
            return Ok(());
        }
        let number = agent.number();
        let master = agent.conn.and_then(|conn| self.net.conns.get(&conn)).map(|conn| conn.master);
        let node = master.and_then(|master| self.masters[master].node.as_ref());
        let allowed = node.zip(number).is_some_and(|(node, number)| {
            agent.registered && node.core().may_fetch_component(number, &digest)
        });
        let bytes = master.filter(|_| allowed).and_then(|master| self.bytes_from(master, &digest));
        if !bytes.is_some_and(|bytes| self.takes(&bytes, digest, &format!("agent #{index}"))) {
            return Err(SupplyFailure::Retry("the master does not give it".to_owned()));
        }
        if let Some(agent) = self.agents.get_mut(index) {
            agent.components.insert(digest);
        }
        Ok(())
    }

    // Native tasks.

    fn start_native(&mut self, index: usize, key: TaskKey, attempt: u32, run: (u64, i32)) {
        let process = self.fresh();
        let Some(agent) = self.agents.get_mut(index) else { return };
        if agent.natives.tasks.contains_key(&(key.clone(), attempt)) {
            return self.observe(index, &key, attempt);
        }
        agent.natives.spawning.insert(process, (key, attempt, run.0, run.1));
        self.later(index, 12_000, Later::Spawn(process));
    }

    fn spawn_native(&mut self, index: usize, process: u64) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some((key, attempt, run_ms, code)) = agent.natives.spawning.remove(&process) else { return };
        let tasks = &mut agent.natives.tasks;
        if !tasks.contains_key(&(key.clone(), attempt)) {
            tasks.insert((key.clone(), attempt), Native::Running { process });
            self.run(index, process, name_of(&key), attempt, (run_ms, code), None);
        }
        self.observe(index, &key, attempt);
    }

    /// Mutation: everything in a message is started, as if it were new.
    pub(crate) fn run_again(&mut self, index: usize, desired: v1::Desired) {
        for task in desired.tasks {
            let Some(launch) = task.launch.and_then(|launch| Launch::try_from(launch).ok()) else { continue };
            let Ok(spec) = tessera_wire::decode_spec(&task.spec) else { continue };
            let name = (task.framework, launch.task.to_string());
            let running = self.processes.values().any(|process| process.name == name);
            if self.mutation == Some(Mutation::DesiredRunAgain) && running {
                let process = self.fresh();
                self.run(index, process, name, 1, run_of(&spec, &launch), None);
            }
        }
    }

    fn run(
        &mut self,
        agent: usize,
        process: u64,
        name: TaskName,
        attempt: u32,
        (run_ms, code): (u64, i32),
        worker: Option<WorkerKey>,
    ) {
        let line = format!("agent #{agent}: f{}/{} attempt {attempt} runs as {process}", name.0, name.1);
        self.journal.line(self.now_us, &line);
        self.oracle.on_start(agent, &name, attempt, process);
        let stubborn = self.rng.chance(25);
        self.processes.insert(process, Process { name, attempt, worker, stubborn });
        let ends = Event::TaskEnds { agent, process, code: Some(code), signal: None };
        self.queue.at(self.now_us + run_ms * 1_000, ends);
    }

    fn signal(&mut self, index: usize, key: &TaskKey, attempt: u32, signal: i32) {
        let Some(agent) = self.agents.get(index) else { return };
        let native = agent.natives.tasks.get(&(key.clone(), attempt));
        let Some(Native::Running { process }) = native.cloned() else {
            return self.observe(index, key, attempt);
        };
        self.oracle.on_signal(&name_of(key));
        // Where a disk was slow since it was told, the time to end began before that.
        let exact = agent.slow_until_us + SLOW_US < self.now_us;
        self.oracle.on_told_to_end(&name_of(key), signal == KILL, exact);
        let stubborn = self.processes.get(&process).is_some_and(|process| process.stubborn);
        if stubborn && signal == TERM {
            return;
        }
        let at_us = self.now_us + self.rng.range(500, 30_000);
        self.queue.at(at_us, Event::TaskEnds { agent: index, process, code: None, signal: Some(signal) });
    }

    fn observe(&mut self, index: usize, key: &TaskKey, attempt: u32) {
        self.end_orphan(index, key, attempt);
        let Some(agent) = self.agents.get(index) else { return };
        let seen = match agent.natives.tasks.get(&(key.clone(), attempt)) {
            None => NativeObservation::NotStarted,
            Some(Native::Cancelled) => NativeObservation::Cancelled,
            Some(Native::Running { .. }) => NativeObservation::Running,
            Some(Native::Orphaned { .. } | Native::ShimLost) => NativeObservation::ShimLost,
            Some(Native::Exited(exit)) => NativeObservation::Exited(exit.clone()),
            Some(Native::Rebooted) => NativeObservation::Rebooted,
        };
        if agent.core.is_some() && seen == NativeObservation::ShimLost {
            self.oracle.saw("a shim is found dead");
        }
        self.agent_input(index, |core, now| core.on_native(key, attempt, seen, now));
    }

    /// An agent that finds a shim dead ends what is left of its task.
    fn end_orphan(&mut self, index: usize, key: &TaskKey, attempt: u32) {
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.core.is_some()) else { return };
        let Some(native) = agent.natives.tasks.get_mut(&(key.clone(), attempt)) else { return };
        let Native::Orphaned { process } = *native else { return };
        *native = Native::ShimLost;
        if self.mutation != Some(Mutation::OrphansLeft) {
            self.process_dies(process);
        }
    }

    /// A process is killed.
    fn process_dies(&mut self, process: u64) {
        if let Some(ended) = self.processes.remove(&process) {
            let how = Ended { code: None, signal: Some(KILL) };
            self.oracle.on_end(&ended.name, process, how);
        }
    }

    /// Somebody kills shims on a machine, each with or without its agent's process.
    pub(crate) fn shims_die(&mut self, index: usize) {
        let away = self.rng.chance(50);
        let Some(agent) = self.agents.get(index) else { return };
        let runs = |native: &Native| match native {
            Native::Running { process } => Some(*process),
            _ => None,
        };
        let running: Vec<_> =
            agent.natives.tasks.iter().filter_map(|(key, native)| Some((key.clone(), runs(native)?))).collect();
        if running.is_empty() {
            return;
        }
        if away {
            self.agent_crash(index);
        }
        for (of, process) in running {
            if !self.rng.chance(70) {
                continue;
            }
            let name = name_of(&of.0);
            self.journal.line(self.now_us, &format!("fault: the shim of f{}/{} on agent #{index} dies", name.0, name.1));
            let known = self.agents.get(index).is_some_and(|agent| agent.core.is_some());
            self.oracle.saw(if known { "a shim dies" } else { "a shim dies while its agent is away" });
            self.oracle.on_shim_death(name);
            if let Some(agent) = self.agents.get_mut(index) {
                agent.natives.tasks.insert(of.clone(), Native::Orphaned { process });
            }
            self.later(index, 20_000, Later::ShimGone(of.0, of.1));
        }
    }

    pub(crate) fn task_ends(
        &mut self,
        index: usize,
        process: u64,
        code: Option<i32>,
        signal: Option<i32>,
    ) {
        let Some(ended) = self.processes.remove(&process) else { return };
        let line = format!("agent #{index}: process {process} ends, code {code:?}, signal {signal:?}");
        self.journal.line(self.now_us, &line);
        self.oracle.on_end(&ended.name, process, Ended { code, signal });
        if let Some(worker) = ended.worker {
            let wishes = self
                .agents
                .get_mut(index)
                .and_then(|agent| agent.workers.get_mut(&worker))
                .map(|worker| worker.on_task_ended(process, code));
            self.grant(index, &worker, wishes.unwrap_or_default());
            return;
        }
        let Some(key) = key_of(&ended.name) else { return };
        let Some(agent) = self.agents.get_mut(index) else { return };
        let ended_ms = agent.now(self.now_us).wall_ms;
        let exit = NativeExit { code, signal, ended_ms, ..NativeExit::default() };
        let native = agent.natives.tasks.entry((key.clone(), ended.attempt)).or_insert(Native::Cancelled);
        // Without its shim nobody saw it.
        let alone = matches!(native, Native::Orphaned { .. });
        *native = if alone { Native::ShimLost } else { Native::Exited(exit) };
        if !alone {
            self.observe(index, &key, ended.attempt);
        }
    }

    // Workers.

    fn link_worker(&mut self, index: usize, key: &WorkerKey) {
        let process = self.fresh();
        let mutation = self.mutation;
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        if !agent.workers.contains_key(key) {
            let mut worker = Worker::new(process, index, agent.rng.fork(process), mutation);
            worker.slow = agent.slow_until_us > now_us;
            agent.workers.insert(key.clone(), worker);
        }
        agent.linked.insert(key.clone());
        let Some(worker) = agent.workers.get_mut(key) else { return };
        let process = worker.process.to_string();
        let (hello, wishes) = worker.hello();
        let ended: Vec<v1::WasmTaskState> = hello
            .tasks
            .iter()
            .filter(|task| task.state() != v1::TaskState::TaskRunning)
            .cloned()
            .collect();
        let hello = WorkerHello {
            process,
            engine: hello.engine,
            instances: hello.instances,
            tasks: hello.tasks,
            executors: hello.executors,
        };
        self.agent_input(index, |core, now| core.on_worker_up(key, hello, now));
        for state in ended {
            self.agent_input(index, |core, now| core.on_wasm(key, state, Ok(Vec::new()), now));
        }
        self.grant(index, key, wishes);
    }

    /// Pass a message to a worker, if the agent is connected to it.
    pub(crate) fn tell_worker(&mut self, index: usize, key: &WorkerKey, message: ToWorker) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        if !agent.linked.contains(key) {
            return;
        }
        let Some(worker) = agent.workers.get_mut(key) else { return };
        let wishes = worker.on_message(now_us, message);
        self.grant(index, key, wishes);
    }

    /// Do what a worker wants.
    fn grant(&mut self, index: usize, key: &WorkerKey, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Say(message) => self.worker_says(index, key, message),
                Wish::At(at_us, event) => self.queue.at(at_us, event),
                Wish::Run { process, name, attempt, run_ms, code } => {
                    self.run(index, process, name, attempt, (run_ms, code), Some(key.clone()));
                }
                Wish::Kill { process } => {
                    let at_us = self.now_us + self.rng.range(100, 5_000);
                    let ends = Event::TaskEnds { agent: index, process, code: None, signal: Some(KILL) };
                    self.queue.at(at_us, ends);
                }
                Wish::Spoke(turn) => self.oracle.on_executor_spoke(&turn),
                Wish::Kept { name, number } => self.oracle.on_executor_kept(index, &name, number),
                Wish::Made { epoch, turn, batch } => self.oracle.on_turn_made(epoch, &turn, &batch),
                Wish::Acknowledged { turn, next } => {
                    let header = turn.header;
                    let line = format!("agent #{index}: {} of {} was taken", header.number, header.framework);
                    self.journal.line(self.now_us, &line);
                    self.oracle.on_turn_acknowledged(&turn, next);
                }
                Wish::Note(text) => {
                    self.journal.line(self.now_us, &format!("agent #{index}: a worker {text}"));
                }
                Wish::Violation(text) => self.oracle.violate(text),
            }
        }
    }

    fn worker_says(&mut self, index: usize, key: &WorkerKey, message: FromWorker) {
        if !self.agents.get(index).is_some_and(|agent| agent.linked.contains(key)) {
            return;
        }
        match message {
            FromWorker::InstanceReady(ready) => {
                let key = ready.key.unwrap_or_default();
                let line = format!(
                    "agent #{index}: f{} epoch {} is ready for t{}, rebuilt {}",
                    key.framework, key.epoch, ready.next_turn, ready.rebuilt
                );
                self.journal.line(self.now_us, &line);
                self.agent_input(index, |core, now| core.on_instance_ready(ready, now));
            }
            FromWorker::InstanceFailed(failed) => {
                self.agent_input(index, |core, now| core.on_instance_failed(failed, now));
            }
            FromWorker::ExecutorReady(ready) => {
                self.agent_input(index, |core, now| core.on_executor_ready(key, ready, now));
            }
            FromWorker::ExecutorTurn(turn) => {
                self.agent_input(index, |core, now| core.on_executor_turn(key, turn, now));
            }
            FromWorker::ExecutorFailure(failed) => {
                self.agent_input(index, |core, now| core.on_executor_failed(key, failed, now));
            }
            FromWorker::Turn(turn) => self.agent_input(index, |core, now| core.on_turn(turn, now)),
            FromWorker::TaskState(state) => {
                self.agent_input(index, |core, now| core.on_wasm(key, state, Ok(Vec::new()), now));
            }
            FromWorker::Hello(_) | FromWorker::Log(_) => {}
        }
    }

    fn worker_with(&mut self, index: usize, framework: u64) -> Option<(WorkerKey, &mut Worker)> {
        let agent = self.agents.get_mut(index)?;
        agent
            .workers
            .iter_mut()
            .find(|(key, worker)| key.kind == WorkerKind::Schedulers && worker.hosts(framework))
            .map(|(key, worker)| (key.clone(), worker))
    }

    pub(crate) fn worker_built(&mut self, index: usize, framework: u64, serial: u64) {
        let Some((key, worker)) = self.worker_with(index, framework) else { return };
        let wishes = worker.on_built(framework, serial);
        self.grant(index, &key, wishes);
    }

    pub(crate) fn worker_handled(&mut self, index: usize, framework: u64, serial: u64) {
        let now_us = self.now_us;
        let Some((key, worker)) = self.worker_with(index, framework) else { return };
        let wishes = worker.on_handled(now_us, framework, serial);
        self.grant(index, &key, wishes);
    }

    pub(crate) fn executor_goes_on(&mut self, index: usize, name: &Name, serial: u64) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        let found = agent.workers.iter_mut().find(|(_, worker)| worker.runs_executor(name));
        let Some((key, worker)) = found else { return };
        let (key, wishes) = (key.clone(), worker.on_executor_goes_on(name, serial));
        self.grant(index, &key, wishes);
    }

    /// The agent's machine goes down, with everything on it, and comes back.
    pub(crate) fn machine_reboots(&mut self, index: usize) {
        let frameworks: BTreeSet<u64> = (0..=self.plan.frameworks).collect();
        if let Some(number) = self.agent_number(index) {
            self.oracle.on_machine_death(number, &frameworks);
        }
        self.agent_crash(index);
        let Some(agent) = self.agents.get_mut(index) else { return };
        agent.boot += 1;
        let mut dead: Vec<u64> = agent.workers.values().flat_map(Worker::processes).collect();
        agent.workers.clear();
        for native in agent.natives.tasks.values_mut() {
            match native {
                Native::Running { process } | Native::Orphaned { process } => dead.push(*process),
                Native::ShimLost => {}
                Native::Cancelled | Native::Exited(_) | Native::Rebooted => continue,
            }
            *native = Native::Rebooted;
        }
        for process in dead {
            self.process_dies(process);
        }
    }

    pub(crate) fn worker_crash(&mut self, index: usize) {
        let Some(agent) = self.agents.get(index) else { return };
        let keys: Vec<WorkerKey> = agent.workers.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.rng.index(keys.len())].clone();
        let line = format!("fault: worker {} {} of agent #{index} crashes", key.tenant, key.kind.name());
        self.journal.line(self.now_us, &line);
        if let (WorkerKind::Tasks, Some(number)) = (key.kind, self.agent_number(index)) {
            let frameworks = self.frameworks_of(&key.tenant);
            self.oracle.on_worker_death(number, &frameworks);
        }
        self.end_worker(index, &key);
    }

    fn frameworks_of(&self, tenant: &str) -> BTreeSet<u64> {
        let known = self.leading().map(|node| node.core().frameworks()).unwrap_or_default();
        let (here, others): (Vec<_>, Vec<_>) = known.iter().partition(|f| f.role.tenant() == tenant);
        let ids = |those: Vec<&FrameworkView>| those.into_iter().map(|f| f.id.0).collect::<BTreeSet<u64>>();
        let (here, others) = (ids(here), ids(others));
        // While the master is away, or one leads that was away for long, any framework that it does not know may be meant.
        (0..=self.plan.frameworks).filter(|id| !others.contains(id)).chain(here).collect()
    }

    fn end_worker(&mut self, index: usize, key: &WorkerKey) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(worker) = agent.workers.remove(key) else { return };
        let linked = agent.linked.remove(key);
        for process in worker.processes() {
            self.process_dies(process);
        }
        if linked {
            self.agent_input(index, |core, now| core.on_worker_down(key, now));
        }
    }

    pub(crate) fn worker_trap(&mut self, index: usize) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        // Schedulers and executors alike.
        let count = agent.workers.len().max(1);
        let worker = agent.workers.iter_mut().nth(agent.rng.index(count));
        if let Some((key, worker)) = worker {
            worker.trap_next = true;
            let kind = key.kind.name();
            let line = format!("fault: a guest of {} ({kind}) on agent #{index} will trap", key.tenant);
            self.journal.line(self.now_us, &line);
        }
    }
}
