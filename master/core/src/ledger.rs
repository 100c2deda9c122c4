//! Charges: what live tasks, and the executors that they name, take of an agent and of a framework.
//!
//! Owns the only way in which these indexes change. Invariants: a task is charged while it lives; an
//! executor is charged once per agent while a live task there names it; all live tasks of an executor
//! name the same component, resources and configuration, and are revocable or not alike. What is revocable is
//! summed up apart. Must never decide what may be launched.

use crate::state::{Agent, Executor, Framework, State, Task};
use std::collections::BTreeSet;
use tessera_types::{AgentId, ExecutorId, ExecutorTask, FrameworkId, Launch, Resources, TaskBody, TaskSpec};

/// Resources beside cpus, mem and disk, revocable work and requests mean something only once every voting master
/// understands them: before, they are as if they had not been said.
pub(crate) const KINDS_SINCE: u32 = 4;

impl Executor {
    /// An executor as its first task names it.
    pub(crate) fn of(task: &ExecutorTask, revocable: bool) -> Self {
        Self {
            component: task.component,
            resources: task.resources.clone(),
            config: task.config.clone(),
            revocable,
            tasks: BTreeSet::new(),
        }
    }

    /// What another task names differently, if it does.
    pub(crate) fn differs(&self, task: &ExecutorTask, revocable: bool) -> Option<&'static str> {
        if self.component != task.component {
            Some("body.component")
        } else if self.resources != task.resources {
            Some("body.resources")
        } else if self.config != task.config {
            Some("body.config")
        } else if self.revocable != revocable {
            Some("revocable")
        } else {
            None
        }
    }
}

/// What a task is charged for.
pub(crate) struct Charge<'a> {
    pub(crate) launch: &'a Launch,
    pub(crate) resources: &'a Resources,
    /// Charged apart, with its executor.
    pub(crate) revocable: bool,
}

impl Task {
    pub(crate) const fn charged(&self) -> Charge<'_> {
        Charge { launch: &self.launch, resources: &self.charge, revocable: self.revocable }
    }
}

/// Charge a task that begins to live, and its executor if it is the first one there. What that is together.
pub(crate) fn charge(id: FrameworkId, owner: &mut Framework, agent: &mut Agent, charge: &Charge<'_>) -> Resources {
    let Charge { launch, resources, revocable } = *charge;
    let mut sum = resources.clone();
    if let Some(spec) = owner.specs.get_mut(&launch.spec) {
        spec.uses += 1;
        if let TaskBody::Executor(task) = &spec.spec.body {
            let executor = agent.executors.entry((id, task.executor.clone())).or_insert_with(|| {
                sum.add(&task.resources);
                Executor::of(task, revocable)
            });
            executor.tasks.insert(launch.task.clone());
        }
    }
    owner.charged_as(revocable).add(&sum);
    owner.live += 1;
    agent.charged_as(revocable).add(&sum);
    agent.tasks.insert((id, launch.task.clone()));
    sum
}

/// The reverse, for a task that has ended; its spec is still known.
pub(crate) fn release(id: FrameworkId, owner: &mut Framework, agent: &mut Agent, charge: &Charge<'_>) -> Resources {
    let Charge { launch, resources, revocable } = *charge;
    let mut sum = resources.clone();
    if let Some(spec) = owner.specs.get_mut(&launch.spec) {
        spec.uses = spec.uses.saturating_sub(1);
        if let TaskBody::Executor(task) = &spec.spec.body {
            let key = (id, task.executor.clone());
            if let Some(executor) = agent.executors.get_mut(&key) {
                executor.tasks.remove(&launch.task);
                if executor.tasks.is_empty() {
                    sum.add(&executor.resources);
                    agent.executors.remove(&key);
                }
            }
        }
    }
    owner.charged_as(revocable).take(&sum);
    owner.live = owner.live.saturating_sub(1);
    agent.charged_as(revocable).take(&sum);
    agent.tasks.remove(&(id, launch.task.clone()));
    sum
}

impl Framework {
    const fn charged_as(&mut self, revocable: bool) -> &mut Resources {
        if revocable { &mut self.charged_revocable } else { &mut self.charged }
    }
}

impl Agent {
    const fn charged_as(&mut self, revocable: bool) -> &mut Resources {
        if revocable { &mut self.charged_revocable } else { &mut self.charged }
    }

    /// What nobody is charged for; may be negative.
    pub(crate) fn free(&self) -> Resources {
        self.resources.total.minus(&self.charged).minus(&self.charged_revocable)
    }
}

impl State {
    /// Whether the cluster knows of resources of all kinds, revocable work and requests.
    pub(crate) const fn knows_kinds(&self) -> bool {
        self.meta.cluster_version >= KINDS_SINCE
    }

    /// What a task with this spec is charged for, and whether that is revocable.
    pub(crate) fn terms(&self, spec: &TaskSpec) -> (Resources, bool) {
        if self.knows_kinds() {
            (spec.resources.clone(), spec.revocable)
        } else {
            (Resources::of(spec.resources.quantities), false)
        }
    }

    /// An executor that lives on an agent.
    pub(crate) fn executor(
        &self,
        framework: FrameworkId,
        agent: AgentId,
        executor: &ExecutorId,
    ) -> Option<&Executor> {
        self.agents.get(&agent)?.executors.get(&(framework, executor.clone()))
    }
}
