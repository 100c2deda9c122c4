//! Masters of two versions side by side, replaced one by one as an operator does it.
//!
//! The older one is this build told to understand no more than the version before its own: what it proposes and what
//! it refuses is what that version knows.

use crate::chaos_books::books;
use crate::chaos_load::Load;
use crate::members::{document, operator};
use serde_json::json;
use std::process::Output;
use std::time::Duration;
use tessera_cluster::cluster::{PATIENCE, Process, Scene, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

const OLDER: [(&str, &str); 1] = [("TESSERA_UNDERSTANDS_AT_MOST", "1")];

/// Small machines, so that tasks are on both.
const AGENT_FLAGS: [&str; 4] = ["--cpus-milli", "2000", "--mem-mib", "2048"];
/// Leadership that is handed over takes far less, and an election, too; on a machine with other tests.
const PAUSE_MAX: Duration = Duration::from_secs(5);

fn older() -> Vec<(&'static str, String)> {
    OLDER.map(|(name, value)| (name, value.to_owned())).to_vec()
}

async fn write(rest: &Rest, role: &str, value: u64) -> Outcome {
    let body = json!({"set": {"timers": value}}).to_string().into_bytes();
    rest.send("PATCH", &format!("/v1/limits?role={role}"), &[], body).await?.ok()?;
    Ok(())
}

/// Asks for what only the newer version can: whether it is refused for that.
async fn newer_command(rest: &Rest) -> Outcome<Answer> {
    rest.send("DELETE", &format!("/v1/components/sha256:{}", "0".repeat(64)), &[], Vec::new()).await
}

async fn stops(group: &mut Group, index: usize) -> Outcome {
    match group.members[index].process.take() {
        Some(mut process) => process.stop().map(drop),
        None => Ok(()),
    }
}

async fn serves(group: &Group, index: usize) -> Outcome {
    let rest = group.rest(index)?;
    until("it serves", PATIENCE, async || {
        let answer = rest.get("/health").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await
}

async fn cluster_version(group: &Group, index: usize) -> Outcome<u64> {
    Ok(group.view(index).await?["cluster_version"].as_u64().unwrap_or(0))
}

async fn raised(group: &Group) -> Outcome {
    until("the version is raised", PATIENCE, async || {
        for index in 0..3 {
            let version = cluster_version(group, index).await.map_err(|error| error.to_string())?;
            if version < 2 {
                return Err(format!("master {index} is at {version}"));
            }
        }
        Ok(())
    })
    .await
}

/// Waits until `tessera operator autopilot` shows all of three well.
async fn well(group: &Group) -> Outcome {
    until("all masters are well", PATIENCE, async || {
        let output = operator(group, &["autopilot"]).await.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("3 of 3 are well") { Ok(()) } else { Err(format!("{text}{output:?}")) }
    })
    .await
}

/// The steps of docs/operations.md under a workload that never pauses: masters first, and then an agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_goes_on_while_all_are_upgraded() -> Outcome {
    let mut group = Group::start_in(Scene::beside("upgraded").await?, 3, &[], &OLDER).await?;
    for agent in ["a1", "a2"] {
        group.start_agent(agent, &AGENT_FLAGS).await?;
    }
    let clients = (0..3).map(|index| group.rest(index)).collect::<Outcome<Vec<_>>>()?;
    let ran = group.scene.open_file("ran")?;
    let mut load = Load::start_with(clients.clone(), 0, &ran, 1, 0).await?;

    let saved = group.scene.dir().join("saved.tsr").display().to_string();
    document(&group, &["snapshot", "save", &saved]).await?;
    let leader = group.leader().await?;
    group.variables.clear();
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        stops(&mut group, follower).await?;
        group.run(follower)?;
        well(&group).await?;
    }
    // To whoever is furthest.
    document(&group, &["raft", "transfer"]).await?;
    ensure(group.leader().await? != leader, || "it leads on".to_owned())?;
    stops(&mut group, leader).await?;
    group.run(leader)?;
    well(&group).await?;
    raised(&group).await?;
    // An agent, whose tasks run on meanwhile.
    group.agents[0].stop()?;
    let log = group.scene.dir().join("a1.log");
    group.agents[0] = Process::start(&log, &group.agent_args("a1", &AGENT_FLAGS))?;
    group.connected(2).await?;

    let stopped = load.stop().await;
    group.voters(3).await?;
    load.read_all().await?;
    let history = group.scene.dir().join("history.jsonl");
    let balance = books(&clients, &load, &history, stopped).await?;
    eprintln!("{}", balance.text);
    let longest = load.longest_gap();
    ensure(longest < PAUSE_MAX, || format!("{longest:?} without an acknowledged change"))?;
    load.remove().await?;
    group.finish()
}

#[tokio::test]
async fn masters_are_upgraded_one_by_one_and_go_back_until_the_last_is_done() -> Outcome {
    let mut group = Group::start_in(Scene::beside("versions").await?, 3, &[], &OLDER).await?;
    let answer = newer_command(&group.rest(0)?).await?;
    let refused = |answer: &Answer| {
        answer.status == 409 && answer.text().contains("upgrade all masters")
    };
    ensure(refused(&answer), || format!("{answer:?}"))?;

    let leader = group.leader().await?;
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    // The first goes there, back, and there again; nobody else notices.
    for (round, (follower, newer)) in
        [(followers[0], true), (followers[0], false), (followers[0], true), (followers[1], true)].iter().enumerate()
    {
        group.variables = if *newer { Vec::new() } else { older() };
        stops(&mut group, *follower).await?;
        group.run(*follower)?;
        serves(&group, *follower).await?;
        let role = format!("r{round}");
        write(&group.rest(*follower)?, &role, 10 + round as u64).await?;
        group.voters(3).await?;
        for index in 0..3 {
            let version = cluster_version(&group, index).await?;
            ensure(version == 1, || format!("round {round}: master {index} is at {version}"))?;
        }
        let answer = newer_command(&group.rest(*follower)?).await?;
        ensure(refused(&answer), || format!("round {round}: {answer:?}"))?;
    }

    // The leader last. A newer one leads then, while the older one still votes.
    let to = group.node(followers[0]).await?.to_string();
    let moved: Output = tessera(&["operator", "raft", "transfer", &to], &group.env()).await?;
    ensure(moved.status.success(), || format!("{moved:?}"))?;
    let answer = newer_command(&group.rest(followers[0])?).await?;
    ensure(refused(&answer), || format!("{answer:?}"))?;
    group.variables.clear();
    stops(&mut group, leader).await?;
    group.run(leader)?;
    serves(&group, leader).await?;
    raised(&group).await?;
    let answer = newer_command(&group.rest(leader)?).await?;
    ensure(answer.status == 404, || format!("{answer:?}"))?;
    for round in 0..4 {
        let limits = group.rest(leader)?.document(&format!("/v1/limits?role=r{round}")).await?;
        ensure(limits.to_string().contains(&format!("\"value\":{}", 10 + round)), || limits.to_string())?;
    }

    // Now there is no way back, and the older build says so instead of reading what it does not know.
    group.variables = older();
    stops(&mut group, followers[1]).await?;
    group.run(followers[1])?;
    until("the older build has refused the state", PATIENCE, async || {
        let member = &mut group.members[followers[1]];
        match member.process.as_mut().map(Process::ended) {
            Some(Ok(Some(status))) if !status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let log = group.members[followers[1]].log();
    ensure(log.contains("version"), || log.clone())?;
    eprintln!("{}", log.lines().last().unwrap_or_default());
    group.members[followers[1]].process = None;
    group.variables.clear();
    group.run(followers[1])?;
    group.voters(3).await?;
    group.finish()
}
