//! The core itself: its inputs, and how the output of one input is put together.
//!
//! Invariants: all records of one input, or of the inputs of one round, precede all its other actions; a
//! status leaves at once after a pause and else at most every [`FLUSH_MS`]; a task is started only after it
//! was recorded. This file must never hold rules of one kind of thing: those stand in the files beside it.

use crate::action::{Action, ExecutorKey, Now, TaskKey, WorkerKey, WorkerKind};
use crate::ahead::Ahead;
use crate::executors::Executors;
use crate::groups::Groups;
use crate::instances::Instances;
use crate::outbox::STARTING_HOLD_MS;
use crate::records::{Whole, compacted, record};
use crate::supplies::Supplies;
use crate::task::{Phase, Task};
use crate::workers::Keeping;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, FrameworkId, Resources, RoleName, TaskState};
use tessera_wire::v1;
use v1::agent_message::Message;
use v1::checkpoint_record::Record;

/// Shortest time between two messages of statuses.
const FLUSH_MS: u64 = 20;
/// Updates of one message.
const FLUSH_UPDATES_MAX: usize = 256;
/// Bytes of result data of one message, far below what a peer takes.
const FLUSH_BYTES_MAX: usize = 1 << 20;

/// How long a worker is kept without anything to run, where nothing is said: starting one costs some ten
/// milliseconds.
pub const WORKER_IDLE_MS: u64 = 60_000;

/// What the core has to know of its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// What tasks may take together.
    pub total: Resources,
    /// How long a worker is kept without anything to run.
    pub worker_idle_ms: u64,
}

