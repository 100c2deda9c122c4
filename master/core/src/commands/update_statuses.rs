//! Statuses that an agent reports, each once.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use tessera_types::{AgentId, FrameworkId, TaskStatus};
use tessera_wire::v1;

/// Carry it out. Repeated, unknown and foreign ones change nothing: they are acknowledged all the
/// same, so that the agent stops.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::UpdateStatuses,
) -> Result<CommandResult, RequestError> {
    let agent = AgentId(command.agent);
    if !apply.state.agents.contains_key(&agent) {
        return not_found("agent", agent);
    }
    let mut statuses = Vec::with_capacity(command.statuses.len());
    for update in command.statuses {
        let Some(status) = update.status else {
            return invalid("statuses.status", "is missing");
        };
        match TaskStatus::try_from(status) {
            Ok(status) => statuses.push((FrameworkId(update.framework), update.sequence, status)),
            Err(error) => return invalid(error.field, error.rule),
        }
    }
    for (framework, sequence, mut status) in statuses {
        let Some(task) = apply.state.live_task(framework, &status.task) else { continue };
        if task.agent != agent || sequence <= task.agent_sequence {
            continue;
        }
        status.agent = agent;
        status.attempt = status.attempt.max(1);
        let id = status.task.clone();
        apply.set_status(framework, &id, status, Some(sequence));
    }
    Ok(CommandResult::Done)
}
