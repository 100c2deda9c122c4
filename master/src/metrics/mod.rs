//! What a master counts of itself while it works, and the page that it serves.
//!
//! Invariants: counting is an addition to memory, wherever it is done; nothing here is looked at by anybody but the
//! page. Must never be needed for the master to work.

mod http;
mod others;
mod page;

pub use http::Http;
pub use page::{Sources, write};

use crate::node::Meter;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tessera_replica::EntryId;
use tessera_telemetry::export::Spans;
use tessera_telemetry::{Counter, Histogram, Process};

/// Entries whose time to commit is measured at once; more are never under way.
const ENTRIES_MEASURED_MAX: usize = 64;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    process: Process,
    /// Requests to REST.
    pub http: Http,
    /// Inputs that the loop took.
    pub inputs: Counter,
    /// Rounds of the loop.
    pub rounds: Histogram,
    /// Syncs of the log.
    pub syncs: Histogram,
    /// Applying an entry.
    pub applies: Histogram,
    /// Rounds of the allocator.
    pub allocations: Histogram,
    /// From proposing an entry to its being applied.
    pub commits: Histogram,
    /// Terms that began.
    pub terms: Counter,
    /// How often this master came to lead.
    pub leaderships: Counter,
    /// Snapshots that were sent.
    pub snapshots_sent: Counter,
    /// Snapshots that were taken.
    pub snapshots_taken: Counter,
    /// Spans on their way.
    pub spans: Arc<Spans>,
    /// Events written.
    pub events: Counter,
    /// Turns of frameworks that are not shown one by one.
    others: Mutex<others::Others>,
    /// When entries were proposed, which the loop's thread alone notes.
    proposed: Mutex<BTreeMap<EntryId, Instant>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            process: Process::started(),
            http: Http::default(),
            inputs: Counter::new(),
            rounds: Histogram::new(),
            syncs: Histogram::new(),
            applies: Histogram::new(),
            allocations: Histogram::new(),
            commits: Histogram::new(),
            terms: Counter::new(),
            leaderships: Counter::new(),
            snapshots_sent: Counter::new(),
            snapshots_taken: Counter::new(),
            spans: Arc::default(),
            events: Counter::new(),
            others: Mutex::default(),
            proposed: Mutex::default(),
        }
    }
}

impl Meter for Metrics {
    fn proposed(&self, id: EntryId) {
        let mut proposed = self.proposed.lock().unwrap_or_else(PoisonError::into_inner);
        if proposed.len() >= ENTRIES_MEASURED_MAX {
            proposed.clear();
        }
        proposed.insert(id, Instant::now());
    }

    fn applying(&self, apply: &mut dyn FnMut()) {
        let began = Instant::now();
        apply();
        self.applies.took(began.elapsed());
    }

    fn applied(&self, id: EntryId, events: u64) {
        let began = self.proposed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(began) = began {
            self.commits.took(began.elapsed());
        }
        self.events.add(events);
    }

    fn lost(&self, id: EntryId) {
        self.proposed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
