//! Workers as the core sees them: their size, their end, those of another engine, and those that are full.

mod harness;

use harness::{Agent, desired_task, hello, kill, schedulers_worker, show, tasks_worker, wasm, wasm_state};
use tessera_agent_core::{Action, Core, CoreConfig, WorkerHello, WorkerKey, WorkerKind, WorkerLoad};
use tessera_types::{AgentId, Digest, LimitName, Quantities};
use tessera_wire::v1;
use v1::TaskState as S;

const NOTHING: [&str; 0] = [];
const MIB: u64 = 1 << 20;

fn old(kind: WorkerKind) -> WorkerKey {
    WorkerKey {
        old: Some("0ld".into()),
        ..WorkerKey::new("eng", kind)
    }
}

fn instance(limits: Vec<v1::Limit>) -> v1::DesiredInstance {
    v1::DesiredInstance {
        framework: 7,
        name: "w".into(),
        role: "eng".into(),
        epoch: 1,
        component: Digest::of(b"wasm").0.to_vec(),
        limits,
        ..Default::default()
    }
}

fn desire_instance(agent: &mut Agent, instance: v1::DesiredInstance) -> Vec<Action> {
    let desired = v1::Desired {
        generation: 1,
        instances: vec![instance],
        ..v1::Desired::default()
    };
    agent.core.on_desired(desired, agent.now)
}

/// Guests, MiB and thousandths of a core that a worker is sized for, and where in the list of actions.
fn sized(actions: &[Action]) -> Vec<(usize, u64, u64, i64)> {
    let size = |(at, action): (usize, &Action)| match action {
        Action::SizeWorker { load, .. } => {
            let WorkerLoad {
                guests,
                mem_bytes,
                cpus_milli,
            } = *load;
            Some((at, guests, mem_bytes / MIB, cpus_milli))
        }
        _ => None,
    };
    actions.iter().enumerate().filter_map(size).collect()
}

/// Two Wasm tasks run in `process`.
fn running_tasks(process: &str) -> Agent {
    let mut agent = Agent::new();
    let tasks = ["t", "u"].map(|task| desired_task(task, &wasm()));
    agent.desire(true, 1, tasks.into());
    agent.worker_up(&tasks_worker(), hello(process));
    agent.supply_wasm();
    for task in ["t", "u"] {
        agent.wasm_says(wasm_state(task, S::TaskRunning));
    }
    agent
}

#[test]
fn a_worker_is_made_larger_before_tasks_are_sent_and_smaller_after_they_ended() {
    let mut agent = Agent::new();
    let tasks = ["t", "u"].map(|task| desired_task(task, &wasm()));
    agent.desire(true, 1, tasks.into());
    agent.worker_up(&tasks_worker(), hello("p"));
    let digest = Digest::of(b"wasm");
    agent.core.on_component(digest, Ok(()), agent.now);
    // Long enough ago for the next look, which is to be due to the start.
    let actions = agent.core.on_image(digest, "E".into(), Ok(()), agent.now);
    let start = actions
        .iter()
        .position(|a| matches!(a, Action::StartWasm { .. }));
    let before = sized(&actions);
    assert!(
        before.iter().all(|(at, ..)| Some(*at) < start),
        "{actions:?}"
    );
    // It may have been made as large already when it was connected.
    let size = before.last().map(|(_, guests, mib, cpus)| (*guests, *mib, *cpus));
    assert!(size.is_none_or(|size| size == (2, 20, 200)), "{size:?}");
    agent.take(actions);
    let end = agent
        .core
        .on_wasm(&tasks_worker(), wasm_state("t", S::TaskFinished), Ok(vec![]), agent.now);
    assert_eq!(sized(&end), [], "room is given back a little later");
    agent.take(end);
    agent.now.mono_ms += 100;
    let actions = agent.core.on_tick(agent.now);
    let sizes: Vec<_> = sized(&actions).iter().map(|(_, g, mib, cpus)| (*g, *mib, *cpus)).collect();
    assert_eq!(sizes, [(1, 10, 100)]);
}

#[test]
fn a_scheduler_counts_with_the_memory_that_its_role_allows() {
    let default = |name: LimitName| name.row().default / MIB;
    let kept = default(LimitName::StateBytes) + default(LimitName::SpecBytes);
    for (limits, mib) in [
        (vec![], default(LimitName::MemoryBytes)),
        (
            vec![v1::Limit {
                name: LimitName::MemoryBytes.to_string(),
                value: 300 * MIB,
            }],
            300,
        ),
    ] {
        let mut agent = Agent::new();
        let actions = desire_instance(&mut agent, instance(limits));
        agent.take(actions);
        agent.now.mono_ms += 100;
        let actions = agent
            .core
            .on_worker_up(&schedulers_worker(), hello("p"), agent.now);
        assert_eq!(sized(&actions), [(0, 1, mib + kept, 1_000)]);
    }
}

