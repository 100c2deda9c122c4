//! Lets a thread without async wait for what async tasks bring, up to a time.
//!
//! Invariant: a wait ends when the future is ready or the time has come, whichever is first. It uses no timer of the
//! runtime: one that is set and taken back with every wait can wake the thread that watches the runtime's connections
//! for nothing. Must never be used on a thread of the runtime, which it would block.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

struct Sleeper(Thread);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on the thread that made it.
pub struct Pause(Waker);

impl Pause {
    /// For this thread.
    pub fn new() -> Self {
        Self(Waker::from(Arc::new(Sleeper(thread::current()))))
    }

    /// What the future brings; none when that takes until then. It is polled once in any case.
    pub fn wait<T>(&self, what: impl Future<Output = T>, until: Instant) -> Option<T> {
        let mut what = pin!(what);
        let mut context = Context::from_waker(&self.0);
        loop {
            if let Poll::Ready(brought) = what.as_mut().poll(&mut context) {
                return Some(brought);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // May also end early, which costs a look.
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[test]
    fn a_wait_ends_with_what_it_is_for_or_with_its_time() {
        let pause = Pause::new();
        let later = |ms| Instant::now() + Duration::from_millis(ms);
        assert_eq!(pause.wait(std::future::ready(7), Instant::now()), Some(7), "it is there already");
        let until = later(30);
        assert_eq!(pause.wait(std::future::pending::<()>(), until), None);
        assert!(Instant::now() >= until);
        let (sender, receiver) = oneshot::channel();
        let sends = thread::spawn(move || sender.send(8));
        assert_eq!(pause.wait(receiver, later(20_000)), Some(Ok(8)));
        assert_eq!(sends.join().unwrap(), Ok(()));
    }
}
