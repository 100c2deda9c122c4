//! What an agent leaves running on purpose when it stops: shims with their tasks, and workers. Finds
//! and ends them for `tessera dev --kill-tasks`.
//!
//! Invariants: only processes that belong to the given work directory are touched: helpers that name
//! it on their command line, and what they started; only control groups that such a process was in,
//! below a group named `tessera`, are removed, and only when empty. Must never touch another
//! cluster on the same machine.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Programs that outlive an agent.
const HELPERS: [&str; 2] = ["tessera-shim", "tessera-worker"];
/// A killed process is gone long before.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Where control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// One process as /proc shows it.
struct Process {
    parent: i32,
    /// Program and arguments, separated by NUL.
    command: Vec<u8>,
}

fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold blanks and parentheses itself.
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (state != "Z").then_some((pid, Process { parent, command }))
        })
        .collect()
}

fn is_helper_of(process: &Process, work_dir: &Path) -> bool {
    let mut words = process.command.split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    let name = program
        .rsplit(|&byte| byte == b'/')
        .next()
        .unwrap_or_default();
    let dir = work_dir.as_os_str().as_bytes();
    HELPERS.iter().any(|helper| helper.as_bytes() == name)
        && words.any(|word| {
            word == dir
                || word
                    .strip_prefix(dir)
                    .is_some_and(|rest| rest.starts_with(b"/"))
        })
}

/// Pids of the helpers of this work directory, and of everything that they started.
pub fn find(work_dir: &Path) -> BTreeSet<i32> {
    let processes = processes();
    let mut found: BTreeSet<i32> = processes
        .iter()
        .filter(|(_, process)| is_helper_of(process, work_dir))
        .map(|(pid, _)| *pid)
        .collect();
    loop {
        let more: Vec<i32> = processes
            .iter()
            .filter(|(pid, process)| found.contains(&process.parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Control groups below one named `tessera` that this process is in.
fn groups(pid: i32) -> BTreeSet<PathBuf> {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
        return BTreeSet::new();
    };
    let mut groups = BTreeSet::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if !path.split('/').any(|part| part.starts_with("tessera")) {
            continue;
        }
        // One mount per v1 hierarchy, `unified` beside them, or v2 alone.
        let mounts = [controllers.trim_start_matches("name="), "unified", "."];
        for mount in mounts {
            let dir = Path::new(CGROUP_ROOT).join(mount).join(path);
            if dir.is_dir() {
                groups.insert(dir);
            }
        }
    }
    groups
}

/// Ends everything of this work directory and removes its control groups; how many processes there
/// were.
pub async fn end(work_dir: &Path) -> usize {
    let deadline = Instant::now() + GONE_WITHIN;
    let mut groups_seen = BTreeSet::new();
    let mut ended = BTreeSet::new();
    // Again until none is found: a shim may have started something in between.
    loop {
        let found = find(work_dir);
        if found.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in found {
            groups_seen.extend(groups(pid));
            // That it has ended by itself is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            ended.insert(pid);
        }
        tokio::time::sleep(POLL).await;
    }
    for group in groups_seen {
        remove_upwards(&group, deadline).await;
    }
    ended.len()
}

/// Removes a group and those above it, up to one named `tessera`, as far as they are empty.
async fn remove_upwards(group: &Path, deadline: Instant) {
    let mut current = Some(group);
    while let Some(dir) = current.filter(|dir| {
        dir.components()
            .any(|part| part.as_os_str().as_bytes().starts_with(b"tessera"))
    }) {
        // The kernel counts a process for a moment after its end.
        while let Err(error) = std::fs::remove_dir(dir) {
            if error.raw_os_error() != Some(Errno::EBUSY as i32)
                || has_children(dir)
                || Instant::now() > deadline
            {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        current = dir.parent();
    }
}

fn has_children(group: &Path) -> bool {
    std::fs::read_dir(group)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()))
}

#[cfg(test)]
mod tests {
    use super::{Process, is_helper_of};
    use std::path::Path;

    #[test]
    fn only_helpers_of_the_directory_are_found() {
        let process = |words: &[&str]| Process {
            parent: 1,
            command: words.join("\0").into_bytes(),
        };
        let dir = Path::new("/data/agent");
        assert!(is_helper_of(
            &process(&["/bin/tessera-shim", "/data/agent/tasks/f1/t"]),
            dir
        ));
        assert!(is_helper_of(
            &process(&["tessera-worker", "serve", "--socket", "/data/agent/run/s"]),
            dir
        ));
        for other in [
            process(&["/bin/tessera-shim", "/data/agent2/tasks/f1/t"]),
            process(&["/bin/tessera", "agent", "--work-dir", "/data/agent"]),
            process(&["vi", "/data/agent/x"]),
            process(&[""]),
        ] {
            assert!(!is_helper_of(&other, dir));
        }
    }
}
