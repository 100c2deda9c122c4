//! What the process itself is held to, beside its guests.
//!
//! Invariants: a limit is set before the first byte that is not ours is looked at; privileges are
//! dropped before the first thread. This file must never give a privilege back.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// Address space while a component is compiled: some need more than 10 GiB.
const COMPILE_BYTES: u64 = 4 << 30;
/// Address space once it is compiled: a memory reserves 4 GiB and guards.
const RUN_BYTES: u64 = 32 << 30;
/// CPU time of a compilation, in seconds.
const COMPILE_CPU_S: u64 = 60;
/// Largest file that a compilation writes.
const COMPILE_FILE_BYTES: u64 = 1 << 30;
/// Files that a worker has open at most: each task has its output, its sandbox and what it opens.
const WORKER_FILES: u64 = 65_536;

/// The usual priority of 0, as this limit counts.
const NICE_USUAL: u64 = 20;

/// Why the process could not be limited.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct JailError {
    what: &'static str,
    source: nix::Error,
}

fn at(what: &'static str) -> impl Fn(nix::Error) -> JailError {
    move |source| JailError { what, source }
}

fn limit(resource: Resource, soft: u64, hard: u64, what: &'static str) -> Result<(), JailError> {
    let (_, most) = getrlimit(resource).map_err(at(what))?;
    setrlimit(resource, soft.min(most), hard.min(most)).map_err(at(what))
}

fn harden() -> Result<(), JailError> {
    prctl::set_no_new_privs().map_err(at("no_new_privs"))?;
    limit(Resource::RLIMIT_CORE, 0, 0, "core files")
}

/// Limit a process that compiles one component.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_compile() -> Result<(), JailError> {
    harden()?;
    limit(
        Resource::RLIMIT_AS,
        COMPILE_BYTES,
        RUN_BYTES,
        "address space",
    )?;
    limit(
        Resource::RLIMIT_CPU,
        COMPILE_CPU_S,
        COMPILE_CPU_S + 5,
        "CPU time",
    )?;
    limit(
        Resource::RLIMIT_FSIZE,
        COMPILE_FILE_BYTES,
        COMPILE_FILE_BYTES,
        "file size",
    )?;
    limit(Resource::RLIMIT_NOFILE, 64, 64, "open files")
}

/// After compiling: room for the address space that an instance reserves.
///
/// # Errors
/// When the kernel refuses.
pub fn widen_for_run() -> Result<(), JailError> {
    limit(Resource::RLIMIT_AS, RUN_BYTES, RUN_BYTES, "address space")
}

/// Limit a worker.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_worker() -> Result<(), JailError> {
    harden()?;
    // Threads that stood behind others may come forward again, down to the usual priority. Only root
    // can allow that; without it they stay behind.
    let _ = setrlimit(Resource::RLIMIT_NICE, NICE_USUAL, NICE_USUAL);
    limit(
        Resource::RLIMIT_NOFILE,
        WORKER_FILES,
        WORKER_FILES,
        "open files",
    )
}

/// Become this user and group for good.
///
/// # Errors
/// When the kernel refuses.
pub fn become_user(uid: u32, gid: u32) -> Result<(), JailError> {
    setgroups(&[]).map_err(at("supplementary groups"))?;
    setgid(Gid::from_raw(gid)).map_err(at("group"))?;
    setuid(Uid::from_raw(uid)).map_err(at("user"))
}