#[test]
fn an_idle_worker_ends_after_the_time_that_was_set() {
    let total = Quantities {
        cpus_milli: 1,
        mem_mib: 1,
        disk_mib: 0,
    };
    let mut agent = Agent::new();
    let config = CoreConfig {
        worker_idle_ms: 500,
        ..CoreConfig::new(total.into())
    };
    agent.core = Core::new(config, AgentId(1));
    assert_eq!(agent.worker_up(&schedulers_worker(), hello("p")), NOTHING);
    assert_eq!(agent.core.wake_ms(), Some(agent.now.mono_ms + 500));
    assert_eq!(agent.pass(499), NOTHING);
    assert_eq!(agent.pass(1), ["stop worker eng/schedulers"]);
    assert_eq!(agent.pass(10_000), NOTHING, "once is enough");
}

#[test]
fn a_worker_of_another_engine_keeps_its_tasks_and_gets_no_new_ones() {
    let mut agent = running_tasks("p");
    agent.crash();
    let of_old = old(WorkerKind::Tasks);
    let actions = agent.core.on_workers_found(vec![of_old.clone()], agent.now);
    assert_eq!(agent.take(actions), ["ensure worker eng/tasks"]);
    agent.register();
    // A worker of the new engine is there first: nothing is lost by that.
    let lines = agent.worker_up(&tasks_worker(), hello("q"));
    assert!(lines.iter().all(|line| !line.contains("WORKER_LOST")), "{lines:?}");
    let both = WorkerHello {
        tasks: vec![wasm_state("t", S::TaskRunning), wasm_state("u", S::TaskRunning)],
        ..hello("p")
    };
    let lines = agent.worker_up(&of_old, both);
    assert!(lines.iter().all(|line| !line.contains("WORKER_LOST")), "{lines:?}");
    // A new task goes to the new worker, an end to the old one.
    agent.pass(100);
    let actions = agent.core.on_desired(
        v1::Desired {
            generation: 2,
            tasks: vec![desired_task("v", &wasm()), kill("t", &wasm(), 0)],
            ..v1::Desired::default()
        },
        agent.now,
    );
    let killed = actions.iter().find_map(|action| match action {
        Action::ToWorker { worker, .. } => Some(worker.clone()),
        _ => None,
    });
    assert_eq!(killed, Some(of_old.clone()));
    agent.take(actions);
    let digest = Digest::of(b"wasm");
    agent.core.on_component(digest, Ok(()), agent.now);
    let actions = agent.core.on_image(digest, "E".into(), Ok(()), agent.now);
    let started = actions.iter().find_map(|action| match action {
        Action::StartWasm { worker, key, .. } => Some((worker.clone(), key.task.to_string())),
        _ => None,
    });
    assert_eq!(started, Some((tasks_worker(), "v".into())));
    agent.take(actions);
    // It ends with the last of its tasks, and is not started again.
    for (task, state) in [("t", S::TaskKilled), ("u", S::TaskFinished)] {
        let actions = agent
            .core
            .on_wasm(&of_old, wasm_state(task, state), Ok(vec![]), agent.now);
        agent.take(actions);
    }
    agent.now.mono_ms += 100;
    let actions = agent.core.on_tick(agent.now);
    let stopped: Vec<_> = actions
        .iter()
        .filter(|action| matches!(action, Action::StopWorker { .. }))
        .collect();
    assert_eq!(stopped, [&Action::StopWorker { worker: of_old.clone() }]);
    let actions = agent.core.on_worker_down(&of_old, agent.now);
    assert!(
        actions.iter().all(|a| !matches!(a, Action::EnsureWorker { .. })),
        "{actions:?}"
    );
}

