//! The core as the agent drives it: write-ahead order, every crash point, kills, restarts, status
//! retry, Wasm tasks and instances. A crash is a new core from the records that were kept so far.

mod harness;

use harness::*;
use std::collections::BTreeMap;
use tessera_agent_core::{NativeExit, NativeObservation as Seen, SupplyFailure};
use tessera_types::{AgentId, Digest, Quantities, Resources, TaskSpec};
use tessera_wire::v1;
use v1::TaskState as S;

#[test]
fn a_native_task_from_desired_to_forgotten() {
    let mut agent = Agent::new();
    assert_eq!(
        agent.desire(false, 1, vec![desired_task("t", &native())]),
        ["checkpoint 3 sync", "ack 1", "start f1/t 1"]
    );
    assert_eq!(
        agent.see("t", 1, Seen::Running),
        ["send t#2 RUNNING attempt 1"]
    );
    agent.now.mono_ms += 5;
    assert_eq!(
        agent.exit("t", 1, 0),
        ["checkpoint 1 sync"],
        "within 20 ms of the last message"
    );
    assert_eq!(agent.pass(15), ["send t#4 FINISHED attempt 1"]);
    assert_eq!(agent.ack("t", 2), Vec::<String>::new());
    assert_eq!(agent.ack("t", 4), ["checkpoint 1"]);
    let gone = v1::Desired {
        generation: 2,
        removed: vec![(&key("t")).into()],
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(gone, agent.now);
    assert_eq!(
        agent.take(actions),
        ["checkpoint 2 sync", "forgotten f1/t", "ack 2"]
    );
    assert_eq!(agent.core.used(), Resources::ZERO);
    assert_eq!(agent.crash(), Vec::<String>::new());
}

/// What names the trace is no part of what an author may say, and does not stand in the way of it.
#[test]
fn a_traced_task_finds_its_trace_whatever_its_author_says() {
    let id = tessera_types::TraceId { trace: [1; 16], span: [2; 8] };
    let pair = |key: &str, value: String| vec![(key.to_owned(), value)];
    let full = "x".repeat(tessera_types::limits::LAUNCH_BYTES_MAX - 1);
    for (task, env, expected) in [
        ("plain", vec![], id.header()),
        ("full", pair("X", full), id.header()),
        ("own", pair("TRACEPARENT", "mine".into()), "mine".to_owned()),
    ] {
        let mut agent = Agent::new();
        let mut desired = desired_task(task, &native());
        desired.trace = id.to_bytes();
        let env = env.into_iter().map(|(key, value)| v1::Pair { key, value });
        desired.launch.as_mut().unwrap().env = env.collect();
        let desired = v1::Desired { generation: 1, tasks: vec![desired], ..v1::Desired::default() };
        let actions = agent.core.on_desired(desired, agent.now);
        let started = actions.iter().find_map(|action| match action {
            tessera_agent_core::Action::StartNative { launch, .. } => Some(launch.env.clone()),
            _ => None,
        });
        let mut env = started.unwrap_or_else(|| panic!("{task}: {actions:?}"));
        env.retain(|(name, _)| name == "TRACEPARENT");
        assert_eq!(env, [("TRACEPARENT".to_owned(), expected)], "{task}");
    }
}

#[test]
fn inputs_of_a_round_are_decided_together() {
    let mut agent = Agent::new();
    let names = ["a", "b", "c"];
    agent.core.begin_round();
    for (index, name) in names.iter().enumerate() {
        let desired = v1::Desired {
            generation: index as u64 + 1,
            tasks: vec![desired_task(name, &native())],
            ..v1::Desired::default()
        };
        assert!(agent.core.on_desired(desired, agent.now).is_empty());
    }
    let actions = agent.core.end_round(agent.now);
    let done = agent.take(actions);
    // One checkpoint for all, before anything is started: a spec, three tasks, three generations.
    let starts = ["start f1/a 1", "start f1/b 1", "start f1/c 1"];
    assert_eq!(done, [&["checkpoint 7 sync", "ack 1", "ack 2", "ack 3"][..], &starts].concat());
    agent.core.begin_round();
    for name in names {
        assert!(agent.core.on_native(&key(name), 1, Seen::Running, agent.now).is_empty());
    }
    let actions = agent.core.end_round(agent.now);
    let running = "a#2 RUNNING attempt 1, b#2 RUNNING attempt 1, c#2 RUNNING attempt 1";
    assert_eq!(agent.take(actions), [format!("send {running}")], "none leaves alone and holds up the others");
    // One that ends and is let go in the same round is not told of any more.
    agent.now.mono_ms += 20;
    agent.core.begin_round();
    let exited = NativeExit { code: Some(0), ..NativeExit::default() };
    assert!(agent.core.on_native(&key("b"), 1, Seen::Exited(exited), agent.now).is_empty());
    let gone = v1::Desired { generation: 4, removed: vec![(&key("b")).into()], ..v1::Desired::default() };
    assert!(agent.core.on_desired(gone, agent.now).is_empty());
    let actions = agent.core.end_round(agent.now);
    assert_eq!(agent.take(actions), ["checkpoint 3 sync", "forgotten f1/b", "ack 4"]);
    assert_eq!(agent.crash(), ["inspect f1/a 1", "inspect f1/c 1"]);
}

#[test]
fn duplicates_and_strangers_change_nothing() {
    let mut agent = Agent::new();
    agent.desire(false, 5, vec![desired_task("t", &native())]);
    assert_eq!(
        agent.desire(false, 5, vec![desired_task("u", &native())]),
        ["ack 5"]
    );
    assert_eq!(
        agent.desire(true, 5, vec![desired_task("t", &native())]),
        ["checkpoint 1 sync", "ack 5"]
    );
    agent.see("t", 1, Seen::Running);
    assert_eq!(agent.see("t", 1, Seen::Running), Vec::<String>::new());
    assert_eq!(
        agent.exit("t", 2, 1),
        Vec::<String>::new(),
        "another attempt"
    );
    assert_eq!(agent.exit("x", 1, 1), Vec::<String>::new(), "unknown");
    agent.exit("t", 1, 3);
    assert_eq!(
        agent.exit("t", 1, 0),
        Vec::<String>::new(),
        "an end is an end"
    );
    assert_eq!(agent.pass(20), ["send t#4 FAILED COMMAND_EXITED attempt 1"]);
}

#[test]
fn each_crash_point_has_one_rule() {
    // Recorded, nothing else done: it is asked for, and started once it is known not to have been.
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &native())]);
    assert_eq!(agent.crash(), ["inspect f1/t 1"]);
    assert_eq!(agent.see("t", 1, Seen::NotStarted), ["start f1/t 1"]);
    // Started: found running; the status goes again because nobody acknowledged it.
    agent.see("t", 1, Seen::Running);
    assert_eq!(agent.crash(), ["inspect f1/t 1"]);
    assert_eq!(
        agent.see("t", 1, Seen::Running),
        Vec::<String>::new(),
        "no session yet"
    );
    assert_eq!(agent.register(), ["send t#2 RUNNING attempt 1"]);
    // Ended while the agent was away.
    assert_eq!(agent.crash(), ["inspect f1/t 1"]);
    agent.register();
    assert_eq!(
        agent.exit("t", 1, 0),
        ["checkpoint 1 sync", "send t#4 FINISHED attempt 1"]
    );
    // Ended and recorded, not acknowledged: only sent again.
    assert_eq!(agent.crash(), Vec::<String>::new());
    assert_eq!(agent.register(), ["send t#4 FINISHED attempt 1"]);
    agent.ack("t", 4);
    assert_eq!(agent.crash(), Vec::<String>::new());
    assert_eq!(agent.register(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_known_is_said_and_not_guessed() {
    for (seen, reason) in [
        (Seen::ShimLost, "SHIM_LOST"),
        (Seen::Rebooted, "AGENT_REBOOTED"),
    ] {
        let mut agent = Agent::new();
        agent.desire(false, 1, vec![desired_task("t", &native())]);
        agent.crash();
        agent.register();
        let lines = agent.see("t", 1, seen);
        assert_eq!(
            lines,
            [
                "checkpoint 1 sync".to_owned(),
                format!("send t#4 FAILED {reason} attempt 1")
            ]
        );
    }
}

#[test]
fn a_kill_is_recorded_asked_forced_and_repeated() {
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &native())]);
    agent.see("t", 1, Seen::Running);
    agent.pass(100);
    let lines = agent.desire(false, 2, vec![kill("t", &native(), 1_000)]);
    assert_eq!(
        lines,
        [
            "checkpoint 2 sync",
            "term f1/t 1",
            "ack 2",
            "send t#3 KILLING attempt 1"
        ]
    );
    assert_eq!(
        agent.desire(false, 3, vec![kill("t", &native(), 5_000)]),
        ["checkpoint 1 sync", "ack 3"]
    );
    agent.ack("t", 3);
    assert_eq!(agent.pass(999), Vec::<String>::new());
    assert_eq!(agent.pass(1), ["kill f1/t 1"]);
    assert_eq!(agent.pass(2_000), ["kill f1/t 1"]);
    // The intent outlives the agent.
    assert_eq!(agent.crash(), ["inspect f1/t 1"]);
    agent.register();
    assert_eq!(
        agent.see("t", 1, Seen::Running),
        ["term f1/t 1", "send t#3 KILLING attempt 1"]
    );
    let seen = Seen::Exited(NativeExit {
        signal: Some(9),
        ..NativeExit::default()
    });
    assert_eq!(agent.see("t", 1, seen), ["checkpoint 1 sync"]);
    assert_eq!(agent.pass(20), ["send t#4 KILLED SCHEDULER_KILL attempt 1"]);
}

