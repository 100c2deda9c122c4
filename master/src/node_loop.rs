//! The one loop that owns a master's node, and the handle by which everything else talks to it.
//!
//! Invariants: cluster state has one owner, an OS thread without async; the queue into it is bounded
//! and makes senders wait; queues out of it never do: a session that does not read is closed, a caller
//! that is gone is forgotten. A failure of the replica ends the loop, and with it the process.

use crate::beats::{BeatRefused, Beats};
use crate::members::Topology;
use crate::node::{Node, Settled};
use crate::peer::Peers;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tessera_master_core::{
    Core, EventId, HttpFailure, Now, Once, Output, Principal, Reply, Request, RequestError, Rows,
};
use tessera_replica::{
    ChangeError, Disk, DiskError, EntryId, FatalError, MemberChange, SnapshotSource, SnapshotToSend,
    Staged, Staging, StepError,
};
use tessera_types::{Digest, FrameworkId, HttpAnswer, HttpRequest};
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

/// How long a master goes on that was told that it is no member: others may need it to learn of it.
const REMOVED_LINGER: Duration = Duration::from_secs(3);

/// A question answered by the loop between two inputs.
type Query = Box<dyn FnOnce(&mut Core, &dyn Rows, &NodeStatus) + Send>;

/// What the replica says of itself, for health and metrics.
pub type NodeStatus = tessera_replica::Status;

/// Who asks for a change, and how a repetition of it is known.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Who.
    pub principal: Principal,
    /// Absent when the request is not known again.
    pub once: Option<Once>,
}

impl From<Principal> for Asker {
    fn from(principal: Principal) -> Self {
        Self {
            principal,
            once: None,
        }
    }
}

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
    SessionClosed {
        session: u64,
    },
    Request {
        asker: Asker,
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
    /// Messages of another master's replica.
    Raft { from: u64, messages: Vec<Vec<u8>> },
    /// What was sent to another master is lost.
    Unreachable { node: u64 },
    /// Another master says that this one is no member any more.
    Removed { reason: String },
    /// Answered once everything that was committed before is in the rows here.
    Barrier(BarrierSender),
    /// Leadership is to go to another node.
    Transfer {
        node: Option<u64>,
        reply: oneshot::Sender<Result<u64, TransferRefused>>,
    },
    /// How sending a snapshot ended.
    SnapshotSent { node: u64, delivered: bool },
    /// A snapshot is offered by another master.
    BeginInstall {
        message: Vec<u8>,
        reply: oneshot::Sender<Result<Staging, StepError>>,
    },
    /// It is here as a whole.
    StepSnapshot {
        message: Vec<u8>,
        staged: Staged,
        reply: oneshot::Sender<Result<(), StepError>>,
    },
    /// The whole state is to be saved, with the components that it names.
    Snapshot(oneshot::Sender<Result<(SnapshotSource, Vec<Digest>), DiskError>>),
    /// The members are to be changed.
    Change {
        change: MemberChange,
        reply: ChangeSender,
    },
    Stop,
}

type ChangeSender = oneshot::Sender<Result<(), ChangeRefused>>;

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The replica refuses.
    #[error(transparent)]
    Replica(#[from] ChangeError),
    /// Leadership was lost meanwhile.
    #[error("another master leads now, and it is not known whether the change was made; look, and try again")]
    Lost,
    /// The loop is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

type BarrierSender = oneshot::Sender<Result<(), NotLeading>>;

/// Another master leads, or nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this master does not lead")]
pub struct NotLeading;

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferRefused {
    /// The replica refuses.
    #[error(transparent)]
    Replica(#[from] tessera_replica::TransferError),
    /// There is nobody.
    #[error("no other voter has kept up with the log")]
    Nobody,
    /// The loop is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a loop ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The replica cannot go on.
    #[error("the replica cannot go on: {0}")]
    Fatal(#[from] FatalError),
    /// What this master acknowledged is not on its disk.
    #[error(
        "{0}; remove the data directory and start with --join: it comes back under a new id"
    )]
    LostLog(StepError),
    /// It is no member any more.
    #[error(
        "this master was removed from its cluster ({0}); to come back, remove the data directory and start with --join"
    )]
    Removed(String),
}

type ReplySender = oneshot::Sender<Result<Reply, RequestError>>;
type AnswerSender = oneshot::Sender<Result<HttpAnswer, HttpFailure>>;

