//! What the allocator would decide about a framework or a request at each agent, counted: the ground of every
//! explanation.
//!
//! Invariant: it asks the same function that rounds ask. Must never decide anything.

use super::consider::{Cuts, Pass, Stage, leaves_some};
use super::tree::ROOT;
use super::vector::Vector;
use super::share::Share;
use super::{Allocator, Framework, REGULAR};
use std::collections::BTreeMap;
use tessera_types::{FrameworkId, ResourceKey, Resources};

/// How it stands with a framework, or with one of its requests, at all agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Agents that may be offered.
    pub(crate) agents: u32,
    /// Those of which something would be offered now.
    pub(crate) takes: u32,
    pub(crate) nothing_free: u32,
    pub(crate) held_for_others: u32,
    pub(crate) refused: u32,
    pub(crate) constraints: u32,
    pub(crate) too_small: u32,
    /// All pieces are being offered already.
    pub(crate) enough: u32,
    /// By role: its quota limit leaves too little.
    pub(crate) limits: BTreeMap<String, u32>,
    pub(crate) headroom: u32,
    /// Agents that are held for it.
    pub(crate) held: u32,
    /// Agents that are large enough, and fulfil the constraints, if nothing else ran there; of a request only.
    pub(crate) would_fit: u32,
    /// What is free of all agents that fulfil the constraints, together.
    pub(crate) free: Resources,
    /// It may have revocable resources only.
    pub(crate) revocable: bool,
}

impl Allocator {
    /// How it stands with a framework, or with the request at this place of its list.
    pub(crate) fn verdict(&self, id: FrameworkId, want: Option<usize>) -> Option<Verdict> {
        let framework = *self.framework_of.get(&id)?;
        let wants = &self.frameworks[framework].facts.wants;
        let revocable = match want {
            Some(at) => wants.get(at)?.revocable,
            None => !wants.is_empty() && wants.iter().all(|want| want.revocable),
        };
        let mut verdict = Verdict { revocable, ..Verdict::default() };
        let mut free = Vector::default();
        for place in self.agent_of.values().copied().filter(|place| self.agents[*place].facts.open) {
            let agent = &self.agents[place];
            verdict.agents += 1;
            let held = agent.held.is_some_and(|(holder, of)| holder == framework && want.is_none_or(|at| at == of));
            verdict.held += u32::from(held);
            verdict.would_fit += u32::from(want.is_some_and(|at| self.would_fit(framework, at, place)));
            let pass = match self.ask(framework, place, want, revocable) {
                Ok(()) => {
                    verdict.takes += 1;
                    free.add(&agent.facts.free.clamped());
                    continue;
                }
                Err(pass) => pass,
            };
            if pass != Pass::Constraints {
                free.add(&agent.facts.free.clamped());
            }
            match pass {
                Pass::NothingFree => verdict.nothing_free += 1,
                Pass::Held => verdict.held_for_others += 1,
                Pass::Refused => verdict.refused += 1,
                Pass::Constraints => verdict.constraints += 1,
                Pass::TooSmall => verdict.too_small += 1,
                Pass::Enough => verdict.enough += 1,
                Pass::Limit(role) => *verdict.limits.entry(self.roles[role].name.clone()).or_default() += 1,
                Pass::Headroom => verdict.headroom += 1,
            }
        }
        verdict.free = self.kinds.resources(&free);
        Some(verdict)
    }

    /// Whether something would be offered: for a guarantee above it, or by shares, or to be taken back.
    fn ask(&self, framework: usize, agent: usize, want: Option<usize>, revocable: bool) -> Result<(), Pass> {
        let ask = |stage: Stage| {
            let mut cuts = Cuts { only: want, ..Cuts::default() };
            self.consider(framework, agent, stage, &mut cuts).map(|_| ())
        };
        if revocable {
            return ask(Stage::Revocable);
        }
        let role = self.frameworks[framework].role;
        let needy = self.lineage(role).filter(|place| self.roles[*place].lacks_any());
        for place in needy {
            if ask(Stage::Guarantee(place)).is_ok() {
                return Ok(());
            }
        }
        ask(Stage::Fair)
    }

    /// Names among resources of which no agent has anything; and whether there are too many kinds for one to have a number.
    pub(crate) fn nobody_has<'a>(&self, resources: &'a Resources) -> Vec<(&'a str, bool)> {
        let has = |key: &ResourceKey| self.kinds.known(key).is_some_and(|kind| self.total.get(kind) > 0);
        let none = resources.items.keys().filter(|key| !has(key));
        none.map(|key| (key.name.as_str(), self.kinds.full() && self.kinds.known(key).is_none())).collect()
    }

    /// Whether somebody who is not in a role, or below it, would take something.
    pub(crate) fn others_wait(&self, role: &str) -> bool {
        let place = self.role_of.get(role).copied();
        let within = |whose: &Framework| place.is_some_and(|place| self.within(whose.role, place));
        self.framework_of.values().map(|place| &self.frameworks[*place]).any(|whose| whose.facts.waits && !within(whose))
    }

    /// The share of a role, or of all that a framework has, in millionths, and of which kind it is.
    pub(crate) fn share_of(&self, role: &str) -> Option<(u64, &str)> {
        let place = *self.role_of.get(role).filter(|place| **place != ROOT)?;
        let (share, kind) = Share::dominant(&self.roles[place].all[REGULAR].sum, &self.total);
        Some((share.ppm(), self.kinds.name(kind)))
    }

    /// What guarantees of roles need that is not there, in all.
    pub(crate) fn needed(&self) -> Resources {
        self.kinds.resources(&self.roles[ROOT].below)
    }

    /// What a role's guarantee lacks.
    pub(crate) fn lacking(&self, role: &str) -> Option<Resources> {
        let role = &self.roles[*self.role_of.get(role)?];
        let mut lacking = Vector::default();
        for (kind, _) in &role.said.guarantee {
            lacking.set(*kind, role.lacks(*kind));
        }
        lacking.any().then(|| self.kinds.resources(&lacking))
    }

    /// Of what a quota limit leaves less than the smallest offer, or nothing: the kind, the limit, and what is used.
    pub(crate) fn at_limit(&self, role: &str) -> Option<(&str, i64, i64)> {
        let role = &self.roles[*self.role_of.get(role)?];
        let used = &role.all[REGULAR].sum;
        let full = role.said.limit.iter().find(|(kind, limit)| !leaves_some(*kind, limit - used.get(*kind)));
        full.map(|(kind, limit)| (self.kinds.name(*kind), *limit, used.get(*kind)))
    }
}
