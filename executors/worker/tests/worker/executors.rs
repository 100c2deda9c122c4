//! Custom executors in a worker: turns, durable state, failures, limits, what a new agent hears.

use crate::harness::{Agent, Image, Worker};
use tessera_types::{LimitName, Quantities, limits};
use tessera_wire::v1::executor_event::Event;
use tessera_wire::v1::executor_operation::Operation;
use tessera_wire::v1::{self, TaskState, from_worker, to_worker};

/// Memory of an executor that is not about memory.
const MIB: u64 = 1 << 20;

/// An executor as the test knows it: what the agent keeps of it.
#[derive(Clone)]
pub struct Exec {
    start: v1::StartExecutor,
    next_turn: u64,
}

impl Exec {
    pub fn of(image: &Image, config: &[(&str, &str)], limits: &[(LimitName, u64)]) -> Self {
        let pair = |(key, value): &(&str, &str)| v1::Pair {
            key: (*key).into(),
            value: (*value).into(),
        };
        let start = v1::StartExecutor {
            key: Some(v1::ExecutorKey {
                framework: 1,
                executor: "e".into(),
            }),
            role: "test".into(),
            component: image.digest.0.to_vec(),
            config: config.iter().map(pair).collect(),
            image: image.path.to_str().unwrap().into(),
            mem_bytes: 64 * MIB,
            seed: 7,
            limits: limits.iter().map(|limit| (*limit).into()).collect(),
            next_turn: 1,
            ..v1::StartExecutor::default()
        };
        Self {
            start,
            next_turn: 1,
        }
    }

    fn key(&self) -> Option<v1::ExecutorKey> {
        self.start.key.clone()
    }

    /// What its role has from now on.
    fn set(&mut self, agent: &mut Agent, limits: &[(LimitName, u64)]) {
        self.start.limits = limits.iter().map(|limit| (*limit).into()).collect();
        agent.send(to_worker::Message::ExecutorLimits(v1::ExecutorLimits {
            key: self.key(),
            limits: self.start.limits.clone(),
        }));
    }

    /// Start it on the state that is on record.
    pub fn start(&self, agent: &mut Agent) {
        let mut start = self.start.clone();
        start.next_turn = self.next_turn;
        agent.send(to_worker::Message::StartExecutor(start));
    }

    fn ready(&self, agent: &mut Agent) -> u64 {
        agent.wait(|message| match message {
            from_worker::Message::ExecutorReady(ready) if ready.key == self.key() => {
                Some(ready.next_turn)
            }
            _ => None,
        })
    }

    fn send(&self, agent: &mut Agent, events: Vec<Event>) {
        let event = |event| v1::ExecutorEvent { event: Some(event) };
        agent.send(to_worker::Message::ExecutorBatch(v1::ExecutorBatch {
            key: self.key(),
            number: self.next_turn,
            time_ms: 1_700_000_000_000 + self.next_turn,
            events: events.into_iter().map(event).collect(),
        }));
    }

    fn turn(&self, agent: &mut Agent) -> v1::ExecutorTurn {
        agent.wait(|message| match message {
            from_worker::Message::ExecutorTurn(turn) if turn.key == self.key() => {
                Some(turn.clone())
            }
            _ => None,
        })
    }

    /// Put a turn on record, as the agent does, and say so.
    fn keep(&mut self, agent: &mut Agent, turn: &v1::ExecutorTurn) {
        assert_eq!(turn.number, self.next_turn);
        for write in &turn.writes {
            self.start.state.retain(|known| known.key != write.key);
            if write.value.is_some() {
                self.start.state.push(write.clone());
            }
        }
        self.next_turn += 1;
        agent.send(to_worker::Message::ExecutorTurnKept(v1::ExecutorTurnKept {
            key: self.key(),
            number: turn.number,
        }));
    }

    /// One whole turn.
    fn kept_turn(&mut self, agent: &mut Agent, events: Vec<Event>) -> v1::ExecutorTurn {
        self.send(agent, events);
        let turn = self.turn(agent);
        self.keep(agent, &turn);
        turn
    }

    pub fn failed(&self, agent: &mut Agent) -> v1::ExecutorFailure {
        agent.wait(|message| match message {
            from_worker::Message::ExecutorFailure(failed) if failed.key == self.key() => {
                Some(failed.clone())
            }
            _ => None,
        })
    }
}

