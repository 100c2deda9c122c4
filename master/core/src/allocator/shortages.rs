//! Revocable work that stands in the way of what is due to somebody who waits.
//!
//! Invariants: it is only said of an agent where a round would offer what is missing, were it free: the same function
//! decides; what is looked at is bounded, and everybody has a turn. Must never end a task: it only says where that would help.

use super::bits::Bits;
use super::consider::{Cuts, Part, Promise, Stage, Supposed, worth};
use super::holds::distance;
use super::tree::ROOT;
use super::vector::Vector;
use super::{Allocator, REGULAR};
use crate::limits::{SHORTAGE_LOOKS_MAX, SHORTAGES_MAX};
use std::collections::BTreeSet;
use tessera_types::AgentId;

/// What is remembered of looking.
#[derive(Clone, Debug, Default)]
pub(super) struct Shortages {
    /// With which request, and which framework that takes anything, the next look begins: the last one got no further.
    next: [usize; 2],
    /// What was found last, in the same order: who asked, and the agent. It is asked again first: it has to stand.
    standing: [Vec<((usize, usize), usize)>; 2],
    /// Agents on which nothing is lent, because something was taken back there.
    cleared: BTreeSet<usize>,
}

/// Revocable work to be ended, so that somebody has what is due to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    /// For whom.
    pub(crate) role: String,
    pub(crate) agent: AgentId,
    /// What is missing there; nothing, where it has been taken back and is only to be kept until it is offered.
    pub(crate) amounts: Vector,
    /// Only of roles with a lower priority than this one's.
    pub(crate) by_priority: bool,
}

/// What a look has found.
#[derive(Debug, Default)]
struct Found {
    lacks: Vec<Lack>,
    agents: BTreeSet<usize>,
    supposed: Supposed,
    /// Agents looked at.
    looks: usize,
    /// Who asked for what was found, and where.
    standing: Vec<((usize, usize), usize)>,
}

/// Who is asked for: a framework, one of its requests, and on which grounds.
#[derive(Clone, Copy, Debug)]
struct Asks {
    framework: usize,
    want: Option<usize>,
    stage: Stage,
    by_priority: bool,
    /// Only at this agent.
    at: Option<usize>,
    /// What it is remembered by.
    pair: (usize, usize),
}

impl Shortages {
    /// An agent is no more.
    pub(super) fn forget(&mut self, agent: usize) {
        self.cleared.remove(&agent);
    }
}

impl Allocator {
    /// Where revocable work stands in the way of what is due to somebody who waits.
    pub(crate) fn lacks(&mut self) -> Vec<Lack> {
        if self.lent.is_empty() && self.shortages.cleared.is_empty() {
            return Vec::new();
        }
        self.sort();
        let mut found = Found::default();
        self.requests_lack(&mut found);
        self.considered += found.looks as u64;
        self.guarantees_lack(&mut found);
        self.considered += found.looks as u64;
        found.lacks
    }

    /// Lend nothing on these agents, and again on those of before.
    pub(crate) fn clear(&mut self, agents: &BTreeSet<AgentId>) {
        let clear: BTreeSet<usize> = agents.iter().filter_map(|agent| self.agent_of.get(agent).copied()).collect();
        let before = std::mem::replace(&mut self.shortages.cleared, clear);
        for place in before {
            self.agents[place].cleared = false;
            self.dirty.insert(self.agents[place].id);
        }
        for place in &self.shortages.cleared {
            self.agents[*place].cleared = true;
        }
    }

    /// Requests of which a piece would be offered if revocable work made room: within a guarantee, or by priority.
    fn requests_lack(&mut self, found: &mut Found) {
        let mut asking = Vec::new();
        for place in self.framework_of.values() {
            let whose = &self.frameworks[*place];
            let due = |place: usize| self.roles[place].lacks_any() || self.roles[place].said.priority > 0;
            if !whose.facts.waits || !self.lineage(whose.role).any(due) {
                continue;
            }
            let wants = whose.facts.wants.iter().enumerate();
            let missing = wants.filter(|(at, want)| !want.revocable && self.offered(*place, *at) < want.count);
            asking.extend(missing.map(|(at, _)| (*place, at)));
        }
        self.shortages.next[0] = self.each_in_turn(0, &asking, found, |of, pair, at, found| {
            of.request_lacks(pair, at, found);
        });
        self.shortages.standing[0] = std::mem::take(&mut found.standing);
    }

