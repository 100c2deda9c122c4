//! The agents: each with the real core of an agent, and a model of the machine around it.
//!
//! Invariants: actions are performed in order, and a checkpoint is on stable storage at once; a lost agent
//! hears nothing and is not heard; one whose machine crashed has forgotten everything but its checkpoint.
//! Must never decide what to do: the core does.

use crate::master;
use crate::queue::{Event, Later};
use crate::trace::{Lost, Which};
use crate::world::{COMPILE_US, FETCH_US, NET_US, PREPARE_US, World, WORKER_US};
use std::collections::{BTreeMap, VecDeque};
use tessera_agent_core::{Action, Core, CoreConfig, Now, TaskKey, WorkerHello, WorkerKey};
use tessera_types::{AgentId, Quantities};
use tessera_wire::v1::{
    self, agent_message::Message as AgentSays, master_message::Message as MasterSays,
    to_worker::Message as ToWorker,
};

/// Agents join within so long.
const JOIN_US: u64 = 2_000_000;
/// Pause before an agent whose session was ended connects again.
const RECONNECT_US: u64 = 500_000;
/// What an agent keeps for schedulers beside what it offers, as a real one does.
const RESERVED: Quantities = Quantities { cpus_milli: 100, mem_mib: 256, disk_mib: 0 };
/// Key of compiled images.
const ENGINE: &str = "simulated";
/// How long a lost agent of `--faults` is away.
const FAULT_AWAY_US: (u64, u64) = (120_000_000, 600_000_000);

/// One attempt of a native task.
#[derive(Clone, Debug)]
pub(crate) enum Native {
    Cancelled,
    Running(u64),
    Exited(tessera_agent_core::NativeExit),
    /// It ran when the machine went down.
    Rebooted,
}

/// An agent and its machine.
pub(crate) struct Agent {
    pub(crate) core: Option<Core>,
    pub(crate) life: u32,
    boot: u32,
    number: AgentId,
    pub(crate) session: Option<u64>,
    /// It can neither hear nor be heard.
    pub(crate) dark: bool,
    wake_us: Option<u64>,
    actions: VecDeque<Action>,
    pub(crate) natives: BTreeMap<(TaskKey, u32), Native>,
    pub(crate) wasm: BTreeMap<(u64, String, u32), u64>,
    pub(crate) workers: BTreeMap<WorkerKey, u64>,
    /// The checkpoint, while there is no core.
    checkpoint: Vec<v1::CheckpointRecord>,
}

impl Agent {
    pub(crate) fn new(total: Quantities) -> Self {
        Self {
            core: Some(Core::new(CoreConfig::new(total.into()), AgentId(0))),
            life: 1,
            boot: 1,
            number: AgentId(0),
            session: None,
            dark: false,
            wake_us: None,
            actions: VecDeque::new(),
            natives: BTreeMap::new(),
            wasm: BTreeMap::new(),
            workers: BTreeMap::new(),
            checkpoint: Vec::new(),
        }
    }

    pub(crate) const fn number(&self) -> AgentId {
        self.number
    }
}

pub(crate) const fn agent_now(now_us: u64) -> Now {
    let now = master::now(now_us);
    Now { mono_ms: now.mono_ms, wall_ms: now.wall_ms }
}

