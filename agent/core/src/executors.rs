//! Custom executors: begun with their first task, built in their tenant's worker, ended with their last
//! task.
//!
//! Invariants: an executor lives while a live task names it, and its tasks of one life agree on what it
//! is; its durable state is what its kept turns wrote; an instance that is gone is built again from it;
//! the end of the last task is told when the children are gone, or a moment later; what comes after the
//! end began waits for the next life. This file must never look into a batch or a turn.

use crate::action::{Action, ExecutorKey, Now, TaskKey, WorkerKey, WorkerKind};
use crate::core::{Core, worker_of};
use crate::executor_events::Given;
use crate::executor_records::{KeptExecutor, begun, chunks, remember};
use crate::killing::Why;
use crate::supplies::{IMAGE_DAMAGED, Readiness};
use crate::task::{Ending, Phase as TaskPhase};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tessera_types::{
    Digest, ExecutorTask, LimitName, Quantities, Reason, Resources, TaskBody, TaskSpec, TaskState,
    limits,
};
use tessera_wire::v1;
use v1::agent_message::Message;
use v1::checkpoint_record::Record;
use v1::to_worker::Message as ToWorker;

/// First pause before an instance is built again.
const REBUILD_MIN_MS: u64 = 100;
/// Longest such pause.
const REBUILD_MAX_MS: u64 = 30_000;
/// Failures without a kept turn between after which an executor is given up: by then more than a second
/// has gone into trying, and its tasks are better off elsewhere.
const FAILURES_MAX: u32 = 5;
/// How long an executor may take for its end after its last task, and how long its children may then
/// hold up the status of that task.
pub(crate) const SHUTDOWN_MS: u64 = 5_000;
/// Messages that wait for an executor, and as many of its own.
const MESSAGES_MAX: usize = 64;
/// Bytes of such messages.
const MESSAGES_BYTES_MAX: usize = 1 << 20;
/// The time in which an executor may send that many messages: more would crowd out statuses.
const MESSAGES_WINDOW_MS: u64 = 1_000;
/// Reasons of failures that are the guest's own.
const GUEST_REASONS: [&str; 4] = ["TRAPPED", "GUEST_LIMIT", "GUEST_ERROR", "COMPONENT_UNUSABLE"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is built when the pause is over.
    Waiting { at_ms: u64 },
    /// Its worker or image is on its way.
    Preparing,
    /// Its worker builds it.
    Building,
    /// It takes batches.
    Ready,
    /// It was told to end, and is spoken for no more.
    Halted,
}

/// Messages that wait; the oldest make room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mailbox {
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

impl Mailbox {
    fn put(&mut self, data: Vec<u8>) {
        self.bytes += data.len();
        self.queue.push_back(data);
        while self.queue.len() > MESSAGES_MAX || self.bytes > MESSAGES_BYTES_MAX {
            self.take();
            self.dropped += 1;
        }
    }

    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        let data = self.queue.pop_front()?;
        self.bytes -= data.len();
        Some(data)
    }

    pub(crate) fn next_bytes(&self) -> Option<usize> {
        self.queue.front().map(Vec::len)
    }
}

