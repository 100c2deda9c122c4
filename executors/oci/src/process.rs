//! Processes: identity that survives pid reuse, and descriptors that signal their end.
//!
//! Invariant: a pid is acted on only after its start time was compared. This file must never start a
//! process.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

/// Who a process is: pids are reused, and numbers of another boot mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The kernel's boot id.
    pub boot: String,
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of `stat`.
    pub start_ticks: u64,
}

/// The kernel's boot id; it stays the same for as long as a process lives, which reads it once.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known.clone());
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| read.trim().to_owned()).clone())
}

/// When a process was started, in clock ticks since boot.
///
/// # Errors
/// When the process does not exist.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    // The file says that it is empty, and would be read in many small steps.
    let mut stat = String::with_capacity(1_024);
    fs::File::open(format!("/proc/{pid}/stat"))?.read_to_string(&mut stat)?;
    // The command's name is in parentheses and may contain anything, so count from the last one.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat without a start time"))
}

/// Private memory of a process in bytes: what it costs beyond what it shares.
///
/// # Errors
/// When the process does not exist or its maps are not readable.
pub fn private_bytes(pid: i32) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib: u64 = maps
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    Ok(kib * 1024)
}

/// Limit the writable memory that a running process has for itself. It may be widened again.
///
/// # Errors
/// When the process is gone, or belongs to another user.
#[allow(unsafe_code)]
pub fn limit_data(process: &Identity, bytes: u64) -> io::Result<()> {
    let Some(_pinned) = process.open()? else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the pointers are null, which the call allows, or to a live value of our own.
    unsafe {
        let (pid, what) = (process.pid, libc::RLIMIT_DATA);
        check(libc::prlimit(pid, what, std::ptr::null(), &raw mut limit))?;
        limit.rlim_cur = bytes.min(limit.rlim_max);
        check(libc::prlimit(pid, what, &raw const limit, std::ptr::null_mut()))
    }
}

impl Identity {
    /// The identity of a running process.
    ///
    /// # Errors
    /// When the process does not exist.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            boot: boot_id()?,
            pid,
            start_ticks: start_ticks(pid)?,
        })
    }

    /// A descriptor that becomes readable when the process ends; `None` when it has ended already.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        if boot_id()? != self.boot {
            return Ok(None);
        }
        let descriptor = match pidfd_open(self.pid) {
            Ok(descriptor) => descriptor,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The descriptor pins the process, so a start time that is equal now stays true of it.
        match start_ticks(self.pid) {
            Ok(ticks) if ticks == self.start_ticks => Ok(Some(descriptor)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[allow(unsafe_code)]
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; a non-negative result is a new descriptor that nobody
    // else owns.
    unsafe {
        let raw = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(raw as i32))
    }
}

/// Send a signal through a descriptor of [`Identity::open`]. A process that has ended is no error.
///
/// # Errors
/// When the kernel refuses.
#[allow(unsafe_code)]
pub fn signal(descriptor: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null pointer, which the call allows for its information argument.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            descriptor.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_memory_of_a_process_is_limited_and_widened() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        let limit = |bytes| {
            limit_data(&identity, bytes).unwrap();
            let limits = fs::read_to_string(format!("/proc/{}/limits", identity.pid)).unwrap();
            let line = limits.lines().find(|l| l.starts_with("Max data size"));
            line.unwrap().split_ascii_whitespace().nth(3).map(str::to_owned)
        };
        assert_eq!(limit(1 << 20), Some("1048576".into()));
        assert_eq!(limit(1 << 30), Some("1073741824".into()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(limit_data(&identity, 1 << 20).is_err());
    }

    #[test]
    fn an_identity_is_lost_with_its_process_or_its_boot() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        let descriptor = identity.open().unwrap().expect("it runs");
        let reused = Identity {
            start_ticks: identity.start_ticks + 1,
            ..identity.clone()
        };
        assert!(reused.open().unwrap().is_none());
        let rebooted = Identity {
            boot: "another".into(),
            ..identity.clone()
        };
        assert!(rebooted.open().unwrap().is_none());
        signal(&descriptor, libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(identity.open().unwrap().is_none());
        signal(&descriptor, libc::SIGKILL).unwrap();
    }

    #[test]
    fn private_memory_of_this_process_is_not_zero() {
        assert!(private_bytes(std::process::id() as i32).unwrap() > 0);
    }
}
