//! Which peers a leader has heard from lately.
//!
//! Owns: the tick at which each peer was last heard. Invariants: raft's own flag is cleared with
//! every check of the quorum, so it says nothing for a moment; this one does not blink.
//! Must never: decide who leads.

use std::collections::BTreeMap;

/// Counts ticks and remembers when peers spoke.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    now: u64,
    heard: BTreeMap<u64, u64>,
}

impl Activity {
    pub(crate) fn tick(&mut self) {
        self.now += 1;
    }

    pub(crate) fn hear(&mut self, peer: u64) {
        self.heard.insert(peer, self.now);
    }

    /// Whether `peer` spoke within the last `ticks`.
    pub(crate) fn is_active(&self, peer: u64, ticks: usize) -> bool {
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        let heard = self.heard.get(&peer);
        heard.is_some_and(|heard| self.now - heard <= ticks)
    }

    /// Forgets peers that are not members any more.
    pub(crate) fn retain(&mut self, is_member: impl Fn(u64) -> bool) {
        self.heard.retain(|peer, _| is_member(*peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_active_until_it_was_silent_for_the_given_ticks() {
        let mut activity = Activity::default();
        activity.hear(2);
        for _ in 0..3 {
            assert!(activity.is_active(2, 3));
            activity.tick();
        }
        assert!(activity.is_active(2, 3) && !activity.is_active(2, 2));
        activity.tick();
        assert!(!activity.is_active(2, 3) && !activity.is_active(3, 100));
        activity.hear(2);
        activity.retain(|peer| peer != 2);
        assert!(!activity.is_active(2, 3));
    }
}
