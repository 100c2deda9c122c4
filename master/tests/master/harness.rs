//! A master to be driven over its two ports, and an agent that does nothing but what a test tells it to.

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tessera_master::{MasterConfig, RunError, TOKEN_FILE, init, is_initialised, run};
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

/// What judges uploads here: whatever has the word in it is a scheduler, and a second line is the verdict.
/// What begins with `core` is made into a component by leaving that out.
const JUDGE: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
    --in) file=$2; shift ;;
    --out) out=$2; shift ;;
    --limit=component-functions=1) echo '{"ok":false,"error":"limit component-functions: at most 1"}'; exit 2 ;;
    esac
    shift
done
if ! grep -q scheduler "$file"; then
    echo '{"ok":false,"error":"not a component"}'
    exit 1
fi
grep -q '^core ' "$file" && sed 's/^core //' "$file" > "$out"
line=$(sed -n 2p "$file")
[ -n "$line" ] || line='{"ok":true,"world":"scheduler"}'
echo "$line"
"#;

/// How often a master that is starting is asked for its health.
const POLL: Duration = Duration::from_millis(5);

pub struct Master {
    pub config: MasterConfig,
    pub token: String,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<Result<(), RunError>>,
    pub client: Client,
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

pub fn config(dir: &Path) -> MasterConfig {
    let judge = dir.join("tessera-worker");
    std::fs::write(&judge, JUDGE).unwrap();
    std::fs::set_permissions(&judge, PermissionsExt::from_mode(0o755)).unwrap();
    MasterConfig {
        data_dir: dir.join("data"),
        listen: free_address(),
        agent_listen: free_address(),
        name: String::new(),
        peer_address: None,
        rest_address: None,
        join: Vec::new(),
        token_file: None,
        insecure_listen: false,
        bin_dir: dir.to_owned(),
        agent_timeout_ms: 20_000,
        scheduler_grace_ms: 3_000,
        component_registries: Vec::new(),
        component_key: None,
        allow_unsigned_uploads: false,
        component_grace: tessera_master::COMPONENT_GRACE,
        requests_per_s: tessera_master::REQUESTS_PER_S,
        tracing: tessera_master::TraceConfig::default(),
    }
}

impl Master {
    pub async fn start(config: MasterConfig) -> Self {
        // Only the first test to come here installs it.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        if config.join.is_empty() && !is_initialised(&config.data_dir) {
            init(&config).unwrap();
        }
        let shutdown = CancellationToken::new();
        let mut task = tokio::spawn(run(config.clone(), shutdown.clone()));
        let client = Client::new();
        let url = format!("http://{}/health", config.listen);
        let healthy = async {
            loop {
                if let Ok(answer) = client.get(&url).send().await
                    && answer.status() == StatusCode::OK
                {
                    return;
                }
                if task.is_finished() {
                    panic!("the master ended: {:?}", (&mut task).await);
                }
                // Bounded by the deadline below; a busy loop would take a core from the master.
                let deadline = tokio::time::Instant::now() + POLL;
                tokio::time::sleep_until(deadline).await;
            }
        };
        tokio::time::timeout(DEADLINE, healthy)
            .await
            .expect("the master leads");
        let token = config.token_file.clone().unwrap_or_else(|| config.data_dir.join(TOKEN_FILE));
        let token = std::fs::read_to_string(token).unwrap();
        Self {
            config,
            token: token.trim().to_owned(),
            shutdown,
            task,
            client,
        }
    }

