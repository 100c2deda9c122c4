//! One store per guest: made under limits, called under a budget, and what a failed call means.
//!
//! Invariants: no call reaches a guest but through [`call`], which ends it when its budget is used up; a
//! limit that ended a call is told by its name in the table. This file must never know which export is
//! called.

use crate::clock::Clock;
use crate::draft::Draft;
use crate::engine::Ticker;
use crate::executor_draft::ExecutorDraft;
use crate::guest::Guest;
use crate::limits::{Account, Budget, Call, LimitPassed, Limits, ThreadControl};
use crate::log::Log;
use crate::random::Random;
use crate::state::State;
use crate::wasi;
use std::collections::BTreeMap;
use std::time::Duration;
use tessera_types::{LimitName, LogLevel};
use wasmtime::component::{ResourceTable, ResourceTableError};
use wasmtime::{Engine, Store, Trap, UpdateDeadline, WasmBacktrace};

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
    /// This machine had no room for it. Not the guest's doing.
    #[error("no room on this machine: {0}")]
    NoRoom(String),
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
            Self::NoRoom(_) => "WORKER_FULL",
        }
    }

    /// Name of the limit that ended the call; empty when none did.
    #[must_use]
    pub const fn limit(&self) -> &'static str {
        match self {
            Self::Limit(passed) => passed.name,
            Self::Trapped(_) | Self::Guest(_) | Self::Unusable(_) | Self::NoRoom(_) => "",
        }
    }

    /// Whether the guest is to blame.
    #[must_use]
    pub const fn is_guests(&self) -> bool {
        !matches!(self, Self::NoRoom(_))
    }
}

/// A store under these limits.
pub(crate) fn new_store(
    engine: &Engine,
    thread: ThreadControl,
    limits: Limits,
    seed: u64,
    mut state: State,
) -> Store<Guest> {
    let log = Log::default();
    let mut hashes = Random::new(seed, 2);
    state.set_limits(limits.state);
    let guest = Guest {
        wasi: wasi::context(&log),
        table: ResourceTable::new(),
        limits,
        account: Account::new(limits),
        budget: Budget::start(thread, Call::Init, &limits),
        clock: Clock::default(),
        random: Random::new(seed, 0),
        insecure: Random::new(seed, 1),
        hash_seed: (hashes.u64(), hashes.u64()),
        log,
        state,
        refused: BTreeMap::new(),
        draft: Draft::new(limits),
        executor: ExecutorDraft::default(),
    };
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.account);
    store.epoch_deadline_callback(|mut context| {
        context.data_mut().budget.check()?;
        Ok(UpdateDeadline::Continue(1))
    });
    set_limits(&mut store, limits);
    store
}

/// From the next call on these limits hold. What is in use already stays.
pub(crate) fn set_limits(store: &mut Store<Guest>, limits: Limits) {
    store.set_hostcall_fuel(limits.hostcall_bytes);
    store.set_max_component_handles(limits.handles);
    let guest = store.data_mut();
    guest.limits = limits;
    // What a guest holds one handle of may be two things here: a pollable, and what it waits for.
    guest.table.set_max_capacity(limits.handles.saturating_mul(2));
    guest.account.set_limits(limits);
    guest.log.set_limits(limits.log);
    guest.state.set_limits(limits.state);
    guest.draft.set_limits(limits);
}

/// Call into a guest under a budget of its own, and tell the CPU time that it took.
pub(crate) fn call<T>(
    store: &mut Store<Guest>,
    (ticker, thread): (&Ticker, ThreadControl),
    which: Call,
    calls: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<T>,
) -> (Result<T, Failure>, Duration) {
    let called = {
        let _running = ticker.run();
        store.set_epoch_deadline(1);
        let guest = store.data_mut();
        guest.account.take_refused();
        guest.budget = Budget::start(thread, which, &guest.limits);
        calls(store)
    };
    let budget = &mut store.data_mut().budget;
    let cpu = budget.end();
    // A flood that was over before the next epoch is one all the same.
    let called = match budget.check_host_calls() {
        Ok(()) => called,
        Err(passed) => Err(passed.into()),
    };
    let guest = store.data_mut();
    if called.is_ok()
        && let Some(passed) = guest.account.take_refused()
    {
        guest.note_limit(passed.name);
    }
    (called.map_err(|error| failure(store, &error)), cpu)
}

/// The answer of a guest's own function.
pub(crate) fn answered<T>(
    called: Result<Result<T, String>, Failure>,
    limits: &Limits,
) -> Result<T, Failure> {
    called?.map_err(|text| Failure::Guest(cut(text, limits.error_bytes)))
}

