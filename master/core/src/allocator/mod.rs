//! Who is offered what: an engine that is told of changes, one by one, and decides in rounds.
//!
//! Owns the tree of roles with shares and needs (`tree`), what agents have free and who does not want it
//! (`filters`), the decision about one framework and one agent (`consider`), the round (`round`), agents that are
//! held for what fits nowhere else and revocable work that stands in the way (`holds`), and the words for why
//! somebody gets nothing (`explain`). Invariants: integers and fixed orders only, so that the same history gives the
//! same grants; nothing is granted twice; no quota limit is passed; what others' guarantees need is left;
//! a change costs what it touches. Must never know sessions, batches, commands or a clock.

mod bits;
mod churn;
mod consider;
mod explain;
mod filters;
mod holds;
mod measure;
mod passed;
mod round;
mod share;
mod shortages;
mod tree;
mod vector;

#[cfg(test)]
mod tests;

pub(crate) use explain::Verdict;
pub(crate) use shortages::Lack;
pub use churn::{EVEN_MEM_MIB, Fairness, hour_of_churn};
pub use measure::AllocatorRun;
pub(crate) use vector::{Kinds, Vector};

use bits::Bits;
use filters::Filters;
use passed::Passed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{AgentId, AgentInfo, Constraint, FrameworkId};
use tree::{ROOT, Role, Use};

/// What is used for good, and what may be taken back at any time.
pub(crate) const CLASSES: usize = 2;
/// The first.
pub(crate) const REGULAR: usize = 0;
/// The second.
pub(crate) const REVOCABLE: usize = 1;
/// Who keeps offers for nothing comes after those who did so less often; beyond this nobody counts.
const LEVELS: usize = 4;
const LANES: usize = CLASSES * LEVELS;

/// What a framework says it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) id: String,
    /// One piece.
    pub(crate) piece: Vector,
    pub(crate) count: u32,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) revocable: bool,
}

/// Pieces of requests: the request's place in the list, and how many.
pub(crate) type Pieces = Vec<(usize, u32)>;

/// What the allocator is told of a framework.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameworkFacts {
    pub(crate) role: String,
    /// What it uses, offers included, by class.
    pub(crate) uses: [Vector; CLASSES],
    /// It may be offered something now.
    pub(crate) open: bool,
    /// It would take something, now or as soon as it has answered what it was sent.
    pub(crate) waits: bool,
    /// Offers in a row that it kept from others for nothing.
    pub(crate) wasted: u32,
    /// What it waits for; none is anything.
    pub(crate) wants: Arc<[Want]>,
    /// How many pieces of each it is being offered.
    pub(crate) offered: Vec<u32>,
}

/// What the allocator is told of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentFacts {
    pub(crate) info: Arc<AgentInfo>,
    /// What it has, if that counts towards the whole.
    pub(crate) total: Vector,
    /// What nobody has or is offered; below nothing, if it came back smaller.
    pub(crate) free: Vector,
    /// Used or offered, to be taken back at any time.
    pub(crate) revocable: Vector,
    /// It may be offered.
    pub(crate) open: bool,
}

/// One offer to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) framework: FrameworkId,
    pub(crate) agent: AgentId,
    pub(crate) amounts: Vector,
    pub(crate) revocable: bool,
    pub(crate) pieces: Pieces,
}

#[derive(Clone, Debug)]
struct Framework {
    id: FrameworkId,
    /// This place is in use.
    here: bool,
    role: usize,
    facts: FrameworkFacts,
    uses: [Use; CLASSES],
    lanes: [Option<usize>; CLASSES],
    /// Which agents fulfil the constraints of each request; none: all do.
    fits: Vec<Option<Bits>>,
    /// Agents after this place in the queue of those that were looked at were not looked at for it.
    seen: Option<u64>,
    /// Its filters of before are void.
    filters_from: u64,
}

#[derive(Clone, Debug)]
struct Agent {
    id: AgentId,
    here: bool,
    facts: AgentFacts,
    filters: Filters,
    /// Its place in the queue of agents that were looked at.
    looked: Option<u64>,
    /// Held for a request of a framework.
    held: Option<(usize, usize)>,
    /// Revocable work is being ended there: what it leaves is not lent again.
    cleared: bool,
    /// Somebody was passed over there for what guarantees need, or keep, by class.
    squeezed: [bool; CLASSES],
}

