//! Time from a failure until work goes on: from that of the leader until a task is placed again, and from that of
//! a scheduler's machine until the scheduler runs on another one.
//!
//! Three masters and two agents with their default settings, the guest `launcher` as scheduler. Must never count
//! a task that was asked for before the failure, nor an answer of the instance that was lost.

use crate::failover::{FAILURES, add, others};
use crate::report::Report;
use crate::writes::MEMBERS;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Process, framework};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Failure, Outcome, failure, procfs};

/// The machines, by their host names.
const AGENTS: [&str; 2] = ["east", "west"];
const SCHEDULER: &str = "launcher";
/// A request that is not answered is sent again after this, under its key.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between attempts that were refused.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two looks at what tasks have written.
const LOOK: Duration = Duration::from_millis(2);
/// Agents beat so often. The leader fails at another moment between two beats in every round.
const BEAT: Duration = Duration::from_secs(1);
/// Rounds with the leader for one with a machine, which takes so much longer.
const ROUNDS_PER_MACHINE: usize = 3;

/// All of it, so many rounds of each kind.
pub async fn measure(report: &mut Report, rounds: usize) -> Outcome {
    let mut group = Group::start("recovery", MEMBERS).await?;
    for name in AGENTS {
        group.start_agent(name, &flags(name)).await?;
    }
    framework(&group.rest(0)?, SCHEDULER, "launcher", &[]).await?;
    let ran = group.scene.open_file("ran")?;
    for (how, signal) in FAILURES {
        let mut times = Vec::new();
        for round in 0..rounds {
            let after = BEAT.mul_f64(round as f64 / rounds as f64);
            let took = leader_fails(&mut group, &ran, &format!("{signal}-{round}"), signal, after).await?;
            eprintln!("bench: leader {how}, until a task is placed, {round}: {} ms", took.as_millis());
            times.push(took.as_secs_f64());
        }
        add(report, &format!("leader {how}, until a task that is asked for then runs"), times, &[]);
    }
    for (how, signal) in FAILURES {
        let mut times = Vec::new();
        for round in 0..rounds.div_ceil(ROUNDS_PER_MACHINE) {
            let took = machine_fails(&mut group, signal).await?;
            eprintln!("bench: machine of a scheduler {how}, {round}: {} ms", took.as_millis());
            times.push(took.as_secs_f64());
        }
        let what = format!("agent and workers of a scheduler {how}, until it answers on another machine, of that 6 s grace");
        add(report, &what, times, &[]);
    }
    group.finish()
}

fn flags(name: &str) -> [&str; 6] {
    ["--hostname", name, "--cpus-milli", "2000", "--mem-mib", "2048"]
}

/// All masters vote, all agents are connected, and the scheduler answers.
async fn whole(group: &Group) -> Outcome {
    group.voters(MEMBERS).await?;
    group.connected(AGENTS.len()).await?;
    let rest = group.rest(group.leader().await?)?;
    until("the scheduler answers", PATIENCE, async || answers(&rest).await).await
}

async fn answers(rest: &Rest) -> Result<(), String> {
    let answer = rest.get(&format!("/frameworks/{SCHEDULER}/")).await;
    answer.and_then(|answer| answer.ok()).map(drop).map_err(|error| error.to_string())
}

/// Ask for a task until that is taken in. Only a failure comes back: what is waited for is the task.
async fn ask(rest: &Rest, id: &str, ran: &Path) -> Failure {
    let run = format!("echo {id} >> {}", ran.display());
    let body = json!({"tasks": [{"id": id, "run": run}]}).to_string().into_bytes();
    let headers = [("content-type", "application/json"), ("idempotency-key", id)];
    let path = format!("/frameworks/{SCHEDULER}/jobs");
    let (began, mut last) = (Instant::now(), failure("not tried"));
    while began.elapsed() < PATIENCE {
        let sent = rest.send("POST", &path, &headers, body.clone());
        match tokio::time::timeout(ATTEMPT, sent).await {
            Ok(Ok(answer)) => match answer.ok() {
                Ok(_) => std::future::pending().await,
                Err(error) => last = error,
            },
            Ok(Err(error)) => last = error,
            Err(_) => last = failure("no answer"),
        }
        pass(PAUSE).await;
    }
    last
}

