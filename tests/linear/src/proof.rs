//! Checks an order that the search found, in a way that shares nothing with the search. Owns the definition
//! of what such an order is.

use crate::history::Operation;
use crate::model::Model;

/// Why an order proves nothing, if so. It must have every operation that was answered, none twice, none
/// after one that was called when it had returned, and the model must allow every answer in it.
pub fn flaw<M: Model>(
    model: &M,
    operations: &[&Operation<M::Input, M::Output>],
    order: &[usize],
) -> Option<String> {
    let mut missing = vec![true; operations.len()];
    let mut state = model.initial();
    let mut latest_call = 0;
    for position in order {
        let operation = operations[*position];
        if !std::mem::replace(&mut missing[*position], false) {
            return Some(format!("operation {position} is in order twice"));
        }
        let outcome = &operation.outcome;
        if outcome
            .returned_at()
            .is_some_and(|returned| returned < latest_call)
        {
            return Some(format!(
                "operation {position} had returned before one that precedes it"
            ));
        }
        latest_call = latest_call.max(operation.call);
        let Some(next) = model.step(&state, &operation.input, outcome.output()) else {
            return Some(format!(
                "operation {position} could not have had its answer"
            ));
        };
        state = next;
    }
    let answered = |position: &usize| operations[*position].outcome.returned_at().is_some();
    let left_out = (0..operations.len()).find(|position| missing[*position] && answered(position));
    left_out.map(|position| format!("operation {position} is not in order"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;
    use crate::model::{Append, AppendAnswer, AppendList};

    #[test]
    fn orders_that_prove_nothing_are_found_out() {
        let operation = |call, value: Option<&str>, at: Option<u64>| {
            let output = match value {
                Some(_) => AppendAnswer::Done,
                None => AppendAnswer::Values {
                    values: vec!["a".to_owned()],
                },
            };
            Operation {
                process: call,
                key: String::new(),
                call,
                input: value.map_or(Append::Read, |value| Append::Append {
                    value: value.to_owned(),
                }),
                outcome: at.map_or(Outcome::Unknown, |at| Outcome::Returned { at, output }),
            }
        };
        let history = [
            operation(0, Some("a"), Some(9)),
            operation(1, None, Some(5)),
            operation(6, Some("b"), None),
            operation(20, Some("c"), Some(30)),
        ];
        let operations: Vec<_> = history.iter().collect();
        let cases: &[(&[usize], Option<&str>)] = &[
            (&[0, 1, 3], None),
            (&[0, 1, 2, 3], None),
            (&[0, 1, 1, 3], Some("twice")),
            (&[0, 1], Some("not in order")),
            (&[1, 0, 3], Some("could not have")),
            (&[0, 2, 1, 3], Some("had returned before")),
            (&[0, 1, 3, 2], None),
        ];
        for (order, expected) in cases {
            let flaw = flaw(&AppendList, &operations, order);
            let fits = match expected {
                None => flaw.is_none(),
                Some(part) => flaw.as_ref().is_some_and(|flaw| flaw.contains(part)),
            };
            assert!(fits, "{order:?}: {flaw:?}");
        }
    }
}
