//! Limits as agents are told them, and those of a turn's operations, which only the leader sees as they
//! were asked for.
//!
//! Invariant: an agent hears of a change of limits with the next desired state, and of the limits of a
//! role before or together with its first task.

use super::Desk;
use prost::Message;
use std::collections::BTreeSet;
use tessera_types::{EffectiveLimits, LimitName, RoleName, TurnRefusal};
use tessera_wire::v1;

impl Desk<'_> {
    /// The limits of some role changed.
    pub(super) fn limits_changed(&mut self) {
        self.leader.limits_generation += 1;
        self.leader.limits = None;
        self.leader.room_came = true;
        let links = self.leader.links.iter().filter(|(_, link)| link.session.is_some());
        let connected: Vec<_> = links.map(|(agent, _)| *agent).collect();
        self.leader.dirty_links.extend(connected);
    }

    /// The limits of every role that has a say or a framework, as far as they differ from the defaults,
    /// and those of the cluster under the empty name. A role that is back at the defaults, below one that
    /// is not, says so with an empty list.
    pub(super) fn desired_limits(&mut self) -> Vec<v1::RoleLimits> {
        let state = self.state;
        if state.limits.is_empty() {
            return Vec::new();
        }
        let newest = state.meta.next_framework;
        let resolve = || {
            let set = state.limits.keys().map(String::as_str);
            let used = state.frameworks.values().map(|framework| framework.role.as_str());
            let roles: BTreeSet<&str> = set.chain(used).collect();
            let in_force = roles.into_iter().map(|role| {
                let limits = match RoleName::try_from(role.to_owned()) {
                    Ok(role) => state.limits_of(&role),
                    Err(_) => state.cluster_limits(),
                };
                v1::RoleLimits { role: role.to_owned(), limits: changed(&limits) }
            });
            (newest, in_force.collect())
        };
        let known = self.leader.limits.take().filter(|(covered, _)| *covered == newest);
        self.leader.limits.insert(known.unwrap_or_else(resolve)).1.clone()
    }
}

/// Limits as they travel.
pub(super) fn changed(limits: &EffectiveLimits) -> Vec<v1::Limit> {
    limits.changed().map(Into::into).collect()
}

/// Bytes by which an operation's encoding may exceed what a worker counts it with.
const OPERATION_OVERHEAD_BYTES: usize = 64;

/// The bounds of what a turn asks for, as its worker counts it: each launch is one operation.
pub(super) fn validate_operations(turn: &v1::Turn, limits: &EffectiveLimits) -> Result<(), TurnRefusal> {
    use v1::operation::Operation;
    let refuse = |name: LimitName, found: usize| {
        let text = format!("at most {} per turn, not {found}", limits.get(name));
        Err(TurnRefusal::Limit { name: name.to_string(), text })
    };
    let pieces = |operation: &v1::Operation| match &operation.operation {
        Some(Operation::Accept(accept)) => accept.launches.len().max(1),
        _ => 1,
    };
    let count: usize = turn.operations.iter().map(pieces).sum();
    if count > limits.size(LimitName::TurnOperations) {
        return refuse(LimitName::TurnOperations, count);
    }
    let encoded = turn.operations.iter().map(Message::encoded_len);
    let bytes = encoded.sum::<usize>().saturating_sub(count * OPERATION_OVERHEAD_BYTES);
    if bytes > limits.size(LimitName::TurnOperationBytes) {
        return refuse(LimitName::TurnOperationBytes, bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::operation::Operation;

    fn turn(operations: Vec<Operation>) -> v1::Turn {
        let operations = operations.into_iter().map(|it| v1::Operation { operation: Some(it) });
        v1::Turn { operations: operations.collect(), ..v1::Turn::default() }
    }

    fn answer(bytes: usize) -> Operation {
        let answer = v1::HttpAnswer { status: 200, body: vec![0; bytes], ..Default::default() };
        Operation::Respond(v1::Respond { request: 1, answer: Some(answer) })
    }

    #[test]
    fn operations_are_counted_with_their_launches_and_measured() {
        let mut limits = EffectiveLimits::default();
        limits.put(LimitName::TurnOperations, 10);
        limits.put(LimitName::TurnOperationBytes, 100_000);
        let accept = |launches| {
            let launches = vec![v1::Launch::default(); launches];
            Operation::Accept(v1::Accept { launches, ..Default::default() })
        };
        let revive = || Operation::Revive(v1::Empty {});
        // What a turn asks for, and the limit that it passes.
        let cases = [
            (vec![accept(9), revive()], None),
            (vec![accept(10), revive()], Some("turn-operations")),
            (vec![accept(0); 10], None),
            (vec![accept(0); 11], Some("turn-operations")),
            (vec![answer(50_000), answer(50_000)], None),
            (vec![answer(50_000), answer(51_000)], Some("turn-operation-bytes")),
        ];
        for (operations, expected) in cases {
            let found = validate_operations(&turn(operations), &limits);
            let name = found.err().map(|refusal| match refusal {
                TurnRefusal::Limit { name, .. } => name,
                other => other.to_string(),
            });
            assert_eq!(name.as_deref(), expected);
        }
    }
}
