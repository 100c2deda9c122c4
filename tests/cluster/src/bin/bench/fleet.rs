//! Many agents: how long they take to join, what they cost at rest, how many tasks a second are placed on them,
//! and how soon a lost one is found.
//!
//! The agents are simulated, each with a session of its own; one real agent hosts the scheduler, the guest
//! `load`. Must never go on to a higher rate after one at which tasks were late or a fifth was not placed.

use crate::chart::{Chart, Curve};
use crate::report::{Report, Row, Target};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Process, framework};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Size {
    /// Agents beside those that are lost.
    pub agents: usize,
    /// Agents that fall silent together.
    pub lost: usize,
    /// Tasks per second, rising.
    pub rates: &'static [u64],
    /// How long each rate is kept.
    pub keep: Duration,
}

/// As the issue of this benchmark is: 5,000 agents.
pub const FULL: Size = Size {
    agents: 5_000,
    lost: 50,
    rates: &[500, 1_000, 2_000, 3_000, 4_000, 5_000, 5_100, 5_250, 5_500, 6_000, 6_500, 7_000, 8_000, 10_000],
    keep: Duration::from_secs(15),
};
/// In a minute.
pub const SHORT: Size = Size {
    agents: 500,
    lost: 20,
    rates: &[500, 2_000],
    keep: Duration::from_secs(5),
};

/// Before a rate is measured: tasks of the rate before end in that time.
const SETTLE: Duration = Duration::from_secs(6);
/// How long tasks run.
const TASK_TIME: &str = "5s";
/// What is placed a second counts as long as a launch and its event are no further apart than this.
const P99_MAX_MS: f64 = 1_000.0;
/// Less than this part of what was offered, and the curve has its knee behind it.
const PLACED_MIN: f64 = 0.8;
/// A lost agent is to be found within so long.
const FOUND_WITHIN_S: f64 = 15.0;
/// How long it may take all agents to join or to be found, on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
/// Masters, where one is to fail.
const MASTERS: usize = 3;

/// One rate.
struct Point {
    offered: f64,
    placed: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// µs of CPU per placement, in the order of [`PROCESSES`].
    cpu_us: Vec<f64>,
}

const PROCESSES: [&str; 4] = ["the master", "the scheduler's agent", "its worker", "the simulated agents"];

impl Point {
    fn in_time(&self) -> bool {
        self.p99_ms <= P99_MAX_MS
    }

    fn is_last(&self) -> bool {
        !self.in_time() || self.placed < self.offered * PLACED_MIN
    }
}

/// Simulated agents in a process.
struct Fleet {
    process: Process,
    /// From its start until all were registered.
    joined_s: f64,
}

impl Fleet {
    async fn start(group: &Group, name: &str, count: usize) -> Outcome<Self> {
        let log = group.scene.dir().join(format!("{name}.log"));
        let count_text = count.to_string();
        let peers = group.peers();
        let args = ["sim-agents", "--count", &count_text, "--name", name, "--master", &peers];
        let args = args.into_iter().chain(["--task-time", TASK_TIME, "--beside-real-agents"]);
        let args: Vec<String> = args.map(str::to_owned).collect();
        let env = group.env();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let process = Process::start_in(&log, &args, None, &env)?;
        let joined_s = until(&format!("{count} agents have joined"), WITHIN, async || registered(&log, count)).await?;
        Ok(Self { process, joined_s })
    }
}

fn registered(log: &Path, count: usize) -> Result<f64, String> {
    let text = std::fs::read_to_string(log).map_err(|error| error.to_string())?;
    let line = format!("{count} of {count} agents are registered after ");
    let rest = text.split_once(&line).ok_or_else(|| text.lines().last().unwrap_or_default().to_owned())?;
    let seconds = rest.1.split_whitespace().next().and_then(|number| number.parse().ok());
    seconds.ok_or_else(|| "no time".to_owned())
}

/// All of it; where the curves are drawn.
pub async fn measure(report: &mut Report, size: Size, charts: Option<&Path>) -> Outcome {
    let mut group = Group::start("fleet", 1).await?;
    host(&mut group).await?;
    eprintln!("bench: {} agents join", size.agents);
    let mut fleet = Fleet::start(&group, "fleet", size.agents).await?;
    let agents = thousands(size.agents);
    report.add(Row::new(format!("{agents} simulated agents join, from the start of their process"), fleet.joined_s, "s"));
    let pids = [pid(&group, 0)?, fleet.process.pid()];
    pass(SETTLE).await;
    let used = cpu_over(&pids, size.keep).await;
    for (who, used) in ["the master", "all agents"].iter().zip(used) {
        let percent = used / size.keep.as_secs_f64() / 1e4;
        report.add(Row::new(format!("{agents} agents at rest: CPU of {who}"), percent, "% of a core"));
    }
    let points = placements(&group, &fleet, size).await?;
    add_placements(report, size, &points);
    if let Some(dir) = charts {
        draw(dir, size, &points)?;
    }
    let lost = lose(&mut group, size, false).await?;
    report.add(found(&format!("{} of {agents} agents fall silent: until the last one is found", size.lost), lost));
    fleet.process.stop()?;
    group.finish()?;
    with_a_new_leader(report, size).await
}

