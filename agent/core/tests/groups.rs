//! Task groups as the agent keeps them: all prepared or none started, ended together, after a crash too.

mod harness;

use harness::*;
use tessera_agent_core::{NativeObservation as Seen, SupplyFailure};
use tessera_types::{Digest, Quantities, TaskSpec};
use tessera_wire::v1;
use v1::TaskState as S;

fn member(task: &str, spec: &TaskSpec) -> v1::DesiredTask {
    v1::DesiredTask {
        group: 7,
        ..desired_task(task, spec)
    }
}

fn prepared(agent: &mut Agent, task: &str, result: Result<(), String>) -> Vec<String> {
    let actions = agent.core.on_prepared(&key(task), 1, result, agent.now);
    agent.take(actions)
}

/// Two native members that wait for their sandboxes.
fn pair(spec: &TaskSpec) -> Agent {
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![member("a", spec), member("b", spec)]);
    assert_eq!(
        lines,
        [
            "checkpoint 4 sync",
            "ack 1",
            "prepare f1/a 1",
            "prepare f1/b 1"
        ]
    );
    agent
}

/// Two native members that run.
fn running(spec: &TaskSpec) -> Agent {
    let mut agent = pair(spec);
    assert_eq!(prepared(&mut agent, "a", Ok(())), Vec::<String>::new());
    assert_eq!(
        prepared(&mut agent, "b", Ok(())),
        ["start f1/a 1", "start f1/b 1"]
    );
    agent.see("a", 1, Seen::Running);
    agent.see("b", 1, Seen::Running);
    agent.pass(50);
    agent.pass(50);
    agent
}

#[test]
fn members_of_every_kind_start_when_all_are_prepared() {
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![member("n", &native()), member("w", &wasm())]);
    assert_eq!(
        lines[1..],
        [
            "ack 1",
            "prepare f1/n 1",
            "prepare f1/w 1",
            "ensure worker eng/tasks",
            "ensure component"
        ]
    );
    assert_eq!(prepared(&mut agent, "n", Ok(())), Vec::<String>::new());
    agent.worker_up(&tasks_worker(), hello("p1"));
    assert_eq!(agent.supply_wasm(), Vec::<String>::new(), "no sandbox yet");
    assert_eq!(
        prepared(&mut agent, "w", Ok(())),
        [
            "checkpoint 1 sync",
            "start f1/n 1",
            "start-wasm f1/w 1 on eng/tasks"
        ]
    );
}

#[test]
fn one_that_cannot_be_prepared_keeps_all_from_starting() {
    let mut agent = pair(&native());
    assert_eq!(prepared(&mut agent, "a", Ok(())), Vec::<String>::new());
    let lines = prepared(&mut agent, "b", Err("disk full".into()));
    assert_eq!(
        lines,
        [
            "checkpoint 2 sync",
            "send a#4 FAILED TASK_GROUP attempt 1, b#4 FAILED LAUNCH_FAILED attempt 1"
        ]
    );
    assert_eq!(agent.crash(), Vec::<String>::new());
    // The same when it is the component that is of no use, or when one does not fit.
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![member("n", &native()), member("w", &wasm())]);
    agent.worker_up(&tasks_worker(), hello("p1"));
    let failure = Err(SupplyFailure::Unusable("no".into()));
    let actions = agent
        .core
        .on_component(Digest::of(b"wasm"), failure, agent.now);
    assert_eq!(
        agent.take(actions)[1..],
        ["send n#4 FAILED TASK_GROUP attempt 1, w#4 ERROR LAUNCH_FAILED attempt 1"]
    );
    let big = TaskSpec {
        resources: Quantities { cpus_milli: 1_001, mem_mib: 1, disk_mib: 0 }.into(),
        ..native()
    };
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![member("a", &native()), member("b", &big)]);
    assert_eq!(
        lines[2],
        "send a#4 FAILED TASK_GROUP attempt 1, b#4 DROPPED NOT_ENOUGH_RESOURCES attempt 1"
    );
    // Or when one cannot even be read.
    let mut forged = member("b", &native());
    forged.spec.push(0);
    let mut agent = Agent::new();
    let lines = agent.desire(false, 1, vec![member("a", &native()), forged]);
    assert_eq!(
        lines[1..],
        [
            "send b#4 ERROR INVALID_SPEC attempt 1",
            "ack 1",
            "send a#4 FAILED TASK_GROUP attempt 1"
        ]
    );
}