impl World<'_> {
    /// All agents join.
    pub(crate) fn agents_join(&mut self) {
        for agent in 0..self.agents.len() {
            let at_us = self.random.below(JOIN_US);
            self.queue.at(at_us, Event::Connect { agent, life: 1 });
        }
        if self.plan.faults_per_hour > 0 {
            self.next_fault();
        }
    }

    pub(crate) fn agent_connects(&mut self, index: usize, life: u32) {
        let total = Quantities::from(self.plan.agent_size);
        let cluster = format!("sim-{}", self.plan.seed);
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.life == life) else { return };
        let Some(core) = agent.core.as_mut().filter(|_| !agent.dark && agent.session.is_none()) else { return };
        let hostname = format!("sim{index:05}");
        core.set_hostname(hostname.clone());
        let description = v1::AgentDescription {
            hostname,
            total: Some((&total).into()),
            reserved: Some((&RESERVED).into()),
            version: "simulated".to_owned(),
            ..v1::AgentDescription::default()
        };
        let register = v1::Register {
            cluster: if agent.number.0 == 0 { String::new() } else { cluster },
            agent: agent.number.0,
            agent_key: format!("key-{index}"),
            boot: format!("boot-{index}-{}", agent.boot),
            description: Some(description),
            tasks_hash: core.tasks_hash().to_vec(),
            protocol: tessera_wire::SESSION_PROTOCOL,
        };
        let register = Box::new(register);
        self.queue.at(self.now_us + NET_US, Event::Register { agent: index, life, register });
    }

    pub(crate) fn agent_registers(&mut self, index: usize, life: u32, register: v1::Register) {
        let there = self.agents.get(index).is_some_and(|agent| agent.life == life && !agent.dark);
        if there {
            self.master_registers(index, register);
        }
    }

    /// Give the core an input, perform what it asks for, and see when it wants to look at the time.
    pub(crate) fn agent_input(&mut self, index: usize, input: impl FnOnce(&mut Core, Now) -> Vec<Action>) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(core) = &mut agent.core else { return };
        let actions = input(core, agent_now(now_us));
        agent.actions.extend(actions);
        while let Some(action) = self.agents.get_mut(index).and_then(|agent| agent.actions.pop_front()) {
            self.agent_acts(index, action);
        }
        let Some(agent) = self.agents.get_mut(index) else { return };
        let wake_ms = agent.core.as_ref().and_then(Core::wake_ms);
        let Some(wake_us) = wake_ms.map(|ms| (ms * 1_000).max(now_us + 1_000)) else { return };
        if agent.wake_us.is_none_or(|set_us| wake_us < set_us || set_us <= now_us) {
            agent.wake_us = Some(wake_us);
            self.queue.at(wake_us, Event::Wake { agent: index });
        }
    }

    pub(crate) fn agent_wakes(&mut self, index: usize) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        if agent.wake_us == Some(now_us) {
            agent.wake_us = None;
            self.agent_input(index, Core::on_tick);
        }
    }

    pub(crate) fn later(&mut self, index: usize, after_us: u64, what: Later) {
        let Some(agent) = self.agents.get(index) else { return };
        self.queue.at(self.now_us + after_us, Event::Later { agent: index, life: agent.life, what });
    }

    fn agent_acts(&mut self, index: usize, action: Action) {
        match action {
            Action::Checkpoint { .. } | Action::SizeWorker { .. } | Action::LimitExecutor { .. } => {}
            Action::Send(message) => self.agent_says(index, message),
            Action::Prepare { key, attempt, .. } => self.later(index, PREPARE_US, Later::Prepared(key, attempt)),
            Action::StartNative { key, attempt, .. } => self.start_native(index, key, attempt),
            Action::InspectNative { key, attempt, .. } => self.observe(index, &key, attempt),
            Action::CancelNative { key, attempt, .. } => self.cancel_native(index, &key, attempt),
            Action::SignalNative { key, attempt, force } => self.signal_native(index, &key, attempt, force),
            Action::StartWasm { worker, key, attempt, .. } => self.start_wasm(index, worker, key, attempt),
            Action::Forgotten { key } => {
                if let Some(agent) = self.agents.get_mut(index) {
                    let of_key = (key.clone(), 0)..=(key, u32::MAX);
                    let gone: Vec<_> = agent.natives.range(of_key).map(|(native, _)| native.clone()).collect();
                    for native in gone {
                        agent.natives.remove(&native);
                    }
                }
            }
            Action::EnsureComponent { digest } => self.later(index, FETCH_US, Later::Component(digest)),
            Action::EnsureImage { digest, engine, .. } => {
                self.later(index, COMPILE_US, Later::Image(digest, engine));
            }
            Action::CompileAhead { digest } => self.later(index, COMPILE_US, Later::Ahead(digest)),
            Action::EnsureWorker { worker } => self.later(index, WORKER_US, Later::Worker(worker)),
            Action::StopWorker { worker } => self.later(index, WORKER_US, Later::WorkerEnded(worker)),
            Action::StartInstance { worker, instance, .. } => self.start_instance(index, &worker, instance),
            Action::UpdateInstance { instance, .. } => self.update_instance(index, instance),
            Action::StartExecutor { worker, start, .. } => self.start_executor(index, worker, &start),
            Action::ExecutorEnded { .. } => {}
            Action::ToWorker { worker, message } => self.tell_worker(index, &worker, message),
            Action::Warn(text) => self.measure.note(format!("{}: agent {index}: {text}", self.clock())),
        }
    }

    fn agent_says(&mut self, index: usize, message: AgentSays) {
        let Some(agent) = self.agents.get(index).filter(|agent| !agent.dark) else { return };
        let Some(session) = agent.session else { return };
        let message = v1::AgentMessage { message: Some(message) };
        self.queue.at(self.now_us + NET_US, Event::FromAgent { session, message });
    }

    /// A message of the master arrives.
    pub(crate) fn agent_hears(&mut self, index: usize, session: u64, message: v1::MasterMessage) {
        let current = self.agents.get_mut(index).filter(|agent| agent.session == Some(session) && !agent.dark);
        let (Some(agent), Some(message)) = (current, message.message) else { return };
        match message {
            MasterSays::Registered(registered) => {
                let number = AgentId(registered.agent);
                agent.number = number;
                self.agent_input(index, |core, now| core.on_registered(number, registered.tasks_equal, now));
            }
            MasterSays::Refused(refused) => {
                // For example a machine that is back before its old session is given up; it comes again.
                let text = format!("{}: agent {index} is refused: {}: {}", self.clock(), refused.field, refused.rule);
                self.measure.note(text);
                self.agent_is_closed(index, session);
            }
            MasterSays::Desired(desired) => self.agent_input(index, |core, now| core.on_desired(desired, now)),
            MasterSays::StatusAcks(acks) => {
                self.agent_input(index, |core, now| core.on_status_acks(acks.acks, now));
            }
            MasterSays::Batch(batch) => self.agent_input(index, |core, now| core.on_batch(batch, now)),
            MasterSays::TurnResult(result) => {
                self.agent_input(index, |core, now| core.on_turn_result(result, now));
            }
            // Where masters are is not simulated.
            MasterSays::Masters(_) => {}
            MasterSays::ToExecutor(message) => {
                self.agent_input(index, |core, now| core.on_to_executor(message, now));
            }
        }
    }

    /// The master ended a session.
    pub(crate) fn agent_is_closed(&mut self, index: usize, session: u64) {
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.session == Some(session)) else {
            return;
        };
        agent.session = None;
        let life = agent.life;
        self.agent_input(index, Core::on_session_down);
        self.queue.at(self.now_us + RECONNECT_US, Event::Connect { agent: index, life });
    }

    pub(crate) fn agent_later(&mut self, index: usize, life: u32, what: Later) {
        if self.agents.get(index).is_none_or(|agent| agent.life != life || agent.core.is_none()) {
            return;
        }
        match what {
            Later::Component(digest) => {
                self.agent_input(index, |core, now| core.on_component(digest, Ok(()), now));
            }
            Later::Image(digest, engine) => {
                self.agent_input(index, |core, now| core.on_image(digest, engine, Ok(()), now));
            }
            Later::Ahead(digest) => {
                self.agent_input(index, |core, now| core.on_compiled_ahead(digest, Ok(()), now));
            }
            Later::Prepared(key, attempt) => {
                self.agent_input(index, |core, now| core.on_prepared(&key, attempt, Ok(()), now));
            }
            Later::Worker(worker) => self.link_worker(index, worker),
            Later::WorkerEnded(worker) => {
                if let Some(agent) = self.agents.get_mut(index) {
                    agent.workers.remove(&worker);
                }
                self.agent_input(index, |core, now| core.on_worker_down(&worker, now));
            }
            Later::Spawn(process) => self.spawn(process),
            Later::Fetch(framework) => self.fetch_state(index, framework),
            Later::Executor(worker, message) => self.executor_says(index, &worker, message),
        }
    }

    fn link_worker(&mut self, index: usize, worker: WorkerKey) {
        let fresh = self.fresh();
        let Some(agent) = self.agents.get_mut(index) else { return };
        let process = *agent.workers.entry(worker.clone()).or_insert(fresh);
        let hello = WorkerHello {
            process: process.to_string(),
            engine: ENGINE.to_owned(),
            instances: Vec::new(),
            tasks: Vec::new(),
            executors: Vec::new(),
        };
        self.agent_input(index, |core, now| core.on_worker_up(&worker, hello, now));
    }

    fn tell_worker(&mut self, index: usize, worker: &WorkerKey, message: ToWorker) {
        match message {
            ToWorker::StopInstance(stop) => self.stop_instance(index, stop.key.unwrap_or_default()),
            ToWorker::Batch(batch) => self.on_batch(index, batch),
            ToWorker::TurnResult(result) => self.on_turn_result(index, &result),
            ToWorker::KillTask(kill) => self.kill_wasm(index, &kill),
            ToWorker::ExecutorBatch(batch) => self.executor_batch(index, worker, batch),
            // Nothing of these is kept here.
            ToWorker::StartInstance(_)
            | ToWorker::InstanceState(_)
            | ToWorker::StartTask(_)
            | ToWorker::TaskAck(_)
            | ToWorker::Shutdown(_)
            | ToWorker::StartExecutor(_)
            | ToWorker::StopExecutor(_)
            | ToWorker::ExecutorTurnKept(_)
            | ToWorker::ExecutorLimits(_) => {}
        }
    }

    // Losing agents.

    /// Lose agents, for a while or for good.
    pub(crate) fn lose(&mut self, which: Which, for_us: Option<u64>, how: Lost) {
        match which {
            Which::One(index) => self.lose_one(index, for_us, how),
            Which::Drawn(count) => {
                let mut there: Vec<usize> = (0..self.agents.len()).filter(|at| !self.agents[*at].dark).collect();
                for _ in 0..count.min(there.len()) {
                    let drawn = usize::try_from(self.random.below(there.len() as u64)).unwrap_or(0);
                    let index = there.swap_remove(drawn);
                    self.lose_one(index, for_us, how);
                }
            }
        }
    }

    fn lose_one(&mut self, index: usize, for_us: Option<u64>, how: Lost) {
        let Some(agent) = self.agents.get_mut(index).filter(|agent| !agent.dark) else { return };
        agent.dark = true;
        agent.session = None;
        self.measure.agents_lost += 1;
        if how == Lost::Crash {
            self.crash(index);
        } else {
            self.agent_input(index, Core::on_session_down);
        }
        if let (Some(for_us), Some(agent)) = (for_us, self.agents.get(index)) {
            let back = Event::Back { agent: index, life: agent.life, how };
            self.queue.at(self.now_us + for_us, back);
        }
    }

    fn crash(&mut self, index: usize) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        agent.life += 1;
        agent.boot += 1;
        agent.checkpoint = agent.core.take().map(|core| core.compacted()).unwrap_or_default();
        agent.actions.clear();
        agent.wake_us = None;
        agent.workers.clear();
        agent.wasm.clear();
        for native in agent.natives.values_mut() {
            if let Native::Running(_) = native {
                *native = Native::Rebooted;
            }
        }
        self.processes.retain(|_, process| process.agent != index);
        self.guests.forget_agent(index);
    }

    pub(crate) fn agent_is_back(&mut self, index: usize, life: u32, how: Lost) {
        let total = Quantities::from(self.plan.agent_size);
        let now = agent_now(self.now_us);
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.life == life && agent.dark) else {
            return;
        };
        agent.dark = false;
        self.measure.agents_back += 1;
        self.queue.at(self.now_us, Event::Connect { agent: index, life });
        if how == Lost::Partition {
            return;
        }
        let records = std::mem::take(&mut agent.checkpoint);
        match Core::recover(CoreConfig::new(total.into()), agent.number, records.into_iter(), now) {
            Ok((core, actions)) => {
                agent.core = Some(core);
                self.agent_input(index, |_, _| actions);
            }
            Err(error) => self.fail(format!("an agent refuses its own checkpoint: {error}")),
        }
    }

    /// One more agent is lost because of `--faults`; half of them crash.
    pub(crate) fn fault(&mut self) {
        let for_us = self.random.range(FAULT_AWAY_US.0, FAULT_AWAY_US.1);
        let how = if self.random.chance(50) { Lost::Crash } else { Lost::Partition };
        self.lose(Which::Drawn(1), Some(for_us), how);
        self.next_fault();
    }

    fn next_fault(&mut self) {
        let mean_us = 3_600_000_000 / self.plan.faults_per_hour.max(1);
        let after_us = self.random.exponential(mean_us).max(1_000);
        self.queue.at(self.now_us + after_us, Event::Fault);
    }
}
