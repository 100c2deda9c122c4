//! Tasks that a restored state does not know have ended, or an operator wants them to.
//!
//! Invariant: their ids stay refused, so that their agent ends them whenever it is heard of.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use std::collections::BTreeSet;
use tessera_types::{AgentId, FrameworkId, TaskId};
use tessera_wire::v1;

/// Carry it out; what is no stranger there is passed over.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::EndStrangers,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let Some(agent) = apply.state.agents.get_mut(&id) else { return not_found("agent", id) };
    let named = command.tasks.into_iter();
    let named = named.filter_map(|name| Some((FrameworkId(name.framework), TaskId::try_from(name.task).ok()?)));
    let named: BTreeSet<(FrameworkId, TaskId)> = named.collect();
    let mut left = agent.strangers.clone();
    let mut ended = Vec::new();
    left.retain(|key, _| {
        let ends = command.all || named.contains(key);
        ended.extend(Some(key.clone()).filter(|_| ends));
        !ends
    });
    if ended.is_empty() {
        return Ok(CommandResult::Done);
    }
    agent.set_strangers(left);
    let text = match command.all {
        true => format!("{} tasks that the restored state does not know are to end", ended.len()),
        false => format!("{} tasks that the restored state does not know have ended", ended.len()),
    };
    for (framework, task) in ended {
        // That of a framework which is here was used when it was noted.
        if !apply.state.frameworks.contains_key(&framework) {
            apply.use_id(framework, &task);
        }
        apply.effect(Effect::Task { agent: id, framework, task });
    }
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.effect(Effect::Freed);
    apply.event("agent.strangers-ended", None, None, Some(id), &text);
    Ok(CommandResult::Done)
}
