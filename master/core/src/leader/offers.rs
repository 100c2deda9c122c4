//! Offers that stand, amounts that are being accepted, and filters.
//!
//! Invariants: per agent, what is charged, offered and being accepted never exceeds what it has unless
//! it came back smaller, and then nothing is offered; an offer ends exactly once: accepted, declined,
//! expired or withdrawn. Must never outlive the leader.

use super::Desk;
use crate::allocator::{Allocator, Candidate, Fair, Picture, worth_offering};
use crate::limits::{EXPIRED_FILTER_MS, FILTER_MIN_MS, LOOK_AT_ALL_MS, OFFER_WASTED_MS};
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::limits::DURATION_MAX_MS;
use tessera_types::{AgentId, FrameworkId, Offer, OfferId, Resources};

/// One offer.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) quantities: Resources,
    pub(crate) made_ms: u64,
}

/// Resources of an agent that a framework does not want for now.
#[derive(Clone, Debug)]
struct Refused {
    quantities: Resources,
    until_ms: u64,
}

/// All of them, with indexes that change only with what they index.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    /// Older ones have lower numbers.
    standing: BTreeMap<OfferId, Standing>,
    /// Amounts of accepted offers whose turn is not applied yet, by ticket.
    accepting: BTreeMap<u64, Vec<(FrameworkId, AgentId, Resources)>>,
    /// Index: sums over both, without those that are nothing.
    held_of: BTreeMap<AgentId, Resources>,
    held_by: BTreeMap<FrameworkId, Resources>,
    /// Index: offers that stand.
    of: BTreeSet<(AgentId, OfferId)>,
    /// At most one per agent and framework.
    filters: BTreeMap<(AgentId, FrameworkId), Refused>,
    /// Index: filters by their end.
    filter_ends: BTreeSet<(u64, AgentId, FrameworkId)>,
    /// Offers that a framework has kept for nothing since it accepted one.
    wasted: BTreeMap<FrameworkId, u32>,
    round: u64,
    /// Agents of which something may be free that somebody may be offered. All others were looked at, and
    /// had nothing, or nobody wanted it, and neither has changed since.
    loose: BTreeSet<AgentId>,
    /// Who could be offered something when they were looked at.
    wanting: BTreeSet<FrameworkId>,
    /// What all reachable agents have together, until one changes.
    total: Option<Resources>,
    looked_ms: u64,
}

impl Offers {
    /// Those that stand.
    pub(crate) const fn standing(&self) -> &BTreeMap<OfferId, Standing> {
        &self.standing
    }

    /// What is offered or being accepted of an agent.
    pub(crate) fn held_of(&self, agent: AgentId) -> Resources {
        self.held_of.get(&agent).cloned().unwrap_or_default()
    }

    /// What is offered to a framework or being accepted by it.
    pub(crate) fn held_by(&self, framework: FrameworkId) -> Resources {
        self.held_by.get(&framework).cloned().unwrap_or_default()
    }

    /// What stands as offers of an agent.
    pub(crate) fn standing_of(&self, agent: AgentId) -> Resources {
        let of = self.ids_of(agent).filter_map(|offer| self.standing.get(&offer));
        of.fold(Resources::ZERO, |sum, standing| sum.plus(&standing.quantities))
    }

    fn ids_of(&self, agent: AgentId) -> impl Iterator<Item = OfferId> {
        let of = self.of.range((agent, OfferId(0))..=(agent, OfferId(u64::MAX)));
        of.map(|(_, offer)| *offer)
    }

