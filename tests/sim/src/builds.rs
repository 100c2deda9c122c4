//! The components of schedulers that a framework may be upgraded to: good ones, and some that fail on
//! the way.
//!
//! Invariants: a build writes records of one form only; a build that fails does so each time. Must never
//! know what the master makes of it.

use tessera_master_core::StateVersions;
use tessera_types::Digest;

/// A component of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// What every framework is created with.
    First,
    /// Another one that keeps its state in the same form.
    Same,
    /// The same, but it traps in every batch.
    SameTraps,
    /// Keeps its state in another form, and carries older state over.
    Second,
    /// The same, but its migration traps half way.
    SecondStuck,
    /// The same, but it traps in every batch after the migration.
    SecondTraps,
}

impl Build {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::First,
        Self::Same,
        Self::SameTraps,
        Self::Second,
        Self::SecondStuck,
        Self::SecondTraps,
    ];

    /// The digest of its component.
    #[must_use]
    pub fn component(self) -> Digest {
        Digest::of(&self.bytes())
    }

    /// What its component consists of.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        format!("scheduler {self:?}").into_bytes()
    }

    /// The build of a component.
    #[must_use]
    pub fn of(component: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|build| build.component().0 == component)
    }

    /// The form of the records that it writes and reads.
    #[must_use]
    pub const fn format(self) -> u32 {
        match self {
            Self::First | Self::Same | Self::SameTraps => 1,
            Self::Second | Self::SecondStuck | Self::SecondTraps => 2,
        }
    }

    /// What its component says of its state.
    #[must_use]
    pub fn states(self) -> StateVersions {
        match self.format() {
            1 => StateVersions { writes: 1, reads: Vec::new(), migrates: false },
            writes => StateVersions { writes, reads: vec![1], migrates: true },
        }
    }

    /// Whether it traps in a batch, or in a step of its migration that is not the first.
    #[must_use]
    pub const fn traps(self, migrating: bool, first_step: bool) -> bool {
        match self {
            Self::First | Self::Same | Self::Second => false,
            Self::SameTraps | Self::SecondTraps => !migrating,
            Self::SecondStuck => migrating && !first_step,
        }
    }
}
