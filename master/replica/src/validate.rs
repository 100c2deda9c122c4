//! Checks on peer messages that raft-rs takes for granted.
//!
//! Owns: what a message must look like before raft sees it. Invariants: a message that passes
//! cannot make raft panic by its content alone. Must never: change state.

use raft::eraftpb::{ConfState, EntryType, Message, MessageType};

use crate::error::StepError;
use crate::snapshot;

/// Far above anything reached, far below overflow: terms and indices are incremented freely.
const MAX_NUMBER: u64 = 1 << 62;

/// The state a message is judged against.
pub(crate) struct Local<'a> {
    pub node: u64,
    pub term: u64,
    pub leads: bool,
    pub last_index: u64,
    pub conf: &'a ConfState,
}

/// Refuses a message that no correct member of the group sends to this node.
pub(crate) fn check(message: &Message, local: &Local<'_>) -> Result<(), StepError> {
    if message.to != local.node {
        return Err(StepError::Misdirected {
            to: message.to,
            node: local.node,
        });
    }
    if message.from == local.node || !local.conf.voters.contains(&message.from) {
        return Err(StepError::UnknownPeer(message.from));
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

fn check_append(message: &Message) -> Result<(), StepError> {
    let mut last = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != last.0 + 1 || entry.term < last.1 || entry.term > message.term {
            return Err(StepError::Malformed("appended entries are not in order"));
        }
        if entry.entry_type != EntryType::EntryNormal as i32 || !entry.context.is_empty() {
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
    if metadata.get_conf_state() != local.conf {
        return Err(StepError::Malformed(
            "snapshot of a group with other members",
        ));
    }
    if !snapshot::is_intact(&snapshot.data) {
        return Err(StepError::Malformed("damaged snapshot"));
    }
    Ok(())
}
