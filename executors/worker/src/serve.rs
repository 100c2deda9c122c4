//! `tessera-worker serve`: the socket on which an agent is heard, and who its messages are for.
//!
//! Invariants: one agent at a time, and the newest; every new link is greeted with all that an agent
//! may have missed; what a peer sends wrongly ends its link or is ignored, never the worker. The
//! worker outlives its agent, but not for ever. This file must never touch a guest itself.

use crate::executors::Executors;
use crate::hosts::Hosts;
use crate::instance::{InstanceHandle, Status, ToInstance};
use crate::outbox::encode;
use crate::tasks::Tasks;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_wire::frame;
use tessera_wire::v1::{self, ToWorker, from_worker, to_worker::Message};
use tessera_wit_host::engine_key;

/// Time without an agent after which a worker without running tasks ends: longer than any restart or
/// upgrade of an agent takes.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Instances of one worker, where the kernel allows as many: each has a thread.
const INSTANCES_MAX: usize = 4_096;
/// Mappings that an instance takes: 11 were measured for a plain one, and one with more memories has more.
const MAPPINGS_PER_INSTANCE: usize = 16;
/// Where the kernel says how many mappings a process may have, and what it says where nothing was changed.
const MAPPINGS_FILE: &str = "/proc/sys/vm/max_map_count";
const MAPPINGS_USUAL: usize = 65_530;
/// How often the loop looks at the time.
const LOOK_MS: u16 = 1_000;

type Key = (u64, u64);

/// A worker that serves.
pub struct Worker {
    hosts: Arc<Hosts>,
    tasks: Arc<Tasks>,
    executors: Executors,
    instances: Mutex<BTreeMap<Key, InstanceHandle>>,
    instances_max: usize,
}

/// What this machine can map bounds what a worker can host. To be asked before files are given up.
#[must_use]
pub fn instances_max() -> usize {
    let said = std::fs::read_to_string(MAPPINGS_FILE).ok();
    let mappings = said.and_then(|text| text.trim().parse::<usize>().ok());
    (mappings.unwrap_or(MAPPINGS_USUAL) / MAPPINGS_PER_INSTANCE).clamp(1, INSTANCES_MAX)
}

/// Bind the socket on which the agent is expected, for the owner only. One that a dead worker left
/// behind is replaced.
///
/// # Errors
/// When the path cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What reading a link ended with.
enum Ended {
    Link,
    Shutdown,
}

impl Worker {
    /// A worker without guests, which hosts so many schedulers at most.
    #[must_use]
    pub fn new(hosts: Arc<Hosts>, instances_max: usize) -> Arc<Self> {
        Arc::new(Self {
            hosts,
            tasks: Arc::default(),
            executors: Executors::default(),
            instances: Mutex::default(),
            instances_max,
        })
    }

    fn instances(&self) -> MutexGuard<'_, BTreeMap<Key, InstanceHandle>> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Serve until there is nobody left to serve.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn run(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        let mut last_seen = Instant::now();
        loop {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            match listener.accept() {
                Ok((stream, _)) => self.greet(&stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::warn!(%error, "an agent could not connect"),
            }
            if self.hosts.outbox.is_connected() || self.tasks.any_running() {
                last_seen = Instant::now();
            } else if last_seen.elapsed() > ORPHAN_TIMEOUT {
                tracing::info!("no agent has come back: this worker ends");
                return Ok(());
            }
        }
    }

    fn greet(self: &Arc<Self>, stream: &UnixStream) {
        let connected = stream
            .set_nonblocking(false)
            .and_then(|()| self.hosts.outbox.connect(stream, || self.greeting()))
            .and_then(|link| Ok((link, stream.try_clone()?)));
        let (link, reading) = match connected {
            Ok(connected) => connected,
            Err(error) => return tracing::warn!(%error, "an agent could not be greeted"),
        };
        let worker = self.clone();
        let spawned = std::thread::Builder::new()
            .name("link-in".into())
            .spawn(move || {
                if let Ended::Shutdown = worker.read(link, reading) {
                    tracing::info!("the agent ends this worker");
                    std::process::exit(0);
                }
                worker.hosts.outbox.disconnect(link);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "an agent could not be heard");
            self.hosts.outbox.disconnect(link);
        }
    }

