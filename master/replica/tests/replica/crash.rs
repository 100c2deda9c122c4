//! Power loss at every point of a group of one, on the simulated disk.

use std::collections::BTreeMap;

use tessera_replica::{Disk, EntryId, Limits, ReplicaConfig};

use crate::support::{Node, Seeded, add, config, lone_disk, seeds, wipe};

/// Every entry that may be in the log, and those that were reported as applied.
#[derive(Default)]
pub struct History {
    pub proposed: BTreeMap<EntryId, Vec<u8>>,
    pub reported: Vec<EntryId>,
}

impl History {
    /// The counters that the entries up to `applied` make.
    fn replay(&self, applied: EntryId) -> BTreeMap<Vec<u8>, u64> {
        let mut values: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut latest: BTreeMap<u64, (&EntryId, &Vec<u8>)> = BTreeMap::new();
        for (id, entry) in &self.proposed {
            latest.insert(id.index, (id, entry));
        }
        for (id, entry) in latest
            .into_values()
            .filter(|(id, _)| id.index <= applied.index)
        {
            assert!(*id <= applied);
            let (verb, key) = entry.split_first().expect("entries are not empty");
            if *verb == b'+' {
                *values.entry(key.to_vec()).or_default() += 1;
            } else {
                values.retain(|other, _| !other.starts_with(key));
            }
        }
        values
    }
}

pub fn small_log(node: u64) -> ReplicaConfig {
    let limits = Limits {
        log_compact_after_entries: 12,
        log_keep_entries: 4,
        ..Limits::default()
    };
    ReplicaConfig {
        limits,
        ..config(node)
    }
}

/// After a restart nothing reported is missing, and memory, rows and history agree.
pub fn check_restart<D: Disk>(node: &mut Node<D>, history: &mut History, context: &str) {
    let status = node.replica.status();
    assert_eq!(
        node.machine.values,
        history.replay(status.applied),
        "{context}: at boot"
    );
    node.process();
    let status = node.replica.status();
    if let Some(reported) = history.reported.last() {
        assert!(
            status.applied.index >= reported.index,
            "{context}: {reported} was reported"
        );
    }
    // What the crash took is gone for good: its indices belong to the new term now.
    history
        .proposed
        .retain(|id, _| id.index < status.applied.index);
    assert_eq!(
        node.machine.values,
        history.replay(status.applied),
        "{context}: after boot"
    );
}

pub fn random_entry(random: &mut Seeded) -> Vec<u8> {
    let key = [b'a' + random.below(3) as u8];
    if random.below(6) == 0 {
        wipe(&key)
    } else {
        add(&key)
    }
}

#[test]
fn nothing_reported_is_lost_wherever_the_power_fails() {
    for seed in seeds(300) {
        let mut random = Seeded::new(seed);
        let mut disk = lone_disk();
        let mut history = History::default();
        let mut node = Node::open(small_log(1), disk.clone());
        node.process();
        for step in 0..60 {
            let context = format!("seed {seed} step {step}");
            let failing = random.below(10) == 0;
            if failing {
                disk.fail_next_sync();
            }
            for _ in 0..1 + random.below(4) {
                let entry = random_entry(&mut random);
                let id = node
                    .replica
                    .propose(entry.clone())
                    .expect("the leader takes it");
                history.proposed.insert(id, entry);
            }
            let processed = match random.below(12) {
                0 => None,
                _ => Some(node.replica.process(&mut node.machine)),
            };
            match processed {
                Some(Ok(progress)) => {
                    history
                        .reported
                        .extend(progress.applied.iter().map(|(id, _)| *id));
                    if random.below(8) != 0 {
                        continue;
                    }
                }
                Some(Err(_)) => assert!(failing, "{context}"),
                None => {}
            }
            drop(node);
            let survivors = random.below(disk.unsynced_batches() as u64 + 1) as usize;
            disk.crash(survivors);
            node = Node::open(small_log(1), disk.clone());
            check_restart(&mut node, &mut history, &context);
        }
    }
}