#[test]
fn a_task_killed_before_its_start_never_starts() {
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![kill("t", &native(), 0)]);
    assert_eq!(
        lines,
        [
            "checkpoint 5 sync",
            "ack 1",
            "send t#4 KILLED SCHEDULER_KILL attempt 1"
        ]
    );
    // Killed while its start may or may not have happened: cancelled after a crash.
    agent.desire(false, 2, vec![desired_task("u", &native())]);
    assert_eq!(
        agent.desire(false, 3, vec![kill("u", &native(), 0)]),
        ["checkpoint 2 sync", "ack 3"]
    );
    agent.crash();
    assert_eq!(agent.see("u", 1, Seen::NotStarted), ["cancel f1/u 1"]);
    assert_eq!(agent.see("u", 1, Seen::Cancelled), ["checkpoint 1 sync"]);
}

#[test]
fn restarts_count_and_pause_and_survive() {
    let mut agent = Agent::new();
    let spec = TaskSpec {
        restarts: 2,
        ..native()
    };
    agent.desire(false, 1, vec![desired_task("t", &spec)]);
    agent.see("t", 1, Seen::Running);
    agent.pass(50);
    assert_eq!(agent.exit("t", 1, 1), ["checkpoint 1 sync"]);
    assert_eq!(agent.pass(99), Vec::<String>::new());
    assert_eq!(agent.pass(1), ["start f1/t 2"]);
    assert_eq!(
        agent.see("t", 2, Seen::Running),
        ["send t#6 RUNNING attempt 2"]
    );
    agent.exit("t", 2, 1);
    // Attempt 3 is on record; a crash in the pause does not count it again.
    assert_eq!(agent.crash(), ["inspect f1/t 3"]);
    agent.register();
    assert_eq!(agent.see("t", 3, Seen::NotStarted), ["start f1/t 3"]);
    agent.see("t", 3, Seen::Running);
    agent.pass(50);
    assert_eq!(
        agent.exit("t", 3, 1),
        [
            "checkpoint 1 sync",
            "send t#12 FAILED COMMAND_EXITED attempt 3"
        ]
    );
}

