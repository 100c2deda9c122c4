//! Seeds of the simulation: none may violate anything, and each planted bug must be found.
//!
//! Invariant: the number of seeds is bounded by `TESSERA_SIM_SEEDS` or a constant, never by time.

use tessera_sim::{Mutation, Options, report, run};

/// Seeds of an ordinary run of the tests: some six hours of virtual time, in 80 seconds of CPU time.
const SEEDS: u64 = 600;
/// Seeds among which a planted bug must be found.
const SEEDS_PER_MUTATION: u64 = 200;
/// Threads over which seeds are spread; each run is in one.
const THREADS: u64 = 2;

fn seeds() -> u64 {
    std::env::var("TESSERA_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

/// The first failure among seeds, as a report.
fn first_failure(seeds: impl Iterator<Item = u64>, mutation: Option<Mutation>) -> Option<String> {
    seeds.map(|seed| Options { seed, mutation, print: false }).find_map(|options| {
        let outcome = run(options);
        outcome.violation.is_some().then(|| report(&options, &outcome))
    })
}

#[test]
fn no_seed_violates_anything() {
    let count = seeds();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || {
                first_failure((1..=count).filter(|seed| seed % THREADS == thread), None)
            })
        })
        .collect();
    for thread in threads {
        let failure = thread.join().expect("a run must not panic");
        assert!(failure.is_none(), "{}", failure.unwrap_or_default());
    }
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in [1, 2, 3] {
        let options = Options { seed, mutation: None, print: false };
        let (first, second) = (run(options), run(options));
        assert!(first.lines > 100, "seed {seed} did nothing");
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed} took two courses");
        assert_eq!(first.lines, second.lines);
    }
    let other = |seed| run(Options { seed, mutation: None, print: false }).fingerprint;
    assert_ne!(other(1), other(2));
}

fn is_found(mutation: Mutation) {
    let found = first_failure(1..=SEEDS_PER_MUTATION, Some(mutation));
    assert!(found.is_some(), "no seed up to {SEEDS_PER_MUTATION} finds {mutation}");
}

#[test]
fn a_disk_that_loses_synced_batches_is_found() {
    is_found(Mutation::SyncedBatchLost);
}

#[test]
fn a_disk_that_drops_rows_is_found() {
    is_found(Mutation::RowsDropped);
}

#[test]
fn acknowledging_statuses_before_their_commit_is_found() {
    is_found(Mutation::StatusesAcknowledgedEarly);
}

#[test]
fn answering_turns_before_their_commit_is_found() {
    is_found(Mutation::TurnAnsweredEarly);
}

#[test]
fn relabelling_turns_of_a_fenced_instance_is_found() {
    is_found(Mutation::StaleEpochRelabelled);
}

#[test]
fn acting_before_the_checkpoint_is_found() {
    is_found(Mutation::ActsBeforeCheckpoint);
}

#[test]
fn forgetting_the_checkpoint_is_found() {
    is_found(Mutation::CheckpointForgotten);
}

#[test]
fn running_desired_tasks_again_is_found() {
    is_found(Mutation::DesiredRunAgain);
}

#[test]
fn forgetting_an_outstanding_turn_is_found() {
    is_found(Mutation::OutstandingTurnForgotten);
}

#[test]
fn tearing_task_groups_and_gangs_apart_is_found() {
    is_found(Mutation::UnitsTornApart);
}

#[test]
fn forgetting_task_groups_is_found() {
    is_found(Mutation::GroupsForgotten);
}

#[test]
fn keeping_state_over_a_rollback_is_found() {
    is_found(Mutation::StateKeptOverEpochs);
}

#[test]
fn forgetting_turns_of_executors_is_found() {
    is_found(Mutation::ExecutorTurnsForgotten);
}

#[test]
fn passing_messages_of_executors_on_twice_is_found() {
    is_found(Mutation::MessagesDoubled);
}

#[test]
fn ending_the_tasks_of_a_quarantined_scheduler_is_found() {
    is_found(Mutation::QuarantineEndsTasks);
}
