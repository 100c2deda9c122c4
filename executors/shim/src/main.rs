//! The shim: one small single-threaded process per native task, which outlives the agent that started
//! it and leaves a record of how the task ended.
//!
//! Called as `tessera-shim STATE-DIRECTORY`; reads `spec.json` there, detaches, claims the launch in
//! `shim.json`, runs the program, writes one start report to its standard output, and at the end
//! `exit.json`. Invariants: without the claim nothing is run; after the claim an exit record is written
//! whatever happens; nothing of the task is left running when it is written. The shim must never talk
//! to the network, start threads, or follow a path that the task could have changed.

mod child;
mod logs;
mod supervise;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork, setsid};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tessera_oci::record::{self, EXIT_FILE, SPEC_FILE};
use tessera_oci::{ExitRecord, Identity, ShimRecord, ShimSpec, StartReport};

fn main() {
    let began = Instant::now();
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!(
            "usage: tessera-shim STATE-DIRECTORY\nStarted by the agent, once per native task."
        );
        std::process::exit(2);
    };
    if let Err(message) = run(&directory, began) {
        // Standard output is the agent's pipe; anything that is not a report is shown as the cause.
        println!("{message}");
        std::process::exit(1);
    }
}

fn run(directory: &Path, began: Instant) -> Result<(), String> {
    let spec: ShimSpec = record::read(&directory.join(SPEC_FILE))
        .map_err(|error| format!("reading the spec: {error}"))?
        .ok_or("there is no spec.json in the state directory")?;
    if !detach().map_err(|error| format!("detaching: {error}"))? {
        return Ok(());
    }
    let own = Identity::of(std::process::id() as i32)
        .map_err(|error| format!("finding itself: {error}"))?;
    let claimed = record::claim(directory, &ShimRecord { shim: Some(own) })
        .map_err(|error| format!("claiming the launch: {error}"))?;
    if !claimed {
        report(&StartReport::Taken);
        return Ok(());
    }
    let exit = run_claimed(&spec, began).unwrap_or_else(|message| {
        report(&StartReport::Failed {
            message: message.clone(),
        });
        ExitRecord {
            failure: Some(message),
            ended_ms: now_ms(),
            ..ExitRecord::default()
        }
    });
    let exit = ExitRecord {
        began_ms: now_ms().saturating_sub(began.elapsed().as_millis() as u64),
        ..exit
    };
    record::write(directory, EXIT_FILE, &exit, true)
        .map_err(|error| format!("writing the exit record: {error}"))
}

/// Everything between claim and exit record.
fn run_claimed(spec: &ShimSpec, began: Instant) -> Result<ExitRecord, String> {
    let program = child::Program::of(spec)?;
    let mut logs =
        logs::Logs::create(spec).map_err(|error| format!("making the output files: {error}"))?;
    let signals =
        supervise::block_signals().map_err(|error| format!("blocking signals: {error}"))?;
    let pid = child::start(&program, logs.write_ends())?;
    logs.close_write_ends();
    let exec_us = began.elapsed().as_micros() as u64;
    report(&StartReport::Running {
        pid: pid.as_raw(),
        exec_us,
    });
    settle(spec);
    let exit = supervise::until_ended(pid, spec, &signals, &mut logs);
    Ok(ExitRecord { exec_us, ..exit })
}

/// Fork, and go on in the child as leader of a session of its own. `false` in the parent.
#[allow(unsafe_code)]
fn detach() -> nix::Result<bool> {
    // SAFETY: this process has one thread, so the child may go on with everything it has.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(false),
        ForkResult::Child => {
            setsid()?;
            nix::sys::prctl::set_child_subreaper(true)?;
            close_others();
            Ok(true)
        }
    }
}

/// Close what the agent's process may have leaked, all but the standard descriptors.
#[allow(unsafe_code)]
fn close_others() {
    // SAFETY: nothing of this process holds a descriptor above 2 yet.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
}

/// What can wait until the program runs: let go of the agent's pipe, leave its group and directory.
fn settle(spec: &ShimSpec) {
    if let Ok(null) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        // When these fail the agent only waits for the end of its pipe until the task ends.
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
    // The rest protects the shim where the system allows it.
    let _ = tessera_oci::GroupFiles::join(&spec.shim_group);
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    let _ = nix::unistd::chdir("/");
}

fn report(report: &StartReport) {
    let mut bytes = serde_json::to_vec(report).unwrap_or_default();
    bytes.push(b'\n');
    // The agent may be gone; then nobody needs the report.
    let mut out = io::stdout();
    let _ = out.write_all(&bytes).and_then(|()| out.flush());
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_millis() as u64)
}

/// The signals that the supervising loop takes.
fn handled_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGUSR1]
        .into_iter()
        .collect()
}
