//! Offers that stand, amounts that are being accepted, and filters.
//!
//! Invariants: per agent, what is charged, offered and being accepted never exceeds what it has unless
//! it came back smaller, and then nothing is offered; an offer ends exactly once: accepted, declined,
//! expired or withdrawn. Must never outlive the leader.

use super::Desk;
use super::allocation::Told;
use crate::allocator::Allocator;
use crate::limits::{EXPIRED_FILTER_MS, FILTER_MIN_MS, OFFER_WASTED_MS};
use crate::tally::OfferEnd;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::limits::DURATION_MAX_MS;
use tessera_types::{AgentId, FrameworkId, OfferId, Resources, RoleName};

/// One offer.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) quantities: Resources,
    /// It may be taken back, with what runs on it.
    pub(crate) revocable: bool,
    /// Of which requests of its framework it is, by their numbers, and how many pieces.
    pub(super) pieces: Vec<(u64, u32)>,
    pub(crate) made_ms: u64,
}

/// All of them, with indexes that change only with what they index.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    /// Older ones have lower numbers.
    pub(super) standing: BTreeMap<OfferId, Standing>,
    /// Accepted offers whose turn is not applied yet, by ticket.
    accepting: BTreeMap<u64, Vec<Standing>>,
    /// Index: sums over both, by whether they may be taken back, without those that are nothing.
    held_of: BTreeMap<(AgentId, bool), Resources>,
    held_by: BTreeMap<(FrameworkId, bool), Resources>,
    /// Index: offers that stand.
    of: BTreeSet<(AgentId, OfferId)>,
    by: BTreeSet<(FrameworkId, OfferId)>,
    /// Offers that a framework has kept for nothing since it accepted one.
    pub(super) wasted: BTreeMap<FrameworkId, u32>,
    pub(super) round: u64,
    /// Who is offered what.
    pub(super) allocator: Allocator,
    pub(super) told: Told,
}

impl Offers {
    /// Those that stand.
    pub(crate) const fn standing(&self) -> &BTreeMap<OfferId, Standing> {
        &self.standing
    }

    /// How many filters there are.
    pub(crate) fn filters_len(&self) -> usize {
        self.allocator.filters_len()
    }

    /// What is offered or being accepted of an agent.
    pub(crate) fn held_of(&self, agent: AgentId) -> Resources {
        both(&self.held_of, agent)
    }

    /// Of that, what may be taken back.
    pub(super) fn revocable_of(&self, agent: AgentId) -> Resources {
        self.held_of.get(&(agent, true)).cloned().unwrap_or_default()
    }

    /// What is offered to a framework or being accepted by it.
    pub(crate) fn held_by(&self, framework: FrameworkId) -> Resources {
        both(&self.held_by, framework)
    }

    /// Of that, what may be taken back, or the rest.
    pub(crate) fn held_as(&self, framework: FrameworkId, revocable: bool) -> Resources {
        self.held_by.get(&(framework, revocable)).cloned().unwrap_or_default()
    }

    /// What stands as offers of an agent.
    pub(crate) fn standing_of(&self, agent: AgentId) -> Resources {
        let of = self.ids_of(agent).filter_map(|offer| self.standing.get(&offer));
        of.fold(Resources::ZERO, |sum, standing| sum.plus(&standing.quantities))
    }

    pub(super) fn ids_of(&self, agent: AgentId) -> impl Iterator<Item = OfferId> {
        let of = self.of.range((agent, OfferId(0))..=(agent, OfferId(u64::MAX)));
        of.map(|(_, offer)| *offer)
    }

    /// How many offers to a framework stand.
    pub(crate) fn count_by(&self, framework: FrameworkId) -> usize {
        self.ids_by(framework).count()
    }

    /// Who is offered what, to be asked.
    pub(crate) const fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// On how many agents revocable work is being taken back for a role, or for one above it.
    pub(crate) fn taken_back(&self, role: &RoleName) -> u32 {
        self.told.taken_back(role)
    }

    /// Offers to a framework that stand.
    pub(super) fn ids_by(&self, framework: FrameworkId) -> impl Iterator<Item = OfferId> {
        let by = self.by.range((framework, OfferId(0))..=(framework, OfferId(u64::MAX)));
        by.map(|(_, offer)| *offer)
    }

