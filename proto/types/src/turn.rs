//! The turn: what goes into a scheduler, and the one transaction that comes out.
//!
//! Invariants: a turn names everything that it consumed and changes, so that it can be submitted again
//! byte for byte to another leader. This file must never decide whether a turn commits.

use crate::{
    AgentId, AgentInfo, Digest, Epoch, ExecutorId, Filters, FrameworkId, InverseOffer, Launch, Offer, OfferId, ResourceRequest, TaskId, TaskStatus,
    TimeMs, TurnNumber,
};
use serde::{Deserialize, Serialize};

/// First event of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The framework.
    pub framework: FrameworkId,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Its epoch.
    pub epoch: Epoch,
}

/// A request to a scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// Unique within one leader's term.
    pub id: u64,
    /// Method, upper case.
    pub method: String,
    /// Path after the framework's prefix.
    pub path: String,
    /// Query without the `?`.
    pub query: Option<String>,
    /// Lower-case names and values.
    pub headers: Vec<(String, String)>,
    /// At most [`crate::limits::HTTP_REQUEST_BYTES_MAX`].
    pub body: Vec<u8>,
    /// Who asks.
    pub principal: String,
    /// The caller's key.
    pub idempotency_key: Option<String>,
}

/// An answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpAnswer {
    /// 200 to 599.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// At most [`crate::limits::HTTP_ANSWER_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// Bytes from an executor to its scheduler, or back; delivered at most once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorMessage {
    /// Where the executor runs.
    pub agent: AgentId,
    /// Which one.
    pub executor: ExecutorId,
    /// At most [`crate::limits::MESSAGE_DATA_BYTES_MAX`].
    pub data: Vec<u8>,
}

/// What can happen to a scheduler, as far as this version delivers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// First event of a new epoch.
    Subscribed(Subscription),
    /// First event of a rebuilt instance.
    Resumed(Subscription),
    /// An agent became known or changed.
    Agent(AgentInfo),
    /// Offers were made.
    Offers(Vec<Offer>),
    /// Offers were withdrawn.
    Rescinded(Vec<OfferId>),
    /// Agents are asked for back, or the times have changed.
    InverseOffers(Vec<InverseOffer>),
    /// They are not, any more.
    InverseRescinded(Vec<OfferId>),
    /// A status update. Durable: consumed by (task, sequence). Sequence 0 marks an answer that is not
    /// stored and is not consumed.
    Update {
        /// Counts the stored updates of the task.
        sequence: u64,
        /// The update.
        status: TaskStatus,
    },
    /// A timer came due. Durable: consumed by (id, due).
    Timer {
        /// The timer.
        id: String,
        /// When it was due.
        due_ms: TimeMs,
    },
    /// A request came in.
    Http(HttpRequest),
    /// Answers "call me again".
    Again,
    /// The framework's configuration was replaced. Durable: consumed by version.
    ConfigChanged {
        /// Counts replacements.
        version: u64,
        /// The whole new configuration.
        config: Vec<(String, String)>,
    },
    /// State was written from outside of the scheduler. The host makes it part of what is committed
    /// before the turn.
    StateChanged {
        /// Outside writes that the instance's state has then.
        count: u64,
        /// The values of now.
        writes: Vec<KeyWrite>,
    },
    /// An executor spoke.
    Message(ExecutorMessage),
    /// An executor ended before its tasks did, or could not be started.
    ExecutorFailed {
        /// Where.
        agent: AgentId,
        /// Which one.
        executor: ExecutorId,
        /// For people.
        message: String,
    },
}

/// One launch of an accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What to launch.
    pub launch: Launch,
    /// Number of its task group within the turn; launches with the same number are launched all or none,
    /// on one agent, and end together. 0 is no group.
    pub group: u32,
}

impl From<Launch> for Member {
    fn from(launch: Launch) -> Self {
        Self { launch, group: 0 }
    }
}

/// What a scheduler asks for in a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Use offers of one agent.
    Accept {
        /// Offers, all of one agent.
        offers: Vec<OfferId>,
        /// What to launch, in order.
        launches: Vec<Member>,
        /// For what is left over.
        filters: Filters,
        /// Number of its gang within the turn: all launches of all accepts with the same number are
        /// launched all or none, over several agents. 0 is no gang.
        gang: u32,
    },
    /// Give offers back.
    Decline {
        /// The offers.
        offers: Vec<OfferId>,
        /// For all of them.
        filters: Filters,
    },
    /// Forget filters and suppression.
    Revive,
    /// No more offers.
    Suppress,
    /// Say what is waited for, instead of what was said before; nothing is anything.
    Request {
        /// All requests.
        requests: Vec<ResourceRequest>,
    },
    /// End a task.
    Kill {
        /// The task.
        task: TaskId,
        /// Time between TERM and KILL; the spec's when absent.
        grace_ms: Option<u64>,
    },
    /// Ask for states; none named is all.
    Reconcile {
        /// The tasks.
        tasks: Vec<TaskId>,
    },
    /// Set a timer.
    SetTimer {
        /// Its id.
        id: String,
        /// When it fires.
        due_ms: TimeMs,
    },
    /// Cancel a timer.
    CancelTimer {
        /// Its id.
        id: String,
    },
    /// Answer a request.
    Respond {
        /// The request.
        request: u64,
        /// The answer.
        answer: HttpAnswer,
    },
    /// Be called again at once.
    CallAgain,
    /// Send bytes to an executor, at most once.
    SendMessage(ExecutorMessage),
    /// End an executor with all of its tasks.
    ShutdownExecutor {
        /// Where.
        agent: AgentId,
        /// Which one.
        executor: ExecutorId,
    },
}

