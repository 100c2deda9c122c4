//! Ending tasks: by intent of a scheduler or user, and because nobody wants them any more.
//!
//! Invariants: an intent is on record before the first signal; a task that has not started ends without
//! starting; TERM is followed by KILL after the grace period, and KILL is repeated until the task is
//! gone. This file must never end a task because a session ended.

use crate::action::{Action, Now, TaskKey};
use crate::core::Core;
use crate::task::{Ending, Killing, Phase};
use std::sync::Arc;
use tessera_types::{TaskState, limits};
use tessera_wire::v1;
use v1::checkpoint_record::Record;

/// How much longer than its grace time a task may take whose executor was asked to end it.
pub(crate) const EXECUTOR_EXTRA_MS: u64 = 5_000;
/// Pause between two kills of the same task: only processes stuck in the kernel need a second one.
const FORCE_AGAIN_MS: u64 = 2_000;

/// Why a task is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody asked for it.
    Asked,
    /// Another member of its task group ended, or is being killed.
    Group,
    /// The masters do not know it any more.
    Abandoned,
}

impl Core {
    /// A task is to end.
    pub(crate) fn kill(&mut self, key: &TaskKey, grace_ms: u64, why: Why, now: Now) {
        let abandoned = why == Why::Abandoned;
        let Some(task) = self
            .tasks
            .get_mut(key)
            .filter(|task| task.ended().is_none())
        else {
            return;
        };
        let known = task
            .killing
            .as_ref()
            .is_some_and(|killing| killing.grace_ms <= grace_ms);
        if known && (task.abandoned || !abandoned) {
            return;
        }
        // A second intent can only shorten the grace period of the first.
        let grace_ms = task
            .killing
            .as_ref()
            .map_or(grace_ms, |killing| killing.grace_ms.min(grace_ms));
        let first = task.killing.is_none();
        let extra_ms = if task.executor_task().is_some() {
            EXECUTOR_EXTRA_MS
        } else {
            0
        };
        let force_at_ms = task
            .killing
            .as_ref()
            .and_then(|killing| killing.force_at_ms)
            .map(|at| at.min(now.mono_ms + grace_ms + extra_ms));
        // The first cause stays.
        let group = task
            .killing
            .as_ref()
            .map_or(why == Why::Group, |killing| killing.group);
        task.killing = Some(Killing {
            grace_ms,
            force_at_ms,
            group,
        });
        task.abandoned |= abandoned;
        let abandoned = task.abandoned;
        self.keep(Record::Kill(v1::TaskKill {
            key: Some(key.into()),
            grace_ms,
            abandoned,
            group,
        }));
        if first && !abandoned {
            self.report(key, TaskState::Killing, now);
            self.unsettle_group(key);
        }
        self.drive_kill(key, now);
    }

    /// The masters do not know this task any more: end it, and forget it without a report.
    pub(crate) fn abandon(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        if task.ended().is_some() {
            self.forget(key);
            return;
        }
        let grace_ms = task.spec.grace_ms.unwrap_or(limits::GRACE_DEFAULT_MS);
        self.unacked.remove(key);
        self.kill(key, grace_ms, Why::Abandoned, now);
    }

    /// Escalate where the grace period is over.
    pub(crate) fn drive_kills(&mut self, now: Now) {
        let due: Vec<TaskKey> = self
            .tasks
            .iter()
            .filter(|(_, task)| {
                let at = task
                    .killing
                    .as_ref()
                    .and_then(|killing| killing.force_at_ms);
                at.is_some_and(|at| at <= now.mono_ms)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.drive_kill(&key, now);
        }
    }

    /// Do the next thing towards a task's end.
    pub(crate) fn drive_kill(&mut self, key: &TaskKey, now: Now) {
        let worker = self.tasks.get(key).map(|task| self.worker_of_task(task));
        let (Some(task), Some(worker)) = (self.tasks.get_mut(key), worker) else {
            return;
        };
        let of_executor = task.executor_task().is_some();
        let Some(killing) = task.killing.as_mut() else {
            return;
        };
        match &task.phase {
            Phase::Waiting { .. } | Phase::Preparing => {
                let ending = Ending::new(
                    TaskState::Killed,
                    killing.reason(),
                    "ended before it started",
                    now.wall_ms,
                );
                self.end(key, ending, now);
            }
            Phase::Starting | Phase::Running if of_executor => {
                // Its executor is asked by the next batch.
                let grace_ms = killing.grace_ms;
                let at = *killing
                    .force_at_ms
                    .get_or_insert(now.mono_ms + grace_ms + EXECUTOR_EXTRA_MS);
                if at <= now.mono_ms {
                    let text = "its executor did not end it in time";
                    let reason = killing.reason();
                    let ending = Ending::new(TaskState::Killed, reason, text, now.wall_ms);
                    self.end(key, ending, now);
                }
            }
            Phase::Running => {
                let forced = killing.force_at_ms.is_some_and(|at| at <= now.mono_ms);
                let force = forced || killing.grace_ms == 0;
                let pause = if force {
                    FORCE_AGAIN_MS
                } else {
                    killing.grace_ms
                };
                let asked = killing.force_at_ms.is_some();
                if asked && !forced {
                    return;
                }
                killing.force_at_ms = Some(now.mono_ms + pause);
                let attempt = task.attempt;
                let action = if task.component().is_some() {
                    // A Wasm guest has no signals: asking is ending.
                    let message = v1::KillWasmTask {
                        framework: key.framework.0,
                        task: key.name(),
                        attempt,
                    };
                    Action::ToWorker {
                        worker,
                        message: v1::to_worker::Message::KillTask(message),
                    }
                } else {
                    Action::SignalNative {
                        key: key.clone(),
                        attempt,
                        force,
                    }
                };
                self.actions.push(action);
            }
            // Each is followed by an observation, which comes back here.
            Phase::Recovering
            | Phase::Starting
            | Phase::Cancelling
            | Phase::Closing(_)
            | Phase::Ended(_) => {}
        }
    }

    /// A task that is wanted to end turned out not to have started.
    pub(crate) fn cancel_native(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.phase = Phase::Cancelling;
        let action = Action::CancelNative {
            key: key.clone(),
            attempt: task.attempt,
            spec: Arc::clone(&task.spec),
        };
        self.actions.push(action);
    }
}
