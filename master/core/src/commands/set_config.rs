//! Replace a framework's configuration; its scheduler is told by a durable event.

use super::create_framework::{validate_config, validate_unreachable};
use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::codec;
use crate::effect::{CommandResult, Effect};
use tessera_types::FrameworkId;
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::SetConfig,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let config = codec::unpair(command.config);
    validate_config(&config)?;
    validate_unreachable(command.unreachable)?;
    let Some(framework) = apply.state.frameworks.get_mut(&id).filter(|f| !f.removing) else {
        return not_found("framework", id);
    };
    let current = framework.config_version;
    if command.expected_version != 0 && command.expected_version != current {
        let rule = format!("version {current} is in force, not {}", command.expected_version);
        return Err(RequestError::Conflict { field: "expected_version", rule });
    }
    let unreachable = command.unreachable.map_or(framework.unreachable, Into::into);
    if framework.unreachable != unreachable {
        framework.unreachable = unreachable;
        apply.mark(Dirty::Framework(id));
        apply.event("framework.policy-changed", Some(id), None, None, "unreachable tasks");
    }
    let Some(framework) = apply.state.frameworks.get_mut(&id) else {
        return not_found("framework", id);
    };
    if framework.config == config {
        return Ok(CommandResult::Version(current));
    }
    framework.config = config;
    framework.config_version += 1;
    let (version, agent) = (framework.config_version, framework.agent);
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    if let Some(agent) = agent {
        // Instances that are built from now on begin with it.
        apply.effect(Effect::Hosting(agent));
    }
    apply.event("framework.config-changed", Some(id), None, agent, &format!("version {version}"));
    Ok(CommandResult::Version(version))
}
