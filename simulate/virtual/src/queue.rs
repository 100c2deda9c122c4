//! Virtual time: what happens next.
//!
//! Invariants: time never goes back; things of the same moment happen in the order in which they were
//! scheduled, so that messages between two never overtake each other. Must never decide anything.

use std::collections::BTreeMap;

/// What is going to happen, by time.
#[derive(Debug)]
pub struct Queue<E> {
    events: BTreeMap<(u64, u64), E>,
    next: u64,
    now_us: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), next: 0, now_us: 0 }
    }
}

impl<E> Queue<E> {
    /// Schedule something; what should have happened already happens now.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.next += 1;
        self.events.insert((at_us.max(self.now_us), self.next), event);
    }

    /// The next thing and its time.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        let ((at_us, _), event) = self.events.pop_first()?;
        self.now_us = at_us;
        Some((at_us, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back_and_moments_keep_their_order() {
        let mut queue = Queue::default();
        for (at_us, event) in [(5, 'b'), (5, 'c'), (2, 'a')] {
            queue.at(at_us, event);
        }
        assert_eq!(queue.pop(), Some((2, 'a')));
        assert_eq!(queue.pop(), Some((5, 'b')));
        queue.at(1, 'd');
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some((5, 'c')), Some((5, 'd')), None]);
    }
}
