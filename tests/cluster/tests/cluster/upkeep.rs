//! Agents that are taken out of use, emptied, given up, and that come back; requests that come again.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use std::path::Path;
use tessera_cluster::cluster::{PATIENCE, Parts, Process, framework, push, tessera};
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// A master with two agents, `a` and `b`, each in a directory of its name.
struct Pair {
    parts: Parts,
    rest: Rest,
    second: Process,
}

impl Pair {
    async fn start(name: &str) -> Outcome<Self> {
        let mut parts = Parts::new(name).await?;
        parts.agent_flags = ["--cpus-milli", "1000", "--mem-mib", "1024"].map(Into::into).to_vec();
        let rest = parts.start_master("m").await?;
        parts.start_agent(&rest, "a", "m").await?;
        let args = parts.agent_args("b", "m");
        let second = Process::start(&parts.dir().join("b.log"), &args)?;
        let pair = Self { parts, rest, second };
        pair.agents("both are connected", |agents| {
            agents.iter().filter(|agent| agent["state"] == "connected").count() == 2
        })
        .await?;
        Ok(pair)
    }

    async fn agents(&self, what: &str, good: impl Fn(&[Value]) -> bool) -> Outcome<Vec<Value>> {
        until(what, PATIENCE, async || {
            let list = self.rest.document("/v1/agents").await.map_err(|e| e.to_string())?;
            let agents = list["items"].as_array().cloned().unwrap_or_default();
            if good(&agents) { Ok(agents) } else { Err(list.to_string()) }
        })
        .await
    }

    async fn agent(&self, id: &str, what: &str, good: impl Fn(&Value) -> bool) -> Outcome {
        let is = |agents: &[Value]| agents.iter().any(|agent| agent["id"] == id && good(agent));
        self.agents(&format!("{id} is {what}"), is).await.map(|_| ())
    }

    /// `tessera agent …`.
    async fn operate(&self, args: &[&str]) -> Outcome {
        let address = self.rest.base().to_owned();
        let env = [
            ("TESSERA_ADDRESS", address),
            ("TESSERA_TOKEN_FILE", self.parts.token_file("m").display().to_string()),
        ];
        let output = tessera(&[&["agent"], args].concat(), &env).await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.success(), || format!("tessera agent {args:?}: {error}"))
    }

    /// Launch a command under `run`, or another framework of the same component.
    async fn launch(&self, name: &str, shell: &str) -> Outcome<String> {
        let path = format!("/frameworks/{name}/tasks");
        let answer = self.rest.post(&path, &json!({"shell": shell})).await?.ok()?.json();
        let id = answer["task"].as_str().ok_or_else(|| failure(answer.to_string()))?;
        Ok(format!("/v1/tasks/{name}/{id}"))
    }

    async fn task(&self, path: &str, state: &str) -> Outcome<Value> {
        until(&format!("{path} is {state}"), PATIENCE, async || {
            let task = self.rest.document(path).await.map_err(|error| error.to_string())?;
            if task["state"] == state { Ok(task) } else { Err(task.to_string()) }
        })
        .await
    }

    fn finish(mut self) -> Outcome {
        self.second.stop()?;
        self.parts.finish()
    }
}

/// A command that says its pid and lives until it is killed.
fn endless(file: &Path) -> String {
    format!("echo $$ > {}; exec sleep 1000", file.display())
}

async fn pid(file: &Path) -> Outcome<i32> {
    until("the task says its pid", PATIENCE, async || {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|_| format!("{text:?}"))
    })
    .await
}

async fn dead(pid: i32) -> Outcome {
    until("the process has ended", PATIENCE, async || {
        if procfs::is_alive(pid) { Err(format!("{pid} lives")) } else { Ok(()) }
    })
    .await
}

