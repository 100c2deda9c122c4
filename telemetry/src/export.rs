//! The way of spans to a collector: OTLP as JSON over HTTP, to the address that an operator names.
//!
//! Invariants: whoever has a span never waits: the queue is bounded, and what does not fit is dropped and counted; a
//! collector that is slow or away costs nothing but its spans. A thread of its own sends them, and ends with the process. Must
//! never send anything when no collector is named.

use crate::span::{self, Span};
use crate::{Counter, Name, Page};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Spans that wait for the collector.
const QUEUE_MAX: usize = 4_096;
/// Spans in one request: a few hundred KiB.
const BATCH_MAX: usize = 512;
/// How long spans are gathered before they leave.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take for each step: to be connected, to take a request, to answer it.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer's head: what collectors say is some hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Where collectors take traces when only their address is named.
const PATH: &str = "/v1/traces";
/// And where they listen then.
const PORT: u16 = 4_318;

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
        let rest = text.strip_prefix("http://").ok_or(
            "http://HOST:PORT, where a collector takes OTLP over HTTP; one on this machine can go on with TLS",
        )?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(at).unwrap_or((rest, ""));
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"@?#\\".contains(&byte));
        if !visible(rest) {
            return Err(format!("{text:?} is no address: http://HOST:PORT/PATH without user, query or blanks"));
        }
        // An address of version 6 stands in brackets.
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() || host.contains(['[', ']']) {
            return Err(format!("{text:?} names no host"));
        }
        let port = match port {
            Some(port) => port.parse().map_err(|error| format!("{text:?}: port {port:?}: {error}"))?,
            None => PORT,
        };
        let path = if matches!(path, "" | "/") { PATH } else { path };
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Spans {
    sent: Counter,
    dropped: Counter,
}

impl Spans {
    /// So many were lost on the way to the queue.
    pub fn lost(&self, count: u64) {
        self.dropped.add(count);
    }

    /// How many were lost.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Put the numbers on a page.
    pub fn write(&self, page: &mut Page) {
        page.whole(Name::SpansSent, &[], self.sent.get());
        page.whole(Name::SpansDropped, &[], self.dropped.get());
    }
}

/// Takes spans.
#[derive(Clone, Debug)]
pub struct Queue {
    queue: SyncSender<Span>,
    spans: Arc<Spans>,
}

impl Queue {
    /// A span is over.
    pub fn put(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.spans.lost(1);
        }
    }

    /// What became of spans.
    #[must_use]
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// One that is never emptied.
    #[must_use]
    pub fn idle() -> (Self, Receiver<Span>) {
        let (queue, spans) = sync_channel(QUEUE_MAX);
        (Self { queue, spans: Arc::default() }, spans)
    }
}

/// Have spans of a service sent to a collector.
///
/// # Errors
/// When there can be no more threads.
pub fn start(collector: Collector, service: &'static str, instance: String, spans: Arc<Spans>) -> std::io::Result<Queue> {
    let (queue, waiting) = sync_channel(QUEUE_MAX);
    let exporter = Exporter { collector, service, instance, waiting, spans: Arc::clone(&spans) };
    std::thread::Builder::new().name("spans".into()).spawn(move || exporter.run())?;
    Ok(Queue { queue, spans })
}

struct Exporter {
    collector: Collector,
    service: &'static str,
    instance: String,
    waiting: Receiver<Span>,
    spans: Arc<Spans>,
}

