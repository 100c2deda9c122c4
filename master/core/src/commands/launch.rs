//! Launches of a turn: checked again against the state of the moment, and either charged or dropped in
//! the same commit.
//!
//! Invariants: a unit, that is a task group, a gang, or a launch that is in neither, is judged as a whole
//! against the ledger as it would become; all of it is charged, or nothing.

use crate::api::World;
use crate::apply::{Apply, Dirty};
use crate::effect::Effect;
use crate::limits::USED_IDS_MAX;
use crate::rows;
use crate::rows::RowsError;
use crate::state::{Executor, StoredUpdate, Task};
use crate::status_steps::StatusSteps;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{
    AgentId, Digest, ExecutorId, ExecutorTask, FrameworkId, Launch, LimitName, Reason, Resources,
    TaskBody, TaskId, TaskSpec, TaskState, TaskStatus, validate_launch,
};
use tessera_wire::{WireError, v1};

/// A launch as the leader planned it.
pub(super) struct Planned {
    pub(super) launch: Launch,
    pub(super) agent: AgentId,
    /// Why the leader gave it up already.
    pub(super) dropped: Option<(Reason, String)>,
    /// Number of its task group within the turn; 0 is none.
    pub(super) group: u32,
    /// Number of its gang within the turn; 0 is none.
    pub(super) gang: u32,
}

/// Which launches of a turn stand or fall together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UnitKey {
    Group(u32),
    Gang(u32),
}

impl Planned {
    /// The unit that it belongs to, if it does not stand alone. A gang takes in the groups in it.
    pub(super) const fn unit(&self) -> Option<UnitKey> {
        match (self.gang, self.group) {
            (0, 0) => None,
            (0, group) => Some(UnitKey::Group(group)),
            (gang, _) => Some(UnitKey::Gang(gang)),
        }
    }
}

/// What a launch that stands is charged.
struct Granted {
    charge: Resources,
    revocable: bool,
    name: String,
}

enum Refused {
    /// It is recorded as dropped.
    Dropped(Reason, String),
    /// It cannot even be recorded under its id: the scheduler hears of it once.
    Unrecorded(Reason, String),
}

type Dropped = (Reason, String);

/// What a unit takes of the ledger before anything of it is written down.
#[derive(Default)]
struct Draft {
    taken: BTreeMap<AgentId, Resources>,
    /// Of its role's quota.
    quota: Resources,
    executors: BTreeMap<(AgentId, ExecutorId), Arc<TaskSpec>>,
    tasks: BTreeSet<TaskId>,
}

/// Carry out a unit.
pub(super) fn run(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    mut unit: Vec<Planned>,
) -> Result<(), RowsError> {
    drop_split_groups(&mut unit);
    let mut draft = Draft::default();
    let mut verdicts = Vec::with_capacity(unit.len());
    for planned in &unit {
        verdicts.push(judge(apply, framework, planned, &mut draft)?);
    }
    let culprits: Vec<(u32, TaskId)> = unit
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.is_err())
        .map(|(planned, _)| (planned.group, planned.launch.task.clone()))
        .collect();
    let mut groups = BTreeMap::new();
    for (planned, mut verdict) in unit.into_iter().zip(verdicts) {
        if verdict.is_ok()
            && let Some((reason, message)) = drawn_in(&planned, &culprits)
        {
            verdict = Err(Refused::Dropped(reason, message));
        }
        if verdict.is_err() {
            give_back(apply, framework, &planned);
        }
        if let Err(Refused::Unrecorded(reason, message)) = &verdict {
            notice(apply, framework, &planned, *reason, message);
            continue;
        }
        let group = match planned.group {
            0 => 0,
            group => *groups.entry(group).or_insert_with(|| number_group(apply, framework)),
        };
        record(apply, framework, planned, group, verdict);
    }
    Ok(())
}

/// The leader counted with what a launch would take, unless it dropped it itself.
fn give_back(apply: &mut Apply<'_>, framework: FrameworkId, planned: &Planned) {
    let owner = apply.state.frameworks.get(&framework).filter(|_| planned.dropped.is_none());
    let Some(spec) = owner.and_then(|owner| owner.specs.get(&planned.launch.spec)) else { return };
    let (resources, _) = apply.state.terms(&spec.spec);
    apply.effect(Effect::GivenBack { framework, agent: planned.agent, resources });
}

