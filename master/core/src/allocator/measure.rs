//! The allocator alone, for measurements: a cluster of numbers in which schedulers answer at once.
//!
//! Must never be on the way of a decision.

use super::{AgentFacts, Allocator, FrameworkFacts, Grant, REGULAR, Vector, Want};
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_types::{AgentId, AgentInfo, Amounts, FrameworkId, RolePolicy};

/// A cluster with nothing but an allocator.
#[derive(Debug)]
pub struct AllocatorRun {
    engine: Allocator,
    agents: BTreeMap<AgentId, AgentFacts>,
    frameworks: BTreeMap<FrameworkId, FrameworkFacts>,
    offers: Vec<Grant>,
    /// Where something runs, and whose.
    ran: Vec<(FrameworkId, AgentId)>,
    changes: u64,
}

/// What each agent has.
pub(super) fn total() -> Vector {
    Vector::of(24_000, 98_304, 0)
}

impl AllocatorRun {
    /// So many agents, and frameworks that are spread over so many roles.
    #[must_use]
    pub fn new(agents: u64, frameworks: u64, roles: u64) -> Self {
        let (engine, offers, ran) = (Allocator::default(), Vec::new(), Vec::new());
        let mut run = Self { engine, agents: BTreeMap::new(), frameworks: BTreeMap::new(), offers, ran, changes: 0 };
        for number in 1..=agents {
            run.join(number);
        }
        for number in 1..=frameworks {
            run.subscribe(FrameworkId(number), &format!("role-{}", number % roles.max(1)));
        }
        run
    }

    /// A framework comes that wants everything.
    pub(super) fn subscribe(&mut self, id: FrameworkId, role: &str) {
        let facts = FrameworkFacts { role: role.to_owned(), open: true, waits: true, ..FrameworkFacts::default() };
        self.frameworks.insert(id, facts);
        self.tell_framework(id);
    }

    pub(super) fn set_role(&mut self, role: &str, policy: &RolePolicy) {
        self.engine.set_role(role, Some(policy));
    }

    /// What a framework has, offers included.
    pub(super) fn uses(&self, id: FrameworkId, class: usize) -> Vector {
        self.frameworks.get(&id).map_or_else(Vector::default, |facts| facts.uses[class].clone())
    }

    /// Every role has a guarantee that is its quota limit too: a small one, and one in six of them a large one.
    pub fn give_quota(&mut self, roles: u64) {
        for number in 0..roles {
            let cpus = if number % 6 == 0 { 12_000 } else { 1_000 };
            let amounts = Amounts([("cpus".to_owned(), cpus), ("mem".to_owned(), cpus * 2)].into());
            let policy = RolePolicy { guarantee: amounts.clone(), limit: amounts, version: 1, ..RolePolicy::default() };
            self.set_role(&format!("role-{number}"), &policy);
        }
    }

    /// So many agents' worth is guaranteed to a role that does not ask; a framework asks for what may be taken back, in pieces that
    /// no agent has; and schedulers use all that is beyond the guarantee, and want more.
    pub fn keep(&mut self, agents: u64) {
        let kept = total().times(i64::try_from(agents).unwrap_or(i64::MAX));
        let amounts = Amounts([("cpus".to_owned(), kept.get(0)), ("mem".to_owned(), kept.get(1))].into());
        self.set_role("kept", &RolePolicy { guarantee: amounts, version: 1, ..RolePolicy::default() });
        let id = FrameworkId(1 + self.frameworks.len() as u64);
        let piece = total().times(2);
        let want = Want { id: "large".into(), piece, count: 1, constraints: Vec::new(), revocable: true };
        self.subscribe(id, "lent");
        if let Some(facts) = self.frameworks.get_mut(&id) {
            facts.wants = vec![want].into();
        }
        self.tell_framework(id);
        // Offers are answered at once by tasks on all of them.
        while self.round() > 0 {
            let offers = self.take_offers();
            self.ran.extend(offers.iter().map(|grant| (grant.framework, grant.agent)));
        }
    }

    /// How often a framework was considered at an agent since that was asked.
    pub const fn considered(&mut self) -> u64 {
        self.engine.considered()
    }

