//! Random numbers that repeat with their seed.
//!
//! Invariants: the same seed gives the same numbers on every machine, and no number depends on floating
//! point. Must never take anything from the surroundings.

/// One in the fixed-point form of fractions.
const ONE: u64 = 1 << 32;

/// A SplitMix64 generator: one word of state, good enough to draw faults and delays.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of its own for a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// A generator that is independent of this one, for a part of the world.
    #[must_use]
    pub fn fork(&mut self, tag: u64) -> Self {
        Self::new(self.draw() ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low.saturating_add(self.below(high.saturating_sub(low).saturating_add(1)))
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An index below `len`; 0 if that is 0.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    fn fraction(&mut self) -> u64 {
        self.draw() >> 32
    }

    /// An exponentially distributed number with this mean, by von Neumann's way, which only compares: the
    /// first of a falling run of fractions counts if the run's length is odd, else one more is added.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        let mut whole: u64 = 0;
        loop {
            let first = self.fraction();
            let (mut last, mut length) = (first, 1_u32);
            loop {
                let next = self.fraction();
                if next >= last {
                    break;
                }
                last = next;
                length += 1;
            }
            if length % 2 == 1 {
                let drawn = u128::from(whole * ONE + first) * u128::from(mean);
                return u64::try_from(drawn >> 32).unwrap_or(u64::MAX);
            }
            whole += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_repeats_and_others_differ() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(|_| random.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn ranges_include_both_ends() {
        let mut random = Random::new(3);
        let drawn: BTreeSet<u64> = (0..200).map(|_| random.range(4, 6)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [4, 5, 6]);
    }

    #[test]
    fn the_exponential_distribution_has_its_mean_and_its_median() {
        let mut random = Random::new(7);
        let mut drawn: Vec<u64> = (0..20_000).map(|_| random.exponential(60_000)).collect();
        drawn.sort_unstable();
        let mean = drawn.iter().sum::<u64>() / 20_000;
        assert!((58_000..62_000).contains(&mean), "{mean}");
        // The median is ln 2 of the mean.
        assert!((40_000..43_200).contains(&drawn[10_000]), "{}", drawn[10_000]);
        assert_eq!(random.exponential(0), 0);
    }
}
