//! Signs of life of agents, noted where they arrive.
//!
//! Invariants: noting one waits for nothing that the node's loop does, so that a slow disk or a long queue
//! never looks like silent agents; a beat is answered only while the loop itself looks in, so that agents
//! leave a master that is stuck. Must never change state.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A loop that has not looked for so long is stuck: longer than a slow disk takes for one write.
const STUCK: Duration = Duration::from_secs(10);

/// Why a beat is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeatRefused {
    /// There is no such session.
    #[error("the session is over")]
    NoSession,
    /// The loop does not look.
    #[error("the master is stuck")]
    Stuck,
}

/// When a session beat last, if it did since the loop looked.
type Noted = Option<Instant>;

#[derive(Debug)]
struct Board {
    sessions: HashMap<u64, Noted>,
    looked: Instant,
}

/// The beats since the loop looked last.
#[derive(Debug)]
pub struct Beats(Mutex<Board>);

impl Beats {
    /// None so far.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Board {
            sessions: HashMap::new(),
            looked: now,
        }))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // A panic while holding the lock cannot leave the board half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub fn open(&self, session: u64) {
        self.board().sessions.insert(session, None);
    }

    /// A session is over.
    pub fn close(&self, session: u64) {
        self.board().sessions.remove(&session);
    }

    /// All sessions are over.
    pub fn clear(&self) {
        self.board().sessions.clear();
    }

    /// Note a beat.
    ///
    /// # Errors
    /// When it is not to be answered.
    pub fn beat(&self, session: u64, now: Instant) -> Result<(), BeatRefused> {
        let mut board = self.board();
        if now.saturating_duration_since(board.looked) > STUCK {
            return Err(BeatRefused::Stuck);
        }
        let noted = board
            .sessions
            .get_mut(&session)
            .ok_or(BeatRefused::NoSession)?;
        *noted = Some(now);
        Ok(())
    }

    /// The sessions that beat since this was called last, and when each did last.
    pub fn take(&self, now: Instant) -> Vec<(u64, Instant)> {
        let mut board = self.board();
        board.looked = now;
        let noted = board.sessions.iter_mut();
        noted
            .filter_map(|(session, noted)| Some((*session, noted.take()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_taken_once_and_only_of_open_sessions() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let beats = Beats::new(began);
        assert_eq!(beats.beat(1, at(0)), Err(BeatRefused::NoSession));
        beats.open(1);
        beats.open(2);
        assert_eq!(beats.take(at(1)), []);
        assert_eq!(beats.beat(1, at(2)), Ok(()));
        assert_eq!(beats.beat(1, at(3)), Ok(()));
        assert_eq!(beats.take(at(4)), [(1, at(3))]);
        assert_eq!(beats.take(at(5)), []);
        beats.close(1);
        assert_eq!(beats.beat(1, at(6)), Err(BeatRefused::NoSession));
        beats.clear();
        assert_eq!(beats.beat(2, at(6)), Err(BeatRefused::NoSession));
    }

    #[test]
    fn a_loop_that_is_stuck_is_not_spoken_for() {
        let began = Instant::now();
        let beats = Beats::new(began);
        beats.open(1);
        let late = began + STUCK + Duration::from_millis(1);
        assert_eq!(beats.beat(1, began + STUCK), Ok(()));
        assert_eq!(beats.beat(1, late), Err(BeatRefused::Stuck));
        // What came before counts when the loop looks again.
        assert_eq!(beats.take(late), [(1, began + STUCK)]);
        assert_eq!(beats.beat(1, late), Ok(()));
    }
}
