//! Control groups of tasks and workers: which hierarchies this machine has, and groups below one root.
//!
//! Invariants: v1, v2 and machines that mount both are told apart at run time; every group stands below
//! the root given to [`Cgroups::detect`]; where limits cannot be set, [`Cgroups::unlimited_because`]
//! says why, and nothing pretends to limit. This file must never signal a process.

use crate::group::{GroupFiles, counter};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Smallest memory limit: below it not even a shell starts, so a task that asked for less gets this.
pub const MEM_FLOOR_MIB: i64 = 16;
/// Period of the CPU quota, the kernel's default.
const CFS_PERIOD_US: i64 = 100_000;
/// Smallest quota the kernel takes.
const CFS_QUOTA_MIN_US: i64 = 1_000;
/// Smallest v1 share the kernel takes.
const SHARES_MIN: i64 = 2;
/// Largest v1 share the kernel takes.
const SHARES_MAX: i64 = 262_144;
/// How long the removal of a group is tried: the kernel still counts a process for a moment after it
/// was reaped.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two tries of a removal.
const REMOVE_POLL: Duration = Duration::from_millis(2);
/// Controllers that limit something.
const LIMITING: [&str; 3] = ["cpu", "memory", "pids"];

/// Why control groups could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file or directory of a hierarchy.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A limit was refused.
    #[error("setting {what} of {group}: {cause}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// Of which group.
        group: String,
        /// What the library said.
        cause: String,
    },
    /// A name that would leave the root.
    #[error("{0:?} is not the name of a group")]
    Name(String),
}

/// Limits of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Share of CPU in thousandths of a core: a weight, not a ceiling.
    pub cpus_milli: i64,
    /// Ceiling of CPU in thousandths of a core.
    pub cpus_limit_milli: Option<i64>,
    /// Hard limit of memory; no limit when absent.
    pub mem_mib: Option<i64>,
    /// Most processes and threads.
    pub pids: u32,
}

/// What a group uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of memory, cached files that can be dropped left out.
    pub memory_bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Kills by the kernel for too much memory.
    pub oom_kills: u64,
}

/// What a group takes of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since it was made, in microseconds.
    pub cpu_us: u64,
    /// Bytes of memory now, cached files that can be dropped left out.
    pub memory_bytes: u64,
}

/// The hierarchies that this process may use.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// v1 mounts by controller: those that limit, and the freezer where v2 cannot kill a group.
    v1: BTreeMap<&'static str, PathBuf>,
    v2: Option<PathBuf>,
    /// Limiting controllers that v2 has here.
    v2_controllers: Vec<&'static str>,
    /// Whether v2 can kill a whole group.
    group_kill: bool,
    root: String,
    unlimited: Option<String>,
}

impl Cgroups {
    /// Look at what this machine mounts, and make the group `root` (a relative path) in every hierarchy.
    /// Never fails: without permission the result only says why there are no limits.
    #[must_use]
    pub fn detect(root: &str) -> Self {
        match fs::read_to_string("/proc/self/mounts") {
            Ok(mounts) => Self::from_mounts(&mounts, root),
            Err(error) => Self::none(root, format!("the list of mounts cannot be read: {error}")),
        }
    }

