//! Turns of the whole framework, with the test in the place of the cluster.

use serde_json::{Value, json};
use tessera_sdk::testing::{Call, Harness, launched, offer, status};
use tessera_sdk::{Event, TaskState};

use crate::Run;
use crate::book::{MAX_ACTIVE, MAX_ENDED};

type Cluster = Harness<Run>;

fn ask(cluster: &mut Cluster, method: &str, target: &str, body: &Value) -> (u16, Value, Vec<Call>) {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let (response, calls) = cluster.request(method, target, &body).unwrap();
    let response = response.expect("an answer");
    (
        response.status,
        serde_json::from_slice(&response.body).unwrap(),
        calls,
    )
}

fn submit(cluster: &mut Cluster) -> String {
    let (status, body, _) = ask(
        cluster,
        "POST",
        "/tasks",
        &json!({"argv": ["echo", "hello"], "cpus": 0.5}),
    );
    assert_eq!(status, 201);
    body["task"].as_str().unwrap().to_owned()
}

fn show(cluster: &mut Cluster, id: &str) -> Value {
    let (status, body, _) = ask(cluster, "GET", &format!("/tasks/{id}"), &Value::Null);
    assert_eq!(status, 200, "{body}");
    body
}

#[test]
fn a_command_runs_and_its_exit_code_is_served_also_after_a_restart() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let (_, _, calls) = ask(
        &mut cluster,
        "POST",
        "/tasks",
        &json!({"shell": "exit 3", "env": {"A": "b"}}),
    );
    assert!(calls.contains(&Call::Revive), "{calls:?}");
    let calls = cluster
        .turn([Event::Offers(vec![offer(1, 1.0, 512)])])
        .unwrap();
    let tasks = launched(&calls);
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].task, "run-1");
    assert_eq!(tasks[0].spec.env, [("A".to_owned(), "b".to_owned())]);
    assert!(
        calls.contains(&Call::Suppress),
        "nothing waits any more: {calls:?}"
    );

    let mut ended = status("run-1", TaskState::Failed);
    ended.exit_code = Some(3);
    ended.reason = "COMMAND_EXITED".to_owned();
    cluster.restart().unwrap();
    cluster
        .turn([
            Event::Update(status("run-1", TaskState::Running)),
            Event::Update(ended),
        ])
        .unwrap();
    cluster.restart().unwrap();
    let task = show(&mut cluster, "run-1");
    assert_eq!(task["state"], "TASK_FAILED");
    assert_eq!(task["exit_code"], 3);
    assert_eq!(task["terminal"], true);
    assert!(
        cluster
            .state()
            .keys()
            .all(|key| !key.starts_with("request/")),
        "what is not needed is deleted"
    );
    assert_eq!(submit(&mut cluster), "run-2", "numbers are not used twice");
}

#[test]
fn waiting_tasks_say_why_and_are_launched_when_an_offer_is_large_enough() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let id = submit(&mut cluster);
    assert_eq!(
        show(&mut cluster, &id)["message"],
        "needs 0.5 cpus, 32 MiB; no offer has come yet"
    );
    let calls = cluster
        .turn([Event::Offers(vec![offer(1, 0.25, 64)])])
        .unwrap();
    assert_eq!(
        calls,
        [Call::Decline {
            offers: vec![1],
            refuse_ms: 5_000
        }]
    );
    let waiting = show(&mut cluster, &id);
    assert_eq!(waiting["state"], "PENDING");
    assert_eq!(
        waiting["message"],
        "needs 0.5 cpus, 32 MiB; the largest offer so far had 0.25 cpus, 64 MiB"
    );
    let calls = cluster.restart().unwrap();
    assert_eq!(
        calls,
        [Call::Revive],
        "a rebuilt instance asks again for what waits"
    );
    let calls = cluster
        .turn([Event::Offers(vec![offer(2, 0.25, 64), offer(3, 2.0, 64)])])
        .unwrap();
    assert_eq!(launched(&calls).len(), 1);
    assert!(
        matches!(&calls[0], Call::Accept { offers, .. } if offers == &[3]),
        "{calls:?}"
    );
}

