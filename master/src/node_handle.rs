//! The handle by which everything else talks to the node's loop: what can be asked, and the answers.
//!
//! Invariants: the queue into the loop is bounded and makes senders wait; whoever goes away before the answer is
//! forgotten; whoever asks for something has an answer within [`ANSWER_MAX`], be it that there is none. Must never
//! hold state of the cluster.

use crate::api::OUTCOME_UNKNOWN;
use crate::beats::{BeatRefused, Beats};
use crate::members::Topology;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::trace::Tracer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tessera_master_core::{
    Core, EventId, HttpFailure, Known, Principal, Reply, Request, RequestError, Rows,
};
use tessera_replica::{
    ChangeError, DiskError, FatalError, MemberChange, SnapshotSource, Staged, Staging, StepError,
};
use tessera_types::{Digest, FrameworkId, HttpAnswer, HttpRequest};
use tessera_wire::v1;
use tokio::sync::{mpsc, oneshot, watch};

/// How long anybody waits for the node: for its loop, its disk, and a majority of the masters. Several elections, and
/// as long as clients and other masters try again.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long for a scheduler's answer: the core gives that up after 30 s itself, if its loop runs.
const HTTP_ANSWER_MAX: Duration = Duration::from_secs(40);

/// A question answered by the loop between two inputs.
pub(crate) type Query = Box<dyn FnOnce(&mut Core, &dyn Rows, &NodeStatus) + Send>;

/// What the replica says of itself, for health and metrics.
pub type NodeStatus = tessera_replica::Status;

/// Who asks for a change, and how a repetition of it is known.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Who.
    pub principal: Principal,
    /// Absent when the request is not known again.
    pub known: Option<Known>,
}

impl From<Principal> for Asker {
    fn from(principal: Principal) -> Self {
        Self {
            principal,
            known: None,
        }
    }
}

/// Everything that can wake the loop, besides time.
pub(crate) enum Input {
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
        reply: ReplyTo,
    },
    /// Several, which came together.
    Requests(Vec<(Asker, Request, ReplyTo)>),
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
    /// The process of another master is known to have ended.
    Gone { node: u64 },
    /// Another master says that this one is no member any more.
    ToldRemoved { by: u64 },
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

pub(crate) type ChangeSender = oneshot::Sender<Result<(), ChangeRefused>>;

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The replica refuses.
    #[error(transparent)]
    Replica(#[from] ChangeError),
    /// Leadership was lost meanwhile.
    #[error("another master leads now, and it is not known whether the change was made; look, and try again")]
    Lost,
    /// The loop is gone, or it takes too long.
    #[error("{0}; it is not known whether the change was made: look, and try again")]
    NoAnswer(#[from] NoAnswer),
}

pub(crate) type BarrierSender = oneshot::Sender<Result<(), NotLeading>>;

/// Another master leads, or nobody does, or nobody can say in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this master does not lead, or could not make sure of it in time")]
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
    /// The loop is gone, or it takes too long.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// Why a loop ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The replica cannot go on.
    #[error("the replica cannot go on: {0}")]
    Fatal(FatalError),
    /// What this master acknowledged is not on its disk.
    #[error(
        "{0}; remove the data directory and start with --join: it comes back under a new id"
    )]
    LostLog(StepError),
    /// It is no member any more.
    #[error("this master was removed from its cluster: {0}")]
    Removed(FatalError),
}

impl From<FatalError> for LoopError {
    fn from(error: FatalError) -> Self {
        match error {
            FatalError::Removed { .. } => Self::Removed(error),
            error => Self::Fatal(error),
        }
    }
}

pub(crate) type ReplySender = oneshot::Sender<Result<Reply, RequestError>>;

/// Where the reply to a request goes.
pub(crate) enum ReplyTo {
    One(ReplySender),
    Among(Among),
}

impl ReplyTo {
    pub(crate) fn send(self, result: Result<Reply, RequestError>) {
        match self {
            // The caller may have hung up.
            Self::One(sender) => drop(sender.send(result)),
            Self::Among(among) => among.done(result.is_ok()),
        }
    }
}

/// One of many requests of one caller, who only wants to know which were done.
pub(crate) struct Among {
    number: u64,
    replies: mpsc::UnboundedSender<(u64, bool)>,
    done: bool,
}

impl Among {
    /// The number is the caller's, who bounds how many there are.
    pub(crate) const fn new(number: u64, replies: mpsc::UnboundedSender<(u64, bool)>) -> Self {
        Self { number, replies, done: false }
    }

    fn done(mut self, done: bool) {
        self.done = done;
    }
}

impl Drop for Among {
    /// One that gets no reply is not known to be done.
    fn drop(&mut self) {
        // The caller may have gone away.
        let _ = self.replies.send((self.number, self.done));
    }
}
pub(crate) type AnswerSender = oneshot::Sender<Result<HttpAnswer, HttpFailure>>;

/// The loop is gone: the process is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the master is shutting down")]
pub struct Stopped;

/// The loop was asked, and there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It takes too long.
    #[error("the master did not answer within {} s: its disk, or its connection to the others, stands still", ANSWER_MAX.as_secs())]
    Late,
}

/// How everything else talks to the loop.
#[derive(Clone)]
pub struct NodeHandle {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) events: watch::Receiver<EventId>,
    pub(crate) topology: watch::Receiver<Topology>,
    pub(crate) tickets: Arc<std::sync::atomic::AtomicU64>,
    pub(crate) beats: Arc<Beats>,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracer: Option<Tracer>,
}

