//! The life of one scheduler instance on its own thread: receive state, build, take batches, give
//! turns, and build again when something went wrong.
//!
//! Invariants: at most one turn is outstanding, and it is repeated byte for byte until its result is
//! known; state changes only by a committed turn; a guest that fails loses its turn and its memory,
//! never its state. This file must never decide whether a turn commits.

use crate::batch;
use crate::blame::Blame;
use crate::hosts::{Hosts, NoImage};
use crate::inbox::{self, Inbox};
use crate::logs::LogGate;
use crate::minute::MinuteCpu;
use crate::outbox;
use crate::recorder::Recorder;
use prost::Message as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tessera_types::{
    KeyWrite, LimitName, LogLevel, LogLine, TurnNumber, TurnOutcome, TurnRefusal,
};
use tessera_wire::v1::from_worker::Message;
use tessera_wire::recording::RECORDING_FORMAT;
use tessera_wire::{effective_limits, v1};
use tessera_wit_host::{
    CONTRACT_VERSION, Limits, Logged, Scheduler, SchedulerImage, Start, State,
    THREAD_STACK_BYTES, engine_key, rebuild_backoff,
};

/// Bytes of state that a peer may send: twice the most that a framework can be given, because an upgrade
/// has two generations.
const STATE_BYTES_MAX: u64 = 2 * LimitName::StateBytes.row().max;
/// How often one who waits for the next minute looks whether it has been given more.
const LOOK: Duration = Duration::from_secs(1);

/// What an instance is told.
pub enum ToInstance {
    /// A part of its state.
    State(v1::StateChunk),
    /// What to handle.
    Batch(v1::Batch),
    /// What became of its turn.
    Result(v1::TurnResult),
}

impl inbox::Message for ToInstance {
    fn is_state(&self) -> bool {
        matches!(self, Self::State(_))
    }
}

/// What the greeting of a new link says of an instance.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Its state has arrived whole.
    pub loaded: bool,
    /// Built, and waiting for a batch or for the result of a turn.
    pub ready: bool,
    /// Number of the next turn.
    pub next_turn: u64,
    /// Built anew, and no batch has reached it since.
    pub rebuilt: bool,
    /// The outside writes that its state has.
    pub outside: u64,
    /// The turn without a result, as a frame.
    pub outstanding: Option<Vec<u8>>,
}

struct Shared {
    stopped: AtomicBool,
    status: Mutex<Status>,
    /// Limits that are to hold from the next turn on; none when nothing has changed.
    new_limits: Mutex<Option<Vec<v1::Limit>>>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_limits(&self) -> MutexGuard<'_, Option<Vec<v1::Limit>>> {
        self.new_limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance, seen from outside. Dropping it stops the instance.
pub struct InstanceHandle {
    inbox: Inbox<ToInstance>,
    shared: Arc<Shared>,
}

impl InstanceHandle {
    /// Start the thread; the instance is built when its state is there.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        hosts: Arc<Hosts>,
        start: v1::StartInstance,
        desired: v1::DesiredInstance,
    ) -> std::io::Result<Self> {
        let (inbox, messages) = inbox::inbox();
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            status: Mutex::default(),
            new_limits: Mutex::default(),
        });
        let key = v1::InstanceKey {
            framework: desired.framework,
            epoch: desired.epoch,
        };
        let name = format!("f{}-e{}", key.framework, key.epoch);
        let logs = LogGate::new(key.framework);
        let mut life = Life {
            hosts,
            desired,
            image: PathBuf::from(start.image),
            recordings: PathBuf::from(start.recordings),
            key,
            messages,
            shared: shared.clone(),
            logs,
            next_turn: 0,
            was_ready: false,
            failures: 0,
            waiting: None,
            minute: MinuteCpu::default(),
            recorder: Recorder::default(),
        };
        std::thread::Builder::new()
            .name(name)
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| life.run())).is_err() {
                    life.shared.status().ready = false;
                    life.say_failed(&Blame::nobody("WORKER_LOST", "the host of the instance failed"), false);
                }
            })?;
        Ok(Self { inbox, shared })
    }

    /// Where it takes messages.
    #[must_use]
    pub fn inbox(&self) -> Inbox<ToInstance> {
        self.inbox.clone()
    }

    /// From its next turn on the instance is held to these limits.
    pub fn set_limits(&self, limits: Vec<v1::Limit>) {
        *self.shared.new_limits() = Some(limits);
    }

    /// What a new link has to know.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }
}

impl Drop for InstanceHandle {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
    }
}

/// The instance was stopped.
struct Stopped;

/// What the agent is told of an image that has to be made anew.
pub const IMAGE_DAMAGED: &str = "IMAGE_DAMAGED";