/// Start an executor and wait until it is built.
pub fn ready(agent: &mut Agent, image: &Image) {
    let exec = Exec::of(image, &[], &[]);
    exec.start(agent);
    exec.ready(agent);
}

fn started(children: Vec<v1::ChildStatus>) -> Event {
    Event::Started(v1::ExecutorStarted {
        info: Some(v1::ExecutorInfo {
            hostname: "here".into(),
            agent: 3,
            resources: None,
        }),
        children,
    })
}

/// A task whose data are these words.
fn launch(task: &str, words: &str) -> Event {
    let resources = v1::Resources::from(&Quantities { cpus_milli: 100, mem_mib: 16, disk_mib: 0 });
    let body = v1::ExecutorTask {
        executor: "e".into(),
        component: vec![0; 32],
        resources: Some(resources.clone()),
        config: vec![],
        data: words.as_bytes().to_vec(),
    };
    Event::Launch(v1::ExecutorLaunch {
        task: task.into(),
        spec: Some(v1::TaskSpec {
            body: Some(v1::task_spec::Body::Executor(body)),
            resources: Some(resources),
            ..v1::TaskSpec::default()
        }),
        attempt: 1,
        ..v1::ExecutorLaunch::default()
    })
}

fn child(name: &str, state: TaskState) -> v1::ChildStatus {
    v1::ChildStatus {
        child: name.into(),
        status: Some(v1::TaskStatus {
            state: state.into(),
            attempt: 1,
            ..v1::TaskStatus::default()
        }),
    }
}

/// The statuses of a turn: task, state, message, data.
fn statuses(turn: &v1::ExecutorTurn) -> Vec<(String, TaskState, String, String)> {
    let operations = turn.operations.iter();
    let status = operations.filter_map(|operation| match operation.operation.as_ref()? {
        Operation::Status(said) => Some((
            said.task.clone(),
            said.state(),
            said.message.clone(),
            String::from_utf8_lossy(&said.data).into_owned(),
        )),
        _ => None,
    });
    status.collect()
}

