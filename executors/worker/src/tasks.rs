//! The Wasm tasks of a worker: each on a thread that is its own while it runs, remembered until the
//! agent has recorded how it ended.
//!
//! Invariants: a task is started once per (framework, task, attempt); its end is told again in every
//! greeting until it is acknowledged; one for which there is no room is forgotten before that is told, so
//! that it can be sent again. This file must never restart a task.

use crate::hosts::{Hosts, NoImage};
use crate::instance::IMAGE_DAMAGED;
use crate::thread;
use crate::threads::Threads;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_types::{Reason, limits::MESSAGE_BYTES_MAX};
use tessera_wire::v1::{self, TaskState, WasmTaskState, from_worker::Message};
use tessera_wire::effective_limits;
use tessera_wit_host::{Failure, Kill, Limits, THREAD_STACK_BYTES, TaskEnd, TaskStart, is_memory_limit};

/// Tasks that a worker runs or remembers: each running one has a thread, and all of them have to fit
/// into one greeting.
pub const TASKS_MAX: usize = 4_096;
/// Says that there is no room now.
const WORKER_FULL: &str = "WORKER_FULL";

type Key = (u64, String, u32);

struct Task {
    kill: Kill,
    state: WasmTaskState,
    running: bool,
}

/// All tasks of a worker.
pub struct Tasks {
    tasks: Mutex<BTreeMap<Key, Task>>,
    threads: Arc<Threads>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            threads: Threads::new(THREAD_STACK_BYTES),
        }
    }
}

fn state(key: &Key, state: TaskState, reason: Reason, message: &str) -> WasmTaskState {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    WasmTaskState {
        framework: key.0,
        task: key.1.clone(),
        attempt: key.2,
        state: state.into(),
        reason: reason.code().to_owned(),
        message: message[..end].to_owned(),
        exit_code: None,
    }
}

/// There is no room for a task: nothing of it ran, and it may be sent again.
fn full(key: &Key, why: &str) -> WasmTaskState {
    WasmTaskState {
        reason: WORKER_FULL.to_owned(),
        ..state(key, TaskState::TaskStaging, Reason::None, &format!("the worker is full: {why}"))
    }
}

/// The image of a task is damaged: nothing of it ran, and it may be sent again.
fn damaged(key: &Key, why: &str) -> WasmTaskState {
    WasmTaskState {
        reason: IMAGE_DAMAGED.to_owned(),
        ..state(key, TaskState::TaskStaging, Reason::None, &format!("its component is compiled again: {why}"))
    }
}

fn ended(key: &Key, end: &TaskEnd) -> WasmTaskState {
    match end {
        TaskEnd::Exited(0) => WasmTaskState {
            exit_code: Some(0),
            ..state(key, TaskState::TaskFinished, Reason::None, "")
        },
        TaskEnd::Exited(code) => WasmTaskState {
            exit_code: Some(*code),
            ..state(
                key,
                TaskState::TaskFailed,
                Reason::CommandExited,
                &format!("exited with code {code}"),
            )
        },
        TaskEnd::Killed => state(key, TaskState::TaskKilled, Reason::None, ""),
        TaskEnd::Failed(failure) => {
            use tessera_wit_host::Failure as F;
            let reason = match failure {
                failure if is_memory_limit(failure) => Reason::MemoryLimit,
                F::Limit(_) => Reason::GuestLimit,
                F::Trapped(_) | F::Guest(_) => Reason::Trapped,
                // Without room it was not begun, which is told otherwise.
                F::Unusable(_) | F::NoRoom(_) => Reason::LaunchFailed,
            };
            state(key, TaskState::TaskFailed, reason, &failure.to_string())
        }
    }
}

