//! Task groups: members start all or none, and end together.
//!
//! Invariants: no member starts before each of them has all that it needs; once one has started, the
//! group has, and a member that was not is started too; when a member ends in anything but FINISHED,
//! after its restarts, or is being killed, the others are killed, or never start. All of it follows from
//! the phases of the members, so that it holds after a restart of the agent. This file must never start
//! a task.

use crate::action::{Action, Now, TaskKey, WorkerKind};
use crate::core::{Core, worker_of};
use crate::killing::Why;
use crate::supplies::Readiness;
use crate::task::{Ending, Phase, Place, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{FrameworkId, Reason, TaskState, limits};

/// A task group: its number is unique in its framework.
pub(crate) type GroupKey = (FrameworkId, u64);

#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    members: BTreeMap<GroupKey, BTreeSet<TaskKey>>,
    /// Groups of which no member has started.
    forming: BTreeSet<GroupKey>,
    /// Groups of which a member ended or is being killed since they were looked at.
    unsettled: BTreeSet<GroupKey>,
    /// Groups of which a member could not even be read; of the present input only.
    spoiled: BTreeSet<GroupKey>,
}

fn group_of(key: &TaskKey, task: &Task) -> Option<GroupKey> {
    (task.group != 0 && key.parent.is_none()).then_some((key.framework, task.group))
}

/// Whether a task is known to have been started at some time.
fn has_begun(task: &Task) -> bool {
    match &task.phase {
        Phase::Starting | Phase::Running => true,
        Phase::Closing(status) | Phase::Ended(status) => status.state == TaskState::Finished,
        Phase::Recovering | Phase::Waiting { .. } | Phase::Preparing | Phase::Cancelling => {
            task.attempt > 1 || task.wasm_sent.is_some() || task.launched
        }
    }
}

impl Groups {
    /// A member was taken up, or found on record.
    pub(crate) fn join(&mut self, key: &TaskKey, task: &Task) {
        let Some(group) = group_of(key, task) else {
            return;
        };
        let members = self.members.entry(group).or_default();
        if members.is_empty() {
            self.forming.insert(group);
        }
        members.insert(key.clone());
        self.unsettled.insert(group);
    }

    pub(crate) fn leave(&mut self, key: &TaskKey, task: &Task) {
        let Some(group) = group_of(key, task) else {
            return;
        };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(key);
            if members.is_empty() {
                self.members.remove(&group);
                self.forming.remove(&group);
            }
        }
    }

    /// Whether a task has to wait until all members of its group are prepared.
    pub(crate) fn holds(&self, key: &TaskKey, task: &Task) -> bool {
        group_of(key, task).is_some_and(|group| self.forming.contains(&group))
    }

    /// A member cannot be taken up, and has no record.
    pub(crate) fn spoil(&mut self, framework: FrameworkId, group: u64) {
        if group != 0 {
            self.spoiled.insert((framework, group));
        }
    }

    /// Whether something is to be settled before the next input.
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }
}

impl Core {
    /// Something happened to a task that may be a member: look at its group before the input is over.
    pub(crate) fn unsettle_group(&mut self, key: &TaskKey) {
        let group = self.tasks.get(key).and_then(|task| group_of(key, task));
        self.groups.unsettled.extend(group);
    }

    /// Look at every group that has to be looked at.
    pub(crate) fn drive_groups(&mut self, now: Now) {
        let mut groups = std::mem::take(&mut self.groups.unsettled);
        groups.extend(self.groups.forming.iter().copied());
        for group in groups {
            self.settle_group(group, now);
        }
        self.groups.spoiled.clear();
    }

