//! The one loop that owns a master's node, and the handle by which everything else talks to it.
//!
//! Invariants: cluster state has one owner, an OS thread without async; the queue into it is bounded
//! and makes senders wait; queues out of it never do: a session that does not read is closed, a caller
//! that is gone is forgotten. A failure of the replica ends the loop, and with it the process.

use crate::node::{Node, Settled};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tessera_master_core::{
    Core, EventId, HttpFailure, Now, Output, Principal, Reply, Request, RequestError, Rows,
};
use tessera_replica::{Disk, FatalError};
use tessera_types::{FrameworkId, HttpAnswer, HttpRequest};
use tessera_wire::v1;
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs waiting for the loop. Senders wait when it is full, which reaches back to their peers.
const INPUTS_MAX: usize = 4_096;

/// Inputs taken before what they caused is persisted: they share one synced write.
const INPUTS_PER_ROUND_MAX: usize = 512;

/// Messages queued for one agent. One that is so far behind gets a fresh session instead.
pub const SESSION_QUEUE_MAX: usize = 4_096;

/// One tick of the replica; elections take 10 to 20 of them.
const TICK: Duration = Duration::from_millis(50);

/// A question answered by the loop between two inputs.
type Query = Box<dyn FnOnce(&mut Core, &dyn Rows, &NodeStatus) + Send>;

/// What the replica says of itself, for health and metrics.
pub type NodeStatus = tessera_replica::Status;

/// Everything that can wake the loop, besides time.
enum Input {
    SessionOpen {
        session: u64,
        register: v1::Register,
        sender: mpsc::Sender<v1::MasterMessage>,
    },
    AgentMessage {
        session: u64,
        message: v1::AgentMessage,
    },
    Beat {
        session: u64,
    },
    SessionClosed {
        session: u64,
    },
    Request {
        principal: Principal,
        request: Request,
        reply: ReplySender,
    },
    Http {
        principal: Principal,
        framework: FrameworkId,
        request: HttpRequest,
        answer: AnswerSender,
        ticket: u64,
    },
    HttpGone {
        ticket: u64,
    },
    Query(Query),
    Stop,
}

type ReplySender = oneshot::Sender<Result<Reply, RequestError>>;
type AnswerSender = oneshot::Sender<Result<HttpAnswer, HttpFailure>>;

/// The loop is gone: the process is ending.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the master is shutting down")]
pub struct Stopped;

/// How everything else talks to the loop.
#[derive(Clone)]
pub struct NodeHandle {
    inputs: mpsc::Sender<Input>,
    events: watch::Receiver<EventId>,
    tickets: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl NodeHandle {
    async fn send(&self, input: Input) -> Result<(), Stopped> {
        self.inputs.send(input).await.map_err(|_| Stopped)
    }

    fn next_ticket(&self) -> u64 {
        self.tickets
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// A number for a new session, never used before in this process.
    #[must_use]
    pub fn new_session(&self) -> u64 {
        self.next_ticket()
    }

    /// An agent opened a session; messages for it go to `sender`, which is dropped to close it.
    ///
    /// # Errors
    /// When the loop is gone, as for all of these.
    pub async fn session_open(
        &self,
        session: u64,
        register: v1::Register,
        sender: mpsc::Sender<v1::MasterMessage>,
    ) -> Result<(), Stopped> {
        self.send(Input::SessionOpen {
            session,
            register,
            sender,
        })
        .await
    }

    /// An agent said something.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn agent_message(
        &self,
        session: u64,
        message: v1::AgentMessage,
    ) -> Result<(), Stopped> {
        self.send(Input::AgentMessage { session, message }).await
    }

    /// An agent is alive.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn beat(&self, session: u64) -> Result<(), Stopped> {
        self.send(Input::Beat { session }).await
    }

