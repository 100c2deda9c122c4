//! Scheduler instances: the desired set, and what each one's worker last said of it.
//!
//! Invariants: only the instance of the newest epoch that was desired is spoken for; a turn without an
//! answer is kept and sent again in each new session, before the instance is announced; an instance is
//! built only while there is a session, because its state comes from the masters. This file must never
//! look into a turn or a batch.

use crate::action::{Action, Now, SupplyFailure, WorkerHello, WorkerKey, WorkerKind};
use crate::core::{Core, worker_of};
use crate::supplies::{IMAGE_DAMAGED, Readiness};
use crate::workers::memory_of;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{Digest, FrameworkId, RoleName};
use tessera_wire::v1;
use v1::agent_message::Message;
use v1::to_worker::Message as ToWorker;

/// First pause before an instance is built again after its worker was lost or its state did not come.
const REBUILD_MIN_MS: u64 = 100;
/// Longest such pause.
const REBUILD_MAX_MS: u64 = 30_000;
/// Reason of a worker that has no room for one more guest: nobody's failure, and it passes.
const WORKER_FULL: &str = "WORKER_FULL";

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Waiting {
        at_ms: u64,
    },
    /// Its worker or image is on its way.
    Preparing,
    Building,
    Ready {
        next_turn: u64,
        /// Outside writes that its state has for sure.
        outside: u64,
    },
    Failed,
}

#[derive(Clone, Debug)]
struct Instance {
    wanted: v1::DesiredInstance,
    worker: WorkerKey,
    component: Digest,
    phase: Phase,
    /// A turn whose fate is not known.
    outstanding: Option<v1::Turn>,
    /// The limits that its worker was told; none when an earlier agent told them.
    told: Option<Vec<v1::Limit>>,
    /// Not the instance that the masters last sent a batch to.
    rebuilt: bool,
    pause_ms: u64,
}

/// All instances, and what connected workers had when they were connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instances {
    wanted: BTreeMap<FrameworkId, Instance>,
    /// Instances of workers from before this agent started, until the masters say what is desired.
    found: BTreeMap<(u64, u64), (WorkerKey, v1::HelloInstance)>,
    /// Turns of those that came before the masters spoke: their workers wait for what became of them.
    found_turns: BTreeMap<(u64, u64), v1::Turn>,
    /// Whether the masters have said so.
    known: bool,
}

impl Instances {
    /// Components of all instances; none until the masters have said what is desired.
    pub(crate) fn components(&self) -> Option<BTreeSet<Digest>> {
        let components = self.wanted.values().map(|instance| instance.component);
        self.known.then(|| components.collect())
    }
}

impl Instance {
    fn key(&self) -> v1::InstanceKey {
        v1::InstanceKey {
            framework: self.wanted.framework,
            epoch: self.wanted.epoch,
        }
    }

    fn retry(&mut self, now: Now) {
        self.phase = Phase::Waiting {
            at_ms: now.mono_ms + self.pause_ms,
        };
        self.pause_ms = (self.pause_ms * 2).min(REBUILD_MAX_MS);
        self.outstanding = None;
        self.rebuilt = true;
    }
}

impl Instances {
    /// The worker of each instance, and what the instance may take. What was found counts nothing: it
    /// only keeps its worker.
    pub(crate) fn grants(&self) -> impl Iterator<Item = (WorkerKey, u64)> {
        let found = self.found.values().map(|(worker, _)| (worker.clone(), 0));
        let grant = |instance: &Instance| {
            let mem_bytes = memory_of(&instance.wanted.limits);
            (instance.worker.clone(), mem_bytes)
        };
        self.wanted.values().map(grant).chain(found)
    }

    pub(crate) fn frameworks(&self) -> BTreeSet<FrameworkId> {
        self.wanted.keys().copied().collect()
    }

    pub(crate) fn wake_ms(&self, session: bool) -> Option<u64> {
        let at = |instance: &Instance| match instance.phase {
            Phase::Waiting { at_ms } if session => Some(at_ms),
            _ => None,
        };
        self.wanted.values().filter_map(at).min()
    }

    fn current(&mut self, key: Option<v1::InstanceKey>) -> Option<&mut Instance> {
        let key = key?;
        self.wanted
            .get_mut(&FrameworkId(key.framework))
            .filter(|i| i.wanted.epoch == key.epoch)
    }
}

impl Core {
    fn to_worker(&mut self, worker: WorkerKey, message: ToWorker) {
        self.actions.push(Action::ToWorker { worker, message });
    }

    fn fail_instance(
        &mut self,
        key: v1::InstanceKey,
        reason: &str,
        message: String,
        will_retry: bool,
    ) {
        self.send(Message::InstanceFailed(v1::InstanceFailed {
            key: Some(key),
            reason: reason.to_owned(),
            message,
            will_retry,
            ..Default::default()
        }));
    }