    /// A task of one core ends somewhere, and the cycle that follows; what is offered is used at once.
    pub fn one_end(&mut self) -> usize {
        self.changes += 1;
        let offer = usize::try_from(self.changes).unwrap_or(0) * 7 % self.ran.len();
        let (framework, agent) = self.ran[offer];
        self.change(framework, agent, &Vector::of(1_000, 4_096, 0), false);
        let grants = self.engine.round(agent, 0);
        let used = grants.len();
        for grant in &grants {
            self.change(grant.framework, grant.agent, &grant.amounts, true);
            self.ran[offer] = (grant.framework, grant.agent);
        }
        used
    }

    /// An agent comes.
    pub fn join(&mut self, number: u64) {
        let id = AgentId(number);
        let info = Arc::new(AgentInfo { id, hostname: format!("host-{number}"), attributes: Vec::new(), reachable: true });
        let facts = AgentFacts { info, total: total(), free: total(), revocable: Vector::default(), open: true };
        self.agents.insert(id, facts);
        self.tell_agent(id);
    }

    fn tell_agent(&mut self, id: AgentId) {
        if let Some(facts) = self.agents.get(&id) {
            self.engine.set_agent(id, facts.clone());
        }
    }

    fn tell_framework(&mut self, id: FrameworkId) {
        if let Some(facts) = self.frameworks.get(&id) {
            self.engine.set_framework(id, facts.clone());
        }
    }

    /// One cycle: how many offers it made.
    pub fn round(&mut self) -> usize {
        self.round_at(0)
    }

    pub(super) fn round_at(&mut self, now_ms: u64) -> usize {
        self.changes += 1;
        let first = AgentId(1 + self.changes % (self.agents.len() as u64).max(1));
        let grants = self.engine.round(first, now_ms);
        let count = grants.len();
        for grant in &grants {
            self.change(grant.framework, grant.agent, &grant.amounts, true);
        }
        self.offers.extend(grants);
        count
    }

    /// A framework has so much more of an agent, or less.
    pub(super) fn change(&mut self, framework: FrameworkId, agent: AgentId, amounts: &Vector, more: bool) {
        let amounts = if more { amounts.clone() } else { Vector::default().minus(amounts) };
        if let Some(facts) = self.agents.get_mut(&agent) {
            facts.free.take(&amounts);
        }
        if let Some(facts) = self.frameworks.get_mut(&framework) {
            facts.uses[REGULAR].add(&amounts);
        }
        self.tell_agent(agent);
        self.tell_framework(framework);
    }

    /// What was offered and not yet answered.
    pub(super) fn take_offers(&mut self) -> Vec<Grant> {
        std::mem::take(&mut self.offers)
    }

    /// An offer is given back, and so much of the agent is not wanted until then.
    pub(super) fn decline(&mut self, grant: &Grant, until_ms: u64) {
        self.change(grant.framework, grant.agent, &grant.amounts, false);
        self.engine.refuse(grant.agent, grant.framework, &grant.amounts, until_ms);
    }

    /// Every framework gives back what it is offered, and does not want any agent for a long time.
    pub fn decline_everything(&mut self) {
        for grant in self.take_offers() {
            self.change(grant.framework, grant.agent, &grant.amounts, false);
        }
        for agent in self.agents.keys() {
            for framework in self.frameworks.keys() {
                self.engine.refuse(*agent, *framework, &total(), u64::MAX);
            }
        }
    }

    /// One task of one core begins somewhere, or ends, and the cycle that follows.
    pub fn one_change(&mut self) -> usize {
        self.changes += 1;
        let agent = AgentId(1 + self.changes / 2 * 7 % (self.agents.len() as u64).max(1));
        let framework = FrameworkId(1 + self.changes / 2 % (self.frameworks.len() as u64).max(1));
        self.change(framework, agent, &Vector::of(1_000, 1_024, 0), self.changes % 2 == 0);
        self.engine.round(agent, 0).len()
    }
}

#[cfg(test)]
mod tests {
    use super::AllocatorRun;

    /// What one change costs, however many agents have something that is kept, and however many want it.
    #[test]
    fn a_task_that_ends_is_considered_for_few_while_much_is_kept_for_guarantees() {
        for (agents, frameworks) in [(100, 10), (1_000, 100)] {
            let mut run = AllocatorRun::new(agents, frameworks, 20);
            run.keep(agents * 3 / 10);
            run.considered();
            for _ in 0..100 {
                assert_eq!(run.one_end(), 1, "who has least takes it");
            }
            let considered = run.considered();
            assert!(considered <= 100 * 8, "{considered} of {frameworks} frameworks on {agents} agents");
        }
    }
}
