//! The life of one custom executor on its own thread: receive durable state, build, take batches, give
//! turns.
//!
//! Invariants: at most one turn is outstanding, and it is repeated byte for byte until the agent says that
//! it is on record; state changes only by a turn on record. An executor that fails is gone: its agent,
//! which has its state, decides when it is built again. This file must never decide what becomes of an
//! operation.

use crate::hosts::{Hosts, NoImage};
use crate::instance::IMAGE_DAMAGED;
use crate::inbox::{self, Inbox};
use crate::logs::LogGate;
use crate::outbox;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_types::limits::BATCH_EVENTS_MAX;
use tessera_types::{EffectiveLimits, KeyWrite, LimitName};
use tessera_wire::effective_limits;
use tessera_wire::v1::{self, from_worker::Message};
use tessera_wit_host::{
    Executor, ExecutorLimits, ExecutorName, ExecutorStart, Failure, Logged, State, THREAD_STACK_BYTES,
};

/// What an executor is told.
pub enum ToExecutor {
    /// A part of its state.
    State {
        /// The entries.
        entries: Vec<v1::KeyWrite>,
        /// Nothing follows.
        last: bool,
    },
    /// What to handle.
    Batch(v1::ExecutorBatch),
    /// The turn with this number is on record.
    Kept(u64),
}

impl inbox::Message for ToExecutor {
    fn is_state(&self) -> bool {
        matches!(self, Self::State { .. })
    }
}

/// What the greeting of a new link says of an executor.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Its state has arrived whole.
    pub loaded: bool,
    /// Built.
    pub ready: bool,
    /// It is no more.
    pub failed: bool,
    /// Number of the next turn.
    pub next_turn: u64,
    /// The turn that is not known to be on record, or the failure, as a frame.
    pub outstanding: Option<Vec<u8>>,
}

struct Shared {
    stopped: AtomicBool,
    status: Mutex<Status>,
    /// Limits of its role that are to hold from the next turn on; none when nothing has changed.
    new_limits: Mutex<Option<EffectiveLimits>>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_limits(&self) -> MutexGuard<'_, Option<EffectiveLimits>> {
        self.new_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An executor, seen from outside. Dropping it stops the executor.
pub struct ExecutorHandle {
    inbox: Inbox<ToExecutor>,
    shared: Arc<Shared>,
}

impl ExecutorHandle {
    /// Start the thread; the instance is built when its state is there.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(hosts: Arc<Hosts>, start: v1::StartExecutor) -> std::io::Result<Self> {
        let (inbox, messages) = inbox::inbox();
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            status: Mutex::default(),
            new_limits: Mutex::default(),
        });
        let key = start.key.clone().unwrap_or_default();
        let thread = format!("x{}-{}", key.framework, key.executor);
        let mut life = Life {
            hosts,
            logs: LogGate::of_executor(key.framework, key.executor.clone()),
            key,
            next_turn: start.next_turn,
            limits: ExecutorLimits {
                role: effective_limits(&start.limits),
                memory_bytes: start.mem_bytes,
            },
            start,
            messages,
            shared: shared.clone(),
            waiting: None,
            image_damaged: false,
        };
        std::thread::Builder::new()
            // What the kernel shows of a name.
            .name(thread.chars().take(15).collect())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| life.run())).is_err() {
                    life.say_failed("WORKER_LOST", "the host of the executor failed", "");
                }
            })?;
        Ok(Self { inbox, shared })
    }

    /// Where it takes messages.
    #[must_use]
    pub fn inbox(&self) -> Inbox<ToExecutor> {
        self.inbox.clone()
    }

    /// From its next turn on the executor is held to these limits of its role.
    pub fn set_limits(&self, limits: EffectiveLimits) {
        *self.shared.new_limits() = Some(limits);
    }

    /// What a new link has to know.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }
}

impl Drop for ExecutorHandle {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
    }
}

/// The executor was stopped.
struct Stopped;

struct Life {
    hosts: Arc<Hosts>,
    start: v1::StartExecutor,
    key: v1::ExecutorKey,
    limits: ExecutorLimits,
    messages: Receiver<ToExecutor>,
    shared: Arc<Shared>,
    logs: LogGate,
    next_turn: u64,
    /// The newest batch that came while a turn was outstanding.
    waiting: Option<v1::ExecutorBatch>,
    /// Its image has to be made anew.
    image_damaged: bool,
}

impl Life {
    fn run(&mut self) {
        // An end without a word: the executor was stopped.
        let Ok(failure) = self.live() else { return };
        let code = if self.image_damaged { IMAGE_DAMAGED } else { failure.code() };
        self.say_failed(code, &failure.to_string(), failure.limit());
    }

