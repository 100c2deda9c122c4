//! Random histories: after each change, or some, a round of the engine is compared with one of the model, grant by
//! grant, and so is everything that the engine remembers.

use super::reference::Model;
use crate::allocator::vector::plain;
use crate::allocator::{
    AgentFacts, Allocator, FrameworkFacts, Grant, REGULAR, REVOCABLE, Vector, Want, same_but_counts,
};
use std::sync::Arc;
use tessera_types::{AgentId, AgentInfo, Amounts, Constraint, FrameworkId, Predicate, Quantities, ResourceKey, RolePolicy, Selector};

const ROLES: [&str; 12] =
    ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/e", "a/f", "g", "g/h", "g/h/i", "j", "k", "k/l"];

/// Numbers that repeat.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        let at = usize::try_from(self.below(list.len() as u64)).unwrap();
        list[at].clone()
    }

    fn amount(&mut self, most: u64) -> i64 {
        i64::try_from(self.below(most + 1)).unwrap()
    }
}

/// What a history may hold, so that simple ones are tried often.
#[derive(Clone, Copy, Debug)]
struct Mix {
    quota: bool,
    wants: bool,
    pools: bool,
}

struct World {
    dice: Dice,
    mix: Mix,
    model: Model,
    engine: Allocator,
    offers: Vec<Grant>,
    /// What runs: whose, where, how much, of which class.
    tasks: Vec<(FrameworkId, AgentId, Vector, usize)>,
    now_ms: u64,
    next: u64,
    first: u64,
    granted: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mix = Mix { quota: dice.one_in(2), wants: dice.one_in(2), pools: dice.one_in(4) };
        let (model, engine) = (Model::default(), Allocator::default());
        let (offers, tasks) = (Vec::new(), Vec::new());
        Self { dice, mix, model, engine, offers, tasks, now_ms: 1_000, next: 1, first: 1, granted: 0 }
    }

    fn numbers(&mut self, key: &ResourceKey) -> usize {
        let number = self.engine.kinds().number(key);
        assert_eq!(self.model.kinds.number(key), number);
        number.unwrap()
    }

    fn tell_agent(&mut self, id: AgentId) {
        self.engine.set_agent(id, self.model.agents[&id].clone());
    }

    fn tell_framework(&mut self, id: FrameworkId) {
        self.engine.set_framework(id, self.model.frameworks[&id].clone());
    }

    fn agent(&mut self) -> Option<AgentId> {
        let ids: Vec<AgentId> = self.model.agents.keys().copied().collect();
        (!ids.is_empty()).then(|| self.dice.of(&ids))
    }

    fn framework(&mut self) -> Option<FrameworkId> {
        let ids: Vec<FrameworkId> = self.model.frameworks.keys().copied().collect();
        (!ids.is_empty()).then(|| self.dice.of(&ids))
    }

    fn some_total(&mut self) -> Vector {
        let dice = &mut self.dice;
        let mut total = Vector::of(dice.amount(8) * 1_000, dice.amount(8) * 1_024, dice.amount(1) * 100);
        if dice.one_in(4) {
            let gpus = dice.amount(4) * 1_000;
            let kind = self.numbers(&plain("gpus"));
            total.set(kind, gpus);
        }
        if self.mix.pools && self.dice.one_in(2) {
            let by: Vec<String> = self.dice.of(&[vec!["a".to_owned()], vec!["g".to_owned(), "g/h".to_owned()]]);
            let kind = self.numbers(&ResourceKey { reservation: by, ..plain("cpus") });
            total.set(kind, 2_000);
        }
        total
    }

    fn add_agent(&mut self) {
        let id = AgentId(self.next);
        self.next += 1;
        let total = self.some_total();
        let zone = self.dice.of(&["x", "y", "z"]);
        let attributes = vec![("zone".to_owned(), zone.to_owned())];
        let info = Arc::new(AgentInfo { id, hostname: "h".into(), attributes, reachable: true });
        let free = total.clone();
        let facts = AgentFacts { info, total, free, revocable: Vector::default(), open: true };
        self.model.agents.insert(id, facts);
        self.tell_agent(id);
    }

    fn remove_agent(&mut self, id: AgentId) {
        for at in (0..self.offers.len()).rev() {
            if self.offers[at].agent == id {
                self.end_offer(at, false);
            }
        }
        for at in (0..self.tasks.len()).rev() {
            if self.tasks[at].1 == id {
                self.end_task(at);
            }
        }
        self.model.filters.retain(|(agent, _), _| *agent != id);
        self.model.agents.remove(&id);
        self.engine.remove_agent(id);
    }

    fn resize_agent(&mut self, id: AgentId) {
        let total = self.some_total();
        let facts = self.model.agents.get_mut(&id).unwrap();
        let used = facts.total.minus(&facts.free);
        facts.free = total.minus(&used);
        facts.total = total;
        self.tell_agent(id);
    }

    fn add_framework(&mut self) {
        let id = FrameworkId(self.next);
        self.next += 1;
        let role = self.dice.of(&ROLES).to_owned();
        self.model.frameworks.insert(id, FrameworkFacts { role, open: true, ..FrameworkFacts::default() });
        self.tell_framework(id);
    }

    fn remove_framework(&mut self, id: FrameworkId) {
        for at in (0..self.offers.len()).rev() {
            if self.offers[at].framework == id {
                self.end_offer(at, false);
            }
        }
        for at in (0..self.tasks.len()).rev() {
            if self.tasks[at].0 == id {
                self.end_task(at);
            }
        }
        self.model.filters.retain(|(_, framework), _| *framework != id);
        self.model.frameworks.remove(&id);
        self.engine.remove_framework(id);
    }

    fn change_wants(&mut self, id: FrameworkId) {
        let mut wants = Vec::new();
        for number in 0..self.dice.below(4) {
            let dice = &mut self.dice;
            let piece = Vector::of(dice.amount(4) * 500, dice.amount(4) * 512 + 32, 0);
            let value = dice.of(&["x", "y"]).to_owned();
            let selector = Selector::Attribute("zone".into());
            let constraint = Constraint { selector, predicate: Predicate::Equals(value) };
            let constraints = if dice.one_in(3) { vec![constraint] } else { Vec::new() };
            let count = 1 + u32::try_from(dice.below(4)).unwrap();
            wants.push(Want { id: number.to_string(), piece, count, constraints, revocable: dice.one_in(3) });
        }
        // What was offered for former requests counts for none.
        for offer in self.offers.iter_mut().filter(|offer| offer.framework == id) {
            offer.pieces.clear();
        }
        let facts = self.model.frameworks.get_mut(&id).unwrap();
        let wants: Arc<[Want]> = wants.into();
        if !same_but_counts(&facts.wants, &wants) {
            self.model.filters.retain(|(_, framework), _| *framework != id);
        }
        facts.offered = vec![0; wants.len()];
        facts.wants = wants;
        self.tell_framework(id);
    }

    /// More or fewer pieces of the same: what was declined stays so, and what is being offered counts.
    fn change_counts(&mut self, id: FrameworkId) {
        let facts = self.model.frameworks.get_mut(&id).unwrap();
        let wants = facts.wants.iter().zip(&facts.offered).map(|(want, offered)| {
            let count = u32::try_from(self.dice.below(5)).unwrap().max(*offered).max(1);
            Want { count, ..want.clone() }
        });
        facts.wants = wants.collect();
        self.tell_framework(id);
    }

    fn change_policy(&mut self) {
        let role = self.dice.of(&ROLES);
        if self.dice.one_in(3) {
            self.model.roles.remove(role);
            return self.engine.set_role(role, None);
        }
        let dice = &mut self.dice;
        let mut amounts = |most: u64| {
            let mut amounts = Amounts::default();
            for (name, unit) in [("cpus", 1_000), ("mem", 1_024), ("gpus", 1_000)] {
                if dice.one_in(2) {
                    amounts.0.insert(name.to_owned(), dice.amount(most) * unit);
                }
            }
            amounts
        };
        let (guarantee, limit) = if self.mix.quota { (amounts(10), amounts(16)) } else { Default::default() };
        let guarantee = if dice.one_in(2) { guarantee } else { Amounts::default() };
        let limit = if dice.one_in(2) { limit } else { Amounts::default() };
        let min_offer = Quantities { cpus_milli: dice.amount(2) * 1_000, mem_mib: 0, disk_mib: 0 };
        let policy = RolePolicy {
            weight_milli: dice.of(&[1_000, 500, 2_000, 3_000]),
            priority: dice.of(&[0, 0, 1, 7]),
            guarantee,
            limit,
            min_offer: if dice.one_in(4) { min_offer } else { Quantities::ZERO },
            hold_back: false,
            version: 1,
        };
        // Kinds are numbered in the same order on both sides.
        for (name, _) in policy.guarantee.iter().chain(policy.limit.iter()) {
            self.model.kinds.number(&plain(name));
        }
        self.engine.set_role(role, Some(&policy));
        self.model.roles.insert(role.to_owned(), policy);
    }

    fn give_back(&mut self, id: FrameworkId, agent: AgentId, amounts: &Vector, class: usize) {
        let facts = self.model.frameworks.get_mut(&id).unwrap();
        facts.uses[class].take(amounts);
        let place = self.model.agents.get_mut(&agent).unwrap();
        place.free.add(amounts);
        if class == REVOCABLE {
            place.revocable.take(amounts);
        }
    }

    fn end_offer(&mut self, at: usize, refuse: bool) {
        let offer = self.offers.swap_remove(at);
        let (id, agent) = (offer.framework, offer.agent);
        let facts = self.model.frameworks.get_mut(&id).unwrap();
        for (at, count) in &offer.pieces {
            facts.offered[*at] -= count;
        }
        let class = if offer.revocable { REVOCABLE } else { REGULAR };
        let mut rest = offer.amounts.clone();
        if self.dice.one_in(2) {
            // A task is launched on a part of it.
            let mut task = Vector::of(self.dice.amount(4) * 500, self.dice.amount(4) * 512, 0);
            task.at_most(&rest);
            task = task.clamped();
            rest.take(&task);
            self.tasks.push((id, agent, task, class));
            self.model.frameworks.get_mut(&id).unwrap().wasted = 0;
        }
        self.give_back(id, agent, &rest, class);
        if refuse {
            let until_ms = self.now_ms + [100, 1_000, 100_000][usize::try_from(self.dice.below(3)).unwrap()];
            self.model.filters.insert((agent, id), (rest.clone(), until_ms));
            self.engine.refuse(agent, id, &rest, until_ms);
        }
        self.tell_agent(agent);
        self.tell_framework(id);
    }

    fn end_task(&mut self, at: usize) {
        let (id, agent, amounts, class) = self.tasks.swap_remove(at);
        self.give_back(id, agent, &amounts, class);
        self.tell_agent(agent);
        self.tell_framework(id);
    }

    fn change(&mut self) {
        match self.dice.below(24) {
            0 if self.model.agents.len() < 8 => self.add_agent(),
            1 if self.model.frameworks.len() < 9 => self.add_framework(),
            2 if self.dice.one_in(4) => {
                if let Some(id) = self.agent() {
                    self.remove_agent(id);
                }
            }
            3 if self.dice.one_in(4) => {
                if let Some(id) = self.framework() {
                    self.remove_framework(id);
                }
            }
            4 => {
                if let Some(id) = self.agent() {
                    self.resize_agent(id);
                }
            }
            5 => {
                if let Some(id) = self.agent() {
                    let facts = self.model.agents.get_mut(&id).unwrap();
                    facts.open = !facts.open;
                    self.tell_agent(id);
                }
            }
            6..=8 => {
                if let Some(id) = self.framework() {
                    let facts = self.model.frameworks.get_mut(&id).unwrap();
                    facts.open = !facts.open;
                    self.tell_framework(id);
                }
            }
            9 => {
                if let Some(id) = self.framework() {
                    self.model.frameworks.get_mut(&id).unwrap().wasted = u32::try_from(self.dice.below(6)).unwrap();
                    self.tell_framework(id);
                }
            }
            10 if self.mix.wants => {
                if let Some(id) = self.framework() {
                    if self.dice.one_in(2) {
                        self.change_wants(id);
                    } else {
                        self.change_counts(id);
                    }
                }
            }
            11 => self.change_policy(),
            12 => self.now_ms += [50, 500, 5_000][usize::try_from(self.dice.below(3)).unwrap()],
            13 => {
                if let Some(id) = self.framework() {
                    self.model.filters.retain(|(_, framework), _| *framework != id);
                    self.engine.unrefuse(id);
                }
            }
            14 => {
                if let Some(id) = self.agent() {
                    self.model.filters.retain(|(agent, _), _| *agent != id);
                    self.engine.unrefuse_agent(id);
                }
            }
            15..=17 if !self.tasks.is_empty() => {
                let at = self.dice.below(self.tasks.len() as u64);
                self.end_task(usize::try_from(at).unwrap());
            }
            _ if !self.offers.is_empty() => {
                let at = self.dice.below(self.offers.len() as u64);
                let refuse = !self.dice.one_in(3);
                self.end_offer(usize::try_from(at).unwrap(), refuse);
            }
            _ => {}
        }
    }

    fn round(&mut self, at: &str) {
        self.first = 1 + self.dice.below(self.next);
        let first = AgentId(self.first);
        let promised = self.model.clone();
        let engine = self.engine.clone();
        let expected = self.model.round(first, self.now_ms);
        let grants = self.engine.round(first, self.now_ms);
        assert_eq!(grants, expected, "{at}: the model on the right; before: {} {}", promised.shown(), engine.shown());
        self.granted += grants.len();
        self.offers.extend(grants);
        for (id, facts) in &self.model.agents {
            assert!(!facts.open || self.engine.agent_facts(*id) == Some(facts), "{at}: {id:?}");
        }
        for (id, facts) in &self.model.frameworks {
            let mut known = self.engine.framework_facts(*id).cloned().unwrap();
            known.offered.resize(facts.offered.len(), 0);
            assert_eq!(known, *facts, "{at}: {id:?}");
        }
    }
}

fn run(seed: u64, steps: u64) -> usize {
    let mut world = World::new(seed);
    for _ in 0..3 {
        world.add_agent();
        world.add_framework();
    }
    for step in 0..steps {
        for _ in 0..=world.dice.below(3) {
            world.change();
        }
        world.round(&format!("seed {seed}, step {step}"));
        if let Err(error) = world.engine.check() {
            panic!("seed {seed}, step {step}: {error}");
        }
    }
    world.granted
}

#[test]
fn rounds_are_those_of_the_model() {
    let of = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (seeds, first) = (of("TESSERA_ALLOCATOR_SEEDS").unwrap_or(100), of("TESSERA_ALLOCATOR_SEED").unwrap_or(1));
    let granted: usize = (first..first + seeds).map(|seed| run(seed, 60)).sum();
    assert!(granted > usize::try_from(seeds).unwrap() * 20, "next to nothing was granted: {granted}");
}
