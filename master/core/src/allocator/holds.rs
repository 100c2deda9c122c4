//! Agents held for requests that fit nowhere else.
//!
//! Invariants: an agent is held for one request at most, and only within a guarantee of a role that says so; what
//! becomes free there goes to nobody else for good, until the request fits; holds and searches are bounded. Must never
//! decide what is offered.

use super::vector::Vector;
use super::{Allocator, Want};
use crate::limits::{HELD_OF_REQUEST_MAX, HELD_PART, HOLD_EVERY_MS, HOLD_SEARCHES_MAX};
use std::collections::BTreeMap;

/// What is remembered of holding.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    looked_ms: Option<u64>,
    /// With which framework the next search begins.
    next: usize,
    count: usize,
}

/// In millionths of an agent, how far a piece is from fitting.
pub(super) fn distance(piece: &Vector, free: &Vector, total: &Vector) -> i64 {
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

    pub(super) fn offered(&self, framework: usize, want: usize) -> u32 {
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
            // What is free there may be lent, whatever guarantees keep.
            self.dirty.insert(self.agents[at].id);
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
}
