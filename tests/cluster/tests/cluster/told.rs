//! The table "What is refused, and what to do" of docs/operations.md: its messages are what programs say.
//!
//! Invariants: each message of the table is met by some test through [`told`], and nothing else is. Must never know
//! what a program says from anywhere but its output.

use std::collections::BTreeSet;
use tessera_cluster::{Outcome, ensure};

const PAGE: &str = include_str!("../../../../docs/operations.md");
/// Its part with the table.
const PART: &str = "## What is refused, and what to do";
/// Stands for what differs each time.
const ANYTHING: char = '…';

/// Met where it does not take hours: ten thousand components are made of nothing there.
const ELSEWHERE: [(&str, &str); 1] =
    [("limit COMPONENTS_MAX: …", include_str!("../../../../master/core/src/apply/tests/limits.rs"))];

/// What programs say by the table, in its order.
fn messages() -> Vec<&'static str> {
    let part = PAGE.split_once(PART).map_or("", |(_, part)| part);
    let part = part.split("\n## ").next().unwrap_or_default();
    let cells = part.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    // Every second piece between marks of code is code.
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Whether a text has the pieces of a message one after the other.
fn has(text: &str, message: &str) -> bool {
    let mut rest = text;
    message.split(ANYTHING).map(str::trim).all(|piece| match rest.split_once(piece) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

/// A program said a message of the table, as it stands there.
///
/// # Errors
/// When it did not, or the table has no such message.
pub fn told(message: &'static str, text: &str) -> Outcome {
    ensure(messages().contains(&message), || format!("docs/operations.md has no message {message:?}"))?;
    ensure(has(text, message), || format!("{message:?} of docs/operations.md is not said: {text}"))
}

#[test]
fn every_message_of_the_table_is_met_by_a_test() -> Outcome {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster");
    let mut met = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(path)?;
        let calls = text.split("told(\"").skip(1);
        met.extend(calls.filter_map(|call| call.split('"').next()).map(str::to_owned));
    }
    for (message, source) in ELSEWHERE {
        ensure(has(source, message), || format!("{message} is not met there"))?;
        met.insert(message.to_owned());
    }
    let written: BTreeSet<String> = messages().into_iter().map(str::to_owned).collect();
    ensure(written.len() > 10, || format!("the table was not found: {written:?}"))?;
    let missing: Vec<_> = written.difference(&met).collect();
    ensure(missing.is_empty(), || format!("no test meets these messages of docs/operations.md: {missing:?}"))?;
    let unknown: Vec<_> = met.difference(&written).collect();
    ensure(unknown.is_empty(), || format!("docs/operations.md has no such messages: {unknown:?}"))
}

#[test]
fn pieces_of_a_message_are_met_in_their_order() -> Outcome {
    for (text, message, expected) in [
        ("node 3 was removed from cluster 17; start it", "node … was removed from cluster …", true),
        ("cluster 17 has node 3", "node … cluster", false),
        ("to: this is node 1", "to: this is node …, the message is for node …", false),
    ] {
        ensure(has(text, message) == expected, || format!("{message:?} in {text:?}"))?;
    }
    Ok(())
}