/// The engine.
#[derive(Clone, Debug)]
pub(crate) struct Allocator {
    kinds: Kinds,
    roles: Vec<Role>,
    free_roles: Vec<usize>,
    role_of: BTreeMap<String, usize>,
    frameworks: Vec<Framework>,
    free_frameworks: Vec<usize>,
    framework_of: BTreeMap<FrameworkId, usize>,
    agents: Vec<Agent>,
    free_agents: Vec<usize>,
    agent_of: BTreeMap<AgentId, usize>,
    /// What all agents have together.
    total: Vector,
    /// What is free of those that may be offered, and what could be taken back there: what guarantees are met of.
    there: Vector,
    /// What is used and may be taken back.
    revocable: Vector,
    /// Roles whose guarantee lacks something, below whom somebody may be offered something.
    needy: Vec<usize>,
    any_guarantee: bool,
    /// Kinds that some role has a guarantee of.
    guaranteed: BTreeSet<usize>,
    any_least: bool,
    any_limit: bool,
    /// Orders are to be made anew: the rules have changed.
    unsorted: bool,
    /// Shares are to be made anew: the whole has changed.
    rescaled: bool,
    /// Who may be offered something.
    open: [Bits; CLASSES],
    /// Of those who may for good, who takes anything.
    takes_any: Bits,
    /// Agents to be looked at for everybody.
    dirty: BTreeSet<AgentId>,
    /// Agents that were looked at and have something left, in the order in which that was.
    looked: BTreeMap<u64, AgentId>,
    last_looked: u64,
    /// In a round, the first of them that it looks at for some frameworks only.
    floor: u64,
    /// Frameworks that have not seen all of those.
    behind: BTreeSet<usize>,
    /// Those who have not seen all, and to whom guarantees left nothing when there was this much beyond them.
    parked: BTreeSet<usize>,
    parked_room: Vector,
    /// How much room guarantees left where somebody was passed over for want of it, by class.
    passed: [Passed; CLASSES],
    /// In a round, the first place of the queue at which somebody was.
    lowest: [u64; CLASSES],
    /// Agents on which something may be taken back.
    lent: BTreeSet<usize>,
    /// When the first filter of an agent ends.
    ends: BTreeSet<(u64, AgentId)>,
    filters_made: u64,
    holds: holds::Holds,
    shortages: shortages::Shortages,
    /// Agents that rounds looked at since that was asked.
    looks: u64,
    /// How often a framework was considered at an agent.
    considered: u64,
}

impl Default for Allocator {
    fn default() -> Self {
        Self {
            kinds: Kinds::default(),
            roles: vec![Role::default()],
            free_roles: Vec::new(),
            role_of: BTreeMap::new(),
            frameworks: Vec::new(),
            free_frameworks: Vec::new(),
            framework_of: BTreeMap::new(),
            agents: Vec::new(),
            free_agents: Vec::new(),
            agent_of: BTreeMap::new(),
            total: Vector::default(),
            there: Vector::default(),
            revocable: Vector::default(),
            needy: Vec::new(),
            any_guarantee: false,
            guaranteed: BTreeSet::new(),
            any_least: false,
            any_limit: false,
            unsorted: false,
            rescaled: false,
            open: [Bits::default(), Bits::default()],
            takes_any: Bits::default(),
            dirty: BTreeSet::new(),
            looked: BTreeMap::new(),
            last_looked: 0,
            floor: u64::MAX,
            behind: BTreeSet::new(),
            parked: BTreeSet::new(),
            parked_room: Vector::default(),
            passed: [Passed::default(), Passed::default()],
            lowest: [u64::MAX; CLASSES],
            lent: BTreeSet::new(),
            ends: BTreeSet::new(),
            filters_made: 0,
            holds: holds::Holds::default(),
            shortages: shortages::Shortages::default(),
            looks: 0,
            considered: 0,
        }
    }
}

impl Allocator {
    /// The kinds, to turn resources into amounts and back.
    pub(crate) const fn kinds(&mut self) -> &mut Kinds {
        &mut self.kinds
    }

