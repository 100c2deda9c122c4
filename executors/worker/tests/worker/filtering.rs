//! System calls that the processes of this crate have given up.

use crate::harness::run;
use serde_json::Value;
use std::collections::BTreeMap;

fn tried(arguments: &[&str]) -> BTreeMap<String, i64> {
    let said = run(&[&["probe-calls"], arguments].concat());
    assert!(said.status.success(), "{said:?}");
    let calls: Vec<Value> = serde_json::from_slice(&said.stdout).unwrap();
    let call = |call: &Value| (call["name"].as_str().unwrap().to_owned(), call["errno"].as_i64().unwrap());
    calls.iter().map(call).collect()
}

#[test]
fn calls_that_no_guests_host_makes_are_refused_by_the_kernel() {
    let filtered = tried(&[]);
    for (name, errno) in &filtered {
        let missing = ["clone3", "newer-than-the-list"].contains(&name.as_str());
        let expected = if missing { libc::ENOSYS } else { libc::EPERM };
        assert_eq!(*errno, i64::from(expected), "{name}");
    }
    // Without the filter the same calls get as far as their arguments, whoever asks.
    let free = tried(&["--free"]);
    for name in ["ptrace", "kill", "execve", "unshare", "socket-inet", "socket-unix", "connect", "fchmodat", "clone3"] {
        assert_ne!(free[name], filtered[name], "{name}");
    }
}

#[test]
fn a_worker_is_filtered_and_runs_guests_of_every_kind() {
    let mut worker = crate::harness::Worker::start();
    let (scheduler, executor, task) =
        (worker.compile("echo"), worker.compile("executor_basic"), worker.compile("task-exit"));
    let (mut agent, _) = worker.connect();
    let instance = agent.start_instance(1, &scheduler, &[], vec![]);
    agent.ready(&instance);
    crate::executors::ready(&mut agent, &executor);
    agent.start_task("t", &task, &worker.sandbox("t"), &["0", "x"], 64);
    agent.task_state("t", tessera_wire::v1::TaskState::TaskFinished);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    assert!(!worker.has_exited());
}
