//! When placements are committed, as a client of `/v1/events` sees it, and the longest pause between two.
//!
//! Invariants: the time of a placement is that at which its event arrives, so that a pause of the log, of applying or of
//! telling counts alike; a stream that ended or missed events is a failure, and no pause. Must never ask the
//! scheduler: what it does between is not to be disturbed.

use futures::StreamExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_cluster::rest::Rest;
use tessera_cluster::{Outcome, ensure};

/// What the commit of a launch is called.
const PLACED: &str = "\"task.TASK_STAGING\"";
/// Said in place of events that were passed over.
const GAP: &str = "event: gap";

#[derive(Default)]
struct Seen {
    placed: Vec<Instant>,
    ended: bool,
    missed: bool,
}

/// Follows the events of a master until it is dropped.
pub struct Commits {
    seen: Arc<Mutex<Seen>>,
    following: tokio::task::JoinHandle<()>,
}

/// What a window showed.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Placements per second.
    pub per_second: f64,
    /// The longest time without one.
    pub pause_ms: f64,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Commits {
    /// Begin.
    pub async fn follow(rest: &Rest) -> Outcome<Self> {
        let mut stream = rest.stream("/v1/events", None).await?.bytes_stream();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        let following = tokio::spawn(async move {
            let mut text = String::new();
            while let Some(Ok(chunk)) = stream.next().await {
                let now = Instant::now();
                text.push_str(&String::from_utf8_lossy(&chunk));
                let Some(end) = text.rfind("\n\n") else { continue };
                let events = text.drain(..end + 2).collect::<String>();
                let mut seen = lock(&noted);
                seen.missed |= events.contains(GAP);
                seen.placed.extend(events.matches(PLACED).map(|_| now));
            }
            lock(&noted).ended = true;
        });
        Ok(Self { seen, following })
    }

    /// What happened since then.
    pub fn since(&self, from: Instant) -> Outcome<Window> {
        let until = Instant::now();
        let seen = lock(&self.seen);
        ensure(!seen.ended && !seen.missed, || "the stream of events ended, or passed some over".to_owned())?;
        Ok(window(&seen.placed, from, until))
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.following.abort();
    }
}

fn window(placed: &[Instant], from: Instant, until: Instant) -> Window {
    let within: Vec<Instant> = placed.iter().filter(|at| (from..=until).contains(*at)).copied().collect();
    // Its edges as well: a pause that had not ended by then is one.
    let mut longest = Duration::ZERO;
    let mut before = from;
    for at in within.iter().chain([&until]) {
        longest = longest.max(at.saturating_duration_since(before));
        before = *at;
    }
    Window {
        per_second: within.len() as f64 / (until - from).as_secs_f64().max(1e-3),
        pause_ms: longest.as_secs_f64() * 1e3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_that_between_two_or_at_an_edge() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        for (placed, pause_ms) in [
            (vec![100, 200, 450, 900], 450.0),
            (vec![600, 700, 900], 600.0),
            (vec![100, 300], 700.0),
            (vec![0, 1_200], 1_000.0),
            (vec![], 1_000.0),
        ] {
            let placed: Vec<Instant> = placed.into_iter().map(at).collect();
            let found = window(&placed, began, at(1_000)).pause_ms.round();
            assert!((found - pause_ms).abs() < 1e-9, "{placed:?}: {found}");
        }
    }
}
