//! Standbys: for each scheduler a second agent that has its code compiled, in case that the first is lost.
//!
//! Level-triggered: all are looked at once a second, from the rows and from who answers. Invariants: the choice
//! depends on nothing that a leader remembers, so that the next one makes the same; an agent that comes or goes
//! changes only what it stands by for; what became of compiling is a fact to be shown, and fails nothing. Must
//! never place a scheduler.

use super::Desk;
use crate::api::{AheadState, StandbyView};
use crate::limits::{AHEAD_ERROR_CHARS_MAX, AHEAD_MAX, SCHEDULER_MEM_MIB, STANDBY_EVERY_MS};
use crate::state::Framework;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, Digest, FrameworkId};
use tessera_wire::{WireError, v1};

/// Who stands by for whom.
#[derive(Debug, Default)]
pub(crate) struct Standbys {
    looked_ms: Option<u64>,
    /// Agents that may stand by for a scheduler of another one.
    able: BTreeSet<AgentId>,
    of: BTreeMap<FrameworkId, Standby>,
    by: BTreeMap<AgentId, Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standby {
    host: AgentId,
    agent: AgentId,
}

/// What one agent stands by for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) schedulers: usize,
    /// What it compiles ahead for them.
    pub(crate) components: BTreeSet<Digest>,
}

/// What an agent said in its session of what it compiles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) ahead: BTreeMap<Digest, AheadState>,
    pub(crate) compilations: Option<u64>,
}

impl Standbys {
    /// The agent that stands by for a scheduler which is hosted there.
    fn of(&self, id: FrameworkId, host: AgentId) -> Option<AgentId> {
        self.of.get(&id).filter(|standby| standby.host == host).map(|standby| standby.agent)
    }

    /// What an agent stands by for.
    pub(crate) fn by(&self, agent: AgentId) -> Option<&Standing> {
        self.by.get(&agent)
    }

    /// What an agent is to compile ahead.
    pub(super) fn components(&self, agent: AgentId) -> BTreeSet<Digest> {
        self.by.get(&agent).map(|standing| standing.components.clone()).unwrap_or_default()
    }
}

/// How well an agent suits a framework as its standby: some order, another one for each framework, that is the
/// same for every leader.
fn rank(framework: FrameworkId, agent: AgentId) -> (u64, AgentId) {
    (mixed(mixed(framework.0) ^ agent.0), agent)
}

/// Each bit depends on all (the finish of SplitMix64).
const fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// What its scheduler may have to be built from: what is in force, and what a failing upgrade goes back to.
fn components(framework: &Framework) -> impl Iterator<Item = Digest> {
    let from = framework.upgrade.as_ref().map(|upgrade| upgrade.from_version);
    let before = framework.versions.iter().filter(move |version| Some(version.version) == from);
    std::iter::once(framework.component).chain(before.map(|version| version.component))
}