    fn settle_group(&mut self, group: GroupKey, now: Now) {
        let Some(members) = self.groups.members.get(&group).cloned() else {
            self.groups.forming.remove(&group);
            return;
        };
        let tasks = || members.iter().filter_map(|key| Some((key, self.tasks.get(key)?)));
        let forming = self.groups.forming.contains(&group);
        let spoiled = forming && self.groups.spoiled.contains(&group);
        let spoiled = spoiled.then(|| "a member of its task group cannot be read".to_owned());
        let cause = tasks().find_map(|(key, task)| why_end(key, task));
        if let Some(cause) = cause.or(spoiled) {
            self.end_group(group, &members, &cause, now);
            return;
        }
        if !forming {
            return;
        }
        if tasks().any(|(_, task)| has_begun(task)) {
            self.groups.forming.remove(&group);
            return;
        }
        for key in &members {
            let waits = |task: &&mut Task| matches!(task.phase, Phase::Waiting { .. });
            if let Some(task) = self.tasks.get_mut(key).filter(waits) {
                task.phase = Phase::Preparing;
            }
        }
        let tasks = || members.iter().filter_map(|key| Some((key, self.tasks.get(key)?)));
        let unknown = |task: &Task| matches!(task.phase, Phase::Recovering | Phase::Cancelling);
        if tasks().any(|(_, task)| unknown(task)) {
            return;
        }
        let mut prepared = true;
        for key in &members {
            prepared &= self.prepare_member(key, now);
        }
        // A member that cannot be prepared has ended, which is looked at next.
        if prepared && !self.groups.unsettled.contains(&group) {
            self.groups.forming.remove(&group);
        }
    }

    fn end_group(&mut self, group: GroupKey, members: &BTreeSet<TaskKey>, why: &str, now: Now) {
        let forming = self.groups.forming.contains(&group);
        for key in members {
            let Some(task) = self.tasks.get(key) else {
                continue;
            };
            if task.over().is_some() || task.killing.is_some() {
                continue;
            }
            let waits = matches!(task.phase, Phase::Waiting { .. } | Phase::Preparing);
            if waits && forming && !has_begun(task) {
                let text = format!("never started: {why}");
                let ending = Ending::new(TaskState::Failed, Reason::TaskGroup, text, now.wall_ms);
                self.end_for_good(key, ending, now);
            } else {
                let grace_ms = task.spec.grace_ms.unwrap_or(limits::GRACE_DEFAULT_MS);
                self.kill(key, grace_ms, Why::Group, now);
            }
        }
    }

    /// Get a member what it needs; whether it has all of it.
    fn prepare_member(&mut self, key: &TaskKey, now: Now) -> bool {
        let Some(task) = self.tasks.get_mut(key) else {
            return true;
        };
        if task.over().is_some() {
            return true;
        }
        task.phase = Phase::Preparing;
        if task.executor_task().is_some() {
            return self.executor_is_ready_for(key, now);
        }
        let worker = worker_of(&task.role, WorkerKind::Tasks);
        if task.place == Place::None {
            task.place = Place::Asked;
            self.actions.push(Action::Prepare {
                key: key.clone(),
                attempt: task.attempt,
                spec: Arc::clone(&task.spec),
                worker: task.component().map(|_| worker.clone()),
            });
        }
        let placed = task.place == Place::Made;
        let Some(component) = task.component() else {
            return placed;
        };
        let ready = self
            .supplies
            .ready(&worker, component, now, &mut self.actions);
        match ready {
            Readiness::Ready { .. } => placed,
            Readiness::NotYet => false,
            Readiness::Unusable(message) => {
                let ending =
                    Ending::new(TaskState::Error, Reason::LaunchFailed, message, now.wall_ms);
                self.end_for_good(key, ending, now);
                false
            }
        }
    }

    /// The sandbox of a member of a task group is there, or cannot be made.
    pub fn on_prepared(
        &mut self,
        key: &TaskKey,
        attempt: u32,
        result: Result<(), String>,
        now: Now,
    ) -> Vec<Action> {
        let asked = |task: &&mut Task| {
            task.attempt == attempt && task.place == Place::Asked && task.over().is_none()
        };
        if let Some(task) = self.tasks.get_mut(key).filter(asked) {
            match result {
                Ok(()) => task.place = Place::Made,
                Err(message) => {
                    let ending = Ending::new(
                        TaskState::Failed,
                        Reason::LaunchFailed,
                        message,
                        now.wall_ms,
                    );
                    self.end_for_good(key, ending, now);
                }
            }
        }
        self.finish(now)
    }
}

/// Why a group has to end because of this member.
fn why_end(key: &TaskKey, task: &Task) -> Option<String> {
    match task.over() {
        Some(status) if status.state == TaskState::Finished => None,
        Some(status) => Some(format!("{} of its task group ended as {}", key.task, status.state)),
        None if task.killing.is_some() && !task.abandoned => {
            Some(format!("{} of its task group is being ended", key.task))
        }
        None => None,
    }
}