/// The end of an executor, under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// When it is halted whatever it does.
    pub until_ms: u64,
    /// It has handled that it is to end.
    pub told: bool,
    /// When the end of its last task is told, whatever its children do; set when it is halted.
    pub release_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Executor {
    /// What is on record of it.
    pub kept: KeptExecutor,
    pub state_bytes: u64,
    pub phase: Phase,
    /// The process in which it was built.
    process: Option<String>,
    /// There may be an older instance of it, which would be taken for the new one.
    built_before: bool,
    /// The batch that it has.
    pub outstanding: Option<Given>,
    /// The instance has handled its first event.
    pub introduced: bool,
    /// Tasks of this life that have not ended.
    pub tasks: BTreeSet<TaskKey>,
    /// Tasks whose end is told when it is gone.
    closing: BTreeSet<TaskKey>,
    /// Children on record.
    pub children: BTreeSet<TaskKey>,
    pub inbox: Mailbox,
    outbox: Mailbox,
    window: (u64, usize, usize),
    pub stopping: Option<Stopping>,
    failures: u32,
    pause_ms: u64,
    /// No batch before, after a turn that was large or asked to be called again.
    pub rest_until_ms: Option<u64>,
    /// When its timers are due, on the clock that never jumps.
    pub timer_at: BTreeMap<String, u64>,
    sized: Option<Resources>,
    /// The limits of its role that its instance was told, under which it handles its batch.
    pub told: Vec<v1::Limit>,
    /// They are those that hold now.
    limited: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Executors {
    pub live: BTreeMap<ExecutorKey, Executor>,
    /// Lives so far.
    pub lives: u64,
}

impl Executor {
    fn new(kept: KeptExecutor, now: Now) -> Self {
        let timers = kept.timers.iter();
        let timer_at = timers.map(|(id, timer)| (id.clone(), now.mono_ms + timer.left_ms(now))).collect();
        let bytes = |(key, value): (&String, &Vec<u8>)| (key.len() + value.len()) as u64;
        Self {
            state_bytes: kept.state.iter().map(bytes).sum(),
            kept,
            phase: Phase::Waiting { at_ms: now.mono_ms },
            process: None,
            built_before: false,
            outstanding: None,
            introduced: false,
            tasks: BTreeSet::new(),
            closing: BTreeSet::new(),
            children: BTreeSet::new(),
            inbox: Mailbox::default(),
            outbox: Mailbox::default(),
            window: (0, 0, 0),
            stopping: None,
            failures: 0,
            pause_ms: REBUILD_MIN_MS,
            rest_until_ms: None,
            timer_at,
            sized: None,
            told: Vec::new(),
            limited: false,
        }
    }

    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Building | Phase::Ready)
    }

    /// A turn is on record: it works.
    pub(crate) fn worked(&mut self) {
        self.failures = 0;
        self.pause_ms = REBUILD_MIN_MS;
    }

    fn retry(&mut self, now: Now) {
        self.phase = Phase::Waiting {
            at_ms: now.mono_ms + self.pause_ms,
        };
        self.pause_ms = (self.pause_ms * 2).min(REBUILD_MAX_MS);
        self.process = None;
    }

    fn is_described_by(&self, task: &ExecutorTask) -> bool {
        self.kept.component == task.component
            && self.kept.resources == task.resources
            && self.kept.config == task.config
    }

    pub(crate) fn send(&mut self, data: Vec<u8>) {
        self.outbox.put(data);
    }
}

impl Executors {
    /// What executors are charged for beside their tasks.
    pub(crate) fn charge(&self) -> Resources {
        let all = self.live.values();
        all.fold(Resources::ZERO, |sum, e| sum.plus(&e.kept.resources))
    }

    /// What holds for roles has changed: their executors are to be told.
    pub(crate) fn limits_changed(&mut self) {
        self.live.values_mut().for_each(|executor| executor.limited = false);
    }

    pub(crate) fn forget_child(&mut self, key: &TaskKey) {
        let parent = key.executor();
        if let Some(executor) = parent.and_then(|parent| self.live.get_mut(&parent)) {
            executor.children.remove(key);
        }
    }

    pub(crate) fn kept(&self) -> BTreeMap<ExecutorKey, KeptExecutor> {
        let kept = |(key, executor): (&ExecutorKey, &Executor)| (key.clone(), executor.kept.clone());
        self.live.iter().map(kept).collect()
    }

    /// When something is due next.
    pub(crate) fn wake_ms(&self, session: bool) -> Option<u64> {
        let of_one = |executor: &Executor| {
            let phase = match executor.phase {
                Phase::Waiting { at_ms } => Some(at_ms),
                Phase::Ready if executor.outstanding.is_none() => executor
                    .rest_until_ms
                    .or_else(|| executor.timer_at.values().min().copied()),
                Phase::Ready | Phase::Preparing | Phase::Building | Phase::Halted => None,
            };
            let stop = executor.stopping.as_ref().and_then(|stopping| {
                if executor.phase == Phase::Halted {
                    stopping.release_ms.filter(|_| !executor.closing.is_empty())
                } else {
                    Some(stopping.until_ms)
                }
            });
            let message = executor.outbox.next_bytes().filter(|_| session);
            let send = message.map(|_| executor.window.0 + MESSAGES_WINDOW_MS);
            [phase, stop, send].into_iter().flatten().min()
        };
        self.live.values().filter_map(of_one).min()
    }
}

