//! The search for an order of the operations of one key: the algorithm of Wing and Gong with Lowe's
//! memory of configurations that were reached before.
//!
//! A configuration is what was put in order so far, with the state after it. The next operation is one
//! that was called before the first return among those not yet in order. Operations of unknown outcome
//! stay open: they may be put in order any time after their call, and need not be at all. They are tried
//! last, and only where they can matter:
//! - not where they leave the state as it is;
//! - not before an operation that would have made the same state without them;
//! - of those that asked the same, the earliest first;
//! - not where the same was reached with fewer of them, which can do all that more of them can.
//!
//! Invariant: nothing that is left out could turn a failure into a success; a comparison with all orders
//! of small histories holds that. Must never take a bound for a verdict.

use std::collections::HashMap;

use crate::bits::{Bits, ShortBits};
use crate::history::Operation;
use crate::links::{END, Links};
use crate::model::{Hint, Makes, Model};
use crate::needs::Needs;

/// Operations at the end of an order, and states, that a report shows; a reader takes in no more.
const SHOWN: usize = 6;

/// What came of a search.
#[derive(Debug)]
pub enum Found<S> {
    /// An order, as positions in the list of operations.
    Order(Vec<usize>),
    /// There is none.
    Nothing(Stuck<S>),
    /// The bound was reached first.
    OutOfSteps,
}

/// How far the search came.
#[derive(Debug)]
pub struct Stuck<S> {
    /// The return that no order could pass, counted from 1: those before it could be passed.
    pub rank: usize,
    /// States in which its operation would have had to find its place.
    pub states: Vec<S>,
    /// The end of the longest order that came so far.
    pub tail: Vec<usize>,
}

/// An operation that was answered.
struct Closed {
    operation: usize,
    call: usize,
    returned: usize,
    is_read: bool,
}

/// An operation that may not have happened.
struct Open {
    operation: usize,
    call: usize,
    /// The last one before it that asked the same.
    twin: Option<usize>,
}

#[derive(Clone, Copy)]
enum Event {
    Call(usize),
    Return,
    /// Of an operation that has no return; it is not in the list of links.
    OpenCall,
}

/// What can be put in order next.
#[derive(Clone, Copy)]
enum Choice {
    Closed(usize),
    Open(usize),
}

/// Where to look for the next choice in a configuration.
#[derive(Clone, Copy)]
enum Cursor {
    /// Nothing was looked at yet.
    Start,
    /// At this event.
    Event(usize),
    /// Among the open operations.
    Open(usize),
    /// Nowhere: nothing else needs to be tried.
    End,
}

/// A choice that was made.
struct Frame<S> {
    choice: Choice,
    before: S,
}

/// A search over the beginning of a list of operations on one key.
pub struct Search<'h, M: Model> {
    model: &'h M,
    operations: &'h [&'h Operation<M::Input, M::Output>],
    closed: Vec<Closed>,
    open: Vec<Open>,
    /// Numbered from 1; the first is not an event.
    events: Vec<Event>,
    links: Links,
    done: Bits,
    used: Bits,
    needs: Needs<M::State>,
    state: M::State,
    path: Vec<Frame<M::State>>,
    /// For what was reached: with which open operations, none of them within another.
    seen: HashMap<(ShortBits, M::State), Vec<Bits>>,
    steps: u64,
    /// The return event that was not passed.
    furthest: usize,
    stuck_states: Vec<M::State>,
    stuck_tail: Vec<usize>,
    stuck_length: usize,
}

