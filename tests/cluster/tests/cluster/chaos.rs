//! 200 tasks run while master, agent and worker are killed with -9 at random moments: none is lost,
//! doubled, or left without its status.
//!
//! TESSERA_SEED repeats a run; the seed and the kills are printed.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::random::Random;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// Tasks of each of the two frameworks.
const TASKS: usize = 100;
/// Kills of each process.
const KILLS: usize = 3;
/// All tasks, with all kills, on a busy machine.
const DONE_WITHIN: Duration = Duration::from_secs(240);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Master,
    Agent,
    Worker,
}

fn seed() -> u64 {
    let given = std::env::var("TESSERA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        time.map_or(1, |time| u64::from(time.subsec_nanos()))
    })
}

#[tokio::test]
async fn no_task_is_lost_or_doubled_when_processes_are_killed() -> Outcome {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let cluster = Cluster::start("chaos", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let ran = cluster.scene.open_file("ran")?;
    let count = TASKS.to_string();
    let command = format!("echo $SPAWN_TASK >> {}; sleep 0.8", ran.display());
    let task = cluster.push("task-exit").await?;
    let common = [
        ("count", count.as_str()),
        ("cpus", "0.2"),
        ("mem-mib", "16"),
    ];
    let native = [&common[..], &[("kind", "native"), ("command", &command)]].concat();
    let wasm = [
        &common[..],
        &[
            ("kind", "wasm"),
            ("command", &task),
            ("args", "0 sleep 600"),
        ],
    ]
    .concat();
    cluster.framework("native", "spawn", &native).await?;
    cluster.framework("wasm", "spawn", &wasm).await?;

    let mut victims = [
        [Victim::Master; KILLS],
        [Victim::Agent; KILLS],
        [Victim::Worker; KILLS],
    ]
    .concat();
    random.shuffle(&mut victims);
    for victim in victims {
        let pause = Duration::from_millis(200 + random.below(1_200));
        wait_out(pause).await;
        let pid = victim_pid(&cluster, victim, &mut random).await?;
        procfs::kill_9(pid)?;
        eprintln!("killed {victim:?} ({pid}) after {} ms", pause.as_millis());
    }
    for framework in ["native", "wasm"] {
        until(
            &format!("all tasks of {framework} have ended"),
            DONE_WITHIN,
            async || {
                let page = page(&cluster, framework)
                    .await
                    .map_err(|error| error.to_string())?;
                if page["ended"] == TASKS {
                    Ok(())
                } else {
                    Err(unfinished(&page))
                }
            },
        )
        .await?;
    }
    check_native(&page(&cluster, "native").await?, &ran)?;
    check_wasm(&page(&cluster, "wasm").await?)?;
    check_master_agrees(&cluster).await?;
    cluster.finish().await
}

/// A moment that depends on nothing but the seed.
async fn wait_out(pause: Duration) {
    let end = tokio::time::Instant::now() + pause;
    tokio::time::sleep_until(end).await;
}

/// The pid of one that runs now: it may just be being started again.
async fn victim_pid(cluster: &Cluster, victim: Victim, random: &mut Random) -> Outcome<i32> {
    until(
        &format!("there is a {victim:?} to kill"),
        PATIENCE,
        async || {
            let pids = cluster.pids().map_err(|error| error.to_string())?;
            let pid = match victim {
                Victim::Master => pids.master,
                Victim::Agent => pids.agent,
                Victim::Worker => {
                    let workers = cluster.workers();
                    let index = usize::try_from(random.below(workers.len() as u64)).unwrap_or(0);
                    workers.get(index).copied().unwrap_or(0)
                }
            };
            if procfs::is_alive(pid) {
                Ok(pid)
            } else {
                Err(format!("{pids:?}"))
            }
        },
    )
    .await
}

async fn page(cluster: &Cluster, framework: &str) -> Outcome<Value> {
    let began = Instant::now();
    let answer = cluster
        .ask(&format!("/frameworks/{framework}/?limit=300"))
        .await?;
    let page = answer.json();
    ensure(page["count"] == TASKS, || {
        format!(
            "after {} ms: {}",
            began.elapsed().as_millis(),
            answer.text()
        )
    })?;
    Ok(page)
}

fn records(page: &Value) -> Outcome<&Vec<Value>> {
    page["tasks"]
        .as_array()
        .ok_or_else(|| failure(format!("no tasks in {page}")))
}

fn unfinished(page: &Value) -> String {
    let waiting: Vec<String> = records(page)
        .map(|records| {
            records
                .iter()
                .filter(|record| record["state"].is_null())
                .take(5)
                .map(Value::to_string)
                .collect()
        })
        .unwrap_or_default();
    format!(
        "{} of {TASKS} have ended; for example {}",
        page["ended"],
        waiting.join(" ")
    )
}

/// The final status came exactly once; launches that never started were told exactly once, too.
fn check_received_once(record: &Value) -> Outcome {
    let received = record["received"]
        .as_object()
        .ok_or_else(|| failure(format!("no record of statuses in {record}")))?;
    ensure(received.values().all(|times| times == 1), || {
        format!("a status came more than once: {record}")
    })?;
    let final_status = format!(
        "{} {}",
        record["task"].as_str().unwrap_or("?"),
        record["state"].as_str().unwrap_or("?")
    );
    ensure(received.contains_key(&final_status), || {
        format!("{final_status} was not received: {record}")
    })?;
    let others = received.keys().filter(|status| **status != final_status);
    let mut strange = others.filter(|status| !status.ends_with(" TASK_DROPPED"));
    match strange.next() {
        None => Ok(()),
        Some(status) => Err(failure(format!(
            "{status} was received besides {final_status}: {record}"
        ))),
    }
}

fn check_native(page: &Value, ran: &Path) -> Outcome {
    let mut runs: BTreeMap<String, usize> = BTreeMap::new();
    for line in std::fs::read_to_string(ran)?.lines() {
        *runs.entry(line.to_owned()).or_default() += 1;
    }
    for record in records(page)? {
        check_received_once(record)?;
        ensure(
            record["state"] == "TASK_FINISHED" && record["exit_code"] == 0,
            || format!("a native task must not be touched by the death of anything: {record}"),
        )?;
        let id = record["task"].as_str().unwrap_or_default();
        ensure(runs.remove(id) == Some(1), || {
            format!("{id} did not run exactly once")
        })?;
    }
    ensure(runs.is_empty(), || {
        format!("these ran, although they are not among the launched ones: {runs:?}")
    })
}

fn check_wasm(page: &Value) -> Outcome {
    let mut lost = 0;
    for record in records(page)? {
        check_received_once(record)?;
        let finished = record["state"] == "TASK_FINISHED" && record["exit_code"] == 0;
        let with_its_worker =
            record["reason"] == "WORKER_LOST" || record["reason"] == "REASON_WORKER_LOST";
        ensure(finished || with_its_worker, || {
            format!("a Wasm task may only end with its worker: {record}")
        })?;
        lost += usize::from(with_its_worker);
    }
    eprintln!("{lost} of {TASKS} Wasm tasks ended with their worker");
    Ok(())
}

/// What the master says about all tasks is what the schedulers were told, and nothing is charged.
async fn check_master_agrees(cluster: &Cluster) -> Outcome {
    for framework in ["native", "wasm"] {
        let told = page(cluster, framework).await?;
        for record in records(&told)? {
            let id = record["task"].as_str().unwrap_or_default();
            let task = cluster
                .rest
                .document(&format!("/v1/tasks/{framework}/{id}"))
                .await?;
            ensure(task["state"] == record["state"], || {
                format!("the master says {task}, the scheduler {record}")
            })?;
        }
    }
    until("nothing is charged any more", PATIENCE, async || {
        let agent = cluster
            .rest
            .document("/v1/agents/a1")
            .await
            .map_err(|error| error.to_string())?;
        if agent["used"]["cpus_milli"] == 0 && agent["tasks"] == 0 {
            Ok(())
        } else {
            Err(agent.to_string())
        }
    })
    .await
}
