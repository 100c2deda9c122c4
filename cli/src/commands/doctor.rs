//! `tessera doctor`: what is missing on this machine and in this cluster, each with the way out.
//!
//! Invariants: nothing is changed; a finding is a rule that was looked at, with what was found; the exit code is 1
//! when something is broken, and not for what is only to be known. Must never guess what it could not look at.

use crate::api::{Agent, Framework, read_items};
use crate::client::Client;
use crate::commands::master::bin_dir;
use crate::connection::{ConnectionArgs, default_dev_dir};
use crate::contexts::ConfigFile;
use crate::error::{CliError, Kind};
use crate::list::all_items;
use crate::output::{Column, col, text};
use crate::{Context, output};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The oldest kernel on which everything that keeps tasks and schedulers apart is there.
const KERNEL: (u64, u64) = (5, 14);
/// A cluster on a disk with less does not last long.
const DISK_PROBLEM_MIB: u64 = 1 << 10;
const DISK_WARNING_MIB: u64 = 5 << 10;
/// What one master, one agent and a scheduler take together.
const MEM_WARNING_MIB: u64 = 512;
/// Descriptors that a master with a few hundred agents has open.
const FILES_WARNING: u64 = 4_096;
/// Masters hold back clocks that are further off.
const CLOCK_WARNING_MS: u64 = 2_000;
/// How long a master may take for one answer.
const ASK_FOR: Duration = Duration::from_secs(3);
/// After so long something that is under way is looked at.
const LONG_MS: u64 = 3_600_000;
/// Objects that one finding names.
const NAMED_MAX: usize = 5;

/// Arguments of `tessera doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera doctor\n  tessera doctor --machine   # before there is a cluster\n  tessera doctor -o json | jq '.items[] | select(.level != \"ok\")'\n\nEnds with 1 when there is a problem; warnings are to be known, and do not count."
)]
pub struct DoctorArgs {
    /// Only this machine
    #[arg(long, conflicts_with = "cluster")]
    machine: bool,
    /// Only the cluster
    #[arg(long)]
    cluster: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warning,
    Problem,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One rule, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    level: Level,
    what: &'static str,
    text: String,
    way_out: String,
}

fn finding(level: Level, what: &'static str, text: impl Into<String>, way_out: impl Into<String>) -> Finding {
    Finding { level, what, text: text.into(), way_out: way_out.into() }
}

fn ok(what: &'static str, text: impl Into<String>) -> Finding {
    finding(Level::Ok, what, text, "")
}

fn warning(what: &'static str, text: impl Into<String>, way_out: impl Into<String>) -> Finding {
    finding(Level::Warning, what, text, way_out)
}

fn problem(what: &'static str, text: impl Into<String>, way_out: impl Into<String>) -> Finding {
    finding(Level::Problem, what, text, way_out)
}

const COLUMNS: [Column; 3] = [col("STATE"), col("WHAT"), text("FOUND")];

/// Run it.
///
/// # Errors
/// When stdout cannot be written to.
pub async fn run(context: &Context, args: DoctorArgs) -> Result<ExitCode, CliError> {
    let found = examine(&context.connection, !args.cluster, !args.machine).await;
    let problems = found.iter().filter(|finding| finding.level == Level::Problem).count();
    if context.is_data() {
        output::document(&document(&found))?;
    } else {
        show(&found)?;
        let warnings = found.iter().filter(|finding| finding.level == Level::Warning).count();
        output::note(&format!("{problems} problems, {warnings} warnings"));
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Look at everything.
pub async fn examine(connection: &ConnectionArgs, machine: bool, cluster: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if machine {
        found.extend(this_machine());
    }
    if cluster {
        found.extend(this_cluster(connection).await);
    }
    found
}

/// The findings as scripts read them.
pub fn document(found: &[Finding]) -> Value {
    let items = found.iter().map(|finding| {
        let Finding { level, what, text, way_out } = finding;
        json!({"name": what, "level": level.name(), "text": text, "way_out": way_out})
    });
    json!({"items": items.collect::<Vec<_>>()})
}

fn show(found: &[Finding]) -> Result<(), CliError> {
    let rows = found.iter().map(|f| vec![f.level.name().to_owned(), f.what.to_owned(), f.text.clone()]);
    output::table(&COLUMNS, rows.collect(), "nothing was looked at")?;
    let ways: Vec<&Finding> = found.iter().filter(|finding| !finding.way_out.is_empty()).collect();
    if !ways.is_empty() {
        output::line("")?;
    }
    for f in ways {
        output::line(&output::clean(&format!("{} {}: {}", f.level.name(), f.what, f.text)))?;
        output::line(&output::clean(&format!("  way out: {}", f.way_out)))?;
    }
    Ok(())
}

fn this_machine() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = vec![
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        control_groups(&read("/proc/self/mounts")),
        root(nix::unistd::Uid::effective().is_root()),
        memory(&read("/proc/meminfo")),
        open_files(),
        helpers(),
        disk(&default_dev_dir()),
    ];
    found.extend([(5050, "REST"), (5051, "agents")].map(|(port, what)| port_of(port, what)));
    found
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => ok("kernel", release),
        (Some(Ok(_)), Some(Ok(_))) => warning(
            "kernel",
            format!("{release} is older than {}.{}", KERNEL.0, KERNEL.1),
            "tasks and schedulers are kept apart less well: `tessera agent inspect` lists what is missing",
        ),
        _ => warning("kernel", format!("{release:?} is no version of Linux"), "Tessera runs on Linux"),
    }
}

