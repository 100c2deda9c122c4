//! What breaks a rule is refused with the rule, and changes nothing.

use serde_json::{Value, json};
use std::process::ExitStatus;
use tessera_cluster::cluster::{Cluster, PATIENCE, Parts, Process, tessera};
use tessera_cluster::guests::guest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

async fn lists(cluster: &Cluster) -> Outcome<[Value; 3]> {
    let items = async |path: &str| {
        cluster
            .rest
            .document(path)
            .await
            .map(|list| list["items"].clone())
    };
    Ok([
        items("/v1/components").await?,
        items("/v1/frameworks").await?,
        items("/v1/tasks").await?,
    ])
}

/// Digest of nothing that exists.
fn zeros() -> String {
    format!("sha256:{}", "0".repeat(64))
}

#[tokio::test]
async fn bad_uploads_and_requests_are_refused_and_change_nothing() -> Outcome {
    let cluster = Cluster::start("bad", &[]).await?;
    let scheduler = cluster.push("echo").await?;
    let task = cluster.push("task-exit").await?;
    let before = lists(&cluster).await?;
    refuse_uploads(&cluster).await?;
    refuse_frameworks(&cluster, &scheduler, &task).await?;
    refuse_unknown_objects(&cluster).await?;
    let after = lists(&cluster).await?;
    ensure(before == after, || {
        format!("something changed: {before:?} {after:?}")
    })?;
    cluster.finish().await
}

async fn refuse_uploads(cluster: &Cluster) -> Outcome {
    let plain = "/v1/components".to_owned();
    let other_digest = format!("{plain}?digest={}", zeros());
    let mut half = std::fs::read(guest("echo")?)?;
    half.truncate(half.len() / 2);
    let uploads: [(&str, &str, Vec<u8>, u16); 6] = [
        ("nothing", &plain, Vec::new(), 400),
        ("no wasm", &plain, b"#!/bin/sh\n".to_vec(), 400),
        ("half a component", &plain, half, 400),
        ("a core module", &plain, b"\0asm\x01\0\0\0".to_vec(), 400),
        (
            "another world",
            &plain,
            std::fs::read(guest("bad-world")?)?,
            400,
        ),
        (
            "another digest",
            &other_digest,
            std::fs::read(guest("trap")?)?,
            400,
        ),
    ];
    for (what, path, body, status) in uploads {
        let answer = cluster.rest.send("POST", path, &[], body).await?;
        let told = || format!("{what}: {} {}", answer.status, answer.text());
        ensure(answer.status == status, told)?;
        let message = &answer.json()["error"]["message"];
        ensure(message.as_str().is_some_and(|text| text.len() > 10), told)?;
    }
    // Refused before anything of it is sent.
    let (status, text) = cluster.rest.announce(&plain, (32 << 20) + 1).await?;
    ensure(status == 413 && text.contains("TOO_LARGE"), || {
        format!("too much: {text}")
    })
}

async fn refuse_frameworks(cluster: &Cluster, scheduler: &str, task: &str) -> Outcome {
    let document = |name: &str, role: &str, component: &str| json!({"name": name, "role": role, "component": component});
    let mut surprise = document("x", "default", scheduler);
    surprise["surprise"] = json!(1);
    let mut large = document("x", "default", scheduler);
    large["config"] = json!({"k": "v".repeat(70_000)});
    let frameworks: [(&str, Value, &[u16]); 8] = [
        (
            "an unknown component",
            document("x", "default", &zeros()),
            &[404],
        ),
        (
            "a task as scheduler",
            document("x", "default", task),
            &[400],
        ),
        ("a bad name", document("X y", "default", scheduler), &[400]),
        (
            "no name",
            json!({"role": "default", "component": scheduler}),
            &[400],
        ),
        ("a bad role", document("x", "a//b", scheduler), &[400]),
        ("a bad digest", document("x", "default", "md5:1"), &[400]),
        ("an unknown field", surprise, &[400]),
        ("a large configuration", large, &[400, 413]),
    ];
    for (what, document, statuses) in frameworks {
        let answer = cluster.rest.post("/v1/frameworks", &document).await?;
        let told = || format!("{what}: {} {}", answer.status, answer.text());
        ensure(statuses.contains(&answer.status), told)?;
        ensure(!answer.error_code().is_empty(), told)?;
    }
    let json = [("content-type", "application/json")];
    let half = b"{\"name\":".to_vec();
    let answer = cluster
        .rest
        .send("POST", "/v1/frameworks", &json, half)
        .await?;
    ensure(
        answer.status == 400 && answer.error_code() == "INVALID_ARGUMENT",
        || format!("half a document: {} {}", answer.status, answer.text()),
    )
}

async fn refuse_unknown_objects(cluster: &Cluster) -> Outcome {
    for (method, path) in [
        ("GET", "/v1/frameworks/nope"),
        ("GET", "/v1/frameworks/f999"),
        ("GET", "/v1/frameworks/nope/log"),
        ("GET", "/v1/tasks/nope/t"),
        ("GET", "/v1/agents/a999"),
        ("GET", "/v1/nothing"),
        ("GET", &format!("/v1/components/{}", zeros())),
        ("DELETE", "/v1/frameworks/nope"),
        ("POST", "/v1/tasks/nope/t/kill"),
        ("GET", "/frameworks/nope/"),
    ] {
        let body = if method == "POST" {
            b"{}".to_vec()
        } else {
            Vec::new()
        };
        let answer = cluster.rest.send(method, path, &[], body).await?;
        ensure(
            answer.status == 404 && answer.error_code() == "NOT_FOUND",
            || format!("{method} {path}: {} {}", answer.status, answer.text()),
        )?;
    }
    Ok(())
}

