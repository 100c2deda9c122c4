//! Snapshots: the same bytes from any offset, damage found, installed as a whole or not at all.

use tessera_replica::{
    ClusterId, Disk, DiskBatch, Durability, EntryId, Identity, Limits, MemDisk, Replica,
    ReplicaConfig, RestoreError, RocksDisk, RowChange, SnapshotError, SnapshotHeader,
    SnapshotSource, Staged, Staging, StepError,
};

use crate::sim::{NODES, Packet, Sim};
use crate::support::{Node, Seeded, add, config, identity, lone_disk};

fn put(table: u8, key: &[u8], value: Vec<u8>) -> RowChange {
    RowChange::Put {
        table,
        key: key.to_vec(),
        value,
    }
}

/// Rows of many sizes in three tables, one of them larger than several chunks.
fn fill<D: Disk>(disk: &mut D) {
    let mut random = Seeded::new(11);
    let mut rows: Vec<RowChange> = (0..3_000u32)
        .map(|n| {
            let value = vec![n as u8; random.below(300) as usize];
            put(3 + (n % 3) as u8, &n.to_be_bytes(), value)
        })
        .collect();
    rows.push(put(4, b"large", vec![9; 900_000]));
    rows.push(put(254, b"", Vec::new()));
    let batch = DiskBatch {
        rows,
        ..DiskBatch::default()
    };
    disk.write(batch, Durability::Synced).expect("no fault");
}

/// The snapshot of a lone node with these rows.
fn source_of<D: Disk>(disk: D) -> SnapshotSource {
    let node = Node::open(config(1), disk);
    node.replica.snapshot().expect("the disk can be read")
}

fn bytes_of(source: &mut SnapshotSource) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk().expect("the disk can be read") {
        assert_eq!(chunk.offset, bytes.len() as u64);
        bytes.extend(chunk.bytes);
        assert_eq!(
            chunk.last,
            source.next_chunk().is_ok_and(|next| next.is_none())
        );
        assert!(source.seek(bytes.len() as u64).is_ok_and(|reached| reached));
    }
    bytes
}

fn filled() -> MemDisk {
    let mut disk = lone_disk();
    fill(&mut disk);
    disk
}

#[test]
fn the_bytes_are_the_same_from_any_offset() {
    let disk = filled();
    let mut source = source_of(disk.clone());
    let whole = bytes_of(&mut source);
    assert!(whole.len() > 1_200_000, "{}", whole.len());
    let mut random = Seeded::new(4);
    for _ in 0..60 {
        let offset = random.below(whole.len() as u64 + 1);
        assert_eq!(source.seek(offset), Ok(true));
        let mut rest = Vec::new();
        // A few chunks, or all of them.
        for _ in 0..1 + random.below(8) {
            if let Some(chunk) = source.next_chunk().expect("the disk can be read") {
                assert_eq!(chunk.offset, offset + rest.len() as u64);
                rest.extend(chunk.bytes);
            }
        }
        let from = offset as usize;
        assert_eq!(rest, whole[from..from + rest.len()], "from {offset}");
    }
    assert_eq!(source.seek(whole.len() as u64 + 1), Ok(false));
    assert_eq!(bytes_of(&mut source_of(disk)).len(), whole.len());
}

