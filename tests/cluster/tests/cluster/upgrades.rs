//! A scheduler is upgraded, migrated, rolled back and given another configuration while its tasks run:
//! none is lost, and none runs twice.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Output;
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::guests::guest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};

/// Tasks; they last until after the last change.
const TASKS: usize = 150;
const NAME: &str = "book";

async fn view(cluster: &Cluster) -> Outcome<Value> {
    cluster.rest.document("/v1/frameworks/book").await
}

async fn page(cluster: &Cluster) -> Outcome<Value> {
    Ok(cluster.ask("/frameworks/book/").await?.json())
}

/// Wait until there is more to migrate than two turns can do.
async fn records_for_several_turns(cluster: &Cluster) -> Outcome {
    until("records for several turns", PATIENCE, async || {
        let page = page(cluster).await.map_err(|e| e.to_string())?;
        match page["launched"].as_u64() {
            Some(21..) => Ok(()),
            _ => Err(page.to_string()),
        }
    })
    .await
}

/// Turns of the instance that migrated, by its recording: it had an epoch of its own, just before the
/// one that runs now, and took no other turns.
async fn migration_turns(cluster: &Cluster, found: &Value) -> Outcome<u64> {
    let epoch = found["epoch"].as_u64().unwrap_or(0).saturating_sub(1);
    until("the recording of the migration", PATIENCE, async || {
        let listed = cluster
            .rest
            .document("/v1/frameworks/book/recordings")
            .await
            .map_err(|e| e.to_string())?;
        let all = listed["items"].as_array().cloned().unwrap_or_default();
        let lives = all.iter().filter(|recording| recording["epoch"] == epoch);
        let numbers = lives.filter_map(|life| {
            Some((life["first_turn"].as_u64()?, life["last_turn"].as_u64()?))
        });
        let turns: u64 = numbers.map(|(first, last)| last + 1 - first).sum();
        if turns > 0 {
            Ok(turns)
        } else {
            Err(listed.to_string())
        }
    })
    .await
}

/// Upgrade to a guest with `--wait`.
async fn upgrade(cluster: &Cluster, name: &str) -> Outcome<Output> {
    let file = guest(name)?.display().to_string();
    cluster
        .tessera(&[
            "framework",
            "upgrade",
            NAME,
            &file,
            "--wait",
            "--timeout",
            "60",
        ])
        .await
}

async fn config(cluster: &Cluster, values: &[&str]) -> Outcome {
    let output = cluster
        .tessera(&[&["framework", "config", "set", NAME], values].concat())
        .await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    until(
        "the scheduler has seen its configuration",
        PATIENCE,
        async || {
            let found = view(cluster).await.map_err(|e| e.to_string())?;
            if found["config_seen"] == found["config_version"] {
                Ok(())
            } else {
                Err(found.to_string())
            }
        },
    )
    .await
}

/// An upgrade that fails: the old version is back, and the history says why.
async fn fails(cluster: &Cluster, next: &str, why: &str) -> Outcome {
    config(cluster, &[&format!("next={next}")]).await?;
    let before = page(cluster).await?;
    let output = upgrade(cluster, "versioned-2").await?;
    ensure(output.status.code() == Some(4), || {
        format!("{next}: {output:?}")
    })?;
    let found = view(cluster).await?;
    let versions = found["versions"].as_array().cloned().unwrap_or_default();
    let failed = versions
        .iter()
        .rev()
        .find(|version| version["outcome"].to_string().contains("failed"));
    let told = failed.map(ToString::to_string).unwrap_or_default();
    ensure(told.contains(why), || format!("{next}: {found}"))?;
    ensure(
        found["state_version"] == 1 && found["quarantine"].is_null(),
        || format!("{next}: {found}"),
    )?;
    let after = page(cluster).await?;
    let number = |page: &Value, name: &str| page[name].as_u64().unwrap_or(0);
    ensure(
        after["version"] == 1
            && number(&after, "launched") >= number(&before, "launched")
            && number(&after, "ended") >= number(&before, "ended"),
        || format!("{next}: {before} became {after}"),
    )
}

