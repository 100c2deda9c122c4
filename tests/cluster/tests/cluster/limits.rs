//! Limits that an operator sets for a role reach what runs in it: its Wasm tasks with their start, its
//! executors without being built anew.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::Cluster;
use tessera_cluster::{Outcome, ensure};

async fn limits(cluster: &Cluster, arguments: &[&str]) -> Outcome {
    let arguments = [&["role", "limits", "default"], arguments].concat();
    let said = cluster.tessera(&arguments).await?;
    ensure(said.status.success(), || format!("{said:?}"))
}

/// It ended with this state, and its reason and message have these words.
fn ends(record: &Value, state: &str, words: &[&str]) -> Outcome {
    let text = record.to_string();
    ensure(record["state"] == state && words.iter().all(|word| text.contains(word)), || text.clone())
}

#[tokio::test]
async fn limits_of_a_role_reach_its_wasm_tasks_and_its_executors() -> Outcome {
    let cluster = Cluster::start("limits", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let (task, executor) = (cluster.push("limits-task").await?, cluster.push("executor-basic").await?);
    cluster.framework("launcher", "launcher", &[]).await?;
    let launcher = Launcher { rest: &cluster.rest, name: "launcher" };
    let random = |id: &str, bytes: &str| json!([{"id": id, "run": task, "wasm": true, "args": ["random", bytes]}]);
    let asked = |id: &str, data: &str| json!([{"id": id, "run": executor, "executor": "main", "data": data}]);

    launcher.job("single", random("before", "1001")).await?;
    launcher.until_state("before", "TASK_FINISHED").await?;
    // It lives until its last task has ended.
    launcher.job("single", asked("keep", "run")).await?;
    launcher.until_state("keep", "TASK_RUNNING").await?;
    launcher.job("single", asked("many", "write 11 1")).await?;
    launcher.until_state("many", "TASK_FINISHED").await?;

    limits(&cluster, &["--set", "random-bytes=1000", "--set", "turn-keys=10"]).await?;
    launcher.job("single", random("under", "1000")).await?;
    launcher.until_state("under", "TASK_FINISHED").await?;
    launcher.job("single", random("over", "1001")).await?;
    let over = launcher.until_state("over", "TASK_FAILED").await?;
    ends(&over, "TASK_FAILED", &["GUEST_LIMIT", "limit random-bytes: "])?;
    launcher.job("single", asked("fewer", "write 8 1")).await?;
    launcher.until_state("fewer", "TASK_FINISHED").await?;
    launcher.job("single", asked("more", "write 11 1")).await?;
    let more = launcher.until_state("more", "TASK_FAILED").await?;
    ends(&more, "TASK_FAILED", &["limit turn-keys: at most 10"])?;
    // A Wasm task that an executor starts is one of its role's, too.
    launcher.job("single", asked("child", &format!("wasm {task} random 1001"))).await?;
    let child = launcher.until_state("child", "TASK_FAILED").await?;
    ends(&child, "TASK_FAILED", &["limit random-bytes: "])?;

    limits(&cluster, &["--unset", "random-bytes", "--unset", "turn-keys"]).await?;
    launcher.job("single", random("after", "1001")).await?;
    launcher.until_state("after", "TASK_FINISHED").await?;
    launcher.job("single", asked("again", "write 11 1")).await?;
    launcher.until_state("again", "TASK_FINISHED").await?;
    launcher.job("single", asked("count", "count")).await?;
    let counted = launcher.until_state("count", "TASK_FINISHED").await?;
    let data: Value = serde_json::from_str(counted["data"].as_str().unwrap_or_default())?;
    ensure(data["seen"] == data["instance"], || {
        format!("the executor was built anew: {data}")
    })?;
    cluster.finish().await
}
