//! What REST promises with several masters: ids of requests, the audit, events and pages, whichever master is asked.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};
use tokio::io::AsyncWriteExt;

/// Longest wait for a piece of a stream; reached only when something is broken.
const STREAM_WITHIN: Duration = Duration::from_secs(20);

/// The record of a request at a master.
async fn recorded(rest: &Rest, id: &str) -> Outcome<Value> {
    until(&format!("{id} is on record"), PATIENCE, async || newest(rest, id).await).await
}

async fn newest(rest: &Rest, id: &str) -> Result<Value, String> {
    let audit = rest.document("/v1/audit?newest=true").await.map_err(|error| error.to_string())?;
    let items = audit["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().find(|record| record["request_id"] == id).ok_or_else(|| audit.to_string())
}

#[tokio::test]
async fn a_request_has_one_id_at_every_master_that_it_passes() -> Outcome {
    let group = Group::beside("api-ids", 3).await?;
    let leader = group.leader().await?;
    let follower = group.rest((leader + 1) % 3)?;
    until("all masters understand roles", PATIENCE, async || {
        let version = follower.document("/v1/version").await.map_err(|error| error.to_string())?;
        if version["cluster_version"].as_u64() >= Some(4) { Ok(()) } else { Err(version.to_string()) }
    })
    .await?;
    let named = [("x-request-id", "walk-1")];
    let missing = follower.send("GET", "/v1/frameworks/nobody", &named, Vec::new()).await?;
    let error = missing.json()["error"].clone();
    ensure(missing.status == 404 && error["request_id"] == "walk-1" && error["retryable"] == false, || missing.text())?;
    ensure(missing.headers.get("x-request-id").map(String::as_str) == Some("walk-1"), || format!("{:?}", missing.headers))?;

    let put = json!({"weight": 2}).to_string().into_bytes();
    let named = [("x-request-id", "walk-2")];
    let set = follower.send("PUT", "/v1/roles/eng/search", &named, put).await?.ok()?;
    let tag = set.headers.get("etag").cloned().unwrap_or_default();
    for rest in [&follower, &group.rest(leader)?] {
        let record = recorded(rest, "walk-2").await?;
        let expected = json!({"operation": "setRole", "object": "/v1/roles/eng/search", "outcome": "done", "principal": "admin"});
        for (field, value) in expected.as_object().into_iter().flatten() {
            ensure(record[field] == *value, || format!("{field}: {record}"))?;
        }
    }
    for (tag, status) in [(tag.as_str(), 200), (tag.as_str(), 412)] {
        let put = json!({"weight": 3}).to_string().into_bytes();
        let answer = follower.send("PUT", "/v1/roles/eng/search", &[("if-match", tag)], put).await?;
        ensure(answer.status == status, || answer.text())?;
    }
    group.finish()
}

#[tokio::test]
async fn pages_and_events_are_the_same_at_every_master() -> Outcome {
    let mut group = Group::beside("api-pages", 3).await?;
    let leader = group.leader().await?;
    let rest: Vec<Rest> = (0..3).map(|index| group.rest(index)).collect::<Outcome<_>>()?;
    let follower = &rest[(leader + 1) % 3];
    until("all masters understand roles", PATIENCE, async || {
        let version = follower.document("/v1/version").await.map_err(|error| error.to_string())?;
        if version["cluster_version"].as_u64() >= Some(4) { Ok(()) } else { Err(version.to_string()) }
    })
    .await?;
    for n in 0..7 {
        let put = json!({"priority": n + 1}).to_string().into_bytes();
        follower.send("PUT", &format!("/v1/roles/r{n}"), &[], put).await?.ok()?;
    }
    // Each page from another master.
    let mut found: Vec<String> = Vec::new();
    let mut path = "/v1/roles?limit=2".to_owned();
    for page in 0.. {
        let list = rest[page % 3].document(&path).await?;
        let names = list["items"].as_array().into_iter().flatten().filter_map(|item| item["role"].as_str());
        found.extend(names.map(str::to_owned));
        match list["next"].as_str() {
            Some(next) => path = format!("/v1/roles?limit=2&after={next}"),
            None => break,
        }
    }
    ensure(found == (0..7).map(|n| format!("r{n}")).collect::<Vec<_>>(), || format!("{found:?}"))?;

    for rest in &rest {
        let all = first_events(rest, "/v1/events?after=0-0&kind=role.", 7).await?;
        ensure(all.iter().all(|event| event["kind"] == "role.changed"), || format!("{all:?}"))?;
    }
    // With the others gone, what this one knows is to be had, and nothing else.
    group.members[leader].kill_9()?;
    group.members[(leader + 2) % 3].kill_9()?;
    let refused = follower.send("PUT", "/v1/roles/r0", &[], b"{\"priority\": 9}".to_vec()).await?;
    let error = refused.json()["error"].clone();
    let known = ["NO_LEADER", "OUTCOME_UNKNOWN"].iter().any(|code| error["code"] == *code);
    ensure(refused.status == 503 && known && error["retryable"] == true, || refused.text())?;
    let stale = follower.document("/v1/roles?consistency=stale").await?;
    ensure(stale["items"].as_array().map(Vec::len) == Some(7), || stale.to_string())?;
    group.finish()
}

/// Masters that stand still.
fn pause(group: &Group, members: &[usize], signal: Signal) -> Outcome {
    for index in members {
        let process = group.members[*index].process.as_ref();
        process.map_or(Ok(()), |process| procfs::signal(process.pid(), signal))?;
    }
    Ok(())
}

/// Asks a master for a change, and goes away without waiting for an answer.
async fn hang_up(group: &Group, index: usize, id: &str) -> Outcome {
    let body = json!({"set": {"timers": 7}}).to_string();
    let head = format!(
        "PATCH /v1/limits?role={id} HTTP/1.1\r\nhost: m\r\nauthorization: Bearer {}\r\nx-request-id: {id}\r\ncontent-length: {}\r\n\r\n{body}",
        group.token,
        body.len(),
    );
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", group.members[index].port)).await?;
    stream.write_all(head.as_bytes()).await?;
    Ok(())
}

#[tokio::test]
async fn whoever_hangs_up_is_on_record_all_the_same() -> Outcome {
    let group = Group::beside("api-gone", 3).await?;
    // Nobody can be answered meanwhile: the leader has no majority, or the one that is asked has no leader.
    for at_leader in [true, false] {
        let leader = group.leader().await?;
        let follower = (leader + 1) % 3;
        let still: Vec<usize> = if at_leader { (0..3).filter(|index| *index != leader).collect() } else { vec![leader] };
        let (asked, id) = if at_leader { (leader, "gone-leader") } else { (follower, "gone-follower") };
        pause(&group, &still, Signal::SIGSTOP)?;
        let rest = group.rest(asked)?;
        let record = until(&format!("{id} is on record"), PATIENCE, async || {
            // One that the master had not begun when its sender went away leaves no trace, and does nothing.
            hang_up(&group, asked, id).await.map_err(|error| error.to_string())?;
            newest(&rest, id).await
        })
        .await;
        pause(&group, &still, Signal::SIGCONT)?;
        let record = record?;
        let expected = json!({"operation": "setLimits", "object": "/v1/limits", "outcome": "unknown", "status": 499, "principal": "admin"});
        for (field, value) in expected.as_object().into_iter().flatten() {
            ensure(record[field] == *value, || format!("{field}: {record}"))?;
        }
    }
    group.finish()
}

#[tokio::test]
async fn bodies_of_strangers_are_neither_taken_in_nor_passed_on() -> Outcome {
    let group = Group::beside("api-strangers", 3).await?;
    let leader = group.leader().await?;
    for index in [leader, (leader + 1) % 3] {
        let stranger = group.rest(index)?.with_token(Some("no-token-of-this-cluster"));
        // Small enough for memory, and for the disk.
        for bytes in [100, 4 << 20] {
            let (status, text) = stranger.announce("/v1/components", bytes).await?;
            ensure(status == 401 && text.contains("UNAUTHENTICATED"), || text.clone())?;
        }
    }
    group.finish()
}

/// So many events of a stream.
pub async fn first_events(rest: &Rest, path: &str, count: usize) -> Outcome<Vec<Value>> {
    let mut stream = rest.stream(path, None).await?;
    let mut text = String::new();
    let mut events = Vec::new();
    while events.len() < count {
        let Some(piece) = tokio::time::timeout(STREAM_WITHIN, stream.chunk()).await?? else { break };
        text.push_str(&String::from_utf8_lossy(&piece));
        events = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    }
    ensure(events.len() == count, || format!("{} events of {count}: {text}", events.len()))?;
    Ok(events)
}
