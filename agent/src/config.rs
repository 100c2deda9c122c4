//! Configuration: what an operator may say, its rules, and what is found out where nothing was said.
//!
//! Invariants: a refused setting is named with its rule; what is offered never includes the slice that is
//! kept for schedulers. This file must never keep anything open.

use crate::session::WithToken;
use crate::tenants::WORKER_UIDS;
use crate::users::KnownUsers;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_agent_core::WORKER_IDLE_MS;
use tessera_oci::{TaskUser, user};
use tessera_telemetry::export::Collector;
use tessera_types::{FrameworkId, Quantities, Resources, parse_milli};
use tessera_wire::v1;

/// Share of memory that is kept for schedulers, in percent.
const RESERVED_PERCENT: i64 = 5;
/// Least memory that is kept for schedulers.
const RESERVED_MEM_MIN_MIB: i64 = 256;
/// Memory that is left to the system when the size is found out: kernel, agent and shims live in it.
const SYSTEM_MEM_MIB: i64 = 512;
/// Disk that is left to the system when the size is found out.
const SYSTEM_DISK_MIB: i64 = 2_048;
/// What components and their images take where nothing is said: half of what is left to the system.
const CACHE_MIB: u64 = 1_024;
/// Where the kernel keeps the machine's name.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";
/// Longest token; what masters make is far shorter.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Bytes of a socket's path, as the kernel has it, less the names below the work directory.
const WORK_DIR_BYTES_MAX: usize = 107 - "/run/0123456789abcdef-schedulers.sock".len();

/// What an operator says. Absent values are found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentConfig {
    /// Directory of checkpoints, sandboxes and components; made if it is not there.
    pub work_dir: PathBuf,
    /// Where masters listen for agents: `host:port`, several separated by commas.
    pub master: String,
    /// File with the cluster's token.
    pub token_file: PathBuf,
    /// Directory of `tessera-shim` and `tessera-worker`.
    pub bin_dir: PathBuf,
    /// What it calls itself; the machine's name when absent.
    pub hostname: Option<String>,
    /// Thousandths of a core.
    pub cpus_milli: Option<i64>,
    /// MiB of memory, the slice for schedulers included.
    pub mem_mib: Option<i64>,
    /// MiB of memory that are kept for schedulers and never offered; 5 %, at least 256, when absent.
    pub scheduler_mem_mib: Option<i64>,
    /// MiB of disk.
    pub disk_mib: Option<i64>,
    /// Other resources by name, as decimal numbers with at most three places.
    pub resources: BTreeMap<String, String>,
    /// Named values that schedulers see.
    pub attributes: BTreeMap<String, String>,
    /// User of native tasks that name none. When absent, each framework has a user of its own if the
    /// agent is root, and else all tasks have the agent's.
    pub task_user: Option<String>,
    /// Users that tasks may name. A task as root owns the machine, the agent included.
    pub allow_task_users: Vec<String>,
    /// Seconds for which a worker is kept without anything to run; 60 when absent.
    pub worker_idle_s: Option<u64>,
    /// First of the users that are set aside for workers, when the agent is root.
    pub worker_uid_first: Option<u32>,
    /// MiB that components and their images may take on disk; 1,024 when absent. Those in use always stay.
    pub cache_mib: Option<u64>,
    /// Where metrics are served; nowhere when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// Who takes spans of traces; nobody when absent.
    pub otlp_endpoint: Option<Collector>,
    /// Serve them beyond loopback although nothing is encrypted.
    pub insecure_listen: bool,
}

/// Where metrics are served, and to whom.
#[derive(Clone)]
pub(crate) struct MetricsPort {
    pub address: SocketAddr,
    /// What the header `Authorization` has to say.
    pub authorization: String,
}

