//! What a framework has run, what it is on trial for, how it failed, and why it is held.
//!
//! Owns plain data that is stored in a framework's row and shown as it is. Invariants: the last version
//! is the one in force; an upgrade stands from its start to the end of its trial. Must never decide.

use std::fmt;
use tessera_types::{Digest, TimeMs, TurnNumber};

/// The reason of a failure for want of room on the agent.
pub(crate) const WORKER_FULL: &str = "WORKER_FULL";
/// An agent's code for an instance whose compiled image was damaged: it is made anew, and the instance begun again.
pub(crate) const IMAGE_DAMAGED: &str = "IMAGE_DAMAGED";

/// What a scheduler component says of the state that it keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateVersions {
    /// The version that it writes.
    pub writes: u32,
    /// Older versions that it can start from.
    pub reads: Vec<u32>,
    /// It carries older state over by migration, in turns of their own.
    pub migrates: bool,
}

impl StateVersions {
    /// Whether it can start from state of this version.
    #[must_use]
    pub fn takes(&self, version: u32) -> bool {
        self.writes == version || self.reads.contains(&version)
    }
}

impl fmt::Display for StateVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writes state version {}", self.writes)?;
        if self.reads.is_empty() {
            return f.write_str(" and reads no other");
        }
        let reads: Vec<String> = self.reads.iter().map(ToString::to_string).collect();
        write!(f, " and reads {}", reads.join(", "))
    }
}

/// How a framework came to a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionOrigin {
    /// It was created with it.
    Created,
    /// It was upgraded to it.
    Upgraded,
    /// It went back to it.
    RolledBack,
}

impl VersionOrigin {
    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Upgraded => "upgraded",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// What became of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionOutcome {
    /// In force for good.
    Running,
    /// In force; a failure goes back to the one before.
    Trial,
    /// It carries the state over; a failure goes back to the one before.
    Migrating,
    /// A later one took its place.
    Replaced,
    /// It was given up in its trial or migration: why.
    Failed(String),
}

impl fmt::Display for VersionOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Trial => f.write_str("trial"),
            Self::Migrating => f.write_str("migrating"),
            Self::Replaced => f.write_str("replaced"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// One of the components that a framework has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameworkVersion {
    /// Counts from 1; never given out twice.
    pub version: u64,
    /// The component.
    pub component: Digest,
    /// The version of the state that it writes.
    pub writes_state: u32,
    /// Since when.
    pub since_ms: TimeMs,
    /// Who asked for it; empty for the cluster itself.
    pub principal: String,
    /// How it came.
    pub origin: VersionOrigin,
    /// What became of it.
    pub outcome: VersionOutcome,
}

/// An upgrade that is not final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The version before, to which a failure goes back.
    pub from_version: u64,
    /// The state is being carried over; else it is on trial.
    pub migrating: bool,
    /// Version of the state before.
    pub migrate_from: u32,
    /// Bytes of the state before.
    pub old_bytes: u64,
    /// Keys of the state before.
    pub old_keys: u64,
    /// The first turn that it could commit.
    pub first_turn: TurnNumber,
}

/// Failures of a scheduler that count towards quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Without a committed turn between.
    pub in_a_row: u32,
    /// When, the newest ones, ascending.
    pub at_ms: Vec<TimeMs>,
    /// Code of the last one, for example `TRAPPED`.
    pub reason: String,
    /// The limit that it hit; empty if none.
    pub limit: String,
    /// For people.
    pub message: String,
    /// The turn in which it failed; 0 is before the first.
    pub turn: u64,
}

/// A scheduler is kept from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Since when.
    pub since_ms: TimeMs,
    /// The limit on failures that was reached.
    pub rule: String,
}

/// What a framework's scheduler is doing, as far as this master can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes turns.
    Running,
    /// Is being built on its agent.
    Starting,
    /// Failed, and is built again after a pause.
    BackingOff,
    /// Failed too often; an operator has to release it.
    Quarantined,
    /// Carries its state over.
    Migrating,
    /// Takes turns with a new component, whose failure goes back to the old one.
    Trial,
    /// Ends its tasks.
    Removing,
    /// Waits for an agent.
    Unplaced,
}

impl Phase {
    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::BackingOff => "backing-off",
            Self::Quarantined => "quarantined",
            Self::Migrating => "migrating",
            Self::Trial => "trial",
            Self::Removing => "removing",
            Self::Unplaced => "unplaced",
        }
    }
}
