//! Tasks that a restored state does not know: left alone when the masters name them, and statuses said again.

mod harness;

use harness::{Agent, desired_task, key, native};
use tessera_agent_core::NativeObservation as Seen;
use tessera_types::AgentId;
use tessera_wire::v1;

/// A full list of these tasks and strangers.
fn desire(agent: &mut Agent, generation: u64, tasks: &[&str], strangers: &[&str]) -> Vec<String> {
    let desired = v1::Desired {
        generation,
        full: true,
        tasks: tasks.iter().map(|task| desired_task(task, &native())).collect(),
        strangers: strangers.iter().map(|task| (&key(task)).into()).collect(),
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(desired, agent.now);
    let mut lines = agent.take(actions);
    lines.retain(|line| !line.starts_with("checkpoint") && !line.starts_with("ack "));
    lines
}

#[test]
fn what_is_named_as_a_stranger_is_left_alone_and_the_rest_ends() {
    let mut agent = Agent::new();
    desire(&mut agent, 1, &["known", "new", "over"], &[]);
    for task in ["known", "new", "over"] {
        agent.see(task, 1, Seen::Running);
    }
    let ended = desire(&mut agent, 2, &["known"], &["new", "never"]);
    assert!(ended.len() == 1 && ended[0].contains("f1/over"), "{ended:?}");
    // A list without it, which is what an operator asks for, ends it, too.
    let ended = desire(&mut agent, 3, &["known"], &[]);
    assert!(ended.len() == 1 && ended[0].contains("f1/new"), "{ended:?}");
}

#[test]
fn statuses_that_were_acknowledged_are_said_again_when_they_are_asked_for() {
    let mut agent = Agent::new();
    desire(&mut agent, 1, &["runs", "ended"], &[]);
    agent.see("runs", 1, Seen::Running);
    agent.pass(20);
    agent.see("ended", 1, Seen::Running);
    agent.pass(20);
    agent.exit("ended", 1, 7);
    agent.pass(20);
    for task in ["runs", "ended"] {
        agent.ack(task, 4);
    }
    let actions = agent.core.on_session_down(agent.now);
    agent.take(actions);
    assert_eq!(agent.register(), Vec::<String>::new());
    let both = |lines: &[String]| {
        lines.len() == 1 && lines[0].contains("runs#2 RUNNING") && lines[0].contains("ended#4 FAILED")
    };
    let actions = agent.core.repeat_statuses(agent.now);
    let said = agent.take(actions);
    assert!(both(&said), "{said:?}");
    let actions = agent.core.on_registered(AgentId(1), true, agent.now);
    let said = agent.take(actions);
    assert!(both(&said), "until they are acknowledged: {said:?}");
}
