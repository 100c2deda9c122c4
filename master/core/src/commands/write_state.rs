//! Write or delete a key of a framework's state from outside of its scheduler.
//!
//! Invariants: bound by the same totals as the scheduler's own turns; the value that it leaves is the one
//! that both generations show, so that giving up an upgrade does not lose it; each is counted, which is
//! how a scheduler's copy of the state is known to lack some.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::generation;
use crate::rows::{self, RowsError};
use tessera_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use tessera_types::{Digest, FrameworkId, LimitName};
use tessera_wire::v1::{self, write_state::Condition};

/// Bytes of a tag: it only has to differ between values of one key.
pub const TAG_BYTES: usize = 16;

/// What names a value, for conditions.
#[must_use]
pub fn value_tag(value: &[u8]) -> [u8; TAG_BYTES] {
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&Digest::of(value).0[..TAG_BYTES]);
    tag
}

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::WriteState,
) -> Result<Result<CommandResult, RequestError>, RowsError> {
    let id = FrameworkId(command.framework);
    if let Err(error) = well_formed(&command) {
        return Ok(Err(error));
    }
    let Some(framework) = apply.state.frameworks.get(&id).filter(|f| !f.removing) else {
        return Ok(not_found("framework", id));
    };
    if framework.migrating() {
        let rule = "its state is being migrated to another version; write again when that is done";
        return Ok(Err(RequestError::Conflict { field: "framework", rule: rule.into() }));
    }
    let layer = framework.layer();
    let key = rows::owned_key(id, command.key.as_bytes());
    let there = generation::get(&apply.rows, layer, &key)?;
    if let Err(error) = holds(command.condition.as_ref(), there.as_deref()) {
        return Ok(Err(error));
    }
    if there.is_none() && command.value.is_none() {
        return Ok(Ok(CommandResult::Done));
    }
    let size = |value: Option<&[u8]>| value.map_or(0, |value| (command.key.len() + value.len()) as u64);
    let count = |value: Option<&[u8]>| u64::from(value.is_some());
    let value = command.value.as_deref();
    let after = |(bytes, keys): (u64, u64), there: Option<&[u8]>| {
        let bytes = bytes.saturating_sub(size(there)) + size(value);
        (bytes, keys.saturating_sub(count(there)) + count(value))
    };
    let before = (framework.state_bytes, framework.state_keys);
    let totals = after(before, there.as_deref());
    if let Err(error) = within(apply, id, before, totals) {
        return Ok(Err(error));
    }
    // What the version before the upgrade has, and gets back if the upgrade is given up.
    let below = match &framework.upgrade {
        Some(_) => apply.rows.get(rows::VALUES, &key)?,
        None => None,
    };
    generation::write_through(&mut apply.rows, layer, key, command.value.clone());
    let Some(framework) = apply.state.frameworks.get_mut(&id) else {
        return Ok(not_found("framework", id));
    };
    (framework.state_bytes, framework.state_keys) = totals;
    if let Some(upgrade) = &mut framework.upgrade {
        let old = (upgrade.old_bytes, upgrade.old_keys);
        (upgrade.old_bytes, upgrade.old_keys) = after(old, below.as_deref());
    }
    framework.outside_writes += 1;
    let count = framework.outside_writes;
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::StateWritten { framework: id, key: command.key, count });
    Ok(Ok(CommandResult::Done))
}

fn well_formed(command: &v1::WriteState) -> Result<(), RequestError> {
    if command.key.is_empty() || command.key.len() > KEY_BYTES_MAX {
        return invalid("key", format!("1 to {KEY_BYTES_MAX} bytes"));
    }
    if command.value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
        return invalid("value", format!("at most {VALUE_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// Whether what is there is what the caller expects.
fn holds(condition: Option<&Condition>, there: Option<&[u8]>) -> Result<(), RequestError> {
    let holds = match condition {
        None => true,
        Some(Condition::Present(v1::Empty {})) => there.is_some(),
        Some(Condition::Absent(v1::Empty {})) => there.is_none(),
        Some(Condition::Same(tag)) => there.is_some_and(|value| value_tag(value)[..] == tag[..]),
    };
    if holds {
        return Ok(());
    }
    let rule = match there {
        Some(_) => "the key has another value; read it, and write again with its tag",
        None => "the key is not there; write without a condition, or with `If-None-Match: *`",
    };
    Err(RequestError::Precondition { rule: rule.into() })
}

/// A limit that was lowered below what is there refuses what grows, not what shrinks.
fn within(
    apply: &Apply<'_>,
    id: FrameworkId,
    before: (u64, u64),
    after: (u64, u64),
) -> Result<(), RequestError> {
    if after.0 <= before.0 && after.1 <= before.1 {
        return Ok(());
    }
    let Some(framework) = apply.state.frameworks.get(&id) else { return Ok(()) };
    let limits = apply.state.limits_of(&framework.role);
    let totals = [
        (LimitName::StateBytes, after.0, before.0, "bytes"),
        (LimitName::StateKeys, after.1, before.1, "keys"),
    ];
    for (name, after, before, what) in totals {
        let max = limits.get(name);
        if after > max && after > before {
            let rule = format!("at most {max} {what} of state");
            return Err(RequestError::Limit { name: name.row().name, rule });
        }
    }
    Ok(())
}
