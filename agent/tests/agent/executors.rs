//! Custom executors and task groups under a real agent, with a real worker, shims and control groups.

use super::workers::guest;
use super::{Cluster, skip, spec, task, wait_for};
use std::path::Path;
use tessera_types::{Digest, ExecutorTask, Quantities, Resources, TaskBody, TaskSpec};
use tessera_wire::v1;
use v1::TaskState as S;

const fn quantities(mem_mib: i64) -> Resources {
    Resources::of(Quantities {
        cpus_milli: 200,
        mem_mib,
        disk_mib: 0,
    })
}

/// A task of the executor `e`, of the guest `executor-basic`, that does this.
fn work(component: Digest, data: &str) -> TaskSpec {
    TaskSpec {
        body: TaskBody::Executor(ExecutorTask {
            executor: "e".parse().unwrap(),
            component,
            resources: quantities(32),
            config: vec![],
            data: data.into(),
        }),
        resources: quantities(24),
        pids_limit: None,
        env: vec![],
        ..spec("")
    }
}

fn kill(name: &str, spec: &TaskSpec) -> v1::DesiredTask {
    v1::DesiredTask {
        kill_grace_ms: Some(20_000),
        ..task(name, spec)
    }
}

impl Cluster {
    /// Process id that a native child wrote down.
    fn child_pid(&self, child: &str) -> i32 {
        wait_for("the child's pid", || {
            let chunk = self.master.file(&format!("e/{child}"), "pid", 0, 20);
            let text = String::from_utf8(chunk.data).unwrap();
            text.strip_suffix('\n')?.parse().ok()
        })
    }

    /// What a child has written, once it has.
    fn child_says(&self, child: &str) -> String {
        wait_for("the child's output", || {
            let chunk = self.master.file(&format!("e/{child}"), "stdout", 0, 4_096);
            let text = String::from_utf8(chunk.data).unwrap();
            text.ends_with('\n').then_some(text)
        })
    }

    fn executor_groups(&self) -> Vec<String> {
        let mut names = self.cgroups().list();
        names.retain(|name| name.starts_with('x'));
        names
    }

