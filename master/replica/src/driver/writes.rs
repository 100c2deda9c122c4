//! Writes that are not durable yet, and what waits for them.
//!
//! Owns: the number of every write, and the messages that promise what it says. Invariants: writes
//! become durable in the order in which they were made; what waits for one is let go only when it and
//! all before it are durable; term and vote are among what a message promises, whoever sends it.
//! Must never: wait for a disk.

use std::collections::VecDeque;

use raft::StateRole;
use raft::eraftpb::{HardState, Message, MessageType};

use super::Replica;
use crate::disk::{Disk, DiskSync};
use crate::error::DiskError;

/// Bytes of entries beyond which a node whose disk stands still no longer has its leader send more. What it
/// holds then is this and the leader's window of unanswered messages.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// What the owner is to have made durable beside its thread: everything that was written until this
/// job was taken, so that the newest job stands for all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteJob {
    write: u64,
    reclaim_below: Option<u64>,
}

impl WriteJob {
    /// Does it, on any thread; then the owner tells [`Replica::on_written`].
    ///
    /// # Errors
    /// The process must end: what is durable is known only after a restart.
    pub fn run(&self, disk: &mut dyn DiskSync) -> Result<(), DiskError> {
        self.run_and_tell(disk, drop)
    }

    /// Like [`WriteJob::run`], but `done` hears of it as soon as it is durable, before space is given
    /// back, so that nobody waits for that.
    ///
    /// # Errors
    /// As for [`WriteJob::run`], also after `done` was told.
    pub fn run_and_tell(
        &self,
        disk: &mut dyn DiskSync,
        done: impl FnOnce(WriteJob),
    ) -> Result<(), DiskError> {
        disk.sync()?;
        done(*self);
        self.reclaim_below
            .map_or(Ok(()), |below| disk.reclaim_log(below))
    }
}

/// Readies that promise what these writes say.
#[derive(Debug)]
struct Waiting {
    write: u64,
    /// Number of the last ready among them.
    ready: u64,
    messages: Vec<Message>,
}

/// What is written and not known to be durable.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    writes: u64,
    durable: u64,
    /// By rising writes. On a leader its messages are bounded by what may be uncommitted, on a follower by
    /// [`WAITING_BYTES_MAX`] and the leader's window: one that answers no heartbeats is sent nothing more.
    waiting: VecDeque<Waiting>,
    /// Term and vote as they are written, and the write with them.
    vote: (u64, u64),
    voted_in: u64,
    /// What was durable at the last tick, and ticks since it was anything else.
    stalled: (u64, usize),
    /// A cut of the log: its write, and the index below which nothing is left.
    cut: Option<(u64, u64)>,
}

impl Unwritten {
    pub(super) fn new(vote: (u64, u64)) -> Self {
        Unwritten {
            vote,
            ..Unwritten::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.durable == self.writes
    }

    /// Whether term and vote as they will be are durable already.
    pub(super) fn vote_is_durable(&self, hard: Option<&HardState>) -> bool {
        let same = hard.is_none_or(|hard| (hard.term, hard.vote) == self.vote);
        same && self.voted_in <= self.durable
    }

    /// A tick has passed; how many in which nothing became durable of what was to.
    fn tick(&mut self) -> usize {
        let (durable, ticks) = self.stalled;
        let stands = !self.is_empty() && durable == self.durable;
        self.stalled = (self.durable, if stands { ticks + 1 } else { 0 });
        self.stalled.1
    }

    /// A batch was written.
    pub(super) fn add_write(&mut self, hard: Option<&HardState>) {
        self.writes += 1;
        if let Some(hard) = hard
            && (hard.term, hard.vote) != self.vote
        {
            self.vote = (hard.term, hard.vote);
            self.voted_in = self.writes;
        }
    }

    /// The log was cut by a batch.
    pub(super) fn add_cut(&mut self, below: u64) {
        self.add_write(None);
        self.cut = Some((self.writes, below));
    }

    /// A ready that promises everything written so far, and its messages.
    pub(super) fn add_ready(&mut self, ready: u64, messages: Vec<Message>) {
        if let Some(last) = self.waiting.back_mut()
            && last.write == self.writes
        {
            last.ready = ready;
            last.messages.extend(messages);
            return;
        }
        self.waiting.push_back(Waiting {
            write: self.writes,
            ready,
            messages,
        });
    }

    pub(super) fn job(&self) -> Option<WriteJob> {
        let job = WriteJob {
            write: self.writes,
            reclaim_below: self.cut.map(|(_, below)| below),
        };
        (!self.is_empty()).then_some(job)
    }

    /// Writes up to this one are durable: the last ready that waited for them, and all messages.
    fn on_durable(&mut self, write: u64) -> (Option<u64>, Vec<Message>) {
        self.durable = self.durable.max(write.min(self.writes));
        self.cut.take_if(|(cut, _)| *cut <= write);
        let (mut last, mut free) = (None, Vec::new());
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.write <= write) {
            last = Some(waiting.ready);
            free.extend(waiting.messages);
        }
        (last, free)
    }

    /// Everything is durable; the messages that waited.
    pub(super) fn on_all_durable(&mut self) -> Vec<Message> {
        self.on_durable(self.writes).1
    }
}

