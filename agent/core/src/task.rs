//! One task: its phase, and the statuses that phases lead to.
//!
//! Invariants: exactly one attempt is current; a task that has ended never changes again. This file must
//! never emit an action.

use crate::action::{NativeExit, Now};
use crate::outbox::Outbox;
use crate::records::Kept;
use std::sync::Arc;
use tessera_types::{
    AgentId, Digest, ExecutorTask, Launch, Reason, Resources, RoleName, TaskBody, TaskId, TaskSpec, TaskState,
    TaskStatus, limits,
};

/// Pause before the first restart; doubled for each further one.
const RESTART_MIN_MS: u64 = 100;
/// Longest pause before a restart: a task that fails at once must not be a busy loop.
const RESTART_MAX_MS: u64 = 30_000;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// A restarted agent has asked what there is of it.
    Recovering,
    /// It is started when the pause is over.
    Waiting { until_ms: u64 },
    /// A Wasm task whose worker or image is not there yet.
    Preparing,
    /// Its start is under way.
    Starting,
    /// Its cancellation is under way.
    Cancelling,
    /// It runs.
    Running,
    /// Over, but not told yet: its executor, whose last task it was, is still ending.
    Closing(Box<TaskStatus>),
    /// Over.
    Ended(Box<TaskStatus>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Killing {
    pub grace_ms: u64,
    /// When to end it without asking; set when it was asked.
    pub force_at_ms: Option<u64>,
    /// Because its task group ends, rather than because somebody asked for it.
    pub group: bool,
}

impl Killing {
    /// Why it ends.
    pub(crate) const fn reason(&self) -> Reason {
        if self.group {
            Reason::TaskGroup
        } else {
            Reason::SchedulerKill
        }
    }
}

/// How far the sandbox of a member of a task group is, before any member starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not asked for.
    #[default]
    None,
    /// On its way.
    Asked,
    /// There.
    Made,
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub role: RoleName,
    pub launch: Launch,
    pub spec: Arc<TaskSpec>,
    pub attempt: u32,
    pub phase: Phase,
    pub wasm_sent: Option<(u32, String)>,
    /// How often its worker had no room for the current attempt.
    pub found_full: u32,
    pub killing: Option<Killing>,
    pub abandoned: bool,
    pub acked: bool,
    /// Number of its task group; 0 is none.
    pub group: u64,
    /// Of the first attempt of a member of a task group.
    pub place: Place,
    /// Its executor was given it, in a turn that is on record.
    pub launched: bool,
    /// The grace time that its executor was told when it was asked to end it.
    pub kill_told: Option<u64>,
    /// What the executor whose child it is was told of it.
    pub told: Option<(u32, TaskState)>,
    /// The newest non-terminal state.
    pub state: TaskState,
    pub outbox: Outbox,
}

fn pause_ms(doublings: u32) -> u64 {
    (RESTART_MIN_MS << doublings.min(16)).min(RESTART_MAX_MS)
}

/// How an attempt ended, before restarts are considered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    pub state: TaskState,
    pub reason: Reason,
    pub message: String,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub data: Vec<u8>,
    pub at_ms: u64,
}

impl Ending {
    pub(crate) fn new(
        state: TaskState,
        reason: Reason,
        message: impl Into<String>,
        at_ms: u64,
    ) -> Self {
        Self {
            state,
            reason,
            message: message.into(),
            exit_code: None,
            signal: None,
            data: vec![],
            at_ms,
        }
    }

    /// What an exit means when nobody asked for it.
    pub(crate) fn of_exit(exit: NativeExit) -> Self {
        let (state, reason, message) = if let Some(failure) = exit.failure {
            (TaskState::Failed, Reason::LaunchFailed, failure)
        } else if exit.code == Some(0) {
            (
                TaskState::Finished,
                Reason::None,
                exit.data_problem.unwrap_or_default(),
            )
        } else if exit.oom {
            (
                TaskState::Failed,
                Reason::MemoryLimit,
                "the kernel ended it at its memory limit".into(),
            )
        } else if let Some(code) = exit.code {
            (
                TaskState::Failed,
                Reason::CommandExited,
                format!("exited with code {code}"),
            )
        } else {
            let signal = exit.signal.unwrap_or_default();
            (
                TaskState::Failed,
                Reason::CommandSignalled,
                format!("ended by signal {signal}"),
            )
        };
        Self {
            state,
            reason,
            message,
            exit_code: exit.code,
            signal: exit.signal,
            data: exit.data,
            at_ms: exit.ended_ms,
        }
    }

