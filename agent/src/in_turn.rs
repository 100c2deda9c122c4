//! Whose turn it is with something that only one may use at a time: tenants in turn, and each tenant's own
//! in the order in which they came.
//!
//! Invariants: whoever waits is behind at most one of each other tenant, however many of theirs wait; whoever
//! gives up waiting, or is done, makes room for the next. This file must never know what is used.

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
    /// The tenant that had the last turn.
    last: String,
    count: usize,
}

impl State {
    /// The next to have a turn: of the tenant that follows the last one.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
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

    /// Wait for a turn; none when too many wait already.
    pub async fn get(&self, tenant: &str) -> Option<Turn> {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = self.state();
            if !state.busy {
                state.busy = true;
                tenant.clone_into(&mut state.last);
                return Some(Turn(Some(self.clone())));
            }
            if state.count >= self.waiting_max {
                return None;
            }
            state.count += 1;
            state.waiting.entry(tenant.to_owned()).or_default().push_back(sender);
        }
        turn.await.ok()
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

    /// Wait for a turn, and ask for it once, so that it waits from now on.
    fn wait<'a>(it: &'a InTurn, tenant: &'a str) -> Wait<'a> {
        let mut turn: Wait<'_> = Box::pin(it.get(tenant));
        assert!(now(&mut turn).is_none(), "{tenant} waits");
        turn
    }

    #[tokio::test]
    async fn tenants_come_in_turn_and_those_of_one_in_order() {
        let it = InTurn::new(8);
        let mut turn = it.get("a").await;
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
        assert!(it.get("b").await.is_some(), "free again");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_took_is_given_on_and_too_many_are_sent_away() {
        let it = InTurn::new(2);
        let turn = it.get("a").await.unwrap();
        let (first, mut second) = (wait(&it, "b"), wait(&it, "c"));
        assert!(it.get("d").await.is_none(), "two may wait");
        // The turn is on its way to the first when that goes.
        drop(turn);
        drop(first);
        let turn = now(&mut second).flatten();
        assert!(turn.is_some());
        drop(wait(&it, "d"));
    }
}
