//! Requests that masters pass on under numbers: when their results are known, and when they are forgotten.

use super::*;
use crate::limits::{SESSION_NUMBERS_MAX, SESSIONS_OF_MASTER_MAX};
use crate::numbered::Numbered;

const SESSION: u64 = 77;
const MEMBERS: [u64; 3] = [1, 2, 3];

struct Model {
    state: State,
    rows: MemRows,
    index: u64,
}

impl Model {
    fn new() -> Self {
        let mut state = State::default();
        state.meta.cluster_version = crate::CLUSTER_VERSION;
        Self { state, rows: MemRows::default(), index: 0 }
    }

    fn apply(&mut self, commands: Vec<v1::Command>) -> Vec<CommandResult> {
        self.index += 1;
        let batch = v1::CommandBatch { version: 1, time_ms: self.index, commands };
        let applied = apply(&mut self.state, self.index, 1, &batch.encode_to_vec(), &self.rows).unwrap();
        let results = results(&applied);
        self.rows.write(applied.rows);
        let again = codec::load(&self.rows).unwrap();
        assert_eq!(again.sessions, self.state.sessions, "rows and memory differ");
        results
    }

    fn open(&mut self, node: u64, session: u64, members: &[u64]) -> CommandResult {
        let command = C::OpenSession(v1::OpenSession { node, session, members: members.to_vec() });
        self.apply(vec![v1::Command { ticket: 1, origin: None, command: Some(command) }]).remove(0)
    }

    /// A change of a limit under a number; whether it was carried out now, was before, or was refused.
    fn ask(&mut self, session: u64, number: u64, answered_below: u64) -> &'static str {
        // Another one each time.
        let value = self.index + 10;
        let result = self.apply(vec![change(session, number, answered_below, value)]).remove(0);
        match (result, self.timers() == value) {
            (CommandResult::Done, true) => "done",
            (CommandResult::Done, false) => "was done",
            (CommandResult::Refused(RequestError::Unavailable(_)), false) => "unknown",
            other => panic!("{other:?}"),
        }
    }

    fn timers(&self) -> u64 {
        self.state.cluster_limits().get(tessera_types::LimitName::Timers)
    }

    fn results(&self) -> Vec<u64> {
        self.state.sessions[&SESSION].results.keys().copied().collect()
    }
}

fn change(session: u64, number: u64, answered_below: u64, value: u64) -> v1::Command {
    let number = Numbered { session, number, answered_below };
    v1::Command {
        ticket: 1,
        origin: Some(v1::Origin { number: Some(number.into()), ..v1::Origin::default() }),
        command: Some(C::SetLimits(v1::SetLimits {
            set: vec![v1::Limit { name: "timers".into(), value }],
            ..v1::SetLimits::default()
        })),
    }
}

#[test]
fn a_number_is_carried_out_once_and_forgotten_when_it_is_answered() {
    let mut model = Model::new();
    assert_eq!(model.ask(SESSION, 0, 0), "unknown", "nobody opened the session");
    assert_eq!(model.open(2, SESSION, &MEMBERS), CommandResult::Done);
    for (number, below, outcome, kept) in [
        (0, 0, "done", vec![0]),
        (0, 0, "was done", vec![0]),
        // Out of order: each comes by its own way.
        (3, 0, "done", vec![0, 3]),
        (1, 0, "done", vec![0, 1, 3]),
        (4, 2, "done", vec![3, 4]),
        (1, 0, "unknown", vec![3, 4]),
        (3, 0, "was done", vec![3, 4]),
        // An older word of what is answered comes late.
        (2, 0, "done", vec![2, 3, 4]),
        (5, 5, "done", vec![5]),
    ] {
        assert_eq!(model.ask(SESSION, number, below), outcome, "{number}");
        assert_eq!(model.results(), kept, "{number}");
    }
    // Opened again, by a repetition: it forgets nothing.
    assert_eq!(model.open(2, SESSION, &MEMBERS), CommandResult::Done);
    assert_eq!(model.ask(SESSION, 5, 5), "was done");
    assert!(matches!(model.open(3, SESSION, &MEMBERS), CommandResult::Refused(_)));
    assert!(matches!(model.open(4, 78, &MEMBERS), CommandResult::Refused(_)));
}

#[test]
fn sessions_go_with_later_lives_and_with_their_master() {
    let mut model = Model::new();
    model.open(2, SESSION, &MEMBERS);
    model.open(3, 1, &MEMBERS);
    model.ask(SESSION, 0, 0);
    for life in 1..SESSIONS_OF_MASTER_MAX {
        assert_eq!(model.ask(SESSION, 0, 0), "was done", "life {life}");
        model.open(2, 100 + u64::try_from(life).unwrap(), &MEMBERS);
    }
    assert_eq!(model.ask(SESSION, 0, 0), "was done");
    model.open(2, 200, &MEMBERS);
    assert_eq!(model.ask(SESSION, 0, 0), "unknown");
    assert_eq!(model.ask(1, 0, 0), "done", "another master's");
    model.open(2, 201, &[1, 2]);
    assert_eq!(model.ask(1, 0, 0), "was done", "it may have joined later");
    model.open(2, 202, &[1, 2, 4]);
    assert_eq!(model.ask(1, 0, 0), "unknown", "it is no member any more");
    assert_eq!(model.rows.count(rows::SESSIONS), SESSIONS_OF_MASTER_MAX);
}

#[test]
fn a_session_is_bounded() {
    let mut model = Model::new();
    model.open(2, SESSION, &MEMBERS);
    let most = u64::try_from(SESSION_NUMBERS_MAX).unwrap();
    model.apply((0..most).map(|number| change(SESSION, number, 0, 10)).collect());
    let refused = model.apply(vec![change(SESSION, most, 0, 20)]).remove(0);
    assert!(matches!(refused, CommandResult::Refused(RequestError::Limit { .. })), "{refused:?}");
    assert_eq!(model.timers(), 10);
    // What is answered makes room at once.
    assert_eq!(model.ask(SESSION, most, most), "done");
    assert_eq!(model.results(), [most]);
}

#[test]
fn what_was_refused_is_not_kept() {
    let mut model = Model::new();
    model.open(2, SESSION, &MEMBERS);
    model.ask(SESSION, 0, 0);
    let refused = model.apply(vec![change(SESSION, 1, 1, 0)]).remove(0);
    assert!(matches!(refused, CommandResult::Refused(RequestError::Limit { .. } | RequestError::Invalid { .. })), "{refused:?}");
    // Nor is what it said of others: the rows would not have it.
    assert_eq!(model.results(), [0]);
    assert_eq!(model.ask(SESSION, 1, 1), "done");
}
