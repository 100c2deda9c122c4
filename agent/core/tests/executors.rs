//! Custom executors as the agent keeps them: their life, their tasks and children, kept turns, failures,
//! crashes of agent and worker. The guest is played by the test.

mod harness;

use harness::*;
use tessera_agent_core::{Action, NativeExit, NativeObservation as Seen, Parent, TaskKey};
use tessera_types::{
    Digest, ExecutorTask, FrameworkId, LimitName, Quantities, Resources, TaskBody, TaskSpec,
};
use tessera_wire::v1;
use v1::TaskState as S;
use v1::executor_operation::Operation;

fn mib(mem_mib: i64) -> Resources {
    Quantities { cpus_milli: 10, mem_mib, disk_mib: 0 }.into()
}

fn described() -> ExecutorTask {
    ExecutorTask {
        executor: "e".parse().unwrap(),
        component: Digest::of(b"wasm"),
        resources: mib(32),
        config: vec![],
        data: vec![],
    }
}

fn work() -> TaskSpec {
    TaskSpec {
        resources: mib(20),
        ..spec(TaskBody::Executor(described()))
    }
}

fn executor() -> Option<v1::ExecutorKey> {
    Some(v1::ExecutorKey {
        framework: 1,
        executor: "e".into(),
    })
}

fn child(life: u64, name: &str) -> TaskKey {
    TaskKey {
        framework: FrameworkId(1),
        parent: Some(Parent {
            executor: "e".parse().unwrap(),
            life,
        }),
        task: name.parse().unwrap(),
    }
}

/// Give it a batch, of a message without bytes.
fn poke(agent: &mut Agent) {
    let message = v1::ToExecutor {
        framework: 1,
        executor: "e".into(),
        data: vec![],
    };
    let actions = agent.core.on_to_executor(message, agent.now);
    agent.take(actions);
}

fn ready(agent: &mut Agent) -> Vec<String> {
    let ready = v1::ExecutorReady {
        key: executor(),
        next_turn: 0,
    };
    let actions = agent
        .core
        .on_executor_ready(&tasks_worker(), ready, agent.now);
    agent.take(actions)
}

fn turn_of(number: u64, operations: Vec<Operation>) -> v1::ExecutorTurn {
    v1::ExecutorTurn {
        key: executor(),
        number,
        operations: operations
            .into_iter()
            .map(|operation| v1::ExecutorOperation {
                operation: Some(operation),
            })
            .collect(),
        writes: vec![],
    }
}

fn submit(agent: &mut Agent, turn: v1::ExecutorTurn) -> Vec<String> {
    let actions = agent
        .core
        .on_executor_turn(&tasks_worker(), turn, agent.now);
    agent.take(actions)
}

/// The turn of a batch, after the pause in which statuses would wait.
fn turn(agent: &mut Agent, number: u64, operations: Vec<Operation>) -> Vec<String> {
    agent.now.mono_ms += 50;
    agent.now.wall_ms += 50;
    submit(agent, turn_of(number, operations))
}

fn fail(agent: &mut Agent, reason: &str) -> Vec<String> {
    let failed = v1::ExecutorFailure {
        key: executor(),
        reason: reason.into(),
        message: "it broke".into(),
        ..v1::ExecutorFailure::default()
    };
    let actions = agent
        .core
        .on_executor_failed(&tasks_worker(), failed, agent.now);
    agent.take(actions)
}

fn says(task: &str, state: S) -> Operation {
    Operation::Status(v1::ExecutorStatus {
        task: task.into(),
        state: state.into(),
        message: "so it is".into(),
        data: vec![],
    })
}

fn start(name: &str, spec: &TaskSpec) -> Operation {
    Operation::StartChild(v1::StartChild {
        child: name.into(),
        spec: tessera_wire::encode_spec(spec),
    })
}

fn small(spec: TaskSpec) -> TaskSpec {
    TaskSpec {
        resources: mib(4),
        ..spec
    }
}

