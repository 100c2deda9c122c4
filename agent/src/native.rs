//! Native tasks on this machine: starting them under a shim, finding, watching, signalling and
//! clearing up after them.
//!
//! Invariants: a start that may have happened before is looked up instead of repeated; an end is passed
//! on only when nothing of the task is left and its group is gone; every blocking step runs on a
//! blocking thread, of which only so many are taken. This file must never decide what happens next.

use crate::config::TaskUsers;
use crate::input::Input;
use crate::sandbox::{Sandboxes, TaskDirs, read_result};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tessera_agent_core::{ExecutorKey, NativeExit, NativeObservation as Seen, TaskKey};
use tessera_oci::cgroup::MEM_FLOOR_MIB;
use tessera_oci::launch::{self, KILL_WITHIN, Launched, ShimHandle, TaskFound};
use tessera_oci::record::{LOG_BYTES_MAX, LOG_FILES_KEPT};
use tessera_oci::{Cgroups, ExitRecord, Limits, ShimSpec, TaskUser};
use tessera_types::{Launch, NativeCommand, Quantities, TaskBody, TaskSpec, limits};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc};

/// Blocking steps at once: more would only queue in the kernel, and the rest of the agent shares the
/// threads.
const STEPS_MAX: usize = 16;
/// Pause before a task is looked at again that could not be: descriptors or memory may be free by then.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Beginning of the names of executors' groups, which have the groups of native children in them.
const EXECUTOR_PREFIX: char = 'x';
/// Longest name of a group that is made of the task's own; longer ones are hashed.
const GROUP_NAME_MAX: usize = 200;
/// Where programs are found when a task says nothing.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Group of all shims: out of the agent's own, so that ending its service does not end them.
const SHIMS_GROUP: &str = "shims";

/// What starting and watching needs.
#[derive(Clone)]
pub struct Native(Arc<Parts>);

struct Parts {
    sandboxes: Sandboxes,
    cgroups: Cgroups,
    shim: PathBuf,
    shim_group: Vec<PathBuf>,
    users: TaskUsers,
    /// What executors may use, by the names of their groups; limits are set under the lock, so that the
    /// last word is the newest.
    executors: Mutex<BTreeMap<String, Quantities>>,
    inputs: mpsc::Sender<Input>,
    steps: Semaphore,
}

/// What a step found.
enum Look {
    /// This is so.
    Seen(Seen),
    /// It runs under this shim.
    Runs(ShimHandle),
    /// The system did not say, for want of something that may come back.
    Again,
}

/// One attempt of one task.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The task.
    pub key: TaskKey,
    /// Which attempt.
    pub attempt: u32,
    /// Its spec.
    pub spec: Arc<TaskSpec>,
}

/// The name of an attempt's group; that of a child is inside of its executor's.
#[must_use]
pub fn group_name(key: &TaskKey, attempt: u32) -> String {
    if let (Some(executor), Some(parent)) = (key.executor(), &key.parent) {
        let group = executor_group(&executor, parent.life);
        return format!("{group}/{}.{attempt}", key.task);
    }
    let name = format!("{}.{}.{attempt}", key.framework, key.task);
    if name.len() <= GROUP_NAME_MAX {
        return name;
    }
    let hash = tessera_types::Digest::of(key.task.as_str().as_bytes()).hex();
    format!("{}.{}.{attempt}", key.framework, &hash[..32])
}

/// The name of an executor's group.
#[must_use]
pub fn executor_group(key: &ExecutorKey, life: u64) -> String {
    format!("{EXECUTOR_PREFIX}{}.{}.{life}", key.framework.0, key.executor)
}