#[test]
fn a_dropped_launch_is_repeated_under_another_id() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let id = submit(&mut cluster);
    cluster
        .turn([Event::Offers(vec![offer(1, 1.0, 512)])])
        .unwrap();
    let calls = cluster
        .turn([Event::Update(status(&id, TaskState::Dropped))])
        .unwrap();
    assert_eq!(calls, [Call::Revive]);
    cluster.restart().unwrap();
    let calls = cluster
        .turn([Event::Offers(vec![offer(2, 1.0, 512)])])
        .unwrap();
    assert_eq!(launched(&calls)[0].task, "run-1.2");
    assert_eq!(show(&mut cluster, &id)["launched_as"], "run-1.2");
    cluster
        .turn([Event::Update(status("run-1.2", TaskState::Finished))])
        .unwrap();
    assert_eq!(show(&mut cluster, &id)["state"], "TASK_FINISHED");
}

#[test]
fn kills_reach_waiting_and_launched_tasks() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let waits = submit(&mut cluster);
    let (code, body, _) = ask(
        &mut cluster,
        "DELETE",
        &format!("/tasks/{waits}"),
        &Value::Null,
    );
    assert_eq!((code, &body["state"]), (200, &json!("TASK_KILLED")));
    let runs = submit(&mut cluster);
    cluster
        .turn([Event::Offers(vec![offer(1, 1.0, 512)])])
        .unwrap();
    let (code, _, calls) = ask(
        &mut cluster,
        "DELETE",
        &format!("/tasks/{runs}"),
        &Value::Null,
    );
    assert_eq!(code, 202);
    assert!(calls.contains(&Call::Kill(runs.clone())));
    cluster
        .turn([Event::Update(status(&runs, TaskState::Killed))])
        .unwrap();
    assert_eq!(show(&mut cluster, &runs)["state"], "TASK_KILLED");
    let (code, _, _) = ask(&mut cluster, "DELETE", "/tasks/run-99", &Value::Null);
    assert_eq!(code, 404);
}

#[test]
fn bad_requests_are_answered_and_change_nothing() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let before = cluster.state();
    for (method, target, body, expected) in [
        ("POST", "/tasks", json!({"argv": []}), 422),
        ("POST", "/tasks", json!("ls"), 400),
        (
            "POST",
            "/tasks",
            json!({"shell": "x".repeat(17 * 1024)}),
            413,
        ),
        ("PUT", "/tasks", json!({}), 405),
        ("GET", "/nothing", Value::Null, 404),
        ("GET", "/tasks/..", Value::Null, 404),
        ("GET", "/tasks?before=x", Value::Null, 400),
        ("GET", "/tasks?limit=-1", Value::Null, 400),
    ] {
        let (status, body, _) = ask(&mut cluster, method, target, &body);
        assert_eq!(status, expected, "{method} {target}: {body}");
    }
    assert_eq!(cluster.state(), before);
}

#[test]
fn everything_stays_bounded_and_lists_are_paged() {
    let mut cluster = Cluster::new(&[]).unwrap();
    for _ in 0..MAX_ACTIVE {
        submit(&mut cluster);
    }
    let (code, _, _) = ask(&mut cluster, "POST", "/tasks", &json!({"shell": "true"}));
    assert_eq!(code, 503);
    let mut tasks = Vec::new();
    while tasks.len() < MAX_ACTIVE {
        let calls = cluster
            .turn([Event::Offers(vec![offer(1, 10_000.0, 1 << 20)])])
            .unwrap();
        let batch = launched(&calls);
        assert!(!batch.is_empty(), "headway after {} launches", tasks.len());
        tasks.extend(batch);
    }
    let mut noisy = status("", TaskState::Failed);
    noisy.message = "\u{1}\"".repeat(512);
    for batch in tasks.chunks(256) {
        let updates = batch.iter().map(|task| {
            let mut update = noisy.clone();
            update.task.clone_from(&task.task);
            Event::Update(update)
        });
        cluster.turn(updates.collect::<Vec<_>>()).unwrap();
    }
    cluster.restart().unwrap();
    let mut seen = 0;
    let mut target = "/tasks?limit=1000".to_owned();
    loop {
        let (code, page, _) = ask(&mut cluster, "GET", &target, &Value::Null);
        assert_eq!(code, 200);
        seen += page["tasks"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => target = format!("/tasks?before={next}"),
            None => break,
        }
    }
    assert_eq!(seen, MAX_ENDED);
}
