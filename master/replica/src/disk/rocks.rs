//! The disk of a real master: one RocksDB with one write-ahead log and four column families.
//!
//! Owns: RocksDB options and keys. Invariants: every batch goes through the write-ahead log; what was
//! synced is marked, so that a database that lost some of it is refused (`opening`).
//! A batch that is not synced ends in a buffer of the write-ahead log: only a sync hands that to the
//! kernel, on the thread that syncs, because a write to a file waits for the fsync of the same file.
//! Must never: write outside a batch, or hold more than a small, bounded part in memory.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rocksdb::Snapshot as DbSnapshot;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::mark::Mark;
use super::{
    Disk, DiskBatch, DiskSync, DiskView, Durability, MetaKey, Row, StageId, StageWriter, not_staged,
    opening, prefix_end, row_key,
};
use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

const LOG: &str = "log";
pub(super) const META: &str = "meta";
/// Rows live in one of two families; the other one takes staged rows. Which one is a meta record,
/// so that adopting staged rows is one small write.
const STATES: [&str; 2] = ["state", "state-b"];
/// Meta record with the number of the family in use; absent in a directory that never adopted any.
const LIVE: &[u8] = b"live_state";

/// Block cache shared by all families: the machine keeps its hot rows in memory itself.
const BLOCK_CACHE_BYTES: usize = 16 * 1024 * 1024;
/// One memtable; two per family can exist.
const WRITE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// One of rows: what is written again before it is full never gets into a file.
const ROWS_BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// All memtables together.
const ALL_WRITE_BUFFERS_BYTES: usize = 48 * 1024 * 1024;
/// Write-ahead log on disk; a rarely written family is flushed rather than pin more of it.
const WAL_BYTES: u64 = 64 * 1024 * 1024;
/// Buffer of the write-ahead log and of other files, which grows up to this. What is written while a
/// sync is under way must fit, or the owner waits for the disk after all: full appends, or tens of milliseconds of
/// small writes. Files of rows reach the disk in pieces of it, each of which a sync may have to wait for.
const FILE_BUFFER_BYTES: u64 = 1024 * 1024;
/// What files of rows may take of the disk in a second, and of that at once in each of these periods. Unbounded, a
/// memtable is on the disk's queue as a whole, and a sync of the log waits for it. It is what writing them takes anyway.
const ROWS_BYTES_PER_SECOND: i64 = 128 * 1024 * 1024;
const ROWS_PERIOD_US: i64 = 5_000;
/// RocksDB's default: how often what is less urgent goes first, one in so many.
const ROWS_FAIRNESS: i32 = 10;
/// RocksDB's own text log, per file.
const INFO_LOG_BYTES: usize = 4 * 1024 * 1024;

/// RocksDB as a [`Disk`].
pub struct RocksDisk {
    shared: Arc<Shared>,
    /// Which of [`STATES`] holds the rows.
    live: usize,
    /// Held by every view as well.
    views: Arc<()>,
}

/// What views, stagings and syncs on other threads need as well.
struct Shared {
    db: DB,
    mark: Mark,
    /// The staging that may still write, and the number of all so far.
    staging: Mutex<(Option<StageId>, u64)>,
}

impl Shared {
    fn family(&self, name: &'static str) -> Result<&ColumnFamily, DiskError> {
        self.db.cf_handle(name).ok_or_else(|| DiskError::Corrupt {
            what: format!("column family {name}"),
            detail: "missing".into(),
        })
    }