#[test]
fn a_view_keeps_the_rows_of_its_moment_on_both_disks() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut rocks = RocksDisk::open(dir.path()).expect("the database opens");
    let mut mem = MemDisk::new();
    fill(&mut rocks);
    fill(&mut mem);
    let all = |view: &dyn tessera_replica::DiskView| view.page(None, usize::MAX);
    let (one, two) = (rocks.view().expect("a view"), mem.view().expect("a view"));
    let before = all(&*one).expect("the disk can be read");
    assert_eq!(all(&*two).as_ref(), Ok(&before));
    let changes = || DiskBatch {
        rows: vec![
            RowChange::DeletePrefix {
                table: 4,
                prefix: Vec::new(),
            },
            put(3, b"new", vec![1]),
        ],
        ..DiskBatch::default()
    };
    // Rows that are replaced as a whole stay as well.
    for disk in [&mut rocks as &mut dyn Disk, &mut mem] {
        disk.write(changes(), Durability::Synced).expect("no fault");
        for _ in 0..2 {
            let (stage, mut writer) = disk.stage().expect("no fault");
            assert_eq!(
                writer.put(vec![(9, b"other".to_vec(), Vec::new())]),
                Ok(true)
            );
            let adopt = DiskBatch {
                adopt: Some(stage),
                ..DiskBatch::default()
            };
            disk.write(adopt, Durability::Synced).expect("no fault");
            assert_eq!(writer.put(Vec::new()), Ok(false), "it is adopted");
            let view = disk.view().expect("a view");
            assert_eq!(all(&*view), Ok(vec![(9, b"other".to_vec(), Vec::new())]));
        }
    }
    assert_eq!(all(&*one).as_ref(), Ok(&before));
    assert_eq!(all(&*two), Ok(before));
    drop((one, two));
    drop(rocks);
    let rocks = RocksDisk::open(dir.path()).expect("the database opens");
    let view = rocks.view().expect("a view");
    assert_eq!(all(&*view), Ok(vec![(9, b"other".to_vec(), Vec::new())]));
}

fn check(bytes: &[u8], chunk: usize) -> Result<Staged, SnapshotError> {
    let header = SnapshotHeader::decode(bytes)?.ok_or(SnapshotError::Incomplete { staged: 0 })?;
    let mut staging = Staging::only_check(header.0);
    for piece in bytes.chunks(chunk) {
        staging.write(staging.offset(), piece)?;
    }
    staging.finish().map_err(|(error, _)| error)
}