impl Native {
    /// Prepare for this machine. `bin_dir` has the shim.
    pub fn new(
        sandboxes: Sandboxes,
        cgroups: Cgroups,
        bin_dir: &std::path::Path,
        users: TaskUsers,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let shim_group = match cgroups.create_plain(SHIMS_GROUP) {
            Ok(group) => group.procs,
            Err(error) => {
                tracing::warn!(%error, "shims stay in the agent's control group");
                Vec::new()
            }
        };
        Self(Arc::new(Parts {
            sandboxes,
            cgroups,
            shim: bin_dir.join("tessera-shim"),
            shim_group,
            users,
            executors: Mutex::default(),
            inputs,
            steps: Semaphore::new(STEPS_MAX),
        }))
    }

    /// Where tasks' control groups are.
    pub fn cgroups(&self) -> &Cgroups {
        &self.0.cgroups
    }

    /// Begin the kernel's preparation for launches while they are still being written down.
    pub fn warm_up(&self) {
        if self.0.cgroups.unlimited_because().is_none() {
            tokio::task::spawn_blocking(tessera_oci::cgroup::warm_up);
        }
    }

    /// End and remove groups of tasks and executors that are not on record: a crash came before their
    /// record was forgotten, or a record was moved away.
    pub fn clear_strangers(&self, known: &BTreeSet<String>) {
        for name in self.0.cgroups.list() {
            let of_executor = name.starts_with(EXECUTOR_PREFIX) && name.contains('.');
            if of_executor {
                self.0.clear_strangers_in(&name, known);
            }
            let of_task = of_executor || (name.starts_with('f') && name.contains('.'));
            if of_task && !known.contains(&name) {
                tracing::warn!(
                    group = name,
                    "ending processes of a task that is not on record"
                );
                self.0.clear_group(&name);
            }
        }
    }

    /// Start an attempt, unless it was started before.
    pub fn start(&self, attempt: Attempt, launch: Launch) {
        self.step(attempt, move |parts, attempt| parts.start(attempt, &launch));
    }

    /// Make the sandbox of a member of a task group before any member starts.
    pub fn prepare(&self, attempt: Attempt) {
        let native = self.clone();
        tokio::spawn(async move {
            let Ok(permit) = native.0.steps.acquire().await else {
                return;
            };
            let (parts, of) = (Arc::clone(&native.0), attempt.clone());
            let made = tokio::task::spawn_blocking(move || parts.prepare(&of).map(drop)).await;
            drop(permit);
            let input = Input::Prepared {
                key: attempt.key,
                attempt: attempt.attempt,
                result: made.unwrap_or_else(|error| Err(error.to_string())),
            };
            // The loop is gone only when the agent ends.
            let _ = native.0.inputs.send(input).await;
        });
    }

    /// Take note of what an executor may use; its group gets it now or when its first child starts.
    pub fn limit_executor(&self, executor: &ExecutorKey, life: u64, total: Quantities) {
        let group = executor_group(executor, life);
        let known = self.0.executors().insert(group.clone(), total).is_some();
        if known {
            let parts = Arc::clone(&self.0);
            tokio::task::spawn_blocking(move || parts.limit_executor(&group));
        }
    }

