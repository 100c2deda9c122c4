//! Several masters: any of them answers, one of them may die, and the others go on.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Process, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};

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
    let mut group = Group::beside("three", 3).await?;
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
    let local = "/v1/limits?role=after&consistency=stale";
    until("the master that was killed has caught up", PATIENCE, async || {
        let rest = group.rest(leader).map_err(|error| error.to_string())?;
        let answer = rest.get(local).await.map_err(|error| error.to_string())?;
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

/// What one writer saw: the last value that was acknowledged, and the longest time between two of those.
struct Written {
    last: u64,
    longest: Duration,
    refused: Vec<String>,
}

/// Writes rising values through one master, one after the other, each once.
async fn keep_writing(rest: Rest, role: &'static str, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written { last: 0, longest: Duration::ZERO, refused: Vec::new() };
    let mut acknowledged = Instant::now();
    for value in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match write(&rest, role, value).await {
            Ok(()) => {
                written.last = value;
                written.longest = written.longest.max(acknowledged.elapsed());
                acknowledged = Instant::now();
            }
            Err(error) => written.refused.push(error.to_string()),
        }
    }
    written
}

/// Writers go through the two masters that live on: the death or the pause of the leader must cost them time
/// only, and never a write that was acknowledged, nor may an older value come after a newer one.
#[tokio::test]
async fn writers_notice_a_dead_or_paused_leader_only_by_waiting() -> Outcome {
    let mut group = Group::start("writers", 3).await?;
    for paused in [false, true] {
        let leader = group.leader().await?;
        let stop = Arc::new(AtomicBool::new(false));
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let writers: Vec<_> = others
            .iter()
            .zip([["a", "b"], ["c", "d"]][usize::from(paused)])
            .map(|(index, role)| Ok(tokio::spawn(keep_writing(group.rest(*index)?, role, stop.clone()))))
            .collect::<Outcome<_>>()?;
        let reader = group.rest(others[0])?;
        let roles = [["a", "b"], ["c", "d"]][usize::from(paused)];
        let goes_on = async |from: [Option<u64>; 2]| {
            until("both writers go on", PATIENCE, async || {
                let mut now = [None; 2];
                for (role, now) in roles.iter().zip(&mut now) {
                    *now = read(&reader, role).await.map_err(|error| error.to_string())?;
                }
                // A value that was never set is the default of the limit, which is above what is written here.
                let moved = now.iter().zip(&from).all(|(now, from)| now != from && now.is_some());
                if moved { Ok(now) } else { Err(format!("{now:?}")) }
            })
            .await
        };
        let before = goes_on([None; 2]).await?;
        let mut process = group.members[leader].process.take();
        let pid = process.as_ref().map_or(0, Process::pid);
        match paused {
            false => process.as_mut().map_or(Ok(()), Process::kill_9)?,
            true => procfs::signal(pid, Signal::SIGSTOP)?,
        }
        let after = goes_on(before).await?;
        goes_on(after).await?;
        if paused {
            procfs::signal(pid, Signal::SIGCONT)?;
            group.members[leader].process = process;
        } else {
            group.run(leader)?;
        }
        group.voters(3).await?;
        goes_on(after).await?;
        stop.store(true, Ordering::Relaxed);
        for (writer, role) in writers.into_iter().zip(roles) {
            let written = writer.await?;
            eprintln!("paused: {paused}, {role}: {} writes, longest wait {:?}", written.last, written.longest);
            ensure(written.refused.is_empty(), || format!("{:?}", written.refused))?;
            let kept = read(&reader, role).await?;
            ensure(kept == Some(written.last), || format!("{role}: {kept:?}, not {}", written.last))?;
            ensure(written.longest < Duration::from_secs(8), || format!("{:?}", written.longest))?;
        }
    }
    group.finish()
}

#[tokio::test]
async fn a_stopped_leader_hands_over_and_agents_follow() -> Outcome {
    let mut group = Group::beside("hand", 3).await?;
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

#[tokio::test]
async fn a_leader_whose_process_ended_is_not_waited_for_and_one_that_stands_still_is_left_for_the_next() -> Outcome {
    let mut group = Group::start("gone", 3).await?;
    group.start_agent("agent", &[]).await?;
    let leader = group.leader().await?;
    group.members[leader].kill_9()?;
    group.connected(1).await?;
    let logs = [1, 2].map(|more| group.members[(leader + more) % 3].log());
    ensure(logs.iter().any(|log| log.contains("the leader is gone, and it is not waited for")), || logs.join("\n"))?;
    group.run(leader)?;
    group.voters(3).await?;

    let leader = group.leader().await?;
    let process = group.members[leader].process.take();
    let pid = process.as_ref().map_or(0, Process::pid);
    procfs::signal(pid, Signal::SIGSTOP)?;
    let connected = group.connected(1).await;
    procfs::signal(pid, Signal::SIGCONT)?;
    connected?;
    group.members[leader].process = process;
    // Its connection to the old leader had not ended: another master said who leads.
    let log = std::fs::read_to_string(group.scene.dir().join("agent.log"))?;
    ensure(log.contains("it became silent, and "), || log)?;
    group.finish()
}
