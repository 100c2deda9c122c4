//! Recordings and replay: a life that is run again in another process, byte for byte.

use crate::harness::{Agent, Instance, WORKER, Worker, get, guest, run};
use crate::schedulers::{entry, subscribed};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tessera_types::{Event, KeyWrite, LimitName};
use tessera_wire::recording::{Sealer, Unsealed, Unsealer};
use tessera_wire::v1;
use v1::recording_item::Item;

/// Replay in a process of its own: its exit code, what it printed.
fn replay(recording: &Path, component: &str, changed: bool) -> (i32, Value) {
    let component = guest(component);
    let mut arguments = vec!["replay", "--recording", recording.to_str().unwrap()];
    arguments.extend(["--component", component.to_str().unwrap()]);
    arguments.extend(changed.then_some("--component-changed"));
    let output = run(&arguments);
    let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), said)
}

fn items(recording: &Path) -> Vec<Item> {
    let mut items = Unsealer::new(std::fs::File::open(recording).unwrap());
    let mut found = Vec::new();
    while let Some(item) = items.next_item().unwrap() {
        match item {
            Unsealed::Item(item) => found.push(item),
            Unsealed::Altered => panic!("altered"),
        }
    }
    found
}

/// Offsets of the frames of a recording.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        found.push(at);
        at += 4 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    }
    found
}

fn seal(path: &Path, items: impl IntoIterator<Item = Item>) -> PathBuf {
    let (mut sealer, mut bytes) = (Sealer::default(), Vec::new());
    items.into_iter().for_each(|item| sealer.seal(item, &mut bytes));
    std::fs::write(path, bytes).unwrap();
    path.to_owned()
}

/// Turns of the recorded life that were committed; then one traps.
const TURNS: u64 = 7;

/// A life of the guest that uses everything that could differ; its recording, and the directory.
fn record(agent: &mut Agent, instance: &mut Instance) {
    agent.ready(instance);
    let first = subscribed(instance);
    agent.committed_turn(instance, &[first]);
    for turn in 2..=TURNS {
        let mut events = vec![get(turn, "/"), Event::Again];
        if turn == 4 {
            let write = KeyWrite { key: "k00".into(), value: None };
            events.push(Event::StateChanged { count: 3, writes: vec![write] });
        }
        if turn == 5 {
            events.push(Event::ConfigChanged {
                version: 2,
                config: vec![("remark".into(), "second".into())],
            });
        }
        agent.committed_turn(instance, &events);
    }
    agent.send_batch(instance, &[get(99, "/trap")]);
    let failed = agent.failed(instance);
    assert_eq!((failed.reason.as_str(), failed.turn), ("TRAPPED", TURNS + 1));
}

#[test]
fn a_life_is_replayed_byte_for_byte_and_what_differs_is_found_in_its_turn() {
    let worker = Worker::start();
    let image = worker.compile("nondet");
    let recordings = worker.sandbox("recordings");
    let (mut agent, _) = worker.connect();
    agent.extra.recordings = Some(recordings.clone());
    let state = (0..30).map(|n| entry(&format!("k{n:02}"), &"v".repeat(5_000))).collect();
    let mut instance = agent.start_instance(1, &image, &[("remark", "first")], state);
    record(&mut agent, &mut instance);
    assert_eq!(agent.ready(&instance).outside, 3, "the copy has what was written from outside");

    let file = recordings.join("e1-1.rec");
    let (code, said) = replay(&file, "nondet", false);
    assert_eq!((code, &said["equal"], &said["turns"]), (0, &true.into(), &TURNS.into()), "{said}");
    assert!(said["divergence"].is_null() && said["unreplayed"].is_null() && said["stopped"].is_null());
    assert!(recordings.join("e1-2.rec").is_file(), "the next life is recorded, too");

    tampered(&file);
    changed_component(&file);
}