/// A setting that was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field breaks a rule.
    #[error("{field}: {rule}")]
    Field {
        /// The setting.
        field: &'static str,
        /// The rule.
        rule: String,
    },
    /// A file or directory cannot be used.
    #[error("{field}: {path}", path = path.display())]
    Path {
        /// The setting.
        field: &'static str,
        /// What it names.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Settings that keep the rules.
#[derive(Clone)]
pub(crate) struct Settings {
    pub work_dir: PathBuf,
    pub bin_dir: PathBuf,
    pub masters: Vec<String>,
    pub token: WithToken,
    pub description: v1::AgentDescription,
    pub total: Resources,
    pub users: TaskUsers,
    pub worker_idle_ms: u64,
    pub worker_uid_first: u32,
    pub cache_bytes: u64,
    pub metrics: Option<MetricsPort>,
    pub collector: Option<Collector>,
}

/// Whom tasks may run as.
#[derive(Clone, Debug)]
pub(crate) struct TaskUsers {
    default: DefaultUser,
    /// Users that specs may name.
    allowed: BTreeSet<u32>,
    known: Arc<KnownUsers>,
}

/// Whom a task runs as that names nobody.
#[derive(Clone, Debug)]
enum DefaultUser {
    /// A user of its framework's own, so that tasks of different frameworks can neither see nor signal
    /// each other.
    PerFramework,
    /// Always this one.
    Fixed(TaskUser),
}

/// First user of frameworks. From here to 2^31 - 1 systemd's table of users leaves all numbers unused
/// (systemd.io/UIDS-GIDS), and a number needs no entry in the user database.
const FRAMEWORK_UID_FIRST: u32 = 1_879_048_192;
/// So many numbers there are; two frameworks of one cluster share one only after that many others.
const FRAMEWORK_UIDS: u64 = 268_435_456 - WORKER_UIDS as u64;
/// First user of workers where nothing is said: the last numbers before 2^31.
const WORKER_UID_FIRST: u32 = (1 << 31) - WORKER_UIDS;
/// Longest time for which an idle worker is kept.
const WORKER_IDLE_MAX_S: u64 = 86_400;

impl TaskUsers {
    fn settle(name: Option<&str>, allowed: &[String]) -> Result<Self, ConfigError> {
        let resolved = |field: &'static str, name: &str| {
            user::resolve(name).map_err(|error| ConfigError::Field {
                field,
                rule: error.to_string(),
            })
        };
        let default = match name {
            Some(name) => DefaultUser::Fixed(resolved("task_user", name)?),
            None if nix::unistd::Uid::effective().is_root() => DefaultUser::PerFramework,
            None => DefaultUser::Fixed(user::current().map_err(|error| ConfigError::Field {
                field: "task_user",
                rule: error.to_string(),
            })?),
        };
        let mut uids = BTreeSet::new();
        for name in allowed {
            uids.insert(resolved("allow_task_user", name)?.uid);
        }
        if let DefaultUser::Fixed(user) = &default {
            if user.uid == 0 && !uids.contains(&0) {
                return refuse(
                    "task_user",
                    "tasks as root own this machine; to have that, add --allow-task-user root",
                );
            }
            uids.insert(user.uid);
        }
        Ok(Self {
            default,
            allowed: uids,
            known: Arc::default(),
        })
    }

    /// The user of a task.
    pub(crate) fn of_task(
        &self,
        framework: FrameworkId,
        named: Option<&str>,
    ) -> Result<TaskUser, String> {
        if let Some(name) = named {
            let user = self.known.resolve(name).map_err(|error| error.to_string())?;
            if !self.allowed.contains(&user.uid) {
                return Err(format!(
                    "user {name:?}: this agent does not run tasks as this user; name none, or start \
                     the agent with --allow-task-user {name}"
                ));
            }
            return Ok(user);
        }
        match &self.default {
            DefaultUser::Fixed(user) => Ok(user.clone()),
            DefaultUser::PerFramework => {
                let offset = u32::try_from(framework.0 % FRAMEWORK_UIDS).unwrap_or(0);
                self.known
                    .resolve(&(FRAMEWORK_UID_FIRST + offset).to_string())
                    .map_err(|error| error.to_string())
            }
        }
    }
}

pub(crate) fn refuse<T>(field: &'static str, rule: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Field {
        field,
        rule: rule.into(),
    })
}