    /// An executor and its children are gone: its group goes too.
    pub fn end_executor(&self, executor: &ExecutorKey, life: u64) {
        let group = executor_group(executor, life);
        self.0.executors().remove(&group);
        let parts = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            parts.clear_strangers_in(&group, &BTreeSet::new());
            parts.clear_group(&group);
        });
    }

    /// See what there is of an attempt.
    pub fn inspect(&self, attempt: Attempt) {
        self.step(attempt, Parts::inspect);
    }

    /// Make sure that an attempt is never started.
    pub fn cancel(&self, attempt: Attempt) {
        self.step(attempt, Parts::cancel);
    }

    /// Ask an attempt's processes to end, or end them.
    pub fn signal(&self, key: TaskKey, attempt: u32, force: bool) {
        let native = self.clone();
        tokio::spawn(async move {
            let Ok(_permit) = native.0.steps.acquire().await else {
                return;
            };
            let parts = Arc::clone(&native.0);
            let done = tokio::task::spawn_blocking(move || {
                if let Err(error) = parts.signal(&key, attempt, force) {
                    tracing::warn!(task = %key, %error, force, "a task could not be signalled; it is tried again");
                }
            });
            let _ = done.await;
        });
    }

    /// Run one blocking step and pass on what it saw; watch what runs.
    fn step(&self, attempt: Attempt, step: impl FnOnce(&Parts, &Attempt) -> Look + Send + 'static) {
        let native = self.clone();
        tokio::spawn(async move {
            let look = {
                let Ok(_permit) = native.0.steps.acquire().await else {
                    return;
                };
                let (parts, of) = (Arc::clone(&native.0), attempt.clone());
                let done = tokio::task::spawn_blocking(move || step(&parts, &of)).await;
                done.unwrap_or(Look::Again)
            };
            match look {
                Look::Seen(seen) => native.pass_on(&attempt, seen).await,
                Look::Runs(shim) => {
                    native.pass_on(&attempt, Seen::Running).await;
                    watch(shim).await;
                    native.inspect(attempt);
                }
                Look::Again => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                    native.inspect(attempt);
                }
            }
        });
    }

    async fn pass_on(&self, attempt: &Attempt, seen: Seen) {
        let (key, attempt) = (attempt.key.clone(), attempt.attempt);
        // The loop is gone only when the agent ends.
        let _ = self
            .0
            .inputs
            .send(Input::Native { key, attempt, seen })
            .await;
    }
}

