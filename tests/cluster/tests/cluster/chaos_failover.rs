//! How long it takes until a write succeeds again, a task is placed again, and a scheduler runs again, after
//! the leader was killed or paused, or the machine of a scheduler was lost. A measurement, not a test: it is
//! printed as a table.

use crate::chaos_net::{AGENT_FLAGS, number};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, framework};
use tessera_cluster::rest::Rest;
use tessera_cluster::site::Site;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, failure};

/// Name of the scheduler.
const SCHEDULER: &str = "launcher";
/// A client goes to the next master after this.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How often something is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// Times of one kind, in ms.
struct Times {
    what: String,
    all: Vec<f64>,
}

impl Times {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), all: Vec::new() }
    }

    fn add(&mut self, time: Duration) {
        self.all.push(time.as_secs_f64() * 1_000.0);
    }

    fn row(&mut self) -> String {
        self.all.sort_by(f64::total_cmp);
        let at = |part: usize| {
            let last = self.all.len().saturating_sub(1);
            self.all.get((self.all.len() * part / 100).min(last)).copied().unwrap_or(f64::NAN)
        };
        format!("| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} |", self.what, self.all.len(), at(0), at(50), at(99), at(100))
    }
}

/// Send a request to one of these until it succeeds; how long that took since then.
async fn succeeds(masters: &[&Rest], since: Instant, (method, path): (&str, &str), key: &str, body: &Value) -> Outcome<Duration> {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    let mut last = String::new();
    for at in 0.. {
        if since.elapsed() > PATIENCE {
            break;
        }
        let sent = masters[at % masters.len()].send(method, path, &headers, body.to_string().into_bytes());
        match tokio::time::timeout(ATTEMPT, sent).await {
            Ok(Ok(answer)) if (200..300).contains(&answer.status) => return Ok(since.elapsed()),
            Ok(Ok(answer)) => last = answer.text(),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".to_owned(),
        }
    }
    Err(failure(format!("{method} {path}: {last}")))
}

/// When a task has written its id.
async fn has_run(ran: &Path, id: &str, since: Instant) -> Outcome<Duration> {
    let line = format!("{id}\n");
    let deadline = since + PATIENCE;
    while Instant::now() < deadline {
        if std::fs::read_to_string(ran)?.contains(&line) {
            return Ok(since.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(failure(format!("{id} did not run")))
}

/// The leader ends or stands still; times until a write succeeds, and until a new task has run.
async fn leader_fails(site: &mut Site, ran: &Path, id: &str, kill: bool) -> Outcome<(Duration, Duration)> {
    site.voters(site.masters.len()).await?;
    site.connected().await?;
    let leader = site.leader().await?;
    let clients = site.clients()?;
    // Connections are there, as a client's are that works all the time.
    for client in &clients {
        client.document("/v1/limits?role=warm").await?;
    }
    let others: Vec<&Rest> = (0..clients.len()).filter(|at| *at != leader).map(|at| &clients[at]).collect();
    let limit = json!({"set": {"timers": 7}});
    let run = format!("echo {id} >> {}", ran.display());
    let job = json!({"tasks": [{"id": id, "run": run}]});
    let path = format!("/frameworks/{SCHEDULER}/jobs");
    let keys = [format!("w-{id}"), format!("j-{id}")];
    let began = Instant::now();
    match kill {
        true => site.masters[leader].kill_9()?,
        false => site.masters[leader].signal(Signal::SIGSTOP)?,
    }
    let (write, _, placed) = tokio::try_join!(
        succeeds(&others, began, ("PATCH", "/v1/limits?role=failover"), &keys[0], &limit),
        succeeds(&others, began, ("POST", &path), &keys[1], &job),
        has_run(ran, id, began),
    )?;
    match kill {
        true => site.run_master(leader)?,
        false => site.masters[leader].signal(Signal::SIGCONT)?,
    }
    Ok((write, placed))
}

/// The machine of the scheduler is cut off; time until the scheduler runs on another one.
async fn scheduler_lost(site: &mut Site) -> Outcome<Duration> {
    site.connected().await?;
    let leader = site.leader().await?;
    let rest = site.rest(leader)?;
    let path = format!("/v1/frameworks/{SCHEDULER}");
    let before = rest.document(&path).await?;
    let agent = before["agent"].as_str().unwrap_or_default();
    let name = rest.document(&format!("/v1/agents/{agent}")).await?["hostname"].clone();
    let host = site.agents.iter().find(|host| name == host.name.as_str());
    let machine = host.ok_or_else(|| failure(format!("who is {agent}, {name}?")))?.machine;
    let began = Instant::now();
    site.net.set_link(machine, false)?;
    let answers = format!("/frameworks/{SCHEDULER}/");
    until("the scheduler runs elsewhere", PATIENCE, async || {
        let now = rest.document(&path).await.map_err(|error| error.to_string())?;
        if now["epoch"] == before["epoch"] || now["state"] != "running" {
            return Err(now.to_string());
        }
        rest.get(&answers).await.and_then(|answer| answer.ok()).map_err(|error| error.to_string())
    })
    .await?;
    let took = began.elapsed();
    site.net.set_link(machine, true)?;
    Ok(took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: make chaos FAILOVERS=30"]
async fn time_until_all_goes_on_after_a_failure() -> Outcome {
    let rounds = number("TESSERA_FAILOVERS").unwrap_or(30);
    let mut site = Site::start("fail", 3, 3, &AGENT_FLAGS).await?;
    let ran = site.scene.open_file("ran")?;
    framework(&site.rest(0)?, SCHEDULER, "launcher", &[]).await?;
    let mut rows = Vec::new();
    for (how, kill) in [("kill -9", true), ("SIGSTOP", false)] {
        let mut writes = Times::new(format!("leader {how}: a write succeeds"));
        let mut tasks = Times::new(format!("leader {how}: a new task runs"));
        for round in 0..rounds {
            let id = format!("{}-{round}", if kill { "k" } else { "s" });
            let (write, task) = leader_fails(&mut site, &ran, &id, kill).await?;
            eprintln!("{how} {round}: write {} ms, task {} ms", write.as_millis(), task.as_millis());
            writes.add(write);
            tasks.add(task);
        }
        rows.extend([writes.row(), tasks.row()]);
    }
    let mut lost = Times::new("machine of a scheduler cut off: it answers elsewhere");
    for round in 0..rounds.div_ceil(3) {
        let took = scheduler_lost(&mut site).await?;
        eprintln!("scheduler {round}: {} ms", took.as_millis());
        lost.add(took);
    }
    rows.push(lost.row());
    eprintln!("\n| since the failure, ms | rounds | least | p50 | p99 | most |\n|---|---|---|---|---|---|");
    eprintln!("{}\n", rows.join("\n"));
    site.rest(0)?.send("DELETE", &format!("/v1/frameworks/{SCHEDULER}"), &[], Vec::new()).await?.ok()?;
    site.idle().await?;
    site.finish()
}
