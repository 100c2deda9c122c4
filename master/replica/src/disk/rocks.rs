//! The disk of a real master: one RocksDB with one write-ahead log and three column families.
//!
//! Owns: RocksDB options and keys. Invariants: every batch goes through the write-ahead log;
//! recovery accepts a torn last record only, so that a damaged middle is found, not skipped.
//! Must never: write outside a batch, or hold more than a small, bounded part in memory.

use std::ops::Range;
use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::{Disk, DiskBatch, Durability, MetaKey, prefix_end, row_key};
use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

const LOG: &str = "log";
const META: &str = "meta";
const STATE: &str = "state";

/// Block cache shared by all families: the machine keeps its hot rows in memory itself.
const BLOCK_CACHE_BYTES: usize = 16 * 1024 * 1024;
/// One memtable; two per family can exist.
const WRITE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// All memtables together.
const ALL_WRITE_BUFFERS_BYTES: usize = 32 * 1024 * 1024;
/// Write-ahead log on disk; a rarely written family is flushed rather than pin more of it.
const WAL_BYTES: u64 = 64 * 1024 * 1024;
/// RocksDB's own text log, per file.
const INFO_LOG_BYTES: usize = 4 * 1024 * 1024;

/// RocksDB as a [`Disk`].
pub struct RocksDisk {
    db: DB,
}

fn io(operation: &'static str) -> impl FnOnce(rocksdb::Error) -> DiskError {
    move |error| DiskError::Io {
        operation,
        detail: error.into_string(),
    }
}

fn meta_name(key: MetaKey) -> &'static [u8] {
    match key {
        MetaKey::Identity => b"identity",
        MetaKey::HardState => b"hard_state",
        MetaKey::Applied => b"applied",
        MetaKey::Truncated => b"truncated",
    }
}

fn db_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_db_write_buffer_size(ALL_WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(WAL_BYTES);
    options.set_wal_bytes_per_sync(512 * 1024);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(cache: &Cache, bloom: bool) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    if bloom {
        table.set_bloom_filter(10.0, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(WRITE_BUFFER_BYTES as u64);
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::Lz4);
    options
}

impl RocksDisk {
    /// Opens or creates the database in `dir`, which one process may hold at a time.
    ///
    /// # Errors
    /// When the directory cannot be used, is held by another process, or its write-ahead log
    /// is damaged before its end.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let families = [(LOG, false), (META, false), (STATE, true)]
            .map(|(name, bloom)| ColumnFamilyDescriptor::new(name, family_options(&cache, bloom)));
        let db = DB::open_cf_descriptors(&db_options(), dir, families)
            .map_err(io("open the database"))?;
        Ok(RocksDisk { db })
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily, DiskError> {
        self.db.cf_handle(name).ok_or_else(|| DiskError::Corrupt {
            what: format!("column family {name}"),
            detail: "missing",
        })
    }

    fn add_rows(batch: &mut WriteBatch, state: &ColumnFamily, clear: bool, rows: Vec<RowChange>) {
        if clear {
            batch.delete_range_cf(state, [0u8], [0xff]);
        }
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
        self.db
            .get_cf(self.family(STATE)?, row_key(table, key))
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
        for item in self.db.iterator_cf_opt(self.family(STATE)?, read, mode) {
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

impl Disk for RocksDisk {
    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        let (log, meta, state) = (self.family(LOG)?, self.family(META)?, self.family(STATE)?);
        let mut write = WriteBatch::default();
        for (key, value) in batch.meta {
            write.put_cf(meta, meta_name(key), value);
        }
        for range in batch.log_remove {
            write.delete_range_cf(log, range.start.to_be_bytes(), range.end.to_be_bytes());
        }
        for (index, record) in batch.log_put {
            write.put_cf(log, index.to_be_bytes(), record);
        }
        Self::add_rows(&mut write, state, batch.rows_clear, batch.rows);
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        self.db
            .write_opt(write, &options)
            .map_err(io("write a batch"))
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, DiskError> {
        self.db
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
        for item in self.db.iterator_cf_opt(self.family(LOG)?, read, mode) {
            let (key, record) = item.map_err(io("read the log"))?;
            bytes += record.len() as u64;
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            let key = <[u8; 8]>::try_from(&*key).map_err(|_| DiskError::Corrupt {
                what: "log key".to_owned(),
                detail: "not eight bytes long",
            })?;
            records.push((u64::from_be_bytes(key), record.into_vec()));
        }
        Ok(records)
    }

    fn reclaim_log(&mut self, below: u64) -> Result<(), DiskError> {
        let log = self.family(LOG)?;
        // The range is inclusive at its end.
        let last = below.saturating_sub(1).to_be_bytes();
        self.db
            .delete_file_in_range_cf(log, 0u64.to_be_bytes(), last)
            .map_err(io("reclaim log files"))
    }
}
