//! What operators want of agents, and what frameworks want while an agent is away: the nouns alone.
//!
//! Invariant: everything here is plain data. Must never decide when something is due.

use tessera_types::{AgentId, InverseOffer, OfferId, TimeMs};

/// An agent whose tasks have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Since when.
    pub since_ms: TimeMs,
    /// What is still there then is killed.
    pub deadline_ms: TimeMs,
    /// That has happened.
    pub over: bool,
}

/// When an agent will be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// From.
    pub start_ms: TimeMs,
    /// To.
    pub end_ms: TimeMs,
}

/// Which copy of a task stays when the agent of the first one returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The first one goes on; its scheduler was told that it may launch another, and ends which it likes.
    First,
    /// The first one was given up, and is stopped.
    #[default]
    Last,
}

/// What becomes of a framework's tasks whose agent does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnreachablePolicy {
    /// They are to be replaced after so long; without it they wait for their agent.
    pub replace_after_ms: Option<u64>,
    /// What happens to them if their agent returns after that.
    pub keep: Keep,
}

/// An agent that was declared gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) agent: AgentId,
    pub(crate) at_ms: TimeMs,
    pub(crate) hostname: String,
}

/// The ids under which an agent is asked for back, for a drain and for maintenance. Offers count from the
/// leader's term upwards, far above these.
pub(crate) const fn inverse_ids(agent: AgentId) -> [OfferId; 2] {
    [OfferId(agent.0 * 2), OfferId(agent.0 * 2 + 1)]
}

/// How an agent is asked for back.
pub(crate) fn inverse_offers(
    agent: AgentId,
    drain: Option<Drain>,
    maintenance: Option<Maintenance>,
) -> Vec<InverseOffer> {
    let [drained, maintained] = inverse_ids(agent);
    let drain = drain.map(|drain| InverseOffer {
        id: drained,
        agent,
        start_ms: drain.deadline_ms,
        duration_ms: None,
    });
    let maintenance = maintenance.map(|window| InverseOffer {
        id: maintained,
        agent,
        start_ms: window.start_ms,
        duration_ms: Some(window.end_ms.saturating_sub(window.start_ms)),
    });
    drain.into_iter().chain(maintenance).collect()
}
