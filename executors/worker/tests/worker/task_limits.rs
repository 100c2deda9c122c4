//! Every limit of a Wasm task: one that stays just under it, and one that reaches it.
//!
//! Invariants: each row runs in a task of its own, whose role has nothing but that limit set.

use crate::harness::{Agent, Image, Worker};
use std::collections::BTreeSet;
use tessera_types::LimitName;
use tessera_wire::v1::{TaskState, WasmTaskState};

/// Limit, its value, arguments of a task just under it, and of one that reaches it.
const DOES: &[(&str, u64, [&str; 2], [&str; 2])] = &[
    ("handles", 100, ["handles", "90"], ["handles", "101"]),
    ("handles", 100, ["files", "90"], ["files", "101"]),
    ("hostcall-bytes", 2 << 20, ["write", "2090000"], ["write", "2097200"]),
    ("random-bytes", 1_000, ["random", "1000"], ["random", "1001"]),
];

/// Limit, its value, a module, how many of it stay just under the limit. Each component has one more
/// module, which has nothing but the task's code.
const MADE_OF: &[(&str, u64, &str, usize)] = &[
    ("instances", 3, "", 2),
    ("tables", 2, "(table 1 funcref)", 2),
    ("table-elements", 10, "(table 5 funcref)", 2),
    ("memories", 2, "(memory 0)", 2),
];

/// Rows that mean nothing to a Wasm task.
const ELSEWHERE: &[&str] = &[
    // It has what it is charged for.
    "memory-bytes",
    // Of components, before there is a task.
    "component-bytes",
    "component-functions",
    "function-bytes",
    "function-locals",
    "compile-cpu-ms",
    "compile-bytes",
    // It has no `init` and no turns: it runs as long as it likes, and is sliced.
    "host-calls",
    "init-cpu-ms",
    "init-wall-ms",
    "turn-cpu-ms",
    "turn-wall-ms",
    "minute-cpu-ms",
    "turn-operations",
    "turn-operation-bytes",
    "turn-keys",
    "turn-state-bytes",
    "turn-specs",
    "turn-spec-bytes",
    // It returns no error, and what it prints goes into its files.
    "error-bytes",
    "log-lines",
    "log-bytes",
    "log-line-bytes",
    // It has no state, no specs and nobody asks it anything.
    "state-bytes",
    "state-keys",
    "timers",
    "specs",
    "spec-bytes",
    "open-requests",
    "recording-bytes",
    "recordings",
    // Of frameworks, tenants and executors.
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

/// A task that ends well, beside so many instances of a module.
fn beside(module: &str, count: usize) -> String {
    let instances = "(core instance (instantiate $m))".repeat(count);
    format!(
        r#"(component
            (core module $m {module})
            {instances}
            (core module $code (func (export "run") (result i32) i32.const 0))
            (core instance $code (instantiate $code))
            (func $run (result (result)) (canon lift (core func $code "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    )
}

/// Run a task to its end; the state that it ended in.
fn end(worker: &Worker, agent: &mut Agent, name: &str, image: &Image, args: &[&str]) -> WasmTaskState {
    agent.start_task(name, image, &worker.sandbox(name), args, 64);
    agent.wait(|message| match message {
        tessera_wire::v1::from_worker::Message::TaskState(said) if said.task == name => {
            let lives = [TaskState::TaskStarting, TaskState::TaskRunning].contains(&said.state());
            (!lives).then(|| said.clone())
        }
        _ => None,
    })
}

fn passes(said: &WasmTaskState) {
    assert_eq!(said.state(), TaskState::TaskFinished, "{said:?}");
}

fn reaches(said: &WasmTaskState, name: &str) {
    let ended = (said.state(), said.reason.as_str());
    assert_eq!(ended, (TaskState::TaskFailed, "GUEST_LIMIT"), "{said:?}");
    assert!(said.message.starts_with(&format!("limit {name}: ")), "{said:?}");
}

#[test]
fn a_task_that_stays_under_a_limit_finishes_and_one_that_reaches_it_fails_with_its_name() {
    let worker = Worker::start();
    let image = worker.compile("limits-task");
    let (mut agent, _) = worker.connect();
    for (row, (name, value, under, over)) in DOES.iter().enumerate() {
        agent.extra.limits = vec![(name, *value)];
        passes(&end(&worker, &mut agent, &format!("u{row}"), &image, under));
        reaches(&end(&worker, &mut agent, &format!("o{row}"), &image, over), name);
        // Of this task's role only, and of this start only.
        agent.extra.limits.clear();
        passes(&end(&worker, &mut agent, &format!("d{row}"), &image, over));
    }
}

#[test]
fn what_a_task_is_made_of_is_limited_by_name() {
    let worker = Worker::start();
    let (mut agent, _) = worker.connect();
    for (name, value, module, under) in MADE_OF {
        agent.extra.limits = vec![(name, *value)];
        let [fits, exceeds] = [*under, under + 1].map(|count| {
            worker.compile_text(&format!("{name}-{count}"), &beside(module, count))
        });
        passes(&end(&worker, &mut agent, &format!("{name}-under"), &fits, &[]));
        reaches(&end(&worker, &mut agent, &format!("{name}-over"), &exceeds, &[]), name);
    }
}

#[test]
fn a_task_has_the_memory_that_it_is_charged_for_whatever_its_role_may_have() {
    let worker = Worker::start();
    let image = worker.compile("limits-task");
    let (mut agent, _) = worker.connect();
    // 64 MiB are charged.
    for (name, value) in [("memory-bytes", 64 << 10), ("memory-bytes", 1 << 30)] {
        agent.extra.limits = vec![(name, value)];
        passes(&end(&worker, &mut agent, &format!("u{value}"), &image, &["memory", "30"]));
        let said = end(&worker, &mut agent, &format!("o{value}"), &image, &["memory", "64"]);
        assert_eq!((said.state(), said.exit_code), (TaskState::TaskFailed, Some(1)), "{said:?}");
    }
}

#[test]
fn every_row_of_the_table_has_a_test_or_means_nothing_to_a_task() {
    let tested = DOES.iter().map(|row| row.0).chain(MADE_OF.iter().map(|row| row.0));
    let tested: BTreeSet<&str> = tested.chain(ELSEWHERE.iter().copied()).collect();
    let table: BTreeSet<&str> = LimitName::ALL.iter().map(|name| name.row().name).collect();
    assert_eq!(tested, table);
}
