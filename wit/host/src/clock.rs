//! The clocks of a scheduler: they show the turn's time and move only because the guest looks.
//!
//! Invariants: what a guest reads is a function of the turns' times and of its own calls; the monotonic
//! clock never runs backwards, the wall clock starts each turn at the turn's time, and before the first
//! turn, during `init`, at the Unix epoch. Sleeping moves both without waiting. This file must never read a clock of the machine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How far each reading moves the clocks: enough that a loop which waits for time to pass ends.
const READING_NS: u64 = 1_000;

#[derive(Debug, Default)]
struct Times {
    wall_ns: u64,
    monotonic_ns: u64,
    /// Turn time at which the monotonic clock stood at zero; known from the first turn on.
    origin_ns: Option<u64>,
    /// The earliest timer that was asked about, and was not due, since the last question.
    next_timer_ns: Option<u64>,
}

/// Clocks of one instance, shared with the timers that it made from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Arc<Mutex<Times>>);

impl Clock {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn with this time begins.
    pub(crate) fn begin_turn(&self, time_ms: u64) {
        let mut times = self.times();
        times.wall_ns = time_ms.saturating_mul(1_000_000);
        let first = times.wall_ns.saturating_sub(times.monotonic_ns);
        let origin = *times.origin_ns.get_or_insert(first);
        let since = times.wall_ns.saturating_sub(origin);
        times.monotonic_ns = times.monotonic_ns.max(since);
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn wall_ns(&self) -> u64 {
        let mut times = self.times();
        times.advance(READING_NS);
        times.wall_ns
    }

    /// Nanoseconds since the instance began.
    pub(crate) fn monotonic_ns(&self) -> u64 {
        let mut times = self.times();
        times.advance(READING_NS);
        times.monotonic_ns
    }

    /// Whether this time has come. If it has not, it is remembered for [`Self::advance_to_timer`].
    pub(crate) fn is_due(&self, when_ns: u64) -> bool {
        let mut times = self.times();
        if when_ns <= times.monotonic_ns {
            return true;
        }
        let next = times
            .next_timer_ns
            .map_or(when_ns, |next| next.min(when_ns));
        times.next_timer_ns = Some(next);
        false
    }

    /// Forget the timers that were asked about.
    pub(crate) fn forget_timers(&self) {
        self.times().next_timer_ns = None;
    }

    /// Move to the earliest timer that was asked about; false when there was none.
    pub(crate) fn advance_to_timer(&self) -> bool {
        let mut times = self.times();
        let Some(when) = times.next_timer_ns.take() else {
            return false;
        };
        let by = when.saturating_sub(times.monotonic_ns);
        times.advance(by);
        true
    }
}

impl Times {
    fn advance(&mut self, by_ns: u64) {
        self.wall_ns = self.wall_ns.saturating_add(by_ns);
        self.monotonic_ns = self.monotonic_ns.saturating_add(by_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_moves_both_clocks() {
        let clock = Clock::default();
        clock.begin_turn(5);
        assert_eq!(clock.wall_ns(), 5_001_000);
        assert_eq!(clock.monotonic_ns(), 2_000);
    }

    #[test]
    fn the_wall_clock_starts_each_turn_anew_and_the_monotonic_one_does_not() {
        let clock = Clock::default();
        clock.begin_turn(1_000);
        assert!(!clock.is_due(10_000_000_000));
        assert!(clock.advance_to_timer());
        clock.begin_turn(2_000);
        assert_eq!(clock.wall_ns(), 2_000_001_000);
        assert_eq!(clock.monotonic_ns(), 10_000_002_000);
        clock.begin_turn(20_000);
        assert_eq!(clock.monotonic_ns(), 19_000_001_000);
    }

    #[test]
    fn waiting_moves_to_the_earliest_timer() {
        let clock = Clock::default();
        assert!(!clock.advance_to_timer());
        assert!(!clock.is_due(300) && !clock.is_due(200) && clock.is_due(0));
        assert!(clock.advance_to_timer());
        assert!(clock.is_due(200) && !clock.is_due(300));
        clock.forget_timers();
        assert!(!clock.advance_to_timer());
    }
}
