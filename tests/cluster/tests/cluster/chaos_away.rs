//! What goes on while nobody leads, or nobody is heard: tasks and agents alone, and how all agree again.

use crate::launcher::Launcher;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Process, framework};
use tessera_cluster::masters::Group;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, procfs};

/// An agent that is silent for so long is given up: an hour is many times that.
const AGENT_TIMEOUT_MS: &str = "4000";
/// And after this its schedulers would move.
const GRACE_MS: &str = "3000";
/// Three times that, and four times the time after which schedulers move.
const AWAY: Duration = Duration::from_secs(13);
/// "Within seconds of its return": on a machine that other tests share.
const AGREED_WITHIN: Duration = Duration::from_secs(15);

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

async fn has_lines(path: &Path, count: usize) -> Outcome {
    until(&format!("{count} lines in {}", path.display()), PATIENCE, async || match lines(path) {
        found if found == count => Ok(()),
        found => Err(format!("{found} lines")),
    })
    .await
}

fn alive(path: &Path) -> bool {
    let pid = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    pid.is_some_and(procfs::is_alive)
}

#[tokio::test]
async fn nothing_stops_while_all_masters_are_away() -> Outcome {
    let mut group = {
        let flags = ["--agent-timeout-ms", AGENT_TIMEOUT_MS, "--scheduler-grace-ms", GRACE_MS];
        Group::start_with("away", 3, &flags).await?
    };
    group.start_agent("a", &["--cpus-milli", "2000", "--mem-mib", "2048"]).await?;
    framework(&group.rest(0)?, "launcher", "launcher", &[]).await?;
    let rest = group.rest(0)?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let dir = group.scene.dir().to_owned();
    let file = |name: &str| group.scene.open_file(name);
    let (steady, runs, ended) = (file("steady")?, file("runs")?, file("ended")?);
    let go = |name: &str| dir.join(name).display().to_string();
    let wait = |name: &str| format!("while [ ! -e {} ]; do sleep 0.05; done", go(name));
    let failing = format!(
        "echo x >> {runs}; n=$(wc -l < {runs}); while [ ! -e {fail}-$n ]; do sleep 0.05; done; exit 1",
        runs = runs.display(),
        fail = go("fail"),
    );
    let tasks = json!([
        {"id": "steady", "run": format!("echo $$ > {}; exec sleep 1000", steady.display())},
        {"id": "failing", "run": failing, "restarts": 5},
        {"id": "ends", "run": format!("{}; echo x >> {}; exit 42", wait("end"), ended.display())},
    ]);
    launcher.job("single", tasks).await?;
    for task in ["steady", "failing", "ends"] {
        launcher.until_state(task, "TASK_RUNNING").await?;
    }
    let epoch = |document: &Value| document["epoch"].clone();
    let before = epoch(&rest.document("/v1/frameworks/launcher").await?);
    let workers = procfs::find("tessera-worker", group.scene.dir());

    let away = Instant::now();
    for member in &mut group.members {
        member.kill_9()?;
    }
    // What fails is started again by its agent alone, and what ends is remembered.
    for failure in 1..3 {
        std::fs::write(go(&format!("fail-{failure}")), "")?;
        has_lines(&runs, failure + 1).await?;
    }
    std::fs::write(go("end"), "")?;
    has_lines(&ended, 1).await?;
    pass(AWAY.saturating_sub(away.elapsed())).await;
    ensure(alive(&steady), || "the steady task has ended".to_owned())?;

    let back = Instant::now();
    for index in 0..3 {
        group.run(index)?;
    }
    let record = until("its end is known", AGREED_WITHIN, async || {
        let answer = rest.get("/frameworks/launcher/").await.map_err(|error| error.to_string())?;
        let page = answer.json();
        match page["tasks"]["ends"]["state"] == "TASK_FAILED" {
            true => Ok(page["tasks"].clone()),
            false => Err(answer.text()),
        }
    })
    .await?;
    eprintln!("away for {AWAY:?}, agreed {:?} after the masters were started", back.elapsed());
    ensure(record["ends"]["exit_code"] == 42, || record.to_string())?;
    for task in ["steady", "failing"] {
        let state = launcher.until_state(task, "TASK_RUNNING").await?;
        let received = state["received"].as_object().cloned().unwrap_or_default();
        ensure(!received.contains_key("TASK_UNREACHABLE"), || format!("{task}: {state}"))?;
    }
    ensure(lines(&runs) == 3 && lines(&ended) == 1 && alive(&steady), || "a task ran again".to_owned())?;
    let after = epoch(&rest.document("/v1/frameworks/launcher").await?);
    ensure(before == after, || format!("the scheduler was placed again: epoch {before}, then {after}"))?;
    let now = procfs::find("tessera-worker", group.scene.dir());
    ensure(now == workers, || format!("workers {workers:?} before, {now:?} after"))?;
    for task in ["steady", "failing"] {
        launcher.post(&format!("kill/{task}"), &Value::Null).await?;
        launcher.until_state(task, "TASK_KILLED").await?;
    }
    group.finish()
}

