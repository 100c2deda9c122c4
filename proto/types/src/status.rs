//! Task states, the one transition table, reasons and status updates.
//!
//! Invariants: a terminal state is never left; from STAGING on the agent is the only writer, except
//! that the master writes UNREACHABLE, DROPPED, LOST and GONE. Matches are exhaustive, so that a new
//! state cannot be forgotten.

use crate::{AgentId, TaskId, TimeMs};
use serde::{Deserialize, Serialize};
use std::fmt;

/// States of a task, as in Mesos.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Accepted by the master; the agent has not spoken yet.
    Staging,
    /// The agent prepares it.
    Starting,
    /// It runs.
    Running,
    /// It has been asked to end.
    Killing,
    /// Ended with success.
    Finished,
    /// Ended with failure.
    Failed,
    /// Ended because it was asked to.
    Killed,
    /// Its description was wrong.
    Error,
    /// Never started; launching it again under another id is safe.
    Dropped,
    /// The agent knows nothing of it any more.
    Lost,
    /// Its agent was removed.
    Gone,
    /// Its agent was declared gone by an operator.
    GoneByOperator,
    /// Its agent does not answer; it may still run.
    Unreachable,
    /// Never heard of; only as an answer, never stored.
    Unknown,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 14] = [
        Self::Staging,
        Self::Starting,
        Self::Running,
        Self::Killing,
        Self::Finished,
        Self::Failed,
        Self::Killed,
        Self::Error,
        Self::Dropped,
        Self::Lost,
        Self::Gone,
        Self::GoneByOperator,
        Self::Unreachable,
        Self::Unknown,
    ];

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Finished
            | Self::Failed
            | Self::Killed
            | Self::Error
            | Self::Dropped
            | Self::Lost
            | Self::Gone
            | Self::GoneByOperator => true,
            Self::Staging
            | Self::Starting
            | Self::Running
            | Self::Killing
            | Self::Unreachable
            | Self::Unknown => false,
        }
    }

    /// The Mesos name, for example `TASK_RUNNING`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staging => "TASK_STAGING",
            Self::Starting => "TASK_STARTING",
            Self::Running => "TASK_RUNNING",
            Self::Killing => "TASK_KILLING",
            Self::Finished => "TASK_FINISHED",
            Self::Failed => "TASK_FAILED",
            Self::Killed => "TASK_KILLED",
            Self::Error => "TASK_ERROR",
            Self::Dropped => "TASK_DROPPED",
            Self::Lost => "TASK_LOST",
            Self::Gone => "TASK_GONE",
            Self::GoneByOperator => "TASK_GONE_BY_OPERATOR",
            Self::Unreachable => "TASK_UNREACHABLE",
            Self::Unknown => "TASK_UNKNOWN",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A transition that the table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task in {from} does not become {to}")]
pub struct IllegalTransition {
    /// Where it was.
    pub from: TaskState,
    /// Where it was to go.
    pub to: TaskState,
}

