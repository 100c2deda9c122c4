//! Who belongs to the masters: joining, becoming a voter, taking the place of a lost disk.
//!
//! Invariants: at most one address at a time is without its vote on purpose, so that what the faults take
//! leaves a quorum; an address that lost its disk comes back under a new node. Must never write to a disk
//! that has an owner.

use crate::calls::Ask;
use crate::disk::FaultyDisk;
use crate::master::{Master, attributes, identity};
use crate::mutation::Mutation;
use crate::queue::Event;
use crate::world::World;
use tessera_master::node::Node;
use tessera_master::upkeep::rules::lacks;
use tessera_master_core::{CLUSTER_VERSION, Request};
use tessera_replica::{JoinId, MemDisk, MemberChange, MemberRole, Replica};

/// How often somebody looks after the members, as the real leader does.
const STEWARD_US: u64 = 500_000;

impl World {
    /// Whether every address has a disk that votes.
    pub(crate) fn all_vote(&self) -> bool {
        let Some(leader) = self.leading() else { return false };
        let membership = leader.membership();
        let votes = |number: u64| {
            membership.get(number).is_some_and(|member| member.role == MemberRole::Voter)
        };
        !membership.changing
            && membership.members.len() == self.masters.len()
            && self.masters.iter().all(|master| master.number.is_some_and(votes))
    }

    /// Whether every address votes and runs, and no log holds anything that is not applied everywhere, such
    /// as another change of the members: then one of them may be lost.
    pub(crate) fn all_well(&self) -> bool {
        let Some(leader) = self.leading().filter(|_| self.all_vote()) else { return false };
        let index = leader.status().applied.index;
        let even = |node: &Node<FaultyDisk>| {
            let status = node.status();
            status.applied.index == index && status.last_index == index
        };
        let well = |master: &Master| master.node.as_ref().is_some_and(even);
        self.oracle.flipped.is_empty() && self.masters.iter().all(well) && self.files_even()
    }

    /// The disk of an address that is down is lost.
    pub(crate) fn master_loses_disk(&mut self, slot: usize) {
        self.journal.line(self.now_us, &format!("master {slot}: begins with an empty disk"));
        self.masters[slot].put_disk(MemDisk::new(), None);
        self.oracle.flipped.remove(&slot);
        self.damaged.retain(|(damaged, _)| *damaged != slot);
    }

    /// Mutation: an empty disk takes the number of the one that was lost.
    pub(crate) fn node_begins_again(&mut self, slot: usize) {
        let Some(number) = self.masters[slot].number else { return };
        let mut disk = MemDisk::new();
        let list: Vec<(u64, Vec<u8>)> =
            (0..self.masters.len()).map(|slot| (slot as u64 + 1, attributes(slot))).collect();
        if Replica::bootstrap_voters(&mut disk, identity(number), &list).is_ok() {
            self.masters[slot].put_disk(disk, Some(number));
        }
        self.queue.at(self.now_us + 100_000, Event::MasterStart { master: slot });
    }

    pub(crate) fn look_after_members(&mut self) {
        let now_us = self.now_us;
        self.queue.at(now_us + STEWARD_US, Event::Steward);
        let Some(leader) = self.leader().filter(|leader| self.masters[*leader].runs(now_us)) else {
            return;
        };
        for slot in 0..self.masters.len() {
            let both = self.net.hears(now_us, slot, leader) && self.net.hears(now_us, leader, slot);
            let due = now_us >= self.masters[slot].joins_us || !self.faults_on;
            if self.masters[slot].number.is_none() && both && due {
                if self.masters[slot].joins_us > 0 {
                    self.oracle.saw("a master joins a cluster that grows");
                }
                self.master_joins(leader, slot);
            }
        }
        self.raise_version(leader);
        self.ask_members(leader);
        let Some(change) = self.next_change(leader) else { return };
        self.change_members(leader, &change);
    }