fn see(agent: &mut Agent, key: &TaskKey, seen: Seen) -> Vec<String> {
    let actions = agent.core.on_native(key, 1, seen, agent.now);
    agent.take(actions)
}

fn exited(code: i32) -> Seen {
    Seen::Exited(NativeExit {
        code: Some(code),
        ..NativeExit::default()
    })
}

/// An executor whose instance is ready and has been given task `t`.
fn given() -> Agent {
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![desired_task("t", &work())]);
    assert_eq!(
        lines,
        [
            "checkpoint 4 sync",
            "ack 1",
            "limit f1/e 1 to cpus=0.020 mem=52MiB",
            "ensure worker eng/tasks",
            "ensure component"
        ]
    );
    assert_eq!(agent.core.used(), mib(52).plus(&mib(0)));
    agent.worker_up(&tasks_worker(), hello("p1"));
    assert_eq!(agent.supply_wasm(), ["build turn 1 state 0"]);
    assert_eq!(ready(&mut agent), ["batch 1: started mem 52 []; launch t"]);
    agent
}

/// The same, running.
fn running() -> Agent {
    let mut agent = given();
    let lines = turn(&mut agent, 1, vec![says("t", S::TaskRunning)]);
    assert_eq!(
        lines,
        [
            "checkpoint 1 sync",
            "to worker: ExecutorTurnKept",
            "send t#2 RUNNING attempt 1"
        ]
    );
    agent.ack("t", 2);
    agent
}

/// The agent dies and comes back, and its worker builds the executor anew: what it is told first.
fn rebuilt(agent: &mut Agent) -> String {
    agent.crash();
    agent.register();
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    ready(agent).join("; ")
}

#[test]
fn an_executor_lives_from_its_first_task_to_its_last() {
    let mut agent = running();
    // A second task joins; one that describes the executor otherwise does not.
    let other = TaskSpec {
        body: TaskBody::Executor(ExecutorTask {
            config: vec![("k".into(), "v".into())],
            ..described()
        }),
        ..work()
    };
    agent.now.mono_ms += 50;
    let tasks = vec![desired_task("u", &work()), desired_task("x", &other)];
    let lines = agent.desire(false, 2, tasks);
    assert_eq!(
        lines[1..],
        [
            "ack 2",
            "limit f1/e 1 to cpus=0.030 mem=72MiB",
            "batch 2: launch u",
            "send x#4 ERROR INVALID_SPEC attempt 1"
        ]
    );
    let lines = turn(
        &mut agent,
        2,
        vec![says("u", S::TaskRunning), says("t", S::TaskFinished)],
    );
    assert!(lines.join("; ").contains("t#4 FINISHED"), "{lines:?}");
    // With the last one it is told to end, and that one's end waits for it.
    let lines = turn(&mut agent, 2, vec![]);
    assert_eq!(lines, ["to worker: ExecutorTurnKept"], "a repeated turn");
    poke(&mut agent);
    let lines = turn(&mut agent, 3, vec![says("u", S::TaskFinished)]);
    assert_eq!(
        lines,
        [
            "checkpoint 3 sync",
            "to worker: ExecutorTurnKept",
            "batch 4: shutdown 5000"
        ]
    );
    let lines = turn(&mut agent, 4, vec![]);
    assert_eq!(
        lines,
        [
            "checkpoint 2 sync",
            "to worker: ExecutorTurnKept",
            "to worker: StopExecutor",
            "gone f1/e 1",
            "send u#4 FINISHED attempt 1"
        ]
    );
    assert_eq!(agent.core.used(), Resources::ZERO);
    assert_eq!(agent.crash(), Vec::<String>::new());
}

