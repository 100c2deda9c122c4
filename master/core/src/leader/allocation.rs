//! Tells the allocator what has changed, and makes offers of what it grants.
//!
//! Invariants: whoever changes what the allocator goes by leaves a mark, and it is told before the next round; now and
//! then everything is compared, which repairs what a lost mark left. Must never decide who is offered what.

use super::offers::Standing;
use super::{Desk, Instance, Leader};
use super::preempt::Shortage;
use crate::allocator::{AgentFacts, CLASSES, FrameworkFacts, Grant, Kinds, Lack, Want};
use crate::limits::{LOOK_AT_ALL_MS, ROUNDS_MEASURED_MAX, SHORTAGE_EVERY_MS};
use crate::state::{Framework, State};
use crate::tally::OfferEnd;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{AgentId, AgentInfo, FrameworkId, Offer, OfferId, ResourceRequest, Resources, RoleName};

/// What a framework waits for, as the allocator knows it.
#[derive(Debug, Default)]
struct Wants {
    requests: Vec<ResourceRequest>,
    wants: Arc<[Want]>,
    /// Counts changes of all.
    number: u64,
    /// Pieces of each that are offered or being accepted.
    offered: Vec<u32>,
}

/// What the allocator was told, and what is marked to be told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) agents: BTreeSet<AgentId>,
    pub(super) frameworks: BTreeSet<FrameworkId>,
    pub(super) roles: BTreeSet<String>,
    /// What agents are, until it changes.
    pub(super) infos: BTreeMap<AgentId, Arc<AgentInfo>>,
    /// Of those that wait for something in particular.
    wants: BTreeMap<FrameworkId, Wants>,
    numbers: u64,
    /// When everything was compared.
    all_ms: Option<u64>,
    /// Where revocable work stood in the way, and when that was looked for.
    short: BTreeSet<(String, AgentId)>,
    short_ms: u64,
}

impl Told {
    /// An offer is held, or not any more.
    pub(super) fn offered(&mut self, held: &Standing, is: bool) {
        self.agents.insert(held.agent);
        self.frameworks.insert(held.framework);
        let Some(wants) = self.wants.get_mut(&held.framework).filter(|wants| wants.number == held.wants) else {
            return;
        };
        for (at, count) in &held.pieces {
            if let Some(offered) = wants.offered.get_mut(*at) {
                *offered = if is { *offered + count } else { offered.saturating_sub(*count) };
            }
        }
    }

    /// Whether everything is to be compared again.
    pub(super) fn all_due(&self, now_ms: u64) -> bool {
        self.all_ms.is_some_and(|before| now_ms >= before + LOOK_AT_ALL_MS)
    }

    fn note_requests(&mut self, id: FrameworkId, requests: &[ResourceRequest], kinds: &mut Kinds) {
        if requests.is_empty() {
            self.wants.remove(&id);
        } else if self.wants.get(&id).is_none_or(|known| known.requests != requests) {
            self.numbers += 1;
            let wants = requests.iter().map(|request| Want {
                id: request.id.clone(),
                piece: kinds.vector(&request.resources),
                count: request.count,
                constraints: request.constraints.clone(),
                revocable: request.revocable,
            });
            let offered = vec![0; requests.len()];
            let known =
                Wants { requests: requests.to_vec(), wants: wants.collect(), number: self.numbers, offered };
            self.wants.insert(id, known);
        }
    }
}

