//! One round: who is offered what, of the agents that something has changed for.
//!
//! Invariants: the outcome is that of looking at all agents for everybody, in the order of their numbers from `first`
//! on; agents that were looked at and have not changed since are not looked at again, but for those who had
//! not seen them.

use super::bits::Bits;
use super::consider::{Cuts, Part, Stage, leaves_some, worth};
use super::tree::{OWN, ROOT};
use super::vector::{CPUS, MEM, Vector};
use super::{Allocator, CLASSES, Grant, LEVELS, REGULAR, REVOCABLE};
use crate::limits::{OFFER_MIN_CPUS_MILLI, OFFER_MIN_MEM_MIB};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use tessera_types::AgentId;

/// Other agents than those that changed are listed when they are no more than this, and else looked for one after the other.
const FEW: usize = 64;

/// Some of the frameworks, and the roles that these are in or below.
#[derive(Debug, Default)]
struct Only {
    frameworks: Bits,
    roles: Bits,
    /// They are in too many roles to be listed.
    anywhere: bool,
}

/// What a round is to look at, and for whom.
#[derive(Debug)]
struct Plan {
    /// Agents to be looked at for everybody.
    dirty: BTreeSet<AgentId>,
    /// Who has not seen agents of the queue, or was passed over at some of them and may have more now.
    only: Only,
    /// Those of them who have not seen all, with the place up to which they have.
    behind: Vec<(usize, u64)>,
    /// They were left out once, when nobody of them could have anything.
    left: bool,
    /// The first of these places; none has none.
    since: u64,
    /// From which places on others were passed over, by class.
    eased: [u64; CLASSES],
    /// There was more beyond guarantees than this at all times.
    least: Vector,
    /// The agents that are for these only, if they are few.
    few: Option<BTreeSet<AgentId>>,
    /// While nothing is beyond guarantees: who has one that leaves more.
    favoured: Option<Only>,
}

/// How an agent is looked at.
#[derive(Clone, Copy)]
struct Look<'a> {
    agent: usize,
    stage: Stage,
    /// Only for those who are in each of these.
    only: [Option<&'a Only>; 2],
    /// All who have a filter refuse all that there could be.
    refusers: bool,
}

/// What is to be remembered of those who were passed over.
#[derive(Debug, Default)]
struct Notes {
    /// Whose quota limit, or guarantee, left too little.
    roles: BTreeSet<usize>,
    squeezed: [bool; CLASSES],
    considered: u64,
}

/// What has been decided in a round.
#[derive(Debug, Default)]
struct Decided {
    grants: Vec<Grant>,
    /// Where in the list those of an agent are that may be made larger.
    of: BTreeMap<(usize, usize, usize), usize>,
    /// How often something was.
    times: u64,
}

impl Only {
    fn is_empty(&self) -> bool {
        self.frameworks.is_empty()
    }

    fn in_or_below(&self, role: usize) -> bool {
        self.anywhere || self.roles.has(role)
    }

    fn put(&mut self, framework: usize, of: &Allocator) {
        self.frameworks.put(framework, true);
        for role in of.lineage(of.frameworks[framework].role) {
            if self.roles.has(role) {
                break;
            }
            self.roles.put(role, true);
        }
    }
}

impl Allocator {
    /// Decide one round.
    pub(crate) fn round(&mut self, first: AgentId, now_ms: u64) -> Vec<Grant> {
        self.end_filters(now_ms);
        self.sort();
        let nobody = self.open.iter().all(Bits::is_empty);
        if nobody {
            return Vec::new();
        }
        self.hold_agents(now_ms);
        let Some(mut plan) = self.plan() else { return Vec::new() };
        self.lowest = [u64::MAX; CLASSES];
        let mut decided = Decided::default();
        if !self.needy.is_empty() {
            self.look_at_all(first, &mut plan, true, &mut decided);
        }
        let eased = plan.eased;
        self.look_at_all(first, &mut plan, false, &mut decided);
        self.floor = u64::MAX;
        let mut rooms = self.rooms();
        rooms[REGULAR].at_most(&plan.least);
        for (class, room) in rooms.into_iter().enumerate() {
            let mut lowest = self.lowest[class];
            if eased[class] < u64::MAX && plan.eased[class] == eased[class] {
                // Those who may have no more than before were not considered, and are there still.
                self.passed[class].forget(eased[class]);
                lowest = lowest.min(eased[class]);
            }
            if lowest < u64::MAX {
                self.passed[class].note(lowest, room);
            }
        }
        let spare = self.spare();
        for (framework, seen) in plan.behind {
            if plan.left && self.has_room(framework) {
                self.falls_behind(framework, seen);
            } else if plan.left {
                self.park(framework, seen);
            } else if !spare {
                // It was not considered where there was nothing beyond guarantees.
                self.miss_guarantees(framework, seen + 1);
            }
        }
        decided.grants
    }