    /// The complete list of instances.
    pub(crate) fn desire_instances(&mut self, desired: Vec<v1::DesiredInstance>, now: Now) {
        self.instances.known = true;
        let mut old = std::mem::take(&mut self.instances.wanted);
        for wanted in desired {
            let framework = FrameworkId(wanted.framework);
            match old.remove(&framework) {
                Some(mut same) if same.wanted.epoch == wanted.epoch => {
                    // The same component with other limits, or another configuration for its next life.
                    same.wanted = wanted;
                    self.update_instance(&mut same);
                    self.instances.wanted.insert(framework, same);
                    continue;
                }
                Some(older) => self.stop_instance(older.worker.clone(), older.key()),
                None => {}
            }
            let found = self
                .instances
                .found
                .remove(&(wanted.framework, wanted.epoch));
            let turn = self
                .instances
                .found_turns
                .remove(&(wanted.framework, wanted.epoch));
            if let Some(instance) = self.new_instance(wanted, found, turn, now) {
                self.instances.wanted.insert(framework, instance);
            }
        }
        let unwanted = old
            .into_values()
            .map(|instance| (instance.worker.clone(), instance.key()));
        self.instances.found_turns.clear();
        let found = std::mem::take(&mut self.instances.found).into_iter();
        let found = found.map(|((framework, epoch), (worker, _))| {
            (worker, v1::InstanceKey { framework, epoch })
        });
        for (worker, key) in unwanted.chain(found).collect::<Vec<_>>() {
            self.stop_instance(worker, key);
        }
    }

    /// Tell an instance that is ready the limits that changed since it was told. One that is being built
    /// is told when it is.
    fn update_instance(&mut self, instance: &mut Instance) {
        let told = instance.told.as_ref() == Some(&instance.wanted.limits);
        if told || !matches!(instance.phase, Phase::Ready { .. }) {
            return;
        }
        instance.told = Some(instance.wanted.limits.clone());
        self.actions.push(Action::UpdateInstance {
            worker: instance.worker.clone(),
            instance: instance.wanted.clone(),
        });
    }

    fn stop_instance(&mut self, worker: WorkerKey, key: v1::InstanceKey) {
        if self.supplies.process_of(&worker).is_some() {
            self.to_worker(
                worker,
                ToWorker::StopInstance(v1::StopInstance { key: Some(key) }),
            );
        }
    }

    fn new_instance(
        &mut self,
        wanted: v1::DesiredInstance,
        found: Option<(WorkerKey, v1::HelloInstance)>,
        turn: Option<v1::Turn>,
        now: Now,
    ) -> Option<Instance> {
        let key = v1::InstanceKey {
            framework: wanted.framework,
            epoch: wanted.epoch,
        };
        let role: Result<RoleName, _> = wanted.role.parse();
        let (Ok(role), Ok(component)) = (role, Digest::from_slice(&wanted.component)) else {
            let text = "its role or its component's digest is not readable".to_owned();
            self.fail_instance(key, "REFUSED", text, false);
            return None;
        };
        let mut instance = Instance {
            wanted,
            worker: worker_of(&role, WorkerKind::Schedulers),
            component,
            phase: Phase::Waiting { at_ms: now.mono_ms },
            outstanding: None,
            told: None,
            rebuilt: false,
            pause_ms: REBUILD_MIN_MS,
        };
        if let Some((worker, hello)) = found {
            instance.outstanding = turn;
            self.adopt(&mut instance, &worker, &hello);
        }
        Some(instance)
    }

    /// A worker has an instance that is desired: go on with it when it is whole, else build it anew.
    fn adopt(&mut self, instance: &mut Instance, worker: &WorkerKey, hello: &v1::HelloInstance) {
        if hello.ready && *worker == instance.worker {
            instance.phase = Phase::Ready {
                next_turn: hello.next_turn,
                outside: hello.outside,
            };
            // It may have been built anew while nobody listened.
            instance.rebuilt |= hello.rebuilt;
            self.update_instance(instance);
            self.announce(instance);
        } else {
            instance.rebuilt = true;
            instance.outstanding = None;
            self.stop_instance(worker.clone(), instance.key());
        }
    }

    fn announce(&mut self, instance: &Instance) {
        let Phase::Ready { next_turn, outside } = instance.phase else {
            return;
        };
        if let Some(turn) = &instance.outstanding {
            self.send(Message::Turn(turn.clone()));
        }
        self.send(Message::InstanceReady(v1::InstanceReady {
            key: Some(instance.key()),
            rebuilt: instance.rebuilt,
            next_turn,
            outside,
        }));
    }