    /// Sums over all, to be compared with the indexes.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut held_of = BTreeMap::new();
        let mut held_by = BTreeMap::new();
        for held in self.standing.values().chain(self.accepting.values().flatten()) {
            add(&mut held_of, (held.agent, held.revocable), &held.quantities);
            add(&mut held_by, (held.framework, held.revocable), &held.quantities);
        }
        let of: BTreeSet<_> = self.standing.iter().map(|(id, offer)| (offer.agent, *id)).collect();
        let by: BTreeSet<_> = self.standing.iter().map(|(id, offer)| (offer.framework, *id)).collect();
        if held_of != self.held_of || held_by != self.held_by || of != self.of || by != self.by {
            return Err("the indexes of offers are not those of their tables".to_owned());
        }
        self.allocator.check()
    }

    fn hold(&mut self, held: &Standing) {
        add(&mut self.held_of, (held.agent, held.revocable), &held.quantities);
        add(&mut self.held_by, (held.framework, held.revocable), &held.quantities);
        self.told.offered(held, true);
    }

    fn let_go(&mut self, held: &Standing) {
        take(&mut self.held_of, (held.agent, held.revocable), &held.quantities);
        take(&mut self.held_by, (held.framework, held.revocable), &held.quantities);
        self.told.offered(held, false);
    }

    pub(super) fn insert(&mut self, id: OfferId, standing: Standing) {
        self.hold(&standing);
        self.of.insert((standing.agent, id));
        self.by.insert((standing.framework, id));
        self.standing.insert(id, standing);
    }

    /// Take an offer off the table: it was answered, or withdrawn.
    pub(super) fn remove(&mut self, id: OfferId) -> Option<Standing> {
        let standing = self.standing.remove(&id)?;
        self.of.remove(&(standing.agent, id));
        self.by.remove(&(standing.framework, id));
        self.let_go(&standing);
        Some(standing)
    }

    fn filter(&mut self, (agent, framework): (AgentId, FrameworkId), quantities: &Resources, until_ms: u64) {
        let refused = self.allocator.kinds_known().vector_of_known(quantities);
        self.allocator.refuse(agent, framework, &refused, until_ms);
    }

    /// Something of an agent may be free that was not.
    pub(super) fn look_at(&mut self, agent: AgentId) {
        self.told.agents.insert(agent);
    }

    /// A framework may use something else than before, or be ready for offers.
    pub(super) fn look_at_framework(&mut self, framework: FrameworkId) {
        self.told.frameworks.insert(framework);
    }

    /// What an agent has, or what it is, may have changed.
    pub(super) fn agent_changed(&mut self, agent: AgentId) {
        self.told.agents.insert(agent);
        self.told.infos.remove(&agent);
    }

    /// An offer has ended without being accepted, after this time.
    fn given_back(&mut self, framework: FrameworkId, after_ms: u64) {
        if after_ms >= OFFER_WASTED_MS {
            let wasted = self.wasted.entry(framework).or_default();
            *wasted = wasted.saturating_add(1);
            self.look_at_framework(framework);
        }
    }

    /// A framework launches on what it was offered.
    pub(super) fn accept(&mut self, ticket: u64, framework: FrameworkId, accepted: Vec<Standing>) {
        self.wasted.remove(&framework);
        for held in &accepted {
            self.hold(held);
        }
        self.accepting.insert(ticket, accepted);
    }

    /// A turn is applied, or lost: what it accepted is charged, or free again. Whether it had accepted any.
    pub(super) fn accepted(&mut self, ticket: u64) -> bool {
        let Some(accepted) = self.accepting.remove(&ticket) else { return false };
        for held in &accepted {
            self.let_go(held);
        }
        true
    }
}

