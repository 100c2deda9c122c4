//! The agent's one loop: hears the session, workers and steps that it began; asks the core; writes the
//! checkpoint; performs.
//!
//! Invariants: what waits together is decided together and written with one sync; nothing is performed
//! before the records of its round are on disk; a checkpoint that cannot be written ends the agent, and
//! every task goes on. This file must never decide anything about a task or an instance.

use crate::RunError;
use crate::checkpoint::{Checkpoint, REWRITE_BYTES};
use crate::caches;
use crate::collector::{self, Collector};
use crate::file_lane::{Files, serve_files};
use crate::identity::WorkDir;
use crate::input::Input;
use crate::metrics::{Look, Metrics};
use crate::native::{Attempt, Native};
use crate::perform::{Session, Supply, WasmStart};
use crate::session::SessionEvent;
use crate::trace::Tracer;
use crate::worker_link::LinkEvent;
use crate::workers::Workers;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tessera_agent_core::{Action, Core, Now, TaskKey, WorkerHello, WorkerKey};
use tessera_types::{AgentId, Digest, FrameworkId, Quantities, TaskState};
use tessera_wire::v1;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use v1::from_worker::Message as FromWorker;
use v1::master_message::Message as FromMaster;

/// Things that one round decides together: more would make the first wait for too long.
const ROUND_MAX: usize = 256;

/// Rounds follow each other in no less, once there were [`ROUNDS_AT_ONCE`] in a row: each is a sync of the disk, and
/// of a busy agent many things happen in as much.
const ROUND_EVERY: Duration = Duration::from_millis(2);

/// Rounds that follow each other at once after a pause: more than one task takes from its order to its end.
const ROUNDS_AT_ONCE: u32 = 16;

/// Where the loop hears from.
pub struct Ears {
    /// The session.
    pub session: mpsc::Receiver<SessionEvent>,
    /// Links of workers.
    pub links: mpsc::Receiver<(WorkerKey, LinkEvent)>,
    /// Steps that the loop began.
    pub inputs: mpsc::Receiver<Input>,
}

/// One thing that was heard.
enum Heard {
    Session(SessionEvent),
    Link(WorkerKey, LinkEvent),
    Input(Input),
    Tick,
}

impl Heard {
    /// Whether it is more than news of tasks, which come by the hundred and can wait for each other: a turn, for
    /// example, for which a scheduler and its users wait.
    fn is_urgent(&self) -> bool {
        match self {
            Self::Session(SessionEvent::Message(message)) => {
                !matches!(message.message, Some(FromMaster::Desired(_) | FromMaster::StatusAcks(_)))
            }
            Self::Link(_, LinkEvent::Message(message)) => {
                !matches!(message.message, Some(FromWorker::TaskState(_) | FromWorker::Log(_)))
            }
            Self::Input(input) => !matches!(
                input,
                Input::Native { .. } | Input::WasmPrepared(..) | Input::WasmEnded(..) | Input::Prepared { .. }
            ),
            Self::Session(_) | Self::Link(..) => true,
            Self::Tick => false,
        }
    }
}

/// The session as the loop has it.
#[derive(Default)]
pub(crate) struct Line {
    sender: Option<mpsc::Sender<v1::AgentMessage>>,
    client: Option<crate::session::Client>,
    session: Option<Session>,
    file_lane: Option<JoinHandle<()>>,
    last_reason: String,
}

/// The loop's state.
pub struct Supervisor {
    pub(crate) core: Core,
    pub(crate) work_dir: WorkDir,
    pub(crate) description: v1::AgentDescription,
    pub(crate) boot: String,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) rewrite_at: u64,
    pub(crate) native: Native,
    pub(crate) workers: Workers,
    pub(crate) supply: Supply,
    pub(crate) collector: Collector,
    pub(crate) files: Files,
    pub(crate) began: Instant,
    /// What is offered.
    pub(crate) total: Quantities,
    pub(crate) metrics: Arc<Metrics>,
    /// If somebody takes spans.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) line: Line,
    pub(crate) fetches: BTreeMap<u64, JoinHandle<()>>,
    /// Executors on their way to their workers, by framework and id.
    pub(crate) executor_starts: BTreeMap<(u64, String), JoinHandle<()>>,
}

