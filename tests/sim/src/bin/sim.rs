//! Replays seeds of the simulation: `sim --seed N [--count N] [--mutation NAME] [--spare BITS]
//! [--history FILE] [-v]`.
//!
//! Invariant: prints what the tests see, and exits with 1 if anything was violated.

use std::collections::BTreeMap;
use std::process::ExitCode;
use tessera_sim::{Mutation, Options, report, run, shrink};

const USAGE: &str = "usage: sim --seed N [--count N] [--mutation NAME] [--spare BITS] [--history FILE] [-v]";

struct Arguments {
    first: u64,
    count: u64,
    mutation: Option<Mutation>,
    /// Faults that do not strike.
    spared: u128,
    print: bool,
    /// Where the history of the last seed goes.
    history: Option<String>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { first: 1, count: 1, mutation: None, spared: 0, print: false, history: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is no number"));
        match word.as_str() {
            "--seed" => arguments.first = number(value()?)?,
            "--count" => arguments.count = number(value()?)?,
            "--mutation" => arguments.mutation = Some(value()?.parse()?),
            "--spare" => {
                let text = value()?;
                arguments.spared = u128::from_str_radix(&text, 16)
                    .map_err(|_| format!("{text} is no hexadecimal number"))?;
            }
            "--history" => arguments.history = Some(value()?),
            "-v" => arguments.print = true,
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    let mut slowest = (0, 0);
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in arguments.first..arguments.first.saturating_add(arguments.count) {
        let Arguments { mutation, print, spared, .. } = arguments;
        let options = Options { seed, mutation, print, spared };
        let outcome = run(options);
        if let Some(path) = &arguments.history
            && let Err(error) = std::fs::write(path, &outcome.history)
        {
            eprintln!("{path}: {error}");
            return ExitCode::from(2);
        }
        slowest = slowest.max((outcome.converged_ms, seed));
        for (what, times) in &outcome.seen {
            *seen.entry(what).or_default() += times;
        }
        if outcome.violation.is_some() {
            failed += 1;
            println!("{}", report(&options, &outcome));
            if spared == 0 && mutation.is_none() {
                let (options, outcome) = shrink(options, outcome);
                println!("with fewer faults:\n{}", report(&options, &outcome));
            }
        } else if arguments.count == 1 {
            println!(
                "seed {seed}: nothing violated in {} ms, {} turns, {} lines, fingerprint {:016x}",
                outcome.ended_ms, outcome.commits, outcome.lines, outcome.fingerprint
            );
        }
    }
    if arguments.count > 1 {
        let (ms, seed) = slowest;
        for (what, times) in &seen {
            println!("{times:>6} times {what}");
        }
        println!("{failed} of {} seeds failed; seed {seed} took longest to agree: {ms} ms", arguments.count);
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
