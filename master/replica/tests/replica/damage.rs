//! What a power failure leaves of a RocksDB is opened; what else is missing or changed is refused, each time.
//!
//! The files are real; a power failure is imitated by putting together files as they were at different moments.
//! Each entry of the tables below says how a database in a directory is damaged.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tessera_replica::{
    Disk, DiskBatch, DiskError, Durability, Replica, RocksDisk, RowChange, RowReader,
};

use crate::rocks::{closed_database, value_or_refusal};
use crate::snapshots::copy;
use crate::support::{Node, add, config};

const WAY_OUT: &str = "remove the directory and start with --join";
/// The table of these rows.
const TABLE: u8 = 1;
/// A row's size: a few hundred fill the memory that RocksDB has, and what it buffers of its log.
const ROW_BYTES: usize = 64 * 1024;
/// Rows that are synced before the log goes to a second file.
const SYNCED: u64 = 5;

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|have| have == ending)).collect();
    found.sort();
    found
}

fn length(path: &Path) -> u64 {
    path.metadata().expect("it is there").len()
}

fn cut(path: &Path, to: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    file.set_len(to).expect("it can be cut");
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is as long");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("it can be written");
}

fn write_row(disk: &mut RocksDisk, number: u64, durability: Durability) {
    let row = RowChange::Put {
        table: TABLE,
        key: number.to_be_bytes().to_vec(),
        value: vec![number as u8; ROW_BYTES],
    };
    let batch = DiskBatch { rows: vec![row], ..DiskBatch::default() };
    disk.write(batch, durability).expect("the disk works");
}

/// Rows that are there, which must be the first ones without a gap.
fn rows(dir: &Path) -> Result<u64, DiskError> {
    let disk = RocksDisk::open(dir)?;
    let keys = disk.scan(TABLE, &[], None, usize::MAX)?;
    for (number, (key, _)) in keys.iter().enumerate() {
        assert_eq!(**key, (number as u64).to_be_bytes(), "a row is missing");
    }
    Ok(keys.len() as u64)
}

/// Refused with words, and so again: nothing was repaired by trying.
fn assert_refused(dir: &Path, context: &str) {
    for attempt in 0..2 {
        match rows(dir) {
            Err(DiskError::Corrupt { what, detail }) => {
                let text = DiskError::Corrupt { what, detail }.to_string();
                assert!(text.contains(WAY_OUT), "{context}: {text}");
            }
            other => panic!("{context}, attempt {attempt}: {other:?}"),
        }
    }
}

/// A database whose log is in two files, the second one begun before the first was synced to its end.
struct TwoFiles {
    /// When the power failed: nothing of the second file was ever synced. Its files of the log are those of a later
    /// moment, as the kernel may write them at any time.
    power_failed: TempDir,
    /// The same after everything was synced, and the process ended.
    synced: TempDir,
    /// Where the first file ended when it was last synced.
    synced_to: u64,
    total: u64,
}

impl TwoFiles {
    fn make() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
        for number in 0..SYNCED {
            write_row(&mut disk, number, Durability::Unsynced);
        }
        let mut syncer = disk.syncer();
        syncer.sync().expect("the disk works");
        let power_failed = copy(dir.path());
        let [first] = &files(dir.path(), "log")[..] else {
            panic!("one file of the log");
        };
        let synced_to = length(first);
        let mut total = SYNCED;
        let second = loop {
            write_row(&mut disk, total, Durability::Unsynced);
            total += 1;
            assert!(total < 2_000, "the log stays in one file");
            match &files(dir.path(), "log")[..] {
                [_, second] if length(second) > 0 => break second.clone(),
                _ => {}
            }
        };
        for file in [first, &second] {
            let name = file.file_name().expect("a file");
            std::fs::copy(file, power_failed.path().join(name)).expect("copied");
        }
        syncer.sync().expect("the disk works");
        drop((disk, syncer));
        let synced = copy(dir.path());
        TwoFiles { power_failed, synced, synced_to, total }
    }
}

