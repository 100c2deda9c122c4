//! From fork to exec: everything that happens in the task's own process before its program.
//!
//! Invariants: all that can be prepared is prepared before the fork; the process is in the task's group
//! before anything of the task's is touched; privileges are dropped before anything of it runs; every
//! failure is told to the shim through a pipe that a successful exec closes. This file must never run
//! code of the shim in the child beyond these steps.

use crate::handled_signals;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{self, ForkResult, Gid, Pid, Uid, fork, pipe2};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use tessera_oci::{GroupFiles, ShimSpec, TaskUser};

/// Where programs are looked for when the task's environment has no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes of a failure's text.
const FAILURE_BYTES_MAX: u64 = 1024;
/// Open files of a task when it asks for no more: what programs that use `select` can take.
const OPEN_FILES: u64 = 1_024;
/// Tasks are killed before the agent and its workers when the whole machine is out of memory.
const OOM_SCORE_ADJ: &str = "200";

/// A program with everything that its exec needs.
pub struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    sandbox: PathBuf,
    group: Vec<PathBuf>,
    data_bytes: Option<u64>,
    user: Option<TaskUser>,
}

fn c(text: impl Into<Vec<u8>>, what: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{what} must not contain NUL"))
}

impl Program {
    /// Prepare a program.
    pub fn of(spec: &ShimSpec) -> Result<Self, String> {
        let name = spec
            .argv
            .first()
            .filter(|name| !name.is_empty())
            .ok_or("argv needs a program")?;
        let path = spec
            .env
            .iter()
            .find(|(key, _)| key == "PATH")
            .map_or(PATH_DEFAULT, |(_, value)| value);
        let candidates = if name.contains('/') {
            vec![c(name.as_str(), "argv")?]
        } else {
            path.split(':')
                .map(|directory| if directory.is_empty() { "." } else { directory })
                .map(|directory| c(format!("{directory}/{name}"), "argv"))
                .collect::<Result<_, _>>()?
        };
        Ok(Self {
            candidates,
            argv: spec
                .argv
                .iter()
                .map(|word| c(word.as_str(), "argv"))
                .collect::<Result<_, _>>()?,
            env: spec
                .env
                .iter()
                .map(|(k, v)| c(format!("{k}={v}"), "env"))
                .collect::<Result<_, _>>()?,
            sandbox: spec.sandbox.clone(),
            group: spec.group.procs.clone(),
            data_bytes: spec.data_bytes,
            user: spec.user.clone(),
        })
    }
}

/// Start a program, and return when it has been executed.
#[allow(unsafe_code)]
pub fn start(program: &Program, output: (BorrowedFd<'_>, BorrowedFd<'_>)) -> Result<Pid, String> {
    let (failure, tell) = pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("making a pipe: {e}"))?;
    let null = File::open("/dev/null").map_err(|e| format!("opening /dev/null: {e}"))?;
    // SAFETY: this process has one thread, so the child may go on with everything it has.
    match unsafe { fork() }.map_err(|e| format!("making a process: {e}"))? {
        ForkResult::Child => {
            drop(failure);
            let Err(message) = become_program(program, &null, output);
            // The shim sees the end of the pipe in any case.
            let _ = File::from(tell).write_all(message.as_bytes());
            // SAFETY: ends this process without running anything that belongs to the shim.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            wait_for_exec(child, failure)
        }
    }
}

fn wait_for_exec(child: Pid, failure: OwnedFd) -> Result<Pid, String> {
    let mut message = String::new();
    let read = File::from(failure)
        .take(FAILURE_BYTES_MAX)
        .read_to_string(&mut message);
    if read.is_ok() && message.is_empty() {
        return Ok(child);
    }
    // It has said why and ends by itself; reaping it here keeps its status from being taken for an end.
    let _ = nix::sys::wait::waitpid(child, None);
    Err(message)
}

fn become_program(
    program: &Program,
    null: &File,
    (stdout, stderr): (BorrowedFd<'_>, BorrowedFd<'_>),
) -> Result<Infallible, String> {
    unistd::setsid().map_err(|e| format!("making a session: {e}"))?;
    GroupFiles::join(&program.group).map_err(|e| format!("joining the control group: {e}"))?;
    // Refused where a container's manager has set a floor; the default is then kept.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    unistd::dup2_stdin(null)
        .and_then(|()| unistd::dup2_stdout(stdout))
        .and_then(|()| unistd::dup2_stderr(stderr))
        .map_err(|e| format!("connecting the output: {e}"))?;
    reset_open_files().map_err(|e| format!("limiting open files: {e}"))?;
    if let Some(bytes) = program.data_bytes {
        setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
            .map_err(|e| format!("limiting memory: {e}"))?;
    }
    reset_signals().map_err(|e| format!("resetting signals: {e}"))?;
    close_on_exec();
    // Before the user changes: the directories above the sandbox need not be open to it.
    unistd::chdir(&program.sandbox).map_err(|e| format!("entering the sandbox: {e}"))?;
    if let Some(user) = &program.user {
        drop_to(user).map_err(|e| format!("changing to user {}: {e}", user.name))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(|e| format!("setting no_new_privs: {e}"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    exec(program)
}

/// The agent raises its own limit, which a task must not inherit; it may raise its own again.
fn reset_open_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)
}

#[allow(unsafe_code)]
fn reset_signals() -> nix::Result<()> {
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of this process. What the agent ignored (Rust's
        // start-up ignores SIGPIPE) is not what programs expect.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&handled_signals()), None)
}

#[allow(unsafe_code)]
fn close_on_exec() {
    // SAFETY: only sets a flag on descriptors; those that are in use stay usable until the exec.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
    }
}

fn drop_to(user: &TaskUser) -> nix::Result<()> {
    if !Uid::effective().is_root() {
        // Then it is the same user, which the agent has checked.
        return Ok(());
    }
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    unistd::setgroups(&groups)?;
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)
}

/// Try each candidate as a shell would: go on when it is not there, remember when it may not be run.
fn exec(program: &Program) -> Result<Infallible, String> {
    let mut worst = nix::Error::ENOENT;
    for candidate in &program.candidates {
        let Err(error) = unistd::execve(candidate, &program.argv, &program.env);
        match error {
            nix::Error::ENOENT | nix::Error::ENOTDIR => {}
            nix::Error::EACCES => worst = error,
            _ => {
                return Err(format!(
                    "executing {}: {error}",
                    candidate.to_string_lossy()
                ));
            }
        }
    }
    let name = program
        .argv
        .first()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    Err(format!("executing {name}: {worst}"))
}
