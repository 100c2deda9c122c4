//! Speaks to the guest `launcher`: gives it jobs, and waits for what became of them.
//!
//! Must never look anywhere but into the scheduler's own record.

use serde_json::{Value, json};
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};

/// A framework whose scheduler is the guest.
pub struct Launcher<'a> {
    pub rest: &'a Rest,
    pub name: &'a str,
}

impl Launcher<'_> {
    /// Ask until it answers: it may be away for a moment.
    pub async fn page(&self) -> Outcome<Value> {
        let path = format!("/frameworks/{}/", self.name);
        until("an answer of the launcher", PATIENCE, async || {
            let answer = self.rest.get(&path).await.map_err(|e| e.to_string())?;
            answer
                .ok()
                .map(|answer| answer.json())
                .map_err(|e| e.to_string())
        })
        .await
    }

    /// POST to it, once it answers.
    pub async fn post(&self, path: &str, body: &Value) -> Outcome {
        self.page().await?;
        let path = format!("/frameworks/{}/{path}", self.name);
        self.rest.post(&path, body).await?.ok()?;
        Ok(())
    }

    /// Give it tasks, launched `how`.
    pub async fn job(&self, how: &str, tasks: Value) -> Outcome {
        self.post("jobs", &json!({"how": how, "tasks": tasks}))
            .await
    }

    /// Wait until the newest state of a task is this one; its record.
    pub async fn until_state(&self, task: &str, state: &str) -> Outcome<Value> {
        until(&format!("{task} is {state}"), PATIENCE, async || {
            let page = self.page().await.map_err(|e| e.to_string())?;
            let record = &page["tasks"][task];
            if record["state"] == state {
                Ok(record.clone())
            } else {
                Err(page.to_string())
            }
        })
        .await
    }

    /// Every task has ended, and was told its end exactly once.
    pub async fn check_ends(&self, tasks: usize) -> Outcome {
        let page = self.page().await?;
        let found = page["tasks"]
            .as_object()
            .ok_or_else(|| failure(format!("no tasks in {page}")))?;
        ensure(found.len() == tasks, || {
            format!("{} tasks instead of {tasks}: {page}", found.len())
        })?;
        for (task, record) in found {
            let received = record["received"].as_object();
            let ends = received.into_iter().flatten().filter(|(state, _)| {
                ![
                    "TASK_STARTING",
                    "TASK_RUNNING",
                    "TASK_KILLING",
                    "TASK_STAGING",
                ]
                .contains(&state.as_str())
            });
            let times: u64 = ends.filter_map(|(_, times)| times.as_u64()).sum();
            ensure(times == 1, || {
                format!("{task} ended {times} times: {record}")
            })?;
        }
        Ok(())
    }
}
