//! Agents held for requests that fit nowhere else, and revocable work that stands in the way.
//!
//! Invariants: an agent is held for one request at most, and only within a guarantee of a role that says so; what
//! becomes free there goes to nobody else for good, until the request fits; holds and searches are bounded. Must never
//! end a task: it only says where it would help.

use super::consider::worth;
use super::tree::ROOT;
use super::vector::Vector;
use super::{Allocator, Want};
use crate::limits::{HELD_OF_REQUEST_MAX, HELD_PART, HOLD_EVERY_MS, HOLD_SEARCHES_MAX, SHORTAGES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::AgentId;

/// What is remembered of holding.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    looked_ms: Option<u64>,
    /// With which framework the next search begins.
    next: usize,
    count: usize,
}

/// Revocable work to be ended, so that somebody has what is due to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    /// For whom.
    pub(crate) role: String,
    pub(crate) agent: AgentId,
    /// What is missing there.
    pub(crate) amounts: Vector,
    /// Only of roles with a lower priority than this one's.
    pub(crate) by_priority: bool,
}

/// In millionths of an agent, how far a piece is from fitting.
fn distance(piece: &Vector, free: &Vector, total: &Vector) -> i64 {
    let of = piece.iter().map(|(kind, amount)| {
        let missing = (amount - free.get(kind).max(0)).max(0);
        missing.saturating_mul(1_000_000) / total.get(kind).max(1)
    });
    of.max().unwrap_or(0)
}

impl Allocator {
    /// Hold agents for what fits nowhere, and let go of those that need not be held.
    pub(super) fn hold_agents(&mut self, now_ms: u64) {
        if self.holds.looked_ms.is_some_and(|before| now_ms < before + HOLD_EVERY_MS) {
            return;
        }
        self.holds.looked_ms = Some(now_ms);
        if self.holds.count == 0 && !self.roles.iter().any(|role| role.said.hold_back) {
            return;
        }
        self.let_go_of_needless();
        let frameworks = self.frameworks.len().max(1);
        let start = self.holds.next % frameworks;
        let mut searches = 0;
        for at in (start..frameworks).chain(0..start) {
            if searches >= HOLD_SEARCHES_MAX {
                self.holds.next = at;
                return;
            }
            if !self.frameworks.get(at).is_some_and(|framework| framework.here && framework.facts.waits) {
                continue;
            }
            for want in 0..self.frameworks[at].facts.wants.len() {
                searches += usize::from(self.hold_for(at, want));
            }
        }
    }

    /// For how many pieces of a request agents may be held.
    fn may_be_held(&self, framework: usize, want: &Want, offered: u32) -> usize {
        if want.revocable {
            return 0;
        }
        let role = self.frameworks[framework].role;
        let within = self.lineage(role).filter(|place| self.roles[*place].said.hold_back).map(|place| {
            let role = &self.roles[place];
            let pieces = role.said.guarantee.iter().filter(|(kind, _)| want.piece.get(*kind) > 0);
            pieces.map(|(kind, _)| role.lacks(*kind) / want.piece.get(*kind)).min().unwrap_or(0)
        });
        let missing = want.count.saturating_sub(offered);
        let most = within.max().unwrap_or(0).clamp(0, HELD_OF_REQUEST_MAX as i64);
        usize::try_from(most.min(i64::from(missing))).unwrap_or(0)
    }

    fn offered(&self, framework: usize, want: usize) -> u32 {
        self.frameworks[framework].facts.offered.get(want).copied().unwrap_or(0)
    }

    fn held_for(&self, framework: usize, want: usize) -> usize {
        self.agents.iter().filter(|agent| agent.here && agent.held == Some((framework, want))).count()
    }

    fn let_go_of_needless(&mut self) {
        let mut kept: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for place in 0..self.agents.len() {
            let Some((framework, want)) = self.agents[place].held.filter(|_| self.agents[place].here) else { continue };
            let whose = &self.frameworks[framework];
            let wants = whose.facts.wants.get(want).filter(|_| whose.here && whose.facts.waits);
            let most = wants.map_or(0, |wants| self.may_be_held(framework, wants, self.offered(framework, want)));
            let count = kept.entry((framework, want)).or_default();
            if *count < most && self.would_fit(framework, want, place) {
                *count += 1;
            } else {
                self.drop_hold(place);
            }
        }
    }

