//! What an operator does with machines, step by step as docs/operations.md says it: one is replaced by another, comes
//! back, moves to another address, is given a wrong one, or has another one's disk.

use crate::launcher::Launcher;
use crate::members::{component_everywhere, document, operator, refused};
use crate::told::told;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;
use tessera_cluster::cluster::{PATIENCE, Process, Scene, framework, free_port, push};
use tessera_cluster::masters::{Group, Member};
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// Waits until a master has ended by itself, with a failure; the end of what it wrote.
async fn ends(group: &mut Group, index: usize) -> Outcome<String> {
    until("the master ends by itself", PATIENCE, async || {
        let process = group.members[index].process.as_mut();
        match process.map(Process::ended) {
            Some(Ok(Some(status))) if !status.success() => Ok(()),
            other => Err(format!("{other:?}: {}", group.members[index].log())),
        }
    })
    .await?;
    group.members[index].process = None;
    let log = group.members[index].log();
    Ok(log.lines().last().unwrap_or_default().to_owned())
}

/// Waits until a master's log has these words.
async fn logs(member: &Member, words: &str) -> Outcome<String> {
    until(&format!("the log has {words:?}"), PATIENCE, async || match member.log() {
        log if log.contains(words) => Ok(log),
        log => Err(log),
    })
    .await
}

async fn write(group: &Group, index: usize, value: u64) -> Outcome {
    let body = json!({"set": {"timers": value}}).to_string().into_bytes();
    group.rest(index)?.send("PATCH", "/v1/limits?role=steps", &[], body).await?.ok()?;
    Ok(())
}

async fn stop(group: &mut Group, index: usize) -> Outcome {
    match group.members[index].process.take() {
        Some(mut process) => process.stop().map(drop),
        None => Ok(()),
    }
}

/// The machine of a master is replaced by another one, under a scheduler and a task that do not notice; then the old
/// one comes back, and takes part under a new number.
#[tokio::test]
async fn a_machine_is_replaced_by_another_one() -> Outcome {
    let mut group = Group::beside("another", 3).await?;
    group.start_agent("a1", &["--cpus-milli", "1000", "--mem-mib", "1024"]).await?;
    framework(&group.rest(0)?, "launcher", "launcher", &[]).await?;
    let rest = group.rest(0)?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let pid_file = group.scene.open_file("pid")?;
    let run = format!("echo $$ >> {}; exec sleep 1000", pid_file.display());
    launcher.job("single", json!([{"id": "steady", "run": run}])).await?;
    launcher.until_state("steady", "TASK_RUNNING").await?;
    let digest = push(&rest, "echo").await?;

    // The new one votes, with every file, before the old one is taken out.
    group.join().await?;
    component_everywhere(&group, &digest).await?;
    let leader = group.leader().await?;
    logs(&group.members[leader], "an even number of voting masters").await?;
    let listed = operator(&group, &["raft", "list"]).await?;
    let text = String::from_utf8_lossy(&[listed.stdout, listed.stderr].concat()).into_owned();
    ensure(text.contains("warning: 4 voting masters bear no more failures than 3: add one, or remove one"), || text)?;
    let old = (leader + 1) % 3;
    let number = group.node(old).await?;
    document(&group, &["raft", "remove", &number.to_string()]).await?;
    let said = ends(&mut group, old).await?;
    told("this master was removed from its cluster", &said)?;
    ensure(said.contains("remove the directory and start with --join"), || said)?;
    group.voters(3).await?;

    // On its directory it does not come back, whoever starts it; with an empty one it does, as another.
    group.run(old)?;
    told("this master was removed from its cluster", &ends(&mut group, old).await?)?;
    std::fs::remove_dir_all(&group.members[old].dir)?;
    group.run(old)?;
    group.voters(4).await?;
    let newer = group.node(old).await?;
    ensure(newer > 4, || format!("it was node {number} and is node {newer}"))?;
    component_everywhere(&group, &digest).await?;
    // And another one goes instead: the leader, which hands over first.
    let leader = group.leader().await?;
    let number = group.node(leader).await?;
    document(&group, &["raft", "remove", &number.to_string()]).await?;
    ends(&mut group, leader).await?;
    let view = group.voters(3).await?;
    ensure(view["warnings"].as_array().is_some_and(Vec::is_empty), || view.to_string())?;

    group.connected(1).await?;
    let rest = group.rest(group.leader().await?)?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let record = launcher.until_state("steady", "TASK_RUNNING").await?;
    ensure(record["received"]["TASK_UNREACHABLE"].is_null(), || record.to_string())?;
    let pids = std::fs::read_to_string(&pid_file)?;
    let alive = pids.trim().parse().is_ok_and(procfs::is_alive);
    ensure(alive, || format!("it ran not once, or has ended: {pids:?}"))?;
    launcher.post("kill/steady", &Value::Null).await?;
    launcher.until_state("steady", "TASK_KILLED").await?;
    group.finish()
}