/// What a failed call into a guest means.
fn failure(store: &mut Store<Guest>, error: &wasmtime::Error) -> Failure {
    let limits = store.data().limits;
    let refused = store.data_mut().account.take_refused();
    let failure = explain(error, refused, &limits);
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
    limits: &Limits,
) -> Failure {
    if let Some(passed) = error.downcast_ref::<LimitPassed>() {
        return passed.clone().into();
    }
    if matches!(error.downcast_ref::<Trap>(), Some(Trap::StackOverflow)) {
        return LimitPassed::new("stack", "the guest's stack is full").into();
    }
    if let Some(passed) = limit_of_runtime(error, limits) {
        return passed.into();
    }
    if let Some(refused) = refused {
        return refused.into();
    }
    // Once the guest's own code ran, names that it chose are in the text, and it is to blame.
    if error.downcast_ref::<WasmBacktrace>().is_none() {
        let text = format!("{error:#}");
        if text.contains("mmap failed") {
            return Failure::NoRoom(cut(text, limits.error_bytes));
        }
    }
    Failure::Trapped(cut(error.root_cause().to_string(), limits.error_bytes))
}

/// Limits that the runtime keeps for us. It has no types for most of its refusals: the texts are held
/// against it by the tests that reach each limit.
fn limit_of_runtime(error: &wasmtime::Error, limits: &Limits) -> Option<LimitPassed> {
    use LimitName as L;
    let full = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ResourceTableError::Full))
    };
    let text = error.root_cause().to_string();
    let (name, max) = if error.chain().any(full) || text.contains("store handle limit exceeded") {
        (L::Handles, limits.handles)
    } else if text.contains("fuel allocated for hostcalls has been exhausted") {
        (L::HostcallBytes, limits.hostcall_bytes)
    } else if text.starts_with("requested len ") && text.contains(" exceeds limit ") {
        (L::RandomBytes, usize::try_from(limits.random_bytes).unwrap_or(usize::MAX))
    } else {
        let what = text.strip_prefix("resource limit exceeded: ")?;
        match what.split(' ').next()? {
            "instance" => (L::Instances, limits.instances),
            "table" => (L::Tables, limits.tables),
            "memory" => (L::Memories, limits.memories),
            _ => return None,
        }
    };
    Some(LimitPassed::of(name, format!("at most {max}")))
}

/// Drop the instance and keep its committed state.
pub(crate) fn into_state(store: Store<Guest>) -> State {
    let mut state = store.into_data().state;
    state.discard();
    state
}

/// `text`, at most so many bytes of it.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::new_engine;
    use wasmtime::component::{Component, Linker};

    const THREAD: ThreadControl = ThreadControl {
        cpu_time: || Duration::ZERO,
        set_behind: |_| (),
    };

    /// Instantiate a component with so many instances of a module.
    fn instantiate(module: &str, count: usize, limits: Limits) -> Result<(), Failure> {
        let instances = "(core instance (instantiate $m))".repeat(count);
        let text = format!("(component (core module $m {module}) {instances})");
        let engine = new_engine().unwrap();
        let component = Component::from_binary(&engine, &wat::parse_str(text).unwrap()).unwrap();
        let ticker = Ticker::start(&engine).unwrap();
        let linker = Linker::<Guest>::new(&engine);
        let mut store = new_store(&engine, THREAD, limits, 0, State::default());
        let with = (&ticker, THREAD);
        call(&mut store, with, Call::Init, |store| linker.instantiate(store, &component).map(|_| ())).0
    }

    #[test]
    fn what_a_component_is_made_of_is_limited_by_name() {
        let limits = Limits {
            instances: 3,
            tables: 2,
            memories: 2,
            table_elements: 10,
            memory_bytes: 2 * 65_536,
            ..Limits::default()
        };
        for (name, module, under, over) in [
            ("instances", "", 3, 4),
            ("tables", "(table 1 funcref)", 2, 3),
            ("table-elements", "(table 6 funcref)", 1, 2),
            ("memories", "(memory 0)", 2, 3),
            ("memory-bytes", "(memory 2)", 1, 2),
        ] {
            assert_eq!(instantiate(module, under, limits), Ok(()), "{name}");
            let failed = instantiate(module, over, limits).unwrap_err();
            assert_eq!((failed.code(), failed.limit()), ("GUEST_LIMIT", name), "{failed}");
        }
    }

    #[test]
    fn a_machine_without_room_is_not_the_guests_fault() {
        let error = wasmtime::Error::msg("Cannot allocate memory (os error 12)")
            .context("mmap failed to reserve 0x100000000 bytes");
        let failure = explain(&error, None, &Limits::default());
        assert!(matches!(failure, Failure::NoRoom(_)) && !failure.is_guests(), "{failure:?}");
        let trapped = explain(&wasmtime::Error::msg("unreachable"), None, &Limits::default());
        assert!(matches!(trapped, Failure::Trapped(_)) && trapped.is_guests(), "{trapped:?}");
        // A guest chooses the names of its functions, which the trace of a trap tells.
        let liar = r#"(func $"mmap failed" unreachable) (start $"mmap failed")"#;
        let trapped = instantiate(liar, 1, Limits::default()).unwrap_err();
        assert!(matches!(trapped, Failure::Trapped(_)) && trapped.is_guests(), "{trapped:?}");
    }
}