fn key_of(task: &TaskKey, described: &ExecutorTask) -> ExecutorKey {
    ExecutorKey {
        framework: task.framework,
        executor: described.executor.clone(),
    }
}

impl Core {
    // Tasks come and go.

    /// What a task needs beside its own resources, because its executor does not live here.
    pub(crate) fn new_executor_needs(&self, key: &TaskKey, spec: &TaskSpec) -> Resources {
        let TaskBody::Executor(described) = &spec.body else {
            return Resources::ZERO;
        };
        if self.executors.live.contains_key(&key_of(key, described)) {
            return Resources::ZERO;
        }
        described.resources.clone()
    }

    /// Make a task one of its executor's; whether that is ready to be given it.
    pub(crate) fn executor_is_ready_for(&mut self, key: &TaskKey, now: Now) -> bool {
        let Some(task) = self.tasks.get_mut(key) else {
            return false;
        };
        task.phase = TaskPhase::Preparing;
        let Some(described) = task.executor_task().cloned() else {
            return false;
        };
        let role = task.role.clone();
        let executor = key_of(key, &described);
        let of_framework = |other: &&ExecutorKey| other.framework == key.framework;
        let here = self.executors.live.keys().filter(of_framework).count();
        match self.executors.live.get_mut(&executor) {
            // It waits for the next life.
            Some(live) if live.stopping.is_some() => false,
            Some(live) if live.is_described_by(&described) => {
                live.tasks.insert(key.clone());
                live.phase == Phase::Ready
            }
            Some(_) => {
                let text = format!(
                    "executor {} runs here with another component, other resources or another \
                     configuration",
                    executor.executor
                );
                self.refuse_task(key, Reason::InvalidSpec, text, now);
                false
            }
            None => {
                let most = self.limits_of(&role).size(LimitName::ExecutorsPerAgent);
                if here >= most {
                    let text = format!("limit {}: at most {most}", LimitName::ExecutorsPerAgent);
                    self.refuse_task(key, Reason::FrameworkLimit, text, now);
                    return false;
                }
                self.executors.lives += 1;
                let kept = KeptExecutor {
                    life: self.executors.lives,
                    role,
                    component: described.component,
                    resources: described.resources.clone(),
                    config: described.config,
                    next_turn: 1,
                    state: BTreeMap::new(),
                    timers: BTreeMap::new(),
                    child_ids: VecDeque::new(),
                    refused: VecDeque::new(),
                    again: false,
                    finish: false,
                    stopping: false,
                };
                self.keep(Record::ExecutorBegun(begun(&executor, &kept)));
                let mut new = Executor::new(kept, now);
                new.tasks.insert(key.clone());
                self.executors.live.insert(executor, new);
                false
            }
        }
    }

    fn refuse_task(&mut self, key: &TaskKey, reason: Reason, text: String, now: Now) {
        let ending = Ending::new(TaskState::Error, reason, text, now.wall_ms);
        self.end_for_good(key, ending, now);
    }

    /// A task has ended. Whether its end is told only when its executor has.
    pub(crate) fn leave_executor(&mut self, key: &TaskKey, now: Now) -> bool {
        let described = self.tasks.get(key).and_then(|task| task.executor_task());
        let Some(executor) = described.map(|described| key_of(key, described)) else {
            return false;
        };
        let Some(live) = self.executors.live.get_mut(&executor) else {
            return false;
        };
        if !live.tasks.remove(key) {
            return false;
        }
        if live.stopping.is_none() && !live.tasks.is_empty() {
            return false;
        }
        live.closing.insert(key.clone());
        if live.stopping.is_none() {
            self.stop_executor(&executor, SHUTDOWN_MS, now);
        }
        true
    }

    fn stop_executor(&mut self, key: &ExecutorKey, within_ms: u64, now: Now) {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        executor.kept.stopping = true;
        executor.stopping = Some(Stopping {
            until_ms: now.mono_ms + within_ms,
            told: false,
            release_ms: None,
        });
        self.keep(Record::ExecutorStopping(v1::ExecutorStopping {
            framework: key.framework.0,
            executor: key.executor.to_string(),
        }));
    }

