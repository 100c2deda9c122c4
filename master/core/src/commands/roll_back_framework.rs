//! Go back to an earlier component: give up an upgrade that is not final, or begin one to what ran
//! before.
//!
//! Invariant: giving up restores component and state exactly as they were before the upgrade.

use super::upgrade_framework::{begin, push_version, restart};
use super::not_found;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use crate::lifecycle::{FrameworkVersion, VersionOrigin, VersionOutcome};
use crate::rows;
use crate::state::Framework;
use tessera_types::{Digest, FrameworkId};
use tessera_wire::v1;

/// Bytes of the reason that a version keeps: it is stored with every turn.
const REASON_BYTES_MAX: usize = 256;

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RollBackFramework,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get(&id).filter(|f| !f.removing) else {
        return not_found("framework", id);
    };
    if command.failed_version != 0 {
        // The cluster's own wish is void when the upgrade has ended, or another one has begun.
        if framework.upgrade.is_none() || framework.version() != command.failed_version {
            return Ok(CommandResult::Done);
        }
        return Ok(give_up(apply, id, &command.reason));
    }
    if let Some(upgrade) = &framework.upgrade {
        if command.version != 0 && command.version != upgrade.from_version {
            let rule = format!(
                "an upgrade from version {} is under way; it can only go back to that",
                upgrade.from_version
            );
            return Err(RequestError::Conflict { field: "version", rule });
        }
        let reason = match apply.principal.as_str() {
            "" => "rolled back".to_owned(),
            principal => format!("rolled back by {principal}"),
        };
        return Ok(give_up(apply, id, &reason));
    }
    let component = target(framework, command.version)?;
    begin(apply, id, component, VersionOrigin::RolledBack)
}

/// The newest version of the history that has another component than the current and did not fail: where a
/// rollback without a number goes.
pub(crate) fn before(framework: &Framework) -> Option<&FrameworkVersion> {
    framework.versions.iter().rev().find(|old| {
        old.component != framework.component && !matches!(old.outcome, VersionOutcome::Failed(_))
    })
}

/// The component of a version of the history; 0 is the one that ran before.
fn target(framework: &Framework, version: u64) -> Result<Digest, RequestError> {
    let found = if version == 0 {
        before(framework)
    } else {
        framework.versions.iter().rev().find(|old| old.version == version)
    };
    match found {
        Some(found) => Ok(found.component),
        None if version == 0 => {
            let rule = "there is no earlier version to go back to".to_owned();
            Err(RequestError::Conflict { field: "version", rule })
        }
        None => not_found("version", version),
    }
}

/// End an upgrade that is not final: component and state are those of before.
fn give_up(apply: &mut Apply<'_>, id: FrameworkId, reason: &str) -> CommandResult {
    let principal = apply.principal.clone();
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id) else { return CommandResult::Done };
    let Some(upgrade) = framework.upgrade.clone() else { return CommandResult::Done };
    let before = framework.versions.iter().find(|old| old.version == upgrade.from_version);
    let Some(before) = before.cloned() else { return CommandResult::Done };
    framework.upgrade = None;
    let failed = framework.version();
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    if let Some(last) = framework.versions.last_mut() {
        last.outcome = VersionOutcome::Failed(reason[..end].to_owned());
    }
    framework.state_version = upgrade.migrate_from;
    framework.state_bytes = upgrade.old_bytes;
    framework.state_keys = upgrade.old_keys;
    let version = push_version(
        framework,
        FrameworkVersion {
            version: failed + 1,
            since_ms: time_ms,
            principal,
            origin: VersionOrigin::RolledBack,
            outcome: VersionOutcome::Running,
            ..before
        },
    );
    apply.rows.delete_prefix(rows::GENERATION, rows::framework_key(id));
    restart(apply, id);
    let agent = apply.state.frameworks.get(&id).and_then(|framework| framework.agent);
    let text = format!("version {failed} failed: {reason}; {} is in force again", before.component);
    apply.event("framework.rolled-back", Some(id), None, agent, &text);
    CommandResult::Version(version)
}
