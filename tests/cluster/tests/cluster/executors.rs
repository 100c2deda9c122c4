//! A custom executor with a native and a Wasm child goes on when its worker and its agent are killed.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// The one pid that a file holds.
async fn pid_in(path: &std::path::Path) -> Outcome<i32> {
    until("a pid is written down", PATIENCE, async || {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|e| format!("{text:?}: {e}"))
    })
    .await
}

/// Run a task that counts, and give what it counted.
async fn count(launcher: &Launcher<'_>, id: &str, component: &str) -> Outcome<Value> {
    let task = json!([{"id": id, "run": component, "executor": "main", "data": "count"}]);
    launcher.job("single", task).await?;
    let ended = launcher.until_state(id, "TASK_FINISHED").await?;
    let data = ended["data"].as_str().unwrap_or_default();
    Ok(serde_json::from_str(data)?)
}

#[tokio::test]
async fn an_executor_outlives_its_worker_and_its_agent() -> Outcome {
    let cluster = Cluster::start("exec", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let executor = cluster.push("executor-basic").await?;
    let wasm = cluster.push("task-exit").await?;
    cluster.framework("launcher", "launcher", &[]).await?;
    let launcher = Launcher {
        rest: &cluster.rest,
        name: "launcher",
    };
    let (go, pid) = (cluster.dir().join("go"), cluster.scene.open_file("pid")?);
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let native = format!("native echo $$ >> {}; echo a line; {wait}; exit 0", pid.display());
    let task = |id: &str, data: &str| json!([{"id": id, "run": executor, "executor": "main", "data": data, "cpus": 0.2}]);
    launcher.job("single", task("native", &native)).await?;
    launcher.until_state("native", "TASK_RUNNING").await?;
    let child = pid_in(&pid).await?;
    launcher
        .job(
            "single",
            task("wasm", &format!("wasm {wasm} 0 sleep 600000")),
        )
        .await?;
    launcher.until_state("wasm", "TASK_RUNNING").await?;
    launcher
        .job("single", task("short", &format!("wasm {wasm} 0")))
        .await?;
    launcher.until_state("short", "TASK_FINISHED").await?;
    children_are_shown(&cluster).await?;
    let counted = count(&launcher, "count-1", &executor).await?;
    ensure(counted["seen"] == 4 && counted["instance"] == 4, || {
        counted.to_string()
    })?;
    // Bytes to it and back.
    launcher.post("send/main", &json!("hello")).await?;
    until("the executor's echo", PATIENCE, async || {
        let page = launcher.page().await.map_err(|e| e.to_string())?;
        let messages = page["messages"].to_string();
        if messages.contains("echo: ") && messages.contains("hello") {
            Ok(())
        } else {
            Err(messages)
        }
    })
    .await?;

    // The worker: memory is gone, state is not; the Wasm child ends with it, the native one does not.
    for worker in cluster.workers() {
        procfs::kill_9(worker)?;
    }
    launcher.until_state("wasm", "TASK_FAILED").await?;
    let counted = count(&launcher, "count-2", &executor).await?;
    ensure(counted["seen"] == 5 && counted["instance"] == 1, || {
        format!("state is lost, or memory is not: {counted}")
    })?;
    ensure(procfs::is_alive(child), || {
        "its native child ended".to_owned()
    })?;

    // The agent: nothing happens to anybody.
    let agent = cluster.pids()?.agent;
    procfs::kill_9(agent)?;
    let counted = count(&launcher, "count-3", &executor).await?;
    ensure(counted["seen"] == 6, || counted.to_string())?;
    ensure(procfs::is_alive(child), || {
        "its native child ended".to_owned()
    })?;

    std::fs::write(&go, "")?;
    launcher.until_state("native", "TASK_FINISHED").await?;
    ensure(std::fs::read_to_string(&pid)?.lines().count() == 1, || {
        "the child ran twice".to_owned()
    })?;
    launcher.check_ends(6).await?;
    until(
        "the executor's share is free again",
        PATIENCE,
        async || match cluster.rest.document("/v1/agents/a1").await {
            Ok(agent) if agent["used"]["cpus_milli"] == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    what_is_left_is_shown(&cluster).await?;
    cluster.finish().await
}

/// Children of `main`, as `name state live`.
async fn children(cluster: &Cluster, flags: &[&str]) -> Outcome<Vec<String>> {
    let mut args = vec!["framework", "executors", "launcher", "-o", "json"];
    args.extend(flags);
    let output = cluster.tessera(&args).await?;
    let list: Value = serde_json::from_slice(&output.stdout)?;
    let mut found = Vec::new();
    for item in list["items"].as_array().into_iter().flatten() {
        ensure(item["executor"] == "main" && item["agent"] == "a1", || {
            format!("another executor: {item}")
        })?;
        for child in item["children"].as_array().into_iter().flatten() {
            let [name, state, live] = ["child", "state", "live"].map(|name| &child[name]);
            found.push(format!("{name} {state} {live}").replace('"', ""));
        }
    }
    found.sort();
    Ok(found)
}

async fn child_logs(cluster: &Cluster, args: &[&str]) -> Outcome<(bool, String)> {
    let output = cluster
        .tessera(&[&["framework", "child-logs", "launcher"], args].concat())
        .await?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.success(), text))
}

/// While the executor lives, with a native and a Wasm child that run, and one that has ended.
async fn children_are_shown(cluster: &Cluster) -> Outcome {
    until("the children in a list", PATIENCE, async || {
        let found = children(cluster, &[]).await.map_err(|e| e.to_string())?;
        let running = ["native TASK_RUNNING true", "wasm TASK_RUNNING true"];
        if running.iter().all(|child| found.contains(&(*child).to_owned())) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await?;
    let output = cluster
        .tessera(&["framework", "executors", "launcher"])
        .await?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    for row in [&["main", "a1", "2", "-", "lives"][..], &["main", "a1", "-", "native", "TASK_RUNNING"]] {
        ensure(words.iter().any(|words| words == row), || {
            format!("{row:?} is not in the table:\n{table}")
        })?;
    }
    for (args, works, expected) in [
        (&["main", "native"] as &[&str], true, "a line\n"),
        (&["main", "wasm"], true, "args: 0 sleep 600000\n"),
        (&["main", "nobody"], false, "no sandbox here"),
        (&["other", "native"], false, "--agent"),
        (&["main", "native", "--file", "none"], false, "none"),
    ] {
        let (worked, text) = child_logs(cluster, args).await?;
        ensure(worked == works && text.contains(expected), || {
            format!("{args:?}: {worked}: {text}")
        })?;
    }
    Ok(())
}

/// When the executor has ended, its agent has what its children wrote, and nobody knows their states.
async fn what_is_left_is_shown(cluster: &Cluster) -> Outcome {
    until("the sandboxes in a list", PATIENCE, async || {
        let living = children(cluster, &[]).await.map_err(|e| e.to_string())?;
        let left = children(cluster, &["--agent", "a1"]).await.map_err(|e| e.to_string())?;
        if living.is_empty() && left.contains(&"native null false".to_owned()) {
            Ok(())
        } else {
            Err(format!("{living:?}, {left:?}"))
        }
    })
    .await?;
    let (found, text) = child_logs(cluster, &["main", "native"]).await?;
    ensure(!found, || format!("nobody said on which agent: {text}"))?;
    let (found, text) = child_logs(cluster, &["--agent", "a1", "main", "native"]).await?;
    ensure(found && text == "a line\n", || text.clone())
}

#[tokio::test]
async fn an_executor_that_keeps_failing_ends_with_its_tasks() -> Outcome {
    let cluster =
        Cluster::start("execfail", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let executor = cluster.push("executor-basic").await?;
    cluster.framework("launcher", "launcher", &[]).await?;
    let launcher = Launcher {
        rest: &cluster.rest,
        name: "launcher",
    };
    let job = |id: &str, name: &str, data: &str| json!([{"id": id, "run": executor, "executor": name, "data": data}]);
    // Two executors of the same component beside each other: one fails, the other does not notice.
    launcher.job("single", job("good", "good", "run")).await?;
    launcher.until_state("good", "TASK_RUNNING").await?;
    for (id, name, data) in [("t", "trapping", "trap"), ("l", "looping", "loop")] {
        launcher.job("single", job(id, name, data)).await?;
    }
    for id in ["t", "l"] {
        let ended = launcher.until_state(id, "TASK_FAILED").await?;
        ensure(ended["reason"] == "EXECUTOR_TERMINATED", || {
            ended.to_string()
        })?;
    }
    let page = launcher.page().await?;
    ensure(page["messages"].to_string().contains("failed"), || {
        format!("the scheduler was not told: {page}")
    })?;
    let good = &page["tasks"]["good"];
    if good["state"] != "TASK_RUNNING" {
        return Err(failure(format!("the other executor suffered: {good}")));
    }
    launcher.post("kill/good", &Value::Null).await?;
    launcher.until_state("good", "TASK_KILLED").await?;
    launcher.check_ends(3).await?;
    cluster.finish().await
}