#[test]
fn tasks_of_a_worker_that_is_gone_end_once_whichever_engine_it_had() {
    // What the agent finds after its restart, and what becomes of the tasks that process p had.
    type Then = fn(&mut Agent) -> Vec<String>;
    let cases: [(&str, Then); 3] = [
        ("the old one does not answer", |agent| {
            let mut lines = agent.worker_up(&tasks_worker(), hello("q"));
            let actions = agent.core.on_worker_down(&old(WorkerKind::Tasks), agent.now);
            lines.extend(agent.take(actions));
            lines
        }),
        ("the old one answers and dies", |agent| {
            let mut lines = agent.worker_up(&tasks_worker(), hello("q"));
            let running = WorkerHello {
                tasks: ["t", "u"].map(|t| wasm_state(t, S::TaskRunning)).into(),
                ..hello("p")
            };
            lines.extend(agent.worker_up(&old(WorkerKind::Tasks), running));
            let actions = agent.core.on_worker_down(&old(WorkerKind::Tasks), agent.now);
            lines.extend(agent.take(actions));
            lines
        }),
        ("the old one is another process", |agent| {
            let mut lines = agent.worker_up(&old(WorkerKind::Tasks), hello("r"));
            lines.extend(agent.worker_up(&tasks_worker(), hello("q")));
            lines
        }),
    ];
    for (name, then) in cases {
        let mut agent = running_tasks("p");
        agent.crash();
        let found = vec![old(WorkerKind::Tasks)];
        let actions = agent.core.on_workers_found(found, agent.now);
        agent.take(actions);
        agent.register();
        let mut lines = then(&mut agent);
        for _ in 0..3 {
            lines.extend(agent.pass(100));
        }
        assert!(
            lines.iter().any(|line| line.contains("WORKER_LOST")),
            "{name}: {lines:?}"
        );
        let lost = agent
            .core
            .tasks()
            .filter(|(_, _, state)| state.is_terminal())
            .count();
        assert_eq!(lost, 2, "{name}");
    }
}

#[test]
fn schedulers_of_another_engine_are_built_anew_by_this_one() {
    let has = WorkerHello {
        instances: vec![v1::HelloInstance {
            key: Some(v1::InstanceKey {
                framework: 7,
                epoch: 1,
            }),
            ready: true,
            next_turn: 5,
            rebuilt: false,
            outside: 0,
        }],
        ..hello("p")
    };
    let of_old = old(WorkerKind::Schedulers);
    // Heard of before or after what is desired.
    for old_first in [true, false] {
        let mut agent = Agent::new();
        let actions = agent.core.on_workers_found(vec![of_old.clone()], agent.now);
        agent.take(actions);
        let mut lines = Vec::new();
        if old_first {
            lines.extend(agent.worker_up(&of_old, has.clone()));
        }
        let actions = desire_instance(&mut agent, instance(vec![]));
        lines.extend(agent.take(actions));
        if !old_first {
            lines.extend(agent.worker_up(&of_old, has.clone()));
        }
        lines.extend(agent.pass(100));
        assert!(lines.contains(&"to worker: StopInstance".into()), "{lines:?}");
        assert!(lines.contains(&"stop worker eng/schedulers".into()), "{lines:?}");
        agent.worker_up(&schedulers_worker(), hello("q"));
        assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
        let ready = v1::InstanceReady {
            key: has.instances[0].key,
            rebuilt: false,
            next_turn: 5,
            outside: 0,
        };
        let actions = agent.core.on_instance_ready(ready, agent.now);
        assert_eq!(agent.take(actions), ["ready rebuilt=true next=5"]);
    }
}

#[test]
fn a_scheduler_for_which_a_worker_has_no_room_is_tried_again() {
    let mut agent = Agent::new();
    let actions = desire_instance(&mut agent, instance(vec![]));
    agent.take(actions);
    agent.worker_up(&schedulers_worker(), hello("p"));
    assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
    let full = v1::InstanceFailed {
        key: Some(v1::InstanceKey {
            framework: 7,
            epoch: 1,
        }),
        reason: "WORKER_FULL".into(),
        message: "room for 1".into(),
        will_retry: true,
        ..Default::default()
    };
    for pause in [100, 200, 400] {
        let actions = agent.core.on_instance_failed(full.clone(), agent.now);
        let said: Vec<_> = actions
            .iter()
            .filter(|action| matches!(action, Action::Send(_)))
            .map(show)
            .collect();
        assert_eq!(said.len(), 1, "the masters hear why it waits: {said:?}");
        agent.take(actions);
        assert_eq!(agent.pass(pause - 1), NOTHING, "{pause}");
        assert_eq!(agent.pass(1), ["start f7 e1"], "{pause}");
    }
}