fn control_groups(mounts: &str) -> Finding {
    let kind = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    match (kind("cgroup2"), kind("cgroup")) {
        (true, false) => ok("control groups", "version 2"),
        (_, true) => ok("control groups", "version 1 is mounted"),
        (false, false) => problem(
            "control groups",
            "none are mounted",
            "mount -t cgroup2 none /sys/fs/cgroup; in a container, start it with them",
        ),
    }
}

fn root(is_root: bool) -> Finding {
    match is_root {
        true => ok("user", "root"),
        false => warning(
            "user",
            "not root: an agent of this user keeps its tasks apart less well",
            "run agents as root, or give them a control group of their own: see docs/operations.md",
        ),
    }
}

fn memory(meminfo: &str) -> Finding {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    match kib.map(|kib| kib / 1_024) {
        Some(mib) if mib < MEM_WARNING_MIB => {
            let text = format!("{mib} MiB are free, less than {MEM_WARNING_MIB}");
            warning("memory", text, "end something, or use a larger machine")
        }
        Some(mib) => ok("memory", format!("{mib} MiB are free")),
        None => warning("memory", "how much is free is not known", "mount /proc"),
    }
}

fn open_files() -> Finding {
    use nix::sys::resource::{Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < FILES_WARNING => warning(
            "open files",
            format!("at most {hard}, less than {FILES_WARNING}"),
            "raise LimitNOFILE of the unit, or `ulimit -Hn`",
        ),
        Ok((_, hard)) => ok("open files", format!("at most {hard}")),
        Err(error) => warning("open files", format!("the limit is not known: {error}"), "look at `ulimit -Hn`"),
    }
}

fn helpers() -> Finding {
    let missing = |dir: &Path| -> Vec<&str> {
        ["tessera-shim", "tessera-worker"].into_iter().filter(|name| !dir.join(name).is_file()).collect()
    };
    match bin_dir(None) {
        Ok(dir) => match missing(&dir).as_slice() {
            [] => ok("programs", format!("shim and worker are in {}", dir.display())),
            names => problem(
                "programs",
                format!("{} is not in {}", names.join(", "), dir.display()),
                "install all programs into one directory, or name it with --bin-dir",
            ),
        },
        Err(error) => problem("programs", error.message, "call tessera by its path"),
    }
}

/// Free space where `tessera dev` keeps everything, or would.
fn disk(dir: &Path) -> Finding {
    let mut there: PathBuf = dir.to_owned();
    while !there.exists() && there.pop() {}
    match nix::sys::statvfs::statvfs(&there) {
        Ok(stat) => {
            let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
            disk_of(bytes >> 20, dir)
        }
        Err(error) => warning("disk", format!("{}: {error}", there.display()), "name another directory"),
    }
}

fn disk_of(mib: u64, dir: &Path) -> Finding {
    let text = format!("{mib} MiB are free for {}", dir.display());
    match mib {
        0..DISK_PROBLEM_MIB => problem("disk", text, "make room: masters stop when their disk is full"),
        DISK_PROBLEM_MIB..DISK_WARNING_MIB => warning("disk", text, "make room, or name another directory with --data-dir"),
        _ => ok("disk", text),
    }
}

