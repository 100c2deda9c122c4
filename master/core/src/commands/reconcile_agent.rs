//! At the start of a session the agent's set of tasks differed from the master's.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use crate::state::Task;
use tessera_types::{AgentId, FrameworkId, Reason, TaskId, TaskState, TaskStatus};
use tessera_wire::v1;

/// What a difference means for a task, if anything.
pub(crate) fn verdict(task: &Task, reported: Option<TaskState>) -> Option<(TaskState, Reason)> {
    match reported {
        // No word of it ever came: the launch did not arrive and is sent again. An agent writes down
        // what it is to run before it speaks of it, and forgets only what has ended here.
        None if task.agent_sequence == 0 => None,
        None => Some((TaskState::Lost, Reason::AgentForgot)),
        Some(state) if task.state == TaskState::Unreachable && !state.is_terminal() => {
            Some((state, Reason::AgentReregistered))
        }
        // The agent repeats what was not acknowledged.
        Some(_) => None,
    }
}

/// Carry it out. A task that is not as the leader saw it any more is left alone.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::ReconcileAgent,
) -> Result<CommandResult, RequestError> {
    let agent = AgentId(command.agent);
    if !apply.state.agents.contains_key(&agent) {
        return not_found("agent", agent);
    }
    let mut tasks = Vec::with_capacity(command.tasks.len());
    for entry in command.tasks {
        let state = match entry.state() {
            v1::TaskState::Unspecified => None,
            state => TaskState::try_from(state).ok(),
        };
        let Ok(id) = TaskId::try_from(entry.task) else {
            return invalid("tasks.task", "is not a task id");
        };
        tasks.push((FrameworkId(entry.framework), id, state, entry.attempt));
    }
    for (framework, id, reported, attempt) in tasks {
        let Some(task) = apply.state.live_task(framework, &id).filter(|task| task.agent == agent)
        else {
            continue;
        };
        let Some((state, reason)) = verdict(task, reported) else { continue };
        let message = match state {
            TaskState::Lost => "the agent knows nothing of it any more",
            _ => "the agent answers again",
        };
        let mut status = TaskStatus::new(id.clone(), agent, state, apply.time_ms)
            .because(reason, message);
        status.attempt = if attempt == 0 { task.attempt } else { attempt };
        apply.set_status(framework, &id, status, None);
    }
    Ok(CommandResult::Done)
}
