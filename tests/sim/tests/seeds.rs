//! Seeds of the simulation: none may violate anything, and each planted bug must be found.
//!
//! What a seed found has a test of its own beside the code that was mended, which `docs/track-record.md` names:
//! later changes give the seed another course.
//! Invariant: the number of seeds is bounded by `TESSERA_SIM_SEEDS` or a constant, never by time.

use std::collections::{BTreeMap, BTreeSet};
use tessera_sim::{Mutation, Options, report, run, shrink};

/// Seeds of an ordinary run of the tests: some four hours of virtual time, in a minute and a half of CPU time.
const SEEDS: u64 = 400;
/// Seeds among which a planted bug must be found.
const SEEDS_PER_MUTATION: u64 = 200;
/// What has to come up among the seeds of an ordinary run: a fault that never strikes proves nothing.
const COMES_UP: &[&str] = &[
    "a clock that is far off is reported",
    "a copy of a work directory is refused",
    "a disk is full when a snapshot is to be taken over",
    "a disk is full while a snapshot is put aside",
    "a launch that is wrongly said to be revocable, or not, is dropped",
    "a leader is told to stop, and hands over",
    "a limit is set",
    "a mass of agents falls silent",
    "a master ends before it takes a snapshot over",
    "a master ends when it has taken a snapshot over",
    "a master is told to stop",
    "a master joins a cluster that grows",
    "a master stands still for long",
    "a master's clock is far off",
    "a number of masters that is even",
    "a restored state does not know what runs",
    "a saved state is restored",
    "a shim dies",
    "a shim dies while its agent is away",
    "a shim is found dead",
    "a task is taken back",
    "a task that is taken back is killed",
    "a task that was given up is stopped",
    "a task that was given up runs on for now",
    "all masters are away for long",
    "an agent cannot write down its number",
    "an agent does not hear masters that hear it",
    "an agent is asked back of a scheduler",
    "an agent that answers is declared gone",
    "an agent that is away is declared gone",
    "an agent that was declared gone comes back as another one",
    "an agent's clock jumps",
    "an agent's disk refuses a write",
    "another machine speaks for an agent",
    "maintenance is announced",
    "masters do not hear an agent that hears them",
    "something is said of a role",
    "tasks above a limit are dropped",
    "the brake is on",
    "the sync of a snapshot that is taken over fails",
    "what is said of a role is refused",
    "what may be taken back is offered",
];
/// Threads over which seeds are spread; each run is in one.
const THREADS: u64 = 2;

fn seeds() -> u64 {
    std::env::var("TESSERA_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

/// How often what came up.
type Seen = BTreeMap<&'static str, u64>;

/// The first failure among seeds, as a report; and what came up until then.
fn first_failure(seeds: impl Iterator<Item = u64>) -> (Option<String>, Seen) {
    let mut seen = Seen::new();
    for options in seeds.map(Options::of) {
        let outcome = run(options);
        for (what, times) in &outcome.seen {
            *seen.entry(what).or_default() += times;
        }
        if outcome.violation.is_some() {
            let whole = report(&options, &outcome);
            let (fewer, outcome) = shrink(options, outcome);
            return (Some(format!("{whole}\nwith fewer faults:\n{}", report(&fewer, &outcome))), seen);
        }
    }
    (None, seen)
}

#[test]
fn no_seed_violates_anything() {
    let count = seeds();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || {
                first_failure((1..=count).filter(|seed| seed % THREADS == thread))
            })
        })
        .collect();
    let mut seen = Seen::new();
    for thread in threads {
        let (failure, came_up) = thread.join().expect("a run must not panic");
        assert!(failure.is_none(), "{}", failure.unwrap_or_default());
        for (what, times) in came_up {
            *seen.entry(what).or_default() += times;
        }
    }
    let missing: Vec<_> = COMES_UP.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(count < SEEDS || missing.is_empty(), "no seed meets {missing:?}; there were {seen:?}");
}

#[test]
fn a_seed_repeats_exactly() {
    let mut masters = BTreeSet::new();
    for seed in 1..=16 {
        let options = Options::of(seed);
        let (first, second) = (run(options), run(options));
        assert!(first.lines > 100, "seed {seed} did nothing");
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed} took two courses");
        assert_eq!(first.lines, second.lines);
        masters.insert(first.masters);
    }
    assert!(masters.is_superset(&BTreeSet::from([1, 3, 5])), "worlds of all sizes are repeated: {masters:?}");
    let other = |seed| run(Options::of(seed)).fingerprint;
    assert_ne!(other(1), other(2));
}

