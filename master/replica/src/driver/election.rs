//! When this node stands for election.
//!
//! Owns: how long a leader may be silent here, what shortens that, and how often a node asks whether it would be
//! elected. Invariants: nobody stands who has heard of the leader within the election timeout, unless the leader's
//! process is known to be gone; asking changes no term, so that a leader that is heard of by most is never unseated.
//! Must never: draw a random number; two runs with the same inputs hold the same elections.

use raft::StateRole;

use super::Replica;
use crate::disk::Disk;

/// Ticks after which a node asks once more whether it would be elected, before its timeout has passed again: some round
/// trips. The others may have heard of the old leader a moment later than this node did, and gave no answer.
const ASK_AGAIN_TICKS: usize = 3;

impl<D: Disk> Replica<D> {
    /// Raft draws a new election timeout from the thread's random numbers whenever it changes its part. Others
    /// depend on the term, the members and the leader alone, so they are put back whatever raft did.
    pub(super) fn settle_timeout(&mut self) {
        self.heard_leader = self.leader().or(self.heard_leader);
        let heirs = self.membership().voters().filter(|node| Some(*node) != self.heard_leader);
        if let Some(ticks) = self.config.election_timeout(self.node.raft.term, heirs) {
            self.node.raft.set_randomized_election_timeout(ticks);
        }
    }

    /// The process of `peer` is known to have ended: its connections broke, and nobody listens where it did. If it
    /// led, it is not waited for as one that is only silent: within two ticks another one stands.
    pub fn report_gone(&mut self, peer: u64) {
        if self.stopped || self.leader() != Some(peer) {
            return;
        }
        tracing::info!(peer, "the process of the leader is gone, and it is not waited for");
        let raft = &mut self.node.raft;
        // One tick more, and this node votes for another one; with the next the first in line stands.
        raft.election_elapsed = raft.election_elapsed.max(self.config.election_ticks.saturating_sub(1));
    }

    /// See [`ASK_AGAIN_TICKS`].
    pub(super) fn ask_again(&mut self) {
        let raft = &self.node.raft;
        if raft.state == StateRole::PreCandidate && raft.election_elapsed == ASK_AGAIN_TICKS {
            // Raft refuses nothing here; it stays as it is while this node must not stand.
            if let Err(error) = self.node.campaign() {
                tracing::debug!(%error, "this node does not stand for election");
            }
        }
    }
}