    /// A session ended.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn session_closed(&self, session: u64) -> Result<(), Stopped> {
        self.send(Input::SessionClosed { session }).await
    }

    /// Ask for a change; answered once it is committed or refused.
    ///
    /// # Errors
    /// When it was refused, or the loop is gone.
    pub async fn request(
        &self,
        principal: Principal,
        request: Request,
    ) -> Result<Reply, RequestError> {
        let (reply, answered) = oneshot::channel();
        let gone = |_| RequestError::Unavailable(Stopped.to_string());
        self.send(Input::Request {
            principal,
            request,
            reply,
        })
        .await
        .map_err(|stopped| RequestError::Unavailable(stopped.to_string()))?;
        answered.await.map_err(gone)?
    }

    /// Pass a request on to a scheduler. Dropping the future tells the loop that the caller is gone.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn http(
        &self,
        principal: Principal,
        framework: FrameworkId,
        request: HttpRequest,
    ) -> Result<HttpAnswer, HttpFailure> {
        let ticket = self.next_ticket();
        let (answer, answered) = oneshot::channel();
        let gone = || HttpFailure {
            status: 503,
            retry_after_s: Some(1),
            code: "UNAVAILABLE",
            message: Stopped.to_string(),
        };
        let guard = HangUp {
            handle: self.clone(),
            ticket,
            armed: true,
        };
        self.send(Input::Http {
            principal,
            framework,
            request,
            answer,
            ticket,
        })
        .await
        .map_err(|Stopped| gone())?;
        let result = answered.await.map_err(|_| gone())?;
        guard.disarm();
        result
    }

    /// Ask a question of the state.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn query<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, &dyn Rows) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.query_status(|core, rows, _| question(core, rows))
            .await
    }

    /// Ask a question of the state and the replica.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn query_status<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, &dyn Rows, &NodeStatus) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let query: Query = Box::new(move |core, rows, status| {
            // The asker may have gone away, which is its own affair.
            let _ = answer.send(question(core, rows, status));
        });
        self.send(Input::Query(query)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Follows the newest event's id.
    #[must_use]
    pub fn events(&self) -> watch::Receiver<EventId> {
        self.events.clone()
    }

    /// End the loop after the inputs that are queued.
    pub async fn stop(&self) {
        // A loop that is gone has stopped.
        let _ = self.send(Input::Stop).await;
    }
}

/// Tells the loop when a caller goes away before its answer.
struct HangUp {
    handle: NodeHandle,
    ticket: u64,
    armed: bool,
}

impl HangUp {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if self.armed {
            // Best effort: a full queue only means that the answer is made for nobody, and the
            // core bounds those by its own time-out.
            let _ = self.handle.inputs.try_send(Input::HttpGone {
                ticket: self.ticket,
            });
        }
    }
}

/// The loop: a node and the ends of everything it answers to.
pub struct NodeLoop<D: Disk> {
    node: Node<D>,
    inputs: mpsc::Receiver<Input>,
    events: watch::Sender<EventId>,
    sessions: HashMap<u64, mpsc::Sender<v1::MasterMessage>>,
    replies: HashMap<u64, ReplySender>,
    answers: HashMap<u64, AnswerSender>,
    handle: NodeHandle,
    started: Instant,
    last_tick: Instant,
}

