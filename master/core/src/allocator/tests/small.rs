//! A small cluster for cases: what schedulers do with offers is said by the case.

use crate::allocator::{AgentFacts, Allocator, CLASSES, FrameworkFacts, Grant, REVOCABLE, Vector, Want};
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_types::{AgentId, AgentInfo, Amounts, FrameworkId, RolePolicy};

#[derive(Default)]
pub(super) struct Small {
    pub(super) engine: Allocator,
    pub(super) agents: BTreeMap<AgentId, AgentFacts>,
    pub(super) frameworks: BTreeMap<FrameworkId, FrameworkFacts>,
    pub(super) now_ms: u64,
    rounds: u64,
}

pub(super) fn amounts(of: &[(&str, i64)]) -> Amounts {
    Amounts(of.iter().map(|(kind, amount)| ((*kind).to_owned(), *amount)).collect())
}

pub(super) fn want(cpus: i64, count: u32) -> Want {
    let piece = Vector::of(cpus * 1_000, cpus * 1_000, 0);
    Want { id: "big".into(), piece, count, constraints: Vec::new(), revocable: false }
}

impl Small {
    /// With so many agents of so many cores, and as many thousand MiB.
    pub(super) fn new(agents: u64, cpus: i64) -> Self {
        let mut small = Self::default();
        for number in 1..=agents {
            let id = AgentId(number);
            let attributes = Vec::new();
            let info = Arc::new(AgentInfo { id, hostname: format!("h{number}"), attributes, reachable: true });
            let total = Vector::of(cpus * 1_000, cpus * 1_000, 0);
            let free = total.clone();
            small.agents.insert(id, AgentFacts { info, total, free, revocable: Vector::default(), open: true });
            small.tell_agent(id);
        }
        small
    }

    fn tell_agent(&mut self, id: AgentId) {
        self.engine.set_agent(id, self.agents[&id].clone());
    }

    pub(super) fn tell(&mut self, id: FrameworkId, edit: impl FnOnce(&mut FrameworkFacts)) {
        let facts = self.frameworks.get_mut(&id).unwrap();
        edit(facts);
        facts.offered.resize(facts.wants.len(), 0);
        self.engine.set_framework(id, facts.clone());
    }

    pub(super) fn framework(&mut self, id: u64, role: &str, wants: Vec<Want>) -> FrameworkId {
        let id = FrameworkId(id);
        let role = role.to_owned();
        self.frameworks.insert(id, FrameworkFacts { role, open: true, waits: true, ..FrameworkFacts::default() });
        self.tell(id, |facts| facts.wants = wants.into());
        id
    }

    pub(super) fn role(&mut self, name: &str, edit: impl FnOnce(&mut RolePolicy)) {
        let mut policy = RolePolicy { version: 1, ..RolePolicy::default() };
        edit(&mut policy);
        policy.check().unwrap();
        self.engine.set_role(name, Some(&policy));
    }

    pub(super) fn round(&mut self) -> Vec<Grant> {
        self.rounds += 1;
        let grants = self.engine.round(AgentId(1 + self.rounds % self.agents.len() as u64), self.now_ms);
        for grant in &grants {
            let of = |pieces: &mut Vec<u32>| {
                grant.pieces.iter().for_each(|(at, count)| pieces[*at] += count);
            };
            self.change(grant.framework, grant.agent, &grant.amounts, usize::from(grant.revocable), true, of);
        }
        if self.rounds < 100 || self.rounds % 100 == 0 {
            self.engine.check().unwrap();
        }
        grants
    }

    fn change(
        &mut self,
        id: FrameworkId,
        agent: AgentId,
        amounts: &Vector,
        class: usize,
        more: bool,
        pieces: impl FnOnce(&mut Vec<u32>),
    ) {
        assert!(class < CLASSES);
        let place = self.agents.get_mut(&agent).unwrap();
        let amounts = if more { amounts.clone() } else { Vector::default().minus(amounts) };
        place.free.take(&amounts);
        assert!(place.free == place.free.clamped(), "{agent:?} was promised twice");
        if class == REVOCABLE {
            place.revocable.add(&amounts);
        }
        self.tell_agent(agent);
        self.tell(id, |facts| {
            facts.uses[class].add(&amounts);
            facts.offered.resize(facts.wants.len(), 0);
            pieces(&mut facts.offered);
        });
    }

    /// A task is launched on a part of an offer; the rest is given back.
    pub(super) fn launch(&mut self, grant: &Grant, task: &Vector) {
        assert!(grant.amounts.contains(task), "{task:?} of {grant:?}");
        self.give_back(grant, &grant.amounts.minus(task));
    }

    fn give_back(&mut self, grant: &Grant, rest: &Vector) {
        let of = |pieces: &mut Vec<u32>| {
            grant.pieces.iter().for_each(|(at, count)| pieces[*at] -= count);
        };
        self.change(grant.framework, grant.agent, rest, usize::from(grant.revocable), false, of);
    }

    /// An offer is given back and not wanted for a while.
    pub(super) fn decline(&mut self, grant: &Grant, for_ms: u64) {
        self.give_back(grant, &grant.amounts);
        self.engine.refuse(grant.agent, grant.framework, &grant.amounts, self.now_ms + for_ms);
    }

    /// A task ends.
    pub(super) fn end(&mut self, id: FrameworkId, agent: AgentId, task: &Vector, class: usize) {
        self.change(id, agent, task, class, false, |_| ());
    }
}
