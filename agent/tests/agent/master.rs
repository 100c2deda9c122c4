//! A master that does what a test tells it: takes one agent, keeps what it says, acknowledges statuses.
//! It has no rules of a master.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tessera_types::Digest;
use tessera_wire::v1::{self, agent_message, agent_session_server as server, master_message};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Out<T> = ReceiverStream<Result<T, Status>>;

struct State {
    cluster: String,
    sessions: AtomicU64,
    acknowledged: AtomicU64,
    acknowledge: AtomicBool,
    silent: AtomicBool,
    asked: AtomicU64,
    requests: AtomicU64,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    components: BTreeMap<Vec<u8>, Vec<u8>>,
    instances: Vec<v1::InstanceReady>,
    messages: Vec<v1::FromExecutor>,
    lost: Vec<v1::ExecutorLost>,
    register: v1::Register,
    statuses: Vec<v1::TaskStatus>,
    control: Option<mpsc::Sender<Result<v1::MasterMessage, Status>>>,
    files: Option<mpsc::Sender<Result<v1::FileRequest, Status>>>,
    leader: v1::LeaderReply,
    chunks: Vec<v1::FileChunk>,
}

impl State {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap()
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

/// The master of one test.
pub struct Master {
    state: Arc<State>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Master {
    pub fn start(cluster: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            cluster: cluster.to_owned(),
            sessions: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            acknowledge: AtomicBool::new(true),
            silent: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            said: Mutex::default(),
        });
        let service = server::AgentSessionServer::new(Service(Arc::clone(&state)));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener).map(|stream| {
                    // Small messages either way: without this each waits for the other's.
                    stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
                })),
        );
        Self {
            state,
            address,
            _runtime: runtime,
        }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Sessions so far.
    pub fn sessions(&self) -> u64 {
        self.state.sessions.load(Ordering::SeqCst)
    }

    /// The newest generation that the agent acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.state.acknowledged.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self, on: bool) {
        self.state.acknowledge.store(on, Ordering::SeqCst);
    }

    /// Answer no beats from now on.
    pub fn fall_silent(&self) {
        self.state.silent.store(true, Ordering::SeqCst);
    }

    /// How often it was asked who leads.
    pub fn asked(&self) -> u64 {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// Say that this one leads, whoever asks.
    pub fn names_leader(&self, term: u64, address: String) {
        self.state.said().leader = v1::LeaderReply { term, address };
    }

    pub fn last_register(&self) -> v1::Register {
        self.state.said().register.clone()
    }

    /// Have a component that agents may fetch; its digest.
    pub fn has_component(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.state.said().components.insert(digest.0.to_vec(), bytes);
        digest
    }

    /// What was said last of the instance of a framework.
    pub fn instance(&self, framework: u64) -> Option<v1::InstanceReady> {
        let of = |ready: &&v1::InstanceReady| ready.key.is_some_and(|k| k.framework == framework);
        self.state.said().instances.iter().rfind(of).copied()
    }

    /// Whether an executor has said this.
    pub fn has_heard(&self, data: &[u8]) -> bool {
        self.state.said().messages.iter().any(|m| m.data == data)
    }

    /// An executor that was lost.
    pub fn lost_executor(&self) -> Option<v1::ExecutorLost> {
        self.state.said().lost.first().cloned()
    }

    pub fn forget_instances(&self) {
        self.state.said().instances.clear();
    }

    pub fn forget_statuses(&self) {
        self.state.said().statuses.clear();
    }

    pub fn end_session(&self) {
        self.state.said().control = None;
    }

    pub fn send(&self, message: master_message::Message) {
        let control = self.state.said().control.clone().expect("a session");
        control
            .blocking_send(Ok(v1::MasterMessage {
                message: Some(message),
            }))
            .unwrap();
    }

    pub fn status(&self, task: &str, state: v1::TaskState) -> Option<v1::TaskStatus> {
        self.state
            .said()
            .statuses
            .iter()
            .find(|s| s.task == task && s.state() == state)
            .cloned()
    }

    /// Ask for a range of a file of a task, or, without one, of a framework's scheduler.
    pub fn file(&self, task: &str, path: &str, offset: u64, length: u32) -> v1::FileChunk {
        let request = self.state.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let files = super::wait_for("the lane for files", || self.state.said().files.clone());
        let asked = v1::FileRequest {
            request,
            framework: 1,
            task: task.into(),
            path: path.into(),
            offset,
            length,
        };
        files.blocking_send(Ok(asked)).unwrap();
        super::wait_for("the file", || {
            self.state
                .said()
                .chunks
                .iter()
                .find(|chunk| chunk.request == request)
                .cloned()
        })
    }
}

