//! Migrations and changes of configuration: what a worker does when one version follows another.

use crate::harness::{Agent, Instance, Worker, answer, get};
use crate::schedulers::{ask, entry, subscribed};
use std::collections::BTreeMap;
use tessera_types::Event;
use tessera_wire::v1;

type Entries = BTreeMap<String, Vec<u8>>;

fn apply(state: &mut Entries, turn: &v1::Turn) {
    for write in turn.writes.clone() {
        match write.value {
            Some(value) => state.insert(write.key, value),
            None => state.remove(&write.key),
        };
    }
}

fn entries(state: &Entries) -> Vec<v1::KeyWrite> {
    let write = |(key, value): (&String, &Vec<u8>)| v1::KeyWrite {
        key: key.clone(),
        value: Some(value.clone()),
    };
    state.iter().map(write).collect()
}

/// The state that version 1 leaves: 25 tasks, the third one ended, and what the next version is to do.
fn version_1(next: &str) -> Entries {
    let record = |ended: bool| match ended {
        true => r#"{"launches":1,"launched":true,"state":"TASK_FINISHED","ends":1}"#,
        false => r#"{"launches":1,"launched":true,"state":null,"ends":0}"#,
    };
    let tasks = (0..25).map(|number| (format!("task/{number:05}"), record(number == 3).into()));
    tasks.chain([("next".to_owned(), format!("{next:?}").into_bytes())]).collect()
}

fn page(agent: &mut Agent, instance: &mut Instance) -> String {
    ask(agent, instance, "/").0
}

#[test]
fn a_migration_goes_step_by_step_and_the_new_version_starts_from_what_it_wrote() {
    let worker = Worker::start();
    let (one, two) = (worker.compile("versioned_1"), worker.compile("versioned_2"));
    let (mut agent, _) = worker.connect();
    let mut state = version_1("");
    let config = [("count", "25")];
    let mut old = agent.start_instance(1, &one, &config, entries(&state));
    agent.ready(&old);
    let before = page(&mut agent, &mut old);
    assert!(before.contains("\"version\":1") && before.contains("\"launched\":25,\"ended\":1"), "{before}");

    agent.extra.migrate_from = Some(1);
    let mut migrating = agent.start_instance(2, &two, &config, entries(&state));
    agent.ready(&migrating);
    let mut steps = Vec::new();
    while steps.last() != Some(&true) {
        let turn = agent.committed_turn(&mut migrating, &[]);
        assert_eq!((turn.operations.len(), turn.consumed.len()), (0, 0));
        apply(&mut state, &turn);
        steps.push(turn.migration.expect("a turn of a migration says how far it is").done);
    }
    assert_eq!(steps, [false, false, true], "ten records in each turn");
    assert!(state.keys().all(|key| key.starts_with("record/") || key == "next"), "{state:?}");

    agent.extra.migrate_from = None;
    let mut new = agent.start_instance(3, &two, &config, entries(&state));
    agent.ready(&new);
    let after = page(&mut agent, &mut new);
    assert_eq!(after, before.replace("\"version\":1", "\"version\":2"));
}

#[test]
fn a_migration_that_fails_is_the_guests_failure_in_its_turn() {
    let worker = Worker::start();
    let (one, two) = (worker.compile("versioned_1"), worker.compile("versioned_2"));
    let (mut agent, _) = worker.connect();
    agent.extra.migrate_from = Some(1);
    agent.extra.limits = vec![("turn-cpu-ms", 100)];
    for (framework, next, reason, limit) in [
        (1, "fail-in-migration", "GUEST_ERROR", ""),
        (2, "trap-in-migration", "TRAPPED", ""),
        (3, "spin-in-migration", "GUEST_LIMIT", "turn-cpu-ms"),
    ] {
        let mut instance = agent.start_instance(framework, &two, &[], entries(&version_1(next)));
        agent.ready(&instance);
        for _ in 0..2 {
            agent.committed_turn(&mut instance, &[]);
        }
        agent.send_batch(&mut instance, &[]);
        let failed = agent.failed(&instance);
        let said = (failed.reason.as_str(), failed.limit.as_str(), failed.turn, failed.guest);
        assert_eq!(said, (reason, limit, 3, true), "{}", failed.message);
        agent.stop(&instance);
    }
    // One that cannot migrate at all.
    let instance = agent.start_instance(4, &one, &[], vec![]);
    let failed = agent.failed(&instance);
    assert!(failed.guest && failed.message.contains("migration"), "{}", failed.message);
}

#[test]
fn a_changed_configuration_is_consumed_and_a_rebuilt_instance_starts_with_it() {
    let worker = Worker::start();
    let image = worker.compile("versioned_1");
    let (mut agent, _) = worker.connect();
    let config = [("remark", "old"), ("count", "0")];
    let mut instance = agent.start_instance(1, &image, &config, vec![entry("a", "1")]);
    agent.ready(&instance);
    let first = subscribed(&instance);
    agent.committed_turn(&mut instance, &[first]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let changed = |version, remark: &str| Event::ConfigChanged {
        version,
        config: vec![pair("remark", remark), pair("count", "0")],
    };
    // A turn that is lost changes nothing: an instance that is built again has the old one.
    agent.send_batch(&mut instance, &[changed(2, "new")]);
    agent.turn(&instance);
    let refused = v1::WrongNumber {
        given: instance.next_turn,
        expected: instance.next_turn,
        former_leader: false,
    };
    agent.outcome(&instance, v1::turn_outcome::Outcome::WrongNumber(refused));
    agent.ready(&instance);
    assert!(page(&mut agent, &mut instance).contains("\"remark\":\"old\""));

    let turn = agent.committed_turn(&mut instance, &[changed(3, "newer"), changed(2, "new"), get(9, "/")]);
    // By these a leader finds out whether it knows the requests of a turn that it is sent again.
    assert_eq!(turn.requests, [9]);
    let consumed: Vec<_> = turn.consumed.iter().filter_map(|c| c.consumed.clone()).collect();
    assert_eq!(consumed, [v1::consumed::Consumed::Config(3)]);
    assert!(answer(&turn, 9).is_some());
    agent.send_batch(&mut instance, &[Event::ConfigChanged {
        version: 4,
        config: vec![pair("count", "not a number")],
    }]);
    let failed = agent.failed(&instance);
    assert_eq!(failed.reason, "GUEST_ERROR");
    agent.ready(&instance);
    assert!(page(&mut agent, &mut instance).contains("\"remark\":\"newer\""), "the newest that was committed");
}
