//! What the process itself is held to, beside its guests.
//!
//! Invariants: a limit is set before the first byte that is not ours is looked at; privileges are
//! dropped before the first thread. This file must never give a privilege back.

use crate::{reach, seccomp};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use tessera_types::{EffectiveLimits, LimitName};

/// Address space once a component is compiled, beside what compiling it may take: each memory reserves 4 GiB
/// and guards, and a role may be given 100 of them. What of it is used, limits of the guest say.
const RUN_BYTES: u64 = 512 << 30;
/// CPU time in which a process that has used up its own can still say so, in seconds.
const CPU_GRACE_S: u64 = 5;
/// Largest file that a compilation writes.
const COMPILE_FILE_BYTES: u64 = 1 << 30;
/// Files that a worker has open at most: each task has its output, its sandbox and what it opens.
const WORKER_FILES: u64 = 65_536;

/// The usual priority of 0, as this limit counts.
const NICE_USUAL: u64 = 20;

/// Why the process could not be limited.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A call was refused.
    #[error("{what}: {source}")]
    Call {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: nix::Error,
    },
    /// Files could not be given up.
    #[error("{0}")]
    Reach(String),
}

fn at(what: &'static str) -> impl Fn(nix::Error) -> JailError {
    move |source| JailError::Call { what, source }
}

fn limit(resource: Resource, soft: u64, hard: u64, what: &'static str) -> Result<(), JailError> {
    let (_, most) = getrlimit(resource).map_err(at(what))?;
    setrlimit(resource, soft.min(most), hard.min(most)).map_err(at(what))
}

/// Never gain a privilege by executing a program: also what the kernel asks for before it takes a filter.
///
/// # Errors
/// When the kernel refuses.
pub fn forbid_privileges() -> Result<(), JailError> {
    prctl::set_no_new_privs().map_err(at("no_new_privs"))
}

fn harden() -> Result<(), JailError> {
    forbid_privileges()?;
    limit(Resource::RLIMIT_CORE, 0, 0, "core files")
}

/// Limit a process that compiles one component, to files that are open already.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_compile(limits: &EffectiveLimits) -> Result<(), JailError> {
    harden()?;
    let bytes = limits.get(LimitName::CompileBytes);
    limit(
        Resource::RLIMIT_AS,
        bytes,
        bytes.saturating_add(RUN_BYTES),
        "address space",
    )?;
    let seconds = limits.get(LimitName::CompileCpuMs).div_ceil(1_000);
    limit(
        Resource::RLIMIT_CPU,
        seconds,
        seconds + CPU_GRACE_S,
        "CPU time",
    )?;
    limit(
        Resource::RLIMIT_FSIZE,
        COMPILE_FILE_BYTES,
        COMPILE_FILE_BYTES,
        "file size",
    )?;
    limit(Resource::RLIMIT_NOFILE, 64, 64, "open files")?;
    // What it needs is open.
    reach::give_up_all().map_err(JailError::Reach)?;
    give_up_calls()
}

/// Give up the system calls that no process of this crate makes.
///
/// # Errors
/// When the kernel has no such filters.
pub fn give_up_calls() -> Result<(), JailError> {
    let code = |error: std::io::Error| nix::Error::from_raw(error.raw_os_error().unwrap_or(0));
    seccomp::enter().map_err(|error| at("a filter of system calls")(code(error)))
}

/// After compiling: room for the address space that an instance reserves.
///
/// # Errors
/// When the kernel refuses.
pub fn widen_for_run() -> Result<(), JailError> {
    let (_, most) = getrlimit(Resource::RLIMIT_AS).map_err(at("address space"))?;
    limit(Resource::RLIMIT_AS, most, most, "address space")
}

/// Limit a process that replays a recording, with a component that somebody else made: it is compiled under
/// the most that any cluster may allow, on the machine of whoever asks, with no files but those that are open.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_replay() -> Result<(), JailError> {
    harden()?;
    let bytes = LimitName::CompileBytes.row().max;
    limit(Resource::RLIMIT_AS, bytes, bytes.saturating_add(RUN_BYTES), "address space")?;
    let seconds = LimitName::CompileCpuMs.row().max.div_ceil(1_000);
    limit(Resource::RLIMIT_CPU, seconds, u64::MAX, "CPU time")?;
    limit(Resource::RLIMIT_NOFILE, 64, 64, "open files")?;
    // What it needs is open.
    reach::give_up_all().map_err(JailError::Reach)?;
    give_up_calls()
}

/// After compiling what is to be replayed: room for an instance, and all the time that its turns take.
///
/// # Errors
/// When the kernel refuses.
pub fn widen_for_replay() -> Result<(), JailError> {
    widen_for_run()?;
    limit(Resource::RLIMIT_CPU, u64::MAX, u64::MAX, "CPU time")
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