#[test]
fn a_turn_is_kept_once_and_before_it_is_acted_on() {
    let mut agent = running();
    let operations = vec![start("c", &small(native())), Operation::Send(vec![1; 3])];
    let to = v1::ToExecutor {
        framework: 1,
        executor: "e".into(),
        data: vec![7; 5],
    };
    let actions = agent.core.on_to_executor(to, agent.now);
    assert_eq!(agent.take(actions), ["batch 2: message 5"]);
    let kept = agent.records.len();
    let lines = turn(&mut agent, 2, operations.clone());
    assert_eq!(
        lines,
        [
            "checkpoint 3 sync",
            "to worker: ExecutorTurnKept",
            "start f1/e/1/c 1",
            "from executor e"
        ]
    );
    let lines = turn(&mut agent, 2, operations.clone());
    assert_eq!(
        lines,
        ["to worker: ExecutorTurnKept"],
        "answered, not acted on"
    );
    // A power cut that tore the checkpoint before the turn: the child is there, the turn is done again.
    agent.records.truncate(kept + 2);
    let lines = agent.crash();
    assert!(lines.contains(&"inspect f1/e/1/c 1".to_owned()), "{lines:?}");
    agent.register();
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    assert_eq!(
        ready(&mut agent),
        ["batch 2: started mem 52 [c STAGING]"],
        "messages come at most once"
    );
    see(&mut agent, &child(1, "c"), Seen::NotStarted);
    let lines = turn(&mut agent, 2, operations);
    assert!(!lines.join("; ").contains("start "), "{lines:?}");
}

#[test]
fn children_are_tasks_that_only_their_executor_hears_of() {
    let mut agent = running();
    // Told nothing: no batch is outstanding, so that only a timer can wake it.
    let timer = Operation::SetTimer(v1::ExecutorTimer {
        id: "now".into(),
        due_ms: 0,
        delay_ms: 0,
    });
    poke(&mut agent);
    let huge = spec(native().body);
    let huge = TaskSpec {
        resources: mib(50),
        ..huge
    };
    let lines = turn(
        &mut agent,
        2,
        vec![
            timer,
            start("n", &small(native())),
            start("n", &small(wasm())),
            start("w", &small(wasm())),
            start("big", &huge),
            start("inner", &work()),
            start("a/b", &small(native())),
        ],
    );
    assert_eq!(
        lines,
        [
            "checkpoint 6 sync",
            "warn executor f1/e: left out of its turn: child \"a/b\": a task id consists of `A-Z a-z 0-9 . _ -`; \
             found '/'; 0 more",
            "to worker: ExecutorTurnKept",
            "start f1/e/1/n 1",
            "start-wasm f1/e/1/w 1 on eng/tasks",
            "batch 3: child big ERROR INVALID_SPEC; child inner ERROR INVALID_SPEC"
        ]
    );
    assert_eq!(agent.core.used(), mib(52).plus(&Quantities { cpus_milli: 10, ..Quantities::ZERO }.into()), "children are charged to nobody");
    let running = Seen::Running;
    assert_eq!(see(&mut agent, &child(1, "n"), running), Vec::<String>::new());
    let lines = turn(&mut agent, 3, vec![]);
    assert_eq!(
        lines[1..],
        [
            "to worker: ExecutorTurnKept",
            "batch 4: child n RUNNING; timer now"
        ]
    );
    // The end of a child is told until it was handled; then nothing is known of it but its id.
    see(&mut agent, &child(1, "n"), exited(3));
    let lines = turn(&mut agent, 4, vec![]);
    assert_eq!(
        lines[1..],
        [
            "to worker: ExecutorTurnKept",
            "batch 5: child n FAILED COMMAND_EXITED"
        ]
    );
    let lines = turn(&mut agent, 5, vec![start("n", &small(native()))]);
    assert_eq!(
        lines,
        [
            "checkpoint 2 sync",
            "forgotten f1/e/1/n",
            "to worker: ExecutorTurnKept"
        ],
        "an id is used once"
    );
    // Nobody but the executor hears of children.
    let set = agent.core.on_registered(tessera_types::AgentId(1), false, agent.now);
    assert!(agent.take(set).contains(&"send set of 1".to_owned()));
    // Stopping one twice is stopping it once.
    let stop = || {
        Operation::StopChild(v1::StopChild {
            child: "w".into(),
            grace_ms: 10,
        })
    };
    let state = v1::WasmTaskState {
        task: "e/1/w".into(),
        ..wasm_state("w", S::TaskRunning)
    };
    assert_eq!(
        agent.wasm_says(state.clone()),
        ["batch 6: child w RUNNING"]
    );
    let lines = turn(&mut agent, 6, vec![stop(), stop()]);
    assert_eq!(
        lines[1..],
        [
            "to worker: KillTask",
            "to worker: ExecutorTurnKept",
            "batch 7: child w KILLING"
        ]
    );
}

