//! Versions, upgrades, failures, quarantines and limits to and from their rows.

use super::{LoadError, ROW_VERSION, bad};
use crate::lifecycle::{
    Failures, FrameworkVersion, Quarantine, StateVersions, Upgrade, VersionOrigin, VersionOutcome,
};
use crate::rows;
use prost::Message;
use tessera_types::{Digest, RoleLimits, TurnNumber};
use tessera_wire::v1;

const FAILED: &str = "failed: ";

impl From<&StateVersions> for v1::StateVersions {
    fn from(state: &StateVersions) -> Self {
        Self { writes: state.writes, reads: state.reads.clone(), migrates: state.migrates }
    }
}

impl From<v1::StateVersions> for StateVersions {
    fn from(state: v1::StateVersions) -> Self {
        Self { writes: state.writes, reads: state.reads, migrates: state.migrates }
    }
}

impl From<&FrameworkVersion> for v1::FrameworkVersion {
    fn from(version: &FrameworkVersion) -> Self {
        Self {
            version: version.version,
            component: version.component.0.to_vec(),
            writes_state: version.writes_state,
            since_ms: version.since_ms,
            principal: version.principal.clone(),
            how: version.origin.name().to_owned(),
            outcome: version.outcome.to_string(),
        }
    }
}

pub(super) fn framework_version(row: v1::FrameworkVersion) -> Result<FrameworkVersion, LoadError> {
    let malformed = |rule: String| bad(rows::FRAMEWORKS, rule);
    let origin = match row.how.as_str() {
        "created" => VersionOrigin::Created,
        "upgraded" => VersionOrigin::Upgraded,
        "rolled-back" => VersionOrigin::RolledBack,
        other => return Err(malformed(format!("a version that was {other:?}"))),
    };
    let outcome = match row.outcome.as_str() {
        "running" => VersionOutcome::Running,
        "trial" => VersionOutcome::Trial,
        "migrating" => VersionOutcome::Migrating,
        "replaced" => VersionOutcome::Replaced,
        other => match other.strip_prefix(FAILED) {
            Some(reason) => VersionOutcome::Failed(reason.to_owned()),
            None => return Err(malformed(format!("a version whose outcome is {other:?}"))),
        },
    };
    Ok(FrameworkVersion {
        version: row.version,
        component: Digest::from_slice(&row.component).map_err(|e| malformed(e.to_string()))?,
        writes_state: row.writes_state,
        since_ms: row.since_ms,
        principal: row.principal,
        origin,
        outcome,
    })
}

/// The one version of a framework whose row says nothing of versions.
pub(super) fn first_version(row: &v1::FrameworkRow) -> Result<FrameworkVersion, LoadError> {
    let component = Digest::from_slice(&row.component);
    Ok(FrameworkVersion {
        version: 1,
        component: component.map_err(|error| bad(rows::FRAMEWORKS, error))?,
        writes_state: row.state_version,
        since_ms: row.created_ms,
        principal: row.principal.clone(),
        origin: VersionOrigin::Created,
        outcome: VersionOutcome::Running,
    })
}

impl From<&Upgrade> for v1::Upgrade {
    fn from(upgrade: &Upgrade) -> Self {
        Self {
            from_version: upgrade.from_version,
            migrating: upgrade.migrating,
            migrate_from: upgrade.migrate_from,
            old_bytes: upgrade.old_bytes,
            old_keys: upgrade.old_keys,
            first_turn: upgrade.first_turn.0,
        }
    }
}

impl From<v1::Upgrade> for Upgrade {
    fn from(row: v1::Upgrade) -> Self {
        Self {
            from_version: row.from_version,
            migrating: row.migrating,
            migrate_from: row.migrate_from,
            old_bytes: row.old_bytes,
            old_keys: row.old_keys,
            first_turn: TurnNumber(row.first_turn),
        }
    }
}

impl From<&Failures> for v1::Failures {
    fn from(failures: &Failures) -> Self {
        Self {
            in_a_row: failures.in_a_row,
            at_ms: failures.at_ms.clone(),
            reason: failures.reason.clone(),
            limit: failures.limit.clone(),
            message: failures.message.clone(),
            turn: failures.turn,
        }
    }
}

impl From<v1::Failures> for Failures {
    fn from(row: v1::Failures) -> Self {
        Self {
            in_a_row: row.in_a_row,
            at_ms: row.at_ms,
            reason: row.reason,
            limit: row.limit,
            message: row.message,
            turn: row.turn,
        }
    }
}

impl From<&Quarantine> for v1::Quarantine {
    fn from(quarantine: &Quarantine) -> Self {
        Self { since_ms: quarantine.since_ms, rule: quarantine.rule.clone() }
    }
}

impl From<v1::Quarantine> for Quarantine {
    fn from(row: v1::Quarantine) -> Self {
        Self { since_ms: row.since_ms, rule: row.rule }
    }
}

/// The row of what is set for a role; the empty role is the cluster.
pub(crate) fn encode_limits(role: &str, limits: &RoleLimits) -> Vec<u8> {
    let limits = limits.iter().map(Into::into).collect();
    v1::LimitsRow { version: ROW_VERSION, role: role.to_owned(), limits }.encode_to_vec()
}

/// What a row sets. A limit that this build does not know was set by a newer one, which alone may bound
/// what only it has.
pub(super) fn role_limits(limits: &[v1::Limit]) -> Result<RoleLimits, LoadError> {
    let mut set = RoleLimits::default();
    for limit in limits {
        if let Ok(name) = limit.name.parse() {
            set.set(name, limit.value).map_err(|error| bad(rows::LIMITS, error))?;
        }
    }
    Ok(set)
}