#[test]
fn a_failure_is_shown_with_fewer_faults() {
    let mutation = Some(Mutation::KillIntentDropped);
    let failing = (1..=SEEDS_PER_MUTATION).map(|seed| Options { mutation, ..Options::of(seed) });
    let found = failing.map(|options| (options, run(options))).find(|(_, outcome)| outcome.violation.is_some());
    let (options, outcome) = found.expect("the bug is found");
    let (fewer, shrunk) = shrink(options, outcome.clone());
    assert!(shrunk.violation.is_some() && fewer.spared.count_ones() > 0, "no fault could be spared");
    assert_eq!(run(fewer).fingerprint, shrunk.fingerprint, "the smaller failure repeats");
}

/// Violations that say that something is gone which was durable.
const FORGOTTEN: &[&str] = &[
    "lost what it acknowledged",
    "is lost",
    "applied another entry",
    "applied entries",
    "both lead in term",
    "is that of no turn",
    "what users saw of configurations",
];
/// Violations that say that something runs twice.
const DOUBLED: &[&str] = &["times (on", "runs twice at once"];

/// By what a planted bug shows itself: another violation may only follow from it.
const fn words(mutation: Mutation) -> &'static [&'static str] {
    use Mutation as M;
    match mutation {
        M::SyncedBatchLost
        | M::FsyncSkipped
        | M::PromisedBeforeSync
        | M::WrittenBeforeSync
        | M::NodeReused => FORGOTTEN,
        M::RowsDropped => &["memory and rows differ", "one is lost or doubled", "other rows"],
        M::StatusesAcknowledgedEarly => &["an acknowledged status is lost"],
        M::TurnAnsweredEarly => &["an acknowledged turn is lost"],
        M::StaleEpochRelabelled => &["committed under epoch"],
        M::ActsBeforeCheckpoint | M::DesiredRunAgain => DOUBLED,
        // What runs is not known to the agent any more, which says so before anything is started again.
        M::CheckpointForgotten => &["AGENT_FORGOT: the agent knows nothing of it any more), but it ended as None"],
        M::OutstandingTurnForgotten => &["one is lost or doubled", "is that of no turn", "that it never got"],
        M::UnitsTornApart => &["launched all or none"],
        // Members that nobody ends keep their jobs from being over.
        M::GroupsForgotten => &["has not got all its tasks done"],
        M::StateKeptOverEpochs => &["as another version wrote it", "one is lost or doubled"],
        M::OutsideWritesPassedOver => &["of what users wrote"],
        M::ExecutorTurnsForgotten => &["begins at turn"],
        M::MessagesDoubled => &["for the second time"],
        M::OrphansLeft => &["and runs"],
        M::QuarantineEndsTasks => &["is quarantined, and its task"],
        M::AcknowledgedBeforeCommit | M::ReadWithoutIndex | M::NumberedAnew => &["what users saw of configurations"],
        // The instance is not the one that is waited for.
        M::EpochReused => &["is starting it", "waits with events and offers"],
        M::SuppressForgotten => &["wants no offers"],
        M::BatchAppliedTwice => &["memory and rows differ", "disk is refused", "other rows"],
        M::KillIntentDropped => &["has not got all its tasks done", "still runs", "tasks live"],
        M::RepeatedWithoutKey => &["what users saw of configurations", "is said to be there", "a request is answered"],
        M::VersionRaisedEarly => &["stops: applying entry"],
        M::GivenUpTasksKept => &["still runs", "still knows"],
        M::GonePassedOver => &["agents are connected"],
        M::TakenForNothing => &["where nobody lacks anything"],
        M::GraceIgnored => &["that it was given"],
        M::NeighbourEnded => &["is said to be TASK_KILLED"],
        M::RoleUsesForgotten => &["is said to use", "roles use"],
        M::RolesNotRestored => &["of roles it holds"],
        M::FileSyncSkipped | M::FileCollectedEarly | M::FileNamedEarly => &["is named, and masters"],
        M::FileServedUnchecked => &["is given other bytes"],
        M::FileDamageIgnored => &["has no file of component"],
        M::FileCollectedInUse => &["which its state names"],
        M::LearnerWithoutFiles => &["votes as node"],
        M::SessionsForgotten | M::AnsweredTooSoon => &["is told of what it still asks for"],
    }
}

