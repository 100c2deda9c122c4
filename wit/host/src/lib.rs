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
mod executor;
mod executor_convert;
mod executor_draft;
mod executor_guest;
mod guest;
mod http;
mod inspect;
mod limits;
mod log;
mod random;
mod scheduler;
mod state;
mod store;
mod task;
mod wasi;

pub use draft::Refused;
pub use engine::{EPOCH, RUNTIME_VERSION, THREAD_STACK_BYTES, Ticker, engine_key, new_engine, new_engine_without_epochs};
pub use executor::{Executor, ExecutorHost, ExecutorImage, ExecutorLimits, ExecutorStart};
pub use executor_convert::ExecutorName;
pub use inspect::{CONTRACT_VERSION, Inspection, Inspector, Unusable, World, check_bytes};
pub use limits::{LimitPassed, Limits, LogLimits, StateLimits, ThreadControl};
pub use log::Logged;
pub use scheduler::{
    Description, Failed, Scheduler, SchedulerHost, SchedulerImage, Start, rebuild_backoff,
};
pub use state::{State, WriteRefused};
pub use store::Failure;
pub use task::{Kill, OUTPUT_BYTES_MAX, TaskEnd, TaskHost, TaskImage, TaskStart, is_memory_limit};
