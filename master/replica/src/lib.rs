//! The replicated log and state store of the masters.
//!
//! Owns: the raft group member (driven in `driver.rs` and nowhere else), the log, the raft
//! metadata and the machine's rows on one [`Disk`], and the encoding of all of them.
//!
//! Invariants: nothing leaves this replica (message, effect, read) before what it promises is
//! durable; rows, applied index, applied term and commit index change in one atomic batch;
//! a data directory that has a gap, damage, another cluster's id or a newer format is refused
//! and never repaired silently.
//!
//! Must never: know commands, HTTP or tokio; start threads; read a clock. One OS thread owns
//! a [`Replica`] and calls it: inputs (`tick`, `step`, `propose`, `read_index`) first, then one
//! `process_sending`, whose [`Progress`] says what was applied. What it writes is made durable by
//! another thread of the owner ([`WriteJob`]); `on_written` is one more input.
//!
//! Members change one at a time, by entries of the log ([`MemberChange`]). A snapshot is a stream
//! of chunks that is read and written off the owner's thread ([`SnapshotSource`], [`Staging`]);
//! its size is bounded by the disk alone.

mod activity;
mod boot;
mod change;
mod codec;
mod config;
pub mod disk;
mod driver;
mod error;
mod inspect;
mod logger;
mod machine;
mod membership;
mod outbox;
mod overlay;
mod proposals;
mod recent;
mod snapshot;
mod storage;
mod validate;

pub use change::MemberChange;
pub use config::{
    ClusterId, ElectionTimeout, Identity, LOG_COMPACT_AFTER_ENTRIES, LOG_HOLD_ENTRIES,
    LOG_KEEP_ENTRIES, LOG_MAX_BYTES, Limits, MAX_ATTRIBUTES_BYTES, MAX_ENTRY_BYTES, MAX_JOIN_IDS,
    MAX_MEMBERS, MAX_MESSAGE_BYTES, MAX_PENDING_READS, MAX_READIES_PER_PROCESS, MAX_ROW_BYTES,
    MAX_SNAPSHOT_HEADER_BYTES, MAX_UNCOMMITTED_BYTES, MAX_UNCOMMITTED_ENTRIES, ReplicaConfig,
    SNAPSHOT_CHUNK_BYTES, SNAPSHOT_RETRY_TICKS,
};
pub use disk::{
    Disk, DiskBatch, DiskSync, DiskView, Durability, MemDisk, MetaKey, RocksDisk, Row, StageId,
    StageWriter,
};
pub use driver::{Outlet, Replica, WriteJob};
pub use error::{
    BootstrapError, ChangeError, DiskError, FatalError, MachineError, OpenError, ProposeError,
    ReadError, RestoreError, SnapshotError, StepError, TransferError,
};
pub use inspect::{PeerStatus, Role, Status};
pub use machine::{
    Applied, EntryId, Machine, Progress, RoleChange, RowChange, RowReader, SnapshotToSend,
};
pub use membership::{JoinId, Member, MemberRole, Membership, Standing};
pub use snapshot::{Chunk, SnapshotHeader, SnapshotId, SnapshotSource, Staged, Staging};