#[allow(unsafe_code)]
fn readable(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is made here, so that it stays open and the same.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// Wait until a shim ends.
async fn watch(shim: ShimHandle) {
    match readable(shim.ended) {
        Ok(ended) => {
            // An error means that waiting is not possible; looking again tells what is.
            let _ = ended.readable().await;
        }
        Err(error) => {
            tracing::warn!(%error, "a shim cannot be watched; looking again after a pause");
            tokio::time::sleep(KILL_WITHIN).await;
        }
    }
}

impl Parts {
    fn executors(&self) -> MutexGuard<'_, BTreeMap<String, Quantities>> {
        self.executors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Make the group of an executor, or give it other limits.
    fn limit_executor(&self, group: &str) {
        let executors = self.executors();
        let Some(total) = executors.get(group) else {
            return;
        };
        let limits = Limits {
            cpus_milli: total.cpus_milli,
            cpus_limit_milli: None,
            mem_mib: Some(total.mem_mib),
            pids: limits::PIDS_DEFAULT,
        };
        if let Err(error) = self.cgroups.create(group, &limits) {
            // It is in use above its new limit, or there are no limits here, which was said at the start.
            tracing::warn!(group, %error, "an executor's limits stay as they were");
        }
    }

    /// End groups of children that are not on record.
    fn clear_strangers_in(&self, executor: &str, known: &BTreeSet<String>) {
        for child in self.cgroups.list_in(executor) {
            let name = format!("{executor}/{child}");
            if !known.contains(&name) {
                self.clear_group(&name);
            }
        }
    }

    fn start(&self, attempt: &Attempt, launch: &Launch) -> Look {
        let dirs = self.sandboxes.attempt(&attempt.key, attempt.attempt);
        // A start that may have happened is not repeated: the files may be the task's by now.
        match launch::find(&dirs.state) {
            Ok(TaskFound::NotStarted) => {}
            _ => return self.inspect(attempt),
        }
        match self.launch(attempt, launch) {
            Ok(Launched::Running { exec_us }) => {
                tracing::debug!(task = %attempt.key, exec_us, "a task runs");
                self.inspect(attempt)
            }
            Ok(Launched::Failed { message }) => {
                self.clear_group(&group_name(&attempt.key, attempt.attempt));
                Look::Seen(Seen::StartFailed(message))
            }
            Ok(Launched::Taken) => self.inspect(attempt),
            Err(message) => match launch::cancel(&dirs.state) {
                // The shim never claimed the launch, so nothing runs and nothing will.
                Ok(true) => {
                    self.clear_group(&group_name(&attempt.key, attempt.attempt));
                    Look::Seen(Seen::StartFailed(message))
                }
                Ok(false) => self.inspect(attempt),
                // Not even the claim can be looked at; what may run is ended with its group.
                Err(_) => {
                    self.clear_group(&group_name(&attempt.key, attempt.attempt));
                    Look::Seen(Seen::StartFailed(message))
                }
            },
        }
    }

    fn prepare(&self, attempt: &Attempt) -> Result<(TaskUser, TaskDirs), String> {
        let spec = &attempt.spec;
        let user = self
            .users
            .of_task(attempt.key.framework, spec.user.as_deref())?;
        let owner = nix::unistd::Uid::effective()
            .is_root()
            .then_some((user.uid, user.gid));
        let dirs = self
            .sandboxes
            .prepare(&attempt.key, attempt.attempt, spec, owner)
            .map_err(|error| with_cause(&error))?;
        Ok((user, dirs))
    }

    fn launch(&self, attempt: &Attempt, launch: &Launch) -> Result<Launched, String> {
        let spec = &attempt.spec;
        let (user, dirs) = self.prepare(attempt)?;
        let limits = Limits {
            cpus_milli: spec.resources.quantities.cpus_milli,
            cpus_limit_milli: spec.cpus_limit_milli,
            mem_mib: Some(spec.resources.quantities.mem_mib),
            pids: spec.pids_limit.unwrap_or(limits::PIDS_DEFAULT),
        };
        if let (Some(executor), Some(parent)) = (attempt.key.executor(), &attempt.key.parent) {
            self.limit_executor(&executor_group(&executor, parent.life));
        }
        let group = self
            .cgroups
            .create(&group_name(&attempt.key, attempt.attempt), &limits)
            .map_err(|error| error.to_string())?;
        let shim_spec = ShimSpec {
            argv: argv(spec, launch)?,
            env: environment(attempt, launch, &user, &dirs),
            sandbox: dirs.sandbox,
            user: Some(user),
            data_bytes: self.data_bytes(spec),
            group,
            shim_group: self.shim_group.clone(),
            log_bytes_max: LOG_BYTES_MAX,
            log_files_kept: LOG_FILES_KEPT,
        };
        launch::launch(&self.shim, &dirs.state, &shim_spec).map_err(|error| error.to_string())
    }

    /// The limit of memory for each process, where no group limits them together.
    fn data_bytes(&self, spec: &TaskSpec) -> Option<u64> {
        self.cgroups.unlimited_because()?;
        let mib = spec.resources.quantities.mem_mib.max(MEM_FLOOR_MIB);
        Some(u64::try_from(mib).unwrap_or(0) << 20)
    }

    fn inspect(&self, attempt: &Attempt) -> Look {
        let dirs = self.sandboxes.attempt(&attempt.key, attempt.attempt);
        let group = group_name(&attempt.key, attempt.attempt);
        match launch::find(&dirs.state) {
            Ok(TaskFound::NotStarted) => Look::Seen(Seen::NotStarted),
            Ok(TaskFound::Cancelled) => {
                self.clear_group(&group);
                Look::Seen(Seen::Cancelled)
            }
            Ok(TaskFound::Running(shim)) => Look::Runs(shim),
            Ok(TaskFound::Exited(exit)) => {
                self.clear_group(&group);
                Look::Seen(Seen::Exited(self.exit(attempt, &dirs, *exit)))
            }
            Ok(TaskFound::ShimLost) => {
                self.clear_group(&group);
                Look::Seen(Seen::ShimLost)
            }
            Ok(TaskFound::Rebooted) => {
                self.clear_group(&group);
                Look::Seen(Seen::Rebooted)
            }
            Err(error) => {
                tracing::error!(task = %attempt.key, %error, "a task cannot be looked at");
                if !error.is_damage() {
                    return Look::Again;
                }
                // Nobody will ever know how it ends; it must not go on unwatched.
                self.clear_group(&group);
                Look::Seen(Seen::ShimLost)
            }
        }
    }

    fn cancel(&self, attempt: &Attempt) -> Look {
        let dirs = self.sandboxes.attempt(&attempt.key, attempt.attempt);
        if !dirs.state.exists() {
            // Nothing was prepared, and only the agent's own starts prepare.
            return Look::Seen(Seen::Cancelled);
        }
        if let Err(error) = launch::cancel(&dirs.state) {
            tracing::warn!(task = %attempt.key, %error, "a launch could not be cancelled");
        }
        self.inspect(attempt)
    }

    fn signal(&self, key: &TaskKey, attempt: u32, force: bool) -> Result<(), String> {
        let group = self
            .cgroups
            .files(&group_name(key, attempt))
            .map_err(|error| error.to_string())?;
        let shim = match launch::find(&self.sandboxes.attempt(key, attempt).state) {
            Ok(TaskFound::Running(shim)) => Some(shim),
            Ok(_) => None,
            Err(error) => return Err(error.to_string()),
        };
        launch::signal(&group, shim.as_ref(), force).map_err(|error| error.to_string())
    }

    fn exit(&self, attempt: &Attempt, dirs: &TaskDirs, exit: ExitRecord) -> NativeExit {
        let (mut data, mut data_problem) = (Vec::new(), None);
        if let (Some(path), None) = (&attempt.spec.result_file, &exit.failure) {
            match read_result(&dirs.sandbox, path) {
                Ok(read) => data = read,
                Err(problem) => data_problem = Some(problem),
            }
        }
        NativeExit {
            code: exit.code,
            signal: exit.signal,
            failure: exit.failure,
            oom: exit.oom,
            data,
            data_problem,
            ended_ms: exit.ended_ms,
        }
    }

    /// End what is left of a task and remove its group.
    fn clear_group(&self, name: &str) {
        let cleared = self
            .cgroups
            .files(name)
            .map_err(|error| error.to_string())
            .and_then(|group| {
                group
                    .kill_all(KILL_WITHIN)
                    .map_err(|error| error.to_string())
            })
            .and_then(|_| self.cgroups.remove(name).map_err(|error| error.to_string()));
        if let Err(error) = cleared {
            tracing::warn!(
                group = name,
                error,
                "a control group is left behind until the agent starts again"
            );
        }
    }
}

fn argv(spec: &TaskSpec, launch: &Launch) -> Result<Vec<String>, String> {
    match &spec.body {
        TaskBody::Native(NativeCommand::Shell(text)) => {
            Ok(vec!["/bin/sh".into(), "-c".into(), text.clone()])
        }
        TaskBody::Native(NativeCommand::Argv(argv)) => {
            Ok(argv.iter().chain(&launch.args).cloned().collect())
        }
        TaskBody::Wasm { .. } | TaskBody::Executor(_) => {
            Err("only a native task has a command".into())
        }
    }
}

/// The task's whole environment: what this agent says of it, then the spec's, then the launch's.
fn environment(
    attempt: &Attempt,
    launch: &Launch,
    user: &TaskUser,
    dirs: &TaskDirs,
) -> Vec<(String, String)> {
    let sandbox = dirs.sandbox.to_string_lossy().into_owned();
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH_DEFAULT.to_owned()),
        ("HOME".to_owned(), sandbox.clone()),
        ("USER".to_owned(), user.name.clone()),
        ("TESSERA_SANDBOX".to_owned(), sandbox),
    ]);
    env.extend(task_variables(&attempt.key, attempt.attempt));
    env.extend(attempt.spec.env.iter().chain(&launch.env).cloned());
    env.into_iter().collect()
}

/// Variables that tell a task who it is.
pub fn task_variables(key: &TaskKey, attempt: u32) -> [(String, String); 3] {
    [
        ("TESSERA_FRAMEWORK_ID".to_owned(), key.framework.to_string()),
        ("TESSERA_TASK_ID".to_owned(), key.task.to_string()),
        ("TESSERA_ATTEMPT".to_owned(), attempt.to_string()),
    ]
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
