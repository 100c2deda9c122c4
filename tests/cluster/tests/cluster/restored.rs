//! A cluster that is restored from a snapshot of some time ago: what its agents run goes on, known or not.

use crate::chaos_load::understand_state_writes;
use crate::members::{operator, refused};
use crate::told::told;
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
        self.start_until(framework, name, "go").await
    }

    /// The same of one that ends when this file is there.
    async fn start_until(&self, framework: &str, name: &str, go: &str) -> Outcome<String> {
        let pids = self.group.scene.open_file(&format!("pids-{name}"))?;
        let go = self.path(go);
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

/// Put the first master in the place of all of them, with the state of a file and the token of before.
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

async fn save(group: &Group, name: &str) -> Outcome<String> {
    let file = group.scene.dir().join(name).display().to_string();
    let saved = operator(group, &["snapshot", "save", &file]).await?;
    ensure(saved.status.success(), || format!("{saved:?}"))?;
    Ok(file)
}

/// Two of three masters are lost for good: nothing is written any more, and tasks go on. Then the cluster is made anew
/// from a file, the others join it with empty directories, and agents find it where the old one was.
#[tokio::test]
async fn a_cluster_that_lost_two_of_three_masters_is_restored() -> Outcome {
    let mut group = Group::beside("two-lost", 3).await?;
    group.start_agent("a1", &[]).await?;
    let made = framework(&group.rest(0)?, "run", "run", &[]).await?;
    let known = Commands { group: &group }.start("run", "known").await?;
    let brief = Commands { group: &group }.start_until("run", "brief", "go-brief").await?;
    understand_state_writes(&group.rest(0)?).await?;
    let file = save(&group, "saved.tsr").await?;
    // A build of the version before would not know what is in it.
    let older = [("TESSERA_UNDERSTANDS_AT_MOST", "1".to_owned())];
    let never = group.scene.dir().join("never").display().to_string();
    let output = tessera(&["operator", "snapshot", "restore", &file, "--data-dir", &never], &older).await?;
    refused(&output, &["of cluster version", "use the newer one"])?;
    let stranger = Commands { group: &group }.start("run", "stranger").await?;
    // One whose end the snapshot does not know, nor anybody else.
    std::fs::write(group.scene.dir().join("go-brief"), "")?;
    until_state(&group.rest(0)?, "run", &brief, "TASK_FAILED").await?;
    let commands = Commands { group: &group };
    let pids = [commands.pid("known")?, commands.pid("stranger")?];
    let (epoch, agent) = (made["epoch"].clone(), group.agents[0].pid());

    for lost in [1, 2] {
        group.members[lost].kill_9()?;
    }
    until("whoever asks is told that nobody leads", PATIENCE, async || {
        let body = json!({"set": {"timers": 5}}).to_string().into_bytes();
        let rest = group.rest(0).map_err(|error| error.to_string())?;
        let answer = rest.send("PATCH", "/v1/limits?role=lost", &[], body).await.map_err(|error| error.to_string())?;
        match (answer.status, answer.error_code().as_str()) {
            (503, "NO_LEADER") => Ok(()),
            // What came while it still led may have been written by those that are lost.
            _ => Err(answer.text()),
        }
    })
    .await?;
    // What the one that is left has can be saved, and is newer.
    let newer = group.scene.dir().join("left.tsr").display().to_string();
    let output = operator(&group, &["snapshot", "save", "--stale", &newer]).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    let output = operator(&group, &["raft", "list"]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure(output.status.success() && said.contains("what one master knew last"), || format!("{output:?}"))?;
    let inspect = async |file: &str| -> Outcome<u64> {
        let output = operator(&group, &["snapshot", "inspect", file, "-o", "json"]).await?;
        let document: Value = serde_json::from_slice(&output.stdout)?;
        document["index"].as_u64().ok_or_else(|| failure(format!("{output:?}")))
    };
    let (saved, left) = (inspect(&file).await?, inspect(&newer).await?);
    ensure(left > saved, || format!("saved at {saved}, and what is left is of {left}"))?;
    ensure(pids.into_iter().all(procfs::is_alive), || "a task ended with the masters".to_owned())?;

    restore(&mut group, &file).await?;
    group.leader().await?;
    // One of the old cluster that is not lost after all is not heard, and does not come in by mistake.
    group.run(1)?;
    until("it is refused", PATIENCE, async || {
        let logs = group.members[0].log() + &group.members[1].log();
        told("cluster: this master is of cluster …, the message is of another one", &logs)
            .map_err(|error| error.to_string())
    })
    .await?;
    group.members[1].kill_9()?;
    for index in [1, 2] {
        std::fs::remove_dir_all(&group.members[index].dir)?;
        group.run(index)?;
    }
    group.voters(3).await?;
    group.connected(1).await?;
    let rest = group.rest(0)?;
    let id = made["id"].as_str().unwrap_or_default();
    until_strangers(&rest, &BTreeSet::from([format!("{id}/{stranger}")])).await?;
    until_state(&rest, "run", &known, "TASK_RUNNING").await?;
    until_state(&rest, "run", &brief, "TASK_LOST").await?;
    let ended = group.agents[0].ended()?.is_some() || group.agents[0].pid() != agent;
    ensure(!ended && pids.into_iter().all(procfs::is_alive), || "the agent or a task ended".to_owned())?;
    // It is a cluster like any other: schedulers work, and each master may go.
    until("the scheduler runs anew", PATIENCE, async || {
        let now = rest.document("/v1/frameworks/run").await.map_err(|error| error.to_string())?;
        let runs = now["state"] == "running" && now["epoch"].as_u64() > epoch.as_u64();
        if runs { Ok(()) } else { Err(now.to_string()) }
    })
    .await?;
    let leader = group.leader().await?;
    group.members[leader].kill_9()?;
    let rest = group.rest((leader + 1) % 3)?;
    until_state(&rest, "run", &known, "TASK_RUNNING").await?;
    let commands = Commands { group: &group };
    ensure(commands.pid("known")? == pids[0], || "it was started again".to_owned())?;
    std::fs::write(group.scene.dir().join("go"), "")?;
    until_strangers(&rest, &BTreeSet::new()).await?;
    until_state(&rest, "run", &known, "TASK_FAILED").await?;
    group.finish()
}

#[tokio::test]
async fn what_was_launched_after_the_snapshot_goes_on_and_is_shown() -> Outcome {
    let mut group = Group::beside("restored", 1).await?;
    group.start_agent("a1", &[]).await?;
    let rest = group.rest(0)?;
    let before = framework(&rest, "run", "run", &[]).await?;
    let known = Commands { group: &group }.start("run", "known").await?;
    let file = save(&group, "saved.tsr").await?;

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
