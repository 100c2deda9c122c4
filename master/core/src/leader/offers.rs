//! Offers that stand, amounts that are being accepted, and filters.
//!
//! Invariants: per agent, what is charged, offered and being accepted never exceeds what it has unless
//! it came back smaller, and then nothing is offered; an offer ends exactly once: accepted, declined,
//! expired or withdrawn. Must never outlive the leader.

use super::Desk;
use crate::allocator::{Allocator, Candidate, Fair, Picture};
use crate::limits::{EXPIRED_FILTER_MS, FILTER_MIN_MS, OFFER_WASTED_MS};
use std::collections::BTreeMap;
use tessera_types::limits::DURATION_MAX_MS;
use tessera_types::{AgentId, FrameworkId, Offer, OfferId, Quantities};

/// One offer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) quantities: Quantities,
    pub(crate) made_ms: u64,
}

/// Resources of an agent that a framework does not want for now.
#[derive(Clone, Copy, Debug)]
struct Refused {
    quantities: Quantities,
    until_ms: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    pub(crate) standing: BTreeMap<OfferId, Standing>,
    /// Amounts of accepted offers whose turn is not applied yet, by ticket.
    pub(crate) accepting: BTreeMap<u64, Vec<(FrameworkId, AgentId, Quantities)>>,
    /// At most one per framework and agent.
    filters: BTreeMap<(FrameworkId, AgentId), Refused>,
    /// Offers that a framework has kept for nothing since it accepted one.
    wasted: BTreeMap<FrameworkId, u32>,
    round: u64,
}

impl Offers {
    /// What is offered or being accepted of an agent.
    pub(crate) fn held_of(&self, agent: AgentId) -> Quantities {
        self.all().filter(|(_, a, _)| *a == agent).fold(Quantities::ZERO, |s, (_, _, q)| s.plus(q))
    }

    /// What is offered to a framework or being accepted by it.
    pub(crate) fn held_by(&self, framework: FrameworkId) -> Quantities {
        let own = self.all().filter(|(f, _, _)| *f == framework);
        own.fold(Quantities::ZERO, |sum, (_, _, q)| sum.plus(q))
    }

    /// What stands as offers of an agent.
    pub(crate) fn standing_of(&self, agent: AgentId) -> Quantities {
        let of = self.standing.values().filter(|standing| standing.agent == agent);
        of.fold(Quantities::ZERO, |sum, standing| sum.plus(standing.quantities))
    }

    fn all(&self) -> impl Iterator<Item = (FrameworkId, AgentId, Quantities)> {
        let standing = self.standing.values().map(|o| (o.framework, o.agent, o.quantities));
        standing.chain(self.accepting.values().flatten().copied())
    }

    fn filter(&mut self, key: (FrameworkId, AgentId), quantities: Quantities, until_ms: u64) {
        let filter = self.filters.entry(key).or_insert(Refused { quantities, until_ms });
        // A later answer says more than an earlier one.
        *filter = Refused { quantities, until_ms };
    }

    /// An offer has ended without being accepted, after this time.
    fn given_back(&mut self, framework: FrameworkId, after_ms: u64) {
        if after_ms >= OFFER_WASTED_MS {
            let wasted = self.wasted.entry(framework).or_default();
            *wasted = wasted.saturating_add(1);
        }
    }

    /// A framework launches on what it was offered.
    pub(super) fn accept(
        &mut self,
        ticket: u64,
        framework: FrameworkId,
        accepted: Vec<(FrameworkId, AgentId, Quantities)>,
    ) {
        self.wasted.remove(&framework);
        self.accepting.insert(ticket, accepted);
    }

    fn drop_filters(&mut self, keep: impl Fn(FrameworkId, AgentId) -> bool) {
        self.filters.retain(|(framework, agent), _| keep(*framework, *agent));
    }

