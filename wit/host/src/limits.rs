//! What a guest may use as this host counts it, and the accounts that are kept per store.
//!
//! Invariants: every limit has a name, which is what a guest, an operator and a log line get to see;
//! memory is summed over all memories and tables of a store. This file must never grant more on one
//! path than on another.

use std::time::{Duration, Instant};
use tessera_types::{EffectiveLimits, LimitName};
use wasmtime::ResourceLimiter;

/// What one guest may use, in the units of this machine. Each field is a row of the table in
/// `tessera_types`, which says what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the rows of the table say it")]
pub struct Limits {
    pub memory_bytes: u64,
    pub table_elements: usize,
    pub instances: usize,
    pub tables: usize,
    pub memories: usize,
    pub handles: usize,
    pub hostcall_bytes: usize,
    pub host_calls: u64,
    pub random_bytes: u64,
    pub init_cpu: Duration,
    pub init_wall: Duration,
    pub turn_cpu: Duration,
    pub turn_wall: Duration,
    pub minute_cpu: Duration,
    pub error_bytes: usize,
    pub turn_operations: usize,
    pub turn_operation_bytes: usize,
    pub turn_specs: usize,
    pub turn_spec_bytes: usize,
    pub specs: usize,
    pub spec_bytes: usize,
    pub open_requests: usize,
    pub log: LogLimits,
    pub state: StateLimits,
}

/// What one call may log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the rows of the table say it")]
pub struct LogLimits {
    pub lines: usize,
    pub bytes: usize,
    pub line_bytes: usize,
}

/// What a state may hold, and what one turn may write of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the rows of the table say it")]
pub struct StateLimits {
    pub bytes: u64,
    pub keys: u64,
    pub turn_bytes: usize,
    pub turn_keys: usize,
    /// Under which names `bytes` and `keys` are refused.
    pub names: [LimitName; 2],
}

impl Default for LogLimits {
    fn default() -> Self {
        Limits::default().log
    }
}

impl Default for StateLimits {
    fn default() -> Self {
        Limits::default().state
    }
}

impl Limits {
    /// Those of a scheduler whose role has these.
    #[must_use]
    pub fn of(limits: &EffectiveLimits) -> Self {
        use LimitName as L;
        let ms = |name| Duration::from_millis(limits.get(name));
        Self {
            memory_bytes: limits.get(L::MemoryBytes),
            table_elements: limits.size(L::TableElements),
            instances: limits.size(L::Instances),
            tables: limits.size(L::Tables),
            memories: limits.size(L::Memories),
            handles: limits.size(L::Handles),
            hostcall_bytes: limits.size(L::HostcallBytes),
            host_calls: limits.get(L::HostCalls),
            random_bytes: limits.get(L::RandomBytes),
            init_cpu: ms(L::InitCpuMs),
            init_wall: ms(L::InitWallMs),
            turn_cpu: ms(L::TurnCpuMs),
            turn_wall: ms(L::TurnWallMs),
            minute_cpu: ms(L::MinuteCpuMs),
            error_bytes: limits.size(L::ErrorBytes),
            turn_operations: limits.size(L::TurnOperations),
            turn_operation_bytes: limits.size(L::TurnOperationBytes),
            turn_specs: limits.size(L::TurnSpecs),
            turn_spec_bytes: limits.size(L::TurnSpecBytes),
            specs: limits.size(L::Specs),
            spec_bytes: limits.size(L::SpecBytes),
            open_requests: limits.size(L::OpenRequests),
            log: LogLimits {
                lines: limits.size(L::LogLines),
                bytes: limits.size(L::LogBytes),
                line_bytes: limits.size(L::LogLineBytes),
            },
            state: StateLimits {
                bytes: limits.get(L::StateBytes),
                keys: limits.get(L::StateKeys),
                turn_bytes: limits.size(L::TurnStateBytes),
                turn_keys: limits.size(L::TurnKeys),
                names: [L::StateBytes, L::StateKeys],
            },
        }
    }

    /// Those of a custom executor: its state is smaller, and its memory is what it is charged for.
    #[must_use]
    pub fn of_executor(limits: &EffectiveLimits, memory_bytes: u64) -> Self {
        let own = Self::of(limits);
        Self {
            memory_bytes,
            state: StateLimits {
                bytes: limits.get(LimitName::ExecutorStateBytes),
                keys: limits.get(LimitName::ExecutorStateKeys),
                names: [LimitName::ExecutorStateBytes, LimitName::ExecutorStateKeys],
                ..own.state
            },
            ..own
        }
    }

    /// Those of a Wasm task: its memory is what it is charged for. What is counted by turns means nothing
    /// to it.
    #[must_use]
    pub fn of_task(limits: &EffectiveLimits, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..Self::of(limits) }
    }

    /// The same without any that is about time: for calls that are repeated elsewhere.
    #[must_use]
    pub fn without_time(self) -> Self {
        let (init_cpu, init_wall) = (UNLIMITED_TIME, UNLIMITED_TIME);
        let (turn_cpu, turn_wall) = (UNLIMITED_TIME, UNLIMITED_TIME);
        Self { init_cpu, init_wall, turn_cpu, turn_wall, ..self }
    }
}

