//! What decides about component files among several masters, and about learners: without clock, network and
//! disk, so that the simulator runs it as well.
//!
//! Invariants: a command names a component only when every majority of the voters has one that keeps its file;
//! a learner votes only when it has the log and every file. Must never do anything.

use std::collections::BTreeSet;
use std::time::Duration;
use tessera_replica::PeerStatus;

/// Shortest and longest time between two looks for files that nobody names.
const COLLECT_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));

/// How often to look for files that nobody names and that go after `grace`: a quarter of it, within bounds.
#[must_use]
pub fn collect_every(grace: Duration) -> Duration {
    let (least, most) = COLLECT_EVERY;
    (grace / 4).clamp(least, most)
}

/// Who keeps a file that a command is about to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    voters: BTreeSet<u64>,
    have: BTreeSet<u64>,
}

impl Spread {
    /// Of a file that this node keeps, among these voters.
    pub fn new(me: u64, voters: impl IntoIterator<Item = u64>) -> Self {
        Self { voters: voters.into_iter().collect(), have: BTreeSet::from([me]) }
    }

    /// A node says that it keeps it.
    pub fn keeps(&mut self, node: u64) {
        self.have.insert(node);
    }

    /// How many voters keep it.
    #[must_use]
    pub fn have(&self) -> usize {
        self.have.intersection(&self.voters).count()
    }

    /// How many vote.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.voters.len()
    }

    /// How many of them must keep it.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether a command may name it.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.have() >= self.needed()
    }
}

/// In which order others are asked for a file that is missing here: the leader first.
#[must_use]
pub fn sources(me: u64, leader: Option<u64>, members: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let leader = leader.filter(|leader| *leader != me);
    let others = members.into_iter().filter(|node| *node != me && Some(*node) != leader);
    leader.into_iter().chain(others).collect()
}

/// Whether files that the state does not name may go: only if this master has applied all that the leader had
/// when the look began, as a newer entry may name them. A master that does not know is none.
#[must_use]
pub fn may_collect(leader_applied: Option<u64>, applied: u64) -> bool {
    leader_applied.is_some_and(|leader_applied| applied >= leader_applied)
}

/// What a learner says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The last entry that it applied.
    pub applied_index: u64,
    /// Files that its state names and it has not got.
    pub components_missing: u64,
}

/// What a learner lacks for becoming a voter, by what it said lately and what the log knows of it.
/// `components_index` is the leader's last entry that changed which components there are: what a learner says
/// of its files is about the state that it has, and one that is behind knows nothing of newer ones.
#[must_use]
pub fn lacks(said: Option<Said>, peer: Option<&PeerStatus>, components_index: u64) -> Option<&'static str> {
    let Some(said) = said else {
        return Some("it does not say how it is");
    };
    let Some(peer) = peer else {
        return Some("the log has not reached it yet");
    };
    if !peer.recently_active {
        return Some("it is silent");
    }
    if peer.needs_snapshot || peer.matched == 0 {
        return Some("it receives a snapshot");
    }
    if said.components_missing > 0 {
        return Some("it receives component files");
    }
    if said.applied_index == 0 || said.applied_index < components_index {
        return Some("it does not know of all components yet");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_those_who_vote_has_to_keep_a_file() {
        for (voters, also, enough) in [
            (vec![1], vec![], true),
            (vec![1, 2], vec![], false),
            (vec![1, 2, 3], vec![4], false),
            (vec![1, 2, 3], vec![3, 3], true),
            (vec![2, 3], vec![2], false),
            (vec![1, 2, 3, 4], vec![2], false),
            (vec![1, 2, 3, 4, 5], vec![2, 5], true),
        ] {
            let mut spread = Spread::new(1, voters.clone());
            also.iter().for_each(|node| spread.keeps(*node));
            assert_eq!(spread.is_enough(), enough, "{voters:?} {also:?}");
        }
    }

    #[test]
    fn a_learner_lacks_files_that_were_named_since_it_answered() {
        let role = tessera_replica::MemberRole::Learner;
        let peer = PeerStatus { node: 2, role, matched: 9, recently_active: true, needs_snapshot: false };
        let said = |applied_index, components_missing| Some(Said { applied_index, components_missing });
        for (said, components_index, votes) in [
            (said(9, 0), 9, true),
            (said(9, 0), 0, true),
            (said(8, 0), 9, false),
            (said(9, 1), 9, false),
            (said(0, 0), 0, false),
            (None, 0, false),
        ] {
            assert_eq!(lacks(said, Some(&peer), components_index).is_none(), votes, "{said:?} {components_index}");
        }
    }

    #[test]
    fn the_leader_is_asked_first() {
        assert_eq!(sources(2, Some(3), [1, 2, 3]), [3, 1]);
        assert_eq!(sources(3, Some(3), [1, 2, 3]), [1, 2]);
        assert_eq!(sources(1, None, [1]), [0; 0]);
    }

    #[test]
    fn who_is_behind_removes_nothing() {
        for (leader, own, may) in [(Some(7), 7, true), (Some(7), 8, true), (Some(8), 7, false), (None, 9, false)] {
            assert_eq!(may_collect(leader, own), may);
        }
    }
}
