//! The leader looks after the members: asks how they are, keeps what they say of themselves, makes voters
//! of learners that have everything, and lets a master that lost its disk take the place of its old node.
//!
//! Invariants: one change at a time, each checked again by the replica; a learner becomes a voter only when
//! it has the log and every component file; a node is taken for the successor of another one only when it
//! answers under that one's address. Must never remove a member for being silent.

use crate::members::{MasterNode, Topology};
use crate::node_handle::{NoAnswer, NodeHandle};
use crate::peer::{CallError, Caller, Peers, status_request};
use crate::upkeep::rules::{Said, lacks};
use futures::future::join_all;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_master_core::{Principal, Request};
use tessera_replica::{ChangeError, MemberChange, PeerStatus};
use tessera_wire::v1;

/// How often the members are asked. A learner is promoted about so long after it has everything.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A member that did not answer for so long is shown as silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// What was last heard of a member.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// What it said.
    pub reply: v1::MasterStatusReply,
}

/// How the members are, as the leader knows; empty elsewhere.
#[derive(Default)]
pub struct Health {
    heard: Mutex<BTreeMap<u64, Heard>>,
}

impl Health {
    fn heard(&self) -> MutexGuard<'_, BTreeMap<u64, Heard>> {
        // A panic while holding the lock cannot leave the map half changed.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of it.
    pub fn all(&self) -> BTreeMap<u64, Heard> {
        self.heard().clone()
    }
}

/// Looks after the members while this master leads.
pub struct Steward {
    /// The node.
    pub node: NodeHandle,
    /// To ask the others.
    pub caller: Caller,
    /// Where they are.
    pub peers: Arc<Peers>,
    /// What was heard, for others to read.
    pub health: Arc<Health>,
    /// What this master says of itself.
    pub info: v1::MemberInfo,
}

impl Steward {
    /// Runs until the loop is gone.
    pub async fn run(self) {
        let mut topology = self.node.topology();
        let mut last_refusal = String::new();
        let mut warned_of = 0;
        loop {
            let view = topology.borrow_and_update().clone();
            if view.leads {
                self.ask(&view).await;
                warn_of_even(&view, &mut warned_of);
                self.raise_version(&view).await;
                if !self.change(&view, &mut last_refusal).await {
                    return;
                }
            } else {
                self.health.heard().clear();
            }
            if let Ok(Err(_)) = tokio::time::timeout(ASK_EVERY, topology.changed()).await {
                return;
            }
        }
    }

