//! Task groups and gangs with real processes: all or none, native and Wasm members.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::{Cluster, PATIENCE, Parts, Process, framework, push};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

#[tokio::test]
async fn a_task_group_starts_and_ends_together() -> Outcome {
    let cluster = Cluster::start("groups", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let wasm = cluster.push("task-exit").await?;
    cluster.framework("launcher", "launcher", &[]).await?;
    let launcher = Launcher {
        rest: &cluster.rest,
        name: "launcher",
    };

    // Native and Wasm, both end well.
    let both = json!([
        {"id": "well-n", "run": "exit 0"},
        {"id": "well-w", "run": wasm, "wasm": true, "args": ["0"]},
    ]);
    launcher.job("group", both).await?;
    for task in ["well-n", "well-w"] {
        launcher.until_state(task, "TASK_FINISHED").await?;
    }

    // One fails: the others are killed.
    let go = cluster.dir().join("go");
    let wait = format!(
        "while [ ! -e {} ]; do sleep 0.05; done; exit 7",
        go.display()
    );
    let one_fails = json!([
        {"id": "ill-n", "run": wait},
        {"id": "ill-m", "run": "sleep 600"},
        {"id": "ill-w", "run": wasm, "wasm": true, "args": ["0", "sleep", "600000"]},
    ]);
    launcher.job("group", one_fails).await?;
    for task in ["ill-n", "ill-m", "ill-w"] {
        launcher.until_state(task, "TASK_RUNNING").await?;
    }
    std::fs::write(&go, "")?;
    let culprit = launcher.until_state("ill-n", "TASK_FAILED").await?;
    ensure(culprit["exit_code"] == 7, || culprit.to_string())?;
    for task in ["ill-m", "ill-w"] {
        let killed = launcher.until_state(task, "TASK_KILLED").await?;
        ensure(killed["reason"] == "TASK_GROUP", || killed.to_string())?;
    }

    // One cannot be: none is, and each says why.
    let too_much = json!({"how": "group", "force": true, "tasks": [
        {"id": "big-a", "run": "sleep 600"},
        {"id": "big-b", "run": "sleep 600", "mem_mib": 1_000_000},
    ]});
    launcher.post("jobs", &too_much).await?;
    let culprit = launcher.until_state("big-b", "TASK_DROPPED").await?;
    ensure(culprit["reason"] == "NOT_ENOUGH_RESOURCES", || {
        culprit.to_string()
    })?;
    let other = launcher.until_state("big-a", "TASK_DROPPED").await?;
    ensure(other["reason"] == "TASK_GROUP", || other.to_string())?;

    // One is killed by somebody: so are the others.
    let killed = json!([
        {"id": "kill-a", "run": "sleep 600"},
        {"id": "kill-b", "run": "sleep 600"},
    ]);
    launcher.job("group", killed).await?;
    launcher.until_state("kill-b", "TASK_RUNNING").await?;
    launcher.post("kill/kill-a", &Value::Null).await?;
    for task in ["kill-a", "kill-b"] {
        launcher.until_state(task, "TASK_KILLED").await?;
    }
    launcher.check_ends(9).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_gang_is_launched_on_all_its_agents_or_on_none() -> Outcome {
    let mut parts = Parts::new("gangs").await?;
    let rest = parts.start_master("m").await?;
    parts.start_agent(&rest, "a", "m").await?;
    let log = parts.dir().join("agent-b.log");
    let mut second = Process::start(&log, &parts.agent_args("b", "m"))?;
    until("both agents are connected", PATIENCE, async || {
        let agents = rest
            .document("/v1/agents")
            .await
            .map_err(|e| e.to_string())?;
        let items = agents["items"].as_array().cloned().unwrap_or_default();
        let connected = items.iter().filter(|agent| agent["state"] == "connected");
        if connected.count() == 2 {
            Ok(())
        } else {
            Err(agents.to_string())
        }
    })
    .await?;
    push(&rest, "task-exit").await?;
    framework(&rest, "launcher", "launcher", &[]).await?;
    let launcher = Launcher {
        rest: &rest,
        name: "launcher",
    };
    until(
        "both agents were offered",
        PATIENCE,
        async || match launcher.page().await {
            Ok(page) if page["agents"] == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;

    launcher
        .job(
            "gang",
            json!([{"id": "a", "run": "exit 0"}, {"id": "b", "run": "exit 0"}]),
        )
        .await?;
    let mut agents = Vec::new();
    for task in ["a", "b"] {
        let ended = launcher.until_state(task, "TASK_FINISHED").await?;
        agents.push(ended["agent"].as_u64());
    }
    ensure(agents.first() != agents.last(), || {
        format!("both ran on {agents:?}")
    })?;

    let too_much = json!({"how": "gang", "force": true, "tasks": [
        {"id": "c", "run": "exit 0"},
        {"id": "d", "run": "exit 0", "mem_mib": 10_000_000},
    ]});
    launcher.post("jobs", &too_much).await?;
    let culprit = launcher.until_state("d", "TASK_DROPPED").await?;
    ensure(culprit["reason"] == "NOT_ENOUGH_RESOURCES", || {
        culprit.to_string()
    })?;
    let other = launcher.until_state("c", "TASK_DROPPED").await?;
    ensure(other["reason"] == "GANG", || other.to_string())?;
    launcher.check_ends(4).await?;

    second.stop()?;
    parts.finish()
}
