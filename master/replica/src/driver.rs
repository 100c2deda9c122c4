//! The one file that drives raft.
//!
//! Owns: the raft node and the order of every step of a ready: persist entries and hard state,
//! only then hand out messages, apply what is committed, write the rows, only then report.
//! Invariants: one synced batch per ready that needs one; after an error the replica stays
//! stopped; leadership is reported only once the first entry of the own term is applied.
//! Must never: be bypassed: no other file calls raft.

use std::collections::BTreeMap;

use prost_raft::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::{ProgressState, RawNode, ReadState, Ready, SnapshotStatus, StateRole};

use crate::boot;
use crate::codec::HardStateRecord;
use crate::config::{
    Identity, MAX_ENTRY_BYTES, MAX_MESSAGE_BYTES, MAX_PENDING_READS, MAX_READIES_PER_PROCESS,
    MAX_UNCOMMITTED_ENTRIES, ReplicaConfig, SNAPSHOT_RETRY_TICKS,
};
use crate::disk::Disk;
use crate::error::{
    BootstrapError, FatalError, OpenError, ProposeError, ReadError, StepError, TransferError,
};
use crate::inspect::{PeerStatus, Role, Status};
use crate::logger::raft_logger;
use crate::machine::{EntryId, Machine, Progress, RoleChange, RowReader};
use crate::outbox::Outbox;
use crate::overlay::{Overlay, PendingRows};
use crate::proposals::{Proposals, Reads};
use crate::snapshot;
use crate::storage::LogStore;
use crate::validate::{self, Local};

/// Table numbers end below this one, so that every prefix has an end.
const RESERVED_TABLE: u8 = 255;

/// One member of the group of masters, owned by one OS thread.
///
/// Inputs only note what is to be done; [`Replica::process`] does it. Calling it once after
/// many inputs is what makes batches: one synced write serves all of them. Raft itself panics
/// when the log it reads back is impossible; the owner treats that as a crash.
pub struct Replica<D: Disk> {
    node: RawNode<LogStore<D>>,
    /// The term whose leadership was reported and not taken back.
    led_term: Option<u64>,
    proposals: Proposals,
    reads: Reads,
    /// Ticks since a snapshot was sent, per peer that did not acknowledge it yet.
    snapshot_ticks: BTreeMap<u64, u32>,
    stopped: bool,
}

fn other_than_none(node: u64) -> Option<u64> {
    (node != raft::INVALID_ID).then_some(node)
}

fn entry_id(entry: &Entry) -> EntryId {
    EntryId {
        term: entry.term,
        index: entry.index,
    }
}

fn hard_record(hard: &HardState) -> HardStateRecord {
    HardStateRecord {
        term: hard.term,
        vote: hard.vote,
        commit: hard.commit,
    }
}

impl<D: Disk> Replica<D> {
    /// Whose disk this is, or `None` if it was never bootstrapped.
    ///
    /// # Errors
    /// When the disk cannot be read or has a newer format.
    pub fn identity(disk: &D) -> Result<Option<Identity>, OpenError> {
        boot::identity(disk)
    }

    /// Makes an empty disk that of the node `identity`, one of the first `voters` of a new
    /// cluster. Every first voter is bootstrapped with the same list.
    ///
    /// # Errors
    /// When the disk is in use, the voters make no sense, or the disk fails.
    pub fn bootstrap(
        disk: &mut D,
        identity: Identity,
        voters: &[u64],
    ) -> Result<(), BootstrapError> {
        boot::bootstrap(disk, identity, voters)
    }

    /// Checks the disk and starts the replica. The owner then builds its machine from
    /// [`Replica::rows`], which stand at [`Status::applied`], before the first `process`.
    ///
    /// # Errors
    /// When the disk is empty, another node's, of a newer format, damaged or incomplete.
    pub fn open(config: ReplicaConfig, disk: D) -> Result<Self, OpenError> {
        let store = boot::load(disk, config.identity, config.limits)?;
        let raft_config = config.raft_config(store.applied().index);
        let alone = store.conf().voters == [config.identity.node];
        let config_error = |error: raft::Error| OpenError::Config(error.to_string());
        let mut node = RawNode::new(&raft_config, store, &raft_logger()).map_err(config_error)?;
        if alone {
            node.campaign().map_err(config_error)?;
        }
        Ok(Replica {
            node,
            led_term: None,
            proposals: Proposals::default(),
            reads: Reads::default(),
            snapshot_ticks: BTreeMap::new(),
            stopped: false,
        })
    }

