//! Several masters: any of them answers, one of them may die, and the others go on.

use serde_json::{Value, json};
use tessera_cluster::cluster::{PATIENCE, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

/// Sets a limit of a role, which is a small write that every master must have.
async fn write(rest: &Rest, role: &str, value: u64) -> Outcome {
    let body = json!({"set": {"timers": value}}).to_string().into_bytes();
    let path = format!("/v1/limits?role={role}");
    rest.send("PATCH", &path, &[], body).await?.ok()?;
    Ok(())
}

fn timers(limits: &Value) -> Option<u64> {
    let all = limits["limits"].as_array()?;
    all.iter().find(|limit| limit["name"] == "timers")?["value"].as_u64()
}

/// What a master answers, by way of the leader.
async fn read(rest: &Rest, role: &str) -> Outcome<Option<u64>> {
    let limits = rest.document(&format!("/v1/limits?role={role}")).await?;
    Ok(timers(&limits))
}

#[tokio::test]
async fn any_master_answers_and_one_may_die() -> Outcome {
    let mut group = Group::start("three", 3).await?;
    for index in 0..3 {
        let role = format!("r{index}");
        write(&group.rest(index)?, &role, 10 + index as u64).await?;
        for other in 0..3 {
            let seen = read(&group.rest(other)?, &role).await?;
            ensure(seen == Some(10 + index as u64), || format!("master {other}: {seen:?}"))?;
        }
    }

    let leader = group.leader().await?;
    let node = group.node(leader).await?;
    group.members[leader].kill_9()?;
    let survivor = (leader + 1) % 3;
    // One request, not a loop: the follower itself waits for the next leader.
    write(&group.rest(survivor)?, "after", 77).await?;
    let next = group.leader().await?;
    ensure(next != leader, || "the dead master leads".into())?;
    for index in 0..3 {
        let seen = read(&group.rest(survivor)?, &format!("r{index}")).await?;
        ensure(seen == Some(10 + index as u64), || format!("r{index}: {seen:?}"))?;
    }

    group.run(leader)?;
    ensure(group.node(leader).await? == node, || "it has another number".into())?;
    let local = format!("/v1/limits?role=after&consistency=stale");
    until("the master that was killed has caught up", PATIENCE, async || {
        let rest = group.rest(leader).map_err(|error| error.to_string())?;
        let answer = rest.get(&local).await.map_err(|error| error.to_string())?;
        match (timers(&answer.json()), answer.headers.get("tessera-applied-index")) {
            (Some(77), Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;

    let listed = tessera(&["operator", "raft", "list", "-o", "json"], &group.env()).await?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    ensure(listed["voters"] == 3 && listed["quorum"] == 2, || listed.to_string())?;
    group.finish()
}

#[tokio::test]
async fn a_stopped_leader_hands_over_and_agents_follow() -> Outcome {
    let mut group = Group::start("hand", 3).await?;
    group.start_agent("agent", &[]).await?;
    for _ in 0..2 {
        let leader = group.leader().await?;
        if let Some(mut process) = group.members[leader].process.take() {
            process.stop()?;
        }
        let log = group.members[leader].log();
        ensure(log.contains("handed leadership over"), || log)?;
        group.connected(1).await?;
        let status = tessera(&["run", "--", "sh", "-c", "exit 7"], &group.env()).await?;
        ensure(status.status.code() == Some(7), || format!("{status:?}"))?;
        group.run(leader)?;
        group.voters(3).await?;
    }
    group.finish()
}
