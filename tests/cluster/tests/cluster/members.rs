//! Masters that come, go, lose their disk or are started wrongly; the state saved and restored.

use crate::told::told;
use serde_json::{Value, json};
use std::process::Output;
use tessera_cluster::cluster::{Cluster, PATIENCE, Process, free_port, init, push, tessera};
use tessera_cluster::guests::guest;
use tessera_cluster::masters::{Group, Member};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};

/// `tessera operator …`.
pub async fn operator(group: &Group, args: &[&str]) -> Outcome<Output> {
    let args: Vec<&str> = ["operator"].into_iter().chain(args.iter().copied()).collect();
    tessera(&args, &group.env()).await
}

/// The same, which must succeed; what it printed as JSON.
pub async fn document(group: &Group, args: &[&str]) -> Outcome<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
    let output = operator(group, &args).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It ended by itself with a refusal that has these words.
pub fn refused(output: &Output, words: &[&str]) -> Outcome {
    let text = said(output);
    let told = words.iter().all(|word| text.contains(word));
    ensure(!output.status.success() && told, || format!("{words:?} expected: {output:?}"))
}

/// Waits until every master has the file of a component.
pub async fn component_everywhere(group: &Group, digest: &str) -> Outcome {
    let name = format!("{}.wasm", digest.replace(':', "-"));
    until("every master has the component", PATIENCE, async || {
        let lacks = |m: &&tessera_cluster::masters::Member| {
            !m.dir.join("components").join(&name).is_file()
        };
        match group.members.iter().find(lacks) {
            None => Ok(()),
            Some(member) => Err(member.dir.display().to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_wiped_master_takes_its_place_again_under_another_number() -> Outcome {
    let mut group = Group::beside("wiped", 3).await?;
    let digest = push(&group.rest(0)?, "echo").await?;
    component_everywhere(&group, &digest).await?;
    let leader = group.leader().await?;
    let wiped = (leader + 1) % 3;
    let before = group.node(wiped).await?;
    group.members[wiped].kill_9()?;
    std::fs::remove_dir_all(&group.members[wiped].dir)?;
    group.run(wiped)?;
    until("it votes under another number", PATIENCE, async || {
        let view = group.view(leader).await.map_err(|error| error.to_string())?;
        let now = group.node(wiped).await.map_err(|error| error.to_string())?;
        let items = view["items"].as_array().cloned().unwrap_or_default();
        let all_vote = items.len() == 3 && items.iter().all(|item| item["role"] == "voter");
        match all_vote && now != before && now > 3 {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await?;
    // It was promoted only with the file.
    component_everywhere(&group, &digest).await?;

    // The leader itself is removed: it hands over, and the next one removes it.
    let leader = group.leader().await?;
    let node = group.node(leader).await?.to_string();
    // What it would be is said before, by the same rules, and nothing is done.
    for (args, words) in [
        (&["raft", "remove", &node, "--dry-run"][..], ["hand leadership over to node", "2 voters are left, 2 of which must answer"]),
        (&["raft", "transfer", "--dry-run"], ["hand leadership over from", "to node"]),
    ] {
        let plan = document(&group, args).await?;
        let would = plan["would"].to_string();
        ensure(plan["dry_run"] == true && words.iter().all(|word| would.contains(word)), || plan.to_string())?;
    }
    ensure(group.node(group.leader().await?).await?.to_string() == node, || "a dry run moved the leader".to_owned())?;
    document(&group, &["raft", "remove", &node]).await?;
    until("the removed master has ended", PATIENCE, async || {
        let process = group.members[leader].process.as_mut();
        match process.map(Process::ended) {
            Some(Ok(Some(status))) if !status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let log = group.members[leader].log();
    ensure(log.contains("was removed") && log.contains("--join"), || log.clone())?;
    group.members[leader].process = None;
    let view = document(&group, &["raft", "list"]).await?;
    ensure(view["voters"] == 2 && view["warnings"].to_string().contains("add one"), || {
        view.to_string()
    })?;
    // Two are left, of which none may be taken away while the other one is gone.
    let leader = group.leader().await?;
    let other = (0..3).find(|index| *index != leader && group.members[*index].process.is_some());
    let other = other.ok_or_else(|| failure("there is no other master"))?;
    let to = group.node(other).await?;
    let moved = document(&group, &["raft", "transfer", &to.to_string()]).await?;
    ensure(moved["to"] == to, || moved.to_string())?;
    group.finish()
}

#[tokio::test]
async fn an_agent_that_knew_one_master_finds_those_that_joined_since() -> Outcome {
    let mut group = Group::beside("grown", 1).await?;
    group.start_agent("a1", &[]).await?;
    group.join().await?;
    group.join().await?;
    group.members[0].kill_9()?;
    // Of its command line it knows the master that is gone.
    group.connected(1).await?;
    group.finish()
}

#[tokio::test]
async fn what_would_harm_a_cluster_is_refused() -> Outcome {
    let mut group = Group::beside("refuse", 3).await?;
    let leader = group.leader().await?;
    until("all are well", PATIENCE, async || {
        let view = group.view(leader).await.map_err(|error| error.to_string())?;
        match view["healthy_voters"] == 3 {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await?;
    // Without --join an empty directory is no cluster's.
    let empty = group.scene.dir().join("empty").display().to_string();
    let port = format!("127.0.0.1:{}", free_port()?);
    let peer = format!("127.0.0.1:{}", free_port()?);
    let master = ["master", "--data-dir", &empty, "--listen", &port, "--agent-listen", &peer];
    let output = tessera(&master, &[]).await?;
    refused(&output, &["operator init", "--join"])?;
    told("the data directory … belongs to no cluster", &said(&output))?;

    // A second cluster in a directory that has one.
    let used = group.members[0].dir.display().to_string();
    let dead = group.node(2).await?;
    group.members[2].kill_9()?;
    let third = group.members[2].dir.display().to_string();
    let output = tessera(&["operator", "init", "--data-dir", &third], &[]).await?;
    refused(&output, &[])?;
    told("the data directory already belongs to cluster …", &said(&output))?;
    let output = tessera(&["operator", "init", "--data-dir", &used], &[]).await?;
    refused(&output, &["in use"])?;
    // A snapshot for a master that runs.
    let saved = group.scene.dir().join("saved.tsr").display().to_string();
    document(&group, &["snapshot", "save", &saved]).await?;
    let output = operator(&group, &["snapshot", "restore", &saved, "--data-dir", &used]).await?;
    refused(&output, &["in use", "stop it"])?;
    // Of anywhere, nobody knows how to get there.
    let anywhere = ["--listen", "0.0.0.0:0", "--agent-listen", &peer, "--insecure-listen-without-tls"];
    let output = tessera(&[&["master", "--data-dir", &empty], anywhere.as_slice()].concat(), &[]).await?;
    refused(&output, &["rest-address", "HOST:PORT"])?;

    // With another cluster's token.
    let wrong = group.scene.dir().join("wrong");
    std::fs::write(&wrong, "not-the-token")?;
    let wrong = wrong.display().to_string();
    let peers = group.peers();
    let mut joining = master.to_vec();
    joining.extend(["--join", &peers, "--token-file", &wrong]);
    let output = tessera(&joining, &[]).await?;
    refused(&output, &["joining"])?;
    told("the call does not carry the cluster's token", &said(&output))?;

    // One of three is dead: removing another one would leave one of two.
    let leader = group.leader().await?;
    until("the leader misses the dead one", PATIENCE, async || {
        let view = group.view(leader).await.map_err(|error| error.to_string())?;
        let items = view["items"].as_array().cloned().unwrap_or_default();
        let missed = items.iter().any(|item| item["node"] == dead && item["healthy"] == false);
        match missed && view["healthy_voters"] == 2 {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await?;
    let alive = (0..2).find(|index| *index != leader).unwrap_or(0);
    let node = group.node(alive).await?.to_string();
    for dry in [&[][..], &["--dry-run"]] {
        let output = operator(&group, &[&["raft", "remove", &node][..], dry].concat()).await?;
        refused(&output, &["are needed"])?;
        let output = operator(&group, &[&["raft", "remove", "77"][..], dry].concat()).await?;
        ensure(output.status.code() == Some(3), || format!("{output:?}"))?;
        let output = operator(&group, &[&["raft", "add", &node][..], dry].concat()).await?;
        refused(&output, &["voter already"])?;
    }

    // A master of another cluster that comes to a place in this one is not heard.
    let foreign = group.scene.dir().join("foreign");
    let (port, peer) = (group.members[2].port, group.members[2].peer_port);
    init(&foreign, peer, port).await?;
    let own = std::mem::replace(&mut group.members[2].dir, foreign);
    std::fs::write(group.members[2].dir.join("admin.token"), &group.token)?;
    group.run(2)?;
    until("the others refuse it", PATIENCE, async || {
        let log = group.members[leader].log();
        match log.contains("of another one") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await?;
    let log = group.members[leader].log();
    told("cluster: this master is of cluster …, the message is of another one", &log)?;
    group.members[2].kill_9()?;
    group.members[2].dir = own;
    group.run(2)?;
    group.voters(3).await?;
    group.finish()
}

/// A copy of a data directory is started beside the master whose it is: it is not heard, and nobody else notices.
#[tokio::test]
async fn a_copy_of_a_data_directory_is_not_heard() -> Outcome {
    let mut group = Group::beside("copy", 3).await?;
    let original = (group.leader().await? + 1) % 3;
    if let Some(mut process) = group.members[original].process.take() {
        process.stop()?;
    }
    let copy = Member::new(group.scene.dir(), 4)?;
    let copied = std::process::Command::new("cp").arg("-a").args([&group.members[original].dir, &copy.dir]).status()?;
    ensure(copied.success(), || "the directory is not copied".into())?;
    group.run(original)?;
    group.voters(3).await?;
    group.members.push(copy);
    group.run(3)?;
    until("the copy is refused", PATIENCE, async || {
        let log = group.members[3].log();
        told("another process speaks as node …", &log).map_err(|error| error.to_string())
    })
    .await?;
    let told = operator(&group, &["autopilot"]).await?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure(told.contains("3 of 3 are well, 2 are needed: 1 more may fail"), || told)?;
    for index in 0..3 {
        let document = json!({"set": {"timers": 7}}).to_string().into_bytes();
        let path = format!("/v1/limits?role=r{index}");
        group.rest(index)?.send("PATCH", &path, &[], document).await?.ok()?;
    }
    group.members[3].kill_9()?;
    group.members.pop();
    group.voters(3).await?;
    group.finish()
}

#[tokio::test]
async fn a_saved_cluster_is_restored_with_its_components() -> Outcome {
    let mut group = Group::beside("saved", 1).await?;
    let digest = push(&group.rest(0)?, "echo").await?;
    let body = json!({"set": {"timers": 5}}).to_string().into_bytes();
    group.rest(0)?.send("PATCH", "/v1/limits?role=kept", &[], body).await?.ok()?;

    let file = group.scene.dir().join("saved.tsr");
    let path = file.display().to_string();
    let saved = document(&group, &["snapshot", "save", &path]).await?;
    ensure(saved["components"][0]["digest"] == digest.as_str(), || saved.to_string())?;
    refused(&operator(&group, &["snapshot", "save", &path]).await?, &["is there already"])?;
    let inspected = document(&group, &["snapshot", "inspect", &path]).await?;
    ensure(inspected["index"] == saved["index"], || inspected.to_string())?;

    // Damage anywhere is found, and nothing is made of it.
    let bytes = std::fs::read(&file)?;
    let damaged = group.scene.dir().join("damaged.tsr");
    let new_dir = group.scene.dir().join("new");
    let (bad, new) = (damaged.display().to_string(), new_dir.display().to_string());
    let flip = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (what, bytes) in [
        ("mark", flip(3)),
        ("state", flip(200)),
        ("component", flip(bytes.len() - 100)),
        ("cut", bytes[..bytes.len() - 1].to_vec()),
        ("half", bytes[..bytes.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ] {
        std::fs::write(&damaged, bytes)?;
        let output = operator(&group, &["snapshot", "inspect", &bad]).await?;
        ensure(output.status.code() == Some(4), || format!("{what}: {output:?}"))?;
        let args = ["snapshot", "restore", &bad, "--data-dir", &new];
        let output = operator(&group, &args).await?;
        ensure(output.status.code() == Some(4), || format!("{what}: {output:?}"))?;
        if what == "state" {
            told("the file is damaged: …", &said(&output))?;
        }
    }
    // Not over a cluster that is there.
    let used = group.members[0].dir.display().to_string();
    group.members[0].kill_9()?;
    let args = ["snapshot", "restore", &path, "--data-dir", &used];
    refused(&operator(&group, &args).await?, &["empty directory only"])?;

    let member = &mut group.members[0];
    member.dir = new_dir;
    let (peer, rest) = (
        format!("127.0.0.1:{}", member.peer_port),
        format!("127.0.0.1:{}", member.port),
    );
    let args = ["snapshot", "restore", &path, "--data-dir", &new];
    let args = [args.as_slice(), &["--peer-address", &peer, "--rest-address", &rest]].concat();
    let restored = document(&group, &args).await?;
    ensure(restored["restored_cluster"] != saved["cluster"], || restored.to_string())?;
    let token = std::fs::read_to_string(group.members[0].dir.join("admin.token"))?;
    group.token = token.trim().to_owned();
    group.run(0)?;
    group.leader().await?;
    let limits = group.rest(0)?.document("/v1/limits?role=kept").await?;
    ensure(limits.to_string().contains("\"value\":5"), || limits.to_string())?;
    let content = group.rest(0)?.get(&format!("/v1/components/{digest}/content")).await?.ok()?;
    ensure(content.body == std::fs::read(guest("echo")?)?, || "other bytes".to_owned())?;
    // It grows like any other.
    group.join().await?;
    component_everywhere(&group, &digest).await?;
    group.finish()
}

#[tokio::test]
async fn dev_runs_three_masters() -> Outcome {
    let mut cluster = Cluster::start("dev3", &["--masters", "3"]).await?;
    until("three masters vote", PATIENCE, async || {
        let view = cluster.rest.document("/v1/masters").await.map_err(|error| error.to_string())?;
        match view["voters"] == 3 {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await?;
    // All of them at once, on other ports than before.
    cluster.restart(&[]).await?;
    let output = cluster.tessera(&["run", "--", "sh", "-c", "exit 9"]).await?;
    ensure(output.status.code() == Some(9), || format!("{output:?}"))?;
    cluster.finish().await
}
