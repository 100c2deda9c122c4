//! What operators say of roles: weights, priorities, guarantees, quota limits, smallest offers, agents that are held.
//!
//! In about half of the seeds; there frameworks stand in a tree of roles, say what they wait for, and do some of their work
//! with what may be taken back. Invariants: one role is changed at a time, so that it is known what is said of each; after the last
//! fault one role has a guarantee that leaves others room, and no other one anything that holds its work up.
//! Must never decide who is offered what.

use crate::agent::Agent;
use crate::model::GPUS;
use crate::world::World;
use std::collections::BTreeMap;
use tessera_master_core::{AgentView, Core, FrameworkView, Request, RoleChange};
use tessera_types::{
    Amounts, CPUS, MEM, PRIORITY_MAX, Quantities, ResourceRequest, Resources, RoleName, RolePolicy, WEIGHT_MAX_MILLI,
};
use tessera_virtual::Random;

/// Of 100 seeds in so many roles share what there is.
const SHARED: u64 = 50;
/// Whatever else a seed draws, it draws this apart from it.
const TAG: u64 = 0x0073_6861_7265;
/// Of 100 looks so many say something of a role.
const SAID: u64 = 25;
/// Of 100 times so many say what is refused.
const WRONG: u64 = 12;
/// The roles of the first frameworks.
const TREES: [[&str; 3]; 4] = [
    ["tenant0/web", "tenant0/batch/night", "tenant1"],
    ["tenant0/a/x", "tenant0/a/y", "tenant0/b"],
    ["tenant0", "tenant0/a", "tenant1/b/c"],
    ["tenant0/a", "tenant0/a", "tenant1"],
];
/// Nobody is in this one.
const NOBODYS: &str = "nobody/here";
/// What the last guarantee leaves to others at least, in thousandths of a core: more than the largest job needs.
const LEFT_MILLI: i64 = 1_800;
/// Somebody whose guarantee is not met is offered something within so long, in us: revocable tasks are found in the way
/// twice, a second apart; they have their time to end; and offers to others may stand.
const STARVED_US: u64 = 15_000_000;
/// Roles read at a time: more than there are.
const ROLES_MAX: usize = 100;

/// How a seed shares.
pub(crate) struct Shares {
    roles: [&'static str; 3],
    /// Time between TERM and KILL for whoever has to make room, in ms.
    pub(crate) grace_ms: u64,
    /// What was acknowledged of each role; without versions.
    said: BTreeMap<String, RolePolicy>,
    /// What is said in the end.
    last: Option<(RoleName, RoleChange)>,
    /// Since when frameworks wait for what is guaranteed, in us.
    waits: BTreeMap<u64, u64>,
}

/// A role and all above it.
pub(crate) fn lineage(role: &str) -> impl Iterator<Item = &str> {
    let above = role.match_indices('/').map(|(at, _)| &role[..at]);
    above.chain(std::iter::once(role))
}

impl Shares {
    /// Of this seed, if it shares.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        let mut rng = Random::new(seed ^ TAG);
        rng.chance(SHARED).then(|| Self {
            roles: TREES[rng.index(TREES.len())],
            grace_ms: rng.range(0, 2_000),
            said: BTreeMap::new(),
            last: None,
            waits: BTreeMap::new(),
        })
    }

    /// The role of the n-th framework.
    pub(crate) fn role(&self, n: u64) -> &'static str {
        self.roles[usize::try_from(n).unwrap_or(0) % self.roles.len()]
    }

    /// Roles of which something may be said.
    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.roles.iter().flat_map(|role| lineage(role)).chain([NOBODYS]).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Amounts of CPU, and mostly of other things as well.
fn amounts(rng: &mut Random, least: i64, most: i64) -> Amounts {
    let spread = u64::try_from(most - least).unwrap_or(0);
    let cpus = least + i64::try_from(rng.range(0, spread)).unwrap_or(0);
    let mut amounts = BTreeMap::from([(CPUS.to_owned(), cpus)]);
    if rng.chance(70) {
        amounts.insert(MEM.to_owned(), (cpus / 4).max(64));
    }
    if rng.chance(25) {
        amounts.insert(GPUS.to_owned(), 500 * i64::try_from(rng.below(4)).unwrap_or(0));
    }
    Amounts(amounts)
}

