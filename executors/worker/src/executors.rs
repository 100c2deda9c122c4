//! The custom executors of a worker: who they are, and who its messages are for.
//!
//! Invariants: one instance per (framework, executor); one that has failed is told of in every greeting
//! until the agent starts it again or stops it. This file must never start an executor by itself.

use crate::executor::{ExecutorHandle, Status, ToExecutor};
use crate::hosts::Hosts;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_wire::effective_limits;
use tessera_wire::v1::{self, from_worker::Message};

/// Executors of one worker: each has a thread and reserves 4 GiB of address space.
const EXECUTORS_MAX: usize = 1_024;

type Key = (u64, String);

/// All executors of a worker.
#[derive(Default)]
pub struct Executors(Mutex<BTreeMap<Key, ExecutorHandle>>);

fn key_of(key: Option<v1::ExecutorKey>) -> Option<Key> {
    key.map(|key| (key.framework, key.executor))
}

impl Executors {
    fn executors(&self) -> MutexGuard<'_, BTreeMap<Key, ExecutorHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Start an executor, or give one that waits for its state more of it. One that has it is there.
    pub fn start(&self, hosts: &Arc<Hosts>, mut start: v1::StartExecutor) {
        let Some(key) = start.key.clone() else { return };
        let state = ToExecutor::State {
            entries: std::mem::take(&mut start.state),
            last: !start.more_state,
        };
        let message = match self.status((key.framework, &key.executor)) {
            Some(status) if !status.failed && status.loaded => return,
            Some(status) if !status.failed => state,
            // New, or gone and wanted again.
            _ => match self.enter(hosts, start) {
                Ok(()) => state,
                // Nothing is sent under the lock: greetings take it while they hold the outbox.
                Err((key, message)) => {
                    let failure = v1::ExecutorFailure {
                        key,
                        reason: "WORKER_FULL".into(),
                        message,
                        ..v1::ExecutorFailure::default()
                    };
                    hosts.outbox.send(Message::ExecutorFailure(failure));
                    return;
                }
            },
        };
        self.tell(Some(key), message);
    }

    fn status(&self, (framework, executor): (u64, &String)) -> Option<Status> {
        let executors = self.executors();
        executors.get(&(framework, executor.clone())).map(ExecutorHandle::status)
    }

    fn enter(
        &self,
        hosts: &Arc<Hosts>,
        start: v1::StartExecutor,
    ) -> Result<(), (Option<v1::ExecutorKey>, String)> {
        let said = start.key.clone();
        let Some(key) = key_of(start.key.clone()) else { return Ok(()) };
        let mut executors = self.executors();
        if !executors.contains_key(&key) && executors.len() >= EXECUTORS_MAX {
            return Err((said, format!("limit worker-executors: at most {EXECUTORS_MAX}")));
        }
        let handle = ExecutorHandle::start(hosts.clone(), start)
            .map_err(|error| (said, format!("no thread: {error}")))?;
        executors.insert(key, handle);
        Ok(())
    }

    /// End an executor; nothing is said of it any more.
    pub fn stop(&self, stop: v1::StopExecutor) {
        let stopped = key_of(stop.key).and_then(|key| self.executors().remove(&key));
        drop(stopped);
    }

    /// Events for an executor.
    pub fn batch(&self, mut batch: v1::ExecutorBatch) {
        self.tell(batch.key.take(), ToExecutor::Batch(batch));
    }

    /// A turn is on record.
    pub fn kept(&self, kept: v1::ExecutorTurnKept) {
        self.tell(kept.key, ToExecutor::Kept(kept.number));
    }

    /// Limits that hold from its next turn on.
    pub fn limits(&self, limits: v1::ExecutorLimits) {
        let Some(key) = key_of(limits.key) else { return };
        if let Some(handle) = self.executors().get(&key) {
            handle.set_limits(effective_limits(&limits.limits));
        }
    }

    fn tell(&self, key: Option<v1::ExecutorKey>, message: ToExecutor) {
        let Some(key) = key_of(key) else { return };
        // Out of the lock: a message may wait until the executor has room for it.
        let inbox = self.executors().get(&key).map(ExecutorHandle::inbox);
        match inbox {
            Some(inbox) => inbox.send(message),
            None => tracing::warn!(framework = key.0, executor = key.1, "a message for no executor"),
        }
    }

    /// What a greeting says: who there is, and the frames that the agent may not have heard.
    #[must_use]
    pub fn greeting(&self) -> (Vec<v1::HelloExecutor>, Vec<Vec<u8>>) {
        let (mut hello, mut frames) = (Vec::new(), Vec::new());
        let mut executors = self.executors();
        // One that waits for the rest of its state was left by an agent that is no more: the state is
        // sent again from its beginning.
        executors.retain(|_, handle| handle.status().loaded);
        for ((framework, executor), handle) in executors.iter() {
            let status = handle.status();
            if !status.failed {
                hello.push(v1::HelloExecutor {
                    key: Some(v1::ExecutorKey {
                        framework: *framework,
                        executor: executor.clone(),
                    }),
                    ready: status.ready,
                    next_turn: status.next_turn,
                });
            }
            frames.extend(status.outstanding);
        }
        (hello, frames)
    }
}