    /// Guarantees of which frameworks that take anything would be offered more, those with the highest priority first.
    fn guarantees_lack(&mut self, found: &mut Found) {
        let mut declined = Bits::default();
        self.agents.iter().filter(|agent| agent.here).for_each(|agent| declined.put_all(&agent.filters.bits));
        let needy = self.role_of.values().copied().filter(|place| self.roles[*place].lacks_any());
        let mut needy: Vec<usize> = needy.collect();
        needy.sort_by(|one, other| self.cmp_needy(*one, *other));
        let mut asking = Vec::new();
        for role in needy {
            let mut below = vec![role];
            while let Some(place) = below.pop() {
                below.extend(&self.roles[place].children);
                // Who has declined something of late has nothing to do.
                let takes = |place: &usize| {
                    let facts = &self.frameworks[*place].facts;
                    facts.waits && facts.wants.is_empty() && !declined.has(*place)
                };
                asking.extend(self.roles[place].frameworks.iter().copied().filter(takes).map(|place| (role, place)));
            }
        }
        // What is free already is not taken back.
        let free = self.there.minus(&self.revocable);
        let mut missing = self.roles[ROOT].below.minus(&free).clamped();
        self.shortages.next[1] = self.each_in_turn(1, &asking, found, |of, pair, at, found| {
            of.guarantee_lacks(pair, at, &mut missing, found);
        });
        self.shortages.standing[1] = std::mem::take(&mut found.standing);
    }

    /// Ask for what stood before, then for one after the other, from where the last look ended, until enough was looked at.
    /// Where the next is to begin.
    fn each_in_turn(
        &self,
        list: usize,
        asking: &[(usize, usize)],
        found: &mut Found,
        mut ask: impl FnMut(&Self, (usize, usize), Option<usize>, &mut Found),
    ) -> usize {
        let start = self.shortages.next[list] % asking.len().max(1);
        found.looks = 0;
        let who: BTreeSet<(usize, usize)> = asking.iter().copied().collect();
        for (pair, agent) in self.shortages.standing[list].iter().filter(|(pair, _)| who.contains(pair)) {
            ask(self, *pair, Some(*agent), found);
        }
        for at in (start..asking.len()).chain(0..start) {
            if found.looks >= SHORTAGE_LOOKS_MAX || found.lacks.len() >= SHORTAGES_MAX {
                return at;
            }
            ask(self, asking[at], None, found);
        }
        0
    }

    fn request_lacks(&self, pair: (usize, usize), at: Option<usize>, found: &mut Found) {
        if found.standing.iter().any(|(known, _)| *known == pair) {
            return;
        }
        let (framework, want) = (pair.0, Some(pair.1));
        let line: Vec<usize> = self.lineage(self.frameworks[framework].role).collect();
        let needy = line.iter().copied().filter(|place| self.roles[*place].lacks_any());
        for needy in needy {
            let asks = Asks { framework, want, stage: Stage::Guarantee(needy), by_priority: false, at, pair };
            if self.nearest(asks, found) {
                return;
            }
        }
        if line.iter().any(|place| self.roles[*place].said.priority > 0) {
            let asks = Asks { framework, want, stage: Stage::Fair, by_priority: true, at, pair };
            self.nearest(asks, found);
        }
    }

    /// What would be offered of an agent if nothing were lent there.
    fn without_lent(&self, asks: Asks, agent: usize, found: &mut Found) -> Option<Part> {
        found.looks += 1;
        let place = &self.agents[agent];
        if !place.here || !place.facts.open {
            return None;
        }
        found.supposed.free = place.facts.free.clamped().plus(&place.facts.revocable);
        let mut cuts = Cuts { only: asks.want, supposed: Some(&found.supposed), ..Cuts::default() };
        self.consider(asks.framework, agent, asks.stage, &mut cuts).ok()
    }

    /// What would be offered of it as it is.
    fn as_it_is(&self, asks: Asks, agent: usize, found: &mut Found) -> Option<Part> {
        found.looks += 1;
        let mut cuts = Cuts { only: asks.want, ..Cuts::default() };
        let open = self.agents[agent].here && self.agents[agent].facts.open;
        open.then(|| self.consider(asks.framework, agent, asks.stage, &mut cuts).ok()).flatten()
    }