    /// The same, to look at.
    pub(crate) const fn kinds_known(&self) -> &Kinds {
        &self.kinds
    }

    /// How often a framework was considered at an agent since the last call.
    pub(crate) const fn considered(&mut self) -> u64 {
        std::mem::replace(&mut self.considered, 0)
    }

    /// How many agents rounds looked at since the last call.
    pub(crate) const fn take_looks(&mut self) -> u64 {
        std::mem::replace(&mut self.looks, 0)
    }

    /// What is so of a framework now.
    pub(crate) fn set_framework(&mut self, id: FrameworkId, facts: FrameworkFacts) {
        let place = match self.framework_of.get(&id) {
            Some(place) if self.frameworks[*place].facts.role == facts.role => *place,
            Some(_) => {
                self.remove_framework(id);
                self.new_framework(id, &facts.role)
            }
            None => self.new_framework(id, &facts.role),
        };
        let known = &self.frameworks[place].facts;
        if *known == facts {
            return;
        }
        for class in [REGULAR, REVOCABLE] {
            let known = &self.frameworks[place].facts;
            if known.uses[class] != facts.uses[class] {
                let before = self.kinds.counted(&known.uses[class]);
                let by = self.kinds.counted(&facts.uses[class]).minus(&before);
                self.change_use(place, class, &by, true);
            }
        }
        let known = &self.frameworks[place].facts;
        let wants_anew = !same_but_counts(&known.wants, &facts.wants);
        let misses_more = wants_anew
            || (0..facts.wants.len()).any(|want| missing(&facts, want) > missing(known, want));
        let was_open = known.open;
        let known = std::mem::replace(&mut self.frameworks[place].facts, facts);
        if wants_anew {
            self.fit_framework(place, &known.wants);
            self.drop_filters_by(place);
        }
        if misses_more {
            self.frameworks[place].seen = Some(0);
        }
        if was_open && !self.frameworks[place].facts.open && self.frameworks[place].seen.is_none() {
            self.frameworks[place].seen = Some(self.last_looked);
        }
        self.place_in_lanes(place);
    }

    fn place_in_lanes(&mut self, place: usize) {
        let facts = &self.frameworks[place].facts;
        let level = usize::try_from(facts.wasted).unwrap_or(LEVELS).min(LEVELS - 1);
        let wanted = |class: usize| {
            let revocable = class == REVOCABLE;
            let some = facts.wants.iter().any(|want| want.revocable == revocable);
            facts.open && (some || !revocable && facts.wants.is_empty())
        };
        let lanes = [REGULAR, REVOCABLE].map(|class| wanted(class).then_some(class * LEVELS + level));
        self.takes_any.put(place, facts.open && facts.wants.is_empty());
        for class in [REGULAR, REVOCABLE] {
            self.set_lane(place, class, lanes[class]);
        }
        let framework = &self.frameworks[place];
        if framework.facts.open && framework.seen.is_some_and(|seen| seen < self.last_looked) {
            self.behind.insert(place);
        } else if framework.facts.open {
            self.frameworks[place].seen = None;
            self.behind.remove(&place);
        } else {
            self.behind.remove(&place);
        }
    }

    fn new_framework(&mut self, id: FrameworkId, role: &str) -> usize {
        let role = self.role(role);
        self.filters_made += 1;
        let name = self.roles[role].name.clone();
        let framework = Framework {
            id,
            here: true,
            role,
            facts: FrameworkFacts { role: name, ..FrameworkFacts::default() },
            uses: [Use::default(), Use::default()],
            lanes: [None; CLASSES],
            fits: Vec::new(),
            seen: Some(0),
            filters_from: self.filters_made,
        };
        let place = match self.free_frameworks.pop() {
            Some(place) => {
                self.frameworks[place] = framework;
                place
            }
            None => {
                self.frameworks.push(framework);
                self.frameworks.len() - 1
            }
        };
        self.framework_of.insert(id, place);
        self.join_role(place, role);
        place
    }