    /// Whether a piece would fit on an agent if nothing else ran there.
    pub(super) fn would_fit(&self, framework: usize, want: usize, agent: usize) -> bool {
        let (whose, place) = (&self.frameworks[framework], &self.agents[agent]);
        let Some(wants) = whose.facts.wants.get(want) else { return false };
        let fits = whose.fits.get(want).and_then(Option::as_ref);
        place.here
            && place.facts.open
            && fits.is_none_or(|fits| fits.has(agent))
            && place.facts.total.contains(&wants.piece)
            && !self.refused(agent, framework).is_some_and(|refused| refused.contains(&wants.piece))
    }

    /// Hold agents for a request, if it needs it. Whether all agents were looked at.
    fn hold_for(&mut self, framework: usize, want: usize) -> bool {
        let Some(wants) = self.frameworks[framework].facts.wants.get(want) else { return false };
        let most = self.may_be_held(framework, wants, self.offered(framework, want));
        if most == 0 {
            return false;
        }
        let piece = wants.piece.clone();
        let mut held = self.held_for(framework, want);
        let room = (self.agent_of.len() / HELD_PART).max(1);
        let mut near = Vec::new();
        for (at, agent) in self.agents.iter().enumerate() {
            if agent.held.is_some() || !self.would_fit(framework, want, at) {
                continue;
            }
            if agent.facts.free.contains(&piece) {
                // It fits: nothing has to be held.
                return true;
            }
            near.push((distance(&piece, &agent.facts.free, &agent.facts.total), agent.id, at));
        }
        near.sort_unstable();
        for (_, _, at) in near {
            if held >= most || self.holds.count >= room {
                break;
            }
            self.agents[at].held = Some((framework, want));
            self.holds.count += 1;
            held += 1;
        }
        true
    }

    pub(super) fn drop_holds_for(&mut self, framework: usize) {
        for place in 0..self.agents.len() {
            if self.agents[place].held.is_some_and(|(holder, _)| holder == framework) {
                self.drop_hold(place);
            }
        }
    }

    pub(super) fn drop_hold(&mut self, agent: usize) {
        if self.agents[agent].held.take().is_some() {
            self.holds.count = self.holds.count.saturating_sub(1);
            self.dirty.insert(self.agents[agent].id);
        }
    }

    /// It was offered what it was held for.
    pub(super) fn drop_hold_of(&mut self, agent: usize, framework: usize) {
        if self.agents[agent].held.is_some_and(|(holder, _)| holder == framework) {
            self.drop_hold(agent);
        }
    }

    /// Where revocable work stands in the way of what is due to somebody who waits.
    pub(crate) fn lacks(&self) -> Vec<Lack> {
        if self.revocable.is_zero() {
            return Vec::new();
        }
        let mut lacks = Vec::new();
        self.requests_lack(&mut lacks);
        self.guarantees_lack(&mut lacks);
        lacks
    }

    /// Lend nothing on these agents, and again on those of before.
    pub(crate) fn clear(&mut self, agents: &BTreeSet<AgentId>) {
        for agent in &mut self.agents {
            let clear = agent.here && agents.contains(&agent.id);
            if agent.cleared && !clear {
                self.dirty.insert(agent.id);
            }
            agent.cleared = clear;
        }
    }

    /// Whether a framework would take something: it says what it waits for, or it has declined nothing of late.
    fn misses_something(&self, place: usize) -> bool {
        let facts = &self.frameworks[place].facts;
        let mut wants = facts.wants.iter().enumerate();
        facts.waits
            && if facts.wants.is_empty() {
                !self.agents.iter().any(|agent| agent.here && agent.filters.bits.has(place))
            } else {
                wants.any(|(at, want)| !want.revocable && self.offered(place, at) < want.count)
            }
    }

