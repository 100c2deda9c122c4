//! Histories made by hand, each with its verdict and the reason.

use tessera_linear::{
    AppendList, History, Model, Operation, Register, Verdict, check, check_within,
};

use crate::notation::{list, register};

/// Name, history, and the answers in the shortest beginning that is bad, or 0 if all is good.
type Case = (&'static str, &'static str, usize);

const REGISTERS: &[Case] = &[
    ("nothing at all", "", 0),
    ("an empty key", "1 a 0-1 read -", 0),
    ("a value from nowhere", "1 a 0-1 read x", 1),
    (
        "one after the other",
        "1 a 0-1 write x\n 2 a 2-3 read x\n 1 a 4-5 remove\n 2 a 6-7 read -",
        0,
    ),
    (
        "a stale read",
        "1 a 0-1 write x\n 1 a 2-3 write y\n 2 a 4-5 read x",
        3,
    ),
    (
        "a read beside the write sees the old value",
        "1 a 0-1 write x\n 1 a 2-9 write y\n 2 a 4-5 read x",
        0,
    ),
    (
        "a read beside the write sees the new value",
        "1 a 0-1 write x\n 1 a 2-9 write y\n 2 a 4-5 read y",
        0,
    ),
    (
        "a value that was seen cannot be unseen, though the write is still under way",
        "1 a 0-1 write x\n 1 a 2-20 write y\n 2 a 4-5 read y\n 3 a 6-7 read x",
        3,
    ),
    (
        "two reads that overlap may see the change in either order",
        "1 a 0-1 write x\n 1 a 2-20 write y\n 2 a 4-8 read y\n 3 a 6-9 read x",
        0,
    ),
    (
        "touching counts as simultaneous",
        "1 a 0-5 write x\n 2 a 5-9 read -",
        0,
    ),
    (
        "a moment later does not",
        "1 a 0-5 write x\n 2 a 6-9 read -",
        2,
    ),
    ("a lost write", "1 a 0-1 write x\n 2 a 2-3 read -", 2),
    (
        "a lost remove",
        "1 a 0-1 write x\n 1 a 2-3 remove\n 2 a 4-5 read x",
        3,
    ),
    (
        "a split brain: each side sees its own writes only",
        "1 a 0-1 write x\n 2 a 2-3 write y\n 1 a 4-5 read x\n 2 a 6-7 read y",
        3,
    ),
    (
        "two readers that see two writes in opposite orders",
        "1 a 0-9 write x\n 2 a 0-9 write y\n 3 a 10-11 read x\n 3 a 12-13 read y",
        4,
    ),
    (
        "two leaders grant the same swap",
        "1 a 0-1 write x\n 1 a 2-9 swap x y done\n 2 a 3-8 swap x z done",
        3,
    ),
    (
        "one of two swaps is granted",
        "1 a 0-1 write x\n 1 a 2-9 swap x y done\n 2 a 3-8 swap x z differs",
        0,
    ),
    (
        "a swap that was refused, though the value was there",
        "1 a 0-1 write x\n 2 a 2-3 swap x y differs",
        2,
    ),
    (
        "a swap of what is not there yet",
        "1 a 0-1 swap - x done\n 2 a 2-3 swap - y differs\n 1 a 4-5 read x",
        0,
    ),
    (
        "set once, twice",
        "1 a 0-1 swap - x done\n 2 a 2-3 swap - y done",
        2,
    ),
    (
        "a swap that was applied twice undoes the write between",
        "1 a 0-1 write x\n 1 a 2-3 swap x y done\n 2 a 4-5 write x\n 3 a 6-7 read y",
        4,
    ),
    (
        "a retried swap that is told of its own first try",
        "1 a 0-1 write x\n 1 a 2-9 swap x y differs\n 2 a 10-11 read y",
        2,
    ),
    (
        "a write of unknown outcome happened",
        "1 a 0-1 write x\n 1 a 2- write y\n 2 a 4-5 read y",
        0,
    ),
    (
        "a write of unknown outcome did not happen",
        "1 a 0-1 write x\n 1 a 2- write y\n 2 a 4-5 read x",
        0,
    ),
    (
        "a write of unknown outcome happened much later",
        "1 a 0-1 write x\n 1 a 2- write y\n 2 a 4-5 read x\n 2 a 6-7 write z\n 2 a 8-9 read y",
        0,
    ),
    (
        "a write of unknown outcome happens once only",
        "1 a 0-1 write x\n 1 a 2- write y\n 2 a 4-5 read y\n 2 a 6-7 write z\n 2 a 8-9 read y",
        4,
    ),
    (
        "a write of unknown outcome does not happen before its call",
        "2 a 0-1 read y\n 1 a 2- write y",
        1,
    ),
    (
        "a write of unknown outcome cannot be undone",
        "1 a 0-1 write x\n 1 a 2- write y\n 2 a 4-5 read y\n 2 a 6-7 read x",
        3,
    ),
    (
        "two writes of the same value, both of unknown outcome, may both happen",
        "1 a 0- write y\n 2 a 1- write y\n 3 a 2-3 read y\n 3 a 4-5 write z\n 3 a 6-7 read y",
        0,
    ),
    (
        "but not three times",
        "1 a 0- write y\n 2 a 1- write y\n 3 a 2-3 read y\n 3 a 4-5 write z\n 3 a 6-7 read y\n \
         3 a 8-9 write z\n 3 a 10-11 read y",
        5,
    ),
    (
        "a swap of unknown outcome happened",
        "1 a 0-1 write x\n 1 a 2- swap x y\n 2 a 3-4 read y",
        0,
    ),
    (
        "a swap of unknown outcome did not happen",
        "1 a 0-1 write x\n 1 a 2- swap x y\n 2 a 3-4 read x",
        0,
    ),
    (
        "a swap of unknown outcome finds what it asks for later",
        "1 a 0-1 write x\n 1 a 2- swap z y\n 2 a 3-4 read x\n 2 a 5-6 write z\n 2 a 7-8 read y",
        0,
    ),
    (
        "a swap of unknown outcome never found it",
        "1 a 0-1 write x\n 1 a 2- swap z y\n 2 a 3-4 read y",
        2,
    ),
    (
        "swaps of unknown outcome that build on each other",
        "1 a 0- swap w z\n 2 a 0- swap x w\n 3 a 0- swap - x\n 4 a 1-2 read z",
        0,
    ),
    (
        "a read of unknown outcome says nothing",
        "1 a 0-1 write x\n 1 a 2- read\n 2 a 3-4 read x",
        0,
    ),
    (
        "keys do not depend on each other",
        "1 a 0-1 write x\n 2 b 0-1 write y\n 1 b 2-3 read y\n 2 a 2-3 read x",
        0,
    ),
    (
        "one bad key is enough",
        "1 a 0-1 write x\n 2 b 0-1 write y\n 1 b 2-3 read x\n 2 a 2-3 read x",
        2,
    ),
    (
        "what came before the violation is reported, what came after is not",
        "1 a 0-1 write x\n 2 a 2-3 read -\n 1 a 4-5 write y\n 2 a 6-7 read y\n 2 a 8-9 read -",
        2,
    ),
    (
        "an answer to another question",
        "1 a 0-1 swap - x done\n 1 a 2-3 read",
        2,
    ),
    (
        "what was reached with a remove of unknown outcome is reached without it too",
        "2 a 1-6 read x\n 1 a 1-7 remove\n 0 a 2- remove\n 1 a 9-12 swap - x done\n 1 a 16-18 write x\n \
         1 a 23-24 read x\n 1 a 27-33 read -\n 3 a 5-9 write x",
        0,
    ),
    (
        "the same values made by other operations of unknown outcome leave others to happen",
        "0 a 5- swap - y\n 0 a 11-13 read y\n 1 a 1- write x\n 0 a 19-20 read x\n 0 a 22-25 read x\n \
         0 a 27-29 swap y x done\n 2 a 0- swap x -\n 1 a 2- swap x y",
        0,
    ),
];

