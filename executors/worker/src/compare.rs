//! How a turn that was run again differs from the recorded one, in words.
//!
//! Invariants: two turns without a difference are equal byte for byte on the wire; only the first
//! difference is told. This file must never judge which of the two is right.

use prost::Message as _;
use std::fmt::Debug;
use tessera_types::{KeyWrite, Operation, Turn};
use tessera_wire::v1;
use tessera_wit_host::Failure;

/// Bytes of each side of a difference: enough to see it, and not a whole state.
const TEXT_BYTES: usize = 600;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which part of the turn.
    pub kind: &'static str,
    /// What is recorded.
    pub expected: String,
    /// What came out.
    pub got: String,
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end < text.len() {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The part of two texts where they differ, with a little before it.
fn around(expected: &str, got: &str) -> (String, String) {
    const BEFORE: usize = 60;
    let same = expected.bytes().zip(got.bytes()).take_while(|(a, b)| a == b).count();
    let mut start = same.saturating_sub(BEFORE);
    while !(expected.is_char_boundary(start) && got.is_char_boundary(start)) {
        start -= 1;
    }
    let part = |text: &str| {
        let dots = if start > 0 { "…" } else { "" };
        cut(format!("{dots}{}", &text[start..]))
    };
    (part(expected), part(got))
}

fn lists<T: PartialEq>(
    kind: &'static str,
    expected: &[T],
    got: &[T],
    tell: impl Fn(&T) -> String,
) -> Result<(), Difference> {
    let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let side = |list: &[T]| match list.get(same) {
        Some(item) => tell(item),
        None => "nothing".to_owned(),
    };
    if same == expected.len() && same == got.len() {
        return Ok(());
    }
    let (expected, got) = around(&side(expected), &side(got));
    let at = same + 1;
    Err(Difference {
        kind,
        expected: format!("{at}. of {kind}: {expected}"),
        got: format!("{at}. of {kind}: {got}"),
    })
}

fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("{} bytes {:02x?}", bytes.len(), &bytes[..bytes.len().min(64)]),
    }
}

fn write(write: &KeyWrite) -> String {
    match &write.value {
        Some(value) => format!("{:?} = {}", write.key, bytes(value)),
        None => format!("{:?} deleted", write.key),
    }
}

fn operation(operation: &Operation) -> String {
    match operation {
        Operation::Respond { request, answer } => format!(
            "answer to request {request}: {} {:?} {}",
            answer.status,
            answer.headers,
            bytes(&answer.body)
        ),
        Operation::SendMessage(message) => format!(
            "message to executor {} on agent {}: {}",
            message.executor,
            message.agent,
            bytes(&message.data)
        ),
        other => debug(other),
    }
}

fn debug(value: &impl Debug) -> String {
    format!("{value:?}")
}

/// Compare a turn with the recorded one.
///
/// # Errors
/// The first difference.
pub fn turns(expected: &Turn, got: &Turn) -> Result<(), Difference> {
    let spec = |(digest, encoded): &(tessera_types::Digest, Vec<u8>)| {
        let told = tessera_wire::decode_spec(encoded).map(|spec| debug(&spec));
        format!("{digest} {}", told.unwrap_or_default())
    };
    lists("consumed", &expected.consumed, &got.consumed, debug)?;
    lists("operations", &expected.operations, &got.operations, operation)?;
    lists("writes", &expected.writes, &got.writes, write)?;
    lists("specs", &expected.specs, &got.specs, spec)?;
    let migration = |turn: &Turn| turn.migration.into_iter().collect::<Vec<_>>();
    lists("migration", &migration(expected), &migration(got), debug)?;
    let (a, b) = (v1::Turn::from(expected), v1::Turn::from(got));
    if a.encode_to_vec() == b.encode_to_vec() {
        return Ok(());
    }
    let (expected, got) = around(&debug(&expected.header), &debug(&got.header));
    Err(Difference {
        kind: "operations",
        expected,
        got,
    })
}