/// All masters get other addresses at once: the list that they are started with is how they find each other.
#[tokio::test]
async fn masters_find_each_other_at_other_addresses() -> Outcome {
    let mut group = Group::beside("moved", 3).await?;
    write(&group, 0, 1).await?;
    let nodes = [group.node(0).await?, group.node(1).await?, group.node(2).await?];
    // One alone first, which the others learn from itself, and then all.
    for moved in [1..2, 0..3] {
        for index in moved.clone() {
            stop(&mut group, index).await?;
        }
        for index in moved.clone() {
            (group.members[index].port, group.members[index].peer_port) = (free_port()?, free_port()?);
        }
        for index in moved {
            group.run(index)?;
        }
        until("everybody is listed where it is now", PATIENCE, async || {
            for (index, node) in nodes.iter().enumerate() {
                match group.node(index).await {
                    Ok(found) if found == *node => {}
                    other => return Err(format!("master {index}: {other:?}, not {node}")),
                }
            }
            Ok(())
        })
        .await?;
        group.voters(3).await?;
        write(&group, 1, 2).await?;
    }
    group.finish()
}

/// A master whose peers cannot reach it never votes, and everybody says why; it is taken out and started anew.
#[tokio::test]
async fn a_master_that_nobody_reaches_does_not_vote() -> Outcome {
    let mut group = Group::beside("unreached", 1).await?;
    // The last master cannot be removed, nor one that is none.
    refused(&operator(&group, &["raft", "remove", "1"]).await?, &["is the only voter", "add another one"])?;

    let wrong = format!("127.0.0.1:{}", free_port()?);
    group.members.push(Member::new(group.scene.dir(), 2)?);
    group.flags = ["--peer-address".to_owned(), wrong.clone()].to_vec();
    group.run(1)?;
    let view = until("it is a learner that waits", PATIENCE, async || {
        let view = group.view(0).await.map_err(|error| error.to_string())?;
        let found = view["items"].as_array().into_iter().flatten().find(|item| item["peer_address"] == wrong.as_str());
        match found {
            Some(item) if item["role"] == "learner" && item["waits_for"].is_string() => Ok(item.clone()),
            _ => Err(view.to_string()),
        }
    })
    .await?;
    let node = view["node"].as_u64().ok_or_else(|| failure(view.to_string()))?.to_string();
    let listed = operator(&group, &["raft", "list"]).await?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure(text.contains(view["waits_for"].as_str().unwrap_or("?")) && text.contains("learner"), || text)?;
    let output = operator(&group, &["raft", "add", &node]).await?;
    refused(&output, &[&format!("node {node} cannot vote yet"), "if it is away, start it"])?;
    let view = group.view(0).await?;
    ensure(view["voters"] == 1, || view.to_string())?;

    document(&group, &["raft", "remove", &node]).await?;
    group.members[1].kill_9()?;
    std::fs::remove_dir_all(&group.members[1].dir)?;
    group.flags.clear();
    group.run(1)?;
    group.voters(2).await?;
    ensure(group.node(1).await?.to_string() != node, || format!("node {node} came back"))?;
    group.finish()
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Outcome {
    let copied = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure(copied.success(), || format!("cp: {copied}"))
}

/// A master is started on the disk of another one, and on an older copy of its own: it is not heard, or it ends, and
/// whoever is left goes on.
#[tokio::test]
async fn a_master_on_a_wrong_disk_is_not_heard() -> Outcome {
    let mut group = Group::beside("disks", 3).await?;
    let leader = group.leader().await?;
    let (a, b) = ((leader + 1) % 3, (leader + 2) % 3);
    stop(&mut group, a).await?;
    stop(&mut group, b).await?;
    // Of b, on the machine of a, which the leader still calls by a's number.
    let own = group.members[a].dir.clone();
    group.members[a].dir = group.members[b].dir.clone();
    group.run(a)?;
    let log = logs(&group.members[leader], "the message is for node").await?;
    told("to: this is node …, the message is for node …", &log)?;
    // It is what it has on disk, and with the leader it is a majority.
    until("writes go on", PATIENCE, async || write(&group, leader, 7).await.map_err(|error| error.to_string())).await?;
    stop(&mut group, a).await?;
    group.members[a].dir = own;
    group.run(a)?;
    group.run(b)?;
    group.voters(3).await?;

    // Somebody puts an older copy of the disk back: it has lost what it promised to keep.
    let leader = group.leader().await?;
    let old = (leader + 1) % 3;
    stop(&mut group, old).await?;
    let kept = group.scene.dir().join("kept");
    copy(&group.members[old].dir, &kept)?;
    group.run(old)?;
    group.voters(3).await?;
    for value in 10..30 {
        write(&group, leader, value).await?;
    }
    until("it has that", PATIENCE, async || {
        let path = "/v1/limits?role=steps&consistency=stale";
        let rest = group.rest(old).map_err(|error| error.to_string())?;
        let seen = rest.document(path).await.map_err(|error| error.to_string())?;
        if seen.to_string().contains("\"value\":29") { Ok(()) } else { Err(seen.to_string()) }
    })
    .await?;
    group.members[old].kill_9()?;
    std::fs::remove_dir_all(&group.members[old].dir)?;
    std::fs::rename(&kept, &group.members[old].dir)?;
    group.run(old)?;
    let said = ends(&mut group, old).await?;
    told("this node lost its vote", &said)?;
    ensure(said.contains("--join"), || said)?;
    std::fs::remove_dir_all(&group.members[old].dir)?;
    group.run(old)?;
    group.voters(3).await?;
    group.finish()
}

/// A master whose clock is an hour ahead leads, and time goes on as before: that is said, and nothing is early.
#[tokio::test]
async fn a_clock_that_is_wrong_changes_no_times() -> Outcome {
    let scene = Scene::beside("clock").await?;
    let (source, library) = (scene.dir().join("ahead.c"), scene.dir().join("ahead.so"));
    std::fs::write(&source, AHEAD)?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status()?;
    ensure(built.success(), || format!("cc: {built}"))?;
    let mut group = Group::start_in(scene, 3, &[], &[]).await?;
    let ahead = (group.leader().await? + 1) % 3;
    stop(&mut group, ahead).await?;
    group.variables = vec![("LD_PRELOAD", library.display().to_string())];
    group.run(ahead)?;
    group.voters(3).await?;
    let created = async |group: &Group, name: &str| -> Outcome<u64> {
        let rest = group.rest(ahead)?;
        let component = push(&rest, "echo").await?;
        let made = json!({"name": name, "role": "default", "component": component});
        rest.post("/v1/frameworks", &made).await?.ok()?;
        let shown = rest.document(&format!("/v1/frameworks/{name}")).await?;
        shown["created_ms"].as_u64().ok_or_else(|| failure(shown.to_string()))
    };
    // Nothing is written, and yet it learns what the time is: the leader says it each half second.
    pass(Duration::from_secs(4)).await;
    let before = created(&group, "before").await?;
    let node = group.node(ahead).await?.to_string();
    document(&group, &["raft", "transfer", &node]).await?;
    let log = logs(&group.members[ahead], "the time that commands go by").await?;
    told("this master's clock is … the time that commands go by", &log)?;
    let after = created(&group, "after").await?;
    ensure((before..before + 60_000).contains(&after), || format!("first {before}, then {after}"))?;
    group.finish()
}

/// Makes the wall clock of a process an hour fast, and no other clock.
const AHEAD: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += 3600;
    return result;
}
"#;
