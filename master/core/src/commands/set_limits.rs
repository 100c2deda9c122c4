//! Set limits of a role, or of the whole cluster: all of them or none.

use super::invalid;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::limits::LIMITED_ROLES_MAX;
use tessera_types::{Digest, LimitName, RoleLimits, RoleName};
use tessera_wire::v1;

/// Bytes of a tag: enough to tell what follows each other apart.
const TAG_BYTES: usize = 8;

/// A function of what is set.
pub(crate) fn tag(limits: &RoleLimits) -> Vec<u8> {
    let set = LimitName::ALL.iter().filter_map(|name| Some((name, limits.get(*name)?)));
    let text: String = set.map(|(name, value)| format!("{name}={value};")).collect();
    Digest::of(text.as_bytes()).0[..TAG_BYTES].to_vec()
}

/// Carry it out. What is there already stays as it is, also when a limit is now below it.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::SetLimits,
) -> Result<CommandResult, RequestError> {
    let role = command.role;
    if !role.is_empty()
        && let Err(error) = RoleName::try_from(role.clone())
    {
        return invalid("role", error.to_string());
    }
    if command.set.is_empty() && command.unset.is_empty() {
        return invalid("set", "names no limit, and neither does `unset`");
    }
    let mut limits = apply.state.limits.get(&role).cloned().unwrap_or_default();
    if command.expected.is_some_and(|expected| expected != tag(&limits)) {
        let rule = "the limits were changed meanwhile; read them again".to_owned();
        return Err(RequestError::Precondition { rule });
    }
    if limits.is_empty() && apply.state.limits.len() >= LIMITED_ROLES_MAX {
        let rule = format!("limits are set for at most {LIMITED_ROLES_MAX} roles; `--unset` those of another one");
        return Err(RequestError::Limit { name: "LIMITED_ROLES_MAX", rule });
    }
    let mut text = Vec::new();
    for name in command.unset {
        match name.parse::<LimitName>() {
            Ok(name) => limits.unset(name),
            Err(error) => return invalid("unset", error.to_string()),
        }
        text.push(format!("{name} unset"));
    }
    for limit in command.set {
        let name = match limit.name.parse::<LimitName>() {
            Ok(name) => name,
            Err(error) => return invalid("set", error.to_string()),
        };
        if let Err(error) = limits.set(name, limit.value) {
            return invalid("set", error.to_string());
        }
        text.push(format!("{name} = {}", limit.value));
    }
    if limits.is_empty() {
        apply.state.limits.remove(&role);
    } else {
        apply.state.limits.insert(role.clone(), limits);
    }
    apply.mark(Dirty::Limits(role.clone()));
    apply.effect(Effect::Limits);
    let whose = if role.is_empty() { "the cluster" } else { &role };
    let text = format!("{whose}: {}", text.join(", "));
    apply.event("limits.changed", None, None, None, &text);
    Ok(CommandResult::Done)
}
