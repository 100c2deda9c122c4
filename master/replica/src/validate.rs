//! Checks on peer messages that raft-rs takes for granted.
//!
//! Owns: what a message must look like before raft sees it. Invariants: a message that passes
//! cannot make raft panic by its content alone. Must never: change state.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use crate::change;
use crate::config::ClusterId;
use crate::error::StepError;
use crate::membership::{Group, Standing, same_conf};
use crate::snapshot::SnapshotHeader;

/// Far above anything reached, far below overflow: terms and indices are incremented freely.
const MAX_NUMBER: u64 = 1 << 62;

/// The state a message is judged against.
pub(crate) struct Local<'a> {
    pub node: u64,
    pub term: u64,
    pub leads: bool,
    pub last_index: u64,
    pub cluster: ClusterId,
    pub group: &'a Group,
}

/// Refuses a message that no correct member of the group sends to this node.
pub(crate) fn check(message: &Message, local: &Local<'_>) -> Result<(), StepError> {
    if message.to != local.node {
        return Err(StepError::Misdirected {
            to: message.to,
            node: local.node,
        });
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
    ];
    if message.term == 0 || numbers.iter().any(|number| *number > MAX_NUMBER) {
        return Err(StepError::Malformed("term or index out of range"));
    }
    let kind = MessageType::from_i32(message.msg_type)
        .ok_or(StepError::Malformed("unknown message type"))?;
    check_sender(message.from, kind, local)?;
    match kind {
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgAppendResponse => check_append_response(message, local),
        MessageType::MsgHeartbeat => check_heartbeat(message, local),
        MessageType::MsgSnapshot => check_snapshot(message, local),
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        // Local to a node, or forwarding, which no replica does: callers are told who leads.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => Err(StepError::Malformed(
            "a message type that is not sent between replicas",
        )),
    }
}

/// A node that is not known here may lead or stand for election: it may have been added by entries
/// that this node has not got yet. Only members are asked anything, so only they answer.
fn check_sender(from: u64, kind: MessageType, local: &Local<'_>) -> Result<(), StepError> {
    let answer = matches!(
        kind,
        MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
    );
    match local.group.membership.standing(from) {
        _ if from == local.node || from == raft::INVALID_ID => Err(StepError::UnknownPeer(from)),
        Standing::Removed => Err(StepError::RemovedPeer(from)),
        Standing::Unknown if answer => Err(StepError::UnknownPeer(from)),
        Standing::Member | Standing::Unknown => Ok(()),
    }
}

/// Plain entries, and changes of the members as a leader writes them.
fn is_known_kind(entry: &Entry) -> bool {
    let known = match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) => true,
        Some(EntryType::EntryConfChangeV2) => change::decode(&entry.data).is_some(),
        Some(EntryType::EntryConfChange) | None => false,
    };
    known && entry.context.is_empty()
}

fn check_append(message: &Message) -> Result<(), StepError> {
    let mut last = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != last.0 + 1 || entry.term < last.1 || entry.term > message.term {
            return Err(StepError::Malformed("appended entries are not in order"));
        }
        if !is_known_kind(entry) {
            return Err(StepError::Malformed(
                "an appended entry is of an unknown kind",
            ));
        }
        last = (entry.index, entry.term);
    }
    Ok(())
}

fn check_append_response(message: &Message, local: &Local<'_>) -> Result<(), StepError> {
    if message.request_snapshot != 0 {
        return Err(StepError::Malformed("replicas do not request snapshots"));
    }
    let ahead = message.index.max(message.reject_hint) > local.last_index;
    if local.leads && message.term == local.term && ahead {
        return Err(StepError::Malformed(
            "the peer acknowledged entries that were never sent",
        ));
    }
    Ok(())
}

fn check_heartbeat(message: &Message, local: &Local<'_>) -> Result<(), StepError> {
    if message.term >= local.term && message.commit > local.last_index {
        let acknowledged = message.commit;
        return Err(StepError::LostLog {
            acknowledged,
            last: local.last_index,
        });
    }
    Ok(())
}

fn check_snapshot(message: &Message, local: &Local<'_>) -> Result<(), StepError> {
    let snapshot = message.get_snapshot();
    let metadata = snapshot.get_metadata();
    if metadata.index == 0 || metadata.index > MAX_NUMBER || metadata.term > message.term {
        return Err(StepError::Malformed("snapshot with a bad position"));
    }
    let Some(header) = SnapshotHeader::decode_whole(&snapshot.data) else {
        return Err(StepError::Malformed("snapshot with a damaged header"));
    };
    let position = (header.position.term, header.position.index);
    if position != (metadata.term, metadata.index)
        || !same_conf(metadata.get_conf_state(), &header.group.conf)
    {
        return Err(StepError::Malformed("snapshot that contradicts its header"));
    }
    if header.cluster != local.cluster {
        return Err(StepError::Malformed("snapshot of another cluster"));
    }
    if !header.group.contains(local.node) {
        return Err(StepError::Malformed(
            "snapshot of a group without this node",
        ));
    }
    Ok(())
}
