//! One instance of a scheduler: built from state, called with batches, giving turns.
//!
//! Invariants: a call either gives a whole turn or a failure, after which the instance is not called
//! again and its committed state is handed back unharmed; every call into the guest, instantiation
//! included, stands under a budget. This file must never decide when an instance is rebuilt.

use crate::bindings::{SchedulerFramework, SchedulerFrameworkPre};
use crate::convert;
use crate::engine::Ticker;
use crate::guest::Guest;
use crate::http;
use crate::limits::{Call, Limits, ThreadControl};
use crate::log::Logged;
use crate::state::State;
use crate::store::{Failure, answered, call, into_state, new_store, set_limits};
use crate::wasi;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_types::{Consumed, Event, LogLevel, MigrationStep, Operation, TaskId, TimeMs, Turn, TurnHeader};
use wasmtime::component::{Component, HasSelf, Instance, Linker, TypedFunc};
use wasmtime::{Engine, Store};

/// The optional export that carries state from an older version to this one.
const MIGRATION: &str = "tessera:framework/migration@0.1.0";

type Step = TypedFunc<(u32,), (Result<bool, String>,)>;

/// What a component says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Version of the state that it writes.
    pub writes_state: u32,
    /// Versions that it can start from.
    pub reads_state: Vec<u32>,
    /// It exports `migration`, and so can carry state of the versions that it reads to the one that it
    /// writes.
    pub migrates: bool,
}

/// What an instance is made from, beside its state.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Of the instance's randomness.
    pub seed: u64,
    /// The framework's configuration.
    pub config: Vec<(String, String)>,
    /// What it may use.
    pub limits: Limits,
    /// It migrates the state from this version, and does nothing else.
    pub migrate_from: Option<u32>,
}

/// Links schedulers. One per engine.
pub struct SchedulerHost {
    linker: Linker<Guest>,
    thread: ThreadControl,
    ticker: Arc<Ticker>,
}

/// A component that is linked and can be built any number of times.
#[derive(Clone)]
pub struct SchedulerImage {
    pre: SchedulerFrameworkPre<Guest>,
    thread: ThreadControl,
    ticker: Arc<Ticker>,
}

/// Turns with offers and without an answer to any, in a row, after which the author is told; and again after
/// ten times as many.
const UNANSWERED_TURNS: u64 = 3;
const AGAIN_AFTER: u64 = 10;

/// Tells an author who has forgotten to answer offers. One who keeps them for a few turns hears nothing.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    in_a_row: u64,
    told_at: u64,
}

impl Unanswered {
    const NONE: Self = Self { in_a_row: 0, told_at: UNANSWERED_TURNS };

    /// What to say after a turn, if anything.
    fn after(&mut self, offers: bool, operations: &[Operation]) -> Option<String> {
        let answers = |operation: &Operation| {
            matches!(operation, Operation::Accept { .. } | Operation::Decline { .. } | Operation::Suppress)
        };
        if operations.iter().any(answers) {
            *self = Self::NONE;
        } else if offers {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        if self.in_a_row < self.told_at {
            return None;
        }
        self.told_at = self.told_at.saturating_mul(AGAIN_AFTER);
        Some(format!(
            "{} turns in a row brought offers and answered none: whoever keeps offers comes after others. Accept \
             each, or decline it (in Rust `turn.decline(&offers, REFUSE_MS)`), or suppress offers while there is \
             nothing to launch",
            self.in_a_row
        ))
    }
}

/// Which export takes the turns of an instance.
enum Export {
    Handle(SchedulerFramework),
    /// With the version to migrate from.
    Step(Step, u32),
}

/// A living instance.
pub struct Scheduler {
    store: Store<Guest>,
    export: Export,
    ticker: Arc<Ticker>,
    thread: ThreadControl,
    cpu: Duration,
    unanswered: Unanswered,
}

impl SchedulerHost {
    /// Make the linker.
    ///
    /// # Errors
    /// When an interface is defined twice.
    pub fn new(engine: &Engine, ticker: Arc<Ticker>, thread: ThreadControl) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        wasi::link(&mut linker)?;
        SchedulerFramework::add_to_linker::<_, HasSelf<Guest>>(&mut linker, Guest::called)?;
        Ok(Self {
            linker,
            thread,
            ticker,
        })
    }

    /// Link a component.
    ///
    /// # Errors
    /// [`Failure::Unusable`] when it does not fit the contract, with the import or export named.
    pub fn link(&self, component: &Component) -> Result<SchedulerImage, Failure> {
        let pre = http::link(&self.linker, component)
            .and_then(SchedulerFrameworkPre::new)
            .map_err(|error| Failure::Unusable(format!("{error:#}")))?;
        Ok(SchedulerImage {
            pre,
            thread: self.thread,
            ticker: self.ticker.clone(),
        })
    }
}

/// A failure, the committed state as it was, and what was logged until then.
pub type Failed = (Failure, State, Logged);

