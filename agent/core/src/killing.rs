//! Ending tasks: by intent of a scheduler or user, and because nobody wants them any more.
//!
//! Invariants: an intent is on record before the first signal; a task that has not started ends without
//! starting; TERM is followed by KILL after the grace period, and KILL is repeated until the task is
//! gone. This file must never end a task because a session ended.

use crate::action::{Action, Now, TaskKey, WorkerKind};
use crate::core::{Core, worker_of};
use crate::task::{Ending, Killing, Phase};
use std::sync::Arc;
use tessera_types::{Reason, TaskState, limits};
use tessera_wire::v1;
use v1::checkpoint_record::Record;

/// Pause between two kills of the same task: only processes stuck in the kernel need a second one.
const FORCE_AGAIN_MS: u64 = 2_000;

impl Core {
    /// Somebody wants a task to end.
    pub(crate) fn kill(&mut self, key: &TaskKey, grace_ms: u64, abandoned: bool, now: Now) {
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
        let force_at_ms = task
            .killing
            .as_ref()
            .and_then(|killing| killing.force_at_ms)
            .map(|at| at.min(now.mono_ms + grace_ms));
        task.killing = Some(Killing {
            grace_ms,
            force_at_ms,
        });
        task.abandoned |= abandoned;
        let abandoned = task.abandoned;
        self.keep(Record::Kill(v1::TaskKill {
            key: Some(key.into()),
            grace_ms,
            abandoned,
        }));
        if first && !abandoned {
            self.report(key, TaskState::Killing, now);
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
        self.kill(key, grace_ms, true, now);
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
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let Some(killing) = task.killing.as_mut() else {
            return;
        };
        match &task.phase {
            Phase::Waiting { .. } | Phase::Preparing => {
                let ending = Ending::new(
                    TaskState::Killed,
                    Reason::SchedulerKill,
                    "ended before it started",
                    now.wall_ms,
                );
                self.end(key, ending, now);
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
                        task: key.task.to_string(),
                        attempt,
                    };
                    let worker = worker_of(&task.role, WorkerKind::Tasks);
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
            Phase::Recovering | Phase::Starting | Phase::Cancelling | Phase::Ended(_) => {}
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
