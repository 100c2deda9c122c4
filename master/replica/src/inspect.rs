//! What a replica tells about itself.
//!
//! Owns: the status types. Invariants: a status is a copy; taking it changes nothing.
//! Must never: expose a raft type.

use crate::machine::EntryId;
use crate::membership::MemberRole;

/// Part in the group at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads, but the first entry of its term is not applied yet.
    LeaderElect,
    /// Leads; [`crate::RoleChange::BecameLeader`] was reported.
    Leader,
}

/// A peer as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// Node id.
    pub node: u64,
    /// Its part.
    pub role: MemberRole,
    /// Last entry known to be durable there.
    pub matched: u64,
    /// It answered within the last election timeout.
    pub recently_active: bool,
    /// It needs a snapshot before it can follow the log.
    pub needs_snapshot: bool,
}

/// State of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: u64,
    /// Its part.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// The leader if known.
    pub leader: Option<u64>,
    /// Last entry known to be committed.
    pub commit_index: u64,
    /// Last entry applied, rows written.
    pub applied: EntryId,
    /// First entry still in the log.
    pub first_index: u64,
    /// Last entry in the log.
    pub last_index: u64,
    /// Size of the log records, in bytes.
    pub log_bytes: u64,
    /// Voting members. While one is being replaced, those that will vote.
    pub voters: Vec<u64>,
    /// Members that only receive.
    pub learners: Vec<u64>,
    /// Other members, if this node leads.
    pub peers: Vec<PeerStatus>,
    /// Proposals of this node whose fate is open.
    pub open_proposals: usize,
    /// Bytes proposed and not committed.
    pub uncommitted_bytes: usize,
    /// Synced writes since the replica was opened.
    pub syncs: u64,
    /// This node was removed from the group; it stops when most of the others know of it.
    pub removed: bool,
}
