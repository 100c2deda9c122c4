//! One round: who is offered what, of the agents that something has changed for.
//!
//! Invariants: the outcome is that of looking at all agents for everybody, in the order of their numbers from `first`
//! on; agents that were looked at and have not changed since are not looked at again, but for those who had
//! not seen them.

use super::bits::Bits;
use super::consider::{Cuts, Part, Pass, Stage, worth};
use super::tree::{OWN, ROOT};
use super::vector::{CPUS, MEM};
use super::{Allocator, Grant, LEVELS, REGULAR, REVOCABLE};
use crate::limits::{OFFER_MIN_CPUS_MILLI, OFFER_MIN_MEM_MIB};
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::AgentId;

/// How an agent is looked at.
struct Look<'a> {
    agent: usize,
    stage: Stage,
    /// Only for these; none is everybody.
    only: Option<&'a Bits>,
    /// All who have a filter refuse all that is free.
    refusers: bool,
}

/// What is to be remembered of those who were passed over.
#[derive(Debug, Default)]
struct Notes {
    /// Whose quota limit, or guarantee, left too little.
    roles: BTreeSet<usize>,
    squeezed: bool,
}

/// What has been decided in a round.
#[derive(Debug, Default)]
struct Decided {
    grants: Vec<Grant>,
    /// Where in the list those of an agent are that may be made larger.
    of: BTreeMap<(usize, usize, usize), usize>,
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
        // Those who may have what guarantees keep are considered for everything, others for what is to spare.
        let some_may = !self.open[REVOCABLE].is_empty() || !self.needy.is_empty();
        let squeezed = !self.squeezed.is_empty()
            && (some_may && (self.eased || self.eased_for_some) || self.eased && self.spare());
        if squeezed {
            self.eased = false;
            self.eased_for_some &= !some_may;
        }
        let behind = std::mem::take(&mut self.behind);
        if self.dirty.is_empty() && behind.is_empty() && !squeezed {
            return Vec::new();
        }
        let dirty = std::mem::take(&mut self.dirty);
        let mut look: BTreeSet<AgentId> = dirty.clone();
        if squeezed {
            look.extend(&self.squeezed);
        }
        let mut only = Bits::default();
        let mut since = u64::MAX;
        for framework in &behind {
            let Some(seen) = self.frameworks[*framework].seen.take() else { continue };
            let shut = self.lineage(self.frameworks[*framework].role).find(|place| self.roles[*place].shut());
            if let Some(role) = shut {
                // Nobody there may have anything for good now: it looks again when somebody may.
                self.miss(role, seen + 1);
            }
            if shut.is_none() || self.frameworks[*framework].lanes[REVOCABLE].is_some() {
                only.put(*framework, true);
                since = since.min(seen);
            }
        }
        self.floor = since.saturating_add(1);
        if since < u64::MAX {
            look.extend(self.looked.range(since.saturating_add(1)..).map(|(_, agent)| *agent));
        }
        let order: Vec<AgentId> = look.range(first..).chain(look.range(..first)).copied().collect();
        self.looks += order.len() as u64;
        let mut decided = Decided::default();
        let everybody = |of: &Self, agent: AgentId| {
            dirty.contains(&agent) || squeezed && of.squeezed.contains(&agent) && (some_may || of.spare())
        };
        if !self.needy.is_empty() {
            for agent in &order {
                let only = if everybody(self, *agent) { None } else { Some(&only) };
                self.meet_guarantees(*agent, only, &mut decided);
            }
        }
        for agent in &order {
            let all = everybody(self, *agent);
            self.eased_for_some |= !all && squeezed && self.squeezed.contains(agent);
            if !all && behind.is_empty() {
                continue;
            }
            self.share_out(*agent, if all { None } else { Some(&only) }, &mut decided);
        }
        self.floor = u64::MAX;
        decided.grants
    }

    /// Whether there is CPU and memory beyond what guarantees need.
    fn spare(&self) -> bool {
        let needed = &self.roles[ROOT].below;
        [(CPUS, OFFER_MIN_CPUS_MILLI), (MEM, OFFER_MIN_MEM_MIB)]
            .into_iter()
            .all(|(kind, least)| !self.guaranteed.contains(&kind) || self.there.get(kind) - needed.get(kind) >= least)
    }

    /// First those whose guarantee lacks something, the highest priority first.
    fn meet_guarantees(&mut self, agent: AgentId, only: Option<&Bits>, decided: &mut Decided) {
        let Some(place) = self.agent_of.get(&agent).copied() else { return };
        while self.agents[place].facts.open && worth(&self.agents[place].facts.free) {
            let mut notes = Notes::default();
            let could = |needy: &&usize| self.could_meet(**needy, &self.agents[place].facts.free);
            let found = self.needy.iter().filter(could).find_map(|needy| {
                let look = self.look(place, Stage::Guarantee(*needy), only)?;
                self.pick(*needy, &look, &mut notes)
            });
            self.note(place, only, notes);
            let Some((framework, part)) = found else { return };
            self.grant(framework, place, REGULAR, part, decided);
        }
    }

    /// Then everybody, by shares; then what guarantees keep, to be taken back.
    fn share_out(&mut self, agent: AgentId, only: Option<&Bits>, decided: &mut Decided) {
        let Some(place) = self.agent_of.get(&agent).copied() else { return };
        if only.is_none() {
            self.squeezed.remove(&agent);
        }
        for stage in [Stage::Fair, Stage::Revocable] {
            while self.agents[place].facts.open && worth(&self.agents[place].facts.free) {
                let Some(look) = self.look(place, stage, only) else { break };
                let mut notes = Notes::default();
                let found = self.pick(ROOT, &look, &mut notes);
                self.note(place, only, notes);
                let Some((framework, part)) = found else { break };
                self.grant(framework, place, stage.class(), part, decided);
            }
        }
        let agent = &self.agents[place];
        if !agent.facts.open || !worth(&agent.facts.free) {
            self.unqueue(place);
        } else if only.is_none() || agent.looked.is_none() {
            self.enqueue(place);
        }
    }

    /// Remember who has to be considered again, and when.
    fn note(&mut self, agent: usize, only: Option<&Bits>, notes: Notes) {
        let place = &self.agents[agent];
        // Under which place in the queue it will be found.
        let next = self.last_looked + 1;
        let at = if only.is_none() { next } else { place.looked.unwrap_or(next) };
        if notes.squeezed {
            self.squeezed.insert(place.id);
        }
        for role in notes.roles {
            self.miss(role, at);
        }
    }

    /// How to look at an agent, if anybody may want anything of it.
    fn look<'a>(&self, agent: usize, stage: Stage, only: Option<&'a Bits>) -> Option<Look<'a>> {
        let of = &self.agents[agent];
        let refusers = of.filters.all_refuse(&of.facts.free.clamped());
        let open = &self.open[stage.class()];
        let none = Bits::default();
        let without = if refusers { &of.filters.bits } else { &none };
        open.any_but(only, without).then_some(Look { agent, stage, only, refusers })
    }

    /// The first framework below a role that takes something.
    fn pick(&self, within: usize, look: &Look<'_>, notes: &mut Notes) -> Option<(usize, Part)> {
        let class = look.stage.class();
        (0..LEVELS).find_map(|level| self.descend(within, class * LEVELS + level, look, notes))
    }

    fn descend(&self, role: usize, lane: usize, look: &Look<'_>, notes: &mut Notes) -> Option<(usize, Part)> {
        self.roles[role].orders[lane].iter().find_map(|child| {
            if *child != OWN {
                return self.descend(*child, lane, look, notes);
            }
            self.roles[role].members[lane].iter().find_map(|framework| {
                if look.only.is_some_and(|only| !only.has(*framework))
                    || look.refusers && self.agents[look.agent].filters.bits.has(*framework)
                {
                    return None;
                }
                let mut cuts = Cuts::default();
                match self.consider(*framework, look.agent, look.stage, &mut cuts) {
                    Ok(part) => Some((*framework, part)),
                    Err(pass) => {
                        notes.roles.extend(cuts.limit);
                        if cuts.headroom || pass == Pass::Headroom {
                            notes.squeezed = true;
                            let line = self.lineage(role);
                            notes.roles.extend(line.filter(|place| !self.roles[*place].said.guarantee.is_empty()));
                        }
                        None
                    }
                }
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
        self.drop_hold_of(agent, framework);
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
