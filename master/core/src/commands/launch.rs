//! One launch of a turn: checked again against the state of the moment, and either charged or dropped
//! in the same commit.

use crate::api::World;
use crate::apply::Apply;
use crate::effect::Effect;
use crate::limits::USED_IDS_MAX;
use crate::rows;
use crate::rows::RowsError;
use crate::state::{StoredUpdate, Task};
use tessera_types::limits::TASKS_LIVE_MAX;
use tessera_types::{
    AgentId, FrameworkId, Launch, Quantities, Reason, TaskBody, TaskState, TaskStatus,
    validate_launch,
};
use tessera_wire::{WireError, v1};

/// A launch as the leader planned it.
pub(super) struct Planned {
    pub(super) launch: Launch,
    pub(super) agent: AgentId,
    /// Why the leader gave it up already.
    pub(super) dropped: Option<(Reason, String)>,
}

/// What a launch that stands is charged.
struct Granted {
    charge: Quantities,
    name: String,
}

type Dropped = (Reason, String);

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    planned: Planned,
) -> Result<(), RowsError> {
    let id = planned.launch.task.clone();
    let key = rows::task_key(framework, &id);
    if apply.state.task(framework, &id).is_some() || apply.rows.get(rows::USED_IDS, &key)?.is_some()
    {
        notice(apply, framework, &planned, Reason::DuplicateTask, "the task id was used before");
        return Ok(());
    }
    let Some(owner) = apply.state.frameworks.get(&framework) else { return Ok(()) };
    if owner.tasks.len() >= TASKS_LIVE_MAX {
        let rule = format!("TASKS_LIVE_MAX: at most {TASKS_LIVE_MAX} tasks");
        notice(apply, framework, &planned, Reason::FrameworkLimit, &rule);
        return Ok(());
    }
    if owner.used_ids >= USED_IDS_MAX {
        let rule = format!("USED_IDS_MAX: at most {USED_IDS_MAX} task ids in a framework's life");
        notice(apply, framework, &planned, Reason::FrameworkLimit, &rule);
        return Ok(());
    }
    let (state, granted, status) = match check(apply, framework, &planned) {
        Ok(granted) => {
            let status = TaskStatus::new(id, planned.agent, TaskState::Staging, apply.time_ms);
            (TaskState::Staging, granted, status)
        }
        Err((reason, message)) => {
            let granted = Granted { charge: Quantities::ZERO, name: String::new() };
            let status = TaskStatus::new(id, planned.agent, TaskState::Dropped, apply.time_ms)
                .because(reason, &message);
            (TaskState::Dropped, granted, status)
        }
    };
    insert(apply, framework, planned, state, granted, status);
    Ok(())
}

fn insert(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    planned: Planned,
    state: TaskState,
    granted: Granted,
    status: TaskStatus,
) {
    let id = planned.launch.task.clone();
    let mut task = Task {
        launch: planned.launch,
        name: granted.name,
        agent: planned.agent,
        charge: granted.charge,
        state,
        attempt: 1,
        created_ms: apply.time_ms,
        sequence: 0,
        agent_sequence: 0,
        order: 0,
        latest: None,
        terminal: None,
        status: status.clone(),
        kill: None,
    };
    let text = match status.reason.code() {
        "" => String::new(),
        code => format!("{code}: {}", status.message),
    };
    if state.is_terminal() {
        let Some(owner) = apply.state.frameworks.get_mut(&framework) else { return };
        task.sequence = 1;
        task.order = owner.next_order;
        owner.next_order += 1;
        owner.updates.insert(task.order, id.clone());
        task.terminal = Some(StoredUpdate { sequence: 1, status });
    }
    let agent = (planned.agent.0 != 0).then_some(planned.agent);
    apply.insert_task(framework, task);
    apply.effect(Effect::Framework(framework));
    apply.event(&format!("task.{state}"), Some(framework), Some(&id), agent, &text);
}

/// A launch that cannot even be recorded under its id: the scheduler hears of it once.
fn notice(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    planned: &Planned,
    reason: Reason,
    message: &str,
) {
    let id = &planned.launch.task;
    let status = TaskStatus::new(id.clone(), planned.agent, TaskState::Dropped, apply.time_ms)
        .because(reason, message);
    apply.effect(Effect::Notice { framework, status });
    apply.event("launch.refused", Some(framework), Some(id), None, &format!("{}: {message}", reason.code()));
}

fn check(
    apply: &Apply<'_>,
    framework: FrameworkId,
    planned: &Planned,
) -> Result<Granted, Dropped> {
    if let Some((reason, message)) = &planned.dropped {
        return Err((*reason, message.clone()));
    }
    let state = &*apply.state;
    let digest = planned.launch.spec;
    let spec = state
        .frameworks
        .get(&framework)
        .and_then(|owner| owner.specs.get(&digest))
        .map(|spec| &spec.spec)
        .ok_or_else(|| (Reason::SpecUnknown, format!("spec {digest} was not defined")))?;
    validate_launch(&planned.launch, spec)
        .map_err(|error| (Reason::InvalidSpec, error.to_string()))?;
    if let TaskBody::Wasm { component, .. } = &spec.body {
        match state.components.get(component).map(|component| component.world) {
            Some(World::Command) => {}
            Some(world) => {
                let message = format!("component {component} is a {}, not a command", world.name());
                return Err((Reason::ComponentUnknown, message));
            }
            None => {
                let message = format!("component {component} was not uploaded");
                return Err((Reason::ComponentUnknown, message));
            }
        }
    }
    let agent = planned.agent;
    let unavailable = |why: &str| (Reason::AgentUnavailable, format!("agent {agent} {why}"));
    let reachable =
        state.agents.get(&agent).ok_or_else(|| unavailable("is not known"))?.unreachable_ms;
    if reachable.is_some() {
        return Err(unavailable("does not answer"));
    }
    let free = apply.free(agent).unwrap_or(Quantities::ZERO);
    if !free.contains(spec.resources) {
        let message = format!("{} are needed, {free} are free on {agent}", spec.resources);
        return Err((Reason::NotEnough, message));
    }
    Ok(Granted { charge: spec.resources, name: spec.name.clone() })
}

/// The planned launch of a message.
pub(super) fn decode(launch: v1::PlannedLaunch) -> Result<Planned, WireError> {
    let dropped = match launch.drop_reason.as_str() {
        "" => None,
        code => Some((Reason::of_code(code), launch.drop_message)),
    };
    Ok(Planned {
        launch: launch.launch.ok_or_else(|| WireError::missing("launch"))?.try_into()?,
        agent: AgentId(launch.agent),
        dropped,
    })
}