    /// It is no more.
    pub(crate) fn remove_framework(&mut self, id: FrameworkId) {
        let Some(place) = self.framework_of.remove(&id) else { return };
        for class in [REGULAR, REVOCABLE] {
            self.set_lane(place, class, None);
            let by = self.kinds.counted(&self.frameworks[place].facts.uses[class]);
            self.change_use(place, class, &by, false);
        }
        self.drop_filters_by(place);
        self.leave_role(place);
        self.behind.remove(&place);
        self.parked.remove(&place);
        self.takes_any.put(place, false);
        self.drop_holds_for(place);
        let framework = &mut self.frameworks[place];
        framework.here = false;
        framework.facts = FrameworkFacts::default();
        framework.fits = Vec::new();
        self.free_frameworks.push(place);
    }

    /// What is so of an agent now.
    pub(crate) fn set_agent(&mut self, id: AgentId, facts: AgentFacts) {
        let place = match self.agent_of.get(&id) {
            Some(place) => *place,
            None => self.new_agent(id, &facts.info),
        };
        if self.agents[place].facts == facts {
            return;
        }
        self.count_agent(place, false);
        let before = std::mem::replace(&mut self.agents[place].facts, facts);
        self.count_agent(place, true);
        let agent = &self.agents[place];
        if agent.facts.total != before.total {
            let counted = self.kinds.counted(&before.total);
            self.total.take(&counted);
            self.total.add(&self.kinds.counted(&self.agents[place].facts.total));
            self.rescaled = true;
        }
        if self.agents[place].facts.info != before.info {
            self.fit_agent(place);
        }
        self.dirty.insert(id);
    }

    fn new_agent(&mut self, id: AgentId, info: &Arc<AgentInfo>) -> usize {
        let nothing = Vector::default();
        let facts = AgentFacts {
            info: Arc::clone(info),
            total: nothing.clone(),
            free: nothing.clone(),
            revocable: nothing,
            open: false,
        };
        let (filters, squeezed) = (Filters::default(), [false; CLASSES]);
        let agent = Agent { id, here: true, facts, filters, looked: None, held: None, cleared: false, squeezed };
        let place = match self.free_agents.pop() {
            Some(place) => {
                self.agents[place] = agent;
                place
            }
            None => {
                self.agents.push(agent);
                self.agents.len() - 1
            }
        };
        self.agent_of.insert(id, place);
        self.fit_agent(place);
        place
    }

    /// It is no more.
    pub(crate) fn remove_agent(&mut self, id: AgentId) {
        let Some(place) = self.agent_of.remove(&id) else { return };
        self.count_agent(place, false);
        self.shortages.forget(place);
        let counted = self.kinds.counted(&self.agents[place].facts.total);
        self.total.take(&counted);
        self.rescaled = true;
        self.drop_filters_of(id, place);
        self.unqueue(place);
        self.drop_hold(place);
        self.dirty.remove(&id);
        self.agents[place].here = false;
        self.free_agents.push(place);
    }

    /// Count what an agent has for guarantees, or no longer.
    fn count_agent(&mut self, place: usize, is: bool) {
        let facts = &self.agents[place].facts;
        let counted = self.kinds.counted(&facts.revocable);
        let there = facts.open.then(|| self.kinds.unreserved(&facts.free.clamped()).plus(&counted));
        let there = there.unwrap_or_default();
        if is {
            self.revocable.add(&counted);
            self.there.add(&there);
        } else {
            self.revocable.take(&counted);
            self.there.take(&there);
        }
        match (is, counted.is_zero()) {
            (_, true) => {}
            (true, false) => drop(self.lent.insert(place)),
            (false, false) => drop(self.lent.remove(&place)),
        }
    }

    /// Which agents fulfil the constraints of a framework's requests. Those that it had before are not asked again.
    fn fit_framework(&mut self, place: usize, before: &[Want]) {
        let wants = Arc::clone(&self.frameworks[place].facts.wants);
        let mut known = std::mem::take(&mut self.frameworks[place].fits);
        known.resize(before.len(), None);
        let fits = wants.iter().map(|want| {
            let same = before.iter().position(|before| before.constraints == want.constraints);
            (!want.constraints.is_empty()).then(|| {
                if let Some(fits) = same.and_then(|at| known[at].clone()) {
                    return fits;
                }
                let mut fits = Bits::default();
                for (at, agent) in self.agents.iter().enumerate().filter(|(_, agent)| agent.here) {
                    fits.put(at, holds_all(&want.constraints, &agent.facts.info));
                }
                fits
            })
        });
        self.frameworks[place].fits = fits.collect();
    }

