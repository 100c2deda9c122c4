//! One simulated agent: the core of an agent, in a session, over a machine that starts everything at once.
//!
//! Invariants: what the core asks of its machine is answered in the same round; a task runs until its time is
//! over or somebody ends it; the same order may come again. Must never start anything.

use super::Run;
use crate::{RunError, SESSION_EVENTS_MAX};
use crate::session::SessionEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tessera_agent_core::{
    Action, Core, CoreConfig, ExecutorKey, NativeExit, NativeObservation, Now, SupplyFailure, TaskKey,
    WorkerHello, WorkerKey,
};
use tessera_types::{AgentId, ExecutorId, FrameworkId};
use tessera_wire::v1::{self, TaskState, master_message::Message as FromMaster, to_worker::Message as ToWorker};
use tokio::sync::mpsc;

const TERM: i32 = 15;
const KILL: i32 = 9;

/// What is said of components and executors, which need a real machine.
const NO_GUESTS: &str = "a simulated agent runs no guests";

/// A task that is taken to run.
#[derive(Debug)]
struct Running {
    attempt: u32,
    /// The worker that is taken to have it; none for a native command.
    worker: Option<WorkerKey>,
    ends_ms: Option<u64>,
}

/// One agent.
pub struct Machine {
    run: Arc<Run>,
    number: u32,
    core: Core,
    /// What it was assigned, 0 and empty before.
    agent: u64,
    cluster: String,
    /// How often it was declared gone: each time it comes back as another agent.
    lives: u32,
    sender: Option<mpsc::Sender<v1::AgentMessage>>,
    registered: bool,
    running: BTreeMap<TaskKey, Running>,
    /// Ends of tasks by time.
    ends: BTreeSet<(u64, TaskKey)>,
    processes: u64,
}

impl Machine {
    /// An agent that has no session yet.
    pub fn new(run: Arc<Run>, number: u32) -> Self {
        let mut core = Core::new(CoreConfig::new(run.config.each.into()), AgentId(0));
        core.set_hostname(run.config.hostname(number));
        Self {
            run,
            number,
            core,
            agent: 0,
            cluster: String::new(),
            lives: 0,
            sender: None,
            registered: false,
            running: BTreeMap::new(),
            ends: BTreeSet::new(),
            processes: 0,
        }
    }