/// The loop is gone: the process is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the master is shutting down")]
pub struct Stopped;

/// How everything else talks to the loop.
#[derive(Clone)]
pub struct NodeHandle {
    inputs: mpsc::Sender<Input>,
    events: watch::Receiver<EventId>,
    topology: watch::Receiver<Topology>,
    tickets: Arc<std::sync::atomic::AtomicU64>,
    beats: Arc<Beats>,
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

    /// An agent is alive. Waits for nothing.
    ///
    /// # Errors
    /// When the session is over, or the loop is stuck.
    pub fn beat(&self, session: u64) -> Result<(), BeatRefused> {
        self.beats.beat(session, Instant::now())
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
        asker: impl Into<Asker> + Send,
        request: Request,
    ) -> Result<Reply, RequestError> {
        let (reply, answered) = oneshot::channel();
        let gone = |_| {
            let text = "leadership was lost before it was acknowledged; it may have been done";
            RequestError::Unavailable(text.to_owned())
        };
        self.send(Input::Request {
            asker: asker.into(),
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
            code: "NO_LEADER",
            message: "leadership was lost before the scheduler answered; it may have acted".into(),
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

    /// Messages of another master's replica.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn raft(&self, from: u64, messages: Vec<Vec<u8>>) -> Result<(), Stopped> {
        self.send(Input::Raft { from, messages }).await
    }

    /// What was sent to another master is lost.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn unreachable(&self, node: u64) -> Result<(), Stopped> {
        self.send(Input::Unreachable { node }).await
    }

    /// Another master says that this one is no member any more.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn removed(&self, reason: String) -> Result<(), Stopped> {
        self.send(Input::Removed { reason }).await
    }

