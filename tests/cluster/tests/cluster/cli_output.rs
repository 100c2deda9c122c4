//! What the command line prints of a real cluster: formats, names, columns, watches, exit codes.

use serde_json::Value;
use std::time::Duration;
use tessera_cluster::cli::{stdout, told};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::{Outcome, ensure, failure};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The command ends like this, and says this.
async fn ends(cluster: &Cluster, args: &[&str], code: i32, says: &str) -> Outcome {
    let output = cluster.tessera(args).await?;
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    ensure(output.status.code() == Some(code) && String::from_utf8_lossy(&said).contains(says), || {
        format!("{code} and {says:?} are expected of {}", told(args, &output))
    })
}

#[tokio::test]
async fn every_list_has_every_format() -> Outcome {
    let cluster = Cluster::start("cli-formats", &[]).await?;
    stdout(&cluster, &["run", "--name", "seen", "--", "true"]).await?;
    let lists: [(&[&str], &str); 8] = [
        (&["agent", "ls"], "a1"),
        (&["component", "ls"], "sha256:"),
        (&["framework", "ls"], "f1"),
        (&["task", "ls", "--all"], "run/run-1"),
        (&["role", "ls"], "default"),
        (&["operator", "raft", "list"], "1"),
        (&["role", "limits"], "state-bytes"),
        (&["audit"], ""),
    ];
    for (args, name) in lists {
        let with = |more: &[&'static str]| [args, more].concat();
        let table = stdout(&cluster, args).await?;
        let wide = stdout(&cluster, &with(&["-o", "wide"])).await?;
        let bare = stdout(&cluster, &with(&["--no-headers"])).await?;
        let json: Value = serde_json::from_str(&stdout(&cluster, &with(&["-o", "json"])).await?)?;
        let items = json.get("items").or_else(|| json.get("limits")).and_then(Value::as_array);
        let count = items.map(Vec::len).ok_or_else(|| failure(format!("{args:?} is no list: {json}")))?;
        let header = table.lines().next().unwrap_or_default();
        ensure(header == header.to_uppercase() && !header.is_empty(), || format!("{args:?}: {table}"))?;
        if args[0] != "audit" {
            ensure(table.lines().count() == count + 1 && bare.lines().count() == count, || format!("{args:?}: {table}{bare}"))?;
        }
        ensure(wide.lines().next().unwrap_or_default().len() >= header.len(), || format!("{args:?}: {wide}"))?;
        let names = stdout(&cluster, &with(&["-o", "name"])).await?;
        ensure(names.lines().any(|line| line.starts_with(name)), || format!("{args:?}: {names}"))?;
        let yaml = stdout(&cluster, &with(&["-o", "yaml"])).await?;
        ensure(yaml.lines().any(|line| line.starts_with("items:") || line.starts_with("limits:")), || format!("{args:?}: {yaml}"))?;
        ensure(!table.contains('\x1b'), || format!("{args:?} is coloured: {table:?}"))?;
    }
    let colored = stdout(&cluster, &["framework", "ls"]).await?;
    ensure(!colored.contains('\x1b'), || colored)?;
    cluster.finish().await
}

#[tokio::test]
async fn objects_are_found_by_how_their_names_begin() -> Outcome {
    let cluster = Cluster::start("cli-names", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    cluster.framework("words-one", "echo", &[]).await?;
    cluster.framework("words-two", "echo", &[]).await?;
    let host = stdout(&cluster, &["agent", "ls", "-o", "json"]).await?;
    let host: Value = serde_json::from_str(&host)?;
    let host = host["items"][0]["hostname"].as_str().unwrap_or_default().to_owned();
    for (args, says) in [
        (&["framework", "inspect", "words-o"][..], "words-one"),
        (&["framework", "logs", "words-t"], ""),
        (&["task", "inspect", "run/run-1"], "TASK_FINISHED"),
        (&["task", "inspect", "ru", "run-"], "TASK_FINISHED"),
        (&["task", "inspect", "run", "run-1"], "TASK_RUNNING"),
        (&["agent", "inspect", &host], "a1"),
        (&["agent", "inspect", "a1"], "connected"),
    ] {
        ends(&cluster, args, 0, says).await?;
    }
    for (args, code, says) in [
        (&["framework", "inspect", "words"][..], 4, "2 frameworks are meant by \"words\": words-one (f"),
        (&["framework", "inspect", "wrods-one"], 3, "did you mean words-one?"),
        (&["framework", "inspect", "f1000"], 3, ""),
        (&["task", "inspect", "run"], 2, "FRAMEWORK/TASK is expected"),
        (&["task", "inspect", "run", "nope"], 3, "there is no task \"nope\""),
        (&["task", "ls", "--state", "runing"], 2, "did you mean TASK_RUNNING?"),
        (&["agent", "inspect", "nowhere-at-all"], 3, "there is no agent"),
        (&["tsak", "ls"], 2, "task"),
    ] {
        ends(&cluster, args, code, says).await?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_watch_shows_what_changes() -> Outcome {
    let cluster = Cluster::start("cli-watch", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    let mut watch = cluster.tessera_in_background(&["framework", "ls", "-w", "-o", "name"])?;
    let out = watch.stdout.take().ok_or_else(|| failure("no stdout"))?;
    let mut lines = BufReader::new(out).lines();
    let mut next = async || -> Outcome<String> {
        match tokio::time::timeout(PATIENCE, lines.next_line()).await?? {
            Some(line) => Ok(line),
            None => Err(failure("the watch ended")),
        }
    };
    let first = next().await?;
    ensure(first == "f1", || first)?;
    cluster.framework("later", "echo", &[]).await?;
    // The first one may have changed meanwhile, and is shown again.
    let deadline = std::time::Instant::now() + PATIENCE;
    while next().await? != "f2" {
        ensure(std::time::Instant::now() < deadline, || "f2 does not come".to_owned())?;
    }
    watch.start_kill()?;
    tokio::time::timeout(Duration::from_secs(10), watch.wait()).await??;
    cluster.finish().await
}

#[tokio::test]
async fn waits_end_or_time_out_with_a_code_of_their_own() -> Outcome {
    let cluster = Cluster::start("cli-waits", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    let mut sleeper = cluster.tessera_in_background(&["run", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"])?;
    ends(&cluster, &["task", "kill", "run", "no-such-task", "--wait"], 3, "there is no task").await?;
    let running = async || cluster.rest.document("/v1/tasks?framework=run&state=TASK_RUNNING").await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while running().await?["items"].as_array().is_none_or(Vec::is_empty) {
        ensure(std::time::Instant::now() < deadline, || "the task does not run".to_owned())?;
    }
    let task = running().await?["items"][0]["task"].as_str().unwrap_or_default().to_owned();
    // It does not listen to TERM, and has 60 s.
    let args = ["task", "kill", "run", &task, "--grace", "60", "--wait", "--timeout", "1"];
    ends(&cluster, &args, 7, "it goes on by itself; `tessera task inspect").await?;
    let args = ["task", "kill", "run", &task, "--grace", "1", "--wait", "--timeout", "60"];
    ends(&cluster, &args, 0, "has ended: TASK_KILLED").await?;
    tokio::time::timeout(PATIENCE, sleeper.wait()).await??;
    ends(&cluster, &["framework", "rm", "run", "--wait"], 0, "is gone").await?;
    ends(&cluster, &["framework", "ls"], 0, "no frameworks").await?;
    cluster.finish().await
}