fn port_of(port: u16, what: &str) -> Finding {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => ok("port", format!("{port} for {what} is free")),
        // A cluster that runs here has it; whether it is one is looked at with the cluster.
        Err(_) => ok("port", format!("{port} for {what} is in use: by a master, if one runs here")),
    }
}

async fn this_cluster(args: &ConnectionArgs) -> Vec<Finding> {
    if let Err(error) = ConfigFile::load() {
        let way_out = error.hint.unwrap_or_else(|| "`tessera config validate` checks it".to_owned());
        return vec![problem("contexts", error.message, way_out)];
    }
    let client = match Client::connect(args) {
        Ok(client) => client,
        Err(error) => return vec![problem("token", error.message, error.hint.unwrap_or_default())],
    };
    let quick = |request: crate::client::Request| request.retry_for(Duration::ZERO).within(ASK_FOR);
    let mut found = Vec::new();
    let masters = client.send(quick(client.get(&["v1", "masters"]))).await;
    match masters {
        Ok(response) => {
            let date = response.headers().get("date").and_then(|date| date.to_str().ok()?.to_owned().into());
            found.extend(date.and_then(|date: String| http_date(&date)).map(|theirs| clock(output::now_ms(), theirs)));
            let body = client.body(response).await.unwrap_or_default();
            found.push(ok("reachable", "the cluster answers, and takes the token"));
            found.extend(masters_of(&serde_json::from_slice(&body).unwrap_or_default()));
        }
        Err(error) => {
            let what = if error.status == Some(401) { "token" } else { "reachable" };
            found.push(problem(what, error.message, error.hint.unwrap_or_default()));
            if error.kind == Kind::Unavailable {
                return found;
            }
        }
    }
    match all_items(&client, quick(client.get(&["v1", "agents"]))).await.and_then(|list| read_items(&list)) {
        Ok(agents) => found.extend(agents_of(&agents)),
        Err(error) => found.push(problem("agents", error.message, error.hint.unwrap_or_default())),
    }
    match all_items(&client, quick(client.get(&["v1", "frameworks"]))).await.and_then(|list| read_items(&list)) {
        Ok(frameworks) => found.extend(frameworks_of(&frameworks)),
        Err(error) => found.push(problem("frameworks", error.message, error.hint.unwrap_or_default())),
    }
    // Older masters do not tell.
    if let Ok(list) = all_items(&client, quick(client.get(&["v1", "operations"]))).await {
        found.extend(operations_of(&list, output::now_ms()));
    }
    found
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in milliseconds since the Unix epoch.
fn http_date(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = words.as_slice() else { return None };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|known| known == month)? as i64 + 1;
    let number = |text: &str| text.parse::<i64>().ok();
    let (year, day) = (number(year)?, number(day)?);
    // Days since the Unix epoch, counted in eras of 400 years that start in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + number(hour)? * 3_600 + number(minute)? * 60 + number(second)?;
    u64::try_from(seconds).ok()?.checked_mul(1_000)
}

/// The answer says its time in whole seconds, and was on its way.
fn clock(ours: u64, theirs: u64) -> Finding {
    let off = ours.abs_diff(theirs.saturating_add(500));
    match off {
        0..=CLOCK_WARNING_MS => ok("clock", "the master's and this machine's agree"),
        _ => warning(
            "clock",
            format!("the master's and this machine's are {} s apart", off / 1_000),
            "let time be kept on both (chrony, systemd-timesyncd)",
        ),
    }
}

fn masters_of(masters: &Value) -> Vec<Finding> {
    let number = |name: &str| masters[name].as_u64().unwrap_or_default();
    let mut found = Vec::new();
    match masters["leader"].as_u64() {
        Some(node) => found.push(ok("leader", format!("node {node}"))),
        None => found.push(problem("leader", "nobody leads", "`tessera operator autopilot` says which masters are silent")),
    }
    let (healthy, voters, tolerated) = (number("healthy_voters"), number("voters"), number("failures_tolerated"));
    let text = format!("{healthy} of {voters} are well, {tolerated} more may fail");
    found.push(match (healthy == voters, voters) {
        (false, _) => problem("masters", text, "start the ones that are silent, or remove them: `tessera operator raft list`"),
        (true, 1) => warning("masters", text, "one master is enough to try; three bear the loss of one: see docs/operations.md"),
        (true, _) => ok("masters", text),
    });
    let own = env!("CARGO_PKG_VERSION");
    let items = masters["items"].as_array().map_or(&[][..], Vec::as_slice);
    let others: Vec<String> = items
        .iter()
        .filter(|master| master["version"].as_str().is_some_and(|version| version != own))
        .map(|master| format!("node {} is {}", master["node"], master["version"].as_str().unwrap_or_default()))
        .collect();
    found.push(match others.as_slice() {
        [] => ok("versions", format!("masters and this program are {own}")),
        others => warning("versions", format!("this program is {own}, {}", some(others)), "upgrade what is older: see docs/operations.md"),
    });
    let warnings = masters["warnings"].as_array().map_or(&[][..], Vec::as_slice);
    let told = warnings.iter().filter_map(Value::as_str);
    found.extend(told.map(|text| warning("masters", text, "`tessera operator autopilot` shows how they are")));
    found
}

