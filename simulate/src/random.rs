//! Random numbers that follow from the seed of a simulation.
//!
//! Invariants: the same seed gives the same numbers on every machine, and no number depends on floating
//! point. Must never take anything from the surroundings.

use tessera_types::Digest;

/// One in this fixed-point form.
const ONE: u64 = 1 << 32;

/// A SplitMix64 generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator of its own for everything that these parts name together: what a task draws does not
    /// depend on what others drew before.
    pub(crate) fn of(seed: u64, parts: &[&str]) -> Self {
        let mut bytes = seed.to_be_bytes().to_vec();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        let digest = Digest::of(&bytes).0;
        Self(digest.first_chunk::<8>().map_or(seed, |first| u64::from_be_bytes(*first)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low.saturating_add(self.below(high.saturating_sub(low).saturating_add(1)))
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn fraction(&mut self) -> u64 {
        self.next() >> 32
    }

    /// An exponentially distributed number with this mean, by von Neumann's way, which only compares: the
    /// first of a falling run of fractions counts if the run's length is odd, else one more is added.
    pub(crate) fn exponential(&mut self, mean: u64) -> u64 {
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

    #[test]
    fn parts_draw_for_themselves() {
        let draw = |seed, parts: &[&str]| Random::of(seed, parts).next();
        assert_eq!(draw(1, &["a", "b"]), draw(1, &["a", "b"]));
        assert_ne!(draw(1, &["a", "b"]), draw(2, &["a", "b"]));
        assert_ne!(draw(1, &["a", "b"]), draw(1, &["ab", ""]));
    }

    #[test]
    fn the_exponential_distribution_has_its_mean_and_its_median() {
        let mut random = Random::of(7, &[]);
        let mut drawn: Vec<u64> = (0..20_000).map(|_| random.exponential(60_000)).collect();
        drawn.sort_unstable();
        let mean = drawn.iter().sum::<u64>() / 20_000;
        assert!((58_000..62_000).contains(&mean), "{mean}");
        // The median is ln 2 of the mean.
        assert!((40_000..43_200).contains(&drawn[10_000]), "{}", drawn[10_000]);
        assert_eq!(random.exponential(0), 0);
    }
}