fn only(turn: &v1::ExecutorTurn) -> (String, TaskState, String, String) {
    let mut all = statuses(turn);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn tasks_children_timers_and_messages_become_operations_of_one_turn() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let mut exec = Exec::of(&image, &[], &[]);
    exec.start(&mut agent);
    assert_eq!(exec.ready(&mut agent), 1);
    let component = format!("wasm sha256:{} a b", "0".repeat(64));
    let turn = exec.kept_turn(
        &mut agent,
        vec![
            started(vec![]),
            launch("n", "native echo hello"),
            Event::LaunchGroup(v1::ExecutorLaunchGroup {
                launches: [launch("w", &component), launch("t", "timer 50")]
                    .into_iter()
                    .map(|event| match event {
                        Event::Launch(launch) => launch,
                        other => panic!("{other:?}"),
                    })
                    .collect(),
            }),
            Event::Message(b"hi".to_vec()),
        ],
    );
    let running = |task: &str| (task.to_owned(), TaskState::TaskRunning, String::new(), String::new());
    assert_eq!(statuses(&turn), [running("n"), running("w"), running("t")]);
    let mut children = Vec::new();
    for operation in turn.operations {
        match operation.operation.unwrap() {
            Operation::StartChild(start) => {
                children.push((start.child, tessera_wire::decode_spec(&start.spec).unwrap().body));
            }
            Operation::SetTimer(timer) => {
                assert_eq!((timer.id.as_str(), timer.due_ms), ("t", 1_700_000_000_051));
            }
            Operation::Send(data) => assert_eq!(data, b"echo: hi"),
            Operation::Status(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let component = tessera_types::Digest([0; 32]);
    assert_eq!(
        children,
        [
            ("n".into(), tessera_types::TaskBody::Native(tessera_types::NativeCommand::Shell("echo hello".into()))),
            ("w".into(), tessera_types::TaskBody::Wasm { component, args: vec!["a".into(), "b".into()] }),
        ]
    );
    // Ends of children end their tasks; a kill stops the child first.
    let turn = exec.kept_turn(
        &mut agent,
        vec![
            Event::Child(child("n", TaskState::TaskFinished)),
            Event::Timer("t".into()),
            Event::Kill(v1::ExecutorKill { task: "w".into(), grace_ms: 9 }),
        ],
    );
    let states: Vec<_> = statuses(&turn).into_iter().map(|(task, state, ..)| (task, state)).collect();
    assert_eq!(
        states,
        [
            ("n".into(), TaskState::TaskFinished),
            ("t".into(), TaskState::TaskFinished),
            ("w".into(), TaskState::TaskKilling)
        ]
    );
    let stop = Operation::StopChild(v1::StopChild { child: "w".into(), grace_ms: 9 });
    assert_eq!(turn.operations.last().unwrap().operation, Some(stop));
    let turn = exec.kept_turn(&mut agent, vec![launch("q", "quit")]);
    assert_eq!(turn.operations.last().unwrap().operation, Some(Operation::Finish(v1::Empty {})));
    assert!(agent.logs.iter().any(|log| log.executor == "e" && log.lines[0].text == "started e on here"));
}

#[test]
fn a_turn_is_repeated_until_it_is_kept_and_state_survives_everything() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, hello) = worker.connect();
    assert_eq!(hello.executors, []);
    let mut exec = Exec::of(&image, &[], &[]);
    exec.start(&mut agent);
    exec.ready(&mut agent);
    exec.kept_turn(&mut agent, vec![started(vec![]), launch("a", "native sleep 1")]);
    exec.send(&mut agent, vec![launch("b", "count")]);
    let turn = exec.turn(&mut agent);
    assert_eq!(only(&turn).3, "{\"seen\": 2, \"instance\": 2}");

    // A new agent hears of it, and the same turn again.
    let (mut newer, hello) = worker.connect();
    let known = &hello.executors[0];
    assert_eq!((known.key.clone(), known.ready, known.next_turn), (exec.key(), true, 2));
    assert_eq!(exec.turn(&mut newer), turn);
    // Starting it again changes nothing.
    exec.start(&mut newer);
    exec.keep(&mut newer, &turn);
    let turn = exec.kept_turn(&mut newer, vec![launch("c", "count")]);
    assert_eq!(only(&turn).3, "{\"seen\": 3, \"instance\": 3}");

    // A turn that nobody keeps is not state: the next instance is built from what is on record.
    exec.send(&mut newer, vec![launch("lost", "count")]);
    exec.turn(&mut newer);
    newer.send(to_worker::Message::StopExecutor(v1::StopExecutor { key: exec.key() }));
    exec.start(&mut newer);
    assert_eq!(exec.ready(&mut newer), exec.next_turn);
    let (mut newest, hello) = worker.connect();
    assert_eq!(hello.executors.len(), 1, "nothing is outstanding");
    let children = vec![child("a", TaskState::TaskFinished)];
    let turn = exec.kept_turn(&mut newest, vec![started(children), launch("d", "count")]);
    let said = statuses(&turn);
    assert_eq!((said[0].0.as_str(), said[0].1), ("a", TaskState::TaskFinished));
    assert_eq!(said[1].3, "{\"seen\": 4, \"instance\": 1}");
}

#[test]
fn a_failure_loses_the_turn_and_is_told_until_the_executor_is_started_again() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let mut exec = Exec::of(&image, &[], &[(LimitName::TurnCpuMs, 100)]);
    exec.start(&mut agent);
    exec.ready(&mut agent);
    exec.kept_turn(&mut agent, vec![started(vec![]), launch("first", "count")]);
    for (words, reason, limit) in [
        ("trap", "TRAPPED", ""),
        ("error", "GUEST_ERROR", ""),
        ("loop", "GUEST_LIMIT", "turn-cpu-ms"),
        ("grow 128", "GUEST_LIMIT", "memory-bytes"),
    ] {
        exec.send(&mut agent, vec![launch("x", words)]);
        let failed = exec.failed(&mut agent);
        let said = (failed.reason.as_str(), failed.limit.as_str(), failed.turn);
        assert_eq!(said, (reason, limit, exec.next_turn), "{failed:?}");
        let (newer, hello) = worker.connect();
        agent = newer;
        assert_eq!(hello.executors, [], "it is no more");
        assert_eq!(exec.failed(&mut agent), failed, "and a new agent hears why");
        exec.start(&mut agent);
        exec.ready(&mut agent);
        let turn = exec.kept_turn(&mut agent, vec![started(vec![]), launch("x", "count")]);
        let seen = exec.next_turn - 1;
        assert_eq!(only(&turn).3, format!("{{\"seen\": {seen}, \"instance\": 1}}"));
    }
}

