//! An operator knows that an agent will not come back: its tasks have ended, its resources are no more.
//!
//! Invariant: its number is never used again, and its key is refused, so that a machine that does come back
//! ends what it runs and registers anew.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::limits::GONE_AGENTS_MAX;
use crate::upkeep::Gone;
use tessera_types::{AgentId, FrameworkId, Reason, TaskState, TaskStatus};
use tessera_wire::v1;

/// Carry it out; repeating it changes nothing.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::MarkGone,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let time_ms = apply.time_ms;
    if apply.state.gone.values().any(|gone| gone.agent == id) {
        return Ok(CommandResult::Done);
    }
    let Some(agent) = apply.state.agents.get(&id) else { return not_found("agent", id) };
    let (key, hostname, tasks) = (agent.key.clone(), agent.hostname.clone(), agent.tasks.clone());
    for (framework, task) in tasks {
        let attempt = apply.state.task(framework, &task).map_or(1, |task| task.attempt);
        let mut status = TaskStatus::new(task.clone(), id, TaskState::GoneByOperator, time_ms)
            .because(Reason::AgentRemoved, &format!("agent {id} was declared gone"));
        status.attempt = attempt;
        apply.set_status(framework, &task, status, None);
    }
    let hosted = apply.state.frameworks.iter_mut().filter(|(_, f)| f.agent == Some(id));
    let hosted: Vec<FrameworkId> = hosted
        .map(|(framework, owner)| {
            owner.agent = None;
            *framework
        })
        .collect();
    for framework in hosted {
        apply.mark(Dirty::Framework(framework));
        apply.effect(Effect::Framework(framework));
    }
    apply.state.agents.remove(&id);
    apply.state.agent_keys.remove(&key);
    while apply.state.gone.len() >= GONE_AGENTS_MAX {
        let oldest = apply.state.gone.iter().min_by_key(|(_, gone)| (gone.at_ms, gone.agent));
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
        apply.state.gone.remove(&oldest);
        apply.mark(Dirty::Gone(oldest));
    }
    apply.state.gone.insert(key.clone(), Gone { agent: id, at_ms: time_ms, hostname: hostname.clone() });
    apply.mark(Dirty::Gone(key));
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.effect(Effect::Freed);
    apply.event("agent.gone", None, None, Some(id), &hostname);
    Ok(CommandResult::Done)
}