impl Desk<'_> {
    /// Make offers of everything that is free and that somebody may have.
    pub(super) fn allocate(&mut self) {
        let first = AgentId(1 + self.leader.offers.round % self.state.meta.next_agent.max(1));
        self.leader.offers.round += 1;
        self.tell_allocator();
        let now_ms = self.now.mono_ms;
        let began_us = self.config.stopwatch.0();
        let grants = self.leader.offers.allocator.round(first, now_ms);
        if self.leader.rounds_us.len() < ROUNDS_MEASURED_MAX {
            self.leader.rounds_us.push(self.config.stopwatch.0().saturating_sub(began_us));
        }
        self.leader.tally.rounds += 1;
        self.leader.tally.agents_looked += self.leader.offers.allocator.take_looks();
        self.leader.tally.offers_made += grants.len() as u64;
        for grant in grants {
            self.offer(grant);
        }
    }

    /// Something else is said of a role than before.
    pub(super) fn role_changed(&mut self, role: String) {
        self.rescind_beyond_quota(&role);
        self.leader.offers.told.roles.insert(role);
        self.leader.allocate = true;
    }

    /// What is offered to a role that passes its new limit is taken back, to be offered again as far as that goes.
    fn rescind_beyond_quota(&mut self, role: &str) {
        let Some(policy) = self.state.roles.get(role).filter(|policy| !policy.limit.is_empty()) else { return };
        let mut sum = self.state.role_used.get(role).map(|uses| uses.charged.clone()).unwrap_or_default();
        let within = |row: &Framework| row.role.lineage().any(|above| above == role);
        let frameworks = self.state.frameworks.iter().filter(|(_, row)| within(row)).map(|(id, _)| *id);
        let frameworks: Vec<FrameworkId> = frameworks.collect();
        for id in &frameworks {
            sum.add(&self.leader.offers.held_as(*id, false));
        }
        if policy.limit.passed_by(&sum).is_none() {
            return;
        }
        for id in frameworks {
            let offers: Vec<OfferId> = self.leader.offers.ids_by(id).collect();
            for offer in offers {
                self.rescind(offer, OfferEnd::Rescinded);
            }
        }
    }

    /// Make room where revocable work stands in the way, and did when it was looked before.
    pub(super) fn tick_shortages(&mut self) {
        let now_ms = self.now.mono_ms;
        if now_ms < self.leader.offers.told.short_ms + SHORTAGE_EVERY_MS {
            return;
        }
        self.leader.offers.told.short_ms = now_ms;
        let mut lacks = self.leader.offers.allocator.lacks();
        lacks.retain(|lack| !lack.by_priority || self.lower_priority_has(lack));
        let at = |lack: &Lack| (lack.role.clone(), lack.agent);
        let before = std::mem::take(&mut self.leader.offers.told.short);
        self.leader.offers.told.short = lacks.iter().map(at).collect();
        let clear: BTreeSet<AgentId> = lacks.iter().map(|lack| lack.agent).collect();
        if !(before.is_empty() && clear.is_empty()) {
            self.leader.offers.allocator.clear(&clear);
            self.leader.allocate = true;
        }
        let again = lacks.into_iter().filter(|lack| before.contains(&at(lack)));
        let kinds = self.leader.offers.allocator.kinds_known();
        let shortages = again.map(|lack| {
            let resources = kinds.resources(&lack.amounts);
            Shortage { role: lack.role, agent: lack.agent, resources }
        });
        let shortages: Vec<Shortage> = shortages.collect();
        if !shortages.is_empty() {
            self.preempt(&shortages);
        }
    }

    /// Whether revocable tasks of roles with a lower priority have all that is missing.
    fn lower_priority_has(&self, lack: &Lack) -> bool {
        let priority = |role: &RoleName| role.lineage().map(|role| self.state.policy(role).priority).max().unwrap_or(0);
        let Some(row) = self.state.agents.get(&lack.agent) else { return false };
        let own = RoleName::try_from(lack.role.clone()).map_or(0, |role| priority(&role));
        let mut has = Resources::ZERO;
        for (id, task) in &row.tasks {
            let Some(framework) = self.state.frameworks.get(id) else { continue };
            let Some(task) = framework.tasks.get(task).filter(|task| task.revocable) else { continue };
            if priority(&framework.role) < own {
                has.add(&task.charge);
            }
        }
        has.contains(&self.leader.offers.allocator.kinds_known().resources(&lack.amounts))
    }

    fn offer(&mut self, grant: Grant) {
        let Grant { framework, agent, amounts, revocable, pieces } = grant;
        let id = OfferId(self.leader.fresh());
        let offers = &mut self.leader.offers;
        let quantities = offers.allocator.kinds().resources(&amounts);
        let wants = offers.told.wants.get(&framework).map_or(0, |wants| wants.number);
        let made_ms = self.now.mono_ms;
        let available = quantities.clone();
        offers.insert(id, Standing { framework, agent, quantities, revocable, pieces, wants, made_ms });
        if let Some(instance) = self.leader.instances.get_mut(&framework) {
            instance.offers.push(Offer { id, agent, available, revocable });
        }
        self.leader.dirty_frameworks.insert(framework);
    }

    /// Tell the allocator everything that is marked.
    fn tell_allocator(&mut self) {
        let now_ms = self.now.mono_ms;
        let told = &mut self.leader.offers.told;
        if told.all_ms.is_none() || told.all_due(now_ms) {
            let known = &self.leader.offers.allocator;
            told.all_ms = Some(now_ms);
            told.agents.extend(self.state.agents.keys().copied().chain(known.agents()));
            told.frameworks.extend(self.state.frameworks.keys().copied().chain(known.frameworks()));
            told.roles.extend(self.state.roles.keys().cloned().chain(known.roles()));
        }
        told.frameworks.extend(&self.leader.dirty_frameworks);
        for role in std::mem::take(&mut told.roles) {
            self.leader.offers.allocator.set_role(&role, self.state.roles.get(&role));
        }
        for agent in std::mem::take(&mut self.leader.offers.told.agents) {
            self.tell_agent(agent);
        }
        for framework in std::mem::take(&mut self.leader.offers.told.frameworks) {
            self.tell_framework(framework);
        }
    }

    fn tell_agent(&mut self, id: AgentId) {
        let sums = AgentSums::of(self.state, self.leader, id);
        let offers = &mut self.leader.offers;
        match sums {
            Some(sums) => {
                let facts = sums.facts(offers.allocator.kinds());
                offers.told.infos.insert(id, Arc::clone(&facts.info));
                offers.allocator.set_agent(id, facts);
            }
            None => {
                offers.told.infos.remove(&id);
                offers.allocator.remove_agent(id);
            }
        }
    }

    fn tell_framework(&mut self, id: FrameworkId) {
        let offers = &mut self.leader.offers;
        let Some(row) = self.state.frameworks.get(&id) else {
            offers.told.wants.remove(&id);
            offers.wasted.remove(&id);
            return offers.allocator.remove_framework(id);
        };
        offers.told.note_requests(id, &row.requests, offers.allocator.kinds());
        let sums = FrameworkSums::of(row, self.leader, id);
        let offers = &mut self.leader.offers;
        let facts = sums.facts(offers.allocator.kinds());
        offers.allocator.set_framework(id, facts);
    }
}

