//! Which worker has what: how large each has to be, when one may end, and workers of another engine.
//!
//! Invariants: a worker has room for a guest before it is sent there; a worker of another engine keeps
//! the tasks that it has, gets nothing new, and ends with the last of them; a task is lost only when no
//! process can have it any more. This file must never start a guest.

use crate::action::{Action, Now, WorkerKey, WorkerKind, WorkerLoad};
use crate::core::{Core, worker_of};
use crate::task::Task;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{FrameworkId, LimitName};
use tessera_wire::v1;

/// What a tenant's schedulers weigh against tasks, whatever their number: they work for short times.
const SCHEDULERS_CPUS_MILLI: i64 = 1_000;

/// Shortest time between two looks at all guests, unless one is to be started: giving room back and ending
/// workers can wait for so long.
const KEEP_EVERY_MS: u64 = 100;

/// When workers were looked at, and when they have to be again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keeping {
    last_ms: Option<u64>,
    due_ms: Option<u64>,
}

/// Memory that a scheduler may take: its own, and what its worker keeps for it, its state and its specs.
pub(crate) fn memory_of(limits: &[v1::Limit]) -> u64 {
    use LimitName::{MemoryBytes, SpecBytes, StateBytes};
    let limits = tessera_wire::effective_limits(limits);
    let parts = [MemoryBytes, StateBytes, SpecBytes].map(|name| limits.get(name));
    parts.into_iter().fold(0, u64::saturating_add)
}

impl WorkerLoad {
    /// One guest more.
    pub(crate) fn add(&mut self, mem_bytes: u64, cpus_milli: i64) {
        self.guests += 1;
        self.mem_bytes = self.mem_bytes.saturating_add(mem_bytes);
        self.cpus_milli = self.cpus_milli.saturating_add(cpus_milli);
    }

    fn needs_more_than(&self, other: &Self) -> bool {
        self.mem_bytes > other.mem_bytes || self.guests > other.guests
    }
}

impl Core {
    /// The agent has found sockets of workers that may be alive; each is connected to, or known to be
    /// gone, before anything that it may have is given up.
    pub fn on_workers_found(&mut self, keys: Vec<WorkerKey>, now: Now) -> Vec<Action> {
        for key in keys {
            self.supplies.expect_worker(key, &mut self.actions);
        }
        self.finish(now)
    }

    /// Frameworks whose schedulers are desired here.
    #[must_use]
    pub fn hosted(&self) -> BTreeSet<FrameworkId> {
        self.instances.frameworks()
    }

    /// The worker that a Wasm task is in, or would be sent to.
    pub(crate) fn worker_of_task(&self, task: &Task) -> WorkerKey {
        let tenant = task.role.tenant();
        task.sent_to()
            .and_then(|process| self.supplies.worker_with(tenant, process))
            .cloned()
            .unwrap_or_else(|| worker_of(&task.role, WorkerKind::Tasks))
    }

    /// What each worker hosts or is about to.
    fn loads(&self) -> BTreeMap<WorkerKey, WorkerLoad> {
        let mut loads: BTreeMap<WorkerKey, WorkerLoad> = BTreeMap::new();
        for (worker, mem_bytes) in self.instances.grants() {
            let load = loads.entry(worker).or_default();
            load.add(mem_bytes, 0);
            load.cpus_milli = SCHEDULERS_CPUS_MILLI;
        }
        let live = |task: &&Task| task.ended().is_none() && task.component().is_some();
        for task in self.tasks.values().filter(live) {
            let mem_mib = u64::try_from(task.spec.resources.quantities.mem_mib).unwrap_or(0);
            let load = loads.entry(self.worker_of_task(task)).or_default();
            load.add(mem_mib.saturating_mul(1 << 20), task.spec.resources.quantities.cpus_milli);
        }
        for (worker, mem_bytes) in self.executor_grants() {
            loads.entry(worker).or_default().add(mem_bytes, 0);
        }
        loads
    }

    /// When workers are to be looked at again.
    pub(crate) fn keep_workers_ms(&self) -> Option<u64> {
        self.keeping.due_ms
    }

    /// Make workers as large as what they host, and end those that nothing needs. Room comes before what
    /// is sent in this round, and is given back after it.
    pub(crate) fn keep_workers(&mut self, now: Now) {
        if self.supplies.workers.is_empty() && self.supplies.wake_ms().is_none() {
            // An agent that runs commands only does not wake up for workers.
            self.keeping.due_ms = None;
            return;
        }
        let starts = self.actions.iter().any(|action| {
            use Action as A;
            matches!(
                action,
                A::StartWasm { .. }
                    | A::StartInstance { .. }
                    | A::UpdateInstance { .. }
                    | A::StartExecutor { .. }
            )
        });
        let again_ms = self.keeping.last_ms.map_or(0, |last| last + KEEP_EVERY_MS);
        let overdue = self.supplies.wake_ms().is_some_and(|at| at <= now.mono_ms);
        if !starts && !overdue && now.mono_ms < again_ms {
            self.keeping.due_ms = Some(again_ms);
            return;
        }
        self.keeping = Keeping {
            last_ms: Some(now.mono_ms),
            due_ms: None,
        };
        let loads = self.loads();
        let mut more = Vec::new();
        for (worker, sized) in self.supplies.sized() {
            let load = loads.get(worker).copied().unwrap_or_default();
            if *sized == Some(load) {
                continue;
            }
            let action = Action::SizeWorker {
                worker: worker.clone(),
                load,
            };
            if sized.is_none_or(|before| load.needs_more_than(&before)) {
                more.push(action);
            } else {
                self.actions.push(action);
            }
            *sized = Some(load);
        }
        self.actions.splice(0..0, more);
        let idle_ms = self.config.worker_idle_ms;
        self.supplies
            .end_idle(|key| loads.contains_key(key), idle_ms, now, &mut self.actions);
    }
}
