//! Schedulers in a worker: turns, failures, limits, neighbours.

use crate::harness::{Agent, Instance, Worker, answer, get};
use prost::Message as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tessera_types::{Epoch, Event, FrameworkId, KeyWrite, TurnHeader, TurnNumber, limits};
use tessera_wire::v1::{self, from_worker, to_worker};
use tessera_wit_host::{SchedulerHost, Start, State, ThreadControl, Ticker, new_engine};

pub fn subscribed(instance: &Instance) -> Event {
    Event::Subscribed(instance.subscription())
}

/// Ask over HTTP in a turn of its own.
pub fn ask(agent: &mut Agent, instance: &mut Instance, path: &str) -> (String, v1::Turn) {
    let id = instance.next_turn + 1_000;
    let turn = agent.committed_turn(instance, &[get(id, path)]);
    (
        answer(&turn, id).unwrap_or_else(|| panic!("no answer to {path}")),
        turn,
    )
}

#[test]
fn a_trap_loses_the_turn_and_nothing_else() {
    let worker = Worker::start();
    let image = worker.compile("trap");
    let (mut agent, _) = worker.connect();
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    let ready = agent.ready(&instance);
    assert!(!ready.rebuilt && ready.next_turn == 1);
    let first = subscribed(&instance);
    agent.committed_turn(&mut instance, &[first]);
    assert!(
        ask(&mut agent, &mut instance, "/")
            .0
            .contains("\"turns\":1,")
    );

    for (path, reason) in [
        ("/trap", "TRAPPED"),
        ("/error", "GUEST_ERROR"),
        ("/abort", "TRAPPED"),
    ] {
        agent.send_batch(&mut instance, &[get(1, path)]);
        let failed = agent.failed(&instance);
        assert_eq!((failed.reason.as_str(), failed.will_retry), (reason, true));
        let ready = agent.ready(&instance);
        assert!(
            ready.rebuilt && ready.next_turn == instance.next_turn,
            "{ready:?}"
        );
        let resumed = Event::Resumed(instance.subscription());
        agent.committed_turn(&mut instance, &[resumed]);
        let turns = instance.next_turn - 1;
        let (text, _) = ask(&mut agent, &mut instance, "/");
        assert_eq!(text.trim(), format!("{{\"turns\":{turns},\"instance\":1}}"));
    }
}

#[test]
fn what_users_write_is_there_before_the_turn_and_stays_when_the_guest_fails() {
    let worker = Worker::start();
    let image = worker.compile("echo");
    let (mut agent, _) = worker.connect();
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    assert_eq!(agent.ready(&instance).outside, 0);
    let first = subscribed(&instance);
    agent.committed_turn(&mut instance, &[first]);
    let write = |key: &str, value: Option<&[u8]>| KeyWrite {
        key: key.into(),
        value: value.map(<[u8]>::to_vec),
    };
    let changed = Event::StateChanged { count: 2, writes: vec![write("a", Some(b"1")), write("turns", None)] };
    let turn = agent.committed_turn(&mut instance, &[changed, get(9, "/state/a"), get(10, "/changes")]);
    assert_eq!(answer(&turn, 9).as_deref(), Some("1"));
    assert_eq!(answer(&turn, 10).as_deref(), Some("a turns"));
    // Its own write of this turn is newer.
    assert_eq!(ask(&mut agent, &mut instance, "/state/turns").0, "2");
    let changed = Event::StateChanged { count: 5, writes: vec![write("a", Some(b"2"))] };
    agent.send_batch(&mut instance, &[changed]);
    agent.turn(&instance);
    let refused = v1::WrongNumber { given: 0, expected: instance.next_turn, ..v1::WrongNumber::default() };
    agent.outcome(&instance, v1::turn_outcome::Outcome::WrongNumber(refused));
    let ready = agent.ready(&instance);
    assert_eq!((ready.rebuilt, ready.outside), (true, 5));
    assert_eq!(ask(&mut agent, &mut instance, "/state/a").0, "2");
    let (_, hello) = worker.connect();
    assert_eq!(hello.instances[0].outside, 5);
}

#[test]
fn a_refused_turn_is_forgotten_and_a_fenced_instance_gives_up() {
    let worker = Worker::start();
    let image = worker.compile("trap");
    let (mut agent, _) = worker.connect();
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    agent.ready(&instance);
    let first = subscribed(&instance);
    agent.committed_turn(&mut instance, &[first]);
    let refuse = |agent: &mut Agent, instance: &Instance, outcome| {
        agent.send(to_worker::Message::TurnResult(v1::TurnResult {
            key: instance.key(),
            number: instance.next_turn,
            outcome: Some(v1::TurnOutcome {
                outcome: Some(outcome),
            }),
            ..v1::TurnResult::default()
        }));
    };
    agent.send_batch(&mut instance, &[Event::Again]);
    agent.turn(&instance);
    let limit = v1::LimitPassed {
        name: "timers".into(),
        text: "at most 1000".into(),
    };
    refuse(
        &mut agent,
        &instance,
        v1::turn_outcome::Outcome::Limit(limit),
    );
    let failed = agent.failed(&instance);
    assert!(failed.reason == "REFUSED" && failed.will_retry && failed.message.contains("timers"));
    assert!(agent.ready(&instance).rebuilt);
    assert!(
        ask(&mut agent, &mut instance, "/")
            .0
            .contains("\"turns\":1,\"instance\":0")
    );

    agent.send_batch(&mut instance, &[Event::Again]);
    agent.turn(&instance);
    let fenced = v1::WrongEpoch {
        given: 1,
        current: 2,
    };
    refuse(
        &mut agent,
        &instance,
        v1::turn_outcome::Outcome::WrongEpoch(fenced),
    );
    let failed = agent.failed(&instance);
    assert!(failed.reason == "REFUSED" && !failed.will_retry);
}