    /// A new session: say what is ready, after the turns whose fate is not known.
    pub(crate) fn announce_instances(&mut self) {
        let ready: Vec<Instance> = self.instances.wanted.values().cloned().collect();
        for instance in &ready {
            self.announce(instance);
        }
    }

    /// Build what is desired and not there.
    pub(crate) fn drive_instances(&mut self, now: Now) {
        if !self.session {
            return;
        }
        for instance in self.instances.wanted.values_mut() {
            match instance.phase {
                Phase::Waiting { at_ms } if at_ms <= now.mono_ms => {}
                Phase::Preparing => {}
                Phase::Waiting { .. } | Phase::Building | Phase::Ready { .. } | Phase::Failed => {
                    continue;
                }
            }
            match self
                .supplies
                .ready(&instance.worker, instance.component, now, &mut self.actions)
            {
                Readiness::NotYet => instance.phase = Phase::Preparing,
                Readiness::Ready { engine, .. } => {
                    instance.phase = Phase::Building;
                    instance.told = Some(instance.wanted.limits.clone());
                    self.actions.push(Action::StartInstance {
                        worker: instance.worker.clone(),
                        instance: instance.wanted.clone(),
                        engine,
                    });
                }
                Readiness::Unusable(message) => {
                    instance.phase = Phase::Failed;
                    self.actions
                        .push(Action::Send(Message::InstanceFailed(v1::InstanceFailed {
                            key: Some(instance.key()),
                            reason: "COMPONENT_UNUSABLE".to_owned(),
                            message,
                            will_retry: false,
                            guest: true,
                            ..Default::default()
                        })));
                }
            }
        }
    }

    /// The state of an instance did not come.
    pub fn on_state_failed(&mut self, key: v1::InstanceKey, now: Now) -> Vec<Action> {
        let stop = self.instances.current(Some(key)).and_then(|instance| {
            (instance.phase == Phase::Building).then(|| {
                instance.retry(now);
                instance.worker.clone()
            })
        });
        if let Some(worker) = stop {
            self.stop_instance(worker, key);
        }
        self.finish(now)
    }

    /// A batch of events from the master.
    pub fn on_batch(&mut self, batch: v1::Batch, now: Now) -> Vec<Action> {
        if let Some(instance) = self.instances.current(batch.key) {
            // It speaks to the instance that was announced last.
            instance.rebuilt = false;
            instance.pause_ms = REBUILD_MIN_MS;
            let worker = instance.worker.clone();
            self.to_worker(worker, ToWorker::Batch(batch));
        }
        self.finish(now)
    }

    /// The fate of a turn.
    pub fn on_turn_result(&mut self, result: v1::TurnResult, now: Now) -> Vec<Action> {
        if let Some(instance) = self.instances.current(result.key) {
            if instance
                .outstanding
                .as_ref()
                .is_some_and(|turn| turn.number == result.number)
            {
                instance.outstanding = None;
            }
            let next = result
                .outcome
                .as_ref()
                .and_then(|outcome| match outcome.outcome {
                    Some(v1::turn_outcome::Outcome::Next(next)) => Some(next),
                    _ => None,
                });
            if let (Some(next), Phase::Ready { next_turn, outside }) = (next, &mut instance.phase) {
                *next_turn = next;
                *outside = (*outside).max(result.outside);
            }
            let worker = instance.worker.clone();
            self.to_worker(worker, ToWorker::TurnResult(result));
        }
        self.finish(now)
    }

    /// A worker says that an instance is ready.
    pub fn on_instance_ready(&mut self, ready: v1::InstanceReady, now: Now) -> Vec<Action> {
        if let Some(instance) = self.instances.current(ready.key) {
            instance.phase = Phase::Ready {
                next_turn: ready.next_turn,
                outside: ready.outside,
            };
            instance.outstanding = None;
            instance.rebuilt |= ready.rebuilt;
            let mut announced = instance.clone();
            self.update_instance(&mut announced);
            self.announce(&announced);
            self.instances.wanted.insert(FrameworkId(announced.wanted.framework), announced);
        }
        self.finish(now)
    }

    /// A worker says that an instance failed.
    pub fn on_instance_failed(&mut self, failed: v1::InstanceFailed, now: Now) -> Vec<Action> {
        if let Some(instance) = self.instances.current(failed.key) {
            instance.outstanding = None;
            instance.rebuilt = true;
            if failed.reason == IMAGE_DAMAGED {
                instance.retry(now);
                let (worker, component, key) = (instance.worker.clone(), instance.component, instance.key());
                self.supplies.on_image_damaged(component);
                // It is to be begun again under the same epoch.
                self.stop_instance(worker, key);
            } else if failed.reason == WORKER_FULL {
                // It was never begun; there may be room when others have ended.
                instance.retry(now);
            } else if failed.will_retry {
                instance.phase = Phase::Building;
            } else {
                instance.phase = Phase::Failed;
            }
            self.send(Message::InstanceFailed(failed));
        }
        self.finish(now)
    }

