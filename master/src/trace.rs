//! Spans of traces: those of requests, and those that the core makes, on their way to the collector that an operator names.
//!
//! Invariant: a request that nobody wants to be traced costs a look at its header. Must never let anybody wait for a span.

use std::time::{SystemTime, UNIX_EPOCH};
use tessera_master_core::TraceSpan;
use tessera_telemetry::export::Queue;
use tessera_telemetry::span::{Context, Span};

/// Takes spans.
#[derive(Clone)]
pub struct Tracer {
    queue: Queue,
    /// Of a million requests that change something and belong to no trace, so many begin one.
    sample_ppm: u32,
}

impl Tracer {
    /// One whose spans go there.
    pub const fn new(queue: Queue, sample_ppm: u32) -> Self {
        Self { queue, sample_ppm }
    }

    /// A span is over.
    pub fn put(&self, span: Span) {
        self.queue.put(span);
    }

    /// Spans of the core, and how many it had no room for.
    pub fn put_all(&self, (spans, dropped): (Vec<TraceSpan>, u64)) {
        self.queue.spans().lost(dropped);
        for span in spans {
            self.put(of_core(span));
        }
    }

    /// The trace of a request with this header: its own span in it, and its parent. A request that only reads begins
    /// none.
    pub fn of_request(&self, header: Option<&str>, reads: bool) -> Option<Traced> {
        let random = || getrandom::u64().unwrap_or(0);
        let own = random().to_be_bytes();
        let given = header.and_then(Context::parse);
        let (trace, parent) = match given {
            Some(context) if context.sampled => (context.trace, Some(context.span)),
            // Whoever began it does not want it kept.
            Some(_) => return None,
            None if reads || random() % 1_000_000 >= u64::from(self.sample_ppm) => return None,
            None => {
                let mut trace = [0; 16];
                trace[..8].copy_from_slice(&random().to_be_bytes());
                trace[8..].copy_from_slice(&random().to_be_bytes());
                (trace, None)
            }
        };
        let context = Context { trace, span: own, sampled: true };
        Some(Traced { context, parent, start_us: now_us() })
    }
}

/// A request that belongs to a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// With the request's own span.
    pub context: Context,
    parent: Option<[u8; 8]>,
    start_us: u64,
}

impl Traced {
    /// Its span, now that it is answered.
    pub fn span(self, attributes: Vec<(&'static str, String)>, failed: bool) -> Span {
        Span {
            trace: self.context.trace,
            id: self.context.span,
            parent: self.parent,
            name: "request",
            server: true,
            start_us: self.start_us,
            end_us: now_us(),
            attributes,
            failed,
        }
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

fn of_core(span: TraceSpan) -> Span {
    Span {
        trace: span.id.trace,
        id: span.id.span,
        parent: span.parent,
        name: span.name,
        server: false,
        start_us: span.start_ms.saturating_mul(1_000),
        end_us: span.end_ms.saturating_mul(1_000),
        attributes: span.attributes,
        failed: span.failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sample_ppm: u32) -> Tracer {
        Tracer::new(Queue::idle().0, sample_ppm)
    }

    #[test]
    fn requests_are_traced_when_their_sender_wants_it_or_they_are_drawn() {
        let (none, all) = (tracer(0), tracer(1_000_000));
        let traced = none.of_request(Some(HEADER), true).unwrap();
        assert_eq!(traced.parent, Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert!(traced.context.header().starts_with(&HEADER[..36]) && traced.context.header() != HEADER);
        let unwanted = HEADER.replace("-01", "-00");
        assert_eq!(all.of_request(Some(&unwanted), false), None);
        for header in [None, Some("nonsense")] {
            assert_eq!(none.of_request(header, false), None);
            assert_eq!(all.of_request(header, true), None, "reads begin none");
            assert_eq!(all.of_request(header, false).and_then(|traced| traced.parent), None);
            assert!(all.of_request(header, false).is_some());
        }
    }
}
