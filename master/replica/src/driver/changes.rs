//! Changes of the members as raft sees them.
//!
//! Owns: proposing a change, telling raft what an applied one did, ending a replacement, and the
//! end of a node that was removed. Invariants: raft's members equal those on the disk after every
//! call; a removed node never leads and never stands for election.
//! Must never: judge a change; `change.rs` does.

use prost_raft::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Message, MessageType};

use super::{Out, Replica};
use crate::change::{self, MemberChange, PeerView};
use crate::config::REMOVED_LINGER_TICKS;
use crate::disk::Disk;
use crate::error::{ChangeError, FatalError};
use crate::machine::{EntryId, Progress};
use crate::membership::{Group, MemberRole, Membership, same_conf};

impl<D: Disk> Replica<D> {
    pub(super) fn group(&self) -> &Group {
        self.node.store().group()
    }

    /// The members as of the last applied entry.
    pub fn membership(&self) -> &Membership {
        &self.group().membership
    }

    pub(super) fn is_active(&self, peer: u64) -> bool {
        self.activity.is_active(peer, self.config.election_ticks)
    }

    /// Appends a change of the members to the log. The id names it until it is in
    /// [`Progress::changed`], `lost` or `unknown`.
    ///
    /// # Errors
    /// The change is refused, nothing happened, and the error says what to do.
    pub fn propose_change(&mut self, change: &MemberChange) -> Result<EntryId, ChangeError> {
        if self.stopped {
            return Err(ChangeError::Stopped);
        }
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || self.led_term != Some(raft.term) {
            let leader = self.leader();
            return Err(ChangeError::NotLeader { leader });
        }
        if self.group().is_joint() || raft.has_pending_conf() || raft.lead_transferee.is_some() {
            return Err(ChangeError::InProgress);
        }
        let view = |(node, progress): (&u64, &raft::Progress)| PeerView {
            node: *node,
            matched: progress.matched,
            active: self.is_active(*node),
        };
        let peers: Vec<PeerView> = raft.prs().iter().map(view).collect();
        let last = raft.raft_log.last_index();
        change::check(change, self.group(), raft.id, last, &peers)?;
        let votes = |node: u64| {
            let member = self.membership().get(node);
            member.is_some_and(|member| member.role == MemberRole::Voter)
        };
        let told = change::to_raft(change, votes);
        self.node
            .propose_conf_change(Vec::new(), told)
            .map_err(|_| ChangeError::InProgress)?;
        Ok(self.note_proposal())
    }

    /// Ends a replacement that is half done, whoever began it.
    pub(super) fn finish_replacement(&mut self) {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader && self.led_term == Some(raft.term);
        if leads && self.group().is_joint() && !raft.has_pending_conf() {
            // Refused only while leadership is being handed over; the next call tries again.
            if let Err(error) = self
                .node
                .propose_conf_change(Vec::new(), ConfChangeV2::default())
            {
                tracing::debug!(%error, "the end of a replacement has to wait");
            }
        }
    }

    /// Tells raft of changes that are applied on the disk.
    pub(super) fn change_group<E>(
        &mut self,
        changes: Vec<(u64, ConfChangeV2, Group)>,
        progress: &mut Progress<E>,
    ) -> Result<(), FatalError> {
        let changed = !changes.is_empty();
        for (index, raft, after) in changes {
            let conf = self.node.apply_conf_change(&raft);
            if !conf.is_ok_and(|conf| same_conf(&conf, &after.conf)) {
                return Err(FatalError::MembersDisagree { index });
            }
        }
        if changed {
            self.note_members(progress);
        }
        Ok(())
    }

    /// Reports the members, and finds out whether this node still is one.
    pub(super) fn note_members<E>(&mut self, progress: &mut Progress<E>) {
        let membership = self.membership().clone();
        self.activity.retain(|peer| membership.get(peer).is_some());
        let me = self.node.raft.id;
        if membership.get(me).is_none() && !self.removed {
            self.removed = true;
            progress.removed = true;
            self.proposals.give_up(&mut progress.unknown);
            if self.node.raft.state == StateRole::Leader {
                // Raft would go on leading a group that it is no part of.
                let term = self.node.raft.term;
                self.node.raft.become_follower(term, raft::INVALID_ID);
            }
        }
        progress.membership = Some(membership);
    }

    /// Takes the word of `peer` that this node was removed: it refused a message with
    /// [`crate::StepError::RemovedPeer`], so the removal is durable there. When most of the other
    /// voters say so, or some seconds later, `process` ends with [`FatalError::Removed`]: before
    /// that, one of them may still need the vote of this node to learn what was decided.
    pub fn on_told_removed(&mut self, peer: u64) {
        self.told_by.insert(peer);
    }

    pub(super) fn check_removed(&self) -> Result<(), FatalError> {
        let me = self.node.raft.id;
        let others = self.membership().voters().filter(|node| *node != me);
        let by_most = self.told_by.len() > others.count() / 2;
        if !by_most && self.told_ticks < REMOVED_LINGER_TICKS {
            return Ok(());
        }
        Err(FatalError::Removed {
            cluster: self.config.identity.cluster,
            node: me,
        })
    }

    /// A removed node is sent nothing any more. One that was removed while it was away asks voters
    /// that may be gone themselves, and a learner does not even stand for election.
    pub(super) fn count_silence(&mut self) {
        self.told_ticks += u32::from(!self.told_by.is_empty());
        let led = self.leader().is_some_and(|leader| self.is_active(leader));
        let leads = self.node.raft.state == StateRole::Leader;
        if self.removed || !leads && !led {
            self.silence += 1;
        } else {
            self.silence = 0;
        }
    }

    /// A node that hears of no leader says something harmless to every member from time to time;
    /// those that know of its removal refuse it.
    pub(super) fn ask_whether_removed(&mut self, out: Out<'_>) {
        if self.silence < self.config.election_ticks {
            return;
        }
        self.silence = 0;
        let raft = &self.node.raft;
        let members = self.membership().members.iter().map(|member| member.node);
        for peer in members.filter(|node| *node != raft.id) {
            let mut message = Message {
                to: peer,
                from: raft.id,
                term: raft.term,
                ..Message::default()
            };
            message.set_msg_type(MessageType::MsgHeartbeatResponse);
            out.send(peer, message.encode_to_vec());
        }
    }

    /// The voter that would take over with the least delay: it answers, and holds the most of the
    /// log.
    pub fn best_successor(&self) -> Option<u64> {
        let raft = &self.node.raft;
        let heirs = self.group().conf.voters.iter().copied();
        heirs
            .filter(|node| *node != raft.id && self.is_active(*node))
            .filter_map(|node| Some((raft.prs().get(node)?.matched, std::cmp::Reverse(node))))
            .max()
            .map(|(_, std::cmp::Reverse(node))| node)
    }
}