#[test]
fn an_unanswered_turn_is_repeated_byte_for_byte_on_a_new_link() {
    let worker = Worker::start();
    let image = worker.compile("echo");
    let (mut agent, hello) = worker.connect();
    assert_eq!(hello.instances, []);
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    agent.ready(&instance);
    let first = subscribed(&instance);
    agent.send_batch(&mut instance, &[first]);
    let turn = agent.turn(&instance);
    for _ in 0..2 {
        let (mut newer, hello) = worker.connect();
        assert_eq!(hello.instances.len(), 1);
        assert!(hello.instances[0].ready && hello.instances[0].next_turn == 1);
        match newer.next() {
            from_worker::Message::Turn(again) => {
                assert_eq!(again.encode_to_vec(), turn.encode_to_vec());
            }
            other => panic!("{other:?}"),
        }
    }
    let (mut agent, _) = worker.connect();
    agent.turn(&instance);
    agent.commit(&mut instance);
    assert_eq!(ask(&mut agent, &mut instance, "/").0, "1\n");
    agent.stop(&instance);
    let (_, hello) = worker.connect();
    assert_eq!(hello.instances, []);
}

#[test]
fn limits_are_enforced_and_named() {
    let worker = Worker::start();
    let image = worker.compile("flood");
    let (mut agent, _) = worker.connect();
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    agent.ready(&instance);
    for (path, name) in [
        ("/state/value", "state-value-bytes"),
        ("/state/keys", "turn-keys"),
        ("/state/bytes", "turn-state-bytes"),
        ("/ops", "turn-operations"),
        ("/timers", "turn-operations"),
        ("/specs", "turn-specs"),
    ] {
        let (text, turn) = ask(&mut agent, &mut instance, path);
        assert!(text.contains(&format!("limit {name}")), "{path}: {text}");
        assert!(
            turn.operations.len() <= limits::TURN_OPERATIONS_MAX,
            "{path}"
        );
        assert!(turn.writes.len() <= limits::TURN_KEYS_MAX, "{path}");
        assert!(turn.encoded_len() < 4 << 20, "{path}");
    }
    let (text, _) = ask(&mut agent, &mut instance, "/mem");
    let got: u64 = text.trim().trim_start_matches("accepted=").parse().unwrap();
    assert!((32..64).contains(&got), "of 64 MiB the guest got {got}");

    agent.logs.clear();
    ask(&mut agent, &mut instance, "/log");
    agent.send_batch(&mut instance, &[get(1, "/stack")]);
    let failed = agent.failed(&instance);
    // A guest whose frames live in linear memory runs out of that part of its stack first.
    let ends = ["limit stack", "out of bounds memory access", "memory fault"];
    assert!(
        ends.iter().any(|end| failed.message.contains(end)),
        "{}",
        failed.message
    );
    assert!(agent.ready(&instance).rebuilt);
    let lines = agent.logs.iter().flat_map(|log| &log.lines);
    // The host's own line tells where the next turn trapped.
    let lines = lines.filter(|line| line.target != "host").count();
    let dropped: u64 = agent.logs.iter().map(|log| log.dropped).sum();
    assert!(
        (900..=limits::TURN_LOG_LINES_MAX).contains(&lines),
        "{lines}"
    );
    assert!(lines as u64 + dropped >= 100_000, "{lines} {dropped}");
}

/// Committed turns of an instance within a time.
fn turns_within(agent: &mut Agent, instance: &mut Instance, time: Duration) -> u32 {
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < time {
        agent.committed_turn(instance, &[Event::Again]);
        turns += 1;
    }
    turns
}

