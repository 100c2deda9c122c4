//! An operator takes an agent out of use, has it emptied, or puts it to use again.
//!
//! Invariants: a drained agent is deactivated, too; what runs on an agent is left alone until the drain's
//! deadline. Kills of a drain that is called off after that stand.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::upkeep::Drain;
use tessera_types::AgentId;
use tessera_types::limits::DURATION_MAX_MS;
use tessera_wire::v1;

/// Carry it out; what is so already is no news.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::SetAgentMode,
) -> Result<CommandResult, RequestError> {
    let id = AgentId(command.agent);
    let time_ms = apply.time_ms;
    if command.drain_ms.is_some_and(|ms| ms > DURATION_MAX_MS) {
        return invalid("within_ms", format!("at most {DURATION_MAX_MS}"));
    }
    let Some(agent) = apply.state.agents.get_mut(&id) else { return not_found("agent", id) };
    let deactivated = command.deactivated || command.drain_ms.is_some();
    let drain = match (command.drain_ms, agent.drain) {
        // Everything on it is being killed already.
        (Some(_), Some(drain)) if drain.over => Some(drain),
        (Some(ms), drain) => Some(Drain {
            since_ms: drain.map_or(time_ms, |drain| drain.since_ms),
            deadline_ms: time_ms + ms,
            over: false,
        }),
        (None, drain) if deactivated => drain,
        (None, _) => None,
    };
    if agent.deactivated == deactivated && agent.drain == drain {
        return Ok(CommandResult::Done);
    }
    let (kind, text) = match drain {
        Some(drain) if command.drain_ms.is_some() => {
            ("agent.draining", format!("until {}", drain.deadline_ms))
        }
        _ if deactivated => ("agent.deactivated", String::new()),
        _ => ("agent.activated", String::new()),
    };
    agent.deactivated = deactivated;
    agent.drain = drain;
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.event(kind, None, None, Some(id), &text);
    Ok(CommandResult::Done)
}
