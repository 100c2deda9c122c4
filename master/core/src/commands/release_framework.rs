//! Let a quarantined scheduler run again; its place is found by a command of its own.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::lifecycle::Failures;
use tessera_types::FrameworkId;
use tessera_wire::v1;

/// Carry it out. One that is not quarantined has its failures forgotten.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::ReleaseFramework,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get_mut(&id).filter(|f| !f.removing) else {
        return not_found("framework", id);
    };
    framework.failures = Failures::default();
    let released = framework.quarantine.take().is_some();
    apply.mark(Dirty::Framework(id));
    if released {
        apply.effect(Effect::Framework(id));
        apply.event("framework.released", Some(id), None, None, "");
    }
    Ok(CommandResult::Done)
}
