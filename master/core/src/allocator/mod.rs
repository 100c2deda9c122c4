//! Who is offered what: pure, over a picture of the moment.
//!
//! Owns the [`Allocator`] boundary. Invariants: never grants more than is free; deterministic; grants
//! nothing smaller than the smallest offer. Must never know sessions, batches or commands: another
//! policy takes its place without any other change.

mod fair;

pub(crate) use fair::{Fair, worth_offering};

use std::collections::BTreeMap;
use tessera_types::{AgentId, FrameworkId, Quantities, Resources};

/// A framework that may be offered something.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) framework: FrameworkId,
    pub(crate) role: String,
    /// Offers in a row that it kept from others for nothing.
    pub(crate) wasted: u32,
}

/// The picture.
pub(crate) struct Picture<'a> {
    /// What all reachable agents have.
    pub(crate) total: Resources,
    /// What is free, of agents that may be offered.
    pub(crate) free: Vec<(AgentId, Resources)>,
    /// Who may be offered something.
    pub(crate) candidates: Vec<Candidate>,
    /// What frameworks hold, offers included; of all, since roles share.
    pub(crate) held: BTreeMap<FrameworkId, (String, Resources)>,
    /// Whether a framework refused these resources of an agent for now.
    pub(crate) refused: &'a dyn Fn(FrameworkId, AgentId, &Resources) -> bool,
    /// With which agent to begin, or the next one; another one in each round.
    pub(crate) first: AgentId,
}

/// One offer to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) quantities: Resources,
}

/// A policy.
pub(crate) trait Allocator {
    /// Decide one round.
    fn allocate<'a>(&self, picture: &'a Picture<'_>) -> Vec<Grant>;
}

/// A share of the whole: the largest of its parts, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    part: u128,
    whole: u128,
}

impl Share {
    /// The dominant share of some quantities.
    pub(crate) fn dominant(held: Quantities, total: Quantities) -> Self {
        let amounts = [
            (held.cpus_milli, total.cpus_milli),
            (held.mem_mib, total.mem_mib),
            (held.disk_mib, total.disk_mib),
        ];
        let mut largest = Self { part: 0, whole: 1 };
        for (part, whole) in amounts {
            if whole <= 0 || part <= 0 {
                continue;
            }
            let share =
                Self { part: u128::from(part.unsigned_abs()), whole: u128::from(whole.unsigned_abs()) };
            if share.cmp(&largest).is_gt() {
                largest = share;
            }
        }
        largest
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.part * other.whole).cmp(&(other.part * self.whole))
    }
}
