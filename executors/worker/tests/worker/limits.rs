//! Every limit of one instance and of one turn: a guest that stays just under it, and one that reaches it.
//!
//! Invariants: each row runs in an instance of its own, whose role has nothing but that limit set.

use crate::harness::{Agent, Image, Instance, Worker, answer, get};
use crate::schedulers::{ask, subscribed};
use std::collections::BTreeSet;
use tessera_types::LimitName;
use tessera_wire::v1;

/// What becomes of who reaches a limit.
enum Then {
    /// The call is refused with the limit's name, and the turn goes on.
    Refused,
    /// The guest sees that it gets no more.
    NoMore,
    /// The instance is ended, with the limit's name.
    Ended,
}
use Then::{Ended, NoMore, Refused};

/// Limit, its value, a request just under it, one that reaches it, what becomes of that one.
const ROWS: &[(&str, u64, &str, &str, Then)] = &[
    ("memory-bytes", 4 << 20, "/memory/64", "/memory/65", NoMore),
    ("handles", 100, "/handles/80", "/handles/101", Ended),
    ("hostcall-bytes", 2 << 20, "/text/2090000", "/text/2097200", Ended),
    ("host-calls", 1_000, "/host-calls/900", "/host-calls/1001", Ended),
    ("random-bytes", 1_000, "/random/1000", "/random/1001", Ended),
    ("turn-cpu-ms", 200, "/spin/1", "/spin/0", Ended),
    ("turn-wall-ms", 300, "/spin/1", "/spin/0", Ended),
    ("turn-operations", 10, "/operations/9", "/operations/10", Refused),
    ("turn-operation-bytes", 64 << 10, "/timers/200", "/timers/300", Refused),
    ("turn-keys", 10, "/keys/10", "/keys/11", Refused),
    ("turn-state-bytes", 64 << 10, "/value/65535", "/value/65536", Refused),
    ("turn-specs", 3, "/specs/3", "/specs/4", Refused),
    ("turn-spec-bytes", 64 << 10, "/large-specs/2", "/large-specs/3", Refused),
    ("specs", 3, "/specs/3", "/specs/4", Refused),
    ("spec-bytes", 512 << 10, "/large-specs/16", "/large-specs/18", Refused),
    ("state-bytes", 64 << 10, "/pieces/3", "/pieces/4", Refused),
    ("state-keys", 10, "/keys/10", "/keys/11", Refused),
];

/// Rows of the table that the tests below are about.
const OTHERS: &[&str] = &[
    "init-cpu-ms",
    "init-wall-ms",
    "error-bytes",
    "minute-cpu-ms",
    "log-lines",
    "log-bytes",
    "log-line-bytes",
    "open-requests",
    // With components made for them, in the host's own tests.
    "instances",
    "tables",
    "memories",
    "table-elements",
    // Where recordings are written, and in the tests of replaying.
    "recording-bytes",
    "recordings",
];

/// Rows that bound something else than an instance or a turn of a scheduler.
const ELSEWHERE: &[&str] = &[
    "component-bytes",
    "component-functions",
    "function-bytes",
    "function-locals",
    "compile-cpu-ms",
    "compile-bytes",
    "timers",
    "live-tasks",
    "turns-per-second",
    "turn-bytes-per-second",
    "tenant-memory-bytes",
    "frameworks",
    "failures",
    "failures-per-window",
    "failure-window-ms",
    "preemption-grace-ms",
    "executors",
    "executor-state-bytes",
    "executor-state-keys",
    "executor-children",
];

/// An instance that has had its first turn.
fn started(agent: &mut Agent, framework: u64, image: &Image) -> Instance {
    let mut instance = agent.start_instance(framework, image, &[], vec![]);
    agent.ready(&instance);
    let first = subscribed(&instance);
    agent.committed_turn(&mut instance, &[first]);
    instance
}

