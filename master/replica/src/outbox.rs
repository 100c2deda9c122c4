//! Raft messages on their way out, as bytes per peer.
//!
//! Owns: joining small appends to one peer. Raft's own batching is off:
//! it puts entries behind an empty append even if they do not follow it, or if that append is
//! of an older term. Invariants: what is joined follows without a gap and is of one term; order
//! per peer is kept; no message but a single entry's exceeds [`MAX_APPEND_BYTES`] of entries.
//! Must never: change what a message says.

use std::collections::BTreeMap;

use prost_raft::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};

use crate::config::MAX_APPEND_BYTES;

/// Collects the messages of one ready.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Per peer the append that may still grow, and the bytes of its entries.
    growing: BTreeMap<u64, (Message, u64)>,
    encoded: Vec<(u64, Vec<u8>)>,
}

fn entry_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.data.len() as u64).sum()
}

/// Whether `next` begins exactly where `open` ends.
fn follows(open: &Message, next: &Message) -> bool {
    let end = open
        .entries
        .last()
        .map_or((open.index, open.log_term), |last| (last.index, last.term));
    open.term == next.term && end == (next.index, next.log_term)
}

impl Outbox {
    pub(crate) fn add(&mut self, mut message: Message) {
        let to = message.to;
        if message.msg_type != MessageType::MsgAppend as i32 {
            self.close(to);
            self.encoded.push((to, message.encode_to_vec()));
            return;
        }
        let bytes = entry_bytes(&message.entries);
        if let Some((open, open_bytes)) = self.growing.get_mut(&to)
            && follows(open, &message)
            && *open_bytes + bytes <= MAX_APPEND_BYTES
        {
            open.entries.append(&mut message.entries);
            open.commit = open.commit.max(message.commit);
            *open_bytes += bytes;
            return;
        }
        self.close(to);
        self.growing.insert(to, (message, bytes));
    }

    fn close(&mut self, to: u64) {
        if let Some((message, _)) = self.growing.remove(&to) {
            self.encoded.push((to, message.encode_to_vec()));
        }
    }

    /// All messages; those to one peer in the order in which they were added.
    pub(crate) fn finish(mut self, send: &mut dyn FnMut(u64, Vec<u8>)) {
        for (to, (message, _)) in std::mem::take(&mut self.growing) {
            self.encoded.push((to, message.encode_to_vec()));
        }
        for (to, bytes) in self.encoded {
            send(to, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(term: u64, prev: (u64, u64), entries: &[(u64, usize)]) -> Message {
        let mut message = Message {
            to: 2,
            from: 1,
            term,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgAppend);
        (message.index, message.log_term) = prev;
        let entry = |(n, (term, len)): (usize, &(u64, usize))| Entry {
            index: prev.0 + 1 + n as u64,
            term: *term,
            data: vec![0; *len],
            ..Entry::default()
        };
        message.entries = entries.iter().enumerate().map(entry).collect();
        message
    }

    fn sent(messages: Vec<Message>) -> Vec<Message> {
        let mut outbox = Outbox::default();
        messages.into_iter().for_each(|message| outbox.add(message));
        let mut out = Vec::new();
        outbox.finish(&mut |_, bytes| out.extend(Message::decode(bytes.as_slice())));
        out
    }

    #[test]
    fn appends_that_follow_each_other_are_joined() {
        let joined = sent(vec![
            append(3, (5, 2), &[(3, 10)]),
            append(3, (6, 3), &[(3, 10), (3, 10)]),
            append(3, (8, 3), &[]),
        ]);
        assert_eq!(joined, [append(3, (5, 2), &[(3, 10), (3, 10), (3, 10)])]);
    }

    #[test]
    fn gaps_other_terms_and_full_messages_are_not_joined() {
        let full = MAX_APPEND_BYTES as usize;
        for (first, second) in [
            (append(3, (5, 2), &[]), append(3, (8, 3), &[(3, 1)])),
            (append(3, (5, 3), &[]), append(4, (5, 3), &[(4, 1)])),
            (
                append(3, (5, 2), &[(3, full)]),
                append(3, (6, 3), &[(3, 1)]),
            ),
        ] {
            assert_eq!(sent(vec![first.clone(), second.clone()]), [first, second]);
        }
    }

    #[test]
    fn another_message_to_the_peer_keeps_its_place() {
        let mut heartbeat = Message {
            to: 2,
            from: 1,
            term: 3,
            ..Message::default()
        };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        let (first, second) = (append(3, (5, 2), &[(3, 1)]), append(3, (6, 3), &[(3, 1)]));
        let all = vec![first, heartbeat, second];
        assert_eq!(sent(all.clone()), all);
    }
}
