//! Whose turn it is with something that only one may use at a time: tenants in turn, and each tenant's own
//! in the order in which they came; behind all of them whoever can wait for long.
//!
//! Invariants: whoever waits is behind at most one of each other tenant, however many of theirs wait; whoever
//! gives up waiting, or is done, makes room for the next; who waits behind has no turn while another waits. This file must never know what is used.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Who waits of one tenant, the oldest first.
type Waiting = VecDeque<oneshot::Sender<Turn>>;

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// None of the queues is empty.
    waiting: BTreeMap<String, Waiting>,
    /// Who has a turn when none of those waits.
    behind: Waiting,
    /// The tenant that had the last turn.
    last: String,
    count: usize,
}

impl State {
    /// The next to have a turn: of the tenant that follows the last one, or one that waits behind.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        if self.waiting.is_empty() {
            return self.behind.pop_front();
        }
        let after = (Bound::Excluded(self.last.as_str()), Bound::Unbounded);
        let tenant = self.waiting.range::<str, _>(after).next().or(self.waiting.first_key_value());
        let tenant = tenant.map(|(tenant, _)| tenant.clone())?;
        let queue = self.waiting.get_mut(&tenant)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        }
        self.count -= usize::from(next.is_some());
        self.last = tenant;
        next
    }
}

/// One thing, used in turn.
#[derive(Clone, Debug)]
pub struct InTurn {
    state: Arc<Mutex<State>>,
    waiting_max: usize,
}

/// The right to use it; given on when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<InTurn>);

impl InTurn {
    /// Nobody uses it. At most so many wait.
    #[must_use]
    pub fn new(waiting_max: usize) -> Self {
        Self { state: Arc::default(), waiting_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ask for a turn, to be waited for; none when too many wait already.
    pub fn ask(&self, tenant: &str) -> Option<Place> {
        let mut state = self.state();
        if !state.busy {
            state.busy = true;
            tenant.clone_into(&mut state.last);
            return Some(Place::Free(Turn(Some(self.clone()))));
        }
        if state.count >= self.waiting_max {
            return None;
        }
        let (sender, turn) = oneshot::channel();
        state.count += 1;
        state.waiting.entry(tenant.to_owned()).or_default().push_back(sender);
        Some(Place::Taken(turn))
    }

    /// Ask for a turn when nobody else wants one; none when too many wait so already.
    pub fn ask_behind(&self) -> Option<Place> {
        let mut state = self.state();
        if !state.busy {
            state.busy = true;
            return Some(Place::Free(Turn(Some(self.clone()))));
        }
        if state.behind.len() >= self.waiting_max {
            return None;
        }
        let (sender, turn) = oneshot::channel();
        state.behind.push_back(sender);
        Some(Place::Taken(turn))
    }

    /// How many wait who need not wait behind.
    pub fn waiting(&self) -> usize {
        self.state().count
    }
}

/// A place among those that wait; left when it is dropped.
#[derive(Debug)]
pub enum Place {
    /// Nobody was before it.
    Free(Turn),
    /// Others are.
    Taken(oneshot::Receiver<Turn>),
}

impl Place {
    /// Wait for the turn.
    pub async fn turn(self) -> Option<Turn> {
        match self {
            Self::Free(turn) => Some(turn),
            Self::Taken(turn) => turn.await.ok(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // None when it was never taken.
        let Some(it) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = it.state();
                let next = state.next();
                state.busy = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Turn(Some(it.clone()))) {
                Ok(()) => return,
                // It does not wait any more. What it leaves is given on here.
                Err(mut left) => drop(left.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Wait<'a> = Pin<Box<dyn Future<Output = Option<Turn>> + 'a>>;

    /// Whether it is over, and what came of it.
    fn now(wait: &mut Wait<'_>) -> Option<Option<Turn>> {
        match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(got) => Some(got),
            Poll::Pending => None,
        }
    }

    async fn get(it: &InTurn, tenant: &str) -> Option<Turn> {
        it.ask(tenant)?.turn().await
    }

    fn waits(place: Option<Place>) -> Wait<'static> {
        let place = place.expect("there is room to wait");
        let mut turn: Wait<'_> = Box::pin(place.turn());
        assert!(now(&mut turn).is_none(), "it waits");
        turn
    }

    /// Wait for a turn from now on.
    fn wait(it: &InTurn, tenant: &str) -> Wait<'static> {
        waits(it.ask(tenant))
    }

    #[tokio::test]
    async fn who_waits_behind_comes_when_nobody_else_waits() {
        let it = InTurn::new(1);
        let turn = get(&it, "a").await;
        let mut behind = waits(it.ask_behind());
        assert!(it.ask_behind().is_none(), "one may wait");
        assert_eq!(it.waiting(), 0);
        let mut before = wait(&it, "a");
        assert_eq!(it.waiting(), 1);
        drop(turn);
        assert!(now(&mut behind).is_none(), "somebody came later and goes first");
        drop(now(&mut before));
        assert!(now(&mut behind).flatten().is_some());
        drop(behind);
        assert!(matches!(it.ask_behind(), Some(Place::Free(_))));
    }

    #[tokio::test]
    async fn tenants_come_in_turn_and_those_of_one_in_order() {
        let it = InTurn::new(8);
        let mut turn = get(&it, "a").await;
        assert!(turn.is_some());
        let came = ["a", "a", "a", "b", "c", "b"];
        let mut waiting: Vec<_> = came.iter().map(|tenant| Some(wait(&it, tenant))).collect();
        // Those that gave up are passed over.
        waiting[1] = None;
        let mut order = Vec::new();
        while waiting.iter().any(Option::is_some) {
            drop(turn.take());
            let ready = waiting.iter_mut().enumerate().find_map(|(at, waits)| {
                Some((at, now(waits.as_mut()?)?))
            });
            let (at, got) = ready.expect("somebody has the next turn");
            assert!(got.is_some());
            waiting[at] = None;
            order.push(at);
            turn = got;
        }
        assert_eq!(order, [3, 4, 0, 5, 2]);
        drop(turn);
        assert!(get(&it, "b").await.is_some(), "free again");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_took_is_given_on_and_too_many_are_sent_away() {
        let it = InTurn::new(2);
        let turn = get(&it, "a").await.unwrap();
        let (first, mut second) = (wait(&it, "b"), wait(&it, "c"));
        assert!(it.ask("d").is_none(), "two may wait");
        // The turn is on its way to the first when that goes.
        drop(turn);
        drop(first);
        let turn = now(&mut second).flatten();
        assert!(turn.is_some());
        drop(wait(&it, "d"));
    }
}
