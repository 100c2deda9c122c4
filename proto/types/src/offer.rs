//! Offers: resources of one agent, held for one framework until answered or withdrawn.

use crate::{AgentId, OfferId, Resources, TimeMs};
use serde::{Deserialize, Serialize};

/// An offer as a scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its number, unique within one leader's term.
    pub id: OfferId,
    /// Whose resources.
    pub agent: AgentId,
    /// How much.
    pub available: Resources,
    /// It may be taken back with what runs on it, at any time: for revocable tasks only.
    pub revocable: bool,
}

/// How long declined resources are not offered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Duration; 0 is no filter.
    pub refuse_ms: u64,
}

/// An agent is asked for back: what runs there should be elsewhere by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InverseOffer {
    /// Unlike that of any offer.
    pub id: OfferId,
    /// Which agent.
    pub agent: AgentId,
    /// From when on.
    pub start_ms: TimeMs,
    /// For how long; for good when absent.
    pub duration_ms: Option<u64>,
}
