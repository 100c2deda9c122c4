//! Who belongs to the group: members with what they say of themselves, and node ids.
//!
//! Owns: the member list beside raft's own, and how one change of members changes both.
//! Invariants: a node id is given out once, in rising order, so a number below `next_node` that is
//! no member was removed for good; the result of a change depends on the list and the change alone.
//! Must never: judge whether a change is wise now; `change.rs` does that for the leader.

use std::collections::BTreeSet;

use raft::eraftpb::ConfState;

use crate::change::MemberChange;
use crate::config::{MAX_ATTRIBUTES_BYTES, MAX_JOIN_IDS, MAX_MEMBERS};

/// Names one attempt of a new master to join, chosen by it at random before it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinId(pub [u8; 16]);

/// What a member does in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// It votes and can lead.
    Voter,
    /// It only receives.
    Learner,
}

/// One member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its node id.
    pub node: u64,
    /// Its part.
    pub role: MemberRole,
    /// What it says of itself, opaque here.
    pub attributes: Vec<u8>,
}

/// The members as of the last applied entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// All members by rising node id.
    pub members: Vec<Member>,
    /// The id of the next node to be added. Lower ones are members or were removed.
    pub next_node: u64,
    /// The newest attempts to join and the node id that each was given, oldest first.
    pub joins: Vec<(JoinId, u64)>,
    /// A replacement is half done: both the old and the new voters must agree.
    pub changing: bool,
}

/// How a node stands to this group, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A member.
    Member,
    /// It was a member and was removed; its id never comes back.
    Removed,
    /// Not known here. It may have been added by an entry that this replica has not applied yet.
    Unknown,
}

impl Membership {
    /// The member with this id.
    pub fn get(&self, node: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The node id that an attempt to join was given.
    pub fn node_of(&self, join: JoinId) -> Option<u64> {
        let found = self.joins.iter().find(|(id, _)| *id == join);
        found.map(|(_, node)| *node)
    }

    /// Ids of all members that vote.
    pub fn voters(&self) -> impl Iterator<Item = u64> {
        let votes = |member: &&Member| member.role == MemberRole::Voter;
        self.members.iter().filter(votes).map(|member| member.node)
    }

    /// How `node` stands to the group.
    pub fn standing(&self, node: u64) -> Standing {
        if self.get(node).is_some() {
            Standing::Member
        } else if node < self.next_node {
            Standing::Removed
        } else {
            Standing::Unknown
        }
    }
}

/// Raft's member list and ours, which change together.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Group {
    pub conf: ConfState,
    pub membership: Membership,
}

/// Whether two of raft's lists name the same members; their order means nothing.
pub(crate) fn same_conf(one: &ConfState, other: &ConfState) -> bool {
    let set = |nodes: &[u64]| nodes.iter().copied().collect::<BTreeSet<u64>>();
    let lists = |conf: &ConfState| {
        [
            set(&conf.voters),
            set(&conf.learners),
            set(&conf.voters_outgoing),
            set(&conf.learners_next),
        ]
    };
    lists(one) == lists(other) && one.auto_leave == other.auto_leave
}

/// Every node that takes part in `conf`, rising.
pub(crate) fn nodes_of(conf: &ConfState) -> Vec<u64> {
    let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners];
    let all: BTreeSet<u64> = lists.into_iter().flatten().copied().collect();
    all.into_iter().collect()
}

impl Group {
    /// A group of voters only.
    pub(crate) fn of_voters(mut voters: Vec<(u64, Vec<u8>)>) -> Self {
        voters.sort();
        let conf = ConfState {
            voters: voters.iter().map(|(node, _)| *node).collect(),
            ..ConfState::default()
        };
        let next_node = conf.voters.last().map_or(1, |last| last + 1);
        let empty = Membership {
            next_node,
            ..Membership::default()
        };
        Group::new(conf, empty, &|node| {
            let known = voters.iter().find(|(other, _)| *other == node);
            known.map_or_else(Vec::new, |(_, attributes)| attributes.clone())
        })
    }

