//! One error enum per operation of this crate.
//!
//! Owns: the words an operator reads when a replica refuses or stops.
//! Invariants: each text says what was attempted and what was found.
//! Must never: be built from a catch-all string of another error without naming the operation.

use std::borrow::Cow;

use crate::config::{ClusterId, MAX_ATTRIBUTES_BYTES, MAX_ENTRY_BYTES, MAX_MEMBERS, MAX_ROW_BYTES};
use crate::machine::EntryId;

/// What to do with a data directory that lost something: its node id must not come back.
const REJOIN: &str = "remove the directory and start with --join: it comes back under a new id \
                      (the only master of a cluster: restore a saved snapshot instead)";

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
    #[error("damaged {what}: {detail}; {REJOIN}")]
    Corrupt {
        /// Which record.
        what: String,
        /// What is wrong with it.
        detail: Cow<'static, str>,
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
    /// A member says more of itself than is kept.
    #[error("a member says {bytes} bytes of itself, over the limit of {MAX_ATTRIBUTES_BYTES}")]
    AttributesTooLarge {
        /// How much.
        bytes: usize,
    },
    /// The disk was written by a newer build.
    #[error("the data directory was written by a newer build")]
    NewerFormat,
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
    #[error(
        "the data directory is empty; make a new cluster in it with `tessera operator init`, or start with --join to join one"
    )]
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
        "the log has a gap: expected entry {expected}, found {found}; this node lost its vote: {REJOIN}"
    )]
    LogGap {
        /// Index that should follow.
        expected: u64,
        /// Index that follows.
        found: u64,
    },
    /// Entries that were acknowledged are missing at the end of the log.
    #[error(
        "the log ends at {last} but entries up to {needed} were acknowledged; this node lost its vote: {REJOIN}"
    )]
    LogTooShort {
        /// Last entry present.
        last: u64,
        /// Entry that must be there.
        needed: u64,
    },
    /// Records contradict each other.
    #[error("the raft records contradict each other: {0}; {REJOIN}")]
    Inconsistent(String),
    /// A record is damaged.
    #[error("the data directory cannot be used: {0}")]
    Damaged(DiskError),
    /// The disk cannot be read.
    #[error("cannot read the data directory")]
    Disk(#[source] DiskError),
    /// The timing or the limits make no sense to raft.
    #[error("bad replica configuration: {0}")]
    Config(String),
}

impl From<DiskError> for OpenError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Corrupt { .. } => OpenError::Damaged(error),
            DiskError::Io { .. } => OpenError::Disk(error),
        }
    }
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
    /// From a node that was removed from the group.
    #[error("node {0} was removed from the group")]
    RemovedPeer(u64),
    /// A snapshot whose rows were not staged first, or others were.
    #[error("the rows of the snapshot are not staged here")]
    NotStaged,
    /// A snapshot that does not reach beyond what is applied here.
    #[error("the snapshot ends at {offered}, and {applied} is applied here")]
    NotNeeded {
        /// Where it ends.
        offered: EntryId,
        /// What is applied.
        applied: EntryId,
    },
    /// Another snapshot is being installed.
    #[error("another snapshot is being installed")]
    Installing,
    /// The rows cannot be staged.
    #[error("cannot stage the rows of a snapshot")]
    Disk(#[from] DiskError),
    /// The leader knows that this node acknowledged entries which it does not have: its disk
    /// lost them. The node must be stopped and rejoined under a new id.
    #[error(
        "the leader says entry {acknowledged} is stored here, but the log ends at {last}; this node lost its vote: {REJOIN}"
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

/// A change of the members was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead, or has not applied the first entry of its term yet.
    #[error("this node is not the established leader")]
    NotLeader {
        /// The leader if known.
        leader: Option<u64>,
    },
    /// Another change is under way, or leadership is being handed over.
    #[error("another change of the members is not finished; try again when it is")]
    InProgress,
    /// The id was used before or is not the next one.
    #[error("node {node} cannot be added: ids are never used again, and the next one is {next}")]
    WrongNodeId {
        /// The id given.
        node: u64,
        /// The id that can be added.
        next: u64,
    },
    /// The group is full.
    #[error("the group has {MAX_MEMBERS} members, which is the limit; remove one first")]
    TooManyMembers,
    /// A member says more of itself than is kept.
    #[error("a member says {bytes} bytes of itself, over the limit of {MAX_ATTRIBUTES_BYTES}")]
    AttributesTooLarge {
        /// How much.
        bytes: usize,
    },
    /// There is no such member.
    #[error("node {0} is not a member of the group")]
    NotAMember(u64),
    /// It was one.
    #[error("node {0} was removed from the group already")]
    Removed(u64),
    /// Only learners are promoted.
    #[error("node {0} is a voter already")]
    AlreadyVoter(u64),
    /// Only voters are replaced.
    #[error("node {0} is a learner, and only voters are replaced; remove it instead")]
    NotAVoter(u64),
    /// The learner is not heard from.
    #[error("node {0} has not answered lately; see that it runs and is reachable")]
    NotActive(u64),
    /// The learner's log is too short.
    #[error(
        "node {node} holds entries up to {matched} of {last}; promote it when it has caught up"
    )]
    NotCaughtUp {
        /// The learner.
        node: u64,
        /// The last entry it holds.
        matched: u64,
        /// The last entry here.
        last: u64,
    },
    /// The group would be gone.
    #[error("node {0} is the only voter; add another one before it is removed")]
    LastVoter(u64),
    /// A leader does not remove itself: nobody would be sure to learn of it.
    #[error("node {0} leads; hand leadership to another voter first and ask that one")]
    RemovesLeader(u64),
    /// Too few of the voters after the change answer now.
    #[error(
        "of the {voters} voters after this change {active} answer now and {needed} are needed; start the others, or remove those that are gone first"
    )]
    NoQuorum {
        /// Voters after the change.
        voters: usize,
        /// Those heard from now.
        active: usize,
        /// The quorum.
        needed: usize,
    },
    /// Not possible with these members.
    #[error("the change does not fit the members: {0}")]
    DoesNotFit(&'static str),
    /// The replica stopped earlier.
    #[error("the replica has stopped")]
    Stopped,
}

