//! Components that come to an end: on three masters, across a restart and a change of the leader, and on
//! agents.

use crate::told::told;
use serde_json::Value;
use std::path::Path;
use tessera_cluster::cluster::{Cluster, PATIENCE, Scene, framework, push, tessera};
use tessera_cluster::guests::guest;
use tessera_cluster::masters::Group;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

/// Long enough that a master is killed and started in it, short enough to wait for.
const GRACE_S: &str = "6";

fn has(dir: &Path, digest: &str) -> bool {
    dir.join("components").join(format!("{}.wasm", digest.replace(':', "-"))).is_file()
}

/// Wait until the masters that have a file are these.
async fn on(group: &Group, digest: &str, expected: &[bool]) -> Outcome {
    until(&format!("{digest} is on {expected:?}"), PATIENCE, async || {
        let found: Vec<bool> = group.members.iter().map(|m| has(&m.dir, digest)).collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
}

async fn rm(group: &Group, arguments: &[&str]) -> Outcome<(Option<i32>, String)> {
    let arguments: Vec<&str> = ["component"].into_iter().chain(arguments.iter().copied()).collect();
    let output = tessera(&arguments, &group.env()).await?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

#[tokio::test]
async fn a_removed_components_file_goes_from_every_master_and_one_in_use_stays() -> Outcome {
    let mut group = Group::start_with("component-end", 3, &["--component-grace-s", GRACE_S]).await?;
    let rest = group.rest(group.leader().await?)?;
    let [used, unused, kept] = [push(&rest, "launcher").await?, push(&rest, "echo").await?, push(&rest, "spin").await?];
    for digest in [&used, &unused, &kept] {
        on(&group, digest, &[true; 3]).await?;
    }
    let document = serde_json::json!({"name": "fw", "role": "default", "component": used});
    rest.post("/v1/frameworks", &document).await?.ok()?;
    // The version comes with the leader's look at the others, at the latest some seconds after the last one joined.
    let (code, text) = until("the masters understand it", PATIENCE, async || {
        match rm(&group, &["rm", &unused, &used]).await.map_err(|error| error.to_string())? {
            (_, text) if text.contains("cluster_version") => Err(text),
            told => Ok(told),
        }
    })
    .await?;
    ensure(code == Some(4) && text.contains(&format!("{unused} removed")), || text.clone())?;
    told("component: sha256:… is used by …", &text)?;
    ensure(text.contains("used by framework fw (f1)"), || text.clone())?;
    // A restart of each of them does not begin the grace anew, and loses nothing that is named.
    for index in 0..3 {
        group.members[index].kill_9()?;
        group.run(index)?;
        until("it is back", PATIENCE, async || {
            group.view(index).await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
    }
    on(&group, &unused, &[false; 3]).await?;
    for digest in [&used, &kept] {
        on(&group, digest, &[true; 3]).await?;
    }
    // It can be added again, and one that comes back before its time is over stays.
    let rest = group.rest(group.leader().await?)?;
    ensure(push(&rest, "echo").await? == unused, || "the same bytes".to_owned())?;
    on(&group, &unused, &[true; 3]).await?;
    // What may go is shown first, and nothing goes by that; what was added today goes only when it is asked for.
    let (code, text) = rm(&group, &["ls", "--unused", "-o", "json"]).await?;
    let shown = |digest: &str| text.contains(digest);
    ensure(code == Some(0) && shown(&unused) && shown(&kept) && !shown(&used), || text.clone())?;
    let (code, text) = rm(&group, &["prune", "--older-than", "0s", "--dry-run"]).await?;
    ensure(code == Some(0) && text.contains("2 components would be removed"), || text.clone())?;
    let (code, text) = rm(&group, &["prune"]).await?;
    ensure(code == Some(0) && text.contains("0 components removed"), || text.clone())?;
    let (code, text) = rm(&group, &["rm", &used[..used.len().min(15)], "--dry-run"]).await?;
    ensure(code == Some(0) && text.contains(&format!("{used} would be refused")), || text.clone())?;
    let (code, text) = rm(&group, &["prune", "--older-than", "0s"]).await?;
    ensure(code == Some(0) && text.contains("2 components removed"), || text.clone())?;
    ensure(push(&rest, "spin").await? == kept, || "the same bytes".to_owned())?;
    on(&group, &unused, &[false; 3]).await?;
    on(&group, &kept, &[true; 3]).await?;
    let left = rest.document("/v1/components").await?;
    let uses: Vec<(&str, u64)> = left["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| Some((item["digest"].as_str()?, item["uses"].as_u64()?)))
        .collect();
    let mut expected = [(used.as_str(), 1), (kept.as_str(), 0)];
    expected.sort_unstable();
    ensure(uses == expected, || format!("{left}"))?;
    group.finish()?;
    Ok(())
}

#[tokio::test]
async fn an_agent_says_what_it_keeps_and_what_of_it_is_offered() -> Outcome {
    let cluster = Cluster::start("caches", &[]).await?;
    framework(&cluster.rest, "fw", "echo", &[]).await?;
    let caches = cluster.rest.document("/v1/agents/a1/caches").await?;
    for (name, count) in [("components", 1), ("images", 1)] {
        let (found, bytes) = (&caches[name]["count"], caches[name]["bytes"].as_u64());
        ensure(*found == Value::from(count) && bytes > Some(0), || caches.to_string())?;
    }
    ensure(caches["in_use"] == 1 && caches["bytes_max"] == 1_u64 << 30, || caches.to_string())?;
    let unknown = cluster.rest.get("/v1/agents/a9/caches").await?;
    ensure(unknown.status == 404, || unknown.text())?;
    let inspected = cluster.tessera(&["agent", "inspect", "a1"]).await?;
    let text = String::from_utf8_lossy(&inspected.stdout);
    ensure(text.contains("at most 1024.0 MiB, and 7 days without use"), || text.to_string())?;
    let listed = cluster.tessera(&["agent", "ls", "-o", "wide"]).await?;
    let text = String::from_utf8_lossy(&listed.stdout);
    ensure(text.contains("TOTAL") && text.contains("OFFERED"), || text.to_string())?;
    cluster.finish().await
}

/// Turns a bit over in the middle of a file.
fn damage(path: &Path) -> Outcome {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(path, bytes)?)
}

/// Each master reads its files again: what was damaged is fetched from another one, and what is whole nowhere any more
/// is uploaded again.
#[tokio::test]
async fn a_damaged_component_file_is_fetched_again() -> Outcome {
    let scene = Scene::beside("rot").await?;
    let group = Group::start_in(scene, 3, &["--component-grace-s", GRACE_S], &[]).await?;
    let rest = group.rest(0)?;
    let digest = push(&rest, "echo").await?;
    let whole = std::fs::read(guest("echo")?)?;
    on(&group, &digest, &[true; 3]).await?;
    let path = |group: &Group, index: usize| {
        group.members[index].dir.join("components").join(format!("{}.wasm", digest.replace(':', "-")))
    };
    let is_whole = async |group: &Group| {
        until("all files are whole", PATIENCE, async || {
            let lacks = (0..3).find(|index| std::fs::read(path(group, *index)).ok().as_ref() != Some(&whole));
            lacks.map_or(Ok(()), |index| Err(format!("not on master {index}: {}", group.members[index].log())))
        })
        .await
    };
    for index in 0..3 {
        damage(&path(&group, index))?;
        is_whole(&group).await?;
        let log = group.members[index].log();
        ensure(log.contains("a component file was damaged: it is fetched from another master"), || log)?;
    }
    for index in 0..3 {
        damage(&path(&group, index))?;
    }
    // What nobody has cannot be saved, and the one who asks is told which.
    let file = group.scene.dir().join("saved.tsr").display().to_string();
    let output = tessera(&["operator", "snapshot", "save", &file], &group.env()).await?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(!output.status.success() && !Path::new(&file).exists(), || text.clone())?;
    eprintln!("{text}");
    on(&group, &digest, &[false; 3]).await?;
    ensure(push(&rest, "echo").await? == digest, || "the same bytes".to_owned())?;
    is_whole(&group).await?;
    let output = tessera(&["operator", "snapshot", "save", &file], &group.env()).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    group.finish()
}
