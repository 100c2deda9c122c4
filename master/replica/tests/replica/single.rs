//! A group of one: what a call of `process` promises.

use tessera_replica::{
    Applied, EntryId, FatalError, Limits, MAX_ENTRY_BYTES, MAX_UNCOMMITTED_ENTRIES, Machine,
    MachineError, ProposeError, ReadError, Replica, Role, RoleChange, RowChange, RowReader,
    StepError,
};

use crate::support::{Counters, Node, add, config, lone_disk, wipe};

#[test]
fn it_leads_at_once_and_says_so_after_its_first_entry() {
    let mut node = Node::open(config(1), lone_disk());
    assert_eq!(
        node.replica.read_index(1),
        Err(ReadError::NotLeader { leader: Some(1) })
    );
    let progress = node.process();
    assert_eq!(
        progress.role_changes,
        [RoleChange::BecameLeader { term: 6 }]
    );
    assert!(progress.applied.is_empty() && progress.messages.is_empty() && !progress.more);
    assert_eq!(node.replica.status().role, Role::Leader);
}

#[test]
fn proposals_of_one_call_share_one_sync_and_return_their_effects() {
    let disk = lone_disk();
    let mut node = Node::open(config(1), disk.clone());
    node.process();
    let before = disk.syncs();
    let ids: Vec<EntryId> = (0..64)
        .map(|n| {
            node.replica
                .propose(add(&[b'a' + n % 4]))
                .expect("the leader takes it")
        })
        .collect();
    let progress = node.process();
    assert_eq!(disk.syncs() - before, 1);
    let applied: Vec<EntryId> = progress.applied.iter().map(|(id, _)| *id).collect();
    assert_eq!(applied, ids);
    assert_eq!(progress.applied[5].1, [(b"b".to_vec(), 2)]);
    assert_eq!(node.replica.status().open_proposals, 0);
    assert_eq!(node.machine.value(b"a"), 16);
}

#[test]
fn a_restart_reads_state_and_continues_the_log() {
    let disk = lone_disk();
    let mut node = Node::open(config(1), disk.clone());
    node.process();
    node.commit(add(b"x"));
    node.commit(add(b"y"));
    let (last, _) = node.commit(wipe(b"y"));
    drop(node);
    let mut node = Node::open(config(1), disk);
    assert_eq!(node.machine.value(b"x"), 1);
    assert_eq!(node.machine.last, Some(last));
    let progress = node.process();
    assert_eq!(
        progress.role_changes,
        [RoleChange::BecameLeader { term: 7 }]
    );
    let (next, _) = node.commit(add(b"x"));
    assert_eq!((next.term, next.index), (7, last.index + 2));
    assert_eq!(node.machine.value(b"x"), 2);
}

#[test]
fn reads_are_answered_by_the_next_process() {
    let mut node = Node::open(config(1), lone_disk());
    node.process();
    node.replica
        .propose(add(b"x"))
        .expect("the leader takes it");
    node.replica.read_index(11).expect("the leader reads");
    node.replica.read_index(12).expect("the leader reads");
    let progress = node.process();
    assert_eq!(progress.reads, [11, 12]);
    assert_eq!(node.machine.value(b"x"), 1);
}

#[test]
fn bad_proposals_are_refused_and_change_nothing() {
    let mut node = Node::open(config(1), lone_disk());
    node.process();
    let last = node.replica.status().last_index;
    assert_eq!(node.replica.propose(Vec::new()), Err(ProposeError::Empty));
    let bytes = MAX_ENTRY_BYTES + 1;
    assert_eq!(
        node.replica.propose(vec![0; bytes]),
        Err(ProposeError::TooLarge { bytes })
    );
    assert_eq!(node.replica.status().last_index, last);
}

#[test]
fn what_is_uncommitted_is_bounded_in_bytes_and_in_entries() {
    let mut config = config(1);
    config.limits = Limits {
        max_uncommitted_bytes: 2 << 20,
        ..Limits::default()
    };
    let mut node = Node::open(config, lone_disk());
    node.process();
    let mut taken = 0;
    let refusal = loop {
        match node
            .replica
            .propose([b"-", [b'z'; 1 << 19].as_slice()].concat())
        {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "never busy");
    };
    assert_eq!((refusal, taken), (ProposeError::Busy, 3));
    node.process();
    for _ in 0..MAX_UNCOMMITTED_ENTRIES {
        node.replica.propose(wipe(b"z")).expect("below the bound");
    }
    assert_eq!(node.replica.propose(wipe(b"z")), Err(ProposeError::Busy));
    node.process();
    node.replica.propose(wipe(b"z")).expect("room again");
}

