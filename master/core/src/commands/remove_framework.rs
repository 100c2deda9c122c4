//! End a framework: its scheduler at once, its tasks by the kill policy, its rows with the last task.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::commands::kill_task::{grace_ms, intend};
use crate::effect::{CommandResult, Effect};
use crate::rows;
use tessera_types::{FrameworkId, Reason, TaskId};
use tessera_wire::v1;

/// Carry it out; repeating it changes nothing.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RemoveFramework,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get_mut(&id) else {
        return not_found("framework", id);
    };
    if framework.removing {
        return Ok(CommandResult::Done);
    }
    framework.removing = true;
    let hosted_by = framework.agent.take();
    framework.timers.clear();
    framework.due.clear();
    framework.state_bytes = 0;
    framework.state_keys = 0;
    framework.upgrade = None;
    framework.merging = false;
    framework.quarantine = None;
    let tasks: Vec<(TaskId, bool)> = framework
        .tasks
        .iter()
        .map(|(task, row)| (task.clone(), row.state.is_terminal()))
        .collect();
    apply.rows.delete_prefix(rows::TIMERS, rows::framework_key(id));
    apply.rows.delete_prefix(rows::VALUES, rows::framework_key(id));
    apply.rows.delete_prefix(rows::GENERATION, rows::framework_key(id));
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    if let Some(agent) = hosted_by {
        apply.effect(Effect::Hosting(agent));
    }
    apply.event("framework.removing", Some(id), None, None, "");
    for (task, ended) in tasks {
        if ended {
            apply.drop_task(id, &task);
        } else {
            let grace_ms = grace_ms(apply.state, id, &task, None);
            intend(apply, id, &task, grace_ms, Reason::FrameworkRemoved);
        }
    }
    apply.finish_removal(id);
    Ok(CommandResult::Done)
}
