//! Tasks: native ones, Wasm tasks and those of executors. Nothing of a task's own is run; how long it takes
//! and how it ends follows from the trace and the seed.
//!
//! Invariants: an attempt of a native task starts once; a task that ends is told once. Must never decide
//! whether a task is to run.

use crate::agents::Native;
use crate::queue::{Event, Later};
use crate::world::{KILL_US, START_US, World};
use tessera_agent_core::{NativeExit, NativeObservation, TaskKey, WorkerKey};
use tessera_types::FrameworkId;
use tessera_wire::v1::{self, from_worker::Message as FromWorker};

/// SIGTERM.
const TERM: i32 = 15;
/// SIGKILL.
const KILL: i32 = 9;

/// Something that runs, or is about to.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) agent: usize,
    key: TaskKey,
    attempt: u32,
    worker: Option<WorkerKey>,
}

impl World<'_> {
    pub(crate) fn start_native(&mut self, agent: usize, key: TaskKey, attempt: u32) {
        let there = self.agents.get(agent).is_some_and(|a| a.natives.contains_key(&(key.clone(), attempt)));
        if there {
            return self.observe(agent, &key, attempt);
        }
        self.start(Process { agent, key, attempt, worker: None });
    }

    pub(crate) fn start_wasm(&mut self, agent: usize, worker: WorkerKey, key: TaskKey, attempt: u32) {
        self.start(Process { agent, key, attempt, worker: Some(worker) });
    }

    fn start(&mut self, process: Process) {
        let (id, agent) = (self.fresh(), process.agent);
        self.processes.insert(id, process);
        self.later(agent, START_US, Later::Spawn(id));
    }

    /// A process is there, unless it was cancelled meanwhile.
    pub(crate) fn spawn(&mut self, id: u64) {
        let Some(Process { agent: index, key, attempt, worker }) = self.processes.get(&id) else { return };
        let (index, key, attempt, worker) = (*index, key.clone(), *attempt, worker.clone());
        let run = self.run_of(&key, attempt);
        let Some(agent) = self.agents.get_mut(index) else { return };
        if worker.is_some() {
            agent.wasm.insert((key.framework.0, key.name(), attempt), id);
        } else if agent.natives.contains_key(&(key.clone(), attempt)) {
            self.processes.remove(&id);
            return self.observe(index, &key, attempt);
        } else {
            agent.natives.insert((key.clone(), attempt), Native::Running(id));
        }
        let ends = Event::TaskEnds { process: id, signal: None };
        self.queue.at(self.now_us + run.ms.saturating_mul(1_000), ends);
        match worker {
            Some(worker) => {
                let state = wasm_state(&key, attempt, v1::TaskState::TaskRunning);
                self.agent_input(index, |core, now| core.on_wasm(&worker, state, Ok(Vec::new()), now));
            }
            None => self.observe(index, &key, attempt),
        }
    }

    fn run_of(&self, key: &TaskKey, attempt: u32) -> crate::trace::Run {
        self.trace.run(self.plan.seed, self.name_of(key.framework), &key.name(), attempt)
    }

    fn name_of(&self, framework: FrameworkId) -> &str {
        let index = self.master.frameworks.get(&framework);
        let planned = index.and_then(|index| self.plan.schedulers.get(*index));
        planned.map_or("", |planned| planned.name.as_str())
    }

    pub(crate) fn observe(&mut self, agent: usize, key: &TaskKey, attempt: u32) {
        let Some(found) = self.agents.get(agent) else { return };
        let seen = match found.natives.get(&(key.clone(), attempt)) {
            None => NativeObservation::NotStarted,
            Some(Native::Cancelled) => NativeObservation::Cancelled,
            Some(Native::Running(_)) => NativeObservation::Running,
            Some(Native::Exited(exit)) => NativeObservation::Exited(exit.clone()),
            Some(Native::Rebooted) => NativeObservation::Rebooted,
        };
        self.agent_input(agent, |core, now| core.on_native(key, attempt, seen, now));
    }

    pub(crate) fn cancel_native(&mut self, agent: usize, key: &TaskKey, attempt: u32) {
        if let Some(found) = self.agents.get_mut(agent) {
            found.natives.entry((key.clone(), attempt)).or_insert(Native::Cancelled);
        }
        self.observe(agent, key, attempt);
    }

    pub(crate) fn signal_native(&mut self, agent: usize, key: &TaskKey, attempt: u32, force: bool) {
        let native = self.agents.get(agent).and_then(|a| a.natives.get(&(key.clone(), attempt)));
        let Some(Native::Running(process)) = native else {
            return self.observe(agent, key, attempt);
        };
        let signal = Some(if force { KILL } else { TERM });
        self.queue.at(self.now_us + KILL_US, Event::TaskEnds { process: *process, signal });
    }

    pub(crate) fn kill_wasm(&mut self, agent: usize, kill: &v1::KillWasmTask) {
        let key = (kill.framework, kill.task.clone(), kill.attempt);
        let process = self.agents.get(agent).and_then(|a| a.wasm.get(&key));
        if let Some(process) = process {
            let ends = Event::TaskEnds { process: *process, signal: Some(KILL) };
            self.queue.at(self.now_us + KILL_US, ends);
        }
    }

    pub(crate) fn task_ends(&mut self, id: u64, signal: Option<i32>) {
        let Some(Process { agent: index, key, attempt, worker }) = self.processes.remove(&id) else { return };
        let run = self.run_of(&key, attempt);
        let ended_ms = crate::agents::agent_now(self.now_us).wall_ms;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(worker) = worker else {
            let exit = NativeExit {
                code: signal.is_none().then_some(run.exit_code),
                signal,
                data: if signal.is_none() { run.result } else { Vec::new() },
                ended_ms,
                ..NativeExit::default()
            };
            agent.natives.insert((key.clone(), attempt), Native::Exited(exit));
            return self.observe(index, &key, attempt);
        };
        agent.wasm.remove(&(key.framework.0, key.name(), attempt));
        let (state, reason) = match (signal, run.exit_code) {
            (Some(_), _) => (v1::TaskState::TaskKilled, ""),
            (None, 0) => (v1::TaskState::TaskFinished, ""),
            (None, _) => (v1::TaskState::TaskFailed, "COMMAND_EXITED"),
        };
        let mut state = wasm_state(&key, attempt, state);
        reason.clone_into(&mut state.reason);
        state.exit_code = signal.is_none().then_some(run.exit_code);
        self.agent_input(index, |core, now| core.on_wasm(&worker, state, Ok(run.result), now));
    }

    // Executors: one that starts each task as soon as it is launched, and says when it has ended.

    pub(crate) fn start_executor(&mut self, agent: usize, worker: WorkerKey, start: &v1::StartExecutor) {
        let ready = v1::ExecutorReady { key: start.key.clone(), next_turn: start.next_turn };
        self.later(agent, START_US, Later::Executor(worker, FromWorker::ExecutorReady(ready)));
    }

    pub(crate) fn executor_batch(&mut self, agent: usize, worker: &WorkerKey, batch: v1::ExecutorBatch) {
        let framework = FrameworkId(batch.key.as_ref().map_or(0, |key| key.framework));
        let mut operations = Vec::new();
        for event in batch.events {
            self.executor_event(framework, batch.time_ms, event, &mut operations);
        }
        let operations = operations.into_iter().map(|o| v1::ExecutorOperation { operation: Some(o) });
        let turn = v1::ExecutorTurn {
            key: batch.key,
            number: batch.number,
            operations: operations.collect(),
            writes: Vec::new(),
        };
        self.later(agent, START_US, Later::Executor(worker.clone(), FromWorker::ExecutorTurn(turn)));
    }

    fn executor_event(
        &self,
        framework: FrameworkId,
        now_ms: u64,
        event: v1::ExecutorEvent,
        operations: &mut Vec<v1::executor_operation::Operation>,
    ) {
        use v1::executor_event::Event as E;
        use v1::executor_operation::Operation as O;
        let status = |task: &str, state: v1::TaskState, data: Vec<u8>| {
            let (task, state) = (task.to_owned(), state.into());
            O::Status(v1::ExecutorStatus { task, state, message: String::new(), data })
        };
        let run = |task: &str| self.trace.run(self.plan.seed, self.name_of(framework), task, 1);
        let launches = match event.event {
            Some(E::Launch(launch)) => vec![launch],
            Some(E::LaunchGroup(group)) => group.launches,
            Some(E::Timer(task)) => {
                let run = run(&task);
                let failed = run.exit_code != 0;
                let state = if failed { v1::TaskState::TaskFailed } else { v1::TaskState::TaskFinished };
                return operations.push(status(&task, state, run.result));
            }
            Some(E::Kill(kill)) => {
                operations.push(O::CancelTimer(kill.task.clone()));
                return operations.push(status(&kill.task, v1::TaskState::TaskKilled, Vec::new()));
            }
            Some(E::ShutdownMs(_)) => return operations.push(O::Finish(v1::Empty {})),
            Some(E::Started(_) | E::Message(_) | E::Child(_) | E::Again(_)) | None => return,
        };
        for launch in launches {
            operations.push(status(&launch.task, v1::TaskState::TaskRunning, Vec::new()));
            let due_ms = now_ms.saturating_add(run(&launch.task).ms);
            operations.push(O::SetTimer(v1::ExecutorTimer { id: launch.task, due_ms, ..v1::ExecutorTimer::default() }));
        }
    }

    pub(crate) fn executor_says(&mut self, agent: usize, worker: &WorkerKey, message: FromWorker) {
        match message {
            FromWorker::ExecutorReady(ready) => {
                self.agent_input(agent, |core, now| core.on_executor_ready(worker, ready, now));
            }
            FromWorker::ExecutorTurn(turn) => {
                self.agent_input(agent, |core, now| core.on_executor_turn(worker, turn, now));
            }
            _ => {}
        }
    }
}

fn wasm_state(key: &TaskKey, attempt: u32, state: v1::TaskState) -> v1::WasmTaskState {
    v1::WasmTaskState {
        framework: key.framework.0,
        task: key.name(),
        attempt,
        state: state.into(),
        ..v1::WasmTaskState::default()
    }
}
