//! One error enum per operation of this crate.
//!
//! Owns: the words an operator reads when a replica refuses or stops.
//! Invariants: each text says what was attempted and what was found.
//! Must never: be built from a catch-all string of another error without naming the operation.

use crate::config::{ClusterId, MAX_ENTRY_BYTES};

/// A disk operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The storage engine or the kernel refused. After a failed synced write it is unknown what
    /// is durable, and the process must stop.
    #[error("cannot {operation}: {detail}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The engine's words.
        detail: String,
    },
    /// What was read is not what was written.
    #[error("damaged {what}: {detail}")]
    Corrupt {
        /// Which record.
        what: String,
        /// What is wrong with it.
        detail: &'static str,
    },
}

/// The machine cannot go on without diverging from other replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// A row could not be read.
    #[error("cannot read a row")]
    Disk(#[from] DiskError),
    /// The machine does not understand its state or the entry.
    #[error("the state machine cannot go on: {0}")]
    Refused(String),
}

impl MachineError {
    /// The machine cannot go on for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        MachineError::Refused(reason.into())
    }
}

/// A disk could not be bootstrapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// The disk belongs to a cluster already.
    #[error("the data directory already belongs to cluster {cluster}, node {node}")]
    AlreadyBootstrapped {
        /// Its cluster.
        cluster: ClusterId,
        /// Its node.
        node: u64,
    },
    /// The node is 0, not among the voters, or a voter is 0 or named twice.
    #[error(
        "the first voters {voters:?} of node {node} are not distinct, non-zero and with the node"
    )]
    BadVoters {
        /// The bootstrapping node.
        node: u64,
        /// The voters given.
        voters: Vec<u64>,
    },
    /// What is on the disk cannot be read.
    #[error("cannot bootstrap the data directory")]
    Disk(#[from] DiskError),
}

/// A replica could not be opened. Nothing on the disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk is empty.
    #[error("the data directory is empty; bootstrap a cluster or join one first")]
    NotBootstrapped,
    /// Written by a newer build.
    #[error(
        "the data directory has format {found}, this build reads up to {supported}; use the newer build"
    )]
    NewerFormat {
        /// Version on disk.
        found: u32,
        /// Newest version this build reads.
        supported: u32,
    },
    /// Another cluster's disk.
    #[error("the data directory belongs to cluster {found}, not to {expected}")]
    WrongCluster {
        /// On disk.
        found: ClusterId,
        /// In the configuration.
        expected: ClusterId,
    },
    /// Another node's disk.
    #[error("the data directory belongs to node {found}, not to node {expected}")]
    WrongNode {
        /// On disk.
        found: u64,
        /// In the configuration.
        expected: u64,
    },
    /// Entries are missing inside the log.
    #[error(
        "the log has a gap: expected entry {expected}, found {found}; this node lost its vote, rejoin it under a new node id"
    )]
    LogGap {
        /// Index that should follow.
        expected: u64,
        /// Index that follows.
        found: u64,
    },
    /// Entries that were acknowledged are missing at the end of the log.
    #[error(
        "the log ends at {last} but entries up to {needed} were acknowledged; this node lost its vote, rejoin it under a new node id"
    )]
    LogTooShort {
        /// Last entry present.
        last: u64,
        /// Entry that must be there.
        needed: u64,
    },
    /// Records contradict each other.
    #[error("the raft records contradict each other: {0}")]
    Inconsistent(String),
    /// A record is damaged or the disk cannot be read.
    #[error("cannot read the data directory")]
    Disk(#[from] DiskError),
    /// The timing or the limits make no sense to raft.
    #[error("bad replica configuration: {0}")]
    Config(String),
}

/// A message of a peer was refused; nothing changed, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Larger than any replica sends.
    #[error("a peer message of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a message, or one no correct peer would send.
    #[error("malformed peer message: {0}")]
    Malformed(&'static str),
    /// Meant for another node.
    #[error("peer message for node {to} arrived at node {node}")]
    Misdirected {
        /// Addressee.
        to: u64,
        /// This node.
        node: u64,
    },
    /// A reply of a node that is not a member; dropped.
    #[error("node {0} is not a member of the group")]
    UnknownPeer(u64),
    /// The leader knows that this node acknowledged entries which it does not have: its disk
    /// lost them. The node must be stopped and rejoined under a new id.
    #[error(
        "the leader says entry {acknowledged} is stored here, but the log ends at {last}; this node lost its vote"
    )]
    LostLog {
        /// What the leader saw acknowledged.
        acknowledged: u64,
        /// Last entry here.
        last: u64,
    },
    /// The replica stopped earlier.
    #[error("the replica has stopped")]
    Stopped,
}

/// A proposal was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads, or nobody does.
    #[error("this node is not the leader")]
    NotLeader {
        /// The leader if known.
        leader: Option<u64>,
    },
    /// Too much is uncommitted, or leadership is being handed over. Try again later.
    #[error("the replica is busy: too much is uncommitted or leadership is being handed over")]
    Busy,
    /// Over the limit.
    #[error("an entry of {bytes} bytes is over the limit of {MAX_ENTRY_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Empty entries belong to raft.
    #[error("an entry must not be empty")]
    Empty,
    /// The replica stopped earlier.
    #[error("the replica has stopped")]
    Stopped,
}

/// A linearizable read cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead, or has not applied the first entry of its term yet.
    #[error("this node is not the established leader")]
    NotLeader {
        /// The leader if known.
        leader: Option<u64>,
    },
    /// Too many reads wait.
    #[error("too many reads wait for a quorum round")]
    Busy,
    /// The replica stopped earlier.
    #[error("the replica has stopped")]
    Stopped,
}

/// Leadership cannot be handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node is not the leader")]
    NotLeader {
        /// The leader if known.
        leader: Option<u64>,
    },
    /// The other node cannot lead.
    #[error("node {0} is not another voter of the group")]
    NotAVoter(u64),
    /// The replica stopped earlier.
    #[error("the replica has stopped")]
    Stopped,
}

/// The replica stopped. The process must end; a restart reads the disk anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// A write or read failed.
    #[error("the replica's disk failed")]
    Disk(#[from] DiskError),
    /// The machine refused to go on.
    #[error("applying entry {index} failed")]
    Machine {
        /// The entry.
        index: u64,
        /// Why.
        source: MachineError,
    },
    /// The machine changed a row in a table that is reserved.
    #[error("entry {index} changed a row of the reserved table {table}")]
    ReservedTable {
        /// The entry.
        index: u64,
        /// The table.
        table: u8,
    },
    /// The log holds an entry this build cannot apply.
    #[error("entry {index} changes the members of the group, which this build does not do")]
    UnsupportedEntry {
        /// The entry.
        index: u64,
    },
    /// A snapshot that passed its checks on arrival cannot be decoded.
    #[error("the snapshot at entry {index} cannot be decoded")]
    BadSnapshot {
        /// Its last entry.
        index: u64,
    },
    /// An earlier fatal error stopped the replica.
    #[error("the replica has stopped")]
    Stopped,
}
