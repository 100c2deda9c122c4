//! Shares and quota of roles with real processes: who is heavier gets more, and nobody passes a quota limit, however the
//! launches come.

use crate::launcher::Launcher;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tessera_cluster::cluster::{PATIENCE, push, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// How often a launch is sent off while its role's limit is being lowered: it may come too early, or too late.
const TRIES: usize = 12;
/// How long the other masters stand still: so long that both are under way, and less than a leader waits for them.
const STILL: Duration = Duration::from_millis(300);

/// Wait until every master understands roles.
pub async fn understand_roles(rest: &Rest) -> Outcome {
    until("all masters understand roles", PATIENCE, async || {
        let version = rest.document("/v1/version").await.map_err(|error| error.to_string())?;
        if version["cluster_version"].as_u64() >= Some(4) { Ok(()) } else { Err(version.to_string()) }
    })
    .await
}

/// Say something of a role.
pub async fn set_role(rest: &Rest, role: &str, what: Value) -> Outcome {
    let headers = [("content-type", "application/json")];
    rest.send("PUT", &format!("/v1/roles/{role}"), &headers, what.to_string().into_bytes()).await?.ok()?;
    Ok(())
}

/// Create a framework of a role, and wait until its scheduler runs.
pub async fn create(rest: &Rest, name: &str, role: &str, guest: &str) -> Outcome {
    let component = push(rest, guest).await?;
    rest.post("/v1/frameworks", &json!({"name": name, "role": role, "component": component})).await?.ok()?;
    until(&format!("{name} runs"), PATIENCE, async || {
        let found = rest.document(&format!("/v1/frameworks/{name}")).await.map_err(|error| error.to_string())?;
        if found["state"] == "running" { Ok(()) } else { Err(found.to_string()) }
    })
    .await
}

/// How many tasks of a scheduler run.
async fn running(of: &Launcher<'_>) -> Result<usize, String> {
    let page = of.page().await.map_err(|error| error.to_string())?;
    let tasks = page["tasks"].as_object().into_iter().flatten();
    Ok(tasks.filter(|(_, task)| task[0] == "TASK_RUNNING").count())
}

async fn until_running(of: &Launcher<'_>, count: usize) -> Outcome {
    until(&format!("{count} tasks of {} run", of.name), PATIENCE, async || match running(of).await? {
        found if found == count => Ok(()),
        found => Err(format!("{found} run")),
    })
    .await
}

/// Agents that two roles want all of, each with room for one task: what is free of an agent goes to one of them whole, as far
/// as it waits for so much.
const WANTED: usize = 8;
/// What the heavier one is to have of them.
const HEAVY: usize = 6;

#[tokio::test]
async fn two_roles_that_want_everything_get_it_by_their_weights() -> Outcome {
    let mut group = Group::start("weights", 1).await?;
    let rest = group.rest(0)?;
    understand_roles(&rest).await?;
    set_role(&rest, "heavy", json!({"weight": 3})).await?;
    // Schedulers live on one agent, and both want all others, which come when both wait for them.
    group.start_agent("a", &["--cpus-milli", "400", "--mem-mib", "512", "--zone", "a"]).await?;
    let (heavy, light) = (Launcher { rest: &rest, name: "heavy" }, Launcher { rest: &rest, name: "light" });
    for of in [&heavy, &light] {
        create(&rest, of.name, of.name, "waiting").await?;
        of.post("wants", &json!([{"id": of.name, "cpus": 0.5, "mem_mib": 32, "count": 100, "zones": ["b"]}])).await?;
    }
    for at in 0..WANTED {
        group.start_agent(&format!("b{at}"), &["--cpus-milli", "500", "--mem-mib", "512", "--zone", "b"]).await?;
    }
    let fair = async || {
        let (heavy, light) = (running(&heavy).await?, running(&light).await?);
        // One more or less.
        let is_fair = heavy + light == WANTED && heavy.abs_diff(HEAVY) <= 1;
        if is_fair { Ok(heavy) } else { Err(format!("{heavy} and {light}")) }
    };
    until("three to one", PATIENCE, fair).await?;
    // What becomes free goes to whoever has less for its weight, and it ends as it was.
    let page = heavy.page().await?;
    let running = page["tasks"].as_object().into_iter().flatten().filter(|(_, task)| task[0] == "TASK_RUNNING");
    let ends: Vec<&String> = running.map(|(task, _)| task).take(3).collect();
    for task in &ends {
        heavy.post(&format!("kill/{task}"), &Value::Null).await?;
    }
    until("those have ended", PATIENCE, async || {
        let page = heavy.page().await.map_err(|error| error.to_string())?;
        let open: Vec<_> = ends.iter().filter(|task| page["tasks"][task.as_str()][0] != "TASK_KILLED").collect();
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    })
    .await?;
    let has = until("three to one again", PATIENCE, fair).await? as u64;
    // Of 4.4 cores.
    let role = rest.document("/v1/roles/heavy").await?;
    ensure(role["dominant"] == "cpus" && role["share_ppm"] == has * 500 * 1_000_000 / 4_400, || role.to_string())?;
    group.finish()
}

/// Whether a task that was launched while the limit was lowered was dropped for it: it may have come before, or its
/// offer was taken back in time.
async fn dropped_for_quota(group: &Group, launcher: &Launcher<'_>, task: &str) -> Outcome<bool> {
    let leader = group.leader().await?;
    let rest = group.rest(leader)?;
    set_role(&rest, "eng/search", json!({"limit": {"cpus": 1}})).await?;
    until("an offer is there", PATIENCE, async || {
        let held = rest.document("/v1/offers?framework=launcher").await.map_err(|error| error.to_string())?;
        let items = held["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() { Err(held.to_string()) } else { Ok(()) }
    })
    .await?;
    let others: Vec<i32> = (0..3)
        .filter(|at| *at != leader)
        .filter_map(|at| group.members[at].process.as_ref().map(tessera_cluster::cluster::Process::pid))
        .collect();
    for pid in &others {
        procfs::signal(*pid, Signal::SIGSTOP)?;
    }
    let lowered = async {
        set_role(&rest, "eng/search", json!({"limit": {"cpus": 0.1}})).await
    };
    let job = json!({"how": "single", "tasks": [{"id": task, "run": "sleep 1000", "cpus": 0.5}]});
    let launched = async {
        pass(STILL / 3).await;
        rest.post("/frameworks/launcher/jobs", &job).await
    };
    let go_on = async {
        pass(STILL).await;
        others.iter().try_for_each(|pid| procfs::signal(*pid, Signal::SIGCONT))
    };
    let (lowered, launched, gone_on) = tokio::join!(lowered, launched, go_on);
    gone_on?;
    // When the leader gave up in between, this was one try of several.
    if lowered.is_err() || !launched.is_ok_and(|answer| answer.status < 300) {
        return Ok(false);
    }
    until("it is known what became of it", PATIENCE, async || {
        let page = launcher.page().await.map_err(|error| error.to_string())?;
        let record = &page["tasks"][task];
        match record["state"].as_str() {
            Some("TASK_DROPPED") => Ok(record["reason"] == "QUOTA"),
            Some("TASK_RUNNING") => Ok(false),
            None if page["waiting"] != 0 => Ok(false),
            _ => Err(page.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_quota_limit_below_the_top_is_never_passed_and_raising_it_lets_the_rest_run() -> Outcome {
    let mut group = Group::start("quota", 3).await?;
    group.start_agent("a", &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
    let rest = group.rest(0)?;
    understand_roles(&rest).await?;
    create(&rest, "launcher", "eng/search", "launcher").await?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let mut dropped = None;
    for at in 0..TRIES {
        let task = format!("over-{at}");
        if dropped_for_quota(&group, &launcher, &task).await? {
            dropped = Some(task);
            break;
        }
    }
    let task = dropped.ok_or_else(|| failure(format!("no launch of {TRIES} met a lowered limit")))?;
    let record = launcher.page().await?["tasks"][&task].clone();
    let message = record["message"].as_str().unwrap_or_default();
    ensure(message.contains("eng/search") && message.contains("quota limit"), || record.to_string())?;
    let told = explained(&group, &["task", "launcher", &task]).await?;
    ensure(told.contains("QUOTA"), || told.clone())?;
    rest.send("DELETE", "/v1/frameworks/launcher", &[], Vec::new()).await?.ok()?;
    until("it is gone with its tasks", PATIENCE, async || {
        let found = rest.get("/v1/frameworks/launcher").await.map_err(|error| error.to_string())?;
        if found.status == 404 { Ok(()) } else { Err(found.text()) }
    })
    .await?;

    // A role below is held to it as well.
    set_role(&rest, "eng/search", json!({"limit": {"cpus": 0.5}})).await?;
    create(&rest, "waiting", "eng/search/web", "waiting").await?;
    let waiting = Launcher { rest: &rest, name: "waiting" };
    let before = rest.document("/v1/frameworks/waiting").await?;
    waiting.post("wants", &json!([{"id": "w", "cpus": 0.2, "mem_mib": 32, "count": 6}])).await?;
    for (limit, run) in [(0.5, 2), (0.9, 4)] {
        set_role(&rest, "eng/search", json!({"limit": {"cpus": limit}})).await?;
        until_running(&waiting, run).await?;
        let told = explained(&group, &["framework", "waiting", "--request", "w"]).await?;
        ensure(told.contains("QUOTA_LIMIT") && told.contains("eng/search"), || told.clone())?;
        let role = rest.document("/v1/roles/eng/search").await?;
        let used = role["used"]["cpus"].as_f64().unwrap_or(f64::MAX);
        ensure(used <= limit, || role.to_string())?;
    }
    set_role(&rest, "eng/search", json!({"limit": null})).await?;
    until_running(&waiting, 6).await?;
    let after = rest.document("/v1/frameworks/waiting").await?;
    ensure(before["epoch"] == after["epoch"] && before["epoch"].is_u64(), || format!("it was started again: {after}"))?;
    group.finish()
}

/// What `tessera explain` says, as it is.
pub async fn explained(group: &Group, args: &[&str]) -> Outcome<String> {
    let output = tessera(&[&["explain"], args].concat(), &group.env()).await?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(String::from_utf8(output.stdout)?)
}