    /// Takes the members from `conf`, and for each what `attributes` says of it.
    pub(crate) fn new(
        conf: ConfState,
        mut membership: Membership,
        attributes: &dyn Fn(u64) -> Vec<u8>,
    ) -> Self {
        let member = |node: u64| Member {
            node,
            role: if conf.voters.contains(&node) || conf.voters_outgoing.contains(&node) {
                MemberRole::Voter
            } else {
                MemberRole::Learner
            },
            attributes: attributes(node),
        };
        membership.members = nodes_of(&conf).into_iter().map(member).collect();
        membership.changing = !conf.voters_outgoing.is_empty();
        Group { conf, membership }
    }

    /// Nobody votes twice, and the two lists name the same members.
    pub(crate) fn is_sound(&self) -> bool {
        let listed = self.membership.members.iter().map(|member| member.node);
        let below_next = |node: &u64| (1..self.membership.next_node).contains(node);
        nodes_of(&self.conf).into_iter().eq(listed)
            && nodes_of(&self.conf).iter().all(below_next)
            && self.membership.members.len() <= MAX_MEMBERS
            && self.membership.joins.len() <= MAX_JOIN_IDS
    }

    pub(crate) fn is_joint(&self) -> bool {
        !self.conf.voters_outgoing.is_empty()
    }

    pub(crate) fn contains(&self, node: u64) -> bool {
        self.membership.get(node).is_some()
    }

    /// The group after `change`, or why the change does not fit it. `None` ends a replacement.
    pub(crate) fn after(&self, change: Option<&MemberChange>) -> Result<Group, &'static str> {
        let (mut conf, mut membership) = (self.conf.clone(), self.membership.clone());
        let mut told: Option<(u64, Vec<u8>)> = None;
        if change.is_some() && self.is_joint() {
            return Err("a replacement is not finished");
        }
        match change {
            None if !self.is_joint() => return Err("there is no replacement to finish"),
            None => conf.voters_outgoing.clear(),
            Some(MemberChange::AddLearner {
                node,
                attributes,
                join,
            }) => {
                if *node != membership.next_node {
                    return Err("the node id is not the next one");
                }
                if membership.members.len() >= MAX_MEMBERS {
                    return Err("the group has as many members as it can");
                }
                conf.learners.push(*node);
                membership.next_node += 1;
                membership.joins.push((*join, *node));
                let excess = membership.joins.len().saturating_sub(MAX_JOIN_IDS);
                membership.joins.drain(..excess);
                told = Some((*node, attributes.clone()));
            }
            Some(MemberChange::Promote { node }) => self.promote(*node, &mut conf)?,
            Some(MemberChange::Remove { node }) => Self::remove(*node, &mut conf)?,
            Some(MemberChange::Replace { remove, promote }) => {
                if !self.conf.voters.contains(remove) {
                    return Err("the node to be replaced is not a voter");
                }
                conf.voters_outgoing = self.conf.voters.clone();
                self.promote(*promote, &mut conf)?;
                Self::remove(*remove, &mut conf)?;
            }
            Some(MemberChange::Update { node, attributes }) => {
                if !self.contains(*node) {
                    return Err("the node is not a member");
                }
                told = Some((*node, attributes.clone()));
            }
        }
        if told
            .as_ref()
            .is_some_and(|(_, told)| told.len() > MAX_ATTRIBUTES_BYTES)
        {
            return Err("a member says more of itself than is kept");
        }
        if conf.voters.is_empty() {
            return Err("nobody would vote");
        }
        Ok(Group::new(conf, membership, &|node| match &told {
            Some((about, attributes)) if *about == node => attributes.clone(),
            _ => self
                .membership
                .get(node)
                .map_or_else(Vec::new, |member| member.attributes.clone()),
        }))
    }

    fn promote(&self, node: u64, conf: &mut ConfState) -> Result<(), &'static str> {
        if !self.conf.learners.contains(&node) {
            return Err("the node to be promoted is not a learner");
        }
        conf.learners.retain(|other| *other != node);
        conf.voters.push(node);
        conf.voters.sort_unstable();
        Ok(())
    }

    fn remove(node: u64, conf: &mut ConfState) -> Result<(), &'static str> {
        let before = conf.voters.len() + conf.learners.len();
        conf.voters.retain(|other| *other != node);
        conf.learners.retain(|other| *other != node);
        if conf.voters.len() + conf.learners.len() == before {
            return Err("the node is not a member");
        }
        Ok(())
    }
}