    /// Sums over all, to be compared with the indexes.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut held_of: BTreeMap<AgentId, Resources> = BTreeMap::new();
        let mut held_by: BTreeMap<FrameworkId, Resources> = BTreeMap::new();
        let standing = self.standing.values().map(|o| (o.framework, o.agent, &o.quantities));
        let accepting = self.accepting.values().flatten().map(|(framework, agent, q)| (*framework, *agent, q));
        for (framework, agent, quantities) in standing.chain(accepting) {
            add(&mut held_of, agent, quantities);
            add(&mut held_by, framework, quantities);
        }
        let of: BTreeSet<_> = self.standing.iter().map(|(id, offer)| (offer.agent, *id)).collect();
        let ends = self.filters.iter().map(|((agent, framework), f)| (f.until_ms, *agent, *framework));
        let ends: BTreeSet<_> = ends.collect();
        if held_of != self.held_of || held_by != self.held_by || of != self.of || ends != self.filter_ends {
            return Err("the indexes of offers are not those of their tables".to_owned());
        }
        Ok(())
    }

    fn insert(&mut self, id: OfferId, standing: Standing) {
        add(&mut self.held_of, standing.agent, &standing.quantities);
        add(&mut self.held_by, standing.framework, &standing.quantities);
        self.of.insert((standing.agent, id));
        self.standing.insert(id, standing);
    }

    /// Take an offer off the table: it was answered, or withdrawn.
    pub(super) fn remove(&mut self, id: OfferId) -> Option<Standing> {
        let standing = self.standing.remove(&id)?;
        self.of.remove(&(standing.agent, id));
        take(&mut self.held_of, standing.agent, &standing.quantities);
        take(&mut self.held_by, standing.framework, &standing.quantities);
        self.loose.insert(standing.agent);
        Some(standing)
    }

    fn filter(&mut self, key: (AgentId, FrameworkId), quantities: Resources, until_ms: u64) {
        // A later answer says more than an earlier one.
        self.unfilter(key);
        self.filters.insert(key, Refused { quantities, until_ms });
        self.filter_ends.insert((until_ms, key.0, key.1));
    }

    fn unfilter(&mut self, key: (AgentId, FrameworkId)) {
        if let Some(filter) = self.filters.remove(&key) {
            self.filter_ends.remove(&(filter.until_ms, key.0, key.1));
            self.loose.insert(key.0);
        }
    }

    /// Something of an agent may be free that was not.
    pub(super) fn look_at(&mut self, agent: AgentId) {
        self.loose.insert(agent);
    }

    /// What an agent has may have changed.
    pub(super) fn agent_changed(&mut self, agent: AgentId) {
        self.total = None;
        self.loose.insert(agent);
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
        accepted: Vec<(FrameworkId, AgentId, Resources)>,
    ) {
        self.wasted.remove(&framework);
        for (framework, agent, quantities) in &accepted {
            add(&mut self.held_of, *agent, quantities);
            add(&mut self.held_by, *framework, quantities);
        }
        self.accepting.insert(ticket, accepted);
    }

    /// A turn is applied, or lost: what it accepted is charged, or free again. Whether it had accepted any.
    pub(super) fn accepted(&mut self, ticket: u64) -> bool {
        let Some(accepted) = self.accepting.remove(&ticket) else { return false };
        for (framework, agent, quantities) in accepted {
            take(&mut self.held_of, agent, &quantities);
            take(&mut self.held_by, framework, &quantities);
            self.loose.insert(agent);
        }
        true
    }

    fn drop_filters_by(&mut self, framework: FrameworkId) {
        let keys: Vec<_> = self.filters.keys().filter(|(_, by)| *by == framework).copied().collect();
        for key in keys {
            self.unfilter(key);
        }
    }

    fn drop_filters_of(&mut self, agent: AgentId) {
        let of = (agent, FrameworkId(0))..=(agent, FrameworkId(u64::MAX));
        let keys: Vec<_> = self.filters.range(of).map(|(key, _)| *key).collect();
        for key in keys {
            self.unfilter(key);
        }
    }

    fn refused(&self, framework: FrameworkId, agent: AgentId, quantities: &Resources) -> bool {
        let filter = self.filters.get(&(agent, framework));
        filter.is_some_and(|filter| filter.quantities.contains(quantities))
    }
}

fn add<K: Ord>(sums: &mut BTreeMap<K, Resources>, key: K, quantities: &Resources) {
    sums.entry(key).or_default().add(quantities);
}

fn take<K: Ord>(sums: &mut BTreeMap<K, Resources>, key: K, quantities: &Resources) {
    if let Some(sum) = sums.get_mut(&key) {
        sum.take(quantities);
        if *sum == Resources::ZERO {
            sums.remove(&key);
        }
    }
}

