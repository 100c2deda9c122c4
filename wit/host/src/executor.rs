//! One instance of a custom executor: built from its durable state, called with batches, giving turns.
//!
//! Invariants: as for schedulers: a call either gives a whole turn or a failure, after which the instance
//! is not called again; every call into the guest, instantiation included, stands under a budget. What a
//! turn writes is state only once [`Executor::commit`] says so. This file must never decide when an
//! instance is rebuilt, or what becomes of an operation.

use crate::bindings::executor::{ExecutorFramework, ExecutorFrameworkPre};
use crate::engine::Ticker;
use crate::executor_convert::{self, ExecutorName};
use crate::executor_draft::ExecutorDraft;
use crate::guest::Guest;
use crate::http;
use crate::limits::{Call, Limits, ThreadControl};
use crate::log::Logged;
use crate::state::State;
use crate::store::{Failure, answered, call, new_store, set_limits};
use crate::wasi;
use std::sync::Arc;
use tessera_types::{EffectiveLimits, TimeMs, TurnNumber};
use tessera_wire::v1;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};

/// What an executor may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Those of its framework's role.
    pub role: EffectiveLimits,
    /// Bytes of its linear memories: what it is charged for.
    pub memory_bytes: u64,
}

impl ExecutorLimits {
    fn of_instance(&self) -> Limits {
        Limits::of_executor(&self.role, self.memory_bytes)
    }
}

/// What an instance is made from, beside its state.
#[derive(Clone, Debug, Default)]
pub struct ExecutorStart {
    /// Who it is.
    pub name: ExecutorName,
    /// Of the instance's randomness.
    pub seed: u64,
    /// The executor's configuration.
    pub config: Vec<(String, String)>,
    /// What it may use.
    pub limits: ExecutorLimits,
}

/// Links executors. One per engine.
pub struct ExecutorHost {
    linker: Linker<Guest>,
    thread: ThreadControl,
    ticker: Arc<Ticker>,
}

/// A component that is linked and can be built any number of times.
#[derive(Clone)]
pub struct ExecutorImage {
    pre: ExecutorFrameworkPre<Guest>,
    thread: ThreadControl,
    ticker: Arc<Ticker>,
}

/// A living instance.
pub struct Executor {
    store: Store<Guest>,
    bindings: ExecutorFramework,
    name: ExecutorName,
    thread: ThreadControl,
    ticker: Arc<Ticker>,
}

impl ExecutorHost {
    /// Make the linker.
    ///
    /// # Errors
    /// When an interface is defined twice.
    pub fn new(engine: &Engine, ticker: Arc<Ticker>, thread: ThreadControl) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        wasi::link(&mut linker)?;
        ExecutorFramework::add_to_linker::<_, HasSelf<Guest>>(&mut linker, Guest::called)?;
        Ok(Self { linker, thread, ticker })
    }

    /// Link a component.
    ///
    /// # Errors
    /// [`Failure::Unusable`] when it does not fit the contract, with the import or export named.
    pub fn link(&self, component: &Component) -> Result<ExecutorImage, Failure> {
        let pre = http::link(&self.linker, component)
            .and_then(ExecutorFrameworkPre::new)
            .map_err(|error| Failure::Unusable(format!("{error:#}")))?;
        Ok(ExecutorImage { pre, thread: self.thread, ticker: self.ticker.clone() })
    }
}

impl ExecutorImage {
    /// Build an instance on this state and call its `init`. What it enqueues belongs to its first turn.
    ///
    /// # Errors
    /// The failure, and what was logged until then.
    pub fn build(&self, start: ExecutorStart, state: State) -> Result<Executor, (Failure, Logged)> {
        let limits = start.limits.of_instance();
        let mut store = new_store(self.pre.engine(), self.thread, limits, start.seed, state);
        store.data_mut().executor = ExecutorDraft::new(start.limits.role);
        let with = (&*self.ticker, self.thread);
        let (built, _) = call(&mut store, with, Call::Init, |store| {
            let bindings = self.pre.instantiate(&mut *store)?;
            let answer = bindings.tessera_framework_executor().call_init(store, &start.config)?;
            Ok(answer.map(|()| bindings))
        });
        let failure = match answered(built, &limits) {
            Ok(bindings) => {
                let (thread, ticker) = (self.thread, self.ticker.clone());
                return Ok(Executor { store, bindings, name: start.name, thread, ticker });
            }
            Err(failure) => failure,
        };
        let logged = store.data().log.take();
        Err((failure, logged))
    }
}

impl Executor {
    /// From the next turn on it may use this.
    pub fn set_limits(&mut self, limits: ExecutorLimits) {
        set_limits(&mut self.store, limits.of_instance());
        self.store.data_mut().executor.set_limits(limits.role);
    }

    /// Give the instance one batch. After an error the instance must be dropped.
    ///
    /// # Errors
    /// Why there is no turn.
    pub fn turn(
        &mut self,
        number: u64,
        time_ms: TimeMs,
        batch: Vec<v1::ExecutorEvent>,
    ) -> Result<v1::ExecutorTurn, Failure> {
        let guest = self.store.data_mut();
        guest.clock.begin_turn(time_ms);
        guest.log.begin(time_ms, TurnNumber(number));
        guest.executor.begin(time_ms);
        let limits = guest.limits;
        let mut events = Vec::with_capacity(batch.len());
        for event in batch {
            for (child, state) in executor_convert::children_of(&event) {
                guest.executor.see_child(child, state);
            }
            let event = executor_convert::event(&self.name, event)
                .map_err(|error| Failure::Unusable(format!("batch.{error}")))?;
            events.push(event);
        }
        let with = (&*self.ticker, self.thread);
        let (called, _) = call(&mut self.store, with, Call::Turn, |store| {
            self.bindings.tessera_framework_executor().call_handle(store, time_ms, &events)
        });
        answered(called, &limits)?;
        let guest = self.store.data_mut();
        Ok(v1::ExecutorTurn {
            key: Some(v1::ExecutorKey {
                framework: self.name.framework,
                executor: self.name.executor.clone(),
            }),
            number,
            operations: guest.executor.finish_turn(),
            writes: guest.state.writes().into_iter().map(|write| (&write).into()).collect(),
        })
    }

    /// The last turn is on record: what it wrote is state now.
    pub fn commit(&mut self) {
        self.store.data_mut().state.commit();
    }

    /// What was logged since the last call of this.
    pub fn take_logged(&mut self) -> Logged {
        self.store.data().log.take()
    }
}
