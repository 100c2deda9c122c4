//! An agent has not answered for too long: its tasks may still run, but nobody can say so.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use tessera_types::{AgentId, Reason, TaskState, TaskStatus};
use tessera_wire::v1;

/// Carry it out. Tasks stay charged.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::MarkUnreachable,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let time_ms = apply.time_ms;
    let Some(agent) = apply.state.agents.get_mut(&id) else {
        return not_found("agent", id);
    };
    if agent.unreachable_ms.is_some() {
        return Ok(CommandResult::Done);
    }
    agent.unreachable_ms = Some(time_ms);
    let hostname = agent.hostname.clone();
    let tasks = agent.tasks.clone();
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.event("agent.unreachable", None, None, Some(id), &hostname);
    for (framework, task) in tasks {
        let attempt = apply.state.task(framework, &task).map_or(1, |task| task.attempt);
        let mut status = TaskStatus::new(task.clone(), id, TaskState::Unreachable, time_ms)
            .because(Reason::AgentUnreachable, &format!("agent {id} does not answer"));
        status.attempt = attempt;
        apply.set_status(framework, &task, status, None);
    }
    Ok(CommandResult::Done)
}
