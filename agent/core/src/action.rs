//! The vocabulary between the core and the process around it: actions out, observations in.
//!
//! Every action may be performed again after a crash; the process around must never invent one.

use std::sync::Arc;
use tessera_types::{
    Digest, ExecutorId, FrameworkId, Launch, NameError, Quantities, TaskId, TaskSpec, TimeMs,
};
use tessera_wire::v1;

/// The time of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never jumps; timers are measured by it.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch; statuses carry it.
    pub wall_ms: TimeMs,
}

/// Names a custom executor on this agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExecutorKey {
    /// Its framework.
    pub framework: FrameworkId,
    /// Its id in the framework.
    pub executor: ExecutorId,
}

impl From<&ExecutorKey> for v1::ExecutorKey {
    fn from(key: &ExecutorKey) -> Self {
        Self {
            framework: key.framework.0,
            executor: key.executor.to_string(),
        }
    }
}

impl std::fmt::Display for ExecutorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.framework, self.executor)
    }
}

/// The executor that started a child, and in which of its lives: ids of executors and of their children
/// come again, a life never does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parent {
    /// The executor's id in the framework.
    pub executor: ExecutorId,
    /// Counts the lives of executors on this agent.
    pub life: u64,
}

/// Names a task on this agent, or a child of an executor. Children of one executor stand together, after
/// the tasks of their framework.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// Its framework.
    pub framework: FrameworkId,
    /// Whose child it is; none for a task of the framework itself.
    pub parent: Option<Parent>,
    /// Its id in the framework, or in its executor.
    pub task: TaskId,
}

impl TaskKey {
    /// A task of a framework.
    #[must_use]
    pub const fn of(framework: FrameworkId, task: TaskId) -> Self {
        Self {
            framework,
            parent: None,
            task,
        }
    }

    /// Its name inside its framework, as records and workers have it: the task's id, or
    /// `<executor>/<life>/<child>`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.parent {
            None => self.task.to_string(),
            Some(parent) => format!("{}/{}/{}", parent.executor, parent.life, self.task),
        }
    }

    /// The key of a name as [`TaskKey::name`] makes it.
    ///
    /// # Errors
    /// When a part of it breaks the rules of names.
    pub fn parse(framework: FrameworkId, name: &str) -> Result<Self, NameError> {
        let mut parts = name.splitn(3, '/');
        let (first, second, third) = (parts.next(), parts.next(), parts.next());
        let (Some(executor), Some(life), Some(child)) = (first, second, third) else {
            return Ok(Self::of(framework, name.parse()?));
        };
        let parent = Parent {
            executor: executor.parse()?,
            life: life.parse().map_err(|_| NameError::Number { prefix: "" })?,
        };
        Ok(Self {
            framework,
            parent: Some(parent),
            task: child.parse()?,
        })
    }

    /// The executor whose child it is.
    #[must_use]
    pub fn executor(&self) -> Option<ExecutorKey> {
        let parent = self.parent.as_ref()?;
        Some(ExecutorKey {
            framework: self.framework,
            executor: parent.executor.clone(),
        })
    }
}

impl From<&TaskKey> for v1::TaskKey {
    fn from(key: &TaskKey) -> Self {
        Self {
            framework: key.framework.0,
            task: key.name(),
        }
    }
}

impl std::fmt::Display for TaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.framework, self.name())
    }
}

/// What a worker process is for: schedulers and tasks of a tenant never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerKind {
    /// Scheduler instances.
    Schedulers,
    /// Wasm tasks and executors.
    Tasks,
}

impl WorkerKind {
    /// Its word in file names and arguments.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Schedulers => "schedulers",
            Self::Tasks => "tasks",
        }
    }
}

/// Names a worker process: two per tenant and engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The first part of the role.
    pub tenant: String,
    /// What it runs.
    pub kind: WorkerKind,
    /// Absent for the worker of the present engine. One that was started for another engine has a tag of
    /// that; it keeps the tasks that it has, gets nothing new, and is never started again.
    pub old: Option<String>,
}

impl WorkerKey {
    /// The worker of the present engine.
    #[must_use]
    pub fn new(tenant: impl Into<String>, kind: WorkerKind) -> Self {
        Self {
            tenant: tenant.into(),
            kind,
            old: None,
        }
    }
}

/// What a worker hosts or is about to host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Instances and tasks.
    pub guests: u64,
    /// Memory that they may take together.
    pub mem_bytes: u64,
    /// Their share of CPU in thousandths of a core.
    pub cpus_milli: i64,
}

/// What a worker said when it was connected.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerHello {
    /// Names the process, so that a new one is told from the old.
    pub process: String,
    /// Key of compiled images.
    pub engine: String,
    /// Instances it has.
    pub instances: Vec<v1::HelloInstance>,
    /// Tasks it has.
    pub tasks: Vec<v1::WasmTaskState>,
    /// Executors it has.
    pub executors: Vec<v1::HelloExecutor>,
}

/// How a native task ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeExit {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// Why it was never executed.
    pub failure: Option<String>,
    /// Killed for too much memory.
    pub oom: bool,
    /// Content of its result file.
    pub data: Vec<u8>,
    /// What was wrong with its result file.
    pub data_problem: Option<String>,
    /// When it ended.
    pub ended_ms: TimeMs,
}

