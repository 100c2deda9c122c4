//! Requests that come again: in one entry, beyond the bound, and from somebody else.

use super::*;
use crate::limits::{REQUEST_KEPT_MS, REQUESTS_MAX};

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
}

impl Model {
    fn apply(&mut self, time_ms: u64, commands: Vec<v1::Command>) -> Vec<CommandResult> {
        self.index += 1;
        let entry = v1::CommandBatch { version: 1, time_ms, commands }.encode_to_vec();
        let applied = apply(&mut self.state, self.index, 1, &entry, &self.rows).unwrap();
        let results = results(&applied);
        self.rows.write(applied.rows);
        results
    }

    fn timers(&self) -> u64 {
        self.state.cluster_limits().get(tessera_types::LimitName::Timers)
    }
}

fn model() -> Model {
    Model { state: State::default(), rows: MemRows::default(), index: 0 }
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
    let mut model = model();
    let many = |from: usize, to: usize| {
        (from..to).map(|n| change("a", &format!("k{n}"), 1, 10)).collect::<Vec<_>>()
    };
    model.apply(1, many(0, REQUESTS_MAX));
    assert_eq!(model.state.requests.len(), REQUESTS_MAX);
    // The oldest makes room, and is a new request when it comes again.
    model.apply(2, many(REQUESTS_MAX, REQUESTS_MAX + 1));
    assert_eq!(model.state.requests.len(), REQUESTS_MAX);
    assert_eq!(model.rows.count(rows::REQUESTS), REQUESTS_MAX);
    model.apply(3, vec![change("a", "k0", 2, 20)]);
    assert_eq!(model.timers(), 20);
    // The newest ones are still known at the end of their time, and not after it.
    model.apply(2 + REQUEST_KEPT_MS, vec![change("a", &format!("k{REQUESTS_MAX}"), 1, 30)]);
    assert_eq!(model.timers(), 20);
    model.apply(4 + REQUEST_KEPT_MS, vec![change("a", "k0", 1, 40)]);
    assert_eq!(model.timers(), 40);
    assert_eq!(model.state.requests.len(), 1);
    let again = codec::load(&model.rows).unwrap();
    assert_eq!(again.requests, model.state.requests);
}