/// A change that is refused whatever was said before, and the version that it expects.
fn wrong(rng: &mut Random) -> (RoleChange, Option<u64>) {
    let change = RoleChange::default();
    let cpus = |amount| Amounts(BTreeMap::from([(CPUS.to_owned(), amount)]));
    let change = match rng.below(8) {
        0 => RoleChange { weight_milli: Some(0), ..change },
        1 => RoleChange { weight_milli: Some(WEIGHT_MAX_MILLI + 1), ..change },
        2 => RoleChange { priority: Some(u32::from(PRIORITY_MAX) + 1), ..change },
        3 => RoleChange { guarantee: Some(cpus(-1)), ..change },
        4 => RoleChange { guarantee: Some(cpus(900)), limit: Some(cpus(800)), ..change },
        5 => RoleChange { guarantee: Some(Amounts::default()), hold_back: Some(true), ..change },
        6 => change,
        _ => return (RoleChange { weight_milli: Some(2_000), ..change }, Some(u64::MAX)),
    };
    (change, None)
}

/// Whether a change is one of those.
fn is_wrong(change: &RoleChange, expected: Option<u64>) -> bool {
    let of = |amounts: &Option<Amounts>| amounts.as_ref().and_then(|amounts| amounts.get(CPUS));
    let (guarantee, limit) = (of(&change.guarantee), of(&change.limit));
    expected == Some(u64::MAX)
        || *change == RoleChange::default()
        || change.weight_milli.is_some_and(|weight| !(1..=WEIGHT_MAX_MILLI).contains(&weight))
        || change.priority.is_some_and(|priority| priority > u32::from(PRIORITY_MAX))
        || guarantee.is_some_and(|amount| amount < 0 || limit.is_some_and(|limit| limit < amount))
        || change.hold_back == Some(true) && change.guarantee.as_ref().is_some_and(Amounts::is_empty)
}

/// What is said of a role after a change.
fn changed(before: &RolePolicy, change: &RoleChange) -> RolePolicy {
    let priority = change.priority.and_then(|priority| u16::try_from(priority).ok());
    RolePolicy {
        weight_milli: change.weight_milli.unwrap_or(before.weight_milli),
        priority: priority.unwrap_or(before.priority),
        guarantee: change.guarantee.clone().unwrap_or_else(|| before.guarantee.clone()),
        limit: change.limit.clone().unwrap_or_else(|| before.limit.clone()),
        min_offer: change.min_offer.unwrap_or(before.min_offer),
        hold_back: change.hold_back.unwrap_or(before.hold_back),
        version: 0,
    }
}

/// What is said of all roles, without versions, and what each uses for good and to be taken back.
pub(crate) type Roles = BTreeMap<String, (RolePolicy, Resources, Resources)>;

/// What a master says of all roles.
pub(crate) fn roles_of(core: &Core) -> Roles {
    let views = core.roles(None, ROLES_MAX).into_iter();
    let without = |policy| RolePolicy { version: 0, ..policy };
    views.map(|view| (view.role, (without(view.policy), view.used, view.revocable))).collect()
}

impl World {
    /// Something is said of one role. Returns whether there was something to do.
    pub(crate) fn operator_shares(&mut self) -> bool {
        let asked = self.calls.asks(|request| matches!(request, Request::SetRole { .. }));
        let Some(shares) = self.shares.as_ref().filter(|_| !asked) else { return false };
        let names = shares.names();
        let (role, (change, expected_version)) = if !self.faults_on {
            let Some((role, change)) = self.unsettled_role() else { return false };
            (role, (change, None))
        } else if self.rng.chance(SAID) {
            let name = names[self.rng.index(names.len())];
            let Ok(role) = RoleName::try_from(name.to_owned()) else { return false };
            let said = if self.rng.chance(WRONG) { wrong(&mut self.rng) } else { (self.role_change(), None) };
            (role, said)
        } else {
            return false;
        };
        self.oracle.saw("something is said of a role");
        self.order(Request::SetRole { role, change, expected_version })
    }