#[test]
fn without_a_master_everything_goes_on() {
    let mut agent = Agent::new();
    agent.desire(
        false,
        1,
        vec![desired_task(
            "t",
            &TaskSpec {
                restarts: 1,
                ..native()
            },
        )],
    );
    agent.see("t", 1, Seen::Running);
    let actions = agent.core.on_session_down(agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    assert_eq!(agent.pass(3_600_000), Vec::<String>::new());
    agent.exit("t", 1, 1);
    assert_eq!(agent.pass(100), ["start f1/t 2"], "the policy still holds");
    agent.exit("t", 2, 0);
    let hash = agent.core.tasks_hash();
    let actions = agent.core.on_registered(AgentId(1), false, agent.now);
    assert_eq!(
        agent.take(actions),
        ["send set of 1", "send t#8 FINISHED attempt 2"]
    );
    assert_eq!(agent.core.tasks_hash(), hash);
}

#[test]
fn what_the_masters_do_not_know_is_ended_and_forgotten_without_a_word() {
    let mut agent = Agent::new();
    agent.desire(
        false,
        1,
        vec![desired_task("t", &native()), desired_task("u", &native())],
    );
    agent.see("t", 1, Seen::Running);
    agent.see("u", 1, Seen::Running);
    agent.pass(100);
    agent.ack("u", 2);
    assert_eq!(
        agent.desire(true, 2, vec![desired_task("u", &native())]),
        ["checkpoint 2 sync", "term f1/t 1", "ack 2"]
    );
    assert_eq!(agent.crash(), ["inspect f1/t 1", "inspect f1/u 1"]);
    assert_eq!(agent.see("t", 1, Seen::Running), ["term f1/t 1"]);
    assert_eq!(agent.exit("t", 1, 0), ["checkpoint 1", "forgotten f1/t"]);
    assert_eq!(agent.core.tasks().count(), 1);
}

#[test]
fn an_agent_that_was_declared_gone_ends_everything_without_a_word() {
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &native())]);
    agent.see("t", 1, Seen::Running);
    agent.pass(100);
    let actions = agent.core.on_gone(agent.now);
    assert_eq!(agent.take(actions), ["checkpoint 1 sync", "term f1/t 1"]);
    assert!(!agent.core.is_empty());
    // Every try to register is answered so until it has ended.
    let actions = agent.core.on_gone(agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    assert_eq!(agent.crash(), ["inspect f1/t 1"]);
    assert_eq!(agent.see("t", 1, Seen::Running), ["term f1/t 1"]);
    assert_eq!(agent.exit("t", 1, 143), ["checkpoint 1", "forgotten f1/t"]);
    assert!(agent.core.is_empty());
}