/// The first ones, and how many more.
fn some(names: &[String]) -> String {
    let mut told: Vec<String> = names.iter().take(NAMED_MAX).cloned().collect();
    if names.len() > NAMED_MAX {
        told.push(format!("and {} more", names.len() - NAMED_MAX));
    }
    told.join(", ")
}

fn agents_of(agents: &[Agent]) -> Vec<Finding> {
    let mut found = Vec::new();
    let ids = |keep: &dyn Fn(&Agent) -> bool| -> Vec<String> {
        agents.iter().filter(|agent| keep(agent)).map(|agent| agent.id.clone()).collect()
    };
    if agents.is_empty() {
        found.push(problem("agents", "there is none: nothing can run", "start one: tessera agent --work-dir DIR --master HOST:PORT"));
        return found;
    }
    let away = ids(&|agent| agent.state != "connected");
    found.push(match away.as_slice() {
        [] => ok("agents", format!("all {} are connected", agents.len())),
        away => problem(
            "agents",
            format!("{} of {} are away: {}", away.len(), agents.len(), some(away)),
            "start them again; what will not come back: `tessera agent gone ID`",
        ),
    });
    let out_of_use = ids(&|agent| !matches!(agent.mode.as_str(), "active" | ""));
    if !out_of_use.is_empty() {
        found.push(warning("agents", format!("not in use: {}", some(&out_of_use)), "`tessera agent activate ID` puts one to use"));
    }
    let strangers = ids(&|agent| !agent.strangers.is_empty());
    if !strangers.is_empty() {
        let text = format!("tasks that the restored cluster does not know run on {}", some(&strangers));
        found.push(warning("strangers", text, "`tessera agent inspect ID` lists them, `tessera agent end-strangers ID` ends them"));
    }
    let mut missing: std::collections::BTreeMap<(String, String), Vec<String>> = std::collections::BTreeMap::new();
    for agent in agents {
        for lack in &agent.missing {
            missing.entry((lack.name.clone(), lack.why.clone())).or_default().push(agent.id.clone());
        }
    }
    for ((name, why), ids) in missing {
        found.push(warning("protections", format!("{} cannot give {name}", some(&ids)), why));
    }
    found
}

fn frameworks_of(frameworks: &[Framework]) -> Vec<Finding> {
    let mut found = Vec::new();
    for framework in frameworks {
        match (&framework.quarantine, framework.state.as_str()) {
            (Some(quarantine), _) => found.push(problem(
                "quarantine",
                format!("{} is kept from running: {}", framework.name, quarantine.message.clone().unwrap_or_default()),
                format!("mend it and upgrade, then `{}`", quarantine.release),
            )),
            (None, state @ ("backing-off" | "unplaced")) => found.push(warning(
                "frameworks",
                format!("{} is {state}: {}", framework.name, framework.why.join("; ")),
                format!("`tessera framework logs {}` may tell more", framework.name),
            )),
            _ => {}
        }
    }
    if found.is_empty() {
        found.push(ok("frameworks", format!("{} frameworks, none is kept from running", frameworks.len())));
    }
    found
}

