//! Names of traces and of the spans in them, as commands, rows and messages carry them.
//!
//! Invariants: what is malformed is none; the id of a span follows from what it names, so that whoever knows that gives it the
//! same one. Must never make a span.

use crate::{Digest, FrameworkId, TaskId};

/// Names the trace for a task, as the header `traceparent` does for a request.
pub const VARIABLE: &str = "TRACEPARENT";

/// A trace, and the span that what follows is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId {
    /// Of the trace.
    pub trace: [u8; 16],
    /// Of the span.
    pub span: [u8; 8],
}

impl TraceId {
    /// As commands, rows and messages have it: empty is none, and so is what is malformed.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, span) = bytes.split_first_chunk::<16>()?;
        Some(Self { trace: *trace, span: span.try_into().ok()? })
    }

    /// The same the other way round.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [&self.trace[..], &self.span[..]].concat()
    }

    /// What a header `traceparent` says, if whoever began the trace wants it kept.
    #[must_use]
    pub fn of_header(text: &str) -> Option<Self> {
        let mut parts = text.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let id = Self { trace: hex(trace)?, span: hex(span)? };
        (sampled && id.trace != [0; 16] && id.span != [0; 8]).then_some(id)
    }

    /// The header for whoever goes on with it.
    #[must_use]
    pub fn header(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("00-{}-{}-01", hex(&self.trace), hex(&self.span))
    }

    /// The same trace, with the span of this name and of this thing, done for this one.
    #[must_use]
    pub fn child(self, name: &str, of: &str) -> Self {
        let mut bytes = self.to_bytes();
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(of.as_bytes());
        Self { span: Digest::of(&bytes).0.first_chunk::<8>().copied().unwrap_or_default(), ..self }
    }

    /// A span of a task, done for the turn that launched it.
    #[must_use]
    pub fn of_task(self, name: &str, framework: FrameworkId, task: &TaskId, attempt: u32) -> Self {
        self.child(name, &format!("{framework} {task} {attempt}"))
    }
}

/// The name of the span of a task from its order to its running.
pub const LAUNCH: &str = "launch";

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_taken_when_its_trace_is_to_be_kept() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let id = TraceId::of_header(good).unwrap();
        assert_eq!(id.header(), good);
        assert_eq!(TraceId::of_bytes(&id.to_bytes()), Some(id));
        for bad in [&good.replace("-01", "-00"), "", "00-x-y-01", "00-4bf9é-00f067aa0ba902b7-01", &good[..40]] {
            assert_eq!(TraceId::of_header(bad), None, "{bad}");
        }
        for bad in [&[][..], &[1; 23], &[1; 25]] {
            assert_eq!(TraceId::of_bytes(bad), None);
        }
    }

    #[test]
    fn spans_have_ids_of_their_own_that_do_not_change() {
        let id = TraceId { trace: [1; 16], span: [2; 8] };
        let (one, other) = (id.child("launch", "f1 a 1"), id.child("launch", "f1 b 1"));
        assert_ne!(one.span, other.span);
        assert_eq!((one, one.trace), (id.child("launch", "f1 a 1"), id.trace));
        assert_eq!(id.of_task(LAUNCH, FrameworkId(1), &"a".parse().unwrap(), 1), one);
    }
}
