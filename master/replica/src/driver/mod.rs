//! The one module that drives raft.
//!
//! Owns: the raft node and the order of every step of a ready: a leader's appends go out while its
//! own write is still to become durable, everything else only after entries and hard state are; then
//! what is committed is applied and its rows written, only then reported.
//! Invariants: one batch per ready that needs one, which the owner has synced beside its thread
//! ([`WriteJob`]); what is applied was durable here before; after an error the replica stays
//! stopped; leadership is reported only once the first entry of the own term is applied.
//! Must never: be bypassed: no other module calls raft. Must never wait for the disk, but for the
//! rare steps that replace everything (a snapshot) or make somebody a stranger (a change of members).
//!
//! `changes.rs` holds changes of the members, `election.rs` when this node stands, `install.rs` snapshots,
//! `open.rs` the ways to a replica, `writes.rs` what is not durable yet.

mod changes;
mod election;
mod install;
mod open;
mod writes;

pub use writes::WriteJob;

use std::collections::{BTreeMap, BTreeSet};

use prost_raft::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use raft::{ProgressState, RawNode, ReadState, Ready, SnapshotStatus, StateRole};

use crate::activity::Activity;
use crate::change;
use crate::codec::HardStateRecord;
use crate::config::{
    MAX_ENTRY_BYTES, MAX_MESSAGE_BYTES, MAX_PENDING_READS, MAX_READIES_PER_PROCESS,
    MAX_UNCOMMITTED_ENTRIES, ReplicaConfig,
};
use crate::disk::{Disk, Durability, StageId};
use crate::error::{FatalError, ProposeError, ReadError, StepError, TransferError};
use crate::inspect::{PeerStatus, Role, Status};
use crate::machine::{EntryId, Machine, Progress, RoleChange, RowChange, RowReader};
use crate::membership::{Group, MemberRole};
use crate::outbox::Outbox;
use crate::overlay::{Overlay, PendingRows};
use crate::proposals::{Proposals, Reads};
use crate::snapshot::Staged;
use crate::storage::LogStore;
use crate::validate::{self, Local};
use writes::Unwritten;

/// Table numbers end below this one, so that every prefix has an end.
const RESERVED_TABLE: u8 = 255;

/// Where things go while a replica still works.
pub trait Outlet {
    /// A message to a peer, which may leave.
    fn send(&mut self, peer: u64, message: Vec<u8>);

    /// Something is to be made durable beside the owner's thread. A later job replaces an earlier
    /// one that is not begun.
    fn write(&mut self, job: WriteJob);
}

/// Keeps messages; jobs are found in [`Replica::unwritten`].
impl Outlet for Vec<(u64, Vec<u8>)> {
    fn send(&mut self, peer: u64, message: Vec<u8>) {
        self.push((peer, message));
    }

    fn write(&mut self, _job: WriteJob) {}
}

type Out<'a> = &'a mut dyn Outlet;