#[tokio::test]
async fn versions_change_under_load_without_a_lost_or_doubled_task() -> Outcome {
    let cluster =
        Cluster::start("versions", &["--cpus-milli", "4000", "--mem-mib", "8192"]).await?;
    let ran = cluster.scene.open_file("ran")?;
    // The sandbox is named by task and attempt.
    let command = format!("pwd >> {}; sleep 0.5", ran.display());
    let count = TASKS.to_string();
    let common = [
        ("count", count.as_str()),
        ("command", &command),
        ("cpus", "0.4"),
    ];
    cluster.framework(NAME, "versioned-1", &common).await?;

    fails(
        &cluster,
        "fail-in-migration",
        "asked to fail in the migration",
    )
    .await?;
    fails(
        &cluster,
        "trap-in-first-turn",
        "asked to panic in the first turn",
    )
    .await?;

    // A version that does not read the state is refused before anything happens.
    let refused = upgrade(&cluster, "versioned-alone").await?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure(
        refused.status.code() == Some(4) && told.contains('1') && told.contains('3'),
        || told.clone(),
    )?;

    // One that goes well, over several turns of migration.
    config(&cluster, &["next="]).await?;
    records_for_several_turns(&cluster).await?;
    let records = page(&cluster).await?["launched"].as_u64().unwrap_or(0);
    let output = upgrade(&cluster, "versioned-2").await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    let found = view(&cluster).await?;
    ensure(
        found["state_version"] == 2 && found["upgrade"].is_null(),
        || found.to_string(),
    )?;
    // Ten records per turn, and none of the others' turns among them.
    let turns = migration_turns(&cluster, &found).await?;
    ensure(turns > records / 10, || {
        format!("{turns} turns to migrate {records} records: {found}")
    })?;
    let now = page(&cluster).await?;
    ensure(now["version"] == 2 && now["count"] == TASKS, || {
        now.to_string()
    })?;

    // The configuration comes as an event: the instance is the same.
    config(&cluster, &["remark=seen"]).await?;
    let changed = until(
        "the scheduler says its new configuration",
        PATIENCE,
        async || {
            let now = page(&cluster).await.map_err(|e| e.to_string())?;
            if now["remark"] == "seen" {
                Ok(now)
            } else {
                Err(now.to_string())
            }
        },
    )
    .await?;
    ensure(changed["turns"].as_u64() > now["turns"].as_u64(), || {
        format!("it was built anew: {now} became {changed}")
    })?;

    // Version 1 does not read what version 2 has written: going back is refused by name. To another one
    // that does it is possible.
    let back = cluster.tessera(&["framework", "rollback", NAME]).await?;
    let told = String::from_utf8_lossy(&back.stderr).into_owned();
    ensure(back.status.code() == Some(4) && told.contains('2'), || {
        told.clone()
    })?;
    let lazy = upgrade(&cluster, "versioned-lazy").await?;
    ensure(lazy.status.success(), || format!("{lazy:?}"))?;
    let back = cluster
        .tessera(&["framework", "rollback", NAME, "--wait"])
        .await?;
    ensure(back.status.success(), || format!("{back:?}"))?;

    until("all tasks have ended", PATIENCE * 2, async || {
        let now = page(&cluster).await.map_err(|e| e.to_string())?;
        if now["ended"] == TASKS {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await?;
    let now = page(&cluster).await?;
    ensure(now["doubled"] == 0, || now.to_string())?;
    let text = std::fs::read_to_string(&ran)?;
    let sandboxes: BTreeSet<&str> = text.lines().collect();
    ensure(
        sandboxes.len() == TASKS && text.lines().count() == TASKS,
        || {
            format!(
                "{} runs in {} sandboxes",
                text.lines().count(),
                sandboxes.len()
            )
        },
    )?;
    check_history(&view(&cluster).await?)?;
    cluster.finish().await
}

fn check_history(found: &Value) -> Outcome {
    let versions = found["versions"]
        .as_array()
        .ok_or_else(|| failure(format!("no history in {found}")))?;
    let running: Vec<&Value> = versions
        .iter()
        .filter(|version| version["outcome"] == "running")
        .collect();
    let last = json!(running.last().map(|version| &version["component"]));
    ensure(
        last[0] == found["component"] || last == found["component"],
        || format!("the newest running version is not the one that runs: {found}"),
    )
}
