//! What masters send each other: messages of raft, and snapshots piece by piece.
//!
//! Invariants: a message reaches the node that it is meant for or nobody; a snapshot is taken with the
//! steps of the real transport, each of which may be its last. Must never change what is sent.

use crate::disk::SnapshotFault;
use crate::master::Inbound;
use crate::queue::{Event, Letter};
use crate::world::World;
use tessera_replica::{SnapshotToSend, Staging, StepError};

/// Time between two pieces of a snapshot, in us.
const PIECE_US: u64 = 30_000;
/// Pieces that a chunk of a snapshot is cut into, at most: states are small here.
const PIECES_MAX: u64 = 4;

/// A snapshot on its way.
pub(crate) struct Transfer {
    from: usize,
    from_life: u64,
    to: usize,
    to_life: Option<u64>,
    snapshot: SnapshotToSend,
    staging: Option<Box<Staging>>,
    /// What was read and not written yet.
    rest: Vec<u8>,
}

impl World {
    /// The address under which a node is.
    pub(crate) fn slot_of(&self, node: u64) -> Option<usize> {
        self.masters.iter().find(|master| master.number == Some(node)).map(|master| master.slot)
    }

    /// Send messages of a master.
    pub(crate) fn post(&mut self, slot: usize, messages: Vec<(u64, Vec<u8>)>) {
        let now_us = self.now_us;
        let Some(number) = self.masters[slot].number else { return };
        for (to, bytes) in messages {
            let Some(target) = self.slot_of(to) else { continue };
            let times = self.net.between(now_us, slot, target);
            if times.is_empty() && self.rng.chance(50) {
                // The sender's transport finds that nobody takes it.
                if let Some(node) = &mut self.masters[slot].node {
                    node.report_unreachable(to);
                }
            }
            for at_us in times {
                let letter = Letter { from: (slot, number), to: (target, to), bytes: bytes.clone() };
                self.queue.at(at_us, Event::Raft { letter });
            }
        }
    }

    /// A message arrives at a machine.
    pub(crate) fn letter_arrives(&mut self, letter: Letter) {
        let ((from, _), (slot, to)) = (letter.from, letter.to);
        if self.masters[slot].number == Some(to) && self.net.hears(self.now_us, from, slot) {
            self.master_inbound(slot, Inbound::Raft { letter });
        }
    }

    /// A master takes one.
    pub(crate) fn master_steps(&mut self, slot: usize, letter: &Letter) {
        let Some(node) = &mut self.masters[slot].node else { return };
        match node.step(&letter.bytes) {
            Ok(()) => {}
            Err(StepError::RemovedPeer(peer)) => {
                let (from, number) = letter.from;
                if peer == number && self.net.hears(self.now_us, slot, from) {
                    self.master_told_removed(from, number, slot);
                }
            }
            Err(error @ StepError::LostLog { .. }) => {
                self.oracle.violate(format!("master {slot} lost what it acknowledged: {error}"));
            }
            // An answer to what was asked while it was a member, or a snapshot that was overtaken.
            Err(
                StepError::UnknownPeer(_)
                | StepError::NotStaged
                | StepError::NotNeeded { .. }
                | StepError::Installing
                | StepError::Stopped,
            ) => {}
            Err(error) => {
                let (from, _) = letter.from;
                self.oracle.violate(format!("master {slot} refuses a message of master {from}: {error}"));
            }
        }
    }

    pub(crate) fn send_snapshots(&mut self, from: usize, snapshots: Vec<SnapshotToSend>) {
        for snapshot in snapshots {
            let peer = snapshot.peer;
            let from_life = self.masters[from].life;
            let Some(to) = self.slot_of(peer).filter(|to| self.masters[*to].number == Some(peer)) else {
                if let Some(node) = &mut self.masters[from].node {
                    node.report_snapshot(peer, false);
                }
                continue;
            };
            self.journal.line(self.now_us, &format!("master {from}: sends a snapshot to master {to}"));
            let transfer = self.fresh();
            let under_way =
                Transfer { from, from_life, to, to_life: None, snapshot, staging: None, rest: Vec::new() };
            self.transfers.insert(transfer, under_way);
            self.queue.at(self.now_us + self.rng.range(100, PIECE_US), Event::Snapshot { transfer });
        }
    }

