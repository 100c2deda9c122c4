//! The calls and returns that are still to be ordered, as a doubly linked list over the events of a
//! history. Owns the links only.
//!
//! Invariant: pairs are put back in the reverse order of being taken out, as in Knuth's dancing links.

/// The end of the list, and its beginning: no event has this number.
pub const END: usize = 0;

/// Events are numbered from 1 in the order of time.
#[derive(Debug)]
pub struct Links {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Links {
    /// A list of these events, which ascend, out of `len` numbers.
    pub fn new(len: usize, events: impl Iterator<Item = usize>) -> Self {
        let mut links = Self {
            next: vec![END; len + 1],
            previous: vec![END; len + 1],
        };
        let mut last = END;
        for event in events {
            links.next[last] = event;
            links.previous[event] = last;
            last = event;
        }
        links.previous[END] = last;
        links
    }

    pub fn first(&self) -> usize {
        self.next[END]
    }

    pub fn next(&self, event: usize) -> usize {
        self.next[event]
    }

    pub fn is_empty(&self) -> bool {
        self.first() == END
    }

    /// Takes a call and its return out.
    pub fn take(&mut self, call: usize, returned: usize) {
        self.unlink(call);
        self.unlink(returned);
    }

    /// Puts back what was taken last.
    pub fn put_back(&mut self, call: usize, returned: usize) {
        self.link(returned);
        self.link(call);
    }

    fn unlink(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = event;
        self.previous[next] = event;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(links: &Links) -> Vec<usize> {
        std::iter::successors(Some(links.first()), |event| Some(links.next(*event)))
            .take_while(|event| *event != END)
            .collect()
    }

    #[test]
    fn what_is_taken_comes_back_in_its_place() {
        let mut links = Links::new(7, [1, 2, 3, 5, 6, 7].into_iter());
        links.take(2, 5);
        links.take(1, 3);
        assert_eq!(events(&links), [6, 7]);
        links.take(6, 7);
        assert!(links.is_empty());
        links.put_back(6, 7);
        links.put_back(1, 3);
        assert_eq!(events(&links), [1, 3, 6, 7]);
        links.put_back(2, 5);
        assert_eq!(events(&links), [1, 2, 3, 5, 6, 7]);
    }
}