#[test]
fn what_cannot_be_built_is_told_by_its_reason() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let scheduler = worker.compile("echo");
    let (mut agent, _) = worker.connect();
    let other = Image { path: image.path.clone(), digest: scheduler.digest };
    for (exec, reason, what) in [
        (Exec::of(&image, &[("init", "trap")], &[]), "TRAPPED", "asked to panic in init"),
        (Exec::of(&image, &[("init", "error")], &[]), "GUEST_ERROR", "asked to fail in init"),
        (Exec::of(&scheduler, &[], &[]), "COMPONENT_UNUSABLE", "tessera:framework/"),
        (Exec::of(&other, &[], &[]), "COMPONENT_UNUSABLE", "not of the executor's component"),
    ] {
        exec.start(&mut agent);
        let failed = exec.failed(&mut agent);
        assert!(failed.reason == reason && failed.message.contains(what), "{what}: {failed:?}");
    }
    let mut bad = Exec::of(&image, &[], &[]);
    bad.start.state = vec![v1::KeyWrite { key: "k".repeat(300), value: Some(vec![]) }];
    bad.start.more_state = true;
    bad.start(&mut agent);
    // Said only once all of the state is there: what follows is never taken for another start.
    bad.start.state = vec![];
    bad.start.more_state = false;
    bad.start(&mut agent);
    let failed = bad.failed(&mut agent);
    assert!(failed.message.contains("key"), "{failed:?}");
}

#[test]
fn limits_are_reached_by_name_and_hold_from_the_next_turn() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let mut exec = Exec::of(&image, &[], &[]);
    exec.start(&mut agent);
    exec.ready(&mut agent);
    exec.kept_turn(&mut agent, vec![started(vec![])]);
    // The default is a tenth of a scheduler's: 6.4 MiB and 10,000 keys.
    let cases = [
        (Some(LimitName::ExecutorStateKeys), 10, "write 11 1", Some("executor-state-keys")),
        (Some(LimitName::ExecutorStateKeys), 20, "write 8 1", None),
        (Some(LimitName::ExecutorStateBytes), 64 << 10, "write 2 40000", Some("executor-state-bytes")),
        (None, 0, "write 20 250000", Some("turn-state-bytes")),
        (None, 0, "write 1001 1", Some("turn-keys")),
        (None, 0, "write 1 300000", Some("state-value-bytes")),
        (Some(LimitName::ExecutorChildren), 3, "children 4", Some("executor-children")),
        (Some(LimitName::TurnOperations), 30, "sends 21", None),
    ];
    for (n, (limit, set_to, words, refused)) in cases.into_iter().enumerate() {
        let changed: Vec<_> = limit.into_iter().map(|name| (name, set_to)).collect();
        exec.set(&mut agent, &changed);
        exec.send(&mut agent, vec![launch(&format!("t{n}"), words)]);
        let turn = exec.turn(&mut agent);
        let (_, state, message, _) = only(&turn);
        match refused {
            Some(name) => assert!(
                state == TaskState::TaskFailed && message.contains(&format!("limit {name}: at most")),
                "{words}: {message}"
            ),
            None => assert_eq!(state, TaskState::TaskFinished, "{words}: {message}"),
        }
        exec.keep(&mut agent, &turn);
    }
    // The status that would say so is one operation too many as well.
    exec.set(&mut agent, &[(LimitName::TurnOperations, 20)]);
    exec.send(&mut agent, vec![launch("flood", "sends 21")]);
    let failed = exec.failed(&mut agent);
    assert!(failed.message.contains("limit turn-operations: at most 20"), "{failed:?}");
    // Memory is what the executor is charged for, whatever its role says of schedulers.
    exec.start.mem_bytes = 128 * MIB;
    exec.start.limits = vec![(LimitName::MemoryBytes, MIB).into()];
    exec.start(&mut agent);
    exec.ready(&mut agent);
    let turn = exec.kept_turn(&mut agent, vec![launch("x", "grow 90")]);
    assert_eq!(only(&turn).1, TaskState::TaskFinished);
}

