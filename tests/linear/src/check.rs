//! Checks a history key by key, and narrows a failure down to its shortest beginning. Owns the bound on
//! the work for one key.

use std::ops::Range;

use crate::history::{History, Operation, Outcome};
use crate::model::Model;
use crate::proof::flaw;
use crate::search::{Found, Search, answers};
use crate::verdict::{Verdict, Violation, explain};

/// Steps for one key: one or two seconds and 200 MB at worst, as measured. A key of a cluster's test takes a
/// few for each operation; one that takes more has hundreds of unknown outcomes and should be split.
pub const STEPS_MAX: u64 = 10_000_000;

/// Whether a history is linearizable, with the usual bound.
///
/// # Panics
/// When an order that was found is none, which would be a mistake of the search.
pub fn check<M: Model>(
    model: &M,
    history: &History<M::Input, M::Output>,
) -> Verdict<M::Input, M::Output> {
    check_within(model, history, STEPS_MAX)
}

/// The same, with so many steps for each key.
///
/// # Panics
/// As [`check`].
pub fn check_within<M: Model>(
    model: &M,
    history: &History<M::Input, M::Output>,
    steps_max: u64,
) -> Verdict<M::Input, M::Output> {
    let mut unknown = Vec::new();
    let (mut keys, mut steps) = (0, 0);
    for (key, operations) in history.by_key() {
        keys += 1;
        let returns = answers(&operations).len();
        let mut search = Search::new(model, &operations, returns);
        match search.run(steps_max) {
            Found::Order(order) => {
                let flaw = flaw(model, &operations, &order);
                assert!(
                    flaw.is_none(),
                    "the search for key {key} is wrong: {flaw:?}"
                );
            }
            Found::OutOfSteps => unknown.push(key.to_owned()),
            Found::Nothing(stuck) => {
                drop(search);
                let returns = shortest(model, &operations, stuck.rank..returns, steps_max);
                let violation = violation(model, key, &operations, returns, steps_max);
                return Verdict::Violated(Box::new(violation));
            }
        }
        steps += search.steps();
    }
    let operations = history.operations().len();
    if unknown.is_empty() {
        Verdict::Linearizable {
            keys,
            operations,
            steps,
        }
    } else {
        Verdict::Unknown {
            keys: unknown,
            steps_max,
        }
    }
}

/// The fewest answers that no order explains, which is well defined: a beginning of a linearizable
/// history is linearizable. The end of the range is known for bad. A beginning that cannot be judged within
/// what is left of the bound is taken for good, so that what is reported was always proved.
fn shortest<M: Model>(
    model: &M,
    operations: &[&Operation<M::Input, M::Output>],
    Range {
        start: mut low,
        end: mut high,
    }: Range<usize>,
    mut steps_left: u64,
) -> usize {
    while low < high {
        // Nearer to the low end, as a good beginning is shown to be good much sooner than a bad one bad.
        let middle = low + (high - low) / 8;
        let mut search = Search::new(model, operations, middle);
        match search.run(steps_left) {
            Found::Nothing(stuck) => (low, high) = (low.max(stuck.rank), middle),
            Found::Order(_) | Found::OutOfSteps => low = middle + 1,
        }
        steps_left = steps_left.saturating_sub(search.steps());
    }
    high
}

/// What is wrong with the beginning that has so many answers: its last answer.
fn violation<M: Model>(
    model: &M,
    key: &str,
    operations: &[&Operation<M::Input, M::Output>],
    returns: usize,
    steps_max: u64,
) -> Violation<M::Input, M::Output> {
    let answers = answers(operations);
    // A failure has an answer that fits nowhere.
    let (end, culprit) = answers[returns - 1];
    let mut search = Search::new(model, operations, returns).without_hint_of(culprit);
    let stuck = match search.run(steps_max) {
        Found::Nothing(stuck) if stuck.rank == returns => Some(stuck),
        _ => None,
    };
    let mut answered = vec![false; operations.len()];
    answers[..returns]
        .iter()
        .for_each(|(_, position)| answered[*position] = true);
    let mut prefix = Vec::new();
    for (operation, answered) in operations.iter().zip(answered) {
        if answered {
            prefix.push((*operation).clone());
        } else if operation.call <= end {
            prefix.push(Operation {
                outcome: Outcome::Unknown,
                ..(*operation).clone()
            });
        }
    }
    Violation {
        key: key.to_owned(),
        culprit: operations[culprit].clone(),
        text: explain(model, key, operations, (returns, culprit), stuck.as_ref()),
        prefix: History::part(prefix),
    }
}