/// A task of this round has written its id.
async fn has_run(ran: &Path, round: &str, since: Instant) -> Outcome<Duration> {
    let prefix = format!("{round}-");
    while since.elapsed() < PATIENCE {
        if std::fs::read_to_string(ran)?.lines().any(|line| line.starts_with(&prefix)) {
            return Ok(since.elapsed());
        }
        pass(LOOK).await;
    }
    Err(failure(format!("no task of round {round} ran")))
}

/// A client of each other master asks for a task; the first that runs counts.
async fn leader_fails(
    group: &mut Group,
    ran: &Path,
    round: &str,
    signal: Signal,
    after: Duration,
) -> Outcome<Duration> {
    whole(group).await?;
    pass(after).await;
    let leader = group.leader().await?;
    let [one, other] = others(leader);
    let (one, other) = (group.rest(one)?, group.rest(other)?);
    for rest in [&one, &other] {
        // Its connection stands, as that of a client which works all the time.
        answers(rest).await.map_err(failure)?;
    }
    let process = group.members[leader].process.as_mut().ok_or_else(|| failure("no leader runs"))?;
    let began = Instant::now();
    procfs::signal(process.pid(), signal)?;
    let ids = [format!("{round}-1"), format!("{round}-2")];
    let took = tokio::select! {
        took = has_run(ran, round, began) => took,
        error = ask(&one, &ids[0], ran) => Err(error),
        error = ask(&other, &ids[1], ran) => Err(error),
    };
    if signal == Signal::SIGKILL {
        process.kill_9()?;
        group.members[leader].process = None;
        group.run(leader)?;
    } else {
        procfs::signal(process.pid(), Signal::SIGCONT)?;
    }
    took
}

/// Agent and workers of the machine that hosts the scheduler fail together.
async fn machine_fails(group: &mut Group, signal: Signal) -> Outcome<Duration> {
    whole(group).await?;
    let rest = group.rest(group.leader().await?)?;
    let path = format!("/v1/frameworks/{SCHEDULER}");
    let before = rest.document(&path).await?;
    let at = host(&rest, &before).await?;
    let dir = group.scene.dir().join(AGENTS[at]);
    let mut pids = procfs::find("tessera-worker", &dir);
    pids.push(group.agents[at].pid());
    let began = Instant::now();
    for pid in &pids {
        procfs::signal(*pid, signal)?;
    }
    let elsewhere = until("the scheduler runs on another machine", PATIENCE, async || {
        let now = rest.document(&path).await.map_err(|error| error.to_string())?;
        if now["epoch"] == before["epoch"] || now["state"] != "running" {
            return Err(now.to_string());
        }
        answers(&rest).await
    });
    let moved = elsewhere.await;
    let took = began.elapsed();
    if signal == Signal::SIGKILL {
        group.agents[at].kill_9()?;
        let log = group.scene.dir().join(format!("{}.log", AGENTS[at]));
        group.agents[at] = Process::start(&log, &group.agent_args(AGENTS[at], &flags(AGENTS[at])))?;
    } else {
        for pid in &pids {
            procfs::signal(*pid, Signal::SIGCONT)?;
        }
    }
    moved.map(|()| took)
}

/// Which machine hosts the scheduler.
async fn host(rest: &Rest, framework: &Value) -> Outcome<usize> {
    let agent = framework["agent"].as_str().unwrap_or_default();
    let name = rest.document(&format!("/v1/agents/{agent}")).await?["hostname"].clone();
    let at = AGENTS.iter().position(|known| name == *known);
    at.ok_or_else(|| failure(format!("{framework} is hosted by {name}")))
}
