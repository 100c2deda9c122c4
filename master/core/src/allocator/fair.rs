//! Flat fair share: the role with the lowest dominant share first, then its framework with the lowest;
//! each gets all that is free of one agent, as Mesos does. Whoever keeps offers for nothing comes after
//! those who do so less often: silent schedulers, however many, cannot take turns in holding everything.

use super::{Allocator, Candidate, Grant, Picture, Share};
use crate::limits::{OFFER_MIN_CPUS_MILLI, OFFER_MIN_MEM_MIB};
use std::collections::BTreeMap;
use tessera_types::{AgentId, FrameworkId, Quantities, Resources};

/// The policy.
pub(crate) struct Fair;

/// Whether an amount is worth an offer.
pub(crate) fn worth_offering(free: &Resources) -> bool {
    let free = free.quantities;
    free.cpus_milli >= OFFER_MIN_CPUS_MILLI || free.mem_mib >= OFFER_MIN_MEM_MIB
}

impl Allocator for Fair {
    fn allocate<'a>(&self, picture: &'a Picture<'_>) -> Vec<Grant> {
        let mut roles: BTreeMap<&str, Quantities> = BTreeMap::new();
        let mut held: BTreeMap<FrameworkId, Quantities> = BTreeMap::new();
        for (framework, (role, quantities)) in &picture.held {
            let sum = roles.entry(role).or_default();
            *sum = sum.plus(quantities.quantities);
            held.insert(*framework, quantities.quantities);
        }
        let mut grants = Vec::new();
        for (agent, free) in rotated(&picture.free, picture.first) {
            let quantities = free.clamped();
            if !worth_offering(&quantities) {
                continue;
            }
            let keyed = |candidate: &'a Candidate| {
                let role = roles.get(candidate.role.as_str()).copied().unwrap_or_default();
                let own = held.get(&candidate.framework).copied().unwrap_or_default();
                let key = (
                    candidate.wasted,
                    Share::dominant(role, picture.total.quantities),
                    candidate.role.as_str(),
                    Share::dominant(own, picture.total.quantities),
                    candidate.framework,
                );
                (key, candidate)
            };
            let willing = picture
                .candidates
                .iter()
                .filter(|candidate| !(picture.refused)(candidate.framework, agent, &quantities));
            let chosen = willing.map(keyed).min_by(|(one, _), (other, _)| one.cmp(other));
            let Some((_, candidate)) = chosen else { continue };
            let role = roles.entry(&candidate.role).or_default();
            *role = role.plus(quantities.quantities);
            let own = held.entry(candidate.framework).or_default();
            *own = own.plus(quantities.quantities);
            grants.push(Grant { framework: candidate.framework, agent, quantities });
        }
        grants
    }
}

fn rotated(free: &[(AgentId, Resources)], first: AgentId) -> impl Iterator<Item = (AgentId, &Resources)> {
    let start = free.partition_point(|(agent, _)| *agent < first);
    let (before, after) = free.split_at(start);
    after.iter().chain(before).map(|(agent, free)| (*agent, free))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn q(cpus_milli: i64, mem_mib: i64) -> Quantities {
        Quantities { cpus_milli, mem_mib, disk_mib: 0 }
    }

    fn candidate(framework: u64, role: &str) -> Candidate {
        Candidate { framework: FrameworkId(framework), role: role.into(), wasted: 0 }
    }

    fn grants(
        free: &[(u64, Quantities)],
        candidates: &[Candidate],
        held: &[(u64, &str, Quantities)],
        refused: &dyn Fn(FrameworkId, AgentId, &Resources) -> bool,
    ) -> Vec<(u64, u64)> {
        let picture = Picture {
            total: q(10_000, 10_000).into(),
            free: free.iter().map(|(agent, free)| (AgentId(*agent), (*free).into())).collect(),
            candidates: candidates.to_vec(),
            held: held
                .iter()
                .map(|(id, role, q)| (FrameworkId(*id), ((*role).to_owned(), (*q).into())))
                .collect(),
            refused,
            first: AgentId(0),
        };
        Fair.allocate(&picture).iter().map(|grant| (grant.framework.0, grant.agent.0)).collect()
    }

    #[test]
    fn roles_take_turns_by_their_dominant_share() {
        let free = [(1, q(1000, 1000)), (2, q(1000, 1000)), (3, q(1000, 1000))];
        let candidates = [candidate(1, "a"), candidate(2, "a"), candidate(3, "b")];
        let never = |_: FrameworkId, _: AgentId, _: &Resources| false;
        assert_eq!(grants(&free, &candidates, &[], &never), [(1, 1), (3, 2), (2, 3)]);
        let held = [(1, "a", q(0, 4000)), (3, "b", q(1000, 0))];
        assert_eq!(grants(&free[..1], &candidates, &held, &never), [(3, 1)]);
    }

    #[test]
    fn whoever_keeps_offers_for_nothing_comes_after_the_others() {
        let free = [(1, q(1000, 1000))];
        let wasted = |framework, role, wasted| Candidate { wasted, ..candidate(framework, role) };
        let held = [(3, "b", q(9_000, 0))];
        let never = |_: FrameworkId, _: AgentId, _: &Resources| false;
        let all = [wasted(1, "a", 1), wasted(2, "a", 2), wasted(3, "b", 0)];
        assert_eq!(grants(&free, &all, &held, &never), [(3, 1)]);
        assert_eq!(grants(&free, &all[..2], &held, &never), [(1, 1)]);
        let refused = |framework: FrameworkId, _: AgentId, _: &Resources| framework.0 != 2;
        assert_eq!(grants(&free, &all, &held, &refused), [(2, 1)]);
    }

    #[test]
    fn crumbs_negative_rests_and_refused_agents_are_passed_over() {
        let candidates = [candidate(1, "a"), candidate(2, "b")];
        let free = [(1, q(9, 31)), (2, q(-5, -5)), (3, q(10, 0)), (4, q(-5, 32))];
        let refused = |framework: FrameworkId, agent: AgentId, _: &Resources| framework.0 == 1 && agent.0 == 3;
        assert_eq!(grants(&free, &candidates, &[], &refused), [(2, 3), (1, 4)]);
        assert_eq!(grants(&free, &[], &[], &refused), []);
    }

    #[test]
    fn shares_compare_exactly() {
        let third = Share::dominant(q(1, 0), q(3, 1));
        let more = Share::dominant(q(333_334, 0), q(1_000_000, 1));
        assert!(third < more);
        assert_eq!(Share::dominant(q(1, 1), Quantities::ZERO), Share { part: 0, whole: 1 });
    }
}
