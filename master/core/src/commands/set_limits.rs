//! Set limits of a role, or of the whole cluster: all of them or none.

use super::{FIRST_VERSION, invalid};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::limits::LIMITED_ROLES_MAX;
use crate::roles;
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

/// The cluster version that it needs: masters that do not know a limit refuse what others carry out.
pub(super) fn since(command: &v1::SetLimits) -> u32 {
    let names = command.set.iter().map(|limit| &limit.name).chain(&command.unset);
    let newest = names.filter_map(|name| name.parse().ok()).map(known_since).max().unwrap_or(FIRST_VERSION);
    if command.expected.is_some() { newest.max(roles::SINCE) } else { newest }
}

/// The cluster version from which on masters know a limit. Without a wildcard: a new one has to be decided about.
const fn known_since(name: LimitName) -> u32 {
    use LimitName as L;
    match name {
        L::PreemptionGraceMs => roles::SINCE,
        L::ComponentBytes | L::ComponentFunctions | L::FunctionBytes | L::FunctionLocals | L::CompileCpuMs
        | L::CompileBytes | L::MemoryBytes | L::TableElements | L::Instances | L::Tables | L::Memories
        | L::Handles | L::HostcallBytes | L::HostCalls | L::RandomBytes | L::InitCpuMs | L::InitWallMs
        | L::ErrorBytes | L::TurnCpuMs | L::TurnWallMs | L::MinuteCpuMs | L::TurnOperations
        | L::TurnOperationBytes | L::TurnKeys | L::TurnStateBytes | L::TurnSpecs | L::TurnSpecBytes
        | L::LogLines | L::LogBytes | L::LogLineBytes | L::StateBytes | L::StateKeys | L::Timers | L::Specs
        | L::SpecBytes | L::OpenRequests | L::LiveTasks | L::TurnsPerSecond | L::TurnBytesPerSecond
        | L::TenantMemoryBytes | L::Frameworks | L::Failures | L::FailuresPerWindow | L::FailureWindowMs
        | L::RecordingBytes | L::Recordings | L::ExecutorsPerAgent | L::ExecutorStateBytes
        | L::ExecutorStateKeys | L::ExecutorChildren => FIRST_VERSION,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_others_do_not_know_wait_for_them() {
        let set = |name: &str| v1::SetLimits { set: vec![v1::Limit { name: name.into(), value: 1_000 }], ..Default::default() };
        assert_eq!(since(&set("timers")), FIRST_VERSION);
        assert_eq!(since(&set("no-such-limit")), FIRST_VERSION);
        assert_eq!(since(&set("preemption-grace-ms")), roles::SINCE);
        let unset = v1::SetLimits { unset: vec!["timers".into(), "preemption-grace-ms".into()], ..Default::default() };
        assert_eq!(since(&unset), roles::SINCE);
        let expected = v1::SetLimits { expected: Some(Vec::new()), ..set("timers") };
        assert_eq!(since(&expected), roles::SINCE);
    }
}
