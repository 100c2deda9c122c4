//! A whole cluster in one thread on virtual time: one, three or five masters, several agents, their
//! workers, shims and schedulers, users, a network that loses what it carries, and faults drawn from a seed.
//!
//! The masters' nodes and both cores are the real ones; everything around them is simulated here.
//! Invariants: a run is a function of its seed and its planted bug; after each step the oracle checks
//! what must always hold, and after the last fault everything must agree again in bounded time. Must
//! never use real time, threads, files or sockets.

mod agent;
mod builds;
mod calls;
mod disk;
mod executor;
mod faults;
mod group;
mod journal;
mod master;
mod members;
mod model;
mod mutation;
mod network;
mod oracle;
mod peers;
mod plants;
mod queue;
mod rng;
mod shims;
mod user;
mod worker;
mod world;

pub use mutation::Mutation;
pub use world::{Options, Outcome, run};

/// What a person needs to look into a failed run.
#[must_use]
pub fn report(options: &Options, outcome: &Outcome) -> String {
    let mutation = options.mutation.map(|m| format!(" --mutation {m}")).unwrap_or_default();
    let violation = outcome.violation.as_deref().unwrap_or("nothing was violated");
    format!(
        "seed {}{}: {violation}\n  at {} ms, {} masters, {} lives of them, {} turns committed; the last lines:\n{}\n  replay: cargo run -p tessera-sim --bin sim -- --seed {}{mutation} -v",
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
