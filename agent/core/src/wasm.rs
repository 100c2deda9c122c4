//! Wasm tasks: sent to their tenant's worker, ended with it, found in it again.
//!
//! Invariants: before a task is sent, it is on record to which process; when that process is gone the
//! attempt ended with it, once, as WORKER_LOST; when it lives and does not have the task, the task was
//! never sent and is sent again; when it had no room for it, likewise, after a pause. A worker forgets an end only after it is on record here. This file must
//! never start a worker by itself.

use crate::action::{Action, Now, TaskKey, WorkerHello, WorkerKey, WorkerKind};
use crate::core::{Core, worker_of};
use crate::supplies::{IMAGE_DAMAGED, Readiness};
use crate::task::{Ending, Phase, Task};
use std::sync::Arc;
use tessera_types::{Digest, FrameworkId, Reason, TaskState};
use tessera_wire::v1;
use v1::checkpoint_record::Record;
use v1::to_worker::Message as ToWorker;

/// What a worker says of a task for which it has no room.
const WORKER_FULL: &str = "WORKER_FULL";

impl Task {
    /// The process that has the current attempt.
    pub(crate) fn sent_to(&self) -> Option<&str> {
        let (attempt, process) = self.wasm_sent.as_ref()?;
        (*attempt == self.attempt && self.ended().is_none()).then_some(process)
    }
}

fn key_of(state: &v1::WasmTaskState) -> Option<TaskKey> {
    TaskKey::parse(FrameworkId(state.framework), &state.task).ok()
}

impl Core {
    /// Send a task to its worker when everything it needs is there.
    pub(crate) fn drive_wasm(&mut self, key: &TaskKey, component: Digest, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let worker = worker_of(&task.role, WorkerKind::Tasks);
        match self
            .supplies
            .ready(&worker, component, now, &mut self.actions)
        {
            Readiness::NotYet => task.phase = Phase::Preparing,
            Readiness::Unusable(message) => {
                let ending =
                    Ending::new(TaskState::Error, Reason::LaunchFailed, message, now.wall_ms);
                self.end(key, ending, now);
            }
            Readiness::Ready { engine, process } => {
                task.phase = Phase::Starting;
                task.wasm_sent = Some((task.attempt, process.clone()));
                let (attempt, first) = (task.attempt, task.found_full == 0);
                let (role, spec, launch) =
                    (task.role.clone(), Arc::clone(&task.spec), task.launch.clone());
                let action = Action::StartWasm {
                    worker,
                    key: key.clone(),
                    attempt,
                    spec,
                    launch,
                    component,
                    limits: self.told_limits_of(&role).to_vec(),
                    engine,
                };
                self.keep(Record::WasmSent(v1::WasmSent {
                    key: Some(key.into()),
                    attempt,
                    worker: process,
                }));
                self.actions.push(action);
                // That it waits for room was told, and why.
                if first {
                    self.report(key, TaskState::Starting, now);
                }
            }
        }
    }

    pub(crate) fn recover_wasm(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.sent_to().is_none() {
            task.phase = Phase::Waiting {
                until_ms: now.mono_ms,
            };
            self.drive_kill(key, now);
            return;
        }
        task.phase = Phase::Recovering;
        let worker = worker_of(&task.role, WorkerKind::Tasks);
        self.supplies.want_worker(&worker, now, &mut self.actions);
    }

    /// A Wasm task could not be handed to its worker for a reason that lies with the task.
    pub fn on_wasm_refused(
        &mut self,
        key: &TaskKey,
        attempt: u32,
        message: String,
        now: Now,
    ) -> Vec<Action> {
        if self
            .tasks
            .get(key)
            .is_some_and(|task| task.attempt == attempt)
        {
            self.end(
                key,
                Ending::new(
                    TaskState::Failed,
                    Reason::LaunchFailed,
                    message,
                    now.wall_ms,
                ),
                now,
            );
        }
        self.finish(now)
    }

    /// The result file of a task, to be read before its end is passed on.
    #[must_use]
    pub fn result_file(&self, key: &TaskKey) -> Option<&str> {
        self.tasks.get(key)?.spec.result_file.as_deref()
    }

    /// A worker said how a task is; `data` is its result file when it ended.
    pub fn on_wasm(
        &mut self,
        worker: &WorkerKey,
        state: v1::WasmTaskState,
        data: Result<Vec<u8>, String>,
        now: Now,
    ) -> Vec<Action> {
        let Some(key) = key_of(&state) else {
            return self.finish(now);
        };
        let reported = TaskState::try_from(state.state()).unwrap_or(TaskState::Failed);
        let current = self.tasks.get(&key).is_some_and(|task| {
            task.attempt == state.attempt && task.ended().is_none() && task.sent_to().is_some()
        });
        if reported.is_terminal() {
            if current {
                let mut ending = Ending::new(
                    reported,
                    Reason::of_code(&state.reason),
                    state.message.clone(),
                    now.wall_ms,
                );
                ending.exit_code = state.exit_code;
                match data {
                    Ok(data) => ending.data = data,
                    Err(problem) if ending.message.is_empty() => ending.message = problem,
                    Err(_) => {}
                }
                self.end(&key, ending, now);
            }
            let ack = v1::WasmTaskAck {
                framework: state.framework,
                task: state.task,
                attempt: state.attempt,
            };
            self.actions.push(Action::ToWorker {
                worker: worker.clone(),
                message: ToWorker::TaskAck(ack),
            });
        } else if state.reason == WORKER_FULL {
            if current {
                self.send_later(&key, state.message, now);
            }
        } else if state.reason == IMAGE_DAMAGED {
            if current {
                let component = self.tasks.get(&key).and_then(Task::component);
                component.into_iter().for_each(|digest| self.supplies.on_image_damaged(digest));
                self.send_later(&key, state.message, now);
            }
        } else if current {
            self.wasm_runs(&key, now);
        } else {
            self.kill_stranger(worker, state);
        }
        self.finish(now)
    }