#[test]
fn what_does_not_fit_or_breaks_a_rule_is_refused_with_a_status() {
    let mut agent = Agent::new();
    let big = TaskSpec {
        resources: Quantities { cpus_milli: 1_001, mem_mib: 1, disk_mib: 0 }.into(),
        ..native()
    };
    let lines = agent.desire(false, 1, vec![desired_task("t", &big)]);
    assert_eq!(lines[2], "send t#4 DROPPED NOT_ENOUGH_RESOURCES attempt 1");
    agent.pass(20);
    let bad = TaskSpec {
        resources: Resources::ZERO,
        ..native()
    };
    let lines = agent.desire(false, 2, vec![desired_task("u", &bad)]);
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "send u#4 ERROR INVALID_SPEC attempt 1",
            "ack 2"
        ]
    );
    let mut forged = desired_task("v", &native());
    forged.spec.push(0);
    let lines = agent.desire(false, 3, vec![forged]);
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "send v#4 ERROR INVALID_SPEC attempt 1",
            "ack 3"
        ]
    );
}

#[test]
fn a_wasm_task_gets_what_it_needs_and_is_sent_after_its_record() {
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![desired_task("t", &wasm())]);
    assert_eq!(
        lines,
        [
            "checkpoint 3 sync",
            "ack 1",
            "ensure worker eng/tasks",
            "ensure component"
        ]
    );
    assert_eq!(
        agent.worker_up(&tasks_worker(), hello("p1")),
        Vec::<String>::new()
    );
    let actions = agent.core.on_component(
        Digest::of(b"wasm"),
        Err(SupplyFailure::Retry("away".into())),
        agent.now,
    );
    assert_eq!(agent.take(actions), Vec::<String>::new());
    assert_eq!(agent.pass(100), ["ensure component"]);
    let actions = agent
        .core
        .on_component(Digest::of(b"wasm"), Ok(()), agent.now);
    assert_eq!(agent.take(actions), ["ensure image E"]);
    let actions = agent
        .core
        .on_image(Digest::of(b"wasm"), "E".into(), Ok(()), agent.now);
    assert_eq!(
        agent.take(actions),
        ["checkpoint 1 sync", "start-wasm f1/t 1 on eng/tasks"]
    );
    assert_eq!(
        agent.wasm_says(wasm_state("t", S::TaskRunning)),
        ["send t#2 RUNNING attempt 1"]
    );
    agent.pass(50);
    let lines = agent.wasm_says(wasm_state("t", S::TaskFinished));
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "to worker: TaskAck",
            "send t#4 FINISHED attempt 1"
        ]
    );
    assert_eq!(
        agent.wasm_says(wasm_state("t", S::TaskFinished)),
        ["to worker: TaskAck"],
        "acknowledged again"
    );
    // A warm one: one checkpoint covers intent and sending.
    let lines = agent.desire(false, 2, vec![desired_task("u", &wasm())]);
    assert_eq!(
        lines,
        [
            "checkpoint 3 sync",
            "ack 2",
            "start-wasm f1/u 1 on eng/tasks"
        ]
    );
}

