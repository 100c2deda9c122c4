//! Agents' upkeep, frameworks' policies, agents that are gone, and results of requests to and from rows.

use super::{LoadError, ROW_VERSION, bad};
use crate::effect::CommandResult;
use crate::repeats::KeptRequest;
use crate::rows;
use crate::upkeep::{Drain, Gone, Keep, Maintenance, UnreachablePolicy};
use prost::Message;
use tessera_types::{AgentId, Digest, FrameworkId};
use tessera_wire::v1::{self, request_row::Result as Kept};

impl From<Drain> for v1::Drain {
    fn from(drain: Drain) -> Self {
        Self { since_ms: drain.since_ms, deadline_ms: drain.deadline_ms, over: drain.over }
    }
}

impl From<v1::Drain> for Drain {
    fn from(drain: v1::Drain) -> Self {
        Self { since_ms: drain.since_ms, deadline_ms: drain.deadline_ms, over: drain.over }
    }
}

impl From<Maintenance> for v1::Maintenance {
    fn from(window: Maintenance) -> Self {
        Self { start_ms: window.start_ms, end_ms: window.end_ms }
    }
}

impl From<v1::Maintenance> for Maintenance {
    fn from(window: v1::Maintenance) -> Self {
        Self { start_ms: window.start_ms, end_ms: window.end_ms }
    }
}

impl From<UnreachablePolicy> for v1::UnreachablePolicy {
    fn from(policy: UnreachablePolicy) -> Self {
        Self {
            replace_after_ms: policy.replace_after_ms.unwrap_or(0),
            keep_first: policy.keep == Keep::First,
        }
    }
}

impl From<v1::UnreachablePolicy> for UnreachablePolicy {
    fn from(policy: v1::UnreachablePolicy) -> Self {
        Self {
            replace_after_ms: (policy.replace_after_ms > 0).then_some(policy.replace_after_ms),
            keep: if policy.keep_first { Keep::First } else { Keep::Last },
        }
    }
}

impl Gone {
    pub(crate) fn encode(&self) -> Vec<u8> {
        v1::GoneRow {
            version: ROW_VERSION,
            agent: self.agent.0,
            at_ms: self.at_ms,
            hostname: self.hostname.clone(),
        }
        .encode_to_vec()
    }
}

pub(super) fn gone(row: v1::GoneRow) -> Gone {
    Gone { agent: AgentId(row.agent), at_ms: row.at_ms, hostname: row.hostname }
}

/// The row of a result; none for results that no request of a user has.
pub(crate) fn encode_request(kept: &KeptRequest) -> Option<Vec<u8>> {
    let result = match &kept.result {
        CommandResult::Done => Kept::Done(v1::Empty {}),
        CommandResult::Framework(id) => Kept::Framework(id.0),
        CommandResult::Version(version) => Kept::ComponentVersion(*version),
        CommandResult::Component { digest, created } => {
            Kept::Component(v1::AddedComponent { digest: digest.0.to_vec(), created: *created })
        }
        CommandResult::Agent(_)
        | CommandResult::Placed(_)
        | CommandResult::Turn(_)
        | CommandResult::Refused(_) => return None,
    };
    let row = v1::RequestRow {
        version: ROW_VERSION,
        principal: kept.key.0.clone(),
        idempotency_key: kept.key.1.clone(),
        fingerprint: kept.fingerprint.0.to_vec(),
        at_ms: kept.at_ms,
        result: Some(result),
    };
    Some(row.encode_to_vec())
}

pub(super) fn request(row: v1::RequestRow) -> Result<KeptRequest, LoadError> {
    let digest = |bytes: &[u8]| Digest::from_slice(bytes).map_err(|e| bad(rows::REQUESTS, e));
    let result = match row.result.ok_or_else(|| bad(rows::REQUESTS, "no result"))? {
        Kept::Done(v1::Empty {}) => CommandResult::Done,
        Kept::Framework(id) => CommandResult::Framework(FrameworkId(id)),
        Kept::ComponentVersion(version) => CommandResult::Version(version),
        Kept::Component(added) => {
            CommandResult::Component { digest: digest(&added.digest)?, created: added.created }
        }
    };
    Ok(KeptRequest {
        key: (row.principal, row.idempotency_key),
        fingerprint: digest(&row.fingerprint)?,
        at_ms: row.at_ms,
        result,
    })
}
