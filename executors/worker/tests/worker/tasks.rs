//! Wasm tasks in a worker: how they end, how they are killed, and until when their end is told.

use crate::harness::{Worker, run};
use std::io::Write as _;
use std::time::{Duration, Instant};
use tessera_wire::v1::{self, TaskState, to_worker::Message};

#[test]
fn tasks_end_with_their_exit_code_and_leave_their_output() {
    let worker = Worker::start();
    let image = worker.compile("task-exit");
    let (mut agent, _) = worker.connect();
    let sandbox = worker.sandbox("good");
    agent.start_task("good", &image, &sandbox, &["0", "x"], 64);
    agent.task_state("good", TaskState::TaskRunning);
    let end = agent.task_state("good", TaskState::TaskFinished);
    assert_eq!(end.exit_code, Some(0));
    assert_eq!(
        std::fs::read_to_string(sandbox.join("stdout")).unwrap(),
        "args: 0 x\n"
    );
    assert_eq!(
        std::fs::read_to_string(sandbox.join("stderr")).unwrap(),
        "COLOUR=blue\n"
    );

    agent.start_task("bad", &image, &worker.sandbox("bad"), &["3"], 64);
    let end = agent.task_state("bad", TaskState::TaskFailed);
    assert_eq!(
        (end.exit_code, end.reason.as_str()),
        (Some(1), "COMMAND_EXITED")
    );

    agent.start_task("trap", &image, &worker.sandbox("trap"), &["trap"], 64);
    let end = agent.task_state("trap", TaskState::TaskFailed);
    assert_eq!((end.exit_code, end.reason.as_str()), (None, "TRAPPED"));

    agent.start_task("small", &image, &worker.sandbox("small"), &["0"], 1);
    let end = agent.task_state("small", TaskState::TaskFailed);
    assert_eq!(end.reason, "MEMORY_LIMIT", "{}", end.message);

    agent.start_task("nowhere", &image, &sandbox.join("missing"), &["0"], 64);
    let end = agent.task_state("nowhere", TaskState::TaskFailed);
    assert_eq!(end.reason, "LAUNCH_FAILED", "{}", end.message);
}

#[test]
fn a_kill_ends_spinning_and_sleeping_tasks_at_once() {
    let worker = Worker::start();
    let (spin, sleep) = (worker.compile("task-spin"), worker.compile("task-exit"));
    let (mut agent, _) = worker.connect();
    agent.start_task("spin", &spin, &worker.sandbox("spin"), &[], 64);
    let sandbox = worker.sandbox("sleep");
    agent.start_task("sleep", &sleep, &sandbox, &["0", "sleep", "3600000"], 64);
    agent.task_state("spin", TaskState::TaskRunning);
    agent.task_state("sleep", TaskState::TaskRunning);
    // It sleeps once it has printed its arguments and its environment.
    let until = Instant::now() + crate::harness::DEADLINE;
    while std::fs::read(sandbox.join("stderr")).map_or(0, |text| text.len()) == 0 {
        assert!(Instant::now() < until, "the task never came to sleep");
        std::thread::yield_now();
    }
    for task in ["spin", "sleep"] {
        let start = Instant::now();
        let key = v1::KillWasmTask {
            framework: 1,
            task: task.into(),
            attempt: 1,
        };
        agent.send(Message::KillTask(key));
        agent.task_state(task, TaskState::TaskKilled);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "{task}: {took:?}");
    }
}

#[test]
fn ends_are_told_until_they_are_acknowledged() {
    let worker = Worker::start();
    let image = worker.compile("task-exit");
    let (mut agent, hello) = worker.connect();
    assert_eq!(hello.tasks, []);
    agent.start_task("t", &image, &worker.sandbox("t"), &["0"], 64);
    let end = agent.task_state("t", TaskState::TaskFinished);
    let (mut newer, hello) = worker.connect();
    assert_eq!(hello.tasks, [end.clone()]);
    // Starting it again tells what became of it and runs nothing.
    newer.start_task("t", &image, std::path::Path::new("/nowhere"), &["3"], 64);
    assert_eq!(newer.task_state("t", TaskState::TaskFinished), end);
    newer.send(Message::TaskAck(v1::WasmTaskAck {
        framework: 1,
        task: "t".into(),
        attempt: 1,
    }));
    newer.start_task("after", &image, &worker.sandbox("after"), &["0"], 64);
    newer.task_state("after", TaskState::TaskFinished);
    let (_, hello) = worker.connect();
    let tasks: Vec<_> = hello.tasks.iter().map(|task| task.task.as_str()).collect();
    assert_eq!(tasks, ["after"]);
}

#[test]
fn a_peer_that_talks_nonsense_loses_its_link_only() {
    let mut worker = Worker::start();
    for nonsense in [
        &[0xff_u8; 64][..],
        b"\x05\0\0\0\xff\xff\xff\xff\xff",
        b"\x01",
    ] {
        let (mut agent, _) = worker.connect();
        agent.stream.write_all(nonsense).unwrap();
    }
    let (mut agent, _) = worker.connect();
    agent.start_without_image("");
    assert!(!worker.has_exited());
    agent.send(Message::Shutdown(v1::Shutdown {}));
    let until = Instant::now() + crate::harness::DEADLINE;
    while !worker.has_exited() {
        assert!(Instant::now() < until, "the worker does not end");
        std::thread::yield_now();
    }
}

#[test]
fn the_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    std::fs::write(&socket, b"left behind").unwrap();
    let listener = tessera_worker::serve::bind(&socket).unwrap();
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    drop(listener);
    let nowhere = run(&[
        "serve",
        "--tenant",
        "t",
        "--kind",
        "tasks",
        "--socket",
        "/nowhere/s",
    ]);
    assert_eq!(nowhere.status.code(), Some(1));
}
