//! Tells the allocator what has changed, and makes offers of what it grants.
//!
//! Invariants: whoever changes what the allocator goes by leaves a mark, and it is told before the next round; now and
//! then everything is compared, which repairs what a lost mark left. Must never decide who is offered what.

use super::offers::Standing;
use super::pace::Pace;
use super::{Desk, Instance, Leader};
use super::preempt::Shortage;
use crate::allocator::{AgentFacts, CLASSES, FrameworkFacts, Grant, Kinds, Lack, Want};
use crate::limits::{LOOK_AT_ALL_MS, REQUESTS_EVERY_MS, ROUNDS_MEASURED_MAX, SHORTAGE_EVERY_MS};
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
    /// The number of each: one that asks for the same under the same name keeps it, and what it is being offered.
    numbers: Vec<u64>,
    /// Pieces of each that are offered or being accepted.
    offered: Vec<u32>,
    /// How many kinds of resources had a number when one of them named a kind that has none.
    kinds: Option<usize>,
}

impl Wants {
    /// Whether these requests differ from it in nothing, but how many pieces are asked for.
    fn same_but_counts(&self, requests: &[ResourceRequest]) -> bool {
        let same = |(one, other): (&ResourceRequest, &ResourceRequest)| {
            let ResourceRequest { id, resources, count: _, constraints, revocable } = one;
            (id, resources, constraints, revocable)
                == (&other.id, &other.resources, &other.constraints, &other.revocable)
        };
        self.requests.len() == requests.len() && self.requests.iter().zip(requests).all(same)
    }

