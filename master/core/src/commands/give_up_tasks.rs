//! An agent has not answered for as long as a framework lets its tasks wait.
//!
//! Invariants: tasks that are given up end, and are not charged any more; the agent stops them when it
//! returns, because nothing wants them. Tasks that are kept stay as they were, charged, and their scheduler
//! is told once that it may replace them.

use super::not_found;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use crate::state::{Agent, Framework, Task};
use crate::upkeep::Keep;
use tessera_types::{AgentId, FrameworkId, Reason, TaskId, TaskState, TaskStatus, TimeMs};
use tessera_wire::v1;

/// Whether the policy of a framework has run out for an agent.
pub(crate) fn due(framework: &Framework, agent: &Agent, time_ms: TimeMs) -> bool {
    match (framework.unreachable.replace_after_ms, agent.unreachable_ms) {
        (Some(after_ms), Some(since_ms)) => since_ms.saturating_add(after_ms) <= time_ms,
        _ => false,
    }
}

/// Whether there is something left to do about a task whose policy has run out.
pub(crate) fn waits(framework: &Framework, task: &Task) -> bool {
    let told = task.status.reason == Reason::UnreachableTooLong;
    task.state == TaskState::Unreachable && (framework.unreachable.keep == Keep::Last || !told)
}

/// Carry it out, unless the agent answered since the leader looked.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::GiveUpTasks,
) -> Result<CommandResult, RequestError> {
    let (id, agent_id) = (FrameworkId(command.framework), AgentId(command.agent));
    let time_ms = apply.time_ms;
    let Some(agent) = apply.state.agents.get(&agent_id) else {
        return not_found("agent", agent_id);
    };
    let Some(framework) = apply.state.frameworks.get(&id) else {
        return not_found("framework", id);
    };
    if !due(framework, agent, time_ms) {
        let rule = "answers, or may still".to_owned();
        return Err(RequestError::Conflict { field: "agent", rule });
    }
    let keep = framework.unreachable.keep;
    let here = agent.tasks.iter().filter(|(owner, _)| *owner == id);
    let tasks = here.filter_map(|(_, task)| Some((task, framework.tasks.get(task)?)));
    let tasks: Vec<(TaskId, u32)> = tasks
        .filter(|(_, row)| waits(framework, row))
        .map(|(task, row)| (task.clone(), row.attempt))
        .collect();
    let (state, message) = match keep {
        Keep::First => (TaskState::Unreachable, "launch another one if you like; it goes on if its agent returns"),
        Keep::Last => (TaskState::Gone, "given up; it is stopped if its agent returns"),
    };
    for (task, attempt) in tasks {
        let mut status = TaskStatus::new(task.clone(), agent_id, state, time_ms)
            .because(Reason::UnreachableTooLong, message);
        status.attempt = attempt;
        apply.set_status(id, &task, status, None);
    }
    Ok(CommandResult::Done)
}