#[test]
fn who_stays_under_a_limit_goes_on_and_who_reaches_it_hears_its_name() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    for (row, (name, value, under, over, then)) in (1..).step_by(2).zip(ROWS) {
        agent.extra.limits = vec![(name, *value)];
        if *name == "turn-wall-ms" {
            agent.extra.limits.push(("turn-cpu-ms", 60_000));
        }
        let mut instance = started(&mut agent, row, &image);
        assert_eq!(ask(&mut agent, &mut instance, under).0, "done", "{name}");
        agent.stop(&instance);

        let mut instance = started(&mut agent, row + 1, &image);
        if matches!(then, Ended) {
            agent.send_batch(&mut instance, &[get(1, over)]);
            let failed = agent.failed(&instance);
            let said = (failed.reason.as_str(), failed.limit.as_str());
            assert_eq!(said, ("GUEST_LIMIT", *name), "{}", failed.message);
            assert!(failed.guest && failed.will_retry && failed.turn == instance.next_turn);
            assert!(failed.message.starts_with(&format!("limit {name}: ")), "{}", failed.message);
        } else {
            let (text, _) = ask(&mut agent, &mut instance, over);
            let named = text.contains(&format!("limit {name}: at most "));
            assert!(text.starts_with("refused=") && named == matches!(then, Refused), "{name}: {text}");
        }
        agent.stop(&instance);
    }
}

#[test]
fn every_row_of_the_table_has_a_test() {
    let tested = ROWS.iter().map(|row| row.0).chain(OTHERS.iter().chain(ELSEWHERE).copied());
    let tested: BTreeSet<&str> = tested.collect();
    let table: BTreeSet<&str> = LimitName::ALL.iter().map(|name| name.row().name).collect();
    assert_eq!(tested, table);
}

#[test]
fn init_stands_under_limits_of_its_own() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    for (framework, name) in [(1, "init-cpu-ms"), (3, "init-wall-ms")] {
        agent.extra.limits = vec![(name, 300)];
        if name == "init-wall-ms" {
            agent.extra.limits.push(("init-cpu-ms", 60_000));
        }
        let under = agent.start_instance(framework, &image, &[("init-spin", "1")], vec![]);
        agent.ready(&under);
        let over = agent.start_instance(framework + 1, &image, &[("init-spin", "0")], vec![]);
        let failed = agent.failed(&over);
        assert_eq!((failed.limit.as_str(), failed.guest, failed.turn), (name, true, 0));
        agent.stop(&over);
    }
}

#[test]
fn an_error_is_told_up_to_its_limit() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    agent.extra.limits = vec![("error-bytes", 300)];
    for (framework, given, told) in [(1, 300, 300), (2, 301, 300)] {
        let mut instance = started(&mut agent, framework, &image);
        agent.send_batch(&mut instance, &[get(1, &format!("/error/{given}"))]);
        let failed = agent.failed(&instance);
        assert_eq!((failed.reason.as_str(), failed.guest), ("GUEST_ERROR", true));
        assert_eq!(failed.message.matches('e').count(), told + "the guest returned an error".matches('e').count());
        agent.stop(&instance);
    }
}

#[test]
fn a_log_is_kept_up_to_its_limits_and_the_rest_is_counted() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    // A line is its text and `scheduler`, the part that speaks.
    for (framework, limit, path, lines, bytes, dropped) in [
        (1, ("log-lines", 5), "/lines/5", 5, 4, 0),
        (2, ("log-lines", 5), "/lines/8", 5, 4, 3),
        (3, ("log-bytes", 1_300), "/lines/100", 100, 4, 0),
        (4, ("log-bytes", 1_300), "/lines/101", 100, 4, 1),
        (5, ("log-line-bytes", 64), "/text/55", 1, 55, 0),
        (6, ("log-line-bytes", 64), "/text/56", 1, 55, 0),
    ] {
        agent.extra.limits = vec![limit];
        let mut instance = started(&mut agent, framework, &image);
        agent.logs.clear();
        ask(&mut agent, &mut instance, path);
        // What is dropped after the last line is told with the next one.
        ask(&mut agent, &mut instance, "/text/1");
        // A turn's log follows it; what follows is there when the next turn is.
        ask(&mut agent, &mut instance, "/keys/1");
        let logs = &agent.logs;
        let mut kept: Vec<_> = logs.iter().flat_map(|log| &log.lines).map(|line| line.text.len()).collect();
        assert_eq!(kept.pop(), Some(1), "{limit:?} {path}");
        assert_eq!(kept, vec![bytes; lines], "{limit:?} {path}");
        assert_eq!(logs.iter().map(|log| log.dropped).sum::<u64>(), dropped, "{limit:?} {path}");
        agent.stop(&instance);
    }
}