impl AgentConfig {
    /// Check everything and fill in what was not said.
    pub(crate) fn settle(self) -> Result<Settings, ConfigError> {
        let masters = masters(&self.master)?;
        let work_dir = made(&self.work_dir)?;
        if work_dir.as_os_str().len() > WORK_DIR_BYTES_MAX {
            return refuse(
                "work_dir",
                format!("at most {WORK_DIR_BYTES_MAX} bytes, as sockets are made in it"),
            );
        }
        let (token, authorization) = token(&self.token_file)?;
        if let Some(address) = self.metrics_listen
            && !address.ip().is_loopback()
            && !self.insecure_listen
        {
            let rule = format!("{address} is not loopback, and nothing is encrypted: --insecure-listen-without-tls allows it");
            return refuse("metrics_listen", rule);
        }
        // Workers are started in the work directory.
        let bin_dir =
            std::fs::canonicalize(&self.bin_dir).map_err(|source| ConfigError::Path {
                field: "bin_dir",
                path: self.bin_dir.clone(),
                source,
            })?;
        for name in ["tessera-shim", "tessera-worker"] {
            let path = bin_dir.join(name);
            if !path.is_file() {
                let source = std::io::ErrorKind::NotFound.into();
                return Err(ConfigError::Path {
                    field: "bin_dir",
                    path,
                    source,
                });
            }
        }
        let hostname = match self.hostname {
            Some(name) => name,
            None => std::fs::read_to_string(HOSTNAME_FILE)
                .map_err(|source| ConfigError::Path {
                    field: "hostname",
                    path: HOSTNAME_FILE.into(),
                    source,
                })?
                .trim()
                .to_owned(),
        };
        let found = found(&work_dir)?;
        let all = Quantities {
            cpus_milli: self.cpus_milli.unwrap_or(found.cpus_milli),
            mem_mib: self.mem_mib.unwrap_or(found.mem_mib),
            disk_mib: self.disk_mib.unwrap_or(found.disk_mib),
        };
        all.validate().map_err(|error| ConfigError::Field {
            field: "resources",
            rule: error.to_string(),
        })?;
        let (total, reserved) = split(all, self.scheduler_mem_mib)?;
        let total = with_others(Resources::of(total), &self.resources)?;
        let pair = |(key, value): (String, String)| v1::Pair { key, value };
        let description = v1::AgentDescription {
            hostname,
            attributes: self.attributes.into_iter().map(pair).collect(),
            total: Some((&total).into()),
            reserved: Some((&reserved).into()),
            version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
        let (worker_idle_ms, worker_uid_first) =
            workers(self.worker_idle_s, self.worker_uid_first)?;
        description
            .resources()
            .map_err(|error| ConfigError::Field {
                field: error.field,
                rule: error.rule,
            })?;
        Ok(Settings {
            users: TaskUsers::settle(self.task_user.as_deref(), &self.allow_task_users)?,
            work_dir,
            bin_dir,
            worker_idle_ms,
            worker_uid_first,
            cache_bytes: cache_bytes(self.cache_mib)?,
            collector: self.otlp_endpoint,
            metrics: self.metrics_listen.map(|address| MetricsPort { address, authorization }),
            masters,
            token,
            description,
            total,
        })
    }
}

/// What components and images may take.
fn cache_bytes(mib: Option<u64>) -> Result<u64, ConfigError> {
    let mib = mib.unwrap_or(CACHE_MIB);
    match mib.checked_mul(1 << 20) {
        Some(bytes) if mib > 0 => Ok(bytes),
        _ => refuse("cache_mib", "1 or more MiB"),
    }
}

/// How long workers are kept, and the first of their users.
fn workers(idle_s: Option<u64>, uid_first: Option<u32>) -> Result<(u64, u32), ConfigError> {
    let idle_ms = match idle_s {
        Some(idle) if idle > WORKER_IDLE_MAX_S => {
            return refuse("worker_idle_s", format!("at most {WORKER_IDLE_MAX_S}"));
        }
        Some(idle) => idle * 1_000,
        None => WORKER_IDLE_MS,
    };
    let uid_first = uid_first.unwrap_or(WORKER_UID_FIRST);
    let last = uid_first.checked_add(WORKER_UIDS - 1);
    let of_frameworks = FRAMEWORK_UID_FIRST..WORKER_UID_FIRST;
    let free = last.is_some_and(|last| {
        let overlaps = uid_first < of_frameworks.end && last >= of_frameworks.start;
        uid_first > 0 && last < u32::MAX && !overlaps
    });
    if !free {
        let rule = format!(
            "the {WORKER_UIDS} users from here on are for workers, and must be other ones than root, {} and \
             {} to {}, which are for tasks",
            u32::MAX,
            of_frameworks.start,
            of_frameworks.end - 1
        );
        return refuse("worker_uid_first", rule);
    }
    Ok((idle_ms, uid_first))
}

pub(crate) fn masters(text: &str) -> Result<Vec<String>, ConfigError> {
    let masters: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
    for master in &masters {
        let port = master
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return refuse(
                "master",
                format!("`host:port`, several separated by commas; not {master:?}"),
            );
        }
    }
    Ok(masters)
}

fn made(work_dir: &Path) -> Result<PathBuf, ConfigError> {
    let fail = |source| ConfigError::Path {
        field: "work_dir",
        path: work_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(work_dir).map_err(fail)?;
    let work_dir = std::fs::canonicalize(work_dir).map_err(fail)?;
    if let Some(closed) = closed_to_others(&work_dir) {
        tracing::warn!(
            closed = %closed.display(),
            "other users may not pass through a directory above work_dir: tasks that run as another user \
             reach their sandbox by relative paths only; a place such as /var/lib/tessera is better"
        );
    }
    Ok(work_dir)
}

/// The first directory on a path through which only its owner may pass, if the agent's tasks have other
/// users.
fn closed_to_others(path: &Path) -> Option<PathBuf> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    let closed = |dir: &&Path| {
        let mode = std::fs::metadata(dir).map(|data| data.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 == 0)
    };
    path.ancestors().find(closed).map(Path::to_owned)
}