fn first(dir: &Path) -> PathBuf {
    files(dir, "log").first().expect("a log").clone()
}

fn last(dir: &Path) -> PathBuf {
    files(dir, "log").last().expect("a log").clone()
}

#[test]
fn a_log_that_goes_on_in_another_file_has_no_hole() {
    let two = TwoFiles::make();
    assert_eq!(rows(copy(two.synced.path()).path()).expect("it is sound"), two.total);
    // What a power failure may leave: rows that were never synced are missing, and nothing after them is there.
    let end = length(&first(two.power_failed.path()));
    let middle = two.synced_to + (end - two.synced_to) / 2;
    for torn_at in [two.synced_to, two.synced_to + 1, middle, end - 1, end] {
        let image = copy(two.power_failed.path());
        cut(&first(image.path()), torn_at);
        let found = rows(image.path()).unwrap_or_else(|error| panic!("torn at {torn_at}: {error}"));
        assert!((SYNCED..two.total).contains(&found), "torn at {torn_at}: {found} rows");
        assert_eq!(found == SYNCED, torn_at < middle, "torn at {torn_at}: {found} rows");
        // It goes on from there.
        let mut disk = RocksDisk::open(image.path()).expect("it was sound before");
        write_row(&mut disk, found, Durability::Synced);
        drop(disk);
        assert_eq!(rows(image.path()), Ok(found + 1), "torn at {torn_at}");
    }
}

#[test]
fn a_log_with_a_hole_is_refused() {
    let two = TwoFiles::make();
    let power_failed: [(&str, fn(&Path, u64)); 4] = [
        ("a file that ends before what was synced", |dir, synced_to| {
            cut(&first(dir), synced_to - 1);
        }),
        ("the first file is empty", |dir, _| cut(&first(dir), 0)),
        ("the first file is missing", |dir, _| {
            std::fs::remove_file(first(dir)).expect("it is there");
        }),
        ("a changed bit in the first file", |dir, synced_to| flip(&first(dir), synced_to / 2)),
    ];
    let synced: [(&str, fn(&Path, u64)); 8] = [
        ("an older file that ends too early", |dir, _| {
            cut(&first(dir), length(&first(dir)) - 1);
        }),
        ("an older file is missing", |dir, _| {
            std::fs::remove_file(first(dir)).expect("it is there");
        }),
        ("a changed bit in an older file", |dir, _| {
            flip(&first(dir), length(&first(dir)) / 2);
        }),
        ("the newest file ends too early", |dir, _| cut(&last(dir), length(&last(dir)) - 1)),
        ("the newest file is empty", |dir, _| cut(&last(dir), 0)),
        ("the newest file is missing", |dir, _| {
            std::fs::remove_file(last(dir)).expect("it is there");
        }),
        ("a changed bit in the newest file", |dir, _| flip(&last(dir), length(&last(dir)) / 2)),
        ("no file of the log", |dir, _| {
            for file in files(dir, "log") {
                std::fs::remove_file(file).expect("it is there");
            }
        }),
    ];
    for (sound, damages) in [(&two.power_failed, &power_failed[..]), (&two.synced, &synced[..])] {
        for (context, damage) in damages {
            let image = copy(sound.path());
            damage(image.path(), two.synced_to);
            assert_refused(image.path(), context);
        }
    }
}