#[test]
fn what_cannot_be_started_is_told_although_the_agent_dies() {
    let mut agent = running();
    let huge = TaskSpec {
        resources: mib(50),
        ..spec(native().body)
    };
    poke(&mut agent);
    turn(&mut agent, 2, vec![start("big", &huge), start("inner", &work())]);
    let (big, inner) = ("child big ERROR INVALID_SPEC", "child inner ERROR INVALID_SPEC");
    // The turn that asked for them is on record, and is not done again; the one that hears of it is not.
    let lines = rebuilt(&mut agent);
    assert!(lines.contains(big) && lines.contains(inner), "{lines}");
    turn(&mut agent, 3, vec![start("big", &huge)]);
    let lines = rebuilt(&mut agent);
    assert!(lines.contains(big) && !lines.contains(inner), "{lines}");
    turn(&mut agent, 4, vec![]);
    let lines = rebuilt(&mut agent);
    assert!(lines.contains("batch 5: started") && !lines.contains("ERROR"), "{lines}");
}

#[test]
fn what_is_left_of_children_ends_with_the_executor() {
    let mut agent = running();
    poke(&mut agent);
    turn(&mut agent, 2, vec![start("c", &small(native()))]);
    see(&mut agent, &child(1, "c"), Seen::Running);
    turn(&mut agent, 3, vec![says("t", S::TaskFailed)]);
    // It handles the order to end, and waits for its child for as long as it may.
    let lines = turn(&mut agent, 4, vec![]);
    assert_eq!(lines, ["checkpoint 1 sync", "to worker: ExecutorTurnKept"]);
    let lines = agent.pass(5_000);
    assert_eq!(
        lines,
        ["checkpoint 1 sync", "to worker: StopExecutor", "kill f1/e/1/c 1"]
    );
    // The end of the task is held up by the child, and across a crash, but not for ever.
    let mut crashed = Agent {
        core: tessera_agent_core::Core::new(CONFIG, tessera_types::AgentId(1)),
        records: agent.records.clone(),
        now: agent.now,
    };
    crashed.crash();
    assert!(!crashed.register().join("; ").contains("FAILED"));
    let lines = see(&mut crashed, &child(1, "c"), exited(0)).join("; ");
    assert!(lines.contains("gone f1/e 1") && lines.contains("t#4 FAILED"), "{lines}");
    let mut stuck = agent;
    let lines = stuck.pass(5_000).join("; ");
    assert!(lines.contains("t#4 FAILED") && !lines.contains("gone"), "{lines}");
    // A task that comes meanwhile has an executor of its own, when the first one is gone.
    let lines = stuck.desire(false, 2, vec![desired_task("u", &work())]).join("; ");
    assert!(!lines.contains("limit"), "{lines}");
    let lines = see(&mut stuck, &child(1, "c"), exited(0)).join("; ");
    assert!(lines.contains("gone f1/e 1") && lines.contains("limit f1/e 2 to"), "{lines}");
}

#[test]
fn a_kill_is_an_event_and_then_not_a_question() {
    let mut agent = running();
    let lines = agent.desire(false, 2, vec![kill("t", &work(), 1_000)]);
    assert_eq!(
        lines[1..],
        [
            "ack 2",
            "batch 2: kill t 1000"
        ]
    );
    turn(&mut agent, 2, vec![says("t", S::TaskRunning)]);
    agent.ack("t", 3);
    assert_eq!(agent.pass(5_900), Vec::<String>::new());
    let lines = agent.pass(50);
    assert_eq!(
        lines[1..],
        [
            "batch 3: shutdown 5000"
        ]
    );
    let lines = turn(&mut agent, 3, vec![]).join("; ");
    assert!(lines.contains("t#4 KILLED SCHEDULER_KILL"), "{lines}");
    // One that was never given ends without its executor's word.
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &work())]);
    let lines = agent.desire(false, 2, vec![kill("t", &work(), 1_000)]).join("; ");
    assert!(lines.contains("t#4 KILLED") && lines.contains("gone f1/e 1"), "{lines}");
}

