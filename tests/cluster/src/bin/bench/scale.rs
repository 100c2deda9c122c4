//! Measures what many cost: a thousand Wasm tasks at once, a thousand schedulers of one tenant, two
//! hundred tenants with one scheduler each.
//!
//! Must never measure with cold images: the first of each kind is started before the clock is.

use crate::launches::{Events, remove, spawn};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{Cluster, Parts, push};
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};

/// How long a crowd may take to run.
const WITHIN: Duration = Duration::from_secs(240);

/// Launch so many Wasm tasks, and give the time from the commit of the first accept until the last one
/// runs, in s.
pub async fn tasks_at_once(cluster: &Cluster, count: usize) -> Outcome<f64> {
    let component = cluster.push("task-exit").await?;
    let config = |count: usize| {
        vec![
            ("count", count.to_string()),
            ("kind", "wasm".to_owned()),
            ("command", component.clone()),
            ("args", "0 sleep 600000".to_owned()),
            ("cpus", "0.002".to_owned()),
            ("mem-mib", "16".to_owned()),
        ]
    };
    let mut events = Events::follow(cluster).await?;
    spawn(cluster, "crowd-warm", &config(1)).await?;
    events.next("task.TASK_RUNNING").await?;
    spawn(cluster, "crowd", &config(count)).await?;
    let began = events.next("task.TASK_STAGING").await?;
    let mut last = began;
    for _ in 0..count {
        last = events.next("task.TASK_RUNNING").await?;
    }
    for name in ["crowd-warm", "crowd"] {
        remove(cluster, name).await?;
    }
    gone(&cluster.rest, "crowd").await?;
    Ok((last - began).as_secs_f64())
}

/// What a crowd of schedulers takes.
pub struct Crowd {
    /// From the first request to create one until all run.
    pub seconds: f64,
    /// Private memory of workers that came with it, per scheduler.
    pub kib_each: f64,
    /// Workers that came with it.
    pub workers: usize,
}

/// Create so many idle schedulers, the n-th one in the role that `role` says.
pub async fn schedulers(
    parts: &Parts,
    rest: &Rest,
    prefix: &str,
    count: usize,
    role: impl Fn(usize) -> String,
) -> Outcome<Crowd> {
    let component = push(rest, "trap").await?;
    // The image is compiled before the clock starts.
    create(rest, &format!("{prefix}-first"), &role(0), &component).await?;
    all_run(rest, prefix, 1).await?;
    let (before, memory) = (workers(parts).len(), private_kib(parts));
    let began = Instant::now();
    for number in 1..count {
        create(
            rest,
            &format!("{prefix}-{number}"),
            &role(number),
            &component,
        )
        .await?;
    }
    all_run(rest, prefix, count).await?;
    let seconds = began.elapsed().as_secs_f64();
    let grown = private_kib(parts).saturating_sub(memory);
    let workers = workers(parts).len() - before;
    for number in 1..count {
        delete(rest, &format!("{prefix}-{number}")).await?;
    }
    delete(rest, &format!("{prefix}-first")).await?;
    gone(rest, prefix).await?;
    Ok(Crowd {
        seconds,
        kib_each: grown as f64 / (count - 1) as f64,
        workers,
    })
}

fn workers(parts: &Parts) -> Vec<i32> {
    procfs::find("tessera-worker", parts.dir())
}

async fn delete(rest: &Rest, name: &str) -> Outcome {
    let path = format!("/v1/frameworks/{name}");
    rest.send("DELETE", &path, &[], Vec::new())
        .await?
        .ok()
        .map(drop)
}

fn private_kib(parts: &Parts) -> u64 {
    workers(parts).into_iter().map(procfs::private_kib).sum()
}

async fn create(rest: &Rest, name: &str, role: &str, component: &str) -> Outcome {
    let document = json!({"name": name, "role": role, "component": component, "config": {}});
    let answer = rest.post("/v1/frameworks", &document).await?;
    ensure(answer.status == 201, || answer.text())
}

/// The frameworks whose names start like this, as they are listed.
async fn named(rest: &Rest, prefix: &str) -> Result<Vec<Value>, String> {
    let list = rest.document("/v1/frameworks").await;
    let list = list.map_err(|error| error.to_string())?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let ours = items.into_iter().filter(|item| {
        item["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(prefix))
    });
    Ok(ours.collect())
}

async fn all_run(rest: &Rest, prefix: &str, count: usize) -> Outcome {
    until(&format!("{count} schedulers run"), WITHIN, async || {
        let ours = named(rest, prefix).await?;
        let running = ours
            .iter()
            .filter(|item| item["state"] == "running")
            .count();
        if running == count {
            return Ok(());
        }
        let other = ours.iter().find(|item| item["state"] != "running");
        Err(format!("{running}; for example {other:?}"))
    })
    .await
}

async fn gone(rest: &Rest, prefix: &str) -> Outcome {
    until(&format!("{prefix} is gone"), WITHIN, async || {
        let left = named(rest, prefix).await?.len();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} are left"))
        }
    })
    .await
}
