//! Create a framework; its scheduler is placed by a command of its own.

use super::{invalid, not_found};
use crate::api::{RequestError, World};
use crate::apply::{Apply, Dirty};
use crate::codec;
use crate::effect::{CommandResult, Effect};
use crate::limits::FRAMEWORKS_MAX;
use crate::lifecycle::{
    Failures, FrameworkVersion, StateVersions, VersionOrigin, VersionOutcome,
};
use crate::state::{Framework, State};
use crate::upkeep::UnreachablePolicy;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::limits::{CONFIG_BYTES_MAX, CONFIG_ENTRIES_MAX, DURATION_MAX_MS};
use tessera_types::{
    Digest, Epoch, FrameworkId, FrameworkName, LimitName, Resources, RoleName, TurnNumber,
};
use tessera_wire::v1;

/// Check a configuration.
pub(crate) fn validate_config(config: &[(String, String)]) -> Result<(), RequestError> {
    if config.len() > CONFIG_ENTRIES_MAX {
        return invalid("config", format!("at most {CONFIG_ENTRIES_MAX} entries"));
    }
    if config.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > CONFIG_BYTES_MAX {
        return invalid("config", format!("at most {CONFIG_BYTES_MAX} bytes"));
    }
    let keys: BTreeSet<&str> = config.iter().map(|(key, _)| key.as_str()).collect();
    if keys.len() != config.len() || keys.contains("") {
        return invalid("config", "keys are not empty and each stands once");
    }
    Ok(())
}

/// Check a policy.
pub(crate) fn validate_unreachable(
    policy: Option<v1::UnreachablePolicy>,
) -> Result<(), RequestError> {
    if policy.is_some_and(|policy| policy.replace_after_ms > DURATION_MAX_MS) {
        return invalid("unreachable.replace_after_ms", format!("at most {DURATION_MAX_MS}"));
    }
    Ok(())
}

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::CreateFramework,
) -> Result<CommandResult, RequestError> {
    let name = match FrameworkName::try_from(command.name) {
        Ok(name) => name,
        Err(error) => return invalid("name", error.to_string()),
    };
    let role = match RoleName::try_from(command.role) {
        Ok(role) => role,
        Err(error) => return invalid("role", error.to_string()),
    };
    let Ok(component) = Digest::from_slice(&command.component) else {
        return invalid("component", "32 bytes");
    };
    let config = codec::unpair(command.config);
    validate_config(&config)?;
    validate_unreachable(command.unreachable)?;
    let state = scheduler_state(apply.state, component)?;
    let key = (role.tenant().to_owned(), name.to_string());
    if apply.state.names.contains_key(&key) {
        let rule = format!("{name} exists already in tenant {}", role.tenant());
        return Err(RequestError::Conflict { field: "name", rule });
    }
    if apply.state.frameworks.len() >= FRAMEWORKS_MAX {
        let rule = format!("at most {FRAMEWORKS_MAX}; `tessera framework rm` removes one that is not needed");
        return Err(RequestError::Limit { name: "FRAMEWORKS_MAX", rule });
    }
    check_room(apply.state, &role)?;
    apply.state.meta.next_framework += 1;
    let id = FrameworkId(apply.state.meta.next_framework);
    let text = format!("{name} as {role}");
    let first = FrameworkVersion {
        version: 1,
        component,
        writes_state: state.writes,
        since_ms: apply.time_ms,
        principal: apply.principal.clone(),
        origin: VersionOrigin::Created,
        outcome: VersionOutcome::Running,
    };
    let framework = Framework {
        config,
        principal: apply.principal.clone(),
        created_ms: apply.time_ms,
        versions: vec![first],
        state_version: state.writes,
        unreachable: command.unreachable.map(Into::into).unwrap_or_default(),
        ..new(name, role, component)
    };
    apply.state.frameworks.insert(id, framework);
    apply.state.names.insert(key, id);
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    apply.event("framework.created", Some(id), None, None, &text);
    Ok(CommandResult::Framework(id))
}

/// What a scheduler component says of its state; refused if it is no scheduler.
pub(super) fn scheduler_state(
    state: &State,
    component: Digest,
) -> Result<StateVersions, RequestError> {
    match state.components.get(&component) {
        None => not_found("component", component),
        Some(found) if found.world == World::Scheduler => Ok(found.state.clone()),
        Some(found) => {
            invalid("component", format!("is a {}, not a scheduler", found.world.name()))
        }
    }
}

/// Whether the role and each role above it may have one more framework.
fn check_room(state: &State, role: &RoleName) -> Result<(), RequestError> {
    let name = LimitName::Frameworks;
    for above in role.lineage() {
        let Ok(parent) = RoleName::try_from(above.to_owned()) else { continue };
        let max = state.limits_of(&parent).get(name);
        let inside = |other: &RoleName| other.lineage().any(|role| role == above);
        let count = state.frameworks.values().filter(|f| inside(&f.role)).count();
        if count as u64 >= max {
            let rule = format!("at most {max} in role {above} and the roles below it");
            return Err(RequestError::Limit { name: name.row().name, rule });
        }
    }
    Ok(())
}

/// A framework that has not run yet.
pub(crate) fn new(name: FrameworkName, role: RoleName, component: Digest) -> Framework {
    Framework {
        name,
        role,
        component,
        config: Vec::new(),
        principal: String::new(),
        created_ms: 0,
        epoch: Epoch(0),
        agent: None,
        placed_ms: 0,
        last_turn: TurnNumber(0),
        last_turn_epoch: Epoch(0),
        last_turn_hash: Vec::new(),
        suppressed: false,
        requests: Vec::new(),
        removing: false,
        config_version: 1,
        config_seen: 1,
        versions: Vec::new(),
        upgrade: None,
        failures: Failures::default(),
        quarantine: None,
        state_version: 0,
        merging: false,
        unreachable: UnreachablePolicy::default(),
        state_bytes: 0,
        state_keys: 0,
        outside_writes: 0,
        used_ids: 0,
        next_order: 1,
        next_group: 0,
        history_first: 1,
        history_next: 1,
        specs: BTreeMap::new(),
        timers: BTreeMap::new(),
        tasks: BTreeMap::new(),
        due: BTreeSet::new(),
        updates: BTreeMap::new(),
        charged: Resources::ZERO,
        charged_revocable: Resources::ZERO,
        live: 0,
    }
}