fn operations_of(list: &Value, now: u64) -> Option<Finding> {
    let operations: Vec<crate::api::Operation> = read_items(list).ok()?;
    let old = |since: Option<u64>| since.is_some_and(|since| since > 0 && now.saturating_sub(since) > LONG_MS);
    // Maintenance is announced, and may be far away.
    let long: Vec<String> = operations
        .iter()
        .filter(|operation| operation.kind != "maintenance" && old(operation.since_ms))
        .map(|operation| format!("{} {}", operation.kind, operation.id))
        .collect();
    if long.is_empty() {
        return None;
    }
    Some(warning("operations", format!("under way for more than an hour: {}", some(&long)), "`tessera operation ls` says what they wait for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_judged_by_what_it_says() {
        let cases = [
            (kernel("6.1.0-18-amd64"), Level::Ok),
            (kernel("5.14.0"), Level::Ok),
            (kernel("5.10.0-8"), Level::Warning),
            (kernel("plan9"), Level::Warning),
            (control_groups("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), Level::Ok),
            (control_groups("cpu /sys/fs/cgroup/cpu cgroup rw 0 0\n"), Level::Ok),
            (control_groups("tmpfs / tmpfs rw 0 0\n"), Level::Problem),
            (root(true), Level::Ok),
            (root(false), Level::Warning),
            (memory("MemTotal: 1 kB\nMemAvailable:    1048576 kB\n"), Level::Ok),
            (memory("MemAvailable:    1024 kB\n"), Level::Warning),
            (memory(""), Level::Warning),
            (disk_of(100, Path::new("/x")), Level::Problem),
            (disk_of(2_000, Path::new("/x")), Level::Warning),
            (disk_of(20_000, Path::new("/x")), Level::Ok),
        ];
        for (finding, level) in cases {
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(finding.way_out.is_empty(), level == Level::Ok, "{finding:?}");
        }
    }

    #[test]
    fn clocks_are_compared() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199_000));
        assert_eq!(http_date("yesterday"), None);
        assert_eq!(clock(10_000, 9_000).level, Level::Ok);
        assert_eq!(clock(100_000, 9_000).level, Level::Warning);
        assert_eq!(clock(9_000, 100_000).level, Level::Warning);
    }

    #[test]
    fn a_cluster_is_judged_by_what_it_says() {
        let version = env!("CARGO_PKG_VERSION");
        let well = json!({"leader": 1, "voters": 3, "healthy_voters": 3, "failures_tolerated": 1, "warnings": [],
            "items": [{"node": 1, "version": version}]});
        assert!(masters_of(&well).iter().all(|finding| finding.level == Level::Ok));
        let ill = json!({"leader": null, "voters": 3, "healthy_voters": 2, "failures_tolerated": 0, "warnings": ["w"],
            "items": [{"node": 1, "version": "0.0.1"}]});
        let levels: Vec<Level> = masters_of(&ill).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Problem, Level::Problem, Level::Warning, Level::Warning]);

        let agents = |items: Value| agents_of(&read_items::<Agent>(&json!({ "items": items })).unwrap());
        for (items, expected) in [
            (json!([]), vec![Level::Problem]),
            (json!([{"id": "a1", "state": "connected", "mode": "active"}]), vec![Level::Ok]),
            (json!([{"id": "a1", "state": "unreachable"}]), vec![Level::Problem]),
            (json!([{"id": "a1", "state": "connected", "mode": "drained"}]), vec![Level::Ok, Level::Warning]),
            (json!([{"id": "a1", "state": "connected", "missing": [{"name": "n", "why": "w"}]},
                {"id": "a2", "state": "connected", "missing": [{"name": "n", "why": "w"}]}]), vec![Level::Ok, Level::Warning]),
        ] {
            let levels: Vec<Level> = agents(items.clone()).iter().map(|finding| finding.level).collect();
            assert_eq!(levels, expected, "{items}");
        }

        let frameworks = |items: Value| frameworks_of(&read_items::<Framework>(&json!({ "items": items })).unwrap());
        for (items, level) in [
            (json!([]), Level::Ok),
            (json!([{"name": "w", "state": "running"}]), Level::Ok),
            (json!([{"name": "w", "state": "unplaced", "why": ["no agent"]}]), Level::Warning),
            (json!([{"name": "w", "state": "quarantined", "quarantine": {"release": "r"}}]), Level::Problem),
        ] {
            assert_eq!(frameworks(items.clone())[0].level, level, "{items}");
        }

        let list = json!({"items": [{"id": "o", "kind": "drain", "since_ms": 1}, {"id": "m", "kind": "maintenance", "since_ms": 1}]});
        assert!(operations_of(&list, LONG_MS + 2).is_some_and(|finding| finding.text.ends_with("drain o")));
        assert_eq!(operations_of(&list, 2), None);
    }
}
