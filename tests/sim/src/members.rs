//! Who belongs to the masters: joining, becoming a voter, taking the place of a lost disk.
//!
//! Invariants: at most one address at a time is without its vote on purpose, so that what the faults take
//! leaves a quorum; an address that lost its disk comes back under a new node. Must never write to a disk
//! that has an owner.

use crate::calls::NOBODY;
use crate::disk::FaultyDisk;
use crate::master::{Master, attributes, identity, info_of};
use crate::mutation::Mutation;
use crate::queue::Event;
use crate::world::World;
use tessera_master::node::Node;
use tessera_master::upkeep::plan::{Known, Replies, Topology, plan, too_old, understood_by_all};
use tessera_master_core::{CLUSTER_VERSION, Principal, Request};
use tessera_replica::{JoinId, MemDisk, MemberChange, MemberRole, Replica};
use tessera_wire::v1;

/// What a member said so long ago says nothing any more, in us.
const SILENT_US: u64 = 3_000_000;
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
            (0..self.masters.len()).map(|slot| (slot as u64 + 1, attributes(slot, CLUSTER_VERSION))).collect();
        if Replica::bootstrap_voters(&mut disk, identity(self.era, number), &list).is_ok() {
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
        let others: Vec<usize> = others.collect();
        let said = self.masters[leader].node.as_ref();
        let told = said.and_then(|node| Some((node.identity().node, node.core().time_ms()?)));
        for slot in &others {
            if let Some((number, time_ms)) = told
                && let Some(node) = &mut self.masters[*slot].node
                && node.leader() == Some(number)
            {
                node.query(|core, _, _| core.told_time(time_ms));
            }
        }
        let heard: Vec<_> = others.into_iter().filter_map(|slot| self.said_by(slot)).collect();
        for said in heard {
            self.masters[leader].files.heard.insert(said.node, (self.now_us, said));
        }
    }

    /// What a member says when the leader asks it how it is.
    fn said_by(&self, slot: usize) -> Option<v1::MasterStatusReply> {
        let master = &self.masters[slot];
        let status = master.node.as_ref()?.status();
        Some(v1::MasterStatusReply {
            node: status.node,
            term: status.term,
            applied_index: status.applied.index,
            software_version: String::new(),
            understands: master.understands,
            components_missing: self.says_missing(slot),
            member: Some(info_of(slot, master.understands)),
        })
    }

    /// Whether a master stops that does not vote, as the cluster has outgrown its build: then it is started with a
    /// newer one.
    pub(crate) fn is_outgrown(&mut self, slot: usize) -> bool {
        let Some(leader) = self.leading() else { return false };
        let (membership, version) = (leader.membership(), leader.core().cluster_version());
        let member = self.masters[slot].number.and_then(|node| membership.get(node));
        let learns = member.is_some_and(|member| member.role == MemberRole::Learner);
        if !learns || self.masters[slot].understands >= version {
            return false;
        }
        self.masters[slot].understands = version;
        self.oracle.saw("a learner is started with a newer build");
        true
    }

    /// The members as a leader sees them, and what those say of themselves that it has heard lately.
    fn view_of(&self, leader: usize) -> Option<(Topology, Replies)> {
        let master = &self.masters[leader];
        let node = master.node.as_ref()?;
        let mut view = Topology::new(node.identity());
        view.leads = true;
        view.set_membership(node.membership().clone());
        let lately = master.files.heard.iter().filter(|(_, (at_us, _))| at_us + SILENT_US >= self.now_us);
        Some((view, lately.map(|(node, (_, said))| (*node, said.clone())).collect()))
    }

    /// Once all voters understand the next version of the cluster, it is raised.
    fn raise_version(&mut self, leader: usize) {
        let early = self.mutation == Some(Mutation::VersionRaisedEarly);
        let Some((view, replies)) = self.view_of(leader) else { return };
        let master = &self.masters[leader];
        let all = match early {
            true => self.masters.iter().map(|master| master.understands).max().unwrap_or(0),
            false => understood_by_all(&view, &info_of(leader, master.understands), &replies),
        };
        let present = master.node.as_ref().map_or(0, |node| node.core().cluster_version());
        if all > present {
            // The leader asks itself; if nothing comes of it, it asks again.
            let now = self.masters[leader].now(self.now_us);
            let ticket = self.masters[leader].number();
            self.masters[leader].requests.insert(ticket, NOBODY);
            let (principal, request) = (Principal::administrator(), Request::SetClusterVersion { version: all });
            self.feed(leader, |core| core.on_request(ticket, &principal, request, now));
            self.settle_soon(leader);
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
        let version = node.core().cluster_version();
        let Some(given) = membership.node_of(join) else {
            if too_old(&info_of(slot, self.masters[slot].understands), version).is_some() {
                // What it says is what the operator does.
                self.masters[slot].understands = version;
                return self.oracle.saw("a build that is too old to join is replaced by a newer one");
            }
            let node = membership.next_node;
            let attributes = attributes(slot, master.understands);
            let change = MemberChange::AddLearner { node, attributes, join };
            return self.change_members(leader, &change);
        };
        let mut disk = MemDisk::new();
        if let Err(error) = Replica::prepare_joiner(&mut disk, identity(self.era, given)) {
            return self.oracle.violate(format!("an empty disk is refused: {error}"));
        }
        // Another attempt begins with another disk.
        let disks = self.masters[slot].disks;
        self.masters[slot].put_disk(disk, Some(given));
        self.masters[slot].disks = disks;
        self.journal.line(now_us, &format!("master {slot}: is node {given} now"));
        self.queue.at(now_us + self.rng.range(1_000, 500_000), Event::MasterStart { master: slot });
    }

    /// What the leader's steward does next.
    fn next_change(&self, leader: usize) -> Option<MemberChange> {
        let (view, replies) = self.view_of(leader)?;
        let master = &self.masters[leader];
        let node = master.node.as_ref()?;
        let known = Known::of(node.core(), &node.status());
        plan(&view, &info_of(leader, master.understands), &replies, &known)
    }
}