    /// The status that is reported for it.
    pub(crate) fn status(mut self, task: TaskId, agent: AgentId, attempt: u32) -> TaskStatus {
        self.data.truncate(limits::RESULT_BYTES_MAX);
        let mut status = TaskStatus::new(task, agent, self.state, self.at_ms)
            .because(self.reason, &self.message);
        status.exit_code = self.exit_code;
        status.signal = self.signal;
        status.data = self.data;
        status.attempt = attempt;
        status
    }
}

impl Task {
    /// A task that has just been accepted.
    pub(crate) fn new(role: RoleName, launch: Launch, spec: Arc<TaskSpec>) -> Self {
        Self {
            role,
            launch,
            spec,
            attempt: 1,
            phase: Phase::Waiting { until_ms: 0 },
            wasm_sent: None,
            found_full: 0,
            killing: None,
            abandoned: false,
            acked: false,
            group: 0,
            place: Place::None,
            launched: false,
            kill_told: None,
            told: None,
            state: TaskState::Staging,
            outbox: Outbox::default(),
        }
    }

    /// A task as a checkpoint left it.
    pub(crate) fn of_kept(kept: Kept, now: Now) -> Self {
        let mut task = Self::new(kept.role, kept.launch, kept.spec);
        task.attempt = kept.attempt;
        task.wasm_sent = kept.wasm_sent;
        task.killing = kept.kill_grace_ms.map(|grace_ms| Killing {
            grace_ms,
            force_at_ms: None,
            group: kept.kill_group,
        });
        task.abandoned = kept.abandoned;
        task.acked = kept.acked;
        task.group = kept.group;
        task.launched = kept.launched;
        if let Some(state) = kept.state {
            task.state = state;
        }
        task.phase = Phase::Recovering;
        if let Some(status) = kept.ended {
            if !kept.acked {
                task.outbox.put(status.clone(), now);
            }
            task.phase = Phase::Ended(Box::new(status));
        }
        task
    }

    pub(crate) fn kept(&self) -> Kept {
        Kept {
            role: self.role.clone(),
            launch: self.launch.clone(),
            spec: Arc::clone(&self.spec),
            attempt: self.attempt,
            wasm_sent: self.wasm_sent.clone(),
            kill_grace_ms: self.killing.as_ref().map(|killing| killing.grace_ms),
            kill_group: self.killing.as_ref().is_some_and(|killing| killing.group),
            abandoned: self.abandoned,
            ended: self.over().cloned(),
            acked: self.acked,
            group: self.group,
            launched: self.launched,
            state: self.launched.then_some(self.state),
        }
    }

    pub(crate) const fn ended(&self) -> Option<&TaskStatus> {
        match &self.phase {
            Phase::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// How it ended, told or not.
    pub(crate) const fn over(&self) -> Option<&TaskStatus> {
        match &self.phase {
            Phase::Ended(status) | Phase::Closing(status) => Some(status),
            _ => None,
        }
    }

    /// The newest state that the agent knows.
    pub(crate) fn newest_state(&self) -> TaskState {
        self.ended().map_or(self.state, |status| status.state)
    }

    /// The component, when it is a Wasm task.
    pub(crate) fn component(&self) -> Option<Digest> {
        match &self.spec.body {
            TaskBody::Wasm { component, .. } => Some(*component),
            TaskBody::Native(_) | TaskBody::Executor(_) => None,
        }
    }

    /// The executor that runs it, as the spec describes it.
    pub(crate) fn executor_task(&self) -> Option<&ExecutorTask> {
        match &self.spec.body {
            TaskBody::Executor(task) => Some(task),
            TaskBody::Native(_) | TaskBody::Wasm { .. } => None,
        }
    }

    /// Whether it is a native command.
    pub(crate) fn is_native(&self) -> bool {
        matches!(self.spec.body, TaskBody::Native(_))
    }

    /// What it takes from the agent.
    pub(crate) fn charge(&self) -> Resources {
        if self.ended().is_some() {
            Resources::ZERO
        } else {
            self.spec.resources.clone()
        }
    }

    /// The same with its executor, whatever else runs in that: more than it takes, never less.
    pub(crate) fn charge_with_executor(&self) -> Resources {
        let executor = self.executor_task().filter(|_| self.ended().is_none());
        executor.map_or(self.charge(), |task| self.charge().plus(&task.resources))
    }

    /// Whether an attempt that ended so is followed by another.
    pub(crate) fn restarts_after(&self, ending: &Ending) -> bool {
        ending.state == TaskState::Failed
            && self.killing.is_none()
            && u64::from(self.attempt) <= u64::from(self.spec.restarts)
    }

    /// The pause before the current attempt.
    pub(crate) fn restart_pause_ms(&self) -> u64 {
        pause_ms(self.attempt.saturating_sub(2))
    }

    /// The pause after its worker had no room for it once more.
    pub(crate) fn full_pause_ms(&self) -> u64 {
        pause_ms(self.found_full)
    }
}