    /// A worker submits a turn.
    pub fn on_turn(&mut self, turn: v1::Turn, now: Now) -> Vec<Action> {
        let key = v1::InstanceKey {
            framework: turn.framework,
            epoch: turn.epoch,
        };
        if let Some(instance) = self.instances.current(Some(key)) {
            instance.outstanding = Some(turn.clone());
            self.send(Message::Turn(turn));
        } else if self.instances.found.contains_key(&(turn.framework, turn.epoch)) {
            self.instances
                .found_turns
                .insert((turn.framework, turn.epoch), turn);
        }
        self.finish(now)
    }

    // Workers and what they need.

    /// A worker is connected.
    pub fn on_worker_up(
        &mut self,
        worker: &WorkerKey,
        hello: WorkerHello,
        now: Now,
    ) -> Vec<Action> {
        self.supplies
            .on_worker_up(worker, &hello.process, &hello.engine);
        self.compare_wasm(worker, &hello, now);
        self.compare_executors(worker, &hello.executors, now);
        let mut has = BTreeMap::new();
        for instance in hello.instances {
            let Some(key) = instance.key else { continue };
            has.insert((key.framework, key.epoch), instance);
        }
        let mine: Vec<FrameworkId> = self
            .instances
            .wanted
            .iter()
            .filter(|(_, i)| i.worker == *worker)
            .map(|(f, _)| *f)
            .collect();
        for framework in mine {
            let Some(mut instance) = self.instances.wanted.remove(&framework) else {
                continue;
            };
            match has.remove(&(instance.wanted.framework, instance.wanted.epoch)) {
                Some(hello) => {
                    if !hello.ready {
                        instance.phase = Phase::Waiting { at_ms: now.mono_ms };
                    }
                    self.adopt(&mut instance, worker, &hello);
                }
                None if matches!(instance.phase, Phase::Ready { .. } | Phase::Building) => {
                    instance.retry(now)
                }
                None => {}
            }
            self.instances.wanted.insert(framework, instance);
        }
        if self.instances.known {
            let strangers: Vec<_> = has.into_keys().collect();
            for (framework, epoch) in strangers {
                let key = v1::InstanceKey { framework, epoch };
                if let Some(instance) = self.instances.current(Some(key)) {
                    // Built anew by this engine while a worker of another one still had it.
                    instance.rebuilt = true;
                }
                self.stop_instance(worker.clone(), key);
            }
        } else {
            for (key, instance) in has {
                // One that was moved to the present engine before the agent ended is the newer one.
                let newer = |(of, _): &(WorkerKey, _)| of.old.is_none() && worker.old.is_some();
                if !self.instances.found.get(&key).is_some_and(newer) {
                    self.instances.found.insert(key, (worker.clone(), instance));
                }
            }
        }
        self.finish(now)
    }

    /// A worker is gone, or could not be started.
    pub fn on_worker_down(&mut self, worker: &WorkerKey, now: Now) -> Vec<Action> {
        self.supplies.on_worker_down(worker, now);
        self.instances.found.retain(|_, (of, _)| of != worker);
        let found = &self.instances.found;
        self.instances.found_turns.retain(|key, _| found.contains_key(key));
        self.lose_wasm(worker, now);
        self.lose_executors(now);
        let mut lost = Vec::new();
        for instance in self
            .instances
            .wanted
            .values_mut()
            .filter(|i| i.worker == *worker)
        {
            if matches!(instance.phase, Phase::Ready { .. } | Phase::Building) {
                instance.retry(now);
                lost.push(instance.key());
            }
        }
        for key in lost {
            self.fail_instance(
                key,
                "WORKER_LOST",
                "its worker process ended".to_owned(),
                true,
            );
        }
        self.finish(now)
    }

    /// A component is on disk, or is not.
    pub fn on_component(
        &mut self,
        digest: Digest,
        result: Result<(), SupplyFailure>,
        now: Now,
    ) -> Vec<Action> {
        self.supplies.on_component(digest, result, now);
        self.finish(now)
    }

    /// A component is compiled, or is not.
    pub fn on_image(
        &mut self,
        digest: Digest,
        engine: String,
        result: Result<(), SupplyFailure>,
        now: Now,
    ) -> Vec<Action> {
        self.supplies.on_image(digest, engine, result, now);
        self.finish(now)
    }
}
