//! Long histories of the simulated service: right ones pass, wrong ones do not, and soon enough.

use std::time::{Duration, Instant};

use tessera_linear::{Register, Verdict, check};

use crate::service::{Bug, Options, run};

const SMALL: Options = Options {
    seed: 0,
    clients: 6,
    keys: 3,
    operations: 300,
    unknown: 3,
    bug: None,
};
const SEEDS: u64 = 100;

#[test]
fn histories_of_a_right_service_pass() {
    for seed in 0..SEEDS {
        let options = Options {
            seed,
            clients: 1 + seed % 12,
            unknown: seed % 10,
            ..SMALL
        };
        let verdict = check(&Register, &run(options));
        assert!(verdict.is_linearizable(), "{options:?}: {verdict}");
    }
}

#[test]
fn histories_of_a_wrong_service_fail() {
    for bug in Bug::ALL {
        let found = (0..SEEDS).filter(|seed| {
            let history = run(Options {
                seed: *seed,
                operations: 600,
                bug: Some(bug),
                ..SMALL
            });
            check(&Register, &history).violation().is_some()
        });
        // A bug may show where nobody looks: a lost write that is written over before it is read.
        let found = found.count() as u64;
        assert!(found >= SEEDS * 9 / 10, "{bug:?} in {found} of {SEEDS}");
    }
}

#[test]
fn a_verdict_and_its_words_repeat_with_the_history() {
    for seed in 0..10 {
        let options = Options {
            seed,
            bug: Some(Bug::StaleRead),
            ..SMALL
        };
        assert_eq!(
            check(&Register, &run(options)),
            check(&Register, &run(options))
        );
    }
}

/// How long a check of 10,000 operations may take, which are many more than a simulated seed has.
const IN_TIME: Duration = Duration::from_secs(1);

#[test]
fn ten_thousand_operations_take_less_than_a_second() {
    let long = Options {
        seed: 7,
        clients: 10,
        keys: 50,
        operations: 10_000,
        unknown: 0,
        bug: None,
    };
    let cases = [
        long,
        Options { unknown: 1, ..long },
        Options { unknown: 5, ..long },
        // Everybody at once on one key, which is the worst that clients can do.
        Options { keys: 1, ..long },
        Options {
            keys: 1,
            unknown: 1,
            ..long
        },
        Options {
            keys: 1,
            clients: 64,
            unknown: 1,
            ..long
        },
    ];
    for options in cases {
        let history = run(options);
        let start = Instant::now();
        let verdict = check(&Register, &history);
        let took = start.elapsed();
        println!("{options:?}: {verdict}; {took:?}");
        let Verdict::Linearizable { steps, .. } = verdict else {
            panic!("{options:?}: {verdict}")
        };
        assert!(
            steps < options.operations * 100,
            "{options:?}: {steps} steps"
        );
        assert!(took < IN_TIME, "{options:?}: {took:?}");
    }
}

#[test]
fn bugs_are_found_where_everybody_is_on_one_key() {
    for bug in Bug::ALL {
        let (seed, bug) = (3, Some(bug));
        let options = Options {
            seed,
            clients: 10,
            keys: 1,
            operations: 2_000,
            unknown: 2,
            bug,
        };
        let verdict = check(&Register, &run(options));
        let violation = verdict.violation().expect("a violation");
        // The bug shows from the start, and the report does not go on to the end.
        assert!(
            violation.prefix.operations().len() < 500,
            "{options:?}: {verdict}"
        );
        assert!(
            violation.text.contains("until then"),
            "{options:?}: {verdict}"
        );
        println!("{options:?}: {verdict}");
    }
}
