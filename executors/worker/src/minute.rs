//! The CPU time of a scheduler's turns, minute by minute.
//!
//! Invariants: a scheduler that has used up its minute waits for the next one and is never ended for it.
//! This file must never read a clock.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// What was used in the running minute.
#[derive(Debug, Default)]
pub struct MinuteCpu {
    began: Option<Instant>,
    used: Duration,
}

impl MinuteCpu {
    /// A turn that ended now took this much.
    pub fn add(&mut self, cpu: Duration, now: Instant) {
        self.turn_over(now);
        self.began.get_or_insert(now);
        self.used += cpu;
    }

    fn turn_over(&mut self, now: Instant) {
        if self
            .began
            .is_some_and(|began| now.saturating_duration_since(began) >= MINUTE)
        {
            *self = Self::default();
        }
    }

    /// How long the next turn has to wait when a minute has this much.
    pub fn wait(&mut self, allowed: Duration, now: Instant) -> Duration {
        self.turn_over(now);
        match self.began {
            Some(began) if self.used >= allowed => MINUTE - now.saturating_duration_since(began),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_used_up_a_minute_waits_for_the_next() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let ms = Duration::from_millis;
        let mut minute = MinuteCpu::default();
        assert_eq!(minute.wait(ms(100), start), Duration::ZERO);
        minute.add(ms(60), start);
        minute.add(ms(39), start + second);
        assert_eq!(minute.wait(ms(100), start + second), Duration::ZERO, "just under");
        minute.add(ms(1), start + 2 * second);
        assert_eq!(minute.wait(ms(100), start + 2 * second), 58 * second);
        assert_eq!(minute.wait(ms(101), start + 2 * second), Duration::ZERO, "it was given more");
        assert_eq!(minute.wait(ms(100), start + 60 * second), Duration::ZERO);
        minute.add(ms(99), start + 61 * second);
        assert_eq!(minute.wait(ms(100), start + 61 * second), Duration::ZERO, "it counts anew");
    }
}
