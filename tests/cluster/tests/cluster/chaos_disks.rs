//! Disks that are full or damaged, under masters that are real processes.

use crate::told::told;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tessera_cluster::cluster::{PATIENCE, Process, push, tessera};
use tessera_cluster::disk::Disk;
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, skipped};

/// Of the disk that is filled: the database with what it keeps ahead has to fit before.
const DISK_MIB: u64 = 160;
/// One change's weight: near the most that a configuration may have.
const WEIGHT: usize = 60_000;
/// Changes after which a full disk must have been noticed: what the database has allotted ahead is a few MiB.
const CHANGES_MAX: u64 = 2_000;
/// The framework whose configuration is written.
const NAME: &str = "heavy";

/// Puts a member's directory on a small disk of its own. It must not run.
pub fn on_small_disk(group: &mut Group, index: usize) -> Outcome<Disk> {
    let dir = group.scene.dir().join(format!("disk{index}"));
    let disk = Disk::mount(&dir, DISK_MIB)?;
    let copied = Command::new("cp").arg("-a").arg(group.members[index].dir.join(".")).arg(&dir).status()?;
    ensure(copied.success(), || format!("cp: {copied}"))?;
    group.members[index].dir = dir;
    Ok(disk)
}

/// One heavy change; the framework is made by the first one.
async fn change(rest: &Rest, value: u64) -> Outcome {
    let config = json!({"value": value.to_string(), "weight": ".".repeat(WEIGHT)});
    let body = json!({"config": config}).to_string().into_bytes();
    let json = [("content-type", "application/json")];
    rest.send("PUT", &format!("/v1/frameworks/{NAME}/config"), &json, body).await?.ok()?;
    Ok(())
}

async fn value(rest: &Rest, query: &str) -> Outcome<u64> {
    let document = rest.document(&format!("/v1/frameworks/{NAME}/config{query}")).await?;
    let text = document["config"]["value"].as_str().unwrap_or_default();
    text.parse().map_err(|_| failure(document.to_string()))
}

fn ended(group: &mut Group, index: usize) -> Outcome<bool> {
    let Some(process) = group.members[index].process.as_mut() else { return Ok(true) };
    let Some(status) = Process::ended(process)? else { return Ok(false) };
    ensure(!status.success(), || "it ended as if all were well".to_owned())?;
    group.members[index].process = None;
    Ok(true)
}

async fn catches_up(group: &Group, index: usize, wanted: u64) -> Outcome {
    until("it has what was written meanwhile", PATIENCE, async || {
        let rest = group.rest(index).map_err(|error| error.to_string())?;
        match value(&rest, "?consistency=stale").await {
            Ok(found) if found == wanted => Ok(()),
            other => Err(format!("{other:?}, not {wanted}")),
        }
    })
    .await
}

async fn healthy(group: &Group) -> Outcome {
    until("three masters are well", PATIENCE, async || {
        let leader = group.leader().await.map_err(|error| error.to_string())?;
        let view = group.view(leader).await.map_err(|error| error.to_string())?;
        if view["healthy_voters"] == 3 { Ok(()) } else { Err(view.to_string()) }
    })
    .await
}

/// A master whose disk is full stops, whether it leads or not, and nobody loses anything by that.
#[tokio::test]
async fn a_full_disk_stops_a_master_and_nothing_else() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("disks of their own need root");
    }
    let mut group = Group::beside("full", 3).await?;
    let digest = push(&group.rest(0)?, "echo").await?;
    let document = json!({"name": NAME, "role": "default", "component": digest, "config": {}});
    group.rest(0)?.post("/v1/frameworks", &document).await?.ok()?;
    let mut written = 0;
    let victim = (group.leader().await? + 1) % 3;
    group.members[victim].kill_9()?;
    let disk = on_small_disk(&mut group, victim)?;
    group.run(victim)?;
    for leads in [false, true] {
        healthy(&group).await?;
        if leads {
            let to = group.node(victim).await?.to_string();
            let moved = tessera(&["operator", "raft", "transfer", &to], &group.env()).await?;
            ensure(moved.status.success(), || format!("{moved:?}"))?;
        }
        ensure((group.leader().await? == victim) == leads, || format!("leads: {leads}"))?;
        disk.fill()?;
        let (first, rest) = (written, group.rest((victim + 1) % 3)?);
        while !ended(&mut group, victim)? {
            ensure(written - first < CHANGES_MAX, || "the full disk was not noticed".to_owned())?;
            change(&rest, written + 1).await?;
            written += 1;
        }
        let log = group.members[victim].log();
        let last = log.lines().last().unwrap_or_default().to_owned();
        told("its disk failed: … No space left on device …", &last)?;
        ensure(last.contains("start it again"), || last.clone())?;
        eprintln!("leads: {leads}: it stopped after {} changes", written - first);
        change(&rest, written + 1).await?;
        written += 1;
        // A disk that is still full is no disk to start on, and starting on it loses nothing.
        group.run(victim)?;
        disk.free()?;
        if ended(&mut group, victim)? {
            group.run(victim)?;
        }
        until("it runs and has everything", PATIENCE, async || {
            if ended(&mut group, victim).map_err(|error| error.to_string())? {
                group.run(victim).map_err(|error| error.to_string())?;
            }
            let rest = group.rest(victim).map_err(|error| error.to_string())?;
            match value(&rest, "?consistency=stale").await {
                Ok(found) if found == written => Ok(()),
                other => Err(format!("{other:?}, not {written}")),
            }
        })
        .await?;
    }
    // It counts: with it alone the next leader has a majority.
    healthy(&group).await?;
    let leader = group.leader().await?;
    let other = (0..3).find(|index| *index != leader && *index != victim).unwrap_or(0);
    let dies = if leader == victim { other } else { leader };
    group.members[dies].kill_9()?;
    let rest = group.rest(victim)?;
    change(&rest, written + 1).await?;
    ensure(value(&rest, "").await? == written + 1, || "the last change is lost".to_owned())?;
    group.run(dies)?;
    catches_up(&group, dies, written + 1).await?;
    group.finish_on(disk)
}