#[tokio::test]
async fn names_are_not_reused_and_files_stay_in_their_sandbox() -> Outcome {
    let cluster = Cluster::start("names", &[]).await?;
    let digest = cluster.push("echo").await?;
    let document = json!({"name": "e", "role": "default", "component": digest, "config": {}});
    let first = cluster.rest.post("/v1/frameworks", &document).await?;
    ensure(first.status == 201, || {
        format!("{} {}", first.status, first.text())
    })?;
    let same = cluster.rest.post("/v1/frameworks", &document).await?;
    ensure(
        same.status == 200 && same.json()["id"] == first.json()["id"],
        || format!("{} {}", same.status, same.text()),
    )?;
    let other = json!({"name": "e", "role": "default", "component": digest, "config": {"a": "b"}});
    let taken = cluster.rest.post("/v1/frameworks", &other).await?;
    ensure(
        taken.status == 409 && taken.error_code() == "ALREADY_EXISTS",
        || format!("{} {}", taken.status, taken.text()),
    )?;

    let run = cluster.tessera(&["run", "--", "echo", "x"]).await?;
    ensure(run.status.success(), || format!("{run:?}"))?;
    for path in [
        "../1.state/exit.json",
        "..%2F1.state%2Fexit.json",
        "%2Fetc%2Fpasswd",
        "a/../../x",
        "nope",
    ] {
        let answer = cluster
            .rest
            .get(&format!("/v1/tasks/run/run-1/files/{path}"))
            .await?;
        ensure([400, 403, 404].contains(&answer.status), || {
            format!("{path}: {} {}", answer.status, answer.text())
        })?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn taken_ports_and_directories_are_refused() -> Outcome {
    let cluster = Cluster::start("taken", &[]).await?;
    let port = cluster
        .address()
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .to_owned();
    let other = cluster.dir().join("other").display().to_string();
    let output = tessera(
        &[
            "dev",
            "--data-dir",
            &other,
            "--port",
            &port,
            "--agent-port",
            "0",
        ],
        &[],
    )
    .await?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(
        output.status.code() == Some(4) && stderr.contains(&port) && stderr.contains("--port"),
        || stderr,
    )?;

    let data = cluster.dir().join("d").display().to_string();
    let output = tessera(
        &[
            "dev",
            "--data-dir",
            &data,
            "--port",
            "0",
            "--agent-port",
            "0",
        ],
        &[],
    )
    .await?;
    ensure(output.status.code() == Some(4), || format!("{output:?}"))?;
    let master = cluster.dir().join("d/master").display().to_string();
    let output = tessera(
        &[
            "master",
            "--data-dir",
            &master,
            "--listen",
            "127.0.0.1:0",
            "--agent-listen",
            "127.0.0.1:0",
        ],
        &[],
    )
    .await?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(
        !output.status.success() && stderr.contains("another master"),
        || stderr,
    )?;
    let open = tessera(
        &[
            "master",
            "--data-dir",
            &other,
            "--listen",
            "0.0.0.0:0",
            "--agent-listen",
            "127.0.0.1:0",
        ],
        &[],
    )
    .await?;
    let stderr = String::from_utf8_lossy(&open.stderr).into_owned();
    ensure(
        !open.status.success() && stderr.contains("insecure"),
        || stderr,
    )?;
    cluster.finish().await
}

#[tokio::test]
async fn an_agent_of_another_cluster_or_a_newer_version_is_refused() -> Outcome {
    let mut parts = Parts::new("foreign").await?;
    let rest = parts.start_master("m1").await?;
    parts.start_agent(&rest, "a", "m1").await?;
    let path = parts.dir().join("a/agent.json");
    let identity = || -> Outcome<Value> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
    until(
        "the agent has written down where it belongs",
        PATIENCE,
        async || match identity() {
            Ok(found) if found["agent"] == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    for process in [&mut parts.agent, &mut parts.master].into_iter().flatten() {
        process.stop()?;
    }
    let rest = parts.start_master("m2").await?;
    let log = parts.dir().join("foreign.log");
    let mut agent = Process::start(&log, &parts.agent_args("a", "m2"))?;
    let status = ended("the agent finds out that it belongs elsewhere", &mut agent).await?;
    let text = std::fs::read_to_string(&log)?;
    ensure(
        !status.success() && text.contains("belongs to cluster"),
        || text,
    )?;
    let agents = rest.document("/v1/agents").await?;
    ensure(
        agents["items"].as_array().is_some_and(Vec::is_empty),
        || format!("it was taken in: {agents}"),
    )?;

    let mut newer = identity()?;
    ensure(newer["version"] == 1, || format!("no version in {newer}"))?;
    newer["version"] = json!(9_999);
    std::fs::write(&path, newer.to_string())?;
    let log = parts.dir().join("newer.log");
    let mut agent = Process::start(&log, &parts.agent_args("a", "m2"))?;
    let status = ended("the agent refuses a newer directory", &mut agent).await?;
    let text = std::fs::read_to_string(&log)?;
    ensure(!status.success() && text.contains("9999"), || text)?;
    parts.finish()
}

async fn ended(what: &str, process: &mut Process) -> Outcome<ExitStatus> {
    until(what, PATIENCE, async || match process.ended() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    })
    .await
}
