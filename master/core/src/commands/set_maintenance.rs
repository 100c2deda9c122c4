//! An operator says when an agent will be worked on; schedulers are told, nothing is done by itself.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::upkeep::Maintenance;
use tessera_types::AgentId;
use tessera_types::limits::DURATION_MAX_MS;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::SetMaintenance,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let window = command.maintenance.map(Maintenance::from);
    if let Some(Maintenance { start_ms, end_ms }) = window {
        if end_ms <= start_ms {
            return invalid("end_ms", "later than start_ms");
        }
        if end_ms <= apply.time_ms {
            return invalid("end_ms", "in the future");
        }
        if end_ms > apply.time_ms.saturating_add(DURATION_MAX_MS) {
            return invalid("end_ms", "within 365 days");
        }
    }
    let Some(agent) = apply.state.agents.get_mut(&id) else { return not_found("agent", id) };
    if agent.maintenance == window {
        return Ok(CommandResult::Done);
    }
    agent.maintenance = window;
    let text = window.map(|window| format!("from {} to {}", window.start_ms, window.end_ms));
    let kind = if text.is_some() { "agent.maintenance" } else { "agent.maintenance-cancelled" };
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.event(kind, None, None, Some(id), &text.unwrap_or_default());
    Ok(CommandResult::Done)
}
