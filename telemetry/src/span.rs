//! Spans of a trace, as W3C names them between programs and as OTLP takes them.
//!
//! Invariants: an id of zeros is no id; what a stranger sends as a context is either exactly one or nothing. Must never
//! send anything: whoever has spans does.

use serde_json::{Value, json};

/// Longest text of an attribute that leaves.
const ATTRIBUTE_CHARS_MAX: usize = 256;

/// A trace, and the span in it that is the parent of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Of the trace.
    pub trace: [u8; 16],
    /// Of the span.
    pub span: [u8; 8],
    /// Whether whoever began it wants it kept.
    pub sampled: bool,
}

impl Context {
    /// What the header `traceparent` says.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // A later version may have more parts.
        if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        from_hex::<1>(version)?;
        let (trace, span, flags) = (from_hex(trace)?, from_hex(span)?, from_hex::<1>(flags)?);
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", hex(&self.trace), hex(&self.span), u8::from(self.sampled))
    }
}

/// Something that took time within a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace: [u8; 16],
    /// Of this one.
    pub id: [u8; 8],
    /// What it was done for.
    pub parent: Option<[u8; 8]>,
    /// What was done.
    pub name: &'static str,
    /// Somebody outside asked for it.
    pub server: bool,
    /// When it began, in microseconds since 1970.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
    /// What is to be known of it.
    pub attributes: Vec<(&'static str, String)>,
    /// It failed.
    pub failed: bool,
}

/// A request to a collector: OTLP as JSON over HTTP.
#[must_use]
pub fn request(service: &str, instance: &str, spans: &[Span]) -> String {
    let text = |key: &str, value: &str| {
        let value: String = value.chars().take(ATTRIBUTE_CHARS_MAX).collect();
        json!({"key": key, "value": {"stringValue": value}})
    };
    let spans: Vec<Value> = spans
        .iter()
        .map(|span| {
            let attributes: Vec<Value> = span.attributes.iter().map(|(key, value)| text(key, value)).collect();
            let mut out = json!({
                "traceId": hex(&span.trace),
                "spanId": hex(&span.id),
                "name": span.name,
                // Internal and server, by OTLP's numbers.
                "kind": if span.server { 2 } else { 1 },
                "startTimeUnixNano": nanos(span.start_us),
                "endTimeUnixNano": nanos(span.end_us.max(span.start_us)),
                "attributes": attributes,
                "status": if span.failed { json!({"code": 2}) } else { json!({}) },
            });
            if let Some(parent) = span.parent {
                out["parentSpanId"] = hex(&parent).into();
            }
            out
        })
        .collect();
    let resource = [
        text("service.name", service),
        text("service.version", crate::BUILD.version),
        text("service.instance.id", instance),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "tessera"}, "spans": spans}],
    }]})
    .to_string()
}

/// Numbers of 64 bits are text in OTLP's JSON.
fn nanos(us: u64) -> String {
    us.saturating_mul(1_000).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let context = Context::parse(GOOD).unwrap();
        assert!(context.sampled && context.header() == GOOD);
        assert!(!Context::parse(&GOOD.replace("-01", "-00")).unwrap().sampled);
        assert!(Context::parse(&format!("cc{}-more", &GOOD[2..])).is_some());
    }

    #[test]
    fn what_is_no_header_is_nothing() {
        for bad in [
            String::new(),
            "00-0-0-01".into(),
            GOOD.to_uppercase(),
            format!("{GOOD}-x"),
            GOOD.replace("00-4b", "ff-4b"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace("4bf9", "4bé"),
        ] {
            assert_eq!(Context::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_collector_is_given_otlp() {
        let span = Span {
            trace: [1; 16],
            id: [2; 8],
            parent: Some([3; 8]),
            name: "turn",
            server: false,
            start_us: 5,
            end_us: 4,
            attributes: vec![("tessera.framework", "x".repeat(1_000))],
            failed: true,
        };
        let root = Span { parent: None, server: true, failed: false, ..span.clone() };
        let value: Value = serde_json::from_str(&request("tessera-master", "1", &[span, root])).unwrap();
        let spans = &value["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(spans[0]["traceId"], "01".repeat(16));
        assert_eq!(spans[0]["parentSpanId"], "03".repeat(8));
        assert_eq!((&spans[0]["startTimeUnixNano"], &spans[0]["endTimeUnixNano"]), (&json!("5000"), &json!("5000")));
        assert_eq!(spans[0]["attributes"][0]["value"]["stringValue"].as_str().map(str::len), Some(256));
        assert_eq!((&spans[0]["status"]["code"], &spans[1]["kind"]), (&json!(2), &json!(2)));
        assert!(spans[1].get("parentSpanId").is_none());
        let service = &value["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(service["value"]["stringValue"], "tessera-master");
    }
}
