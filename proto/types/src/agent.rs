//! What the cluster knows of an agent.

use crate::{AgentId, Quantities, Resources};
use serde::{Deserialize, Serialize};

/// An agent as frameworks see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its number.
    pub id: AgentId,
    /// Its host's name.
    pub hostname: String,
    /// Name and value, sorted by name.
    pub attributes: Vec<(String, String)>,
    /// False while the agent is unreachable.
    pub reachable: bool,
}

/// What an agent has. `total` is what is offered; `reserved` is kept for hosted schedulers and is
/// never offered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentResources {
    /// Offered to frameworks, when free.
    pub total: Resources,
    /// The slice for schedulers.
    pub reserved: Quantities,
}
