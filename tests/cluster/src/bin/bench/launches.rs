//! Measures launches: the time to TASK_RUNNING, CPU per placement, and a shim's memory.
//!
//! Must never measure the first launches of a kind: images are compiled and loaded in them.

use crate::machine::quantile;
use futures::StreamExt;
use serde_json::Value;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};
use tokio::sync::mpsc;

/// Launches that find nothing warm.
const COLD: usize = 5;
/// Between two launches that are timed: an agent sends at most one message of statuses per 20 ms, and
/// the end of one task must not hold up the beginning of the next.
const QUIET: Duration = Duration::from_millis(50);
/// How long a measurement may take.
const WITHIN: Duration = Duration::from_secs(120);

/// What is launched.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A component.
    Wasm,
    /// A command.
    Native,
}

impl Kind {
    /// For names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Native => "native",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Wasm => "warm Wasm task",
            Self::Native => "native command",
        }
    }

    /// What half of the launches should take at most.
    pub const fn target_ms(self) -> f64 {
        match self {
            Self::Wasm => 5.0,
            Self::Native => 25.0,
        }
    }

    /// Configuration of the guest `spawn` for tasks that run for so long.
    async fn config(
        self,
        cluster: &Cluster,
        count: usize,
        cpus: &str,
        sleep_ms: u32,
    ) -> Outcome<Vec<(&'static str, String)>> {
        let (command, args) = match self {
            Self::Wasm => (
                cluster.push("task-exit").await?,
                format!("0 sleep {sleep_ms}"),
            ),
            Self::Native => (
                format!("sleep {}.{:03}", sleep_ms / 1_000, sleep_ms % 1_000),
                String::new(),
            ),
        };
        Ok(vec![
            ("count", count.to_string()),
            ("kind", self.name().to_owned()),
            ("command", command),
            ("args", args),
            ("cpus", cpus.to_owned()),
            ("mem-mib", "16".to_owned()),
        ])
    }
}

/// Times of launches.
pub struct Times {
    /// Half are below it.
    pub p50_ms: f64,
    /// 90 % are below it.
    pub p90_ms: f64,
}

