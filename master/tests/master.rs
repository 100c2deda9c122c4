//! A real master in this process, driven over its two ports: REST as a user, gRPC as an agent would.
//!
//! The judge of uploads is a script, since what a component contains is the worker's business.

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tessera_master::{MasterConfig, RunError, TOKEN_FILE, run};
use tessera_types::{
    Digest, Launch, NativeCommand, Operation, Quantities, TaskBody, TaskSpec, TaskState, TaskStatus,
};
use tessera_wire::v1::agent_message::Message as Up;
use tessera_wire::v1::agent_session_client::AgentSessionClient;
use tessera_wire::v1::event::Event;
use tessera_wire::v1::master_message::Message as Down;
use tessera_wire::{encode_spec, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// Longest wait for anything; reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often a master that is starting is asked for its health.
const POLL: Duration = Duration::from_millis(5);

struct Master {
    config: MasterConfig,
    token: String,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    client: Client,
}

/// A port below those that the kernel gives to outgoing connections, which could take one that was
/// found free before the master listens on it.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 8_000).unwrap();
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn config(dir: &Path) -> MasterConfig {
    let judge = dir.join("tessera-worker");
    std::fs::write(&judge, "#!/bin/sh\ngrep -q scheduler \"$3\" && echo '{\"world\":\"scheduler\"}' && exit 0\necho '{\"ok\":false,\"error\":\"not a component\"}'\nexit 1\n").unwrap();
    std::fs::set_permissions(&judge, PermissionsExt::from_mode(0o755)).unwrap();
    MasterConfig {
        data_dir: dir.join("data"),
        listen: free_address(),
        agent_listen: free_address(),
        insecure_listen: false,
        bin_dir: dir.to_owned(),
        agent_timeout_ms: 20_000,
        scheduler_grace_ms: 3_000,
    }
}

impl Master {
    async fn start(config: MasterConfig) -> Self {
        // Only the first test to come here installs it.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(config.clone(), shutdown.clone()));
        let client = Client::new();
        let url = format!("http://{}/health", config.listen);
        let healthy = async {
            loop {
                if let Ok(answer) = client.get(&url).send().await
                    && answer.status() == StatusCode::OK
                {
                    return;
                }
                // Bounded by the deadline below; a busy loop would take a core from the master.
                let deadline = tokio::time::Instant::now() + POLL;
                tokio::time::sleep_until(deadline).await;
            }
        };
        tokio::time::timeout(DEADLINE, healthy)
            .await
            .expect("the master leads");
        let token = std::fs::read_to_string(config.data_dir.join(TOKEN_FILE)).unwrap();
        Self {
            config,
            token: token.trim().to_owned(),
            shutdown,
            task,
            client,
        }
    }

    async fn stop(self) -> MasterConfig {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .expect("it stops")
            .unwrap()
            .unwrap();
        self.config
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.config.listen);
        self.client.request(method, url).bearer_auth(&self.token)
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self
            .request(reqwest::Method::GET, path)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    async fn create_framework(&self, name: &str) -> Value {
        let upload = self
            .request(reqwest::Method::POST, "/v1/components")
            .body("a scheduler");
        let uploaded: Value = upload.send().await.unwrap().json().await.unwrap();
        let body = json!({"name": name, "component": uploaded["digest"], "config": {"k": "v"}});
        let create = self
            .request(reqwest::Method::POST, "/v1/frameworks")
            .json(&body);
        create.send().await.unwrap().json().await.unwrap()
    }
}

/// An agent that does nothing but what a test tells it to.
struct FakeAgent {
    sender: mpsc::Sender<v1::AgentMessage>,
    incoming: Streaming<v1::MasterMessage>,
    registered: v1::Registered,
    client: AgentSessionClient<tonic::transport::Channel>,
    token: String,
    /// What came while something else was waited for.
    backlog: VecDeque<Down>,
}

impl FakeAgent {
    async fn connect(master: &Master, agent: u64) -> Self {
        let address = format!("http://{}", master.config.agent_listen);
        let mut client = AgentSessionClient::connect(address).await.unwrap();
        let (sender, outgoing) = mpsc::channel(16);
        let register = v1::Register {
            agent,
            agent_key: "key-1".into(),
            boot: "boot-1".into(),
            description: Some(v1::AgentDescription {
                hostname: "fake".into(),
                attributes: Vec::new(),
                total: Some(v1::Quantities {
                    cpus_milli: 4000,
                    mem_mib: 4096,
                    disk_mib: 0,
                }),
                reserved: Some(v1::Quantities {
                    cpus_milli: 200,
                    mem_mib: 512,
                    disk_mib: 0,
                }),
                version: "test".into(), ..Default::default() }),
            tasks_hash: tessera_wire::tasks_hash(std::iter::empty()).to_vec(),
            protocol: tessera_wire::SESSION_PROTOCOL,
            ..Default::default()
        };
        sender
            .send(v1::AgentMessage {
                message: Some(Up::Register(register)),
            })
            .await
            .unwrap();
        let request = with_token(
            tonic::Request::new(ReceiverStream::new(outgoing)),
            &master.token,
        );
        let incoming = client.control(request).await.unwrap().into_inner();
        let mut this = Self {
            sender,
            incoming,
            registered: v1::Registered::default(),
            client,
            token: master.token.clone(),
            backlog: VecDeque::new(),
        };
        this.registered = this
            .wait_for("Registered", |message| match message {
                Down::Registered(registered) => Some(registered),
                _ => None,
            })
            .await;
        this
    }

    async fn send(&self, message: Up) {
        self.sender
            .send(v1::AgentMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(Down) -> Option<T>) -> T {
        for at in 0..self.backlog.len() {
            if let Some(found) = self.backlog.get(at).cloned().and_then(&mut pick) {
                self.backlog.remove(at);
                return found;
            }
        }
        let found = async {
            loop {
                let message = self
                    .incoming
                    .message()
                    .await
                    .unwrap()
                    .expect("the session stands");
                let message = message.message.expect("a known message");
                if let Some(found) = pick(message.clone()) {
                    return found;
                }
                self.backlog.push_back(message);
            }
        };
        tokio::time::timeout(DEADLINE, found)
            .await
            .unwrap_or_else(|_| panic!("{what} did not come"))
    }

    /// Waits until the master wants an instance here, and says that it is ready.
    async fn host_instance(&mut self) -> v1::DesiredInstance {
        let instance = self
            .wait_for("an instance", |message| match message {
                Down::Desired(desired) => desired.instances.into_iter().next(),
                _ => None,
            })
            .await;
        let request = v1::FetchStateRequest {
            agent: self.registered.agent,
            session: self.registered.session,
            framework: instance.framework,
            epoch: instance.epoch,
        };
        let request = with_token(tonic::Request::new(request), &self.token);
        let mut chunks = self.client.fetch_state(request).await.unwrap().into_inner();
        let mut next_turn = None;
        while let Some(chunk) = chunks.message().await.unwrap() {
            next_turn = chunk.next_turn;
        }
        self.send(Up::InstanceReady(v1::InstanceReady {
            key: Some(v1::InstanceKey {
                framework: instance.framework,
                epoch: instance.epoch,
            }),
            rebuilt: false,
            next_turn: next_turn.expect("the last chunk has the turn"),
        }))
        .await;
        instance
    }

    /// Waits for a batch in which `pick` finds something; others are answered by a turn that does
    /// nothing.
    async fn batch_with<T>(
        &mut self,
        what: &str,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> (v1::Batch, T) {
        loop {
            let batch = self
                .wait_for(what, |message| match message {
                    Down::Batch(batch) => Some(batch),
                    _ => None,
                })
                .await;
            let found = batch
                .events
                .iter()
                .filter_map(|event| event.event.as_ref())
                .find_map(&pick);
            if let Some(found) = found {
                return (batch, found);
            }
            self.send(Up::Turn(empty_turn(&batch))).await;
        }
    }
}

fn with_token<T>(mut request: tonic::Request<T>, token: &str) -> tonic::Request<T> {
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn empty_turn(batch: &v1::Batch) -> v1::Turn {
    let key = batch.key.unwrap();
    let consumed = batch
        .events
        .iter()
        .filter_map(|event| match event.event.as_ref()? {
            Event::Update(update) if update.sequence > 0 => {
                let task = update.status.as_ref()?.task.clone();
                let update = v1::ConsumedUpdate {
                    task,
                    sequence: update.sequence,
                };
                Some(v1::Consumed {
                    consumed: Some(v1::consumed::Consumed::Update(update)),
                })
            }
            _ => None,
        })
        .collect();
    v1::Turn {
        framework: key.framework,
        epoch: key.epoch,
        number: batch.number,
        time_ms: batch.time_ms,
        consumed,
        ..Default::default()
    }
}

fn spec() -> TaskSpec {
    TaskSpec {
        name: "true".into(),
        body: TaskBody::Native(NativeCommand::Shell("true".into())),
        resources: Quantities {
            cpus_milli: 100,
            mem_mib: 32,
            disk_mib: 0,
        },
        cpus_limit_milli: None,
        pids_limit: None,
        user: None,
        env: vec![],
        files: vec![],
        result_file: None,
        grace_ms: None,
        restarts: 0,
        labels: vec![],
    }
}

fn launching_turn(batch: &v1::Batch, offer: &v1::Offer, task: &str) -> v1::Turn {
    let encoded = encode_spec(&spec());
    let digest = Digest::of(&encoded);
    let accept = Operation::Accept {
        offers: vec![tessera_types::OfferId(offer.id)],
        launches: vec![Launch {
            task: task.parse().unwrap(),
            spec: digest,
            args: vec![],
            env: vec![],
        }
        .into()],
        filters: tessera_types::Filters::default(),
        gang: 0,
    };
    let mut turn = empty_turn(batch);
    turn.operations.push((&accept).into());
    turn.writes.push(v1::KeyWrite {
        key: "launched".into(),
        value: Some(b"1".to_vec()),
    });
    turn.specs.push(v1::SpecBytes {
        digest: digest.0.to_vec(),
        encoded,
    });
    turn
}

async fn report(agent: &FakeAgent, framework: u64, task: &str, sequence: u64, state: TaskState) {
    let id = tessera_types::AgentId(agent.registered.agent);
    let status = TaskStatus::new(task.parse().unwrap(), id, state, 1);
    let update = v1::StatusUpdate {
        framework,
        sequence,
        status: Some((&status).into()),
    };
    agent
        .send(Up::Statuses(v1::StatusUpdates {
            updates: vec![update],
        }))
        .await;
}

fn an_offer(event: &Event) -> Option<v1::Offer> {
    match event {
        Event::Offers(offers) => offers.offers.first().copied(),
        _ => None,
    }
}

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
            "body",
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
        (Method::GET, "/v1/tasks?limit=-1", "", 400, "query"),
        (Method::GET, "/v1/tasks?framwork=x", "", 400, "query"),
        (Method::GET, "/v1/agents/%ff", "", 400, "path"),
        (Method::POST, "/v1/frameworks", "", 400, "body"),
        (Method::POST, "/v1/frameworks", "{\"nam\":1}", 400, "body"),
        (Method::POST, "/v1/frameworks", large.as_str(), 413, "body"),
        (
            Method::POST,
            "/v1/frameworks",
            "{\"name\":\"f7\",\"component\":\"x\"}",
            400,
            "name",
        ),
        (Method::PUT, "/v1/frameworks", "", 405, ""),
        (Method::GET, "/nowhere", "", 404, ""),
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
