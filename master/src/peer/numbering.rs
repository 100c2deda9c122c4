//! The numbers under which this master passes requests on.
//!
//! Invariants: a number counts as answered when whoever waits for its answer is gone, and not before; without a
//! session that the leader's side knows there are none, and requests get keys. Must never wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_master_core::{Numbered, Numbers};

/// Shortest time between two tries to open the session: the leader may be of an older build.
const OPEN_EVERY: Duration = Duration::from_secs(1);

/// The numbers of this process.
pub struct Numbering {
    numbers: Mutex<Numbers>,
    asked: Mutex<Option<Instant>>,
}

impl Numbering {
    /// In a session that nobody knows yet.
    pub fn new(session: u64) -> Arc<Self> {
        Arc::new(Self { numbers: Mutex::new(Numbers::new(session)), asked: Mutex::default() })
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // A panic while holding the lock cannot leave them half changed.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a request, if there is one now.
    pub fn give(self: &Arc<Self>) -> Option<Given> {
        let numbered = self.numbers().give()?;
        Some(Given { numbered, numbering: self.clone() })
    }

    /// The session that the leader is to open; 0 if there is nothing to do now.
    pub fn to_open(&self) -> u64 {
        let numbers = self.numbers();
        if numbers.is_open() {
            return 0;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|at| at.elapsed() < OPEN_EVERY) {
            return 0;
        }
        *asked = Some(Instant::now());
        numbers.session()
    }

    /// The leader says which session it has opened.
    pub fn opened(&self, session: u64) {
        let mut numbers = self.numbers();
        if session == numbers.session() {
            numbers.opened();
        }
    }
}

/// A number that was given to a request. Held as long as the request may be sent again.
pub struct Given {
    numbered: Numbered,
    numbering: Arc<Numbering>,
}

impl Given {
    /// Which.
    pub const fn numbered(&self) -> Numbered {
        self.numbered
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.numbering.numbers().answered(self.numbered.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_answered_when_nobody_waits_any_more() {
        let numbering = Numbering::new(7);
        assert_eq!((numbering.to_open(), numbering.to_open()), (7, 0), "it is asked for once in a while");
        assert!(numbering.give().is_none());
        // Another process's, whose leader answers late.
        numbering.opened(8);
        assert!(numbering.give().is_none());
        numbering.opened(7);
        assert_eq!(numbering.to_open(), 0);
        let below = || numbering.give().map(|given| given.numbered().answered_below);
        let first = numbering.give();
        assert_eq!(below(), Some(0));
        drop(first);
        assert_eq!(below(), Some(2));
    }
}
