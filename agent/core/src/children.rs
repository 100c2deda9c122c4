//! Children of executors: commands and Wasm components that an executor starts inside of its own and its
//! tasks' resources. They are tasks in all but who is told of them.
//!
//! Invariants: a child is on record before the turn that started it, which is before it starts; an id is
//! used once in a life of its executor; children together never have more than their executor and its
//! tasks are charged for. This file must never report to a master.

use crate::action::{ExecutorKey, Now, Parent, TaskKey};
use crate::core::Core;
use crate::executor_records::remember;
use crate::executors::Executor;
use crate::killing::Why;
use std::sync::Arc;
use tessera_types::{
    Digest, ExecutorId, FrameworkId, Launch, LimitName, Quantities, Reason, Resources, TaskBody, TaskId, TaskSpec,
    TaskState, TaskStatus, limits,
};
use tessera_wire::v1;

/// Refusals that wait to be told: as many as one turn can have operations.
const REFUSALS_MAX: usize = 10_000;
/// Bytes of the rule that each of them names: all of them together are in one record of a checkpoint.
const RULE_BYTES_MAX: usize = 256;

/// A child of a live executor, as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSeen {
    /// Whose.
    pub parent: Parent,
    /// Its id in that life of its executor.
    pub child: TaskId,
    /// The newest state that is known.
    pub state: TaskState,
}

impl Core {
    /// Children of a framework's live executors, as far as they are on record.
    #[must_use]
    pub fn children_of(&self, framework: FrameworkId) -> Vec<ChildSeen> {
        let executors = self.executors.live.iter();
        let of_framework = executors.filter(|(key, _)| key.framework == framework);
        let children = of_framework.flat_map(|(_, executor)| &executor.children);
        let seen = children.filter_map(|key| {
            let task = self.tasks.get(key)?;
            Some(ChildSeen {
                parent: key.parent.clone()?,
                child: key.task.clone(),
                state: task.over().map_or(task.state, |status| status.state),
            })
        });
        seen.collect()
    }

    /// Children that have not ended.
    pub(crate) fn live_children(&self, executor: &Executor) -> Vec<TaskKey> {
        let children = executor.children.iter();
        let live = |key: &&TaskKey| self.tasks.get(*key).is_some_and(|t| t.over().is_none());
        children.filter(live).cloned().collect()
    }

    /// An executor wants a child. One of an id that was used changes nothing; one that may not be is told
    /// as an event.
    pub(crate) fn start_child(
        &mut self,
        key: &ExecutorKey,
        start: v1::StartChild,
        record: &mut v1::ExecutorTurnKeptRecord,
        now: Now,
    ) -> Result<(), String> {
        let Some(executor) = self.executors.live.get(key) else {
            return Ok(());
        };
        if executor.kept.child_ids.contains(&start.child) {
            return Ok(());
        }
        let name: Result<TaskId, String> = start
            .child
            .parse::<ExecutorId>()
            .and_then(|_| start.child.parse())
            .map_err(|error| error.to_string());
        let checked = name.and_then(|child| {
            let spec = self.check_child(executor, &start.spec)?;
            Ok((child, spec))
        });
        let (child, spec) = match checked {
            Ok(checked) => checked,
            Err(rule) => return self.refuse_child(key, start.child, &rule, record, now),
        };
        let launch = Launch {
            task: child.clone(),
            spec: Digest::of(&start.spec),
            args: Vec::new(),
            env: Vec::new(),
        };
        let (role, life) = (executor.kept.role.clone(), executor.kept.life);
        let child_key = TaskKey {
            framework: key.framework,
            parent: Some(Parent {
                executor: key.executor.clone(),
                life,
            }),
            task: child,
        };
        self.take_up(&child_key, role, launch, Arc::new(spec), &start.spec, 0);
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.children.insert(child_key);
            remember(&mut executor.kept.child_ids, start.child.clone());
        }
        record.children.push(start.child);
        Ok(())
    }

    /// The spec of a child, if it may start now.
    fn check_child(&self, executor: &Executor, encoded: &[u8]) -> Result<TaskSpec, String> {
        let spec = tessera_wire::decode_spec(encoded).map_err(|error| error.to_string())?;
        if matches!(spec.body, TaskBody::Executor(_)) {
            return Err("body: a child is a command or a Wasm component".to_owned());
        }
        if executor.stopping.is_some() {
            return Err("its executor ends".to_owned());
        }
        let live = self.live_children(executor);
        let most = self
            .limits_of(&executor.kept.role)
            .size(LimitName::ExecutorChildren);
        if live.len() >= most {
            return Err(format!("limit {}: at most {most}", LimitName::ExecutorChildren));
        }
        let used = live.iter().filter_map(|key| self.tasks.get(key));
        let used = used.fold(Resources::ZERO, |sum, task| sum.plus(&task.spec.resources));
        // The memory that the executor itself is charged for is what its instance may have.
        let own = Quantities {
            mem_mib: executor.kept.resources.quantities.mem_mib,
            ..Quantities::ZERO
        };
        let left = self.total_of(executor).minus(&own.into()).minus(&used);
        if !left.contains(&spec.resources) {
            let needs = spec.resources;
            return Err(format!("needs {needs}, its executor has {left} left"));
        }
        Ok(spec)
    }

    fn refuse_child(
        &mut self,
        key: &ExecutorKey,
        child: String,
        rule: &str,
        record: &mut v1::ExecutorTurnKeptRecord,
        now: Now,
    ) -> Result<(), String> {
        let agent = self.agent;
        let Some(executor) = self.executors.live.get_mut(key) else {
            return Ok(());
        };
        // An id that is none cannot be told either; the worker refuses it before.
        let task = child
            .parse()
            .map_err(|error| format!("child {child:?}: {error}"))?;
        let status = TaskStatus::new(task, agent, TaskState::Error, now.wall_ms)
            .because(Reason::InvalidSpec, &rule[..rule.floor_char_boundary(RULE_BYTES_MAX)]);
        if executor.kept.refused.len() >= REFUSALS_MAX {
            return Err(format!(
                "child {child}: {rule}; {REFUSALS_MAX} refusals wait to be told already"
            ));
        }
        record.refused.push(v1::ChildStatus {
            child: child.clone(),
            status: Some((&status).into()),
        });
        executor.kept.refused.push_back((child, status));
        Ok(())
    }

    /// An executor wants a child to end. One that has ended, or never was, stays so.
    pub(crate) fn stop_child(&mut self, key: &ExecutorKey, stop: &v1::StopChild, now: Now) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        let Ok(task) = stop.child.parse() else { return };
        let child = TaskKey {
            framework: key.framework,
            parent: Some(Parent {
                executor: key.executor.clone(),
                life: executor.kept.life,
            }),
            task,
        };
        self.kill(&child, stop.grace_ms.min(limits::GRACE_MAX_MS), Why::Asked, now);
    }
}
