//! Record that a scheduler's instance failed: an event, nothing else.

use super::not_found;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use tessera_types::{Epoch, FrameworkId};
use tessera_types::limits::MESSAGE_BYTES_MAX;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RecordFailure,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get(&id) else {
        return not_found("framework", id);
    };
    if framework.epoch != Epoch(command.epoch) {
        return Ok(CommandResult::Done);
    }
    let agent = framework.agent;
    let text: String =
        format!("{}: {}", command.reason, command.message).chars().take(MESSAGE_BYTES_MAX).collect();
    apply.event("framework.failed", Some(id), None, agent, &text);
    Ok(CommandResult::Done)
}
