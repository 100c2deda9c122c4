//! Ask for the end of a task: an intent that stands until the task has ended.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::state::{KillIntent, State};
use tessera_types::limits::{GRACE_DEFAULT_MS, GRACE_MAX_MS};
use tessera_types::{FrameworkId, Reason, TaskId};
use tessera_wire::v1;

/// The time between TERM and KILL: asked for, or the spec's, or the default.
pub(super) fn grace_ms(
    state: &State,
    framework: FrameworkId,
    task: &TaskId,
    asked: Option<u64>,
) -> u64 {
    let of_spec = || {
        let owner = state.frameworks.get(&framework)?;
        owner.specs.get(&owner.tasks.get(task)?.launch.spec)?.spec.grace_ms
    };
    asked.or_else(of_spec).unwrap_or(GRACE_DEFAULT_MS).min(GRACE_MAX_MS)
}

/// Write the intent down. A second one may only shorten the grace.
pub(super) fn intend(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    id: &TaskId,
    grace_ms: u64,
    reason: Reason,
) {
    let Some(owner) = apply.state.frameworks.get_mut(&framework) else { return };
    let Some(task) = owner.tasks.get_mut(id).filter(|task| !task.state.is_terminal()) else {
        return;
    };
    let agent = task.agent;
    match &mut task.kill {
        Some(kill) if kill.grace_ms <= grace_ms => return,
        Some(kill) => kill.grace_ms = grace_ms,
        None => task.kill = Some(KillIntent { grace_ms, reason }),
    }
    apply.mark(Dirty::Task(framework, id.clone()));
    apply.effect(Effect::Task { agent, framework, task: id.clone() });
    apply.event("task.kill", Some(framework), Some(id), Some(agent), reason.code());
}

/// Carry out what a user asked for. A task that has ended is no error.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::KillTask,
) -> Result<CommandResult, RequestError> {
    let framework = FrameworkId(command.framework);
    let Ok(id) = TaskId::try_from(command.task) else {
        return invalid("task", "is not a task id");
    };
    if command.grace_ms.is_some_and(|grace| grace > GRACE_MAX_MS) {
        return invalid("grace_ms", format!("at most {GRACE_MAX_MS}"));
    }
    if apply.state.task(framework, &id).is_none() {
        return not_found("task", id);
    }
    let grace_ms = grace_ms(apply.state, framework, &id, command.grace_ms);
    intend(apply, framework, &id, grace_ms, Reason::UserKill);
    Ok(CommandResult::Done)
}
