//! What an agent leaves running on purpose when it stops: shims with their tasks, and workers. Finds
//! and ends them for `tessera dev --kill-tasks`.
//!
//! Invariants: only processes that belong to the given work directory are touched: helpers that name
//! it on their command line, and what they started; only the control groups of that directory's agent
//! are removed, and only when empty. Must never touch another cluster on the same machine.

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
/// An agent's group is named by so much of its key.
const GROUP_NAME_BYTES: usize = 16;

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

/// The control groups of the agent of this work directory, in every hierarchy: they are named by
/// the key that it wrote down.
fn groups(work_dir: &Path) -> Vec<PathBuf> {
    let identity = std::fs::read(work_dir.join("agent.json")).unwrap_or_default();
    let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap_or_default();
    let Some(name) = identity
        .get("key")
        .and_then(|key| key.as_str()?.get(..GROUP_NAME_BYTES))
    else {
        return Vec::new();
    };
    if !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Vec::new();
    }
    let below = |mount: &Path| Some(mount.join("tessera").join(name)).filter(|dir| dir.is_dir());
    // Version 2 alone is mounted at the root, others each in a directory of their own.
    let mounts = std::fs::read_dir(CGROUP_ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once(PathBuf::from(CGROUP_ROOT))
        .chain(mounts)
        .filter_map(|mount| below(&mount))
        .collect()
}

/// Ends everything of this work directory and removes its control groups; how many processes there
/// were.
pub async fn end(work_dir: &Path) -> usize {
    let deadline = Instant::now() + GONE_WITHIN;
    let mut ended = BTreeSet::new();
    // Again until none is found: a shim may have started something in between.
    loop {
        let found = find(work_dir);
        if found.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in found {
            // That it has ended by itself is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            ended.insert(pid);
        }
        tokio::time::sleep(POLL).await;
    }
    for group in groups(work_dir) {
        remove_tree(&group, deadline).await;
    }
    ended.len()
}

/// Removes a group with all groups below it. One that is not empty stays, and those above it.
async fn remove_tree(group: &Path, deadline: Instant) {
    let mut groups = vec![group.to_owned()];
    let mut index = 0;
    while let Some(dir) = groups.get(index).cloned() {
        let below = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        groups.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
        index += 1;
    }
    // Those below come later in the list.
    for dir in groups.iter().rev() {
        // The kernel counts a process for a moment after its end.
        while let Err(error) = std::fs::remove_dir(dir) {
            if error.raw_os_error() != Some(Errno::EBUSY as i32) || Instant::now() > deadline {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
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
