//! Make an agent known, or note that it is back or has changed.

use super::invalid;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::codec;
use crate::effect::{CommandResult, Effect};
use crate::limits::{AGENT_KEY_BYTES_MAX, AGENTS_MAX};
use crate::state::Agent;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, Resources};
use tessera_wire::v1;

/// Carry it out. The key decides: a registration that was repeated finds its first number.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RegisterAgent,
) -> Result<CommandResult, RequestError> {
    let description = command.description.unwrap_or_default();
    let mut resources = description
        .resources()
        .map_err(|error| RequestError::Invalid { field: error.field, rule: error.rule })?;
    if !apply.state.knows_kinds() {
        resources.total.items.clear();
    }
    if command.agent_key.is_empty() || command.agent_key.len() > AGENT_KEY_BYTES_MAX {
        return invalid("agent_key", format!("1 to {AGENT_KEY_BYTES_MAX} bytes"));
    }
    if let Some(gone) = apply.state.gone.get(&command.agent_key) {
        return invalid("agent_key", format!("{} was declared gone", gone.agent));
    }
    let known = apply.state.agent_keys.get(&command.agent_key).copied();
    if command.agent != 0 && known != Some(AgentId(command.agent)) {
        return invalid("agent", "is not the agent of this key");
    }
    if known.is_none() && apply.state.agents.len() >= AGENTS_MAX {
        let rule = format!("at most {AGENTS_MAX}; `tessera agent gone` removes one that does not come back");
        return Err(RequestError::Limit { name: "AGENTS_MAX", rule });
    }
    let row = known.and_then(|id| apply.state.agents.get(&id));
    if row.is_some_and(|row| row.boots_before.contains(&command.boot)) {
        return invalid("boot", "was followed by another one: two machines claim to be the agent");
    }
    let (id, kind) = match known {
        Some(id) if row.is_some_and(|row| row.boot != command.boot) => (id, "agent.rebooted"),
        Some(id) => (id, "agent.reregistered"),
        None => {
            apply.state.meta.next_agent += 1;
            (AgentId(apply.state.meta.next_agent), "agent.registered")
        }
    };
    let time_ms = apply.time_ms;
    let agent = apply.state.agents.entry(id).or_insert_with(|| Agent {
        key: command.agent_key.clone(),
        boot: String::new(),
        hostname: String::new(),
        attributes: Vec::new(),
        version: String::new(),
        missing: Vec::new(),
        engine: String::new(),
        resources: resources.clone(),
        registered_ms: time_ms,
        unreachable_ms: None,
        deactivated: false,
        drain: None,
        maintenance: None,
        boots_before: Vec::new(),
        strangers: BTreeMap::new(),
        charged: Resources::ZERO,
        charged_revocable: Resources::ZERO,
        tasks: BTreeSet::new(),
        executors: BTreeMap::new(),
    });
    if agent.boot != command.boot {
        let before = std::mem::replace(&mut agent.boot, command.boot);
        agent.end_boot(before);
    }
    agent.hostname.clone_from(&description.hostname);
    agent.attributes = codec::unpair(description.attributes);
    agent.attributes.sort();
    agent.version = description.version;
    agent.missing = codec::unpair(description.missing);
    agent.missing.sort();
    agent.engine = description.engine;
    agent.resources = resources;
    agent.unreachable_ms = None;
    apply.state.agent_keys.insert(command.agent_key, id);
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.event(kind, None, None, Some(id), &description.hostname);
    Ok(CommandResult::Agent(id))
}
