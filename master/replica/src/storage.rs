//! The log as raft sees it, on top of a [`Disk`].
//!
//! Owns: the disk, the term and size of every entry of the log, a cache of recent entries and one of
//! rows, and the batches that persist entries, apply rows, install a snapshot and cut the log.
//! Invariants: memory equals what a restart would load once all that is written is synced; the
//! log is contiguous from `truncated.index + 1`; entries and hard state of one ready are one
//! batch; rows and the applied record are one batch, which follows the entries that it is for.
//! Must never: decide anything about consensus.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::codec::{self, AppliedRecord, HardStateRecord};
use crate::config::{ENTRY_CACHE_BYTES, Identity, Limits};
use crate::disk::{Disk, DiskBatch, Durability, MetaKey, StageId};
use crate::error::DiskError;
use crate::machine::{EntryId, RowChange, RowReader};
use crate::membership::Group;
use crate::recent::Recent;
use crate::snapshot::{SnapshotHeader, SnapshotId, SnapshotSource};

/// What is remembered of each entry of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub term: u64,
    pub bytes: u64,
}

/// What `boot` found on the disk.
pub(crate) struct Loaded {
    pub hard: HardStateRecord,
    pub applied: EntryId,
    pub group: Group,
    pub truncated: EntryId,
    pub slots: VecDeque<Slot>,
}

/// Raft's storage.
pub(crate) struct LogStore<D> {
    disk: D,
    initial: HardStateRecord,
    /// The newest term on the disk.
    term: u64,
    applied: EntryId,
    identity: Identity,
    group: Group,
    truncated: EntryId,
    slots: VecDeque<Slot>,
    log_bytes: u64,
    /// The newest entries of the log, without gaps up to its end.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    limits: Limits,
    syncs: u64,
    /// Snapshots that raft was given and the driver has not handed out yet, by peer.
    sources: RefCell<BTreeMap<u64, SnapshotSource>>,
    /// Snapshots made since this store was opened.
    made: Cell<u64>,
    read_error: RefCell<Option<DiskError>>,
    recent: RefCell<Recent>,
}