fn token(path: &Path) -> Result<(WithToken, String), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Path {
        field: "token_file",
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim();
    if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
        return refuse("token_file", format!("holds 1 to {TOKEN_BYTES_MAX} bytes"));
    }
    let with = WithToken::new(text).map_err(|error| ConfigError::Field {
        field: "token_file",
        rule: error.to_string(),
    })?;
    Ok((with, format!("Bearer {text}")))
}

/// What this machine has, less what the system needs.
fn found(work_dir: &Path) -> Result<Quantities, ConfigError> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let meminfo = std::fs::read_to_string("/proc/meminfo").map_err(|source| ConfigError::Path {
        field: "mem_mib",
        path: "/proc/meminfo".into(),
        source,
    })?;
    let mem_kib = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_ascii_whitespace()
                .next()?
                .parse::<i64>()
                .ok()
        })
        .unwrap_or(0);
    let disk = nix::sys::statvfs::statvfs(work_dir).map_err(|error| ConfigError::Field {
        field: "disk_mib",
        rule: error.to_string(),
    })?;
    let disk_mib =
        (disk.blocks_available() as i64).saturating_mul(disk.fragment_size() as i64 >> 10) >> 10;
    Ok(Quantities {
        cpus_milli: i64::try_from(cpus).unwrap_or(1).saturating_mul(1000),
        mem_mib: (mem_kib / 1024 - SYSTEM_MEM_MIB).max(0),
        disk_mib: (disk_mib - SYSTEM_DISK_MIB).max(0),
    })
}

/// What is offered, and the slice that never is.
fn split(
    all: Quantities,
    scheduler_mem_mib: Option<i64>,
) -> Result<(Quantities, Quantities), ConfigError> {
    if scheduler_mem_mib.is_some_and(|mem| !(0..all.mem_mib).contains(&mem)) {
        let rule = format!("from 0 to less than the {} MiB of the agent", all.mem_mib);
        return refuse("scheduler_mem_mib", rule);
    }
    let share = (all.mem_mib * RESERVED_PERCENT / 100).max(RESERVED_MEM_MIN_MIB);
    let reserved = Quantities {
        cpus_milli: all.cpus_milli * RESERVED_PERCENT / 100,
        mem_mib: scheduler_mem_mib.unwrap_or(share),
        disk_mib: 0,
    };
    if reserved.mem_mib >= all.mem_mib {
        let rule = format!("more than {RESERVED_MEM_MIN_MIB}, which are kept for schedulers");
        return refuse("mem_mib", rule);
    }
    // Schedulers take CPU when they have turns to run; whole cores stay whole for tasks.
    let total = Quantities {
        cpus_milli: all.cpus_milli,
        ..all.minus(reserved)
    };
    Ok((total, reserved))
}