    fn staging(&self) -> MutexGuard<'_, (Option<StageId>, u64)> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RocksDB calls what it cannot read back "corruption"; that is damage, not a failing disk.
pub(super) fn io(operation: &'static str) -> impl FnOnce(rocksdb::Error) -> DiskError {
    move |error| match error.kind() {
        rocksdb::ErrorKind::Corruption => DiskError::Corrupt {
            what: format!("database, found on trying to {operation}"),
            detail: error.into_string().into(),
        },
        _ => DiskError::Io {
            operation,
            detail: error.into_string(),
        },
    }
}

/// A file that is named and missing is damage as well; the directory itself is made if need be.
pub(super) fn open_error(error: rocksdb::Error) -> DiskError {
    match io("open the database")(error) {
        DiskError::Io { operation, detail } if detail.contains("No such file") => {
            DiskError::Corrupt {
                what: format!("database, found on trying to {operation}"),
                detail: detail.into(),
            }
        }
        other => other,
    }
}

fn meta_name(key: MetaKey) -> &'static [u8] {
    match key {
        MetaKey::Identity => b"identity",
        MetaKey::HardState => b"hard_state",
        MetaKey::Applied => b"applied",
        MetaKey::Truncated => b"truncated",
        MetaKey::Members => b"members",
    }
}