/// A task group is on one agent, whatever a leader says.
fn drop_split_groups(unit: &mut [Planned]) {
    let mut agents = BTreeMap::new();
    let mut split = BTreeSet::new();
    for planned in unit.iter().filter(|planned| planned.group != 0) {
        if *agents.entry(planned.group).or_insert(planned.agent) != planned.agent {
            split.insert(planned.group);
        }
    }
    for planned in unit.iter_mut().filter(|planned| split.contains(&planned.group)) {
        let rule = "the members of a task group go to one agent".to_owned();
        planned.dropped.get_or_insert((Reason::InvalidOffer, rule));
    }
}

/// Why a launch that could stand falls: another one of its group, or else of its gang, cannot.
fn drawn_in(planned: &Planned, culprits: &[(u32, TaskId)]) -> Option<Dropped> {
    let same_group = |(group, _): &&(u32, TaskId)| *group != 0 && *group == planned.group;
    if let Some((_, task)) = culprits.iter().find(same_group) {
        let message = format!("task {task} of the same task group could not be launched");
        return Some((Reason::TaskGroup, message));
    }
    let (_, task) = culprits.first()?;
    Some((Reason::Gang, format!("task {task} of the same gang could not be launched")))
}

fn number_group(apply: &mut Apply<'_>, framework: FrameworkId) -> u64 {
    apply.mark(Dirty::Framework(framework));
    apply.state.frameworks.get_mut(&framework).map_or(0, |owner| {
        owner.next_group += 1;
        owner.next_group
    })
}

fn judge(
    apply: &Apply<'_>,
    framework: FrameworkId,
    planned: &Planned,
    draft: &mut Draft,
) -> Result<Result<Granted, Refused>, RowsError> {
    let id = &planned.launch.task;
    let key = rows::task_key(framework, id);
    let unrecorded = |reason, message: String| Ok(Err(Refused::Unrecorded(reason, message)));
    let used = apply.state.task(framework, id).is_some()
        || apply.rows.get(rows::USED_IDS, &key)?.is_some()
        || draft.tasks.contains(id);
    if used {
        return unrecorded(Reason::DuplicateTask, "the task id was used before".into());
    }
    let Some(owner) = apply.state.frameworks.get(&framework) else {
        return unrecorded(Reason::Other, "the framework is not there".into());
    };
    // Ended ones that the scheduler has not heard of count, or who never listens could end any number.
    let max = apply.state.limits_of(&owner.role).size(LimitName::LiveTasks);
    if owner.tasks.len() + draft.tasks.len() >= max {
        let rule = format!("limit {}: at most {max} tasks", LimitName::LiveTasks);
        return unrecorded(Reason::FrameworkLimit, rule);
    }
    if owner.used_ids + draft.tasks.len() as u64 >= USED_IDS_MAX {
        let rule = format!("USED_IDS_MAX: at most {USED_IDS_MAX} task ids in a framework's life");
        return unrecorded(Reason::FrameworkLimit, rule);
    }
    draft.tasks.insert(id.clone());
    let verdict = check(apply, framework, planned, draft);
    Ok(verdict.map_err(|(reason, message)| Refused::Dropped(reason, message)))
}

/// Write down what became of a launch.
fn record(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    planned: Planned,
    group: u64,
    verdict: Result<Granted, Refused>,
) {
    let id = planned.launch.task.clone();
    let (state, granted, status) = match verdict {
        Ok(granted) => {
            let status = TaskStatus::new(id, planned.agent, TaskState::Staging, apply.time_ms);
            (TaskState::Staging, granted, status)
        }
        Err(Refused::Dropped(reason, message) | Refused::Unrecorded(reason, message)) => {
            let granted = Granted { charge: Resources::ZERO, revocable: false, name: String::new() };
            let status = TaskStatus::new(id, planned.agent, TaskState::Dropped, apply.time_ms)
                .because(reason, &message);
            (TaskState::Dropped, granted, status)
        }
    };
    insert(apply, framework, planned, group, state, granted, status);
}

