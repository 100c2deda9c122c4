//! An agent of a restored cluster runs tasks that the state does not have for it. Those that the state cannot know
//! are noted, left alone and charged; the others were given up, and end.

use super::{invalid, not_found};
use crate::api::RequestError;
use crate::apply::{Apply, ApplyError, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::limits::STRANGERS_MAX;
use crate::rows;
use std::collections::BTreeMap;
use tessera_types::{AgentId, FrameworkId, Resources, TaskId};
use tessera_wire::v1;

/// Carry it out: the list is complete.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::NoteStrangers,
) -> Result<Result<CommandResult, RequestError>, ApplyError> {
    let id = AgentId(command.agent);
    if command.tasks.len() > STRANGERS_MAX {
        return Ok(invalid("tasks", format!("at most {STRANGERS_MAX}")));
    }
    let Some(agent) = apply.state.agents.get(&id) else { return Ok(not_found("agent", id)) };
    let (before, total) = (agent.strangers.clone(), agent.resources.total.clone());
    let mut strangers = BTreeMap::new();
    let mut new = Vec::new();
    for stranger in command.tasks {
        let Ok(task) = TaskId::try_from(stranger.task) else {
            return Ok(invalid("tasks.task", "is not a task id"));
        };
        let key = (FrameworkId(stranger.framework), task);
        // It is there now, for all that the agent says; more than there is would only be a mistake.
        let mut charge = Resources::from(stranger.charge.unwrap_or_default()).clamped();
        if !apply.state.knows_kinds() {
            charge.items.clear();
        }
        let charge = if total.contains(&charge) { charge } else { total.clone() };
        if !before.contains_key(&key) {
            if !is_unknown(apply, &key)? {
                continue;
            }
            new.push(key.clone());
        }
        strangers.insert(key, charge);
    }
    if before == strangers {
        return Ok(Ok(CommandResult::Done));
    }
    for (framework, task) in &new {
        apply.use_id(*framework, task);
    }
    let count = strangers.len();
    if let Some(agent) = apply.state.agents.get_mut(&id) {
        agent.set_strangers(strangers);
    }
    apply.mark(Dirty::Agent(id));
    apply.effect(Effect::Agent(id));
    apply.effect(Effect::Freed);
    if !new.is_empty() {
        let text = format!("{count} tasks are not known to the restored state");
        apply.event("agent.strangers", None, None, Some(id), &text);
    }
    Ok(Ok(CommandResult::Done))
}

/// Whether the task was launched after the snapshot that was restored: its framework is there and never used the
/// id, or came after it.
fn is_unknown(apply: &Apply<'_>, (framework, task): &(FrameworkId, TaskId)) -> Result<bool, ApplyError> {
    let here = apply.state.frameworks.contains_key(framework);
    if !here && !apply.state.is_lost_framework(*framework) {
        return Ok(false);
    }
    let used = apply.rows.get(rows::USED_IDS, &rows::task_key(*framework, task))?;
    Ok(used.is_none() && apply.state.task(*framework, task).is_none())
}
