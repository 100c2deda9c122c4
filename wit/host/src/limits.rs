//! The one table of what a guest may use, and the accounts that are kept per store.
//!
//! Invariants: every limit has a name, which is what a guest, an operator and a log line get to see;
//! memory is summed over all memories and tables of a store. This file must never grant more on one
//! path than on another.

use std::time::{Duration, Instant};
use wasmtime::ResourceLimiter;

/// What one guest may use. `Default` is what the cluster enforces; tests make it smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all linear memories of a store together: what an agent's slice is divided by.
    pub memory_bytes: u64,
    /// Elements of all tables of a store together, at 8 bytes of host memory each.
    pub table_elements: usize,
    /// Core instances of a component: toolchains make fewer than ten, adapters included.
    pub instances: usize,
    /// Tables of a store.
    pub tables: usize,
    /// Linear memories of a store.
    pub memories: usize,
    /// Live resource handles, in the guest's tables and in the host's.
    pub handles: usize,
    /// Bytes that one call may carry from guest to host. Above the largest legal argument, so that
    /// those who pass it break a documented limit with a named error first.
    pub hostcall_bytes: usize,
    /// CPU time of one turn, as counted for its thread.
    pub turn_cpu: Duration,
    /// Wall time of one turn: larger, because a busy machine is not the guest's fault.
    pub turn_wall: Duration,
    /// CPU time of instantiation and `init` together.
    pub init_cpu: Duration,
    /// Wall time of instantiation and `init` together.
    pub init_wall: Duration,
    /// Bytes of one request for randomness.
    pub random_bytes: u64,
    /// Task specs that one instance may have defined at a time.
    pub specs: usize,
    /// Bytes of all task specs of one instance.
    pub spec_bytes: usize,
    /// Bytes of all operations of one turn: a turn stays below the 4 MiB that a message may have.
    pub operation_bytes: usize,
    /// Requests without an answer that one instance is held to remember.
    pub open_requests: usize,
    /// Bytes of a guest's error text that are kept.
    pub error_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            table_elements: 100_000,
            instances: 64,
            tables: 64,
            memories: 16,
            handles: 4_096,
            hostcall_bytes: 4 << 20,
            turn_cpu: Duration::from_secs(1),
            turn_wall: Duration::from_secs(5),
            init_cpu: Duration::from_secs(1),
            init_wall: Duration::from_secs(5),
            random_bytes: 64 << 10,
            specs: 4_096,
            spec_bytes: 16 << 20,
            operation_bytes: 1 << 20,
            open_requests: 1_024,
            error_bytes: 2_048,
        }
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
    pub(crate) fn new(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            name,
            text: text.into(),
        }
    }
}

/// Memory and tables of one store.
#[derive(Debug)]
pub(crate) struct Account {
    memory_bytes: u64,
    memory_bytes_max: u64,
    table_elements: usize,
    limits: Limits,
    refused: Option<LimitPassed>,
}

impl Account {
    pub(crate) fn new(memory_bytes_max: u64, limits: Limits) -> Self {
        Self {
            memory_bytes: 0,
            memory_bytes_max,
            table_elements: 0,
            limits,
            refused: None,
        }
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
        if total > self.memory_bytes_max {
            let text = format!("{total} bytes asked for, {} allowed", self.memory_bytes_max);
            self.refused = Some(LimitPassed::new("memory", text));
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
            self.refused = Some(LimitPassed::new("table-elements", text));
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

/// The time budget of one call into a guest, looked at whenever the epoch advances.
#[derive(Debug)]
pub(crate) struct Budget {
    thread: ThreadControl,
    is_behind: bool,
    cpu_start: Duration,
    cpu_max: Duration,
    wall_start: Instant,
    wall_max: Duration,
}

impl Budget {
    pub(crate) fn start(thread: ThreadControl, cpu_max: Duration, wall_max: Duration) -> Self {
        let (cpu_start, wall_start) = ((thread.cpu_time)(), Instant::now());
        Self {
            thread,
            is_behind: false,
            cpu_start,
            cpu_max,
            wall_start,
            wall_max,
        }
    }

    pub(crate) fn check(&mut self) -> Result<(), LimitPassed> {
        let cpu = (self.thread.cpu_time)().saturating_sub(self.cpu_start);
        if cpu >= SOFT_CPU && !self.is_behind {
            self.is_behind = true;
            (self.thread.set_behind)(true);
        }
        if cpu >= self.cpu_max {
            let text = format!("{} ms of CPU time are used up", self.cpu_max.as_millis());
            return Err(LimitPassed::new("cpu", text));
        }
        if self.wall_start.elapsed() >= self.wall_max {
            let text = format!("{} ms have passed", self.wall_max.as_millis());
            return Err(LimitPassed::new("wall", text));
        }
        Ok(())
    }

    /// The call is over.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.is_behind) {
            (self.thread.set_behind)(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn memory_is_summed_over_memories() {
        let mut account = Account::new(100, Limits::default());
        assert!(account.memory_growing(0, 60, None).is_ok_and(|ok| ok));
        assert!(account.memory_growing(0, 40, None).is_ok_and(|ok| ok));
        assert!(account.memory_growing(40, 41, None).is_ok_and(|ok| !ok));
        assert_eq!(account.take_refused().map(|l| l.name), Some("memory"));
        assert_eq!(account.memory_bytes(), 100);
    }

    #[test]
    fn table_elements_are_summed() {
        let limits = Limits {
            table_elements: 10,
            ..Limits::default()
        };
        let mut account = Account::new(100, limits);
        assert!(account.table_growing(0, 10, None).is_ok_and(|ok| ok));
        assert!(account.table_growing(0, 1, None).is_ok_and(|ok| !ok));
        assert_eq!(
            account.take_refused().map(|l| l.name),
            Some("table-elements")
        );
    }

    #[test]
    fn a_budget_ends_by_cpu_or_by_wall_time() {
        let thread = ThreadControl {
            cpu_time: || Duration::ZERO,
            set_behind: |_| (),
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(Budget::start(thread, hour, hour).check(), Ok(()));
        let name = |mut budget: Budget| budget.check().map_err(|limit| limit.name);
        assert_eq!(
            name(Budget::start(thread, Duration::ZERO, hour)),
            Err("cpu")
        );
        assert_eq!(
            name(Budget::start(thread, hour, Duration::ZERO)),
            Err("wall")
        );
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
        let mut budget = Budget::start(thread, hour, hour);
        assert_eq!((budget.check(), BEHIND.get()), (Ok(()), false));
        CPU.set(SOFT_CPU);
        assert_eq!((budget.check(), BEHIND.get()), (Ok(()), true));
        budget.end();
        assert!(!BEHIND.get());
    }
}
