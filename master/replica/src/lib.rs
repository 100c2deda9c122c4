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
//! `process`, whose [`Progress`] says what to send and what was applied.
//!
//! Absent: changing the members of a running group, and snapshots larger than
//! [`MAX_SNAPSHOT_BYTES`] (a snapshot is one message; a bigger state is reported in
//! [`Status::snapshot_refused`] and the follower that needs it stays behind).

mod boot;
mod codec;
mod config;
pub mod disk;
mod driver;
mod error;
mod inspect;
mod logger;
mod machine;
mod outbox;
mod overlay;
mod proposals;
mod snapshot;
mod storage;
mod validate;

pub use config::{
    ClusterId, ElectionTimeout, Identity, LOG_COMPACT_AFTER_ENTRIES, LOG_KEEP_ENTRIES,
    LOG_MAX_BYTES, Limits, MAX_ENTRY_BYTES, MAX_MESSAGE_BYTES, MAX_PENDING_READS,
    MAX_READIES_PER_PROCESS, MAX_SNAPSHOT_BYTES, MAX_UNCOMMITTED_BYTES, MAX_UNCOMMITTED_ENTRIES,
    ReplicaConfig,
};
pub use disk::{Disk, DiskBatch, Durability, MemDisk, MetaKey, RocksDisk};
pub use driver::Replica;
pub use error::{
    BootstrapError, DiskError, FatalError, MachineError, OpenError, ProposeError, ReadError,
    StepError, TransferError,
};
pub use inspect::{PeerStatus, Role, Status};
pub use machine::{Applied, EntryId, Machine, Progress, RoleChange, RowChange, RowReader};