    fn waits_below(&self, role: usize) -> bool {
        let role = &self.roles[role];
        role.frameworks.iter().any(|at| self.misses_something(*at))
            || role.children.iter().any(|child| self.waits_below(*child))
    }

    /// Guarantees that more is needed for than is free.
    fn guarantees_lack(&self, lacks: &mut Vec<Lack>) {
        let free = self.there.minus(&self.revocable);
        let mut missing = self.roles[ROOT].below.minus(&free).clamped();
        let needy = self.role_of.values().filter(|place| self.roles[**place].lacks_any() && self.waits_below(**place));
        let mut needy: Vec<usize> = needy.copied().collect();
        needy.sort_by(|one, other| self.cmp_needy(*one, *other));
        for place in needy {
            let mut lacking = Vector::default();
            for (kind, _) in &self.roles[place].said.guarantee {
                lacking.set(*kind, self.roles[place].lacks(*kind).min(missing.get(*kind)));
            }
            for agent in self.agent_of.values().map(|at| &self.agents[*at]).filter(|agent| agent.facts.open) {
                let mut here = self.kinds.counted(&agent.facts.revocable);
                here.at_most(&lacking);
                if !worth(&here.clamped()) || lacks.iter().any(|lack| lack.agent == agent.id) {
                    continue;
                }
                if lacks.len() >= SHORTAGES_MAX {
                    return;
                }
                let here = here.clamped();
                lacking.take(&here);
                missing.take(&here);
                let role = self.roles[place].name.clone();
                lacks.push(Lack { role, agent: agent.id, amounts: here, by_priority: false });
            }
        }
    }

    /// Requests of which a piece would fit if revocable work made room: within a guarantee, or by priority.
    fn requests_lack(&self, lacks: &mut Vec<Lack>) {
        for place in self.framework_of.values() {
            let whose = &self.frameworks[*place];
            for (at, want) in whose.facts.wants.iter().enumerate().filter(|(_, want)| !want.revocable) {
                if !whose.facts.waits || self.offered(*place, at) >= want.count || lacks.len() >= SHORTAGES_MAX {
                    continue;
                }
                let within = self.lineage(whose.role).any(|role| {
                    let role = &self.roles[role];
                    let mut of = role.said.guarantee.iter().filter(|(kind, _)| want.piece.get(*kind) > 0).peekable();
                    of.peek().is_some() && of.all(|(kind, _)| role.lacks(*kind) >= want.piece.get(*kind))
                });
                let priority = self.lineage(whose.role).any(|role| self.roles[role].said.priority > 0);
                if within || priority {
                    let role = self.roles[whose.role].name.clone();
                    let found = self.nearest(*place, at, want, lacks);
                    let lack = found.map(|(agent, amounts)| Lack { role, agent, amounts, by_priority: !within });
                    lacks.extend(lack);
                }
            }
        }
    }

    /// The agent where a piece is nearest to fitting, and what is missing there; none if it fits somewhere, or if
    /// revocable work is not what is in the way.
    fn nearest(&self, framework: usize, at: usize, want: &Want, lacks: &[Lack]) -> Option<(AgentId, Vector)> {
        let mut best: Option<(i64, AgentId, Vector)> = None;
        for (place, agent) in self.agents.iter().enumerate() {
            if agent.held.is_some_and(|(holder, _)| holder != framework) || !self.would_fit(framework, at, place) {
                continue;
            }
            let free = agent.facts.free.clamped();
            if free.contains(&want.piece) {
                return None;
            }
            let could = free.plus(&agent.facts.revocable);
            if !could.contains(&want.piece) || lacks.iter().any(|lack| lack.agent == agent.id) {
                continue;
            }
            let distance = distance(&want.piece, &free, &agent.facts.total);
            if best.as_ref().is_none_or(|(least, id, _)| (distance, agent.id) < (*least, *id)) {
                best = Some((distance, agent.id, want.piece.minus(&free).clamped()));
            }
        }
        best.map(|(_, agent, amounts)| (agent, amounts))
    }
}