/// Whoever changes a recording is found: by the chain of its frames, or, when that was made anew, by what
/// the guest does.
fn tampered(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    let known = items(file);
    let position = |number: u64| {
        let is = |item: &Item| matches!(item, Item::Batch(batch) if batch.number == number);
        known.iter().position(is).unwrap()
    };
    // The turn that follows batch 4, in the middle of its frame.
    let at = frames(&bytes)[position(4) + 1] + 40;
    let mut altered = bytes.clone();
    altered[at] ^= 1;
    let path = file.with_extension("altered");
    std::fs::write(&path, altered).unwrap();
    let (code, said) = replay(&path, "nondet", false);
    let divergence = &said["divergence"];
    assert_eq!((code, &divergence["turn"], &divergence["kind"]), (3, &4.into(), &"recording-altered".into()));

    let forge = |change: &dyn Fn(usize, &mut Item)| {
        let mut items = known.clone();
        items.iter_mut().enumerate().for_each(|(at, item)| change(at, item));
        let (code, said) = replay(&seal(&path, items), "nondet", false);
        (code, said["divergence"]["turn"].as_u64(), said["divergence"]["kind"].as_str().map(str::to_owned))
    };
    let forged_turn = |at: usize, item: &mut Item| {
        if at == position(3) + 1 {
            let Item::Turn(bytes) = item else { panic!("{item:?}") };
            let mut turn = <v1::Turn as prost::Message>::decode(bytes.as_slice()).unwrap();
            turn.writes[0].value = Some(b"forged".to_vec());
            *bytes = prost::Message::encode_to_vec(&turn);
        }
    };
    assert_eq!(forge(&forged_turn), (3, Some(3), Some("writes".into())));
    let forged_time = |at: usize, item: &mut Item| {
        if at == position(6) {
            let Item::Batch(batch) = item else { panic!("{item:?}") };
            batch.time_ms += 1;
        }
    };
    assert_eq!(forge(&forged_time), (3, Some(6), Some("operations".into())));
    let forged_end = |_: usize, item: &mut Item| {
        if let Item::Failure(failure) = item {
            failure.message = "trapped: something else".into();
        }
    };
    assert_eq!(forge(&forged_end), (3, Some(TURNS + 1), Some("trap".into())));
    let forged_seed = |_: usize, item: &mut Item| {
        if let Item::Header(header) = item {
            header.seed += 1;
        }
    };
    assert_eq!(forge(&forged_seed).0, 3);
    assert_eq!(forge(&|_, _| ()), (0, None, None));
}

/// A changed component shows the first turn in which it does something else.
fn changed_component(file: &Path) {
    let (code, said) = replay(file, "nondet_changed", false);
    assert_eq!((code, said), (1, Value::Null), "another component has to be asked for");
    let (code, said) = replay(file, "nondet_changed", true);
    assert_eq!((code, &said["component_changed"], &said["turns"]), (3, &true.into(), &3.into()), "{said}");
    let divergence = &said["divergence"];
    assert_eq!((&divergence["turn"], &divergence["kind"]), (&4.into(), &"writes".into()));
    assert_eq!(divergence["got"], "1. of writes: \"changed\" = \"4\"");
    assert!(divergence["expected"].as_str().unwrap().starts_with("1. of writes: \"last\""));
}

