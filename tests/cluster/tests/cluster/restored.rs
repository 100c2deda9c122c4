//! A cluster that is restored from a snapshot of some time ago: what its agents run goes on, known or not.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tessera_cluster::cluster::{PATIENCE, framework, tessera};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// Commands that say that they run, and end with 42 when they may.
struct Commands<'a> {
    group: &'a Group,
}

impl Commands<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.group.scene.dir().join(name)
    }

    /// Start one; what its framework calls it.
    async fn start(&self, framework: &str, name: &str) -> Outcome<String> {
        let pids = self.group.scene.open_file(&format!("pids-{name}"))?;
        let go = self.path("go");
        let shell = format!(
            "echo $$ >> {}; while [ ! -e {} ]; do sleep 0.05; done; exit 42",
            pids.display(),
            go.display()
        );
        let rest = self.group.rest(0)?;
        let path = format!("/frameworks/{framework}/tasks");
        let answer = rest.post(&path, &json!({"shell": shell})).await?.ok()?;
        let task = answer.json()["task"].as_str().unwrap_or_default().to_owned();
        until_state(&rest, framework, &task, "TASK_RUNNING").await?;
        Ok(task)
    }

    /// The one process that it ever was.
    fn pid(&self, name: &str) -> Outcome<i32> {
        let text = std::fs::read_to_string(self.path(&format!("pids-{name}")))?;
        text.trim().parse().map_err(|_| failure(format!("{name} ran not once: {text:?}")))
    }
}

async fn until_state(rest: &Rest, framework: &str, task: &str, state: &str) -> Outcome<Value> {
    let path = format!("/v1/tasks/{framework}/{task}");
    until(&format!("{framework}/{task} is {state}"), PATIENCE, async || {
        let found = rest.document(&path).await.map_err(|error| error.to_string())?;
        match found["state"] == state {
            true => Ok(found),
            false => Err(found.to_string()),
        }
    })
    .await
}

async fn agents(rest: &Rest) -> Outcome<Vec<Value>> {
    Ok(rest.document("/v1/agents").await?["items"].as_array().cloned().unwrap_or_default())
}

fn strangers(agents: &[Value]) -> BTreeSet<String> {
    let all = agents.iter().flat_map(|agent| agent["strangers"].as_array().into_iter().flatten());
    let name = |stranger: &Value| format!("{}/{}", stranger["framework"], stranger["task"]).replace('"', "");
    all.map(name).collect()
}

async fn until_strangers(rest: &Rest, expected: &BTreeSet<String>) -> Outcome {
    until(&format!("the strangers are {expected:?}"), PATIENCE, async || {
        let agents = agents(rest).await.map_err(|error| error.to_string())?;
        match strangers(&agents) == *expected {
            true => Ok(()),
            false => Err(format!("{agents:?}")),
        }
    })
    .await
}

async fn post(rest: &Rest, path: &str) -> Outcome {
    rest.post(path, &json!({})).await?.ok()?;
    Ok(())
}

/// Put the first master in the place of all of them, with the state of a file.
async fn restore(group: &mut Group, file: &str) -> Outcome {
    let token = group.members[0].dir.join("admin.token");
    let new = group.scene.dir().join("new");
    std::fs::create_dir_all(&new)?;
    std::fs::copy(token, new.join("admin.token"))?;
    group.members[0].kill_9()?;
    let member = &mut group.members[0];
    let (peer, rest) = (format!("127.0.0.1:{}", member.peer_port), format!("127.0.0.1:{}", member.port));
    member.dir = new.clone();
    let dir = new.display().to_string();
    let args = ["operator", "snapshot", "restore", file, "--data-dir", &dir];
    let args = [args.as_slice(), &["--peer-address", &peer, "--rest-address", &rest]].concat();
    let output = tessera(&args, &[]).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    group.run(0)
}

