//! Spans of traces, and their way to a collector: OTLP as JSON over HTTP, to the address that an operator names.
//!
//! Invariants: whoever has a span never waits: the queue is bounded, and what does not fit is dropped and counted; a
//! collector that is slow or away costs nothing but its spans. Must never send anything when no collector is named.

use crate::metrics::Metrics;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tessera_master_core::TraceSpan;
use tessera_telemetry::span::{self, Context, Span};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Spans that wait for the collector.
const QUEUE_MAX: usize = 4_096;
/// Spans in one request: a few hundred KiB.
const BATCH_MAX: usize = 512;
/// How long spans are gathered before they leave.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Where collectors take traces when only their address is named.
const PATH: &str = "/v1/traces";

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    host: String,
    port: u16,
    path: String,
}

impl std::str::FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no address: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err("http://HOST:PORT, where a collector takes OTLP over HTTP; one on this machine can go on with TLS".into());
        }
        let host = uri.host().ok_or("names no host")?.to_owned();
        let path = match uri.path() {
            "" | "/" => PATH.to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { host, port: uri.port_u16().unwrap_or(4_318), path })
    }
}

/// Takes spans.
#[derive(Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    metrics: Arc<Metrics>,
    /// Of a million requests that change something and belong to no trace, so many begin one.
    sample_ppm: u32,
}

impl Tracer {
    /// A tracer, and what has to run for its spans to leave.
    pub fn new(collector: Collector, sample_ppm: u32, node: u64, metrics: Arc<Metrics>) -> (Self, Exporter) {
        let (sender, spans) = mpsc::channel(QUEUE_MAX);
        let exporter = Exporter { collector, spans, node: node.to_string(), metrics: metrics.clone() };
        (Self { spans: sender, metrics, sample_ppm }, exporter)
    }

    /// A span is over.
    pub fn put(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.metrics.spans_dropped.one();
        }
    }

    /// Spans of the core, and how many it had no room for.
    pub fn put_all(&self, (spans, dropped): (Vec<TraceSpan>, u64)) {
        self.metrics.spans_dropped.add(dropped);
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

/// Sends spans to a collector.
pub struct Exporter {
    collector: Collector,
    spans: mpsc::Receiver<Span>,
    node: String,
    metrics: Arc<Metrics>,
}

impl Exporter {
    /// Until nobody has spans any more.
    pub async fn run(mut self) {
        let mut well = true;
        let mut batch = Vec::new();
        while self.spans.recv_many(&mut batch, BATCH_MAX).await > 0 {
            if batch.len() < BATCH_MAX {
                tokio::time::sleep(GATHER).await;
                while batch.len() < BATCH_MAX {
                    let Ok(span) = self.spans.try_recv() else { break };
                    batch.push(span);
                }
            }
            let count = batch.len() as u64;
            let body = span::request("tessera-master", &self.node, &std::mem::take(&mut batch));
            let sent = tokio::time::timeout(ANSWER_MAX, send(&self.collector, body)).await;
            let result = sent.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_MAX.as_secs())));
            match result {
                Ok(()) => self.metrics.spans_sent.add(count),
                Err(error) => {
                    self.metrics.spans_dropped.add(count);
                    // Said once, and not for every batch.
                    if well {
                        tracing::warn!(error, "the collector of traces does not take spans; they are dropped");
                    }
                    well = false;
                    continue;
                }
            }
            if !well {
                tracing::info!("the collector of traces takes spans again");
            }
            well = true;
        }
    }
}

async fn send(collector: &Collector, body: String) -> Result<(), String> {
    let address = (collector.host.trim_matches(['[', ']']), collector.port);
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connecting to it: {error}"))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    // Ends with the sender.
    let carried = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&collector.path)
        .header(HOST, format!("{}:{}", collector.host, collector.port))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    // Read to its end, so that the collector sees an orderly one.
    let _ = answer.into_body().collect().await;
    drop(sender);
    carried.abort();
    if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sample_ppm: u32) -> (Tracer, Exporter) {
        let collector = "http://127.0.0.1:1".parse().unwrap();
        Tracer::new(collector, sample_ppm, 1, Arc::default())
    }

    #[test]
    fn a_collector_has_an_address() {
        let of = |host: &str, port, path: &str| Ok(Collector { host: host.into(), port, path: path.into() });
        assert_eq!("http://localhost".parse(), of("localhost", 4_318, PATH));
        assert_eq!("http://10.0.0.1:80/x".parse(), of("10.0.0.1", 80, "/x"));
        for bad in ["https://localhost", "localhost:4318", "http://", ""] {
            assert!(bad.parse::<Collector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_traced_when_their_sender_wants_it_or_they_are_drawn() {
        let (none, all) = (tracer(0).0, tracer(1_000_000).0);
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

    #[test]
    fn a_full_queue_makes_nobody_wait() {
        let (tracer, _exporter) = tracer(0);
        let span = tracer.of_request(Some(HEADER), false).unwrap().span(Vec::new(), false);
        for _ in 0..QUEUE_MAX + 5 {
            tracer.put(span.clone());
        }
        assert_eq!(tracer.metrics.spans_dropped.get(), 5);
    }
}
