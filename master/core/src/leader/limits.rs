//! Limits as agents are told them.
//!
//! Invariant: an agent hears of a change of limits with the next desired state, and of the limits of a
//! role before or together with its first task. Must never enforce one.

use super::Desk;
use std::collections::BTreeSet;
use tessera_types::{EffectiveLimits, RoleName};
use tessera_wire::v1;

impl Desk<'_> {
    /// The limits of some role changed.
    pub(super) fn limits_changed(&mut self) {
        self.leader.limits = None;
        let links = self.leader.links.iter().filter(|(_, link)| link.session.is_some());
        let connected: Vec<_> = links.map(|(agent, _)| *agent).collect();
        self.leader.dirty_links.extend(connected);
    }

    /// The limits of every role that has a say or a framework, as far as they differ from the defaults,
    /// and those of the cluster under the empty name.
    pub(super) fn desired_limits(&mut self) -> Vec<v1::RoleLimits> {
        let state = self.state;
        let resolve = || {
            if state.limits.is_empty() {
                return Vec::new();
            }
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
            in_force.filter(|role| !role.limits.is_empty()).collect()
        };
        self.leader.limits.get_or_insert_with(resolve).clone()
    }
}

/// Limits as they travel.
pub(super) fn changed(limits: &EffectiveLimits) -> Vec<v1::Limit> {
    limits.changed().map(Into::into).collect()
}
