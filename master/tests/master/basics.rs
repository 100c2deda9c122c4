//! Tasks, requests into schedulers, and refusals.

use crate::harness::{FakeAgent, Master, an_offer, config, empty_turn, launching_turn, report};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tessera_master::{MasterConfig, RunError, init, run};
use tessera_types::{Digest, Operation, TaskState};
use tessera_wire::v1;
use tessera_wire::v1::agent_message::Message as Up;
use tessera_wire::v1::event::Event;
use tessera_wire::v1::master_message::Message as Down;
use tokio_util::sync::CancellationToken;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_launched_runs_and_ends_and_a_restart_keeps_it_all() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let framework = master.create_framework("demo").await;
    assert_eq!(framework["id"], "f1", "{framework}");
    let mut agent = FakeAgent::connect(&master, 0).await;
    let instance = agent.host_instance().await;
    assert_eq!(instance.name, "demo");

    let (batch, offer) = agent.batch_with("an offer", an_offer).await;
    agent
        .send(Up::Turn(launching_turn(&batch, &offer, "t1")))
        .await;
    let task = agent
        .wait_for("the task", |message| match message {
            Down::Desired(desired) => desired.tasks.into_iter().next(),
            _ => None,
        })
        .await;
    assert_eq!(task.launch.unwrap().task, "t1");
    let listed = master.get("/v1/tasks/demo/t1").await;
    assert_eq!(listed["state"], "TASK_STAGING", "{listed}");

    report(&agent, 1, "t1", 1, TaskState::Running).await;
    report(&agent, 1, "t1", 2, TaskState::Finished).await;
    let terminal = |event: &Event| match event {
        Event::Update(update) if update.status.as_ref()?.state() == v1::TaskState::TaskFinished => {
            Some(())
        }
        _ => None,
    };
    let (batch, ()) = agent.batch_with("the end of the task", terminal).await;
    agent.send(Up::Turn(empty_turn(&batch))).await;
    agent
        .wait_for("forgetting", |message| match message {
            Down::Desired(desired) => desired.removed.into_iter().find(|key| key.task == "t1"),
            _ => None,
        })
        .await;

    let before = master.get("/v1/frameworks/demo").await;
    drop(agent);
    let config = master.stop().await;
    let master = Master::start(config).await;
    let after = master.get("/v1/frameworks/demo").await;
    for field in [
        "id",
        "epoch",
        "state_keys",
        "state_bytes",
        "tasks_total",
        "config",
    ] {
        assert_eq!(before[field], after[field], "{field}");
    }
    // A turn that was on its way may have been committed between the look and the stop.
    assert!(
        before["turns"].as_u64() <= after["turns"].as_u64(),
        "{before} {after}"
    );
    assert_eq!(after["state_keys"], 1);
    assert_eq!(
        master.get("/v1/tasks/demo/t1").await["state"],
        "TASK_FINISHED"
    );
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_reach_the_scheduler_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.create_framework("web").await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    agent.host_instance().await;
    let call = master
        .request(reqwest::Method::POST, "/frameworks/web/hello?a=b")
        .body("ping")
        .send();
    let serve = async {
        let http = |event: &Event| match event {
            Event::Http(request) => Some(request.clone()),
            _ => None,
        };
        let (batch, request) = agent.batch_with("the request", http).await;
        assert_eq!(
            (request.path.as_str(), request.query.as_deref()),
            ("/hello", Some("a=b"))
        );
        assert!(
            request
                .headers
                .iter()
                .all(|header| header.key != "authorization")
        );
        let mut turn = empty_turn(&batch);
        let answer = tessera_types::HttpAnswer {
            status: 201,
            headers: vec![("x-a".into(), "1".into())],
            body: request.body,
        };
        turn.operations.push(
            (&Operation::Respond {
                request: request.id,
                answer,
            })
                .into(),
        );
        agent.send(Up::Turn(turn)).await;
    };
    let (answer, ()) = tokio::join!(call, serve);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["x-a"], "1");
    assert_eq!(answer.text().await.unwrap(), "ping");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_with_field_and_rule() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.create_framework("there").await;
    let digest = Digest::of(b"a scheduler").to_string();
    let post = reqwest::Method::POST;
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        (
            "/v1/frameworks",
            json!({"name": "A B", "component": digest}),
            400,
            "name",
        ),
        (
            "/v1/frameworks",
            json!({"name": "x", "component": "md5:1"}),
            400,
            "component",
        ),
        (
            "/v1/frameworks",
            json!({"name": "x", "component": digest, "role": "a//b"}),
            400,
            "role",
        ),
        (
            "/v1/frameworks",
            json!({"name": "x", "component": digest, "extra": 1}),
            400,
            "extra",
        ),
        (
            "/v1/frameworks",
            json!({"name": "there", "component": digest}),
            409,
            "name",
        ),
        (
            "/v1/tasks/there/t1/kill",
            json!({"grace_ms": 99_999_999}),
            400,
            "grace_ms",
        ),
    ];
    for (path, body, status, field) in cases {
        let answer = master
            .request(post.clone(), path)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path} {body}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["field"], field, "{error}");
    }
    assert_eq!(
        master.get("/v1/frameworks").await["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_or_not_usable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let post = reqwest::Method::POST;
    let unknown = Digest::of(b"unknown").to_string();
    let missing = json!({"name": "x", "component": unknown});
    let answer = master
        .request(post.clone(), "/v1/frameworks")
        .json(&missing)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let upload = master
        .request(post.clone(), "/v1/components")
        .body("garbage")
        .send()
        .await
        .unwrap();
    assert_eq!(upload.status(), StatusCode::BAD_REQUEST);
    let url = format!("/v1/components?digest={unknown}");
    let upload = master
        .request(post.clone(), &url)
        .body("a scheduler")
        .send()
        .await
        .unwrap();
    assert_eq!(upload.status(), StatusCode::BAD_REQUEST);
    for path in [
        "/v1/frameworks/nobody",
        "/v1/tasks/nobody/none",
        "/v1/agents/a9",
        "/nowhere",
    ] {
        let answer = master
            .request(reqwest::Method::GET, path)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(
        master.get("/v1/frameworks").await["items"],
        json!([]),
        "nothing was changed"
    );
    let open = master
        .client
        .get(format!("http://{}/v1/agents", master.config.listen));
    assert_eq!(
        open.send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );

    let second = run(master.config.clone(), CancellationToken::new()).await;
    assert!(matches!(second, Err(RunError::InUse { .. })), "{second:?}");
    let elsewhere = MasterConfig {
        data_dir: dir.path().join("other"),
        ..master.config.clone()
    };
    // Nobody made a cluster there, and it is not told of one.
    let none = run(elsewhere.clone(), CancellationToken::new()).await;
    assert!(matches!(none, Err(RunError::NoCluster { .. })), "{none:?}");
    init(&elsewhere).unwrap();
    let twice = init(&elsewhere);
    assert!(matches!(twice, Err(RunError::Bootstrap(_))), "{twice:?}");
    let port = run(elsewhere, CancellationToken::new()).await;
    assert!(
        matches!(
            port,
            Err(RunError::Listen {
                field: "listen",
                ..
            })
        ),
        "{port:?}"
    );
    master.stop().await;
}

/// Whatever is wrong with a request, the answer is the same envelope and names what is wrong.
#[tokio::test]
async fn every_refusal_has_the_envelope() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    use reqwest::Method;
    let large = "x".repeat(3 << 20);
    let cases = [
        (Method::GET, "/v1/tasks?limit=-1", "", 400, "limit"),
        (Method::GET, "/v1/tasks?framwork=x", "", 400, "framwork"),
        (Method::GET, "/v1/masters?x=1", "", 400, "x"),
        (Method::GET, "/v1/agents/%ff", "", 400, "path"),
        (Method::POST, "/v1/frameworks", "", 400, "body"),
        (Method::POST, "/v1/frameworks", "{\"nam\":1}", 400, "nam"),
        (Method::POST, "/v1/frameworks", "{\"name\":\"n\",\"component\":\"c\",\"config\":{\"a\":1}}", 400, "config.a"),
        (Method::POST, "/v1/frameworks", "[\"n\",\"default\",\"c\",{},{}]", 400, "body"),
        (Method::POST, "/v1/agents/a1/activate", "{\"dry_run\":true}", 400, "body"),
        (Method::POST, "/v1/frameworks", large.as_str(), 413, "body"),
        (
            Method::POST,
            "/v1/frameworks",
            "{\"name\":\"f7\",\"component\":\"x\"}",
            400,
            "name",
        ),
        (Method::PUT, "/v1/frameworks", "", 405, ""),
        (Method::GET, "/nowhere", "", 404, "path"),
    ];
    for (method, path, body, status, field) in cases {
        let answer = master
            .request(method, path)
            .body(body.to_owned())
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let refusal: Value = answer.json().await.unwrap();
        assert_eq!(
            refusal["error"]["field"].as_str().unwrap_or(""),
            field,
            "{path}: {refusal}"
        );
    }
    let long = format!("/v1/frameworks/{}", "a".repeat(10_000));
    let answer = master.request(Method::GET, &long).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert!(
        answer.bytes().await.unwrap().len() < 1_000,
        "a long name is not repeated"
    );
    master.stop().await;
}
