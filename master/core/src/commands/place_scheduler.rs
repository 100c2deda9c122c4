//! Put a framework's scheduler onto an agent, under a new epoch that fences the old one.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use tessera_types::{AgentId, Epoch, FrameworkId};
use tessera_wire::v1;

/// Carry it out, unless somebody placed it since the leader looked.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::PlaceScheduler,
) -> Result<CommandResult, RequestError> {
    let (id, agent) = (FrameworkId(command.framework), AgentId(command.agent));
    let Some(row) = apply.state.agents.get(&agent) else { return not_found("agent", agent) };
    if row.deactivated {
        let rule = "is deactivated".to_owned();
        return Err(RequestError::Conflict { field: "agent", rule });
    }
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id).filter(|f| !f.removing) else {
        return not_found("framework", id);
    };
    if framework.epoch != Epoch(command.epoch) {
        let rule = format!("{} is in force, not {}", framework.epoch, Epoch(command.epoch));
        return Err(RequestError::Conflict { field: "epoch", rule });
    }
    if framework.quarantine.is_some() {
        let rule = "is quarantined; it has to be released first".to_owned();
        return Err(RequestError::Conflict { field: "framework", rule });
    }
    let before = framework.agent.replace(agent);
    framework.epoch = Epoch(framework.epoch.0 + 1);
    framework.placed_ms = time_ms;
    let epoch = framework.epoch;
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    for agent in before.into_iter().chain([agent]) {
        apply.effect(Effect::Hosting(agent));
    }
    apply.event("framework.placed", Some(id), None, Some(agent), &format!("epoch {epoch}"));
    Ok(CommandResult::Placed(epoch))
}
