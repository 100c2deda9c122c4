//! One instance of a scheduler: built from state, called with batches, giving turns.
//!
//! Invariants: a call either gives a whole turn or a failure, after which the instance is not called
//! again and its committed state is handed back unharmed; every call into the guest, instantiation
//! included, stands under a budget. This file must never decide when an instance is rebuilt.

use crate::bindings::{SchedulerFramework, SchedulerFrameworkPre};
use crate::clock::Clock;
use crate::convert;
use crate::draft::Draft;
use crate::engine::Ticker;
use crate::executor_draft::ExecutorDraft;
use crate::guest::Guest;
use crate::limits::{Account, Budget, LimitPassed, Limits, ThreadControl};
use crate::log::{Log, Logged};
use crate::random::Random;
use crate::state::State;
use crate::wasi;
use std::collections::BTreeMap;
use std::time::Duration;
use tessera_types::{Consumed, Event, LogLevel, TaskId, TimeMs, Turn, TurnHeader};
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, Store, Trap, UpdateDeadline};

/// Why an instance is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest trapped.
    #[error("trapped: {0}")]
    Trapped(String),
    /// A limit ended the call.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
    /// The guest returned an error.
    #[error("the guest returned an error: {0}")]
    Guest(String),
    /// It cannot be built at all.
    #[error("unusable: {0}")]
    Unusable(String),
}

impl Failure {
    /// Upper-case code, as in `InstanceFailed`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Trapped(_) => "TRAPPED",
            Self::Limit(_) => "GUEST_LIMIT",
            Self::Guest(_) => "GUEST_ERROR",
            Self::Unusable(_) => "COMPONENT_UNUSABLE",
        }
    }
}

/// What a component says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Version of the state that it writes.
    pub writes_state: u32,
    /// Versions that it can start from.
    pub reads_state: Vec<u32>,
}

/// What an instance is made from, beside its state.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Of the instance's randomness.
    pub seed: u64,
    /// The framework's configuration.
    pub config: Vec<(String, String)>,
}

/// Links schedulers. One per engine.
pub struct SchedulerHost {
    engine: Engine,
    linker: Linker<Guest>,
    limits: Limits,
    thread: ThreadControl,
    ticker: std::sync::Arc<Ticker>,
}

/// A component that is linked and can be built any number of times.
#[derive(Clone)]
pub struct SchedulerImage {
    pre: SchedulerFrameworkPre<Guest>,
    limits: Limits,
    thread: ThreadControl,
    ticker: std::sync::Arc<Ticker>,
}

/// A living instance.
pub struct Scheduler {
    store: Store<Guest>,
    bindings: SchedulerFramework,
    ticker: std::sync::Arc<Ticker>,
    thread: ThreadControl,
}

impl SchedulerHost {
    /// Make the linker.
    ///
    /// # Errors
    /// When an interface is defined twice.
    pub fn new(
        engine: &Engine,
        ticker: std::sync::Arc<Ticker>,
        thread: ThreadControl,
        limits: Limits,
    ) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        wasi::link(&mut linker)?;
        SchedulerFramework::add_to_linker::<_, HasSelf<Guest>>(&mut linker, |guest| guest)?;
        Ok(Self {
            engine: engine.clone(),
            linker,
            limits,
            thread,
            ticker,
        })
    }

    /// The engine that components have to be compiled with.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Link a component.
    ///
    /// # Errors
    /// [`Failure::Unusable`] when it does not fit the contract, with the import or export named.
    pub fn link(&self, component: &Component) -> Result<SchedulerImage, Failure> {
        let pre = self
            .linker
            .instantiate_pre(component)
            .and_then(SchedulerFrameworkPre::new)
            .map_err(|error| Failure::Unusable(format!("{error:#}")))?;
        let (limits, thread) = (self.limits, self.thread);
        Ok(SchedulerImage {
            pre,
            limits,
            thread,
            ticker: self.ticker.clone(),
        })
    }
}

/// A failure, the committed state as it was, and what was logged until then.
pub type Failed = (Failure, State, Logged);

/// A store under these limits, with the time of `init` running.
pub(crate) fn new_store(
    engine: &Engine,
    thread: ThreadControl,
    limits: Limits,
    seed: u64,
    state: State,
) -> Store<Guest> {
    let log = Log::default();
    let mut hashes = Random::new(seed, 2);
    let mut table = ResourceTable::new();
    table.set_max_capacity(limits.handles);
    let guest = Guest {
        wasi: wasi::context(&log),
        table,
        limits,
        account: Account::new(limits.memory_bytes, limits),
        budget: Budget::start(thread, limits.init_cpu, limits.init_wall),
        clock: Clock::default(),
        random: Random::new(seed, 0),
        insecure: Random::new(seed, 1),
        hash_seed: (hashes.u64(), hashes.u64()),
        log,
        state,
        draft: Draft::new(limits),
        executor: ExecutorDraft::default(),
    };
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.account);
    store.set_hostcall_fuel(limits.hostcall_bytes);
    store.set_max_component_handles(limits.handles);
    store.epoch_deadline_callback(|mut context| {
        context.data_mut().budget.check()?;
        Ok(UpdateDeadline::Continue(1))
    });
    store
}

