//! Disks that take their time, under masters that are real processes: the thread that syncs the log waits, and
//! nobody else does.

use crate::chaos_disks::on_small_disk;
use crate::chaos_faults::{SLOW_WRITES, SLUGGISH_WRITES};
use crate::chaos_load::understand_state_writes;
use serde_json::Value;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, framework, tessera};
use tessera_cluster::disk::Disk;
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, skipped};

/// The framework whose state is written.
const NAME: &str = "kept";
/// How long each disk is written to.
const EACH: Duration = Duration::from_secs(6);
/// A sluggish disk takes no less than this for a synced write, or it would not be one.
const SLUGGISH_MIN: Duration = Duration::from_millis(60);
/// After so long without anything durable a leader hands over, so that a slow disk is one that takes longer.
const HANDS_OVER: Duration = Duration::from_millis(500);
/// A leader that hands over, and a write that meets it then, on a busy machine.
const GAP_MAX: Duration = Duration::from_secs(4);

async fn health(group: &Group, index: usize) -> Outcome<Value> {
    group.rest(index)?.document("/health").await
}

async fn term(group: &Group, index: usize) -> Outcome<u64> {
    Ok(health(group, index).await?["term"].as_u64().unwrap_or(0))
}

/// Writes one key again and again; how often, and the longest time for one.
async fn write_for(rest: &Rest, time: Duration, value: &mut u64) -> Outcome<(usize, Duration)> {
    let (began, mut writes, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < time {
        *value += 1;
        let sent = Instant::now();
        let path = format!("/v1/frameworks/{NAME}/state/k");
        rest.send("PUT", &path, &[], value.to_string().into_bytes()).await?.ok()?;
        longest = longest.max(sent.elapsed());
        writes += 1;
    }
    Ok((writes, longest))
}

async fn synced_write(disk: &Disk) -> Outcome<Duration> {
    tokio::task::block_in_place(|| disk.synced_write())
}

async fn connected(rest: &Rest) -> Outcome<bool> {
    let agents = rest.document("/v1/agents").await?;
    Ok(agents["items"][0]["state"] == "connected")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_stops_neither_heartbeats_nor_writes() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("disks of their own need root");
    }
    if !Disk::can_be_slow() {
        return skipped("slow disks need control groups of version 1 that limit writes");
    }
    let mut group = Group::start("slow", 3).await?;
    group.start_agent("a", &["--cpus-milli", "1000", "--mem-mib", "1024"]).await?;
    framework(&group.rest(0)?, NAME, "echo", &[("tick-ms", "0")]).await?;
    let victim = (group.leader().await? + 1) % 3;
    group.members[victim].kill_9()?;
    let disk = on_small_disk(&mut group, victim)?;
    group.run(victim)?;
    group.voters(3).await?;
    until("it leads", PATIENCE, async || {
        let node = group.node(victim).await.map_err(|error| error.to_string())?.to_string();
        let moved = tessera(&["operator", "raft", "transfer", &node], &group.env()).await;
        let moved = moved.map_err(|error| error.to_string())?;
        let leader = group.leader().await.map_err(|error| error.to_string())?;
        if leader == victim { Ok(()) } else { Err(format!("{moved:?}")) }
    })
    .await?;
    group.connected(1).await?;
    let rest = group.rest((victim + 1) % 3)?;
    understand_state_writes(&rest).await?;
    let mut value = 0;

    // The leader's log is slow: it leads on, each write waits for the disk, and nobody is taken for lost.
    let before = term(&group, victim).await?;
    disk.set_writes_per_second(Some(SLUGGISH_WRITES))?;
    let took = synced_write(&disk).await?;
    ensure(took >= SLUGGISH_MIN, || format!("the disk is not slow: {took:?}"))?;
    let (writes, longest) = write_for(&rest, EACH, &mut value).await?;
    eprintln!("sluggish, {took:?} for a synced write: {writes} writes, the longest {longest:?}");
    // Other syncs than the writes' share the disk: one election may come of a long row of them, but not more.
    ensure(longest < GAP_MAX && writes > 5, || format!("{writes} writes, the longest took {longest:?}"))?;
    let after = term(&group, victim).await?;
    ensure(after <= before + 1, || format!("term {before}, then {after}: heartbeats waited for the disk"))?;
    ensure(connected(&rest).await?, || "the agent was given up".to_owned())?;

    // It is slower than an election: another one leads, at once and once, and this one follows.
    disk.set_writes_per_second(Some(SLOW_WRITES))?;
    let took = synced_write(&disk).await?;
    ensure(took > HANDS_OVER, || format!("the disk is not slow enough: {took:?}"))?;
    let (writes, longest) = write_for(&rest, EACH, &mut value).await?;
    let handed = health(&group, victim).await?;
    eprintln!("slow, {took:?} for a synced write: {writes} writes, the longest {longest:?}; {handed}");
    ensure(handed["leader"] != true, || format!("it still leads: {handed}"))?;
    ensure(longest < GAP_MAX, || format!("a write took {longest:?}"))?;
    // As a follower it holds nobody up, and asks for no election.
    let before = term(&group, (victim + 1) % 3).await?;
    let (writes, longest) = write_for(&rest, EACH, &mut value).await?;
    eprintln!("a slow follower: {writes} writes, the longest {longest:?}");
    let after = term(&group, (victim + 1) % 3).await?;
    ensure(before == after, || format!("term {before}, then {after}"))?;
    // If each waited for that disk, it could not be a third as many.
    let synced = EACH.as_millis() / HANDS_OVER.as_millis();
    ensure(writes as u128 > 3 * synced, || format!("{writes} writes: they waited for a follower's disk"))?;
    ensure(connected(&rest).await?, || "the agent was given up".to_owned())?;

    disk.set_writes_per_second(None)?;
    until("it has everything", PATIENCE, async || {
        let own = group.rest(victim).map_err(|error| error.to_string())?;
        let path = format!("/v1/frameworks/{NAME}/state/k?consistency=stale");
        let answer = own.get(&path).await.map_err(|error| error.to_string())?;
        if answer.text() == value.to_string() { Ok(()) } else { Err(answer.text()) }
    })
    .await?;
    group.finish_on(disk)
}
