//! A cluster that was stopped, or killed as a whole, goes on where it was.

use serde_json::{Value, json};
use tessera_cluster::cluster::{Cluster, KEEP_TASKS, PATIENCE};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

async fn turns(cluster: &Cluster) -> Outcome<u64> {
    let text = cluster.ask("/frameworks/echo/").await?.text();
    text.trim()
        .parse()
        .map_err(|_| failure(format!("echo answered {text:?}")))
}

async fn next_run(cluster: &Cluster, code: u8) -> Outcome {
    let output = cluster
        .tessera(&["run", "--", "sh", "-c", &format!("exit {code}")])
        .await?;
    ensure(output.status.code() == Some(i32::from(code)), || {
        format!("{output:?}")
    })
}

async fn check_kept(cluster: &Cluster, before: u64, task: &str, code: u8) -> Outcome {
    let kept = cluster
        .rest
        .document(&format!("/v1/tasks/run/{task}"))
        .await?;
    ensure(kept["exit_code"] == code, || format!("{kept}"))?;
    let after = until("echo goes on", PATIENCE, async || {
        match turns(cluster).await {
            Ok(after) if after > before => Ok(after),
            Ok(after) => Err(format!("{after} turns")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    ensure(after > before, || format!("{after} turns after {before}"))
}

#[tokio::test]
async fn state_outlives_the_whole_cluster() -> Outcome {
    let mut cluster = Cluster::start("again", &[]).await?;
    cluster.framework("echo", "echo", &[]).await?;
    next_run(&cluster, 5).await?;
    let before = turns(&cluster).await?;

    cluster.restart(&[]).await?;
    check_kept(&cluster, before, "run-1", 5).await?;
    next_run(&cluster, 6).await?;
    let agents = cluster.rest.document("/v1/agents").await?;
    ensure(
        agents["items"]
            .as_array()
            .is_some_and(|items| items.len() == 1),
        || format!("the agent is a new one: {agents}"),
    )?;

    // As by a power failure: everything at once, the supervisor too.
    let before = turns(&cluster).await?;
    let pids = cluster.pids()?;
    let workers = cluster.workers();
    for pid in [pids.dev, pids.master, pids.agent]
        .into_iter()
        .chain(workers)
    {
        procfs::kill_9(pid)?;
    }
    cluster.restart(&[]).await?;
    check_kept(&cluster, before, "run-2", 6).await?;
    check_kept(&cluster, before, "run-1", 5).await?;
    next_run(&cluster, 0).await?;
    cluster.finish().await
}

async fn task_in(cluster: &Cluster, task: &str, state: &str) -> Outcome<Value> {
    until(&format!("{task} is {state}"), PATIENCE, async || {
        let path = format!("/v1/tasks/run/{task}");
        let found = cluster
            .rest
            .document(&path)
            .await
            .map_err(|error| error.to_string())?;
        if found["state"] == state {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn tasks_outlive_a_cluster_that_was_stopped() -> Outcome {
    let mut cluster = Cluster::start("outlive", &[KEEP_TASKS]).await?;
    cluster.framework("run", "run", &[]).await?;
    let (go, ran) = (cluster.dir().join("go"), cluster.scene.open_file("ran")?);
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let shell = format!("echo $$ >> {}; {wait}; exit 9", ran.display());
    let answer = cluster
        .rest
        .post("/frameworks/run/tasks", &json!({"shell": shell}))
        .await?
        .ok()?;
    let id = answer.json()["task"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    task_in(&cluster, &id, "TASK_RUNNING").await?;

    cluster.restart(&[]).await?;
    let kept = task_in(&cluster, &id, "TASK_RUNNING").await?;
    let pid: i32 = std::fs::read_to_string(&ran)?.trim().parse()?;
    ensure(procfs::is_alive(pid), || {
        format!("process {pid} of {kept} ended with the cluster")
    })?;
    std::fs::write(&go, "")?;
    let ended = task_in(&cluster, &id, "TASK_FAILED").await?;
    ensure(ended["exit_code"] == 9 && ended["attempt"] == 1, || {
        format!("{ended}")
    })?;
    cluster.finish().await
}