    /// Whose constraints an agent fulfils.
    fn fit_agent(&mut self, place: usize) {
        let info = Arc::clone(&self.agents[place].facts.info);
        for framework in self.frameworks.iter_mut().filter(|framework| framework.here) {
            for (fits, want) in framework.fits.iter_mut().zip(framework.facts.wants.iter()) {
                if let Some(fits) = fits {
                    fits.put(place, holds_all(&want.constraints, &info));
                }
            }
        }
    }

    /// Everybody is to be considered for everything again.
    pub(crate) fn look_everywhere(&mut self) {
        self.dirty.extend(self.agent_of.keys().copied());
    }

    /// Somebody in a role is passed over at an agent that will be found in the queue at this place.
    fn miss(&mut self, role: usize, at: u64) {
        let at = at.min(self.floor);
        let missed = &mut self.roles[role].missed;
        *missed = Some(missed.map_or(at, |before| before.min(at)));
    }

    /// Those who were passed over for a quota limit, or for guarantees of others, are to be considered again.
    fn role_eased(&mut self, role: usize) {
        let Some(missed) = self.roles[role].missed.take() else { return };
        let mut below = vec![role];
        while let Some(place) = below.pop() {
            below.extend(self.roles[place].children.iter().copied());
            for framework in self.roles[place].frameworks.clone() {
                self.falls_behind(framework, missed.saturating_sub(1));
            }
        }
    }

    /// A framework has not seen agents after this place, and could have nothing of any.
    fn park(&mut self, framework: usize, seen: u64) {
        self.not_seen(framework, seen);
        let [room, _] = self.rooms();
        if self.parked.is_empty() {
            self.parked_room = room;
        } else {
            self.parked_room.at_most(&room);
        }
        self.parked.insert(framework);
        self.miss_guarantees(framework, seen + 1);
    }

    fn not_seen(&mut self, framework: usize, after: u64) {
        let known = &mut self.frameworks[framework].seen;
        *known = Some(known.map_or(after, |before| before.min(after)));
    }

    /// A framework has not seen agents after this place.
    fn falls_behind(&mut self, framework: usize, after: u64) {
        self.not_seen(framework, after);
        if self.frameworks[framework].facts.open {
            self.behind.insert(framework);
        }
    }

    /// A framework is passed over from this place on until a guarantee above it lacks more.
    fn miss_guarantees(&mut self, framework: usize, at: u64) {
        let line = self.lineage(self.frameworks[framework].role);
        let has = line.filter(|place| !self.roles[*place].said.guarantee.is_empty());
        has.collect::<Vec<_>>().into_iter().for_each(|place| self.miss(place, at));
    }

    /// Those who could have nothing before look again, if there is more.
    fn unpark(&mut self) {
        if self.parked.is_empty() || !self.beyond(&self.parked_room) {
            return;
        }
        let may = |place: &usize| self.frameworks[*place].facts.open && self.has_room(*place);
        let may: Vec<usize> = self.parked.iter().copied().filter(may).collect();
        for place in may {
            self.parked.remove(&place);
            self.behind.insert(place);
        }
        [self.parked_room, _] = self.rooms();
    }

    fn unqueue(&mut self, place: usize) {
        if let Some(at) = self.agents[place].looked.take() {
            self.looked.remove(&at);
        }
    }

    fn enqueue(&mut self, place: usize) {
        self.unqueue(place);
        self.last_looked += 1;
        self.looked.insert(self.last_looked, self.agents[place].id);
        self.agents[place].looked = Some(self.last_looked);
    }
}