/// The transition table. `Ok` also for staying in a non-terminal state, which is how a repeated
/// update looks. RUNNING → STARTING is a restart by the agent, and goes with a higher attempt.
///
/// # Errors
/// When the table has no such step.
pub const fn check_transition(from: TaskState, to: TaskState) -> Result<(), IllegalTransition> {
    use TaskState as S;
    let legal = match (from, to) {
        (_, S::Unknown) | (S::Unknown, _) => false,
        (_, S::Staging) => matches!(from, S::Staging),
        (
            S::Staging,
            S::Starting
            | S::Running
            | S::Killing
            | S::Unreachable
            | S::Finished
            | S::Failed
            | S::Killed
            | S::Error
            | S::Dropped
            | S::Lost
            | S::Gone
            | S::GoneByOperator,
        ) => true,
        // A task that has begun can no longer be dropped.
        (
            S::Starting | S::Running | S::Unreachable,
            S::Starting
            | S::Running
            | S::Killing
            | S::Unreachable
            | S::Finished
            | S::Failed
            | S::Killed
            | S::Error
            | S::Lost
            | S::Gone
            | S::GoneByOperator,
        ) => true,
        (S::Unreachable, S::Dropped) => true,
        (S::Starting | S::Running, S::Dropped) => false,
        (
            S::Killing,
            S::Killing
            | S::Unreachable
            | S::Finished
            | S::Failed
            | S::Killed
            | S::Error
            | S::Dropped
            | S::Lost
            | S::Gone
            | S::GoneByOperator,
        ) => true,
        (S::Killing, S::Starting | S::Running) => false,
        (
            S::Finished
            | S::Failed
            | S::Killed
            | S::Error
            | S::Dropped
            | S::Lost
            | S::Gone
            | S::GoneByOperator,
            _,
        ) => false,
    };
    if legal { Ok(()) } else { Err(IllegalTransition { from, to }) }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)+) => {
        /// Why a task is in its state. Unknown codes of newer peers become `Other`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            /// The state says it all.
            #[default]
            None,
            $($(#[$doc])* $name,)+
            /// A code that this version does not know.
            Other,
        }

        impl Reason {
            /// Every reason that has a code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code, for example `MEMORY_LIMIT`; empty for none.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self {
                    Self::None => "",
                    $(Self::$name => $code,)+
                    Self::Other => "OTHER",
                }
            }

            /// The reason of a code.
            #[must_use]
            pub fn of_code(code: &str) -> Self {
                match code {
                    "" => Self::None,
                    $($code => Self::$name,)+
                    _ => Self::Other,
                }
            }
        }
    };
}

reasons! {
    /// The command ended by itself with a code other than zero.
    CommandExited = "COMMAND_EXITED",
    /// A signal that nobody here sent ended the command.
    CommandSignalled = "COMMAND_SIGNALLED",
    /// The command could not be started.
    LaunchFailed = "LAUNCH_FAILED",
    /// The kernel killed it for using more memory than it was given.
    MemoryLimit = "MEMORY_LIMIT",
    /// The guest trapped.
    Trapped = "TRAPPED",
    /// The guest reached a limit; the message names it.
    GuestLimit = "GUEST_LIMIT",
    /// The worker process that ran it ended.
    WorkerLost = "WORKER_LOST",
    /// The shim that ran it ended without leaving an exit status.
    ShimLost = "SHIM_LOST",
    /// The agent's machine was started anew.
    AgentRebooted = "AGENT_REBOOTED",
    /// The agent no longer knows the task.
    AgentForgot = "AGENT_FORGOT",
    /// The agent did not answer for too long.
    AgentUnreachable = "AGENT_UNREACHABLE",
    /// The agent answers again.
    AgentReregistered = "AGENT_REREGISTERED",
    /// The agent was removed.
    AgentRemoved = "AGENT_REMOVED",
    /// The agent is being drained, and the time for it is over.
    AgentDraining = "AGENT_DRAINING",
    /// The agent did not answer for as long as the framework's policy waits.
    UnreachableTooLong = "UNREACHABLE_TOO_LONG",
    /// A quota limit of its role, or of one above, would be passed; the message names it.
    Quota = "QUOTA",
    /// It was revocable, and a role needs what it had.
    Preempted = "PREEMPTED",
    /// An offer that was accepted is unknown, expired, foreign or was used before.
    InvalidOffer = "INVALID_OFFER",
    /// A revocable task was launched on an offer that is not, or the reverse.
    Revocable = "REVOCABLE_NEEDS_REVOCABLE_OFFER",
    /// More was launched than was offered, or than is free.
    NotEnough = "NOT_ENOUGH_RESOURCES",
    /// Another member of its task group could not be launched, or ended.
    TaskGroup = "TASK_GROUP",
    /// Another launch of its gang could not be.
    Gang = "GANG",
    /// Its executor ended or could not be started.
    ExecutorTerminated = "EXECUTOR_TERMINATED",
    /// The task id was used before.
    DuplicateTask = "DUPLICATE_TASK",
    /// The spec is not known.
    SpecUnknown = "SPEC_UNKNOWN",
    /// The component is not known, or not usable by this role.
    ComponentUnknown = "COMPONENT_UNKNOWN",
    /// The spec or launch breaks a rule.
    InvalidSpec = "INVALID_SPEC",
    /// The agent is not reachable or is going away.
    AgentUnavailable = "AGENT_UNAVAILABLE",
    /// A limit of the framework was reached; the message names it.
    FrameworkLimit = "FRAMEWORK_LIMIT",
    /// It was asked for by the scheduler.
    SchedulerKill = "SCHEDULER_KILL",
    /// It was asked for by a user through the API.
    UserKill = "USER_KILL",
    /// The framework was removed.
    FrameworkRemoved = "FRAMEWORK_REMOVED",
    /// The answer to a question of the scheduler.
    Reconciliation = "RECONCILIATION",
}

