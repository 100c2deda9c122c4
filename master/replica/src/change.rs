//! Changes of the member list: what they look like in the log, and when a leader refuses one.
//!
//! Owns: [`MemberChange`], its bytes, and the rules of refusal. Invariants: an entry that passes
//! [`decode`] says the same to raft and to the member list; a change is taken only when a quorum of
//! the voters after it is heard from now.
//! Must never: apply anything.

use std::collections::BTreeSet;

use prost_raft::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::codec::Fields;
use crate::config::{MAX_ATTRIBUTES_BYTES, MAX_MEMBERS};
use crate::error::ChangeError;
use crate::membership::{Group, JoinId, MemberRole, Standing};

/// Version of the bytes of a change.
const CHANGE_VERSION: u8 = 1;
/// A learner votes only when it holds this share of the leader's log, in hundredths: a voter that
/// lags would stop the group as soon as another one fails. etcd's value.
const PROMOTE_HUNDREDTHS: u64 = 90;

/// One change of the members. One at a time can be under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a node that only receives.
    AddLearner {
        /// Its id, which must be [`crate::Membership::next_node`].
        node: u64,
        /// What it says of itself.
        attributes: Vec<u8>,
        /// The attempt to join that this answers.
        join: JoinId,
    },
    /// Makes a learner that has caught up a voter.
    Promote {
        /// The learner.
        node: u64,
    },
    /// Removes a member; its id never comes back.
    Remove {
        /// The member.
        node: u64,
    },
    /// Removes a voter and makes a learner one, in one step.
    Replace {
        /// The voter that goes.
        remove: u64,
        /// The learner that takes its place.
        promote: u64,
    },
    /// Changes what a member says of itself.
    Update {
        /// The member.
        node: u64,
        /// What it says of itself from now on.
        attributes: Vec<u8>,
    },
}

/// What a leader knows of another member when it judges a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerView {
    pub node: u64,
    pub matched: u64,
    pub active: bool,
}

fn single(node_id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut single = ConfChangeSingle {
        node_id,
        ..ConfChangeSingle::default()
    };
    single.set_change_type(kind);
    single
}

