//! Tasks as the API shows them.

use super::views::ResourcesJson;
use schemars::JsonSchema;
use serde::Serialize;
use tessera_master_core::{StatusStep, TaskLine};
use tessera_types::{AgentId, TaskState};

/// A task.
#[derive(Serialize, JsonSchema)]
pub struct TaskJson {
    /// The framework's id.
    framework: String,
    /// The framework's name.
    framework_name: String,
    /// Its id, unique in its framework.
    task: String,
    /// The name in its spec.
    name: String,
    /// Where it is; null when it was never placed.
    agent: Option<String>,
    /// For example `TASK_RUNNING`.
    state: &'static str,
    /// Why it is in this state; empty when the state says it all.
    reason: &'static str,
    /// Details for people.
    message: String,
    /// Of a command that exited.
    exit_code: Option<i32>,
    /// That ended it.
    signal: Option<i32>,
    /// Restarts by the agent plus one.
    attempt: u32,
    /// What it is charged for, or was.
    resources: ResourcesJson,
    /// It may be ended at any time to make room.
    revocable: bool,
    /// Digest of its spec.
    spec: String,
    /// Its task group.
    group: Option<u64>,
    /// The executor that runs it.
    executor: Option<String>,
    /// Somebody asked for its end.
    kill_requested: bool,
    /// When it was accepted.
    launched_ms: u64,
    /// When its state last changed.
    updated_ms: u64,
    /// What it waits for.
    why: Option<&'static str>,
    /// The states that it was in, oldest first, at most 16; in the answer about one task only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    history: Vec<StepJson>,
}

/// A state that a task was in.
#[derive(Serialize, JsonSchema)]
pub struct StepJson {
    /// Which.
    state: &'static str,
    /// Why; empty when the state says it all.
    reason: &'static str,
    /// When it was committed.
    at_ms: u64,
    /// Of which attempt.
    attempt: u32,
}

impl From<StatusStep> for StepJson {
    fn from(step: StatusStep) -> Self {
        Self { state: step.state.name(), reason: step.reason.code(), at_ms: step.at_ms, attempt: step.attempt }
    }
}

impl TaskJson {
    /// A task of a list.
    pub fn of(line: TaskLine) -> Self {
        let TaskLine { view, framework_name, connected } = line;
        let why = match view.state {
            TaskState::Staging if connected => Some("the agent has been told and has not answered yet"),
            TaskState::Staging => Some("the agent is not connected"),
            TaskState::Unreachable => Some("the agent does not answer"),
            _ => None,
        };
        Self {
            framework: view.framework.to_string(),
            framework_name,
            task: view.launch.task.to_string(),
            name: view.name,
            agent: (view.agent != AgentId(0)).then(|| view.agent.to_string()),
            state: view.state.name(),
            reason: view.status.reason.code(),
            message: view.status.message,
            exit_code: view.status.exit_code,
            signal: view.status.signal,
            attempt: view.attempt,
            resources: view.resources.into(),
            revocable: view.revocable,
            spec: view.launch.spec.to_string(),
            group: view.group,
            executor: view.executor.map(|executor| executor.to_string()),
            kill_requested: view.kill_requested,
            launched_ms: view.created_ms,
            updated_ms: view.status.at_ms,
            why,
            history: Vec::new(),
        }
    }

    /// A task by itself.
    pub fn with_history(mut line: TaskLine) -> Self {
        let steps = std::mem::take(&mut line.view.steps);
        let accepted = StepJson { state: TaskState::Staging.name(), reason: "", at_ms: line.view.created_ms, attempt: 1 };
        // Whoever never ran was not accepted either; and the first step goes when there are too many.
        let whole = steps.len() < tessera_master_core::STEPS_MAX;
        let begins = whole && line.view.state != TaskState::Dropped && !(steps.is_empty() && line.view.state != TaskState::Staging);
        let first = begins.then_some(accepted);
        let history = first.into_iter().chain(steps.into_iter().map(StepJson::from)).collect();
        Self { history, ..Self::of(line) }
    }
}