#[test]
fn the_log_is_cut_and_a_restart_after_it_works() {
    let disk = lone_disk();
    let mut config = config(1);
    config.limits = Limits {
        log_compact_after_entries: 20,
        log_keep_entries: 10,
        ..Limits::default()
    };
    let mut node = Node::open(config.clone(), disk.clone());
    node.process();
    for _ in 0..57 {
        node.commit(add(b"x"));
    }
    let status = node.replica.status();
    let kept = status.last_index + 1 - status.first_index;
    assert!((10..=20).contains(&kept), "{kept} entries kept");
    drop(node);
    let mut node = Node::open(config, disk);
    assert_eq!(node.machine.value(b"x"), 57);
    node.process();
    node.commit(add(b"x"));
    assert_eq!(node.machine.value(b"x"), 58);
}

#[test]
fn large_entries_cut_the_log_by_size() {
    let mut config = config(1);
    config.limits = Limits {
        log_max_bytes: 4 << 20,
        ..Limits::default()
    };
    let mut node = Node::open(config, lone_disk());
    node.process();
    for _ in 0..12 {
        node.commit([b"-", [b'z'; 1 << 20].as_slice()].concat());
        assert!(node.replica.status().log_bytes <= 5 << 20);
    }
    assert_eq!(
        node.replica.status().applied.index,
        node.replica.status().last_index
    );
}

#[test]
fn messages_to_a_lone_node_are_refused() {
    let mut node = Node::open(config(1), lone_disk());
    node.process();
    assert_eq!(
        node.replica.step(b"\xff\xff\xff"),
        Err(StepError::Malformed("the bytes are not a raft message"))
    );
    assert_eq!(
        node.replica.step(&[]),
        Err(StepError::Misdirected { to: 0, node: 1 })
    );
    // Its answer to a heartbeat; type 9, to, from, term.
    let answer = [0x08, 9, 0x10, 1, 0x18, 2, 0x20, 9];
    assert_eq!(node.replica.step(&answer), Err(StepError::UnknownPeer(2)));
    assert_eq!(node.replica.status().term, 6);
}

/// Fails on the entry `!`, and writes to the reserved table on `?`.
struct Picky(Counters);

impl Machine for Picky {
    type Effect = (Vec<u8>, u64);

    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        rows: &dyn RowReader,
    ) -> Result<Applied<Self::Effect>, MachineError> {
        match entry {
            b"!" => Err(MachineError::Refused("no".to_owned())),
            b"?" => {
                let row = RowChange::Delete {
                    table: 255,
                    key: Vec::new(),
                };
                Ok(Applied {
                    rows: vec![row],
                    effects: Vec::new(),
                })
            }
            _ => self.0.apply(id, entry, rows),
        }
    }

    fn restore(&mut self, id: EntryId, rows: &dyn RowReader) -> Result<(), MachineError> {
        self.0.restore(id, rows)
    }
}

#[test]
fn a_machine_that_cannot_go_on_stops_the_replica_for_good() {
    for bad in [b"!", b"?"] {
        let mut replica = Replica::open(config(1), lone_disk()).expect("a sound disk");
        let mut machine = Picky(Counters::default());
        replica
            .process(&mut machine)
            .expect("nothing to refuse yet");
        let index = replica
            .propose(bad.to_vec())
            .expect("the leader takes it")
            .index;
        let error = replica
            .process(&mut machine)
            .expect_err("the machine refuses");
        let expected = match bad {
            b"!" => FatalError::Machine {
                index,
                source: MachineError::Refused("no".to_owned()),
            },
            _ => FatalError::ReservedTable { index, table: 255 },
        };
        assert_eq!(error, expected);
        assert_eq!(
            replica.process(&mut machine).err(),
            Some(FatalError::Stopped)
        );
        assert_eq!(replica.propose(add(b"x")), Err(ProposeError::Stopped));
    }
}