    /// What there is to be looked at, if anything.
    fn plan(&mut self) -> Option<Plan> {
        self.unpark();
        let eased = self.eased();
        let behind = std::mem::take(&mut self.behind);
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() && behind.is_empty() && eased == [u64::MAX; CLASSES] {
            return None;
        }
        let [least, _] = self.rooms();
        let (only, behind_of, few, favoured) = (Only::default(), Vec::new(), None, None);
        let mut plan = Plan { dirty, only, behind: behind_of, left: false, since: u64::MAX, eased, least, few, favoured };
        self.put_behind(&mut plan, behind);
        self.put_others(&mut plan);
        let from = plan.eased.into_iter().fold(plan.since.saturating_add(1), u64::min);
        if self.looked.range(from..).nth(FEW).is_none() {
            let others = self.looked.range(from..).map(|(_, agent)| *agent);
            plan.few = Some(others.filter(|agent| self.is_for_others(&plan, *agent)).collect());
        }
        Some(plan)
    }

    /// From which places on there is more room now than when somebody was passed over there.
    fn eased(&self) -> [u64; CLASSES] {
        let rooms = self.rooms();
        [REGULAR, REVOCABLE].map(|class| self.passed[class].since(&rooms[class], &self.guaranteed).unwrap_or(u64::MAX))
    }

    /// These have not seen all agents.
    fn put_behind(&mut self, plan: &mut Plan, behind: BTreeSet<usize>) {
        for framework in behind {
            self.parked.remove(&framework);
            let Some(seen) = self.frameworks[framework].seen.take() else { continue };
            let shut = self.lineage(self.frameworks[framework].role).find(|place| self.roles[*place].shut());
            if let Some(role) = shut {
                // Nobody there may have anything for good now: it looks again when somebody may.
                self.miss(role, seen + 1);
            }
            if self.frameworks[framework].lanes[REVOCABLE].is_none() && shut.is_none() && !self.has_room(framework) {
                self.park(framework, seen);
            } else if shut.is_none() || self.frameworks[framework].lanes[REVOCABLE].is_some() {
                plan.behind.push((framework, seen));
            }
        }
        plan.since = plan.behind.iter().map(|(_, seen)| *seen).min().unwrap_or(u64::MAX);
        self.floor = self.floor.min(plan.since.saturating_add(1));
    }

    /// Guarantees were met of pools, and leave more than before: that is possible, and rare.
    fn put_more(&mut self, plan: &mut Plan) {
        self.unpark();
        let behind = std::mem::take(&mut self.behind);
        self.put_behind(plan, behind);
        plan.eased = self.eased();
        plan.favoured = None;
        plan.few = None;
        self.put_others(plan);
    }

    /// For whom agents are looked at that have not changed: who has not seen them, and may have something of an agent now.
    fn put_others(&self, plan: &mut Plan) {
        plan.only = Only::default();
        if plan.behind.iter().any(|(framework, _)| self.may_have_some(*framework)) {
            plan.behind.iter().for_each(|(framework, _)| plan.only.put(*framework, self));
        } else {
            plan.since = u64::MAX;
            plan.left = true;
        }
        let rooms = self.rooms();
        for class in [REGULAR, REVOCABLE] {
            if plan.eased[class] == u64::MAX {
                continue;
            }
            let mut any = false;
            let all = class == REGULAR && self.needy.is_empty() && !self.any_least && self.spare();
            if all && !self.takes_any.is_empty() {
                any = true;
                plan.only.anywhere = true;
                plan.only.frameworks.put_all(&self.takes_any);
            }
            for framework in self.may_have_more(class, &rooms[class], all) {
                any = true;
                plan.only.put(framework, self);
            }
            if !any {
                plan.eased[class] = u64::MAX;
            }
        }
    }

    /// Whether guarantees leave a framework anything for good.
    pub(super) fn has_room(&self, framework: usize) -> bool {
        self.spare() || !self.needy.is_empty() && self.room_for(self.frameworks[framework].role).is_some()
    }

