//! Whoever waits for a master has an answer in time, also when the master is cut off or its disk stands still.

use crate::chaos_disks::on_small_disk;
use serde_json::json;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, push};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::site::Site;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, skipped};

/// The framework whose state is written.
const NAME: &str = "kept";
/// An attempt begins within 10 s and is answered within as many; and a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(25);
/// Far less than it takes to wait for the end of a silent connection.
const FOUND_WITHIN: Duration = Duration::from_secs(30);

async fn limit(rest: &Rest, key: &str, value: u64) -> Outcome<Answer> {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    let body = json!({"set": {"timers": value}}).to_string().into_bytes();
    rest.send("PATCH", "/v1/limits?role=cut", &headers, body).await
}

async fn put(rest: &Rest, value: &str) -> Outcome<Answer> {
    let path = format!("/v1/frameworks/{NAME}/state/k");
    rest.send("PUT", &path, &[], value.as_bytes().to_vec()).await
}

/// What is sent now is answered in time, by nobody who knows what became of it.
async fn nobody_knows(what: &str, sent: impl Future<Output = Outcome<Answer>>) -> Outcome {
    let began = Instant::now();
    let answer = sent.await?;
    let (took, code) = (began.elapsed(), answer.error_code());
    eprintln!("{what}: {} {code} after {took:?}", answer.status);
    ensure(took < ANSWERED_WITHIN, || format!("{what} took {took:?}"))?;
    ensure(answer.status == 503 && code == "OUTCOME_UNKNOWN", || format!("{what}: {}", answer.text()))
}

async fn works(rest: &Rest, key: &str, value: u64) -> Outcome {
    until("writes work", PATIENCE, async || {
        limit(rest, key, value).await.and_then(Answer::ok).map_err(|error| error.to_string())?;
        put(rest, key).await.and_then(Answer::ok).map_err(|error| error.to_string())
    })
    .await
    .map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_cut_off_answers_who_waits_for_the_leader() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("network namespaces need root");
    }
    let mut site = Site::start("alone", 3, 0, &[]).await?;
    let leader = site.leader().await?;
    let follower = (leader + 1) % 3;
    let rest = site.rest(follower)?;
    let made = json!({"name": NAME, "role": "default", "component": push(&rest, "echo").await?});
    rest.post("/v1/frameworks", &made).await?.ok()?;
    // Connections are there, as between masters that work all the time.
    works(&rest, "warm", 1).await?;

    for other in (0..3).filter(|other| *other != follower) {
        site.net.set_way(follower, other, false)?;
        site.net.set_way(other, follower, false)?;
    }
    tokio::try_join!(
        nobody_knows("cut off, by the ordinary way", limit(&rest, "cut", 2)),
        nobody_knows("cut off, by the short way", put(&rest, "cut")),
    )?;
    site.net.heal()?;
    works(&rest, "cut", 2).await?;

    // It hears the leader, which does not hear it: only the connection tells.
    let leader = site.leader().await?;
    let follower = (leader + 1) % 3;
    let rest = site.rest(follower)?;
    works(&rest, "again", 3).await?;
    site.net.set_way(follower, leader, false)?;
    let began = Instant::now();
    let answer = limit(&rest, "one-way", 4).await?;
    let took = began.elapsed();
    eprintln!("one way: {} after {took:?}", answer.status);
    ensure(took < FOUND_WITHIN, || format!("it took {took:?}"))?;
    ensure(matches!(answer.status, 200 | 503), || answer.text())?;
    site.net.heal()?;
    works(&rest, "one-way", 4).await?;
    site.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_master_whose_disk_hangs_answers_all_the_same() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("disks of their own need root");
    }
    let mut group = Group::start("hangs", 1).await?;
    group.members[0].kill_9()?;
    let disk = on_small_disk(&mut group, 0)?;
    group.run(0)?;
    group.leader().await?;
    let rest = group.rest(0)?;
    let made = json!({"name": NAME, "role": "default", "component": push(&rest, "echo").await?});
    rest.post("/v1/frameworks", &made).await?.ok()?;
    works(&rest, "before", 1).await?;

    disk.set_frozen(true)?;
    tokio::try_join!(
        nobody_knows("a change", limit(&rest, "frozen", 2)),
        nobody_knows("a write of state", put(&rest, "frozen")),
        async {
            let began = Instant::now();
            let read = rest.get("/v1/limits?role=cut").await?;
            ensure(matches!(read.status, 200 | 503), || read.text())?;
            ensure(began.elapsed() < ANSWERED_WITHIN, || format!("a read took {:?}", began.elapsed()))
        },
    )?;
    disk.set_frozen(false)?;
    works(&rest, "frozen", 2).await?;
    group.finish_on(disk)
}
