//! Snapshots as raft sees them: a message with a header, and rows that come beside it.
//!
//! Owns: handing out the rows of a snapshot, staging those that come in, and adopting them.
//! Invariants: raft takes a snapshot only when its rows are staged as a whole; a staging that is
//! about to be adopted is not given up for another one; adopting is one synced write.
//! Must never: read or write all rows on the owner's thread.

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus, StateRole};

use super::Replica;
use crate::codec::HardStateRecord;
use crate::disk::Disk;
use crate::error::{DiskError, FatalError, StepError};
use crate::machine::{Machine, Progress, SnapshotToSend};
use crate::snapshot::{SnapshotHeader, SnapshotSource, Staged, Staging};

impl<D: Disk> Replica<D> {
    /// Adds the rows to a snapshot message of raft. None if raft made a newer one meanwhile.
    pub(super) fn to_send(&self, message: Message) -> Option<SnapshotToSend> {
        let peer = message.to;
        let source = self.node.store().take_source(peer)?;
        if source.header_bytes() != message.get_snapshot().data.as_slice() {
            self.node.store().put_source(peer, source);
            return None;
        }
        let message = message.encode_to_vec();
        Some(SnapshotToSend {
            peer,
            message,
            source,
        })
    }

    /// Tells whether the transport delivered a snapshot to `peer`. Without it the peer gets nothing
    /// until [`crate::SNAPSHOT_RETRY_TICKS`] have passed.
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

    /// The whole state as of [`crate::Status::applied`], for a backup. Takes no longer for a larger
    /// state; the bytes are read on any thread.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn snapshot(&self) -> Result<SnapshotSource, DiskError> {
        self.node.store().source()
    }

    /// Starts to stage the rows that belong to a peer's [`SnapshotToSend::message`], giving up what
    /// was staged before.
    ///
    /// # Errors
    /// When the message is refused or reaches no further than what is applied, when another
    /// snapshot waits for `process`, or the disk fails.
    pub fn begin_install(&mut self, message: &[u8]) -> Result<Staging, StepError> {
        let header = self.checked_snapshot(message)?.1;
        let stage = self.node.mut_store().disk_mut().stage()?;
        self.staging = Some(stage.0);
        Ok(Staging::new(header, Some(stage)))
    }

    fn checked_snapshot(&self, message: &[u8]) -> Result<(Message, SnapshotHeader), StepError> {
        let message = self.checked(message)?;
        if message.msg_type != MessageType::MsgSnapshot as i32 {
            return Err(StepError::Malformed("a message without a snapshot"));
        }
        if self.staged.is_some() {
            return Err(StepError::Installing);
        }
        let header = SnapshotHeader::decode_whole(&message.get_snapshot().data)
            .ok_or(StepError::Malformed("snapshot with a damaged header"))?;
        let (offered, applied) = (header.position, self.node.store().applied());
        if offered.index <= applied.index {
            return Err(StepError::NotNeeded { offered, applied });
        }
        Ok((message, header))
    }

    /// Takes a snapshot whose rows are staged. The next `process` adopts them; if raft has no use
    /// for it meanwhile, they are forgotten.
    ///
    /// # Errors
    /// When the message is refused, or other rows than these are staged.
    pub fn step_snapshot(&mut self, message: &[u8], staged: Staged) -> Result<(), StepError> {
        let (message, header) = self.checked_snapshot(message)?;
        if staged.header != header || staged.stage.is_none() || staged.stage != self.staging {
            return Err(StepError::NotStaged);
        }
        self.staging = None;
        let stepped = self.step_checked(message);
        if self
            .node
            .snap()
            .is_some_and(|snapshot| !snapshot.is_empty())
        {
            self.staged = Some(staged);
        }
        stepped
    }

    pub(super) fn install<M: Machine>(
        &mut self,
        machine: &mut M,
        snapshot: &Snapshot,
        hard: HardStateRecord,
        progress: &mut Progress<M::Effect>,
    ) -> Result<(), FatalError> {
        let index = snapshot.get_metadata().index;
        let staged = self.staged.take();
        let staged = staged.filter(|staged| staged.header.position.index == index);
        let (header, stage) = staged
            .and_then(|staged| Some((staged.header, staged.stage?)))
            .ok_or(FatalError::BadSnapshot { index })?;
        let id = header.position;
        self.node.mut_store().install(&header, stage, hard)?;
        machine
            .restore(id, self.node.store().disk())
            .map_err(|source| FatalError::Machine { index, source })?;
        self.proposals
            .on_restored(id, &mut progress.unknown, &mut progress.lost);
        progress.restored = Some(id);
        self.note_members(progress);
        Ok(())
    }

    /// The last entry that every active peer has, if one of them still follows the log. What comes
    /// after it is kept, or that peer would need a snapshot as soon as it has installed one.
    pub(super) fn needed_by_peers(&self) -> Option<u64> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let first = self.node.store().first();
        let has = |(node, progress): (&u64, &raft::Progress)| {
            let has = match progress.state {
                ProgressState::Snapshot => progress.pending_snapshot,
                ProgressState::Probe | ProgressState::Replicate => progress.matched,
            };
            (*node != raft.id && self.is_active(*node) && has + 1 >= first).then_some(has)
        };
        raft.prs().iter().filter_map(has).min()
    }
}