impl SchedulerImage {
    fn store(&self, start: &Start, state: State) -> Store<Guest> {
        new_store(self.pre.engine(), self.thread, self.limits, start.seed, state)
    }

    /// Build an instance without calling it and ask what it says of itself.
    ///
    /// # Errors
    /// When it cannot be built, or fails.
    pub fn describe(&self) -> Result<Description, Failure> {
        let mut store = self.store(&Start::default(), State::default());
        let _running = self.ticker.run();
        store.set_epoch_deadline(1);
        let described = self.pre.instantiate(&mut store).and_then(|bindings| {
            bindings
                .tessera_framework_scheduler()
                .call_describe(&mut store)
        });
        store.data_mut().budget.end();
        let said = described.map_err(|error| failure(&mut store, &error))?;
        Ok(Description {
            writes_state: said.writes_state,
            reads_state: said.reads_state,
        })
    }

    /// Build an instance on this state and call its `init`. What it enqueues commits with its first
    /// turn.
    ///
    /// # Errors
    /// The failure, with the state handed back.
    pub fn build(&self, start: &Start, state: State) -> Result<Scheduler, Box<Failed>> {
        let mut store = self.store(start, state);
        let built = {
            let _running = self.ticker.run();
            store.set_epoch_deadline(1);
            self.pre.instantiate(&mut store).and_then(|bindings| {
                let guest = bindings.tessera_framework_scheduler();
                let answer = guest.call_init(&mut store, &start.config)?;
                Ok((bindings, answer))
            })
        };
        store.data_mut().budget.end();
        let failure = match built {
            Ok((bindings, Ok(()))) => {
                let (ticker, thread) = (self.ticker.clone(), self.thread);
                return Ok(Scheduler {
                    store,
                    bindings,
                    ticker,
                    thread,
                });
            }
            Ok((_, Err(text))) => Failure::Guest(cut(text, self.limits.error_bytes)),
            Err(error) => failure(&mut store, &error),
        };
        let logged = store.data().log.take();
        Err(Box::new((failure, into_state(store), logged)))
    }
}

impl Scheduler {
    /// Give the instance one batch. After an error the instance must be dropped.
    ///
    /// # Errors
    /// Why there is no turn.
    pub fn turn(&mut self, header: TurnHeader, events: Vec<Event>) -> Result<Turn, Failure> {
        let consumed = consumed(&events);
        let guest = self.store.data_mut();
        guest.clock.begin_turn(header.time_ms);
        guest.log.begin(header.time_ms, header.number);
        guest.draft.begin(header.time_ms);
        guest.account.take_refused();
        let limits = guest.limits;
        for event in &events {
            if let Event::Http(request) = event {
                guest.draft.open_request(request.id);
            }
        }
        let events: Vec<_> = events.into_iter().map(convert::event).collect();
        let answer = {
            let _running = self.ticker.run();
            self.store.set_epoch_deadline(1);
            self.store.data_mut().budget =
                Budget::start(self.thread, limits.turn_cpu, limits.turn_wall);
            let guest = self.bindings.tessera_framework_scheduler();
            guest.call_handle(&mut self.store, convert::turn_info(&header), &events)
        };
        self.store.data_mut().budget.end();
        match answer {
            Ok(Ok(())) => {}
            Ok(Err(text)) => return Err(Failure::Guest(cut(text, limits.error_bytes))),
            Err(error) => return Err(failure(&mut self.store, &error)),
        }
        let guest = self.store.data_mut();
        let (operations, specs) = guest.draft.finish();
        Ok(Turn {
            header,
            consumed,
            operations,
            writes: guest.state.writes(),
            specs,
            migration: None,
        })
    }

    /// The last turn was committed: what it wrote is state now.
    pub fn commit(&mut self) {
        self.store.data_mut().state.commit();
    }

    /// What was logged since the last call of this.
    pub fn take_logged(&mut self) -> Logged {
        self.store.data().log.take()
    }

    /// Bytes of linear memory in use.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().account.memory_bytes()
    }

    /// Drop the instance and keep the committed state.
    #[must_use]
    pub fn into_state(self) -> State {
        into_state(self.store)
    }
}