    /// Speak to the executor `e`, and hear it repeat that.
    fn echo(&self, text: &str) {
        let message = v1::ToExecutor {
            framework: 1,
            executor: "e".into(),
            data: text.into(),
        };
        self.master
            .send(v1::master_message::Message::ToExecutor(message));
        let expected = format!("echo: {text}");
        wait_for("the executor's answer", || {
            self.master.has_heard(expected.as_bytes()).then_some(())
        });
    }
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn an_executor_and_its_children_outlive_agent_and_worker() {
    let mut cluster = Cluster::hosting();
    let executor = cluster.master.has_component(guest("executor_basic"));
    let exit = cluster.master.has_component(guest("task-exit"));
    let native = work(executor, "native echo $$ > pid; cat /proc/self/cgroup; exec sleep 600");
    let wasm = work(executor, &format!("wasm {exit} 0 sleep 600000"));
    let count = work(executor, "count");
    cluster.desire(vec![task("n", &native), task("w", &wasm)]);
    cluster.status("n", S::TaskRunning);
    cluster.status("w", S::TaskRunning);
    cluster.echo("hello");
    let pid = cluster.child_pid("n");
    // The task runs from its launch on, its child when the component is compiled.
    assert!(cluster.child_says("w").starts_with("args: 0 sleep"));
    let limited = cluster.cgroups().unlimited_because().is_none();
    if limited {
        let groups = cluster.child_says("n");
        assert!(groups.contains("/x1.e.1/n.1"), "{groups}");
        assert_eq!(cluster.executor_groups(), ["x1.e.1"]);
        // The executor's own and both tasks'.
        let limit = cluster.memory_limit("x1.e.1");
        assert_eq!(limit, Some((32 + 24 + 24) << 20));
    } else {
        skip("control groups of an executor and of its children");
    }
    // The agent dies; its successor finds the child, and builds the executor from what was kept.
    cluster.kill_agent();
    cluster.start();
    cluster.desire(vec![task("count-1", &count)]);
    let counted = cluster.status("count-1", S::TaskFinished).data;
    assert_eq!(
        String::from_utf8(counted).unwrap(),
        "{\"seen\": 3, \"instance\": 1}"
    );
    assert!(alive(pid), "the native child goes on");
    assert!(cluster.master.status("w", S::TaskFailed).is_none(), "so does the other");
    // The worker dies: the native child goes on, the Wasm child ends with it, the executor comes back.
    cluster.kill_worker("tasks");
    let lost = cluster.status("w", S::TaskFailed);
    assert!(lost.message.contains("worker"), "{lost:?}");
    cluster.desire(vec![task("count-2", &count)]);
    let counted = cluster.status("count-2", S::TaskFinished).data;
    assert_eq!(
        String::from_utf8(counted).unwrap(),
        "{\"seen\": 4, \"instance\": 1}"
    );
    assert!(alive(pid) && cluster.child_pid("n") == pid);
    cluster.echo("still there");
    // Its last task ends, and with it the child, the executor and its group.
    cluster.desire(vec![kill("n", &native)]);
    cluster.status("n", S::TaskKilled);
    assert!(!alive(pid));
    wait_for("the end of its group", || {
        cluster.executor_groups().is_empty().then_some(())
    });
    // A new life under the same name begins without state.
    cluster.desire(vec![task("count-3", &count)]);
    let counted = cluster.status("count-3", S::TaskFinished).data;
    assert_eq!(
        String::from_utf8(counted).unwrap(),
        "{\"seen\": 1, \"instance\": 1}"
    );
}

#[test]
fn a_failing_executor_is_given_up_with_its_children() {
    let mut cluster = Cluster::hosting();
    let executor = cluster.master.has_component(guest("executor_basic"));
    let native = work(executor, "native echo $$ > pid; exec sleep 600");
    cluster.desire(vec![task("n", &native)]);
    cluster.status("n", S::TaskRunning);
    let pid = cluster.child_pid("n");
    cluster.desire(vec![task("bad", &work(executor, "trap"))]);
    for name in ["n", "bad"] {
        let end = cluster.status(name, S::TaskFailed);
        assert_eq!(end.reason, "EXECUTOR_TERMINATED");
        assert!(end.message.contains("5 times in a row"), "{end:?}");
    }
    assert!(!alive(pid), "its child has ended before that is said");
    let lost = wait_for("word of the executor", || cluster.master.lost_executor());
    assert_eq!((lost.framework, lost.executor.as_str()), (1, "e"));
}

#[test]
fn a_task_group_starts_whole_or_not_at_all_and_ends_together() {
    let mut cluster = Cluster::hosting();
    let executor = cluster.master.has_component(guest("executor_basic"));
    let exit = cluster.master.has_component(guest("task-exit"));
    let wasm = |component| TaskSpec {
        body: TaskBody::Wasm {
            component,
            args: vec!["0".into(), "sleep".into(), "600000".into()],
        },
        pids_limit: None,
        env: vec![],
        resources: quantities(40),
        ..spec("")
    };
    let member = |group: u64, name: &str, spec: &TaskSpec| v1::DesiredTask {
        group,
        ..task(name, spec)
    };
    let native = spec("exec sleep 600");
    // All of three kinds, one of which ends badly after a while.
    cluster.desire(vec![
        member(1, "n", &native),
        member(1, "w", &wasm(exit)),
        member(1, "e1", &work(executor, "run")),
        member(1, "e2", &work(executor, "run")),
        member(1, "last", &spec("while [ ! -e go ]; do sleep 0.02; done; exit 3")),
    ]);
    for name in ["n", "w", "e1", "e2", "last"] {
        cluster.status(name, S::TaskRunning);
    }
    std::fs::write(cluster.sandbox("last").join("go"), "").unwrap();
    assert_eq!(cluster.status("last", S::TaskFailed).exit_code, Some(3));
    for name in ["n", "w", "e1", "e2"] {
        assert_eq!(cluster.status(name, S::TaskKilled).reason, "TASK_GROUP", "{name}");
    }
    // One of them has a component that is none: nothing of the group ever starts.
    let nothing = cluster.master.has_component(b"\0asm nothing".to_vec());
    cluster.desire(vec![
        member(2, "n2", &native),
        member(2, "w2", &wasm(nothing)),
    ]);
    assert_eq!(cluster.status("w2", S::TaskError).reason, "LAUNCH_FAILED");
    let never = cluster.status("n2", S::TaskFailed);
    assert_eq!(never.reason, "TASK_GROUP");
    assert!(never.message.starts_with("never started"), "{never:?}");
    assert!(cluster.master.status("n2", S::TaskStarting).is_none());
    assert!(!cluster.sandbox("n2").join("stdout").exists());
}
