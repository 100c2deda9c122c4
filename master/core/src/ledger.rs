//! Charges: what live tasks, and the executors that they name, take of an agent and of a framework.
//!
//! Owns the only way in which these indexes change. Invariants: a task is charged while it lives; an
//! executor is charged once per agent while a live task there names it; all live tasks of an executor
//! name the same component, resources and configuration. Must never decide what may be launched.

use crate::state::{Agent, Executor, Framework, State};
use std::collections::BTreeSet;
use tessera_types::{AgentId, ExecutorId, ExecutorTask, FrameworkId, Launch, Quantities, TaskBody};

impl Executor {
    /// An executor as its first task names it.
    pub(crate) fn of(task: &ExecutorTask) -> Self {
        Self {
            component: task.component,
            resources: task.resources,
            config: task.config.clone(),
            tasks: BTreeSet::new(),
        }
    }

    /// What another task names differently, if it does.
    pub(crate) fn differs(&self, task: &ExecutorTask) -> Option<&'static str> {
        if self.component != task.component {
            Some("body.component")
        } else if self.resources != task.resources {
            Some("body.resources")
        } else if self.config != task.config {
            Some("body.config")
        } else {
            None
        }
    }
}

/// Charge a task that begins to live, and its executor if it is the first one there.
pub(crate) fn charge(
    id: FrameworkId,
    owner: &mut Framework,
    agent: &mut Agent,
    launch: &Launch,
    charge: Quantities,
) {
    let mut sum = charge;
    if let Some(spec) = owner.specs.get_mut(&launch.spec) {
        spec.uses += 1;
        if let TaskBody::Executor(task) = &spec.spec.body {
            let executor = agent.executors.entry((id, task.executor.clone())).or_insert_with(|| {
                sum = sum.plus(task.resources);
                Executor::of(task)
            });
            executor.tasks.insert(launch.task.clone());
        }
    }
    owner.charged = owner.charged.plus(sum);
    owner.live += 1;
    agent.charged = agent.charged.plus(sum);
    agent.tasks.insert((id, launch.task.clone()));
}

/// The reverse, for a task that has ended; its spec is still known.
pub(crate) fn release(
    id: FrameworkId,
    owner: &mut Framework,
    agent: &mut Agent,
    launch: &Launch,
    charge: Quantities,
) {
    let mut sum = charge;
    if let Some(spec) = owner.specs.get_mut(&launch.spec) {
        spec.uses = spec.uses.saturating_sub(1);
        if let TaskBody::Executor(task) = &spec.spec.body {
            let key = (id, task.executor.clone());
            if let Some(executor) = agent.executors.get_mut(&key) {
                executor.tasks.remove(&launch.task);
                if executor.tasks.is_empty() {
                    sum = sum.plus(executor.resources);
                    agent.executors.remove(&key);
                }
            }
        }
    }
    owner.charged = owner.charged.minus(sum);
    owner.live = owner.live.saturating_sub(1);
    agent.charged = agent.charged.minus(sum);
    agent.tasks.remove(&(id, launch.task.clone()));
}

impl State {
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