#[test]
fn damage_and_a_missing_end_are_found() {
    let bytes = bytes_of(&mut source_of(filled()));
    for chunk in [bytes.len(), 1_000, 77] {
        let staged = check(&bytes, chunk).expect("it is whole");
        assert_eq!((staged.rows, staged.bytes), (3_002, bytes.len() as u64));
    }
    let mut random = Seeded::new(8);
    for _ in 0..200 {
        let mut damaged = bytes.clone();
        let bit = random.below(bytes.len() as u64 * 8) as usize;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(check(&damaged, 100_000).is_err(), "bit {bit}");
        let len = random.below(bytes.len() as u64) as usize;
        assert!(check(&bytes[..len], 100_000).is_err(), "length {len}");
    }
    for bit in (0..400).chain(bytes.len() * 8 - 200..bytes.len() * 8) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(check(&damaged, 100_000).is_err(), "bit {bit}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(check(&longer, 100_000).is_err(), "bytes after the end");
}

#[test]
fn pieces_must_follow_each_other() {
    let bytes = bytes_of(&mut source_of(filled()));
    let header = SnapshotHeader::decode(&bytes)
        .expect("a header")
        .expect("whole");
    let mut staging = Staging::only_check(header.0);
    staging.write(0, &bytes[..500]).expect("the first piece");
    for offset in [0, 499, 501] {
        let error = SnapshotError::WrongOffset {
            offset,
            expected: 500,
        };
        assert_eq!(staging.write(offset, b"abc"), Err(error));
    }
    let Err((error, mut staging)) = staging.finish() else {
        panic!("it is not whole");
    };
    assert_eq!(error, SnapshotError::Incomplete { staged: 500 });
    staging.write(500, &bytes[500..]).expect("the rest");
    assert!(staging.finish().is_ok());
}

/// A leader that has a snapshot on its way to `away`, which is behind.
fn with_snapshot(limits: Limits) -> (Sim, u64, u64) {
    let mut sim = Sim::new(limits);
    sim.run_until("a leader", |sim| sim.leader().is_some());
    let leader = sim.leader().expect("there is one");
    let away = NODES.into_iter().find(|id| *id != leader).expect("three");
    sim.propose(leader, add(b"before")).expect("it leads");
    sim.round();
    sim.crash(away, 99);
    for n in 0..60 {
        sim.propose(leader, add(&[b'a' + n % 7])).expect("it leads");
        sim.round();
    }
    sim.start(away);
    for _ in 0..200 {
        let at = sim
            .network
            .iter()
            .position(|(.., packet)| matches!(packet, Packet::Snapshot(..)));
        if let Some(at) = at {
            // Only the snapshot stays on its way.
            let snapshot = sim.network.remove(at).expect("it is there");
            sim.network.clear();
            sim.network.push_back(snapshot);
            return (sim, leader, away);
        }
        if !sim.deliver(0) {
            sim.ids().into_iter().for_each(|id| sim.tick(id));
        }
        for id in sim.ids() {
            sim.process(id).expect("no fault is injected");
        }
    }
    panic!("no snapshot was sent");
}

fn small_log() -> Limits {
    Limits {
        log_compact_after_entries: 20,
        log_keep_entries: 5,
        ..Limits::default()
    }
}

#[test]
fn a_crash_at_any_step_of_installing_leaves_the_old_state_or_the_new_one() {
    let mut outcomes = std::collections::BTreeSet::new();
    for fail_sync in [false, true] {
        for step in 0..4 {
            for survivors in 0..6 {
                let (mut sim, leader, away) = with_snapshot(small_log());
                let old = sim.nodes[&away].replica.status().applied;
                let Some((.., Packet::Snapshot(mut snapshot, _))) = sim.network.pop_front() else {
                    panic!("no snapshot");
                };
                let node = sim.nodes.get_mut(&away).expect("it runs");
                let message = snapshot.message.clone();
                let mut staging = node.replica.begin_install(&message).expect("it is needed");
                let new = snapshot.source.header().position;
                while step >= 1
                    && let Some(chunk) = snapshot.source.next_chunk().expect("readable")
                {
                    staging
                        .write(chunk.offset, &chunk.bytes)
                        .expect("it follows");
                }
                if step >= 2 {
                    let staged = staging.finish().expect("it is whole");
                    node.replica
                        .step_snapshot(&message, staged)
                        .expect("it is taken");
                }
                if step >= 3 {
                    if fail_sync {
                        sim.disks.get_mut(&away).expect("a disk").fail_next_sync();
                    }
                    assert_eq!(sim.process(away).is_err(), fail_sync);
                }
                sim.crash(away, survivors);
                // Checks that the rows are those of the entries up to the applied one.
                sim.start(away);
                let applied = sim.nodes[&away].replica.status().applied;
                // What it had applied and not synced is applied again from its log.
                assert!(applied.index <= old.index || applied == new, "{applied}, not {old} or {new}");
                outcomes.insert((step, applied == new));
                if let Some(sender) = sim.nodes.get_mut(&leader) {
                    sender.replica.report_snapshot(away, false);
                }
                sim.heal_and_compare();
            }
        }
    }
    let expected = [(0, false), (1, false), (2, false), (3, false), (3, true)];
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn other_rows_than_the_messages_are_not_adopted() {
    let (mut sim, _, away) = with_snapshot(small_log());
    let Some((.., Packet::Snapshot(mut snapshot, _))) = sim.network.pop_front() else {
        panic!("no snapshot");
    };
    let node = sim.nodes.get_mut(&away).expect("it runs");
    let message = snapshot.message.clone();
    assert_eq!(node.replica.step(&message), Err(StepError::NotStaged));
    let mut bytes = Vec::new();
    while let Some(chunk) = snapshot.source.next_chunk().expect("readable") {
        bytes.extend(chunk.bytes);
    }
    let only_checked = check(&bytes, 1_000).expect("it is whole");
    let refused = node.replica.step_snapshot(&message, only_checked);
    assert_eq!(refused, Err(StepError::NotStaged));
    let mut first = node.replica.begin_install(&message).expect("it is needed");
    first.write(0, &bytes[..40]).expect("it follows");
    let mut second = node.replica.begin_install(&message).expect("it is needed");
    assert_eq!(
        first.write(40, &bytes[40..]),
        Err(SnapshotError::Superseded)
    );
    second.write(0, &bytes).expect("it is whole");
    let second = second.finish().expect("it is whole");
    let third = node.replica.begin_install(&message).expect("it is needed");
    let refused = node.replica.step_snapshot(&message, second);
    assert_eq!(refused, Err(StepError::NotStaged));
    drop(third);
    let mut last = node.replica.begin_install(&message).expect("it is needed");
    last.write(0, &bytes).expect("it is whole");
    let last = last.finish().expect("it is whole");
    assert_eq!(node.replica.step_snapshot(&message, last), Ok(()));
    // Nothing may disturb the rows that the next call adopts.
    let busy = node.replica.begin_install(&message).map(|_| ());
    assert_eq!(busy, Err(StepError::Installing));
    assert_eq!(
        node.process().restored,
        Some(snapshot.source.header().position)
    );
    let again = node.replica.begin_install(&message).map(|_| ());
    assert!(
        matches!(again, Err(StepError::NotNeeded { .. })),
        "{again:?}"
    );
}

#[test]
fn no_bytes_of_a_snapshot_panic_a_replica() {
    let (mut sim, _, away) = with_snapshot(small_log());
    let Some((.., Packet::Snapshot(mut snapshot, _))) = sim.network.pop_front() else {
        panic!("no snapshot");
    };
    let bytes = bytes_of(&mut snapshot.source);
    let node = sim.nodes.get_mut(&away).expect("it runs");
    let mut random = Seeded::new(6);
    let mut damage = |sound: &[u8]| {
        let mut damaged = sound.to_vec();
        let at = random.below(damaged.len() as u64) as usize;
        damaged[at] ^= 1 + random.below(255) as u8;
        damaged
    };
    for _ in 0..4_000 {
        // A message with another term is no damage: its rows are.
        let message = damage(&snapshot.message);
        let _ = node.replica.step(&message);
        let Ok(mut staging) = node.replica.begin_install(&message) else {
            continue;
        };
        let written = staging.write(0, &damage(&bytes));
        assert!(written.is_err() || staging.finish().is_err());
    }
    assert!(node.process().restored.is_none());
    let message = snapshot.message.clone();
    let mut staging = node.replica.begin_install(&message).expect("it is needed");
    staging.write(0, &bytes).expect("it is whole");
    let staged = staging.finish().expect("it is whole");
    assert_eq!(node.replica.step_snapshot(&message, staged), Ok(()));
}

/// Copies a database while nobody writes to it: what a crash at this moment leaves.
pub fn copy(from: &std::path::Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(from).expect("it can be read") {
        let entry = entry.expect("an entry");
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
    }
    dir
}

#[test]
fn rocksdb_has_the_old_rows_or_the_new_ones_at_every_step() {
    let mut leader = Sim::with(Limits::default(), &[1], config);
    leader.process(1).expect("the disk works");
    for n in 0..30 {
        leader.propose(1, add(&[b'a' + n % 5])).expect("it leads");
    }
    leader.add_learner(1).expect("it leads");
    leader.process(1).expect("the disk works");
    let snapshot = loop {
        match leader.network.pop_front() {
            Some((_, 2, Packet::Snapshot(snapshot, _))) => break snapshot,
            Some((from, to, packet)) => {
                leader.network.push_front((from, to, packet));
                leader.deliver(0);
            }
            None => leader.tick(1),
        }
        leader.process(1).expect("the disk works");
        leader.process(2).expect("the disk works");
    };
    let (message, mut source) = (snapshot.message, snapshot.source);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
    Replica::prepare_joiner(&mut disk, identity(2)).expect("an empty disk");
    let mut node = Node::open(config(2), disk);
    let mut images = vec![(copy(dir.path()), false)];
    let mut staging = node.replica.begin_install(&message).expect("it is needed");
    images.push((copy(dir.path()), false));
    while let Some(chunk) = source.next_chunk().expect("readable") {
        staging
            .write(chunk.offset, &chunk.bytes)
            .expect("it follows");
        images.push((copy(dir.path()), false));
    }
    let staged = staging.finish().expect("it is whole");
    node.replica
        .step_snapshot(&message, staged)
        .expect("it is taken");
    images.push((copy(dir.path()), false));
    let progress = node.process();
    let position = source.header().position;
    assert_eq!(progress.restored, Some(position));
    assert!(progress.membership.is_some());
    images.push((copy(dir.path()), true));
    for (image, installed) in images {
        let disk = RocksDisk::open(image.path()).expect("the database opens");
        let node = Node::open(config(2), disk);
        let applied = node.replica.status().applied;
        let expected = if installed {
            position
        } else {
            EntryId::default()
        };
        assert_eq!(applied, expected);
        assert_eq!(node.machine.value(b"a"), if installed { 6 } else { 0 });
    }
}

#[test]
fn a_saved_snapshot_becomes_a_new_cluster_and_no_other() {
    let mut node = Node::open(config(1), lone_disk());
    node.process();
    (0..20).for_each(|n| drop(node.commit(add(&[b'a' + n % 5]))));
    let mut source = node.replica.snapshot().expect("the disk can be read");
    node.commit(add(b"later"));
    let header = source.header().clone();
    let mut disk = MemDisk::new();
    let mut staging = Replica::begin_restore(&mut disk, header.clone()).expect("an empty disk");
    while let Some(chunk) = source.next_chunk().expect("readable") {
        staging
            .write(chunk.offset, &chunk.bytes)
            .expect("it follows");
    }
    let staged = staging.finish().expect("it is whole");
    let same = Replica::finish_restore(&mut disk, identity(1), Vec::new(), &staged);
    assert_eq!(same, Err(RestoreError::SameCluster(identity(1).cluster)));
    let new = Identity {
        cluster: ClusterId([8; 16]),
        node: 1,
    };
    Replica::finish_restore(&mut disk, new, b"me".to_vec(), &staged).expect("an empty disk");
    let refused = Replica::begin_restore(&mut disk, header).map(|_| ());
    let error = RestoreError::NotEmpty {
        cluster: new.cluster,
        node: 1,
    };
    assert_eq!(refused, Err(error));
    let config = ReplicaConfig {
        identity: new,
        ..config(1)
    };
    for round in 0..2 {
        let mut node = Node::open(config.clone(), disk.clone());
        assert_eq!(node.machine.value(b"later"), 0);
        node.process();
        node.commit(add(b"a"));
        assert_eq!(node.machine.value(b"a"), 5 + round);
        let membership = node.replica.membership();
        assert_eq!(
            membership.get(1).map(|me| me.attributes.as_slice()),
            Some(&b"me"[..])
        );
        assert_eq!(membership.next_node, 2);
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn snapshot_of_400_000_rows() {
    use std::time::Instant;
    let (one, two) = (tempfile::tempdir_in("."), tempfile::tempdir_in("."));
    let (one, two) = (one.expect("a directory"), two.expect("a directory"));
    let mut disk = RocksDisk::open(one.path()).expect("the database opens");
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    for page in 0..400u32 {
        let row = |n: u32| put(3, &(page * 1_000 + n).to_be_bytes(), vec![n as u8; 300]);
        let batch = DiskBatch {
            rows: (0..1_000).map(row).collect(),
            ..DiskBatch::default()
        };
        disk.write(batch, Durability::Unsynced).expect("no fault");
    }
    let node = Node::open(config(1), disk);
    let start = Instant::now();
    let mut source = node.replica.snapshot().expect("the disk can be read");
    println!("taking a view: {:?}", start.elapsed());
    let mut target = RocksDisk::open(two.path()).expect("the database opens");
    let mut staging =
        Replica::begin_restore(&mut target, source.header().clone()).expect("an empty disk");
    let start = Instant::now();
    let (mut read, mut write) = (start.elapsed(), start.elapsed());
    loop {
        let turn = Instant::now();
        let Some(chunk) = source.next_chunk().expect("readable") else {
            break;
        };
        read += turn.elapsed();
        let turn = Instant::now();
        staging
            .write(chunk.offset, &chunk.bytes)
            .expect("it follows");
        write += turn.elapsed();
    }
    let staged = staging.finish().expect("it is whole");
    let (rows, bytes) = (staged.rows, staged.bytes);
    println!("{rows} rows, {bytes} bytes: reading {read:?}, staging {write:?}");
    let start = Instant::now();
    let new = Identity {
        cluster: ClusterId([8; 16]),
        node: 1,
    };
    Replica::finish_restore(&mut target, new, Vec::new(), &staged).expect("an empty disk");
    println!("adopting: {:?}", start.elapsed());
}
