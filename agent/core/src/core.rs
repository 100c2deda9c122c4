//! The core itself: its inputs, and how the output of one input is put together.
//!
//! Invariants: all records of one input precede all its other actions; a status leaves at once after a
//! pause and else at most every [`FLUSH_MS`]; a task is started only after it was recorded. This file
//! must never hold rules of one kind of thing: those stand in the files beside it.

use crate::action::{Action, Now, TaskKey, WorkerKey, WorkerKind};
use crate::instances::Instances;
use crate::outbox::STARTING_HOLD_MS;
use crate::records::{compacted, record};
use crate::supplies::Supplies;
use crate::task::{Ending, Phase, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{
    AgentId, Digest, FrameworkId, Launch, Quantities, Reason, RoleName, TaskSpec, TaskState,
    TaskStatus, limits, validate_launch, validate_spec,
};
use tessera_wire::v1;
use v1::agent_message::Message;
use v1::checkpoint_record::Record;

/// Shortest time between two messages of statuses.
const FLUSH_MS: u64 = 20;
/// Updates of one message.
const FLUSH_UPDATES_MAX: usize = 256;
/// Bytes of result data of one message, far below what a peer takes.
const FLUSH_BYTES_MAX: usize = 1 << 20;

/// What the core has to know of its agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreConfig {
    /// What tasks may take together.
    pub total: Quantities,
}

/// The agent's state machine.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) agent: AgentId,
    pub(crate) generation: u64,
    pub(crate) tasks: BTreeMap<TaskKey, Task>,
    /// Tasks with statuses that are not committed.
    pub(crate) unacked: BTreeSet<TaskKey>,
    pub(crate) supplies: Supplies,
    pub(crate) instances: Instances,
    pub(crate) session: bool,
    last_flush_ms: Option<u64>,
    records: Vec<v1::CheckpointRecord>,
    sync: bool,
    pub(crate) actions: Vec<Action>,
}

impl Core {
    /// An agent without tasks.
    #[must_use]
    pub fn new(config: CoreConfig, agent: AgentId) -> Self {
        Self {
            config,
            agent,
            generation: 0,
            tasks: BTreeMap::new(),
            unacked: BTreeSet::new(),
            supplies: Supplies::default(),
            instances: Instances::default(),
            session: false,
            last_flush_ms: None,
            records: Vec::new(),
            sync: false,
            actions: Vec::new(),
        }
    }

    // Output.

    /// Add a record on which the actions of this input rely.
    pub(crate) fn keep(&mut self, kept: Record) {
        self.records.push(record(kept));
        self.sync = true;
    }

    /// Add a record that may be lost: losing it only repeats something harmless.
    pub(crate) fn note(&mut self, noted: Record) {
        self.records.push(record(noted));
    }

    pub(crate) fn send(&mut self, message: Message) {
        if self.session {
            self.actions.push(Action::Send(message));
        }
    }

