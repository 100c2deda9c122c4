//! What Wasm needs before it can run: components on disk, images, workers.
//!
//! Invariants: each thing is asked for once until an answer comes; a failure that may pass is tried
//! again after a growing pause; what nothing needs is dropped. This file must never know tasks or
//! instances.

use crate::action::{Action, Now, SupplyFailure, WorkerKey, WorkerKind, WorkerLoad};
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::Digest;

/// First pause after a failure.
const RETRY_MIN_MS: u64 = 100;
/// Longest pause after repeated failures.
const RETRY_MAX_MS: u64 = 30_000;
/// Things that are remembered as present; the disk knows all of them, so that forgetting costs a look.
const PRESENT_MAX: usize = 1_024;
/// What a worker says when it cannot read an image.
pub const IMAGE_DAMAGED: &str = "IMAGE_DAMAGED";

#[derive(Clone, Debug, PartialEq)]
enum Supply {
    Asked,
    Present,
    Retry {
        at_ms: u64,
        pause_ms: u64,
    },
    /// Asked for again; remembers the pause in case that it fails again.
    AskedAgain {
        pause_ms: u64,
    },
    Unusable(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Worker {
    supply: Supply,
    /// The process and its engine, while it is up.
    pub up: Option<(String, String)>,
    /// What its group was made for.
    sized: Option<WorkerLoad>,
    /// When it ends unless something needs it again.
    idle_until_ms: Option<u64>,
    stopping: bool,
}

impl Worker {
    fn new(supply: Supply) -> Self {
        Self {
            supply,
            up: None,
            sized: None,
            idle_until_ms: None,
            stopping: false,
        }
    }

    /// Neither connected nor known to be gone.
    fn is_pending(&self) -> bool {
        let asked = matches!(self.supply, Supply::Asked | Supply::AskedAgain { .. });
        asked && self.up.is_none()
    }

    fn process(&self) -> Option<&str> {
        self.up.as_ref().map(|(process, _)| process.as_str())
    }
}

/// Whether something can run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Readiness {
    /// Yes, with an image for this engine, in this process.
    Ready { engine: String, process: String },
    /// What was missing is on its way.
    NotYet,
    /// Never.
    Unusable(String),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Supplies {
    components: BTreeMap<Digest, Supply>,
    images: BTreeMap<(Digest, String), Supply>,
    /// Components whose images are damaged.
    damaged: BTreeSet<Digest>,
    pub workers: BTreeMap<WorkerKey, Worker>,
}

impl Supply {
    /// Ask if it has to be asked for; whether it is to be asked for now.
    fn want(&mut self, now: Now) -> bool {
        match self {
            Self::Retry { at_ms, pause_ms } if *at_ms <= now.mono_ms => {
                *self = Self::AskedAgain {
                    pause_ms: *pause_ms,
                };
                true
            }
            _ => false,
        }
    }

    fn answer(&mut self, result: Result<(), SupplyFailure>, now: Now) {
        let pause_ms = match self {
            Self::AskedAgain { pause_ms } | Self::Retry { pause_ms, .. } => {
                (*pause_ms * 2).min(RETRY_MAX_MS)
            }
            Self::Asked | Self::Present | Self::Unusable(_) => RETRY_MIN_MS,
        };
        *self = match result {
            Ok(()) => Self::Present,
            Err(SupplyFailure::Retry(_) | SupplyFailure::Gone(_)) => Self::Retry {
                at_ms: now.mono_ms + pause_ms,
                pause_ms,
            },
            Err(SupplyFailure::Unusable(message)) => Self::Unusable(message),
        };
    }
}

fn is_of_tasks(key: &WorkerKey, tenant: &str) -> bool {
    key.kind == WorkerKind::Tasks && key.tenant == tenant
}

/// Ask for an entry of a table; whether the question is to be put now.
fn want<K: Ord>(table: &mut BTreeMap<K, Supply>, key: K, now: Now) -> (bool, Supply) {
    let mut new = false;
    let supply = table.entry(key).or_insert_with(|| {
        new = true;
        Supply::Asked
    });
    let ask = new || supply.want(now);
    (ask, supply.clone())
}

fn bound<K: Ord + Clone>(table: &mut BTreeMap<K, Supply>) {
    while table.len() > PRESENT_MAX {
        let settled = |(key, supply): (&K, &Supply)| {
            matches!(supply, Supply::Present | Supply::Unusable(_)).then(|| key.clone())
        };
        let Some(key) = table.iter().find_map(settled) else {
            return;
        };
        table.remove(&key);
    }
}

impl Supplies {
    /// Whether a component can run in a worker; asks for what is missing.
    pub(crate) fn ready(
        &mut self,
        worker: &WorkerKey,
        digest: Digest,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Readiness {
        let engine = self.want_worker(worker, now, actions);
        let (ask, component) = want(&mut self.components, digest, now);
        if ask {
            bound(&mut self.components);
            actions.push(Action::EnsureComponent { digest });
        }
        let (process, engine) = match (component, engine) {
            (Supply::Unusable(message), _) => return Readiness::Unusable(message),
            (Supply::Present, Some(up)) => up,
            _ => return Readiness::NotYet,
        };
        let (ask, image) = want(&mut self.images, (digest, engine.clone()), now);
        if ask {
            bound(&mut self.images);
            actions.push(Action::EnsureImage {
                digest,
                engine: engine.clone(),
                tenant: worker.tenant.clone(),
                anew: self.damaged.remove(&digest),
            });
        }
        match image {
            Supply::Present => Readiness::Ready { engine, process },
            Supply::Unusable(message) => Readiness::Unusable(message),
            Supply::Asked | Supply::AskedAgain { .. } | Supply::Retry { .. } => Readiness::NotYet,
        }
    }

    pub(crate) fn want_worker(
        &mut self,
        key: &WorkerKey,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Option<(String, String)> {
        let mut new = false;
        let worker = self.workers.entry(key.clone()).or_insert_with(|| {
            new = true;
            Worker::new(Supply::Asked)
        });
        worker.idle_until_ms = None;
        if new || worker.supply.want(now) {
            actions.push(Action::EnsureWorker {
                worker: key.clone(),
            });
        }
        worker.up.clone().filter(|_| !worker.stopping)
    }

    /// Components of which bytes or an image were asked for and have not come.
    pub(crate) fn on_their_way(&self) -> impl Iterator<Item = Digest> {
        let components = self.components.iter().map(|(digest, supply)| (*digest, supply));
        let images = self.images.iter().map(|((digest, _), supply)| (*digest, supply));
        let unsettled = |supply: &Supply| !matches!(supply, Supply::Present | Supply::Unusable(_));
        components.chain(images).filter(move |(_, supply)| unsettled(supply)).map(|(digest, _)| digest)
    }

    /// A component and its images are not on disk any more. What cannot be used stays known as that.
    pub(crate) fn forget(&mut self, digest: &Digest) {
        let keep = |of: &Digest, supply: &Supply| of != digest || *supply != Supply::Present;
        self.components.retain(|of, supply| keep(of, supply));
        self.images.retain(|(of, _), supply| keep(of, supply));
    }

    /// A worker could not read an image: it is made anew when it is needed next, unless that is on its way.
    pub(crate) fn on_image_damaged(&mut self, digest: Digest) {
        let before = self.images.len();
        self.images.retain(|(of, _), supply| *of != digest || *supply != Supply::Present);
        if self.images.len() < before {
            self.damaged.insert(digest);
        }
    }

    pub(crate) fn on_component(
        &mut self,
        digest: Digest,
        result: Result<(), SupplyFailure>,
        now: Now,
    ) {
        if matches!(result, Err(SupplyFailure::Gone(_))) {
            // An order found that it is not there, although it had come.
            return self.forget(&digest);
        }
        if let Some(supply) = self.components.get_mut(&digest) {
            supply.answer(result, now);
        }
    }

    pub(crate) fn on_image(
        &mut self,
        digest: Digest,
        engine: String,
        result: Result<(), SupplyFailure>,
        now: Now,
    ) {
        if matches!(result, Err(SupplyFailure::Gone(_))) {
            self.components.retain(|of, supply| *of != digest || *supply != Supply::Present);
        }
        if let Some(supply) = self.images.get_mut(&(digest, engine)) {
            supply.answer(result, now);
        }
    }

    pub(crate) fn on_worker_up(&mut self, key: &WorkerKey, process: &str, engine: &str) {
        let up = Some((process.to_owned(), engine.to_owned()));
        let worker = Worker {
            up,
            ..Worker::new(Supply::Present)
        };
        self.workers.insert(key.clone(), worker);
    }

    /// A worker of an earlier agent may be there: it is connected to, or found to be gone.
    pub(crate) fn expect_worker(&mut self, key: WorkerKey, actions: &mut Vec<Action>) {
        self.workers.entry(key).or_insert_with_key(|key| {
            actions.push(Action::EnsureWorker {
                worker: key.clone(),
            });
            Worker::new(Supply::Asked)
        });
    }

    /// The connected worker of a tenant's tasks that is this process.
    pub(crate) fn worker_with(&self, tenant: &str, process: &str) -> Option<&WorkerKey> {
        let same = |(key, worker): &(&WorkerKey, &Worker)| {
            is_of_tasks(key, tenant) && worker.process() == Some(process)
        };
        self.workers.iter().find(same).map(|(key, _)| key)
    }

    /// Whether this process is a worker of a tenant's tasks, as far as is known yet.
    pub(crate) fn may_live(&self, tenant: &str, process: &str) -> bool {
        let may = |worker: &Worker| worker.is_pending() || worker.process() == Some(process);
        self.workers
            .iter()
            .any(|(key, worker)| is_of_tasks(key, tenant) && may(worker))
    }

    /// What the group of each connected worker was made for.
    pub(crate) fn sized(&mut self) -> impl Iterator<Item = (&WorkerKey, &mut Option<WorkerLoad>)> {
        let connected = self.workers.iter_mut().filter(|(_, w)| w.up.is_some());
        connected.map(|(key, worker)| (key, &mut worker.sized))
    }

    /// A worker is gone, or could not be had.
    pub(crate) fn on_worker_down(&mut self, key: &WorkerKey, now: Now) {
        if let Some(worker) = self.workers.get_mut(key) {
            if worker.stopping || key.old.is_some() {
                self.workers.remove(key);
                return;
            }
            worker.up = None;
            worker
                .supply
                .answer(Err(SupplyFailure::Retry(String::new())), now);
        }
    }

    pub(crate) fn process_of(&self, key: &WorkerKey) -> Option<&str> {
        self.workers
            .get(key)?
            .up
            .as_ref()
            .map(|(process, _)| process.as_str())
    }

    /// End workers that nothing has needed for a while.
    pub(crate) fn end_idle(
        &mut self,
        needed: impl Fn(&WorkerKey) -> bool,
        idle_ms: u64,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        // What could be tried again by now and was not, nothing wants.
        let stale = |supply: &Supply| matches!(supply, Supply::Retry { at_ms, .. } if *at_ms <= now.mono_ms);
        self.components.retain(|_, supply| !stale(supply));
        self.images.retain(|_, supply| !stale(supply));
        self.workers.retain(|key, worker| {
            let kept = worker.up.is_some() || worker.is_pending() || needed(key);
            kept && !stale(&worker.supply)
        });
        for (key, worker) in &mut self.workers {
            if needed(key) || worker.up.is_none() {
                worker.idle_until_ms = None;
                continue;
            }
            // One of another engine will never be needed again.
            let idle_ms = if key.old.is_some() { 0 } else { idle_ms };
            let until = *worker.idle_until_ms.get_or_insert(now.mono_ms + idle_ms);
            if now.mono_ms >= until && !worker.stopping {
                worker.stopping = true;
                actions.push(Action::StopWorker {
                    worker: key.clone(),
                });
            }
        }
    }

    /// When something may be tried again or ended next.
    pub(crate) fn wake_ms(&self) -> Option<u64> {
        let retry = |supply: &Supply| match supply {
            Supply::Retry { at_ms, .. } => Some(*at_ms),
            Supply::Asked | Supply::Present | Supply::AskedAgain { .. } | Supply::Unusable(_) => {
                None
            }
        };
        let workers = self.workers.values().flat_map(|worker| {
            let idle = worker.idle_until_ms.filter(|_| !worker.stopping);
            [retry(&worker.supply), idle]
        });
        let others = self
            .components
            .values()
            .chain(self.images.values())
            .map(retry);
        workers.chain(others).flatten().min()
    }
}