    /// An executor cannot go on: its tasks end with it.
    pub(crate) fn give_up_executor(&mut self, key: &ExecutorKey, why: &str, now: Now) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        let tasks = executor.tasks.clone();
        if executor.stopping.is_none() {
            self.stop_executor(key, 0, now);
        }
        self.send(Message::ExecutorLost(v1::ExecutorLost {
            framework: key.framework.0,
            executor: key.executor.to_string(),
            message: why.to_owned(),
        }));
        for task in tasks {
            let reason = Reason::ExecutorTerminated;
            let ending = Ending::new(TaskState::Failed, reason, why, now.wall_ms);
            self.end_for_good(&task, ending, now);
        }
    }

    // Its life.

    /// Build what is to be built, give what there is to be given, end what is to end. Whether one is gone.
    pub(crate) fn drive_executors(&mut self, now: Now) -> bool {
        let keys: Vec<ExecutorKey> = self.executors.live.keys().cloned().collect();
        let mut gone = false;
        for key in keys {
            self.size_executor(&key);
            self.build_executor(&key, now);
            self.limit_instance_of(&key);
            self.halt_if_due(&key, now);
            self.give_batch(&key, now);
            gone |= self.end_executor(&key, now);
        }
        gone
    }

    /// What an executor and its tasks have together.
    pub(crate) fn total_of(&self, executor: &Executor) -> Resources {
        let tasks = executor.tasks.iter().chain(&executor.closing);
        let tasks = tasks.filter_map(|key| self.tasks.get(key));
        tasks.fold(executor.kept.resources.clone(), |sum, task| sum.plus(&task.spec.resources))
    }

    fn size_executor(&mut self, key: &ExecutorKey) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        let total = self.total_of(executor);
        let life = executor.kept.life;
        if executor.sized.as_ref() == Some(&total) || executor.phase == Phase::Halted {
            return;
        }
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.sized = Some(total.clone());
        }
        self.actions.push(Action::LimitExecutor {
            executor: key.clone(),
            life,
            total: total.quantities,
        });
    }

    /// The worker in which an executor is, or would be built.
    pub(crate) fn worker_of_executor(&self, executor: &Executor) -> WorkerKey {
        let role = &executor.kept.role;
        let built = executor.process.as_deref();
        built
            .and_then(|process| self.supplies.worker_with(role.tenant(), process))
            .cloned()
            .unwrap_or_else(|| worker_of(role, WorkerKind::Tasks))
    }

    /// Worker and memory of each executor that is or will be in one.
    pub(crate) fn executor_grants(&self) -> impl Iterator<Item = (WorkerKey, u64)> {
        let wanted = |executor: &&Executor| executor.phase != Phase::Halted;
        self.executors.live.values().filter(wanted).map(|executor| {
            (
                self.worker_of_executor(executor),
                mem_bytes(executor.kept.resources.quantities),
            )
        })
    }

    fn build_executor(&mut self, key: &ExecutorKey, now: Now) {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        match executor.phase {
            _ if executor.stopping.is_some() => return,
            Phase::Waiting { at_ms } if at_ms <= now.mono_ms => {}
            Phase::Preparing => {}
            Phase::Waiting { .. } | Phase::Building | Phase::Ready | Phase::Halted => return,
        }
        let worker = worker_of(&executor.kept.role, WorkerKind::Tasks);
        let component = executor.kept.component;
        match self
            .supplies
            .ready(&worker, component, now, &mut self.actions)
        {
            Readiness::NotYet => executor.phase = Phase::Preparing,
            Readiness::Unusable(message) => {
                self.give_up_executor(key, &format!("it could not be started: {message}"), now);
            }
            Readiness::Ready { engine, process } => {
                executor.phase = Phase::Building;
                executor.process = Some(process);
                executor.introduced = false;
                let again = std::mem::replace(&mut executor.built_before, true);
                let kept = &executor.kept;
                let state = chunks(&kept.state).into_iter().flatten().collect();
                let mut start = v1::StartExecutor {
                    key: Some(key.into()),
                    role: kept.role.to_string(),
                    component: component.0.to_vec(),
                    config: v1::PairList::from(kept.config.clone()).pairs,
                    mem_bytes: mem_bytes(kept.resources.quantities),
                    seed: seed(key, kept),
                    next_turn: kept.next_turn,
                    ..v1::StartExecutor::default()
                };
                let role = kept.role.clone();
                if again {
                    self.tell_stop(worker.clone(), key);
                }
                start.limits = self.told_limits_of(&role).to_vec();
                if let Some(executor) = self.executors.live.get_mut(key) {
                    executor.told.clone_from(&start.limits);
                    executor.limited = true;
                }
                self.actions.push(Action::StartExecutor {
                    worker,
                    start: Box::new(start),
                    state,
                    component,
                    engine,
                });
            }
        }
    }

    /// Tell an instance the limits of its role when they have changed since it was told. Not one that is
    /// being built, which may not be there yet, and not one that handles a batch: what it makes of that is
    /// held to the limits that it began with.
    fn limit_instance_of(&mut self, key: &ExecutorKey) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        if executor.limited || executor.phase != Phase::Ready || executor.outstanding.is_some() {
            return;
        }
        let limits = self.told_limits_of(&executor.kept.role).to_vec();
        let worker = self.worker_of_executor(executor);
        let news = executor.told != limits;
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.told.clone_from(&limits);
            executor.limited = true;
        }
        if news {
            let key = Some(key.into());
            let message = ToWorker::ExecutorLimits(v1::ExecutorLimits { key, limits });
            self.actions.push(Action::ToWorker { worker, message });
        }
    }

    /// Halt an executor that has had its time, or has nothing left to do.
    fn halt_if_due(&mut self, key: &ExecutorKey, now: Now) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        let Some(stopping) = &executor.stopping else {
            return;
        };
        if executor.phase == Phase::Halted {
            return;
        }
        let children = self.live_children(executor);
        let idle = stopping.told && children.is_empty() && executor.outstanding.is_none();
        let due = stopping.until_ms <= now.mono_ms;
        if !(due || idle || executor.kept.finish || !executor.is_up()) {
            return;
        }
        self.stop_instance_of(key);
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.phase = Phase::Halted;
            executor.outstanding = None;
            if let Some(stopping) = &mut executor.stopping {
                stopping.release_ms = Some(now.mono_ms + SHUTDOWN_MS);
            }
        }
        for child in children {
            self.kill(&child, 0, Why::Asked, now);
        }
    }

    /// Tell the worker to drop an instance that it may have.
    pub(crate) fn stop_instance_of(&mut self, key: &ExecutorKey) {
        let Some(executor) = self.executors.live.get(key).filter(|e| e.is_up()) else {
            return;
        };
        let worker = self.worker_of_executor(executor);
        self.tell_stop(worker, key);
    }

    fn tell_stop(&mut self, worker: WorkerKey, key: &ExecutorKey) {
        let message = ToWorker::StopExecutor(v1::StopExecutor {
            key: Some(key.into()),
        });
        self.actions.push(Action::ToWorker { worker, message });
    }

    /// Forget an executor that is halted and has no children left. Whether it is gone.
    fn end_executor(&mut self, key: &ExecutorKey, now: Now) -> bool {
        let Some(executor) = self.executors.live.get(key) else {
            return false;
        };
        if executor.phase != Phase::Halted {
            return false;
        }
        let gone = self.live_children(executor).is_empty();
        let release = executor.stopping.as_ref().and_then(|s| s.release_ms);
        if !gone && release.is_none_or(|at| at > now.mono_ms) {
            return false;
        }
        let (closing, children) = (executor.closing.clone(), executor.children.clone());
        let life = executor.kept.life;
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.closing.clear();
        }
        for task in closing {
            self.release(&task, now);
        }
        if !gone {
            return false;
        }
        for child in children {
            self.forget(&child);
        }
        self.executors.live.remove(key);
        self.keep(Record::ExecutorEnded(v1::ExecutorEnded {
            framework: key.framework.0,
            executor: key.executor.to_string(),
        }));
        self.actions.push(Action::ExecutorEnded {
            executor: key.clone(),
            life,
        });
        true
    }

    // What its worker says.

    /// An instance of an executor is there.
    pub fn on_executor_ready(
        &mut self,
        worker: &WorkerKey,
        ready: v1::ExecutorReady,
        now: Now,
    ) -> Vec<Action> {
        if let Some(key) = self.executor_in(worker, ready.key)
            && let Some(executor) = self.executors.live.get_mut(&key)
            && executor.phase == Phase::Building
        {
            executor.phase = Phase::Ready;
        }
        self.finish(now)
    }

    /// The executor of a message, if this worker is the one that has it.
    pub(crate) fn executor_in(
        &self,
        worker: &WorkerKey,
        key: Option<v1::ExecutorKey>,
    ) -> Option<ExecutorKey> {
        let key = key?;
        let key = ExecutorKey {
            framework: tessera_types::FrameworkId(key.framework),
            executor: key.executor.parse().ok()?,
        };
        let executor = self.executors.live.get(&key)?;
        let here = executor.is_up() && self.worker_of_executor(executor) == *worker;
        here.then_some(key)
    }

    /// An instance of an executor is gone, or could not be made.
    pub fn on_executor_failed(
        &mut self,
        worker: &WorkerKey,
        failed: v1::ExecutorFailure,
        now: Now,
    ) -> Vec<Action> {
        if let Some(key) = self.executor_in(worker, failed.key) {
            if failed.reason == IMAGE_DAMAGED {
                let component = self.executors.live.get(&key).map(|executor| executor.kept.component);
                component.into_iter().for_each(|digest| self.supplies.on_image_damaged(digest));
            }
            let guest = GUEST_REASONS.contains(&failed.reason.as_str());
            let text = if failed.message.is_empty() {
                failed.reason
            } else {
                failed.message
            };
            self.executor_failed(&key, guest, &text, now);
        }
        self.finish(now)
    }

    /// The order to start an executor did not reach its worker.
    pub fn on_executor_not_started(
        &mut self,
        key: &ExecutorKey,
        message: &str,
        now: Now,
    ) -> Vec<Action> {
        let building = |executor: &Executor| executor.phase == Phase::Building;
        if self.executors.live.get(key).is_some_and(building) {
            self.stop_instance_of(key);
            self.executor_failed(key, false, message, now);
        }
        self.finish(now)
    }

    /// An instance is gone: another is built after a pause, unless the guest has failed too often.
    pub(crate) fn executor_failed(&mut self, key: &ExecutorKey, guest: bool, why: &str, now: Now) {
        self.take_back(key, now);
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        executor.retry(now);
        if !guest {
            return;
        }
        executor.failures += 1;
        if executor.failures >= FAILURES_MAX {
            let failures = executor.failures;
            let text = format!("failed {failures} times in a row, the last time so: {why}");
            self.give_up_executor(key, &text, now);
        }
    }

    /// A worker is gone, or another has come in its place: so are the instances that it had.
    pub(crate) fn lose_executors(&mut self, now: Now) {
        let lost = |executor: &Executor| {
            let tenant = executor.kept.role.tenant();
            let process = executor.process.as_deref().unwrap_or_default();
            executor.is_up() && self.supplies.worker_with(tenant, process).is_none()
        };
        let all = self.executors.live.iter();
        let lost = all.filter(|(_, executor)| lost(executor));
        let keys: Vec<ExecutorKey> = lost.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.executor_failed(&key, false, "its worker process ended", now);
        }
    }

    /// A worker greets. What it has was given batches that are not remembered, or is not ours: each is
    /// built again from what is on record.
    pub(crate) fn compare_executors(
        &mut self,
        worker: &WorkerKey,
        has: &[v1::HelloExecutor],
        now: Now,
    ) {
        self.lose_executors(now);
        for found in has {
            if let Some(key) = found.key.clone() {
                let message = ToWorker::StopExecutor(v1::StopExecutor { key: Some(key) });
                self.actions.push(Action::ToWorker {
                    worker: worker.clone(),
                    message,
                });
            }
        }
    }

    // Messages.

    /// A scheduler speaks to an executor.
    pub fn on_to_executor(&mut self, message: v1::ToExecutor, now: Now) -> Vec<Action> {
        if let Ok(executor) = message.executor.parse()
            && message.data.len() <= limits::MESSAGE_DATA_BYTES_MAX
        {
            let key = ExecutorKey {
                framework: tessera_types::FrameworkId(message.framework),
                executor,
            };
            let live = self.executors.live.get_mut(&key);
            if let Some(executor) = live.filter(|executor| executor.stopping.is_none()) {
                executor.inbox.put(message.data);
            }
        }
        self.finish(now)
    }

    /// Send what executors have said, as fast as they may.
    pub(crate) fn flush_executors(&mut self, now: Now) {
        if !self.session {
            return;
        }
        for (key, executor) in &mut self.executors.live {
            let (since, mut count, mut bytes) = executor.window;
            let mut since = since;
            while let Some(next) = executor.outbox.next_bytes() {
                if now.mono_ms >= since + MESSAGES_WINDOW_MS {
                    (since, count, bytes) = (now.mono_ms, 0, 0);
                }
                if count >= MESSAGES_MAX || bytes + next > MESSAGES_BYTES_MAX {
                    break;
                }
                let Some(data) = executor.outbox.take() else {
                    break;
                };
                count += 1;
                bytes += next;
                let message = Message::FromExecutor(v1::FromExecutor {
                    framework: key.framework.0,
                    executor: key.executor.to_string(),
                    data,
                });
                self.actions.push(Action::Send(message));
            }
            executor.window = (since, count, bytes);
            let dropped = std::mem::take(&mut executor.outbox.dropped)
                + std::mem::take(&mut executor.inbox.dropped);
            if dropped > 0 {
                let text = format!("executor {key}: {dropped} messages had no room and were dropped");
                self.actions.push(Action::Warn(text));
            }
        }
    }

    // Recovery.

    /// Take the executors of a checkpoint up again; their tasks and children are there already.
    pub(crate) fn recover_executors(&mut self, kept: BTreeMap<ExecutorKey, KeptExecutor>, now: Now) {
        for (key, kept) in kept {
            let (stopping, life) = (kept.stopping, kept.life);
            let mut executor = Executor::new(kept, now);
            executor.built_before = true;
            let of = |child: &&TaskKey| {
                let parent = child.parent.as_ref();
                child.framework == key.framework
                    && parent.is_some_and(|p| p.executor == key.executor && p.life == life)
            };
            executor.children = self.tasks.keys().filter(of).cloned().collect();
            // The checkpoint may have been torn between a child and the turn that started it.
            for child in &executor.children {
                let id = child.task.to_string();
                if !executor.kept.child_ids.contains(&id) {
                    remember(&mut executor.kept.child_ids, id);
                }
            }
            for (task_key, task) in &mut self.tasks {
                let names = task.executor_task().map(|of| key_of(task_key, of)) == Some(key.clone());
                if !names || task_key.parent.is_some() {
                    continue;
                }
                match task.ended().cloned() {
                    Some(status) if stopping && !task.acked => {
                        task.phase = TaskPhase::Closing(Box::new(status));
                        task.outbox = crate::outbox::Outbox::default();
                        self.unacked.remove(task_key);
                        executor.closing.insert(task_key.clone());
                    }
                    Some(_) => {}
                    None if !stopping || task.launched => {
                        executor.tasks.insert(task_key.clone());
                    }
                    None => {}
                }
            }
            let idle = executor.tasks.is_empty();
            self.executors.live.insert(key.clone(), executor);
            if stopping || idle {
                self.stop_executor(&key, 0, now);
            }
        }
    }
}

/// Memory of an executor's instance.
fn mem_bytes(resources: Quantities) -> u64 {
    u64::try_from(resources.mem_mib).unwrap_or(0) << 20
}

/// Of the randomness of an instance: the same for the same state of the same life.
fn seed(key: &ExecutorKey, kept: &KeptExecutor) -> u64 {
    let text = format!("{key} {} {}", kept.life, kept.next_turn);
    let digest = Digest::of(text.as_bytes());
    digest.0[..8].iter().fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}
