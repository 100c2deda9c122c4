//! Many guests in one worker: a thousand schedulers live there, and what does not fit waits.

use crate::harness::{Worker, get};
use std::process::Command;
use std::time::Instant;
use tessera_types::Event;
use tessera_wire::v1::{self, TaskState, from_worker, to_worker};

const MANY: u64 = 1_000;

fn count(pid: u32, file: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    text.lines().count()
}

/// Memory that only this process has.
fn private_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum::<u64>() << 10
}

#[test]
fn a_thousand_schedulers_live_in_one_worker() {
    let worker = Worker::start();
    let image = worker.compile("echo");
    let (mut agent, _) = worker.connect();
    let (begun, maps) = (Instant::now(), count(worker.pid(), "maps"));
    let private = private_bytes(worker.pid());
    let mut instances = Vec::new();
    for framework in 1..=MANY {
        let instance = agent.start_instance(framework, &image, &[], vec![]);
        agent.ready(&instance);
        instances.push(instance);
    }
    let ready = begun.elapsed();
    let mapped = count(worker.pid(), "maps") - maps;
    let grown = (private_bytes(worker.pid()) - private) / MANY;
    eprintln!("{MANY} instances ready after {ready:?}, {mapped} mappings, {grown} bytes each");
    assert!(grown < 1 << 20, "{grown}");
    // The kernel's default allows 65,530 mappings of one process.
    assert!(mapped < 32_000, "{mapped}");
    for at in [0, instances.len() - 1] {
        let instance = &mut instances[at];
        let first = Event::Subscribed(instance.subscription());
        agent.committed_turn(instance, &[first]);
        agent.committed_turn(instance, &[get(1, "/")]);
    }
}

/// Bytes of address space that a process has.
fn address_space(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
    pages * 4_096
}

/// Let a worker map this much more than it does now. A memory reserves more than 4 GiB.
fn leave_room(worker: &Worker, bytes: u64) {
    let limit = address_space(worker.pid()) + bytes;
    let limited = Command::new("prlimit")
        .args([format!("--pid={}", worker.pid()), format!("--as={limit}")])
        .status()
        .unwrap();
    assert!(limited.success());
}

#[test]
fn a_task_for_which_there_is_no_room_is_not_begun_and_may_be_sent_again() {
    let worker = Worker::start();
    let (spin, exit) = (worker.compile("task-spin"), worker.compile("task-exit"));
    let (mut agent, _) = worker.connect();
    agent.start_task("first", &spin, &worker.sandbox("first"), &[], 64);
    agent.task_state("first", TaskState::TaskRunning);
    leave_room(&worker, 1 << 30);
    let sandbox = worker.sandbox("second");
    // A worker that told it has forgotten it: the same attempt can be sent any number of times.
    for _ in 0..2 {
        agent.start_task("second", &exit, &sandbox, &["0"], 64);
        let waits = agent.task_state("second", TaskState::TaskStaging);
        assert_eq!(waits.reason, "WORKER_FULL", "{waits:?}");
        assert!(waits.message.contains("the worker is full"), "{waits:?}");
    }
    let (mut agent, hello) = worker.connect();
    let known: Vec<_> = hello.tasks.iter().map(|task| task.task.as_str()).collect();
    assert_eq!(known, ["first"]);
    let (framework, task, attempt) = (1, "first".to_owned(), 1);
    agent.send(to_worker::Message::KillTask(v1::KillWasmTask { framework, task, attempt }));
    agent.task_state("first", TaskState::TaskKilled);
    agent.start_task("second", &exit, &sandbox, &["0"], 64);
    agent.task_state("second", TaskState::TaskFinished);
    assert_eq!(std::fs::read_to_string(sandbox.join("stdout")).unwrap(), "args: 0\n");
}

#[test]
fn what_does_not_fit_waits_until_there_is_room() {
    let worker = Worker::start();
    let image = worker.compile("echo");
    let (mut agent, _) = worker.connect();
    let first = agent.start_instance(1, &image, &[], vec![]);
    agent.ready(&first);
    // Room for a few memories.
    leave_room(&worker, 14 << 30);
    let mut waiting = Vec::new();
    let mut ready = vec![first];
    for framework in 2..=6 {
        let instance = agent.start_instance(framework, &image, &[], vec![]);
        let failed = agent.wait(|message| match message {
            from_worker::Message::InstanceReady(ready) if ready.key == instance.key() => Some(None),
            from_worker::Message::InstanceFailed(failed) if failed.key == instance.key() => {
                Some(Some(failed.clone()))
            }
            _ => None,
        });
        match failed {
            None => ready.push(instance),
            Some(failed) => {
                assert!(failed.will_retry && !failed.guest, "{failed:?}");
                waiting.push(instance);
            }
        }
    }
    assert!(ready.len() > 1 && !waiting.is_empty(), "{}", ready.len());
    for instance in ready {
        let stop = v1::StopInstance { key: instance.key() };
        agent.send(to_worker::Message::StopInstance(stop));
    }
    for instance in &waiting {
        agent.ready(instance);
    }
}