/// What a repeated call may take before it is given up: far more than any that was recorded took.
const UNLIMITED_TIME: Duration = Duration::from_secs(600);

impl Default for Limits {
    fn default() -> Self {
        Self::of(&EffectiveLimits::default())
    }
}

/// A limit that a guest has run into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit {name}: {text}")]
pub struct LimitPassed {
    /// The limit's name.
    pub name: &'static str,
    /// For people.
    pub text: String,
}

impl LimitPassed {
    pub(crate) fn of(name: LimitName, text: impl Into<String>) -> Self {
        Self::new(name.row().name, text)
    }

    /// For a limit that is the same for everybody and so has no row in the table.
    pub(crate) fn new(name: &'static str, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if let Some(way_out) = way_out(name) {
            text = format!("{text}; {way_out}");
        }
        Self { name, text }
    }
}

/// What authors do about the limits that they meet first.
fn way_out(name: &str) -> Option<&'static str> {
    Some(match name {
        "state-value-bytes" => "spread it over several keys, or write it to a task's sandbox",
        "turn-state-bytes" | "turn-keys" => "write the rest in a turn of its own: have it called again",
        "state-bytes" | "state-keys" => "delete what is not needed any more, or ask the operator for more",
        "turn-specs" | "turn-spec-bytes" => {
            "let tasks share specs and differ by args and env, or launch the rest in a turn of its own"
        }
        "turn-operations" | "turn-operation-bytes" => "ask for the rest in a turn of its own: have it called again",
        "turn-cpu-ms" | "turn-wall-ms" => "do less in one turn, and have it called again for the rest",
        "init-cpu-ms" | "init-wall-ms" => "read only what is needed at once, and the rest in the first turns",
        "memory-bytes" => "keep less in memory, which is a cache of the state, or ask the operator for more",
        "http-answer-bytes" => "answer a page at a time",
        "task-spec-bytes" => "give large input as a Wasm task's component, or have the task fetch it",
        _ => return None,
    })
}

/// Memory and tables of one store.
#[derive(Debug)]
pub(crate) struct Account {
    memory_bytes: u64,
    table_elements: usize,
    limits: Limits,
    refused: Option<LimitPassed>,
}

impl Account {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self {
            memory_bytes: 0,
            table_elements: 0,
            limits,
            refused: None,
        }
    }

    /// From here on these hold; what is in use stays.
    pub(crate) const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Take the note of a refused growth: a guest that traps after one has most likely run out of it.
    pub(crate) fn take_refused(&mut self) -> Option<LimitPassed> {
        self.refused.take()
    }

    /// Bytes of linear memory in use.
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl ResourceLimiter for Account {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let total = self.memory_bytes.saturating_add(more);
        if total > self.limits.memory_bytes {
            let text = format!("{total} bytes asked for, {} allowed", self.limits.memory_bytes);
            self.refused = Some(LimitPassed::of(LimitName::MemoryBytes, text));
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self
            .table_elements
            .saturating_add(desired.saturating_sub(current));
        if total > self.limits.table_elements {
            let text = format!("{total} elements, {} allowed", self.limits.table_elements);
            self.refused = Some(LimitPassed::of(LimitName::TableElements, text));
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.instances
    }

    fn tables(&self) -> usize {
        self.limits.tables
    }

    fn memories(&self) -> usize {
        self.limits.memories
    }
}

/// What is needed of the thread that calls a guest. An argument, so that this crate makes no system
/// calls and tests can spend time as they like.
#[derive(Clone, Copy, Debug)]
pub struct ThreadControl {
    /// CPU time that the calling thread has used.
    pub cpu_time: fn() -> Duration,
    /// Let the calling thread stand behind others, or beside them again.
    pub set_behind: fn(bool),
}

/// CPU time after which a turn stands behind others: far above what a turn takes, far below what it is
/// allowed, so that who spins disturbs its neighbours for a moment only.
const SOFT_CPU: Duration = Duration::from_millis(30);

/// Which of a guest's exports is called: each has its own budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Instantiation and `init`.
    Init,
    /// A turn.
    Turn,
}

impl Call {
    const fn allowed(self, limits: &Limits) -> (Duration, Duration) {
        match self {
            Self::Init => (limits.init_cpu, limits.init_wall),
            Self::Turn => (limits.turn_cpu, limits.turn_wall),
        }
    }

    const fn names(self) -> (LimitName, LimitName) {
        match self {
            Self::Init => (LimitName::InitCpuMs, LimitName::InitWallMs),
            Self::Turn => (LimitName::TurnCpuMs, LimitName::TurnWallMs),
        }
    }
}

/// What one call into a guest may spend: time, looked at whenever the epoch advances, and calls of the
/// host, looked at then and at the end.
#[derive(Debug)]
pub(crate) struct Budget {
    thread: ThreadControl,
    call: Call,
    is_behind: bool,
    cpu_start: Duration,
    cpu_max: Duration,
    wall_start: Instant,
    wall_max: Duration,
    host_calls: u64,
    host_calls_max: u64,
}

