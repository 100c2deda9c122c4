//! Sets of small numbers. Owns the set that the search keeps up to date, and its short form for the
//! memory of what was tried: the full words at its beginning and the empty ones at its end are left out.

const WORD: usize = 64;

/// A set of numbers below a length that is given once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Box<[u64]>);

/// A set without its full beginning and its empty end. Two of one length are equal if their sets are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShortBits {
    /// Full words that are left out.
    full: usize,
    rest: Box<[u64]>,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(WORD)].into())
    }

    pub fn insert(&mut self, number: usize) {
        self.0[number / WORD] |= 1 << (number % WORD);
    }

    pub fn remove(&mut self, number: usize) {
        self.0[number / WORD] &= !(1 << (number % WORD));
    }

    pub fn contains(&self, number: usize) -> bool {
        self.0[number / WORD] >> (number % WORD) & 1 == 1
    }

    /// Whether `other` has all of this set; both are of one length.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(own, other)| own & !other == 0)
    }

    pub fn short(&self) -> ShortBits {
        let full = self.0.iter().take_while(|word| **word == u64::MAX).count();
        let empty = self.0[full..]
            .iter()
            .rev()
            .take_while(|word| **word == 0)
            .count();
        ShortBits {
            full,
            rest: self.0[full..self.0.len() - empty].into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: impl IntoIterator<Item = usize>) -> Bits {
        let mut bits = Bits::new(300);
        numbers.into_iter().for_each(|number| bits.insert(number));
        bits
    }

    #[test]
    fn numbers_come_and_go() {
        let mut bits = set([0, 63, 64, 299]);
        bits.remove(63);
        let kept: Vec<_> = (0..300).filter(|number| bits.contains(*number)).collect();
        assert_eq!(kept, [0, 64, 299]);
    }

    #[test]
    fn short_forms_are_equal_when_the_sets_are() {
        let sets = [
            set([]),
            set(0..64),
            set(0..65),
            set([64]),
            set(0..300),
            set([299]),
        ];
        for (i, a) in sets.iter().enumerate() {
            for (j, b) in sets.iter().enumerate() {
                assert_eq!(a.short() == b.short(), i == j, "{i} {j}");
            }
        }
        assert_eq!(
            set(0..130).short(),
            ShortBits {
                full: 2,
                rest: [3].into()
            }
        );
    }

    #[test]
    fn a_set_is_within_those_that_have_all_of_it() {
        assert!(set([1, 70]).is_within(&set([1, 2, 70])));
        assert!(!set([1, 71]).is_within(&set([1, 2, 70])));
        assert!(set([]).is_within(&set([])));
    }
}