impl Supervisor {
    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_millis());
        Now {
            mono_ms: self.began.elapsed().as_millis() as u64,
            wall_ms: u64::try_from(wall).unwrap_or(u64::MAX),
        }
    }

    /// Run until something that cannot be mended happens. Dropping the future ends the loop; tasks go on.
    pub async fn run(mut self, mut ears: Ears, first: Vec<Action>) -> Result<(), RunError> {
        self.round(first).await?;
        let inputs = self.files.inputs.clone();
        tokio::spawn(async move {
            // Ends with the loop, which has the other end.
            while inputs.send(Input::CachesDue).await.is_ok() {
                tokio::time::sleep(caches::LOOK_EVERY).await;
            }
        });
        // When the next round would be due if all kept their distance.
        let mut next = Instant::now();
        loop {
            let Some(heard) = self.hear(&mut ears).await else {
                return Ok(());
            };
            let began = Instant::now();
            let until = next.checked_sub(ROUND_EVERY * ROUNDS_AT_ONCE).unwrap_or(began);
            let (actions, urgent) = self.gather(&mut ears, heard, until).await?;
            if !urgent {
                next = next.max(began) + ROUND_EVERY;
            }
            let acted = Instant::now();
            self.round(actions).await?;
            self.metrics.rounds.took(acted.elapsed());
        }
    }

    /// What comes of everything that waits, and of what comes until then, unless something of it is urgent;
    /// whether it is.
    async fn gather(
        &mut self,
        ears: &mut Ears,
        first: Heard,
        until: Instant,
    ) -> Result<(Vec<Action>, bool), RunError> {
        self.core.begin_round();
        let mut urgent = first.is_urgent();
        let mut actions = self.on_heard(first)?;
        for _ in 1..ROUND_MAX {
            let heard = match more(ears) {
                Some(heard) => heard,
                None if urgent || Instant::now() >= until => break,
                None => tokio::select! {
                    heard = hear(ears) => match heard {
                        Some(heard) => heard,
                        None => break,
                    },
                    () = tokio::time::sleep_until(until.into()) => break,
                },
            };
            urgent |= heard.is_urgent();
            actions.extend(self.on_heard(heard)?);
        }
        actions.extend(self.core.end_round(self.now()));
        Ok((actions, urgent))
    }

    async fn hear(&self, ears: &mut Ears) -> Option<Heard> {
        let wake = self
            .core
            .wake_ms()
            .map(|at| self.began + Duration::from_millis(at));
        let tick = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = hear(ears) => heard,
            () = tick => Some(Heard::Tick),
        }
    }

    /// Write the records of a round with one sync, then perform the rest in order.
    async fn round(&mut self, actions: Vec<Action>) -> Result<(), RunError> {
        let (mut records, mut rest, mut sync) =
            (Vec::new(), Vec::with_capacity(actions.len()), false);
        for action in actions {
            match action {
                Action::Checkpoint {
                    records: some,
                    sync: needed,
                } => {
                    records.extend(some.iter().map(prost::Message::encode_to_vec));
                    sync |= needed;
                }
                other => rest.push(other),
            }
        }
        if rest
            .iter()
            .any(|action| matches!(action, Action::StartNative { .. }))
        {
            self.native.warm_up();
        }
        if !records.is_empty() {
            self.keep(records, sync).await?;
        }
        let mut wasm = Vec::new();
        for action in rest {
            if let Some(tracer) = &mut self.tracer {
                tracer.on_action(&action);
            }
            match action {
                Action::StartWasm {
                    worker,
                    key,
                    attempt,
                    spec,
                    launch,
                    component,
                    limits,
                    engine: _,
                } => {
                    let image = self.expect_image(&worker, &component);
                    wasm.push(WasmStart {
                        worker,
                        of: Attempt { key, attempt, spec },
                        launch,
                        component,
                        image,
                        limits,
                    });
                }
                other => self.perform(other).await,
            }
        }
        self.supply.prepare_wasm(wasm);
        let excess = self.collector.excess();
        if !excess.is_empty() {
            tokio::task::spawn_blocking(move || collector::remove(excess));
        }
        Ok(())
    }

    async fn keep(&mut self, records: Vec<Vec<u8>>, sync: bool) -> Result<(), RunError> {
        let mut checkpoint = self.checkpoint.take().ok_or(RunError::CheckpointGone)?;
        let compacted: Option<Vec<Vec<u8>>> = (checkpoint.bytes() > self.rewrite_at).then(|| {
            self.core
                .compacted()
                .iter()
                .map(prost::Message::encode_to_vec)
                .collect()
        });
        let rewritten = compacted.is_some();
        let metrics = Arc::clone(&self.metrics);
        let write = move || {
            let began = Instant::now();
            // The core is already past these records, so that a rewrite has them in it.
            match compacted {
                Some(all) => checkpoint.rewrite(&all),
                None => checkpoint.append(&records, sync),
            }
            .map(|()| {
                metrics.syncs.took(began.elapsed());
                checkpoint
            })
        };
        // The loop waits for its disk in any case. To hand the write to another thread and back takes as
        // long as the write, and is needed only where the loop shares its one thread with the session.
        let checkpoint = match tokio::runtime::Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => tokio::task::spawn_blocking(write)
                .await
                .map_err(|_| RunError::CheckpointGone)??,
            _ => tokio::task::block_in_place(write)?,
        };
        if rewritten {
            // The next one pays only when most of the file is dead again.
            self.rewrite_at = REWRITE_BYTES.max(checkpoint.bytes() * 2);
        }
        self.checkpoint = Some(checkpoint);
        Ok(())
    }

    fn on_heard(&mut self, heard: Heard) -> Result<Vec<Action>, RunError> {
        let now = self.now();
        match heard {
            Heard::Tick => Ok(self.core.on_tick(now)),
            Heard::Session(event) => self.on_session(event, now),
            Heard::Link(key, event) => Ok(self.on_link(&key, event, now)),
            Heard::Input(input) => Ok(self.on_input(input, now)),
        }
    }

    // The session.

    fn on_session(&mut self, event: SessionEvent, now: Now) -> Result<Vec<Action>, RunError> {
        match event {
            SessionEvent::Connected { sender, client } => {
                let identity = self.work_dir.identity();
                let register = v1::Register {
                    cluster: identity.cluster.clone(),
                    agent: identity.agent,
                    agent_key: identity.key.clone(),
                    boot: self.boot.clone(),
                    description: Some(self.description.clone()),
                    tasks_hash: self.core.tasks_hash().to_vec(),
                    protocol: tessera_wire::SESSION_PROTOCOL,
                };
                self.line.sender = Some(sender);
                self.line.client = Some(client);
                self.say(v1::agent_message::Message::Register(register));
                Ok(Vec::new())
            }
            SessionEvent::Message(message) => self.on_master(*message, now),
            SessionEvent::Disconnected { reason } => {
                self.end_session();
                if self.line.last_reason != reason {
                    tracing::warn!(reason, "no session with a master; tasks go on");
                    self.line.last_reason = reason;
                }
                Ok(self.core.on_session_down(now))
            }
        }
    }

    fn end_session(&mut self) {
        self.line.sender = None;
        self.line.client = None;
        self.line.session = None;
        if let Some(lane) = self.line.file_lane.take() {
            lane.abort();
        }
    }

    fn on_master(&mut self, message: v1::MasterMessage, now: Now) -> Result<Vec<Action>, RunError> {
        let Some(message) = message.message else {
            return Ok(Vec::new());
        };
        match message {
            FromMaster::Registered(registered) => self.on_registered(registered, now),
            FromMaster::Refused(refused) if refused.gone => self.on_gone(now),
            FromMaster::Refused(refused) => self.on_refused(&refused).map(|()| Vec::new()),
            FromMaster::Desired(desired) => {
                if let Some(tracer) = &mut self.tracer {
                    tracer.on_desired(&desired, |task| self.core.knows(task));
                }
                Ok(self.core.on_desired(desired, now))
            }
            FromMaster::StatusAcks(acks) => Ok(self.core.on_status_acks(acks.acks, now)),
            FromMaster::Batch(batch) => Ok(self.core.on_batch(batch, now)),
            FromMaster::TurnResult(result) => {
                if let Some(tracer) = &mut self.tracer {
                    tracer.on_result(&result);
                }
                Ok(self.core.on_turn_result(result, now))
            }
            // The session keeps them.
            FromMaster::Masters(_) => Ok(Vec::new()),
            FromMaster::ToExecutor(message) => Ok(self.core.on_to_executor(message, now)),
        }
    }

    fn on_registered(
        &mut self,
        registered: v1::Registered,
        now: Now,
    ) -> Result<Vec<Action>, RunError> {
        let own = self.work_dir.identity();
        if !own.cluster.is_empty() && own.cluster != registered.cluster {
            let (own, found) = (own.cluster.clone(), registered.cluster);
            return Err(RunError::OtherCluster { own, found });
        }
        self.work_dir
            .assign(registered.agent, &registered.cluster)?;
        tracing::info!(
            agent = registered.agent,
            term = registered.term,
            "registered"
        );
        self.metrics.sessions.one();
        tessera_telemetry::log::i_am("agent", format!("a{}", registered.agent));
        if let Some(tracer) = &mut self.tracer {
            tracer.i_am(registered.agent);
        }
        self.line.last_reason.clear();
        if let Some(client) = self.line.client.clone() {
            let (agent, session) = (registered.agent, registered.session);
            self.line.session = Some(Session {
                client: client.clone(),
                agent,
                session,
            });
            let files = self.files.clone();
            let lane = tokio::spawn(async move {
                if let Err(status) = serve_files(client, agent, session, files).await {
                    tracing::debug!(%status, "the lane for files ended");
                }
            });
            if let Some(old) = self.line.file_lane.replace(lane) {
                old.abort();
            }
        }
        let repeat = registered.repeat_statuses;
        let mut actions = self.core.on_registered(AgentId(registered.agent), registered.tasks_equal, now);
        if repeat {
            actions.extend(self.core.repeat_statuses(now));
        }
        Ok(actions)
    }

    /// The agent was declared gone while it was away: what it runs was given up. Once nothing is left it
    /// registers as another agent; until then the session tries in vain.
    fn on_gone(&mut self, now: Now) -> Result<Vec<Action>, RunError> {
        let actions = self.core.on_gone(now);
        if self.core.is_empty() {
            tracing::warn!("an operator declared this agent gone; it comes back as a new one");
            self.work_dir.renew()?;
        } else {
            tracing::warn!("an operator declared this agent gone; its tasks are being ended");
        }
        Ok(actions)
    }

    /// What a restart of the agent or a wait can mend is tried again by the session; the rest ends it.
    fn on_refused(&self, refused: &v1::Refused) -> Result<(), RunError> {
        let assigned = !self.work_dir.identity().cluster.is_empty();
        let lasting = match refused.field.as_str() {
            "register.cluster" | "register.agent" => assigned,
            "register.protocol" | "register.boot" => true,
            _ => false,
        };
        if lasting {
            let (field, rule) = (refused.field.clone(), refused.rule.clone());
            return Err(RunError::Refused { field, rule });
        }
        tracing::warn!(
            field = refused.field,
            rule = refused.rule,
            "the master refused"
        );
        Ok(())
    }

    fn say(&mut self, message: v1::agent_message::Message) {
        let Some(sender) = &self.line.sender else {
            return;
        };
        let message = v1::AgentMessage {
            message: Some(message),
        };
        // One that is closed has ended, which is heard of in a moment.
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(message) {
            // The master does not read. Ending our half ends the session; all is said again in the next.
            tracing::warn!("the session does not take more messages; a new one is made");
            self.line.sender = None;
        }
    }

    // Workers.

    fn on_link(&mut self, key: &WorkerKey, event: LinkEvent, now: Now) -> Vec<Action> {
        match event {
            LinkEvent::Connected(link) => {
                self.workers.on_connected(key.clone(), link);
                Vec::new()
            }
            LinkEvent::Message(message) => match message.message {
                Some(message) => self.on_worker(key, message, now),
                None => Vec::new(),
            },
            LinkEvent::Broken => {
                if self.workers.on_broken(key) {
                    self.metrics.workers_lost.one();
                }
                self.core.on_worker_down(key, now)
            }
        }
    }

    fn on_worker(&mut self, key: &WorkerKey, message: FromWorker, now: Now) -> Vec<Action> {
        match message {
            FromWorker::InstanceReady(_) | FromWorker::InstanceFailed(_) | FromWorker::Turn(_)
                if !Workers::is_heard(key) =>
            {
                Vec::new()
            }
            FromWorker::Hello(hello) => self.on_hello(key, hello, now),
            FromWorker::InstanceReady(ready) => self.core.on_instance_ready(ready, now),
            FromWorker::InstanceFailed(failed) => {
                let whose = if failed.guest { &self.metrics.failures_of_guests } else { &self.metrics.failures_of_others };
                whose.one();
                self.core.on_instance_failed(failed, now)
            }
            FromWorker::ExecutorReady(ready) => self.core.on_executor_ready(key, ready, now),
            FromWorker::ExecutorTurn(turn) => self.core.on_executor_turn(key, turn, now),
            FromWorker::ExecutorFailure(failed) => self.core.on_executor_failed(key, failed, now),
            FromWorker::Turn(turn) => {
                self.metrics.turns.one();
                if let Some(cost) = &turn.cost {
                    self.metrics.turn_seconds.took(Duration::from_micros(cost.wall_us));
                }
                if let Some(tracer) = &mut self.tracer {
                    tracer.on_turn(&turn);
                }
                self.core.on_turn(turn, now)
            }
            FromWorker::TaskState(state) => self.on_wasm(key, state, now),
            FromWorker::Log(log) => {
                self.workers.log(log);
                Vec::new()
            }
        }
    }

    fn on_hello(&mut self, key: &WorkerKey, hello: v1::Hello, now: Now) -> Vec<Action> {
        let Some(process) = self.workers.on_greeting(key) else {
            return Vec::new();
        };
        let known = &self.description.engine;
        if key.old.is_none() && !known.is_empty() && hello.engine != *known {
            // The program was replaced under this agent, whose images are for the one before.
            self.workers.end_foreign(key, &hello.engine);
            return Vec::new();
        }
        let ended: Vec<v1::WasmTaskState> = hello
            .tasks
            .iter()
            .filter(|state| TaskState::try_from(state.state()).is_ok_and(TaskState::is_terminal))
            .cloned()
            .collect();
        let hello = WorkerHello {
            process,
            engine: hello.engine,
            instances: hello.instances,
            tasks: hello.tasks,
            executors: hello.executors,
        };
        let mut actions = self.core.on_worker_up(key, hello, now);
        for state in ended {
            actions.extend(self.on_wasm(key, state, now));
        }
        actions
    }

    /// The result file of a task that ended is read before the core hears of the end.
    fn on_wasm(&mut self, worker: &WorkerKey, state: v1::WasmTaskState, now: Now) -> Vec<Action> {
        let ended = TaskState::try_from(state.state()).is_ok_and(TaskState::is_terminal);
        if ended && let Ok(key) = TaskKey::parse(FrameworkId(state.framework), &state.task) {
            if let Some(path) = self.core.result_file(&key) {
                let path = path.to_owned();
                self.supply
                    .read_wasm_result(worker.clone(), state, &key, path);
                return Vec::new();
            }
        }
        self.core.on_wasm(worker, state, Ok(Vec::new()), now)
    }

    // Steps that the loop began.

    fn on_input(&mut self, input: Input, now: Now) -> Vec<Action> {
        match input {
            Input::Native { key, attempt, seen } => self.core.on_native(&key, attempt, seen, now),
            Input::Component(digest, result) => self.core.on_component(digest, result, now),
            Input::Image(digest, engine, result) => {
                let mut actions = self.count_compilations(now);
                actions.extend(self.core.on_image(digest, engine, result, now));
                actions
            }
            Input::CompiledAhead(digest, result) => {
                let mut actions = self.count_compilations(now);
                actions.extend(self.core.on_compiled_ahead(digest, result, now));
                actions
            }
            Input::NoWorker(key) => self.core.on_worker_down(&key, now),
            Input::GreetingDue(key, process) => {
                self.workers.end_if_silent(&key, &process);
                Vec::new()
            }
            Input::EndDue(key, process) => {
                self.workers.end_if_lingering(&key, &process);
                Vec::new()
            }
            Input::RoomDue(key) => {
                self.workers.give_back(&key);
                Vec::new()
            }
            Input::Children(framework, asker) => {
                // Who asked may have gone away.
                let _ = asker.send(self.core.children_of(framework));
                Vec::new()
            }
            Input::Look(asker) => {
                // Who asked may have gone away.
                let _ = asker.send(self.look());
                Vec::new()
            }
            Input::CachesDue => {
                self.collect_caches();
                Vec::new()
            }
            Input::ComponentsInUse(asker) => {
                // Who asked may have gone away.
                let _ = asker.send(self.core.components_in_use());
                Vec::new()
            }
            Input::StateFailed(key) => self.core.on_state_failed(key, now),
            Input::Prepared {
                key,
                attempt,
                result,
            } => self.core.on_prepared(&key, attempt, result, now),
            Input::ExecutorNotStarted(key, message) => {
                self.core.on_executor_not_started(&key, &message, now)
            }
            Input::WasmPrepared(worker, order) => {
                self.workers
                    .send(&worker, v1::to_worker::Message::StartTask(*order));
                Vec::new()
            }
            Input::WasmRefused {
                key,
                attempt,
                message,
            } => self.core.on_wasm_refused(&key, attempt, message, now),
            Input::WasmEnded(worker, state, data) => self.core.on_wasm(&worker, *state, data, now),
        }
    }

    /// Numbers of what is here.
    fn look(&self) -> Look {
        let mut tasks = BTreeMap::new();
        for (_, _, state) in self.core.tasks() {
            *tasks.entry(state).or_default() += 1;
        }
        Look {
            agent: self.work_dir.identity().agent,
            hostname: self.description.hostname.clone(),
            connected: self.line.session.is_some(),
            tasks,
            executors: self.core.executors().count() as u64,
            total: self.total,
            checkpoint: self.checkpoint.as_ref().map_or(0, Checkpoint::bytes),
            schedulers: self.core.hosted().len() as u64,
            workers: self.workers.groups().collect(),
        }
    }

    fn count_compilations(&mut self, now: Now) -> Vec<Action> {
        self.core.on_compilations(self.supply.images.compilations(), now)
    }

    // Actions.

    async fn perform(&mut self, action: Action) {
        match action {
            // Those of a round are done together.
            Action::Checkpoint { .. } | Action::StartWasm { .. } => {}
            Action::Send(message) => self.say(message),
            Action::Prepare {
                key,
                attempt,
                spec,
                worker,
            } => {
                let attempt = Attempt { key, attempt, spec };
                match worker {
                    Some(worker) => self.supply.prepare_sandbox(attempt, worker),
                    None => self.native.prepare(attempt),
                }
            }
            Action::StartNative {
                key,
                attempt,
                spec,
                launch,
            } => {
                self.native.start(Attempt { key, attempt, spec }, launch);
            }
            Action::InspectNative { key, attempt, spec } => {
                self.native.inspect(Attempt { key, attempt, spec });
            }
            Action::CancelNative { key, attempt, spec } => {
                self.native.cancel(Attempt { key, attempt, spec });
            }
            Action::SignalNative {
                key,
                attempt,
                force,
            } => self.native.signal(key, attempt, force),
            Action::Forgotten { key } => self.collector.on_forgotten(key),
            Action::EnsureComponent { digest } => {
                self.supply
                    .ensure_component(digest, self.line.session.clone());
            }
            Action::EnsureImage { digest, engine, tenant, anew } => {
                self.supply.ensure_image(digest, engine, tenant, anew);
            }
            Action::CompileAhead { digest } => {
                self.supply.compile_ahead(digest, self.line.session.clone());
            }
            Action::EnsureWorker { worker } => self.workers.ensure(worker),
            Action::SizeWorker { worker, load } => self.workers.size(&worker, load),
            Action::StopWorker { worker } => self.workers.stop(&worker),
            Action::StartInstance {
                worker,
                instance,
                engine: _,
            } => {
                self.start_instance(&worker, instance).await;
            }
            Action::UpdateInstance { worker, instance } => self.update_instance(&worker, instance),
            Action::LimitExecutor {
                executor,
                life,
                total,
            } => self.native.limit_executor(&executor, life, total),
            Action::ExecutorEnded { executor, life } => {
                self.native.end_executor(&executor, life);
            }
            Action::StartExecutor {
                worker,
                start,
                state,
                component,
                engine: _,
            } => self.start_executor(&worker, *start, state, component).await,
            Action::ToWorker { worker, message } => {
                if let v1::to_worker::Message::StopExecutor(stop) = &message {
                    self.end_executor_start(stop.key.as_ref()).await;
                }
                if let v1::to_worker::Message::StopInstance(stop) = &message {
                    self.end_fetch(stop.key.map(|key| key.framework)).await;
                    self.collect_recordings();
                }
                self.workers.send(&worker, message);
            }
            Action::Warn(text) => tracing::warn!(text, "something was left out"),
        }
    }

    /// Have room for an image before its worker hears of it; where it is, or will be.
    fn expect_image(&mut self, worker: &WorkerKey, component: &Digest) -> Option<PathBuf> {
        let image = self.supply.images.path(component);
        self.workers.expect_image(worker, image.clone());
        image
    }

    /// A scheduler has left, and its recordings stay; others may have to go for it.
    fn collect_recordings(&self) {
        let (recordings, hosted) = (self.files.recordings.clone(), self.core.hosted());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = recordings.collect(&hosted) {
                tracing::warn!(%error, "recordings could not be looked through");
            }
        });
    }

    /// Remove bytes and images that nothing has used for long, or that are too many.
    fn collect_caches(&mut self) {
        let Some(in_use) = self.core.components_in_use() else { return };
        let excess = match self.files.caches.excess(&in_use, SystemTime::now()) {
            Ok(excess) => excess,
            Err(error) => {
                tracing::warn!(%error, "components and images could not be looked through");
                return;
            }
        };
        let mut gone = Vec::new();
        for (digest, files) in excess {
            tracing::info!(%digest, "a component that nothing uses here is removed");
            self.core.on_component_removed(&digest);
            gone.extend(caches::unname(files));
        }
        if !gone.is_empty() {
            tokio::task::spawn_blocking(move || caches::remove(gone));
        }
    }

    async fn start_instance(&mut self, worker: &WorkerKey, instance: v1::DesiredInstance) {
        let framework = instance.framework;
        self.end_fetch(Some(framework)).await;
        if let Ok(component) = Digest::from_slice(&instance.component) {
            self.expect_image(worker, &component);
        }
        // Without a link the core hears that the worker is gone, and starts the instance again.
        let Some(link) = self
            .workers
            .link(worker)
            .map(crate::worker_link::Link::sender)
        else {
            return;
        };
        self.fetches.retain(|_, fetch| !fetch.is_finished());
        self.fetches.insert(
            framework,
            self.supply
                .start_instance(instance, self.line.session.clone(), link),
        );
    }

    /// Tell an instance its new limits: a repeated start changes nothing else.
    fn update_instance(&mut self, worker: &WorkerKey, instance: v1::DesiredInstance) {
        let start = v1::StartInstance {
            instance: Some(instance),
            ..v1::StartInstance::default()
        };
        let message = v1::to_worker::Message::StartInstance(start);
        self.workers.send(worker, message);
    }

    async fn start_executor(
        &mut self,
        worker: &WorkerKey,
        start: v1::StartExecutor,
        state: Vec<v1::KeyWrite>,
        component: Digest,
    ) {
        self.end_executor_start(start.key.as_ref()).await;
        self.expect_image(worker, &component);
        // Without a link the core hears that the worker is gone, and starts the executor again.
        let (Some(link), Some(key)) = (
            self.workers
                .link(worker)
                .map(crate::worker_link::Link::sender),
            start.key.clone(),
        ) else {
            return;
        };
        self.executor_starts.retain(|_, start| !start.is_finished());
        let started = self.supply.start_executor(start, state, component, link);
        self.executor_starts
            .insert((key.framework, key.executor), started);
    }

    /// End an order to start, so that no part of it comes after what is sent next.
    async fn end_executor_start(&mut self, key: Option<&v1::ExecutorKey>) {
        let key = key.map(|key| (key.framework, key.executor.clone()));
        if let Some(start) = key.and_then(|key| self.executor_starts.remove(&key)) {
            start.abort();
            // Cancelled or finished: either way nothing comes any more.
            let _ = start.await;
        }
    }

    /// End a fetch of state, so that no part of it comes after what is sent next.
    async fn end_fetch(&mut self, framework: Option<u64>) {
        if let Some(fetch) = framework.and_then(|framework| self.fetches.remove(&framework)) {
            fetch.abort();
            // Cancelled or finished: either way nothing comes any more.
            let _ = fetch.await;
        }
    }
}

/// The next thing but time.
async fn hear(ears: &mut Ears) -> Option<Heard> {
    tokio::select! {
        event = ears.session.recv() => event.map(Heard::Session),
        event = ears.links.recv() => event.map(|(key, event)| Heard::Link(key, event)),
        input = ears.inputs.recv() => input.map(Heard::Input),
    }
}

/// What else waits now.
fn more(ears: &mut Ears) -> Option<Heard> {
    if let Ok(input) = ears.inputs.try_recv() {
        return Some(Heard::Input(input));
    }
    if let Ok((key, event)) = ears.links.try_recv() {
        return Some(Heard::Link(key, event));
    }
    ears.session.try_recv().ok().map(Heard::Session)
}
