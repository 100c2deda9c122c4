//! A scheduler that keeps failing is put away with its last words, its tasks go on, and an operator's
//! release brings it back.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};

async fn view(cluster: &Cluster) -> Outcome<Value> {
    cluster.rest.document("/v1/frameworks/launcher").await
}

#[tokio::test]
async fn a_failing_scheduler_is_put_away_and_released() -> Outcome {
    let cluster = Cluster::start("away", &[]).await?;
    cluster.framework("launcher", "launcher", &[]).await?;
    let launcher = Launcher {
        rest: &cluster.rest,
        name: "launcher",
    };
    let (go, pid) = (cluster.dir().join("go"), cluster.scene.open_file("pid")?);
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let shell = format!("echo $$ > {}; {wait}; exit 3", pid.display());
    launcher
        .job("single", json!([{"id": "t", "run": shell}]))
        .await?;
    launcher.until_state("t", "TASK_RUNNING").await?;
    let pid = until("the task has written its pid", PATIENCE, async || {
        let text = std::fs::read_to_string(&pid).map_err(|e| e.to_string())?;
        text.trim()
            .parse::<i32>()
            .map_err(|e| format!("{text:?}: {e}"))
    })
    .await?;

    let quarantined = until("quarantine", PATIENCE, async || {
        // Refused, or answered with the failure: what became of it tells the view.
        let _ = cluster
            .rest
            .post("/frameworks/launcher/trap", &Value::Null)
            .await;
        let found = view(&cluster).await.map_err(|e| e.to_string())?;
        if found["state"] == "quarantined" {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    })
    .await?;
    let told = &quarantined["quarantine"];
    for (field, text) in [
        ("reason", "TRAPPED"),
        ("message", "asked to panic"),
        ("release", "tessera framework release launcher"),
    ] {
        let found = told[field].as_str().unwrap_or_default();
        ensure(found.contains(text), || format!("{field}: {told}"))?;
    }
    ensure(told["turn"].as_u64().is_some_and(|turn| turn > 0), || {
        format!("the turn's number is missing: {told}")
    })?;
    let text = cluster
        .tessera(&["framework", "inspect", "launcher"])
        .await?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure(
        text.contains("quarantined") && text.contains("tessera framework release launcher"),
        || text.clone(),
    )?;

    // Away, and nobody else suffers.
    let task = cluster.rest.document("/v1/tasks/launcher/t").await?;
    ensure(
        task["state"] == "TASK_RUNNING" && procfs::is_alive(pid),
        || format!("its task did not go on: {task}"),
    )?;
    let asked = cluster.rest.get("/frameworks/launcher/").await?;
    ensure(asked.status == 503, || {
        format!("{}: {}", asked.status, asked.text())
    })?;
    std::fs::write(&go, "")?;
    until(
        "the task's end is known without it",
        PATIENCE,
        async || match cluster.rest.document("/v1/tasks/launcher/t").await {
            Ok(task) if task["exit_code"] == 3 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;

    let released = cluster
        .tessera(&["framework", "release", "launcher"])
        .await?;
    ensure(released.status.success(), || format!("{released:?}"))?;
    let ended = launcher.until_state("t", "TASK_FAILED").await?;
    ensure(ended["exit_code"] == 3, || ended.to_string())?;
    launcher.check_ends(1).await?;
    let found = view(&cluster).await?;
    ensure(
        found["state"] == "running" && found["quarantine"].is_null(),
        || found.to_string(),
    )?;
    events_tell(
        &cluster,
        &[
            "framework.failed",
            "framework.quarantined",
            "framework.released",
        ],
    )
    .await?;
    cluster.finish().await
}

/// The cluster's events so far have these kinds in this order.
async fn events_tell(cluster: &Cluster, kinds: &[&str]) -> Outcome {
    let mut stream = cluster.rest.stream("/v1/events", Some("0-0")).await?;
    let mut text = String::new();
    let found = tokio::time::timeout(PATIENCE, async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            text.push_str(&String::from_utf8_lossy(&chunk));
            let mut rest = text.as_str();
            let all = kinds.iter().all(|kind| match rest.find(kind) {
                Some(at) => {
                    rest = &rest[at..];
                    true
                }
                None => false,
            });
            if all {
                return true;
            }
        }
        false
    })
    .await;
    ensure(matches!(found, Ok(true)), || {
        format!("not all of {kinds:?} in {text}")
    })
}