/// Why a life goes on without the instance that it had.
enum Lost {
    Failed(Blame),
    Refused(TurnRefusal),
}

struct Life {
    hosts: Arc<Hosts>,
    desired: v1::DesiredInstance,
    image: PathBuf,
    /// Directory of the recordings of its lives; empty when there are to be none.
    recordings: PathBuf,
    key: v1::InstanceKey,
    messages: Receiver<ToInstance>,
    shared: Arc<Shared>,
    logs: LogGate,
    next_turn: u64,
    was_ready: bool,
    /// In a row, since the last committed turn.
    failures: u32,
    /// The newest batch that came while a turn was outstanding.
    waiting: Option<v1::Batch>,
    minute: MinuteCpu,
    recorder: Recorder,
}

impl Life {
    fn run(&mut self) {
        // An end without a word: the instance was stopped.
        let Ok(mut state) = self.receive_state() else {
            return;
        };
        while let Ok(left) = self.live(state) {
            match left {
                Some(left) => state = left,
                None => return,
            }
        }
    }

    fn receive(&self) -> Result<ToInstance, Stopped> {
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

    fn say(&self, message: Message) {
        if !self.is_stopped() {
            self.hosts.outbox.send(message);
        }
    }

    fn say_failed(&self, blame: &Blame, will_retry: bool) {
        tracing::warn!(
            framework = self.key.framework,
            reason = blame.reason,
            message = blame.message,
            "the instance failed"
        );
        self.say(Message::InstanceFailed(v1::InstanceFailed {
            key: Some(self.key),
            reason: blame.reason.to_owned(),
            message: blame.message.clone(),
            will_retry,
            limit: blame.limit.clone(),
            turn: blame.turn,
            guest: blame.guest,
        }));
    }

    /// Nothing changes by trying again: somebody has to give something else.
    fn give_up(&self, blame: &Blame) -> Stopped {
        self.say_failed(blame, false);
        Stopped
    }

    fn receive_state(&mut self) -> Result<State, Stopped> {
        let mut state = State::default();
        let mut bytes = 0_u64;
        loop {
            let ToInstance::State(chunk) = self.receive()? else {
                continue;
            };
            let mut entries = Vec::with_capacity(chunk.entries.len());
            for entry in chunk.entries {
                bytes += (entry.key.len() + entry.value.as_ref().map_or(0, Vec::len)) as u64;
                match KeyWrite::try_from(entry) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => {
                        let text = format!("state: {error}");
                        return Err(self.give_up(&Blame::nobody("WORKER_LOST", text)));
                    }
                }
            }
            if bytes > STATE_BYTES_MAX {
                let text = "state: larger than any framework's may be";
                return Err(self.give_up(&Blame::nobody("WORKER_LOST", text)));
            }
            state.load(entries);
            if let Some(next_turn) = chunk.next_turn {
                self.next_turn = next_turn;
                state.set_outside(chunk.outside);
                self.shared.status().loaded = true;
                return Ok(state);
            }
        }
    }

    /// One instance from being built to being lost. Gives the state for the next one, or nothing when
    /// there is to be no next one.
    fn live(&mut self, state: State) -> Result<Option<State>, Stopped> {
        self.take_limits();
        let image = match self.link() {
            Ok(image) => image,
            Err(blame) => {
                // An image that is damaged is made anew, and the instance begun again, by the agent.
                self.say_failed(&blame, blame.reason == IMAGE_DAMAGED);
                return Ok(None);
            }
        };
        let config = self.desired.config.iter();
        let start = Start {
            seed: self.desired.seed,
            config: config.map(|p| (p.key.clone(), p.value.clone())).collect(),
            limits: self.limits(),
            migrate_from: self.desired.migrate_from,
        };
        let limits = effective_limits(&self.desired.limits);
        self.recorder = Recorder::begin(&self.recordings, self.header(), &state, &limits);
        let (lost, state) = match image.build(&start, state) {
            Ok(mut scheduler) => {
                let logged = scheduler.take_logged();
                self.say_log(logged);
                self.say_ready(scheduler.outside());
                let lost = self.serve(&mut scheduler)?;
                let logged = scheduler.take_logged();
                self.say_log(logged);
                (lost, scheduler.into_state())
            }
            Err(failed) => {
                let (failure, state, logged) = *failed;
                self.recorder.failure(&failure);
                self.say_log(logged);
                (Lost::Failed(Blame::of(&failure, 0)), state)
            }
        };
        // Its file is complete, and closed, before anybody hears of the end of this life.
        self.recorder = Recorder::default();
        self.after_loss(lost, state)
    }

    fn limits(&self) -> Limits {
        Limits::of(&effective_limits(&self.desired.limits))
    }