const LISTS: &[Case] = &[
    (
        "appends in order",
        "1 a 0-1 append x\n 1 a 2-3 append y\n 2 a 4-5 list x,y",
        0,
    ),
    (
        "appends out of order",
        "1 a 0-1 append x\n 1 a 2-3 append y\n 2 a 4-5 list y,x",
        3,
    ),
    (
        "appends at the same time",
        "1 a 0-9 append x\n 2 a 2-3 append y\n 2 a 10-11 list y,x",
        0,
    ),
    (
        "an append that is lost",
        "1 a 0-1 append x\n 1 a 2-3 append y\n 2 a 4-5 list y",
        3,
    ),
    (
        "an append that was applied twice",
        "1 a 0-1 append x\n 2 a 2-3 list x,x",
        2,
    ),
    (
        "an append of unknown outcome, once",
        "1 a 0- append x\n 2 a 2-3 list x\n 2 a 4-5 list x",
        0,
    ),
    (
        "an append of unknown outcome, twice",
        "1 a 0- append x\n 2 a 2-3 list x\n 2 a 4-5 list x,x",
        2,
    ),
    (
        "two of the same, both of unknown outcome",
        "1 a 0- append x\n 3 a 0- append x\n 2 a 2-3 list x,x",
        0,
    ),
    (
        "readers that see two appends in opposite orders",
        "1 a 0-9 append x\n 2 a 0-9 append y\n 3 a 1-2 list x\n 4 a 3-4 list y",
        2,
    ),
    (
        "a list that shrinks",
        "1 a 0-1 append x\n 2 a 2-3 list x\n 2 a 4-5 list -",
        3,
    ),
];

