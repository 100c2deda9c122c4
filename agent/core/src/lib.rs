//! The agent's decisions: what is desired against what is observed, per task and per scheduler
//! instance, and what is to be done next.
//!
//! Invariants: an input is a method call with `now`; the output is a list of [`Action`]s to be performed
//! in order, and a checkpoint in it comes first, so that nothing is done before it is on record. Inputs
//! may come twice, late, or for things that are unknown. No task ever ends because a master is away.
//! This crate must never read a clock, do IO, or depend on hash order.

mod action;
mod core;
mod instances;
mod killing;
mod outbox;
mod records;
mod recovery;
mod supplies;
mod task;
mod wasm;

pub use action::{
    Action, NativeExit, NativeObservation, Now, SupplyFailure, TaskKey, WorkerHello, WorkerKey,
    WorkerKind,
};
pub use core::{Core, CoreConfig};
pub use records::{CHECKPOINT_VERSION, RecordError};
