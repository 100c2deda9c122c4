//! The shim's loop: reads the task's output, takes signals, reaps, and ends what is left of the task
//! when its program has ended.
//!
//! Invariants: one poll, no threads; SIGTERM asks the task's processes to end and SIGUSR1 ends them,
//! which the agent uses where there are no control groups; every wait after the program's end has a
//! deadline. This file must never write a record.

use crate::logs::Logs;
use crate::{handled_signals, now_ms};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeValLike as _;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};
use tessera_oci::launch::KILL_WITHIN;
use tessera_oci::{ExitRecord, ShimSpec};

/// How long output is still read after everything of the task was ended: what is in the pipes arrives at
/// once, and only a foreign process that was handed a pipe could keep it open.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two looks at descendants that are being ended.
const END_POLL: Duration = Duration::from_millis(2);
/// Most processes that one signal is sent to where there is no group: a bound on the walk.
const TREE_MAX: usize = 100_000;

/// Take the handled signals by descriptor from now on.
pub fn block_signals() -> nix::Result<SignalFd> {
    let mask = handled_signals();
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Run until the program has ended and nothing of the task is left.
pub fn until_ended(main: Pid, spec: &ShimSpec, signals: &SignalFd, logs: &mut Logs) -> ExitRecord {
    let mut status = None;
    while status.is_none() {
        turn(signals, logs, spec, PollTimeout::NONE);
        status = reap(main);
    }
    let ended_ms = now_ms();
    end_rest(spec);
    let oom = spec.group.oom_kills() > 0;
    let deadline = Instant::now() + DRAIN_WITHIN;
    while logs.open_pipes().next().is_some() && Instant::now() < deadline {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        turn(
            signals,
            logs,
            spec,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
        );
    }
    let (code, signal) = match status {
        Some(WaitStatus::Exited(_, code)) => (Some(code), None),
        Some(WaitStatus::Signaled(_, signal, _)) => (None, Some(signal as i32)),
        _ => (None, None),
    };
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok();
    ExitRecord {
        code,
        signal,
        failure: None,
        oom,
        user_us: usage.map_or(0, |u| u.user_time().num_microseconds() as u64),
        system_us: usage.map_or(0, |u| u.system_time().num_microseconds() as u64),
        max_rss_kib: usage.map_or(0, |u| u.max_rss() as u64),
        began_ms: 0,
        ended_ms,
        dropped_bytes: logs.dropped,
        exec_us: 0,
    }
}

/// Wait for output or a signal, and deal with what there is.
fn turn(signals: &SignalFd, logs: &mut Logs, spec: &ShimSpec, timeout: PollTimeout) {
    let (ready, signalled) = {
        let mut indices = Vec::with_capacity(2);
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        for (index, pipe) in logs.open_pipes() {
            indices.push(index);
            waits.push(PollFd::new(pipe, PollFlags::POLLIN));
        }
        if poll(&mut waits, timeout).is_err() {
            return;
        }
        let fired = |wait: &PollFd<'_>| wait.revents().is_some_and(|events| !events.is_empty());
        let mut waits = waits.iter();
        let signalled = waits.next().is_some_and(fired);
        let ready: Vec<usize> = waits
            .zip(indices)
            .filter(|(wait, _)| fired(wait))
            .map(|(_, index)| index)
            .collect();
        (ready, signalled)
    };
    for index in ready {
        logs.copy(index);
    }
    if !signalled {
        return;
    }
    while let Ok(Some(info)) = signals.read_signal() {
        match i32::try_from(info.ssi_signo) {
            Ok(libc::SIGTERM) => ask(spec, Signal::SIGTERM),
            Ok(libc::SIGUSR1) => ask(spec, Signal::SIGKILL),
            _ => {}
        }
    }
}

fn ask(spec: &ShimSpec, signal: Signal) {
    if spec.group.is_none() {
        signal_descendants(signal);
    } else {
        // The agent sends it again when the task does not end.
        let _ = spec.group.signal(signal);
    }
}

/// Reap everything that has ended, and say how the program did when it is among them.
fn reap(main: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return found,
            Ok(status) if status.pid() == Some(main) => found = Some(status),
            Ok(_) => {}
        }
    }
}

/// End whatever the program left behind.
fn end_rest(spec: &ShimSpec) {
    // What cannot be ended here is reported by the agent, which kills the group again and removes it.
    let _ = spec.group.kill_all(KILL_WITHIN);
    let deadline = Instant::now() + KILL_WITHIN;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(WaitStatus::StillAlive) => {
                signal_descendants(Signal::SIGKILL);
                std::thread::sleep(END_POLL);
            }
            Ok(_) => {}
        }
    }
}

/// Signal every process that descends from this one. Orphans are among them, because the shim adopts
/// them.
fn signal_descendants(signal: Signal) {
    let mut next = vec![std::process::id() as i32];
    let mut seen = 0;
    while let Some(parent) = next.pop() {
        for pid in children(parent) {
            // One that ended since the listing is what was wanted.
            let _ = kill(Pid::from_raw(pid), signal);
            next.push(pid);
            seen += 1;
            if seen >= TREE_MAX {
                return;
            }
        }
    }
}

fn children(parent: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}