impl Desk<'_> {
    pub(super) fn tick_standbys(&mut self) {
        let now_ms = self.now.mono_ms;
        let looked_ms = self.leader.standbys.looked_ms;
        if looked_ms.is_some_and(|looked| now_ms < looked + STANDBY_EVERY_MS) {
            return;
        }
        let able = self.able_to_stand_by();
        let old = std::mem::take(&mut self.leader.standbys);
        let came: Vec<AgentId> = able.difference(&old.able).copied().collect();
        let mut new = Standbys { looked_ms: Some(now_ms), ..Standbys::default() };
        for (id, framework) in self.state.frameworks.iter().filter(|(_, f)| !f.removing) {
            let Some(host) = framework.agent else { continue };
            let best = |agents: &mut dyn Iterator<Item = &AgentId>| {
                agents.filter(|agent| **agent != host).max_by_key(|agent| rank(*id, **agent)).copied()
            };
            // Whoever was the best of all is behind nobody but those who came.
            let agent = match old.of(*id, host).filter(|agent| able.contains(agent)) {
                Some(before) => best(&mut came.iter().chain([&before])),
                None => best(&mut able.iter()),
            };
            let Some(agent) = agent else { continue };
            new.of.insert(*id, Standby { host, agent });
            let standing = new.by.entry(agent).or_default();
            standing.schedulers += 1;
            for component in components(framework) {
                if standing.components.len() < AHEAD_MAX {
                    standing.components.insert(component);
                }
            }
        }
        for agent in old.by.keys().chain(new.by.keys()) {
            if old.components(*agent) != new.components(*agent) {
                self.leader.dirty_links.insert(*agent);
            }
        }
        self.leader.standbys = Standbys { able, ..new };
    }

    /// Agents on which a scheduler of another one could be placed. One that has no session may be back in a
    /// moment, as all may be after a change of leader.
    fn able_to_stand_by(&self) -> BTreeSet<AgentId> {
        let mut hosted: BTreeMap<AgentId, i64> = BTreeMap::new();
        for framework in self.state.frameworks.values().filter(|f| !f.removing) {
            if let Some(agent) = framework.agent {
                *hosted.entry(agent).or_default() += 1;
            }
        }
        let able = self.state.agents.iter().filter(|(agent, row)| {
            let needs = hosted.get(agent).map_or(1, |hosted| hosted + 1).saturating_mul(SCHEDULER_MEM_MIB);
            let here = self.leader.links.get(agent).is_some_and(|link| {
                let away_ms = self.now.mono_ms.saturating_sub(link.since_ms);
                link.session.is_some() || away_ms <= self.config.scheduler_grace_ms
            });
            here && !row.deactivated && row.unreachable_ms.is_none() && row.resources.reserved.mem_mib >= needs
        });
        able.map(|(agent, _)| *agent).collect()
    }

    /// Where a scheduler that has to move goes first: to its standby, unless that could not compile it.
    pub(super) fn standby_to_use(&self, id: FrameworkId) -> Option<AgentId> {
        let standby = self.leader.standby(id, self.state.frameworks.get(&id)?)?;
        (!matches!(standby.state, AheadState::Failed(_))).then_some(standby.agent)
    }

    /// What an agent compiles, and what became of it.
    pub(super) fn on_compiled_ahead(
        &mut self,
        agent: AgentId,
        message: v1::CompiledAhead,
    ) -> Result<(), WireError> {
        if message.components.len() > AHEAD_MAX {
            return Err(WireError::new("compiled_ahead.components", format!("at most {AHEAD_MAX}")));
        }
        let mut ahead = BTreeMap::new();
        for component in message.components {
            let digest = Digest::from_slice(&component.component)
                .map_err(|error| WireError::new("compiled_ahead.component", error.to_string()))?;
            let state = match component.state() {
                v1::AheadState::Waiting => AheadState::Waiting,
                v1::AheadState::Compiled => AheadState::Compiled,
                v1::AheadState::Failed => {
                    AheadState::Failed(component.error.chars().take(AHEAD_ERROR_CHARS_MAX).collect())
                }
                v1::AheadState::Unspecified => return Err(WireError::missing("compiled_ahead.state")),
            };
            ahead.insert(digest, state);
        }
        if let Some(link) = self.leader.links.get_mut(&agent) {
            link.compiled = Compiled { ahead, compilations: Some(message.compilations) };
        }
        Ok(())
    }
}

impl super::Leader {
    /// The standby of a framework's scheduler, and whether it has the code compiled.
    pub(crate) fn standby(&self, id: FrameworkId, framework: &Framework) -> Option<StandbyView> {
        let agent = self.standbys.of(id, framework.agent?)?;
        let said = self.links.get(&agent).and_then(|link| link.compiled.ahead.get(&framework.component));
        Some(StandbyView { agent, state: said.cloned().unwrap_or(AheadState::Unknown) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standbys of many frameworks, each hosted by the first agent, among these.
    fn chosen(agents: std::ops::Range<u64>) -> Vec<u64> {
        let best = |framework| agents.clone().max_by_key(|agent| rank(FrameworkId(framework), AgentId(*agent)));
        (1..=1_000).map(|framework| best(framework).expect("there are agents")).collect()
    }

    #[test]
    fn schedulers_are_spread_and_only_those_of_a_lost_agent_change() {
        let (ten, nine) = (chosen(1..11), chosen(1..10));
        for agent in 1..11 {
            let stands_by = ten.iter().filter(|chosen| **chosen == agent).count();
            assert!((60..=140).contains(&stands_by), "agent {agent}: {stands_by} of 1,000");
        }
        for (with, without) in ten.iter().zip(&nine) {
            assert!(*with == 10 || with == without, "{with} was not lost, and became {without}");
        }
    }
}