#[test]
fn what_is_not_in_a_recording_is_said() {
    let worker = Worker::start();
    let recordings = worker.sandbox("recordings");
    let (nondet, limits) = (worker.compile("nondet"), worker.compile("limits"));
    let (mut agent, _) = worker.connect();
    agent.extra.recordings = Some(worker.sandbox("whole"));
    let mut instance = agent.start_instance(1, &nondet, &[], vec![]);
    record(&mut agent, &mut instance);
    agent.stop(&instance);
    let whole = agent.extra.recordings.as_ref().unwrap().join("e1-1.rec");
    let bytes = std::fs::metadata(whole).unwrap().len();
    // Room for some of its turns.
    agent.extra.recordings = Some(recordings.clone());
    agent.extra.limits = vec![("recording-bytes", bytes / 2)];
    let mut instance = agent.start_instance(1, &nondet, &[], vec![]);
    record(&mut agent, &mut instance);
    let (code, said) = replay(&recordings.join("e1-1.rec"), "nondet", false);
    let stopped = said["stopped"].as_u64().unwrap();
    assert_eq!((code, &said["turns"]), (0, &(stopped - 1).into()), "{said}");
    assert!(stopped > 2 && stopped <= TURNS, "{stopped}");
    agent.stop(&instance);

    // Time is not part of what an instance is given: who was stopped for it is not run again.
    let recordings = worker.sandbox("second");
    agent.extra.recordings = Some(recordings.clone());
    agent.extra.limits = vec![("turn-cpu-ms", 100)];
    let mut instance = agent.start_instance(2, &limits, &[], vec![]);
    agent.ready(&instance);
    agent.send_batch(&mut instance, &[get(1, "/spin/0")]);
    agent.failed(&instance);
    agent.stop(&instance);
    let (code, said) = replay(&recordings.join("e1-1.rec"), "limits", false);
    assert_eq!((code, &said["equal"], &said["unreplayed"]["turn"]), (0, &true.into(), &1.into()), "{said}");
    assert!(said["unreplayed"]["why"].as_str().unwrap().contains("turn-cpu-ms"));

    let (code, said) = replay(&guest("limits"), "limits", false);
    let divergence = &said["divergence"];
    assert_eq!((code, &divergence["turn"], &divergence["kind"]), (3, &0.into(), &"recording-altered".into()));
    let empty = recordings.join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_eq!(replay(&empty, "limits", false), (1, Value::Null));
}

#[test]
fn changed_limits_and_failures_that_depend_on_nothing_else_are_replayed() {
    let worker = Worker::start();
    let recordings = worker.sandbox("recordings");
    let image = worker.compile("limits");
    let (mut agent, _) = worker.connect();
    agent.extra.recordings = Some(recordings.clone());
    agent.extra.limits = vec![("turn-keys", 10)];
    let mut instance = agent.start_instance(1, &image, &[], vec![]);
    agent.ready(&instance);
    agent.committed_turn(&mut instance, &[get(1, "/keys/11")]);
    agent.extra.limits = vec![("turn-keys", 11), ("host-calls", 1_000)];
    agent.say_start(&instance, &image, &[]);
    agent.sync(&instance);
    agent.committed_turn(&mut instance, &[get(2, "/keys/11")]);
    agent.send_batch(&mut instance, &[get(3, "/host-calls/5000")]);
    assert_eq!(agent.failed(&instance).limit, "host-calls");
    let (code, said) = replay(&recordings.join("e1-1.rec"), "limits", false);
    assert_eq!((code, &said["turns"], &said["unreplayed"]), (0, &2.into(), &Value::Null), "{said}");

    // A life that never began.
    let failing = agent.start_instance(2, &image, &[("init-spin", "x")], vec![]);
    assert_eq!(agent.failed(&failing).reason, "GUEST_ERROR");
    let path = recordings.join("e1-3.rec");
    let is_second = items(&path).iter().any(|item| matches!(item, Item::Header(header) if header.framework == 2));
    assert!(is_second, "lives are counted in the directory");
    let (code, said) = replay(&path, "limits", false);
    assert_eq!((code, &said["turns"]), (0, &0.into()), "{said}");
}

#[test]
fn a_replay_has_given_up_what_it_does_not_need_before_it_reads_anything() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("recording");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Both files can be opened, and the first read waits for somebody to write the recording.
    let _writer = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut replay = Command::new(WORKER)
        .arg("replay")
        .arg("--recording")
        .arg(&pipe)
        .arg("--component")
        .arg(&pipe)
        .spawn()
        .unwrap();
    let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", replay.id())).unwrap();
    let until = std::time::Instant::now() + crate::harness::DEADLINE;
    while !of("status").contains("Seccomp:\t2") {
        assert!(std::time::Instant::now() < until, "{}", of("status"));
        std::thread::yield_now();
    }
    let (status, limits) = (of("status"), of("limits"));
    replay.kill().unwrap();
    replay.wait().unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let most = |name: LimitName| name.row().max;
    assert_eq!(limit("Max cpu time"), (most(LimitName::CompileCpuMs) / 1_000).to_string());
    assert_eq!(limit("Max address space"), most(LimitName::CompileBytes).to_string());
}
