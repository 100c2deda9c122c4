//! Clocks of masters that are off, a little or far.
//!
//! Invariants: small steps may come at any time, and add up to little; a step by minutes or an hour comes to a master
//! that has heard the time of the others, or leads, for long enough to know better, and a process that begins has its
//! clock right again, as machines set theirs when they start. Must never touch the monotonic clock.

use crate::master::{EPOCH_MS, Master};
use crate::world::World;

/// How far a master's clock may be behind by small steps: timers wait for as long as it takes to catch up.
const BEHIND_MAX_MS: i64 = 5_000;
/// How far it may be ahead.
const AHEAD_MAX_MS: i64 = 15_000;
/// Of 100 steps so many are far.
const FAR: u64 = 50;
/// How far those are, in ms.
const FAR_MS: (u64, u64) = (120_000, 3_600_000);
/// For so long a master has run that knows what the time is, in us.
const KNOWS_US: u64 = 4_000_000;
/// It has applied all but so many entries.
const BEHIND_ENTRIES_MAX: u64 = 20;
/// How far the time of an entry may be ahead of what is right, in ms.
const ENTRY_AHEAD_MAX_MS: u64 = 30_000;
/// How far behind, when it has just been applied: masters stand still for long.
const ENTRY_BEHIND_MAX_MS: u64 = 100_000;

/// What is wrong with the time of something that is heard of now.
pub(crate) fn wrong_time(at_ms: u64, now_us: u64) -> Option<String> {
    let right_ms = EPOCH_MS + now_us / 1_000;
    let far = at_ms > right_ms + ENTRY_AHEAD_MAX_MS || at_ms + ENTRY_BEHIND_MAX_MS < right_ms;
    far.then(|| format!("commands go by a clock that is far off: it is {right_ms}, and they say {at_ms}"))
}

impl World {
    /// The clock of a master makes a step.
    pub(crate) fn masters_clock_jumps(&mut self, slot: usize) {
        let now_us = self.now_us;
        let applied = self.leading().map(|node| node.status().applied.index);
        let far = self.rng.chance(FAR);
        let offset_ms = if far && applied.is_some_and(|applied| self.masters[slot].knows_time(now_us, applied)) {
            let by_ms = i64::try_from(self.rng.range(FAR_MS.0, FAR_MS.1)).unwrap_or(0);
            self.oracle.saw("a master's clock is far off");
            if self.rng.chance(50) { by_ms } else { -by_ms }
        } else {
            let step_ms = i64::try_from(self.rng.range(0, 40_000)).unwrap_or(0) - 20_000;
            (self.masters[slot].wall_offset_ms + step_ms).clamp(-BEHIND_MAX_MS, AHEAD_MAX_MS)
        };
        self.masters[slot].wall_offset_ms = offset_ms;
        self.journal.line(now_us, &format!("fault: the clock of master {slot} is off by {offset_ms} ms"));
    }
}

impl Master {
    /// Whether it has led, or heard others, for long enough to know better than its clock.
    fn knows_time(&self, now_us: u64, applied: u64) -> bool {
        let current = self.node.as_ref().is_some_and(|node| node.status().applied.index + BEHIND_ENTRIES_MAX > applied);
        current && self.runs(now_us) && now_us >= self.started_us + KNOWS_US
    }

    /// Its machine sets its clock when it starts.
    pub(crate) fn set_clock(&mut self) {
        if !(-BEHIND_MAX_MS..=AHEAD_MAX_MS).contains(&self.wall_offset_ms) {
            self.wall_offset_ms = 0;
        }
    }
}