#[test]
fn members_end_together_unless_they_finish() {
    let mut agent = running(&native());
    agent.exit("a", 1, 0);
    assert_eq!(agent.pass(50), Vec::<String>::new(), "b goes on");
    let mut agent = running(&native());
    let lines = agent.exit("a", 1, 3);
    assert_eq!(
        lines[..2],
        ["checkpoint 2 sync".to_owned(), "term f1/b 1".to_owned()]
    );
    let found: Vec<_> = agent.core.tasks().map(|(_, _, s)| s.name()).collect();
    assert_eq!(found, ["TASK_FAILED", "TASK_KILLING"]);
    // The cause outlives the agent.
    agent.crash();
    agent.see("b", 1, Seen::Running);
    agent.exit("b", 1, 0);
    let lines = agent.register().join("; ");
    assert!(lines.contains("b#4 KILLED TASK_GROUP"), "{lines}");
    // A kill of one is a kill of all; the one that was asked for says so.
    let mut agent = running(&native());
    let lines = agent.desire(
        false,
        2,
        vec![v1::DesiredTask {
            group: 7,
            ..kill("a", &native(), 500)
        }],
    );
    assert_eq!(
        lines[..4],
        ["checkpoint 3 sync", "term f1/a 1", "ack 2", "term f1/b 1"]
    );
    agent.exit("a", 1, 0);
    agent.exit("b", 1, 0);
    let lines = agent.pass(50).join("; ");
    assert!(
        lines.contains("a#4 KILLED SCHEDULER_KILL") && lines.contains("b#4 KILLED TASK_GROUP"),
        "{lines}"
    );
}

#[test]
fn restarts_of_a_member_come_first() {
    let spec = TaskSpec {
        restarts: 1,
        ..native()
    };
    let mut agent = running(&spec);
    agent.exit("a", 1, 3);
    assert_eq!(agent.pass(100), ["start f1/a 2"], "alone, and b goes on");
    agent.see("a", 2, Seen::Running);
    agent.pass(50);
    let lines = agent.exit("a", 2, 3);
    assert!(lines.contains(&"term f1/b 1".to_owned()), "{lines:?}");
}

#[test]
fn each_crash_point_keeps_all_or_none() {
    // Nothing started: the group forms again.
    let mut agent = pair(&native());
    prepared(&mut agent, "a", Ok(()));
    assert_eq!(agent.crash(), ["inspect f1/a 1", "inspect f1/b 1"]);
    assert_eq!(
        agent.see("a", 1, Seen::NotStarted),
        Vec::<String>::new(),
        "b is not known yet"
    );
    assert_eq!(
        agent.see("b", 1, Seen::NotStarted),
        ["prepare f1/a 1", "prepare f1/b 1"]
    );
    // One started: the group has, and the other follows.
    agent.crash();
    agent.see("a", 1, Seen::Running);
    assert_eq!(agent.see("b", 1, Seen::NotStarted), ["start f1/b 1"]);
    // One ended badly while nobody watched: the other never starts, or ends.
    for seen in [Seen::NotStarted, Seen::Running] {
        let mut agent = pair(&native());
        agent.crash();
        agent.exit("a", 1, 1);
        let ran = seen == Seen::Running;
        let lines = agent.see("b", 1, seen).join("; ");
        assert!(!lines.contains("start"), "{lines}");
        if ran {
            assert!(lines.contains("term f1/b 1"), "{lines}");
            agent.exit("b", 1, 0);
        } else {
            assert!(lines.contains("cancel f1/b 1"), "{lines}");
            agent.see("b", 1, Seen::Cancelled);
        }
        let lines = agent.register().join("; ");
        assert!(lines.contains("b#4 KILLED TASK_GROUP"), "{lines}");
    }
}

#[test]
fn a_worker_that_dies_takes_the_group_with_it() {
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![member("n", &native()), member("w", &wasm())]);
    agent.worker_up(&tasks_worker(), hello("p1"));
    agent.supply_wasm();
    prepared(&mut agent, "n", Ok(()));
    prepared(&mut agent, "w", Ok(()));
    agent.see("n", 1, Seen::Running);
    agent.wasm_says(wasm_state("w", S::TaskRunning));
    agent.pass(50);
    let actions = agent.core.on_worker_down(&tasks_worker(), agent.now);
    let lines = agent.take(actions);
    assert_eq!(lines[..2], ["checkpoint 2 sync", "term f1/n 1"]);
}
