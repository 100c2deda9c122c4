//! Identity, limits and timing of a replica.
//!
//! Owns: every bound of this crate, each with its reason, and the raft configuration made
//! from them. Invariants: values that raft-rs would reject are found by `raft_config`.
//! Must never: read a file or the environment.

use std::fmt;

/// Largest entry that can be proposed. TiKV's value; an entry must fit one message to a peer.
pub const MAX_ENTRY_BYTES: usize = 8 * 1024 * 1024;

/// Entries in one message to a peer, unless the first is larger by itself; keeps recovery of a
/// lost message cheap.
pub(crate) const MAX_APPEND_BYTES: u64 = 256 * 1024;

/// Appends to one peer that may be unanswered; each proposal is one at first. With
/// [`MAX_APPEND_BYTES`] this keeps what is buffered for a slow peer near 64 MiB.
pub(crate) const MAX_INFLIGHT_APPENDS: usize = 256;

/// Bytes proposed but not committed. Beyond it `propose` says busy: memory stays bounded when
/// a quorum is slow or gone.
pub const MAX_UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;

/// Entries proposed but not committed, as small entries cost more memory than their bytes.
pub const MAX_UNCOMMITTED_ENTRIES: u64 = 16_384;

/// Committed bytes applied in one batch; bounds the write batch and the time to the next tick.
pub(crate) const MAX_COMMITTED_BYTES_PER_READY: u64 = 16 * 1024 * 1024;

/// Rounds of raft work in one `process`; the owner must get to its ticks between them.
pub const MAX_READIES_PER_PROCESS: usize = 64;

/// Applied entries above the floor of the log at which the log is cut.
pub const LOG_COMPACT_AFTER_ENTRIES: u64 = 20_000;

/// Applied entries that a cut leaves for slow followers, so that they need no snapshot.
pub const LOG_KEEP_ENTRIES: u64 = 10_000;

/// Log size at which the log is cut to half of it even if fewer entries than
/// [`LOG_COMPACT_AFTER_ENTRIES`] were applied: a few large entries must not fill the disk.
pub const LOG_MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Entries that a leader keeps beyond its usual cut for an active peer that has not got them yet.
/// A peer that installs a snapshot would otherwise need the next one as soon as it is done.
pub const LOG_HOLD_ENTRIES: u64 = 200_000;

/// Largest message accepted from a peer: one entry of the largest size and its frame, or a
/// full append. A snapshot's rows are not part of any message.
pub const MAX_MESSAGE_BYTES: usize = MAX_ENTRY_BYTES + 64 * 1024;

/// Largest row in a snapshot, its key and value together. A row is written by one entry, which is
/// smaller; what claims more is damage and must not make a receiver allocate it.
pub const MAX_ROW_BYTES: usize = 64 * 1024 * 1024;

/// Largest piece of a snapshot that is handed to the transport at once.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;

/// Largest header of a snapshot: the member list, each with its attributes, and the join ids.
pub const MAX_SNAPSHOT_HEADER_BYTES: usize = 1024 * 1024;

/// What a member says of itself: names and addresses, no more.
pub const MAX_ATTRIBUTES_BYTES: usize = 4 * 1024;

/// Members of a group. Every entry goes to each of them, and nobody needs more.
pub const MAX_MEMBERS: usize = 32;

/// Join requests that are remembered, the newest ones: a joiner repeats its request within
/// minutes, and nobody starts more masters than this in that time.
pub const MAX_JOIN_IDS: usize = 64;

/// Recent log bytes kept in memory, so that neither apply nor a follower that keeps up reads
/// the disk. Entries not applied yet are kept beyond it.
pub(crate) const ENTRY_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Ticks for which a node that was told of its removal still votes, unless most of the others told
/// it: 3 s with ticks of 50 ms, some elections. The others may be gone themselves.
pub(crate) const REMOVED_LINGER_TICKS: u32 = 60;

/// Ticks after which a snapshot whose fate nobody reported is taken for lost: 11 minutes with
/// ticks of 50 ms. The transport reports a delivery or gives up within ten.
pub const SNAPSHOT_RETRY_TICKS: u32 = 13_200;

/// Reads waiting for a quorum round; beyond it `read_index` says busy.
pub const MAX_PENDING_READS: usize = 65_536;

/// Names a cluster for good. Chosen at random when it is bootstrapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// Whose data directory this is. A node id is never given to another disk: a master that lost
/// its disk comes back under a new id, otherwise it could vote twice in a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node, not 0.
    pub node: u64,
}