    /// Take over limits that have changed; whether there were any.
    fn take_limits(&mut self) -> bool {
        let Some(limits) = self.shared.new_limits().take() else {
            return false;
        };
        self.desired.limits = limits;
        true
    }

    fn header(&self) -> v1::RecordingHeader {
        let desired = &self.desired;
        v1::RecordingHeader {
            format: RECORDING_FORMAT,
            framework: desired.framework,
            name: desired.name.clone(),
            role: desired.role.clone(),
            epoch: desired.epoch,
            life: 0,
            component: desired.component.clone(),
            engine: engine_key(&self.hosts.engine),
            contract: CONTRACT_VERSION.to_owned(),
            config: desired.config.clone(),
            seed: desired.seed,
            limits: desired.limits.clone(),
            next_turn: self.next_turn,
            migrate_from: desired.migrate_from,
        }
    }

    fn link(&self) -> Result<SchedulerImage, Blame> {
        let component = self
            .hosts
            .image_of(&self.image, &self.desired.component, "framework")
            .map_err(|no_image| match no_image {
                NoImage::Damaged(text) => Blame::nobody(IMAGE_DAMAGED, text),
                NoImage::Unfit(text) => Blame::nobody("COMPONENT_UNUSABLE", text),
            })?;
        let linked = self.hosts.schedulers.link(&component);
        linked.map_err(|failure| Blame::of(&failure, 0))
    }

    fn say_ready(&mut self, outside: u64) {
        let rebuilt = self.was_ready;
        self.was_ready = true;
        {
            let mut status = self.shared.status();
            *status = Status {
                loaded: true,
                ready: true,
                next_turn: self.next_turn,
                rebuilt,
                outside,
                outstanding: None,
            };
        }
        let (key, next_turn) = (Some(self.key), self.next_turn);
        self.say(Message::InstanceReady(v1::InstanceReady {
            key,
            rebuilt,
            next_turn,
            outside,
        }));
    }

    fn say_log(&mut self, logged: Logged) {
        let stopped = self.is_stopped();
        self.logs.say(logged, |log| !stopped && self.hosts.outbox.send(Message::Log(log)));
    }

    /// Handle batches until the instance is lost.
    fn serve(&mut self, scheduler: &mut Scheduler) -> Result<Lost, Stopped> {
        loop {
            let batch = match self.waiting.take() {
                Some(batch) => batch,
                None => match self.receive()? {
                    ToInstance::Batch(batch) => batch,
                    // Left over from before the instance was built.
                    ToInstance::State(_) | ToInstance::Result(_) => continue,
                },
            };
            if batch.number != self.next_turn {
                tracing::warn!(got = batch.number, next = self.next_turn, "a stale batch");
                continue;
            }
            let batch = self.wait_for_minute(batch)?;
            if self.take_limits() {
                scheduler.set_limits(self.limits());
                self.recorder.limits(self.desired.limits.clone());
            }
            self.shared.status().rebuilt = false;
            let number = batch.number;
            let config = batch::new_config(&batch);
            let turn = match self.handle(scheduler, batch) {
                Ok(turn) => turn,
                Err(blame) => return Ok(Lost::Failed(blame)),
            };
            let frame = outbox::encode(Message::Turn(turn));
            {
                let mut status = self.shared.status();
                status.outstanding = Some(frame.clone());
                status.outside = scheduler.outside();
            }
            if !self.is_stopped() {
                self.hosts.outbox.send_frame(frame);
            }
            let logged = scheduler.take_logged();
            self.say_log(logged);
            match self.result_of(number)? {
                TurnOutcome::Committed { next } => {
                    scheduler.commit();
                    self.next_turn = next.0;
                    self.failures = 0;
                    if let Some(config) = config {
                        self.desired.config = config;
                    }
                    let mut status = self.shared.status();
                    status.outstanding = None;
                    status.next_turn = self.next_turn;
                }
                TurnOutcome::Refused(refusal) => return Ok(Lost::Refused(refusal)),
            }
        }
    }

    /// Wait until the running minute has CPU time left for a turn with this batch; gives the newest one
    /// that came meanwhile.
    fn wait_for_minute(&mut self, mut batch: v1::Batch) -> Result<v1::Batch, Stopped> {
        let mut is_told = false;
        loop {
            let waiting = self.shared.new_limits().clone();
            let limits = effective_limits(waiting.as_ref().unwrap_or(&self.desired.limits));
            let allowed = Limits::of(&limits).minute_cpu;
            let left = self.minute.wait(allowed, Instant::now());
            if left.is_zero() {
                return Ok(batch);
            }
            if !std::mem::replace(&mut is_told, true) {
                self.say_waits(&batch, allowed, left);
            }
            match self.messages.recv_timeout(left.min(LOOK)) {
                _ if self.is_stopped() => return Err(Stopped),
                Ok(ToInstance::Batch(newer)) if newer.number == self.next_turn => batch = newer,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            }
        }
    }

