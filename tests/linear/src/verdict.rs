//! What a check found, and its words. Owns the report on a violation.

use std::fmt::{self, Write};

use crate::history::{History, Operation};
use crate::model::Model;
use crate::search::Stuck;

/// Operations that ran beside the culprit and are shown; there are as many as clients, and open ones.
const BESIDE_MAX: usize = 12;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<I, O> {
    /// There is an order for each key.
    Linearizable {
        /// Keys that were checked.
        keys: usize,
        /// Their operations.
        operations: usize,
        /// Work that it took.
        steps: u64,
    },
    /// There is none for a key.
    Violated(Box<Violation<I, O>>),
    /// Neither was shown within the bound.
    Unknown {
        /// Keys on which the bound was reached; the others are linearizable.
        keys: Vec<String>,
        /// The bound.
        steps_max: u64,
    },
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation<I, O> {
    /// The first key, by name, that has no order.
    pub key: String,
    /// The shortest beginning that has none; what was under way at its end is of unknown outcome in it.
    pub prefix: History<I, O>,
    /// The operation whose answer fits nowhere.
    pub culprit: Operation<I, O>,
    /// All of this in words, over several lines.
    pub text: String,
}

impl<I, O> Verdict<I, O> {
    /// Whether an order was found for every key.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable { .. })
    }

    /// What is wrong, if that was shown.
    pub fn violation(&self) -> Option<&Violation<I, O>> {
        match self {
            Self::Violated(violation) => Some(violation),
            Self::Linearizable { .. } | Self::Unknown { .. } => None,
        }
    }
}

impl<I, O> fmt::Display for Verdict<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable {
                keys,
                operations,
                steps,
            } => write!(
                f,
                "linearizable: {operations} operations on {keys} keys, in {steps} steps"
            ),
            Self::Violated(violation) => f.write_str(&violation.text),
            Self::Unknown { keys, steps_max } => write!(
                f,
                "not known: {steps_max} steps were not enough for {}; allow more, or use more keys \
                 with fewer operations of unknown outcome each",
                keys.join(", ")
            ),
        }
    }
}

/// A violation in words.
pub(crate) fn explain<M: Model>(
    model: &M,
    key: &str,
    operations: &[&Operation<M::Input, M::Output>],
    (returns, culprit): (usize, usize),
    stuck: Option<&Stuck<M::State>>,
) -> String {
    let line = |operation: &Operation<M::Input, M::Output>| {
        let returned = operation.outcome.returned_at();
        let end = returned.map_or_else(|| "never".to_owned(), |at| at.to_string());
        let what = model.describe(&operation.input, operation.outcome.output());
        format!(
            "process {} [{}, {end}]: {what}",
            operation.process, operation.call
        )
    };
    let mut text = format!(
        "not linearizable: key {key}, no order explains its first {returns} answers\n  \
         this one fits nowhere:\n    {}",
        line(operations[culprit])
    );
    let mut list = |title: &str, lines: &mut dyn Iterator<Item = String>| {
        let lines: Vec<_> = lines.collect();
        if !lines.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  {title}:\n    {}", lines.join("\n    "));
        }
    };
    if let Some(Stuck { states, tail, .. }) = stuck {
        list(
            "until then the key could hold only",
            &mut states.iter().map(|s| model.describe_state(s)),
        );
        let mut last = tail.iter().map(|position| line(operations[*position]));
        list("the longest order ends with", &mut last);
    }
    let (call, end) = (
        operations[culprit].call,
        operations[culprit].outcome.returned_at(),
    );
    let mut beside: Vec<_> = (operations.iter().enumerate())
        .filter(|(position, operation)| {
            let returned = operation.outcome.returned_at();
            *position != culprit
                && end.is_none_or(|end| operation.call <= end)
                && returned.is_none_or(|returned| returned >= call)
        })
        .map(|(_, operation)| *operation)
        .collect();
    // The latest first: what was left open long ago is the least likely to matter.
    beside.sort_by_key(|operation| std::cmp::Reverse(operation.call));
    let more = beside.len().saturating_sub(BESIDE_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    let shown = beside.into_iter().take(BESIDE_MAX).map(line);
    list(
        "at the same time, or without an answer",
        &mut shown.chain(more),
    );
    text
}
