//! What the leader decides about the members, from what it knows of them: without clock, network and disk, so
//! that the simulator runs it as well.
//!
//! Invariants: one change at a time; a learner becomes a voter only when it has the log and every component file;
//! a node is taken for the successor of another one only when it stands under that one's address. Must never
//! remove a member for being silent.

use super::rules::{Said, lacks};
pub use crate::members::{MasterNode, Topology};
use prost::Message as _;
use std::collections::BTreeMap;
use tessera_master_core::Core;
use tessera_replica::{MemberChange, PeerStatus, Status};
use tessera_wire::v1;

/// What members said of themselves lately, by node. Of one that is silent nothing is in it.
pub type Replies = BTreeMap<u64, v1::MasterStatusReply>;

/// What the leader knows of the log and of the components.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// How far the others are.
    pub peers: Vec<PeerStatus>,
    /// The leader's last entry that changed which components there are.
    pub components_index: u64,
    /// The newest version whose commands may be proposed.
    pub cluster_version: u32,
}

impl Known {
    /// From the leader's state, and from its replica at the same time.
    #[must_use]
    pub fn of(core: &Core, status: &Status) -> Self {
        Self {
            peers: status.peers.clone(),
            // What a restored state says may be of another log.
            components_index: core.components_index().min(status.applied.index),
            cluster_version: core.cluster_version(),
        }
    }
}

/// The newest version that every voter understands: as is known of it, and as it says itself at this time, since
/// it may have been replaced by an older build. A learner may be a voter before the command is committed that raises
/// the version: what is known of it counts as well.
#[must_use]
pub fn understood_by_all(view: &Topology, own: &v1::MemberInfo, replies: &Replies) -> u32 {
    let says = |node: u64| match node == view.node() {
        true => own.understands,
        false => replies.get(&node).map_or(0, |reply| reply.understands),
    };
    let understands = |(node, member): (&u64, &MasterNode)| match member.votes {
        true => member.info.understands.min(says(*node)),
        false => member.info.understands,
    };
    view.members.iter().map(understands).min().unwrap_or(0)
}

/// Why a build cannot join a cluster of this version: it would not understand what is written.
#[must_use]
pub fn too_old(info: &v1::MemberInfo, version: u32) -> Option<String> {
    (info.understands < version).then(|| {
        format!(
            "member.understands: this build understands cluster version {}, the cluster is at {version}; start it with the build of the others",
            info.understands
        )
    })
}

/// What is to be changed next, if anything.
#[must_use]
pub fn plan(
    view: &Topology,
    own: &v1::MemberInfo,
    replies: &Replies,
    known: &Known,
) -> Option<MemberChange> {
    let says = |node: u64| match node == view.node() {
        true => Some(own),
        false => replies.get(&node).and_then(|reply| reply.member.as_ref()),
    };
    for (node, member) in view.members.iter() {
        if let Some(says) = says(*node)
            && crate::join::check_info(says).is_ok()
        {
            // When it joined is not its own to say.
            let says = v1::MemberInfo {
                added_at_ms: member.info.added_at_ms,
                ..says.clone()
            };
            if says != member.info {
                let attributes = says.encode_to_vec();
                return Some(MemberChange::Update { node: *node, attributes });
            }
        }
    }
    for (node, learner) in view.members.iter().filter(|(_, member)| !member.votes) {
        if waits_for(*node, replies, known).is_some() {
            continue;
        }
        let predecessor = predecessor(view, *node, learner);
        return Some(match predecessor {
            Some((old, true)) => MemberChange::Replace { remove: old, promote: *node },
            Some((old, false)) => MemberChange::Remove { node: old },
            None => MemberChange::Promote { node: *node },
        });
    }
    None
}

/// The node that had the learner's address before it, and whether it votes.
fn predecessor(view: &Topology, node: u64, learner: &MasterNode) -> Option<(u64, bool)> {
    let earlier = view.members.range(..node);
    let mut same = earlier.filter(|(_, member)| member.info.peer_address == learner.info.peer_address);
    same.next().map(|(old, member)| (*old, member.votes))
}

