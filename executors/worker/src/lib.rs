//! The sandbox process for components: hosts schedulers, executors and Wasm tasks, and judges and compiles
//! components in throw-away processes.
//!
//! Invariants: guests run on threads of their own under `tessera_wit_host`'s limits; nothing that a
//! guest or a peer sends ends the process; it listens to one agent at a time and outlives it. This
//! crate must never hold cluster state or speak to a master.

mod batch;
pub mod bench;
mod blame;
mod compare;
mod componentize;
mod executor;
mod executors;
mod grants;
mod hosts;
mod image;
mod inbox;
mod instance;
pub mod isolation;
pub mod jail;
pub mod judge;
mod logs;
mod minute;
mod outbox;
pub mod play;
pub mod reach;
mod recorder;
pub mod seccomp;
pub mod replay;
pub mod serve;
mod statics;
mod tasks;
pub mod thread;
mod threads;
pub mod tries;

pub use hosts::Hosts;