/// Files of a database with this ending, the largest first.
fn files(db: &Path, ending: &str) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(db)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            found.push((path.metadata()?.len(), path));
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

/// Nobody has written to it for as long as writing a table never takes.
fn is_whole(table: &Path) -> bool {
    let changed = table.metadata().and_then(|table| table.modified()).ok();
    changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > Duration::from_secs(1))
}

fn flip(path: &Path, at: usize) -> Outcome {
    let mut bytes = std::fs::read(path)?;
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0x40;
    Ok(std::fs::write(path, bytes)?)
}

/// Whatever is damaged, the master refuses to start and says what to do; then it comes back as a new one.
#[tokio::test]
async fn a_damaged_database_is_refused_and_replaced() -> Outcome {
    let mut group = Group::beside("damaged", 3).await?;
    let digest = push(&group.rest(0)?, "echo").await?;
    let document = json!({"name": NAME, "role": "default", "component": digest, "config": {}});
    group.rest(0)?.post("/v1/frameworks", &document).await?.ok()?;
    let mut written = 0;
    for damage in ["tables", "log", "manifest", "current"] {
        let victim = (group.leader().await? + 1) % 3;
        let rest = group.rest((victim + 1) % 3)?;
        let db = group.members[victim].dir.join("db");
        // Enough for tables to be written.
        until("there are tables", PATIENCE * 2, async || {
            written += 1;
            change(&rest, written).await.map_err(|error| error.to_string())?;
            // One that is just being written is none yet, and goes with the process.
            match files(&db, "sst").map_err(|error| error.to_string())? {
                tables if tables.iter().filter(|table| is_whole(table)).count() < 2 => Err(format!("{tables:?}")),
                _ => Ok(()),
            }
        })
        .await?;
        let before = group.node(victim).await?;
        group.members[victim].kill_9()?;
        match damage {
            // In each: the state's and the log's.
            "tables" => {
                for table in files(&db, "sst")?.iter().filter(|table| is_whole(table)) {
                    let half = usize::try_from(table.metadata()?.len())? / 2;
                    flip(table, half)?;
                }
            }
            "log" => {
                let log = files(&db, "log")?.first().cloned().ok_or_else(|| failure("no log"))?;
                let used = std::fs::read(&log)?.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                flip(&log, used / 2)?;
            }
            "manifest" => {
                let named = std::fs::read_to_string(db.join("CURRENT"))?;
                flip(&db.join(named.trim()), 40)?;
            }
            _ => std::fs::write(db.join("CURRENT"), "MANIFEST-999999\n")?,
        }
        group.run(victim)?;
        until("it has refused its disk", PATIENCE, async || {
            match ended(&mut group, victim).map_err(|error| error.to_string())? {
                true => Ok(()),
                false => Err(group.members[victim].log()),
            }
        })
        .await?;
        let log = group.members[victim].log();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        eprintln!("{damage}: {}", last.join(" | "));
        ensure(last.iter().any(|line| line.contains("--join")), || format!("{damage}: {last:?}"))?;
        if damage == "tables" {
            told("damaged …", &last.concat())?;
        }

        std::fs::remove_dir_all(&group.members[victim].dir)?;
        group.run(victim)?;
        until("it votes under another number", PATIENCE, async || {
            let node = group.node(victim).await.map_err(|error| error.to_string())?;
            match node > before {
                true => Ok(()),
                false => Err(format!("node {node}")),
            }
        })
        .await?;
        group.voters(3).await?;
        catches_up(&group, victim, written).await?;
    }
    group.finish()
}
