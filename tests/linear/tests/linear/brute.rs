//! Small random histories, most of them bad, judged by trying all orders and by the checker.

use tessera_linear::{
    Append, AppendAnswer, AppendList, History, Model, Operation, Outcome, Register, RegisterAnswer,
    RegisterCall, check,
};

use crate::rng::Rng;

/// Histories for each model; a few seconds in all.
const HISTORIES: u64 = 40_000;
/// Operations of a history: all their orders are soon tried.
const OPERATIONS_MAX: u64 = 8;

/// Whether what is left can be put in order after this state, with nothing remembered or left out but
/// what the definition says.
fn has_order<M: Model>(
    model: &M,
    state: &M::State,
    left: &[&Operation<M::Input, M::Output>],
) -> bool {
    if left
        .iter()
        .all(|operation| operation.outcome.output().is_none())
    {
        return true;
    }
    (0..left.len()).any(|index| {
        let mut rest = left.to_vec();
        let next = rest.remove(index);
        let precedes = |other: &&Operation<_, _>| {
            other
                .outcome
                .returned_at()
                .is_some_and(|returned| returned < next.call)
        };
        !rest.iter().any(precedes)
            && model
                .step(state, &next.input, next.outcome.output())
                .is_some_and(|state| has_order(model, &state, &rest))
    })
}

/// Random operations that fit together, with questions and answers by `draw`.
fn operations<I, O>(rng: &mut Rng, draw: impl Fn(&mut Rng) -> (I, O)) -> Vec<Operation<I, O>> {
    let processes = 1 + rng.below(4);
    let unknown = rng.below(70);
    let mut free = vec![0; 4];
    (0..1 + rng.below(OPERATIONS_MAX))
        .map(|_| {
            let process = rng.below(processes);
            let at = &mut free[usize::try_from(process).unwrap_or(0)];
            let call = *at + rng.below(6);
            let returned = call + rng.below(8);
            let (input, output) = draw(rng);
            let outcome = if rng.chance(unknown) {
                *at = call + 1;
                Outcome::Unknown
            } else {
                *at = returned + 1;
                Outcome::Returned {
                    at: returned,
                    output,
                }
            };
            Operation {
                process,
                key: "a".to_owned(),
                call,
                input,
                outcome,
            }
        })
        .collect()
}

/// Judges in both ways; how many were good, and how many bad.
fn compare<M: Model>(
    model: &M,
    draw: impl Fn(&mut Rng) -> (M::Input, M::Output),
    seed: u64,
) -> (u64, u64) {
    let (mut good, mut bad) = (0, 0);
    for index in 0..HISTORIES {
        let mut rng = Rng(seed ^ index << 20);
        let operations = operations(&mut rng, &draw);
        let left: Vec<_> = operations.iter().collect();
        let expected = has_order(model, &model.initial(), &left);
        let verdict = check(model, &History::new(operations.clone()).expect("a history"));
        assert_eq!(
            verdict.is_linearizable(),
            expected,
            "{verdict}\nof {operations:#?}"
        );
        if let Some(violation) = verdict.violation() {
            check_shortest(model, &operations, violation.prefix.operations());
        }
        *(if expected { &mut good } else { &mut bad }) += 1;
    }
    (good, bad)
}

/// The reported beginning is bad, and without its last answer it is not.
fn check_shortest<M: Model>(
    model: &M,
    operations: &[Operation<M::Input, M::Output>],
    prefix: &[Operation<M::Input, M::Output>],
) {
    let left: Vec<_> = prefix.iter().collect();
    assert!(
        !has_order(model, &model.initial(), &left),
        "{prefix:#?}\nof {operations:#?}"
    );
    let answers = prefix.iter().enumerate();
    let last = answers
        .filter_map(|(index, o)| Some((o.outcome.returned_at()?, index)))
        .max();
    let mut shorter = prefix.to_vec();
    shorter[last.expect("a bad history has an answer").1].outcome = Outcome::Unknown;
    let left: Vec<_> = shorter.iter().collect();
    assert!(
        has_order(model, &model.initial(), &left),
        "{shorter:#?}\nof {operations:#?}"
    );
}

#[test]
fn registers_are_judged_as_by_trying_all_orders() {
    let draw = |rng: &mut Rng| {
        let mut value = || [None, Some("x"), Some("y")][rng.below(3) as usize].map(str::to_owned);
        let (one, other) = (value(), value());
        match rng.below(4) {
            0 => (RegisterCall::Write { value: one }, RegisterAnswer::Done),
            1 | 2 => (RegisterCall::Read, RegisterAnswer::Value { value: one }),
            _ => {
                let done = rng.chance(60);
                let output = if done {
                    RegisterAnswer::Done
                } else {
                    RegisterAnswer::Differs
                };
                (
                    RegisterCall::Cas {
                        from: one,
                        to: other,
                    },
                    output,
                )
            }
        }
    };
    let (good, bad) = compare(&Register, draw, 1);
    assert!(
        good > HISTORIES / 10 && bad > HISTORIES / 10,
        "{good} good, {bad} bad"
    );
}

#[test]
fn lists_are_judged_as_by_trying_all_orders() {
    let draw = |rng: &mut Rng| {
        let value = |rng: &mut Rng| ["x", "y"][rng.below(2) as usize].to_owned();
        if rng.chance(60) {
            return (Append::Append { value: value(rng) }, AppendAnswer::Done);
        }
        let values = (0..rng.below(3)).map(|_| value(rng)).collect();
        (Append::Read, AppendAnswer::Values { values })
    };
    let (good, bad) = compare(&AppendList, draw, 2);
    assert!(
        good > HISTORIES / 10 && bad > HISTORIES / 10,
        "{good} good, {bad} bad"
    );
}