impl<'h, M: Model> Search<'h, M> {
    /// Only the first `returns` answers are known; what was called before the last of them and answered
    /// later is of unknown outcome, and what was called later is not there.
    pub fn new(
        model: &'h M,
        operations: &'h [&'h Operation<M::Input, M::Output>],
        returns: usize,
    ) -> Self {
        let mut answered = vec![false; operations.len()];
        for (_, position) in answers(operations).into_iter().take(returns) {
            answered[position] = true;
        }
        // At one instant, calls come before returns: what touches counts as simultaneous.
        let mut instants = Vec::new();
        for (position, operation) in operations.iter().enumerate() {
            instants.push((operation.call, false, position));
            if let (true, Some(at)) = (answered[position], operation.outcome.returned_at()) {
                instants.push((at, true, position));
            }
        }
        instants.sort_unstable();
        let mut closed: Vec<Closed> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut events = vec![Event::OpenCall];
        let mut closed_at = vec![0; operations.len()];
        for (_, is_return, operation) in instants {
            let number = events.len();
            events.push(if is_return {
                closed[closed_at[operation]].returned = number;
                Event::Return
            } else if answered[operation] {
                closed_at[operation] = closed.len();
                let Operation { input, outcome, .. } = operations[operation];
                let is_read = model.is_read(input, outcome.output());
                closed.push(Closed {
                    operation,
                    call: number,
                    returned: END,
                    is_read,
                });
                Event::Call(closed_at[operation])
            } else {
                let Operation { input, .. } = operations[operation];
                let twin = open
                    .iter()
                    .rposition(|o| operations[o.operation].input == *input);
                open.push(Open {
                    operation,
                    call: number,
                    twin,
                });
                Event::OpenCall
            });
        }
        let linked = (1..events.len()).filter(|number| !matches!(events[*number], Event::OpenCall));
        let links = Links::new(events.len(), linked);
        let mut search = Self {
            model,
            operations,
            done: Bits::new(closed.len()),
            used: Bits::new(open.len()),
            closed,
            open,
            events,
            links,
            needs: Needs::none(),
            state: model.initial(),
            path: Vec::new(),
            seen: HashMap::new(),
            steps: 0,
            furthest: 0,
            stuck_states: Vec::new(),
            stuck_tail: Vec::new(),
            stuck_length: 0,
        };
        search.needs = search.hints(None);
        search
    }

    /// Forgets what an operation needs, so that the search comes as far as it can without it.
    pub fn without_hint_of(mut self, operation: usize) -> Self {
        self.needs = self.hints(Some(operation));
        self
    }

    fn hints(&self, without: Option<usize>) -> Needs<M::State> {
        let nothing = || Hint {
            fits_only_in: None,
            makes: Makes::Nothing,
        };
        let mut hints: Vec<_> = self.operations.iter().map(|_| nothing()).collect();
        for Closed { operation, .. } in &self.closed {
            let Operation { input, outcome, .. } = self.operations[*operation];
            hints[*operation] = self.model.hint(input, outcome.output());
        }
        for Open { operation, .. } in &self.open {
            hints[*operation] = self.model.hint(&self.operations[*operation].input, None);
        }
        if let Some(without) = without {
            hints[without].fits_only_in = None;
        }
        Needs::new(hints)
    }

    /// Steps that were taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Looks for an order, for so many steps: trials of an operation and comparisons of configurations.
    pub fn run(&mut self, steps_max: u64) -> Found<M::State> {
        let mut cursor = Cursor::Start;
        while !self.links.is_empty() {
            if self.steps >= steps_max {
                return Found::OutOfSteps;
            }
            if let Some(choice) = self.next_choice(&mut cursor) {
                if self.make(choice) {
                    cursor = Cursor::Start;
                }
            } else if let Some(next) = self.undo() {
                cursor = next;
            } else {
                return Found::Nothing(self.stuck());
            }
        }
        Found::Order(
            self.path
                .iter()
                .map(|frame| self.operation_of(frame.choice))
                .collect(),
        )
    }

    /// The choice at the cursor, which moves behind it.
    fn next_choice(&mut self, cursor: &mut Cursor) -> Option<Choice> {
        if let Cursor::Start = *cursor {
            if let Some(closed) = self.fitting_read() {
                *cursor = Cursor::End;
                return Some(Choice::Closed(closed));
            }
            *cursor = Cursor::Event(self.links.first());
        }
        if let Cursor::Event(number) = *cursor {
            match self.events[number] {
                Event::Call(closed) => {
                    *cursor = Cursor::Event(self.links.next(number));
                    return Some(Choice::Closed(closed));
                }
                Event::Return | Event::OpenCall => self.note_stuck(number),
            }
            *cursor = Cursor::Open(0);
        }
        let Cursor::Open(from) = *cursor else {
            return None;
        };
        let blocking = self.first_return();
        let fits = |at: &usize| {
            let twin_used = self.open[*at]
                .twin
                .is_none_or(|twin| self.used.contains(twin));
            twin_used && !self.used.contains(*at)
        };
        let callable = self.open.partition_point(|open| open.call < blocking);
        let found = (from..callable).find(fits)?;
        *cursor = Cursor::Open(found + 1);
        Some(Choice::Open(found))
    }

    fn fitting_read(&mut self) -> Option<usize> {
        let mut number = self.links.first();
        while let Event::Call(closed) = self.events[number] {
            if self.closed[closed].is_read {
                self.steps += 1;
                if self.step(&self.state, Choice::Closed(closed)).is_some() {
                    return Some(closed);
                }
            }
            number = self.links.next(number);
        }
        None
    }

    fn first_return(&self) -> usize {
        let mut number = self.links.first();
        while matches!(self.events[number], Event::Call(_)) {
            number = self.links.next(number);
        }
        number
    }

    fn operation_of(&self, choice: Choice) -> usize {
        match choice {
            Choice::Closed(closed) => self.closed[closed].operation,
            Choice::Open(open) => self.open[open].operation,
        }
    }

    fn step(&self, state: &M::State, choice: Choice) -> Option<M::State> {
        let operation = self.operations[self.operation_of(choice)];
        let output = match choice {
            Choice::Closed(_) => operation.outcome.output(),
            Choice::Open(_) => None,
        };
        self.model.step(state, &operation.input, output)
    }

    /// Puts an operation in order, unless it does not fit or leads nowhere new.
    fn make(&mut self, choice: Choice) -> bool {
        self.steps += 1;
        let Some(next) = self.step(&self.state, choice) else {
            return false;
        };
        if matches!(choice, Choice::Open(_)) && next == self.state {
            return false;
        }
        if let Some(Frame {
            choice: Choice::Open(_),
            before,
        }) = self.path.last()
            && self.step(before, choice).as_ref() == Some(&next)
        {
            return false;
        }
        self.mark(choice, true);
        let is_lost = next != self.state && self.needs.is_lost(&self.state);
        if is_lost || !self.is_new(&next) {
            self.mark(choice, false);
            return false;
        }
        if let Choice::Closed(closed) = choice {
            self.links
                .take(self.closed[closed].call, self.closed[closed].returned);
        }
        let before = std::mem::replace(&mut self.state, next);
        self.path.push(Frame { choice, before });
        true
    }

    /// Takes the last choice back; the cursor after it.
    fn undo(&mut self) -> Option<Cursor> {
        let Frame { choice, before } = self.path.pop()?;
        self.state = before;
        self.mark(choice, false);
        Some(match choice {
            Choice::Closed(closed) => {
                let Closed {
                    call,
                    returned,
                    is_read,
                    ..
                } = self.closed[closed];
                self.links.put_back(call, returned);
                if is_read {
                    Cursor::End
                } else {
                    Cursor::Event(self.links.next(call))
                }
            }
            Choice::Open(open) => Cursor::Open(open + 1),
        })
    }

    fn mark(&mut self, choice: Choice, ordered: bool) {
        self.needs.mark(self.operation_of(choice), ordered);
        let (bits, number) = match choice {
            Choice::Closed(closed) => (&mut self.done, closed),
            Choice::Open(open) => (&mut self.used, open),
        };
        if ordered {
            bits.insert(number)
        } else {
            bits.remove(number)
        }
    }

    /// Whether the marked operations with this state after them were not reached with as few open ones.
    fn is_new(&mut self, state: &M::State) -> bool {
        let reached = self
            .seen
            .entry((self.done.short(), state.clone()))
            .or_default();
        self.steps += reached.len() as u64;
        if reached.iter().any(|used| used.is_within(&self.used)) {
            return false;
        }
        reached.retain(|used| !self.used.is_within(used));
        reached.push(self.used.clone());
        true
    }

    fn note_stuck(&mut self, number: usize) {
        if number < self.furthest {
            return;
        }
        if number > self.furthest {
            self.furthest = number;
            self.stuck_states.clear();
            self.stuck_length = 0;
        }
        if self.stuck_states.len() < SHOWN && !self.stuck_states.contains(&self.state) {
            self.stuck_states.push(self.state.clone());
        }
        if self.stuck_length == 0 || self.path.len() > self.stuck_length {
            self.stuck_length = self.path.len();
            let last = &self.path[self.path.len().saturating_sub(SHOWN)..];
            self.stuck_tail = last
                .iter()
                .map(|frame| self.operation_of(frame.choice))
                .collect();
        }
    }

    fn stuck(&mut self) -> Stuck<M::State> {
        let returns = |event: &&Event| matches!(event, Event::Return);
        Stuck {
            rank: self.events[..=self.furthest].iter().filter(returns).count(),
            states: std::mem::take(&mut self.stuck_states),
            tail: std::mem::take(&mut self.stuck_tail),
        }
    }
}

/// The answered operations in the order of their answers, as (instant, position).
pub fn answers<I, O>(operations: &[&Operation<I, O>]) -> Vec<(u64, usize)> {
    let mut answers: Vec<_> = (operations.iter().enumerate())
        .filter_map(|(position, operation)| Some((operation.outcome.returned_at()?, position)))
        .collect();
    answers.sort_unstable();
    answers
}
