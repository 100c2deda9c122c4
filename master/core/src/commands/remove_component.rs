//! Forget a component that nothing uses. Its file goes from each master after a grace.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use crate::limits::USES_NAMED_MAX;
use crate::rows;
use tessera_types::Digest;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: &v1::RemoveComponent,
) -> Result<CommandResult, RequestError> {
    let Ok(digest) = Digest::from_slice(&command.digest) else {
        return invalid("digest", "32 bytes");
    };
    let Some(component) = apply.state.components.get(&digest) else {
        return not_found("component", digest);
    };
    let world = component.world.name();
    let uses = apply.state.component_uses(&digest);
    if !uses.is_empty() {
        let named: Vec<String> = uses.iter().take(USES_NAMED_MAX).map(ToString::to_string).collect();
        let more = match uses.len() - named.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let rule = format!(
            "{digest} is used by {}{more}; these have to end, or be upgraded to another one, first",
            named.join("; ")
        );
        return Err(RequestError::Conflict { field: "component", rule });
    }
    apply.state.components.remove(&digest);
    apply.rows.delete(rows::COMPONENTS, digest.0.to_vec());
    apply.event("component.removed", None, None, None, &format!("{digest} ({world})"));
    Ok(CommandResult::Done)
}
