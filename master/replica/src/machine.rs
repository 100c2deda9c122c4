//! The contract with the state machine: what is applied, what comes back.
//!
//! Owns: row changes, entry ids, [`Machine`], [`Progress`].
//! Invariants: an entry is opaque bytes here; a row is (table, key) → value.
//! Must never: interpret an entry or a row.

use crate::error::{DiskError, MachineError};
use crate::membership::Membership;
use crate::snapshot::SnapshotSource;

/// One changed row of the replicated state. Table 255 is reserved and refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange {
    /// Writes a row, replacing what was there.
    Put {
        /// Table number, 0 to 254.
        table: u8,
        /// Key inside the table; rows are ordered by it bytewise.
        key: Vec<u8>,
        /// New value.
        value: Vec<u8>,
    },
    /// Removes a row; a row that is absent is not an error.
    Delete {
        /// Table number, 0 to 254.
        table: u8,
        /// Key inside the table.
        key: Vec<u8>,
    },
    /// Removes every row whose key begins with `prefix`; an empty prefix empties the table.
    DeletePrefix {
        /// Table number, 0 to 254.
        table: u8,
        /// Leading bytes of the keys to remove.
        prefix: Vec<u8>,
    },
}

impl RowChange {
    /// The table this change touches.
    pub fn table(&self) -> u8 {
        match self {
            RowChange::Put { table, .. }
            | RowChange::Delete { table, .. }
            | RowChange::DeletePrefix { table, .. } => *table,
        }
    }
}

/// Reads rows of the replicated state.
pub trait RowReader {
    /// The value of one row, or `None`.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError>;

    /// At most `limit` rows whose keys begin with `prefix` and are greater than `after`, in
    /// key order. To page, pass the last key of the previous page as `after`.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, DiskError>;
}

/// Names one log entry for good: a term has one leader, and it never reuses an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// Term in which the entry was proposed.
    pub term: u64,
    /// Position in the log, from 1.
    pub index: u64,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

/// The deterministic state machine that every replica runs.
pub trait Machine {
    /// What the leader shall do because of an entry.
    type Effect;

    /// Applies one committed entry. Must depend on nothing but its own state, `entry` and
    /// `rows`, and must not panic. `rows` shows the state as of all earlier entries, including
    /// those whose batch is not written yet.
    ///
    /// # Errors
    /// Only when going on would make this replica diverge (a row cannot be read, the entry is
    /// of a version this build does not know). The replica stops; a bad command is not an error
    /// but an applied entry that changes nothing.
    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        rows: &dyn RowReader,
    ) -> Result<Applied<Self::Effect>, MachineError>;

    /// Throws away everything held in memory and rebuilds it from `rows`, because a snapshot
    /// that ends at `id` replaced them. The owner calls the same code at boot.
    ///
    /// # Errors
    /// When the rows cannot be read or understood. The replica stops.
    fn restore(&mut self, id: EntryId, rows: &dyn RowReader) -> Result<(), MachineError>;
}

/// What applying one entry did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied<E> {
    /// Rows changed, in order.
    pub rows: Vec<RowChange>,
    /// Effects for the leader, in order.
    pub effects: Vec<E>,
}

/// A change of this replica's part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleChange {
    /// This replica leads `term`, and every entry of earlier terms that is committed is applied
    /// here: the first entry of the term itself is.
    BecameLeader {
        /// The term it leads.
        term: u64,
    },
    /// This replica no longer leads `term`. Leader-only state must be dropped.
    SteppedDown {
        /// The term it led.
        term: u64,
    },
}

/// A snapshot that a peer needs. The transport sends the message, then the chunks of the source,
/// and reports with [`crate::Replica::report_snapshot`] how it ended; until then the peer gets no
/// entries.
#[derive(Debug)]
pub struct SnapshotToSend {
    /// The peer.
    pub peer: u64,
    /// What the peer gives to [`crate::Replica::begin_install`] and, with the staged rows, to
    /// [`crate::Replica::step_snapshot`].
    pub message: Vec<u8>,
    /// The bytes, to be read on any thread.
    pub source: SnapshotSource,
}

/// What one call of `process` did. Everything in it is backed by durable state.
#[derive(Debug)]
pub struct Progress<E> {
    /// Applied entries of the machine with their effects, in log order. The rows are written.
    pub applied: Vec<(EntryId, Vec<E>)>,
    /// Messages to peers: (peer id, bytes of at most [`crate::MAX_MESSAGE_BYTES`]). Order per
    /// peer matters for speed only; each may be lost or doubled.
    pub messages: Vec<(u64, Vec<u8>)>,
    /// Snapshots to be sent to peers.
    pub snapshots: Vec<SnapshotToSend>,
    /// Changes of leadership in the order in which they happened. To be handled before
    /// `applied`: a new leader walks its state, which already holds everything in `applied`.
    pub role_changes: Vec<RoleChange>,
    /// Contexts of reads that may be served from the rows now.
    pub reads: Vec<u64>,
    /// Contexts of reads that will not be answered because leadership was lost.
    pub reads_dropped: Vec<u64>,
    /// Proposals of this replica that can no longer commit under their id.
    pub lost: Vec<EntryId>,
    /// Proposals of this replica whose fate a snapshot or its removal from the group hides: they
    /// may have been applied.
    pub unknown: Vec<EntryId>,
    /// Changes of the members by this replica that are applied. A replacement is applied here
    /// first and finished once [`Membership::changing`] is false again.
    pub changed: Vec<EntryId>,
    /// The members, whenever they changed.
    pub membership: Option<Membership>,
    /// This node is no member any more. It goes on voting for the sake of others that have not
    /// learned of it yet, until most of them have ([`crate::Replica::on_told_removed`]); then
    /// `process` ends with [`crate::FatalError::Removed`].
    pub removed: bool,
    /// Set when a snapshot replaced all rows; the machine was restored from it.
    pub restored: Option<EntryId>,
    /// More work is ready: tick if due, then call `process` again.
    pub more: bool,
}

impl<E> Progress<E> {
    /// Adds what a call right after this one did.
    pub(crate) fn then(&mut self, next: Progress<E>) {
        self.applied.extend(next.applied);
        self.messages.extend(next.messages);
        self.snapshots.extend(next.snapshots);
        self.role_changes.extend(next.role_changes);
        self.reads.extend(next.reads);
        self.reads_dropped.extend(next.reads_dropped);
        self.lost.extend(next.lost);
        self.unknown.extend(next.unknown);
        self.changed.extend(next.changed);
        self.membership = next.membership.or(self.membership.take());
        self.removed |= next.removed;
        self.restored = next.restored.or(self.restored);
        self.more = next.more;
    }
}

impl<E> Default for Progress<E> {
    fn default() -> Self {
        Progress {
            applied: Vec::new(),
            messages: Vec::new(),
            snapshots: Vec::new(),
            role_changes: Vec::new(),
            reads: Vec::new(),
            reads_dropped: Vec::new(),
            lost: Vec::new(),
            unknown: Vec::new(),
            changed: Vec::new(),
            membership: None,
            removed: false,
            restored: None,
            more: false,
        }
    }
}