    /// The worker had no room for a task, and has forgotten it: there may be room when others have ended.
    fn send_later(&mut self, key: &TaskKey, why: String, now: Now) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.wasm_sent = None;
        task.phase = Phase::Waiting {
            until_ms: now.mono_ms + task.full_pause_ms(),
        };
        task.found_full = task.found_full.saturating_add(1);
        let (attempt, first) = (task.attempt, task.found_full == 1);
        // So that a worker that ends before it is sent again does not seem to have had it.
        self.note(Record::WasmSent(v1::WasmSent {
            key: Some(key.into()),
            attempt,
            worker: String::new(),
        }));
        if first {
            self.report_saying(key, TaskState::Starting, &why, now);
        }
        self.drive_kill(key, now);
    }

    fn wasm_runs(&mut self, key: &TaskKey, now: Now) {
        let Some(task) = self
            .tasks
            .get_mut(key)
            .filter(|task| task.phase != Phase::Running)
        else {
            return;
        };
        task.phase = Phase::Running;
        task.found_full = 0;
        let state = if task.killing.is_some() {
            TaskState::Killing
        } else {
            TaskState::Running
        };
        self.report(key, state, now);
        self.drive_kill(key, now);
    }

    fn kill_stranger(&mut self, worker: &WorkerKey, state: v1::WasmTaskState) {
        let message = v1::KillWasmTask {
            framework: state.framework,
            task: state.task,
            attempt: state.attempt,
        };
        self.actions.push(Action::ToWorker {
            worker: worker.clone(),
            message: ToWorker::KillTask(message),
        });
    }

    /// Compare the tasks of a worker that has just been connected with the record. Ended ones are
    /// reported by [`Core::on_wasm`] afterwards.
    pub(crate) fn compare_wasm(&mut self, worker: &WorkerKey, hello: &WorkerHello, now: Now) {
        let keys: Vec<TaskKey> = self.tasks_of(worker).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(task) = self.tasks.get_mut(&key) else {
                continue;
            };
            let Some(process) = task.sent_to().map(str::to_owned) else {
                continue;
            };
            if process != hello.process {
                if !self.supplies.may_live(&worker.tenant, &process) {
                    self.worker_lost(&key, now);
                }
                continue;
            }
            let attempt = task.attempt;
            let found = hello
                .tasks
                .iter()
                .find(|state| state.attempt == attempt && key_of(state).as_ref() == Some(&key));
            match found {
                Some(state) if state.state() == v1::TaskState::TaskRunning => {
                    self.wasm_runs(&key, now)
                }
                Some(_) => {}
                None => {
                    task.wasm_sent = None;
                    task.phase = Phase::Waiting {
                        until_ms: now.mono_ms,
                    };
                    self.drive_kill(&key, now);
                }
            }
        }
        for state in &hello.tasks {
            let known = key_of(state)
                .and_then(|key| self.tasks.get(&key))
                .is_some_and(|task| task.attempt == state.attempt && task.ended().is_none());
            if !known && state.state() == v1::TaskState::TaskRunning {
                self.kill_stranger(worker, state.clone());
            }
        }
    }

    /// A worker process is gone: what was sent to it ended with it.
    pub(crate) fn lose_wasm(&mut self, worker: &WorkerKey, now: Now) {
        let keys: Vec<TaskKey> = self
            .tasks_of(worker)
            .filter(|(_, task)| {
                let process = task.sent_to();
                process.is_some_and(|process| !self.supplies.may_live(&worker.tenant, process))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.worker_lost(&key, now);
        }
    }

    fn worker_lost(&mut self, key: &TaskKey, now: Now) {
        let text = "the worker process that ran it ended";
        self.end(
            key,
            Ending::new(TaskState::Failed, Reason::WorkerLost, text, now.wall_ms),
            now,
        );
    }

    fn tasks_of<'a>(
        &'a self,
        worker: &'a WorkerKey,
    ) -> impl Iterator<Item = (&'a TaskKey, &'a Task)> {
        self.tasks.iter().filter(move |(_, task)| {
            worker.kind == WorkerKind::Tasks
                && task.component().is_some()
                && task.role.tenant() == worker.tenant
        })
    }
}