    /// The place of what asks for the same under the same name, wherever.
    fn place_of(&self, request: &ResourceRequest) -> Option<usize> {
        self.requests.iter().position(|known| {
            (&known.id, &known.resources, known.revocable) == (&request.id, &request.resources, request.revocable)
        })
    }
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
    /// How often those of each changed in more than counts, and whose next change is looked at when.
    paces: BTreeMap<FrameworkId, Pace>,
    later: BTreeMap<FrameworkId, u64>,
    /// How many kinds of resources had a number when that was looked at.
    kinds: usize,
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
        let Some(wants) = self.wants.get_mut(&held.framework) else { return };
        for (number, count) in &held.pieces {
            let at = wants.numbers.iter().position(|known| known == number);
            if let Some(offered) = at.and_then(|at| wants.offered.get_mut(at)) {
                *offered = if is { *offered + count } else { offered.saturating_sub(*count) };
            }
        }
    }

    /// Whether everything is to be compared again.
    pub(super) fn all_due(&self, now_ms: u64) -> bool {
        self.all_ms.is_some_and(|before| now_ms >= before + LOOK_AT_ALL_MS)
    }

    /// Look at what a framework waits for. Everything may follow from a change, so those of one follow each other at a
    /// pace, but for those of counts.
    fn note_requests(&mut self, id: FrameworkId, requests: &[ResourceRequest], kinds: &Kinds, now_ms: u64) {
        let none = Wants::default();
        let known = self.wants.get(&id).unwrap_or(&none);
        let appeared = known.kinds.is_some_and(|before| before != kinds.count());
        if known.requests == requests && !appeared {
            self.later.remove(&id);
            return;
        }
        if !known.same_but_counts(requests) {
            let pace = self.paces.entry(id).or_default();
            let due_ms = pace.due_ms(REQUESTS_EVERY_MS);
            if due_ms > now_ms {
                self.later.insert(id, due_ms);
                return;
            }
            pace.pass(REQUESTS_EVERY_MS, now_ms);
        }
        self.later.remove(&id);
        if requests.is_empty() {
            self.wants.remove(&id);
            return;
        }
        let wants = requests.iter().map(|request| Want {
            id: request.id.clone(),
            piece: kinds.vector_of_known(&request.resources),
            count: request.count,
            constraints: request.constraints.clone(),
            revocable: request.revocable,
        });
        let mut made = Wants { requests: requests.to_vec(), wants: wants.collect(), ..Wants::default() };
        for request in requests {
            let before = known.place_of(request);
            let number = before.and_then(|at| known.numbers.get(at).copied());
            let offered = before.and_then(|at| known.offered.get(at).copied());
            self.numbers += 1;
            made.numbers.push(number.unwrap_or(self.numbers));
            made.offered.push(offered.unwrap_or(0));
        }
        let all_known = requests.iter().all(|request| kinds.knows_all(&request.resources));
        made.kinds = (!all_known).then(|| kinds.count());
        self.wants.insert(id, made);
    }

    /// Requests whose change is to be looked at by now.
    pub(super) fn later_due(&mut self, now_ms: u64) -> bool {
        let due = self.later.iter().filter(|(_, due_ms)| **due_ms <= now_ms).map(|(id, _)| *id);
        let before = self.frameworks.len();
        self.frameworks.extend(due);
        self.frameworks.len() > before
    }

    /// Kinds of resources are there that were not: who asked for what nobody had is looked at again.
    fn kinds_appeared(&mut self, kinds: &Kinds) {
        let of = self.wants.iter().filter(|(_, wants)| wants.kinds.is_some_and(|before| before != kinds.count()));
        self.frameworks.extend(of.map(|(id, _)| *id));
    }

    /// On how many agents revocable work stands in the way of a role, or of one above it.
    pub(super) fn taken_back(&self, role: &RoleName) -> u32 {
        let due = self.short.iter().filter(|(of, _)| role.lineage().any(|above| above == of));
        u32::try_from(due.count()).unwrap_or(u32::MAX)
    }

    /// It is no more.
    fn forget(&mut self, id: FrameworkId) {
        self.wants.remove(&id);
        self.paces.remove(&id);
        self.later.remove(&id);
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
        let quantities = offers.allocator.kinds_known().resources(&amounts);
        let numbers = offers.told.wants.get(&framework).map_or(&[][..], |wants| &wants.numbers);
        let pieces = pieces.into_iter().filter_map(|(at, count)| Some((*numbers.get(at)?, count))).collect();
        let made_ms = self.now.mono_ms;
        let available = quantities.clone();
        offers.insert(id, Standing { framework, agent, quantities, revocable, pieces, made_ms });
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
        let offers = &mut self.leader.offers;
        if offers.told.kinds != offers.allocator.kinds_known().count() {
            offers.told.kinds = offers.allocator.kinds_known().count();
            offers.told.kinds_appeared(offers.allocator.kinds_known());
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
            offers.told.forget(id);
            offers.wasted.remove(&id);
            return offers.allocator.remove_framework(id);
        };
        offers.told.note_requests(id, &row.requests, offers.allocator.kinds_known(), self.now.mono_ms);
        let sums = FrameworkSums::of(row, self.leader, id);
        let offers = &mut self.leader.offers;
        let facts = sums.facts(offers.allocator.kinds_known());
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

    fn facts(self, kinds: &Kinds) -> FrameworkFacts {
        let Self { role, uses, open, waits, wasted, wants, offered } = self;
        let uses = uses.map(|uses| kinds.vector_of_known(&uses));
        FrameworkFacts { role, uses, open, waits, wasted, wants, offered }
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
        let expected = FrameworkSums::of(row, leader, *id).facts(&kinds);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{Predicate, Quantities, Selector, limits::RESOURCE_REQUESTS_MAX};

    const WEB: FrameworkId = FrameworkId(1);

    fn request(id: &str, cpus: i64, count: u32) -> ResourceRequest {
        let quantities = Quantities { cpus_milli: cpus * 1_000, mem_mib: 64, disk_mib: 0 };
        let resources = Resources::of(quantities);
        ResourceRequest { id: id.to_owned(), resources, count, constraints: Vec::new(), revocable: false }
    }

    fn with(mut request: ResourceRequest, name: &str) -> ResourceRequest {
        request.resources = request.resources.with(name, 1_000);
        request
    }

    fn standing(told: &Told, pieces: &[(usize, u32)]) -> Standing {
        let numbers = &told.wants[&WEB].numbers;
        Standing {
            framework: WEB,
            agent: AgentId(1),
            quantities: Resources::ZERO,
            revocable: false,
            pieces: pieces.iter().map(|(at, count)| (numbers[*at], *count)).collect(),
            made_ms: 0,
        }
    }

    #[test]
    fn names_that_nobody_has_take_no_room_and_are_looked_at_when_somebody_has_them() {
        let (mut told, mut kinds) = (Told::default(), Kinds::default());
        let before = kinds.count();
        for turn in 0..500_u64 {
            let requests = (0..RESOURCE_REQUESTS_MAX).map(|number| {
                let named = |request, item| with(request, &format!("x-{turn}-{number}-{item}"));
                (0..16).fold(request(&number.to_string(), 1, 1), named)
            });
            let requests: Vec<ResourceRequest> = requests.collect();
            told.note_requests(WEB, &requests, &kinds, turn * 1_000);
        }
        let longest = told.wants[&WEB].wants.iter().map(|want| want.piece.len()).max();
        assert_eq!((kinds.count(), longest), (before, Some(4)));
        let gpu = [with(request("gpu", 1, 1), "gpus")];
        told.note_requests(WEB, &gpu, &kinds, 1_000_000);
        let agent = kinds.vector(&Resources::of(Quantities { cpus_milli: 8_000, mem_mib: 64, disk_mib: 0 }));
        assert!(!agent.contains(&told.wants[&WEB].wants[0].piece));
        let with_gpus = with(request("", 8, 1), "gpus").resources;
        let agent = kinds.vector(&with_gpus);
        told.kinds_appeared(&kinds);
        assert!(told.frameworks.contains(&WEB), "it is looked at again");
        told.note_requests(WEB, &gpu, &kinds, 1_000_001);
        assert!(agent.contains(&told.wants[&WEB].wants[0].piece));
        told.frameworks.clear();
        told.kinds_appeared(&kinds);
        assert!(told.frameworks.is_empty(), "once");
    }

    #[test]
    fn what_is_being_offered_counts_on_when_requests_change() {
        let (mut told, kinds) = (Told::default(), Kinds::default());
        told.note_requests(WEB, &[request("a", 1, 4), request("b", 2, 4)], &kinds, 0);
        let offer = standing(&told, &[(0, 1), (1, 3)]);
        told.offered(&offer, true);
        let seen = |told: &Told| (told.wants[&WEB].offered.clone(), told.wants[&WEB].wants.iter().map(|want| want.count).collect());
        for (now, requests, expected) in [
            // Only counts.
            (1, vec![request("a", 1, 9), request("b", 2, 1)], (vec![1, 3], vec![9, 1])),
            // Another one in front; and one of the same name that asks for something else.
            (2, vec![request("c", 1, 1), request("b", 2, 1), request("a", 3, 5)], (vec![0, 3, 0], vec![1, 1, 5])),
        ] {
            told.note_requests(WEB, &requests, &kinds, now);
            let found: (Vec<u32>, Vec<u32>) = seen(&told);
            assert_eq!(found, expected);
        }
        told.offered(&offer, false);
        assert_eq!(told.wants[&WEB].offered, [0, 0, 0]);
    }

    #[test]
    fn changes_of_more_than_counts_have_a_pace_and_the_last_one_comes() {
        let (mut told, kinds) = (Told::default(), Kinds::default());
        let on = |zone: u32| {
            let constraint = tessera_types::Constraint {
                selector: Selector::Attribute("zone".into()),
                predicate: Predicate::Matches(format!("*{zone}")),
            };
            [ResourceRequest { constraints: vec![constraint], ..request("a", 1, 1 + zone) }]
        };
        let mut taken = 0;
        for change in 0..1_000_u32 {
            let numbers = told.numbers;
            told.note_requests(WEB, &on(change), &kinds, 5);
            taken += usize::from(told.numbers != numbers);
        }
        assert!((2..40).contains(&taken), "{taken} of 1,000 changes in one moment");
        assert!(!told.later_due(5) && told.later_due(5 + REQUESTS_EVERY_MS));
        assert!(told.frameworks.contains(&WEB));
        told.note_requests(WEB, &on(999), &kinds, 5 + REQUESTS_EVERY_MS);
        assert_eq!(told.wants[&WEB].requests, on(999));
        assert!(!told.later_due(u64::MAX), "nothing is left to be looked at");
        // Counts are not held up.
        told.note_requests(WEB, &on(2), &kinds, 6 + REQUESTS_EVERY_MS);
        let [mut more] = on(999);
        more.count += 7;
        told.note_requests(WEB, &[more.clone()], &kinds, 6 + REQUESTS_EVERY_MS);
        assert_eq!(told.wants[&WEB].requests, [more]);
    }
}