impl<D: Disk> NodeLoop<D> {
    /// A loop around a node, and its handle.
    pub fn new(node: Node<D>) -> (Self, NodeHandle) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (events, watch) = watch::channel(EventId::default());
        let handle = NodeHandle {
            inputs: sender,
            events: watch,
            tickets: std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1)),
        };
        let now = Instant::now();
        let this = Self {
            node,
            inputs,
            events,
            sessions: HashMap::new(),
            replies: HashMap::new(),
            answers: HashMap::new(),
            handle: handle.clone(),
            started: now,
            last_tick: now,
        };
        (this, handle)
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            mono_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Run until told to stop. Must be called on a thread of its own, inside a runtime's context.
    ///
    /// # Errors
    /// When the replica cannot go on.
    pub fn run(mut self, runtime: &tokio::runtime::Handle) -> Result<(), FatalError> {
        let mut more = true;
        loop {
            let wait = if more {
                Duration::ZERO
            } else {
                TICK.saturating_sub(self.last_tick.elapsed())
            };
            let first = runtime.block_on(async {
                match tokio::time::timeout(wait, self.inputs.recv()).await {
                    Ok(Some(input)) => Some(input),
                    // The loop holds a handle itself, so that the queue never closes.
                    Ok(None) | Err(_) => None,
                }
            });
            let mut stop = false;
            if let Some(input) = first {
                stop |= self.take(input);
                for _ in 1..INPUTS_PER_ROUND_MAX {
                    match self.inputs.try_recv() {
                        Ok(input) => stop |= self.take(input),
                        Err(_) => break,
                    }
                }
            }
            if self.last_tick.elapsed() >= TICK {
                self.last_tick = Instant::now();
                self.node.tick();
                let now = self.now();
                self.node.input(|core| core.on_tick(now));
            }
            let settled = self.node.settle(self.now())?;
            more = settled.more;
            self.perform(settled);
            if stop {
                return Ok(());
            }
        }
    }

    /// Takes one input; says whether it was the last.
    fn take(&mut self, input: Input) -> bool {
        let now = self.now();
        match input {
            Input::SessionOpen {
                session,
                register,
                sender,
            } => {
                self.sessions.insert(session, sender);
                self.node
                    .input(|core| core.on_session_open(session, register, now));
            }
            Input::AgentMessage { session, message } => {
                if self.sessions.contains_key(&session) {
                    self.node
                        .input(|core| core.on_agent_message(session, message, now));
                }
            }
            Input::Beat { session } => self.node.input(|core| {
                core.on_beat(session, now);
                Vec::new()
            }),
            Input::SessionClosed { session } => {
                self.sessions.remove(&session);
                self.node.input(|core| core.on_session_closed(session, now));
            }
            Input::Request {
                principal,
                request,
                reply,
            } => {
                let ticket = self.handle.next_ticket();
                self.replies.insert(ticket, reply);
                self.node
                    .input(|core| core.on_request(ticket, &principal, request, now));
            }
            Input::Http {
                principal,
                framework,
                request,
                answer,
                ticket,
            } => {
                self.answers.insert(ticket, answer);
                self.node.input_with_rows(|core, rows| {
                    core.on_http(ticket, &principal, framework, request, rows, now)
                });
            }
            Input::HttpGone { ticket } => {
                self.answers.remove(&ticket);
                self.node.input(|core| {
                    core.on_http_gone(ticket, now);
                    Vec::new()
                });
            }
            Input::Query(query) => self.node.query(query),
            Input::Stop => return true,
        }
        false
    }

    fn perform(&mut self, settled: Settled) {
        if let Some(last) = settled.events {
            self.events.send_replace(last);
        }
        if settled.stepped_down {
            // Dropping them tells agents to look for the leader, and callers that there is none here.
            self.sessions.clear();
            self.replies.clear();
            self.answers.clear();
        }
        for output in settled.outputs {
            match output {
                Output::SendAgent { session, message } => self.send_agent(session, message),
                Output::CloseSession { session, reason } => {
                    tracing::info!(session, reason, "closing an agent's session");
                    self.close(session);
                }
                Output::Answer { ticket, answer } => {
                    if let Some(sender) = self.answers.remove(&ticket) {
                        // The caller may have hung up.
                        let _ = sender.send(answer);
                    }
                }
                Output::Reply { ticket, result } => {
                    if let Some(sender) = self.replies.remove(&ticket) {
                        // The caller may have hung up.
                        let _ = sender.send(result);
                    }
                }
                Output::Report { text } => tracing::warn!("{text}"),
                // Done by the node.
                Output::Propose(_) | Output::ReadIndex { .. } => {}
            }
        }
    }

    fn send_agent(&mut self, session: u64, message: v1::MasterMessage) {
        let Some(sender) = self.sessions.get(&session) else {
            return;
        };
        if sender.try_send(message).is_err() {
            tracing::warn!(session, "an agent does not read its session; closing it");
            self.close(session);
        }
    }

    fn close(&mut self, session: u64) {
        if self.sessions.remove(&session).is_some() {
            let now = self.now();
            self.node.input(|core| core.on_session_closed(session, now));
        }
    }
}
