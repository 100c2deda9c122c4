//! A framework that says what it waits for: requests for its jobs, some of them for what may be taken back.
//!
//! Invariants: whether a job may be lent to follows from its number and from how long it has waited; what was asked is in the
//! state. Without the key in its configuration nothing of this happens. Must never know whether anything is kept for it.

use super::jobs::{self, Job, Shape, Terms};
use super::{Draft, Model, RECONCILED_EVERY, Seat};
use tessera_types::{Operation, Quantities, ResourceRequest, Resources};

/// Key in the configuration of those who say what they wait for.
pub const ASKS_KEY: &str = "asks";
/// Key in the state of what was asked.
const ASKED_KEY: &str = "asked";
/// Requests at a time, at most.
const REQUESTS_MAX: usize = 6;
/// After so many ticks a job does without what may be taken back.
const LATE_TICKS: u64 = 10;
/// Of so many periods of so many ticks it says nothing in one, and is offered anything.
const SILENT_PERIODS: u64 = 4;
const PERIOD_TICKS: u64 = 8;

impl Model {
    /// Whether a job may be done with what can be taken back.
    pub(super) const fn may_be_lent(&self, number: u64) -> bool {
        self.asks && Terms::of(number).lent
    }

    /// It has waited for so long that it is done in any way.
    pub(super) fn is_late(&self, number: u64) -> bool {
        self.number("ticks") > number + LATE_TICKS
    }

    /// Whether a launch says by mistake that it is revocable, or that it is not: it is dropped, and replaced.
    pub(super) fn errs(&self, number: u64, replacement: u64) -> bool {
        self.asks && number % 11 == 5 && replacement == 0
    }

    /// What a member takes of an offer.
    pub(super) fn task(&self, number: u64) -> Resources {
        if self.asks { jobs::task(number) } else { Resources::of(jobs::needs(number)) }
    }

    /// The same with its executor.
    pub(super) fn cost(&self, number: u64, member: usize) -> Resources {
        let beside = jobs::cost(number, member).minus(jobs::needs(number));
        self.task(number).plus(&Resources::of(beside))
    }

    /// What all members of a job take on one agent. Who is offered no more than it asks for counts its executor once.
    pub(super) fn whole(&self, number: u64) -> Resources {
        if self.asks {
            return jobs::whole(number);
        }
        let members = 0..Job::of(number).members.len();
        Resources::of(members.fold(Quantities::ZERO, |sum, member| sum.plus(jobs::cost(number, member))))
    }

    /// Where the members of a job go, and whether they may be taken back from there.
    pub(super) fn seats_for(&self, number: u64, table: &[Seat]) -> Option<(Vec<usize>, bool)> {
        let lent = self.may_be_lent(number);
        let for_now = lent.then(|| self.seats(number, table, true)).flatten();
        if let Some(seats) = for_now {
            return Some((seats, true));
        }
        let for_good = !lent || self.is_late(number);
        let seats = if for_good { self.seats(number, table, false) } else { None };
        Some((seats?, false))
    }

    /// What it waits for now.
    fn requests(&self) -> Vec<ResourceRequest> {
        if self.number("ticks") / PERIOD_TICKS % SILENT_PERIODS == SILENT_PERIODS - 1 {
            return Vec::new();
        }
        let due = (0..self.released()).filter(|number| self.due(*number).is_some());
        let request = |number: u64| {
            let job = Job::of(number);
            let (resources, count) = match job.shape {
                Shape::Gang => (self.cost(number, 0), job.members.len()),
                Shape::Alone | Shape::Group => (self.whole(number), 1),
            };
            ResourceRequest {
                id: format!("n{number}"),
                resources,
                count: u32::try_from(count).unwrap_or(1),
                constraints: Terms::of(number).constraints(number),
                revocable: self.may_be_lent(number) && !self.is_late(number),
            }
        };
        due.take(REQUESTS_MAX).map(request).collect()
    }

    /// Say what it waits for, if that has changed; and again now and then, as masters may not have understood it.
    pub(super) fn ask(&mut self, draft: &mut Draft, tick: bool) {
        let launches = |operation: &Operation| matches!(operation, Operation::Accept { .. });
        if !self.asks || !(tick || draft.turn.operations.iter().any(launches)) {
            return;
        }
        let requests = self.requests();
        let said = requests.iter().map(|of| format!("{}{} ", of.id, if of.revocable { "r" } else { "" }));
        let said = said.collect::<String>().into_bytes();
        let again = tick && self.number("ticks").is_multiple_of(RECONCILED_EVERY);
        if !again && self.state.get(ASKED_KEY) == Some(&said) {
            return;
        }
        self.state.insert(ASKED_KEY.to_owned(), said.clone());
        draft.changes.insert(ASKED_KEY.to_owned(), said);
        draft.operation(Operation::Request { requests });
    }
}