/// Agents are lost in the moment in which the leader is.
async fn with_a_new_leader(report: &mut Report, size: Size) -> Outcome {
    let mut group = Group::start("fleet", MASTERS).await?;
    host(&mut group).await?;
    eprintln!("bench: {} agents and a new leader", size.agents);
    let mut fleet = Fleet::start(&group, "fleet", size.agents).await?;
    let lost = lose(&mut group, size, true).await?;
    let what = format!("the same while the leader of {MASTERS} masters is killed");
    report.add(found(&what, lost));
    fleet.process.stop()?;
    group.finish()
}

fn found(what: &str, seconds: f64) -> Row {
    Row::new(what, seconds, "s").target(Target::AtMost(FOUND_WITHIN_S))
}

/// An agent that hosts schedulers and is too small to be offered.
async fn host(group: &mut Group) -> Outcome {
    let flags = ["--cpus-milli", "1", "--mem-mib", "600", "--scheduler-mem-mib", "599", "--disk-mib", "0"];
    group.start_agent("host", &flags).await
}

fn pid(group: &Group, index: usize) -> Outcome<i32> {
    let process = group.members.get(index).and_then(|member| member.process.as_ref());
    process.map(Process::pid).ok_or_else(|| failure("the master does not run"))
}

/// µs of CPU of each process while time passes.
async fn cpu_over(pids: &[i32], time: Duration) -> Vec<f64> {
    let before: Vec<u64> = pids.iter().map(|pid| procfs::cpu_us(*pid)).collect();
    pass(time).await;
    let after = pids.iter().map(|pid| procfs::cpu_us(*pid));
    after.zip(before).map(|(after, before)| after.saturating_sub(before) as f64).collect()
}

// Placements.

async fn placements(group: &Group, fleet: &Fleet, size: Size) -> Outcome<Vec<Point>> {
    let rest = group.rest(0)?;
    framework(&rest, "load", "load", &[]).await?;
    let agent = group.agents.first().map(Process::pid).ok_or_else(|| failure("no agent runs"))?;
    let workers = procfs::find("tessera-worker", group.scene.dir());
    let mut pids = vec![pid(group, 0)?, agent];
    pids.extend(workers.first());
    pids.push(fleet.process.pid());
    ensure(pids.len() == PROCESSES.len() && workers.len() == 1, || format!("{} workers", workers.len()))?;
    let mut points = Vec::new();
    for rate in size.rates {
        eprintln!("bench: {rate} tasks per second");
        set_rate(&rest, *rate).await?;
        pass(SETTLE).await;
        set_rate(&rest, *rate).await?;
        let cpu = cpu_over(&pids, size.keep).await;
        let point = point(&ask(&rest, "GET", "/frameworks/load/").await?, &cpu);
        let is_last = point.is_last();
        points.push(point);
        if is_last {
            break;
        }
    }
    set_rate(&rest, 0).await?;
    Ok(points)
}

fn point(counts: &Value, cpu: &[f64]) -> Point {
    let number = |name: &str| counts[name].as_f64().unwrap_or_default();
    let seconds = (number("now_ms") - number("since_ms")) / 1e3;
    let placed = number("running") / seconds.max(1e-3);
    let point = Point {
        offered: number("rate"),
        placed,
        p50_ms: number("p50_ms"),
        p99_ms: number("p99_ms"),
        cpu_us: cpu.iter().map(|us| us / number("running").max(1.0)).collect(),
    };
    eprintln!(
        "bench: {placed:.0} placed per second, p50 {} ms, p99 {} ms, {:.0} µs of CPU each",
        point.p50_ms,
        point.p99_ms,
        point.cpu_us.iter().sum::<f64>()
    );
    point
}

async fn set_rate(rest: &Rest, rate: u64) -> Outcome<Value> {
    ask(rest, "POST", &format!("/frameworks/load/?rate={rate}")).await
}

