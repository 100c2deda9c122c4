//! Images that the disk has damaged: nothing of a guest runs, nobody is to blame, and the same may be begun again.

use crate::executors::Exec;
use crate::harness::{Image, Worker};
use tessera_wire::v1::{self, TaskState, to_worker};

/// Turns a bit in the middle of an image; gives what it was.
fn damage(image: &Image) -> Vec<u8> {
    let good = std::fs::read(&image.path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&image.path, bad).unwrap();
    good
}

#[test]
fn a_damaged_image_is_told_apart_and_what_needs_it_may_be_begun_again() {
    let worker = Worker::start();
    let (echo, exit, executor) =
        (worker.compile("echo"), worker.compile("task-exit"), worker.compile("executor_basic"));
    let good = [&echo, &exit, &executor].map(|image| (image.path.clone(), damage(image)));
    let (mut agent, _) = worker.connect();

    let instance = agent.start_instance(1, &echo, &[], vec![]);
    let failed = agent.failed(&instance);
    assert_eq!((failed.reason.as_str(), failed.will_retry, failed.guest), ("IMAGE_DAMAGED", true, false));
    let sandbox = worker.sandbox("t");
    agent.start_task("t", &exit, &sandbox, &["0"], 64);
    let waits = agent.task_state("t", TaskState::TaskStaging);
    assert_eq!(waits.reason, "IMAGE_DAMAGED", "{waits:?}");
    assert!(waits.message.contains("damaged"), "{waits:?}");
    let exec = Exec::of(&executor, &[], &[]);
    exec.start(&mut agent);
    assert_eq!(exec.failed(&mut agent).reason, "IMAGE_DAMAGED");

    // The agent has them made anew, and begins again.
    for (path, bytes) in good {
        std::fs::write(path, bytes).unwrap();
    }
    agent.send(to_worker::Message::StopInstance(v1::StopInstance { key: instance.key() }));
    let instance = agent.start_instance(1, &echo, &[], vec![]);
    agent.ready(&instance);
    agent.start_task("t", &exit, &sandbox, &["0"], 64);
    agent.task_state("t", TaskState::TaskFinished);
}