#[test]
fn a_failing_instance_is_built_again_until_it_has_failed_too_often() {
    let mut agent = running();
    let state = v1::ExecutorTurn {
        writes: vec![v1::KeyWrite {
            key: "k".into(),
            value: Some(vec![1]),
        }],
        ..turn_of(2, vec![start("c", &small(native()))])
    };
    poke(&mut agent);
    agent.now.mono_ms += 50;
    submit(&mut agent, state);
    see(&mut agent, &child(1, "c"), Seen::Running);
    let mut pause = 100;
    for failure in 1..=4 {
        assert_eq!(fail(&mut agent, "TRAPPED"), Vec::<String>::new());
        assert_eq!(agent.pass(pause - 1), Vec::<String>::new());
        assert_eq!(
            agent.pass(1),
            ["to worker: StopExecutor", "build turn 3 state 1"]
        );
        assert_eq!(
            ready(&mut agent),
            ["batch 3: started mem 52 [c RUNNING]"],
            "failure {failure}"
        );
        pause *= 2;
    }
    // A worker's end is not its failure.
    let actions = agent.core.on_worker_down(&tasks_worker(), agent.now);
    assert_eq!(agent.take(actions), Vec::<String>::new());
    let lines = agent.pass(3_200);
    assert_eq!(lines, ["ensure worker eng/tasks"]);
    assert_eq!(
        agent.worker_up(&tasks_worker(), hello("p2")),
        ["to worker: StopExecutor", "build turn 3 state 1"]
    );
    ready(&mut agent);
    assert_eq!(
        fail(&mut agent, "GUEST_LIMIT"),
        [
            "checkpoint 3 sync",
            "executor lost e",
            "kill f1/e/1/c 1"
        ]
    );
    let lines = see(&mut agent, &child(1, "c"), exited(0)).join("; ");
    assert!(lines.contains("t#4 FAILED EXECUTOR_TERMINATED"), "{lines}");
}

#[test]
fn a_component_that_is_of_no_use_ends_its_tasks() {
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &work())]);
    agent.worker_up(&tasks_worker(), hello("p1"));
    let failure = Err(tessera_agent_core::SupplyFailure::Unusable("no executor".into()));
    let actions = agent.core.on_component(Digest::of(b"wasm"), failure, agent.now);
    assert_eq!(
        agent.take(actions),
        [
            "checkpoint 3 sync",
            "executor lost e",
            "gone f1/e 1",
            "send t#4 FAILED EXECUTOR_TERMINATED attempt 1"
        ]
    );
}