    /// Go on with whatever can go on, and hand the output over.
    pub(crate) fn finish(&mut self, now: Now) -> Vec<Action> {
        self.drive_tasks(now);
        self.drive_instances(now);
        self.end_idle_workers(now);
        self.flush(now);
        let mut output = Vec::with_capacity(self.actions.len() + 1);
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            output.push(Action::Checkpoint {
                records,
                sync: std::mem::take(&mut self.sync),
            });
        }
        output.append(&mut self.actions);
        output
    }

    fn end_idle_workers(&mut self, now: Now) {
        let mut needed = BTreeSet::new();
        needed.extend(self.instances.workers());
        for task in self
            .tasks
            .values()
            .filter(|t| t.ended().is_none() && t.component().is_some())
        {
            needed.insert(worker_of(&task.role, WorkerKind::Tasks));
        }
        self.supplies
            .end_idle(|key| needed.contains(key), now, &mut self.actions);
    }

    // Time.

    /// The time has come that [`Core::wake_ms`] named, or later.
    pub fn on_tick(&mut self, now: Now) -> Vec<Action> {
        self.drive_kills(now);
        self.finish(now)
    }

    /// When [`Core::on_tick`] has something to do, on the clock of `mono_ms`.
    #[must_use]
    pub fn wake_ms(&self) -> Option<u64> {
        let tasks = self.tasks.values().filter_map(|task| match &task.phase {
            Phase::Waiting { until_ms } => Some(*until_ms),
            Phase::Running | Phase::Starting => task.killing.as_ref().and_then(|k| k.force_at_ms),
            Phase::Recovering | Phase::Preparing | Phase::Cancelling | Phase::Ended(_) => None,
        });
        let sends = self
            .unacked
            .iter()
            .filter_map(|key| self.tasks.get(key)?.outbox.due_ms())
            .min();
        let earliest = self.last_flush_ms.map_or(0, |last| last + FLUSH_MS);
        let flush = sends.filter(|_| self.session).map(|due| due.max(earliest));
        tasks
            .chain(flush)
            .chain(self.supplies.wake_ms())
            .chain(self.instances.wake_ms(self.session))
            .min()
    }

    // Session.

    /// Hash of the set of tasks, for registering.
    #[must_use]
    pub fn tasks_hash(&self) -> [u8; 32] {
        tessera_wire::tasks_hash(
            self.reported()
                .map(|(key, task)| (key.framework, &key.task, task.attempt, task.newest_state())),
        )
    }

    /// Tasks that the masters are to know of.
    fn reported(&self) -> impl Iterator<Item = (&TaskKey, &Task)> {
        self.tasks.iter().filter(|(_, task)| !task.abandoned)
    }

    /// A master took the registration.
    pub fn on_registered(&mut self, agent: AgentId, tasks_equal: bool, now: Now) -> Vec<Action> {
        self.agent = agent;
        self.session = true;
        if !tasks_equal {
            let entry = |(key, task): (&TaskKey, &Task)| v1::TaskEntry {
                framework: key.framework.0,
                task: key.task.to_string(),
                attempt: task.attempt,
                state: v1::TaskState::from(task.newest_state()).into(),
            };
            let tasks = self.reported().map(entry).collect();
            self.send(Message::TaskSet(v1::TaskSet { tasks }));
        }
        for key in &self.unacked {
            if let Some(task) = self.tasks.get_mut(key) {
                task.outbox.on_session(now);
            }
        }
        self.last_flush_ms = None;
        self.announce_instances();
        self.finish(now)
    }

    /// The session is gone. Everything goes on.
    pub fn on_session_down(&mut self, now: Now) -> Vec<Action> {
        self.session = false;
        self.finish(now)
    }

    /// Statuses are committed.
    pub fn on_status_acks(&mut self, acks: Vec<v1::StatusAck>, now: Now) -> Vec<Action> {
        for ack in acks {
            let Ok(task) = ack.task.parse() else { continue };
            let key = TaskKey {
                framework: FrameworkId(ack.framework),
                task,
            };
            let Some(task) = self.tasks.get_mut(&key) else {
                continue;
            };
            if task.outbox.on_ack(ack.sequence) {
                task.acked = true;
                self.note(Record::Acked(v1::TaskAcked {
                    key: Some((&key).into()),
                }));
            }
            if self
                .tasks
                .get(&key)
                .is_some_and(|task| task.outbox.is_empty())
            {
                self.unacked.remove(&key);
            }
        }
        self.finish(now)
    }

    fn flush(&mut self, now: Now) {
        if !self.session
            || self
                .last_flush_ms
                .is_some_and(|last| now.mono_ms < last + FLUSH_MS)
        {
            return;
        }
        let mut updates = Vec::new();
        let mut bytes = 0;
        for key in &self.unacked {
            if updates.len() >= FLUSH_UPDATES_MAX || bytes >= FLUSH_BYTES_MAX {
                break;
            }
            let Some(task) = self.tasks.get_mut(key) else {
                continue;
            };
            for update in task.outbox.take_due(now) {
                bytes += update.status.data.len() + update.status.message.len();
                let mut status = v1::TaskStatus::from(&update.status);
                status.agent = self.agent.0;
                updates.push(v1::StatusUpdate {
                    framework: key.framework.0,
                    sequence: update.sequence,
                    status: Some(status),
                });
            }
        }
        if !updates.is_empty() {
            self.last_flush_ms = Some(now.mono_ms);
            self.send(Message::Statuses(v1::StatusUpdates { updates }));
        }
    }

    // Desired state.

    /// What the agent is to run.
    pub fn on_desired(&mut self, desired: v1::Desired, now: Now) -> Vec<Action> {
        if !desired.full && desired.generation <= self.generation {
            self.send(Message::DesiredAck(v1::DesiredAck {
                generation: self.generation,
            }));
            return self.finish(now);
        }
        let mut named = BTreeSet::new();
        for task in desired.tasks {
            if let Some(key) = self.desire_task(task, now) {
                named.insert(key);
            }
        }
        for removed in desired.removed {
            if let Ok(task) = removed.task.parse() {
                self.abandon(
                    &TaskKey {
                        framework: FrameworkId(removed.framework),
                        task,
                    },
                    now,
                );
            }
        }
        if desired.full {
            let strangers: Vec<_> = self
                .tasks
                .keys()
                .filter(|key| !named.contains(*key))
                .cloned()
                .collect();
            for key in strangers {
                self.abandon(&key, now);
            }
        }
        self.generation = desired.generation;
        self.keep(Record::Generation(v1::GenerationKept {
            generation: desired.generation,
        }));
        self.send(Message::DesiredAck(v1::DesiredAck {
            generation: desired.generation,
        }));
        self.desire_instances(desired.instances, now);
        self.finish(now)
    }

    /// Take one task up, or change what is wanted of it.
    fn desire_task(&mut self, desired: v1::DesiredTask, now: Now) -> Option<TaskKey> {
        let framework = FrameworkId(desired.framework);
        let launch = match desired.launch.map(Launch::try_from) {
            Some(Ok(launch)) => launch,
            Some(Err(error)) => {
                self.actions.push(Action::Warn(format!(
                    "a task of {framework} is not readable: {error}"
                )));
                return None;
            }
            None => return None,
        };
        let key = TaskKey {
            framework,
            task: launch.task.clone(),
        };
        if !self.tasks.contains_key(&key) {
            self.accept(&key, &desired.role, launch, &desired.spec, now);
        }
        if let Some(grace_ms) = desired.kill_grace_ms {
            self.kill(&key, grace_ms.min(limits::GRACE_MAX_MS), false, now);
        }
        Some(key)
    }

    fn accept(&mut self, key: &TaskKey, role: &str, launch: Launch, encoded: &[u8], now: Now) {
        let (role, spec) = match readable(role, &launch, encoded) {
            Ok(parts) => parts,
            Err(rule) => {
                // Without a role and a spec there is no record; asked again, it is refused again.
                self.refuse_unreadable(key, &launch, &rule, now);
                return;
            }
        };
        let refused = validate_spec(&spec)
            .and_then(|()| validate_launch(&launch, &spec))
            .map_err(|error| (TaskState::Error, Reason::InvalidSpec, error.to_string()))
            .and_then(|()| self.check_room(&spec));
        if self
            .tasks
            .values()
            .all(|task| task.launch.spec != launch.spec)
        {
            self.keep(Record::Spec(v1::SpecKept {
                encoded: encoded.to_vec(),
            }));
        }
        self.keep(Record::Accepted(v1::TaskAccepted {
            framework: key.framework.0,
            role: role.to_string(),
            launch: Some((&launch).into()),
        }));
        self.tasks
            .insert(key.clone(), Task::new(role, launch, Arc::new(spec)));
        if let Err((state, reason, message)) = refused {
            self.end(key, Ending::new(state, reason, message, now.wall_ms), now);
        }
    }

    fn refuse_unreadable(&mut self, key: &TaskKey, launch: &Launch, rule: &str, now: Now) {
        let status = TaskStatus::new(
            launch.task.clone(),
            self.agent,
            TaskState::Error,
            now.wall_ms,
        )
        .because(Reason::InvalidSpec, rule);
        self.send(Message::Statuses(v1::StatusUpdates {
            updates: vec![v1::StatusUpdate {
                framework: key.framework.0,
                sequence: crate::outbox::sequence(1, TaskState::Error),
                status: Some((&status).into()),
            }],
        }));
    }

    /// The ledger: what is charged now, and whether more fits. The masters checked it already; an agent
    /// that came back smaller must still not overcommit.
    fn check_room(&self, spec: &TaskSpec) -> Result<(), (TaskState, Reason, String)> {
        let free = self.config.total.minus(self.used());
        if free.contains(spec.resources) {
            return Ok(());
        }
        let message = format!("needs {}, the agent has {free} left", spec.resources);
        Err((TaskState::Dropped, Reason::NotEnough, message))
    }

    /// What tasks take together now.
    #[must_use]
    pub fn used(&self) -> Quantities {
        self.tasks
            .values()
            .fold(Quantities::ZERO, |sum, task| sum.plus(task.charge()))
    }

    // Phases.

    /// Report a state that is not the last one.
    pub(crate) fn report(&mut self, key: &TaskKey, state: TaskState, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.state = state;
        if task.abandoned {
            return;
        }
        let mut status = TaskStatus::new(key.task.clone(), self.agent, state, now.wall_ms);
        status.attempt = task.attempt;
        task.outbox.put(status, now);
        self.unacked.insert(key.clone());
    }

    /// An attempt is over: start another, or end the task.
    pub(crate) fn end(&mut self, key: &TaskKey, ending: Ending, now: Now) {
        let agent = self.agent;
        let Some(task) = self
            .tasks
            .get_mut(key)
            .filter(|task| task.ended().is_none())
        else {
            return;
        };
        if task.restarts_after(&ending) {
            task.attempt += 1;
            task.wasm_sent = None;
            task.phase = Phase::Waiting {
                until_ms: now.mono_ms + task.restart_pause_ms(),
            };
            let attempt = task.attempt;
            self.keep(Record::Attempt(v1::TaskAttempt {
                key: Some(key.into()),
                attempt,
            }));
            self.report(key, TaskState::Starting, now);
            return;
        }
        let mut ending = ending;
        let asked = task.killing.is_some();
        let by_itself = matches!(ending.state, TaskState::Finished | TaskState::Failed);
        if asked && by_itself {
            ending.state = TaskState::Killed;
            ending.reason = Reason::SchedulerKill;
        }
        let status = ending.status(key.task.clone(), agent, task.attempt);
        task.phase = Phase::Ended(Box::new(status.clone()));
        if task.abandoned {
            self.forget(key);
            return;
        }
        task.outbox.put(status.clone(), now);
        self.unacked.insert(key.clone());
        self.keep(Record::Ended(v1::TaskEnded {
            key: Some(key.into()),
            status: Some((&status).into()),
        }));
    }

    pub(crate) fn forget(&mut self, key: &TaskKey) {
        self.tasks.remove(key);
        self.unacked.remove(key);
        self.note(Record::Forgotten(v1::TaskForgotten {
            key: Some(key.into()),
        }));
        self.actions.push(Action::Forgotten { key: key.clone() });
    }

    /// Start what waits for nothing but its turn.
    fn drive_tasks(&mut self, now: Now) {
        let ready: Vec<TaskKey> = self
            .tasks
            .iter()
            .filter(|(_, task)| match task.phase {
                Phase::Waiting { until_ms } => until_ms <= now.mono_ms,
                Phase::Preparing => true,
                _ => false,
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in ready {
            match self.tasks.get(&key).and_then(Task::component) {
                Some(digest) => self.drive_wasm(&key, digest, now),
                None => self.start_native(&key, now),
            }
        }
    }

    fn start_native(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.phase = Phase::Starting;
        let action = Action::StartNative {
            key: key.clone(),
            attempt: task.attempt,
            spec: Arc::clone(&task.spec),
            launch: task.launch.clone(),
        };
        self.actions.push(action);
        self.report(key, TaskState::Starting, now);
    }

    // Checkpoint.

    /// Records that give exactly the present state, for a compacted checkpoint.
    #[must_use]
    pub fn compacted(&self) -> Vec<v1::CheckpointRecord> {
        compacted(
            self.generation,
            self.tasks.iter().map(|(key, task)| (key, task.kept())),
        )
    }

    /// Tasks and the states that the agent knows, for people and tests.
    pub fn tasks(&self) -> impl Iterator<Item = (&TaskKey, u32, TaskState)> {
        self.tasks
            .iter()
            .map(|(key, task)| (key, task.attempt, task.newest_state()))
    }
}

/// The worker that a role's work goes to.
pub(crate) fn worker_of(role: &RoleName, kind: WorkerKind) -> WorkerKey {
    WorkerKey {
        tenant: role.tenant().to_owned(),
        kind,
    }
}

fn readable(role: &str, launch: &Launch, encoded: &[u8]) -> Result<(RoleName, TaskSpec), String> {
    if Digest::of(encoded) != launch.spec {
        return Err("the spec does not have the digest that the launch names".into());
    }
    let role = role
        .parse()
        .map_err(|error: tessera_types::NameError| error.to_string())?;
    let spec = tessera_wire::decode_spec(encoded).map_err(|error| error.to_string())?;
    Ok((role, spec))
}

const _: () = assert!(STARTING_HOLD_MS > FLUSH_MS);