fn db_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_db_write_buffer_size(ALL_WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(WAL_BYTES);
    options.set_wal_bytes_per_sync(512 * 1024);
    // Files of rows go to the disk piece by piece, so that a sync of the log never waits for a whole one.
    options.set_bytes_per_sync(512 * 1024);
    options.set_ratelimiter(ROWS_BYTES_PER_SECOND, ROWS_PERIOD_US, ROWS_FAIRNESS);
    options.set_manual_wal_flush(true);
    options.set_writable_file_max_buffer_size(FILE_BUFFER_BYTES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(cache: &Cache, rows: bool) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Indexes and filters stay in memory beside the cache, some bytes a row: the filter of a large file is larger than a
    // part of the cache may be, and was read anew for every row that was looked for.
    table.set_cache_index_and_filter_blocks(false);
    if rows {
        table.set_bloom_filter(10.0, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(if rows { ROWS_BUFFER_BYTES } else { WRITE_BUFFER_BYTES });
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(WRITE_BUFFER_BYTES as u64);
    options.set_compression_type(DBCompressionType::None);
    // The log is written once and cut: its files are moved from level to level as they are.
    options.set_bottommost_compression_type(match rows {
        true => DBCompressionType::Lz4,
        false => DBCompressionType::None,
    });
    options
}

impl RocksDisk {
    /// Opens or creates the database in `dir`, which one process may hold at a time.
    ///
    /// # Errors
    /// When the directory cannot be used, is held by another process, is damaged, or holds less than was
    /// synced.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let [one, other] = STATES;
        let families = || {
            [(LOG, false), (META, false), (one, true), (other, true)]
                .map(|(name, rows)| ColumnFamilyDescriptor::new(name, family_options(&cache, rows)))
                .into()
        };
        let (db, mark) = opening::open(dir, db_options(), families)?;
        let shared = Arc::new(Shared {
            db,
            mark,
            staging: Mutex::new((None, 0)),
        });
        let recorded = shared.db.get_cf(shared.family(META)?, LIVE);
        let live = match recorded.map_err(io("read a meta record"))?.as_deref() {
            None | Some([0]) => 0,
            Some([1]) => 1,
            Some(_) => {
                return Err(DiskError::Corrupt {
                    what: "live state record".to_owned(),
                    detail: "it names no family of rows".into(),
                });
            }
        };
        Ok(RocksDisk {
            shared,
            live,
            views: Arc::new(()),
        })
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily, DiskError> {
        self.shared.family(name)
    }

    fn state(&self) -> &'static str {
        STATES[self.live]
    }

    fn idle_state(&self) -> &'static str {
        STATES[1 - self.live]
    }

    /// Empties the family that is not in use. Its files go at once unless a view may read them.
    fn clear_idle(&self) -> Result<(), DiskError> {
        let idle = self.family(self.idle_state())?;
        let cannot = "clear rows that are not in use";
        if Arc::strong_count(&self.views) == 1 {
            let clear = self.shared.db.delete_file_in_range_cf(idle, [0u8], [0xff]);
            clear.map_err(io(cannot))?;
        }
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(idle, [0u8], [0xff]);
        self.shared.db.write(batch).map_err(io(cannot))
    }

    fn add_rows(batch: &mut WriteBatch, state: &ColumnFamily, rows: Vec<RowChange>) {
        for change in rows {
            match change {
                RowChange::Put { table, key, value } => {
                    batch.put_cf(state, row_key(table, &key), value);
                }
                RowChange::Delete { table, key } => batch.delete_cf(state, row_key(table, &key)),
                RowChange::DeletePrefix { table, prefix } => {
                    let start = row_key(table, &prefix);
                    let end = prefix_end(&start).unwrap_or_else(|| vec![0xff]);
                    batch.delete_range_cf(state, start, end);
                }
            }
        }
    }
}

impl RowReader for RocksDisk {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        self.shared
            .db
            .get_cf(self.family(self.state())?, row_key(table, key))
            .map_err(io("read a row"))
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, DiskError> {
        let prefix = row_key(table, prefix);
        let after = after.map(|key| row_key(table, key));
        let start = match &after {
            Some(after) if *after >= prefix => after,
            _ => &prefix,
        };
        let mut read = ReadOptions::default();
        if let Some(end) = prefix_end(&prefix) {
            read.set_iterate_upper_bound(end);
        }
        let mode = IteratorMode::From(start, Direction::Forward);
        let mut rows = Vec::new();
        for item in self
            .shared
            .db
            .iterator_cf_opt(self.family(self.state())?, read, mode)
        {
            if rows.len() >= limit {
                break;
            }
            let (key, value) = item.map_err(io("scan rows"))?;
            if after.as_deref() == Some(&*key) {
                continue;
            }
            if let Some(key) = key.get(1..) {
                rows.push((key.to_vec(), value.into_vec()));
            }
        }
        Ok(rows)
    }
}

self_cell::self_cell!(
    /// A snapshot of the database together with the database it needs.
    struct OwnedSnapshot {
        owner: Arc<Shared>,
        #[covariant]
        dependent: DbSnapshot,
    }
);

struct RocksView {
    snapshot: OwnedSnapshot,
    state: &'static str,
    /// While it lives, no files of rows are removed.
    _view: Arc<()>,
}

impl DiskView for RocksView {
    fn page(&self, after: Option<(u8, &[u8])>, max_bytes: usize) -> Result<Vec<Row>, DiskError> {
        let state = self.snapshot.borrow_owner().family(self.state)?;
        let after = after.map(|(table, key)| row_key(table, key));
        let mode = match &after {
            Some(after) => IteratorMode::From(after, Direction::Forward),
            None => IteratorMode::Start,
        };
        let mut rows = Vec::new();
        let mut bytes = 0;
        for item in self.snapshot.borrow_dependent().iterator_cf(state, mode) {
            let (key, value) = item.map_err(io("read rows for a snapshot"))?;
            let Some((table, rest)) = key.split_first() else {
                continue;
            };
            if after.as_deref() == Some(&*key) {
                continue;
            }
            bytes += key.len() + value.len();
            rows.push((*table, rest.to_vec(), value.into_vec()));
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(rows)
    }
}

struct RocksStage {
    shared: Arc<Shared>,
    id: StageId,
    state: &'static str,
}

impl StageWriter for RocksStage {
    fn put(&mut self, rows: Vec<Row>) -> Result<bool, DiskError> {
        // Held while writing: rows of an old staging must not follow the clearing for a new one.
        let staging = self.shared.staging();
        if staging.0 != Some(self.id) {
            return Ok(false);
        }
        let state = self.shared.family(self.state)?;
        let mut batch = WriteBatch::default();
        for (table, key, value) in rows {
            batch.put_cf(state, row_key(table, &key), value);
        }
        self.shared.db.write(batch).map_err(io("stage rows"))?;
        Ok(true)
    }
}

impl Disk for RocksDisk {
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let shared = Arc::clone(&self.shared);
        let mut live = self.live;
        let mut write = WriteBatch::default();
        let meta = shared.family(META)?;
        if let Some(adopted) = batch.adopt {
            let mut staging = shared.staging();
            if staging.0 != Some(adopted) {
                return Err(not_staged());
            }
            staging.0 = None;
            live = 1 - live;
            write.put_cf(meta, LIVE, [u8::from(live == 1)]);
        }
        let (log, state) = (shared.family(LOG)?, shared.family(STATES[live])?);
        for (key, value) in batch.meta {
            write.put_cf(meta, meta_name(key), value);
        }
        for range in batch.log_remove {
            write.delete_range_cf(log, range.start.to_be_bytes(), range.end.to_be_bytes());
        }
        for (index, record) in batch.log_put {
            write.put_cf(log, index.to_be_bytes(), record);
        }
        Self::add_rows(&mut write, state, batch.rows);
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        // Rows that are staged meanwhile may come between the two.
        let at_least = shared.db.latest_sequence_number() + write.len() as u64;
        shared
            .db
            .write_opt(write, &options)
            .map_err(io("write a batch"))?;
        if durability == Durability::Synced {
            shared.mark.advance(at_least)?;
        }
        drop(shared);
        if live != self.live {
            self.live = live;
            self.clear_idle()?;
        }
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn DiskView>, DiskError> {
        let snapshot = OwnedSnapshot::new(Arc::clone(&self.shared), |shared| shared.db.snapshot());
        Ok(Box::new(RocksView {
            snapshot,
            state: self.state(),
            _view: Arc::clone(&self.views),
        }))
    }

    fn stage(&mut self) -> Result<(StageId, Box<dyn StageWriter>), DiskError> {
        let id = {
            let mut staging = self.shared.staging();
            staging.1 += 1;
            let id = StageId(staging.1);
            staging.0 = Some(id);
            self.clear_idle()?;
            id
        };
        let writer = RocksStage {
            shared: Arc::clone(&self.shared),
            id,
            state: self.idle_state(),
        };
        Ok((id, Box::new(writer)))
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        self.shared
            .db
            .get_cf(self.family(META)?, meta_name(key))
            .map_err(io("read a meta record"))
    }

    fn log_read(
        &self,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, DiskError> {
        let mut records = Vec::new();
        if range.is_empty() {
            return Ok(records);
        }
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(range.end.to_be_bytes().to_vec());
        let start = range.start.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut bytes = 0;
        for item in self
            .shared
            .db
            .iterator_cf_opt(self.family(LOG)?, read, mode)
        {
            let (key, record) = item.map_err(io("read the log"))?;
            bytes += record.len() as u64;
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            let key = <[u8; 8]>::try_from(&*key).map_err(|_| DiskError::Corrupt {
                what: "log key".to_owned(),
                detail: "not eight bytes long".into(),
            })?;
            records.push((u64::from_be_bytes(key), record.into_vec()));
        }
        Ok(records)
    }

    fn syncer(&self) -> Box<dyn DiskSync> {
        Box::new(RocksSync(Arc::clone(&self.shared)))
    }
}

struct RocksSync(Arc<Shared>);

impl DiskSync for RocksSync {
    fn sync(&mut self) -> Result<(), DiskError> {
        let written = self.0.db.latest_sequence_number();
        let synced = self.0.db.flush_wal(true);
        synced.map_err(io("sync the write-ahead log"))?;
        self.0.mark.advance(written)
    }

    fn reclaim_log(&mut self, below: u64) -> Result<(), DiskError> {
        let log = self.0.family(LOG)?;
        // The range is inclusive at its end.
        let last = below.saturating_sub(1).to_be_bytes();
        self.0
            .db
            .delete_file_in_range_cf(log, 0u64.to_be_bytes(), last)
            .map_err(io("reclaim log files"))
    }
}
