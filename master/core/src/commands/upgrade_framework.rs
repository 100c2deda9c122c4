//! Change the component of a framework: the old instance is fenced, and the new one is on trial, after a
//! migration if the state has to be carried over.
//!
//! Invariants: at most one upgrade is under way; what the new component writes until its trial has ended
//! lies above the old state, which stays as it is.

use super::create_framework::scheduler_state;
use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::lifecycle::{
    Failures, FrameworkVersion, StateVersions, Upgrade, VersionOrigin, VersionOutcome,
};
use crate::state::Framework;
use tessera_types::limits::VERSIONS_MAX;
use tessera_types::{Digest, Epoch, FrameworkId};
use tessera_wire::v1;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::UpgradeFramework,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Ok(component) = Digest::from_slice(&command.component) else {
        return invalid("component", "32 bytes");
    };
    begin(apply, id, component, VersionOrigin::Upgraded)
}

/// Begin an upgrade to a component, whether it is new or was in force before.
pub(super) fn begin(
    apply: &mut Apply<'_>,
    id: FrameworkId,
    component: Digest,
    origin: VersionOrigin,
) -> Result<CommandResult, RequestError> {
    let Some(framework) = apply.state.frameworks.get(&id).filter(|f| !f.removing) else {
        return not_found("framework", id);
    };
    let states = scheduler_state(apply.state, component)?;
    check(framework, component, &states)?;
    let migrating = states.writes != framework.state_version && states.migrates;
    let principal = apply.principal.clone();
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id) else {
        return not_found("framework", id);
    };
    let from_version = framework.version();
    framework.upgrade = Some(Upgrade {
        from_version,
        migrating,
        migrate_from: framework.state_version,
        old_bytes: framework.state_bytes,
        old_keys: framework.state_keys,
        first_turn: framework.next_turn(),
    });
    let outcome = if migrating { VersionOutcome::Migrating } else { VersionOutcome::Trial };
    let version = push_version(
        framework,
        FrameworkVersion {
            version: from_version + 1,
            component,
            writes_state: states.writes,
            since_ms: time_ms,
            principal,
            origin,
            outcome,
        },
    );
    let from_state = framework.state_version;
    restart(apply, id);
    let text = format!("version {version}, {component}");
    let agent = apply.state.frameworks.get(&id).and_then(|framework| framework.agent);
    apply.event("framework.upgrading", Some(id), None, agent, &text);
    if migrating {
        let text = format!("from state version {from_state} to {}", states.writes);
        apply.event("framework.migrating", Some(id), None, agent, &text);
    }
    Ok(CommandResult::Version(version))
}

fn check(
    framework: &Framework,
    component: Digest,
    states: &StateVersions,
) -> Result<(), RequestError> {
    let conflict = |field, rule: String| Err(RequestError::Conflict { field, rule });
    if framework.upgrade.is_some() {
        let rule = "an upgrade is under way; wait for it, or roll it back";
        return conflict("upgrade", rule.into());
    }
    if framework.merging {
        let rule = "the state of the last upgrade is being merged; try again in a moment";
        return conflict("upgrade", rule.into());
    }
    if framework.component == component {
        return conflict("component", format!("{component} is in force already"));
    }
    if !states.takes(framework.state_version) {
        let rule = format!(
            "the framework's state has version {}; {component} {states}",
            framework.state_version
        );
        return conflict("component", rule);
    }
    Ok(())
}

/// Put a version at the end of the history and its component in force.
pub(super) fn push_version(framework: &mut Framework, version: FrameworkVersion) -> u64 {
    let number = version.version;
    framework.component = version.component;
    if let Some(last) = framework.versions.last_mut()
        && !matches!(last.outcome, VersionOutcome::Failed(_))
    {
        last.outcome = VersionOutcome::Replaced;
    }
    framework.versions.push(version);
    let excess = framework.versions.len().saturating_sub(VERSIONS_MAX);
    framework.versions.drain(..excess);
    number
}

/// Fence the instance that runs and begin with a new one, where the old one was if that agent answers.
/// A quarantine ends, and failures are forgotten: they were another component's.
pub(super) fn restart(apply: &mut Apply<'_>, id: FrameworkId) {
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id) else { return };
    framework.epoch = Epoch(framework.epoch.0 + 1);
    framework.placed_ms = time_ms;
    framework.failures = Failures::default();
    framework.quarantine = None;
    let agent = framework.agent;
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    if let Some(agent) = agent {
        apply.effect(Effect::Hosting(agent));
    }
}