pub(crate) fn into_state(store: Store<Guest>) -> State {
    let mut state = store.into_data().state;
    state.discard();
    state
}

/// The durable events of a batch, each object once.
fn consumed(events: &[Event]) -> Vec<Consumed> {
    let mut updates: BTreeMap<&TaskId, u64> = BTreeMap::new();
    let mut timers: BTreeMap<&String, TimeMs> = BTreeMap::new();
    let mut config = None;
    for event in events {
        match event {
            Event::Update { sequence, status } if *sequence > 0 => {
                let seen = updates.entry(&status.task).or_default();
                *seen = (*seen).max(*sequence);
            }
            Event::Timer { id, due_ms } => {
                let seen = timers.entry(id).or_default();
                *seen = (*seen).max(*due_ms);
            }
            Event::ConfigChanged { version, .. } => config = config.max(Some(*version)),
            Event::Update { .. }
            | Event::Subscribed(_)
            | Event::Resumed(_)
            | Event::Agent(_)
            | Event::Offers(_)
            | Event::Rescinded(_)
            | Event::Http(_)
            | Event::Message(_)
            | Event::ExecutorFailed { .. }
            | Event::Again => {}
        }
    }
    let config = config.map(|version| Consumed::Config { version });
    let updates = updates
        .into_iter()
        .map(|(task, sequence)| Consumed::Update {
            task: task.clone(),
            sequence,
        });
    let timers = timers.into_iter().map(|(id, due_ms)| Consumed::Timer {
        id: id.clone(),
        due_ms,
    });
    updates.chain(timers).chain(config).collect()
}

pub(crate) fn cut(mut text: String, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// What a failed call into a guest means.
pub(crate) fn failure(store: &mut Store<Guest>, error: &wasmtime::Error) -> Failure {
    let limits = store.data().limits;
    let refused = store.data_mut().account.take_refused();
    let failure = explain(error, refused, limits.error_bytes);
    let Failure::Trapped(cause) = &failure else {
        return failure;
    };
    // Where it happened is for the author, in the log; what the guest said last is for everybody.
    let log = &store.data().log;
    let said = log.last_stderr();
    log.write(LogLevel::Error, "host", &error.to_string(), &[]);
    match said {
        Some(said) => Failure::Trapped(cut(format!("{said} ({cause})"), limits.error_bytes)),
        None => failure,
    }
}

/// Tell limits, which have names, from other traps.
pub(crate) fn explain(
    error: &wasmtime::Error,
    refused: Option<LimitPassed>,
    error_bytes: usize,
) -> Failure {
    if let Some(passed) = error.downcast_ref::<LimitPassed>() {
        return passed.clone().into();
    }
    if matches!(error.downcast_ref::<Trap>(), Some(Trap::StackOverflow)) {
        return LimitPassed::new("stack", "the guest's stack is full").into();
    }
    if let Some(refused) = refused {
        return refused.into();
    }
    Failure::Trapped(cut(error.root_cause().to_string(), error_bytes))
}

/// Pause between attempts to build an instance again after this many failures in a row.
#[must_use]
pub fn rebuild_backoff(failures: u32) -> Duration {
    const FIRST_MS: u64 = 100;
    const LAST_MS: u64 = 30_000;
    let doubled = FIRST_MS << failures.saturating_sub(1).min(16);
    Duration::from_millis(doubled.min(LAST_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{AgentId, TaskState, TaskStatus};

    #[test]
    fn durable_events_are_consumed_and_others_are_not() {
        let update = |task: &str, sequence| Event::Update {
            sequence,
            status: TaskStatus::new(task.parse().unwrap(), AgentId(1), TaskState::Running, 0),
        };
        let timer = Event::Timer {
            id: "t".into(),
            due_ms: 9,
        };
        let events = [
            update("b", 3),
            update("a", 1),
            update("b", 2),
            update("c", 0),
            timer,
            Event::Again,
        ];
        assert_eq!(
            consumed(&events),
            vec![
                Consumed::Update {
                    task: "a".parse().unwrap(),
                    sequence: 1
                },
                Consumed::Update {
                    task: "b".parse().unwrap(),
                    sequence: 3
                },
                Consumed::Timer {
                    id: "t".into(),
                    due_ms: 9
                },
            ]
        );
    }

    #[test]
    fn rebuilding_backs_off() {
        let ms = |failures| rebuild_backoff(failures).as_millis();
        assert_eq!(
            [ms(0), ms(1), ms(2), ms(9), ms(u32::MAX)],
            [100, 100, 200, 25_600, 30_000]
        );
    }
}