impl<D: Disk> LogStore<D> {
    pub(crate) fn new(disk: D, identity: Identity, loaded: Loaded, limits: Limits) -> Self {
        let log_bytes = loaded.slots.iter().map(|slot| slot.bytes).sum();
        LogStore {
            disk,
            initial: loaded.hard,
            term: loaded.hard.term,
            applied: loaded.applied,
            identity,
            group: loaded.group,
            truncated: loaded.truncated,
            slots: loaded.slots,
            log_bytes,
            cache: VecDeque::new(),
            cache_bytes: 0,
            limits,
            syncs: 0,
            sources: RefCell::new(BTreeMap::new()),
            made: Cell::new(0),
            read_error: RefCell::new(None),
            recent: RefCell::default(),
        }
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    pub(crate) fn applied(&self) -> EntryId {
        self.applied
    }

    pub(crate) fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    pub(crate) fn first(&self) -> u64 {
        self.truncated.index + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.truncated.index + self.slots.len() as u64
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs
    }

    /// A sync that was done elsewhere.
    pub(crate) fn note_sync(&mut self) {
        self.syncs += 1;
    }

    /// Term and vote as they were when the disk was opened.
    pub(crate) fn first_vote(&self) -> (u64, u64) {
        (self.initial.term, self.initial.vote)
    }

    /// Snapshots that were made for followers and not handed out are for nobody now.
    pub(crate) fn drop_sources(&self) {
        self.sources.borrow_mut().clear();
    }

    pub(crate) fn put_source(&self, peer: u64, source: SnapshotSource) {
        self.sources.borrow_mut().insert(peer, source);
    }

    /// The rows of the snapshot that raft was given for `peer`.
    pub(crate) fn take_source(&self, peer: u64) -> Option<SnapshotSource> {
        self.sources.borrow_mut().remove(&peer)
    }

    /// A read that failed inside raft, where it could not be reported.
    pub(crate) fn take_read_error(&self) -> Option<DiskError> {
        self.read_error.borrow_mut().take()
    }

    fn write(&mut self, batch: DiskBatch, durability: Durability) -> Result<(), DiskError> {
        self.disk.write(batch, durability)?;
        if durability == Durability::Synced {
            self.syncs += 1;
        }
        Ok(())
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        let offset = usize::try_from(index.checked_sub(self.first())?).ok()?;
        self.slots.get(offset).map(|slot| slot.term)
    }

    /// Writes entries and hard state of one ready, replacing the log from the first of `entries`
    /// on.
    pub(crate) fn persist(
        &mut self,
        entries: Vec<Entry>,
        hard: Option<HardStateRecord>,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let mut batch = DiskBatch::default();
        if let Some(hard) = &hard {
            batch
                .meta
                .push((MetaKey::HardState, codec::encode_hard_state(hard)));
        }
        let old_end = self.last() + 1;
        let start = entries.first().map_or(old_end, |entry| entry.index);
        if start > old_end || start < self.first() {
            return Err(DiskError::Corrupt {
                what: format!("log entry {start}"),
                detail: "raft appended outside the log".into(),
            });
        }
        if start < old_end {
            batch.log_remove.push(start..old_end);
        }
        let records = entries
            .iter()
            .map(|entry| (entry.index, codec::encode_entry(entry)));
        batch.log_put = records.collect();
        let sizes: Vec<u64> = batch
            .log_put
            .iter()
            .map(|(_, record)| record.len() as u64)
            .collect();
        self.write(batch, durability)?;
        self.term = hard.map_or(self.term, |hard| hard.term);
        self.drop_suffix(start);
        for (entry, bytes) in entries.into_iter().zip(sizes) {
            self.log_bytes += bytes;
            self.slots.push_back(Slot {
                term: entry.term,
                bytes,
            });
            self.cache_bytes += entry.data.len();
            self.cache.push_back(entry);
        }
        self.trim_cache();
        Ok(())
    }

    fn drop_suffix(&mut self, start: u64) {
        while self.last() >= start
            && let Some(slot) = self.slots.pop_back()
        {
            self.log_bytes -= slot.bytes;
        }
        while let Some(entry) = self.cache.pop_back_if(|entry| entry.index >= start) {
            self.cache_bytes -= entry.data.len();
        }
    }

    /// Bytes of entries in memory: those that are not applied yet, and a few before them.
    pub(crate) const fn cached_bytes(&self) -> usize {
        self.cache_bytes
    }

    fn trim_cache(&mut self) {
        let applied = self.applied.index;
        while self.cache_bytes > ENTRY_CACHE_BYTES
            && let Some(entry) = self.cache.pop_front_if(|entry| entry.index <= applied)
        {
            self.cache_bytes -= entry.data.len();
        }
    }

    fn applied_record(&self, applied: EntryId, commit: EntryId) -> (MetaKey, Vec<u8>) {
        let record = AppliedRecord {
            applied,
            commit,
            conf: self.group.conf.clone(),
        };
        (MetaKey::Applied, codec::encode_applied(&record))
    }

    fn members_record(&self) -> (MetaKey, Vec<u8>) {
        let record = codec::encode_members(&self.group.membership);
        (MetaKey::Members, record)
    }

    /// Writes the rows of all entries up to `applied`, and the group if they changed it. Rows alone
    /// are not synced: the log replays them. A changed group is: this node refuses a removed one
    /// from now on, which then takes the removal to be settled and goes.
    pub(crate) fn apply(
        &mut self,
        rows: Vec<RowChange>,
        applied: EntryId,
        commit_index: u64,
        group: Option<Group>,
    ) -> Result<(), DiskError> {
        let index = commit_index.min(self.last());
        let commit = match self.term_at(index) {
            Some(term) if index > applied.index => EntryId { term, index },
            _ => applied,
        };
        let changed = group.is_some();
        if let Some(group) = group {
            self.group = group;
        }
        let mut meta = vec![self.applied_record(applied, commit)];
        if changed {
            meta.push(self.members_record());
        }
        self.recent.get_mut().change(&rows);
        self.write(
            DiskBatch {
                meta,
                rows,
                ..DiskBatch::default()
            },
            if changed {
                Durability::Synced
            } else {
                Durability::Unsynced
            },
        )?;
        self.applied = applied;
        self.trim_cache();
        Ok(())
    }

    /// Replaces everything by the staged rows of a snapshot, in one synced write. A crash before it
    /// leaves the old state, a crash after it the new one.
    pub(crate) fn install(
        &mut self,
        header: &SnapshotHeader,
        staged: StageId,
        hard: HardStateRecord,
    ) -> Result<(), DiskError> {
        let id = header.position;
        self.group = header.group.clone();
        // Entries after the snapshot follow in a batch of their own; until then the log ends here.
        let hard = HardStateRecord {
            commit: id.index,
            ..hard
        };
        let batch = DiskBatch {
            meta: vec![
                (MetaKey::HardState, codec::encode_hard_state(&hard)),
                (MetaKey::Truncated, codec::encode_truncated(id)),
                self.applied_record(id, id),
                self.members_record(),
            ],
            log_remove: vec![0..u64::MAX],
            adopt: Some(staged),
            ..DiskBatch::default()
        };
        self.recent.get_mut().clear();
        self.write(batch, Durability::Synced)?;
        self.term = hard.term;
        self.truncated = id;
        self.applied = id;
        self.slots.clear();
        self.log_bytes = 0;
        self.cache.clear();
        self.cache_bytes = 0;
        Ok(())
    }

    /// Where the log should be cut now, if at all; not above `needed`, what a peer still has to
    /// get, unless the log has grown beyond what is held for one.
    fn compaction_target(&self, needed: Option<u64>) -> Option<u64> {
        let applied = self.applied.index;
        let count = applied - self.truncated.index;
        let too_long = count >= self.limits.log_compact_after_entries;
        if !too_long && self.log_bytes <= self.limits.log_max_bytes {
            return None;
        }
        let by_count = applied.saturating_sub(self.limits.log_keep_entries);
        let mut by_bytes = self.truncated.index;
        let mut bytes = self.log_bytes;
        if bytes > self.limits.log_max_bytes {
            for slot in &self.slots {
                if bytes <= self.limits.log_max_bytes / 2 {
                    break;
                }
                bytes -= slot.bytes;
                by_bytes += 1;
            }
        }
        let held = needed
            .unwrap_or(u64::MAX)
            .max(applied.saturating_sub(self.limits.log_hold_entries));
        let target = by_count.min(held).max(by_bytes).min(applied);
        Some(target).filter(|target| *target > self.truncated.index)
    }

    /// Cuts applied entries off the front of the log when it has grown long. Gives back the index
    /// below which the disk may reclaim space once the cut is synced, which makes every apply below
    /// it durable as well.
    pub(crate) fn compact(&mut self, needed: Option<u64>) -> Result<Option<u64>, DiskError> {
        let Some(index) = self.compaction_target(needed) else {
            return Ok(None);
        };
        let Some(term) = self.term_at(index) else {
            return Ok(None);
        };
        let truncated = EntryId { term, index };
        let batch = DiskBatch {
            meta: vec![(MetaKey::Truncated, codec::encode_truncated(truncated))],
            log_remove: vec![0..index + 1],
            ..DiskBatch::default()
        };
        self.write(batch, Durability::Unsynced)?;
        while self.first() <= index
            && let Some(slot) = self.slots.pop_front()
        {
            self.log_bytes -= slot.bytes;
            self.truncated.index += 1;
        }
        self.truncated = truncated;
        while let Some(entry) = self.cache.pop_front_if(|entry| entry.index <= index) {
            self.cache_bytes -= entry.data.len();
        }
        Ok(Some(index + 1))
    }

    fn read_entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, DiskError> {
        let cache_start = self
            .cache
            .front()
            .map_or(self.last() + 1, |entry| entry.index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let disk_end = high.min(cache_start);
        if low < disk_end {
            for (index, record) in self.disk.log_read(low..disk_end, max_bytes)? {
                if index != low + entries.len() as u64 {
                    let what = format!("log entry {}", low + entries.len() as u64);
                    return Err(DiskError::Corrupt {
                        what,
                        detail: "missing".into(),
                    });
                }
                bytes += record.len() as u64;
                entries.push(codec::decode_entry(index, &record)?);
            }
            if entries.is_empty() {
                let what = format!("log entry {low}");
                return Err(DiskError::Corrupt {
                    what,
                    detail: "missing".into(),
                });
            }
        }
        let next = low + entries.len() as u64;
        if next < cache_start {
            return Ok(entries);
        }
        let skip = usize::try_from(next - cache_start).unwrap_or(usize::MAX);
        for entry in self
            .cache
            .iter()
            .skip(skip)
            .take_while(|entry| entry.index < high)
        {
            bytes += entry.data.len() as u64;
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    /// The state as it is now, to be read on another thread. Takes no longer for a larger state.
    pub(crate) fn source(&self) -> Result<SnapshotSource, DiskError> {
        self.made.set(self.made.get() + 1);
        let header = SnapshotHeader {
            cluster: self.identity.cluster,
            id: SnapshotId {
                node: self.identity.node,
                term: self.term,
                number: self.made.get(),
            },
            position: self.applied,
            group: self.group.clone(),
        };
        Ok(SnapshotSource::new(header, self.disk.view()?))
    }
}

/// The rows as they are on the disk.
impl<D: Disk> RowReader for LogStore<D> {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        if let Some(known) = self.recent.borrow_mut().get(table, key) {
            return Ok(known);
        }
        let value = self.disk.get(table, key)?;
        self.recent.borrow_mut().note(table, key, value.as_deref());
        Ok(value)
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

impl<D: Disk> Storage for LogStore<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let HardStateRecord { term, vote, commit } = self.initial;
        let hard = HardState { term, vote, commit };
        Ok(RaftState::new(hard, self.group.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        self.read_entries(low, high, max_bytes).map_err(|error| {
            let as_raft = if context.can_async() {
                StorageError::LogTemporarilyUnavailable
            } else {
                StorageError::Other(Box::new(error.clone()))
            };
            *self.read_error.borrow_mut() = Some(error);
            as_raft.into()
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.truncated.index {
            return Err(StorageError::Compacted.into());
        }
        self.term_at(index)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if self.applied.index < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let source = match self.source() {
            Ok(source) => source,
            Err(error) => {
                *self.read_error.borrow_mut() = Some(error);
                return Err(StorageError::SnapshotTemporarilyUnavailable.into());
            }
        };
        let mut snapshot = Snapshot {
            data: source.header_bytes().to_vec(),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.index;
        metadata.term = self.applied.term;
        metadata.set_conf_state(self.group.conf.clone());
        self.sources.borrow_mut().insert(to, source);
        Ok(snapshot)
    }
}
