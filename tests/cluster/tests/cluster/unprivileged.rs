//! The demo and its cluster without root: everything runs under one ordinary user, and says what it
//! lacks.

use nix::unistd::Uid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use tessera_cluster::cluster::{Cluster, PATIENCE, Scene};
use tessera_cluster::guests::target_for_everybody;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs, skipped};

/// A user that nobody is.
const USER: u32 = 4_242;
/// Words of the text that is counted, and how often each is in it.
const WORDS: [(&str, usize); 3] = [("alpha", 3_000), ("beta", 2_000), ("gamma", 1_000)];

fn text() -> String {
    let mut text = String::new();
    for round in 0..3_000 {
        for (word, count) in WORDS {
            if round < count {
                text.push_str(word);
                text.push(if round % 7 == 0 { '\n' } else { ' ' });
            }
        }
    }
    text
}

fn uid_of(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// All processes of the cluster, by their program.
fn processes(cluster: &Cluster) -> BTreeMap<i32, &'static str> {
    let all = ["tessera", "tessera-shim", "tessera-worker"];
    let found = all.into_iter().flat_map(|program| {
        let pids = procfs::find(program, cluster.dir());
        pids.into_iter().map(move |pid| (pid, program))
    });
    found.collect()
}

async fn progress(cluster: &Cluster) -> Outcome<Value> {
    Ok(cluster.ask("/frameworks/wordcount/").await?.json())
}

#[tokio::test]
async fn the_demo_runs_under_an_ordinary_user() -> Outcome {
    if !Uid::effective().is_root() {
        // Then all of these tests do, as far as they can.
        return skipped("the demo under another user than that of the tests");
    }
    let cluster = Cluster::start_as("user", &["--cpus-milli", "1500"], Some(USER)).await?;
    let task = cluster.push("wordcount-task").await?;
    let executor = cluster.push("wordcount-executor").await?;
    let config = [
        ("wasm-task", task.as_str()),
        ("executor", executor.as_str()),
        ("chunk-kib", "4"),
        ("pace-ms", "300"),
    ];
    cluster.framework("wordcount", "wordcount", &config).await?;
    let put = cluster
        .rest
        .send(
            "PUT",
            "/frameworks/wordcount/texts/words",
            &[],
            text().into_bytes(),
        )
        .await?;
    put.ok()?;
    let start = cluster
        .rest
        .send("POST", "/frameworks/wordcount/start", &[], Vec::new())
        .await?;
    start.ok()?;
    let mut seen = BTreeMap::new();
    until("programs of all kinds run", PATIENCE, async || {
        for (pid, program) in processes(&cluster) {
            seen.entry(program)
                .or_insert_with(BTreeSet::new)
                .extend(uid_of(pid));
        }
        if seen.values().filter(|users| !users.is_empty()).count() == 3 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await?;
    ensure(seen.values().all(|users| users.iter().eq([&USER])), || {
        format!("{seen:?}")
    })?;
    // Nothing of this needs root either: agent and workers go, and come back.
    procfs::kill_9(cluster.pids()?.agent)?;
    for pid in cluster.workers() {
        procfs::kill_9(pid)?;
    }
    until("all is counted", PATIENCE * 2, async || {
        let seen = progress(&cluster)
            .await
            .map_err(|error| error.to_string())?;
        if seen["state"] == "done" {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    })
    .await?;
    let counts = cluster
        .ask("/frameworks/wordcount/counts?format=text")
        .await?
        .text();
    let expected: String = WORDS
        .map(|(word, count)| format!("{count} {word}\n"))
        .concat();
    ensure(counts == expected, || format!("{counts:?}"))?;
    what_is_missing_is_said(&cluster).await?;
    memory_is_limited_for_each_process(&cluster).await?;
    cluster.finish().await
}

async fn what_is_missing_is_said(cluster: &Cluster) -> Outcome {
    let agent = cluster.rest.document("/v1/agents/a1").await?;
    let missing = agent["missing"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = missing
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    ensure(names == ["limits", "network", "users"], || {
        agent.to_string()
    })?;
    ensure(
        missing
            .iter()
            .all(|one| one["why"].as_str().is_some_and(|why| !why.is_empty())),
        || agent.to_string(),
    )?;
    // Once in the log of each of the two agents.
    let log = std::fs::read_to_string(cluster.agent_dir().join("../logs/agent.log"))?;
    let said = log.matches("a protection is missing").count();
    ensure(said == 2 * names.len(), || format!("{said} times: {log}"))?;
    let shown = cluster.tessera(&["agent", "inspect", "a1"]).await?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure(
        names
            .iter()
            .all(|name| shown.contains(&format!("{name}: "))),
        || shown.clone(),
    )
}

async fn memory_is_limited_for_each_process(cluster: &Cluster) -> Outcome {
    let dd = "exec dd if=/dev/zero of=/dev/null bs=100000000 count=1";
    for (mem, fits) in [("50", false), ("200", true)] {
        let run = cluster
            .tessera(&["run", "--mem", mem, "--", "sh", "-c", dd])
            .await?;
        ensure(run.status.success() == fits, || {
            format!("{mem} MiB: {run:?}")
        })?;
    }
    let run = cluster.tessera(&["run", "--", "id", "-u"]).await?;
    ensure(run.stdout == format!("{USER}\n").as_bytes(), || {
        format!("{run:?}")
    })
}

/// The demo kills and waits by itself; its own deadlines are shorter.
const DEMO_WITHIN: std::time::Duration = std::time::Duration::from_secs(240);

#[tokio::test]
async fn the_demo_itself_needs_no_root() -> Outcome {
    let scene = Scene::new("demo").await?;
    let target = target_for_everybody(scene.dir())?;
    // A copy, because the clone may be closed to that user.
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    std::fs::create_dir_all(scene.dir().join("scripts/lib"))?;
    for file in ["demo", "lib/common.sh"] {
        std::fs::copy(scripts.join(file), scene.dir().join("scripts").join(file))?;
    }
    let mut demo = tokio::process::Command::new(scene.dir().join("scripts/demo"));
    if Uid::effective().is_root() {
        std::os::unix::fs::chown(scene.dir(), Some(USER), Some(USER))?;
        demo.uid(USER).gid(USER);
    }
    demo.env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", scene.dir())
        .env("CARGO_TARGET_DIR", &target)
        .env("TESSERA_DEMO_DIR", scene.dir())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(DEMO_WITHIN, demo.output()).await??;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned()
        + &String::from_utf8_lossy(&ended.stderr);
    ensure(ended.status.success(), || said.clone())?;
    let parts = [
        "without root, as user",
        "network: ",
        "users: ",
        "killed with -9 at",
        "demo: the results match",
    ];
    for part in parts {
        ensure(said.contains(part), || format!("no {part:?} in {said}"))?;
    }
    scene.finish();
    Ok(())
}