/// One member of the group of masters, owned by one OS thread.
///
/// Inputs only note what is to be done; [`Replica::process`] does it. Calling it once after
/// many inputs is what makes batches: one sync serves all of them. Raft itself panics
/// when the log it reads back is impossible; the owner treats that as a crash.
pub struct Replica<D: Disk> {
    node: RawNode<LogStore<D>>,
    config: ReplicaConfig,
    /// The term whose leadership was reported and not taken back.
    led_term: Option<u64>,
    proposals: Proposals,
    reads: Reads,
    activity: Activity,
    /// Ticks since a snapshot was sent, per peer that did not acknowledge it yet.
    snapshot_ticks: BTreeMap<u64, u32>,
    unwritten: Unwritten,
    /// Messages that waited for a write which is durable now.
    free: Vec<Message>,
    /// The newest staging that was begun here.
    staging: Option<StageId>,
    /// Rows of the snapshot that raft has taken and the next `process` adopts.
    staged: Option<Staged>,
    /// The leader that was heard of last.
    heard_leader: Option<u64>,
    /// This node has applied its own removal.
    removed: bool,
    /// Ticks since this node has heard of a leader, or has asked whether it was removed.
    silence: usize,
    /// Peers that know for good that this node was removed, and ticks since the first said so.
    told_by: BTreeSet<u64>,
    told_ticks: u32,
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
    /// One unit of logical time. After a stall pass at most two: a burst of missed ticks starts
    /// elections that nobody needs.
    pub fn tick(&mut self) {
        if self.stopped {
            return;
        }
        self.activity.tick();
        self.count_silence();
        if !self.must_write_before_election() {
            self.node.tick();
            self.ask_again();
        }
        for peer in self.count_snapshot_ticks() {
            self.node.report_snapshot(peer, SnapshotStatus::Failure);
        }
        self.leave_to_faster_disks();
        self.settle_timeout();
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
            if *ticks >= self.config.limits.snapshot_retry_ticks {
                *ticks = 0;
                lost.push(*peer);
            }
        }
        lost
    }

    /// Takes a message of a peer. One that carries a snapshot goes to
    /// [`Replica::begin_install`] and [`Replica::step_snapshot`] instead.
    ///
    /// # Errors
    /// The message is refused and changed nothing. [`StepError::LostLog`] says that this node's
    /// disk lost acknowledged entries: it must be stopped for good. [`StepError::RemovedPeer`] is to
    /// be told to the peer.
    pub fn step(&mut self, message: &[u8]) -> Result<(), StepError> {
        let message = self.checked(message)?;
        if message.msg_type == MessageType::MsgSnapshot as i32 {
            return Err(StepError::NotStaged);
        }
        self.step_checked(message)
    }

    /// Decodes and checks a message of a peer.
    fn checked(&self, message: &[u8]) -> Result<Message, StepError> {
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
            cluster: self.config.identity.cluster,
            group: self.group(),
        };
        validate::check(&message, &local)?;
        Ok(message)
    }

    fn step_checked(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        self.activity.hear(from);
        let stepped = self.node.step(message);
        self.settle_timeout();
        stepped.map_err(|error| match error {
            // Raft knows the members of a snapshot that the next `process` installs already.
            raft::Error::StepPeerNotFound => StepError::UnknownPeer(from),
            _ => StepError::Malformed("raft refused the message"),
        })
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
        Ok(self.note_proposal())
    }

    /// Takes note of the entry that was just appended as one of this node's.
    fn note_proposal(&mut self) -> EntryId {
        let raft = &self.node.raft;
        let id = EntryId {
            term: raft.term,
            index: raft.raft_log.last_index(),
        };
        self.proposals.add(id);
        id
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
        if node == self.node.raft.id || !self.group().conf.voters.contains(&node) {
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

    /// The rows as of [`Status::applied`].
    pub fn rows(&self) -> &dyn RowReader {
        self.node.store()
    }

    /// The leader this node knows of.
    pub fn leader(&self) -> Option<u64> {
        other_than_none(self.node.raft.leader_id)
    }

    /// The newest term this node knows of.
    pub fn term(&self) -> u64 {
        self.node.raft.term
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
            role: self
                .group()
                .membership
                .get(*node)
                .map_or(MemberRole::Learner, |member| member.role),
            matched: progress.matched,
            recently_active: self.is_active(*node),
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
            voters: self.group().conf.voters.clone(),
            learners: self.group().conf.learners.clone(),
            peers,
            open_proposals: self.proposals.len(),
            uncommitted_bytes: raft.uncommitted_size(),
            syncs: store.syncs(),
            removed: self.removed,
        }
    }

    /// Does everything that is ready: persists, applies, and returns what to send and report. Waits
    /// for the disk itself. In a group of one, everything proposed before the call is applied when
    /// it returns, unless [`Progress::more`] is set.
    ///
    /// # Errors
    /// The replica has stopped and the process must end; what is durable is known only after a
    /// restart. Nothing of this call may be sent or reported.
    pub fn process<M: Machine>(
        &mut self,
        machine: &mut M,
    ) -> Result<Progress<M::Effect>, FatalError> {
        let mut messages = Vec::new();
        let mut progress = self.process_sending(machine, &mut messages)?;
        while let Some(job) = self.unwritten() {
            let written = job.run(&mut *self.syncer());
            self.stopped |= written.is_err();
            written?;
            self.on_written(job);
            progress.then(self.process_sending(machine, &mut messages)?);
        }
        progress.messages = messages;
        Ok(progress)
    }

    /// Like [`Replica::process`], but never waits for the disk: `out` is told what is to be made
    /// durable elsewhere, before anything else of this call is applied. Gives it every message as
    /// soon as it may leave: a leader's entries go out before its own write is durable, so that the
    /// followers write at the same time. [`Progress::messages`] stays empty.
    ///
    /// # Errors
    /// The replica has stopped and the process must end. What was sent may have been sent.
    pub fn process_sending<M: Machine>(
        &mut self,
        machine: &mut M,
        out: &mut dyn Outlet,
    ) -> Result<Progress<M::Effect>, FatalError> {
        if self.stopped {
            return Err(FatalError::Stopped);
        }
        let result = self.process_readies(machine, out);
        self.settle_timeout();
        self.stopped = result.is_err();
        result
    }

    fn process_readies<M: Machine>(
        &mut self,
        machine: &mut M,
        out: Out<'_>,
    ) -> Result<Progress<M::Effect>, FatalError> {
        self.check_removed()?;
        self.ask_whether_removed(out);
        let mut progress = Progress::default();
        let free = std::mem::take(&mut self.free);
        self.post(free, out, &mut progress);
        for _ in 0..MAX_READIES_PER_PROCESS {
            if let Some(error) = self.node.store().take_read_error() {
                return Err(error.into());
            }
            self.note_step_down(&mut progress);
            self.start_read_round();
            self.finish_replacement();
            if !self.node.has_ready() {
                break;
            }
            self.process_ready(machine, out, &mut progress)?;
        }
        self.note_step_down(&mut progress);
        progress.more = self.node.has_ready();
        let needed = self.needed_by_peers();
        if let Some(below) = self.node.mut_store().compact(needed)? {
            self.unwritten.add_cut(below);
            self.unwritten.job().into_iter().for_each(|job| out.write(job));
        }
        Ok(progress)
    }

    fn process_ready<M: Machine>(
        &mut self,
        machine: &mut M,
        out: Out<'_>,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        let mut ready = self.node.ready();
        let number = ready.number();
        self.confirm_reads(ready.take_read_states());
        let vote_is_durable = self.unwritten.vote_is_durable(ready.hs());
        // Only a leader has any of these: they promise nothing about its own disk but its vote, which
        // is durable long before unless it votes alone.
        let (at_once, held) = match vote_is_durable {
            true => (ready.take_messages(), Vec::new()),
            false => (Vec::new(), ready.take_messages()),
        };
        self.post(at_once, out, progress);
        let mut messages = self.persist(machine, &mut ready, progress)?;
        messages.extend(held);
        messages.append(&mut ready.take_persisted_messages());
        let committed = ready.take_committed_entries();
        let wrote = ready.must_sync();
        self.node.advance_append_async(ready);
        if self.unwritten.is_empty() {
            self.node.on_persist_ready(number);
        } else {
            let at_once = self.harmless(&mut messages, vote_is_durable);
            self.post(at_once, out, progress);
            self.unwritten.add_ready(number, std::mem::take(&mut messages));
            let job = self.unwritten.job().filter(|_| wrote);
            job.into_iter().for_each(|job| out.write(job));
        }
        self.post(messages, out, progress);
        self.apply(machine, committed, progress)?;
        let applied = self.node.store().applied().index;
        self.node.advance_apply_to(applied);
        self.reads.on_applied(applied, &mut progress.reads);
        Ok(())
    }

    fn post<E>(&self, messages: Vec<Message>, out: Out<'_>, progress: &mut Progress<E>) {
        let mut outbox = Outbox::default();
        for message in messages {
            if message.msg_type == MessageType::MsgSnapshot as i32 {
                progress.snapshots.extend(self.to_send(message));
            } else {
                outbox.add(message);
            }
        }
        outbox.finish(&mut |peer, message| out.send(peer, message));
    }

    /// Writes what this ready promises. A commit index alone is not worth a write: the applied
    /// record carries it. A snapshot is synced at once, and so is everything before it; gives back
    /// the messages that waited for that.
    fn persist<M: Machine>(
        &mut self,
        machine: &mut M,
        ready: &mut Ready,
        progress: &mut Progress<M::Effect>,
    ) -> Result<Vec<Message>, FatalError> {
        if !ready.must_sync() {
            return Ok(Vec::new());
        }
        let hard = ready.hs().map(hard_record);
        if ready.snapshot().is_empty() {
            let entries = ready.take_entries();
            let store = self.node.mut_store();
            store.persist(entries, hard, Durability::Unsynced)?;
            self.unwritten.add_write(ready.hs());
            return Ok(Vec::new());
        }
        let whole = ready.hs().cloned();
        let whole = whole.unwrap_or_else(|| self.node.raft.hard_state());
        self.install(machine, ready.snapshot(), hard_record(&whole), progress)?;
        let entries = ready.take_entries();
        if hard.is_some() || !entries.is_empty() {
            let store = self.node.mut_store();
            store.persist(entries, hard, Durability::Synced)?;
        }
        self.unwritten.add_write(Some(&whole));
        Ok(self.unwritten.on_all_durable())
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
        let mut newest = Vec::new();
        let mut group: Option<Group> = None;
        let mut changes: Vec<(u64, ConfChangeV2, Group)> = Vec::new();
        for entry in &entries {
            let id = entry_id(entry);
            match EntryType::from_i32(entry.entry_type) {
                Some(EntryType::EntryNormal) if entry.data.is_empty() => {}
                Some(EntryType::EntryNormal) => {
                    let rows = Overlay {
                        base: self.node.store(),
                        pending: &pending,
                    };
                    let (effects, changed) = apply_entry(machine, id, &entry.data, &rows)?;
                    match id == last {
                        // Nobody reads through these.
                        true => newest = changed,
                        false => changed.into_iter().for_each(|change| pending.add(change)),
                    }
                    progress.applied.push((id, effects));
                }
                Some(EntryType::EntryConfChangeV2) => {
                    let before = group.as_ref().unwrap_or_else(|| self.group());
                    let (raft, change) = change::decode(&entry.data)
                        .ok_or(FatalError::UnsupportedEntry { index: id.index })?;
                    let own = self.proposals.find(id);
                    // What does not fit is left out by every replica alike.
                    if let Ok(after) = before.after(change.as_ref()) {
                        changes.push((id.index, raft, after.clone()));
                        group = Some(after);
                        progress.changed.extend(own);
                    } else {
                        progress.lost.extend(own);
                    }
                }
                Some(EntryType::EntryConfChange) | None => {
                    return Err(FatalError::UnsupportedEntry { index: id.index });
                }
            }
            self.proposals.on_applied(id, &mut progress.lost);
        }
        let committed = self.node.raft.raft_log.committed;
        let mut rows = pending.into_changes();
        rows.append(&mut newest);
        // The disk first: what raft sends because of a change shows the group after it.
        self.node.mut_store().apply(rows, last, committed, group)?;
        self.note_election(last, progress);
        self.change_group(changes, progress)
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
            self.node.store().drop_sources();
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

/// Applies one entry: its effects, and the rows it changed.
fn apply_entry<M: Machine>(
    machine: &mut M,
    id: EntryId,
    entry: &[u8],
    rows: &dyn RowReader,
) -> Result<(Vec<M::Effect>, Vec<RowChange>), FatalError> {
    let index = id.index;
    let applied = machine
        .apply(id, entry, rows)
        .map_err(|source| FatalError::Machine { index, source })?;
    if applied
        .rows
        .iter()
        .any(|change| change.table() == RESERVED_TABLE)
    {
        return Err(FatalError::ReservedTable {
            index,
            table: RESERVED_TABLE,
        });
    }
    Ok((applied.effects, applied.rows))
}
