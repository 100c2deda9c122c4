//! Measures turns: in a worker alone, and committed by a cluster; and what an idle scheduler costs.
//!
//! Must never count a turn that was not committed.

use crate::launches::remove;
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{Cluster, framework};
use tessera_cluster::guests::{guest, program};
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// How long turns are counted.
const COUNT_FOR: Duration = Duration::from_secs(4);
/// Frameworks that commit turns at once.
const TOGETHER: usize = 8;

/// What `bench-turn` found.
pub struct InWorker {
    /// Median of a turn.
    pub p50_us: f64,
    /// 99 % of turns are below it.
    pub p99_us: f64,
    /// Private memory of each of a thousand idle instances.
    pub idle_kib: f64,
    /// Median of a turn in code that does not look whether its time is up.
    pub without_epochs_us: f64,
    /// Reading the thread's CPU time before and after a turn.
    pub budget_us: f64,
    /// Median of recording a turn.
    pub recording_us: f64,
    /// Median of building an instance anew, with 1 MiB of state, until its first turn is done.
    pub rebuild_us: f64,
}

impl InWorker {
    /// What counting a guest's time costs each turn.
    pub fn limits_us(&self) -> f64 {
        (self.p50_us - self.without_epochs_us).max(0.0) + self.budget_us
    }
}

/// Ask the worker itself.
pub fn in_the_worker() -> Outcome<InWorker> {
    let output = Command::new(program("tessera-worker")?)
        .args(["bench-turn", "--offers", "100", "--component"])
        .arg(guest("run")?)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success(), || {
        format!(
            "tessera-worker bench-turn: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    let found: Value = serde_json::from_str(&text)
        .map_err(|error| failure(format!("bench-turn printed no JSON: {error}: {text}")))?;
    let number = |name: &str| {
        found[name]
            .as_f64()
            .ok_or_else(|| failure(format!("bench-turn has no {name}: {found}")))
    };
    Ok(InWorker {
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        idle_kib: number("idle_private_kib_each")?,
        without_epochs_us: number("p50_without_epochs_us")?,
        budget_us: number("budget_us")?,
        recording_us: number("recording_p50_us")?,
        rebuild_us: number("rebuild_p50_us")?,
    })
}

/// Turns per second.
pub struct Committed {
    /// Of one framework.
    pub alone: f64,
    /// Of several at once, all together.
    pub together: f64,
}

/// Drive frameworks with requests that change their state.
pub async fn committed(cluster: &Cluster) -> Outcome<Committed> {
    let names: Vec<String> = (0..TOGETHER)
        .map(|number| format!("turns-{number}"))
        .collect();
    for name in &names {
        cluster.framework(name, "trap", &[]).await?;
    }
    let alone = rate(cluster, names.get(..1).unwrap_or_default()).await?;
    let together = rate(cluster, &names).await?;
    for name in &names {
        cluster
            .rest
            .send("DELETE", &format!("/v1/frameworks/{name}"), &[], Vec::new())
            .await?
            .ok()?;
    }
    Ok(Committed { alone, together })
}

async fn turns(cluster: &Cluster, names: &[String]) -> Outcome<u64> {
    let mut sum = 0;
    for name in names {
        let found = cluster
            .rest
            .document(&format!("/v1/frameworks/{name}"))
            .await?;
        sum += found["turns"]
            .as_u64()
            .ok_or_else(|| failure(format!("no turns in {found}")))?;
    }
    Ok(sum)
}

async fn rate(cluster: &Cluster, names: &[String]) -> Outcome<f64> {
    let before = turns(cluster, names).await?;
    let began = Instant::now();
    let clients = names.iter().map(|name| {
        let path = format!("/frameworks/{name}/");
        async move {
            while began.elapsed() < COUNT_FOR {
                cluster.rest.get(&path).await?.ok()?;
            }
            Outcome::Ok(())
        }
    });
    for result in futures::future::join_all(clients).await {
        result?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok((turns(cluster, names).await? - before) as f64 / seconds)
}

/// Private memory that a further idle scheduler adds to its worker, in KiB.
pub async fn idle_kib(cluster: &Cluster, count: u64) -> Outcome<f64> {
    let memory = || {
        cluster
            .workers()
            .into_iter()
            .map(procfs::private_kib)
            .sum::<u64>()
    };
    // The first one starts the worker and loads the image.
    framework(&cluster.rest, "idle-first", "trap", &[]).await?;
    let before = memory();
    for number in 0..count {
        framework(&cluster.rest, &format!("idle-{number}"), "trap", &[]).await?;
    }
    let grown = memory().saturating_sub(before);
    // They never answer offers, which would keep them from whoever comes next.
    remove(cluster, "idle-first").await?;
    for number in 0..count {
        remove(cluster, &format!("idle-{number}")).await?;
    }
    Ok(grown as f64 / count as f64)
}