    pub async fn stop(self) -> MasterConfig {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .expect("it stops")
            .unwrap()
            .unwrap();
        self.config
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.config.listen);
        self.client.request(method, url).bearer_auth(&self.token)
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self
            .request(reqwest::Method::GET, path)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    /// Send a document; status and answer.
    pub async fn send(&self, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.request(method, path).json(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.unwrap();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    /// Upload a component; its digest.
    pub async fn upload(&self, bytes: &str) -> String {
        let upload = self
            .request(reqwest::Method::POST, "/v1/components")
            .body(bytes.to_owned());
        let uploaded: Value = upload.send().await.unwrap().json().await.unwrap();
        uploaded["digest"].as_str().expect("a digest").to_owned()
    }

    pub async fn create_framework(&self, name: &str) -> Value {
        let component = self.upload("a scheduler").await;
        self.create_framework_of(name, &component).await
    }

    pub async fn create_framework_of(&self, name: &str, component: &str) -> Value {
        let body = json!({"name": name, "component": component, "config": {"k": "v"}});
        let (_, created) = self
            .send(reqwest::Method::POST, "/v1/frameworks", &body)
            .await;
        created
    }

    /// Ask until an answer is as wanted.
    pub async fn get_until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = async {
            loop {
                last = self.get(path).await;
                if wanted(&last) {
                    return;
                }
                let deadline = tokio::time::Instant::now() + POLL;
                tokio::time::sleep_until(deadline).await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, found).await.is_ok();
        assert!(in_time, "{path} stays {last}");
        last
    }
}

/// An agent that does nothing but what a test tells it to.
pub struct FakeAgent {
    pub sender: mpsc::Sender<v1::AgentMessage>,
    pub incoming: Streaming<v1::MasterMessage>,
    pub registered: v1::Registered,
    pub client: AgentSessionClient<tonic::transport::Channel>,
    pub token: String,
    /// What came while something else was waited for.
    pub backlog: VecDeque<Down>,
    /// Epoch of the instance that it hosts.
    pub hosting: u64,
}

impl FakeAgent {
    pub async fn connect(master: &Master, agent: u64) -> Self {
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
                total: Some(v1::Resources { cpus_milli: 4000, mem_mib: 4096, ..Default::default() }),
                reserved: Some(v1::Quantities {
                    cpus_milli: 200,
                    mem_mib: 512,
                    disk_mib: 0,
                }),
                version: "test".into(),
                ..Default::default()
            }),
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
            hosting: 0,
        };
        this.registered = this
            .wait_for("Registered", |message| match message {
                Down::Registered(registered) => Some(registered),
                _ => None,
            })
            .await;
        this
    }

    pub async fn send(&self, message: Up) {
        self.sender
            .send(v1::AgentMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    pub async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(Down) -> Option<T>) -> T {
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
    pub async fn host_instance(&mut self) -> v1::DesiredInstance {
        self.host_instance_after(0).await
    }

    /// The same for an instance of a later epoch.
    pub async fn host_instance_after(&mut self, epoch: u64) -> v1::DesiredInstance {
        let instance = self
            .wait_for("an instance", |message| match message {
                Down::Desired(desired) => desired
                    .instances
                    .into_iter()
                    .find(|instance| instance.epoch > epoch),
                _ => None,
            })
            .await;
        self.hosting = instance.epoch;
        let request = v1::FetchStateRequest {
            agent: self.registered.agent,
            session: self.registered.session,
            framework: instance.framework,
            epoch: instance.epoch,
        };
        let request = with_token(tonic::Request::new(request), &self.token);
        let mut chunks = self.client.fetch_state(request).await.unwrap().into_inner();
        let (mut next_turn, mut outside) = (None, 0);
        while let Some(chunk) = chunks.message().await.unwrap() {
            (next_turn, outside) = (chunk.next_turn, chunk.outside);
        }
        self.send(Up::InstanceReady(v1::InstanceReady {
            key: Some(v1::InstanceKey {
                framework: instance.framework,
                epoch: instance.epoch,
            }),
            rebuilt: false,
            next_turn: next_turn.expect("the last chunk has the turn"),
            outside,
        }))
        .await;
        instance
    }

    /// Waits for a batch in which `pick` finds something; others are answered by a turn that does
    /// nothing.
    pub async fn batch_with<T>(
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
            if batch.key.unwrap().epoch < self.hosting {
                // It was for an instance that an upgrade has replaced since.
                continue;
            }
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

pub fn with_token<T>(mut request: tonic::Request<T>, token: &str) -> tonic::Request<T> {
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn empty_turn(batch: &v1::Batch) -> v1::Turn {
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

pub fn spec() -> TaskSpec {
    TaskSpec {
        name: "true".into(),
        body: TaskBody::Native(NativeCommand::Shell("true".into())),
        resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }.into(),
        revocable: false,
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

pub fn launching_turn(batch: &v1::Batch, offer: &v1::Offer, task: &str) -> v1::Turn {
    let encoded = encode_spec(&spec());
    let digest = Digest::of(&encoded);
    let accept = Operation::Accept {
        offers: vec![tessera_types::OfferId(offer.id)],
        launches: vec![
            Launch {
                task: task.parse().unwrap(),
                spec: digest,
                args: vec![],
                env: vec![],
            }
            .into(),
        ],
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

pub async fn report(
    agent: &FakeAgent,
    framework: u64,
    task: &str,
    sequence: u64,
    state: TaskState,
) {
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

pub fn an_offer(event: &Event) -> Option<v1::Offer> {
    match event {
        Event::Offers(offers) => offers.offers.first().cloned(),
        _ => None,
    }
}