    fn greeting(&self) -> Vec<Vec<u8>> {
        let statuses: Vec<(Key, Status)> = {
            let instances = self.instances();
            instances
                .iter()
                .map(|(key, instance)| (*key, instance.status()))
                .collect()
        };
        let instances = statuses.iter().map(|(key, status)| v1::HelloInstance {
            key: Some(v1::InstanceKey {
                framework: key.0,
                epoch: key.1,
            }),
            ready: status.ready,
            next_turn: status.next_turn,
            rebuilt: status.rebuilt,
            outside: status.outside,
        });
        let (executors, outstanding) = self.executors.greeting();
        let hello = v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: engine_key(&self.hosts.engine),
            instances: instances.collect(),
            tasks: self.tasks.states(),
            executors,
        };
        let mut frames = vec![encode(from_worker::Message::Hello(hello))];
        frames.extend(
            statuses
                .into_iter()
                .filter_map(|(_, status)| status.outstanding),
        );
        frames.extend(outstanding);
        frames
    }

    fn read(&self, link: u64, stream: UnixStream) -> Ended {
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        loop {
            match frame::read::<ToWorker>(&mut reader) {
                Ok(Some(_)) if !self.hosts.outbox.is_current(link) => return Ended::Link,
                Ok(Some(ToWorker {
                    message: Some(Message::Shutdown(_)),
                })) => return Ended::Shutdown,
                Ok(Some(ToWorker {
                    message: Some(message),
                })) => self.hear(message),
                Ok(Some(ToWorker { message: None })) => {
                    tracing::warn!("the agent sent a message of an unknown kind");
                }
                Ok(None) => return Ended::Link,
                Err(error) => {
                    tracing::warn!(%error, "the agent's link broke");
                    return Ended::Link;
                }
            }
        }
    }

    fn hear(&self, message: Message) {
        match message {
            Message::StartInstance(start) => self.start_instance(start),
            Message::StopInstance(stop) => {
                let key = stop.key.map(|key| (key.framework, key.epoch));
                let stopped = key.and_then(|key| self.instances().remove(&key));
                drop(stopped);
            }
            Message::InstanceState(state) => {
                let Some(chunk) = state.chunk else { return };
                self.tell(state.key, ToInstance::State(chunk));
            }
            Message::Batch(batch) => self.tell(batch.key, ToInstance::Batch(batch)),
            Message::TurnResult(result) => self.tell(result.key, ToInstance::Result(result)),
            Message::StartTask(start) => self.tasks.start(&self.hosts, start),
            Message::KillTask(kill) => self.tasks.kill(kill),
            Message::TaskAck(ack) => self.tasks.acknowledge(ack),
            Message::StartExecutor(start) => self.executors.start(&self.hosts, start),
            Message::StopExecutor(stop) => self.executors.stop(stop),
            Message::ExecutorBatch(batch) => self.executors.batch(batch),
            Message::ExecutorTurnKept(kept) => self.executors.kept(kept),
            Message::ExecutorLimits(limits) => self.executors.limits(limits),
            Message::Shutdown(_) => {}
        }
    }

    fn tell(&self, key: Option<v1::InstanceKey>, message: ToInstance) {
        let Some(key) = key else { return };
        // Out of the lock: a message may wait until the instance has room for it.
        let inbox = self
            .instances()
            .get(&(key.framework, key.epoch))
            .map(InstanceHandle::inbox);
        match inbox {
            Some(inbox) => inbox.send(message),
            None => tracing::warn!(framework = key.framework, "a message for no instance"),
        }
    }

    fn start_instance(&self, mut start: v1::StartInstance) {
        let Some(desired) = start.instance.take() else {
            return;
        };
        let key = (desired.framework, desired.epoch);
        // Nothing is sent under the lock: greetings take it while they hold the outbox.
        if let Err(message) = self.try_start(key, start, desired) {
            self.hosts
                .outbox
                .send(from_worker::Message::InstanceFailed(v1::InstanceFailed {
                    key: Some(v1::InstanceKey {
                        framework: key.0,
                        epoch: key.1,
                    }),
                    reason: "WORKER_FULL".into(),
                    message,
                    will_retry: true, ..Default::default() }));
        }
    }

    fn try_start(
        &self,
        key: Key,
        start: v1::StartInstance,
        desired: v1::DesiredInstance,
    ) -> Result<(), String> {
        let mut instances = self.instances();
        // One that waits for the rest of its state was left by an agent that is no more: the state is
        // sent again from its beginning.
        if let Some(known) = instances.get(&key).filter(|known| known.status().loaded) {
            known.set_limits(desired.limits);
            return Ok(());
        }
        if instances.len() >= self.instances_max {
            return Err(format!(
                "the worker is full: it has room for {} instances; this one waits until others leave",
                self.instances_max
            ));
        }
        let instance = InstanceHandle::start(self.hosts.clone(), start, desired)
            .map_err(|error| error.to_string())?;
        instances.insert(key, instance);
        Ok(())
    }
}