#[test]
fn a_spinning_guest_is_stopped_and_its_neighbour_keeps_half_of_its_turns() {
    /// Shorter than the CPU budget of a turn: the spinning guest spins all the time.
    const WINDOW: Duration = Duration::from_millis(800);
    let worker = Worker::start_alone();
    let (echo, spin) = (worker.compile("echo"), worker.compile("spin"));
    let (mut agent, _) = worker.connect();
    // It stands behind all others, on a busy machine also behind those outside of this test.
    agent.extra.limits = vec![("turn-wall-ms", 50_000)];
    let mut good = agent.start_instance(1, &echo, &[], vec![]);
    let mut bad = agent.start_instance(2, &spin, &[("spin-on", "timer")], vec![]);
    agent.ready(&good);
    agent.ready(&bad);
    turns_within(&mut agent, &mut good, Duration::from_millis(200));
    let (mut quiet, mut disturbed) = (0, 0);
    for _ in 0..3 {
        quiet += turns_within(&mut agent, &mut good, WINDOW);
        let timer = Event::Timer {
            id: "spin".into(),
            due_ms: 1,
        };
        agent.send_batch(&mut bad, &[timer]);
        disturbed += turns_within(&mut agent, &mut good, WINDOW);
        let failed = agent.failed(&bad);
        assert_eq!(
            (failed.reason.as_str(), failed.will_retry),
            ("GUEST_LIMIT", true)
        );
        assert_eq!(failed.limit, "turn-cpu-ms");
        assert!(agent.ready(&bad).rebuilt);
    }
    println!("turns of the neighbour: quiet {quiet}, disturbed {disturbed}");
    assert!(
        disturbed * 2 >= quiet,
        "quiet {quiet}, disturbed {disturbed}"
    );
}

#[test]
fn spinning_in_init_backs_off_and_spares_the_worker() {
    let worker = Worker::start();
    let image = worker.compile("spin");
    let (mut agent, _) = worker.connect();
    agent.extra.limits = vec![("init-wall-ms", 50_000)];
    let instance = agent.start_instance(1, &image, &[("spin-on", "init")], vec![]);
    for _ in 0..2 {
        let failed = agent.failed(&instance);
        assert!(
            failed.will_retry && failed.limit == "init-cpu-ms",
            "{}",
            failed.message
        );
    }
    agent.stop(&instance);
    let (_, hello) = worker.connect();
    assert_eq!(hello.instances, []);
}

#[test]
fn an_image_of_another_component_is_not_run() {
    let worker = Worker::start();
    let mut image = worker.compile("echo");
    image.digest = tessera_types::Digest::of(b"another");
    let (mut agent, _) = worker.connect();
    let instance = agent.start_instance(1, &image, &[], vec![]);
    let failed = agent.failed(&instance);
    assert_eq!(
        (failed.reason.as_str(), failed.will_retry),
        ("COMPONENT_UNUSABLE", false)
    );
    assert!(worker.pid() > 0);
}

/// One life of a guest, as the bytes of its turns.
fn life(seed: u64) -> Vec<Vec<u8>> {
    let engine = new_engine().unwrap();
    let bytes = std::fs::read(crate::harness::guest("nondet")).unwrap();
    let component = wasmtime::component::Component::from_binary(&engine, &bytes).unwrap();
    let ticker = Arc::new(Ticker::start(&engine).unwrap());
    let thread = ThreadControl {
        cpu_time: || Duration::ZERO,
        set_behind: |_| (),
    };
    let host = SchedulerHost::new(&engine, ticker, thread).unwrap();
    let image = host.link(&component).unwrap();
    let start = Start {
        seed,
        config: vec![("a".into(), "b".into())],
        ..Start::default()
    };
    let mut scheduler = image
        .build(&start, State::default())
        .map_err(|f| f.0)
        .unwrap();
    (1..=5)
        .map(|number| {
            let header = TurnHeader {
                framework: FrameworkId(1),
                epoch: Epoch(1),
                number: TurnNumber(number),
                time_ms: 1_700_000_000_000 + number * 10,
            };
            let turn = scheduler.turn(header, vec![get(number, "/")]).unwrap();
            scheduler.commit();
            v1::Turn::from(&turn).encode_to_vec()
        })
        .collect()
}

#[test]
fn equal_inputs_give_equal_turns() {
    let first = life(7);
    assert_eq!(first, life(7));
    assert_ne!(first, life(8), "the seed is heard");
    let text = String::from_utf8_lossy(&first[0]).into_owned();
    assert!(text.contains("\"environment\":[]"), "{text}");
    // The turn's time, and what its own looking and sleeping have added.
    assert!(text.contains("\"system_ns\":\"1700000000010"), "{text}");
    assert!(
        text.contains("\"system_ns_after_sleep\":\"1700000000030"),
        "{text}"
    );
}

#[test]
fn a_state_that_was_sent_by_half_is_sent_again_from_its_beginning() {
    let worker = Worker::start();
    let image = worker.compile("echo");
    let (mut agent, _) = worker.connect();
    let instance = agent.start_instance_with(1, &image, &[], vec![entry("gone", "1")], None);
    agent.sync(&instance);
    let (mut agent, hello) = worker.connect();
    assert!(!hello.instances[0].ready);
    let mut instance = agent.start_instance(1, &image, &[], vec![entry("turns", "41")]);
    agent.ready(&instance);
    let first = subscribed(&instance);
    let turn = agent.committed_turn(&mut instance, &[first]);
    let written: Vec<_> = turn
        .writes
        .iter()
        .filter_map(|write| write.value.clone())
        .collect();
    assert_eq!(written, [b"42"]);
}

pub fn entry(key: &str, value: &str) -> v1::KeyWrite {
    v1::KeyWrite {
        key: key.into(),
        value: Some(value.as_bytes().to_vec()),
    }
}
