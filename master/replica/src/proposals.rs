//! Proposals of this replica whose fate is open, and reads that wait for a quorum.
//!
//! Owns: both queues. Invariants: a proposal leaves as committed or lost only by what was
//! applied, never by a guess; at most one quorum round for reads is in flight, and a read joins
//! only a round that starts after it.
//! Must never: touch raft; the driver starts rounds and reports what raft answers.

use std::collections::VecDeque;

use crate::machine::EntryId;

/// Proposals in log order. Bounded by what may be uncommitted, plus what an election leaves.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    open: VecDeque<EntryId>,
}

impl Proposals {
    pub(crate) fn add(&mut self, id: EntryId) {
        self.open.push_back(id);
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// `id`, if it is a proposal of this replica whose fate is open.
    pub(crate) fn find(&self, id: EntryId) -> Option<EntryId> {
        self.open.binary_search(&id).is_ok().then_some(id)
    }

    /// `applied` is committed: removes it, and adds to `lost` what can no longer commit. Terms
    /// never fall along a log, so a proposal of an older term cannot stand at or after it.
    pub(crate) fn on_applied(&mut self, applied: EntryId, lost: &mut Vec<EntryId>) {
        while let Some(front) = self.open.front().copied() {
            if front == applied {
                self.open.pop_front();
            } else if front.index <= applied.index || front.term < applied.term {
                self.open.pop_front();
                lost.push(front);
            } else {
                break;
            }
        }
    }

    /// Nobody will tell this replica what becomes of its proposals.
    pub(crate) fn give_up(&mut self, unknown: &mut Vec<EntryId>) {
        unknown.extend(self.open.drain(..));
    }

    /// A snapshot up to `id` was installed: what stands at or before it may have been applied.
    pub(crate) fn on_restored(
        &mut self,
        id: EntryId,
        unknown: &mut Vec<EntryId>,
        lost: &mut Vec<EntryId>,
    ) {
        while let Some(front) = self.open.pop_front_if(|front| front.index <= id.index) {
            unknown.push(front);
        }
        self.on_applied(id, lost);
    }
}

/// Reads in three stages: waiting for a round, in a round, waiting for apply.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Vec<u64>,
    in_round: Vec<u64>,
    round: u64,
    /// (index that must be applied, contexts), indices rising.
    confirmed: VecDeque<(u64, Vec<u64>)>,
    count: usize,
}

impl Reads {
    pub(crate) fn add(&mut self, context: u64) {
        self.waiting.push(context);
        self.count += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Moves the waiting reads into a new round if none is in flight, and returns its number.
    pub(crate) fn start_round(&mut self) -> Option<u64> {
        if self.waiting.is_empty() || !self.in_round.is_empty() {
            return None;
        }
        std::mem::swap(&mut self.waiting, &mut self.in_round);
        self.round += 1;
        Some(self.round)
    }

    /// A quorum confirmed the round: its reads may be served once `index` is applied.
    pub(crate) fn on_confirmed(&mut self, round: u64, index: u64) {
        if round == self.round && !self.in_round.is_empty() {
            self.confirmed
                .push_back((index, std::mem::take(&mut self.in_round)));
        }
    }

    /// Adds to `ready` the reads that may be served now.
    pub(crate) fn on_applied(&mut self, index: u64, ready: &mut Vec<u64>) {
        while let Some((_, contexts)) = self.confirmed.pop_front_if(|(needed, _)| *needed <= index)
        {
            self.count -= contexts.len();
            ready.extend(contexts);
        }
    }

    /// Leadership was lost: confirmed reads stay valid, the others are dropped.
    pub(crate) fn on_stepped_down(&mut self, dropped: &mut Vec<u64>) {
        self.count -= self.waiting.len() + self.in_round.len();
        dropped.append(&mut self.in_round);
        dropped.append(&mut self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    #[test]
    fn a_newer_term_settles_all_older_proposals() {
        let mut proposals = Proposals::default();
        [id(2, 5), id(2, 6), id(2, 7)]
            .into_iter()
            .for_each(|id| proposals.add(id));
        let mut lost = Vec::new();
        proposals.on_applied(id(2, 5), &mut lost);
        assert!(lost.is_empty());
        proposals.on_applied(id(3, 6), &mut lost);
        assert_eq!(lost, [id(2, 6), id(2, 7)]);
        assert_eq!(proposals.len(), 0);
    }

    #[test]
    fn proposals_under_a_snapshot_are_unknown_and_those_after_it_are_judged_by_term() {
        let mut proposals = Proposals::default();
        [id(2, 5), id(2, 8), id(4, 9)]
            .into_iter()
            .for_each(|id| proposals.add(id));
        let (mut unknown, mut lost) = (Vec::new(), Vec::new());
        proposals.on_restored(id(3, 6), &mut unknown, &mut lost);
        assert_eq!((unknown, lost), (vec![id(2, 5)], vec![id(2, 8)]));
        assert_eq!(proposals.len(), 1);
    }

    #[test]
    fn a_read_never_joins_a_round_in_flight() {
        let mut reads = Reads::default();
        reads.add(1);
        assert_eq!(reads.start_round(), Some(1));
        reads.add(2);
        assert_eq!(reads.start_round(), None);
        reads.on_confirmed(1, 10);
        let mut ready = Vec::new();
        reads.on_applied(9, &mut ready);
        assert!(ready.is_empty());
        reads.on_applied(10, &mut ready);
        assert_eq!(ready, [1]);
        assert_eq!(reads.start_round(), Some(2));
        let mut dropped = Vec::new();
        reads.on_stepped_down(&mut dropped);
        assert_eq!((dropped, reads.len()), (vec![2], 0));
    }
}
