//! From a checkpoint and what is observed back to a running agent; and observations of native tasks,
//! which are the same before and after a restart.
//!
//! One rule per crash point: not on record → the masters send it again; on record, not started → it is
//! started; started → its shim is found; ended → its exit record is read; shim gone without a record →
//! SHIM_LOST; another boot → AGENT_REBOOTED. This file must never guess how a task ended.

use crate::action::{Action, NativeObservation, Now, TaskKey};
use crate::core::{Core, CoreConfig};
use crate::records::{RecordError, Replay};
use crate::task::{Ending, Killing, Phase, Task};
use std::sync::Arc;
use tessera_types::{AgentId, Reason, TaskState};
use tessera_wire::v1;

impl Core {
    /// Rebuild the core from the records of a checkpoint. The actions ask what there is of each task.
    ///
    /// # Errors
    /// When a record is damaged or of a newer version.
    pub fn recover(
        config: CoreConfig,
        agent: AgentId,
        records: impl Iterator<Item = v1::CheckpointRecord>,
        now: Now,
    ) -> Result<(Self, Vec<Action>), RecordError> {
        let mut replay = Replay::default();
        for record in records {
            replay.add(record)?;
        }
        let mut core = Self::new(config, agent);
        core.generation = replay.generation;
        core.role_limits = replay.limits;
        core.executors.lives = replay.lives;
        for (key, kept) in replay.tasks {
            let task = Task::of_kept(kept, now);
            if !task.outbox.is_empty() && key.parent.is_none() {
                core.unacked.insert(key.clone());
            }
            core.groups.join(&key, &task);
            core.tasks.insert(key, task);
        }
        core.recover_executors(replay.executors, now);
        let keys: Vec<TaskKey> = core.tasks.keys().cloned().collect();
        for key in keys {
            core.recover_task(&key, now);
        }
        let actions = core.finish(now);
        Ok((core, actions))
    }

    fn recover_task(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.over().is_some() {
            // Ended and abandoned is over; only the note of it was lost.
            if task.abandoned && task.ended().is_some() {
                self.forget(key);
            }
            return;
        }
        if task.component().is_some() {
            self.recover_wasm(key, now);
            return;
        }
        if !task.is_native() {
            self.recover_executor_task(key, now);
            return;
        }
        task.phase = Phase::Recovering;
        let action = Action::InspectNative {
            key: key.clone(),
            attempt: task.attempt,
            spec: Arc::clone(&task.spec),
        };
        self.actions.push(action);
    }

    fn recover_executor_task(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let state = if task.killing.is_some() {
            TaskState::Killing
        } else {
            task.state
        };
        if !task.launched {
            task.phase = Phase::Waiting {
                until_ms: now.mono_ms,
            };
        } else if task.state == TaskState::Running {
            task.phase = Phase::Running;
            self.report(key, state, now);
        } else {
            task.phase = Phase::Starting;
            self.report(key, state, now);
        }
        self.drive_kill(key, now);
    }

    /// Something was seen of a native task. Observations of other attempts and of ended tasks change
    /// nothing.
    pub fn on_native(
        &mut self,
        key: &TaskKey,
        attempt: u32,
        seen: NativeObservation,
        now: Now,
    ) -> Vec<Action> {
        let current = self
            .tasks
            .get(key)
            .filter(|t| t.attempt == attempt && t.ended().is_none());
        if let Some(task) = current {
            let (phase, wanted) = (task.phase.clone(), task.killing.is_none());
            self.on_current_native(key, seen, &phase, wanted, now);
        }
        self.finish(now)
    }

    fn on_current_native(
        &mut self,
        key: &TaskKey,
        seen: NativeObservation,
        phase: &Phase,
        wanted: bool,
        now: Now,
    ) {
        let failed = |reason, text: &str| Ending::new(TaskState::Failed, reason, text, now.wall_ms);
        match seen {
            NativeObservation::Running => {
                if *phase == Phase::Running {
                    return;
                }
                if let Some(task) = self.tasks.get_mut(key) {
                    task.phase = Phase::Running;
                }
                let state = if wanted {
                    TaskState::Running
                } else {
                    TaskState::Killing
                };
                self.report(key, state, now);
                self.drive_kill(key, now);
            }
            NativeObservation::NotStarted => match phase {
                Phase::Recovering if wanted => {
                    if let Some(task) = self.tasks.get_mut(key) {
                        task.phase = Phase::Waiting {
                            until_ms: now.mono_ms,
                        };
                    }
                }
                Phase::Recovering => self.cancel_native(key),
                Phase::Waiting { .. }
                | Phase::Preparing
                | Phase::Starting
                | Phase::Cancelling
                | Phase::Running
                | Phase::Closing(_)
                | Phase::Ended(_) => {}
            },
            NativeObservation::Cancelled => {
                let killing = self.tasks.get(key).and_then(|task| task.killing.as_ref());
                let reason = killing.map_or(Reason::SchedulerKill, Killing::reason);
                let text = "ended before it started";
                let ending = Ending::new(TaskState::Killed, reason, text, now.wall_ms);
                self.end(key, ending, now);
            }
            NativeObservation::StartFailed(message) => {
                self.end(key, failed(Reason::LaunchFailed, &message), now);
            }
            NativeObservation::Exited(exit) => self.end(key, Ending::of_exit(exit), now),
            NativeObservation::ShimLost => {
                let text = "its shim ended without leaving an exit status";
                self.end(key, failed(Reason::ShimLost, text), now);
            }
            NativeObservation::Rebooted => {
                let text = "the agent's machine was started anew while it ran";
                self.end(key, failed(Reason::AgentRebooted, text), now);
            }
        }
    }
}
