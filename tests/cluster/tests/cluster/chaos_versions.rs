//! Masters of two versions side by side, replaced one by one as an operator does it.
//!
//! The older one is this build told to understand no more than the version before its own: what it proposes and what
//! it refuses is what that version knows.

use serde_json::json;
use std::process::Output;
use tessera_cluster::cluster::{PATIENCE, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

const OLDER: [(&str, &str); 1] = [("TESSERA_UNDERSTANDS_AT_MOST", "1")];

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

#[tokio::test]
async fn masters_are_upgraded_one_by_one_and_go_back_until_the_last_is_done() -> Outcome {
    let mut group = Group::start_as("versions", 3, &[], &OLDER).await?;
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
        group.variables = if *newer { Vec::new() } else { OLDER.to_vec() };
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
    until("the version is raised", PATIENCE, async || {
        for index in 0..3 {
            let version = cluster_version(&group, index).await.map_err(|error| error.to_string())?;
            if version < 2 {
                return Err(format!("master {index} is at {version}"));
            }
        }
        Ok(())
    })
    .await?;
    let answer = newer_command(&group.rest(leader)?).await?;
    ensure(answer.status == 404, || format!("{answer:?}"))?;
    for round in 0..4 {
        let limits = group.rest(leader)?.document(&format!("/v1/limits?role=r{round}")).await?;
        ensure(limits.to_string().contains(&format!("\"value\":{}", 10 + round)), || limits.to_string())?;
    }

    // Now there is no way back, and the older build says so instead of reading what it does not know.
    group.variables = OLDER.to_vec();
    stops(&mut group, followers[1]).await?;
    group.run(followers[1])?;
    until("the older build has refused the state", PATIENCE, async || {
        let member = &mut group.members[followers[1]];
        match member.process.as_mut().map(tessera_cluster::cluster::Process::ended) {
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