    /// The same from the text of a mount table.
    #[must_use]
    pub fn from_mounts(mounts: &str, root: &str) -> Self {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(path), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" => v2 = Some(PathBuf::from(path)),
                "cgroup" => {
                    for name in LIMITING.into_iter().chain(["freezer"]) {
                        if options.split(',').any(|option| option == name) {
                            v1.insert(name, PathBuf::from(path));
                        }
                    }
                }
                _ => {}
            }
        }
        if check_name(root).is_err() {
            return Self::none(root, format!("{root:?} is not the name of a group"));
        }
        let mut found = Self {
            v1,
            v2,
            v2_controllers: vec![],
            group_kill: false,
            root: root.to_owned(),
            unlimited: None,
        };
        if let Err(error) = found.make_root() {
            return Self::none(root, error.to_string());
        }
        let missing: Vec<_> = LIMITING
            .into_iter()
            .filter(|name| !found.limits(name))
            .collect();
        if !missing.is_empty() {
            found.unlimited = Some(format!("no hierarchy has {}", missing.join(", ")));
        }
        found
    }

    fn none(root: &str, why: String) -> Self {
        Self {
            v1: BTreeMap::new(),
            v2: None,
            v2_controllers: vec![],
            group_kill: false,
            root: root.to_owned(),
            unlimited: Some(why),
        }
    }

    fn limits(&self, controller: &str) -> bool {
        self.v1.contains_key(controller) || self.v2_controllers.contains(&controller)
    }

    /// Why some limits are not set here; `None` when all are.
    #[must_use]
    pub fn unlimited_because(&self) -> Option<&str> {
        self.unlimited.as_deref()
    }

    fn make_root(&mut self) -> Result<(), CgroupError> {
        if let Some(mount) = &self.v2 {
            let path = mount.join(&self.root);
            make(&path)?;
            self.group_kill = path.join("cgroup.kill").exists();
        }
        if self.group_kill {
            // Each hierarchy costs every launch a directory and a move.
            self.v1.remove("freezer");
        }
        for mount in self.v1.values() {
            make(&mount.join(&self.root))?;
        }
        let Some(mount) = self.v2.clone() else {
            return Ok(());
        };
        // Passed down level by level; hybrid machines have all of them in v1 and none here.
        let available = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        for name in LIMITING {
            if self.v1.contains_key(name) || !available.split_ascii_whitespace().any(|a| a == name)
            {
                continue;
            }
            let mut level = mount.clone();
            enable(&level, name)?;
            for part in Path::new(&self.root).components() {
                level.push(part);
                enable(&level, name)?;
            }
            self.v2_controllers.push(name);
        }
        Ok(())
    }

    /// Every directory of a group, v2 first because its `cgroup.procs` also lists what is being forked.
    fn directories(&self, name: &str) -> Result<Vec<PathBuf>, CgroupError> {
        check_name(name)?;
        let mut all: Vec<PathBuf> = Vec::new();
        for mount in self.v2.iter().chain(self.v1.values()) {
            let path = mount.join(&self.root).join(name);
            if !all.contains(&path) {
                all.push(path);
            }
        }
        Ok(all)
    }

    /// Make a group with limits, or set the limits of an existing one.
    ///
    /// # Errors
    /// When a hierarchy refuses.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<GroupFiles, CgroupError> {
        for path in self.directories(name)? {
            make(&path)?;
        }
        self.pass_down(name)?;
        self.set_limits(name, limits)?;
        self.files(name)
    }

    /// Let the groups above a nested one hand their v2 controllers down to it. Such groups have groups in
    /// them and no processes of their own, as v2 demands.
    fn pass_down(&self, name: &str) -> Result<(), CgroupError> {
        let (Some(mount), Some((parents, _))) = (&self.v2, name.rsplit_once('/')) else {
            return Ok(());
        };
        let mut level = mount.join(&self.root);
        for part in parents.split('/') {
            level.push(part);
            for name in &self.v2_controllers {
                enable(&level, name)?;
            }
        }
        Ok(())
    }

    /// A group without limits, for processes that only have to be out of another group.
    ///
    /// # Errors
    /// When a hierarchy refuses.
    pub fn create_plain(&self, name: &str) -> Result<GroupFiles, CgroupError> {
        for path in self.directories(name)? {
            make(&path)?;
        }
        self.files(name)
    }

    /// The files of a group, whether it exists or not.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn files(&self, name: &str) -> Result<GroupFiles, CgroupError> {
        let directories = self.directories(name)?;
        let v2 = self
            .v2
            .as_ref()
            .map(|mount| mount.join(&self.root).join(name));
        let of = |controller: &str| {
            self.v1
                .get(controller)
                .map(|m| m.join(&self.root).join(name))
        };
        let kill = v2
            .as_ref()
            .filter(|_| self.group_kill)
            .map(|path| path.join("cgroup.kill"));
        let oom = match of("memory") {
            Some(path) => Some(path.join("memory.oom_control")),
            None if self.v2_controllers.contains(&"memory") => {
                v2.as_ref().map(|path| path.join("memory.events"))
            }
            None => None,
        };
        Ok(GroupFiles {
            procs: directories
                .iter()
                .map(|path| path.join("cgroup.procs"))
                .collect(),
            freezer: of("freezer").map(|path| path.join("freezer.state")),
            kill,
            oom,
        })
    }

    /// Where a controller's files of a group are, and whether they are those of v2.
    fn place(&self, controller: &'static str, name: &str) -> Option<(PathBuf, PathBuf, bool)> {
        if let Some(mount) = self.v1.get(controller) {
            return Some((mount.join(&self.root).join(name), mount.clone(), false));
        }
        let mount = self
            .v2
            .as_ref()
            .filter(|_| self.v2_controllers.contains(&controller))?;
        Some((mount.join(&self.root).join(name), mount.clone(), true))
    }

    fn set_limits(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        let refused = |what: &'static str| {
            move |error: cgroups_rs::fs::error::Error| CgroupError::Limit {
                what,
                group: name.to_owned(),
                cause: chain(&error),
            }
        };
        if let Some((path, base, v2)) = self.place("cpu", name) {
            let cpu = CpuController::new(path, base, v2);
            let shares =
                (limits.cpus_milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX);
            cpu.set_shares(if v2 { weight(shares) } else { shares as u64 })
                .map_err(refused("cpu weight"))?;
            if let Some(milli) = limits.cpus_limit_milli {
                let quota = milli
                    .saturating_mul(CFS_PERIOD_US / 1000)
                    .max(CFS_QUOTA_MIN_US);
                cpu.set_cfs_quota_and_period(Some(quota), Some(CFS_PERIOD_US as u64))
                    .map_err(refused("cpu limit"))?;
            }
        }
        if let (Some(mib), Some((path, base, v2))) = (limits.mem_mib, self.place("memory", name)) {
            let bytes = mib.max(MEM_FLOOR_MIB).saturating_mul(1 << 20);
            let swap = path.join(if v2 {
                "memory.swap.max"
            } else {
                "memory.memsw.limit_in_bytes"
            });
            let whole = path.join("memory.oom.group");
            let memory = MemController::new(path, base, v2);
            let set_swap = || -> Result<(), CgroupError> {
                // Swap accounting may be switched off; then there is no file and nothing to limit.
                if !swap.exists() {
                    return Ok(());
                }
                memory
                    .set_memswap_limit(if v2 { 0 } else { bytes })
                    .map(drop)
                    .map_err(refused("swap limit"))
            };
            // In v1 memory and swap together are never less than memory: which one has to move first
            // depends on the direction.
            let grows = !v2
                && fs::read_to_string(&swap)
                    .is_ok_and(|now| now.trim().parse::<i64>().is_ok_and(|now| now < bytes));
            if grows {
                set_swap()?;
            }
            memory.set_limit(bytes).map_err(refused("memory limit"))?;
            if !grows {
                set_swap()?;
            }
            if v2 && whole.exists() {
                fs::write(&whole, "1").map_err(|source| CgroupError::Io {
                    what: "writing",
                    path: whole,
                    source,
                })?;
            }
        }
        if let Some((path, base, v2)) = self.place("pids", name) {
            PidController::new(path, base, v2)
                .set_pid_max(MaxValue::Value(i64::from(limits.pids)))
                .map_err(refused("process limit"))?;
        }
        Ok(())
    }

    /// What a group uses now.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn stats(&self, name: &str) -> Result<Stats, CgroupError> {
        let files = self.files(name)?;
        let memory = match self.place("memory", name) {
            Some((path, _, v2)) => memory_in_use(&path, v2),
            None => 0,
        };
        let processes = match self.place("pids", name) {
            Some((path, base, v2)) => PidController::new(path, base, v2)
                .get_pid_current()
                .unwrap_or(0),
            None => files.pids().map_or(0, |pids| pids.len() as u64),
        };
        Ok(Stats {
            memory_bytes: memory,
            processes,
            oom_kills: files.oom_kills(),
        })
    }

    /// What a group has used and uses, with all groups below it; of everything when the name is empty. None where the
    /// kernel does not say.
    #[must_use]
    pub fn usage(&self, name: &str) -> Option<Usage> {
        let below = |mount: &Path| match name {
            "" => mount.join(&self.root),
            name => mount.join(&self.root).join(name),
        };
        if !name.is_empty() {
            check_name(name).ok()?;
        }
        let v2 = self.v2.as_deref().map(below);
        // In v1 the controller that counts time is mounted with the one that limits it.
        let cpu_v1 = self.v1.get("cpu").map(|mount| below(mount).join("cpuacct.usage"));
        let ns = cpu_v1.and_then(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
        let cpu_us = match ns {
            Some(ns) => ns / 1_000,
            None => counter(&v2.as_ref()?.join("cpu.stat"), "usage_usec")?,
        };
        let memory_bytes = match self.v1.get("memory") {
            Some(mount) => memory_in_use(&below(mount), false),
            None => v2.map_or(0, |path| memory_in_use(&path, true)),
        };
        Some(Usage { cpu_us, memory_bytes })
    }

    /// Remove an empty group, trying again while the kernel still counts its last process.
    ///
    /// # Errors
    /// When it is not empty in time.
    pub fn remove(&self, name: &str) -> Result<(), CgroupError> {
        let deadline = Instant::now() + REMOVE_WITHIN;
        for path in self.directories(name)? {
            while let Err(source) = fs::remove_dir(&path) {
                match source.raw_os_error() {
                    Some(libc::ENOENT) => break,
                    Some(libc::EBUSY) if Instant::now() < deadline => {
                        std::thread::sleep(REMOVE_POLL)
                    }
                    _ => {
                        return Err(CgroupError::Io {
                            what: "removing",
                            path,
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Names of the groups that exist below the root, for finding those that nobody owns.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.list_in("")
    }

    /// The same below one of them: names of nested groups, without the name of that one.
    #[must_use]
    pub fn list_in(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for mount in self.v2.iter().chain(self.v1.values()) {
            let Ok(entries) = fs::read_dir(mount.join(&self.root).join(group)) else {
                continue;
            };
            names.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .filter_map(|entry| entry.file_name().into_string().ok()),
            );
        }
        names.sort();
        names.dedup();
        names
    }

    /// Remove the root itself, which must have no groups left.
    ///
    /// # Errors
    /// When it has.
    pub fn remove_root(&self) -> Result<(), CgroupError> {
        for mount in self.v2.iter().chain(self.v1.values()) {
            let path = mount.join(&self.root);
            match fs::remove_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(CgroupError::Io {
                        what: "removing",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Begin the kernel's preparation for moving processes between groups, which the first move after a
/// pause waits 10 to 20 ms for: a move of this process to where it is already. Worth doing on a thread
/// while a launch is still being written down.
pub fn warm_up() {
    let Ok(own) = fs::read_to_string("/proc/self/cgroup") else {
        return;
    };
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let is_ours = |line: &&str| {
            let mut fields = line.split(' ').skip(2);
            match (controllers, fields.next(), fields.next()) {
                ("", Some("cgroup2"), _) => true,
                ("pids", Some("cgroup"), Some(options)) => options.split(',').any(|o| o == "pids"),
                _ => false,
            }
        };
        let Some(mount) = mounts
            .lines()
            .find(is_ours)
            .and_then(|line| line.split(' ').nth(1))
        else {
            continue;
        };
        let procs = Path::new(mount)
            .join(path.trim_start_matches('/'))
            .join("cgroup.procs");
        // Only an optimisation: where it is refused, the launch waits a little.
        let _ = fs::write(procs, "0");
        return;
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(path).map_err(|source| CgroupError::Io {
        what: "making group",
        path: path.to_owned(),
        source,
    })
}

fn enable(level: &Path, controller: &str) -> Result<(), CgroupError> {
    let path = level.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path).unwrap_or_default();
    if enabled
        .split_ascii_whitespace()
        .any(|name| name == controller)
    {
        return Ok(());
    }
    fs::write(&path, format!("+{controller}")).map_err(|source| CgroupError::Io {
        what: "enabling a controller in",
        path,
        source,
    })
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    let fits = !name.is_empty()
        && name.len() <= 1024
        && !name.starts_with('/')
        && name
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
    if fits {
        Ok(())
    } else {
        Err(CgroupError::Name(name.to_owned()))
    }
}

/// The kernel's own mapping from v1 shares (2..262144) to v2 weight (1..10000).
fn weight(shares: i64) -> u64 {
    (1 + ((shares - SHARES_MIN) * 9_999) / (SHARES_MAX - SHARES_MIN)) as u64
}

fn memory_in_use(path: &Path, v2: bool) -> u64 {
    let (usage, inactive) = if v2 {
        ("memory.current", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file")
    };
    let used = fs::read_to_string(path.join(usage))
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    used.unwrap_or(0)
        .saturating_sub(counter(&path.join("memory.stat"), inactive).unwrap_or(0))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        cpus_milli: 500,
        cpus_limit_milli: Some(250),
        mem_mib: Some(64),
        pids: 10,
    };

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// A directory that looks like a v2 mount with every controller.
    fn fake_v2() -> (tempfile::TempDir, String) {
        let mount = tempfile::tempdir().unwrap();
        fs::write(
            mount.path().join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        fs::create_dir_all(mount.path().join("tessera/x/t")).unwrap();
        for level in ["", "tessera", "tessera/x"] {
            fs::write(mount.path().join(level).join("cgroup.subtree_control"), "").unwrap();
        }
        fs::write(mount.path().join("tessera/x/cgroup.kill"), "").unwrap();
        let group = mount.path().join("tessera/x/t");
        for (file, content) in [
            ("cpu.max", "max 100000"),
            ("memory.swap.max", "max"),
            ("memory.oom.group", "0"),
            ("memory.current", "5000"),
            ("memory.stat", "anon 1\ninactive_file 1000\n"),
            ("memory.events", "low 0\noom_kill 2\n"),
            ("pids.current", "4"),
        ] {
            fs::write(group.join(file), content).unwrap();
        }
        let mounts = format!("cgroup2 {} cgroup2 rw,nosuid 0 0\n", mount.path().display());
        (mount, mounts)
    }

    #[test]
    fn pure_v2_limits_kill_and_counters() {
        let (mount, mounts) = fake_v2();
        let cgroups = Cgroups::from_mounts(&mounts, "tessera/x");
        assert_eq!(cgroups.unlimited_because(), None);
        assert_eq!(
            text(&mount.path().join("tessera/x/cgroup.subtree_control")),
            "+pids"
        );
        let files = cgroups.create("t", &LIMITS).unwrap();
        let group = mount.path().join("tessera/x/t");
        for (file, expected) in [
            ("cpu.weight", "20"),
            ("cpu.max", "25000 100000"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "10"),
        ] {
            assert_eq!(text(&group.join(file)), expected, "{file}");
        }
        assert_eq!(files.procs, vec![group.join("cgroup.procs")]);
        assert_eq!(files.kill, Some(group.join("cgroup.kill")));
        assert_eq!(files.oom, Some(group.join("memory.events")));
        let stats = cgroups.stats("t").unwrap();
        assert_eq!(
            stats,
            Stats {
                memory_bytes: 4000,
                processes: 4,
                oom_kills: 2
            }
        );
    }

    #[test]
    fn v1_and_hybrid_use_the_right_files() {
        let mounts = tempfile::tempdir().unwrap();
        let base = mounts.path().display();
        let v1 = format!(
            "cgroup {base}/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup {base}/memory cgroup rw,memory 0 0\n\
             cgroup {base}/pids cgroup rw,pids 0 0\ncgroup {base}/freezer cgroup rw,freezer 0 0\n"
        );
        let cgroups = Cgroups::from_mounts(&v1, "tessera");
        assert_eq!(cgroups.unlimited_because(), None);
        let files = cgroups.create("t", &LIMITS).unwrap();
        let at = |name: &str| mounts.path().join(name);
        assert_eq!(text(&at("cpu/tessera/t/cpu.shares")), "512");
        assert_eq!(text(&at("cpu/tessera/t/cpu.cfs_quota_us")), "25000");
        assert_eq!(
            text(&at("memory/tessera/t/memory.limit_in_bytes")),
            "67108864"
        );
        assert_eq!(text(&at("pids/tessera/t/pids.max")), "10");
        assert_eq!(files.freezer, Some(at("freezer/tessera/t/freezer.state")));
        assert_eq!(files.kill, None);
        // With v2 beside them, limits stay in v1 and the kill moves to v2.
        fs::create_dir_all(at("unified/tessera")).unwrap();
        fs::write(at("unified/cgroup.controllers"), "hugetlb\n").unwrap();
        fs::write(at("unified/tessera/cgroup.kill"), "").unwrap();
        let hybrid = Cgroups::from_mounts(
            &format!("{v1}none {base}/unified cgroup2 rw 0 0\n"),
            "tessera",
        );
        let files = hybrid.files("t").unwrap();
        assert_eq!(files.kill, Some(at("unified/tessera/t/cgroup.kill")));
        assert_eq!(files.freezer, None);
        let procs = ["unified", "cpu", "memory", "pids"];
        let procs = procs.map(|name| at(name).join("tessera/t/cgroup.procs"));
        assert_eq!(files.procs, procs, "nothing is frozen where a group can be killed");
        assert_eq!(files.oom, Some(at("memory/tessera/t/memory.oom_control")));
    }

    #[test]
    fn without_permission_it_says_so_and_limits_nothing() {
        let cgroups = Cgroups::from_mounts("cgroup2 /proc/nowhere cgroup2 rw 0 0\n", "tessera");
        assert!(
            cgroups
                .unlimited_because()
                .is_some_and(|why| why.contains("/proc/nowhere"))
        );
        assert!(cgroups.create("t", &LIMITS).unwrap().is_none());
        let empty = Cgroups::from_mounts("", "tessera");
        assert_eq!(
            empty.unlimited_because(),
            Some("no hierarchy has cpu, memory, pids")
        );
    }

    #[test]
    fn names_cannot_leave_the_root() {
        let cgroups = Cgroups::from_mounts("", "tessera");
        for bad in ["", "..", "a/../b", "/a", "a//b", &"x".repeat(256)] {
            assert!(
                matches!(cgroups.files(bad), Err(CgroupError::Name(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_used_is_read_from_either_version() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().display();
        for (mounts, time, memory) in [
            (format!("x {mount} cgroup2 rw 0 0\n"), ("cpu.stat", "usage_usec 70\nuser_usec 1\n"), "memory.current"),
            (
                format!("x {mount} cgroup rw,cpu,cpuacct 0 0\nx {mount} cgroup rw,memory 0 0\n"),
                ("cpuacct.usage", "70999\n"),
                "memory.usage_in_bytes",
            ),
        ] {
            let groups = Cgroups::from_mounts(&mounts, "t");
            for group in ["", "worker"] {
                let at = dir.path().join("t").join(group);
                fs::create_dir_all(&at).unwrap();
                fs::write(at.join(time.0), time.1).unwrap();
                fs::write(at.join(memory), "4096\n").unwrap();
                let expected = Usage { cpu_us: 70, memory_bytes: 4_096 };
                assert_eq!(groups.usage(group), Some(expected), "{mounts}");
                fs::remove_file(at.join(time.0)).unwrap();
                assert_eq!(groups.usage(group), None);
            }
            assert_eq!(groups.usage("../x"), None);
        }
    }
}