/// What is so of an agent.
struct AgentSums {
    info: Arc<AgentInfo>,
    total: Resources,
    free: Resources,
    revocable: Resources,
    open: bool,
}

impl AgentSums {
    fn of(state: &State, leader: &Leader, id: AgentId) -> Option<Self> {
        let row = state.agents.get(&id)?;
        let link = leader.links.get(&id);
        let ready = link.is_some_and(|link| link.session.is_some() && !link.comparing);
        let offers = &leader.offers;
        let counts = row.unreachable_ms.is_none();
        Some(Self {
            info: offers.told.infos.get(&id).map_or_else(|| Arc::new(row.info(id)), Arc::clone),
            total: if counts { row.resources.total.clone() } else { Resources::ZERO },
            free: row.free().minus(&offers.held_of(id)),
            revocable: row.charged_revocable.plus(&offers.revocable_of(id)),
            open: ready && counts && !row.deactivated,
        })
    }

    fn facts(self, kinds: &mut Kinds) -> AgentFacts {
        AgentFacts {
            info: self.info,
            total: kinds.vector(&self.total),
            free: kinds.vector(&self.free),
            revocable: kinds.vector(&self.revocable),
            open: self.open,
        }
    }
}

/// What is so of a framework.
struct FrameworkSums {
    role: String,
    uses: [Resources; CLASSES],
    open: bool,
    waits: bool,
    wasted: u32,
    wants: Arc<[Want]>,
    offered: Vec<u32>,
}

impl FrameworkSums {
    fn of(row: &Framework, leader: &Leader, id: FrameworkId) -> Self {
        let instance = leader.instances.get(&id);
        let may = !row.removing && !row.suppressed && !row.migrating();
        let offers = &leader.offers;
        let known = offers.told.wants.get(&id);
        Self {
            role: row.role.to_string(),
            uses: [
                row.charged.plus(&offers.held_as(id, false)),
                row.charged_revocable.plus(&offers.held_as(id, true)),
            ],
            open: may && instance.is_some_and(Instance::may_be_offered),
            waits: may && instance.is_some_and(Instance::wants_offers),
            wasted: offers.wasted.get(&id).copied().unwrap_or(0),
            wants: known.map(|known| Arc::clone(&known.wants)).unwrap_or_default(),
            offered: known.map(|known| known.offered.clone()).unwrap_or_default(),
        }
    }

    fn facts(self, kinds: &mut Kinds) -> FrameworkFacts {
        let Self { role, uses, open, waits, wasted, wants, offered } = self;
        FrameworkFacts { role, uses: uses.map(|uses| kinds.vector(&uses)), open, waits, wasted, wants, offered }
    }
}

/// Compare what the allocator was told with what is so, where nothing is marked.
pub(crate) fn check(state: &State, leader: &Leader) -> Result<(), String> {
    let (allocator, told) = (&leader.offers.allocator, &leader.offers.told);
    if told.all_ms.is_none() {
        return Ok(());
    }
    let mut kinds = allocator.kinds_known().clone();
    for id in state.agents.keys().filter(|id| !told.agents.contains(id)) {
        let expected = AgentSums::of(state, leader, *id).map(|sums| sums.facts(&mut kinds));
        if expected.as_ref() != allocator.agent_facts(*id) {
            return Err(format!("{id}: the allocator was not told that it is {expected:?}"));
        }
    }
    for (id, row) in state.frameworks.iter().filter(|(id, _)| !told.frameworks.contains(id)) {
        let expected = FrameworkSums::of(row, leader, *id).facts(&mut kinds);
        if Some(&expected) != allocator.framework_facts(*id) {
            return Err(format!("{id}: the allocator was not told that it is {expected:?}"));
        }
    }
    let gone = allocator.agents().find(|id| !state.agents.contains_key(id) && !told.agents.contains(id));
    if let Some(id) = gone {
        return Err(format!("{id}: the allocator was not told that it is gone"));
    }
    Ok(())
}
