//! Give the cluster its id, once.

use super::invalid;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use tessera_wire::v1;

/// Carry it out; a cluster that has an id keeps it.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::InitCluster,
) -> Result<CommandResult, RequestError> {
    if command.cluster.is_empty() || command.cluster.len() > 64 {
        return invalid("cluster", "1 to 64 bytes");
    }
    if apply.state.meta.cluster.is_empty() {
        apply.state.meta.cluster = command.cluster;
        let text = apply.state.meta.cluster.clone();
        apply.event("cluster.created", None, None, None, &text);
    }
    Ok(CommandResult::Done)
}
