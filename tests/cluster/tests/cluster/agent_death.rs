//! `kill -9` of an agent neither stops a task nor loses its exit code.

use serde_json::json;
use tessera_cluster::cluster::{PATIENCE, Parts, framework};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

#[tokio::test]
async fn an_exit_code_outlives_the_agent() -> Outcome {
    let mut parts = Parts::new("death").await?;
    let rest = parts.start_master("m").await?;
    parts.start_agent(&rest, "a", "m").await?;
    framework(&rest, "run", "run", &[]).await?;
    let (go, done) = (parts.dir().join("go"), parts.scene.open_file("done")?);
    // It ends while no agent is there, with a code that nobody else uses.
    let shell = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; echo x >> {}; exit 42",
        go.display(),
        done.display()
    );
    let answer = rest
        .post("/frameworks/run/tasks", &json!({"shell": shell}))
        .await?
        .ok()?;
    let id = answer.json()["task"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let path = format!("/v1/tasks/run/{id}");
    let state = async |wanted: &str| {
        until(&format!("{id} is {wanted}"), PATIENCE, async || {
            let task = rest
                .document(&path)
                .await
                .map_err(|error| error.to_string())?;
            if task["state"] == wanted {
                Ok(task)
            } else {
                Err(task.to_string())
            }
        })
        .await
    };
    state("TASK_RUNNING").await?;

    if let Some(agent) = parts.agent.as_mut() {
        agent.kill_9()?;
    }
    std::fs::write(&go, "")?;
    until("the task ends without an agent", PATIENCE, async || {
        if std::fs::read_to_string(&done).is_ok_and(|text| !text.is_empty()) {
            Ok(())
        } else {
            Err("it still waits".to_owned())
        }
    })
    .await?;
    let task = rest.document(&path).await?;
    ensure(task["state"] == "TASK_RUNNING", || {
        format!("nobody could tell its end: {task}")
    })?;

    parts.start_agent(&rest, "a", "m").await?;
    let ended = state("TASK_FAILED").await?;
    ensure(ended["exit_code"] == 42, || {
        format!("its exit code is lost: {ended}")
    })?;
    ensure(std::fs::read_to_string(&done)? == "x\n", || {
        "it ran twice".to_owned()
    })?;
    parts.finish()
}