    /// Something that may be said, unless it does not go with what is said of others.
    fn role_change(&mut self) -> RoleChange {
        let all = Agent::total().cpus_milli * i64::try_from(self.agents.len()).unwrap_or(1);
        let rng = &mut self.rng;
        let change = RoleChange::default();
        match rng.below(14) {
            0 => RoleChange { weight_milli: u32::try_from(rng.range(1, 5_000)).ok(), ..change },
            1 => RoleChange { priority: u32::try_from(rng.below(4)).ok(), ..change },
            2..8 => {
                let hold_back = rng.chance(40).then_some(true);
                let guarantee = Some(amounts(rng, 0, all));
                let limit = rng.chance(40).then(Amounts::default);
                RoleChange { guarantee, hold_back, limit, ..change }
            }
            8..12 => RoleChange { limit: Some(amounts(rng, 300, 3_000)), ..change },
            12 => {
                let cpus_milli = i64::try_from(rng.range(0, 600)).unwrap_or(0);
                let least = Quantities { cpus_milli, mem_mib: cpus_milli / 8, disk_mib: 0 };
                RoleChange { min_offer: Some(least), ..change }
            }
            _ => RoleChange::reset(),
        }
    }

    /// Nothing breaks any more: one role is to have a guarantee.
    pub(crate) fn choose_last_share(&mut self) {
        let Some(shares) = &mut self.shares else { return };
        let name = shares.role(self.rng.below(self.plan.frameworks));
        let Ok(role) = RoleName::try_from(name.to_owned()) else { return };
        let all = Agent::total().cpus_milli * i64::try_from(self.agents.len()).unwrap_or(1);
        let mut guarantee = amounts(&mut self.rng, 500, (all - LEFT_MILLI).clamp(600, 2_500));
        if let Some(gpus) = guarantee.0.get_mut(GPUS) {
            *gpus = 500;
        }
        let hold_back = self.rng.chance(50);
        let change = RoleChange {
            guarantee: Some(guarantee),
            limit: Some(Amounts::default()),
            min_offer: Some(Quantities::ZERO),
            hold_back: Some(hold_back),
            ..RoleChange::default()
        };
        shares.last = Some((role, change));
    }

    /// What is still to be said of a role in the end: last of the one that has a guarantee then.
    fn unsettled_role(&self) -> Option<(RoleName, RoleChange)> {
        let (chosen, last) = self.shares.as_ref()?.last.as_ref()?;
        let core = self.leading()?.core();
        let nothing = RoleChange {
            guarantee: Some(Amounts::default()),
            limit: Some(Amounts::default()),
            min_offer: Some(Quantities::ZERO),
            hold_back: Some(false),
            ..RoleChange::default()
        };
        let differs = |role: &str, change: &RoleChange| {
            let before = RolePolicy { version: 0, ..core.role(&role.parse().ok()?).policy };
            (before != changed(&before, change)).then(|| Some((role.parse().ok()?, change.clone()))).flatten()
        };
        let others = core.roles(None, ROLES_MAX).into_iter().filter(|view| view.role != chosen.as_str());
        others.into_iter().find_map(|view| differs(&view.role, &nothing)).or_else(|| differs(chosen.as_str(), last))
    }

    /// Whether something is still to be said.
    pub(crate) fn roles_are_unsettled(&self) -> bool {
        self.unsettled_role().is_some() || self.calls.asks(|request| matches!(request, Request::SetRole { .. }))
    }

    /// What came of saying something.
    pub(crate) fn role_answered(&mut self, request: &Request, done: bool) {
        let (Request::SetRole { role, change, expected_version }, Some(shares)) = (request, &mut self.shares) else {
            return;
        };
        if !done {
            return self.oracle.saw("what is said of a role is refused");
        }
        if is_wrong(change, *expected_version) {
            return self.oracle.violate(format!("what cannot be said of role {role} is accepted: {change:?}"));
        }
        let before = shares.said.entry(role.to_string()).or_default();
        *before = changed(before, change);
    }