#[test]
fn the_oldest_of_too_many_open_requests_is_forgotten() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    for (framework, open, answered) in [(1, 2, true), (2, 1, false)] {
        agent.extra.limits = vec![("open-requests", open)];
        let mut instance = started(&mut agent, framework, &image);
        agent.committed_turn(&mut instance, &[get(1, "/hold/0")]);
        let turn = agent.committed_turn(&mut instance, &[get(2, "/answer-held/0")]);
        assert_eq!(answer(&turn, 1).is_some(), answered);
        assert_eq!(answer(&turn, 2).unwrap() == "done", answered);
    }
}

#[test]
fn a_scheduler_that_has_used_up_its_minute_waits_and_goes_on_when_it_is_given_more() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    agent.extra.limits = vec![("minute-cpu-ms", 100), ("turn-cpu-ms", 20_000), ("turn-wall-ms", 60_000)];
    let mut instance = started(&mut agent, 1, &image);
    for _ in 0..3 {
        assert_eq!(ask(&mut agent, &mut instance, "/spin/1").0, "done", "just under");
    }
    assert_eq!(ask(&mut agent, &mut instance, "/spin/400").0, "done", "a turn is not cut for it");
    agent.send_batch(&mut instance, &[get(1, "/keys/1")]);
    let said = agent.log_line("limit minute-cpu-ms");
    assert!(said.contains(&format!("turn {} waits", instance.next_turn)), "{said}");
    agent.extra.limits[0].1 = 60_000;
    agent.say_start(&instance, &image, &[]);
    let turn = agent.turn(&instance);
    assert_eq!(answer(&turn, 1).as_deref(), Some("done"));
}

#[test]
fn changed_limits_hold_from_the_next_turn_on_without_a_restart() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    let mut instance = started(&mut agent, 1, &image);
    assert_eq!(ask(&mut agent, &mut instance, "/keys/11").0, "done");
    agent.extra.limits = vec![("turn-keys", 10), ("memory-bytes", 4 << 20), ("handles", 50)];
    agent.say_start(&instance, &image, &[]);
    agent.sync(&instance);
    let (text, _) = ask(&mut agent, &mut instance, "/keys/11");
    assert!(text.contains("limit turn-keys: at most 10"), "{text}");
    assert!(ask(&mut agent, &mut instance, "/memory/65").0.starts_with("refused="));
    agent.extra.limits = vec![("memory-bytes", 5 << 20)];
    agent.say_start(&instance, &image, &[]);
    agent.sync(&instance);
    assert_eq!(ask(&mut agent, &mut instance, "/memory/65").0, "done");
    assert_eq!(ask(&mut agent, &mut instance, "/handles/60").0, "done");
    // They hold for the next life, too.
    agent.extra.limits = vec![("turn-keys", 12)];
    agent.say_start(&instance, &image, &[]);
    agent.send_batch(&mut instance, &[get(1, "/error/1")]);
    agent.failed(&instance);
    assert!(agent.ready(&instance).rebuilt);
    let (text, _) = ask(&mut agent, &mut instance, "/keys/13");
    assert!(text.contains("limit turn-keys: at most 12"), "{text}");
}

#[test]
fn who_is_refused_by_the_master_for_a_limit_is_to_blame() {
    let worker = Worker::start();
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    let mut instance = started(&mut agent, 1, &image);
    agent.send_batch(&mut instance, &[get(1, "/timers/2")]);
    agent.turn(&instance);
    let (name, text) = ("timers".to_owned(), "at most 1".to_owned());
    let limit = v1::turn_outcome::Outcome::Limit(v1::LimitPassed { name, text });
    agent.outcome(&instance, limit);
    let failed = agent.failed(&instance);
    assert_eq!((failed.reason.as_str(), failed.limit.as_str()), ("REFUSED", "timers"));
    assert!(failed.guest && failed.turn == instance.next_turn, "{failed:?}");
}
