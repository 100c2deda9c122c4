//! Another engine takes over while everything goes on: schedulers move to a worker of the new one with
//! their state, Wasm tasks end where they began, and native tasks notice nothing.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::{PATIENCE, Parts, framework, push};
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// Makes this build look like one with another engine.
const OTHER: (&str, &str) = ("TESSERA_ENGINE_KEY_SUFFIX", "next");

async fn engine(rest: &Rest) -> Outcome<String> {
    let agent = rest.document("/v1/agents/a1").await?;
    agent["engine"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| failure(format!("no engine in {agent}")))
}

async fn turns(rest: &Rest) -> Outcome<u64> {
    let found = rest.document("/v1/frameworks/echo").await?;
    Ok(found["turns"].as_u64().unwrap_or(0))
}

#[tokio::test]
async fn another_engine_takes_over_without_stopping_tasks() -> Outcome {
    let mut parts = Parts::new("engine").await?;
    let rest = parts.start_master("m").await?;
    parts.start_agent(&rest, "a", "m").await?;
    framework(&rest, "echo", "echo", &[]).await?;
    framework(&rest, "launcher", "launcher", &[]).await?;
    let wasm = push(&rest, "task-exit").await?;
    let launcher = Launcher {
        rest: &rest,
        name: "launcher",
    };
    let (go, pid) = (parts.dir().join("go"), parts.scene.open_file("pid")?);
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let native = format!("echo $$ >> {}; {wait}; exit 5", pid.display());
    let both = json!([
        {"id": "native", "run": native},
        {"id": "wasm", "run": wasm, "wasm": true, "args": ["0", "sleep", "600000"]},
    ]);
    launcher.job("single", both).await?;
    for task in ["native", "wasm"] {
        launcher.until_state(task, "TASK_RUNNING").await?;
    }
    let (before, first) = (engine(&rest).await?, turns(&rest).await?);
    let workers = procfs::find("tessera-worker", &parts.dir().join("a"));

    if let Some(agent) = parts.agent.as_mut() {
        agent.kill_9()?;
    }
    parts.start_agent_in(&rest, "a", "m", &[OTHER]).await?;
    until(
        "the agent says its other engine",
        PATIENCE,
        async || match engine(&rest).await {
            Ok(now) if now != before => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    until(
        "schedulers have left the old worker",
        PATIENCE,
        async || {
            let now = procfs::find("tessera-worker", &parts.dir().join("a"));
            let left = workers.iter().filter(|pid| now.contains(pid)).count();
            // The one with the Wasm task stays.
            if left == 1 && now.len() > 1 {
                Ok(())
            } else {
                Err(format!("{workers:?} before, {now:?} now"))
            }
        },
    )
    .await?;
    until(
        "a scheduler goes on where it was",
        PATIENCE,
        async || match turns(&rest).await {
            Ok(now) if now > first + 5 => Ok(()),
            other => Err(format!("{other:?} after {first}")),
        },
    )
    .await?;
    // A new Wasm task beside the old one.
    let task = json!([{"id": "new", "run": wasm, "wasm": true, "args": ["0"]}]);
    launcher.job("single", task).await?;
    launcher.until_state("new", "TASK_FINISHED").await?;
    let page = launcher.page().await?;
    for task in ["native", "wasm"] {
        let record = &page["tasks"][task];
        ensure(
            record["state"] == "TASK_RUNNING" && record["received"]["TASK_RUNNING"] == 1,
            || format!("{task}: {record}"),
        )?;
    }
    std::fs::write(&go, "")?;
    let ended = launcher.until_state("native", "TASK_FAILED").await?;
    ensure(ended["exit_code"] == 5, || ended.to_string())?;
    let runs = std::fs::read_to_string(&pid)?;
    ensure(runs.lines().count() == 1, || format!("it ran as {runs:?}"))?;
    launcher.post("kill/wasm", &Value::Null).await?;
    launcher.until_state("wasm", "TASK_KILLED").await?;
    launcher.check_ends(3).await?;
    until(
        "the old worker ends with its last task",
        PATIENCE,
        async || {
            let now = procfs::find("tessera-worker", &parts.dir().join("a"));
            if workers.iter().any(|pid| now.contains(pid)) {
                Err(format!("{workers:?} before, {now:?} now"))
            } else {
                Ok(())
            }
        },
    )
    .await?;
    parts.finish()
}
