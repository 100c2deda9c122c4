//! What is remembered of agents at which somebody was passed over because guarantees of others left too little room.
//!
//! Invariant: an agent at a place of the queue where there was less room than an entry says is at the place of another
//! entry, or after it, that says no more. Must never know who was passed over.

use super::vector::Vector;
use std::collections::BTreeSet;

/// Entries; two are made one, which says less, when there are more.
const ENTRIES_MAX: usize = 8;

/// From which places of the queue on somebody was passed over, when there was no less room than this.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed(Vec<(u64, Vector)>);

impl Passed {
    /// From which place on it is to be looked again, if there is more room than before.
    pub(super) fn since(&self, room: &Vector, kinds: &BTreeSet<usize>) -> Option<u64> {
        let more = |least: &Vector| kinds.iter().any(|kind| room.get(*kind) > least.get(*kind));
        self.0.iter().filter(|(_, least)| more(least)).map(|(at, _)| *at).min()
    }

    /// Somebody was passed over from this place on.
    pub(super) fn note(&mut self, at: u64, room: Vector) {
        if self.0.iter().any(|(before, least)| *before <= at && room.contains(least)) {
            return;
        }
        self.0.retain(|(later, least)| *later < at || !least.contains(&room));
        self.0.push((at, room));
        if self.0.len() > ENTRIES_MAX {
            let (at, room) = self.0.remove(0);
            self.0[0].0 = self.0[0].0.min(at);
            self.0[0].1.at_most(&room);
        }
    }

    /// All agents from this place on were looked at.
    pub(super) fn forget(&mut self, since: u64) {
        self.0.retain(|(at, _)| *at < since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_again_from_the_first_place_where_there_was_less_room() {
        let kinds = BTreeSet::from([0]);
        let room = |cpus| Vector::of(cpus, 0, 0);
        let mut passed = Passed::default();
        assert_eq!(passed.since(&room(9), &kinds), None);
        passed.note(10, room(4));
        passed.note(20, room(2));
        passed.note(30, room(3));
        for (now, since) in [(1, None), (2, None), (3, Some(20)), (4, Some(20)), (5, Some(10))] {
            assert_eq!(passed.since(&room(now), &kinds), since, "{now}");
        }
        passed.forget(20);
        assert_eq!(passed.since(&room(4), &kinds), None);
        // What is not remembered one by one is remembered as if there had been less.
        (0..20).for_each(|at| passed.note(100 + at, room(3 - i64::try_from(at).unwrap())));
        assert!(passed.0.len() <= ENTRIES_MAX);
        assert_eq!(passed.since(&room(4), &kinds), Some(10));
        assert_eq!(passed.since(&room(-15), &kinds), Some(119));
    }
}