#[tokio::test]
async fn what_was_launched_after_the_snapshot_goes_on_and_is_shown() -> Outcome {
    let mut group = Group::start("restored", 1).await?;
    group.start_agent("a1", &[]).await?;
    let rest = group.rest(0)?;
    let before = framework(&rest, "run", "run", &[]).await?;
    let known = Commands { group: &group }.start("run", "known").await?;
    let file = group.scene.dir().join("saved.tsr").display().to_string();
    let saved = tessera(&["operator", "snapshot", "save", &file], &group.env()).await?;
    ensure(saved.status.success(), || format!("{saved:?}"))?;

    // The cluster goes on: tasks on both agents, another framework, another agent.
    let commands = Commands { group: &group };
    let here = commands.start("run", "here").await?;
    group.start_agent("a2", &[]).await?;
    post(&rest, "/v1/agents/a1/deactivate").await?;
    let later = framework(&rest, "later", "run", &[]).await?;
    let commands = Commands { group: &group };
    let there = commands.start("later", "there").await?;
    let names = ["known", "here", "there"];
    let pids: Vec<i32> = names.iter().map(|name| commands.pid(name)).collect::<Outcome<_>>()?;

    restore(&mut group, &file).await?;
    group.connected(2).await?;
    let of = |framework: &Value, task: &str| format!("{}/{task}", framework["id"].as_str().unwrap_or_default());
    let expected = BTreeSet::from([of(&before, &here), of(&later, &there)]);
    until_strangers(&rest, &expected).await?;
    let found = agents(&rest).await?;
    let ids: BTreeSet<&str> = found.iter().filter_map(|agent| agent["id"].as_str()).collect();
    // The second one got its number after the snapshot, and has one now that nobody had.
    ensure(ids.len() == 2 && ids.contains("a1") && !ids.contains("a2"), || format!("{found:?}"))?;
    until_state(&rest, "run", &known, "TASK_RUNNING").await?;

    // Another master joins: agents hear of it, and stay.
    group.join().await?;
    group.connected(2).await?;
    for agent in &mut group.agents {
        ensure(agent.ended()?.is_none(), || "an agent ended".to_owned())?;
    }

    // Nobody gets a number a second time, and both agents are of use.
    let newer = framework(&rest, "newer", "run", &[]).await?;
    ensure(newer["id"] != later["id"], || newer.to_string())?;
    let second = ids.iter().find(|id| **id != "a1").copied().unwrap_or_default();
    for (off, on) in [("a1", second), (second, "a1")] {
        post(&rest, &format!("/v1/agents/{off}/deactivate")).await?;
        let task = Commands { group: &group }.start("newer", &format!("new-{on}")).await?;
        let view = rest.document(&format!("/v1/tasks/newer/{task}")).await?;
        ensure(view["agent"] == on, || view.to_string())?;
        post(&rest, &format!("/v1/agents/{off}/activate")).await?;
    }
    let commands = Commands { group: &group };
    for (name, pid) in names.iter().zip(&pids) {
        let same = commands.pid(name)? == *pid && procfs::is_alive(*pid);
        ensure(same, || format!("{name} was ended, or started again"))?;
    }

    // An operator ends what is on the second agent; what is on the first ends by itself.
    let output = tessera(&["agent", "end-strangers", second], &group.env()).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    until("the stranger is ended", PATIENCE, async || match procfs::is_alive(pids[2]) {
        true => Err("it lives".to_owned()),
        false => Ok(()),
    })
    .await?;
    ensure(procfs::is_alive(pids[0]) && procfs::is_alive(pids[1]), || "others were ended".to_owned())?;
    until_strangers(&rest, &BTreeSet::from([of(&before, &here)])).await?;
    std::fs::write(group.scene.dir().join("go"), "")?;
    until_strangers(&rest, &BTreeSet::new()).await?;
    let ended = until_state(&rest, "run", &known, "TASK_FAILED").await?;
    ensure(ended["exit_code"] == 42, || ended.to_string())?;
    group.finish()
}
