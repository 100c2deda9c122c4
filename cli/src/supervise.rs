//! Keeps one child process running: starts it, writes its log, and starts it again when it falls.
//!
//! Invariants: a child is stopped before its supervisor returns; children notice the death of the
//! supervisor by the end of their standard input, so none is orphaned; the pause between starts
//! grows to [`BACKOFF_MOST`]; a child is given up only while the whole was never ready. Must never
//! decide what a child does.

use crate::error::{CliError, io_error};
use crate::output;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is looked for what a child needs.
const NEEDS_POLL: Duration = Duration::from_millis(10);
/// First pause before a child is started again.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// A child that lived so long was well.
const WELL_AFTER: Duration = Duration::from_secs(3);
/// Falls in a row before a child is given up that was never well, while the whole was never ready: it
/// cannot start at all.
const FALLS_MAX: u32 = 4;
/// Time from TERM to KILL: a master writes its last batch, an agent its checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a log before its older half goes into `<log>.1`.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How often the size of a log is looked at.
const LOG_CHECK: Duration = Duration::from_secs(5);
/// Bytes of a log that are shown when a child cannot start.
const LOG_TAIL_BYTES: u64 = 2_048;

/// What is started, and how.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// `master` or `agent`.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where its stdout and stderr go.
    pub log: PathBuf,
    /// A file that it needs and that another child makes.
    pub needs: Option<PathBuf>,
    /// Cancelled once the whole was ready: from then on no child is given up.
    pub ready: CancellationToken,
}

/// Runs the child until `stop`; its pid, or 0 while there is none, goes to `pid`.
///
/// # Errors
/// When it cannot be started at all.
pub async fn supervise(
    spec: ChildSpec,
    pid: watch::Sender<u32>,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let mut falls = 0;
    let mut was_well = false;
    while spec.needs.as_ref().is_some_and(|path| !path.exists()) {
        tokio::select! {
            () = tokio::time::sleep(NEEDS_POLL) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    loop {
        let mut child = start(&spec)?;
        let started = Instant::now();
        pid.send_replace(child.id().unwrap_or(0));
        let ended = wait(&spec, &mut child, &stop).await;
        pid.send_replace(0);
        let Some(status) = ended else { return Ok(()) };
        let well = started.elapsed() > WELL_AFTER;
        was_well |= well || spec.ready.is_cancelled();
        falls = if well { 1 } else { falls + 1 };
        if !was_well && falls >= FALLS_MAX {
            return Err(CliError::failed(format!(
                "the {} does not start ({})\n{}",
                spec.name,
                describe(status),
                tail(&spec.log)
            ))
            .hint(format!("its log is {}", spec.log.display())));
        }
        let pause = (BACKOFF_FIRST * 2_u32.saturating_pow(falls.min(16) - 1)).min(BACKOFF_MOST);
        output::note(&format!(
            "the {} ended ({}); it is started again in {} ms",
            spec.name,
            describe(status),
            pause.as_millis()
        ));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

fn start(spec: &ChildSpec) -> Result<Child, CliError> {
    let log = |error| io_error("write the log", &spec.log, &error);
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.log)
        .map_err(log)?;
    let err = out.try_clone().map_err(log)?;
    tokio::process::Command::new(&spec.program)
        .args(&spec.args)
        // Stays open as long as the supervisor lives, and is never written to.
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err)
        // A Ctrl-C at the terminal is the supervisor's: it stops its children in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io_error("start", &spec.program, &error))
}

/// How the child ended by itself, or nothing when it was stopped.
async fn wait(spec: &ChildSpec, child: &mut Child, stop: &CancellationToken) -> Option<ExitStatus> {
    let stdin = child.stdin.take();
    let mut check = tokio::time::interval(LOG_CHECK);
    loop {
        tokio::select! {
            status = child.wait() => return status.ok(),
            _ = check.tick() => bound_log(&spec.log),
            () = stop.cancelled() => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    // That it has ended already is what is wanted.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
                if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
                    output::note(&format!("the {} did not stop within {} s and is killed", spec.name, STOP_WITHIN.as_secs()));
                    // Waits for its end, too; a child that cannot be killed cannot be waited for.
                    let _ = child.kill().await;
                }
                drop(stdin);
                return None;
            }
        }
    }
}

/// Keeps a log that is appended to within [`LOG_BYTES_MAX`], and as much again in `<log>.1`.
fn bound_log(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        let mut old = log.as_os_str().to_owned();
        old.push(".1");
        // The log is emptied even if it cannot be kept: a full disk would be worse.
        let _ = std::fs::copy(log, &old);
        let _ = OpenOptions::new().write(true).truncate(true).open(log);
    }
}

fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines
        .into_iter()
        .rev()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{ChildSpec, supervise};
    use std::time::Duration;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    fn shell(command: &str, dir: &std::path::Path) -> ChildSpec {
        let args = ["-c", command].map(Into::into).to_vec();
        ChildSpec {
            name: "master",
            program: "/bin/sh".into(),
            args,
            log: dir.join("log"),
            needs: None,
            ready: CancellationToken::new(),
        }
    }

    fn directory(name: &str) -> std::path::PathBuf {
        let dir =
            std::env::temp_dir().join(format!("tessera-supervise-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_child_that_cannot_start_is_given_up_with_its_last_words() {
        let dir = directory("fall");
        let (pid, _) = watch::channel(0);
        let error = supervise(
            shell("echo broken; exit 3", &dir),
            pid,
            CancellationToken::new(),
        )
        .await
        .unwrap_err();
        assert!(
            error.message.contains("exit code 3") && error.message.contains("| broken"),
            "{error}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_fallen_child_is_started_again_and_stopped_in_the_end() {
        let dir = directory("again");
        let (pid, mut watched) = watch::channel(0);
        let stop = CancellationToken::new();
        let running = tokio::spawn(supervise(shell("exec sleep 60", &dir), pid, stop.clone()));
        let within = Duration::from_secs(20);
        let first = *tokio::time::timeout(within, watched.wait_for(|pid| *pid != 0))
            .await
            .unwrap()
            .unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(first.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        let other = |pid: &u32| *pid != 0 && *pid != first;
        tokio::time::timeout(within, watched.wait_for(other))
            .await
            .unwrap()
            .unwrap();
        stop.cancel();
        tokio::time::timeout(within, running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(*watched.borrow(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
