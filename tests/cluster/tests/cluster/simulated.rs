//! `tessera sim-agents` as users call it: its agents join a real cluster, what is placed on them is said to run and to
//! end, and nothing is started.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tessera_cluster::cluster::{PATIENCE, Process, framework, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

const COUNT: usize = 3;

fn args(group: &Group, more: &[&str]) -> Vec<String> {
    let (count, peers) = (COUNT.to_string(), group.peers());
    let args = ["sim-agents", "--count", &count, "--name", "rack7", "--attribute", "rack=r7", "--master", &peers];
    args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

/// It ends by itself, and says these words.
async fn refused(group: &Group, more: &[&str], env: &[(&str, String)], words: &[&str]) -> Outcome {
    let args = args(group, more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = tessera(&args, env).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = words.iter().all(|word| said.contains(word));
    ensure(!output.status.success() && told, || format!("{words:?} expected: {output:?}"))
}

fn start(group: &Group, more: &[&str]) -> Outcome<(Process, PathBuf)> {
    let log = group.scene.dir().join("rack7.log");
    let env = group.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok((Process::start_in(&log, &args(group, more), None, &env)?, log))
}

async fn all_registered(log: &Path) -> Outcome {
    until("all are registered", PATIENCE, async || {
        let said = std::fs::read_to_string(log).map_err(|error| error.to_string())?;
        if said.contains(&format!("{COUNT} of {COUNT} agents are registered")) { Ok(()) } else { Err(said) }
    })
    .await
}

#[tokio::test]
async fn simulated_agents_take_tasks_to_their_ends_and_start_nothing() -> Outcome {
    let mut group = Group::start("sim-agents", 1).await?;
    let address = ("TESSERA_ADDRESS", group.addresses());
    let nowhere = ("TESSERA_TOKEN_FILE", group.scene.dir().join("none").display().to_string());
    refused(&group, &[], &[address.clone(), nowhere], &["token file"]).await?;
    let wrong = ("TESSERA_TOKEN", "wrong".to_owned());
    refused(&group, &[], &[address, wrong], &["token"]).await?;

    // Alone in the cluster they need no leave.
    let (mut agents, log) = start(&group, &[])?;
    all_registered(&log).await?;
    let rest = group.rest(0)?;
    let listed = rest.document("/v1/agents").await?;
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    let simulated = |agent: &&Value| {
        agent["state"] == "connected" && agent["attributes"] == json!({"rack": "r7", "simulated": "true"})
    };
    ensure(items.len() == COUNT && items.iter().all(|agent| simulated(&agent)), || listed.to_string())?;
    let status = agents.stop()?;
    ensure(status.success(), || format!("it ended with {status}"))?;

    // Schedulers need a real agent. It is too small to be offered, and they come back as the same machines.
    let host = ["--cpus-milli", "1", "--mem-mib", "600", "--scheduler-mem-mib", "599", "--disk-mib", "0"];
    group.start_agent("host", &host).await?;
    refused(&group, &[], &group.env(), &["real agents", "--beside-real-agents"]).await?;
    std::fs::remove_file(&log)?;
    let (mut agents, log) = start(&group, &["--task-time", "1s", "--beside-real-agents"])?;
    all_registered(&log).await?;
    group.connected(1 + COUNT).await?;
    let listed = rest.document("/v1/agents").await?;
    ensure(listed["items"].as_array().is_some_and(|items| items.len() == 1 + COUNT), || listed.to_string())?;

    framework(&rest, "launcher", "launcher", &[]).await?;
    let launcher = Launcher { rest: &rest, name: "launcher" };
    let trace = group.scene.open_file("trace")?;
    let run = format!("echo run >> {}; exit 3", trace.display());
    launcher.job("single", json!([{"id": "ends", "run": run}])).await?;
    let record = launcher.until_state("ends", "TASK_FINISHED").await?;
    ensure(record["exit_code"] == 0 && record["received"]["TASK_RUNNING"] == 1, || record.to_string())?;
    let task = rest.document("/v1/tasks/launcher/ends").await?;
    let agent = task["agent"].as_str().unwrap_or_default();
    let agent = rest.document(&format!("/v1/agents/{agent}")).await?;
    ensure(agent["hostname"].as_str().is_some_and(|name| name.starts_with("rack7-")), || agent.to_string())?;
    ensure(std::fs::read_to_string(&trace)?.is_empty(), || "the command was started".to_owned())?;
    launcher.check_ends(1).await?;
    agents.stop()?;
    group.finish()
}