#[test]
fn changed_limits_hold_from_the_next_turn_on_without_a_restart() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let mut exec = Exec::of(&image, &[], &[]);
    exec.start(&mut agent);
    exec.ready(&mut agent);
    exec.kept_turn(&mut agent, vec![started(vec![])]);
    // Each is set while a turn is outstanding, which has the ones before.
    let mut seen = 0;
    for (limit, value, words, refused) in [
        (LimitName::TurnKeys, 10, "write 20 1", None),
        (LimitName::TurnKeys, 30, "write 20 1", Some("limit turn-keys: at most 10")),
        (LimitName::ExecutorChildren, 3, "write 20 1", None),
        (LimitName::ExecutorChildren, 7, "children 4", Some("limit executor-children: at most 3")),
        (LimitName::TurnCpuMs, 100, "children 4", None),
    ] {
        seen += 1;
        exec.send(&mut agent, vec![launch(&format!("t{seen}"), words)]);
        let turn = exec.turn(&mut agent);
        exec.set(&mut agent, &[(limit, value)]);
        let (_, state, message, _) = only(&turn);
        match refused {
            Some(text) => assert!(state == TaskState::TaskFailed && message.contains(text), "{words}: {message}"),
            None => assert_eq!(state, TaskState::TaskFinished, "{words}: {message}"),
        }
        exec.keep(&mut agent, &turn);
    }
    let turn = exec.kept_turn(&mut agent, vec![launch("count", "count")]);
    let count = format!("{{\"seen\": {n}, \"instance\": {n}}}", n = seen + 1);
    assert_eq!(only(&turn).3, count, "it was never built anew");
    exec.send(&mut agent, vec![launch("loop", "loop")]);
    assert_eq!(exec.failed(&mut agent).limit, "turn-cpu-ms");
}

#[test]
fn limits_of_an_executor_that_is_not_there_start_nothing() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let mut exec = Exec::of(&image, &[], &[]);
    let limits = [(LimitName::TurnCpuMs, 100)];
    exec.set(&mut agent, &limits);
    exec.start(&mut agent);
    exec.ready(&mut agent);
    exec.kept_turn(&mut agent, vec![started(vec![])]);
    exec.send(&mut agent, vec![launch("x", "trap")]);
    let failed = exec.failed(&mut agent);
    exec.set(&mut agent, &limits);
    // Messages of a link are heard in order.
    agent.start_without_image("");
    let (mut newer, hello) = worker.connect();
    assert_eq!(hello.executors, []);
    assert_eq!(exec.failed(&mut newer), failed, "nothing has happened since");
}

#[test]
fn a_batch_that_is_no_batch_ends_the_executor_and_not_the_worker() {
    let worker = Worker::start();
    let image = worker.compile("executor_basic");
    let (mut agent, _) = worker.connect();
    let exec = Exec::of(&image, &[], &[]);
    let none = v1::ExecutorEvent { event: None };
    for (events, what) in [
        (vec![none], "event: is missing"),
        (vec![v1::ExecutorEvent { event: Some(Event::Again(v1::Empty {})) }; limits::BATCH_EVENTS_MAX + 1], "at most 256"),
    ] {
        exec.start(&mut agent);
        exec.ready(&mut agent);
        agent.send(to_worker::Message::ExecutorBatch(v1::ExecutorBatch {
            key: exec.key(),
            number: 1,
            time_ms: 1,
            events,
        }));
        let failed = exec.failed(&mut agent);
        assert!(failed.message.contains(what), "{failed:?}");
    }
    // Nobody is meant by these.
    for key in [None, Some(v1::ExecutorKey { framework: 9, executor: "x".into() })] {
        agent.send(to_worker::Message::StopExecutor(v1::StopExecutor { key: key.clone() }));
        agent.send(to_worker::Message::ExecutorTurnKept(v1::ExecutorTurnKept { key: key.clone(), number: 1 }));
        agent.send(to_worker::Message::ExecutorBatch(v1::ExecutorBatch { key, ..v1::ExecutorBatch::default() }));
    }
    exec.start(&mut agent);
    exec.ready(&mut agent);
}
