//! Shares of the whole, compared exactly.
//!
//! Invariant: the order of weighted shares is total and that of the fractions themselves; nothing is rounded.

use super::vector::Vector;
use std::cmp::Ordering;

/// A share of the whole: the largest among the kinds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    pub(crate) const NONE: Self = Self { part: 0, whole: 1 };

    /// The dominant share of what somebody uses, and the kind that it is of.
    pub(crate) fn dominant(uses: &Vector, total: &Vector) -> (Self, usize) {
        let mut largest = (Self::NONE, 0);
        for (kind, part) in uses.iter() {
            let whole = total.get(kind);
            if part <= 0 || whole <= 0 {
                continue;
            }
            let share = Self { part: part.unsigned_abs(), whole: whole.unsigned_abs() };
            if share.cmp(&largest.0).is_gt() {
                largest = (share, kind);
            }
        }
        largest
    }

    /// Compare two shares, each divided by its weight.
    pub(crate) fn cmp_weighted(&self, weight: u32, other: &Self, other_weight: u32) -> Ordering {
        if weight == other_weight || self.part == 0 || other.part == 0 {
            return self.cmp(other);
        }
        let product = |a: u64, b: u64, weight: u32| {
            // Up to 160 bits: the upper part, and the lower one.
            let product = u128::from(a) * u128::from(b);
            let weight = u128::from(weight);
            let low = (product & u128::from(u64::MAX)) * weight;
            ((product >> 64) * weight + (low >> 64), low & u128::from(u64::MAX))
        };
        product(self.part, other.whole, other_weight).cmp(&product(other.part, self.whole, weight))
    }

    /// In millionths, for people.
    pub(crate) fn ppm(&self) -> u64 {
        let ppm = u128::from(self.part) * 1_000_000 / u128::from(self.whole);
        u64::try_from(ppm).unwrap_or(u64::MAX)
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Share {}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.whole == other.whole {
            return self.part.cmp(&other.part);
        }
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        product(self.part, other.whole).cmp(&product(other.part, self.whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_compare_exactly() {
        let of = |part, whole| Share { part, whole };
        let most = u64::MAX >> 1;
        for (one, weight, other, other_weight, expected) in [
            (of(1, 3), 1_000, of(333_334, 1_000_000), 1_000, Ordering::Less),
            (of(2, 3), 2_000, of(1, 3), 1_000, Ordering::Equal),
            (of(2, 3), 2_001, of(1, 3), 1_000, Ordering::Less),
            (of(most - 1, most), 1_000_000_000, of(most, most), 1_000_000_000, Ordering::Less),
            (of(most - 1, most), 999_999_999, of(most, most), 1_000_000_000, Ordering::Greater),
            (of(most, 1), 1, of(1, most), 1_000_000_000, Ordering::Greater),
            (Share::NONE, 1, Share::NONE, 7, Ordering::Equal),
        ] {
            assert_eq!(one.cmp_weighted(weight, &other, other_weight), expected, "{one:?} {other:?}");
            assert_eq!(other.cmp_weighted(other_weight, &one, weight), expected.reverse());
        }
        let (share, kind) = Share::dominant(&Vector::of(1, 2, 9), &Vector::of(4, 4, 0));
        assert_eq!((share, kind), (of(1, 2), 1));
        assert_eq!(share.ppm(), 500_000);
        assert_eq!(Share::dominant(&Vector::of(-1, 0, 0), &Vector::of(4, 4, 0)).0, Share::NONE);
    }
}
