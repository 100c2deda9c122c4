//! Which states are still needed, and which can still be made. Owns the counts of both over the operations
//! that are not yet in order.
//!
//! Invariant: a state is lost only if an operation is left that fits in no other, and none is left that
//! makes it. Operations that say nothing of themselves make nothing lost.

use std::collections::HashMap;
use std::hash::Hash;

use crate::model::{Hint, Makes};

/// What one operation needs and makes, as numbers of states.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    needs: Option<usize>,
    makes: Option<usize>,
}

/// Operations that still need a state, and that can still make it.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    needing: usize,
    making: usize,
}

/// Counts for the operations of one search, which are named by their positions.
#[derive(Debug)]
pub struct Needs<S> {
    numbers: HashMap<S, usize>,
    links: Vec<Link>,
    left: Vec<Left>,
}

impl<S: Eq + Hash> Needs<S> {
    /// Of operations that say this of themselves, all of them left.
    pub fn new(hints: impl IntoIterator<Item = Hint<S>>) -> Self {
        let mut needs = Self::none();
        for Hint {
            fits_only_in,
            makes,
        } in hints
        {
            let makes = match makes {
                Makes::Nothing => None,
                Makes::Only(state) => Some(needs.number(state)),
                Makes::Anything => return Self::none(),
            };
            let link = Link {
                needs: fits_only_in.map(|state| needs.number(state)),
                makes,
            };
            needs.links.push(link);
            needs.count(link, 1);
        }
        needs
    }

    /// Counts by which nothing is ever lost.
    pub fn none() -> Self {
        Self {
            numbers: HashMap::new(),
            links: Vec::new(),
            left: Vec::new(),
        }
    }

    fn number(&mut self, state: S) -> usize {
        let number = *self.numbers.entry(state).or_insert(self.left.len());
        if number == self.left.len() {
            self.left.push(Left::default());
        }
        number
    }

    fn count(&mut self, link: Link, by: isize) {
        if let Some(number) = link.needs {
            self.left[number].needing = self.left[number].needing.saturating_add_signed(by);
        }
        if let Some(number) = link.makes {
            self.left[number].making = self.left[number].making.saturating_add_signed(by);
        }
    }

    /// An operation is put in order, or taken back.
    pub fn mark(&mut self, operation: usize, ordered: bool) {
        if let Some(link) = self.links.get(operation).copied() {
            self.count(link, if ordered { -1 } else { 1 });
        }
    }

    /// Whether nothing good can follow once this state is left.
    pub fn is_lost(&self, state: &S) -> bool {
        let left = self.numbers.get(state).map(|number| self.left[*number]);
        left.is_some_and(|left| left.needing > 0 && left.making == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(fits_only_in: Option<u8>, makes: Makes<u8>) -> Hint<u8> {
        Hint {
            fits_only_in,
            makes,
        }
    }

    #[test]
    fn a_state_is_lost_while_it_is_needed_and_cannot_be_made() {
        let write = hint(None, Makes::Only(1));
        let mut needs = Needs::new([write.clone(), write, hint(Some(1), Makes::Nothing)]);
        assert!(!needs.is_lost(&1));
        needs.mark(0, true);
        assert!(!needs.is_lost(&1), "the other write is left");
        needs.mark(1, true);
        assert!(needs.is_lost(&1));
        assert!(!needs.is_lost(&2), "nobody asks for it");
        needs.mark(2, true);
        assert!(!needs.is_lost(&1), "nobody needs it any more");
        needs.mark(2, false);
        needs.mark(0, false);
        assert!(!needs.is_lost(&1));
    }

    #[test]
    fn one_operation_that_can_make_anything_is_enough_to_lose_nothing() {
        let read = hint(Some(1), Makes::Nothing);
        assert!(Needs::new([read.clone()]).is_lost(&1));
        assert!(!Needs::new([read, hint(None, Makes::Anything)]).is_lost(&1));
    }
}