#[test]
fn the_death_of_a_worker_ends_its_tasks_once() {
    let mut agent = Agent::new();
    agent.desire(
        false,
        1,
        vec![desired_task("t", &wasm()), desired_task("n", &native())],
    );
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    agent.wasm_says(wasm_state("t", S::TaskRunning));
    agent.see("n", 1, Seen::Running);
    agent.pass(50);
    agent.pass(50);
    let actions = agent.core.on_worker_down(&tasks_worker(), agent.now);
    assert_eq!(
        agent.take(actions),
        ["checkpoint 1 sync", "send t#4 FAILED WORKER_LOST attempt 1"]
    );
    let actions = agent.core.on_worker_down(&tasks_worker(), agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    agent.ack("t", 4);
    // The same after a crash of the agent: another process means that the old one is gone.
    agent.desire(false, 2, vec![desired_task("u", &wasm())]);
    agent.pass(300);
    agent.worker_up(&tasks_worker(), hello("p2"));
    assert_eq!(agent.crash(), ["inspect f1/n 1", "ensure worker eng/tasks"]);
    assert_eq!(
        agent.worker_up(&tasks_worker(), hello("p3")),
        ["checkpoint 1 sync"]
    );
}

#[test]
fn a_restarted_agent_finds_its_wasm_tasks() {
    let mut agent = Agent::new();
    agent.desire(
        false,
        1,
        vec![
            desired_task("a", &wasm()),
            desired_task("b", &wasm()),
            desired_task("c", &wasm()),
        ],
    );
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    assert_eq!(agent.crash(), ["ensure worker eng/tasks"]);
    let mut said = hello("p1");
    said.tasks = vec![
        wasm_state("a", S::TaskRunning),
        wasm_state("b", S::TaskFinished),
        wasm_state("x", S::TaskRunning),
    ];
    // The worker never got `c`, and nobody knows `x`.
    assert_eq!(
        agent.worker_up(&tasks_worker(), said),
        ["to worker: KillTask", "ensure component"]
    );
    let lines = agent.supply_wasm();
    assert_eq!(
        lines,
        ["checkpoint 1 sync", "start-wasm f1/c 1 on eng/tasks"]
    );
    let lines = agent.wasm_says(wasm_state("b", S::TaskFinished));
    assert_eq!(lines, ["checkpoint 1 sync", "to worker: TaskAck"]);
    let states: BTreeMap<_, _> = agent
        .core
        .tasks()
        .map(|(key, _, state)| (key.task.to_string(), state.name()))
        .collect();
    let expected = [
        ("a", "TASK_RUNNING"),
        ("b", "TASK_FINISHED"),
        ("c", "TASK_STARTING"),
    ];
    assert_eq!(
        states,
        expected
            .map(|(task, state)| (task.to_owned(), state))
            .into()
    );
}

fn instance(epoch: u64) -> v1::DesiredInstance {
    v1::DesiredInstance {
        framework: 7,
        name: "w".into(),
        role: "eng".into(),
        epoch,
        component: Digest::of(b"wasm").0.to_vec(),
        config: vec![],
        seed: 1, ..Default::default() }
}

fn desire_instance(
    agent: &mut Agent,
    generation: u64,
    instances: Vec<v1::DesiredInstance>,
) -> Vec<String> {
    let desired = v1::Desired {
        generation,
        full: true,
        instances,
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(desired, agent.now);
    agent.take(actions)
}

fn ready(epoch: u64, next_turn: u64) -> v1::InstanceReady {
    let key = Some(v1::InstanceKey {
        framework: 7,
        epoch,
    });
    v1::InstanceReady {
        key,
        rebuilt: false,
        next_turn,
        outside: 0,
    }
}

fn running_instance() -> Agent {
    let mut agent = Agent::new();
    let lines = desire_instance(&mut agent, 1, vec![instance(1)]);
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "ack 1",
            "ensure worker eng/schedulers",
            "ensure component"
        ]
    );
    agent.worker_up(&schedulers_worker(), hello("p1"));
    assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
    let actions = agent.core.on_instance_ready(ready(1, 1), agent.now);
    assert_eq!(agent.take(actions), ["ready rebuilt=false next=1"]);
    agent
}

