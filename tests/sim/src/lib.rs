//! A whole cluster in one thread on virtual time: one, three or five masters, several agents, their
//! workers, shims and schedulers, users, a network that loses what it carries, and faults drawn from a seed.
//!
//! The masters' nodes and both cores are the real ones; everything around them is simulated here.
//! Invariants: a run is a function of its seed and its planted bug; after each step the oracle checks
//! what must always hold, and after the last fault everything must agree again in bounded time. Must
//! never use real time, threads, files or sockets.

mod agent;
mod agreement;
mod builds;
mod calls;
mod clocks;
mod disk;
mod executor;
mod faults;
mod files;
mod folder;
mod group;
mod hardships;
mod journal;
mod master;
mod members;
mod model;
mod mutation;
mod network;
mod numbered;
mod operator;
mod oracle;
mod peers;
mod plants;
mod queue;
mod restore;
mod sandboxes;
mod shares;
mod shims;
mod user;
mod wishes;
mod worker;
mod world;

pub use mutation::Mutation;
pub use world::{Options, Outcome, run};

/// Runs that look for fewer faults that fail as well: some seconds at most.
const SHRINKS_MAX: usize = 60;

/// Looks for fewer faults with which a run still fails; gives back what fails with the fewest that were found.
#[must_use]
pub fn shrink(options: Options, outcome: Outcome) -> (Options, Outcome) {
    let (mut least, mut failed) = (options, outcome);
    let mut tries = 0;
    // All from some fault on first, then ever smaller parts of them.
    let mut len = failed.faults.min(u128::BITS);
    while len > 0 && tries < SHRINKS_MAX {
        let mut at = 0;
        while at < failed.faults.min(u128::BITS) && tries < SHRINKS_MAX {
            let part = (u128::MAX >> (u128::BITS - len)).checked_shl(at).unwrap_or(0);
            let spared = least.spared | part;
            if spared != least.spared {
                tries += 1;
                let fewer = Options { spared, print: false, ..least };
                let outcome = run(fewer);
                if outcome.violation.is_some() {
                    (least, failed) = (fewer, outcome);
                }
            }
            at += len;
        }
        len /= 2;
    }
    (least, failed)
}

/// What a person needs to look into a failed run.
#[must_use]
pub fn report(options: &Options, outcome: &Outcome) -> String {
    let mutation = options.mutation.map(|m| format!(" --mutation {m}")).unwrap_or_default();
    let spared = if options.spared == 0 { String::new() } else { format!(" --spare {:x}", options.spared) };
    let struck = outcome.faults - (options.spared & mask(outcome.faults)).count_ones();
    let violation = outcome.violation.as_deref().unwrap_or("nothing was violated");
    format!(
        "seed {}{}: {violation}\n  at {} ms, {} masters, {} lives of them, {struck} faults, {} turns committed; the last lines:\n{}\n  replay: cargo run -p tessera-sim --bin sim -- --seed {}{mutation}{spared} -v",
        options.seed,
        options.mutation.map(|m| format!(" with {m}")).unwrap_or_default(),
        outcome.ended_ms,
        outcome.masters,
        outcome.master_lives,
        outcome.commits,
        outcome.tail.join("\n"),
        options.seed,
    )
}

/// The bits of the first faults.
fn mask(faults: u32) -> u128 {
    1_u128.checked_shl(faults).map_or(u128::MAX, |bit| bit - 1)
}