#[tokio::test]
async fn agents_that_fall_silent_together_are_not_given_up_at_once() -> Outcome {
    const AGENTS: usize = 5;
    let mut group = {
        let flags = ["--agent-timeout-ms", "2000", "--scheduler-grace-ms", "1500"];
        Group::start_with("silent", 3, &flags).await?
    };
    for number in 0..AGENTS {
        group.start_agent(&format!("a{number}"), &["--cpus-milli", "500", "--mem-mib", "512"]).await?;
    }
    framework(&group.rest(0)?, "launcher", "launcher", &[]).await?;
    let rest = group.rest(0)?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let tasks: Vec<Value> = (0..AGENTS).map(|n| json!({"id": format!("t{n}"), "run": "exec sleep 1000"})).collect();
    launcher.job("gang", tasks.into()).await?;
    for number in 0..AGENTS {
        launcher.until_state(&format!("t{number}"), "TASK_RUNNING").await?;
    }
    let all = |group: &Group, signal: Signal| {
        group.agents.iter().map(Process::pid).try_for_each(|pid| procfs::signal(pid, signal))
    };
    let unreachable = async || {
        let agents = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
        let items = agents["items"].as_array().cloned().unwrap_or_default();
        Ok::<_, String>(items.iter().filter(|agent| agent["state"] == "unreachable").count())
    };
    all(&group, Signal::SIGSTOP)?;
    let silent = Instant::now();
    let leader = group.leader().await?;
    until("the brake is on", PATIENCE, async || match group.members[leader].log() {
        log if log.contains("went silent together") => Ok(()),
        log => Err(log),
    })
    .await?;
    // Long after each alone would have been given up, and before the brake lets the first one go.
    pass(Duration::from_secs(8).saturating_sub(silent.elapsed())).await;
    let given_up = unreachable().await?;
    ensure(given_up == 0, || format!("{given_up} agents were given up"))?;
    all(&group, Signal::SIGCONT)?;
    group.connected(AGENTS).await?;
    for number in 0..AGENTS {
        let record = launcher.until_state(&format!("t{number}"), "TASK_RUNNING").await?;
        ensure(record["received"]["TASK_UNREACHABLE"].is_null(), || record.to_string())?;
    }
    // One alone is found as ever.
    let one = group.agents[AGENTS - 1].pid();
    procfs::signal(one, Signal::SIGSTOP)?;
    let found = until("one silent agent is given up", PATIENCE, async || match unreachable().await? {
        1 => Ok(()),
        count => Err(format!("{count} are given up")),
    })
    .await;
    procfs::signal(one, Signal::SIGCONT)?;
    found?;
    group.connected(AGENTS).await?;
    for number in 0..AGENTS {
        launcher.post(&format!("kill/t{number}"), &Value::Null).await?;
    }
    for number in 0..AGENTS {
        launcher.until_state(&format!("t{number}"), "TASK_KILLED").await?;
    }
    group.finish()
}
