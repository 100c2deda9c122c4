//! Status updates of one task until the masters have committed them.
//!
//! Invariants: at most two are kept, the latest non-terminal one and the terminal one; a sequence is a
//! function of attempt and state, so that it rises through the task's life and needs no record of its
//! own; STARTING is held back for a moment, because RUNNING mostly follows at once and replaces it. This
//! file must never know a session.

use crate::action::Now;
use tessera_types::{TaskState, TaskStatus};

/// How long STARTING waits for RUNNING to replace it: longer than an ordinary launch takes.
pub(crate) const STARTING_HOLD_MS: u64 = 250;
/// First pause before an update without answer is sent again: longer than a commit takes.
const RESEND_MIN_MS: u64 = 500;
/// Longest pause, so that nothing stays unknown for long after a fault heals.
pub(crate) const RESEND_MAX_MS: u64 = 5_000;
/// Sequences per attempt: the states that one attempt can report.
const SEQUENCES_PER_ATTEMPT: u64 = 4;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Update {
    pub sequence: u64,
    pub status: TaskStatus,
    due_ms: u64,
    backoff_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outbox {
    live: Option<Update>,
    terminal: Option<Update>,
}

/// The sequence of a status.
pub(crate) fn sequence(attempt: u32, state: TaskState) -> u64 {
    let rank = match state {
        TaskState::Staging | TaskState::Unknown | TaskState::Unreachable => 0,
        TaskState::Starting => 1,
        TaskState::Running => 2,
        TaskState::Killing => 3,
        TaskState::Finished
        | TaskState::Failed
        | TaskState::Killed
        | TaskState::Error
        | TaskState::Dropped
        | TaskState::Lost
        | TaskState::Gone
        | TaskState::GoneByOperator => 4,
    };
    u64::from(attempt.saturating_sub(1)) * SEQUENCES_PER_ATTEMPT + rank
}

impl Outbox {
    /// Keep a status for sending.
    pub(crate) fn put(&mut self, status: TaskStatus, now: Now) {
        let hold = if status.state == TaskState::Starting {
            STARTING_HOLD_MS
        } else {
            0
        };
        let terminal = status.state.is_terminal();
        let update = Update {
            sequence: sequence(status.attempt, status.state),
            status,
            due_ms: now.mono_ms + hold,
            backoff_ms: RESEND_MIN_MS,
        };
        if terminal {
            // RUNNING still goes, if it never went; STARTING and KILLING have nothing to say any more.
            self.live
                .take_if(|live| live.status.state != TaskState::Running);
            self.terminal = Some(update);
        } else {
            self.live = Some(update);
        }
    }

    /// Whether everything is committed.
    pub(crate) const fn is_empty(&self) -> bool {
        self.live.is_none() && self.terminal.is_none()
    }

    /// When something is due next.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.live
            .iter()
            .chain(&self.terminal)
            .map(|update| update.due_ms)
            .min()
    }

    /// What is due now, oldest first; each is due again after a growing pause.
    pub(crate) fn take_due(&mut self, now: Now) -> impl Iterator<Item = &Update> {
        self.live
            .iter_mut()
            .chain(&mut self.terminal)
            .filter_map(move |update| {
                if update.due_ms > now.mono_ms {
                    return None;
                }
                update.due_ms = now.mono_ms + update.backoff_ms;
                update.backoff_ms = (update.backoff_ms * 2).min(RESEND_MAX_MS);
                Some(&*update)
            })
    }

    /// A new session: the peer may be another one and have nothing.
    pub(crate) fn on_session(&mut self, now: Now) {
        for update in self.live.iter_mut().chain(&mut self.terminal) {
            update.due_ms = now.mono_ms;
            update.backoff_ms = RESEND_MIN_MS;
        }
    }

    /// Everything up to this sequence is committed. Whether the terminal update is among it.
    pub(crate) fn on_ack(&mut self, sequence: u64) -> bool {
        self.live.take_if(|update| update.sequence <= sequence);
        self.terminal
            .take_if(|update| update.sequence <= sequence)
            .is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::AgentId;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus::new("t".parse().unwrap(), AgentId(1), state, 0)
    }

    const fn at(mono_ms: u64) -> Now {
        Now {
            mono_ms,
            wall_ms: 0,
        }
    }

    fn due(outbox: &mut Outbox, mono_ms: u64) -> Vec<TaskState> {
        outbox
            .take_due(at(mono_ms))
            .map(|update| update.status.state)
            .collect()
    }

    #[test]
    fn starting_merges_into_running_and_a_terminal_state_into_nothing() {
        let mut outbox = Outbox::default();
        outbox.put(status(TaskState::Starting), at(0));
        assert_eq!(due(&mut outbox, 1), []);
        outbox.put(status(TaskState::Running), at(1));
        outbox.put(status(TaskState::Finished), at(2));
        assert_eq!(
            due(&mut outbox, 2),
            [TaskState::Running, TaskState::Finished]
        );
        assert!(!outbox.on_ack(2));
        assert!(outbox.on_ack(4) && outbox.is_empty());
    }

    #[test]
    fn it_is_repeated_with_growing_pauses_until_acknowledged() {
        let mut outbox = Outbox::default();
        outbox.put(status(TaskState::Running), at(0));
        let mut sent = Vec::new();
        for ms in (0..30_000).step_by(100) {
            if !due(&mut outbox, ms).is_empty() {
                sent.push(ms);
            }
        }
        assert_eq!(sent, [0, 500, 1500, 3500, 7500, 12500, 17500, 22500, 27500]);
        outbox.on_session(at(30_000));
        assert_eq!(due(&mut outbox, 30_000), [TaskState::Running]);
    }

    #[test]
    fn sequences_rise_through_restarts() {
        let life = [
            (1, TaskState::Starting),
            (1, TaskState::Running),
            (2, TaskState::Starting),
            (2, TaskState::Running),
            (2, TaskState::Killing),
            (2, TaskState::Killed),
        ];
        let sequences: Vec<u64> = life.iter().map(|&(a, s)| sequence(a, s)).collect();
        assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    }
}