#[tokio::test]
async fn an_agent_is_emptied_and_another_is_given_up() -> Outcome {
    let mut pair = Pair::start("upkeep").await?;
    framework(&pair.rest, "run", "run", &[]).await?;
    // The scheduler and one task on a1, because a2 takes nothing new.
    pair.operate(&["drain", "a2", "--deadline", "0s"]).await?;
    pair.agent("a2", "drained", |agent| agent["mode"] == "drained").await?;
    let file = pair.parts.scene.open_file("pid")?;
    let task = pair.launch("run", &endless(&file)).await?;
    let running = pair.task(&task, "TASK_RUNNING").await?;
    ensure(running["agent"] == "a1", || format!("on a drained agent: {running}"))?;
    let first = pid(&file).await?;

    // Its scheduler leaves, its task is killed when its time is over.
    pair.operate(&["activate", "a2"]).await?;
    pair.operate(&["drain", "a1", "--deadline", "2s"]).await?;
    let ended = pair.task(&task, "TASK_KILLED").await?;
    ensure(ended["reason"] == "AGENT_DRAINING", || format!("for another reason: {ended}"))?;
    pair.agent("a1", "drained", |agent| agent["mode"] == "drained").await?;
    let moved = pair.rest.document("/v1/frameworks/run").await?;
    ensure(moved["agent"] == "a2", || format!("the scheduler stayed: {moved}"))?;
    dead(first).await?;

    // A machine that an operator gives up while it is away ends its tasks when it is back, as another agent.
    pair.operate(&["activate", "a1"]).await?;
    pair.operate(&["deactivate", "a2"]).await?;
    std::fs::write(&file, "")?;
    let task = pair.launch("run", &endless(&file)).await?;
    let running = pair.task(&task, "TASK_RUNNING").await?;
    ensure(running["agent"] == "a1", || format!("on a deactivated agent: {running}"))?;
    let second = pid(&file).await?;
    if let Some(agent) = pair.parts.agent.as_mut() {
        agent.kill_9()?;
    }
    pair.operate(&["gone", "a1"]).await?;
    let ended = pair.task(&task, "TASK_GONE_BY_OPERATOR").await?;
    ensure(ended["reason"] == "AGENT_REMOVED", || format!("for another reason: {ended}"))?;
    ensure(procfs::is_alive(second), || "nobody could have ended it yet".into())?;
    let rest = pair.rest.clone();
    pair.parts.start_agent(&rest, "a", "m").await?;
    dead(second).await?;
    pair.agent("a3", "connected", |agent| agent["state"] == "connected").await?;
    let agents = pair.agents("a1 is no more", |agents| agents.iter().all(|a| a["id"] != "a1"));
    agents.await?;
    pair.finish()
}

#[tokio::test]
async fn a_task_that_was_given_up_is_stopped_when_its_agent_returns() -> Outcome {
    let mut pair = Pair::start("returns").await?;
    let component = push(&pair.rest, "run").await?;
    for (name, keep) in [("last", "last"), ("first", "first")] {
        let policy = json!({"replace_after_ms": 1_000, "keep": keep});
        let document = json!({"name": name, "component": component, "unreachable": policy});
        pair.rest.post("/v1/frameworks", &document).await?.ok()?;
    }
    pair.operate(&["deactivate", "a2"]).await?;
    let mut tasks = Vec::new();
    for name in ["last", "first"] {
        let file = pair.parts.scene.open_file(name)?;
        let task = pair.launch(name, &endless(&file)).await?;
        let running = pair.task(&task, "TASK_RUNNING").await?;
        ensure(running["agent"] == "a1", || format!("on a deactivated agent: {running}"))?;
        tasks.push((task, pid(&file).await?));
    }
    if let Some(agent) = pair.parts.agent.as_mut() {
        agent.kill_9()?;
    }
    pair.operate(&["activate", "a2"]).await?;
    let (given_up, kept) = (&tasks[0], &tasks[1]);
    let gone = pair.task(&given_up.0, "TASK_GONE").await?;
    ensure(gone["reason"] == "UNREACHABLE_TOO_LONG", || format!("for another reason: {gone}"))?;
    until("the other one may be replaced", PATIENCE, async || {
        let task = pair.rest.document(&kept.0).await.map_err(|error| error.to_string())?;
        let told = task["state"] == "TASK_UNREACHABLE" && task["reason"] == "UNREACHABLE_TOO_LONG";
        if told { Ok(()) } else { Err(task.to_string()) }
    })
    .await?;
    ensure(procfs::is_alive(given_up.1), || "nobody could have ended it yet".into())?;
    let rest = pair.rest.clone();
    pair.parts.start_agent(&rest, "a", "m").await?;
    pair.task(&kept.0, "TASK_RUNNING").await?;
    dead(given_up.1).await?;
    ensure(procfs::is_alive(kept.1), || "it was to be kept".into())?;
    pair.finish()
}

