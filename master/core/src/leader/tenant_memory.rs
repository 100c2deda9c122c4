//! What all schedulers of a tenant may take together: who would pass it waits for a place.
//!
//! Invariants: a scheduler counts with what its agent makes room for, by the limits of its role as they are
//! now; one that has a place keeps it, and takes it along when it is moved, so that a lower limit holds up
//! only those that have none. Must never take a place away.

use super::Desk;
use std::collections::BTreeMap;
use std::ops::Bound;
use tessera_types::{FrameworkId, LimitName, RoleName};

/// What a scheduler may take: its memory, and what its worker keeps for it, its state and its specs.
const PARTS: [LimitName; 3] = [LimitName::MemoryBytes, LimitName::StateBytes, LimitName::SpecBytes];

/// Why a scheduler gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) needs: u64,
    pub(super) taken: u64,
    pub(super) max: u64,
}

impl Desk<'_> {
    /// What keeps a scheduler without a place from getting one, as far as its tenant is concerned.
    pub(super) fn tenant_lacks(&self, id: FrameworkId) -> Option<Lack> {
        let framework = self.state.frameworks.get(&id).filter(|f| f.agent.is_none())?;
        let tenant = framework.role.tenant();
        let max = self.tenant_limits(tenant).get(LimitName::TenantMemoryBytes);
        // A tenant's frameworks have few different roles.
        let mut known: BTreeMap<&RoleName, u64> = BTreeMap::new();
        let mut granted = |role| *known.entry(role).or_insert_with(|| self.granted(role));
        let needs = granted(&framework.role);
        let from = (tenant.to_owned(), String::new());
        let names = self.state.names.range((Bound::Included(from), Bound::Unbounded));
        let of_tenant = names.take_while(|((of, _), _)| of == tenant).map(|(_, other)| *other);
        let mut taken: u64 = 0;
        for other in of_tenant.filter(|other| *other != id) {
            let Some(row) = self.state.frameworks.get(&other).filter(|f| !f.removing) else { continue };
            let coming = self.leader.instances.get(&other).is_some_and(|i| i.placing.is_some());
            if row.agent.is_some() || coming {
                taken = taken.saturating_add(granted(&row.role));
            }
        }
        (taken.saturating_add(needs) > max).then_some(Lack { needs, taken, max })
    }

    fn granted(&self, role: &RoleName) -> u64 {
        let limits = self.state.limits_of(role);
        PARTS.iter().fold(0, |sum: u64, name| sum.saturating_add(limits.get(*name)))
    }
}