    /// Whether a framework may have anything, whatever agent it is.
    fn may_have_some(&self, framework: usize) -> bool {
        let whose = &self.frameworks[framework];
        let shut = || self.lineage(whose.role).any(|place| self.roles[place].shut());
        whose.lanes[REVOCABLE].is_some() || !shut() && self.has_room(framework)
    }

    /// Those to whom guarantees leave as much as they would take; without those who take anything, if these are known.
    fn may_have_more(&self, class: usize, room: &Vector, known: bool) -> Vec<usize> {
        let some = |kind: usize| !self.guaranteed.contains(&kind) || leaves_some(kind, room.get(kind));
        let without = Some(&self.takes_any).filter(|_| known);
        let open = self.open[class].iter_but(without);
        if class == REVOCABLE {
            let kept = some(CPUS) && some(MEM) && self.guaranteed.iter().any(|kind| room.get(*kind) > 0);
            return open.filter(|place| kept && self.may_take(*place, class, room)).collect();
        }
        if self.needy.is_empty() {
            let spare = self.spare();
            return open.filter(|place| spare && self.may_take(*place, class, room)).collect();
        }
        let mut rooms: BTreeMap<usize, Option<Vector>> = BTreeMap::new();
        let mut may = |place: usize| {
            let role = self.frameworks[place].role;
            let room = rooms.entry(role).or_insert_with(|| self.room_for(role));
            room.as_ref().is_some_and(|room| self.may_take(place, class, room))
        };
        if self.spare() {
            return open.filter(|place| may(*place)).collect();
        }
        let mut found = Vec::new();
        let mut below = self.needy.clone();
        while let Some(place) = below.pop() {
            let role = &self.roles[place];
            below.extend(&role.children);
            found.extend(role.members[..LEVELS].iter().flatten().copied().filter(|framework| may(*framework)));
        }
        found
    }

    /// While nothing is beyond guarantees: those below roles whose guarantee leaves them something all the same.
    fn favoured(&mut self) -> Only {
        let mut only = Only::default();
        let mut without = Vec::new();
        for needy in &self.needy {
            let mut below = vec![*needy];
            while let Some(place) = below.pop() {
                let role = &self.roles[place];
                below.extend(&role.children);
                let mut members = role.members[..LEVELS].iter().flatten().peekable();
                if members.peek().is_none() {
                    continue;
                }
                if self.room_for(place).is_some() {
                    members.for_each(|framework| only.put(*framework, self));
                } else {
                    without.push(*needy);
                }
            }
        }
        // The others are not considered from now on.
        without.into_iter().for_each(|needy| self.miss(needy, self.last_looked + 1));
        only
    }

    /// Whether an agent that has not changed is to be looked at.
    fn is_for_others(&self, plan: &Plan, agent: AgentId) -> bool {
        let Some(agent) = self.agent_of.get(&agent).map(|place| &self.agents[*place]) else { return false };
        let Some(looked) = agent.looked else { return false };
        plan.since < looked || [REGULAR, REVOCABLE].iter().any(|class| agent.squeezed[*class] && plan.eased[*class] <= looked)
    }

    /// Look at agents in the order of their numbers: to meet guarantees, or to share out.
    fn look_at_all(&mut self, first: AgentId, plan: &mut Plan, guarantees: bool, decided: &mut Decided) {
        let wanted = |of: &Self, only: &Only| match guarantees {
            true => of.needy.iter().any(|needy| only.in_or_below(*needy)),
            false => !only.is_empty(),
        };
        let mut others = wanted(self, &plan.only);
        let mut known = 0;
        for (start, end) in [(Bound::Included(first), Bound::Unbounded), (Bound::Unbounded, Bound::Excluded(first))] {
            let mut from = start;
            let mut ahead: Option<Option<AgentId>> = None;
            loop {
                let next = |of: &BTreeSet<AgentId>| of.range((from, end)).next().copied();
                let dirty = next(&plan.dirty);
                if others && ahead.is_none_or(|ahead| ahead.is_some_and(|ahead| from == Bound::Excluded(ahead))) {
                    let is = |agent: &AgentId| self.is_for_others(plan, *agent);
                    ahead = Some(match &plan.few {
                        Some(few) => next(few),
                        None => self.agent_of.range((from, end)).map(|(agent, _)| *agent).find(is),
                    });
                }
                let other = ahead.flatten().filter(|_| others);
                let Some(agent) = [dirty, other].into_iter().flatten().min() else { break };
                let changed = dirty == Some(agent);
                let before = decided.times;
                let room = self.kinds.have_pools().then(|| self.rooms());
                if guarantees {
                    self.meet_guarantees(agent, plan, changed, decided);
                } else {
                    self.looks += 1;
                    self.share_out(agent, plan, changed, decided);
                }
                from = Bound::Excluded(agent);
                if let Some([room, _]) = room.filter(|[room, _]| decided.times > before && self.beyond(room)) {
                    plan.least.at_most(&room);
                    self.put_more(plan);
                    others = wanted(self, &plan.only);
                    ahead = None;
                }
                // Nobody took anything: perhaps nobody may, since the last one did.
                if !changed && !guarantees && decided.times == before && known != before {
                    known = before;
                    self.put_others(plan);
                    others = wanted(self, &plan.only);
                }
            }
        }
    }