/// What a learner lacks for becoming a voter.
#[must_use]
pub fn waits_for(node: u64, replies: &Replies, known: &Known) -> Option<&'static str> {
    if replies.get(&node).is_some_and(|reply| reply.understands < known.cluster_version) {
        return Some("its build is older than the cluster's version; start it with the build of the others");
    }
    let said = replies.get(&node).map(|reply| Said {
        applied_index: reply.applied_index,
        components_missing: reply.components_missing,
    });
    lacks(said, known.peers.iter().find(|peer| peer.node == node), known.components_index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tessera_replica::{ClusterId, Identity};

    fn info(port: u16) -> v1::MemberInfo {
        v1::MemberInfo {
            peer_address: format!("h:{port}"),
            rest_address: "h:1".into(),
            ..v1::MemberInfo::default()
        }
    }

    /// Node 1 leads; the others are given by node, vote and port.
    fn view(others: &[(u64, bool, u16)]) -> Topology {
        let mut members = BTreeMap::from([(1, MasterNode { votes: true, info: info(1) })]);
        for (node, votes, port) in others {
            members.insert(*node, MasterNode { votes: *votes, info: info(*port) });
        }
        let identity = Identity { cluster: ClusterId([1; 16]), node: 1 };
        Topology {
            leads: true,
            members: Arc::new(members),
            ..Topology::new(identity)
        }
    }

    fn reply(node: u64, port: u16, components_missing: u64) -> (u64, v1::MasterStatusReply) {
        let reply = v1::MasterStatusReply {
            node,
            applied_index: 9,
            understands: 2,
            components_missing,
            member: Some(info(port)),
            ..v1::MasterStatusReply::default()
        };
        (node, reply)
    }

    fn peer(node: u64, recently_active: bool, needs_snapshot: bool) -> PeerStatus {
        let role = tessera_replica::MemberRole::Learner;
        PeerStatus { node, role, matched: 9, recently_active, needs_snapshot }
    }

    fn known(peers: impl IntoIterator<Item = PeerStatus>) -> Known {
        Known { peers: peers.into_iter().collect(), components_index: 9, cluster_version: 2 }
    }

    #[test]
    fn a_build_that_is_older_than_the_cluster_does_not_join() {
        let info = |understands| v1::MemberInfo { understands, ..v1::MemberInfo::default() };
        assert_eq!(too_old(&info(3), 3), None);
        assert_eq!(too_old(&info(4), 3), None);
        assert!(too_old(&info(2), 3).is_some_and(|why| why.contains("version 2, the cluster is at 3")));
    }

    #[test]
    fn learners_become_voters_when_they_have_everything() {
        let learner = [(2, false, 2)];
        let promote = Some(MemberChange::Promote { node: 2 });
        let older = |(node, reply)| (node, v1::MasterStatusReply { understands: 1, ..reply });
        let behind = |(node, reply)| (node, v1::MasterStatusReply { applied_index: 8, ..reply });
        for (said, peer, expected) in [
            (Some(reply(2, 2, 0)), Some(peer(2, true, false)), promote),
            (None, Some(peer(2, true, false)), None),
            (Some(reply(2, 2, 1)), Some(peer(2, true, false)), None),
            (Some(behind(reply(2, 2, 0))), Some(peer(2, true, false)), None),
            (Some(older(reply(2, 2, 0))), Some(peer(2, true, false)), None),
            (Some(reply(2, 2, 0)), Some(peer(2, false, false)), None),
            (Some(reply(2, 2, 0)), Some(peer(2, true, true)), None),
            (Some(reply(2, 2, 0)), None, None),
        ] {
            let (replies, known) = (said.into_iter().collect(), known(peer));
            assert_eq!(plan(&view(&learner), &info(1), &replies, &known), expected, "{replies:?} {known:?}");
        }
    }

    #[test]
    fn a_wiped_master_takes_the_place_of_its_old_node() {
        let known = known([peer(4, true, false)]);
        for (others, expected) in [
            (
                vec![(2, true, 2), (3, true, 3), (4, false, 3)],
                MemberChange::Replace { remove: 3, promote: 4 },
            ),
            // Wiped twice: the first successor never got as far as a vote.
            (
                vec![(2, true, 2), (3, false, 3), (4, false, 3)],
                MemberChange::Remove { node: 3 },
            ),
            (vec![(2, true, 2), (4, false, 4)], MemberChange::Promote { node: 4 }),
        ] {
            let replies = [reply(4, others[others.len() - 1].2, 0)].into_iter().collect();
            assert_eq!(plan(&view(&others), &info(1), &replies, &known), Some(expected));
        }
    }

    #[test]
    fn a_version_is_understood_when_all_say_so_now() {
        let of = |understands: u32, info: v1::MemberInfo| v1::MemberInfo { understands, ..info };
        let said = |understands: u32| {
            let (node, reply) = reply(2, 2, 0);
            BTreeMap::from([(node, v1::MasterStatusReply { understands, ..reply })])
        };
        // What is known of both, what the leader is, what the other one says.
        for (known, own, says, all) in [
            (2, 2, said(2), 2),
            (1, 2, said(2), 1),
            (2, 1, said(2), 1),
            (2, 2, said(1), 1),
            (2, 2, BTreeMap::new(), 0),
        ] {
            let mut members = view(&[(2, true, 2)]);
            let list = members.members.iter().map(|(node, member)| {
                (*node, MasterNode { votes: member.votes, info: of(known, member.info.clone()) })
            });
            members.members = Arc::new(list.collect());
            assert_eq!(understood_by_all(&members, &of(own, info(1)), &says), all, "{known} {own} {all}");
            // A learner of an older build counts, too, whether it answers or not.
            let mut list = (*members.members).clone();
            list.insert(3, MasterNode { votes: false, info: of(1, info(3)) });
            members.members = Arc::new(list);
            assert_eq!(understood_by_all(&members, &of(own, info(1)), &says), all.min(1), "{known} {own} {all}");
        }
    }

    #[test]
    fn what_members_say_of_themselves_is_kept() {
        let members = view(&[(2, true, 2)]);
        let same = [reply(2, 2, 0)].into_iter().collect();
        assert_eq!(plan(&members, &info(1), &same, &Known::default()), None);
        let moved = [reply(2, 7, 0)].into_iter().collect();
        let attributes = info(7).encode_to_vec();
        let update = MemberChange::Update { node: 2, attributes };
        assert_eq!(plan(&members, &info(1), &moved, &Known::default()), Some(update));
        let attributes = info(8).encode_to_vec();
        let update = MemberChange::Update { node: 1, attributes };
        assert_eq!(plan(&members, &info(8), &same, &Known::default()), Some(update));
    }
}
