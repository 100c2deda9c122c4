//! Limits, upgrades, rollbacks, configurations, quarantine and release, as REST shows them.

use crate::harness::{FakeAgent, Master, an_offer, config, empty_turn, launching_turn, with_token};
use reqwest::Method;
use serde_json::{Value, json};
use tessera_types::Digest;
use tessera_wire::v1;
use tessera_wire::v1::agent_message::Message as Up;
use tessera_wire::v1::event::Event;
use tessera_wire::v1::master_message::Message as Down;

fn limit<'a>(limits: &'a Value, name: &str) -> &'a Value {
    let all = limits["limits"].as_array().expect("a list");
    all.iter()
        .find(|limit| limit["name"] == name)
        .expect("a limit")
}

fn scheduler(name: &str, writes: u32, reads: &[u32]) -> String {
    let verdict =
        json!({"ok": true, "world": "scheduler", "writes_state": writes, "reads_state": reads});
    format!("a scheduler, {name}\n{verdict}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_for_the_cluster_and_for_roles_and_reach_instances() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let timers = limit(&master.get("/v1/limits").await, "timers").clone();
    assert_eq!(
        (&timers["from"], &timers["value"]),
        (&json!("default"), &timers["default"])
    );
    for field in ["unit", "min", "max", "what"] {
        assert!(!timers[field].is_null(), "{field}: {timers}");
    }
    let patch = async |path: &str, body: Value| master.send(Method::PATCH, path, &body).await;
    let (status, set) = patch(
        "/v1/limits",
        json!({"set": {"timers": 7, "state-keys": 70}}),
    )
    .await;
    assert_eq!((status, &limit(&set, "timers")["value"]), (200, &json!(7)));
    let (_, set) = patch("/v1/limits?role=default", json!({"set": {"timers": 8}})).await;
    assert_eq!(set["role"], "default");
    assert_eq!(
        (
            &limit(&set, "timers")["from"],
            &limit(&set, "state-keys")["from"]
        ),
        (&json!("default"), &json!("cluster"))
    );

    master.create_framework("limited").await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    let instance = agent.host_instance().await;
    let given = |name: &str| {
        instance
            .limits
            .iter()
            .find(|limit| limit.name == name)
            .map(|limit| limit.value)
    };
    assert_eq!(
        (given("timers"), given("state-keys"), given("specs")),
        (Some(8), Some(70), None)
    );

    let refused = [
        (
            "/v1/limits",
            json!({"set": {"timers": 9, "no-such": 1}}),
            "set",
        ),
        ("/v1/limits", json!({"unset": ["no-such"]}), "unset"),
        (
            "/v1/limits",
            json!({"set": {"timers": 9}, "unset": ["timers"]}),
            "unset",
        ),
        (
            "/v1/limits",
            json!({"set": {"timers": 0, "specs": 9}}),
            "set",
        ),
        (
            "/v1/limits?role=a//b",
            json!({"set": {"timers": 9}}),
            "role",
        ),
        ("/v1/limits?rol=a", json!({"set": {"timers": 9}}), "rol"),
        ("/v1/limits", json!({"sets": {}}), "sets"),
    ];
    for (path, body, field) in refused {
        let (status, error) = patch(path, body.clone()).await;
        assert_eq!(
            (status, &error["error"]["field"]),
            (400, &json!(field)),
            "{body}: {error}"
        );
    }
    let cluster = master.get("/v1/limits").await;
    assert_eq!(
        (
            &limit(&cluster, "timers")["value"],
            &limit(&cluster, "specs")["from"]
        ),
        (&json!(7), &json!("default")),
        "all or nothing"
    );
    let (_, unset) = patch("/v1/limits?role=default", json!({"unset": ["timers"]})).await;
    assert_eq!(limit(&unset, "timers")["from"], "cluster");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_on_trial_until_it_acts_and_what_does_not_read_the_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let old = master.upload(&scheduler("old", 1, &[])).await;
    let new = master.upload(&scheduler("new", 2, &[1])).await;
    master.create_framework_of("app", &old).await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    let first = agent.host_instance().await;
    let post = async |path: &str, body: Value| master.send(Method::POST, path, &body).await;

    let (status, answer) = post("/v1/frameworks/app/upgrade", json!({"component": new})).await;
    assert_eq!(
        (status, &answer["version"], &answer["state"]),
        (202, &json!(2), &json!("trial")),
        "{answer}"
    );
    assert_eq!(
        answer["upgrade"],
        json!({"from_version": 1, "phase": "trial", "old_state_version": 1})
    );
    let (status, again) = post("/v1/frameworks/app/upgrade", json!({"component": new})).await;
    assert_eq!(
        (status, &again["error"]["code"]),
        (409, &json!("CONFLICT")),
        "{again}"
    );

    agent.host_instance_after(first.epoch).await;
    let (batch, offer) = agent.batch_with("an offer", an_offer).await;
    agent
        .send(Up::Turn(launching_turn(&batch, &offer, "t1")))
        .await;
    let ended = master
        .get_until("/v1/frameworks/app", |app| {
            app["versions"][1]["outcome"] == "running"
        })
        .await;
    assert_eq!(
        (&ended["upgrade"], &ended["state_version"]),
        (&Value::Null, &json!(2)),
        "{ended}"
    );
    assert_eq!(ended["versions"][0]["outcome"], "replaced");
    assert_eq!(
        (
            &ended["versions"][1]["component"],
            &ended["versions"][1]["how"]
        ),
        (&json!(new), &json!("upgraded"))
    );

    // Back is no longer possible: the old component does not read the new state. While the state of the
    // upgrade is being merged, that is said first.
    let refused = async {
        loop {
            let (status, error) = post("/v1/frameworks/app/rollback", json!({"version": 1})).await;
            assert_eq!(
                (status, &error["error"]["code"]),
                (409, &json!("CONFLICT")),
                "{error}"
            );
            if error["error"]["field"] == "component" {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(std::time::Duration::from_secs(20), refused)
        .await
        .unwrap();
    let text = error["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("version 2") && text.contains("writes state version 1"),
        "{text}"
    );
    for (body, status, field) in [
        (json!({"component": "x"}), 400, "component"),
        (
            json!({"component": Digest::of(b"unknown").to_string()}),
            404,
            "component",
        ),
        (json!({"component": new}), 409, "component"),
    ] {
        let (found, error) = post("/v1/frameworks/app/upgrade", body.clone()).await;
        assert_eq!(
            (found, error["error"]["field"].as_str().unwrap_or("")),
            (status, field),
            "{body}: {error}"
        );
    }
    let (status, error) = post("/v1/frameworks/app/rollback", json!({"version": 0})).await;
    assert_eq!((status, &error["error"]["field"]), (400, &json!("version")));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_fails_on_trial_goes_back_by_itself_and_one_under_way_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let old = master.upload(&scheduler("old", 1, &[])).await;
    let new = master.upload(&scheduler("new", 1, &[])).await;
    master.create_framework_of("app", &old).await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    let first = agent.host_instance().await;
    let post = async |path: &str, body: Value| master.send(Method::POST, path, &body).await;

    post("/v1/frameworks/app/upgrade", json!({"component": new})).await;
    let second = agent.host_instance_after(first.epoch).await;
    agent.send(failed(&second, 1)).await;
    let back = master
        .get_until("/v1/frameworks/app", |app| {
            app["versions"].as_array().is_some_and(|all| all.len() == 3)
        })
        .await;
    assert_eq!(
        (&back["component"], &back["upgrade"]),
        (&json!(old), &Value::Null),
        "{back}"
    );
    let outcome = back["versions"][1]["outcome"].as_str().unwrap();
    assert!(
        outcome.starts_with("failed: ") && outcome.contains("TRAPPED"),
        "{outcome}"
    );
    assert_eq!(
        (&back["versions"][2]["how"], &back["versions"][2]["outcome"]),
        (&json!("rolled-back"), &json!("running"))
    );

    let third = agent.host_instance_after(second.epoch).await;
    post("/v1/frameworks/app/upgrade", json!({"component": new})).await;
    let (status, given_up) = post("/v1/frameworks/app/rollback", json!({})).await;
    assert_eq!(
        (status, &given_up["component"], &given_up["version"]),
        (202, &json!(old), &json!(5)),
        "{given_up}"
    );
    agent.host_instance_after(third.epoch + 1).await;
    let (status, error) = post("/v1/frameworks/app/rollback", json!({"version": 77})).await;
    assert_eq!(status, 404, "{error}");
    master.stop().await;
}

fn failed(instance: &v1::DesiredInstance, turn: u64) -> Up {
    Up::InstanceFailed(v1::InstanceFailed {
        key: Some(v1::InstanceKey {
            framework: instance.framework,
            epoch: instance.epoch,
        }),
        reason: "TRAPPED".into(),
        message: "unreachable".into(),
        will_retry: true,
        limit: "turn-cpu-ms".into(),
        turn,
        guest: true,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_keeps_failing_is_quarantined_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.create_framework("app").await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    let instance = agent.host_instance().await;
    for turn in 1..=5 {
        agent.send(failed(&instance, turn)).await;
    }
    let held = master
        .get_until("/v1/frameworks/app", |app| app["state"] == "quarantined")
        .await;
    let quarantine = &held["quarantine"];
    let expected = [
        ("rule", json!("failures")),
        ("reason", json!("TRAPPED")),
        ("limit", json!("turn-cpu-ms")),
        ("message", json!("unreachable")),
        ("turn", json!(5)),
        ("release", json!("tessera framework release app")),
    ];
    for (field, value) in expected {
        assert_eq!(quarantine[field], value, "{quarantine}");
    }
    assert!(quarantine["since_ms"].as_u64() > Some(0));
    assert_eq!(
        (&held["agent"], &held["failures"]["in_a_row"]),
        (&Value::Null, &json!(5))
    );

    let (status, released) = master
        .send(Method::POST, "/v1/frameworks/app/release", &json!({}))
        .await;
    assert_eq!(
        (status, &released["quarantine"]),
        (200, &Value::Null),
        "{released}"
    );
    agent.host_instance_after(instance.epoch).await;
    master
        .get_until("/v1/frameworks/app", |app| app["state"] == "running")
        .await;
    let (status, _) = master
        .send(Method::POST, "/v1/frameworks/nobody/release", &json!({}))
        .await;
    assert_eq!(status, 404);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_replaced_as_a_whole_and_the_scheduler_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.create_framework("app").await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    agent.host_instance().await;
    let path = "/v1/frameworks/app/config";
    let before = master.get(path).await;
    assert_eq!(before["config"], json!({"k": "v"}));
    let version = before["config_version"].as_u64().unwrap();
    let (status, error) = master
        .send(
            Method::PUT,
            path,
            &json!({"config": {}, "expected_version": version + 1}),
        )
        .await;
    assert_eq!(
        (status, &error["error"]["field"]),
        (409, &json!("expected_version")),
        "{error}"
    );
    let (status, set) = master
        .send(
            Method::PUT,
            path,
            &json!({"config": {"a": "b"}, "expected_version": version}),
        )
        .await;
    assert_eq!(
        (status, &set["config"], set["config_version"].as_u64()),
        (200, &json!({"a": "b"}), Some(version + 1))
    );

    let told = |event: &Event| match event {
        Event::ConfigChanged(changed) => Some(changed.clone()),
        _ => None,
    };
    let (batch, changed) = agent.batch_with("the configuration", told).await;
    assert_eq!(changed.config[0].key, "a", "{changed:?}");
    let mut turn = empty_turn(&batch);
    turn.consumed.push(v1::Consumed {
        consumed: Some(v1::consumed::Consumed::Config(version + 1)),
    });
    agent.send(Up::Turn(turn)).await;
    master
        .get_until(path, |config| {
            config["config_seen"].as_u64() == Some(version + 1)
        })
        .await;
    for body in [
        json!({}),
        json!({"config": {"a": 1}}),
        json!({"config": {}, "more": 1}),
    ] {
        let (status, _) = master.send(Method::PUT, path, &body).await;
        assert_eq!(status, 400, "{body}");
    }
    master.stop().await;
}

/// An agent gets the components that it needs for what it hosts, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_go_to_agents_that_host_what_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let theirs = master.upload("a scheduler").await;
    let other = master.upload("another scheduler").await;
    master.create_framework_of("app", &theirs).await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    agent.host_instance().await;
    let (number, session) = (agent.registered.agent, agent.registered.session);
    let cases = [
        (&theirs, number, session, None),
        (&other, number, session, Some(tonic::Code::PermissionDenied)),
        (
            &theirs,
            number + 1,
            session,
            Some(tonic::Code::PermissionDenied),
        ),
        (
            &theirs,
            number,
            session + 1,
            Some(tonic::Code::PermissionDenied),
        ),
        (
            &Digest::of(b"unknown").to_string(),
            number,
            session,
            Some(tonic::Code::NotFound),
        ),
    ];
    for (digest, agent_number, session, refused) in cases {
        let digest: Digest = digest.parse().unwrap();
        let request = v1::FetchComponentRequest {
            digest: digest.0.to_vec(),
            agent: agent_number,
            session,
        };
        let request = with_token(tonic::Request::new(request), &agent.token);
        match agent.client.fetch_component(request).await {
            Ok(chunks) => {
                assert_eq!(refused, None);
                let chunk = chunks.into_inner().message().await.unwrap().unwrap();
                assert_eq!(chunk.data, b"a scheduler");
            }
            Err(status) => assert_eq!(Some(status.code()), refused, "{status}"),
        }
    }
    // What it hosts no longer, it gets no longer.
    let removed = master
        .request(Method::DELETE, "/v1/frameworks/app")
        .send()
        .await
        .unwrap();
    assert_eq!(removed.status().as_u16(), 202);
    agent
        .wait_for("the end", |message| match message {
            Down::Desired(desired) => desired.instances.is_empty().then_some(()),
            _ => None,
        })
        .await;
    master.stop().await;
}