    /// Whether there is more beyond guarantees than so much.
    pub(super) fn beyond(&self, room: &Vector) -> bool {
        let [now, _] = self.rooms();
        self.guaranteed.iter().any(|kind| now.get(*kind) > room.get(*kind))
    }

    /// Whether there is CPU and memory beyond what guarantees need.
    pub(super) fn spare(&self) -> bool {
        let needed = &self.roles[ROOT].below;
        [(CPUS, OFFER_MIN_CPUS_MILLI), (MEM, OFFER_MIN_MEM_MIB)]
            .into_iter()
            .all(|(kind, least)| !self.guaranteed.contains(&kind) || self.there.get(kind) - needed.get(kind) >= least)
    }

    /// First those whose guarantee lacks something, the highest priority first.
    fn meet_guarantees(&mut self, agent: AgentId, plan: &Plan, changed: bool, decided: &mut Decided) {
        let Some(place) = self.agent_of.get(&agent).copied() else { return };
        let only = if changed { None } else { Some(&plan.only) };
        while self.agents[place].facts.open && worth(&self.agents[place].facts.free) {
            let mut notes = Notes::default();
            let could = |needy: &&usize| self.could_meet(**needy, &self.agents[place].facts.free);
            let found = self.needy.iter().filter(could).find_map(|needy| {
                let (look, _) = self.look(place, Stage::Guarantee(*needy), [only, None]);
                self.pick(*needy, &look?, &mut notes)
            });
            self.note(place, changed, notes);
            let Some((framework, part)) = found else { return };
            self.grant(framework, place, REGULAR, part, decided);
        }
    }

    /// Then everybody, by shares; then what guarantees keep, to be taken back.
    fn share_out(&mut self, agent: AgentId, plan: &mut Plan, changed: bool, decided: &mut Decided) {
        let Some(place) = self.agent_of.get(&agent).copied() else { return };
        let was = self.agents[place].squeezed;
        if changed {
            self.agents[place].squeezed = [false; CLASSES];
        }
        for stage in [Stage::Fair, Stage::Revocable] {
            while self.agents[place].facts.open && worth(&self.agents[place].facts.free) {
                let beyond = stage != Stage::Fair || self.spare();
                if !beyond && plan.favoured.is_none() {
                    plan.favoured = Some(self.favoured());
                }
                let only = [Some(&plan.only).filter(|_| !changed), plan.favoured.as_ref().filter(|_| !beyond)];
                let (look, squeezed) = self.look(place, stage, only);
                let mut notes = Notes::default();
                notes.squeezed[stage.class()] = squeezed || !beyond;
                let found = look.and_then(|look| self.pick(ROOT, &look, &mut notes));
                self.note(place, changed, notes);
                let Some((framework, part)) = found else { break };
                self.grant(framework, place, stage.class(), part, decided);
            }
        }
        let agent = &self.agents[place];
        let anew = changed || (0..CLASSES).any(|class| was[class] && plan.eased[class] < u64::MAX);
        if !agent.facts.open || !worth(&agent.facts.free) {
            self.unqueue(place);
        } else if anew || agent.looked.is_none() {
            self.enqueue(place);
        }
    }

    /// Remember who has to be considered again, and when.
    fn note(&mut self, agent: usize, changed: bool, notes: Notes) {
        self.considered += notes.considered;
        // Under which place in the queue it will be found.
        let next = self.last_looked + 1;
        let at = if changed { next } else { self.agents[agent].looked.unwrap_or(next) };
        for class in [REGULAR, REVOCABLE] {
            if notes.squeezed[class] {
                self.agents[agent].squeezed[class] = true;
                self.lowest[class] = self.lowest[class].min(at);
            }
        }
        for role in notes.roles {
            self.miss(role, at);
        }
    }