    /// The leader asks the members how they are; what it heard of one that is silent stays.
    fn ask_members(&mut self, leader: usize) {
        let others = (0..self.masters.len()).filter(|slot| {
            let both = self.net.hears(self.now_us, *slot, leader) && self.net.hears(self.now_us, leader, *slot);
            *slot != leader && both && self.masters[*slot].runs(self.now_us)
        });
        let heard: Vec<_> =
            others.filter_map(|slot| Some((self.masters[slot].number?, self.said_by(slot)?))).collect();
        self.masters[leader].files.heard.extend(heard);
    }

    /// Once all builds understand the next version of the cluster, it is raised.
    fn raise_version(&mut self, leader: usize) {
        let early = self.mutation == Some(Mutation::VersionRaisedEarly);
        let understand = self.masters.iter().filter(|master| master.understands > CLUSTER_VERSION).count();
        let enough = if early { understand > 0 } else { understand == self.masters.len() };
        let present = self.masters[leader].node.as_ref().map_or(0, |node| node.core().cluster_version());
        let raised = present > CLUSTER_VERSION;
        let asked = self.calls.asks(|request| matches!(request, Request::SetClusterVersion { .. }));
        if enough && !raised && !asked {
            let version = CLUSTER_VERSION + 1;
            self.ask(Ask::Change(Request::SetClusterVersion { version }), None);
        } else if present < CLUSTER_VERSION && !asked {
            let version = CLUSTER_VERSION;
            self.ask(Ask::Change(Request::SetClusterVersion { version }), None);
        }
    }

    pub(crate) fn change_members(&mut self, leader: usize, change: &MemberChange) {
        let Some(node) = &mut self.masters[leader].node else { return };
        let line = match node.propose_change(change) {
            Ok(id) => format!("master {leader}: proposes {change:?} as {id}"),
            Err(error) => format!("master {leader}: does not do {change:?}: {error}"),
        };
        self.journal.line(self.now_us, &line);
        self.settle_soon(leader);
    }

    /// An address without a node asks the leader for one.
    fn master_joins(&mut self, leader: usize, slot: usize) {
        let now_us = self.now_us;
        let master = &self.masters[slot];
        let slot_byte = u8::try_from(slot).unwrap_or(u8::MAX);
        let join = JoinId([[slot_byte; 8], [master.disks; 8]].concat().try_into().unwrap_or([0; 16]));
        let Some(node) = &self.masters[leader].node else { return };
        let membership = node.membership();
        let Some(given) = membership.node_of(join) else {
            let node = membership.next_node;
            let change = MemberChange::AddLearner { node, attributes: attributes(slot), join };
            return self.change_members(leader, &change);
        };
        let mut disk = MemDisk::new();
        if let Err(error) = Replica::prepare_joiner(&mut disk, identity(given)) {
            return self.oracle.violate(format!("an empty disk is refused: {error}"));
        }
        // Another attempt begins with another disk.
        let disks = self.masters[slot].disks;
        self.masters[slot].put_disk(disk, Some(given));
        self.masters[slot].disks = disks;
        self.journal.line(now_us, &format!("master {slot}: is node {given} now"));
        self.queue.at(now_us + self.rng.range(1_000, 500_000), Event::MasterStart { master: slot });
    }

    /// What the leader's steward does next: see `plan` there.
    fn next_change(&self, leader: usize) -> Option<MemberChange> {
        let node = self.masters[leader].node.as_ref()?;
        let (membership, status) = (node.membership(), node.status());
        let learners = membership.members.iter().filter(|member| member.role == MemberRole::Learner);
        for learner in learners {
            let peer = status.peers.iter().find(|peer| peer.node == learner.node);
            let said = self.masters[leader].files.heard.get(&learner.node).copied();
            if lacks(said, peer).is_some() {
                continue;
            }
            let earlier = membership.members.iter().find(|member| {
                member.node < learner.node && member.attributes == learner.attributes
            });
            return Some(match earlier {
                Some(old) if old.role == MemberRole::Voter => {
                    MemberChange::Replace { remove: old.node, promote: learner.node }
                }
                Some(old) => MemberChange::Remove { node: old.node },
                None => MemberChange::Promote { node: learner.node },
            });
        }
        None
    }
}