    /// What all masters hold of roles is the same, and what was acknowledged.
    pub(crate) fn compare_roles(&mut self) {
        let settled = self.settled.is_some() && self.era == 0;
        let mut known: Option<(u64, Roles)> = None;
        for master in &self.masters {
            let Some(node) = &master.node else { continue };
            let (index, roles) = (node.status().applied.index, roles_of(node.core()));
            let said = self.shares.iter().filter(|_| settled).flat_map(|shares| &shares.said);
            for (role, expected) in said {
                let default = RolePolicy::default();
                let found = roles.get(role).map_or(&default, |(policy, ..)| policy);
                if found != expected {
                    let slot = master.slot;
                    let text = format!("of role {role} master {slot} holds {found:?}, and {expected:?} was acknowledged");
                    return self.oracle.violate(text);
                }
            }
            match &known {
                Some((at, others)) if *at == index && *others != roles => {
                    let slot = master.slot;
                    return self.oracle.violate(format!("master {slot} holds other roles than others at entry {index}"));
                }
                Some((at, _)) if *at >= index => {}
                _ => known = Some((index, roles)),
            }
        }
    }

    /// Whoever waits for what is guaranteed to it, where revocable tasks alone are in the way, gets it in time.
    pub(crate) fn look_for_starved(&mut self) {
        let now_us = self.now_us;
        let waiting = match self.leading().map(tessera_master::node::Node::core) {
            Some(core) if self.shares.is_some() && !self.roles_are_unsettled() => who_waits(core),
            Some(_) | None => BTreeMap::new(),
        };
        let Some(shares) = &mut self.shares else { return };
        shares.waits.retain(|framework, _| waiting.contains_key(framework));
        for (framework, what) in waiting {
            let since = shares.waits.entry(framework).or_insert(now_us);
            *since = (*since).max(self.oracle.last_offered_us(framework));
            if now_us > *since + STARVED_US {
                let text = format!("f{framework} waits in vain for what is guaranteed to it, {what}");
                return self.oracle.violate(text);
            }
        }
    }
}

/// Frameworks with a request within the guarantee of a role, for which there is an agent if revocable tasks go.
fn who_waits(core: &Core) -> BTreeMap<u64, String> {
    let agents = core.agents();
    let frameworks = core.frameworks().into_iter();
    let ready = |view: &FrameworkView| {
        view.ready && !view.suppressed && !view.removing && view.quarantine.is_none() && view.upgrade.is_none()
    };
    let waits = |view: FrameworkView| {
        let roles: Vec<_> = lineage(view.role.as_str()).filter_map(|role| Some(core.role(&role.parse().ok()?))).collect();
        let within = |request: &&ResourceRequest| {
            roles.iter().any(|role| {
                let lacks = |kind: &str| role.policy.guarantee.get(kind).map(|all| all - role.used.amount(kind));
                let kinds = [CPUS, MEM, GPUS].into_iter().filter(|kind| request.resources.amount(kind) > 0);
                kinds.into_iter().all(|kind| lacks(kind).is_some_and(|lacks| lacks >= request.resources.amount(kind)))
            })
        };
        let fits = |request: &&ResourceRequest| agents.iter().any(|agent| could_have(agent, request));
        let mut requests = view.requests.iter().filter(|request| !request.revocable).filter(within).filter(fits);
        requests.next().map(|request| (view.id.0, format!("{} as {}", request.resources, request.id)))
    };
    frameworks.filter(ready).filter_map(waits).collect()
}

/// Whether a request fits on an agent when what is revocable there is taken back.
fn could_have(agent: &AgentView, request: &ResourceRequest) -> bool {
    let usable = agent.connected && !agent.deactivated && agent.unreachable_ms.is_none();
    let holds = request.constraints.iter().all(|of| of.holds_for(&agent.hostname, &agent.attributes));
    usable && holds && agent.total.minus(&agent.used).contains(&request.resources)
}