fn push_blob(bytes: &mut Vec<u8>, blob: &[u8]) {
    let len = u32::try_from(blob.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(blob);
}

fn encode_change(change: &MemberChange) -> Vec<u8> {
    let mut bytes = vec![CHANGE_VERSION];
    let push = |bytes: &mut Vec<u8>, kind: u8, node: u64| {
        bytes.push(kind);
        bytes.extend_from_slice(&node.to_le_bytes());
    };
    match change {
        MemberChange::AddLearner {
            node,
            attributes,
            join,
        } => {
            push(&mut bytes, 1, *node);
            bytes.extend_from_slice(&join.0);
            push_blob(&mut bytes, attributes);
        }
        MemberChange::Promote { node } => push(&mut bytes, 2, *node),
        MemberChange::Remove { node } => push(&mut bytes, 3, *node),
        MemberChange::Replace { remove, promote } => {
            push(&mut bytes, 4, *remove);
            bytes.extend_from_slice(&promote.to_le_bytes());
        }
        MemberChange::Update { node, attributes } => {
            push(&mut bytes, 5, *node);
            push_blob(&mut bytes, attributes);
        }
    }
    bytes
}

fn take_blob(fields: &mut Fields<'_>) -> Option<Vec<u8>> {
    let len = usize::try_from(fields.u32()?).ok()?;
    (len <= MAX_ATTRIBUTES_BYTES).then_some(())?;
    fields.bytes(len).map(<[u8]>::to_vec)
}

fn decode_change(bytes: &[u8]) -> Option<MemberChange> {
    let mut fields = Fields::new(bytes);
    (fields.u8()? == CHANGE_VERSION).then_some(())?;
    let (kind, node) = (fields.u8()?, fields.u64()?);
    let change = match kind {
        1 => MemberChange::AddLearner {
            node,
            join: JoinId(fields.bytes(16)?.try_into().ok()?),
            attributes: take_blob(&mut fields)?,
        },
        2 => MemberChange::Promote { node },
        3 => MemberChange::Remove { node },
        4 => MemberChange::Replace {
            remove: node,
            promote: fields.u64()?,
        },
        5 => MemberChange::Update {
            node,
            attributes: take_blob(&mut fields)?,
        },
        _ => return None,
    };
    fields.rest().is_empty().then_some(change)
}

/// What raft is told; `group` says whether an updated member votes.
pub(crate) fn to_raft(change: &MemberChange, votes: impl Fn(u64) -> bool) -> ConfChangeV2 {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    let mut raft = ConfChangeV2 {
        context: encode_change(change),
        ..ConfChangeV2::default()
    };
    raft.changes = match change {
        MemberChange::AddLearner { node, .. } => vec![single(*node, AddLearnerNode)],
        MemberChange::Promote { node } => vec![single(*node, AddNode)],
        MemberChange::Remove { node } => vec![single(*node, RemoveNode)],
        MemberChange::Replace { remove, promote } => {
            // Explicit: the driver itself proposes the end of it, whoever leads then.
            raft.set_transition(ConfChangeTransition::Explicit);
            vec![single(*promote, AddNode), single(*remove, RemoveNode)]
        }
        MemberChange::Update { node, .. } if votes(*node) => vec![single(*node, AddNode)],
        MemberChange::Update { node, .. } => vec![single(*node, AddLearnerNode)],
    };
    raft
}

/// An entry that changes members: what raft is told, and the change, which is absent where the
/// entry ends a replacement. `None` if no correct leader writes such an entry.
pub(crate) fn decode(data: &[u8]) -> Option<(ConfChangeV2, Option<MemberChange>)> {
    let raft = ConfChangeV2::decode(data).ok()?;
    if raft.changes.is_empty() && raft.context.is_empty() {
        return (raft == ConfChangeV2::default()).then_some((raft, None));
    }
    let change = decode_change(&raft.context)?;
    let told = |votes: bool| to_raft(&change, |_| votes) == raft;
    (told(true) || told(false)).then_some((raft, Some(change)))
}

/// Refuses a change that does not fit the group, or that would leave it without a quorum now.
pub(crate) fn check(
    change: &MemberChange,
    group: &Group,
    me: u64,
    last_index: u64,
    peers: &[PeerView],
) -> Result<(), ChangeError> {
    check_node(change, group)?;
    if let MemberChange::Promote { node } | MemberChange::Replace { promote: node, .. } = change {
        check_caught_up(*node, last_index, peers)?;
    }
    if let MemberChange::Remove { node } | MemberChange::Replace { remove: node, .. } = change
        && *node == me
    {
        return Err(ChangeError::RemovesLeader(me));
    }
    let after = group.after(Some(change)).map_err(ChangeError::DoesNotFit)?;
    if matches!(
        change,
        MemberChange::Update { .. } | MemberChange::AddLearner { .. }
    ) {
        return Ok(());
    }
    let active =
        |node: &&u64| **node == me || peers.iter().any(|peer| peer.node == **node && peer.active);
    let voters: BTreeSet<u64> = after.conf.voters.iter().copied().collect();
    let active = voters.iter().filter(active).count();
    let needed = voters.len() / 2 + 1;
    if active < needed {
        return Err(ChangeError::NoQuorum {
            voters: voters.len(),
            active,
            needed,
        });
    }
    Ok(())
}

fn check_node(change: &MemberChange, group: &Group) -> Result<(), ChangeError> {
    let membership = &group.membership;
    let is_member = |node: u64| match membership.get(node) {
        Some(member) => Ok(member.role),
        None if membership.standing(node) == Standing::Removed => Err(ChangeError::Removed(node)),
        None => Err(ChangeError::NotAMember(node)),
    };
    let is_learner = |node: u64| match is_member(node)? {
        MemberRole::Learner => Ok(()),
        MemberRole::Voter => Err(ChangeError::AlreadyVoter(node)),
    };
    match change {
        MemberChange::AddLearner { node, .. } if *node != membership.next_node => {
            let next = membership.next_node;
            return Err(ChangeError::WrongNodeId { node: *node, next });
        }
        MemberChange::AddLearner { .. } if membership.members.len() >= MAX_MEMBERS => {
            return Err(ChangeError::TooManyMembers);
        }
        MemberChange::AddLearner { .. } => {}
        MemberChange::Promote { node } => is_learner(*node)?,
        MemberChange::Remove { node } => {
            if group.conf.voters == [*node] {
                return Err(ChangeError::LastVoter(*node));
            }
            is_member(*node)?;
        }
        MemberChange::Replace { remove, promote } => {
            is_learner(*promote)?;
            if is_member(*remove)? != MemberRole::Voter {
                return Err(ChangeError::NotAVoter(*remove));
            }
        }
        MemberChange::Update { node, .. } => {
            is_member(*node)?;
        }
    }
    if let MemberChange::AddLearner { attributes, .. } | MemberChange::Update { attributes, .. } =
        change
        && attributes.len() > MAX_ATTRIBUTES_BYTES
    {
        let bytes = attributes.len();
        return Err(ChangeError::AttributesTooLarge { bytes });
    }
    Ok(())
}

fn check_caught_up(node: u64, last: u64, peers: &[PeerView]) -> Result<(), ChangeError> {
    let peer = peers.iter().find(|peer| peer.node == node);
    let matched = peer.map_or(0, |peer| peer.matched);
    if !peer.is_some_and(|peer| peer.active) {
        return Err(ChangeError::NotActive(node));
    }
    if u128::from(matched) * 100 < u128::from(last) * u128::from(PROMOTE_HUNDREDTHS) {
        return Err(ChangeError::NotCaughtUp {
            node,
            matched,
            last,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Member;

    #[test]
    fn a_group_takes_members_up_to_its_bound() {
        for (members, expected) in [(MAX_MEMBERS - 1, Ok(())), (MAX_MEMBERS, Err(ChangeError::TooManyMembers))] {
            let mut group = Group::default();
            let member = |node| Member { node, role: MemberRole::Learner, attributes: Vec::new() };
            group.membership.members = (1..=members as u64).map(member).collect();
            group.membership.next_node = members as u64 + 1;
            let node = group.membership.next_node;
            let join = crate::JoinId([1; 16]);
            let change = MemberChange::AddLearner { node, attributes: Vec::new(), join };
            assert_eq!(check_node(&change, &group), expected, "{members} members");
        }
        let text = ChangeError::TooManyMembers.to_string();
        assert!(text.contains("32 members") && text.contains("remove one first"), "{text}");
    }
}