/// The migration's one function; none when the component does not export it.
fn migration(store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<Option<Step>> {
    let Some(interface) = instance.get_export_index(&mut *store, None, MIGRATION) else {
        return Ok(None);
    };
    let step = instance.get_export_index(&mut *store, Some(&interface), "step");
    let step = step.ok_or_else(|| wasmtime::format_err!("{MIGRATION} has no `step`"))?;
    instance.get_typed_func(store, &step).map(Some)
}

impl SchedulerImage {
    fn store(&self, start: &Start, state: State) -> Store<Guest> {
        new_store(self.pre.engine(), self.thread, start.limits, start.seed, state)
    }

    fn instantiate(
        &self,
        store: &mut Store<Guest>,
    ) -> wasmtime::Result<(SchedulerFramework, Option<Step>)> {
        let instance = self.pre.instance_pre().instantiate(&mut *store)?;
        let bindings = SchedulerFramework::new(&mut *store, &instance)?;
        Ok((bindings, migration(store, &instance)?))
    }

    /// Build an instance without calling it and ask what it says of itself.
    ///
    /// # Errors
    /// When it cannot be built, or fails.
    pub fn describe(&self, limits: Limits) -> Result<Description, Failure> {
        let start = Start { limits, ..Start::default() };
        let mut store = self.store(&start, State::default());
        let with = (&*self.ticker, self.thread);
        let (described, _) = call(&mut store, with, Call::Init, |store| {
            let (bindings, step) = self.instantiate(store)?;
            let guest = bindings.tessera_framework_scheduler();
            Ok((guest.call_describe(store)?, step.is_some()))
        });
        let (said, migrates) = described?;
        Ok(Description {
            writes_state: said.writes_state,
            reads_state: said.reads_state,
            migrates,
        })
    }

    /// Build an instance on this state. Call its `init`, whose operations commit with its first turn;
    /// or, when it is to migrate, nothing yet.
    ///
    /// # Errors
    /// The failure, with the state handed back.
    pub fn build(&self, start: &Start, state: State) -> Result<Scheduler, Box<Failed>> {
        let mut store = self.store(start, state);
        let with = (&*self.ticker, self.thread);
        let (built, cpu) = call(&mut store, with, Call::Init, |store| {
            let (bindings, step) = self.instantiate(store)?;
            let Some(from) = start.migrate_from else {
                let guest = bindings.tessera_framework_scheduler();
                let answer = guest.call_init(store, &start.config)?;
                return Ok(answer.map(|()| Export::Handle(bindings)));
            };
            let step = step.ok_or_else(|| wasmtime::format_err!("{MIGRATION} is not exported"))?;
            store.data_mut().draft.close();
            Ok(Ok(Export::Step(step, from)))
        });
        match answered(built, &start.limits) {
            Ok(export) => Ok(Scheduler {
                store,
                export,
                ticker: self.ticker.clone(),
                thread: self.thread,
                cpu,
                unanswered: Unanswered::NONE,
            }),
            Err(failure) => {
                let logged = store.data().log.take();
                Err(Box::new((failure, into_state(store), logged)))
            }
        }
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
        for event in &events {
            match event {
                Event::Http(request) => guest.draft.open_request(request.id),
                Event::StateChanged { count, writes } => guest.state.take_outside(*count, writes),
                _ => {}
            }
        }
        let limits = guest.limits;
        let brings_offers = events.iter().any(|event| matches!(event, Event::Offers(_)));
        let events: Vec<_> = events.into_iter().flat_map(convert::events).collect();
        let with = (&*self.ticker, self.thread);
        let (called, cpu) = call(&mut self.store, with, Call::Turn, |store| match &self.export {
            Export::Handle(bindings) => {
                let guest = bindings.tessera_framework_scheduler();
                let answer = guest.call_handle(store, convert::turn_info(&header), &events)?;
                Ok(answer.map(|()| None))
            }
            Export::Step(step, from) => {
                let (answer,) = step.call(store, (*from,))?;
                Ok(answer.map(|done| Some(MigrationStep { done })))
            }
        });
        self.cpu = cpu;
        let migration = answered(called, &limits)?;
        let guest = self.store.data_mut();
        let (operations, specs) = guest.draft.finish();
        if let Some(text) = self.unanswered.after(brings_offers, &operations) {
            guest.log.write(LogLevel::Warn, "host", &text, &[]);
        }
        Ok(Turn {
            header,
            consumed: if migration.is_some() { Vec::new() } else { consumed },
            operations,
            writes: guest.state.writes(),
            specs,
            migration,
        })
    }

    /// The last turn was committed: what it wrote is state now.
    pub fn commit(&mut self) {
        self.store.data_mut().state.commit();
    }

    /// From the next turn on these limits hold; what is in use already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        set_limits(&mut self.store, limits);
    }

    /// The outside writes that its state has.
    #[must_use]
    pub fn outside(&self) -> u64 {
        self.store.data().state.outside()
    }

    /// CPU time of the last call into the guest.
    #[must_use]
    pub const fn cpu_time(&self) -> Duration {
        self.cpu
    }

    /// Limits by which calls of the guest were refused since the last call of this, which it may have coped
    /// with, and how often.
    pub fn take_refused(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.store.data_mut().refused)
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
            | Event::InverseOffers(_)
            | Event::InverseRescinded(_)
            | Event::Http(_)
            | Event::StateChanged { .. }
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
    fn whoever_forgets_to_answer_offers_is_told_now_and_then() {
        let mut unanswered = Unanswered::NONE;
        let told: Vec<usize> = (1..=300).filter(|_| unanswered.after(true, &[]).is_some()).collect();
        assert_eq!(told, [3, 30, 300]);
        assert_eq!(unanswered.after(true, &[Operation::Suppress]), None);
        for offers in [true, false, false, true] {
            assert_eq!(unanswered.after(offers, &[Operation::Revive]), None);
        }
        assert!(unanswered.after(true, &[]).is_some_and(|text| text.contains("decline")));
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