#[test]
fn a_restarted_agent_builds_executors_again_from_what_was_kept() {
    let mut agent = running();
    poke(&mut agent);
    agent.now.mono_ms += 50;
    let second = v1::ExecutorTurn {
        writes: ["a", "b"]
            .map(|key| v1::KeyWrite {
                key: key.into(),
                value: Some(vec![1]),
            })
            .into(),
        ..turn_of(
            2,
            vec![
                start("c", &small(native())),
                Operation::SetTimer(v1::ExecutorTimer {
                    id: "later".into(),
                    due_ms: agent.now.wall_ms + 10_000,
                    delay_ms: 0,
                }),
            ],
        )
    };
    submit(&mut agent, second);
    agent.desire(false, 2, vec![desired_task("u", &work())]);
    // The batch with `u` is forgotten with the agent; whatever the worker made of it is dropped.
    let lines = agent.crash();
    assert_eq!(
        lines,
        [
            "inspect f1/e/1/c 1",
            "limit f1/e 1 to cpus=0.030 mem=72MiB",
            "ensure worker eng/tasks",
            "ensure component"
        ]
    );
    let lines = agent.register().join("; ");
    assert!(lines.contains("t#2 RUNNING") && !lines.contains("u#"), "{lines}");
    see(&mut agent, &child(1, "c"), exited(0));
    let mut said = hello("p1");
    said.executors = vec![v1::HelloExecutor {
        key: executor(),
        ready: true,
        next_turn: 3,
    }];
    assert_eq!(
        agent.worker_up(&tasks_worker(), said),
        ["to worker: StopExecutor"]
    );
    assert_eq!(
        submit(&mut agent, turn_of(3, vec![says("t", S::TaskFinished)])),
        Vec::<String>::new(),
        "of an instance that is no more"
    );
    assert_eq!(
        agent.supply_wasm(),
        ["to worker: StopExecutor", "build turn 3 state 2"]
    );
    assert_eq!(
        ready(&mut agent),
        ["batch 3: started mem 72 []; launch u; child c FINISHED"]
    );
    turn(&mut agent, 3, vec![says("u", S::TaskRunning)]);
    agent.ack("t", 2);
    agent.ack("u", 2);
    assert_eq!(agent.pass(9_949), Vec::<String>::new());
    assert_eq!(agent.pass(1), ["batch 4: timer later"]);
    // A strange worker's executors are not ours.
    let mut said = hello("p9");
    said.executors = vec![v1::HelloExecutor {
        key: executor(),
        ..v1::HelloExecutor::default()
    }];
    let other = tessera_agent_core::WorkerKey::new("other", tessera_agent_core::WorkerKind::Tasks);
    assert_eq!(agent.worker_up(&other, said), ["to worker: StopExecutor"]);
}

#[test]
fn a_clock_that_was_put_back_holds_no_timer_up_for_longer_than_it_was_set_for() {
    let mut agent = running();
    let timer = v1::ExecutorTimer {
        id: "later".into(),
        due_ms: agent.now.wall_ms + 10_000,
        delay_ms: 0,
    };
    poke(&mut agent);
    turn(&mut agent, 2, vec![Operation::SetTimer(timer)]);
    agent.now.wall_ms -= 100_000;
    agent.crash();
    agent.register();
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    ready(&mut agent);
    turn(&mut agent, 3, vec![]);
    agent.ack("t", 2);
    // A turn comes 50 ms after its batch: so long before the crash, and once more after it.
    assert_eq!(agent.pass(9_899), Vec::<String>::new());
    assert_eq!(agent.pass(1), ["batch 4: timer later"]);
}

#[test]
fn executors_of_a_framework_are_counted() {
    let task = |(name, executor): (&str, &str)| {
        let named = ExecutorTask {
            executor: executor.parse().unwrap(),
            ..described()
        };
        let spec = TaskSpec {
            body: TaskBody::Executor(named),
            ..work()
        };
        desired_task(name, &spec)
    };
    // One more task of an executor that is there needs no further one.
    let tasks = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")];
    let cases: [(u64, &[&str]); 4] = [
        (0, &["a", "b", "c", "d"]),
        (1, &["b", "d"]),
        (2, &["d"]),
        (3, &[]),
    ];
    for (most, refused) in cases {
        let mut agent = Agent::new();
        let desired = v1::Desired {
            generation: 1,
            tasks: tasks.map(task).to_vec(),
            limits: vec![v1::RoleLimits {
                role: "eng".into(),
                limits: vec![(LimitName::ExecutorsPerAgent, most).into()],
            }],
            ..v1::Desired::default()
        };
        let actions = agent.core.on_desired(desired, agent.now);
        let lines = agent.take(actions);
        let sent = lines.iter().filter_map(|line| line.strip_prefix("send "));
        let ended: Vec<&str> = sent
            .flat_map(|sent| sent.split(", "))
            .filter(|status| status.contains(" ERROR FRAMEWORK_LIMIT "))
            .filter_map(|status| status.split('#').next())
            .collect();
        assert_eq!(ended, refused, "{most}: {lines:?}");
    }
}