fn both<K: Ord + Copy>(sums: &BTreeMap<(K, bool), Resources>, key: K) -> Resources {
    match (sums.get(&(key, false)), sums.get(&(key, true))) {
        (Some(one), Some(other)) => one.plus(other),
        (one, other) => one.or(other).cloned().unwrap_or_default(),
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
            self.leader.tally.offer_ended(OfferEnd::Declined);
            let refuse_ms = refuse_ms.clamp(FILTER_MIN_MS, DURATION_MAX_MS);
            let until_ms = self.now.mono_ms + refuse_ms;
            offers.given_back(framework, self.now.mono_ms.saturating_sub(standing.made_ms));
            offers.filter((standing.agent, framework), &standing.quantities, until_ms);
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
            self.leader.offers.filter((agent, framework), &rest, until_ms);
        }
    }

    /// The framework wants everything again.
    pub(super) fn revive(&mut self, framework: FrameworkId) {
        self.leader.offers.allocator.unrefuse(framework);
        self.leader.allocate = true;
    }

    /// Offers of an instance that is no more: nobody can answer them.
    pub(super) fn withdraw_framework(&mut self, framework: FrameworkId) {
        let gone: Vec<OfferId> = self.leader.offers.ids_by(framework).collect();
        for offer in gone {
            self.leader.offers.remove(offer);
            self.leader.tally.offer_ended(OfferEnd::Rescinded);
        }
        if let Some(instance) = self.leader.instances.get_mut(&framework) {
            instance.offers.clear();
            instance.rescinded.clear();
        }
        self.leader.offers.look_at_framework(framework);
        self.leader.allocate = true;
    }

    /// Everything of a framework that was removed.
    pub(super) fn forget_filters(&mut self, framework: FrameworkId) {
        self.leader.offers.allocator.unrefuse(framework);
        self.leader.offers.wasted.remove(&framework);
        self.leader.offers.look_at_framework(framework);
    }

    /// Offers of an agent that is away or has changed: their frameworks are told.
    pub(super) fn withdraw_agent(&mut self, agent: AgentId) {
        let gone: Vec<OfferId> = self.leader.offers.ids_of(agent).collect();
        for offer in gone {
            self.rescind(offer, OfferEnd::Rescinded);
        }
        self.leader.offers.allocator.unrefuse_agent(agent);
        self.leader.offers.look_at(agent);
        self.leader.allocate = true;
    }

    pub(super) fn rescind(&mut self, offer: OfferId, how: OfferEnd) {
        let Some(standing) = self.leader.offers.remove(offer) else { return };
        self.leader.tally.offer_ended(how);
        if let Some(instance) = self.leader.instances.get_mut(&standing.framework) {
            let before = instance.offers.len();
            instance.offers.retain(|fresh| fresh.id != offer);
            if instance.offers.len() == before {
                instance.rescinded.push(offer);
            }
            self.leader.dirty_frameworks.insert(standing.framework);
        }
    }

    /// An operator takes an offer back; whether it stood. Others come first for a moment.
    pub(crate) fn take_offer_back(&mut self, offer: OfferId) -> bool {
        let Some(standing) = self.leader.offers.standing.get(&offer).cloned() else { return false };
        self.rescind(offer, OfferEnd::Rescinded);
        let until_ms = self.now.mono_ms + EXPIRED_FILTER_MS;
        self.leader.offers.filter((standing.agent, standing.framework), &standing.quantities, until_ms);
        self.leader.allocate = true;
        true
    }

    pub(super) fn tick_offers(&mut self) {
        let now_ms = self.now.mono_ms;
        let timeout = self.config.offer_timeout_ms;
        let standing = self.leader.offers.standing.iter();
        let expired = standing.take_while(|(_, o)| now_ms.saturating_sub(o.made_ms) >= timeout);
        let expired: Vec<OfferId> = expired.map(|(offer, _)| *offer).collect();
        for offer in expired {
            let Some(standing) = self.leader.offers.standing.get(&offer).cloned() else { continue };
            self.rescind(offer, OfferEnd::Expired);
            let key = (standing.agent, standing.framework);
            let until_ms = now_ms + EXPIRED_FILTER_MS;
            self.leader.offers.filter(key, &standing.quantities, until_ms);
            let after_ms = now_ms.saturating_sub(standing.made_ms);
            self.leader.offers.given_back(standing.framework, after_ms);
            self.leader.allocate = true;
        }
        self.leader.allocate |= self.leader.offers.allocator.first_end_ms().is_some_and(|end| end <= now_ms);
        self.leader.allocate |= self.leader.offers.told.all_due(now_ms);
        self.leader.allocate |= self.leader.offers.told.later_due(now_ms);
    }
}
