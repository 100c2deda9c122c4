//! Bytes and images of components that the agent's disk has damaged: had again, without a task or a scheduler that fails.

mod harness;

use harness::{Agent, desired_task, hello, schedulers_worker, show, tasks_worker, wasm, wasm_state};
use tessera_agent_core::{Action, SupplyFailure};
use tessera_types::Digest;
use tessera_wire::v1;
use v1::TaskState as S;

const DAMAGED: &str = "IMAGE_DAMAGED";

fn instance() -> v1::DesiredInstance {
    v1::DesiredInstance {
        framework: 7,
        name: "w".into(),
        role: "eng".into(),
        epoch: 1,
        component: Digest::of(b"wasm").0.to_vec(),
        ..Default::default()
    }
}

fn desire_instance(agent: &mut Agent) {
    let desired = v1::Desired { generation: 1, instances: vec![instance()], ..v1::Desired::default() };
    let actions = agent.core.on_desired(desired, agent.now);
    agent.take(actions);
}

fn image(agent: &mut Agent, result: Result<(), SupplyFailure>) -> Vec<String> {
    let actions = agent.core.on_image(Digest::of(b"wasm"), "E".into(), result, agent.now);
    agent.take(actions)
}

#[test]
fn a_task_whose_image_is_damaged_is_sent_again_when_it_is_made_anew() {
    let damaged = || v1::WasmTaskState {
        reason: DAMAGED.into(),
        message: "its component is compiled again".into(),
        ..wasm_state("t", S::TaskStaging)
    };
    let mut agent = Agent::new();
    agent.desire(false, 1, vec![desired_task("t", &wasm())]);
    agent.worker_up(&tasks_worker(), hello("p"));
    agent.supply_wasm();
    for pause in [100, 200] {
        let mut said = agent.wasm_says(damaged());
        said.extend(agent.pass(pause));
        let ended = said.iter().any(|line| line.contains("FAILED") || line.contains("start-wasm"));
        assert!(!ended && said.contains(&"ensure image E anew".to_owned()), "{said:?}");
        let said = image(&mut agent, Ok(()));
        assert!(said.contains(&"start-wasm f1/t 1 on eng/tasks".to_owned()), "{said:?}");
    }
    // Another task may have met the same image: what is being made is not made anew once more.
    agent.wasm_says(damaged());
    agent.pass(400);
    let before = agent.wasm_says(damaged());
    assert!(!before.iter().any(|line| line.starts_with("ensure image")), "{before:?}");
    let said = image(&mut agent, Ok(()));
    assert!(said.contains(&"start-wasm f1/t 1 on eng/tasks".to_owned()), "{said:?}");
}

#[test]
fn a_scheduler_whose_image_is_damaged_is_begun_again_under_its_epoch() {
    let mut agent = Agent::new();
    desire_instance(&mut agent);
    agent.worker_up(&schedulers_worker(), hello("p"));
    assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
    let failed = v1::InstanceFailed {
        key: Some(v1::InstanceKey { framework: 7, epoch: 1 }),
        reason: DAMAGED.into(),
        message: "it is cut".into(),
        will_retry: true,
        ..Default::default()
    };
    let actions = agent.core.on_instance_failed(failed, agent.now);
    let told = actions.iter().filter(|action| matches!(action, Action::Send(_))).map(show);
    assert_eq!(told.collect::<Vec<_>>(), ["failed IMAGE_DAMAGED retry=true"]);
    let stopped = |action: &Action| matches!(action, Action::ToWorker { message, .. }
        if matches!(message, v1::to_worker::Message::StopInstance(_)));
    assert!(actions.iter().any(stopped), "its worker is to forget it: {actions:?}");
    agent.take(actions);
    assert_eq!(agent.pass(100), ["ensure image E anew"]);
    assert_eq!(image(&mut agent, Ok(())), ["start f7 e1"]);
}

#[test]
fn bytes_that_are_damaged_are_fetched_again_and_compiled() {
    let mut agent = Agent::new();
    desire_instance(&mut agent);
    agent.worker_up(&schedulers_worker(), hello("p"));
    let digest = Digest::of(b"wasm");
    let actions = agent.core.on_component(digest, Ok(()), agent.now);
    assert_eq!(agent.take(actions), ["ensure image E"]);
    for pause in [100, 200, 400] {
        let gone = Err(SupplyFailure::Gone("damaged".into()));
        let mut said = image(&mut agent, gone);
        assert_eq!(said, ["ensure component"], "{pause}");
        let actions = agent.core.on_component(digest, Ok(()), agent.now);
        said = agent.take(actions);
        said.extend(agent.pass(pause - 1));
        assert_eq!(said, [""; 0], "{pause}: a disk that damages everything is not kept busy");
        assert_eq!(agent.pass(1), ["ensure image E"], "{pause}");
    }
    assert_eq!(image(&mut agent, Ok(())), ["start f7 e1"]);
}

#[test]
fn an_order_that_finds_nothing_on_disk_has_it_brought_again() {
    let mut agent = Agent::new();
    desire_instance(&mut agent);
    agent.worker_up(&schedulers_worker(), hello("p"));
    assert_eq!(agent.supply_wasm(), ["start f7 e1"]);
    let digest = Digest::of(b"wasm");
    let actions = agent.core.on_component(digest, Err(SupplyFailure::Gone("damaged".into())), agent.now);
    assert_eq!(agent.take(actions), [""; 0]);
    let key = v1::InstanceKey { framework: 7, epoch: 1 };
    let actions = agent.core.on_state_failed(key, agent.now);
    agent.take(actions);
    assert_eq!(agent.pass(100), ["ensure component"]);
    let actions = agent.core.on_component(digest, Ok(()), agent.now);
    assert_eq!(agent.take(actions), ["ensure image E"]);
    assert_eq!(image(&mut agent, Ok(())), ["start f7 e1"]);
}