impl CoreConfig {
    /// For an agent of this size, with defaults for the rest.
    #[must_use]
    pub const fn new(total: Resources) -> Self {
        Self {
            total,
            worker_idle_ms: WORKER_IDLE_MS,
        }
    }
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
    pub(crate) groups: Groups,
    pub(crate) executors: Executors,
    /// Limits that the masters set, per role.
    pub(crate) role_limits: Vec<v1::RoleLimits>,
    /// The name of this machine, as executors are told it.
    pub(crate) hostname: String,
    pub(crate) supplies: Supplies,
    pub(crate) instances: Instances,
    pub(crate) ahead: Ahead,
    pub(crate) keeping: Keeping,
    pub(crate) session: bool,
    last_flush_ms: Option<u64>,
    /// Inputs are being taken together: what follows from them waits for the last one.
    in_round: bool,
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
            groups: Groups::default(),
            executors: Executors::default(),
            role_limits: Vec::new(),
            hostname: String::new(),
            supplies: Supplies::default(),
            instances: Instances::default(),
            ahead: Ahead::default(),
            keeping: Keeping::default(),
            session: false,
            last_flush_ms: None,
            in_round: false,
            records: Vec::new(),
            sync: false,
            actions: Vec::new(),
        }
    }

    /// Say what this machine is called.
    pub fn set_hostname(&mut self, hostname: String) {
        self.hostname = hostname;
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

    /// Take the inputs until [`Core::end_round`] together: each gives no output, and it gives that of all. What is
    /// heard together then costs one look at everything and leaves in one message.
    pub fn begin_round(&mut self) {
        self.in_round = true;
    }

    /// The output of all inputs of a round.
    pub fn end_round(&mut self, now: Now) -> Vec<Action> {
        self.in_round = false;
        self.finish(now)
    }

    /// Go on with whatever can go on, and hand the output over, unless more inputs of a round come.
    pub(crate) fn finish(&mut self, now: Now) -> Vec<Action> {
        if self.in_round {
            return Vec::new();
        }
        // Each can give the one before it something more to do; every round ends or starts something.
        loop {
            self.drive_groups(now);
            self.drive_tasks(now);
            let ended = self.drive_executors(now);
            if !ended && self.groups.is_settled() {
                break;
            }
        }
        self.drive_instances(now);
        self.drive_ahead(now);
        self.keep_workers(now);
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
            Phase::Recovering
            | Phase::Preparing
            | Phase::Cancelling
            | Phase::Closing(_)
            | Phase::Ended(_) => None,
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
            .chain(self.keep_workers_ms())
            .chain(self.instances.wake_ms(self.session))
            .chain(self.ahead.wake_ms(self.session))
            .chain(self.executors.wake_ms(self.session))
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
        self.tasks
            .iter()
            .filter(|(key, task)| key.parent.is_none() && !task.abandoned)
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
                charge: Some((&task.charge_with_executor()).into()),
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
        self.ahead.on_session();
        self.announce_instances();
        self.finish(now)
    }

    /// The masters' state may be older than what they acknowledged: the newest status of each task goes again.
    pub fn repeat_statuses(&mut self, now: Now) -> Vec<Action> {
        let reported: Vec<TaskKey> = self.reported().map(|(key, _)| key.clone()).collect();
        for key in reported {
            let Some(task) = self.tasks.get_mut(&key) else { continue };
            if let Some(ended) = task.ended().cloned() {
                task.outbox.put(ended, now);
                self.unacked.insert(key);
            } else if task.state != TaskState::Staging {
                let state = task.state;
                self.report(&key, state, now);
            }
        }
        self.finish(now)
    }

    /// The session is gone. Everything goes on.
    pub fn on_session_down(&mut self, now: Now) -> Vec<Action> {
        self.session = false;
        self.finish(now)
    }

    /// The masters have given this agent up for good: everything that it runs for them ends.
    pub fn on_gone(&mut self, now: Now) -> Vec<Action> {
        let tasks = self.tasks.keys().filter(|key| key.parent.is_none());
        for key in tasks.cloned().collect::<Vec<_>>() {
            self.abandon(&key, now);
        }
        self.desire_instances(Vec::new(), now);
        self.desire_ahead(None, now);
        self.finish(now)
    }

    /// Whether nothing is left of any task or executor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.executors.live.is_empty()
    }

    /// Statuses are committed.
    pub fn on_status_acks(&mut self, acks: Vec<v1::StatusAck>, now: Now) -> Vec<Action> {
        for ack in acks {
            let Ok(task) = ack.task.parse() else { continue };
            let key = TaskKey::of(FrameworkId(ack.framework), task);
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
        self.flush_executors(now);
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

    // Checkpoint.

    /// Records that give exactly the present state, for a compacted checkpoint.
    #[must_use]
    pub fn compacted(&self) -> Vec<v1::CheckpointRecord> {
        let whole = Whole {
            generation: self.generation,
            lives: self.executors.lives,
            limits: self.role_limits.clone(),
            executors: self.executors.kept(),
        };
        compacted(
            whole,
            self.tasks.iter().map(|(key, task)| (key, task.kept())),
        )
    }

    /// Executors that live here, and which life it is.
    pub fn executors(&self) -> impl Iterator<Item = (&ExecutorKey, u64)> {
        let live = self.executors.live.iter();
        live.map(|(key, executor)| (key, executor.kept.life))
    }

    /// Whether a task is here, or was and is not forgotten.
    #[must_use]
    pub fn knows(&self, key: &TaskKey) -> bool {
        self.tasks.contains_key(key)
    }

    /// Tasks, children of executors among them, and the states that the agent knows, for people and tests.
    pub fn tasks(&self) -> impl Iterator<Item = (&TaskKey, u32, TaskState)> {
        self.tasks
            .iter()
            .map(|(key, task)| (key, task.attempt, task.newest_state()))
    }
}

/// The worker that a role's work goes to.
pub(crate) fn worker_of(role: &RoleName, kind: WorkerKind) -> WorkerKey {
    WorkerKey::new(role.tenant(), kind)
}

const _: () = assert!(STARTING_HOLD_MS > FLUSH_MS);
