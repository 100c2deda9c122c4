//! Launching the shim of a task, and finding a task again after the agent was away.
//!
//! Order: the agent has written its intent; the group exists; `spec.json` is written; the shim claims
//! the launch in `shim.json`; the program runs. Invariants: launching the same state directory again
//! starts nothing twice, because only one claim can be made; a task without claim has never run; an end
//! is only ever read from `exit.json`, never guessed. This file must never decide what an end means.

use crate::process::{self, Identity};
use crate::record::{
    self, EXIT_FILE, ExitRecord, SHIM_FILE, SPEC_FILE, ShimRecord, ShimSpec, StartReport,
};
use nix::sys::signal::Signal;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Most bytes of a shim's start report.
const REPORT_BYTES_MAX: u64 = 64 << 10;
/// How long a task's processes are given to disappear after a kill before the attempt counts as failed:
/// ordinary ones take milliseconds, only those stuck in the kernel longer.
pub const KILL_WITHIN: Duration = Duration::from_secs(5);

/// Why a task could not be launched or found.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of the state directory.
    #[error("{what} in {directory}: {source}", directory = directory.display())]
    State {
        /// What was attempted.
        what: &'static str,
        /// The state directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim's binary could not be started.
    #[error("starting {path}: {source}", path = path.display())]
    Start {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim ended without a report.
    #[error("the shim ended ({status}) without saying whether the task runs: {report}")]
    NoReport {
        /// Its exit status.
        status: String,
        /// What it wrote instead.
        report: String,
    },
}

impl LaunchError {
    /// Whether looking again cannot help: a record is there and is not one.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::State { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            Self::Start { .. } | Self::NoReport { .. } => false,
        }
    }
}

/// A shim that lives.
#[derive(Debug)]
pub struct ShimHandle {
    /// Who it is.
    pub identity: Identity,
    /// Becomes readable when it ends.
    pub ended: OwnedFd,
}

/// What came of a launch.
#[derive(Debug)]
pub enum Launched {
    /// The program runs, started just now.
    Running {
        /// From the shim's first instruction to the execution of the program.
        exec_us: u64,
    },
    /// The program could not be executed.
    Failed {
        /// Why.
        message: String,
    },
    /// The launch was claimed before: [`find`] says by whom and what became of it.
    Taken,
}

/// What there is of a task.
#[derive(Debug)]
pub enum TaskFound {
    /// It was never started, and may be.
    NotStarted,
    /// The launch was cancelled before it began.
    Cancelled,
    /// Its shim lives.
    Running(ShimHandle),
    /// It has ended.
    Exited(Box<ExitRecord>),
    /// Its shim is gone and left no record.
    ShimLost,
    /// The machine was started anew before it left a record.
    Rebooted,
}

/// Start a task's shim and wait until its program runs or cannot be executed. Blocks for some
/// milliseconds.
///
/// # Errors
/// When the state directory cannot be written or the shim does not work.
pub fn launch(shim: &Path, directory: &Path, spec: &ShimSpec) -> Result<Launched, LaunchError> {
    let state = |what, source| LaunchError::State {
        what,
        directory: directory.to_owned(),
        source,
    };
    record::write(directory, SPEC_FILE, spec, false).map_err(|e| state("writing the spec", e))?;
    let failed = |source| LaunchError::Start {
        path: shim.to_owned(),
        source,
    };
    let mut child = Command::new(shim)
        .arg(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut report = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(REPORT_BYTES_MAX)
            .read_to_end(&mut report)
            .map_err(failed)?;
    }
    // The process started here only detaches the shim, so it has ended by now.
    let status = child.wait().map_err(failed)?;
    match serde_json::from_slice(&report) {
        Ok(StartReport::Running { exec_us, pid: _ }) => Ok(Launched::Running { exec_us }),
        Ok(StartReport::Failed { message }) => Ok(Launched::Failed { message }),
        Ok(StartReport::Taken) => Ok(Launched::Taken),
        Err(_) => Err(LaunchError::NoReport {
            status: status.to_string(),
            report: String::from_utf8_lossy(&report).into_owned(),
        }),
    }
}

/// Make sure that a task which has not been started never will be. `false` when it has been.
///
/// # Errors
/// When the state directory cannot be written.
pub fn cancel(directory: &Path) -> Result<bool, LaunchError> {
    record::claim(directory, &ShimRecord { shim: None }).map_err(|source| LaunchError::State {
        what: "cancelling the launch",
        directory: directory.to_owned(),
        source,
    })
}

/// Look at what there is of a task.
///
/// # Errors
/// When the state directory cannot be read.
pub fn find(directory: &Path) -> Result<TaskFound, LaunchError> {
    let state = |what, source| LaunchError::State {
        what,
        directory: directory.to_owned(),
        source,
    };
    let exited = || {
        record::read::<ExitRecord>(&directory.join(EXIT_FILE))
            .map_err(|e| state("reading the exit record", e))
    };
    if let Some(exit) = exited()? {
        return Ok(TaskFound::Exited(Box::new(exit)));
    }
    let claim = record::read::<ShimRecord>(&directory.join(SHIM_FILE))
        .map_err(|e| state("reading the shim's record", e))?;
    let identity = match claim {
        None => return Ok(TaskFound::NotStarted),
        Some(ShimRecord { shim: None }) => return Ok(TaskFound::Cancelled),
        Some(ShimRecord {
            shim: Some(identity),
        }) => identity,
    };
    let lives = identity
        .open()
        .map_err(|e| state("looking for the shim", e))?;
    match lives {
        Some(ended) => Ok(TaskFound::Running(ShimHandle { identity, ended })),
        // It may have ended between the two looks.
        None => match exited()? {
            Some(exit) => Ok(TaskFound::Exited(Box::new(exit))),
            None => {
                let boot = process::boot_id().map_err(|e| state("reading the boot id", e))?;
                Ok(if boot == identity.boot {
                    TaskFound::ShimLost
                } else {
                    TaskFound::Rebooted
                })
            }
        },
    }
}

/// Ask all processes of a task to end, or end them. Works by the task's group, or, where there is none,
/// through its shim, which knows its descendants.
///
/// # Errors
/// When the group cannot be listed or the shim cannot be reached.
pub fn signal(
    spec_group: &crate::GroupFiles,
    shim: Option<&ShimHandle>,
    force: bool,
) -> io::Result<()> {
    if spec_group.is_none() {
        let number = if force { libc::SIGUSR1 } else { libc::SIGTERM };
        return shim.map_or(Ok(()), |shim| process::signal(&shim.ended, number));
    }
    if force {
        spec_group.kill_all(KILL_WITHIN).map(drop)
    } else {
        spec_group.signal(Signal::SIGTERM).map(drop)
    }
}
