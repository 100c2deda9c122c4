//! Where a guest's thread takes its messages.
//!
//! Invariants: bounded; only who sends a state is made to wait. This file must never know what a message
//! means.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Messages that may wait for a guest: one batch, one answer, and the parts of a state
/// that is being sent. A peer that sends more waits, or is not heard.
const INBOX_MAX: usize = 64;

/// A message of a guest's inbox.
pub trait Message {
    /// Whether it is a part of a state, of which nothing may be lost.
    fn is_state(&self) -> bool;
}

/// Takes messages for a guest.
pub struct Inbox<M>(SyncSender<M>);

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A new inbox, and where its messages come out.
pub fn inbox<M: Message>() -> (Inbox<M>, Receiver<M>) {
    let (inbox, messages) = sync_channel(INBOX_MAX);
    (Inbox(inbox), messages)
}

impl<M: Message> Inbox<M> {
    /// Pass a message on. State waits until there is room; everything else is not heard when the guest has
    /// not taken what was sent before: a peer that follows the protocol never sends as much.
    pub fn send(&self, message: M) {
        if message.is_state() {
            let _ = self.0.send(message);
        } else if let Err(TrySendError::Full(_)) = self.0.try_send(message) {
            tracing::warn!("a message for a guest whose inbox is full is dropped");
        }
    }
}