    /// A snapshot gets a piece further.
    pub(crate) fn snapshot_goes_on(&mut self, id: u64) {
        let now_us = self.now_us;
        let Some(mut transfer) = self.transfers.remove(&id) else { return };
        let (from, to) = (transfer.from, transfer.to);
        let sender = &self.masters[from];
        if sender.life != transfer.from_life || sender.node.is_none() {
            return;
        }
        let receiver = &self.masters[to];
        let there = receiver.number == Some(transfer.snapshot.peer)
            && receiver.node.is_some()
            && transfer.to_life.is_none_or(|life| life == receiver.life)
            && self.net.hears(now_us, from, to)
            && self.net.hears(now_us, to, from);
        if !there {
            return self.snapshot_ends(&transfer, false);
        }
        if !sender.runs(now_us) || !receiver.runs(now_us) {
            // It waits for who is stopped.
            let at_us = sender.looks_again_us(now_us).max(receiver.looks_again_us(now_us)) + 1;
            self.transfers.insert(id, transfer);
            return self.queue.at(at_us, Event::Snapshot { transfer: id });
        }
        transfer.to_life = Some(receiver.life);
        let next = self.next_piece(&mut transfer);
        self.note_snapshot_fault(to);
        match next {
            Ok(true) => {
                self.transfers.insert(id, transfer);
                let at_us = now_us + self.rng.range(100, PIECE_US);
                self.queue.at(at_us, Event::Snapshot { transfer: id });
            }
            Ok(false) => {
                self.journal.line(now_us, &format!("master {to}: has the snapshot of master {from}"));
                self.snapshot_ends(&transfer, true);
                if self.masters[to].disk.ends_before_adoption() {
                    self.note_snapshot_fault(to);
                    self.master_crash(to);
                }
            }
            Err(why) => {
                self.journal.line(now_us, &format!("master {to}: does not take a snapshot: {why}"));
                self.snapshot_ends(&transfer, false);
            }
        }
    }

    /// If something went wrong with a snapshot that a master takes, it is noted; what it was.
    pub(crate) fn note_snapshot_fault(&mut self, slot: usize) -> Option<SnapshotFault> {
        let struck = self.masters[slot].disk.struck()?;
        self.journal.line(self.now_us, &format!("fault: master {slot}: {}", struck.name()));
        self.oracle.saw(struck.name());
        Some(struck)
    }

    fn snapshot_ends(&mut self, transfer: &Transfer, delivered: bool) {
        let sender = &mut self.masters[transfer.from];
        if sender.life == transfer.from_life
            && let Some(node) = &mut sender.node
        {
            node.report_snapshot(transfer.snapshot.peer, delivered);
        }
    }

    /// Whether more follows.
    fn next_piece(&mut self, transfer: &mut Transfer) -> Result<bool, String> {
        let Some(node) = &mut self.masters[transfer.to].node else { return Ok(true) };
        let message = &transfer.snapshot.message;
        let mut staging = match transfer.staging.take() {
            Some(staging) => staging,
            None => {
                let staging = node.begin_install(message).map_err(|error| error.to_string())?;
                let to = &mut self.masters[transfer.to];
                if let Some(fault) = to.snapshot_fault.take() {
                    to.disk.spoil_snapshot(fault);
                }
                Box::new(staging)
            }
        };
        if transfer.rest.is_empty() {
            let chunk = transfer.snapshot.source.next_chunk().map_err(|error| error.to_string())?;
            transfer.rest = chunk.map(|chunk| chunk.bytes).unwrap_or_default();
        }
        let len = transfer.rest.len();
        let piece = len.min(1 + len / self.rng.range(1, PIECES_MAX) as usize);
        let rest = transfer.rest.split_off(piece);
        let bytes = std::mem::replace(&mut transfer.rest, rest);
        staging.write(staging.offset(), &bytes).map_err(|error| error.to_string())?;
        let staged = match staging.finish() {
            Ok(staged) => staged,
            Err((_, staging)) => {
                transfer.staging = Some(staging);
                return Ok(true);
            }
        };
        let Some(node) = &mut self.masters[transfer.to].node else { return Ok(true) };
        node.step_snapshot(message, staged).map_err(|error| error.to_string())?;
        self.settle_soon(transfer.to);
        Ok(false)
    }
}
