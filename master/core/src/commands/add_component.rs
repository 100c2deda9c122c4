//! Make a component known. Idempotent by digest.

use super::invalid;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::codec;
use crate::effect::CommandResult;
use crate::limits::COMPONENTS_MAX;
use crate::state::Component;
use tessera_types::Digest;
use tessera_types::limits::COMPONENT_BYTES_MAX;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::AddComponent,
) -> Result<CommandResult, RequestError> {
    let Some(world) = codec::world(command.world()) else {
        return invalid("world", "is not set");
    };
    let Ok(digest) = Digest::from_slice(&command.digest) else {
        return invalid("digest", "32 bytes");
    };
    if command.size_bytes == 0 || command.size_bytes > COMPONENT_BYTES_MAX {
        return invalid("size_bytes", format!("1 to {COMPONENT_BYTES_MAX}"));
    }
    if apply.state.components.contains_key(&digest) {
        return Ok(CommandResult::Component { digest, created: false });
    }
    if apply.state.components.len() >= COMPONENTS_MAX {
        let rule = format!("at most {COMPONENTS_MAX}");
        return Err(RequestError::Limit { name: "COMPONENTS_MAX", rule });
    }
    let component = Component {
        size_bytes: command.size_bytes,
        world,
        principal: apply.principal.clone(),
        added_ms: apply.time_ms,
    };
    apply.state.components.insert(digest, component);
    apply.mark(Dirty::Component(digest));
    apply.event("component.added", None, None, None, &format!("{digest} ({})", world.name()));
    Ok(CommandResult::Component { digest, created: true })
}
