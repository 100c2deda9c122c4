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

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether something is in this set, in `within` if that is given, and not in `without`.
    pub(crate) fn any_but(&self, within: Option<&Self>, without: &Self) -> bool {
        self.0.iter().enumerate().any(|(at, word)| {
            let within = within.map_or(u64::MAX, |within| within.0.get(at).copied().unwrap_or(0));
            word & within & !without.0.get(at).copied().unwrap_or(0) != 0
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
        assert!(open.any_but(None, &of(&[1, 64])) && !open.any_but(None, &of(&[1, 64, 130, 200])));
        assert!(!open.any_but(Some(&of(&[64])), &of(&[64])) && open.any_but(Some(&of(&[130])), &of(&[64])));
        let mut gone = open.clone();
        [1, 64, 130, 500].into_iter().for_each(|at| gone.put(at, false));
        assert!(gone.is_empty() && !open.is_empty());
    }
}