/// One status update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Which task.
    pub task: TaskId,
    /// Where.
    pub agent: AgentId,
    /// Its state.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people, at most [`crate::limits::MESSAGE_BYTES_MAX`].
    pub message: String,
    /// Exit code, when it exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Content of the result file; only in a terminal status.
    pub data: Vec<u8>,
    /// Starts at 1; counts restarts by the agent.
    pub attempt: u32,
    /// Time of the event.
    pub at_ms: TimeMs,
}

impl TaskStatus {
    /// A status without details.
    #[must_use]
    pub fn new(task: TaskId, agent: AgentId, state: TaskState, at_ms: TimeMs) -> Self {
        Self {
            task,
            agent,
            state,
            reason: Reason::None,
            message: String::new(),
            exit_code: None,
            signal: None,
            data: Vec::new(),
            attempt: 1,
            at_ms,
        }
    }

    /// The same with a reason and a message, which is cut at its limit.
    #[must_use]
    pub fn because(mut self, reason: Reason, message: &str) -> Self {
        let mut end = message.len().min(crate::limits::MESSAGE_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.reason = reason;
        message[..end].clone_into(&mut self.message);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_states_are_never_left() {
        for from in TaskState::ALL.into_iter().filter(|s| s.is_terminal()) {
            for to in TaskState::ALL {
                assert!(check_transition(from, to).is_err(), "{from} {to}");
            }
        }
    }

    #[test]
    fn every_live_state_can_end() {
        for from in TaskState::ALL.into_iter().filter(|s| !s.is_terminal()) {
            let ends = TaskState::ALL
                .into_iter()
                .filter(|to| to.is_terminal() && check_transition(from, *to).is_ok());
            let expected = match from {
                TaskState::Unknown => 0,
                TaskState::Starting | TaskState::Running => 7,
                _ => 8,
            };
            assert_eq!(ends.count(), expected, "{from}");
        }
    }

    #[test]
    fn nothing_goes_back_to_staging_or_from_killing_to_running() {
        for from in TaskState::ALL {
            let legal = check_transition(from, TaskState::Staging).is_ok();
            assert_eq!(legal, from == TaskState::Staging);
        }
        assert!(check_transition(TaskState::Killing, TaskState::Running).is_err());
        assert!(check_transition(TaskState::Running, TaskState::Starting).is_ok());
    }

    #[test]
    fn reasons_round_trip_by_code() {
        for reason in Reason::ALL {
            assert_eq!(Reason::of_code(reason.code()), *reason);
        }
        assert_eq!(Reason::of_code("FROM_THE_FUTURE"), Reason::Other);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let status = TaskStatus::new("t".parse().unwrap(), AgentId(1), TaskState::Failed, 0);
        let long = "ä".repeat(1000);
        let cut = status.because(Reason::CommandExited, &long).message;
        assert_eq!(cut.len(), crate::limits::MESSAGE_BYTES_MAX);
    }
}
