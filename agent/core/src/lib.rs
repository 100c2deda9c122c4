//! The agent's decisions: what is desired against what is observed, per task and per scheduler
//! instance, and what is to be done next.
//!
//! Invariants: an input is a method call with `now`; the output is a list of [`Action`]s to be performed
//! in order, and a checkpoint in it comes first, so that nothing is done before it is on record. Inputs
//! may come twice, late, or for things that are unknown. No task ever ends because a master is away.
//! This crate must never read a clock, do IO, or depend on hash order.

mod action;
mod ahead;
mod caches;
mod children;
mod core;
mod desired;
mod executor_events;
mod executor_records;
mod executor_turns;
mod executors;
mod groups;
mod instances;
mod killing;
mod outbox;
mod phases;
mod records;
mod recovery;
mod supplies;
mod task;
mod wasm;
mod workers;

pub use action::{
    Action, ExecutorKey, NativeExit, NativeObservation, Now, Parent, SupplyFailure, TaskKey,
    WorkerHello, WorkerKey, WorkerKind, WorkerLoad,
};
pub use children::ChildSeen;
pub use core::{Core, CoreConfig, WORKER_IDLE_MS};
pub use records::{CHECKPOINT_VERSION, RecordError};
pub use supplies::IMAGE_DAMAGED;