fn judge<M: Model>(
    model: &M,
    cases: &[Case],
    parse: impl Fn(&str) -> History<M::Input, M::Output>,
) {
    for (name, text, bad_answers) in cases {
        let verdict = check(model, &parse(text));
        let answers = verdict.violation().map_or(0, |violation| {
            let answered = |o: &&Operation<_, _>| o.outcome.returned_at().is_some();
            violation
                .prefix
                .operations()
                .iter()
                .filter(answered)
                .count()
        });
        assert_eq!(answers, *bad_answers, "{name}: {verdict}");
        assert_eq!(
            verdict.is_linearizable(),
            *bad_answers == 0,
            "{name}: {verdict}"
        );
    }
}

#[test]
fn histories_of_registers_are_judged() {
    judge(&Register, REGISTERS, register);
}

#[test]
fn histories_of_lists_are_judged() {
    judge(&AppendList, LISTS, list);
}

#[test]
fn a_violation_is_told_in_words() {
    let history = register(
        "1 b 0-1 write x\n 1 b 2-3 write y\n 2 b 4-20 write z\n 3 b 5-6 read x\n 1 b 30-31 read z\n \
         4 b 2- write w\n 1 a 40-41 write q",
    );
    let verdict = check(&Register, &history);
    let violation = verdict.violation().expect("a stale read");
    assert_eq!(
        (violation.key.as_str(), violation.culprit.process),
        ("b", 3)
    );
    let expected = "not linearizable: key b, no order explains its first 3 answers
  this one fits nowhere:
    process 3 [5, 6]: read, got \"x\"
  until then the key could hold only:
    \"y\"
    \"w\"
    \"z\"
  the longest order ends with:
    process 1 [0, 1]: write \"x\", done
    process 1 [2, 3]: write \"y\", done
    process 4 [2, never]: write \"w\"
  at the same time, or without an answer:
    process 2 [4, 20]: write \"z\", done
    process 4 [2, never]: write \"w\"";
    assert_eq!(verdict.to_string(), expected);
    // What is reported is a history that fails by itself.
    assert!(check(&Register, &violation.prefix).violation().is_some());
}

/// Writes of unknown outcome that do not say which of them a read saw: the worst that there is.
fn many_unknown(writes: usize) -> String {
    let mut text: String = (0..writes)
        .map(|n| format!("{n} a 0- swap {n} {}\n", (n * 7 + 3) % writes))
        .collect();
    text += "1000 a 1-2 write 0\n 1000 a 3-4 read nowhere";
    text
}

#[test]
fn a_search_that_reaches_its_bound_says_neither_yes_nor_no() {
    let history = register(&many_unknown(40));
    let verdict = check_within(&Register, &history, 20);
    assert_eq!(
        verdict,
        Verdict::Unknown {
            keys: vec!["a".to_owned()],
            steps_max: 20
        }
    );
    assert!(!verdict.is_linearizable() && verdict.violation().is_none());
    assert!(
        verdict
            .to_string()
            .starts_with("not known: 20 steps were not enough for a;")
    );
}

#[test]
fn a_violation_on_one_key_counts_more_than_a_bound_on_another() {
    let text = many_unknown(40) + "\n2000 b 0-1 read x";
    let verdict = check_within(&Register, &register(&text), 20);
    assert_eq!(
        verdict.violation().map(|violation| violation.key.as_str()),
        Some("b")
    );
}