/// Create a framework of the guest `spawn`.
pub async fn spawn(cluster: &Cluster, name: &str, config: &[(&'static str, String)]) -> Outcome {
    let config: Vec<(&str, &str)> = config
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    cluster.framework(name, "spawn", &config).await.map(drop)
}

/// Remove a framework.
pub async fn remove(cluster: &Cluster, name: &str) -> Outcome {
    cluster
        .rest
        .send("DELETE", &format!("/v1/frameworks/{name}"), &[], Vec::new())
        .await?
        .ok()
        .map(drop)
}

async fn wait_ended(cluster: &Cluster, name: &str, count: usize) -> Outcome {
    until(
        &format!("all tasks of {name} have ended"),
        WITHIN,
        async || {
            // The framework does not wake its scheduler, as a question to that would, and costs the master
            // far less than a list of all tasks.
            let framework = cluster
                .rest
                .document(&format!("/v1/frameworks/{name}"))
                .await
                .map_err(|error| error.to_string())?;
            let live = framework["tasks"].as_object().map_or(0, serde_json::Map::len);
            let launched = framework["tasks_total"].as_u64().unwrap_or(0);
            if live == 0 && launched >= count as u64 {
                Ok(())
            } else {
                Err(format!("{launched} of {count} launched, and some run"))
            }
        },
    )
    .await?;
    let list = cluster
        .rest
        .document(&format!("/v1/tasks?framework={name}&limit=1000"))
        .await?;
    let items = list["items"].as_array();
    let good = items.into_iter().flatten();
    let good = good.filter(|task| task["state"] == "TASK_FINISHED").count();
    ensure(good == count.min(1_000), || {
        format!("{good} of {count} tasks of {name} have finished")
    })
}

/// Launch tasks one by one, each of a framework of its own so that nothing else happens around it,
/// and time each between two events.
pub async fn latency(cluster: &Cluster, kind: Kind, count: usize) -> Outcome<Times> {
    let mut events = Events::follow(cluster).await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count + COLD {
        let name = format!("latency-{}-{number}", kind.name());
        let config = kind.config(cluster, 1, "0.5", 100).await?;
        spawn(cluster, &name, &config).await?;
        let staged = events.next("task.TASK_STAGING").await?;
        let running = events.next("task.TASK_RUNNING").await?;
        events.next("task.TASK_FINISHED").await?;
        remove(cluster, &name).await?;
        let next = tokio::time::Instant::now() + QUIET;
        tokio::time::sleep_until(next).await;
        if number >= COLD {
            times.push((running - staged).as_secs_f64() * 1e3);
        }
    }
    Ok(Times {
        p50_ms: quantile(&mut times, 0.5),
        p90_ms: quantile(&mut times, 0.9),
    })
}

/// Events that wait to be looked at; a measurement makes far fewer.
const EVENTS_MAX: usize = 10_000;

/// The events of a cluster, with the time at which each came.
pub struct Events {
    seen: mpsc::Receiver<(String, Instant)>,
}

impl Events {
    /// Follows them in a task of its own, which ends with the cluster or when nobody listens.
    pub async fn follow(cluster: &Cluster) -> Outcome<Self> {
        let mut stream = cluster
            .rest
            .stream("/v1/events", None)
            .await?
            .bytes_stream();
        let (sender, seen) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(async move {
            let mut text = String::new();
            while let Some(Ok(chunk)) = stream.next().await {
                let now = Instant::now();
                text.push_str(&String::from_utf8_lossy(&chunk));
                while let Some((event, rest)) = text.split_once("\n\n") {
                    let kind = kind_of(event);
                    text = rest.to_owned();
                    if sender.send((kind, now)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { seen })
    }

    /// When the next event of this kind came.
    pub async fn next(&mut self, kind: &str) -> Outcome<Instant> {
        let deadline = tokio::time::Instant::now() + WITHIN;
        loop {
            let event = tokio::time::timeout_at(deadline, self.seen.recv()).await;
            match event.ok().flatten() {
                Some((found, at)) if found == kind => return Ok(at),
                Some(_) => {}
                None => return Err(failure(format!("{kind} was not seen"))),
            }
        }
    }
}

fn kind_of(event: &str) -> String {
    let data = event.lines().find_map(|line| line.strip_prefix("data:"));
    let event: Value = data
        .and_then(|data| serde_json::from_str(data.trim()).ok())
        .unwrap_or_default();
    event["kind"].as_str().unwrap_or_default().to_owned()
}

/// CPU time of placements, by process.
pub struct Cpu {
    /// Name of a process and µs per placement.
    pub per_process_us: Vec<(&'static str, f64)>,
}

impl Cpu {
    /// Of all processes.
    pub fn total_us(&self) -> f64 {
        self.per_process_us.iter().map(|(_, us)| us).sum()
    }
}

/// Run short tasks as fast as they can be placed.
pub async fn cpu(cluster: &Cluster, kind: Kind, count: usize) -> Outcome<Cpu> {
    let warm = format!("warm-{}", kind.name());
    spawn(cluster, &warm, &kind.config(cluster, COLD, "0.1", 1).await?).await?;
    wait_ended(cluster, &warm, COLD).await?;
    let pids = cluster.pids()?;
    let workers = cluster.workers();
    let now = || {
        let of_workers: u64 = workers.iter().map(|&pid| procfs::cpu_us(pid)).sum();
        [
            procfs::cpu_us(pids.master),
            procfs::cpu_us(pids.agent),
            of_workers,
        ]
    };
    let before = now();
    let name = format!("cpu-{}", kind.name());
    spawn(
        cluster,
        &name,
        &kind.config(cluster, count, "0.1", 1).await?,
    )
    .await?;
    wait_ended(cluster, &name, count).await?;
    let after = now();
    ensure(
        cluster.pids()? == pids && cluster.workers() == workers,
        || "a process was replaced while it was measured".to_owned(),
    )?;
    remove(cluster, &warm).await?;
    remove(cluster, &name).await?;
    let each = |index: usize| {
        let at = |times: &[u64; 3]| times.get(index).copied().unwrap_or(0);
        at(&after).saturating_sub(at(&before)) as f64 / count as f64
    };
    Ok(Cpu {
        per_process_us: vec![
            ("master", each(0)),
            ("agent", each(1)),
            ("workers", each(2)),
        ],
    })
}

/// Time from a shim's first instruction until its program is executed, in µs, at half of all native
/// tasks so far; from the exit records that shims leave.
pub fn exec_us(cluster: &Cluster) -> Outcome<f64> {
    let mut times = Vec::new();
    let mut folders = vec![cluster.agent_dir().join("tasks")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.ends_with("exit.json") && folder.extension().is_some_and(|end| end == "state") {
                let record: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
                times.extend(record["exec_us"].as_f64().filter(|us| *us > 0.0));
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    ensure(!times.is_empty(), || "no shim left a record".to_owned())?;
    Ok(quantile(&mut times, 0.5))
}

/// Private memory of a shim whose command runs, in KiB.
pub async fn shim_kib(cluster: &Cluster) -> Outcome<f64> {
    let config = Kind::Native.config(cluster, 4, "0.1", 600_000).await?;
    spawn(cluster, "shims", &config).await?;
    let shims = until("four shims run", PATIENCE, async || {
        let shims = procfs::find("tessera-shim", &cluster.agent_dir());
        if shims.len() == 4 {
            Ok(shims)
        } else {
            Err(format!("{} shims", shims.len()))
        }
    })
    .await?;
    let sum: u64 = shims.iter().map(|&pid| procfs::private_kib(pid)).sum();
    remove(cluster, "shims").await?;
    Ok(sum as f64 / shims.len() as f64)
}