    fn refused(&self, framework: FrameworkId, agent: AgentId, quantities: Quantities) -> bool {
        let filter = self.filters.get(&(framework, agent));
        filter.is_some_and(|filter| filter.quantities.contains(quantities))
    }
}

impl Desk<'_> {
    /// Make offers of everything that is free and that somebody may have.
    pub(super) fn allocate(&mut self) {
        let mut held_of: BTreeMap<AgentId, Quantities> = BTreeMap::new();
        let mut held_by: BTreeMap<FrameworkId, Quantities> = BTreeMap::new();
        for (framework, agent, quantities) in self.leader.offers.all() {
            let sum = held_of.entry(agent).or_default();
            *sum = sum.plus(quantities);
            let sum = held_by.entry(framework).or_default();
            *sum = sum.plus(quantities);
        }
        let connected = |agent: &AgentId| {
            self.leader.links.get(agent).is_some_and(|l| l.session.is_some() && !l.comparing)
        };
        let free = self.state.agents.iter().filter(|(agent, row)| {
            row.unreachable_ms.is_none() && !row.deactivated && connected(agent)
        });
        let free: Vec<_> = free
            .map(|(agent, row)| {
                let held = held_of.get(agent).copied().unwrap_or_default();
                (*agent, row.resources.total.minus(row.charged).minus(held))
            })
            .collect();
        let wants = |id: &FrameworkId| {
            self.leader.instances.get(id).is_some_and(|instance| instance.may_be_offered())
        };
        let candidates = self.state.frameworks.iter().filter(|(id, framework)| {
            !framework.removing && !framework.suppressed && !framework.migrating() && wants(id)
        });
        let candidates: Vec<Candidate> = candidates
            .map(|(id, f)| Candidate {
                framework: *id,
                role: f.role.to_string(),
                wasted: self.leader.offers.wasted.get(id).copied().unwrap_or(0),
            })
            .collect();
        let held = self.state.frameworks.iter().map(|(id, framework)| {
            let offered = held_by.get(id).copied().unwrap_or_default();
            (*id, (framework.role.to_string(), framework.charged.plus(offered)))
        });
        let picture = Picture {
            total: self.state.total(),
            free,
            candidates,
            held: held.collect(),
            refused: &|framework, agent, quantities| {
                self.leader.offers.refused(framework, agent, quantities)
            },
            round: self.leader.offers.round,
        };
        let grants = Fair.allocate(&picture);
        self.leader.offers.round += 1;
        for grant in grants {
            let id = OfferId(self.leader.fresh());
            let standing = Standing {
                framework: grant.framework,
                agent: grant.agent,
                quantities: grant.quantities,
                made_ms: self.now.mono_ms,
            };
            self.leader.offers.standing.insert(id, standing);
            if let Some(instance) = self.leader.instances.get_mut(&grant.framework) {
                instance.offers.push(Offer {
                    id,
                    agent: grant.agent,
                    available: grant.quantities,
                });
            }
            self.leader.dirty_frameworks.insert(grant.framework);
        }
    }

    /// Offers of an agent of which more was charged than had been accepted: an executor ended while a
    /// task of it was being launched, and was charged anew.
    pub(super) fn withdraw_excess(&mut self, agent: AgentId) {
        let Some(row) = self.state.agents.get(&agent) else { return };
        let standing = self.leader.offers.standing_of(agent);
        let accepting = self.leader.offers.held_of(agent).minus(standing);
        let free = row.resources.total.minus(row.charged).minus(accepting);
        if standing != Quantities::ZERO && !free.contains(standing) {
            self.withdraw_agent(agent);
        }
    }

    /// Take back an offer that its framework gives up, and do not offer the same for a while.
    pub(super) fn decline(&mut self, framework: FrameworkId, offer: OfferId, refuse_ms: u64) {
        let offers = &mut self.leader.offers;
        if offers.standing.get(&offer).is_none_or(|standing| standing.framework != framework) {
            return;
        }
        if let Some(standing) = offers.standing.remove(&offer) {
            let refuse_ms = refuse_ms.clamp(FILTER_MIN_MS, DURATION_MAX_MS);
            let until_ms = self.now.mono_ms + refuse_ms;
            offers.given_back(framework, self.now.mono_ms.saturating_sub(standing.made_ms));
            offers.filter((framework, standing.agent), standing.quantities, until_ms);
            self.leader.allocate = true;
        }
    }

    /// The rest of an accepted offer, by the accept's own filter.
    pub(super) fn refuse_rest(
        &mut self,
        framework: FrameworkId,
        agent: AgentId,
        rest: Quantities,
        refuse_ms: u64,
    ) {
        if refuse_ms > 0 && !rest.is_empty() {
            let until_ms = self.now.mono_ms + refuse_ms.min(DURATION_MAX_MS);
            self.leader.offers.filter((framework, agent), rest, until_ms);
        }
    }

    /// The framework wants everything again.
    pub(super) fn revive(&mut self, framework: FrameworkId) {
        self.leader.offers.drop_filters(|owner, _| owner != framework);
        self.leader.allocate = true;
    }

    /// Offers of an instance that is no more: nobody can answer them.
    pub(super) fn withdraw_framework(&mut self, framework: FrameworkId) {
        self.leader.offers.standing.retain(|_, standing| standing.framework != framework);
        if let Some(instance) = self.leader.instances.get_mut(&framework) {
            instance.offers.clear();
            instance.rescinded.clear();
        }
        self.leader.allocate = true;
    }

    /// Everything of a framework that was removed.
    pub(super) fn forget_filters(&mut self, framework: FrameworkId) {
        self.leader.offers.drop_filters(|owner, _| owner != framework);
        self.leader.offers.wasted.remove(&framework);
    }

    /// Offers of an agent that is away or has changed: their frameworks are told.
    pub(super) fn withdraw_agent(&mut self, agent: AgentId) {
        let gone: Vec<OfferId> = self.offers_where(|standing| standing.agent == agent);
        for offer in gone {
            self.rescind(offer);
        }
        self.leader.offers.drop_filters(|_, of| of != agent);
        self.leader.allocate = true;
    }

    fn offers_where(&self, mut picks: impl FnMut(&Standing) -> bool) -> Vec<OfferId> {
        let standing = self.leader.offers.standing.iter();
        standing.filter(|(_, standing)| picks(standing)).map(|(id, _)| *id).collect()
    }

    fn rescind(&mut self, offer: OfferId) {
        let Some(standing) = self.leader.offers.standing.remove(&offer) else { return };
        if let Some(instance) = self.leader.instances.get_mut(&standing.framework) {
            let before = instance.offers.len();
            instance.offers.retain(|fresh| fresh.id != offer);
            if instance.offers.len() == before {
                instance.rescinded.push(offer);
            }
            self.leader.dirty_frameworks.insert(standing.framework);
        }
    }

    pub(super) fn tick_offers(&mut self) {
        let now_ms = self.now.mono_ms;
        let timeout = self.config.offer_timeout_ms;
        let expired =
            self.offers_where(|standing| now_ms.saturating_sub(standing.made_ms) >= timeout);
        for offer in expired {
            let Some(standing) = self.leader.offers.standing.get(&offer).copied() else { continue };
            self.rescind(offer);
            let key = (standing.framework, standing.agent);
            let until_ms = now_ms + EXPIRED_FILTER_MS;
            self.leader.offers.filter(key, standing.quantities, until_ms);
            let after_ms = now_ms.saturating_sub(standing.made_ms);
            self.leader.offers.given_back(standing.framework, after_ms);
            self.leader.allocate = true;
        }
        let before = self.leader.offers.filters.len();
        self.leader.offers.filters.retain(|_, filter| filter.until_ms > now_ms);
        if self.leader.offers.filters.len() != before {
            self.leader.allocate = true;
        }
    }
}