    fn receive(&self) -> Result<ToExecutor, Stopped> {
        let message = self.messages.recv().map_err(|_| Stopped)?;
        if self.is_stopped() {
            Err(Stopped)
        } else {
            Ok(message)
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }

    fn say_failed(&self, reason: &str, message: &str, limit: &str) {
        let (framework, executor) = (self.key.framework, &self.key.executor);
        tracing::warn!(framework, executor, reason, message, "the executor failed");
        let failure = v1::ExecutorFailure {
            key: Some(self.key.clone()),
            reason: reason.to_owned(),
            message: message.to_owned(),
            limit: limit.to_owned(),
            turn: self.next_turn,
        };
        let frame = outbox::encode(Message::ExecutorFailure(failure));
        {
            let mut status = self.shared.status();
            status.ready = false;
            status.failed = true;
            status.outstanding = Some(frame.clone());
        }
        if !self.is_stopped() {
            self.hosts.outbox.send_frame(frame);
        }
    }

    fn say_log(&mut self, logged: Logged) {
        let stopped = self.is_stopped();
        self.logs.say(logged, |log| !stopped && self.hosts.outbox.send(Message::Log(log)));
    }

    fn receive_state(&mut self) -> Result<Result<State, Failure>, Stopped> {
        // The operator may have lowered the limit since: only nonsense is refused here.
        let max = LimitName::ExecutorStateBytes.row().max;
        let mut state = Ok(State::default());
        let mut bytes = 0_u64;
        loop {
            let ToExecutor::State { entries, last } = self.receive()? else {
                continue;
            };
            let size = |entry: &v1::KeyWrite| entry.key.len() + entry.value.as_ref().map_or(0, Vec::len);
            bytes += entries.iter().map(size).sum::<usize>() as u64;
            let entries: Result<Vec<_>, _> = entries.into_iter().map(KeyWrite::try_from).collect();
            // What is wrong is said once everything has arrived: the rest is never taken for another start.
            state = match (state, entries) {
                (Ok(_), _) if bytes > max => {
                    Err(Failure::Unusable(format!("state: more than {max} bytes")))
                }
                (Ok(_), Err(error)) => Err(Failure::Unusable(format!("state: {error}"))),
                (Ok(mut state), Ok(entries)) => {
                    state.load(entries);
                    Ok(state)
                }
                (Err(failure), _) => Err(failure),
            };
            if last {
                self.shared.status().loaded = true;
                return Ok(state);
            }
        }
    }

    /// From the first message to the failure that ends it.
    fn live(&mut self) -> Result<Failure, Stopped> {
        let state = match self.receive_state()? {
            Ok(state) => state,
            Err(failure) => return Ok(failure),
        };
        match self.build(state) {
            Ok(mut executor) => {
                let logged = executor.take_logged();
                self.say_log(logged);
                self.say_ready();
                let failure = self.serve(&mut executor)?;
                let logged = executor.take_logged();
                self.say_log(logged);
                Ok(failure)
            }
            Err(failure) => Ok(failure),
        }
    }

    /// Take over limits that have changed; whether there were any.
    fn take_limits(&mut self) -> bool {
        let Some(role) = self.shared.new_limits().take() else {
            return false;
        };
        self.limits.role = role;
        true
    }

    fn build(&mut self, state: State) -> Result<Executor, Failure> {
        self.take_limits();
        let image = Path::new(&self.start.image);
        let component = self
            .hosts
            .image_of(image, &self.start.component, "executor")
            .map_err(|no_image| match no_image {
                NoImage::Damaged(text) => {
                    self.image_damaged = true;
                    Failure::Unusable(text)
                }
                NoImage::Unfit(text) => Failure::Unusable(text),
            })?;
        let image = self.hosts.executors.link(&component)?;
        let config = self.start.config.iter();
        let start = ExecutorStart {
            name: ExecutorName {
                framework: self.key.framework,
                executor: self.key.executor.clone(),
            },
            seed: self.start.seed,
            config: config.map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
            limits: self.limits,
        };
        image.build(start, state).map_err(|(failure, logged)| {
            self.say_log(logged);
            failure
        })
    }

    fn say_ready(&self) {
        {
            let mut status = self.shared.status();
            status.ready = true;
            status.next_turn = self.next_turn;
        }
        if !self.is_stopped() {
            let ready = v1::ExecutorReady {
                key: Some(self.key.clone()),
                next_turn: self.next_turn,
            };
            self.hosts.outbox.send(Message::ExecutorReady(ready));
        }
    }

    /// Handle batches until a call fails.
    fn serve(&mut self, executor: &mut Executor) -> Result<Failure, Stopped> {
        loop {
            let batch = match self.waiting.take() {
                Some(batch) => batch,
                None => match self.receive()? {
                    ToExecutor::Batch(batch) => batch,
                    // Left over from before the instance was built.
                    ToExecutor::State { .. } | ToExecutor::Kept(_) => continue,
                },
            };
            if batch.number != self.next_turn {
                tracing::warn!(got = batch.number, next = self.next_turn, "a stale batch");
                continue;
            }
            if batch.events.len() > BATCH_EVENTS_MAX {
                return Ok(Failure::Unusable(format!("batch.events: at most {BATCH_EVENTS_MAX}")));
            }
            if self.take_limits() {
                executor.set_limits(self.limits);
            }
            let turn = match executor.turn(batch.number, batch.time_ms, batch.events) {
                Ok(turn) => turn,
                Err(failure) => return Ok(failure),
            };
            let number = turn.number;
            let frame = outbox::encode(Message::ExecutorTurn(turn));
            self.shared.status().outstanding = Some(frame.clone());
            if !self.is_stopped() {
                self.hosts.outbox.send_frame(frame);
            }
            let logged = executor.take_logged();
            self.say_log(logged);
            self.wait_until_kept(number)?;
            executor.commit();
            self.next_turn += 1;
            let mut status = self.shared.status();
            status.outstanding = None;
            status.next_turn = self.next_turn;
        }
    }

    /// A batch that comes before is kept: it may be the next one.
    fn wait_until_kept(&mut self, number: u64) -> Result<(), Stopped> {
        loop {
            match self.receive()? {
                ToExecutor::Kept(kept) if kept == number => return Ok(()),
                ToExecutor::Batch(batch) => self.waiting = Some(batch),
                ToExecutor::Kept(_) | ToExecutor::State { .. } => {}
            }
        }
    }
}
