//! What applying a command asks the leader to do, and what became of the command.
//!
//! Every replica gets the same effects; only the leader performs them, and a new leader finds what is
//! undone in the state itself. Must never carry anything that is needed after a failover.

use crate::api::{EventId, RequestError};
use tessera_types::{AgentId, Digest, Epoch, FrameworkId, HttpAnswer, Reason, Resources, TaskId, TaskState, TaskStatus, TurnOutcome};

/// Something for the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A command was applied.
    Done {
        /// Term of the entry; tickets mean something only to the leader of that term.
        term: u64,
        /// The proposer's.
        ticket: u64,
        /// What became of it.
        result: CommandResult,
    },
    /// Answer a request, if it is waiting here.
    Answer {
        /// The request.
        request: u64,
        /// The answer.
        answer: HttpAnswer,
    },
    /// Tell the scheduler something that is not stored.
    Notice {
        /// Whose scheduler.
        framework: FrameworkId,
        /// The status.
        status: TaskStatus,
    },
    /// A launch was refused by the commit alone, and what it would have taken is left of its offer.
    GivenBack {
        /// Whose launch.
        framework: FrameworkId,
        /// Where.
        agent: AgentId,
        /// So much.
        resources: Resources,
    },
    /// What the agent is to do about a task changed.
    Task {
        /// The agent.
        agent: AgentId,
        /// The task's framework.
        framework: FrameworkId,
        /// The task.
        task: TaskId,
    },
    /// An agent's resources, attributes or reachability changed.
    Agent(AgentId),
    /// The list of schedulers that an agent hosts changed.
    Hosting(AgentId),
    /// The limits in force for some role changed.
    Limits,
    /// What is said of a role has changed.
    Role(String),
    /// Resources became free.
    Freed,
    /// A task of a trace is in another state.
    Traced {
        /// The task's framework.
        framework: FrameworkId,
        /// The task.
        task: TaskId,
        /// The state.
        state: TaskState,
    },
    /// A task ended: for metrics.
    Ended {
        /// How.
        state: TaskState,
        /// Why.
        reason: Reason,
    },
    /// A framework's placement changed, or there is news for its scheduler.
    Framework(FrameworkId),
    /// State was written from outside of the scheduler.
    StateWritten {
        /// Whose.
        framework: FrameworkId,
        /// Which key.
        key: String,
        /// Which write, counted over the framework's life.
        count: u64,
    },
    /// Events were written; watchers may be woken.
    Events {
        /// The newest.
        last: EventId,
    },
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandResult {
    /// It was carried out.
    Done,
    /// The agent has this number.
    Agent(AgentId),
    /// The component is known; `created` when it was not before.
    Component {
        /// Which.
        digest: Digest,
        /// Whether it is new.
        created: bool,
    },
    /// The framework was created.
    Framework(FrameworkId),
    /// The framework's component, or its configuration, has this version now.
    Version(u64),
    /// The scheduler was placed under this epoch.
    Placed(Epoch),
    /// What became of the turn.
    Turn(TurnOutcome),
    /// Nothing was changed.
    Refused(RequestError),
}