fn authorized<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("authorization") {
        Some(value) if value == "Bearer secret" => Ok(()),
        _ => Err(Status::unauthenticated("no token")),
    }
}

impl Service {
    async fn on(
        &self,
        message: agent_message::Message,
        out: &mpsc::Sender<Result<v1::MasterMessage, Status>>,
    ) {
        match message {
            agent_message::Message::Statuses(statuses) => {
                let mut acks = Vec::new();
                for update in statuses.updates {
                    let status = update.status.unwrap();
                    acks.push(v1::StatusAck {
                        framework: update.framework,
                        task: status.task.clone(),
                        sequence: update.sequence,
                    });
                    self.0.said().statuses.push(status);
                }
                if self.0.acknowledge.load(Ordering::SeqCst) {
                    let message =
                        Some(master_message::Message::StatusAcks(v1::StatusAcks { acks }));
                    let _ = out.send(Ok(v1::MasterMessage { message })).await;
                }
            }
            agent_message::Message::FromExecutor(message) => {
                self.0.said().messages.push(message);
            }
            agent_message::Message::ExecutorLost(lost) => self.0.said().lost.push(lost),
            agent_message::Message::InstanceReady(ready) => self.0.said().instances.push(ready),
            agent_message::Message::DesiredAck(ack) => {
                self.0.acknowledged.store(ack.generation, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

#[tonic::async_trait]
impl server::AgentSession for Service {
    type ControlStream = Out<v1::MasterMessage>;
    type LivenessStream = Out<v1::Beat>;
    type FetchComponentStream = Out<v1::Chunk>;
    type FetchStateStream = Out<v1::StateChunk>;
    type FilesStream = Out<v1::FileRequest>;

    async fn control(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        authorized(&request)?;
        let (out, answers) = mpsc::channel(64);
        let mut incoming = request.into_inner();
        let service = self.clone();
        tokio::spawn(async move {
            // From registration on only the test's end keeps the session.
            let weak = out.downgrade();
            let mut first = Some(out);
            while let Ok(Some(v1::AgentMessage {
                message: Some(message),
            })) = incoming.message().await
            {
                let Some(out) = first.take().or_else(|| weak.upgrade()) else {
                    return;
                };
                if let agent_message::Message::Register(register) = message {
                    let state = &service.0;
                    let registered = v1::Registered {
                        agent: 1,
                        cluster: state.cluster.clone(),
                        term: 1,
                        session: state.sessions.load(Ordering::SeqCst) + 1,
                        tasks_equal: false,
                        masters: Vec::new(),
                        repeat_statuses: false,
                    };
                    state.said().register = register;
                    state.said().control = Some(out.clone());
                    let message = Some(master_message::Message::Registered(registered));
                    let _ = out.send(Ok(v1::MasterMessage { message })).await;
                    state.sessions.fetch_add(1, Ordering::SeqCst);
                } else {
                    service.on(message, &out).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn liveness(
        &self,
        request: Request<Streaming<v1::Beat>>,
    ) -> Result<Response<Self::LivenessStream>, Status> {
        let (out, answers) = mpsc::channel(8);
        let mut incoming = request.into_inner();
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(beat)) = incoming.message().await {
                if !state.silent.load(Ordering::SeqCst) {
                    let _ = out.send(Ok(beat)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn leader(
        &self,
        request: Request<v1::LeaderRequest>,
    ) -> Result<Response<v1::LeaderReply>, Status> {
        authorized(&request)?;
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(self.0.said().leader.clone()))
    }

    async fn fetch_component(
        &self,
        request: Request<v1::FetchComponentRequest>,
    ) -> Result<Response<Self::FetchComponentStream>, Status> {
        let digest = request.into_inner().digest;
        let bytes = self.0.said().components.get(&digest).cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("there is no such component"))?;
        let (out, chunks) = mpsc::channel(4);
        tokio::spawn(async move {
            for data in bytes.chunks(64 << 10).map(<[u8]>::to_vec) {
                let _ = out.send(Ok(v1::Chunk { data })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    /// Every framework is at its first turn and has no state.
    async fn fetch_state(
        &self,
        _: Request<v1::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        let (out, chunks) = mpsc::channel(1);
        let whole = v1::StateChunk {
            next_turn: Some(1),
            ..Default::default()
        };
        let _ = out.send(Ok(whole)).await;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn files(
        &self,
        request: Request<Streaming<v1::FileChunk>>,
    ) -> Result<Response<Self::FilesStream>, Status> {
        authorized(&request)?;
        let (out, requests) = mpsc::channel(8);
        self.0.said().files = Some(out);
        let mut incoming = request.into_inner();
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = incoming.message().await {
                state.said().chunks.push(chunk);
            }
        });
        Ok(Response::new(ReceiverStream::new(requests)))
    }
}
