//! The same promises on RocksDB, in temporary directories.

use tessera_replica::{
    Disk, DiskBatch, DiskError, DiskSync, DiskView, Durability, FatalError, MemDisk, MetaKey, Replica,
    RocksDisk, RowChange, RowReader, StageId, StageWriter,
};

use crate::crash::{History, check_restart, random_entry, small_log};
use crate::support::{Counters, Node, Seeded, add, config, identity, wipe};

/// RocksDB that loses every write of what was applied, as a power failure may: nobody syncs such
/// writes. Reads do not see them, which is right only while a test applies one batch per restart.
struct Forgetful {
    disk: RocksDisk,
    forget: bool,
}

impl RowReader for Forgetful {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        self.disk.get(table, key)
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, DiskError> {
        self.disk.scan(table, prefix, after, limit)
    }
}

impl Disk for Forgetful {
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let applies = batch.meta.iter().any(|(key, _)| *key == MetaKey::Applied);
        if self.forget && applies {
            return Ok(());
        }
        self.disk.write(batch, durability)
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        self.disk.meta(key)
    }

    fn log_read(
        &self,
        range: std::ops::Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, DiskError> {
        self.disk.log_read(range, max_bytes)
    }

    fn view(&self) -> Result<Box<dyn DiskView>, DiskError> {
        self.disk.view()
    }

    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError> {
        self.disk.stage()
    }

    fn syncer(&self) -> Box<dyn DiskSync> {
        self.disk.syncer()
    }
}

#[test]
fn rocksdb_applies_again_what_was_applied_but_not_synced() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = || RocksDisk::open(dir.path()).expect("the database opens");
    let mut disk = open();
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    let mut node = Node::open(
        config(1),
        Forgetful {
            disk,
            forget: false,
        },
    );
    node.process();
    node.commit(add(b"x"));
    drop(node);
    let mut node = Node::open(
        config(1),
        Forgetful {
            disk: open(),
            forget: true,
        },
    );
    assert_eq!(node.machine.value(b"x"), 1);
    for entry in [add(b"x"), add(b"y"), wipe(b"q"), add(b"y")] {
        node.replica.propose(entry).expect("the leader takes it");
    }
    let applied = node.process().applied;
    let (kept, values) = (node.replica.status().applied, node.machine.values.clone());
    drop(node);
    let mut node = Node::open(config(1), open());
    assert_eq!(node.machine.value(b"y"), 0, "the rows were forgotten");
    let again = node.process().applied;
    assert_eq!(again, applied);
    assert_eq!(node.machine.values, values);
    assert!(node.replica.status().applied > kept);
    assert_eq!(Counters::from_rows(node.replica.rows()).values, values);
}

#[test]
fn rocksdb_restarts_with_a_cut_log_and_rows() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = || RocksDisk::open(dir.path()).expect("the database opens");
    let mut disk = open();
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    let mut history = History::default();
    let mut random = Seeded::new(1);
    let mut node = Node::open(small_log(1), disk);
    node.process();
    for step in 0..80 {
        let entry = random_entry(&mut random);
        let (id, progress) = node.commit(entry.clone());
        history.proposed.insert(id, entry);
        history
            .reported
            .extend(progress.applied.iter().map(|(id, _)| *id));
        if step % 9 == 0 {
            drop(node);
            node = Node::open(small_log(1), open());
            check_restart(&mut node, &mut history, &format!("step {step}"));
        }
    }
    assert!(node.replica.status().first_index > 60);
}

#[test]
fn rocksdb_refuses_a_second_owner_and_finds_a_gap() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
    assert!(RocksDisk::open(dir.path()).is_err());
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    let mut node = Node::open(config(1), disk);
    node.process();
    for _ in 0..5 {
        node.commit(add(b"x"));
    }
    drop(node);
    let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
    let batch = DiskBatch {
        log_remove: vec![8..9],
        ..DiskBatch::default()
    };
    disk.write(batch, Durability::Synced)
        .expect("the disk works");
    let error = Replica::open(config(1), disk)
        .map(|_| ())
        .expect_err("a gap");
    assert!(
        error
            .to_string()
            .contains("the log has a gap: expected entry 8"),
        "{error}"
    );
}