    /// Live until nobody speaks any more, or until the masters refuse it for good.
    pub async fn live(mut self, mut events: mpsc::Receiver<SessionEvent>) -> Result<(), RunError> {
        loop {
            let wake = self.core.wake_ms().into_iter().chain(self.ends.first().map(|(at, _)| *at)).min();
            let wake = wake.map(|at| self.run.began + Duration::from_millis(at));
            let tick = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => Some(event),
                    None => return Ok(()),
                },
                () = tick => None,
            };
            self.round(heard, &mut events)?;
        }
    }

    /// What waits together is decided together, as an agent does; so is what the machine says to it.
    fn round(
        &mut self,
        heard: Option<SessionEvent>,
        events: &mut mpsc::Receiver<SessionEvent>,
    ) -> Result<(), RunError> {
        self.core.begin_round();
        let mut actions = match heard {
            Some(event) => self.on_session(event)?,
            None => self.on_tick(),
        };
        for _ in 0..SESSION_EVENTS_MAX {
            let Ok(event) = events.try_recv() else { break };
            actions.extend(self.on_session(event)?);
        }
        actions.extend(self.core.end_round(self.now()));
        while !actions.is_empty() {
            self.core.begin_round();
            let now = self.now();
            let mut next = Vec::new();
            for action in actions {
                next.extend(self.act(action, now));
            }
            next.extend(self.core.end_round(now));
            actions = next;
        }
        Ok(())
    }

    fn now(&self) -> Now {
        let wall = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis());
        Now {
            mono_ms: u64::try_from(self.run.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            wall_ms: u64::try_from(wall).unwrap_or(u64::MAX),
        }
    }

    fn key(&self) -> String {
        let own = format!("{}-{}", super::ATTRIBUTE, self.run.config.hostname(self.number));
        if self.lives == 0 { own } else { format!("{own}-{}", self.lives) }
    }

    // The session.

    fn on_session(&mut self, event: SessionEvent) -> Result<Vec<Action>, RunError> {
        let now = self.now();
        match event {
            SessionEvent::Connected { sender, client: _ } => {
                self.sender = Some(sender);
                let register = v1::Register {
                    cluster: self.cluster.clone(),
                    agent: self.agent,
                    agent_key: self.key(),
                    boot: self.run.boot.clone(),
                    description: Some(self.run.config.description(self.number)),
                    tasks_hash: self.core.tasks_hash().to_vec(),
                    protocol: tessera_wire::SESSION_PROTOCOL,
                };
                self.say(v1::agent_message::Message::Register(register));
                Ok(Vec::new())
            }
            SessionEvent::Message(message) => self.on_master(*message, now),
            SessionEvent::Disconnected { reason } => {
                tracing::debug!(agent = self.agent, reason, "no session");
                self.sender = None;
                self.count(false);
                Ok(self.core.on_session_down(now))
            }
        }
    }

    fn on_master(&mut self, message: v1::MasterMessage, now: Now) -> Result<Vec<Action>, RunError> {
        let Some(message) = message.message else { return Ok(Vec::new()) };
        match message {
            FromMaster::Registered(registered) => {
                self.agent = registered.agent;
                self.cluster = registered.cluster;
                self.count(true);
                let equal = registered.tasks_equal;
                let mut actions = self.core.on_registered(AgentId(registered.agent), equal, now);
                if registered.repeat_statuses {
                    actions.extend(self.core.repeat_statuses(now));
                }
                Ok(actions)
            }
            // The session keeps them.
            FromMaster::Masters(_) => Ok(Vec::new()),
            FromMaster::Refused(refused) if refused.gone => {
                let actions = self.core.on_gone(now);
                if self.core.is_empty() {
                    (self.agent, self.lives) = (0, self.lives + 1);
                }
                Ok(actions)
            }
            // A machine that was started anew waits until the session of before is over.
            FromMaster::Refused(refused) if refused.field == "register.agent_key" => Ok(Vec::new()),
            FromMaster::Refused(refused) if refused.field == "register.cluster" && self.cluster.is_empty() => {
                Ok(Vec::new())
            }
            FromMaster::Refused(refused) if refused.field.starts_with("register.") => {
                Err(RunError::Refused { field: refused.field, rule: refused.rule })
            }
            FromMaster::Refused(refused) => {
                let v1::Refused { field, rule, .. } = refused;
                tracing::warn!(agent = self.agent, field, rule, "the master refused");
                Ok(Vec::new())
            }
            FromMaster::Desired(desired) => Ok(self.core.on_desired(desired, now)),
            FromMaster::StatusAcks(acks) => Ok(self.core.on_status_acks(acks.acks, now)),
            FromMaster::Batch(batch) => Ok(self.core.on_batch(batch, now)),
            FromMaster::TurnResult(result) => Ok(self.core.on_turn_result(result, now)),
            FromMaster::ToExecutor(message) => Ok(self.core.on_to_executor(message, now)),
        }
    }

    fn count(&mut self, registered: bool) {
        match (self.registered, registered) {
            (false, true) => self.run.registered.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.run.registered.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.registered = registered;
    }

    fn say(&mut self, message: v1::agent_message::Message) {
        let Some(sender) = &self.sender else { return };
        let message = v1::AgentMessage { message: Some(message) };
        // One that is closed has ended, which is heard of in a moment.
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(message) {
            self.sender = None;
        }
    }

    // Time.

    fn on_tick(&mut self) -> Vec<Action> {
        let now = self.now();
        let mut actions = self.core.on_tick(now);
        while let Some((at_ms, key)) = self.ends.first().cloned() {
            if at_ms > now.mono_ms {
                break;
            }
            actions.extend(self.end(&key, None, now));
        }
        actions
    }

    // What the machine is taken to do.

    fn act(&mut self, action: Action, now: Now) -> Vec<Action> {
        match action {
            Action::Send(message) => {
                self.say(message);
                Vec::new()
            }
            Action::Prepare { key, attempt, .. } => self.core.on_prepared(&key, attempt, Ok(()), now),
            Action::StartNative { key, attempt, .. } => {
                self.start(&key, attempt, None, now);
                self.observe(&key, attempt, NativeObservation::NotStarted, now)
            }
            Action::InspectNative { key, attempt, .. } => {
                self.observe(&key, attempt, NativeObservation::NotStarted, now)
            }
            Action::CancelNative { key, attempt, .. } => {
                self.observe(&key, attempt, NativeObservation::Cancelled, now)
            }
            Action::SignalNative { key, force, .. } => {
                self.end(&key, Some(if force { KILL } else { TERM }), now)
            }
            Action::StartWasm { worker, key, attempt, .. } => {
                self.start(&key, attempt, Some(worker.clone()), now);
                self.core.on_wasm(&worker, wasm_state(&key, attempt, TaskState::TaskRunning), Ok(vec![]), now)
            }
            Action::ToWorker { message: ToWorker::KillTask(kill), .. } => {
                match TaskKey::parse(FrameworkId(kill.framework), &kill.task) {
                    Ok(key) => self.end(&key, Some(KILL), now),
                    Err(_) => Vec::new(),
                }
            }
            Action::EnsureComponent { digest } => self.core.on_component(digest, Ok(()), now),
            Action::EnsureImage { digest, engine, .. } => self.core.on_image(digest, engine, Ok(()), now),
            Action::CompileAhead { digest } => {
                let refused = Err(SupplyFailure::Unusable(NO_GUESTS.to_owned()));
                self.core.on_compiled_ahead(digest, refused, now)
            }
            Action::EnsureWorker { worker } => {
                self.processes += 1;
                let hello = WorkerHello {
                    process: self.processes.to_string(),
                    engine: String::new(),
                    instances: Vec::new(),
                    tasks: Vec::new(),
                    executors: Vec::new(),
                };
                self.core.on_worker_up(&worker, hello, now)
            }
            Action::StopWorker { worker } => self.core.on_worker_down(&worker, now),
            Action::StartInstance { instance, .. } => {
                let key = v1::InstanceKey { framework: instance.framework, epoch: instance.epoch };
                self.core.on_state_failed(key, now)
            }
            Action::StartExecutor { start, .. } => match start.key.as_ref().and_then(executor_key) {
                Some(key) => self.core.on_executor_not_started(&key, NO_GUESTS, now),
                None => Vec::new(),
            },
            Action::Warn(text) => {
                tracing::warn!(text, "something was left out");
                Vec::new()
            }
            Action::Checkpoint { .. }
            | Action::Forgotten { .. }
            | Action::SizeWorker { .. }
            | Action::UpdateInstance { .. }
            | Action::LimitExecutor { .. }
            | Action::ExecutorEnded { .. }
            | Action::ToWorker { .. } => Vec::new(),
        }
    }

    fn start(&mut self, key: &TaskKey, attempt: u32, worker: Option<WorkerKey>, now: Now) {
        if self.running.get(key).is_some_and(|running| running.attempt == attempt) {
            return;
        }
        let ends_ms = self.run.config.task_ms.map(|task_ms| now.mono_ms + task_ms);
        self.ends.extend(ends_ms.map(|at_ms| (at_ms, key.clone())));
        self.running.insert(key.clone(), Running { attempt, worker, ends_ms });
    }

    fn observe(&mut self, key: &TaskKey, attempt: u32, otherwise: NativeObservation, now: Now) -> Vec<Action> {
        let runs = self.running.get(key).is_some_and(|running| running.attempt == attempt);
        let seen = if runs { NativeObservation::Running } else { otherwise };
        self.core.on_native(key, attempt, seen, now)
    }

    /// A task ends, by a signal or by itself.
    fn end(&mut self, key: &TaskKey, signal: Option<i32>, now: Now) -> Vec<Action> {
        let Some(Running { attempt, worker, ends_ms }) = self.running.remove(key) else { return Vec::new() };
        if let Some(at_ms) = ends_ms {
            self.ends.remove(&(at_ms, key.clone()));
        }
        match worker {
            Some(worker) => {
                let state = if signal.is_some() { TaskState::TaskKilled } else { TaskState::TaskFinished };
                self.core.on_wasm(&worker, wasm_state(key, attempt, state), Ok(vec![]), now)
            }
            None => {
                let code = signal.is_none().then_some(0);
                let exit = NativeExit { code, signal, ended_ms: now.wall_ms, ..NativeExit::default() };
                self.core.on_native(key, attempt, NativeObservation::Exited(exit), now)
            }
        }
    }
}

fn wasm_state(key: &TaskKey, attempt: u32, state: TaskState) -> v1::WasmTaskState {
    v1::WasmTaskState {
        framework: key.framework.0,
        task: key.name(),
        attempt,
        state: state.into(),
        exit_code: (state == TaskState::TaskFinished).then_some(0),
        ..v1::WasmTaskState::default()
    }
}

fn executor_key(key: &v1::ExecutorKey) -> Option<ExecutorKey> {
    let executor: ExecutorId = key.executor.parse().ok()?;
    Some(ExecutorKey { framework: FrameworkId(key.framework), executor })
}
