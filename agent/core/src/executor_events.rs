//! Batches for executors: made of what is on record and has not been handled, as much as fits.
//!
//! Invariants: nothing but messages is kept in a queue: launches, kills, children and timers follow from
//! rows, and are given until a turn that saw them is on record; one batch is outstanding per executor.
//! This file must never decide what an event leads to.

use crate::action::{Action, ExecutorKey, Now, TaskKey};
use crate::core::Core;
use crate::executor_records::KeptTimer;
use crate::executors::{Executor, Phase, SHUTDOWN_MS};
use crate::task::{Ending, Phase as TaskPhase, Task};
use prost::Message as _;
use std::collections::BTreeMap;
use tessera_types::{Reason, TaskState, TaskStatus, limits};
use tessera_wire::v1;
use v1::executor_event::Event;
use v1::to_worker::Message as ToWorker;

/// Bytes of one launch of a task group: the frame that carries it must stay far below what a link takes.
pub(crate) const GROUP_BYTES_MAX: usize = 4 << 20;
/// Pause before `again`: an executor that always asks for it must not be a busy loop.
pub(crate) const AGAIN_MS: u64 = 10;

/// A batch that was given, and what its turn settles.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Given {
    pub number: u64,
    pub started: bool,
    pub launched: Vec<TaskKey>,
    pub kills: Vec<(TaskKey, u64)>,
    pub children: Vec<(TaskKey, (u32, TaskState))>,
    /// How many of the children that were not started.
    pub refused: usize,
    pub timers: Vec<(String, KeptTimer)>,
    pub shutdown: bool,
}

/// Events of a batch while it is made.
#[derive(Default)]
struct Draft {
    events: Vec<v1::ExecutorEvent>,
    bytes: usize,
}

impl Draft {
    /// Whether there is room for more; the first event always has.
    const fn has_room(&self, bytes: usize) -> bool {
        self.events.is_empty()
            || (self.events.len() < limits::BATCH_EVENTS_MAX
                && self.bytes + bytes <= limits::BATCH_BYTES_MAX)
    }

    /// Add an event if there is room.
    fn add(&mut self, event: Event) -> bool {
        let event = v1::ExecutorEvent { event: Some(event) };
        let bytes = event.encoded_len();
        if !self.has_room(bytes) {
            return false;
        }
        self.bytes += bytes;
        self.events.push(event);
        true
    }
}

/// The newest status of a child.
pub(crate) fn status_of(core: &Core, key: &TaskKey, task: &Task, now: Now) -> TaskStatus {
    task.over().cloned().unwrap_or_else(|| {
        let mut status = TaskStatus::new(key.task.clone(), core.agent, task.state, now.wall_ms);
        status.attempt = task.attempt;
        status
    })
}

fn child_status(key: &TaskKey, status: &TaskStatus) -> v1::ChildStatus {
    v1::ChildStatus {
        child: key.task.to_string(),
        status: Some(status.into()),
    }
}

fn launch_of(key: &TaskKey, task: &Task) -> v1::ExecutorLaunch {
    let launch = v1::Launch::from(&task.launch);
    v1::ExecutorLaunch {
        task: key.task.to_string(),
        spec: Some(task.spec.as_ref().into()),
        args: launch.args,
        env: launch.env,
        attempt: task.attempt,
    }
}

/// A launch or a launch of a group, with the tasks that it is of.
struct Launching {
    tasks: Vec<TaskKey>,
    event: Event,
}

impl Core {
    /// Give an executor what has happened, unless it still has a batch.
    pub(crate) fn give_batch(&mut self, key: &ExecutorKey, now: Now) {
        self.refuse_large_groups(key, now);
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        if executor.phase != Phase::Ready || executor.outstanding.is_some() {
            return;
        }
        if executor.rest_until_ms.is_some_and(|at| at > now.mono_ms) {
            return;
        }
        executor.rest_until_ms = None;
        let mut draft = Draft::default();
        let mut given = Given::default();
        if let Some(executor) = self.executors.live.get(key) {
            given.number = executor.kept.next_turn;
            self.draft_tasks(executor, &mut given, &mut draft, now);
            self.draft_children(executor, &mut given, &mut draft, now);
        }
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        executor.draft_rest(&mut given, &mut draft, now);
        if draft.events.is_empty() {
            return;
        }
        let batch = v1::ExecutorBatch {
            key: Some(key.into()),
            number: given.number,
            time_ms: now.wall_ms,
            events: draft.events,
        };
        for task in &given.launched {
            if let Some(task) = self.tasks.get_mut(task) {
                task.phase = TaskPhase::Starting;
            }
        }
        executor.outstanding = Some(given);
        if let Some(executor) = self.executors.live.get(key) {
            let worker = self.worker_of_executor(executor);
            self.actions.push(Action::ToWorker {
                worker,
                message: ToWorker::ExecutorBatch(batch),
            });
        }
    }