/// When a follower that hears nothing starts an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElectionTimeout {
    /// One voter after the other, evenly in `[election_ticks, 2 * election_ticks)`, in another order in every
    /// term: the first as soon as the others have given the leader up as well, and no two at once. Drawn at
    /// random, the first of two would stand three ticks later as a rule, and up to nine.
    InTurn,
    /// A random number of ticks in `[election_ticks, 2 * election_ticks)`, drawn by raft.
    Random,
    /// Always this many ticks, at least `election_ticks`. For simulations: give each node its
    /// own value, otherwise votes can split forever.
    Fixed(usize),
    /// As many ticks as this seed, the node and the term make, in the range of `Random`. The same
    /// inputs give the same elections, and two nodes that tie once do not tie in the next term.
    Seeded(u64),
}

/// Bounds that tests make smaller; production uses the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`LOG_COMPACT_AFTER_ENTRIES`].
    pub log_compact_after_entries: u64,
    /// See [`LOG_KEEP_ENTRIES`].
    pub log_keep_entries: u64,
    /// See [`LOG_MAX_BYTES`].
    pub log_max_bytes: u64,
    /// See [`MAX_UNCOMMITTED_BYTES`].
    pub max_uncommitted_bytes: u64,
    /// See [`LOG_HOLD_ENTRIES`].
    pub log_hold_entries: u64,
    /// See [`SNAPSHOT_RETRY_TICKS`].
    pub snapshot_retry_ticks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            log_compact_after_entries: LOG_COMPACT_AFTER_ENTRIES,
            log_keep_entries: LOG_KEEP_ENTRIES,
            log_max_bytes: LOG_MAX_BYTES,
            max_uncommitted_bytes: MAX_UNCOMMITTED_BYTES,
            log_hold_entries: LOG_HOLD_ENTRIES,
            snapshot_retry_ticks: SNAPSHOT_RETRY_TICKS,
        }
    }
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How a replica is opened.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Must equal what the disk was bootstrapped with.
    pub identity: Identity,
    /// Ticks between heartbeats of a leader. 2, with ticks of 50 ms.
    pub heartbeat_ticks: usize,
    /// Ticks of silence after which a follower may stand for election. 10: a new leader within
    /// 0.6 s, without elections caused by a slow fsync.
    pub election_ticks: usize,
    /// Spread of the election timeout.
    pub election_timeout: ElectionTimeout,
    /// Bounds.
    pub limits: Limits,
}

impl ReplicaConfig {
    /// The production configuration for `identity`.
    pub fn new(identity: Identity) -> Self {
        ReplicaConfig {
            identity,
            heartbeat_ticks: 2,
            election_ticks: 10,
            election_timeout: ElectionTimeout::InTurn,
            limits: Limits::default(),
        }
    }

    /// The timeout of this node in `term`, if it is not raft that draws it. `heirs` are the voters but for the
    /// last leader, who stands last, in the order that all nodes know.
    pub(crate) fn election_timeout(&self, term: u64, heirs: impl Iterator<Item = u64>) -> Option<usize> {
        let election = self.election_ticks;
        let spread = election.saturating_sub(1);
        match self.election_timeout {
            ElectionTimeout::InTurn => {
                let (mut count, mut place) = (0, None);
                for heir in heirs {
                    place = place.or((heir == self.identity.node).then_some(count));
                    count += 1;
                }
                let Some(place) = place else { return Some(election + spread) };
                let shift = usize::try_from(term).unwrap_or(usize::MAX) % count;
                // One tick more than the others need to give the leader up: their clocks may be one behind.
                let first = election + spread.min(1);
                Some(first + spread * ((place + shift) % count) / count)
            }
            ElectionTimeout::Seeded(seed) => {
                let mut mixed = seed;
                for part in [self.identity.node, term] {
                    mixed = mix(mixed ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                }
                let spread = usize::try_from(mixed >> 33).unwrap_or(0) % election.max(1);
                Some(election + spread)
            }
            ElectionTimeout::Random | ElectionTimeout::Fixed(_) => None,
        }
    }

    pub(crate) fn raft_config(&self, applied: u64) -> raft::Config {
        let (min_election_tick, max_election_tick) = match self.election_timeout {
            ElectionTimeout::InTurn | ElectionTimeout::Random | ElectionTimeout::Seeded(_) => (0, 0),
            ElectionTimeout::Fixed(ticks) => (ticks, ticks.saturating_add(1)),
        };
        raft::Config {
            id: self.identity.node,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_APPENDS,
            check_quorum: true,
            pre_vote: true,
            min_election_tick,
            max_election_tick,
            read_only_option: raft::ReadOnlyOption::Safe,
            batch_append: false,
            max_uncommitted_size: self.limits.max_uncommitted_bytes.max(MAX_APPEND_BYTES),
            max_committed_size_per_ready: MAX_COMMITTED_BYTES_PER_READY,
            // Followers learn what is committed from the next append or heartbeat: a message of its own, and the
            // answer to it, would double the messages of every entry.
            skip_bcast_commit: true,
            ..raft::Config::new(self.identity.node)
        }
    }
}
