//! What is told of an instance that failed.
//!
//! Invariants: the guest is named as guilty only for what it did itself. This file must never decide what
//! follows from that.

use tessera_wit_host::Failure;

/// What went wrong, and whose fault it is.
pub struct Blame {
    /// Upper-case code, as in `InstanceFailed`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Name of the limit that was hit; empty when none was.
    pub limit: String,
    /// Number of the turn in which it happened; 0 outside of a turn.
    pub turn: u64,
    /// The guest is to blame.
    pub guest: bool,
}

impl Blame {
    /// Something beside the guest failed.
    pub fn nobody(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            limit: String::new(),
            turn: 0,
            guest: false,
        }
    }

    /// A call of the guest failed in this turn.
    #[must_use]
    pub fn of(failure: &Failure, turn: u64) -> Self {
        Self {
            reason: failure.code(),
            message: failure.to_string(),
            limit: failure.limit().to_owned(),
            turn,
            guest: failure.is_guests(),
        }
    }
}