/// Whether requests differ in nothing, but how many pieces are asked for.
fn same_but_counts(one: &[Want], other: &[Want]) -> bool {
    let same = |(one, other): (&Want, &Want)| {
        let Want { id, piece, count: _, constraints, revocable } = one;
        (id, piece, constraints, revocable) == (&other.id, &other.piece, &other.constraints, &other.revocable)
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// How many pieces of a request are not being offered.
fn missing(facts: &FrameworkFacts, want: usize) -> u32 {
    let offered = facts.offered.get(want).copied().unwrap_or(0);
    facts.wants.get(want).map_or(0, |want| want.count.saturating_sub(offered))
}

fn holds_all(constraints: &[Constraint], info: &AgentInfo) -> bool {
    constraints.iter().all(|constraint| constraint.holds(info))
}

impl Allocator {
    /// What it was told of a framework, and has granted since.
    pub(crate) fn framework_facts(&self, id: FrameworkId) -> Option<&FrameworkFacts> {
        self.framework_of.get(&id).map(|place| &self.frameworks[*place].facts)
    }

    /// The same of an agent.
    pub(crate) fn agent_facts(&self, id: AgentId) -> Option<&AgentFacts> {
        self.agent_of.get(&id).map(|place| &self.agents[*place].facts)
    }

    /// Compare what is kept up to date with what it follows from.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (mut total, mut there, mut revocable) = (Vector::default(), Vector::default(), Vector::default());
        for place in self.agent_of.values() {
            let facts = &self.agents[*place].facts;
            total.add(&self.kinds.counted(&facts.total));
            let may_go = self.kinds.counted(&facts.revocable);
            revocable.add(&may_go);
            if facts.open {
                there.add(&self.kinds.unreserved(&facts.free.clamped()).plus(&may_go));
            }
        }
        if (&total, &there, &revocable) != (&self.total, &self.there, &self.revocable) {
            return Err("what all agents have is not the sum of what each has".to_owned());
        }
        let mut fresh = self.clone();
        fresh.unsorted = true;
        fresh.rescaled = true;
        fresh.sort();
        for (place, role) in self.roles.iter().enumerate() {
            let uses = |class: usize| {
                let mut sum = Vector::default();
                for framework in self.framework_of.values().map(|place| &self.frameworks[*place]) {
                    if self.within(framework.role, place) {
                        sum.add(&self.kinds.counted(&framework.facts.uses[class]));
                    }
                }
                sum
            };
            for class in [REGULAR, REVOCABLE] {
                if place != ROOT && role.all[class].sum != uses(class) {
                    return Err(format!("role {:?} uses {:?}, not {:?}", role.name, uses(class), role.all[class].sum));
                }
            }
            let again = &fresh.roles[place];
            let same = again.orders == role.orders && again.members == role.members && again.active == role.active;
            if !self.unsorted && !self.rescaled && !(same && again.need == role.need && again.below == role.below) {
                return Err(format!("role {:?} is not in order", role.name));
            }
        }
        if !self.unsorted && !self.rescaled && fresh.needy != self.needy {
            return Err("roles that lack something are not in order".to_owned());
        }
        Ok(())
    }
}
impl Allocator {
    /// Agents that it was told of.
    pub(crate) fn agents(&self) -> impl Iterator<Item = AgentId> {
        self.agent_of.keys().copied()
    }

    /// Frameworks that it was told of.
    pub(crate) fn frameworks(&self) -> impl Iterator<Item = FrameworkId> {
        self.framework_of.keys().copied()
    }

    /// Roles of which it was told something.
    pub(crate) fn roles(&self) -> impl Iterator<Item = String> {
        let set = self.roles.iter().filter(|role| role.said.set);
        set.map(|role| role.name.clone())
    }
}

#[cfg(test)]
impl Allocator {
    fn shown(&self) -> String {
        let seen: Vec<_> = self.frameworks.iter().filter(|f| f.here).map(|f| (f.id, f.seen, f.lanes)).collect();
        let missed: Vec<_> = self.roles.iter().map(|r| (&r.name, r.missed)).collect();
        let squeezed: Vec<_> = self.agents.iter().map(|agent| (agent.id, agent.squeezed)).collect();
        format!(
            "dirty {:?} squeezed {squeezed:?} behind {:?} looked {:?} last {} seen {seen:?} missed {missed:?} passed {:?}",
            self.dirty, self.behind, self.looked, self.last_looked, self.passed
        )
    }
}
