//! The numbers that a master's process gives to requests that it passes on.
//!
//! Invariants: a number is given once; what is told as answered has all numbers below it answered or given up; numbers
//! are given only while the leader's side keeps the session, and at most [`SESSION_NUMBERS_MAX`] from the oldest open
//! one on. Must never know what is asked.

use crate::limits::SESSION_NUMBERS_MAX;
use crate::numbered::Numbered;
use std::collections::VecDeque;

/// Those of one process.
#[derive(Debug)]
pub struct Numbers {
    session: u64,
    opened: bool,
    /// The oldest number that is open.
    below: u64,
    /// From it on: whether it is answered.
    answered: VecDeque<bool>,
}

impl Numbers {
    /// Of a process that drew this; other processes, and other lives of this one, drew others.
    #[must_use]
    pub const fn new(session: u64) -> Self {
        Self { session, opened: false, below: 0, answered: VecDeque::new() }
    }

    /// What was drawn.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// Whether the cluster knows the session.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.opened
    }

    /// The cluster knows the session from now on.
    pub const fn opened(&mut self) {
        self.opened = true;
    }

    /// The next number; none while there is no session, or one request is open for so long that the others would have
    /// to be remembered beyond the bound.
    pub fn give(&mut self) -> Option<Numbered> {
        if !self.opened || self.answered.len() >= SESSION_NUMBERS_MAX {
            return None;
        }
        // A deque's length fits.
        let number = self.below + u64::try_from(self.answered.len()).ok()?;
        self.answered.push_back(false);
        Some(Numbered { session: self.session, number, answered_below: self.below })
    }

    /// A number does not come again: it is answered, or nobody waits for that any more.
    pub fn answered(&mut self, number: u64) {
        let at = number.checked_sub(self.below).and_then(|at| usize::try_from(at).ok());
        if let Some(answered) = at.and_then(|at| self.answered.get_mut(at)) {
            *answered = true;
        }
        while self.answered.front() == Some(&true) {
            self.answered.pop_front();
            self.below += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_as_answered_has_no_open_number_below_it() {
        let mut numbers = Numbers::new(7);
        assert_eq!(numbers.give(), None, "nobody knows the session yet");
        numbers.opened();
        let given = |numbers: &mut Numbers| numbers.give().map(|n| (n.number, n.answered_below));
        assert_eq!([given(&mut numbers), given(&mut numbers)], [Some((0, 0)), Some((1, 0))]);
        numbers.answered(1);
        assert_eq!(given(&mut numbers), Some((2, 0)), "0 is open");
        numbers.answered(0);
        // Twice, and one that was never given: nothing comes of it.
        numbers.answered(0);
        numbers.answered(99);
        assert_eq!(given(&mut numbers), Some((3, 2)));
    }

    #[test]
    fn one_that_is_open_for_long_holds_up_the_others_at_the_bound() {
        let mut numbers = Numbers::new(7);
        numbers.opened();
        let first = numbers.give().unwrap();
        for _ in 1..SESSION_NUMBERS_MAX {
            let next = numbers.give().unwrap();
            numbers.answered(next.number);
        }
        assert_eq!(numbers.give(), None);
        numbers.answered(first.number);
        assert!(numbers.give().is_some());
    }
}
