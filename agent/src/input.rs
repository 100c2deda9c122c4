//! The closed set of what the agent's loop hears, apart from the session and the links.
//!
//! This file must never hold behaviour.

use crate::metrics::Look;
use std::collections::BTreeSet;
use tessera_agent_core::{ChildSeen, ExecutorKey, NativeObservation, SupplyFailure, TaskKey, WorkerKey};
use tessera_types::{Digest, FrameworkId};
use tessera_wire::v1;
use tokio::sync::oneshot;

/// Inputs that wait for the loop. Each comes from a step that the loop itself began, and a sender waits
/// when it is full.
pub const INPUTS_MAX: usize = 1_024;

/// One thing that happened.
#[derive(Debug)]
pub enum Input {
    /// A native task was seen.
    Native {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// How it is.
        seen: NativeObservation,
    },
    /// A component is here, or is not.
    Component(Digest, Result<(), SupplyFailure>),
    /// An image is here, or is not.
    Image(Digest, String, Result<(), SupplyFailure>),
    /// A component is compiled ahead of need, or is not.
    CompiledAhead(Digest, Result<(), SupplyFailure>),
    /// A worker could not be had.
    NoWorker(WorkerKey),
    /// This process of a worker should have greeted by now.
    GreetingDue(WorkerKey, String),
    /// This process of a worker should have ended by now.
    EndDue(WorkerKey, String),
    /// Room that a worker does not need is to be taken back.
    RoomDue(WorkerKey),
    /// Somebody asks for the children of a framework's executors.
    Children(FrameworkId, oneshot::Sender<Vec<ChildSeen>>),
    /// Somebody wants numbers of what the loop has.
    Look(oneshot::Sender<Look>),
    /// Files of components that nothing uses are to be looked for.
    CachesDue,
    /// Somebody asks which components are used; nothing when that is not known yet.
    ComponentsInUse(oneshot::Sender<Option<BTreeSet<Digest>>>),
    /// The state of an instance did not come.
    StateFailed(v1::InstanceKey),
    /// The sandbox of a member of a task group is made, or cannot be.
    Prepared {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// Why not.
        result: Result<(), String>,
    },
    /// The order to start an executor did not reach its worker.
    ExecutorNotStarted(ExecutorKey, String),
    /// A Wasm task can go to its worker.
    WasmPrepared(WorkerKey, Box<v1::StartWasmTask>),
    /// A Wasm task cannot be prepared.
    WasmRefused {
        /// Which.
        key: TaskKey,
        /// Which attempt.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// A Wasm task ended, and its result file was read.
    WasmEnded(WorkerKey, Box<v1::WasmTaskState>, Result<Vec<u8>, String>),
}
