//! Hosting of components: the contract's bindings, the engine and its policy, limits, and one store
//! per guest.
//!
//! Invariants: a guest reaches nothing but what its store holds; everything that it can use up has a
//! limit with a name; generated types of the contract stay inside of this crate. This crate must never
//! hold scheduling rules, speak HTTP or know Raft.

mod bindings;
mod clock;
mod convert;
mod draft;
mod engine;
mod guest;
mod limits;
mod log;
mod random;
mod scheduler;
mod state;
mod wasi;

pub use draft::Refused;
pub use engine::{EPOCH, Place, RUNTIME_VERSION, THREAD_STACK_BYTES, Ticker, engine_key, new_engine};
pub use limits::{CpuClock, LimitPassed, Limits};
pub use log::Logged;
pub use scheduler::{
    Description, Failed, Failure, Scheduler, SchedulerHost, SchedulerImage, Start, rebuild_backoff,
};
pub use state::{State, WriteRefused};
