//! The vocabulary between the core and the process around it: actions out, observations in.
//!
//! Every action may be performed again after a crash; the process around must never invent one.

use std::sync::Arc;
use tessera_types::{Digest, FrameworkId, Launch, TaskId, TaskSpec, TimeMs};
use tessera_wire::v1;

/// The time of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never jumps; timers are measured by it.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch; statuses carry it.
    pub wall_ms: TimeMs,
}

/// Names a task on this agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// Its framework.
    pub framework: FrameworkId,
    /// Its id in the framework.
    pub task: TaskId,
}

impl From<&TaskKey> for v1::TaskKey {
    fn from(key: &TaskKey) -> Self {
        Self {
            framework: key.framework.0,
            task: key.task.to_string(),
        }
    }
}

impl std::fmt::Display for TaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.framework, self.task)
    }
}

/// What a worker process is for: schedulers and tasks of a tenant never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerKind {
    /// Scheduler instances.
    Schedulers,
    /// Wasm tasks.
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

/// Names a worker process: two per tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The first part of the role.
    pub tenant: String,
    /// What it runs.
    pub kind: WorkerKind,
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
    /// Start a native task, unless it was started before; answer with an observation.
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
    },
    /// Have a worker running and connected; answer with `on_worker_up` or `on_worker_down`.
    EnsureWorker {
        /// Which.
        worker: WorkerKey,
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
