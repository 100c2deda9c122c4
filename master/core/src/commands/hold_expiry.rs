//! The leader suspects its own side, because many agents went silent together; or it no longer does. A
//! record for operators.

use super::invalid;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::HoldExpiry,
) -> Result<CommandResult, RequestError> {
    let v1::HoldExpiry { held, silent, known } = command;
    if silent > known || known == 0 {
        return invalid("silent", "of the agents that are known");
    }
    let kind = if held { "agents.expiry-held" } else { "agents.expiry-resumed" };
    let text = format!("{silent} of {known} agents are silent");
    apply.event(kind, None, None, None, &text);
    Ok(CommandResult::Done)
}