#[test]
fn a_task_for_which_a_worker_has_no_room_is_sent_again_and_is_not_lost() {
    let full = || v1::WasmTaskState {
        reason: "WORKER_FULL".into(),
        message: "the worker is full".into(),
        ..wasm_state("t", S::TaskStaging)
    };
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &wasm())]);
    agent.worker_up(&tasks_worker(), hello("p"));
    let sent = ["checkpoint 1 sync", "start-wasm f1/t 1 on eng/tasks"];
    assert!(agent.supply_wasm().ends_with(&sent.map(str::to_owned)));
    let mut told = false;
    for pause in [100, 200, 400] {
        let mut said = agent.wasm_says(full());
        said.extend(agent.pass(pause - 1));
        told |= said.iter().any(|line| line.starts_with("send t#") && line.contains(" STARTING "));
        assert!(!said.iter().any(|line| line.starts_with("start-wasm")), "{pause}: {said:?}");
        let said = agent.pass(1);
        assert_eq!(said.iter().filter(|line| sent.contains(&line.as_str())).count(), 2, "{pause}: {said:?}");
    }
    assert!(told, "the masters hear that it waits");
    // Neither the end of that worker nor a crash of the agent makes it one that was lost.
    agent.wasm_says(full());
    agent.crash();
    let said = agent.worker_up(&tasks_worker(), hello("another"));
    let again = agent.supply_wasm();
    let started = said.iter().chain(&again).filter(|line| line.starts_with("start-wasm f1/t 1 "));
    assert_eq!(started.count(), 1, "{said:?} {again:?}");
    // While it waits it can be killed.
    agent.wasm_says(full());
    let said = agent.desire(true, 2, vec![]);
    let told = said.iter().any(|line| line.contains("start-wasm"));
    assert!(!told && agent.core.tasks().count() == 0, "{said:?}");
}

#[test]
fn a_task_is_sent_with_the_limits_that_its_role_has_then() {
    let limit = |role: &str, value: u64| v1::RoleLimits {
        role: role.into(),
        limits: vec![(LimitName::Handles, value).into()],
    };
    let mut agent = Agent::new();
    agent.worker_up(&tasks_worker(), hello("p"));
    let digest = Digest::of(b"wasm");
    // What is said of which role, and what a task of `eng` is sent with.
    let cases = [
        (vec![], None),
        (vec![limit("", 100), limit("other", 200)], Some(100)),
        (vec![limit("", 100), limit("eng", 200), limit("eng/search", 300)], Some(200)),
        (vec![limit("eng/search", 300)], None),
    ];
    for (n, (limits, expected)) in (1..).zip(cases) {
        let desired = v1::Desired {
            generation: n,
            tasks: vec![desired_task(&format!("t{n}"), &wasm())],
            limits,
            ..v1::Desired::default()
        };
        let mut actions = agent.core.on_desired(desired, agent.now);
        actions.extend(agent.core.on_component(digest, Ok(()), agent.now));
        actions.extend(agent.core.on_image(digest, "E".into(), Ok(()), agent.now));
        let sent: Vec<_> = actions
            .iter()
            .filter_map(|action| match action {
                Action::StartWasm { limits, .. } => Some(limits.clone()),
                _ => None,
            })
            .collect();
        let expected: Vec<v1::Limit> =
            expected.into_iter().map(|value| (LimitName::Handles, value).into()).collect();
        assert_eq!(sent, [expected], "{n}");
    }
}

#[test]
fn components_are_used_from_being_asked_for_to_the_end_of_what_needs_them() {
    let mut agent = Agent::new();
    let used = |agent: &Agent| agent.core.components_in_use().map(|used| used.into_iter().collect::<Vec<_>>());
    let digest = Digest::of(b"wasm");
    assert_eq!(used(&agent), None, "the masters have not spoken");
    agent.desire(true, 0, vec![]);
    assert_eq!(used(&agent), Some(vec![]));
    // A scheduler, from the moment in which it is desired.
    desire_instance(&mut agent, instance(vec![]));
    assert_eq!(used(&agent), Some(vec![digest]));
    let none = v1::Desired { generation: 2, ..v1::Desired::default() };
    agent.core.on_desired(none, agent.now);
    assert_eq!(used(&agent), Some(vec![digest]), "its bytes are on their way");
    agent.core.on_component(digest, Ok(()), agent.now);
    assert_eq!(used(&agent), Some(vec![]));
    // What was removed is asked for again.
    agent.core.on_component_removed(&digest);
    let asked = agent.desire(true, 3, vec![desired_task("t", &wasm())]);
    assert!(asked.iter().any(|text| text.contains("component")), "{asked:?}");
    assert_eq!(used(&agent), Some(vec![digest]));
}
