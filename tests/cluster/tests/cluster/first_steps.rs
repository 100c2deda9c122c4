//! What somebody does in the first minutes: run a command, look around.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::Output;
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};

fn told(output: &Output) -> String {
    format!(
        "{}; stdout {:?}; stderr {:?}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn commands_run_and_end_as_they_end() -> Outcome {
    let cluster = Cluster::start("first", &[]).await?;
    let cases: [(&[&str], i32, &str); 7] = [
        (&["run", "--", "echo", "hello", "world"], 0, "hello world\n"),
        (&["run", "--", "sh", "-c", "printf out; exit 7"], 7, "out"),
        (&["run", "--", "sh", "-c", "kill -9 $$"], 137, ""),
        (
            &[
                "run",
                "--env",
                "GREETING=hi",
                "--",
                "sh",
                "-c",
                "echo $GREETING",
            ],
            0,
            "hi\n",
        ),
        (&["run", "--timeout", "1", "--", "sleep", "60"], 124, ""),
        // Larger than any single chunk of the file lane.
        (
            &[
                "run",
                "--",
                "sh",
                "-c",
                "head -c 300000 /dev/zero | tr '\\0' x | wc -c",
            ],
            0,
            "300000\n",
        ),
        (
            &["run", "--mem", "64", "--name", "named", "--", "true"],
            0,
            "",
        ),
    ];
    for (args, code, stdout) in cases {
        let output = cluster.tessera(args).await?;
        ensure(output.status.code() == Some(code), || {
            format!("{args:?}: {}", told(&output))
        })?;
        ensure(output.stdout == stdout.as_bytes(), || {
            format!("{args:?}: {}", told(&output))
        })?;
    }
    let large = cluster
        .tessera(&["run", "--", "sh", "-c", "seq 1 60000"])
        .await?;
    ensure(
        large.stdout.len()
            == (1..=60_000)
                .map(|n: u32| n.to_string().len() + 1)
                .sum::<usize>(),
        || format!("{} bytes of output", large.stdout.len()),
    )?;
    let stderr = cluster
        .tessera(&["run", "--", "sh", "-c", "echo oops >&2"])
        .await?;
    ensure(
        String::from_utf8_lossy(&stderr.stderr).contains("oops"),
        || told(&stderr),
    )?;
    let missing = cluster.tessera(&["run", "--", "/no/such/program"]).await?;
    ensure(
        !missing.status.success() && !missing.stderr.is_empty(),
        || told(&missing),
    )?;
    cluster.finish().await
}

#[tokio::test]
async fn an_interrupted_run_kills_its_command() -> Outcome {
    let cluster = Cluster::start("int", &[]).await?;
    let run = cluster.tessera(&["run", "--", "true"]).await?;
    ensure(run.status.success(), || told(&run))?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let child =
            cluster.tessera_in_background(&["run", "--", "sh", "-c", "echo begun; sleep 600"])?;
        let pid = child.id().unwrap_or(0).cast_signed();
        until("the command runs", PATIENCE, async || {
            let list = cluster
                .rest
                .document("/v1/tasks?framework=run&state=TASK_RUNNING")
                .await;
            match list {
                Ok(list)
                    if list["items"]
                        .as_array()
                        .is_some_and(|items| !items.is_empty()) =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        procfs::signal(pid, signal)?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
        // The command itself ends by the TERM that the cluster sends.
        ensure(output.status.code() == Some(128 + 15), || told(&output))?;
        ensure(output.stdout == b"begun\n", || told(&output))?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn everything_can_be_looked_at() -> Outcome {
    let cluster = Cluster::start("look", &[]).await?;
    let run = cluster.tessera(&["run", "--", "echo", "seen"]).await?;
    ensure(run.status.success(), || told(&run))?;
    for args in [
        &["agent", "ls"][..],
        &["agent", "inspect", "a1"],
        &["component", "ls"],
        &["framework", "ls"],
        &["framework", "inspect", "run"],
        &["task", "ls", "--all"],
        &["task", "ls", "--framework", "run", "--all"],
        &["task", "inspect", "run", "run-1"],
    ] {
        let table = cluster.tessera(args).await?;
        ensure(table.status.success() && !table.stdout.is_empty(), || {
            format!("{args:?}: {}", told(&table))
        })?;
        let json = cluster.tessera(&[args, &["-o", "json"]].concat()).await?;
        let parsed = serde_json::from_slice::<Value>(&json.stdout);
        ensure(json.status.success() && parsed.is_ok(), || {
            format!("{args:?}: {}", told(&json))
        })?;
    }
    let logs = cluster
        .tessera(&["task", "logs", "-f", "run", "run-1"])
        .await?;
    ensure(logs.stdout == b"seen\n", || told(&logs))?;
    for (args, code) in [
        (&["task", "inspect", "run", "nope"][..], 3),
        (&["framework", "inspect", "nope"], 3),
        (&["agent", "inspect", "a99"], 3),
        (&["component", "push", "/no/such/file"], 3),
        (
            &["framework", "create", "x", "--component", "/no/such/file"],
            2,
        ),
        (&["--address", "http://127.0.0.1:1", "agent", "ls"], 5),
        (&["--token-file", "/etc/hostname", "agent", "ls"], 4),
    ] {
        let output = cluster.tessera(args).await?;
        ensure(output.status.code() == Some(code), || {
            format!("{args:?} should end with {code}: {}", told(&output))
        })?;
    }
    let removed = cluster.tessera(&["framework", "rm", "run"]).await?;
    ensure(removed.status.success(), || told(&removed))?;
    cluster.finish().await
}

/// What README.md shows works as it says: five tasks, and what became of them.
#[tokio::test]
async fn the_example_of_the_readme_runs() -> Outcome {
    let cluster = Cluster::start("readme", &[]).await?;
    cluster.framework("batch", "readme", &[]).await?;
    until("all of its tasks have finished", PATIENCE, async || {
        let answer = cluster.ask("/frameworks/batch/").await;
        let told = answer.map_err(|e| e.to_string())?.text();
        if told.contains("\"finished\":5") {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await?;
    let tasks = cluster.rest.document("/v1/tasks?framework=batch").await?;
    let count = tasks["items"].as_array().map(Vec::len);
    ensure(count == Some(5), || tasks.to_string())?;
    cluster.finish().await
}