    async fn ask(&self, view: &Topology) {
        let answers = ask_all(&self.caller, &self.peers, view, |_| true).await;
        let mut heard = self.health.heard();
        heard.retain(|node, _| view.members.contains_key(node));
        for (node, answer) in answers {
            match answer {
                Ok(reply) if reply.node == node => {
                    let at = Instant::now();
                    heard.insert(node, Heard { at, reply });
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(node, %error, "a master did not say how it is"),
            }
        }
    }

    /// Commands of a newer version may be proposed once every voting master understands them.
    async fn raise_version(&self, view: &Topology) {
        let all = understood_by_all(view, &self.info, &self.health.all());
        let present = self.node.query(|core, _| core.cluster_version()).await;
        if present.is_ok_and(|present| all > present) {
            let request = Request::SetClusterVersion { version: all };
            match self.node.request(Principal::administrator(), request).await {
                Ok(_) => tracing::info!(version = all, "every voting master understands it: raised the cluster's version"),
                // It is tried again in a moment.
                Err(error) => tracing::debug!(%error, "the cluster's version is not raised yet"),
            }
        }
    }

    /// Does what is to be done next; false when the loop is gone.
    async fn change(&self, view: &Topology, last_refusal: &mut String) -> bool {
        let peers = match self.node.query_status(|_, _, status| status.peers.clone()).await {
            Ok(peers) => peers,
            Err(NoAnswer::Stopped(_)) => return false,
            Err(NoAnswer::Late) => return true,
        };
        let Some(change) = plan(view, &self.info, &self.health.all(), &peers) else {
            return true;
        };
        let what = describe(&change);
        match self.node.change(change).await {
            Ok(()) => {
                last_refusal.clear();
                tracing::info!(what, "members changed");
            }
            Err(error) => {
                let refusal = format!("{what}: {error}");
                if refusal != *last_refusal {
                    tracing::info!(refusal, "members are not changed yet");
                    *last_refusal = refusal;
                }
            }
        }
        true
    }
}

/// Asks members how they are: what each says, or why it says nothing.
async fn ask_all(
    caller: &Caller,
    peers: &Peers,
    view: &Topology,
    asked: impl Fn(&MasterNode) -> bool,
) -> Vec<(u64, Result<v1::MasterStatusReply, CallError>)> {
    let others = view.members.iter().filter(|(node, member)| **node != view.node() && asked(member));
    let asked = others.map(|(node, member)| async move {
        let request = status_request(view, *node);
        let address = peers.address(*node);
        let address = address.as_ref().unwrap_or(&member.info.peer_address);
        let answer =
            caller.ask(address, |mut client| async move { client.master_status(request).await }).await;
        (*node, answer)
    });
    join_all(asked).await
}

/// Refuses to take a voter away unless enough of the others answer at this moment: who was heard of half a
/// second ago may have died since.
///
/// # Errors
/// When too few answer.
pub async fn others_answer(
    caller: &Caller,
    peers: &Peers,
    view: &Topology,
    removed: u64,
) -> Result<(), ChangeError> {
    let leaves = |node: &u64| *node == removed;
    if !view.members.get(&removed).is_some_and(|member| member.votes) {
        return Ok(());
    }
    let answers = ask_all(caller, peers, view, |member| member.votes).await;
    let answered = answers.iter().filter(|(node, answer)| !leaves(node) && answer.is_ok());
    let own = view.members.get(&view.node()).is_some_and(|member| member.votes && !leaves(&view.node()));
    let active = answered.count() + usize::from(own);
    let voters = view.voters() - 1;
    let needed = voters / 2 + 1;
    if voters > 0 && active < needed {
        return Err(ChangeError::NoQuorum { voters, active, needed });
    }
    Ok(())
}

/// The newest version that every voter understands: as is known of it, and as it says itself at this time, since
/// it may have been replaced by an older build.
fn understood_by_all(view: &Topology, own: &v1::MemberInfo, heard: &BTreeMap<u64, Heard>) -> u32 {
    let says = |node: u64| match node == view.node() {
        true => own.understands,
        false => {
            let heard = heard.get(&node).filter(|heard| heard.at.elapsed() <= SILENT_AFTER);
            heard.map_or(0, |heard| heard.reply.understands)
        }
    };
    let voters = view.members.iter().filter(|(_, member)| member.votes);
    voters.map(|(node, member)| member.info.understands.min(says(*node))).min().unwrap_or(0)
}

fn warn_of_even(view: &Topology, warned_of: &mut usize) {
    let voters = view.voters();
    if voters % 2 == 0 && voters != *warned_of {
        tracing::warn!(
            voters,
            "an even number of voting masters outlives no more failures than one less: add or remove one"
        );
    }
    *warned_of = voters;
}

fn describe(change: &MemberChange) -> String {
    match change {
        MemberChange::AddLearner { node, .. } => format!("node {node} joins"),
        MemberChange::Promote { node } => format!("node {node} becomes a voter"),
        MemberChange::Remove { node } => format!("node {node} is removed"),
        MemberChange::Replace { remove, promote } => {
            format!("node {promote} takes the place of node {remove}")
        }
        MemberChange::Update { node, .. } => format!("node {node} says something else of itself"),
    }
}

/// What is to be changed next, if anything.
pub fn plan(
    view: &Topology,
    own: &v1::MemberInfo,
    heard: &BTreeMap<u64, Heard>,
    peers: &[PeerStatus],
) -> Option<MemberChange> {
    let says = |node: u64| match node == view.node() {
        true => Some(own),
        false => heard.get(&node).and_then(|heard| heard.reply.member.as_ref()),
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
        if waits_for(*node, heard, peers).is_some() {
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
pub fn waits_for(
    node: u64,
    heard: &BTreeMap<u64, Heard>,
    peers: &[PeerStatus],
) -> Option<&'static str> {
    let said = heard.get(&node).map(|heard| Said {
        applied_index: heard.reply.applied_index,
        components_missing: heard.reply.components_missing,
    });
    lacks(said, peers.iter().find(|peer| peer.node == node))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn heard(node: u64, port: u16, components_missing: u64) -> (u64, Heard) {
        let reply = v1::MasterStatusReply {
            node,
            applied_index: 9,
            components_missing,
            member: Some(info(port)),
            ..v1::MasterStatusReply::default()
        };
        (node, Heard { at: Instant::now(), reply })
    }

    fn peer(node: u64, recently_active: bool, needs_snapshot: bool) -> PeerStatus {
        let role = tessera_replica::MemberRole::Learner;
        PeerStatus { node, role, matched: 9, recently_active, needs_snapshot }
    }

    #[test]
    fn learners_become_voters_when_they_have_everything() {
        let learner = [(2, false, 2)];
        let promote = Some(MemberChange::Promote { node: 2 });
        for (heard_of, peer, expected) in [
            (Some(heard(2, 2, 0)), Some(peer(2, true, false)), promote),
            (None, Some(peer(2, true, false)), None),
            (Some(heard(2, 2, 1)), Some(peer(2, true, false)), None),
            (Some(heard(2, 2, 0)), Some(peer(2, false, false)), None),
            (Some(heard(2, 2, 0)), Some(peer(2, true, true)), None),
            (Some(heard(2, 2, 0)), None, None),
        ] {
            let heard = heard_of.into_iter().collect();
            let peers: Vec<_> = peer.into_iter().collect();
            assert_eq!(plan(&view(&learner), &info(1), &heard, &peers), expected, "{peers:?}");
        }
    }

    #[test]
    fn a_wiped_master_takes_the_place_of_its_old_node() {
        let peers = [peer(4, true, false)];
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
            let heard = [heard(4, others[others.len() - 1].2, 0)].into_iter().collect();
            assert_eq!(plan(&view(&others), &info(1), &heard, &peers), Some(expected));
        }
    }

    #[test]
    fn a_version_is_understood_when_all_say_so_now() {
        let of = |understands: u32, info: v1::MemberInfo| v1::MemberInfo { understands, ..info };
        let said = |understands: u32| {
            let (node, mut heard) = heard(2, 2, 0);
            heard.reply.understands = understands;
            BTreeMap::from([(node, heard)])
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
        }
    }

    #[test]
    fn what_members_say_of_themselves_is_kept() {
        let members = view(&[(2, true, 2)]);
        let same = [heard(2, 2, 0)].into_iter().collect();
        assert_eq!(plan(&members, &info(1), &same, &[]), None);
        let moved = [heard(2, 7, 0)].into_iter().collect();
        let attributes = info(7).encode_to_vec();
        let update = MemberChange::Update { node: 2, attributes };
        assert_eq!(plan(&members, &info(1), &moved, &[]), Some(update));
        let attributes = info(8).encode_to_vec();
        let update = MemberChange::Update { node: 1, attributes };
        assert_eq!(plan(&members, &info(8), &same, &[]), Some(update));
    }
}