#[test]
fn a_turn_of_unknown_fate_is_repeated_in_the_next_session() {
    let mut agent = running_instance();
    let turn = v1::Turn {
        framework: 7,
        epoch: 1,
        number: 1,
        ..v1::Turn::default()
    };
    let actions = agent.core.on_turn(turn, agent.now);
    assert_eq!(agent.take(actions), ["turn 1"]);
    agent.core.on_session_down(agent.now);
    assert_eq!(agent.register(), ["turn 1", "ready rebuilt=false next=1"]);
    let outcome = v1::TurnOutcome {
        outcome: Some(v1::turn_outcome::Outcome::Next(2)),
    };
    let key = Some(v1::InstanceKey {
        framework: 7,
        epoch: 1,
    });
    let result = v1::TurnResult {
        key,
        number: 1,
        outcome: Some(outcome),
        ..v1::TurnResult::default()
    };
    let actions = agent.core.on_turn_result(result, agent.now);
    assert_eq!(agent.take(actions), ["to worker: TurnResult"]);
    agent.core.on_session_down(agent.now);
    assert_eq!(agent.register(), ["ready rebuilt=false next=2"]);
}

#[test]
fn a_lost_scheduler_worker_is_built_again() {
    let mut agent = running_instance();
    let actions = agent.core.on_worker_down(&schedulers_worker(), agent.now);
    assert_eq!(agent.take(actions), ["failed WORKER_LOST retry=true"]);
    assert_eq!(agent.pass(100), ["ensure worker eng/schedulers"]);
    assert_eq!(
        agent.worker_up(&schedulers_worker(), hello("p2")),
        ["start f7 e1"]
    );
    let actions = agent.core.on_instance_ready(ready(1, 4), agent.now);
    assert_eq!(agent.take(actions), ["ready rebuilt=true next=4"]);
}