impl Budget {
    pub(crate) fn start(thread: ThreadControl, call: Call, limits: &Limits) -> Self {
        let (cpu_start, wall_start) = ((thread.cpu_time)(), Instant::now());
        let (cpu_max, wall_max) = call.allowed(limits);
        Self {
            thread,
            call,
            is_behind: false,
            cpu_start,
            cpu_max,
            wall_start,
            wall_max,
            host_calls: 0,
            host_calls_max: limits.host_calls,
        }
    }

    /// The guest has called the host.
    pub(crate) const fn count_host_call(&mut self) {
        self.host_calls += 1;
    }

    pub(crate) fn check(&mut self) -> Result<(), LimitPassed> {
        self.check_host_calls()?;
        let cpu = (self.thread.cpu_time)().saturating_sub(self.cpu_start);
        if cpu >= SOFT_CPU && !self.is_behind {
            self.is_behind = true;
            (self.thread.set_behind)(true);
        }
        let (cpu_name, wall_name) = self.call.names();
        if cpu >= self.cpu_max {
            let text = format!("{} ms of CPU time are used up", self.cpu_max.as_millis());
            return Err(LimitPassed::of(cpu_name, text));
        }
        if self.wall_start.elapsed() >= self.wall_max {
            let text = format!("{} ms have passed", self.wall_max.as_millis());
            return Err(LimitPassed::of(wall_name, text));
        }
        Ok(())
    }

    /// The text says nothing of when it was noticed: it is the same whenever the call is repeated.
    pub(crate) fn check_host_calls(&self) -> Result<(), LimitPassed> {
        if self.host_calls > self.host_calls_max {
            let text = format!("more than {} calls of the host", self.host_calls_max);
            return Err(LimitPassed::of(LimitName::HostCalls, text));
        }
        Ok(())
    }

    /// The call is over; the CPU time that it took.
    pub(crate) fn end(&mut self) -> Duration {
        if std::mem::take(&mut self.is_behind) {
            (self.thread.set_behind)(false);
        }
        (self.thread.cpu_time)().saturating_sub(self.cpu_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn memory_is_summed_over_memories() {
        let mut account = Account::new(Limits { memory_bytes: 100, ..Limits::default() });
        assert!(account.memory_growing(0, 60, None).is_ok_and(|ok| ok));
        assert!(account.memory_growing(0, 40, None).is_ok_and(|ok| ok));
        assert!(account.memory_growing(40, 41, None).is_ok_and(|ok| !ok));
        assert_eq!(account.take_refused().map(|l| l.name), Some("memory-bytes"));
        assert_eq!(account.memory_bytes(), 100);
    }

    #[test]
    fn table_elements_are_summed() {
        let limits = Limits {
            table_elements: 10,
            ..Limits::default()
        };
        let mut account = Account::new(limits);
        assert!(account.table_growing(0, 10, None).is_ok_and(|ok| ok));
        assert!(account.table_growing(0, 1, None).is_ok_and(|ok| !ok));
        assert_eq!(
            account.take_refused().map(|l| l.name),
            Some("table-elements")
        );
    }

    fn limits(cpu: Duration, wall: Duration) -> Limits {
        Limits {
            turn_cpu: cpu,
            turn_wall: wall,
            host_calls: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn a_budget_ends_by_cpu_or_by_wall_time_or_by_calls() {
        let thread = ThreadControl {
            cpu_time: || Duration::ZERO,
            set_behind: |_| (),
        };
        let hour = Duration::from_secs(3600);
        let name = |limits: Limits, calls: u32| {
            let mut budget = Budget::start(thread, Call::Turn, &limits);
            (0..calls).for_each(|_| budget.count_host_call());
            budget.check().map_err(|limit| limit.name)
        };
        assert_eq!(name(limits(hour, hour), 2), Ok(()));
        assert_eq!(name(limits(hour, hour), 3), Err("host-calls"));
        assert_eq!(name(limits(Duration::ZERO, hour), 0), Err("turn-cpu-ms"));
        assert_eq!(name(limits(hour, Duration::ZERO), 0), Err("turn-wall-ms"));
    }

    #[test]
    fn a_long_turn_stands_behind_others_until_it_ends() {
        thread_local! {
            static CPU: Cell<Duration> = const { Cell::new(Duration::ZERO) };
            static BEHIND: Cell<bool> = const { Cell::new(false) };
        }
        let thread = ThreadControl {
            cpu_time: || CPU.get(),
            set_behind: |behind| BEHIND.set(behind),
        };
        let hour = Duration::from_secs(3600);
        let mut budget = Budget::start(thread, Call::Turn, &limits(hour, hour));
        assert_eq!((budget.check(), BEHIND.get()), (Ok(()), false));
        CPU.set(SOFT_CPU);
        assert_eq!((budget.check(), BEHIND.get()), (Ok(()), true));
        assert_eq!(budget.end(), SOFT_CPU);
        assert!(!BEHIND.get());
    }
}
