//! What a data directory must look like to be opened, on both kinds of disk.

use tessera_replica::{
    BootstrapError, ClusterId, Disk, DiskBatch, DiskError, Durability, Identity, MemDisk, MetaKey,
    OpenError, Replica,
};

use crate::support::{CLUSTER, Node, add, config, identity, lone_disk};

/// A disk with a few applied entries, and the index of the last one.
fn used_disk() -> (MemDisk, u64) {
    let disk = lone_disk();
    let mut node = Node::open(config(1), disk.clone());
    node.process();
    for _ in 0..5 {
        node.commit(add(b"x"));
    }
    (disk, node.replica.status().last_index)
}

fn write(disk: &mut MemDisk, batch: DiskBatch) {
    disk.write(batch, Durability::Synced)
        .expect("no fault was injected");
}

fn open(disk: MemDisk) -> Result<(), OpenError> {
    Replica::open(config(1), disk).map(|_| ())
}

/// What is lost is not repaired: the operator is told how this master comes back.
fn says_how_to_come_back(error: &OpenError) -> bool {
    error
        .to_string()
        .contains("remove the directory and start with --join: it comes back under a new id")
}

#[test]
fn an_empty_disk_is_not_opened() {
    assert!(matches!(
        open(MemDisk::new()),
        Err(OpenError::NotBootstrapped)
    ));
    assert!(matches!(Replica::identity(&MemDisk::new()), Ok(None)));
}

#[test]
fn bootstrap_refuses_a_used_disk_and_senseless_voters() {
    let mut disk = lone_disk();
    assert_eq!(Replica::identity(&disk).ok(), Some(Some(identity(1))));
    let error = Replica::bootstrap(&mut disk, identity(2), Vec::new());
    assert_eq!(
        error,
        Err(BootstrapError::AlreadyBootstrapped {
            cluster: CLUSTER,
            node: 1
        })
    );
    for voters in [&[][..], &[2], &[1, 1], &[0, 1]] {
        let list: Vec<_> = voters.iter().map(|voter| (*voter, Vec::new())).collect();
        let error = Replica::bootstrap_voters(&mut MemDisk::new(), identity(1), &list);
        assert_eq!(
            error,
            Err(BootstrapError::BadVoters {
                node: 1,
                voters: voters.to_vec()
            })
        );
    }
}