/// The same with resources that an operator names. They are counted, and nothing of them is enforced.
fn with_others(total: Resources, named: &BTreeMap<String, String>) -> Result<Resources, ConfigError> {
    let mut total = total;
    for (name, amount) in named {
        let Some(milli) = parse_milli(amount) else {
            return refuse("resources", format!("{name}: {amount:?} is no number with at most three decimal places"));
        };
        total = total.with(name, milli);
    }
    total.validate().map_err(|error| ConfigError::Field { field: "resources", rule: error.to_string() })?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_tasks_cannot_pass_through_is_found() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(dir.path(), 0o711);
        assert_eq!(closed_to_others(&inner), None);
        open(&dir.path().join("a"), 0o700);
        assert_eq!(closed_to_others(&inner), Some(dir.path().join("a")));
    }

    #[test]
    fn each_framework_has_a_user_of_its_own_and_others_are_named_by_the_operator() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let (one, two) = (FrameworkId(1), FrameworkId(2));
        let users = TaskUsers::settle(None, &["daemon".into()]).unwrap();
        let uid = |framework, named| users.of_task(framework, named).map(|user| user.uid);
        assert_eq!(uid(one, None), Ok(FRAMEWORK_UID_FIRST + 1));
        assert_eq!(uid(two, None), Ok(FRAMEWORK_UID_FIRST + 2));
        assert!(uid(FrameworkId(u64::MAX), None).is_ok_and(|uid| uid < WORKER_UID_FIRST));
        assert_eq!(
            uid(one, Some("daemon")),
            user::resolve("daemon")
                .map(|u| u.uid)
                .map_err(|_| String::new())
        );
        for name in ["root", "0", "nobody"] {
            let error = uid(one, Some(name)).unwrap_err();
            assert!(error.contains("--allow-task-user"), "{error}");
        }
        let refused = TaskUsers::settle(Some("root"), &[]).unwrap_err();
        assert!(refused.to_string().starts_with("task_user"), "{refused}");
        let root = TaskUsers::settle(Some("root"), &["root".into()]).unwrap();
        assert_eq!(root.of_task(one, None).map(|user| user.uid), Ok(0));
        let unknown = TaskUsers::settle(None, &["no-such-user".into()]).unwrap_err();
        assert!(
            unknown.to_string().starts_with("allow_task_user"),
            "{unknown}"
        );
    }

    fn config(dir: &Path) -> AgentConfig {
        for name in ["tessera-shim", "tessera-worker", "token"] {
            std::fs::write(dir.join(name), "secret\n").unwrap();
        }
        AgentConfig {
            work_dir: dir.join("work"),
            master: "127.0.0.1:5051".into(),
            token_file: dir.join("token"),
            bin_dir: dir.to_owned(),
            mem_mib: Some(1_000),
            cpus_milli: Some(2_000),
            ..AgentConfig::default()
        }
    }

    #[test]
    fn the_slice_for_schedulers_is_never_offered() {
        let dir = tempfile::tempdir().unwrap();
        let settings = config(dir.path()).settle().unwrap();
        assert_eq!(
            (settings.total.quantities.mem_mib, settings.total.quantities.cpus_milli),
            (744, 2_000)
        );
        assert_eq!(settings.description.reserved.unwrap().mem_mib, 256);
        assert!(settings.total.quantities.disk_mib >= 0 && !settings.description.hostname.is_empty());
        let found = AgentConfig {
            mem_mib: None,
            ..config(dir.path())
        }
        .settle()
        .unwrap();
        assert!(found.total.quantities.mem_mib > 0);
        let chosen = AgentConfig {
            scheduler_mem_mib: Some(100),
            ..config(dir.path())
        }
        .settle()
        .unwrap();
        assert_eq!(chosen.total.quantities.mem_mib, 900);
        let named = [("gpus", "2"), ("fpga", "0.5"), ("none", "0")];
        let resources = named.map(|(name, amount)| (name.to_owned(), amount.to_owned())).into();
        let others = AgentConfig { resources, ..config(dir.path()) }.settle().unwrap();
        let items = others.description.total.unwrap().items;
        let items: Vec<_> = items.iter().map(|item| (item.name.as_str(), item.amount_milli)).collect();
        assert_eq!(items, [("fpga", 500), ("gpus", 2000)]);
    }

    #[test]
    fn a_refusal_names_field_and_rule() {
        let dir = tempfile::tempdir().unwrap();
        type Edit = fn(&mut AgentConfig);
        let cases: [(&str, Edit); 17] = [
            ("resources", |c| c.resources = [("gpus".into(), "-1".into())].into()),
            ("resources", |c| c.resources = [("a b".into(), "1".into())].into()),
            ("resources", |c| c.resources = [("mem".into(), "1".into())].into()),
            ("scheduler_mem_mib", |c| c.scheduler_mem_mib = Some(1_000)),
            ("worker_idle_s", |c| c.worker_idle_s = Some(86_401)),
            ("worker_uid_first", |c| c.worker_uid_first = Some(0)),
            ("worker_uid_first", |c| c.worker_uid_first = Some(1_879_100_000)),
            ("worker_uid_first", |c| c.worker_uid_first = Some(u32::MAX)),
            ("master", |c| c.master = "nowhere".into()),
            ("master", |c| c.master = "a:1,:2".into()),
            ("mem_mib", |c| c.mem_mib = Some(256)),
            ("resources", |c| c.cpus_milli = Some(-1)),
            ("bin_dir", |c| c.bin_dir = "/nonexistent".into()),
            ("token_file", |c| c.token_file = "/nonexistent".into()),
            ("metrics_listen", |c| c.metrics_listen = Some(([0, 0, 0, 0], 9_100).into())),
            ("description.attributes", |c| {
                c.attributes = [(String::new(), String::new())].into()
            }),
            ("work_dir", |c| {
                c.work_dir = c.work_dir.join("x".repeat(100))
            }),
        ];
        for (field, edit) in cases {
            let mut config = config(dir.path());
            edit(&mut config);
            let error = config
                .settle()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }
}