/// Compare a failure with the recorded one.
///
/// # Errors
/// The difference.
pub fn failures(expected: &v1::RecordedFailure, got: &Failure) -> Result<(), Difference> {
    if expected.reason == got.code()
        && expected.limit == got.limit()
        && expected.message == got.to_string()
    {
        return Ok(());
    }
    let kind = if matches!(got, Failure::Trapped(_)) { "trap" } else { "failure" };
    let (expected, got) = around(&expected.message, &got.to_string());
    Err(Difference {
        kind,
        expected,
        got,
    })
}

/// Why a recorded failure cannot be expected to come again.
pub fn depends_on_time(failure: &v1::RecordedFailure) -> Option<String> {
    let (reason, limit) = (&failure.reason, &failure.limit);
    if limit.ends_with("-ms") {
        return Some(format!("limit {limit} ended it: that is about time, not about what was given"));
    }
    (reason == "WORKER_FULL").then(|| format!("not the guest's doing: {}", failure.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{Epoch, FrameworkId, HttpAnswer, TurnHeader, TurnNumber};

    fn turn() -> Turn {
        let write = |key: &str, value: &[u8]| KeyWrite {
            key: key.into(),
            value: Some(value.to_vec()),
        };
        let answer = HttpAnswer {
            status: 200,
            headers: vec![],
            body: format!("{}x", "same ".repeat(100)).into_bytes(),
        };
        Turn {
            header: TurnHeader {
                framework: FrameworkId(1),
                epoch: Epoch(1),
                number: TurnNumber(7),
                time_ms: 5,
            },
            consumed: vec![],
            operations: vec![Operation::Revive, Operation::Respond { request: 1, answer }],
            writes: vec![write("a", b"1"), write("b", &[0xff])],
            specs: vec![],
            migration: None,
        }
    }

    #[test]
    fn the_first_difference_is_told_in_words() {
        assert_eq!(turns(&turn(), &turn()), Ok(()));
        let told = |change: fn(&mut Turn)| {
            let mut other = turn();
            change(&mut other);
            let found = turns(&turn(), &other).unwrap_err();
            assert!(found.expected.len() < 800 && found.got.len() < 800);
            (found.kind, found.expected, found.got)
        };
        let (kind, expected, got) = told(|turn| turn.writes[0].value = None);
        assert_eq!((kind, expected.as_str(), got.as_str()), (
            "writes",
            "1. of writes: \"a\" = \"1\"",
            "1. of writes: \"a\" deleted",
        ));
        let (kind, expected, got) = told(|turn| turn.writes.truncate(1));
        assert_eq!((kind, got.as_str()), ("writes", "2. of writes: nothing"));
        assert_eq!(expected, "2. of writes: \"b\" = 1 bytes [ff]");
        let (kind, expected, got) = told(|turn| {
            if let Operation::Respond { answer, .. } = &mut turn.operations[1] {
                answer.body.pop();
                answer.body.push(b'y');
            }
        });
        assert_eq!(kind, "operations");
        assert!(expected.ends_with("same x\"") && got.ends_with("same y\""), "{expected} {got}");
        assert_eq!(told(|turn| turn.header.time_ms += 1).0, "operations");
    }

    #[test]
    fn failures_of_time_are_not_expected_again() {
        let failure = |reason: &str, limit: &str| v1::RecordedFailure {
            reason: reason.into(),
            limit: limit.into(),
            message: "trapped: x".into(),
        };
        for (reason, limit, depends) in [
            ("GUEST_LIMIT", "turn-cpu-ms", true),
            ("GUEST_LIMIT", "memory-bytes", false),
            ("TRAPPED", "", false),
            ("WORKER_FULL", "", true),
        ] {
            let said = depends_on_time(&failure(reason, limit));
            assert_eq!(said.is_some(), depends, "{reason} {limit}");
        }
        let trapped = Failure::Trapped("x".into());
        assert_eq!(failures(&failure("TRAPPED", ""), &trapped), Ok(()));
        let other = Failure::Trapped("y".into());
        assert_eq!(failures(&failure("TRAPPED", ""), &other).unwrap_err().kind, "trap");
    }
}
