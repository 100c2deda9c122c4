//! The native container runtime of an agent: control groups, users, and the launching, finding again,
//! signalling and waiting of tasks that live under a shim each.
//!
//! Invariants: a task's processes are in its group before its program runs; a launch is idempotent, so
//! that an agent which died halfway repeats it without running anything twice; a process is known by
//! boot id, pid and start time together. This crate must never know offers, frameworks or masters.

pub mod cgroup;
pub mod group;
pub mod launch;
pub mod process;
pub mod record;
pub mod user;

pub use cgroup::{CgroupError, Cgroups, Limits, Stats, Usage};
pub use group::GroupFiles;
pub use launch::{LaunchError, Launched, ShimHandle, TaskFound};
pub use process::Identity;
pub use record::{ExitRecord, ShimRecord, ShimSpec, StartReport};
pub use user::{TaskUser, UserError};