/// What was seen of a native task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeObservation {
    /// Never started, and may be.
    NotStarted,
    /// A cancellation came before its start.
    Cancelled,
    /// It runs.
    Running,
    /// It could not be started.
    StartFailed(String),
    /// It ended.
    Exited(NativeExit),
    /// Its shim is gone without a record; what was left of it has been ended.
    ShimLost,
    /// The machine was started anew.
    Rebooted,
}

/// Why a component or an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SupplyFailure {
    /// Trying again may help.
    Retry(String),
    /// It will never be there.
    Unusable(String),
    /// The bytes of its component are not there any more, or are damaged: they are to be had again.
    Gone(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Append these records; with `sync` they must survive a power cut before the next action.
    Checkpoint {
        /// In order.
        records: Vec<v1::CheckpointRecord>,
        /// Whether the following actions rely on them.
        sync: bool,
    },
    /// Send to the master; dropped when there is no session.
    Send(v1::agent_message::Message),
    /// Make the sandbox of a member of a task group, none of which has started; answer with
    /// `on_prepared`.
    Prepare {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// What it is to run.
        spec: Arc<TaskSpec>,
        /// The worker that will run it, when it is a Wasm task.
        worker: Option<WorkerKey>,
    },
    /// Start a native task, unless it was started before; answer with an observation. A child is started
    /// inside its executor's limits.
    StartNative {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// What to run.
        spec: Arc<TaskSpec>,
        /// With what.
        launch: Launch,
    },
    /// Look at what there is of a native task, watch it if it runs; answer with an observation.
    InspectNative {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// Needed to read its result.
        spec: Arc<TaskSpec>,
    },
    /// Make sure that a task which has not started never will; answer with an observation.
    CancelNative {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// Needed to read its result.
        spec: Arc<TaskSpec>,
    },
    /// Ask a native task's processes to end, or end them.
    SignalNative {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// Without asking.
        force: bool,
    },
    /// Send a Wasm task to its worker.
    StartWasm {
        /// Which worker.
        worker: WorkerKey,
        /// Which task.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// What to run.
        spec: Arc<TaskSpec>,
        /// With what.
        launch: Launch,
        /// The component of the spec.
        component: Digest,
        /// The limits of its role that differ from their defaults.
        limits: Vec<v1::Limit>,
        /// Key of the image.
        engine: String,
    },
    /// The sandbox of a forgotten task may be collected.
    Forgotten {
        /// Which.
        key: TaskKey,
    },
    /// Have a component's bytes on disk; answer with `on_component`.
    EnsureComponent {
        /// Which.
        digest: Digest,
    },
    /// Have a component compiled; answer with `on_image`.
    EnsureImage {
        /// Which.
        digest: Digest,
        /// For which engine.
        engine: String,
        /// Of the tenant that needs it first, in whose turn it is compiled.
        tenant: String,
        /// What is there is damaged, and goes.
        anew: bool,
    },
    /// Have a component on disk and compiled when nothing else is to be compiled; answer with
    /// `on_compiled_ahead`.
    CompileAhead {
        /// Which.
        digest: Digest,
    },
    /// Have a worker running and connected; answer with `on_worker_up` or `on_worker_down`.
    EnsureWorker {
        /// Which.
        worker: WorkerKey,
    },
    /// Make a worker as large as what it hosts, before any of it is sent there.
    SizeWorker {
        /// Which.
        worker: WorkerKey,
        /// What it hosts.
        load: WorkerLoad,
    },
    /// Ask a worker that nothing needs to end.
    StopWorker {
        /// Which.
        worker: WorkerKey,
    },
    /// Announce an instance to its worker, then fetch its state and pass it on; answer with
    /// `on_state_failed` when that does not succeed.
    StartInstance {
        /// Which worker.
        worker: WorkerKey,
        /// What.
        instance: v1::DesiredInstance,
        /// Key of the image.
        engine: String,
    },
    /// Tell an instance that is ready its new limits.
    UpdateInstance {
        /// Which worker.
        worker: WorkerKey,
        /// What.
        instance: v1::DesiredInstance,
    },
    /// What an executor and its tasks may use together; its native children are inside of it.
    LimitExecutor {
        /// Which.
        executor: ExecutorKey,
        /// Which life.
        life: u64,
        /// How much.
        total: Quantities,
    },
    /// Send an executor with its state to its worker; answer with `on_executor_not_started` when that
    /// does not succeed.
    StartExecutor {
        /// Which worker.
        worker: WorkerKey,
        /// What, without state and image.
        start: Box<v1::StartExecutor>,
        /// Its durable state.
        state: Vec<v1::KeyWrite>,
        /// Its component.
        component: Digest,
        /// Key of the image.
        engine: String,
    },
    /// An executor and all of its children are gone: nothing of this life is needed any more.
    ExecutorEnded {
        /// Which.
        executor: ExecutorKey,
        /// Which life.
        life: u64,
    },
    /// Pass a message to a worker.
    ToWorker {
        /// Which.
        worker: WorkerKey,
        /// What.
        message: v1::to_worker::Message,
    },
    /// Tell the operator.
    Warn(String),
}
