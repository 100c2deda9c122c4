//! The time for a drain is over: tasks that are still there are killed, with their grace.

use super::kill_task::{grace_ms, intend};
use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use tessera_types::{AgentId, Reason};
use tessera_wire::v1;

/// Carry it out, unless the drain was called off or put off since the leader looked.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::EndDrain,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let time_ms = apply.time_ms;
    let Some(agent) = apply.state.agents.get_mut(&id) else { return not_found("agent", id) };
    let due = agent.drain.as_mut().filter(|drain| !drain.over && drain.deadline_ms <= time_ms);
    let Some(drain) = due else {
        let rule = "no drain is due".to_owned();
        return Err(RequestError::Conflict { field: "agent", rule });
    };
    drain.over = true;
    let tasks = agent.tasks.clone();
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    let text = match tasks.len() {
        0 => "no tasks were left".to_owned(),
        left => format!("{left} tasks were left and are killed"),
    };
    apply.event("agent.drain-over", None, None, Some(id), &text);
    for (framework, task) in tasks {
        let grace_ms = grace_ms(apply.state, framework, &task, None);
        intend(apply, framework, &task, grace_ms, Reason::AgentDraining);
    }
    Ok(CommandResult::Done)
}
