//! A state of 40,000 agents and 400,000 tasks: how soon a master that starts from it serves, how soon a new
//! leader places a task, what it takes in memory, and whether a snapshot of it is felt, saved or sent.
//!
//! The state is made by `fill`, through a master's node and its log. Its agents have no sessions, apart from the
//! one that hosts the schedulers and a few simulated ones that tasks are placed on. Must never be made by hand.

use crate::commits::{Commits, Window};
use crate::lists;
use crate::report::{Report, Row, Target};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Process, framework};
use tessera_cluster::guests::{guest, program};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// How large it is.
#[derive(Clone, Copy)]
pub struct Size {
    /// Agents.
    pub agents: usize,
    /// Tasks that run on them.
    pub tasks: usize,
    /// Frameworks that share the tasks.
    pub frameworks: usize,
}

/// Ten tasks on each of as many agents as Mesos publishes numbers for.
pub const FULL: Size = Size { agents: 40_000, tasks: 400_000, frameworks: 40 };
/// A tenth of a tenth.
pub const SHORT: Size = Size { agents: 400, tasks: 4_000, frameworks: 4 };

/// Masters of which one is killed.
const MASTERS: usize = 3;
/// Agents on which new tasks are placed.
const LIVE: &str = "20";
/// Tasks per second while a snapshot is made.
const RATE: u64 = 100;
/// A rate has settled after this: tasks end as fast as they are launched.
const SETTLE: Duration = Duration::from_secs(8);
/// How long the longest pause without a snapshot is looked for: no longer than a snapshot takes, as a longer time has
/// longer ones.
const QUIET: Duration = Duration::from_secs(5);
/// What a snapshot may add to it.
const PAUSE_MAX_MS: f64 = 50.0;
/// How long filling or joining may take.
const WITHIN: Duration = Duration::from_secs(900);

/// All of it.
pub async fn measure(report: &mut Report, size: Size) -> Outcome {
    let name = format!("{} agents and {} tasks", size.agents, size.tasks);
    let mut group = Group::start("large", 1).await?;
    fill(&mut group, size).await?;
    eprintln!("bench: a master starts with {name}");
    let began = Instant::now();
    group.run(0)?;
    let rest = group.rest(0)?;
    until("the master serves", WITHIN, async || {
        let health = rest.get("/health").await.map_err(|error| error.to_string())?;
        if health.json()["leader"] == true { Ok(()) } else { Err(health.text()) }
    })
    .await?;
    let started = began.elapsed().as_secs_f64();
    report.add(Row::new(format!("a master starts with {name}, until it leads"), started, "s").target(Target::AtMost(10.0)));
    let pid = group.members.first().and_then(|m| m.process.as_ref()).map_or(0, Process::pid);
    report.add(Row::new("its private memory", procfs::private_kib(pid) as f64 / 1_024.0, "MiB"));
    let mut live = agents(&mut group).await?;
    framework(&rest, "load", "load", &[("per-offer", "1")]).await?;
    snapshots(report, &mut group, &rest).await?;
    let placed = fail_over(&mut group).await?;
    report.add(
        Row::new(format!("kill -9 of the leader with {name}: until another one has placed a task"), placed, "s")
            .target(Target::AtMost(2.0)),
    );
    live.stop()?;
    let leader = group.leader().await?;
    let pid = group.members.get(leader).and_then(|m| m.process.as_ref()).map_or(0, Process::pid);
    lists::measure(report, &group.rest(leader)?, pid).await?;
    group.finish()
}

