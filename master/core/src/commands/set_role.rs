//! Change what is said of a role: its weight, its priority, its quota.

use super::invalid;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::roles::RoleChange;
use tessera_types::{RoleName, write_milli, write_named};
use tessera_wire::v1;

/// Carry it out. What is used already stays as it is, also when a quota limit is now below it.
pub(super) fn run(apply: &mut Apply<'_>, command: v1::SetRole) -> Result<CommandResult, RequestError> {
    let role = match RoleName::try_from(command.role.clone()) {
        Ok(role) => role,
        Err(error) => return invalid("role", error.to_string()),
    };
    let expected = command.expected_version;
    let change = RoleChange::from(command);
    let said = describe(&change);
    let mut policy = apply.state.changed_policy(&role, change, expected)?;
    if policy == apply.state.policy(role.as_str()) {
        return Ok(CommandResult::Done);
    }
    if policy.is_default() {
        apply.state.roles.remove(role.as_str());
    } else {
        policy.version = apply.index();
        apply.state.roles.insert(role.to_string(), policy);
    }
    apply.mark(Dirty::Role(role.to_string()));
    apply.effect(Effect::Role(role.to_string()));
    apply.event("role.changed", None, None, None, &format!("{role}: {said}"));
    Ok(CommandResult::Done)
}

/// For people.
fn describe(change: &RoleChange) -> String {
    let amounts = |amounts: &tessera_types::Amounts| {
        let each = amounts.iter().map(|(kind, amount)| write_named(kind, amount));
        let all = each.collect::<Vec<_>>().join(" ");
        if all.is_empty() { "none".to_owned() } else { all }
    };
    let parts = [
        change.weight_milli.map(|milli| format!("weight {}", write_milli(milli.into()))),
        change.priority.map(|priority| format!("priority {priority}")),
        change.guarantee.as_ref().map(|guarantee| format!("guarantee {}", amounts(guarantee))),
        change.limit.as_ref().map(|limit| format!("quota limit {}", amounts(limit))),
        change.min_offer.map(|least| format!("smallest offer {least}")),
        change.hold_back.map(|hold| format!("hold back {hold}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
