//! The queue of messages for one other master.
//!
//! Invariants: it never makes the node wait and never holds more than its bounds; when it is full the
//! oldest message goes, which the log's protocol repeats if it still matters.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Messages for a master that takes none: more than the appends that may be unanswered, and heartbeats
/// of some seconds.
const MESSAGES_MAX: usize = 1_024;

/// Bytes of them; at least two of the largest messages.
const BYTES_MAX: usize = 64 << 20;

/// Most bytes that are taken at once, unless the first message alone is larger: a frame.
const FRAME_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Messages that wait for one master.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A panic while holding the lock cannot leave the queue half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; says whether others had to go for it.
    pub fn push(&self, message: Vec<u8>) -> bool {
        let mut waiting = self.waiting();
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        let mut dropped = false;
        while waiting.messages.len() > MESSAGES_MAX
            || (waiting.bytes > BYTES_MAX && waiting.messages.len() > 1)
        {
            if let Some(oldest) = waiting.messages.pop_front() {
                waiting.bytes -= oldest.len();
                dropped = true;
            }
        }
        drop(waiting);
        self.filled.notify_one();
        dropped
    }

    fn try_take(&self) -> Option<Vec<Vec<u8>>> {
        let mut waiting = self.waiting();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = waiting.messages.front() {
            if !taken.is_empty() && bytes + next.len() > FRAME_BYTES {
                break;
            }
            bytes += next.len();
            taken.extend(waiting.messages.pop_front());
        }
        waiting.bytes -= bytes;
        (!taken.is_empty()).then_some(taken)
    }

    /// What waits, up to a frame's worth; waits for something.
    pub async fn take(&self) -> Vec<Vec<u8>> {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    /// Waits until there is something to take.
    pub async fn filled(&self) {
        while self.waiting().messages.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Forgets everything that waits: it is too old to be of use.
    pub fn clear(&self) {
        *self.waiting() = Waiting::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_when_there_are_too_many() {
        let queue = Queue::default();
        for n in 0..MESSAGES_MAX {
            assert!(!queue.push(n.to_be_bytes().to_vec()));
        }
        assert!(queue.push(vec![255]));
        let taken = queue.try_take().unwrap();
        assert_eq!(taken.len(), MESSAGES_MAX);
        assert_eq!(taken[0], 1_usize.to_be_bytes());
        assert_eq!(taken[MESSAGES_MAX - 1], [255]);
        assert!(queue.try_take().is_none());
    }

    #[test]
    fn large_messages_are_bounded_by_their_bytes_and_one_always_passes() {
        let queue = Queue::default();
        assert!(!queue.push(vec![1; BYTES_MAX + 1]));
        assert!(queue.push(vec![2; FRAME_BYTES]));
        assert!(!queue.push(vec![3; 1]));
        assert_eq!(queue.try_take().unwrap(), [vec![2; FRAME_BYTES]]);
        assert_eq!(queue.try_take().unwrap(), [vec![3; 1]]);
    }
}