/// A window is told to the scheduler that has tasks there, and taken back; nothing is moved or stopped for it.
#[tokio::test]
async fn maintenance_is_announced_to_schedulers() -> Outcome {
    let pair = Pair::start("window").await?;
    framework(&pair.rest, "launcher", "launcher", &[]).await?;
    let launcher = Launcher { rest: &pair.rest, name: "launcher" };
    launcher.job("single", json!([{"id": "stays", "run": "sleep 600"}])).await?;
    let agent = launcher.until_state("stays", "TASK_RUNNING").await?["agent"].as_u64().unwrap_or(0);
    let id = format!("a{agent}");
    let wanted = async |what: &str, good: &dyn Fn(&Value) -> bool| {
        until(what, PATIENCE, async || {
            let page = launcher.page().await.map_err(|error| error.to_string())?;
            if good(&page["wanted_back"]) { Ok(page["wanted_back"].clone()) } else { Err(page.to_string()) }
        })
        .await
    };
    pair.operate(&["maintenance", &id, "--in", "2h", "--for", "30m"]).await?;
    let told = wanted("the window is told", &|told| told.as_array().is_some_and(|told| told.len() == 1)).await?;
    let shown = pair.rest.document(&format!("/v1/agents/{id}")).await?["maintenance"].clone();
    let length = shown["end_ms"].as_u64().zip(shown["start_ms"].as_u64()).map(|(end, start)| end - start);
    ensure(length == Some(30 * 60 * 1_000), || shown.to_string())?;
    ensure(
        told[0] == json!({"agent": agent, "start_ms": shown["start_ms"], "duration_ms": length}),
        || format!("{told}, not {shown}"),
    )?;
    // An instance that is built anew has forgotten it, and is told again. Its request ends with the old one.
    pair.rest.post("/frameworks/launcher/trap", &json!({})).await?;
    wanted("it is told again", &|told| told.as_array().is_some_and(|told| told.len() == 1)).await?;
    pair.operate(&["maintenance", &id, "--cancel"]).await?;
    wanted("it is called off", &|told| told.as_array().is_some_and(Vec::is_empty)).await?;
    launcher.until_state("stays", "TASK_RUNNING").await?;
    let refused = pair.operate(&["maintenance", &id, "--in", "2h"]).await;
    ensure(refused.is_err_and(|error| error.to_string().contains("--for")), || "a window without an end".into())?;
    pair.finish()
}

#[tokio::test]
async fn a_request_that_comes_again_is_carried_out_once() -> Outcome {
    let mut parts = Parts::new("again").await?;
    let rest = parts.start_master("m").await?;
    let component = push(&rest, "run").await?;
    let document = json!({"name": "run", "component": component});
    rest.post("/v1/frameworks", &document).await?.ok()?;
    let put = async |rest: &Rest, key: &str, value: &str| -> Outcome<Answer> {
        let document = json!({"config": {"k": value}}).to_string();
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        rest.send("PUT", "/v1/frameworks/run/config", &headers, document.into_bytes()).await
    };
    put(&rest, "first", "1").await?.ok()?;
    put(&rest, "second", "2").await?.ok()?;
    // Also by a master that was started since.
    if let Some(master) = parts.master.as_mut() {
        master.kill_9()?;
    }
    let rest = parts.start_master("m").await?;
    let again = put(&rest, "first", "1").await?.ok()?.json();
    ensure(again["config"]["k"] == "2" && again["config_version"] == 3, || {
        format!("it was carried out twice: {again}")
    })?;
    let other = put(&rest, "first", "3").await?;
    ensure(other.status == 422 && other.error_code() == "IDEMPOTENCY_MISMATCH", || {
        format!("{}: {}", other.status, other.text())
    })?;
    // The object of a repetition may be gone.
    for expected in [202, 200] {
        let removed = rest
            .send("DELETE", "/v1/frameworks/run", &[("idempotency-key", "rm")], Vec::new())
            .await?;
        ensure(removed.status == expected, || {
            format!("{} instead of {expected}: {}", removed.status, removed.text())
        })?;
        until("it is removed", PATIENCE, async || {
            let answer = rest.get("/v1/frameworks/run").await.map_err(|error| error.to_string())?;
            if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
        })
        .await?;
    }
    parts.finish()
}
