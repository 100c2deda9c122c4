//! Requests that come again: in one entry, beyond the bound, and from somebody else.

use super::*;
use crate::CLUSTER_VERSION;
use crate::limits::{CLOCK_JUMP_MAX_MS, REQUEST_KEPT_MS, REQUESTS_BEFORE_MAX, REQUESTS_OF_PRINCIPAL_MAX};

/// A change of the limits of the cluster, under a key.
fn change(principal: &str, key: &str, said: u8, value: u64) -> v1::Command {
    v1::Command {
        ticket: 1,
        origin: Some(v1::Origin {
            principal: principal.into(),
            idempotency_key: key.into(),
            fingerprint: vec![said; 32],
            ..v1::Origin::default()
        }),
        command: Some(C::SetLimits(v1::SetLimits {
            set: vec![v1::Limit { name: "timers".into(), value }],
            ..v1::SetLimits::default()
        })),
    }
}

struct Model {
    state: State,
    rows: MemRows,
    index: u64,
    time_ms: u64,
}

impl Model {
    fn apply(&mut self, time_ms: u64, commands: Vec<v1::Command>) -> Vec<CommandResult> {
        self.index += 1;
        self.time_ms = time_ms;
        let entry = v1::CommandBatch { version: 1, time_ms, commands }.encode_to_vec();
        let applied = apply(&mut self.state, self.index, 1, &entry, &self.rows).unwrap();
        let results = results(&applied);
        self.rows.write(applied.rows);
        results
    }

    /// Time passes, as it does in a cluster that works: no step of it is taken for one of the clock.
    fn pass(&mut self, ms: u64) {
        let until = self.time_ms + ms;
        while self.time_ms < until {
            self.apply(until.min(self.time_ms + CLOCK_JUMP_MAX_MS), vec![]);
        }
    }

    fn timers(&self) -> u64 {
        self.state.cluster_limits().get(tessera_types::LimitName::Timers)
    }
}

fn model() -> Model {
    Model { state: State::default(), rows: MemRows::default(), index: 0, time_ms: 0 }
}

fn at_version(version: u32) -> Model {
    let mut model = model();
    model.state.meta.cluster_version = version;
    model
}

#[test]
fn a_repetition_changes_nothing_and_is_answered_alike() {
    let mut model = model();
    let first = model.apply(1, vec![change("a", "k", 1, 10), change("a", "k", 1, 10)]);
    assert_eq!(first, [CommandResult::Done, CommandResult::Done]);
    model.apply(2, vec![change("a", "other", 1, 20)]);
    // The first one again, when something else was set meanwhile.
    assert_eq!(model.apply(3, vec![change("a", "k", 1, 10)]), [CommandResult::Done]);
    assert_eq!(model.timers(), 20);
    let reused = model.apply(4, vec![change("a", "k", 2, 30)]);
    let error = RequestError::KeyReused { key: "k".into() };
    assert_eq!(reused, [CommandResult::Refused(error)]);
    assert_eq!(model.timers(), 20);
    // Somebody else's key is another one.
    assert_eq!(model.apply(5, vec![change("b", "k", 2, 30)]), [CommandResult::Done]);
    assert_eq!(model.timers(), 30);
    assert_eq!(model.rows.count(rows::REQUESTS), 3);
}

#[test]
fn what_was_refused_is_not_kept() {
    let mut model = model();
    let refused = model.apply(1, vec![change("a", "k", 1, 0)]);
    assert!(matches!(refused[..], [CommandResult::Refused(_)]), "{refused:?}");
    assert_eq!(model.apply(2, vec![change("a", "k", 2, 10)]), [CommandResult::Done]);
}

#[test]
fn keys_and_fingerprints_have_a_form() {
    let mut model = model();
    let long = "k".repeat(crate::limits::IDEMPOTENCY_KEY_BYTES_MAX + 1);
    let mut short = change("a", "k", 1, 10);
    short.origin.as_mut().unwrap().fingerprint.pop();
    for command in [change("a", &long, 1, 10), short] {
        let refused = model.apply(1, vec![command]);
        assert!(matches!(refused[..], [CommandResult::Refused(_)]), "{refused:?}");
    }
    assert_eq!(model.state.requests.len(), 0);
}

#[test]
fn the_newest_results_of_the_last_ten_minutes_are_kept() {
    for (version, bound) in [(2, REQUESTS_BEFORE_MAX), (CLUSTER_VERSION, REQUESTS_OF_PRINCIPAL_MAX)] {
        let mut model = at_version(version);
        let many = |from: usize, to: usize| {
            (from..to).map(|n| change("a", &format!("k{n}"), 1, 10)).collect::<Vec<_>>()
        };
        model.apply(1, many(0, bound));
        assert_eq!(model.state.requests.len(), bound);
        // The oldest makes room, and is a new request when it comes again.
        model.apply(2, many(bound, bound + 1));
        assert_eq!(model.state.requests.len(), bound);
        assert_eq!(model.rows.count(rows::REQUESTS), bound);
        model.apply(3, vec![change("a", "k0", 2, 20)]);
        assert_eq!(model.timers(), 20);
        // The newest ones are still known at the end of their time, and not after it.
        model.pass(REQUEST_KEPT_MS - 1);
        model.apply(model.time_ms, vec![change("a", &format!("k{bound}"), 1, 30)]);
        assert_eq!(model.timers(), 20);
        model.pass(2);
        model.apply(model.time_ms, vec![change("a", "k0", 1, 40)]);
        assert_eq!(model.timers(), 40);
        assert_eq!(model.state.requests.len(), 1);
        let again = codec::load(&model.rows).unwrap();
        assert_eq!(again.requests, model.state.requests);
        assert_eq!(again.requests_of, model.state.requests_of);
    }
}

#[test]
fn a_busy_principal_takes_nobody_elses_place() {
    let mut model = at_version(CLUSTER_VERSION);
    model.apply(1, vec![change("quiet", "k", 1, 10)]);
    let busy: Vec<_> = (0..=REQUESTS_OF_PRINCIPAL_MAX).map(|n| change("busy", &format!("k{n}"), 1, 20)).collect();
    model.apply(2, busy);
    assert_eq!(model.apply(3, vec![change("quiet", "k", 1, 10)]), [CommandResult::Done]);
    assert_eq!(model.timers(), 20, "the repetition was carried out");
    assert_eq!(model.state.requests.len(), REQUESTS_OF_PRINCIPAL_MAX + 1);
}

#[test]
fn a_step_of_the_clock_ages_no_results() {
    let mut model = at_version(CLUSTER_VERSION);
    model.apply(1_000, vec![change("a", "k", 1, 10)]);
    model.apply(1_000 + 10 * REQUEST_KEPT_MS, vec![change("a", "other", 1, 20)]);
    model.apply(model.time_ms, vec![change("a", "k", 1, 10)]);
    assert_eq!(model.timers(), 20);
}