fn insert(
    apply: &mut Apply<'_>,
    framework: FrameworkId,
    planned: Planned,
    group: u64,
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
        revocable: granted.revocable,
        group,
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
        steps: StatusSteps::default(),
        trace: None,
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
    draft: &mut Draft,
) -> Result<Granted, Dropped> {
    if let Some((reason, message)) = &planned.dropped {
        return Err((*reason, message.clone()));
    }
    let state = &*apply.state;
    let digest = planned.launch.spec;
    let owner = state.frameworks.get(&framework);
    let owner = owner.ok_or_else(|| (Reason::Other, "the framework is not there".to_owned()))?;
    let spec = owner.specs.get(&digest).map(|spec| &spec.spec);
    let spec = spec.ok_or_else(|| (Reason::SpecUnknown, format!("spec {digest} was not defined")))?;
    validate_launch(&planned.launch, spec)
        .map_err(|error| (Reason::InvalidSpec, error.to_string()))?;
    let agent = planned.agent;
    let (resources, revocable) = state.terms(spec);
    let mut needed = resources.clone();
    match &spec.body {
        TaskBody::Native(_) => {}
        TaskBody::Wasm { component, .. } => check_world(apply, component, World::Command)?,
        TaskBody::Executor(task) => {
            check_world(apply, &task.component, World::Executor)?;
            if !has_executor(apply, framework, agent, (task, revocable), draft)? {
                needed.add(&task.resources);
            }
        }
    }
    let unavailable = |why: &str| (Reason::AgentUnavailable, format!("agent {agent} {why}"));
    let row = state.agents.get(&agent).ok_or_else(|| unavailable("is not known"))?;
    if row.unreachable_ms.is_some() {
        return Err(unavailable("does not answer"));
    }
    if row.deactivated {
        return Err(unavailable("is deactivated"));
    }
    let taken = draft.taken.entry(agent).or_default();
    let free = apply.free(agent).unwrap_or(Resources::ZERO).minus(taken);
    if !free.contains(&needed) {
        let message = format!("{needed} are needed, {free} are free on {agent}");
        return Err((Reason::NotEnough, message));
    }
    taken.add(&needed);
    if !revocable {
        draft.quota.add(&needed);
        if let Some(message) = state.quota_passed(&owner.role, &draft.quota) {
            return Err((Reason::Quota, message));
        }
    }
    if let TaskBody::Executor(task) = &spec.body {
        draft.executors.insert((agent, task.executor.clone()), Arc::clone(spec));
    }
    Ok(Granted { charge: resources, revocable, name: spec.name.clone() })
}

fn check_world(apply: &Apply<'_>, component: &Digest, needed: World) -> Result<(), Dropped> {
    match apply.state.components.get(component).map(|component| component.world) {
        Some(world) if world == needed => Ok(()),
        Some(world) => {
            let world = world.name();
            let needed = if needed == World::Executor { "an executor" } else { "a command" };
            let message = format!("component {component} is a {world}, not {needed}");
            Err((Reason::ComponentUnknown, message))
        }
        None => {
            let message = format!("component {component} was not uploaded");
            Err((Reason::ComponentUnknown, message))
        }
    }
}

/// Whether the executor lives on the agent already, or is about to by this unit.
fn has_executor(
    apply: &Apply<'_>,
    framework: FrameworkId,
    agent: AgentId,
    (task, revocable): (&ExecutorTask, bool),
    draft: &Draft,
) -> Result<bool, Dropped> {
    let id = &task.executor;
    let differs = |what: &str| {
        let rule = "say the same, or name another executor";
        let message = format!("{what}: executor {id} has live tasks on {agent} that say otherwise; {rule}");
        (Reason::InvalidSpec, message)
    };
    if let Some(executor) = apply.state.executor(framework, agent, id) {
        return executor.differs(task, revocable).map_or(Ok(true), |what| Err(differs(what)));
    }
    let Some(first) = draft.executors.get(&(agent, id.clone())) else { return Ok(false) };
    let TaskBody::Executor(begun) = &first.body else { return Ok(false) };
    Executor::of(begun, apply.state.terms(first).1).differs(task, revocable).map_or(Ok(true), |what| Err(differs(what)))
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
        group: launch.group,
        gang: launch.gang,
    })
}
