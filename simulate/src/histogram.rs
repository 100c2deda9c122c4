//! Many numbers in little room: exact up to 255, and within one part in 128 above.
//!
//! Invariant: what is told of the numbers does not depend on their order.

use std::collections::BTreeMap;

/// Bits of a number that are kept.
const KEPT_BITS: u32 = 8;

/// Numbers, rounded up to what their upper bits can say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: BTreeMap<u64, u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn add(&mut self, number: u64) {
        let bits = 64 - number.leading_zeros();
        let dropped = bits.saturating_sub(KEPT_BITS);
        // The largest number that looks the same.
        let shown = number | ((1_u64 << dropped) - 1);
        *self.counts.entry(shown).or_default() += 1;
        self.total += 1;
        self.max = self.max.max(number);
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    pub(crate) const fn max(&self) -> u64 {
        self.max
    }

    /// The number that so many of 100 do not pass; 0 when there are none.
    pub(crate) fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (number, count) in &self.counts {
            seen += count;
            if seen >= rank {
                return (*number).min(self.max);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_near_and_never_below() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.percentile(50), histogram.max()), (0, 0));
        for number in (1..=10_000).rev() {
            histogram.add(number);
        }
        assert_eq!((histogram.total(), histogram.max(), histogram.percentile(100)), (10_000, 10_000, 10_000));
        for (percent, exact) in [(1, 100), (50, 5_000), (99, 9_900)] {
            let told = histogram.percentile(percent);
            assert!((exact..=exact + exact / 128 + 1).contains(&told), "{percent}: {told}");
        }
        histogram.add(u64::MAX);
        assert_eq!(histogram.percentile(100), u64::MAX);
    }
}
