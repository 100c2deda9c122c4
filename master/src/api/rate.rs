//! How many requests one caller may send to this master.
//!
//! Invariants: a caller with a token has a bucket of its own, whoever has none shares that of its address; what is
//! kept is bounded, whoever comes, by [`CALLERS_MAX`] and by how many tokens there are. A limit of zero is none.

use super::visit::Sender;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests a second of an address without a token: they are asked for their health, or try tokens.
const STRANGERS_PER_S: u64 = 500;

/// Seconds' worth of requests that may come at once.
const BURST_S: u64 = 2;

/// Callers that are told apart at once; more addresses share one bucket.
const CALLERS_MAX: usize = 4_096;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Whose bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Principal(String),
    Address(IpAddr),
    /// There are too many to tell apart.
    Others,
}

/// What is left to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests a second.
    pub per_s: u64,
    /// Requests that may come at once now.
    pub remaining: u64,
    /// Seconds until all may.
    pub reset_s: u64,
    /// Nothing was left: seconds until a request may come.
    pub retry_after_s: Option<u32>,
}

impl Allowance {
    /// Tell the caller.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in [(LIMIT, self.per_s * BURST_S), (REMAINING, self.remaining), (RESET, self.reset_s)] {
            headers.insert(name, HeaderValue::from(value));
        }
    }
}

/// The buckets: of each, when it will be full again.
pub struct Rates {
    per_s: u64,
    full_at: Mutex<HashMap<Caller, Instant>>,
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// One more request of a bucket that is full at a time; when it is full then.
fn draw(full_at: Instant, now: Instant, per_s: u64) -> (Instant, Allowance) {
    let each = Duration::from_nanos(1_000_000_000 / per_s.clamp(1, 1_000_000_000));
    let depth = Duration::from_secs(BURST_S);
    let full_at = full_at.max(now);
    let drawn = full_at + each;
    let missing = drawn.duration_since(now);
    let left = depth.saturating_sub(missing);
    let mut allowance = Allowance {
        per_s,
        remaining: u64::try_from(left.as_nanos() / each.as_nanos().max(1)).unwrap_or(u64::MAX),
        reset_s: seconds_up(missing),
        retry_after_s: None,
    };
    if missing <= depth {
        return (drawn, allowance);
    }
    allowance.remaining = 0;
    allowance.retry_after_s = Some(u32::try_from(seconds_up(missing - depth)).unwrap_or(u32::MAX).max(1));
    (full_at, allowance)
}

impl Rates {
    /// So many requests a second for each caller with a token; zero is no limit for anybody.
    pub fn new(per_s: u64) -> Self {
        Self { per_s, full_at: Mutex::default() }
    }

    /// One more request; nothing when there is no limit.
    pub fn take(&self, sender: &Sender, remote: SocketAddr, now: Instant) -> Option<Allowance> {
        if self.per_s == 0 {
            return None;
        }
        let (caller, per_s) = match sender {
            Sender::Known(principal) => (Caller::Principal(principal.name.clone()), self.per_s),
            Sender::Stranger | Sender::Wrong => (Caller::Address(remote.ip()), STRANGERS_PER_S.min(self.per_s)),
        };
        // A panic while holding the lock cannot leave the map half changed.
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS_MAX && !buckets.contains_key(&caller) {
            buckets.retain(|_, full_at| *full_at > now);
        }
        let told_apart = buckets.len() < CALLERS_MAX || buckets.contains_key(&caller);
        let caller = match caller {
            Caller::Address(_) if !told_apart => Caller::Others,
            // Nobody without a token takes anything from those who have one, and tokens are few.
            caller => caller,
        };
        let bucket = buckets.entry(caller).or_insert(now);
        let (full_at, allowance) = draw(*bucket, now, per_s);
        *bucket = full_at;
        Some(allowance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_master_core::Principal;

    fn remote(last: u8) -> SocketAddr {
        ([127, 0, 0, last], 1).into()
    }

    #[test]
    fn a_burst_is_taken_and_then_the_rate_holds() {
        let rates = Rates::new(10);
        let sender = Sender::Known(Principal::administrator());
        let now = Instant::now();
        for n in 0..20 {
            let allowance = rates.take(&sender, remote(1), now).unwrap();
            assert_eq!((allowance.retry_after_s, allowance.remaining), (None, 19 - n), "{n}");
        }
        let none = rates.take(&sender, remote(2), now).unwrap();
        assert_eq!((none.retry_after_s, none.remaining), (Some(1), 0), "by name, whatever the address");
        let later = now + Duration::from_millis(100);
        assert_eq!(rates.take(&sender, remote(1), later).unwrap().retry_after_s, None);
        assert!(rates.take(&sender, remote(1), later).unwrap().retry_after_s.is_some());
        assert!(rates.take(&Sender::Wrong, remote(1), now).unwrap().retry_after_s.is_none(), "another bucket");
    }

    #[test]
    fn callers_are_bounded_and_zero_is_no_limit() {
        let rates = Rates::new(10);
        let now = Instant::now();
        for n in 0..2 * u32::try_from(CALLERS_MAX).unwrap() {
            let address = SocketAddr::from((n.to_be_bytes(), 1));
            rates.take(&Sender::Stranger, address, now);
        }
        let buckets = rates.full_at.lock().unwrap();
        assert!(buckets.len() <= CALLERS_MAX + 1, "{}", buckets.len());
        assert!(buckets.contains_key(&Caller::Others));
        drop(buckets);
        let known = rates.take(&Sender::Known(Principal::administrator()), remote(1), now).unwrap();
        assert_eq!(known.remaining, 19, "strangers leave those with a token alone");
        assert_eq!(Rates::new(0).take(&Sender::Wrong, remote(1), now), None);
    }
}