impl Operation {
    /// Whether committing this takes a log entry. Answers and requests to be called again do not by
    /// themselves.
    #[must_use]
    pub const fn changes_state(&self) -> bool {
        match self {
            Self::Accept { launches, .. } => !launches.is_empty(),
            Self::Suppress
            | Self::Revive
            | Self::Request { .. }
            | Self::Kill { .. }
            | Self::SetTimer { .. }
            | Self::CancelTimer { .. }
            | Self::ShutdownExecutor { .. } => true,
            Self::Decline { .. }
            | Self::Reconcile { .. }
            | Self::Respond { .. }
            | Self::CallAgain
            | Self::SendMessage(_) => false,
        }
    }
}

/// A durable event that the turn received and, by committing, consumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consumed {
    /// A task's status up to this sequence.
    Update {
        /// The task.
        task: TaskId,
        /// Highest sequence seen.
        sequence: u64,
    },
    /// A timer at this due time.
    Timer {
        /// The timer.
        id: String,
        /// Its due time.
        due_ms: TimeMs,
    },
    /// The configuration up to this version.
    Config {
        /// Highest version seen.
        version: u64,
    },
}

/// What a migration's step came to. Only such a turn carries one, and it has no operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationStep {
    /// Nothing is left to migrate.
    pub done: bool,
}

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyWrite {
    /// The key.
    pub key: String,
    /// The new value; none deletes.
    pub value: Option<Vec<u8>>,
}

/// Which turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnHeader {
    /// Whose.
    pub framework: FrameworkId,
    /// In which epoch.
    pub epoch: Epoch,
    /// The last committed turn plus one.
    pub number: TurnNumber,
    /// The time that the guest was given.
    pub time_ms: TimeMs,
}

/// The whole turn as one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Which.
    pub header: TurnHeader,
    /// What it consumes.
    pub consumed: Vec<Consumed>,
    /// What it asks for, in order.
    pub operations: Vec<Operation>,
    /// What it writes, each key once.
    pub writes: Vec<KeyWrite>,
    /// Specs that its launches name: digest and canonical encoding.
    pub specs: Vec<(Digest, Vec<u8>)>,
    /// Present in a turn of a migration.
    pub migration: Option<MigrationStep>,
}

impl Turn {
    /// Whether committing it takes a log entry.
    #[must_use]
    pub fn changes_state(&self) -> bool {
        self.migration.is_some()
            || !self.consumed.is_empty()
            || !self.writes.is_empty()
            || self.operations.iter().any(Operation::changes_state)
    }
}

/// Why a whole turn was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TurnRefusal {
    /// Another epoch is in force.
    #[error("the turn is of epoch {given}, in force is {current}")]
    WrongEpoch {
        /// The turn's.
        given: Epoch,
        /// The framework's.
        current: Epoch,
    },
    /// Not the next turn.
    #[error("the turn has number {given}, expected is {expected}")]
    WrongNumber {
        /// The turn's.
        given: TurnNumber,
        /// The next one.
        expected: TurnNumber,
    },
    /// It is about requests that came to a former leader, whose keys went with it: they come again.
    #[error("turn {number} is about requests that came to a former leader and come again")]
    FormerLeader {
        /// The turn's.
        number: TurnNumber,
    },
    /// A limit would be passed.
    #[error("limit {name}: {text}")]
    Limit {
        /// The limit's name.
        name: String,
        /// For people.
        text: String,
    },
    /// The framework was removed.
    #[error("there is no such framework")]
    NoFramework,
}

/// What became of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnOutcome {
    /// Committed; the next turn has this number. A turn that changed nothing leaves it as it was.
    Committed {
        /// Number of the next turn.
        next: TurnNumber,
    },
    /// Refused as a whole; nothing happened.
    Refused(TurnRefusal),
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Finest.
    Trace,
    /// For developers.
    Debug,
    /// Ordinary.
    Info,
    /// Should be looked at.
    Warn,
    /// Something failed.
    Error,
}

/// One structured log line of a guest, already within its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Time of the turn.
    pub at_ms: TimeMs,
    /// Number of the turn.
    pub turn: TurnNumber,
    /// Severity.
    pub level: LogLevel,
    /// Part of the guest that speaks; `host` for the host's own remarks.
    pub target: String,
    /// The text.
    pub text: String,
    /// Names and values.
    pub fields: Vec<(String, String)>,
}