/// The bytes of a snapshot were refused. What was staged is of no use, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A piece that does not follow what is staged; go on from `expected`.
    #[error("a piece of the snapshot starts at {offset}, but {expected} bytes are staged")]
    WrongOffset {
        /// Where the piece starts.
        offset: u64,
        /// Where the next piece must start.
        expected: u64,
    },
    /// The snapshot is not over yet; go on from `staged`.
    #[error("the snapshot ends early: {staged} bytes are staged")]
    Incomplete {
        /// Bytes staged.
        staged: u64,
    },
    /// Not a snapshot, or damaged.
    #[error("damaged snapshot: {0}")]
    Damaged(&'static str),
    /// Written by a newer build.
    #[error("the snapshot has format {found}, this build reads {supported}; use the newer build")]
    NewerFormat {
        /// Its version.
        found: u8,
        /// The version this build reads.
        supported: u8,
    },
    /// A row claims to be larger than any can be.
    #[error("damaged snapshot: a row of {bytes} bytes is over the limit of {MAX_ROW_BYTES}")]
    RowTooLarge {
        /// What it claims.
        bytes: u64,
    },
    /// Another snapshot is being staged instead.
    #[error("the staging was given up for another snapshot")]
    Superseded,
    /// The disk failed.
    #[error("cannot stage the rows of a snapshot")]
    Disk(#[from] DiskError),
}

/// A saved snapshot could not be restored into a new cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The disk belongs to a cluster.
    #[error(
        "the data directory belongs to cluster {cluster}, node {node}; a snapshot is restored into an empty directory only"
    )]
    NotEmpty {
        /// Its cluster.
        cluster: ClusterId,
        /// Its node.
        node: u64,
    },
    /// The new cluster has the id of the old one.
    #[error("a restored cluster needs a new id, and {0} is that of the snapshot")]
    SameCluster(ClusterId),
    /// The snapshot was refused.
    #[error("the snapshot cannot be restored")]
    Snapshot(#[from] SnapshotError),
    /// The members of the new cluster make no sense.
    #[error("the new cluster cannot be made")]
    Bootstrap(#[from] BootstrapError),
    /// The disk failed.
    #[error("cannot restore into the data directory")]
    Disk(#[from] DiskError),
}

/// The replica stopped. The process must end; a restart reads the disk anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// A write or read failed.
    #[error("its disk failed: {0}; nothing that was acknowledged is lost: start it again when the disk is well and has room")]
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
    #[error("entry {index} is of a kind that this build does not know; use the newer build")]
    UnsupportedEntry {
        /// The entry.
        index: u64,
    },
    /// Raft and the member list disagree on what an entry does.
    #[error("raft and the member list disagree on what entry {index} does")]
    MembersDisagree {
        /// The entry.
        index: u64,
    },
    /// Raft took a snapshot whose rows are not staged.
    #[error("the rows of the snapshot at entry {index} are not staged")]
    BadSnapshot {
        /// Its last entry.
        index: u64,
    },
    /// This node was removed from the group; the end is a regular one.
    #[error("node {node} was removed from cluster {cluster}; to bring this master back, {REJOIN}")]
    Removed {
        /// The cluster.
        cluster: ClusterId,
        /// This node.
        node: u64,
    },
    /// An earlier fatal error stopped the replica.
    #[error("the replica has stopped")]
    Stopped,
}
