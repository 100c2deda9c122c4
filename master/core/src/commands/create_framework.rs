//! Create a framework; its scheduler is placed by a command of its own.

use super::{invalid, not_found};
use crate::api::{RequestError, World};
use crate::apply::{Apply, Dirty};
use crate::codec;
use crate::effect::{CommandResult, Effect};
use crate::limits::FRAMEWORKS_MAX;
use crate::state::Framework;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::limits::{CONFIG_BYTES_MAX, CONFIG_ENTRIES_MAX};
use tessera_types::{
    Digest, Epoch, FrameworkId, FrameworkName, Quantities, RoleName, TurnNumber,
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
    match apply.state.components.get(&component).map(|component| component.world) {
        None => return not_found("component", component),
        Some(World::Scheduler) => {}
        Some(world) => {
            return invalid("component", format!("is a {}, not a scheduler", world.name()));
        }
    }
    let key = (role.tenant().to_owned(), name.to_string());
    if apply.state.names.contains_key(&key) {
        let rule = format!("{name} exists already in tenant {}", role.tenant());
        return Err(RequestError::Conflict { field: "name", rule });
    }
    if apply.state.frameworks.len() >= FRAMEWORKS_MAX {
        let rule = format!("at most {FRAMEWORKS_MAX}");
        return Err(RequestError::Limit { name: "FRAMEWORKS_MAX", rule });
    }
    apply.state.meta.next_framework += 1;
    let id = FrameworkId(apply.state.meta.next_framework);
    let text = format!("{name} as {role}");
    let framework = Framework {
        config,
        principal: apply.principal.clone(),
        created_ms: apply.time_ms,
        ..new(name, role, component)
    };
    apply.state.frameworks.insert(id, framework);
    apply.state.names.insert(key, id);
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    apply.event("framework.created", Some(id), None, None, &text);
    Ok(CommandResult::Framework(id))
}

/// A framework that has not run yet.
fn new(name: FrameworkName, role: RoleName, component: Digest) -> Framework {
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
        removing: false,
        state_bytes: 0,
        state_keys: 0,
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
        charged: Quantities::ZERO,
        live: 0,
    }
}
