//! What /proc tells about processes: who they are, their CPU time, their memory.
//!
//! Must never signal a process that it was not given.

use crate::{Outcome, failure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

/// Kernel ticks per second; constant on Linux for user space.
const TICKS_PER_SECOND: u64 = 100;

/// Pids of the processes whose program has this name and whose command line names the path.
#[must_use]
pub fn find(program: &str, names: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = names.to_string_lossy();
    let mut pids: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
            let text = String::from_utf8_lossy(&bytes);
            let mut words = text.split('\0');
            let name = words.next()?.rsplit('/').next()?;
            (name == program && words.any(|word| word.starts_with(&*names))).then_some(pid)
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// These processes and everything that they started and that is still their descendant.
#[must_use]
pub fn with_descendants(mut pids: Vec<i32>) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return pids;
    };
    let parents: Vec<(i32, i32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat
                .rsplit_once(") ")?
                .1
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()?;
            Some((pid, parent))
        })
        .collect();
    loop {
        let more = parents
            .iter()
            .filter(|(pid, parent)| pids.contains(parent) && !pids.contains(pid));
        let more: Vec<i32> = more.map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            return pids;
        }
        pids.extend(more);
    }
}

/// Whether the process is there and has not ended.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

/// `kill -9`.
///
/// # Errors
/// When it is not there.
pub fn kill_9(pid: i32) -> Outcome {
    signal(pid, Signal::SIGKILL)
}

/// Send a signal.
///
/// # Errors
/// When the process is not there.
pub fn signal(pid: i32, signal: Signal) -> Outcome {
    if pid <= 1 {
        return Err(failure(format!("{pid} is no process to signal")));
    }
    Ok(kill(Pid::from_raw(pid), signal)?)
}

/// What is in a directory; nothing if it is not there.
#[must_use]
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Control groups of the agents whose work directories are in this directory or one below it. They are
/// named by the beginning of the key that an agent wrote down.
#[must_use]
pub fn groups(dir: &Path) -> Vec<PathBuf> {
    let dirs = below(dir);
    let agents = dirs.iter().flat_map(|dir| below(dir)).chain(dirs.clone());
    let mut found = Vec::new();
    for agent in agents {
        let Ok(text) = std::fs::read(agent.join("agent.json")) else {
            continue;
        };
        let identity: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let Some(name) = identity["key"].as_str().and_then(|key| key.get(..16)) else {
            continue;
        };
        let mounts = below(Path::new("/sys/fs/cgroup"));
        let mounts = mounts.into_iter().chain(["/sys/fs/cgroup".into()]);
        let groups = mounts.map(|mount| mount.join("tessera").join(name));
        found.extend(groups.filter(|group| group.is_dir()));
    }
    found
}

/// Removes these groups as far as they are empty.
pub fn remove_groups(dir: &Path) {
    for group in groups(dir) {
        for child in below(&group) {
            // One that is still in use stays; it is seen by whoever looks at the machine.
            let _ = std::fs::remove_dir(child);
        }
        let _ = std::fs::remove_dir(group);
    }
}

/// CPU time of a process and its threads so far, in µs; its precision is 10 ms.
#[must_use]
pub fn cpu_us(pid: i32) -> u64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return 0;
    };
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return 0;
    };
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Fields 14 and 15 of the line: time in user and kernel mode.
    let ticks = fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0);
    ticks * (1_000_000 / TICKS_PER_SECOND)
}

/// Memory that only this process has, in KiB.
#[must_use]
pub fn private_kib(pid: i32) -> u64 {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
        return 0;
    };
    text.lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}
