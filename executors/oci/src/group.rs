//! Acting on all processes of one task through the files of its control group.
//!
//! Invariants: a kill is by group, never by a remembered pid, so that nothing that a task forked is
//! missed and nothing foreign is hit; every loop has a deadline. Works on v1, v2 and both, and does
//! nothing where there is no group. This file must never create or remove a group.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Pause between looks at a group that is being emptied: ending a process takes the kernel about as
/// long.
const EMPTY_POLL: Duration = Duration::from_millis(2);

/// The files through which one task's processes are reached. Empty when the agent may not use control
/// groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFiles {
    /// `cgroup.procs` of each hierarchy; a process joins all of them. The first one is read.
    pub procs: Vec<PathBuf>,
    /// `cgroup.kill`, where v2 has it.
    pub kill: Option<PathBuf>,
    /// `freezer.state` of v1, needed when there is no `cgroup.kill`.
    pub freezer: Option<PathBuf>,
    /// The file with the `oom_kill` counter.
    pub oom: Option<PathBuf>,
}

impl GroupFiles {
    /// Whether there is no group at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.procs.is_empty()
    }

    /// Processes that are in the group now. A group that was removed has none.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let Some(path) = self.procs.first() else {
            return Ok(Vec::new());
        };
        match fs::read_to_string(path) {
            Ok(text) => Ok(text
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect()),
            Err(error) if gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Put the calling process into the group.
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub fn join(procs: &[PathBuf]) -> io::Result<()> {
        for path in procs {
            fs::write(path, "0")?;
        }
        Ok(())
    }

    /// Send a signal to every process of the group, and say to how many.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub fn signal(&self, signal: Signal) -> io::Result<usize> {
        let pids = self.pids()?;
        for &pid in &pids {
            // A process that ended since the listing is what was wanted.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        Ok(pids.len())
    }

    /// End every process of the group and wait until none is left. `false` when some are left at the
    /// deadline, which only processes stuck in the kernel are.
    ///
    /// # Errors
    /// When the kernel refuses to list or to freeze them.
    pub fn kill_all(&self, within: Duration) -> io::Result<bool> {
        if self.is_none() {
            return Ok(true);
        }
        let deadline = Instant::now() + within;
        while !self.pids()?.is_empty() {
            match (&self.kill, &self.freezer) {
                (Some(kill), _) => write_unless_gone(kill, "1")?,
                (None, Some(freezer)) => {
                    // Frozen processes cannot fork away from the listing; the signal waits for the thaw.
                    write_unless_gone(freezer, "FROZEN")?;
                    let signalled = self.signal(Signal::SIGKILL);
                    write_unless_gone(freezer, "THAWED")?;
                    signalled?;
                }
                (None, None) => {
                    self.signal(Signal::SIGKILL)?;
                }
            }
            if Instant::now() >= deadline {
                return Ok(self.pids()?.is_empty());
            }
            std::thread::sleep(EMPTY_POLL);
        }
        Ok(true)
    }

    /// How often the kernel killed something of the group for using too much memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.oom
            .as_deref()
            .and_then(|path| counter(path, "oom_kill"))
            .unwrap_or(0)
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn write_unless_gone(path: &Path, text: &str) -> io::Result<()> {
    match fs::write(path, text) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// One number of a file of `name value` lines.
pub(crate) fn counter(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_whole_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.oom_control");
        fs::write(&path, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        let group = GroupFiles {
            oom: Some(path),
            ..GroupFiles::default()
        };
        assert_eq!(group.oom_kills(), 3);
        assert_eq!(GroupFiles::default().oom_kills(), 0);
    }

    #[test]
    fn a_group_that_is_gone_is_empty() {
        let group = GroupFiles {
            procs: vec!["/nonexistent/cgroup.procs".into()],
            ..GroupFiles::default()
        };
        assert_eq!(group.pids().unwrap(), Vec::<i32>::new());
        assert!(group.kill_all(Duration::from_millis(10)).unwrap());
    }
}
