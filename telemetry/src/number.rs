//! Numbers that are counted where work is done: integer atomics without order.
//!
//! Invariants: counting is one or two additions to memory, and never waits. Must never be read to decide anything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the classes of a histogram, in microseconds: from what a turn costs to what makes a leader hand over.
pub(crate) const BOUNDS_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
];

/// How often something happened.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// It happened.
    pub fn one(&self) {
        self.add(1);
    }

    /// It happened so many times.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// One less; for numbers of what is there now.
    pub fn less(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How often.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long something took, by classes.
#[derive(Debug, Default)]
pub struct Histogram {
    classes: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// It took so long.
    pub fn took(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(class) = self.classes.get(class) {
            class.fetch_add(1, Relaxed);
        }
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// How many were in each class, and how long all took together, in microseconds.
    pub(crate) fn read(&self) -> ([u64; BOUNDS_US.len() + 1], u64) {
        (std::array::from_fn(|at| self.classes[at].load(Relaxed)), self.sum_us.load(Relaxed))
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.read().0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_falls_into_the_first_class_that_holds_it() {
        for (us, class) in [(0, 0), (50, 0), (51, 1), (1_000, 4), (5_000_000, 14), (5_000_001, 15)] {
            let histogram = Histogram::new();
            histogram.took(Duration::from_micros(us));
            let (classes, sum) = histogram.read();
            assert_eq!(classes.iter().position(|count| *count == 1), Some(class), "{us} µs");
            assert_eq!((histogram.count(), sum), (1, us));
        }
    }

    /// A turn counts a few numbers: what that costs must not be seen beside it.
    #[test]
    fn counting_costs_far_less_than_a_microsecond() {
        let (counter, histogram) = (Counter::new(), Histogram::new());
        let rounds = 100_000;
        let began = std::time::Instant::now();
        for at in 0..rounds {
            counter.one();
            histogram.took(Duration::from_micros(at % 2_000));
        }
        let each = began.elapsed() / u32::try_from(rounds).unwrap();
        assert_eq!(counter.get(), rounds);
        assert!(each < Duration::from_micros(1), "{each:?}");
    }
}