#[test]
fn another_cluster_another_node_and_a_newer_format_are_refused() {
    let (disk, _) = used_disk();
    let mut other = config(1);
    other.identity.cluster = ClusterId([8; 16]);
    let error = Replica::open(other, disk.clone())
        .map(|_| ())
        .expect_err("another cluster");
    assert!(
        matches!(error, OpenError::WrongCluster { found: CLUSTER, .. }),
        "{error}"
    );
    let mut other = config(1);
    other.identity = Identity {
        node: 2,
        ..other.identity
    };
    let error = Replica::open(other, disk.clone())
        .map(|_| ())
        .expect_err("another node");
    assert!(
        matches!(
            error,
            OpenError::WrongNode {
                found: 1,
                expected: 2
            }
        ),
        "{error}"
    );
    let mut newer = disk;
    let meta = vec![(MetaKey::Identity, 9u32.to_le_bytes().to_vec())];
    write(
        &mut newer,
        DiskBatch {
            meta,
            ..DiskBatch::default()
        },
    );
    let error = open(newer).expect_err("a newer format");
    assert!(
        matches!(
            error,
            OpenError::NewerFormat {
                found: 9,
                supported: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn a_gap_in_the_log_is_refused() {
    let (mut disk, last) = used_disk();
    let log_remove = vec![last - 2..last - 1];
    write(
        &mut disk,
        DiskBatch {
            log_remove,
            ..DiskBatch::default()
        },
    );
    let error = open(disk).expect_err("a gap");
    assert!(says_how_to_come_back(&error), "{error}");
    let expected = last - 2;
    assert!(
        matches!(error, OpenError::LogGap { expected: e, found } if e == expected && found == last - 1),
        "{error}"
    );
}

#[test]
fn a_log_that_lost_acknowledged_entries_is_refused() {
    let (mut disk, last) = used_disk();
    let log_remove = vec![last..last + 1];
    write(
        &mut disk,
        DiskBatch {
            log_remove,
            ..DiskBatch::default()
        },
    );
    let error = open(disk).expect_err("too short");
    assert!(says_how_to_come_back(&error), "{error}");
    assert!(
        matches!(error, OpenError::LogTooShort { needed, .. } if needed == last),
        "{error}"
    );
}

#[test]
fn every_damaged_record_is_refused() {
    for key in [
        MetaKey::Identity,
        MetaKey::HardState,
        MetaKey::Applied,
        MetaKey::Truncated,
        MetaKey::Members,
    ] {
        let (mut disk, _) = used_disk();
        let mut record = disk.meta(key).expect("readable").expect("present");
        let middle = record.len() / 2;
        record[middle] ^= 0x10;
        write(
            &mut disk,
            DiskBatch {
                meta: vec![(key, record)],
                ..DiskBatch::default()
            },
        );
        let error = open(disk).expect_err("damaged");
        assert!(says_how_to_come_back(&error), "{error}");
        assert!(
            matches!(error, OpenError::Damaged(DiskError::Corrupt { .. })),
            "{key:?}: {error}"
        );
    }
    let (mut disk, last) = used_disk();
    let records = disk.log_read(last..last + 1, u64::MAX).expect("readable");
    let log_put = records
        .into_iter()
        .map(|(index, mut record)| {
            record[3] ^= 1;
            (index, record)
        })
        .collect();
    write(
        &mut disk,
        DiskBatch {
            log_put,
            ..DiskBatch::default()
        },
    );
    let error = open(disk).expect_err("damaged");
    assert!(says_how_to_come_back(&error), "{error}");
    assert!(
        matches!(error, OpenError::Damaged(DiskError::Corrupt { .. })),
        "{error}"
    );
}

#[test]
fn records_of_different_times_contradict_each_other() {
    let (disk, _) = used_disk();
    let old = disk
        .meta(MetaKey::HardState)
        .expect("readable")
        .expect("present");
    let mut node = Node::open(config(1), disk.clone());
    node.process();
    drop(node);
    let mut mixed = disk;
    let meta = vec![(MetaKey::HardState, old)];
    write(
        &mut mixed,
        DiskBatch {
            meta,
            ..DiskBatch::default()
        },
    );
    let error = open(mixed).expect_err("they contradict each other");
    assert!(matches!(error, OpenError::Inconsistent(_)), "{error}");
    assert!(says_how_to_come_back(&error), "{error}");
}

#[test]
fn every_flipped_bit_of_a_record_is_refused() {
    let (sound, first) = used_disk();
    let keys = [
        MetaKey::Identity,
        MetaKey::HardState,
        MetaKey::Applied,
        MetaKey::Truncated,
        MetaKey::Members,
    ];
    for key in keys {
        let record = sound.meta(key).expect("readable").expect("present");
        for bit in 0..record.len() * 8 {
            let (mut disk, _) = used_disk();
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let meta = vec![(key, damaged)];
            write(
                &mut disk,
                DiskBatch {
                    meta,
                    ..DiskBatch::default()
                },
            );
            // A higher format version is not damage: the record is a newer build's.
            let error = open(disk).expect_err("damaged");
            let newer = matches!(error, OpenError::NewerFormat { .. }) && bit < 32;
            assert!(
                newer || says_how_to_come_back(&error),
                "{key:?} {bit}: {error}"
            );
        }
    }
    assert!(first > 5);
}

#[test]
fn a_missing_record_is_refused_unless_the_directory_is_of_the_first_format() {
    // The members record came later: without it the members say nothing of themselves.
    let (disk, _) = used_disk();
    let image = disk.without(MetaKey::Members);
    let replica = Replica::open(config(1), image).expect("a directory of the first format");
    let membership = replica.membership();
    assert_eq!((membership.next_node, membership.members.len()), (2, 1));
    for key in [MetaKey::HardState, MetaKey::Applied, MetaKey::Truncated] {
        let error = open(disk.without(key)).expect_err("missing");
        assert!(says_how_to_come_back(&error), "{key:?}: {error}");
    }
}

#[test]
fn senseless_timing_is_refused() {
    let mut bad = config(1);
    bad.heartbeat_ticks = 20;
    let error = Replica::open(bad, lone_disk())
        .map(|_| ())
        .expect_err("heartbeat too slow");
    assert!(matches!(error, OpenError::Config(_)), "{error}");
}