impl NodeHandle {
    async fn send(&self, input: Input) -> Result<(), Stopped> {
        self.inputs.send(input).await.map_err(|_| Stopped)
    }

    /// Send an input that is answered, and wait for that.
    async fn ask<T>(&self, input: Input, answered: oneshot::Receiver<T>) -> Result<T, NoAnswer> {
        let asked = async {
            self.send(input).await?;
            answered.await.map_err(|_| Stopped)
        };
        Ok(tokio::time::timeout(ANSWER_MAX, asked).await.map_err(|_| NoAnswer::Late)??)
    }

    pub(crate) fn next_ticket(&self) -> u64 {
        self.tickets
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Inputs that wait for the loop.
    pub(crate) fn queue(&self) -> usize {
        self.inputs.max_capacity() - self.inputs.capacity()
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
        let input = Input::Request { asker: asker.into(), request, reply: ReplyTo::One(reply) };
        self.ask(input, answered).await.map_err(unanswered)?
    }

    /// The same, if the loop has room for it now.
    pub(crate) fn request_now(&self, asker: Asker, request: Request) -> Option<Requested> {
        let (reply, answered) = oneshot::channel();
        let input = Input::Request { asker, request, reply: ReplyTo::One(reply) };
        self.inputs.try_send(input).ok()?;
        Some(Requested(answered))
    }

    /// Ask for several changes at once.
    ///
    /// # Errors
    /// When the loop is gone.
    pub(crate) async fn requests(
        &self,
        requests: Vec<(Asker, Request, ReplyTo)>,
    ) -> Result<(), Stopped> {
        self.send(Input::Requests(requests)).await
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
            code: OUTCOME_UNKNOWN,
            message: "leadership was lost before the scheduler answered; it may have acted".into(),
        };
        let late = |_| HttpFailure {
            message: format!("{}; the scheduler may have acted", NoAnswer::Late),
            ..gone()
        };
        let guard = HangUp {
            handle: self.clone(),
            ticket,
            armed: true,
        };
        let input = Input::Http { principal, framework, request, answer, ticket };
        let asked = async {
            self.send(input).await.map_err(|Stopped| gone())?;
            answered.await.map_err(|_| gone())
        };
        let result = tokio::time::timeout(HTTP_ANSWER_MAX, asked).await.map_err(late)??;
        guard.disarm();
        result
    }

    /// Ask a question of the state.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn query<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, &dyn Rows) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        self.query_status(|core, rows, _| question(core, rows))
            .await
    }

    /// Ask a question of the state and the replica.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn query_status<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, &dyn Rows, &NodeStatus) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let query: Query = Box::new(move |core, rows, status| {
            // The asker may have gone away, which is its own affair.
            let _ = answer.send(question(core, rows, status));
        });
        self.ask(Input::Query(query), answered).await
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

    /// The process of another master is known to have ended: nobody listens where it did.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn is_gone(&self, node: u64) -> Result<(), Stopped> {
        self.send(Input::Gone { node }).await
    }

    /// Another master says that this one is no member any more.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn told_removed(&self, by: u64) -> Result<(), Stopped> {
        self.send(Input::ToldRemoved { by }).await
    }

    /// Wait until the rows here hold everything that was committed before this call. Many share one round
    /// among the masters; with one master it costs nothing.
    ///
    /// # Errors
    /// When this master does not lead, or not any more.
    pub async fn barrier(&self) -> Result<(), NotLeading> {
        let (reply, answered) = oneshot::channel();
        self.ask(Input::Barrier(reply), answered).await.map_err(|_| NotLeading)?
    }

    /// Hand leadership to a node, or to the one that is best suited; the node.
    ///
    /// # Errors
    /// When this master does not lead, or the other one cannot.
    pub async fn transfer(&self, node: Option<u64>) -> Result<u64, TransferRefused> {
        let (reply, answered) = oneshot::channel();
        self.ask(Input::Transfer { node, reply }, answered).await?
    }

    /// Change the members; answered once the change is applied here.
    ///
    /// # Errors
    /// When this master does not lead, the change is not sensible now, or its fate is not known.
    pub async fn change(&self, change: MemberChange) -> Result<(), ChangeRefused> {
        let (reply, answered) = oneshot::channel();
        self.ask(Input::Change { change, reply }, answered).await?
    }

    /// The whole state as it is now, to be read on another thread, and the components that it names.
    ///
    /// # Errors
    /// When the loop is gone.
    pub async fn snapshot(
        &self,
    ) -> Result<Result<(SnapshotSource, Vec<Digest>), DiskError>, NoAnswer> {
        let (reply, answered) = oneshot::channel();
        self.ask(Input::Snapshot(reply), answered).await
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

/// A change that the loop was asked for.
pub(crate) struct Requested(oneshot::Receiver<Result<Reply, RequestError>>);

impl Requested {
    /// What became of it.
    pub(crate) async fn reply(self) -> Result<Reply, RequestError> {
        match tokio::time::timeout(ANSWER_MAX, self.0).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unanswered(NoAnswer::Stopped(Stopped))),
            Err(_) => Err(unanswered(NoAnswer::Late)),
        }
    }
}

fn unanswered(none: NoAnswer) -> RequestError {
    let why = match none {
        // Its callers are forgotten by a master that stops leading.
        NoAnswer::Stopped(_) => "leadership was lost before it was acknowledged".to_owned(),
        NoAnswer::Late => none.to_string(),
    };
    RequestError::Unavailable(format!("{why}; it may have been done"))
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