    /// Whether there is any sense in looking at agents.
    fn may_have_any(&self, asks: Asks) -> bool {
        let whose = &self.frameworks[asks.framework];
        let Some(room) = self.room_for(whose.role) else { return false };
        let nothing = Vector::default();
        let piece = asks.want.and_then(|want| whose.facts.wants.get(want)).map_or(&nothing, |want| &want.piece);
        self.guaranteed.iter().all(|kind| piece.get(*kind) <= room.get(*kind).max(0))
            && self.lineage(whose.role).all(|place| {
                let role = &self.roles[place];
                let mut limits = role.said.limit.iter();
                !role.shut() && limits.all(|(kind, limit)| piece.get(*kind) <= (limit - role.all[REGULAR].sum.get(*kind)).max(0))
            })
    }

    /// The agents of which something is to be taken back, or was.
    fn agents_of(&self, asks: Asks) -> Vec<usize> {
        let all = self.lent.union(&self.shortages.cleared).copied();
        asks.at.map_or_else(|| all.collect(), |at| vec![at])
    }

    /// Find the agent where a piece is nearest to fitting. Whether it would be offered somewhere.
    fn nearest(&self, asks: Asks, found: &mut Found) -> bool {
        if !self.may_have_any(asks) {
            return false;
        }
        let whose = &self.frameworks[asks.framework];
        let Some(want) = asks.want.and_then(|want| whose.facts.wants.get(want)) else { return false };
        let mut best: Option<(i64, AgentId, usize, Vector)> = None;
        for agent in self.agents_of(asks) {
            if found.agents.contains(&agent) {
                continue;
            }
            let Some(part) = self.without_lent(asks, agent, found) else { continue };
            let place = &self.agents[agent];
            let free = place.facts.free.clamped();
            let distance = distance(&want.piece, &free, &place.facts.total);
            if best.as_ref().is_none_or(|(least, id, ..)| (distance, place.id) < (*least, *id)) {
                best = Some((distance, place.id, agent, part.amounts.minus(&free).clamped()));
            }
        }
        let Some((_, _, agent, mut amounts)) = best else { return false };
        // Where it fits as things are, nothing has to be ended; but it has to be kept where that was done for it.
        // Of what was looked at twice, a round would have offered it since, if it could.
        let near = asks.at.is_some() && (whose.facts.open || found.looks >= SHORTAGE_LOOKS_MAX);
        let all = if near { vec![agent] } else { self.agent_of.values().copied().collect() };
        let fits = all.into_iter().filter(|agent| !found.agents.contains(agent)).collect::<Vec<_>>();
        let fits = fits.into_iter().find(|agent| self.as_it_is(asks, *agent, found).is_some());
        let mut place = agent;
        if let Some(at) = fits {
            if !self.agents[at].cleared {
                return true;
            }
            (place, amounts) = (at, Vector::default());
        }
        found.promise(self, asks, whose.role, place, amounts);
        true
    }

    fn guarantee_lacks(&self, pair: (usize, usize), at: Option<usize>, missing: &mut Vector, found: &mut Found) {
        let (needy, framework) = pair;
        let asks = Asks { framework, want: None, stage: Stage::Guarantee(needy), by_priority: false, at, pair };
        if !self.may_have_any(asks) {
            return;
        }
        for agent in self.agents_of(asks) {
            if found.looks >= SHORTAGE_LOOKS_MAX || found.lacks.len() >= SHORTAGES_MAX {
                return;
            }
            if found.agents.contains(&agent) {
                continue;
            }
            let Some(part) = self.without_lent(asks, agent, found) else { continue };
            let free = self.agents[agent].facts.free.clamped();
            let mut amounts = self.kinds.counted(&part.amounts.minus(&free).clamped());
            amounts.at_most(missing);
            if worth(&amounts) {
                missing.take(&amounts);
                found.promise(self, asks, needy, agent, amounts);
            } else if self.agents[agent].cleared && self.as_it_is(asks, agent, found).is_some() {
                found.promise(self, asks, needy, agent, Vector::default());
            }
        }
    }
}

impl Found {
    /// So much is to be ended on an agent for a role.
    fn promise(&mut self, of: &Allocator, asks: Asks, role: usize, agent: usize, amounts: Vector) {
        let by_priority = asks.by_priority;
        self.agents.insert(agent);
        self.standing.push((asks.pair, agent));
        self.supposed.promises.push(Promise { role, amounts: of.kinds.counted(&amounts), beyond: by_priority });
        let name = of.roles[role].name.clone();
        self.lacks.push(Lack { role: name, agent: of.agents[agent].id, amounts, by_priority });
    }
}
