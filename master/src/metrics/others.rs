//! Turns of the frameworks that have no values of their own, as a counter that only grows.
//!
//! Invariants: what a framework did while it was among the others stays theirs when it is shown, or removed; what it did
//! while it was shown never becomes theirs. Must never keep anything of a framework that is gone.

use std::collections::BTreeMap;
use tessera_master_core::TurnTally;
use tessera_types::FrameworkId;

/// One framework's turns.
pub type Counted = (FrameworkId, TurnTally);

/// The others.
#[derive(Debug, Default)]
pub struct Others {
    sum: TurnTally,
    /// Of each framework, as the last page found it.
    before: BTreeMap<FrameworkId, TurnTally>,
}

impl Others {
    /// What the others did, with what these did since the last page.
    pub fn follow(&mut self, shown: &[Counted], others: &[Counted]) -> TurnTally {
        for (id, now) in others {
            let before = self.before.get(id).copied().unwrap_or_default();
            self.sum = self.sum.plus(now.since(before));
        }
        self.before = shown.iter().chain(others).copied().collect();
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_never_falls_whoever_comes_and_goes() {
        let of = |id: u64, operations: u64| (FrameworkId(id), TurnTally { operations, ..TurnTally::default() });
        let mut others = Others::default();
        for (shown, rest, sum) in [
            (vec![of(1, 100)], vec![of(2, 10), of(3, 1)], 11),
            // The second one becomes one of the largest, and the first one of the others.
            (vec![of(2, 300)], vec![of(1, 101), of(3, 1)], 12),
            (vec![of(2, 400)], vec![of(1, 110), of(3, 2)], 22),
            // One is removed; another one comes.
            (vec![of(2, 400)], vec![of(3, 2), of(4, 5)], 27),
            (vec![of(2, 400)], vec![], 27),
        ] {
            assert_eq!(others.follow(&shown, &rest).operations, sum, "{rest:?}");
        }
        assert_eq!(others.before.len(), 1);
    }
}