impl Desk<'_> {
    /// Make offers of everything that is free and that somebody may have.
    pub(super) fn allocate(&mut self) {
        let first = AgentId(1 + self.leader.offers.round % self.state.meta.next_agent.max(1));
        self.leader.offers.round += 1;
        let wanting = self.wanting();
        let before = std::mem::take(&mut self.leader.offers.wanting);
        let came = wanting.difference(&before).next().is_some();
        self.leader.offers.wanting = wanting;
        // Marks say where to look; looking everywhere now and then keeps a lost one from lasting.
        let now_ms = self.now.mono_ms;
        if came || now_ms >= self.leader.offers.looked_ms + LOOK_AT_ALL_MS {
            self.leader.offers.looked_ms = now_ms;
            self.leader.offers.loose = self.state.agents.keys().copied().collect();
        }
        if self.leader.offers.loose.is_empty() {
            return;
        }
        let can = |id: &&FrameworkId| {
            self.leader.instances.get(id).is_some_and(|instance| instance.may_be_offered())
        };
        let candidates = self.leader.offers.wanting.iter().filter(can);
        let candidates: Vec<Candidate> = candidates
            .filter_map(|id| {
                Some(Candidate {
                    framework: *id,
                    role: self.state.frameworks.get(id)?.role.to_string(),
                    wasted: self.leader.offers.wasted.get(id).copied().unwrap_or(0),
                })
            })
            .collect();
        // Nobody is looked at for schedulers that are all busy: that would be done again with every input.
        if candidates.is_empty() {
            return;
        }
        let free = self.loose();
        if free.is_empty() {
            return self.look_again_at(&free);
        }
        let total = self.leader.offers.total.get_or_insert_with(|| self.state.total()).clone();
        let held = self.state.frameworks.iter().map(|(id, framework)| {
            let offered = self.leader.offers.held_by(*id);
            (*id, (framework.role.to_string(), framework.charged.plus(&offered)))
        });
        let picture = Picture {
            total,
            free,
            candidates,
            held: held.collect(),
            refused: &|framework, agent, quantities| {
                self.leader.offers.refused(framework, agent, quantities)
            },
            first,
        };
        let grants = Fair.allocate(&picture);
        let mut free = picture.free;
        let mut granted = BTreeSet::new();
        for grant in grants {
            granted.insert(grant.agent);
            let id = OfferId(self.leader.fresh());
            let standing = Standing {
                framework: grant.framework,
                agent: grant.agent,
                quantities: grant.quantities.clone(),
                made_ms: self.now.mono_ms,
            };
            self.leader.offers.insert(id, standing);
            if let Some(instance) = self.leader.instances.get_mut(&grant.framework) {
                instance.offers.push(Offer {
                    id,
                    agent: grant.agent,
                    available: grant.quantities,
                    revocable: false,
                });
            }
            self.leader.dirty_frameworks.insert(grant.framework);
        }
        free.retain(|(agent, _)| !granted.contains(agent));
        self.look_again_at(&free);
    }

    /// Who wants offers, now or as soon as it has answered what it was sent.
    fn wanting(&self) -> BTreeSet<FrameworkId> {
        let wanting = self.state.frameworks.iter().filter(|(id, framework)| {
            !framework.removing
                && !framework.suppressed
                && !framework.migrating()
                && self.leader.instances.get(id).is_some_and(|instance| instance.wants_offers())
        });
        wanting.map(|(id, _)| *id).collect()
    }

    /// What is free of the agents that are to be looked at, and that may be offered.
    fn loose(&self) -> Vec<(AgentId, Resources)> {
        let offers = &self.leader.offers;
        let free = offers.loose.iter().filter_map(|agent| {
            let row = self.state.agents.get(agent)?;
            let link = self.leader.links.get(agent)?;
            let open = row.unreachable_ms.is_none()
                && !row.deactivated
                && link.session.is_some()
                && !link.comparing;
            let free = row.free().minus(&offers.held_of(*agent));
            (open && worth_offering(&free.clamped())).then_some((*agent, free))
        });
        free.collect()
    }

    /// These were not granted to anybody. Whoever does not refuse them may just be busy.
    fn look_again_at(&mut self, free: &[(AgentId, Resources)]) {
        let offers = &self.leader.offers;
        let again = free.iter().filter(|(agent, free)| {
            let refused = |id: &FrameworkId| offers.refused(*id, *agent, &free.clamped());
            !offers.wanting.iter().all(refused)
        });
        self.leader.offers.loose = again.map(|(agent, _)| *agent).collect();
    }

    /// Offers of an agent of which more was charged than had been accepted: an executor ended while a
    /// task of it was being launched, and was charged anew.
    pub(super) fn withdraw_excess(&mut self, agent: AgentId) {
        let Some(row) = self.state.agents.get(&agent) else { return };
        let standing = self.leader.offers.standing_of(agent);
        let accepting = self.leader.offers.held_of(agent).minus(&standing);
        let free = row.free().minus(&accepting);
        if standing != Resources::ZERO && !free.contains(&standing) {
            self.withdraw_agent(agent);
        }
    }

    /// Take back an offer that its framework gives up, and do not offer the same for a while.
    pub(super) fn decline(&mut self, framework: FrameworkId, offer: OfferId, refuse_ms: u64) {
        let offers = &mut self.leader.offers;
        if offers.standing.get(&offer).is_none_or(|standing| standing.framework != framework) {
            return;
        }
        if let Some(standing) = offers.remove(offer) {
            let refuse_ms = refuse_ms.clamp(FILTER_MIN_MS, DURATION_MAX_MS);
            let until_ms = self.now.mono_ms + refuse_ms;
            offers.given_back(framework, self.now.mono_ms.saturating_sub(standing.made_ms));
            offers.filter((standing.agent, framework), standing.quantities, until_ms);
            self.leader.allocate = true;
        }
    }

    /// The rest of an accepted offer, by the accept's own filter.
    pub(super) fn refuse_rest(
        &mut self,
        framework: FrameworkId,
        agent: AgentId,
        rest: Resources,
        refuse_ms: u64,
    ) {
        if refuse_ms > 0 && !rest.is_empty() {
            let until_ms = self.now.mono_ms + refuse_ms.min(DURATION_MAX_MS);
            self.leader.offers.filter((agent, framework), rest, until_ms);
        }
    }

    /// The framework wants everything again.
    pub(super) fn revive(&mut self, framework: FrameworkId) {
        self.leader.offers.drop_filters_by(framework);
        self.leader.allocate = true;
    }

    /// Offers of an instance that is no more: nobody can answer them.
    pub(super) fn withdraw_framework(&mut self, framework: FrameworkId) {
        for offer in self.offers_where(|standing| standing.framework == framework) {
            self.leader.offers.remove(offer);
        }
        if let Some(instance) = self.leader.instances.get_mut(&framework) {
            instance.offers.clear();
            instance.rescinded.clear();
        }
        self.leader.allocate = true;
    }

    /// Everything of a framework that was removed.
    pub(super) fn forget_filters(&mut self, framework: FrameworkId) {
        self.leader.offers.drop_filters_by(framework);
        self.leader.offers.wasted.remove(&framework);
    }

    /// Offers of an agent that is away or has changed: their frameworks are told.
    pub(super) fn withdraw_agent(&mut self, agent: AgentId) {
        let gone: Vec<OfferId> = self.leader.offers.ids_of(agent).collect();
        for offer in gone {
            self.rescind(offer);
        }
        self.leader.offers.drop_filters_of(agent);
        self.leader.offers.look_at(agent);
        self.leader.allocate = true;
    }

    fn offers_where(&self, picks: impl Fn(&Standing) -> bool) -> Vec<OfferId> {
        let standing = self.leader.offers.standing.iter();
        standing.filter(|(_, standing)| picks(standing)).map(|(id, _)| *id).collect()
    }

    fn rescind(&mut self, offer: OfferId) {
        let Some(standing) = self.leader.offers.remove(offer) else { return };
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
        let standing = self.leader.offers.standing.iter();
        let expired = standing.take_while(|(_, o)| now_ms.saturating_sub(o.made_ms) >= timeout);
        let expired: Vec<OfferId> = expired.map(|(offer, _)| *offer).collect();
        for offer in expired {
            let Some(standing) = self.leader.offers.standing.get(&offer).cloned() else { continue };
            self.rescind(offer);
            let key = (standing.agent, standing.framework);
            let until_ms = now_ms + EXPIRED_FILTER_MS;
            self.leader.offers.filter(key, standing.quantities, until_ms);
            let after_ms = now_ms.saturating_sub(standing.made_ms);
            self.leader.offers.given_back(standing.framework, after_ms);
            self.leader.allocate = true;
        }
        while let Some((until_ms, agent, framework)) = self.leader.offers.filter_ends.first().copied() {
            if until_ms > now_ms {
                break;
            }
            self.leader.offers.unfilter((agent, framework));
            self.leader.allocate = true;
        }
        self.leader.allocate |= now_ms >= self.leader.offers.looked_ms + LOOK_AT_ALL_MS;
    }
}
