//! Which process speaks for another node: two that were started on copies of one data directory would both
//! vote as that node.
//!
//! Invariants: of two lives of a node one is heard, the one that was there first, until its streams have ended
//! or it was silent for [`SILENT`]; one that does not say its life is an older build and is heard. Must never
//! keep more than [`NODES_MAX`] nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A process that is gone with its machine leaves a stream that nobody ends: longer than any pause between two
/// heartbeats, shorter than anybody wants to wait for a machine that is back.
const SILENT: Duration = Duration::from_secs(2);

/// Nodes that are remembered; those without a stream go first.
const NODES_MAX: usize = 64;

/// Another process speaks as this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "from: another process speaks as node {0}, so two were started on copies of one data directory; stop one of \
     them, and start it with an empty data directory and --join"
)]
pub struct SpokenFor(u64);

struct Life {
    life: u64,
    streams: usize,
    heard: Instant,
}

/// Who is heard.
#[derive(Default)]
pub struct Lives(Mutex<BTreeMap<u64, Life>>);

impl Lives {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Life>> {
        // A panic while holding the lock cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a life of a node would be heard now. Zero is one that says none.
    ///
    /// # Errors
    /// When another life of it is heard.
    pub fn check(&self, node: u64, life: u64, now: Instant) -> Result<(), SpokenFor> {
        match self.all().get(&node) {
            Some(known) if life != 0 && known.life != life && known.is_heard(now) => Err(SpokenFor(node)),
            _ => Ok(()),
        }
    }

    /// A stream of a life of a node begins.
    ///
    /// # Errors
    /// When another life of it is heard.
    pub fn begin(self: &Arc<Self>, node: u64, life: u64, now: Instant) -> Result<Speaks, SpokenFor> {
        self.check(node, life, now)?;
        let mut all = self.all();
        if life != 0 {
            if all.len() >= NODES_MAX {
                all.retain(|_, known| known.streams > 0);
            }
            let known = all.entry(node).or_insert(Life { life, streams: 0, heard: now });
            if known.life != life {
                *known = Life { life, streams: 0, heard: now };
            }
            known.streams += 1;
            known.heard = now;
        }
        Ok(Speaks { lives: Arc::clone(self), node, life })
    }
}

impl Life {
    fn is_heard(&self, now: Instant) -> bool {
        self.streams > 0 && now.saturating_duration_since(self.heard) < SILENT
    }
}

/// A stream of a life; its end is the end of this.
pub struct Speaks {
    lives: Arc<Lives>,
    node: u64,
    life: u64,
}

impl Speaks {
    /// Something came by it.
    ///
    /// # Errors
    /// When another life has taken its place meanwhile.
    pub fn heard(&self, now: Instant) -> Result<(), SpokenFor> {
        match self.lives.all().get_mut(&self.node) {
            Some(known) if known.life == self.life => known.heard = now,
            Some(_) if self.life != 0 => return Err(SpokenFor(self.node)),
            // One that says none, or one that had no stream when room was made.
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Speaks {
    fn drop(&mut self) {
        if let Some(known) = self.lives.all().get_mut(&self.node)
            && known.life == self.life
        {
            known.streams = known.streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_lives_is_heard_until_it_ends_or_is_silent() {
        let lives = Arc::new(Lives::default());
        let start = Instant::now();
        let first = lives.begin(3, 70, start).unwrap();
        let again = lives.begin(3, 70, start).unwrap();
        assert_eq!(lives.begin(3, 71, start).err(), Some(SpokenFor(3)));
        assert_eq!(lives.check(3, 71, start), Err(SpokenFor(3)));
        assert_eq!(lives.check(4, 71, start), Ok(()), "another node");
        drop(again);
        assert_eq!(lives.check(3, 71, start), Err(SpokenFor(3)), "a stream of it is left");
        drop(first);
        let second = lives.begin(3, 71, start).unwrap();
        assert_eq!(lives.check(3, 70, start + SILENT / 2), Err(SpokenFor(3)));
        second.heard(start + SILENT).unwrap();
        assert_eq!(lives.check(3, 70, start + SILENT), Err(SpokenFor(3)));
        let third = lives.begin(3, 70, start + SILENT * 2).unwrap();
        assert_eq!(second.heard(start + SILENT * 2), Err(SpokenFor(3)), "its place is taken");
        drop(second);
        assert_eq!(lives.check(3, 71, start + SILENT * 2), Err(SpokenFor(3)), "an end of one is none of the other");
        third.heard(start + SILENT * 2).unwrap();
    }

    #[test]
    fn an_older_build_says_no_life_and_is_heard() {
        let lives = Arc::new(Lives::default());
        let now = Instant::now();
        let said = lives.begin(3, 70, now).unwrap();
        let silent = lives.begin(3, 0, now).unwrap();
        silent.heard(now).unwrap();
        drop(silent);
        assert_eq!(lives.check(3, 71, now), Err(SpokenFor(3)));
        said.heard(now).unwrap();
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let lives = Arc::new(Lives::default());
        let now = Instant::now();
        for node in 1..=NODES_MAX as u64 * 3 {
            drop(lives.begin(node, 1, now).unwrap());
        }
        assert!(lives.all().len() <= NODES_MAX);
    }
}