#[test]
fn a_missing_file_is_not_an_empty_database() {
    let dir = closed_database(30);
    assert_eq!(value_or_refusal(copy(dir.path()).path()), Ok(30));
    let mut refused = Vec::new();
    for entry in std::fs::read_dir(dir.path()).expect("the directory can be read") {
        let name = entry.expect("an entry").file_name().into_string().expect("plain names");
        // RocksDB's diary, its options as text, and its lock.
        if ["LOG", "LOCK", "OPTIONS", "IDENTITY"].iter().any(|harmless| name.starts_with(harmless)) {
            continue;
        }
        let image = copy(dir.path());
        std::fs::remove_file(image.path().join(&name)).expect("it is there");
        for attempt in 0..2 {
            let error = value_or_refusal(image.path()).expect_err("a file is missing");
            assert!(error.contains(WAY_OUT), "without {name}, attempt {attempt}: {error}");
        }
        refused.push(name);
    }
    for wanted in ["CURRENT", "SYNCED", "MANIFEST"] {
        assert!(refused.iter().any(|name| name.starts_with(wanted)), "{wanted}: {refused:?}");
    }
}

#[test]
fn a_database_of_an_older_build_gets_its_mark() {
    let dir = closed_database(30);
    // That build kept neither the file nor the record of it.
    std::fs::remove_file(dir.path().join("SYNCED")).expect("it is there");
    let families = ["default", "log", "meta", "state", "state-b"];
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), families).expect("it is sound");
    let meta = db.cf_handle("meta").expect("it is there");
    db.delete_cf(meta, b"marked").expect("the disk works");
    drop(db);
    assert_eq!(value_or_refusal(dir.path()), Ok(30));
    assert!(dir.path().join("SYNCED").exists());
}

/// Every file of a small database, cut and changed in so many places: each takes a few recoveries.
const PLACES: u64 = 16;

#[test]
fn a_file_that_is_cut_or_changed_anywhere_is_refused_or_loses_nothing() {
    let dir = closed_database(40);
    // Once more, so that the first entries are in tables and the others in the log.
    let disk = RocksDisk::open(dir.path()).expect("the database opens");
    let mut node = Node::open(config(1), disk);
    node.process();
    for _ in 0..40 {
        node.commit(add(b"x"));
    }
    let sound = copy(dir.path());
    drop(node);
    let (mut refused, mut harmless) = (0, 0);
    for entry in std::fs::read_dir(sound.path()).expect("the directory can be read") {
        let name = entry.expect("an entry").file_name();
        let text = name.to_string_lossy();
        let size = length(&sound.path().join(&name));
        if size == 0 || ["LOG", "OPTIONS", "IDENTITY"].iter().any(|other| text.starts_with(other)) {
            continue;
        }
        for place in 0..PLACES {
            let at = size * place / PLACES;
            for (what, damage) in [("cut", cut as fn(&Path, u64)), ("changed", flip)] {
                let image = copy(sound.path());
                damage(&image.path().join(&name), at);
                let context = format!("{text} {what} at {at} of {size}");
                match value_or_refusal(image.path()) {
                    Ok(value) => {
                        assert_eq!(value, 80, "{context}: acknowledged entries are missing");
                        harmless += 1;
                    }
                    Err(error) => {
                        assert!(error.contains(WAY_OUT), "{context}: {error}");
                        refused += 1;
                    }
                }
            }
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(refused > 75, "{refused} refused, {harmless} harmless");
}

/// An acknowledged entry cannot be lost by a log whose end was synced and is gone.
#[test]
fn a_log_that_was_synced_further_than_it_goes_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
    Replica::bootstrap(&mut disk, crate::support::identity(1), Vec::new()).expect("an empty disk");
    let mut node = Node::open(config(1), disk);
    node.process();
    let mut before = copy(dir.path());
    for value in 1..=20 {
        node.commit(add(b"x"));
        let after = copy(dir.path());
        assert_eq!(value_or_refusal(copy(after.path()).path()), Ok(value), "a crash loses nothing");
        // The log of the moment before.
        let log = last(after.path());
        let name = log.file_name().expect("a file");
        std::fs::copy(before.path().join(name), &log).expect("copied");
        let error = value_or_refusal(after.path()).expect_err("an acknowledged entry is missing");
        assert!(error.contains(WAY_OUT) && error.contains("were synced"), "{error}");
        before = copy(dir.path());
    }
}