    /// Wait until the rows here hold everything that was committed before this call. Many share one round
    /// among the masters; with one master it costs nothing.
    ///
    /// # Errors
    /// When this master does not lead, or not any more.
    pub async fn barrier(&self) -> Result<(), NotLeading> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::Barrier(reply))
            .await
            .map_err(|Stopped| NotLeading)?;
        answered.await.map_err(|_| NotLeading)?
    }

    /// Hand leadership to a node, or to the one that is best suited; the node.
    ///
    /// # Errors
    /// When this master does not lead, or the other one cannot.
    pub async fn transfer(&self, node: Option<u64>) -> Result<u64, TransferRefused> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::Transfer { node, reply }).await?;
        answered.await.map_err(|_| Stopped)?
    }

    /// Change the members; answered once the change is applied here.
    ///
    /// # Errors
    /// When this master does not lead, the change is not sensible now, or its fate is not known.
    pub async fn change(&self, change: MemberChange) -> Result<(), ChangeRefused> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::Change { change, reply }).await?;
        answered.await.map_err(|_| Stopped)?
    }

    /// The whole state as it is now, to be read on another thread, and the components that it names.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn snapshot(
        &self,
    ) -> Result<Result<(SnapshotSource, Vec<Digest>), DiskError>, Stopped> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::Snapshot(reply)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// How sending a snapshot ended.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn snapshot_sent(&self, node: u64, delivered: bool) -> Result<(), Stopped> {
        self.send(Input::SnapshotSent { node, delivered }).await
    }

    /// Another master offers a snapshot; where its rows are to be staged, or why it is not wanted.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn begin_install(
        &self,
        message: Vec<u8>,
    ) -> Result<Result<Staging, StepError>, Stopped> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::BeginInstall { message, reply }).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// The rows of a snapshot are staged; whether it is taken.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn step_snapshot(
        &self,
        message: Vec<u8>,
        staged: Staged,
    ) -> Result<Result<(), StepError>, Stopped> {
        let (reply, answered) = oneshot::channel();
        let input = Input::StepSnapshot { message, staged, reply };
        self.send(input).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Follows who the masters are and who leads.
    #[must_use]
    pub fn topology(&self) -> watch::Receiver<Topology> {
        self.topology.clone()
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
    topology: watch::Sender<Topology>,
    peers: Option<Arc<Peers>>,
    /// Callers that wait for a round among the masters, by its context.
    barriers: HashMap<u64, Vec<BarrierSender>>,
    /// Callers whose round is not begun.
    barriers_new: Vec<BarrierSender>,
    last_barrier: u64,
    /// Who waits for a change of the members; one is under way at a time.
    changes: HashMap<EntryId, ChangeSender>,
    ended: Option<LoopError>,
    /// Another master says that this one is no member: since when, and in which words.
    removed: Option<(Instant, String)>,
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
        let now = Instant::now();
        let (topology, topology_watch) = watch::channel(Topology::new(node.identity()));
        let handle = NodeHandle {
            inputs: sender,
            events: watch,
            topology: topology_watch,
            tickets: Arc::new(std::sync::atomic::AtomicU64::new(1)),
            beats: Arc::new(Beats::new(now)),
        };
        let this = Self {
            node,
            inputs,
            events,
            topology,
            peers: None,
            barriers: HashMap::new(),
            barriers_new: Vec::new(),
            last_barrier: 0,
            changes: HashMap::new(),
            ended: None,
            removed: None,
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
    /// When the replica cannot go on, or this master is no member any more.
    pub fn run(
        mut self,
        runtime: &tokio::runtime::Handle,
        peers: Arc<Peers>,
    ) -> Result<(), LoopError> {
        self.peers = Some(peers);
        self.publish(true);
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
                if self.removed.as_ref().is_some_and(|(at, _)| at.elapsed() >= REMOVED_LINGER)
                    && let Some((_, reason)) = self.removed.take()
                {
                    self.ended = Some(LoopError::Removed(reason));
                }
                let now = self.now();
                self.hear();
                self.node.input(|core| core.on_tick(now));
            }
            self.begin_barriers();
            let settled = self.settle()?;
            more = settled.more;
            self.perform(settled);
            if let Some(error) = self.ended.take() {
                return Err(error);
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// One round among the masters for all callers that came since the last one.
    fn begin_barriers(&mut self) {
        if self.barriers_new.is_empty() {
            return;
        }
        self.last_barrier += 1;
        let waiting = std::mem::take(&mut self.barriers_new);
        if self.node.core().is_leader() && self.node.read_index(self.last_barrier) {
            self.barriers.insert(self.last_barrier, waiting);
        } else {
            answer_all(waiting, Err(NotLeading));
        }
    }

    /// Tells everybody who leads and who the members are, when that changed.
    fn publish(&mut self, members_changed: bool) {
        let before = self.topology.borrow().clone();
        let mut after = Topology {
            leader: self.node.leader(),
            leads: self.node.core().is_leader(),
            ..before.clone()
        };
        if members_changed {
            after.set_membership(self.node.membership().clone());
        }
        if after == before {
            return;
        }
        if members_changed && let Some(peers) = &self.peers {
            peers.follow(&self.handle, &after);
        }
        self.topology.send_replace(after);
    }

    /// Settles the node. Messages to other masters leave as soon as they may, not only at the end.
    fn settle(&mut self) -> Result<Settled, FatalError> {
        let now = self.now();
        let Some(peers) = &self.peers else {
            return self.node.settle(now);
        };
        let mut lost = BTreeSet::new();
        let settled = self.node.settle_sending(now, &mut |node, message| {
            if !peers.send(node, message) {
                lost.insert(node);
            }
        })?;
        for node in lost {
            self.node.report_unreachable(node);
        }
        Ok(settled)
    }

    fn send_snapshots(&mut self, snapshots: Vec<SnapshotToSend>) {
        let Some(peers) = &self.peers else { return };
        for snapshot in snapshots {
            let node = snapshot.peer;
            if !peers.send_snapshot(&self.handle, snapshot) {
                self.node.report_snapshot(node, false);
            }
        }
    }

    fn step(&mut self, from: u64, messages: &[Vec<u8>]) {
        for message in messages {
            match self.node.step(message) {
                Ok(()) => {}
                Err(error @ StepError::LostLog { .. }) => {
                    self.ended = Some(LoopError::LostLog(error));
                }
                Err(error) => tracing::debug!(from, %error, "a message of a master was refused"),
            }
        }
    }

    fn transfer(&mut self, node: Option<u64>) -> Result<u64, TransferRefused> {
        let node = match node.or_else(|| self.node.best_successor()) {
            Some(node) => node,
            None => return Err(TransferRefused::Nobody),
        };
        self.node.transfer_leadership(node)?;
        Ok(node)
    }

    /// Tell the core of the beats that were noted meanwhile, each with its own time.
    fn hear(&mut self) {
        let beats = self.handle.beats.take(Instant::now());
        let at_ms = |at: Instant| at.saturating_duration_since(self.started).as_millis();
        let beats: Vec<(u64, u64)> = beats
            .into_iter()
            .map(|(session, at)| (session, u64::try_from(at_ms(at)).unwrap_or(u64::MAX)))
            .collect();
        let now = self.now();
        self.node.input(|core| {
            core.on_beats(&beats, now);
            Vec::new()
        });
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
                self.handle.beats.open(session);
                self.node
                    .input(|core| core.on_session_open(session, register, now));
            }
            Input::AgentMessage { session, message } => {
                if self.sessions.contains_key(&session) {
                    self.node
                        .input(|core| core.on_agent_message(session, message, now));
                }
            }
            Input::SessionClosed { session } => {
                self.sessions.remove(&session);
                self.handle.beats.close(session);
                self.node.input(|core| core.on_session_closed(session, now));
            }
            Input::Request {
                asker,
                request,
                reply,
            } => {
                let ticket = self.handle.next_ticket();
                self.replies.insert(ticket, reply);
                let Asker { principal, once } = asker;
                self.node.input(|core| match once {
                    Some(once) => core.on_request_once(ticket, &principal, request, once, now),
                    None => core.on_request(ticket, &principal, request, now),
                });
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
            Input::Raft { from, messages } => self.step(from, &messages),
            Input::Unreachable { node } => self.node.report_unreachable(node),
            Input::Removed { reason } => {
                self.removed.get_or_insert_with(|| (Instant::now(), reason));
            }
            Input::Snapshot(reply) => {
                let components = self.node.core().components().into_iter();
                let components = components.map(|view| view.digest).collect();
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.node.snapshot().map(|source| (source, components)));
            }
            Input::SnapshotSent { node, delivered } => self.node.report_snapshot(node, delivered),
            Input::BeginInstall { message, reply } => {
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.node.begin_install(&message));
            }
            Input::StepSnapshot { message, staged, reply } => {
                // As above.
                let _ = reply.send(self.node.step_snapshot(&message, staged));
            }
            Input::Change { change, reply } => match self.node.propose_change(&change) {
                Ok(id) => {
                    self.changes.insert(id, reply);
                }
                Err(error) => {
                    // The caller may have gone away, which is its own affair.
                    let _ = reply.send(Err(error.into()));
                }
            },
            Input::Barrier(reply) => self.barriers_new.push(reply),
            Input::Transfer { node, reply } => {
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.transfer(node));
            }
            Input::Stop => return true,
        }
        false
    }

    fn perform(&mut self, settled: Settled) {
        self.publish(settled.members_changed);
        self.send_snapshots(settled.snapshots);
        for (id, done) in settled.changes {
            if let Some(sender) = self.changes.remove(&id) {
                // The caller may have gone away.
                let _ = sender.send(if done { Ok(()) } else { Err(ChangeRefused::Lost) });
            }
        }
        for context in settled.reads {
            answer_all(self.barriers.remove(&context).unwrap_or_default(), Ok(()));
        }
        for context in settled.reads_dropped {
            let waiting = self.barriers.remove(&context).unwrap_or_default();
            answer_all(waiting, Err(NotLeading));
        }
        if let Some(last) = settled.events {
            self.events.send_replace(last);
        }
        if settled.stepped_down {
            // Dropping them tells agents to look for the leader, and callers that there is none here.
            self.sessions.clear();
            self.handle.beats.clear();
            self.replies.clear();
            self.answers.clear();
            for (_, sender) in self.changes.drain() {
                // The caller may have gone away.
                let _ = sender.send(Err(ChangeRefused::Lost));
            }
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

    fn send_agent(&mut self, session: u64, mut message: v1::MasterMessage) {
        if let Some(v1::master_message::Message::Registered(registered)) = &mut message.message {
            // The core does not know where masters are.
            registered.masters = self.topology.borrow().peer_addresses();
        }
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
            self.handle.beats.close(session);
            let now = self.now();
            self.node.input(|core| core.on_session_closed(session, now));
        }
    }
}

fn answer_all(waiting: Vec<BarrierSender>, answer: Result<(), NotLeading>) {
    for sender in waiting {
        // The caller may have gone away.
        let _ = sender.send(answer);
    }
}