/// A scheduler under load answers late, and may be away for a moment.
async fn ask(rest: &Rest, method: &str, path: &str) -> Outcome<Value> {
    until(&format!("an answer to {method} {path}"), PATIENCE, async || {
        let answer = rest.send(method, path, &[], Vec::new()).await.map_err(|error| error.to_string())?;
        Ok(answer.ok().map_err(|error| error.to_string())?.json())
    })
    .await
}

fn add_placements(report: &mut Report, size: Size, points: &[Point]) {
    let agents = thousands(size.agents);
    let in_time = points.iter().filter(|point| point.in_time());
    let best = in_time.max_by(|one, other| one.placed.total_cmp(&other.placed)).or(points.first());
    let Some(best) = best else { return };
    report.add(
        Row::new(format!("most tasks placed per second on {agents} agents by one scheduler, p99 below 1 s"), best.placed, "/s")
            .target(Target::AtLeast(5_000.0)),
    );
    report.add(Row::new("the same, from its operation to its TASK_RUNNING event, p50", best.p50_ms, "ms"));
    report.add(Row::new("the same, p99", best.p99_ms, "ms"));
    for (who, us) in PROCESSES.iter().zip(&best.cpu_us) {
        report.add(Row::new(format!("CPU per placement at that rate, {who}"), *us, "µs"));
    }
    report.add(
        Row::new("CPU per placement at that rate, all of them", best.cpu_us.iter().sum(), "µs")
            .target(Target::AtMost(400.0)),
    );
    for point in points {
        let what = format!("{:.0} tasks per second offered on {agents} agents: placed per second", point.offered);
        report.add(Row::new(what, point.placed, "/s"));
        report.add(Row::new(format!("{:.0} offered: p99", point.offered), point.p99_ms, "ms"));
    }
}

fn draw(dir: &Path, size: Size, points: &[Point]) -> Outcome {
    let curve = |name, value: fn(&Point) -> f64| Curve {
        name,
        points: points.iter().map(|point| (point.offered, value(point))).collect(),
    };
    let agents = thousands(size.agents);
    let latency = Chart {
        title: format!("From the scheduler's operation to TASK_RUNNING, {agents} agents"),
        axes: ("tasks offered per second", "ms"),
        curves: vec![curve("p50", |p| p.p50_ms), curve("p99", |p| p.p99_ms)],
        logarithmic: true,
    };
    latency.write(&dir.join("placement-latency.svg"))?;
    let placed = Chart {
        title: format!("Tasks placed per second, {agents} agents"),
        axes: ("tasks offered per second", "placed per second"),
        curves: vec![curve("placed", |p| p.placed), curve("offered", |p| p.offered)],
        logarithmic: false,
    };
    placed.write(&dir.join("placement-rate.svg"))?;
    let cpu = Chart {
        title: format!("CPU per placement, {agents} agents"),
        axes: ("tasks offered per second", "µs"),
        curves: vec![curve("all processes", |p| p.cpu_us.iter().sum()), curve("master", |p| p.cpu_us.first().copied().unwrap_or(0.0))],
        logarithmic: false,
    };
    Ok(cpu.write(&dir.join("placement-cpu.svg"))?)
}

// Lost agents.

/// Agents stand still; seconds until the last of them is unreachable.
async fn lose(group: &mut Group, size: Size, leader_too: bool) -> Outcome<f64> {
    eprintln!("bench: {} agents fall silent", size.lost);
    let mut lost = Fleet::start(group, "lost", size.lost).await?;
    pass(SETTLE).await;
    let leader = group.leader().await?;
    let began = Instant::now();
    procfs::signal(lost.process.pid(), Signal::SIGSTOP)?;
    if leader_too {
        group.members[leader].kill_9()?;
    }
    let leader = group.leader().await?;
    let rest = group.rest(leader)?;
    let seconds = until("lost agents are found", WITHIN, async || {
        let list = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let named = items.iter().filter(|agent| agent["hostname"].as_str().is_some_and(|name| name.starts_with("lost-")));
        let found = named.filter(|agent| agent["state"] == "unreachable").count();
        let others = items.iter().filter(|agent| agent["state"] == "unreachable").count() - found;
        if others > 0 {
            return Ok(Err(failure(format!("{others} agents were given up that beat"))));
        }
        if found < size.lost { Err(format!("{found} are found")) } else { Ok(Ok(began.elapsed().as_secs_f64())) }
    })
    .await??;
    procfs::signal(lost.process.pid(), Signal::SIGCONT)?;
    lost.process.kill_9()?;
    Ok(seconds)
}

fn thousands(count: usize) -> String {
    if count < 1_000 { count.to_string() } else { format!("{},{:03}", count / 1_000, count % 1_000) }
}