/// Make the state in the directory of the only master.
async fn fill(group: &mut Group, size: Size) -> Outcome {
    eprintln!("bench: making {} agents and {} tasks", size.agents, size.tasks);
    let Some(member) = group.members.first_mut() else { return Err(failure("no master")) };
    if let Some(mut process) = member.process.take() {
        process.stop()?;
    }
    let (dir, component) = (member.dir.clone(), guest("load")?);
    let program = program("fill")?;
    let output = tokio::task::spawn_blocking(move || {
        let numbers = [size.agents, size.tasks, size.frameworks].map(|number| number.to_string());
        Command::new(program).arg(&dir).arg(component).args(numbers).output()
    })
    .await??;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// The host of the schedulers, and some that tasks can be placed on.
async fn agents(group: &mut Group) -> Outcome<Process> {
    let flags = ["--cpus-milli", "1", "--mem-mib", "2000", "--scheduler-mem-mib", "1999", "--disk-mib", "0"];
    group.start_agent("host", &flags).await?;
    let peers = group.peers();
    let args = ["sim-agents", "--count", LIVE, "--name", "live", "--master", &peers, "--task-time", "5s", "--beside-real-agents"];
    let args: Vec<String> = args.map(str::to_owned).to_vec();
    let env = group.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let live = Process::start_in(&group.scene.dir().join("live.log"), &args, None, &env)?;
    group.connected(1 + LIVE.parse::<usize>()?).await?;
    Ok(live)
}

async fn ask(rest: &Rest, method: &str, path: &str) -> Outcome<Value> {
    until(&format!("an answer to {method} {path}"), PATIENCE, async || {
        let answer = rest.send(method, path, &[], Vec::new()).await.map_err(|error| error.to_string())?;
        Ok(answer.ok().map_err(|error| error.to_string())?.json())
    })
    .await
}

/// Sets the rate, and waits until it is kept.
async fn keep_rate(rest: &Rest) -> Outcome {
    let rate = format!("/frameworks/load/?rate={RATE}");
    ask(rest, "POST", &rate).await?;
    pass(SETTLE).await;
    ask(rest, "POST", &rate).await.map(drop)
}

/// The longest pause between placements at a steady rate: without a snapshot, while one is saved, and while masters
/// join, each of which is sent one.
async fn snapshots(report: &mut Report, group: &mut Group, rest: &Rest) -> Outcome {
    keep_rate(rest).await?;
    let commits = Commits::follow(rest).await?;
    let began = Instant::now();
    pass(QUIET).await;
    let without = commits.since(began)?;
    eprintln!("bench: without a snapshot: {without:?}");
    let what = format!("{RATE} tasks offered per second: placed per second");
    report.add(Row::new(what, without.per_second, "/s"));
    report.add(Row::new("the longest pause between two placements", without.pause_ms, "ms"));

    eprintln!("bench: a snapshot is saved");
    let file = group.scene.dir().join("saved").display().to_string();
    let env = group.env();
    let began = Instant::now();
    let saved = tessera_cluster::cluster::tessera(&["operator", "snapshot", "save", &file], &env).await?;
    let took = began.elapsed();
    ensure(saved.status.success(), || String::from_utf8_lossy(&saved.stderr).into_owned())?;
    let found = commits.since(began)?;
    eprintln!("bench: saved after {} ms: {found:?}", took.as_millis());
    report.add(Row::new("a snapshot of it is saved within", took.as_secs_f64(), "s"));
    report.add(Row::new("its size", std::fs::metadata(&file)?.len() as f64 / f64::from(1 << 20), "MiB"));
    added(report, "a snapshot is saved", without, found);

    for number in 1..MASTERS {
        eprintln!("bench: another master joins");
        let began = Instant::now();
        group.join().await?;
        let took = began.elapsed();
        let found = commits.since(began)?;
        eprintln!("bench: joined after {} ms: {found:?}", took.as_millis());
        let what = if number == 1 { "a second master joins" } else { "a third master joins" };
        report.add(Row::new(format!("{what}: until it votes"), took.as_secs_f64(), "s"));
        added(report, what, without, found);
    }
    ask(rest, "POST", "/frameworks/load/?rate=0").await.map(drop)
}

fn added(report: &mut Report, what: &str, without: Window, with: Window) {
    report.add(Row::new(format!("the longest pause between two placements while {what}"), with.pause_ms, "ms"));
    let added = (with.pause_ms - without.pause_ms).max(0.0);
    report.add(Row::new("what that adds", added, "ms").target(Target::AtMost(PAUSE_MAX_MS)));
}

/// The longest time in which the scheduler launched a task, heard that it runs, and did so again, with the leader's
/// death in it: so that at least one was launched after that; in s.
async fn fail_over(group: &mut Group) -> Outcome<f64> {
    let leader = group.leader().await?;
    let rest = group.rest(leader)?;
    keep_rate(&rest).await?;
    // The scheduler's own longest pause without a failure is within this.
    pass(Duration::from_secs(2)).await;
    eprintln!("bench: the leader is killed");
    group.members[leader].kill_9()?;
    let next = group.leader().await?;
    let rest = group.rest(next)?;
    let before = ask(&rest, "GET", "/frameworks/load/").await?;
    let counts = until("tasks are placed again", WITHIN, async || {
        let counts = ask(&rest, "GET", "/frameworks/load/").await.map_err(|error| error.to_string())?;
        let more = counts["running"].as_u64().unwrap_or(0) > before["running"].as_u64().unwrap_or(0) + 2 * RATE;
        if more { Ok(counts) } else { Err(counts.to_string()) }
    })
    .await?;
    let pause_ms = counts["pause_ms"].as_f64().ok_or_else(|| failure("the scheduler does not say how long it waited"))?;
    Ok(pause_ms / 1e3)
}
