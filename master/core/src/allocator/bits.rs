//! Sets of small numbers: places in the allocator's tables.
//!
//! Invariant: a place that was never put is not in the set, however large.

/// A set of numbers of places in a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    pub(crate) fn put(&mut self, at: usize, is: bool) {
        if at / 64 >= self.0.len() {
            if !is {
                return;
            }
            self.0.resize(at / 64 + 1, 0);
        }
        let bit = 1 << (at % 64);
        if is {
            self.0[at / 64] |= bit;
        } else {
            self.0[at / 64] &= !bit;
        }
    }

    /// Put all that are in another one.
    pub(crate) fn put_all(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether something is in this set, in `within` if that is given, and not in `without` if that is.
    pub(crate) fn any_but(&self, within: Option<&Self>, without: Option<&Self>) -> bool {
        self.0.iter().enumerate().any(|(at, word)| {
            let of = |set: &Self| set.0.get(at).copied().unwrap_or(0);
            word & within.map_or(u64::MAX, of) & !without.map_or(0, of) != 0
        })
    }

    /// All numbers in it and not in `without`, if that is given, the smallest first.
    pub(crate) fn iter_but(&self, without: Option<&Self>) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(move |(at, word)| {
            let word = word & !without.and_then(|set| set.0.get(at).copied()).unwrap_or(0);
            let next = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
            let words = std::iter::successors(Some(word).filter(|word| *word != 0), next);
            words.map(move |word| at * 64 + word.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_one_set_and_not_in_another() {
        let of = |numbers: &[usize]| {
            let mut bits = Bits::default();
            numbers.iter().for_each(|at| bits.put(*at, true));
            bits
        };
        let open = of(&[1, 64, 130]);
        assert!(open.has(64) && !open.has(65) && !open.has(1_000));
        assert!(open.any_but(None, Some(&of(&[1, 64]))) && !open.any_but(None, Some(&of(&[1, 64, 130, 200]))));
        assert!(!open.any_but(Some(&of(&[64])), Some(&of(&[64]))) && open.any_but(Some(&of(&[130])), Some(&of(&[64]))));
        let mut both = of(&[1]);
        both.put_all(&of(&[64, 130]));
        assert_eq!(both.iter_but(Some(&open)).count() + open.iter_but(Some(&both)).count(), 0);
        assert!(open.any_but(None, None) && !of(&[]).any_but(None, None));
        assert_eq!(of(&[0, 63, 64, 130]).iter_but(None).collect::<Vec<_>>(), [0, 63, 64, 130]);
        assert_eq!(of(&[0, 63, 64, 130]).iter_but(Some(&of(&[63, 130, 900]))).collect::<Vec<_>>(), [0, 64]);
        let mut gone = open.clone();
        [1, 64, 130, 500].into_iter().for_each(|at| gone.put(at, false));
        assert!(gone.is_empty() && !open.is_empty());
    }
}