    /// One unit of logical time. After a stall pass at most two: a burst of missed ticks starts
    /// elections that nobody needs.
    pub fn tick(&mut self) {
        if self.stopped {
            return;
        }
        self.node.tick();
        for peer in self.count_snapshot_ticks() {
            self.node.report_snapshot(peer, SnapshotStatus::Failure);
        }
    }

    /// Peers whose snapshot must be taken for lost. Raft itself would wait for ever.
    fn count_snapshot_ticks(&mut self) -> Vec<u64> {
        let raft = &self.node.raft;
        let waits = |progress: &raft::Progress| progress.state == ProgressState::Snapshot;
        self.snapshot_ticks.retain(|peer, _| {
            raft.state == StateRole::Leader && raft.prs().get(*peer).is_some_and(waits)
        });
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for (peer, _) in raft.prs().iter().filter(|(_, progress)| waits(progress)) {
            let ticks = self.snapshot_ticks.entry(*peer).or_default();
            *ticks += 1;
            if *ticks >= SNAPSHOT_RETRY_TICKS {
                *ticks = 0;
                lost.push(*peer);
            }
        }
        lost
    }

    /// Takes a message of a peer.
    ///
    /// # Errors
    /// The message is refused and changed nothing. [`StepError::LostLog`] says that this node's
    /// disk lost acknowledged entries: it must be stopped for good.
    pub fn step(&mut self, message: &[u8]) -> Result<(), StepError> {
        if self.stopped {
            return Err(StepError::Stopped);
        }
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(StepError::TooLarge {
                bytes: message.len(),
                limit: MAX_MESSAGE_BYTES,
            });
        }
        let message = Message::decode(message)
            .map_err(|_| StepError::Malformed("the bytes are not a raft message"))?;
        let raft = &self.node.raft;
        let local = Local {
            node: raft.id,
            term: raft.term,
            leads: raft.state == StateRole::Leader,
            last_index: raft.raft_log.last_index(),
            conf: self.node.store().conf(),
        };
        validate::check(&message, &local)?;
        self.node
            .step(message)
            .map_err(|_| StepError::Malformed("raft refused the message"))
    }

    /// Appends `entry` to the log if this node leads. The id names it until it is in
    /// [`Progress::applied`], `lost` or `unknown`.
    ///
    /// # Errors
    /// The entry is not in the log and never will be.
    pub fn propose(&mut self, entry: Vec<u8>) -> Result<EntryId, ProposeError> {
        if self.stopped {
            return Err(ProposeError::Stopped);
        }
        if entry.is_empty() {
            return Err(ProposeError::Empty);
        }
        if entry.len() > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes: entry.len() });
        }
        if self.node.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader {
                leader: self.leader(),
            });
        }
        let log = &self.node.raft.raft_log;
        if log.last_index() - log.committed >= MAX_UNCOMMITTED_ENTRIES
            || self.proposals.len() as u64 >= MAX_UNCOMMITTED_ENTRIES
        {
            return Err(ProposeError::Busy);
        }
        self.node
            .propose(Vec::new(), entry)
            .map_err(|_| ProposeError::Busy)?;
        let raft = &self.node.raft;
        let id = EntryId {
            term: raft.term,
            index: raft.raft_log.last_index(),
        };
        self.proposals.add(id);
        Ok(id)
    }

    /// Starts a linearizable read. `context`, chosen by the caller, comes back in
    /// [`Progress::reads`] once the rows hold everything that was committed before this call.
    ///
    /// # Errors
    /// When this node is not the established leader, or too many reads wait.
    pub fn read_index(&mut self, context: u64) -> Result<(), ReadError> {
        if self.stopped {
            return Err(ReadError::Stopped);
        }
        if self.led_term != Some(self.node.raft.term) || self.node.raft.state != StateRole::Leader {
            return Err(ReadError::NotLeader {
                leader: self.leader(),
            });
        }
        if self.reads.len() >= MAX_PENDING_READS {
            return Err(ReadError::Busy);
        }
        self.reads.add(context);
        Ok(())
    }

    /// Hands leadership to `node`. Proposals are refused as busy meanwhile; it is given up
    /// after one election timeout.
    ///
    /// # Errors
    /// When this node does not lead or `node` is not another voter.
    pub fn transfer_leadership(&mut self, node: u64) -> Result<(), TransferError> {
        if self.stopped {
            return Err(TransferError::Stopped);
        }
        if self.node.raft.state != StateRole::Leader {
            return Err(TransferError::NotLeader {
                leader: self.leader(),
            });
        }
        if node == self.node.raft.id || !self.node.store().conf().voters.contains(&node) {
            return Err(TransferError::NotAVoter(node));
        }
        self.node.transfer_leader(node);
        Ok(())
    }

    /// Tells that messages to `peer` are being lost, so that raft probes instead of streaming.
    pub fn report_unreachable(&mut self, peer: u64) {
        if !self.stopped {
            self.node.report_unreachable(peer);
        }
    }

    /// Tells whether the transport delivered a snapshot ([`Replica::is_snapshot`]) to `peer`.
    /// Without it a lost snapshot is sent again only after some seconds, and the peer gets
    /// nothing else until then.
    pub fn report_snapshot(&mut self, peer: u64, delivered: bool) {
        let status = if delivered {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        if !self.stopped {
            self.node.report_snapshot(peer, status);
        }
    }

    /// Whether a message from [`Progress::messages`] carries a snapshot.
    pub fn is_snapshot(message: &[u8]) -> bool {
        // The type is the first field of the message, a number below 128.
        message.starts_with(&[0x08, MessageType::MsgSnapshot as u8])
    }

    /// The rows as of [`Status::applied`].
    pub fn rows(&self) -> &dyn RowReader {
        self.node.store().disk()
    }

    /// The leader this node knows of.
    pub fn leader(&self) -> Option<u64> {
        other_than_none(self.node.raft.leader_id)
    }

    /// A copy of the replica's state.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let store = self.node.store();
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate | StateRole::Candidate => Role::Candidate,
            StateRole::Leader if self.led_term == Some(raft.term) => Role::Leader,
            StateRole::Leader => Role::LeaderElect,
        };
        let peer = |(node, progress): (&u64, &raft::Progress)| PeerStatus {
            node: *node,
            matched: progress.matched,
            recently_active: progress.recent_active,
            needs_snapshot: progress.next_idx < store.first()
                || progress.state == ProgressState::Snapshot,
        };
        let leads = raft.state == StateRole::Leader;
        let mut peers: Vec<PeerStatus> = raft
            .prs()
            .iter()
            .filter(|(node, _)| leads && **node != raft.id)
            .map(peer)
            .collect();
        peers.sort_unstable_by_key(|peer| peer.node);
        Status {
            node: raft.id,
            role,
            term: raft.term,
            leader: self.leader(),
            commit_index: raft.raft_log.committed,
            applied: store.applied(),
            first_index: store.first(),
            last_index: raft.raft_log.last_index(),
            log_bytes: store.log_bytes(),
            voters: store.conf().voters.clone(),
            peers,
            open_proposals: self.proposals.len(),
            uncommitted_bytes: raft.uncommitted_size(),
            syncs: store.syncs(),
            snapshot_refused: store.snapshot_refused(),
        }
    }

    /// Does everything that is ready: persists, applies, and returns what to send and report.
    /// In a group of one, everything proposed before the call is applied when it returns,
    /// unless [`Progress::more`] is set.
    ///
    /// # Errors
    /// The replica has stopped and the process must end; what is durable is known only after a
    /// restart. Nothing of this call may be sent or reported.
    pub fn process<M: Machine>(
        &mut self,
        machine: &mut M,
    ) -> Result<Progress<M::Effect>, FatalError> {
        if self.stopped {
            return Err(FatalError::Stopped);
        }
        let result = self.process_readies(machine);
        self.stopped = result.is_err();
        result
    }

    fn process_readies<M: Machine>(
        &mut self,
        machine: &mut M,
    ) -> Result<Progress<M::Effect>, FatalError> {
        let mut progress = Progress::default();
        for _ in 0..MAX_READIES_PER_PROCESS {
            if let Some(error) = self.node.store().take_read_error() {
                return Err(error.into());
            }
            self.note_step_down(&mut progress);
            self.start_read_round();
            if !self.node.has_ready() {
                break;
            }
            self.process_ready(machine, &mut progress)?;
        }
        self.note_step_down(&mut progress);
        progress.more = self.node.has_ready();
        self.node.mut_store().compact()?;
        Ok(progress)
    }

    fn process_ready<M: Machine>(
        &mut self,
        machine: &mut M,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        let mut ready = self.node.ready();
        self.confirm_reads(ready.take_read_states());
        let mut messages = ready.take_messages();
        self.persist(machine, &mut ready, progress)?;
        messages.append(&mut ready.take_persisted_messages());
        let mut committed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        messages.append(&mut light.take_messages());
        committed.append(&mut light.take_committed_entries());
        let mut outbox = Outbox::default();
        messages.into_iter().for_each(|message| outbox.add(message));
        outbox.finish(&mut progress.messages);
        self.apply(machine, committed, progress)?;
        let applied = self.node.store().applied().index;
        self.node.advance_apply_to(applied);
        self.reads.on_applied(applied, &mut progress.reads);
        Ok(())
    }

    /// Makes durable what this ready promises. A commit index alone is not worth a write: the
    /// applied record carries it.
    fn persist<M: Machine>(
        &mut self,
        machine: &mut M,
        ready: &mut Ready,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        if !ready.must_sync() {
            return Ok(());
        }
        if !ready.snapshot().is_empty() {
            let hard = ready
                .hs()
                .cloned()
                .unwrap_or_else(|| self.node.raft.hard_state());
            self.install(machine, ready.snapshot(), hard_record(&hard), progress)?;
        }
        let hard = ready.hs().map(hard_record);
        let entries = ready.take_entries();
        if hard.is_some() || !entries.is_empty() {
            self.node.mut_store().persist(entries, hard)?;
        }
        Ok(())
    }

    fn install<M: Machine>(
        &mut self,
        machine: &mut M,
        snapshot: &Snapshot,
        hard: HardStateRecord,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        let metadata = snapshot.get_metadata();
        let id = EntryId {
            term: metadata.term,
            index: metadata.index,
        };
        let rows =
            snapshot::decode(&snapshot.data).ok_or(FatalError::BadSnapshot { index: id.index })?;
        self.node.mut_store().install(id, rows, hard)?;
        machine
            .restore(id, self.node.store().disk())
            .map_err(|source| FatalError::Machine {
                index: id.index,
                source,
            })?;
        self.proposals
            .on_restored(id, &mut progress.unknown, &mut progress.lost);
        progress.restored = Some(id);
        Ok(())
    }

    fn apply<M: Machine>(
        &mut self,
        machine: &mut M,
        entries: Vec<Entry>,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        let Some(last) = entries.last().map(entry_id) else {
            return Ok(());
        };
        let mut pending = PendingRows::default();
        for entry in &entries {
            let id = entry_id(entry);
            let index = id.index;
            if entry.entry_type != EntryType::EntryNormal as i32 {
                return Err(FatalError::UnsupportedEntry { index });
            }
            if !entry.data.is_empty() {
                let rows = Overlay {
                    base: self.node.store().disk(),
                    pending: &pending,
                };
                let applied = machine
                    .apply(id, &entry.data, &rows)
                    .map_err(|source| FatalError::Machine { index, source })?;
                for change in applied.rows {
                    if change.table() == RESERVED_TABLE {
                        return Err(FatalError::ReservedTable {
                            index,
                            table: RESERVED_TABLE,
                        });
                    }
                    pending.add(change);
                }
                progress.applied.push((id, applied.effects));
            }
            self.proposals.on_applied(id, &mut progress.lost);
        }
        let committed = self.node.raft.raft_log.committed;
        self.node
            .mut_store()
            .apply(pending.into_changes(), last, committed)?;
        self.note_election(last, progress);
        Ok(())
    }

    /// The first entry of a term is the leader's empty one, so an applied entry of the own term
    /// means that everything before the term is applied too.
    fn note_election<E>(&mut self, applied: EntryId, progress: &mut Progress<E>) {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader && applied.term == raft.term;
        if leads && self.led_term.is_none() {
            self.led_term = Some(raft.term);
            progress
                .role_changes
                .push(RoleChange::BecameLeader { term: raft.term });
        }
    }

    fn note_step_down<E>(&mut self, progress: &mut Progress<E>) {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader;
        if let Some(term) = self.led_term.take_if(|term| !leads || *term != raft.term) {
            progress.role_changes.push(RoleChange::SteppedDown { term });
            self.reads.on_stepped_down(&mut progress.reads_dropped);
        }
    }

    /// Raft repeats the round with every heartbeat until a quorum answered, so it is started
    /// once only.
    fn start_read_round(&mut self) {
        let term = self.node.raft.term;
        if self.led_term != Some(term) {
            return;
        }
        if let Some(round) = self.reads.start_round() {
            let context = [term.to_be_bytes(), round.to_be_bytes()].concat();
            self.node.read_index(context);
        }
    }

    fn confirm_reads(&mut self, states: Vec<ReadState>) {
        let term = self.node.raft.term.to_be_bytes();
        for state in states {
            let round = state
                .request_ctx
                .strip_prefix(&term)
                .and_then(|rest| rest.try_into().ok());
            if let Some(round) = round {
                self.reads
                    .on_confirmed(u64::from_be_bytes(round), state.index);
            }
        }
    }
}