#[test]
fn a_newer_epoch_replaces_and_an_older_one_is_not_spoken_for() {
    let mut agent = running_instance();
    let lines = desire_instance(&mut agent, 2, vec![instance(2)]);
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "ack 2",
            "to worker: StopInstance",
            "start f7 e2"
        ]
    );
    let actions = agent.core.on_instance_ready(ready(1, 9), agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    let old = v1::Turn {
        framework: 7,
        epoch: 1,
        number: 1,
        ..v1::Turn::default()
    };
    let actions = agent.core.on_turn(old, agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    let lines = desire_instance(&mut agent, 3, vec![]);
    assert_eq!(
        lines,
        ["checkpoint 1 sync", "ack 3", "to worker: StopInstance"]
    );
    // Workers are looked at a little later.
    assert_eq!(agent.pass(100), Vec::<String>::new());
    assert_eq!(agent.pass(60_000), ["stop worker eng/schedulers"]);
}

#[test]
fn a_restarted_agent_goes_on_with_instances_that_are_whole() {
    let mut agent = running_instance();
    agent.crash();
    let has = |epoch, ready| v1::HelloInstance {
        key: Some(v1::InstanceKey {
            framework: 7,
            epoch,
        }),
        ready,
        next_turn: 5,
        rebuilt: false,
        outside: 0,
    };
    let mut said = hello("p1");
    said.instances = vec![has(1, true)];
    assert_eq!(
        agent.worker_up(&schedulers_worker(), said.clone()),
        Vec::<String>::new()
    );
    agent.register();
    assert_eq!(
        desire_instance(&mut agent, 2, vec![instance(1)])[1..],
        ["ack 2", "update f7 e1", "ready rebuilt=false next=5"]
    );
    // A turn that its worker repeats before the masters have spoken waits for them: nobody else has it.
    agent.crash();
    agent.worker_up(&schedulers_worker(), said.clone());
    let turn = v1::Turn {
        framework: 7,
        epoch: 1,
        number: 5,
        ..v1::Turn::default()
    };
    let actions = agent.core.on_turn(turn, agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    agent.register();
    assert_eq!(
        desire_instance(&mut agent, 3, vec![instance(1)])[1..],
        ["ack 3", "update f7 e1", "turn 5", "ready rebuilt=false next=5"]
    );
    // One that was still being built is built from the beginning, and one of an old epoch is stopped.
    said.instances = vec![has(1, false), has(0, true)];
    agent.crash();
    agent.worker_up(&schedulers_worker(), said);
    agent.register();
    let lines = desire_instance(&mut agent, 4, vec![instance(1)]);
    assert_eq!(
        lines[1..],
        [
            "ack 4",
            "to worker: StopInstance",
            "to worker: StopInstance",
            "ensure component"
        ]
    );
    assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
}

/// Found by simulation: offers that only the instance before knew stayed with it.
#[test]
fn an_instance_that_was_rebuilt_while_the_agent_was_away_is_said_to_be() {
    let mut agent = running_instance();
    agent.crash();
    let rebuilt = v1::HelloInstance {
        key: Some(v1::InstanceKey {
            framework: 7,
            epoch: 1,
        }),
        ready: true,
        next_turn: 5,
        rebuilt: true,
        outside: 0,
    };
    let mut said = hello("p1");
    said.instances = vec![rebuilt];
    agent.worker_up(&schedulers_worker(), said);
    agent.register();
    let lines = desire_instance(&mut agent, 2, vec![instance(1)]);
    assert_eq!(
        lines[1..],
        ["ack 2", "update f7 e1", "ready rebuilt=true next=5"]
    );
}

#[test]
fn an_unusable_component_is_said_once() {
    let mut agent = Agent::new();
    desire_instance(&mut agent, 1, vec![instance(1)]);
    agent.worker_up(&schedulers_worker(), hello("p1"));
    let actions = agent
        .core
        .on_component(Digest::of(b"wasm"), Ok(()), agent.now);
    agent.take(actions);
    let failure = SupplyFailure::Unusable("not a scheduler".into());
    let actions = agent
        .core
        .on_image(Digest::of(b"wasm"), "E".into(), Err(failure), agent.now);
    assert_eq!(
        agent.take(actions),
        ["failed COMPONENT_UNUSABLE retry=false"]
    );
    assert_eq!(agent.pass(10_000), Vec::<String>::new());
}

#[test]
fn changed_limits_reach_an_instance_when_it_is_ready() {
    let limited = |value| v1::DesiredInstance {
        limits: vec![(tessera_types::LimitName::Timers, value).into()],
        ..instance(1)
    };
    let mut agent = running_instance();
    let lines = desire_instance(&mut agent, 2, vec![limited(5)]);
    assert_eq!(lines, ["checkpoint 1 sync", "ack 2", "update f7 e1"]);
    let lines = desire_instance(&mut agent, 3, vec![limited(5)]);
    assert_eq!(lines, ["checkpoint 1 sync", "ack 3"], "told already");
    // While it is being built again, the start has them, or it is told once it is ready.
    let actions = agent.core.on_worker_down(&schedulers_worker(), agent.now);
    agent.take(actions);
    agent.pass(100);
    assert_eq!(
        agent.worker_up(&schedulers_worker(), hello("p2")),
        ["start f7 e1"]
    );
    let lines = desire_instance(&mut agent, 4, vec![limited(6)]);
    assert_eq!(lines, ["checkpoint 1 sync", "ack 4"]);
    let actions = agent.core.on_instance_ready(ready(1, 4), agent.now);
    assert_eq!(
        agent.take(actions),
        ["update f7 e1", "ready rebuilt=true next=4"]
    );
}