/// Some seed finds the bug by what it does.
fn is_found(mutation: Mutation) {
    let words = words(mutation);
    let mut others = BTreeSet::new();
    for seed in 1..=SEEDS_PER_MUTATION {
        let outcome = run(Options { mutation: Some(mutation), ..Options::of(seed) });
        let Some(violation) = outcome.violation else { continue };
        if words.iter().any(|words| violation.contains(words)) {
            return;
        }
        others.insert(violation);
    }
    panic!("no seed up to {SEEDS_PER_MUTATION} finds {mutation} by {words:?}, but {others:?}");
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
fn passing_over_what_users_wrote_is_found() {
    is_found(Mutation::OutsideWritesPassedOver);
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

#[test]
fn skipping_an_fsync_is_found() {
    is_found(Mutation::FsyncSkipped);
}

#[test]
fn leaving_what_a_dead_shim_ran_is_found() {
    is_found(Mutation::OrphansLeft);
}

#[test]
fn promising_before_the_sync_is_found() {
    is_found(Mutation::PromisedBeforeSync);
}

#[test]
fn taking_a_write_for_durable_before_the_sync_is_found() {
    is_found(Mutation::WrittenBeforeSync);
}

#[test]
fn acknowledging_requests_before_their_commit_is_found() {
    is_found(Mutation::AcknowledgedBeforeCommit);
}

#[test]
fn reading_without_a_read_index_is_found() {
    is_found(Mutation::ReadWithoutIndex);
}

#[test]
fn reusing_an_epoch_after_a_failover_is_found() {
    is_found(Mutation::EpochReused);
}

#[test]
fn forgetting_who_wants_no_offers_after_a_failover_is_found() {
    is_found(Mutation::SuppressForgotten);
}

#[test]
fn going_on_with_tasks_that_were_given_up_is_found() {
    is_found(Mutation::GivenUpTasksKept);
}

#[test]
fn passing_over_that_one_is_gone_is_found() {
    is_found(Mutation::GonePassedOver);
}

#[test]
fn applying_a_batch_twice_is_found() {
    is_found(Mutation::BatchAppliedTwice);
}

#[test]
fn dropping_a_kill_when_an_agent_comes_back_is_found() {
    is_found(Mutation::KillIntentDropped);
}

#[test]
fn repeating_a_request_without_its_key_is_found() {
    is_found(Mutation::RepeatedWithoutKey);
}

#[test]
fn repeating_a_request_under_another_number_is_found() {
    is_found(Mutation::NumberedAnew);
}

#[test]
fn forgetting_the_sessions_of_other_masters_is_found() {
    is_found(Mutation::SessionsForgotten);
}

#[test]
fn saying_too_soon_that_a_request_is_answered_is_found() {
    is_found(Mutation::AnsweredTooSoon);
}

#[test]
fn giving_a_lost_disks_number_to_an_empty_one_is_found() {
    is_found(Mutation::NodeReused);
}

#[test]
fn raising_the_clusters_version_early_is_found() {
    is_found(Mutation::VersionRaisedEarly);
}

#[test]
fn leaving_component_files_unsynced_is_found() {
    is_found(Mutation::FileSyncSkipped);
}

#[test]
fn giving_component_files_unchecked_is_found() {
    is_found(Mutation::FileServedUnchecked);
}

#[test]
fn keeping_damaged_component_files_is_found() {
    is_found(Mutation::FileDamageIgnored);
}

#[test]
fn collecting_component_files_without_grace_is_found() {
    is_found(Mutation::FileCollectedEarly);
}

#[test]
fn collecting_component_files_that_are_named_is_found() {
    is_found(Mutation::FileCollectedInUse);
}

#[test]
fn naming_a_component_before_a_majority_keeps_its_file_is_found() {
    is_found(Mutation::FileNamedEarly);
}

#[test]
fn letting_a_learner_vote_without_component_files_is_found() {
    is_found(Mutation::LearnerWithoutFiles);
}

#[test]
fn taking_back_what_nobody_lacks_is_found() {
    is_found(Mutation::TakenForNothing);
}

#[test]
fn killing_before_the_given_time_is_over_is_found() {
    is_found(Mutation::GraceIgnored);
}

#[test]
fn ending_a_task_that_is_not_revocable_is_found() {
    is_found(Mutation::NeighbourEnded);
}

#[test]
fn forgetting_what_roles_use_is_found() {
    is_found(Mutation::RoleUsesForgotten);
}

#[test]
fn restoring_a_state_without_roles_is_found() {
    is_found(Mutation::RolesNotRestored);
}