impl Exporter {
    /// Until nobody has spans any more.
    fn run(self) {
        let mut well = true;
        while let Ok(first) = self.waiting.recv() {
            let batch = self.gather(first);
            let body = span::request(self.service, &self.instance, &batch);
            match send(&self.collector, &body) {
                Ok(()) => self.spans.sent.add(batch.len() as u64),
                Err(error) => {
                    self.spans.lost(batch.len() as u64);
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

    /// What comes with the first one.
    fn gather(&self, first: Span) -> Vec<Span> {
        let mut batch = vec![first];
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            match self.waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(span) => batch.push(span),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        batch
    }
}

fn send(collector: &Collector, body: &str) -> Result<(), String> {
    let Collector { host, port, path } = collector;
    let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|error| format!("finding {host}: {error}"))?;
    let mut refused = format!("{host} has no address");
    let mut stream = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, STEP_MAX) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => refused = format!("connecting to it: {error}"),
        }
    }
    let mut stream = stream.ok_or(refused)?;
    let told = |error: std::io::Error| format!("speaking with it: {error}");
    stream.set_write_timeout(Some(STEP_MAX)).map_err(told)?;
    stream.set_read_timeout(Some(STEP_MAX)).map_err(told)?;
    let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {shown}:{port}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(told)?;
    stream.write_all(body.as_bytes()).map_err(told)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1_024];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") && answer.len() < HEAD_BYTES_MAX {
        match stream.read(&mut piece).map_err(told)? {
            0 => break,
            count => answer.extend_from_slice(piece.get(..count).unwrap_or_default()),
        }
    }
    taken(&answer)
}

/// Whether an answer says that spans were taken.
fn taken(answer: &[u8]) -> Result<(), String> {
    let line = String::from_utf8_lossy(answer);
    let line = line.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match words.next().and_then(|status| status.parse::<u16>().ok()).filter(|_| is_http) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(format!("it answers {status}")),
        None => Err(format!("it answers {:?}", line.chars().take(64).collect::<String>())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn span() -> Span {
        Span {
            trace: [1; 16],
            id: [2; 8],
            parent: None,
            name: "turn",
            server: false,
            start_us: 1,
            end_us: 2,
            attributes: Vec::new(),
            failed: false,
        }
    }

    #[test]
    fn a_collector_has_an_address() {
        let of = |host: &str, port, path: &str| Ok(Collector { host: host.into(), port, path: path.into() });
        assert_eq!("http://localhost".parse(), of("localhost", 4_318, PATH));
        assert_eq!("http://localhost:9/".parse(), of("localhost", 9, PATH));
        assert_eq!("http://10.0.0.1:80/x".parse(), of("10.0.0.1", 80, "/x"));
        assert_eq!("http://[::1]:80/x/y".parse(), of("::1", 80, "/x/y"));
        assert_eq!("http://[::1]".parse(), of("::1", 4_318, PATH));
        for bad in [
            "https://localhost", "localhost:4318", "http://", "", "http://:80", "http://a:b", "http://a b", "http://a:70000",
            "http://u@a", "http://a/x?y", "http://[::1", "http://::1", "http://a/\r\nx: y",
        ] {
            assert!(bad.parse::<Collector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_success_is_one() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 202 Accepted\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false),
            ("SSH-2.0-x 200\r\n", false),
            ("", false),
        ] {
            assert_eq!(taken(answer.as_bytes()).is_ok(), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_full_queue_makes_nobody_wait() {
        let (queue, _waiting) = Queue::idle();
        for _ in 0..QUEUE_MAX + 5 {
            queue.put(span());
        }
        assert_eq!(queue.spans().dropped(), 5);
    }

    #[test]
    fn spans_arrive_and_those_that_nobody_takes_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::<Spans>::default();
        let queue = start(format!("http://{address}").parse().unwrap(), "test", "1".into(), Arc::clone(&spans)).unwrap();
        for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 503 Busy\r\n\r\n"] {
            queue.put(span());
            queue.put(span());
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            while !text.contains("\"traceId\"") {
                let mut piece = [0; 1_024];
                let count = stream.read(&mut piece).unwrap();
                text.push_str(&String::from_utf8_lossy(&piece[..count]));
            }
            assert!(text.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{text}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while spans.sent.get() + spans.dropped() < 4 {
            assert!(Instant::now() < deadline, "{spans:?}");
            std::thread::yield_now();
        }
        assert_eq!((spans.sent.get(), spans.dropped()), (2, 2));
    }
}
