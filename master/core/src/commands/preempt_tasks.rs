//! Take back what revocable tasks have: they are killed, with the grace that their role allows.

use super::invalid;
use super::kill_task::intend;
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use crate::limits::PREEMPTED_MAX;
use tessera_types::{FrameworkId, LimitName, Reason, TaskId};
use tessera_wire::v1;

/// Carry it out. Tasks that have ended since the leader looked are passed over, and so are those that are not
/// revocable, whatever a leader says.
pub(super) fn run(apply: &mut Apply<'_>, command: v1::PreemptTasks) -> Result<CommandResult, RequestError> {
    if command.tasks.is_empty() || command.tasks.len() > PREEMPTED_MAX {
        return invalid("tasks", format!("1 to {PREEMPTED_MAX}"));
    }
    let mut ended = Vec::new();
    for task in command.tasks {
        let id = FrameworkId(task.framework);
        let Ok(task) = TaskId::try_from(task.task) else { return invalid("task", "is not a task id") };
        let Some(framework) = apply.state.frameworks.get(&id) else { continue };
        let Some(row) = apply.state.live_task(id, &task).filter(|row| row.kill.is_none()) else { continue };
        if !row.revocable {
            continue;
        }
        let agent = row.agent;
        let grace_ms = apply.state.limits_of(&framework.role).get(LimitName::PreemptionGraceMs);
        ended.push((id, task, agent, grace_ms));
    }
    for (framework, task, agent, grace_ms) in ended {
        intend(apply, framework, &task, grace_ms, Reason::Preempted);
        let text = format!("for role {}, KILL {grace_ms} ms after TERM", command.role);
        apply.event("task.preempted", Some(framework), Some(&task), Some(agent), &text);
    }
    Ok(CommandResult::Done)
}
