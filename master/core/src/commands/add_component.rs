//! Make a component known. Idempotent by digest.

use super::invalid;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::codec;
use crate::effect::CommandResult;
use crate::lifecycle::StateVersions;
use crate::limits::{COMPONENTS_MAX, REPORT_BYTES_MAX, SOURCE_BYTES_MAX, STATE_READS_MAX};
use crate::rows;
use crate::state::Component;
use tessera_types::{Digest, LimitName};
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
    let state: StateVersions = command.state.map(Into::into).unwrap_or_default();
    if state.reads.len() > STATE_READS_MAX {
        return invalid("state.reads", format!("at most {STATE_READS_MAX} versions"));
    }
    if command.source.len() > SOURCE_BYTES_MAX {
        return invalid("source", format!("at most {SOURCE_BYTES_MAX} bytes"));
    }
    if command.report.len() > REPORT_BYTES_MAX {
        return invalid("report", format!("at most {REPORT_BYTES_MAX} bytes"));
    }
    if apply.state.components.contains_key(&digest) {
        return Ok(CommandResult::Component { digest, created: false });
    }
    let max = apply.state.cluster_limits().get(LimitName::ComponentBytes);
    if command.size_bytes == 0 || command.size_bytes > max {
        return invalid("size_bytes", format!("limit {}: 1 to {max}", LimitName::ComponentBytes));
    }
    if apply.state.components.len() >= COMPONENTS_MAX {
        let rule = format!("at most {COMPONENTS_MAX}; `tessera component prune` removes those that nothing uses");
        return Err(RequestError::Limit { name: "COMPONENTS_MAX", rule });
    }
    let component = Component {
        size_bytes: command.size_bytes,
        world,
        principal: apply.principal.clone(),
        added_ms: apply.time_ms,
        state,
        source: command.source,
    };
    let row = component.encode(&digest, command.report);
    apply.rows.put(rows::COMPONENTS, digest.0.to_vec(), row);
    apply.state.components.insert(digest, component);
    apply.event("component.added", None, None, None, &format!("{digest} ({})", world.name()));
    Ok(CommandResult::Component { digest, created: true })
}
