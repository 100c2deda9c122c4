//! By which clock commands go, as a master can tell that only follows: what it expects the time to be when it comes
//! to lead.
//!
//! Entries carry the time of who led when they were proposed. Some are applied long after that, by a master that was
//! away: only times that go on as this master's own monotonic clock does say what the time is now. Invariant: what
//! was heard once, or all at once, says nothing. The leader also says the time when it asks how this master is: so it is
//! known where nothing is written. Must never look at this master's wall clock.

/// How far times may lie from each other that go on together: an entry waits for disks and networks.
const TOGETHER_MS: u64 = 2_000;
/// Over how long they have to.
const FOR_MS: u64 = 1_000;

/// After so long what nothing went together with was a mistake: this master stood still while it applied it.
const FORGOTTEN_MS: u64 = 60_000;

/// What was heard of the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The time of entries when the monotonic clock was at zero, had they gone together all along.
    base_ms: u64,
    /// Since when they do, on that clock.
    since_ms: u64,
    sure: bool,
}

impl Heard {
    /// What is known to a master that led: time goes on as it did.
    pub(crate) const fn led(time_ms: u64, mono_ms: u64) -> Self {
        Self { base_ms: time_ms.saturating_sub(mono_ms), since_ms: mono_ms, sure: true }
    }

    /// The leader says what the time is now; unlike an entry, that does not come late.
    pub(crate) fn told(&mut self, time_ms: u64, mono_ms: u64) {
        let base_ms = time_ms.saturating_sub(mono_ms);
        if base_ms.abs_diff(self.base_ms) > TOGETHER_MS {
            *self = Self { base_ms, since_ms: mono_ms, sure: false };
        } else {
            self.note(time_ms, mono_ms);
        }
    }

    /// An entry of that time was applied.
    pub(crate) fn note(&mut self, time_ms: u64, mono_ms: u64) {
        let base_ms = time_ms.saturating_sub(mono_ms);
        if base_ms.abs_diff(self.base_ms) <= TOGETHER_MS {
            self.base_ms = base_ms;
            self.sure |= mono_ms >= self.since_ms + FOR_MS;
            return;
        }
        // One that was applied late says nothing; others were heard at once.
        let forgotten = !self.sure && mono_ms > self.since_ms + FORGOTTEN_MS;
        if base_ms > self.base_ms || forgotten {
            *self = Self { base_ms, since_ms: mono_ms, sure: false };
        }
    }

    /// What the time is, if that is sure.
    pub(crate) const fn expected_ms(&self, mono_ms: u64) -> Option<u64> {
        if self.sure { Some(self.base_ms + mono_ms) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn what_the_leader_says_holds_once_it_said_it_for_a_while() {
        let mut heard = Heard::led(10 * HOUR_MS, 5_000);
        assert_eq!(heard.expected_ms(6_000), Some(10 * HOUR_MS + 1_000));
        // Another one leads, by whose clock it is earlier.
        heard.told(9 * HOUR_MS, 7_000);
        assert_eq!(heard.expected_ms(7_000), None);
        heard.told(9 * HOUR_MS + 500, 7_500);
        assert_eq!(heard.expected_ms(7_500), None);
        heard.told(9 * HOUR_MS + 1_000, 8_000);
        assert_eq!(heard.expected_ms(HOUR_MS), Some(10 * HOUR_MS - 7_000));
    }

    #[test]
    fn only_times_that_go_on_with_the_monotonic_clock_say_what_the_time_is() {
        // Entries as (time, monotonic clock), then what is expected when that is at an hour.
        let cases: [(&str, &[(u64, u64)], Option<u64>); 8] = [
            ("nothing", &[], None),
            ("one entry", &[(10 * HOUR_MS, 5_000)], None),
            ("two that go together", &[(10 * HOUR_MS, 5_000), (10 * HOUR_MS + 600_000, 605_000)], Some(11 * HOUR_MS - 5_000)),
            ("many at once", &[(7 * HOUR_MS, 5_000), (8 * HOUR_MS, 5_100), (9 * HOUR_MS, 7_000)], None),
            (
                "many at once, and then as they come",
                &[(7 * HOUR_MS, 5_000), (10 * HOUR_MS, 5_100), (10 * HOUR_MS + 1_000, 6_100)],
                Some(11 * HOUR_MS - 5_100),
            ),
            (
                "one that was applied late",
                &[(10 * HOUR_MS, 5_000), (10 * HOUR_MS + 1_500, 6_500), (10 * HOUR_MS + 2_000, 30_000)],
                Some(11 * HOUR_MS - 5_000),
            ),
            (
                "one that was noted too early",
                &[(10 * HOUR_MS, 5_000), (10 * HOUR_MS, 75_000), (10 * HOUR_MS + 5_000, 80_000)],
                Some(11 * HOUR_MS - 75_000),
            ),
            ("a step", &[(10 * HOUR_MS, 5_000), (10 * HOUR_MS + 1_500, 6_500), (10 * HOUR_MS + 9_000, 7_000)], None),
        ];
        for (what, entries, expected) in cases {
            let mut heard = Heard::default();
            for (time_ms, mono_ms) in entries {
                heard.note(*time_ms, *mono_ms);
            }
            assert_eq!(heard.expected_ms(HOUR_MS), expected, "{what}");
        }
    }
}