#[test]
fn both_disks_hold_the_same_rows_after_the_same_batches() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut rocks = RocksDisk::open(dir.path()).expect("the database opens");
    let mut mem = MemDisk::new();
    let mut random = Seeded::new(3);
    for step in 0..400 {
        let mut key = || -> Vec<u8> {
            (0..random.below(4))
                .map(|_| [0, 1, 0xfe, 0xff][random.below(4) as usize])
                .collect()
        };
        let (one, two, three) = (key(), key(), key());
        let table = [0, 1, 254][random.below(3) as usize];
        let value = vec![random.below(256) as u8; random.below(5) as usize];
        let mut rows = vec![
            RowChange::Put {
                table,
                key: one.clone(),
                value,
            },
            RowChange::Delete {
                table,
                key: two.clone(),
            },
        ];
        if random.below(4) == 0 {
            rows.insert(
                random.below(3) as usize,
                RowChange::DeletePrefix {
                    table,
                    prefix: three.clone(),
                },
            );
        }
        let batch = DiskBatch {
            rows,
            ..DiskBatch::default()
        };
        assert_eq!(rocks.write(batch.clone(), Durability::Unsynced), Ok(()));
        assert_eq!(mem.write(batch, Durability::Unsynced), Ok(()));
        for table in [0, 1, 254] {
            let limit = 1 + random.below(5) as usize;
            assert_eq!(
                rocks.scan(table, &[], None, 1000),
                mem.scan(table, &[], None, 1000),
                "step {step}"
            );
            assert_eq!(
                rocks.scan(table, &two, Some(&one), limit),
                mem.scan(table, &two, Some(&one), limit),
                "step {step}"
            );
            assert_eq!(
                rocks.get(table, &three),
                mem.get(table, &three),
                "step {step}"
            );
        }
    }
}

/// The newest write-ahead log of a closed database.
fn newest_wal(dir: &std::path::Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let wals = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    wals.max().expect("a write-ahead log")
}

/// A closed database with `count` committed entries in its write-ahead log.
pub fn closed_database(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    let mut node = Node::open(config(1), disk);
    node.process();
    for _ in 0..count {
        node.commit(add(b"x"));
    }
    dir
}

#[test]
fn a_torn_last_record_is_applied_again() {
    let dir = closed_database(20);
    let wal = newest_wal(dir.path());
    let bytes = std::fs::read(&wal).expect("the log can be read");
    std::fs::write(&wal, &bytes[..bytes.len() - 3]).expect("the log can be cut");
    let disk = RocksDisk::open(dir.path()).expect("a torn tail is normal after a crash");
    let mut node = Node::open(config(1), disk);
    assert_eq!(
        node.machine.value(b"x"),
        19,
        "the last batch, an apply, is torn"
    );
    node.process();
    assert_eq!(node.machine.value(b"x"), 20);
}

#[test]
fn damage_in_the_middle_of_the_write_ahead_log_is_refused() {
    let dir = closed_database(40);
    let wal = newest_wal(dir.path());
    let mut bytes = std::fs::read(&wal).expect("the log can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&wal, &bytes).expect("the log can be written");
    let opened = RocksDisk::open(dir.path()).map_err(|error| error.to_string());
    let opened = opened.and_then(|disk| {
        Replica::open(config(1), disk)
            .map(|_| ())
            .map_err(|error| error.to_string())
    });
    let error = opened.expect_err("a damaged log was accepted");
    assert!(
        error.contains("remove the directory and start with --join"),
        "{error}"
    );
}

/// Whether the database in `dir` can be used, and if so the value of the counter.
pub fn value_or_refusal(dir: &std::path::Path) -> Result<u64, String> {
    let disk = RocksDisk::open(dir).map_err(|error| error.to_string())?;
    let mut replica = Replica::open(config(1), disk).map_err(|error| error.to_string())?;
    let rows = replica.rows().scan(1, &[], None, 1_000);
    rows.map_err(|error| error.to_string())?;
    let mut machine = Counters::from_rows(replica.rows());
    let processed = replica.process(&mut machine);
    processed.map_err(|error| match error {
        FatalError::Disk(error) => error.to_string(),
        error => error.to_string(),
    })?;
    Ok(machine.value(b"x"))
}

#[test]
fn a_flipped_bit_anywhere_in_the_files_is_refused_or_harms_nothing() {
    let dir = closed_database(60);
    // Once more, so that the entries are in a table and the newest ones in the log.
    let disk = RocksDisk::open(dir.path()).expect("the database opens");
    let mut node = Node::open(config(1), disk);
    node.process();
    for _ in 0..60 {
        node.commit(add(b"x"));
    }
    drop(node);
    let mut random = Seeded::new(2);
    let (mut refused, mut harmless) = (0, 0);
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| {
            let name = name.to_string_lossy();
            !name.starts_with("LOG") && name != "LOCK" && !name.starts_with("OPTIONS")
        })
        .collect();
    for name in names {
        let sound = std::fs::read(dir.path().join(&name)).expect("a file");
        for _ in 0..if sound.is_empty() { 0 } else { 12 } {
            let copy = crate::snapshots::copy(dir.path());
            let mut bytes = sound.clone();
            let bit = random.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(copy.path().join(&name), &bytes).expect("written");
            let context = format!("{name:?} bit {bit}");
            match value_or_refusal(copy.path()) {
                Ok(value) => {
                    assert_eq!(value, 120, "{context}: acknowledged entries are missing");
                    harmless += 1;
                }
                Err(error) => {
                    let way_out = "remove the directory and start with --join";
                    assert!(error.contains(way_out), "{context}: {error}");
                    refused += 1;
                }
            }
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(refused > 10, "nothing was found");
}