impl Tasks {
    fn tasks(&self) -> MutexGuard<'_, BTreeMap<Key, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Start a task; one that is known already only tells its state again.
    pub fn start(self: &Arc<Self>, hosts: &Arc<Hosts>, start: v1::StartWasmTask) {
        let key: Key = (start.framework, start.task.clone(), start.attempt);
        let kill = Kill::default();
        if let Some(answer) = self.enter(&key, &kill) {
            hosts.outbox.send(Message::TaskState(answer));
            return;
        }
        let (on_thread, thread_hosts, thread_key) = (self.clone(), hosts.clone(), key.clone());
        let name = format!("task-{}", start.task.chars().take(10).collect::<String>());
        let spawned = self.threads.run(name, move || {
            let run = AssertUnwindSafe(|| on_thread.run(&thread_hosts, &thread_key, start, &kill));
            let end = catch_unwind(run).unwrap_or_else(|_| {
                let text = "the host of the task failed";
                state(&thread_key, TaskState::TaskFailed, Reason::WorkerLost, text)
            });
            on_thread.end(&thread_hosts, &thread_key, end);
        });
        if let Err(error) = spawned {
            self.end(hosts, &key, full(&key, &format!("no thread for this task: {error}")));
        }
    }

    /// Note a task that is to start; or say why it is not. Nothing is sent under the lock: greetings
    /// take it while they hold the outbox.
    fn enter(&self, key: &Key, kill: &Kill) -> Option<WasmTaskState> {
        let mut tasks = self.tasks();
        if let Some(known) = tasks.get(key) {
            return Some(known.state.clone());
        }
        if tasks.len() >= TASKS_MAX {
            let text = format!("it has {TASKS_MAX} tasks; this one waits until others have ended");
            return Some(full(key, &text));
        }
        let starting = state(key, TaskState::TaskStarting, Reason::None, "");
        let task = Task {
            kill: kill.clone(),
            state: starting,
            running: true,
        };
        tasks.insert(key.clone(), task);
        None
    }

    fn run(
        &self,
        hosts: &Hosts,
        key: &Key,
        start: v1::StartWasmTask,
        kill: &Kill,
    ) -> WasmTaskState {
        thread::step_back();
        let image = match hosts.task_image(Path::new(&start.image)) {
            Ok(image) => image,
            Err(NoImage::Damaged(text)) => return damaged(key, &text),
            Err(NoImage::Unfit(text)) => return state(key, TaskState::TaskFailed, Reason::LaunchFailed, &text),
        };
        let start = TaskStart {
            name: start.name,
            args: start.args,
            env: start
                .env
                .into_iter()
                .map(|pair| (pair.key, pair.value))
                .collect(),
            sandbox: PathBuf::from(start.sandbox),
            limits: Limits::of_task(&effective_limits(&start.limits), start.mem_bytes),
        };
        let mut begun = false;
        let end = image.run(&start, kill, || {
            begun = true;
            let running = state(key, TaskState::TaskRunning, Reason::None, "");
            if let Some(task) = self.tasks().get_mut(key) {
                task.state = running.clone();
            }
            hosts.outbox.send(Message::TaskState(running));
        });
        match &end {
            TaskEnd::Failed(Failure::NoRoom(why)) if !begun => full(key, why),
            end => ended(key, end),
        }
    }

    fn end(&self, hosts: &Hosts, key: &Key, end: WasmTaskState) {
        let mut tasks = self.tasks();
        if end.reason == WORKER_FULL || end.reason == IMAGE_DAMAGED {
            tasks.remove(key);
        } else if let Some(task) = tasks.get_mut(key) {
            task.running = false;
            task.state = end.clone();
        }
        drop(tasks);
        hosts.outbox.send(Message::TaskState(end));
    }

    /// End a task; one that has ended stays as it is.
    pub fn kill(&self, kill: v1::KillWasmTask) {
        if let Some(task) = self.tasks().get(&(kill.framework, kill.task, kill.attempt)) {
            task.kill.kill();
        }
    }

    /// The agent has recorded the end of a task.
    pub fn acknowledge(&self, ack: v1::WasmTaskAck) {
        let key = (ack.framework, ack.task, ack.attempt);
        let mut tasks = self.tasks();
        if tasks.get(&key).is_some_and(|task| !task.running) {
            tasks.remove(&key);
        }
    }

    /// All tasks, for a greeting.
    #[must_use]
    pub fn states(&self) -> Vec<WasmTaskState> {
        self.tasks()
            .values()
            .map(|task| task.state.clone())
            .collect()
    }

    /// Whether a task runs.
    #[must_use]
    pub fn any_running(&self) -> bool {
        self.tasks().values().any(|task| task.running)
    }
}
