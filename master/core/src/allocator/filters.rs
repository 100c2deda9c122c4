//! What frameworks do not want of an agent for now.
//!
//! Invariants: at most one filter per agent and framework; a bit says that there may be one, so that an agent
//! which nobody wants is passed over without looking at each; what ended is removed when its time has come.

use super::bits::Bits;
use super::vector::Vector;
use super::Allocator;
use std::sync::Arc;
use tessera_types::{AgentId, FrameworkId};

#[derive(Clone, Debug)]
struct Filter {
    framework: usize,
    /// Its number; those before the framework's own `filters_from` are void.
    number: u64,
    until_ms: u64,
    refused: Arc<Vector>,
}

/// Those of one agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    /// By framework.
    list: Vec<Filter>,
    pub(super) bits: Bits,
    /// What each of them refuses at least.
    all_refuse: Option<Vector>,
    first_end_ms: Option<u64>,
}

impl Filters {
    /// Whether all who have a filter refuse so much.
    pub(super) fn all_refuse(&self, amounts: &Vector) -> bool {
        self.all_refuse.as_ref().is_none_or(|least| least.contains(amounts))
    }

    fn settle(&mut self) {
        self.bits.clear();
        self.all_refuse = None;
        self.first_end_ms = None;
        for filter in &self.list {
            self.bits.put(filter.framework, true);
            self.first_end_ms = Some(self.first_end_ms.map_or(filter.until_ms, |end| end.min(filter.until_ms)));
            match &mut self.all_refuse {
                Some(least) => least.at_most(&filter.refused),
                least => *least = Some((*filter.refused).clone()),
            }
        }
    }
}

impl Allocator {
    /// A framework does not want so much of an agent, or less, until then.
    pub(crate) fn refuse(&mut self, agent: AgentId, by: FrameworkId, amounts: &Vector, until_ms: u64) {
        let (Some(place), Some(framework)) = (self.agent_of.get(&agent), self.framework_of.get(&by)) else { return };
        let (place, framework) = (*place, *framework);
        self.filters_made += 1;
        let filters = &mut self.agents[place].filters;
        let at = filters.list.binary_search_by_key(&framework, |filter| filter.framework);
        // What most refuse is the same.
        let near = filters.list.get(at.unwrap_or_else(|at| at).saturating_sub(1));
        let same = near.filter(|near| *near.refused == *amounts).map(|near| Arc::clone(&near.refused));
        let refused = same.unwrap_or_else(|| Arc::new(amounts.clone()));
        let filter = Filter { framework, number: self.filters_made, until_ms, refused };
        match at {
            // A later answer says more than an earlier one, and may say less: then somebody may want it again.
            Ok(at) => {
                let before = std::mem::replace(&mut filters.list[at], filter);
                if !amounts.contains(&before.refused) {
                    self.dirty.insert(agent);
                }
            }
            Err(at) => filters.list.insert(at, filter),
        }
        filters.bits.put(framework, true);
        match &mut filters.all_refuse {
            Some(least) => least.at_most(amounts),
            least => *least = Some(amounts.clone()),
        }
        if filters.first_end_ms.is_none_or(|end| until_ms < end) {
            if let Some(end) = filters.first_end_ms.replace(until_ms) {
                self.ends.remove(&(end, agent));
            }
            self.ends.insert((until_ms, agent));
        }
    }

    /// What a framework refuses of an agent, if anything.
    pub(super) fn refused(&self, agent: usize, framework: usize) -> Option<&Vector> {
        let filters = &self.agents[agent].filters;
        if !filters.bits.has(framework) {
            return None;
        }
        let at = filters.list.binary_search_by_key(&framework, |filter| filter.framework).ok()?;
        let filter = filters.list.get(at)?;
        (filter.number >= self.frameworks[framework].filters_from).then_some(&filter.refused)
    }

    /// Remove filters that have ended. Whether there were any.
    pub(crate) fn end_filters(&mut self, now_ms: u64) -> bool {
        let mut any = false;
        while let Some((end, agent)) = self.ends.first().copied().filter(|(end, _)| *end <= now_ms) {
            any = true;
            self.ends.remove(&(end, agent));
            let Some(place) = self.agent_of.get(&agent).copied() else { continue };
            let frameworks = &self.frameworks;
            let filters = &mut self.agents[place].filters;
            filters.list.retain(|filter| {
                filter.until_ms > now_ms && filter.number >= frameworks[filter.framework].filters_from
            });
            filters.settle();
            if let Some(end) = filters.first_end_ms {
                self.ends.insert((end, agent));
            }
            self.dirty.insert(agent);
        }
        any
    }

    /// How many there are, those included that are void and have not ended.
    pub(crate) fn filters_len(&self) -> usize {
        self.agents.iter().map(|agent| agent.filters.list.len()).sum()
    }

    /// When the first filter ends.
    pub(crate) fn first_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// A framework wants everything again.
    pub(crate) fn unrefuse(&mut self, by: FrameworkId) {
        if let Some(framework) = self.framework_of.get(&by).copied() {
            self.drop_filters_by(framework);
            self.frameworks[framework].seen = Some(0);
            if self.frameworks[framework].facts.open {
                self.behind.insert(framework);
            }
        }
    }

    pub(super) fn drop_filters_by(&mut self, framework: usize) {
        // What it refused is forgotten by its number, and removed when its time has come.
        self.filters_made += 1;
        self.frameworks[framework].filters_from = self.filters_made;
        for agent in self.agents.iter_mut().filter(|agent| agent.here) {
            agent.filters.bits.put(framework, false);
        }
    }

    /// What was refused of an agent is not what it is now.
    pub(crate) fn unrefuse_agent(&mut self, agent: AgentId) {
        if let Some(place) = self.agent_of.get(&agent).copied() {
            self.drop_filters_of(agent, place);
            self.dirty.insert(agent);
        }
    }

    pub(super) fn drop_filters_of(&mut self, agent: AgentId, place: usize) {
        let filters = std::mem::take(&mut self.agents[place].filters);
        if let Some(end) = filters.first_end_ms {
            self.ends.remove(&(end, agent));
        }
    }
}