#[test]
fn limits_are_held_whatever_the_worker_says() {
    let role = |name: LimitName, value: u64| v1::RoleLimits {
        role: "eng".into(),
        limits: vec![(name, value).into()],
    };
    // Executors of a framework.
    let mut agent = Agent::new();
    let desired = v1::Desired {
        generation: 1,
        tasks: vec![desired_task("t", &work())],
        limits: vec![role(LimitName::ExecutorsPerAgent, 0)],
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(desired, agent.now);
    let lines = agent.take(actions);
    assert_eq!(lines[2], "send t#4 ERROR FRAMEWORK_LIMIT attempt 1");
    // State, which a lower limit does not take away.
    let write = |number, bytes| v1::ExecutorTurn {
        writes: vec![v1::KeyWrite {
            key: "k".into(),
            value: Some(vec![0; bytes]),
        }],
        ..turn_of(number, vec![])
    };
    for (bytes, fits) in [((64 << 10) - 1, true), (64 << 10, false)] {
        let mut agent = running();
        let desired = v1::Desired {
            generation: 2,
            limits: vec![role(LimitName::ExecutorStateBytes, 64 << 10)],
            ..v1::Desired::default()
        };
        let actions = agent.core.on_desired(desired, agent.now);
        agent.take(actions);
        poke(&mut agent);
        let lines = submit(&mut agent, write(2, bytes)).join("; ");
        assert_eq!(lines.contains("ExecutorTurnKept"), fits, "{bytes}: {lines}");
        assert_eq!(lines.contains("StopExecutor"), !fits, "{bytes}: {lines}");
    }
    // Children that live at the same time.
    let mut agent = running();
    let desired = v1::Desired {
        generation: 2,
        limits: vec![role(LimitName::ExecutorChildren, 1)],
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(desired, agent.now);
    agent.take(actions);
    poke(&mut agent);
    let both = vec![start("c", &small(native())), start("d", &small(native()))];
    let lines = turn(&mut agent, 2, both);
    assert_eq!(lines[2..], ["start f1/e/1/c 1", "batch 3: child d ERROR INVALID_SPEC"]);
    // Messages: the oldest make room, and only so many leave in a second.
    let mut agent = running();
    poke(&mut agent);
    let many = (0..70).map(|n| Operation::Send(vec![n])).collect();
    let lines = turn(&mut agent, 2, many);
    let sent = lines.iter().filter(|line| *line == "from executor e").count();
    assert_eq!(sent, 64);
    assert!(lines.iter().any(|line| line.contains("6 messages had no room")), "{lines:?}");
}

#[test]
fn changed_limits_reach_an_executor_before_its_next_batch() {
    let limit = |agent: &mut Agent, generation: u64, role: &str, value: u64| {
        let limits = vec![(LimitName::ExecutorStateBytes, value).into()];
        let role = role.to_owned();
        let desired = v1::Desired {
            generation,
            limits: vec![v1::RoleLimits { role, limits }],
            ..v1::Desired::default()
        };
        let actions = agent.core.on_desired(desired, agent.now);
        let lines = agent.take(actions);
        let count = lines.iter().filter(|line| line.contains("ExecutorLimits")).count();
        (count, lines.join("; "))
    };
    let write = |number, bytes| v1::ExecutorTurn {
        writes: vec![v1::KeyWrite { key: "k".into(), value: Some(vec![0; bytes]) }],
        ..turn_of(number, vec![])
    };
    let mut agent = running();
    // One that has nothing to do is told at once, and once.
    assert_eq!(limit(&mut agent, 2, "eng", 1 << 20).0, 1);
    let (told, lines) = limit(&mut agent, 3, "eng", 1 << 20);
    assert_eq!(told, 0, "{lines}");
    // One that handles a batch is told after it, and is held to what it began with.
    poke(&mut agent);
    poke(&mut agent);
    let (told, lines) = limit(&mut agent, 4, "eng", 64 << 10);
    assert_eq!(told, 0, "{lines}");
    let lines = submit(&mut agent, write(2, 100 << 10)).join("; ");
    assert!(lines.ends_with("to worker: ExecutorTurnKept; to worker: ExecutorLimits"), "{lines}");
    // A large turn is followed by a rest.
    assert_eq!(agent.pass(100), ["batch 3: message 0"]);
    let lines = submit(&mut agent, write(3, 101 << 10)).join("; ");
    assert!(lines.contains("StopExecutor"), "{lines}");
    // One that is being built has them from its start, or is told once it is.
    assert!(limit(&mut agent, 5, "eng", 65 << 10).1.starts_with("checkpoint"));
    let lines = agent.pass(100).join("; ");
    assert!(lines.contains("build turn 3"), "{lines}");
    let (told, lines) = limit(&mut agent, 6, "eng", 66 << 10);
    assert_eq!(told, 0, "{lines}");
    let lines = ready(&mut agent).join("; ");
    assert!(lines.contains("ExecutorLimits"), "{lines}");
    // What other roles have is nothing to it, but that its own has none any more is.
    assert_eq!(limit(&mut agent, 7, "other", 67 << 10).0, 0);
    let lines = turn(&mut agent, 3, vec![]).join("; ");
    assert!(lines.contains("ExecutorLimits"), "{lines}");
    assert_eq!(limit(&mut agent, 8, "other", 68 << 10).0, 0);
}

#[test]
fn large_turns_and_endless_ones_have_to_rest() {
    let mut agent = running();
    poke(&mut agent);
    let again = || vec![Operation::CallAgain(v1::Empty {})];
    turn(&mut agent, 2, again());
    assert_eq!(agent.pass(9), Vec::<String>::new());
    assert_eq!(agent.pass(1), ["batch 3: again"]);
    let large = v1::ExecutorTurn {
        writes: (0..4)
            .map(|n| v1::KeyWrite {
                key: format!("k{n}"),
                value: Some(vec![0; 256 << 10]),
            })
            .collect(),
        ..turn_of(3, again())
    };
    submit(&mut agent, large);
    assert_eq!(agent.pass(249), Vec::<String>::new());
    assert_eq!(agent.pass(2), ["batch 4: again"]);
}

#[test]
fn members_of_a_group_go_to_their_executor_at_once() {
    let mut agent = Agent::new();
    let member = |task: &str, spec: &TaskSpec| v1::DesiredTask {
        group: 3,
        ..desired_task(task, spec)
    };
    let tasks = vec![
        member("a", &work()),
        member("b", &work()),
        member("n", &native()),
    ];
    agent.desire(false, 1, tasks);
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    assert_eq!(
        ready(&mut agent),
        ["batch 1: started mem 72 []"],
        "a sandbox is not made yet"
    );
    turn(&mut agent, 1, vec![]);
    let actions = agent.core.on_prepared(&key("n"), 1, Ok(()), agent.now);
    assert_eq!(
        agent.take(actions),
        ["start f1/n 1", "batch 2: launch group a+b"]
    );
    // They end together.
    turn(&mut agent, 2, vec![says("a", S::TaskRunning), says("b", S::TaskRunning)]);
    see(&mut agent, &key("n"), Seen::Running);
    poke(&mut agent);
    let lines = turn(&mut agent, 3, vec![says("a", S::TaskError)]).join("; ");
    assert!(lines.contains("term f1/n 1"), "{lines}");
    assert!(lines.contains("batch 4: kill b 3000"), "{lines}");
}

#[test]
fn what_an_executor_may_not_say_is_left_out() {
    let mut agent = running();
    poke(&mut agent);
    let lines = turn(
        &mut agent,
        2,
        vec![
            says("x", S::TaskRunning),
            says("t", S::TaskStarting),
            says("t", S::TaskLost),
            Operation::Send(vec![0; (64 << 10) + 1]),
        ],
    );
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].contains("\"x\" is not a task that it has; 2 more"), "{lines:?}");
    let warned = |action: &Action| matches!(action, Action::Warn(_));
    assert!(!agent.core.on_tick(agent.now).iter().any(warned));
}