impl<D: Disk> Replica<D> {
    /// What is to be made durable now, if anything is. Until [`Replica::on_written`] tells that it is,
    /// nothing that promises it leaves, and nothing of it is applied; everything else goes on.
    pub fn unwritten(&self) -> Option<WriteJob> {
        self.unwritten.job().filter(|_| !self.stopped)
    }

    /// The other thread's hold on the disk, for [`WriteJob::run`].
    pub fn syncer(&self) -> Box<dyn DiskSync> {
        self.node.store().disk().syncer()
    }

    /// Takes note that a job of this replica is done. The next `process` does what waited for it.
    pub fn on_written(&mut self, job: WriteJob) {
        if self.stopped {
            return;
        }
        self.node.mut_store().note_sync();
        let (ready, messages) = self.unwritten.on_durable(job.write);
        self.free.extend(messages);
        if let Some(ready) = ready {
            self.node.on_persist_ready(ready);
        }
    }

    /// Whether raft must not be told of time. Who votes alone wins an election at once, and raft takes
    /// for granted that all of the log is durable then.
    pub(super) fn must_write_before_election(&self) -> bool {
        let raft = &self.node.raft;
        let alone = self.group().conf.voters == [raft.id] && !self.group().is_joint();
        alone && raft.state != StateRole::Leader && !self.unwritten.is_empty()
    }

    /// A leader whose disk stands still for as long as it takes to elect another one, while the others
    /// have had enough to commit, is all that the group waits for: entries are applied once they are
    /// durable here. It would go on leading, as its heartbeats do not wait for its disk. So it is when no
    /// entry waits, only a cut of the log: its owner may propose nothing until the disk is done. What
    /// nobody else has is not left behind.
    pub(super) fn leave_to_faster_disks(&mut self) {
        let ticks = self.unwritten.tick();
        let election = self.config.election_ticks;
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let others_have_it = log.committed > log.persisted || log.persisted == log.last_index();
        if raft.state != StateRole::Leader || !others_have_it || ticks == 0 || !ticks.is_multiple_of(election) {
            return;
        }
        let Some(heir) = self.best_successor() else {
            return;
        };
        tracing::warn!(heir, "a disk that stands still: leadership goes to a node that goes on writing");
        self.node.transfer_leader(heir);
    }

    /// Takes out what may leave although it comes with writes that are not durable: the answer to a
    /// heartbeat promises nothing but the term, and without it a leader would take a slow disk for a
    /// node that is gone.
    ///
    /// Each answer has the leader send more, so that none leaves any more once [`WAITING_BYTES_MAX`] wait.
    pub(super) fn harmless(&self, messages: &mut Vec<Message>, vote_is_durable: bool) -> Vec<Message> {
        let answer = MessageType::MsgHeartbeatResponse as i32;
        let may_leave = vote_is_durable && self.node.store().cached_bytes() <= WAITING_BYTES_MAX;
        messages
            .extract_if(.., |message| may_leave && message.msg_type == answer)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hard(term: u64, vote: u64) -> HardState {
        HardState {
            term,
            vote,
            commit: 0,
        }
    }

    fn message(index: u64) -> Message {
        Message {
            index,
            ..Message::default()
        }
    }

    #[test]
    fn what_waits_is_let_go_with_its_write_and_in_order() {
        let mut unwritten = Unwritten::new((5, 0));
        assert_eq!(unwritten.job(), None);
        unwritten.add_write(None);
        unwritten.add_ready(1, vec![message(1)]);
        unwritten.add_ready(2, vec![message(2)]);
        let first = unwritten.job().expect("one write");
        unwritten.add_write(None);
        unwritten.add_ready(3, vec![message(3)]);
        let both = unwritten.job().expect("two writes");
        assert_eq!(
            unwritten.on_durable(first.write),
            (Some(2), vec![message(1), message(2)])
        );
        assert_eq!(unwritten.job(), Some(both));
        assert_eq!(
            unwritten.on_durable(both.write),
            (Some(3), vec![message(3)])
        );
        assert_eq!(unwritten.on_durable(first.write), (None, Vec::new()));
        assert!(unwritten.is_empty());
    }

    #[test]
    fn a_vote_is_durable_with_the_write_that_has_it() {
        let mut unwritten = Unwritten::new((5, 0));
        assert!(unwritten.vote_is_durable(None));
        assert!(unwritten.vote_is_durable(Some(&hard(5, 0))));
        assert!(!unwritten.vote_is_durable(Some(&hard(6, 1))));
        unwritten.add_write(Some(&hard(6, 1)));
        let job = unwritten.job().expect("a write");
        unwritten.add_write(Some(&hard(6, 1)));
        assert!(!unwritten.vote_is_durable(None));
        unwritten.on_durable(job.write);
        assert!(unwritten.vote_is_durable(None) && !unwritten.is_empty());
    }

    #[test]
    fn a_cut_is_reclaimed_by_the_job_that_makes_it_durable() {
        let mut unwritten = Unwritten::new((5, 0));
        unwritten.add_write(None);
        let before = unwritten.job().expect("a write");
        unwritten.add_cut(30);
        let with = unwritten.job().expect("a cut");
        assert_eq!((before.reclaim_below, with.reclaim_below), (None, Some(30)));
        unwritten.on_durable(before.write);
        assert_eq!(unwritten.job(), Some(with));
        unwritten.on_durable(with.write);
        unwritten.add_write(None);
        assert_eq!(unwritten.job().and_then(|job| job.reclaim_below), None);
    }
}
