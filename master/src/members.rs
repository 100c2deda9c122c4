//! Who the masters are: the nodes of the cluster with what each says of itself, and who leads.
//!
//! Invariants: a [`Topology`] is a copy of what the replica knew at one moment; it is published by the
//! loop and changed by nobody else. What a member says of itself is never believed to be complete: an
//! attribute that cannot be read is empty.

use std::collections::BTreeMap;
use std::sync::Arc;
use prost::Message as _;
use tessera_replica::{ClusterId, Identity, MemberRole, Membership, Standing};
use tessera_wire::v1;

/// For tests of upgrades: this build is to act as one that understands no more than this cluster version.
const UNDERSTANDS_AT_MOST: &str = "TESSERA_UNDERSTANDS_AT_MOST";

/// Newest cluster version that this build understands.
pub fn understands() -> u32 {
    let own = tessera_master_core::CLUSTER_VERSION;
    let most = std::env::var(UNDERSTANDS_AT_MOST).ok().and_then(|text| text.parse().ok());
    most.map_or(own, |most: u32| most.clamp(1, own))
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct MasterNode {
    /// Whether it votes; learners only receive.
    pub votes: bool,
    /// What it says of itself.
    pub info: v1::MemberInfo,
}

/// The cluster's masters as this one sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Whose view this is.
    pub identity: Identity,
    /// Who leads, if that is known.
    pub leader: Option<u64>,
    /// The newest term that is known; the leader's, if there is one.
    pub term: u64,
    /// This one leads, and serves.
    pub leads: bool,
    /// All nodes.
    pub members: Arc<BTreeMap<u64, MasterNode>>,
    /// The same as the replica has it.
    pub membership: Arc<Membership>,
}

impl Topology {
    /// Of a master that knows nothing but itself.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            leader: None,
            term: 0,
            leads: false,
            members: Arc::default(),
            membership: Arc::default(),
        }
    }

    /// This node.
    pub const fn node(&self) -> u64 {
        self.identity.node
    }

    /// The cluster.
    pub const fn cluster(&self) -> ClusterId {
        self.identity.cluster
    }

    /// The leader's REST address, unless this one leads.
    pub fn leader_rest(&self) -> Option<(u64, &str)> {
        let leader = self.leader.filter(|leader| *leader != self.node())?;
        let member = self.members.get(&leader)?;
        let address = member.info.rest_address.as_str();
        (!address.is_empty()).then_some((leader, address))
    }

    /// The leader's peer address.
    pub fn leader_peer(&self) -> Option<&str> {
        let member = self.members.get(&self.leader?)?;
        let address = member.info.peer_address.as_str();
        (!address.is_empty()).then_some(address)
    }

    /// Peer addresses of all members.
    pub fn peer_addresses(&self) -> Vec<String> {
        let addresses = self.members.values().map(|m| m.info.peer_address.clone());
        addresses.filter(|address| !address.is_empty()).collect()
    }

    /// How many vote.
    pub fn voters(&self) -> usize {
        self.members.values().filter(|member| member.votes).count()
    }

    /// Whether a node was a member once and is none any more.
    pub fn was_removed(&self, node: u64) -> bool {
        self.membership.standing(node) == Standing::Removed
    }

    /// Takes another list of members.
    pub fn set_membership(&mut self, membership: Membership) {
        let members = membership.members.iter().map(|member| {
            let votes = member.role == MemberRole::Voter;
            let info = v1::MemberInfo::decode(member.attributes.as_slice()).unwrap_or_default();
            (member.node, MasterNode { votes, info })
        });
        self.members = Arc::new(members.collect());
        self.membership = Arc::new(membership);
    }
}
