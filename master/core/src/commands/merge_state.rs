//! Fold a part of what a finished upgrade has written into the state.

use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::generation;
use crate::limits::{MERGE_BYTES_MAX, MERGE_KEYS_MAX};
use crate::rows::RowsError;
use tessera_types::FrameworkId;
use tessera_wire::v1;

/// Carry it out; what instances see does not change.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::MergeState,
) -> Result<CommandResult, RowsError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get(&id) else {
        let (what, name) = ("framework", id.to_string());
        return Ok(CommandResult::Refused(RequestError::NotFound { what, name }));
    };
    if !framework.merging {
        return Ok(CommandResult::Done);
    }
    let done = generation::fold(&mut apply.rows, id, MERGE_KEYS_MAX, MERGE_BYTES_MAX)?;
    if done && let Some(framework) = apply.state.frameworks.get_mut(&id) {
        framework.merging = false;
        apply.mark(Dirty::Framework(id));
    }
    apply.effect(Effect::Framework(id));
    Ok(CommandResult::Done)
}
