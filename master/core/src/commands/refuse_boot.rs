//! Two machines claim to be one agent at the same time: the one that came second has a copy of the work
//! directory, and is refused from now on, by every leader.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::CommandResult;
use crate::limits::AGENT_KEY_BYTES_MAX;
use tessera_types::AgentId;
use tessera_wire::v1;

/// Carry it out; repeating it changes nothing.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RefuseBoot,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    if command.boot.is_empty() || command.boot.len() > AGENT_KEY_BYTES_MAX {
        return invalid("boot", format!("1 to {AGENT_KEY_BYTES_MAX} bytes"));
    }
    let Some(agent) = apply.state.agents.get_mut(&id) else { return not_found("agent", id) };
    if agent.boot == command.boot || agent.boots_before.contains(&command.boot) {
        return Ok(CommandResult::Done);
    }
    agent.end_boot(command.boot);
    let hostname = agent.hostname.clone();
    apply.mark(Dirty::Agent(id));
    apply.event("agent.copied", None, None, Some(id), &hostname);
    Ok(CommandResult::Done)
}