    /// How to look at an agent, if anybody may want anything of it; and whether more than there is beyond guarantees, or is
    /// kept by them, might be wanted by some who refuse that.
    fn look<'a>(&self, agent: usize, stage: Stage, only: [Option<&'a Only>; 2]) -> (Option<Look<'a>>, bool) {
        let of = &self.agents[agent];
        let class = stage.class();
        let mut free = of.facts.free.clamped();
        let mut refusers = of.filters.all_refuse(&free);
        let mut squeezed = false;
        let cut = match stage {
            Stage::Guarantee(_) => false,
            Stage::Fair => self.needy.is_empty(),
            Stage::Revocable => of.held.is_none(),
        };
        if !refusers && cut && self.any_guarantee {
            let room = &self.rooms()[class];
            self.guaranteed.iter().for_each(|kind| free.set(*kind, free.get(*kind).min(room.get(*kind).max(0))));
            refusers = of.filters.all_refuse(&free);
            squeezed = refusers;
        }
        let without = Some(&of.filters.bits).filter(|_| refusers);
        let mut any = self.open[class].any_but(only[0].map(|only| &only.frameworks), without);
        any &= only[1].is_none_or(|only| !only.is_empty());
        (any.then_some(Look { agent, stage, only, refusers }), squeezed)
    }

    /// The first framework below a role that takes something.
    fn pick(&self, within: usize, look: &Look<'_>, notes: &mut Notes) -> Option<(usize, Part)> {
        let class = look.stage.class();
        (0..LEVELS).find_map(|level| self.descend(within, class * LEVELS + level, look, notes))
    }

    fn descend(&self, role: usize, lane: usize, look: &Look<'_>, notes: &mut Notes) -> Option<(usize, Part)> {
        self.roles[role].orders[lane].iter().find_map(|child| {
            if *child != OWN {
                let has = look.only.iter().flatten().all(|only| only.in_or_below(*child));
                return has.then(|| self.descend(*child, lane, look, notes)).flatten();
            }
            self.roles[role].members[lane].iter().find_map(|framework| {
                if !look.only.iter().flatten().all(|only| only.frameworks.has(*framework))
                    || look.refusers && self.agents[look.agent].filters.bits.has(*framework)
                {
                    return None;
                }
                let mut cuts = Cuts::default();
                notes.considered += 1;
                let part = self.consider(*framework, look.agent, look.stage, &mut cuts).ok();
                if part.is_none() && cuts.limit {
                    notes.roles.extend(self.lineage(role).filter(|place| !self.roles[*place].said.limit.is_empty()));
                }
                if part.is_none() && cuts.headroom {
                    notes.squeezed[look.stage.class()] = true;
                    let line = self.lineage(role);
                    notes.roles.extend(line.filter(|place| !self.roles[*place].said.guarantee.is_empty()));
                }
                Some((*framework, part?))
            })
        })
    }

    fn grant(&mut self, framework: usize, agent: usize, class: usize, part: Part, decided: &mut Decided) {
        let Part { amounts, pieces } = part;
        self.count_agent(agent, false);
        let facts = &mut self.agents[agent].facts;
        facts.free.take(&amounts);
        if class == REVOCABLE {
            facts.revocable.add(&amounts);
        }
        self.count_agent(agent, true);
        let whose = &mut self.frameworks[framework].facts;
        whose.uses[class].add(&amounts);
        whose.offered.resize(whose.wants.len(), 0);
        for (at, count) in &pieces {
            whose.offered[*at] += count;
        }
        let counted = self.kinds.counted(&amounts);
        self.change_use(framework, class, &counted, true);
        if class == REGULAR {
            self.drop_hold_of(agent, framework);
        }
        decided.times += 1;
        match decided.of.get(&(agent, framework, class)) {
            Some(at) => {
                let before = &mut decided.grants[*at];
                before.amounts.add(&amounts);
                before.pieces.extend(pieces);
            }
            None => {
                decided.of.insert((agent, framework, class), decided.grants.len());
                let (framework, agent) = (self.frameworks[framework].id, self.agents[agent].id);
                let revocable = class == REVOCABLE;
                decided.grants.push(Grant { framework, agent, amounts, revocable, pieces });
            }
        }
    }
}