    /// What the executor is told of itself and of its tasks.
    fn draft_tasks(
        &self,
        executor: &Executor,
        given: &mut Given,
        draft: &mut Draft,
        now: Now,
    ) {
        if !executor.introduced {
            // Those that have ended come as events of their own, so that an end is told in one way only.
            let child = |key: &TaskKey| {
                let task = self.tasks.get(key).filter(|task| task.over().is_none())?;
                Some((key.clone(), status_of(self, key, task, now)))
            };
            let children: Vec<_> = executor.children.iter().filter_map(child).collect();
            let info = v1::ExecutorInfo {
                hostname: self.hostname.clone(),
                agent: self.agent.0,
                resources: Some((&self.total_of(executor).quantities).into()),
            };
            let told = |(key, status): &(TaskKey, TaskStatus)| {
                (key.clone(), (status.attempt, status.state))
            };
            given.children = children.iter().map(told).collect();
            given.started = draft.add(Event::Started(v1::ExecutorStarted {
                info: Some(info),
                children: children.iter().map(|(k, s)| child_status(k, s)).collect(),
            }));
        }
        if executor.stopping.is_none() {
            for launching in self.launches_of(executor) {
                if draft.add(launching.event) {
                    given.launched.extend(launching.tasks);
                }
            }
        }
        for task_key in &executor.tasks {
            let Some(task) = self.tasks.get(task_key).filter(|task| task.launched) else {
                continue;
            };
            let wanted = task.killing.as_ref().map(|killing| killing.grace_ms);
            let Some(grace_ms) = wanted.filter(|_| task.kill_told != wanted) else {
                continue;
            };
            let event = Event::Kill(v1::ExecutorKill {
                task: task_key.task.to_string(),
                grace_ms,
            });
            if draft.add(event) {
                given.kills.push((task_key.clone(), grace_ms));
            }
        }
    }

    /// Tasks that an executor is to be given: those of one task group at once.
    fn launches_of(&self, executor: &Executor) -> Vec<Launching> {
        let mut groups: BTreeMap<u64, Vec<(&TaskKey, &Task)>> = BTreeMap::new();
        let mut launches = Vec::new();
        for key in &executor.tasks {
            let Some(task) = self.tasks.get(key) else {
                continue;
            };
            if task.phase != TaskPhase::Preparing || self.groups.holds(key, task) {
                continue;
            }
            if task.group == 0 {
                launches.push(Launching {
                    tasks: vec![key.clone()],
                    event: Event::Launch(launch_of(key, task)),
                });
            } else {
                groups.entry(task.group).or_default().push((key, task));
            }
        }
        for members in groups.into_values() {
            let launches_of = members.iter().map(|(key, task)| launch_of(key, task));
            launches.push(Launching {
                event: Event::LaunchGroup(v1::ExecutorLaunchGroup {
                    launches: launches_of.collect(),
                }),
                tasks: members.into_iter().map(|(key, _)| key.clone()).collect(),
            });
        }
        launches
    }

    /// End the first member of a task group that no link can carry; the others end with it.
    fn refuse_large_groups(&mut self, key: &ExecutorKey, now: Now) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        let grouped = |key: &&TaskKey| self.tasks.get(*key).is_some_and(|task| task.group != 0);
        if executor.stopping.is_some() || !executor.tasks.iter().any(|key| grouped(&key)) {
            return;
        }
        let large = |launching: &Launching| match &launching.event {
            Event::LaunchGroup(group) => group.encoded_len() > GROUP_BYTES_MAX,
            _ => false,
        };
        let groups = self.launches_of(executor);
        for group in groups.into_iter().filter(large) {
            let text = format!(
                "the specs of its task group's members in one executor take more than \
                 {GROUP_BYTES_MAX} bytes"
            );
            for task in group.tasks {
                let reason = Reason::LaunchFailed;
                let ending = Ending::new(TaskState::Failed, reason, text.as_str(), now.wall_ms);
                self.end_for_good(&task, ending, now);
            }
        }
    }

    /// What the executor is told of its children.
    fn draft_children(
        &self,
        executor: &Executor,
        given: &mut Given,
        draft: &mut Draft,
        now: Now,
    ) {
        for key in &executor.children {
            let Some(task) = self.tasks.get(key) else {
                continue;
            };
            let status = status_of(self, key, task, now);
            let newest = (status.attempt, status.state);
            // That it starts says nothing that its running or its end does not.
            let begins = matches!(status.state, TaskState::Staging | TaskState::Starting);
            let introduced = given.started && task.over().is_none();
            if begins || introduced || task.told == Some(newest) {
                continue;
            }
            if draft.add(Event::Child(child_status(key, &status))) {
                given.children.push((key.clone(), newest));
            }
        }
    }

    /// An instance is gone with the batch that it had: all of it is given again.
    pub(crate) fn take_back(&mut self, key: &ExecutorKey, now: Now) {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        executor.introduced = false;
        let Some(given) = executor.outstanding.take() else {
            return;
        };
        for key in given.launched {
            let starting = |task: &&mut Task| task.phase == TaskPhase::Starting && !task.launched;
            if let Some(task) = self.tasks.get_mut(&key).filter(starting) {
                task.phase = TaskPhase::Preparing;
                self.drive_kill(&key, now);
            }
        }
    }
}

impl Executor {
    /// What the executor is told beside its tasks and children.
    fn draft_rest(&mut self, given: &mut Given, draft: &mut Draft, now: Now) {
        for (child, status) in &self.kept.refused {
            let event = Event::Child(v1::ChildStatus {
                child: child.clone(),
                status: Some(status.into()),
            });
            if !draft.add(event) {
                break;
            }
            given.refused += 1;
        }
        for (id, at) in &self.timer_at {
            let Some(timer) = self.kept.timers.get(id).filter(|_| *at <= now.mono_ms) else {
                continue;
            };
            if draft.add(Event::Timer(id.clone())) {
                given.timers.push((id.clone(), *timer));
            }
        }
        while let Some(bytes) = self.inbox.next_bytes() {
            // The rest of a message's event is a few bytes.
            if !draft.has_room(bytes + 16) {
                break;
            }
            let Some(data) = self.inbox.take() else {
                break;
            };
            draft.add(Event::Message(data));
        }
        if let Some(stopping) = self.stopping.as_ref().filter(|stopping| !stopping.told) {
            let left = stopping.until_ms.saturating_sub(now.mono_ms);
            given.shutdown = draft.add(Event::ShutdownMs(left.min(SHUTDOWN_MS)));
        }
        if self.kept.again {
            draft.add(Event::Again(v1::Empty {}));
        }
    }
}