    fn say_waits(&mut self, batch: &v1::Batch, allowed: Duration, left: Duration) {
        let text = format!(
            "limit {}: {} ms of this minute are used up; turn {} waits for {} ms",
            LimitName::MinuteCpuMs,
            allowed.as_millis(),
            batch.number,
            left.as_millis()
        );
        let line = LogLine {
            at_ms: batch.time_ms,
            turn: TurnNumber(batch.number),
            level: LogLevel::Warn,
            target: "host".to_owned(),
            text,
            fields: Vec::new(),
        };
        self.say_log(Logged {
            lines: vec![line],
            dropped: 0,
        });
    }

    fn handle(&mut self, scheduler: &mut Scheduler, batch: v1::Batch) -> Result<v1::Turn, Blame> {
        self.recorder.batch(&batch);
        let number = batch.number;
        let requests = requests_of(&batch);
        let (header, events) = batch::open(batch).map_err(|text| Blame {
            turn: number,
            ..Blame::nobody("WORKER_LOST", text)
        })?;
        let began_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros);
        let began = Instant::now();
        let turn = scheduler.turn(header, events);
        let (cpu, ended) = (scheduler.cpu_time(), Instant::now());
        self.minute.add(cpu, ended);
        match turn {
            Ok(turn) => {
                let turn = v1::Turn::from(&turn);
                if self.recorder.is_open() {
                    self.recorder.turn(turn.encode_to_vec());
                }
                let cost = v1::TurnCost { cpu_us: micros(cpu), wall_us: micros(ended - began), began_us };
                Ok(v1::Turn { requests, cost: Some(cost), ..turn })
            }
            Err(failure) => {
                self.recorder.failure(&failure);
                Err(Blame::of(&failure, number))
            }
        }
    }

    /// Wait for what became of a turn. A batch that comes before is kept: it may be the next one.
    fn result_of(&mut self, number: u64) -> Result<TurnOutcome, Stopped> {
        loop {
            match self.receive()? {
                ToInstance::Result(result) if result.number == number => {
                    match result.outcome.clone().map(TurnOutcome::try_from) {
                        Some(Ok(outcome)) => {
                            let said = result.outcome.unwrap_or_default();
                            self.recorder.outcome(number, said);
                            return Ok(outcome);
                        }
                        Some(Err(error)) => tracing::warn!(%error, "a result that says nothing"),
                        None => tracing::warn!("a result that says nothing"),
                    }
                }
                ToInstance::Batch(batch) => self.waiting = Some(batch),
                ToInstance::Result(_) | ToInstance::State(_) => {}
            }
        }
    }

    fn after_loss(&mut self, lost: Lost, state: State) -> Result<Option<State>, Stopped> {
        {
            let mut status = self.shared.status();
            *status = Status {
                loaded: true,
                ready: false,
                next_turn: self.next_turn,
                rebuilt: false,
                outside: state.outside(),
                outstanding: None,
            };
        }
        self.waiting = None;
        self.failures = self.failures.saturating_add(1);
        match lost {
            Lost::Failed(blame) => self.say_failed(&blame, true),
            Lost::Refused(refusal) => match &refusal {
                // The guest asked for more than it may have, as the master counts.
                TurnRefusal::Limit { name, .. } => {
                    let blame = Blame {
                        limit: name.clone(),
                        turn: self.next_turn,
                        guest: true,
                        ..Blame::nobody("REFUSED", refusal.to_string())
                    };
                    self.say_failed(&blame, true);
                }
                TurnRefusal::FormerLeader { .. } => {}
                TurnRefusal::WrongNumber { expected, .. } if expected.0 == self.next_turn => {}
                // Others have gone on without this instance: its state is not the framework's.
                TurnRefusal::WrongNumber { .. }
                | TurnRefusal::WrongEpoch { .. }
                | TurnRefusal::NoFramework => {
                    self.give_up(&Blame::nobody("REFUSED", refusal.to_string()));
                    return Ok(None);
                }
            },
        }
        self.pause(rebuild_backoff(self.failures))?;
        Ok(Some(state))
    }

    /// Wait, without hearing what is said to an instance that is no more.
    fn pause(&self, time: Duration) -> Result<(), Stopped> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(_) if self.is_stopped() => return Err(Stopped),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The requests that a batch delivers.
fn requests_of(batch: &v1::Batch) -> Vec<u64> {
    let events = batch.events.iter().filter_map(|event| event.event.as_ref());
    events
        .filter_map(|event| match event {
            v1::event::Event::Http(request) => Some(request.id),
            _ => None,
        })
        .collect()
}
