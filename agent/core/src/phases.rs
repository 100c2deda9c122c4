//! The phases of a task that are the same for every kind of task: started when its time has come,
//! reported, ended or started again, forgotten.
//!
//! Invariants: an end is on record before it is told; a child is told to its executor only, a task to
//! the masters only. This file must never decide how a task ended.

use crate::action::{Action, Now, TaskKey};
use crate::core::Core;
use crate::task::{Ending, Phase};
use std::sync::Arc;
use tessera_types::{Reason, TaskState, TaskStatus};
use tessera_wire::v1;
use v1::checkpoint_record::Record;

impl Core {
    /// Report a state that is not the last one.
    pub(crate) fn report(&mut self, key: &TaskKey, state: TaskState, now: Now) {
        self.report_saying(key, state, "", now);
    }

    /// The same with a message for people.
    pub(crate) fn report_saying(&mut self, key: &TaskKey, state: TaskState, text: &str, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.state = state;
        if task.abandoned || key.parent.is_some() {
            return;
        }
        let mut status = TaskStatus::new(key.task.clone(), self.agent, state, now.wall_ms)
            .because(Reason::None, text);
        status.attempt = task.attempt;
        task.outbox.put(status, now);
        self.unacked.insert(key.clone());
    }

    /// An attempt is over: start another, or end the task.
    pub(crate) fn end(&mut self, key: &TaskKey, ending: Ending, now: Now) {
        let Some(task) = self.tasks.get_mut(key).filter(|task| task.over().is_none()) else {
            return;
        };
        if !task.restarts_after(&ending) {
            self.end_for_good(key, ending, now);
            return;
        }
        task.attempt += 1;
        task.wasm_sent = None;
        task.found_full = 0;
        task.phase = Phase::Waiting {
            until_ms: now.mono_ms + task.restart_pause_ms(),
        };
        let attempt = task.attempt;
        self.keep(Record::Attempt(v1::TaskAttempt {
            key: Some(key.into()),
            attempt,
        }));
        self.report(key, TaskState::Starting, now);
    }

    /// A task is over, whatever its restarts.
    pub(crate) fn end_for_good(&mut self, key: &TaskKey, mut ending: Ending, now: Now) {
        let agent = self.agent;
        let Some(task) = self.tasks.get(key).filter(|task| task.over().is_none()) else {
            return;
        };
        let by_itself = matches!(ending.state, TaskState::Finished | TaskState::Failed);
        if let (Some(killing), true) = (&task.killing, by_itself) {
            ending.state = TaskState::Killed;
            ending.reason = killing.reason();
        } else if let (Some(killing), TaskState::Killed, Reason::None) =
            (&task.killing, ending.state, ending.reason)
        {
            // A worker says that it was killed, not on whose behalf.
            ending.reason = killing.reason();
        }
        let status = ending.status(key.task.clone(), agent, task.attempt);
        self.unsettle_group(key);
        let held = self.leave_executor(key, now);
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if held {
            task.phase = Phase::Closing(Box::new(status.clone()));
        } else {
            task.phase = Phase::Ended(Box::new(status.clone()));
            if task.abandoned {
                self.forget(key);
                return;
            }
            self.tell_end(key, now);
        }
        self.keep(Record::Ended(v1::TaskEnded {
            key: Some(key.into()),
            status: Some((&status).into()),
        }));
    }

    /// Tell the masters of an end. A child's executor finds it by itself.
    fn tell_end(&mut self, key: &TaskKey, now: Now) {
        let task = self.tasks.get_mut(key).filter(|_| key.parent.is_none());
        let Some(task) = task else { return };
        if let Some(status) = task.ended().cloned() {
            task.outbox.put(status, now);
            self.unacked.insert(key.clone());
        }
    }

    /// What kept the end of a task from being told is over.
    pub(crate) fn release(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let Phase::Closing(status) = &task.phase else {
            return;
        };
        task.phase = Phase::Ended(status.clone());
        if task.abandoned {
            self.forget(key);
        } else {
            self.tell_end(key, now);
        }
    }

    pub(crate) fn forget(&mut self, key: &TaskKey) {
        if let Some(task) = self.tasks.remove(key) {
            self.groups.leave(key, &task);
        }
        self.executors.forget_child(key);
        self.unacked.remove(key);
        self.note(Record::Forgotten(v1::TaskForgotten {
            key: Some(key.into()),
        }));
        self.actions.push(Action::Forgotten { key: key.clone() });
    }

    /// Start what waits for nothing but its turn.
    pub(crate) fn drive_tasks(&mut self, now: Now) {
        let ready: Vec<TaskKey> = self
            .tasks
            .iter()
            .filter(|(_, task)| match task.phase {
                Phase::Waiting { until_ms } => until_ms <= now.mono_ms,
                Phase::Preparing => true,
                _ => false,
            })
            .filter(|(key, task)| !self.groups.holds(key, task))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ready {
            let Some(task) = self.tasks.get(&key) else {
                continue;
            };
            match task.component() {
                Some(digest) => self.drive_wasm(&key, digest, now),
                None if task.is_native() => self.start_native(&key, now),
                // It is given to its executor by the next batch.
                None => drop(self.executor_is_ready_for(&key, now)),
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
}
