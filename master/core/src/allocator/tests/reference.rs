//! The model: plain tables, everything computed anew at each step, nothing remembered.

use crate::allocator::vector::{CPUS, MEM, plain};
use crate::allocator::{AgentFacts, FrameworkFacts, Grant, Kinds, Pieces, REGULAR, REVOCABLE, Vector};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, Amounts, FrameworkId, RolePolicy};

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) kinds: Kinds,
    pub(super) roles: BTreeMap<String, RolePolicy>,
    pub(super) frameworks: BTreeMap<FrameworkId, FrameworkFacts>,
    pub(super) agents: BTreeMap<AgentId, AgentFacts>,
    pub(super) filters: BTreeMap<(AgentId, FrameworkId), (Vector, u64)>,
}

/// A share over a weight, as a fraction of small numbers.
type Fraction = (i128, i128);

fn less((a, b): Fraction, (c, d): Fraction) -> Ordering {
    (a * d).cmp(&(c * b))
}

fn lineage(role: &str) -> Vec<&str> {
    // The outermost first.
    let ends = role.match_indices('/').map(|(at, _)| at).chain([role.len()]);
    ends.map(|end| &role[..end]).collect()
}

fn within(role: &str, above: &str) -> bool {
    above.is_empty() || lineage(role).contains(&above)
}

impl Model {
    fn policy(&self, role: &str) -> RolePolicy {
        self.roles.get(role).cloned().unwrap_or_default()
    }

    fn quota(&self, amounts: &Amounts) -> Vec<(usize, i64)> {
        let mut kinds = self.kinds.clone();
        amounts.iter().map(|(name, amount)| (kinds.number(&plain(name)).unwrap(), amount)).collect()
    }

    fn all_roles(&self) -> BTreeSet<String> {
        let named = self.roles.keys().chain(self.frameworks.values().map(|facts| &facts.role));
        named.flat_map(|role| lineage(role)).map(str::to_owned).collect()
    }

    fn uses(&self, class: usize, of: impl Fn(&str) -> bool) -> Vector {
        let mut sum = Vector::default();
        for facts in self.frameworks.values().filter(|facts| of(&facts.role)) {
            sum.add(&self.kinds.counted(&facts.uses[class]));
        }
        sum
    }

    fn total(&self) -> Vector {
        let mut total = Vector::default();
        for facts in self.agents.values() {
            total.add(&self.kinds.counted(&facts.total));
        }
        total
    }

    fn share(&self, uses: &Vector, weight: u32) -> Fraction {
        let total = self.total();
        let mut most = (0, 1);
        for (kind, part) in uses.iter() {
            let share = (i128::from(part), i128::from(total.get(kind)));
            if part > 0 && share.1 > 0 && less(share, most).is_gt() {
                most = share;
            }
        }
        (most.0 * 1_000, most.1 * i128::from(weight))
    }

    fn lacks(&self, role: &str, kind: usize) -> i64 {
        let uses = self.uses(REGULAR, |of| within(of, role));
        let guarantee = self.quota(&self.policy(role).guarantee);
        let amount = guarantee.iter().find(|(of, _)| *of == kind).map_or(0, |(_, amount)| *amount);
        (amount - uses.get(kind)).max(0)
    }

    fn children(&self, role: &str) -> Vec<String> {
        let depth = if role.is_empty() { 0 } else { role.split('/').count() };
        let all = self.all_roles();
        all.into_iter().filter(|name| name.split('/').count() == depth + 1 && within(name, role)).collect()
    }

    fn below(&self, role: &str, kind: usize) -> i64 {
        self.children(role).iter().map(|child| self.need(child, kind)).sum()
    }

    fn need(&self, role: &str, kind: usize) -> i64 {
        self.lacks(role, kind).max(self.below(role, kind))
    }

    /// What guarantees below `above` need that are not of the line from there to a role.
    fn others(&self, role: &str, above: &str, kind: usize) -> i64 {
        let line = lineage(role);
        let mut sum = self.below(role, kind);
        let parents = std::iter::once("").chain(line.iter().copied());
        for (parent, child) in parents.zip(&line) {
            if within(parent, above) {
                sum += self.below(parent, kind) - self.need(child, kind);
            }
        }
        sum
    }

    fn there(&self, kind: usize) -> i64 {
        let open = self.agents.values().filter(|facts| facts.open);
        open.map(|facts| {
            let free = self.kinds.unreserved(&facts.free.clamped());
            free.get(kind) + self.kinds.counted(&facts.revocable).get(kind)
        })
        .sum()
    }

    /// In which order frameworks come.
    fn compare(&self, class: usize, one: FrameworkId, other: FrameworkId) -> Ordering {
        let (a, b) = (&self.frameworks[&one], &self.frameworks[&other]);
        let by_level = a.wasted.min(3).cmp(&b.wasted.min(3));
        if by_level.is_ne() {
            return by_level;
        }
        let (mut line, mut other_line) = (lineage(&a.role), lineage(&b.role));
        // The virtual child of a role's own frameworks.
        line.push("");
        other_line.push("");
        let same = line.iter().zip(&other_line).take_while(|(x, y)| x == y).count();
        if same < line.len() && same < other_line.len() {
            let parent = if same == 0 { "" } else { line[same - 1] };
            let of = |name: &str| match name {
                "" => self.share(&self.uses(class, |of| of == parent), 1_000),
                name => self.share(&self.uses(class, |of| within(of, name)), self.policy(name).weight_milli),
            };
            let shares = less(of(line[same]), of(other_line[same]));
            return shares.then_with(|| line[same].cmp(other_line[same]));
        }
        let of = |facts: &FrameworkFacts| self.share(&self.kinds.counted(&facts.uses[class]), 1_000);
        less(of(a), of(b)).then(one.cmp(&other))
    }

    fn willing(&self, class: usize, within_role: &str) -> Vec<FrameworkId> {
        let open = self.frameworks.iter().filter(|(_, facts)| {
            let some = facts.wants.iter().any(|want| want.revocable == (class == REVOCABLE));
            facts.open && within(&facts.role, within_role) && (some || class == REGULAR && facts.wants.is_empty())
        });
        let mut open: Vec<FrameworkId> = open.map(|(id, _)| *id).collect();
        open.sort_by(|one, other| self.compare(class, *one, *other));
        open
    }

    fn surplus(&self, role: &str, kind: usize) -> i64 {
        self.there(kind) - self.others(role, "", kind)
    }

    /// What a framework may be offered of an agent; for a role's guarantee, if one is named.
    fn part(&self, id: FrameworkId, agent: AgentId, class: usize, needy: Option<&str>) -> Option<(Vector, Pieces)> {
        let (facts, place) = (&self.frameworks[&id], &self.agents[&agent]);
        let free = self.kinds.open_to(&place.free.clamped(), &facts.role);
        if free.get(CPUS) < 10 && free.get(MEM) < 32 {
            return None;
        }
        let mut amounts = free;
        let mut nothing = false;
        let mut cut = |amounts: &mut Vector, kind: usize, most: i64| {
            nothing |= kind == CPUS && most < 10 || kind == MEM && most < 32;
            amounts.set(kind, amounts.get(kind).min(most.max(0)));
        };
        if class == REGULAR {
            for role in lineage(&facts.role) {
                let uses = self.uses(REGULAR, |of| within(of, role));
                // Guarantees of others below the same limit keep their part of it, but from one that is being met.
                let due = needy.is_some_and(|needy| within(needy, role));
                for (kind, limit) in self.quota(&self.policy(role).limit) {
                    let kept = if due { 0 } else { self.others(&facts.role, role, kind) };
                    cut(&mut amounts, kind, limit - uses.get(kind) - kept);
                }
            }
        }
        let quota = needy.map(|role| (role, self.quota(&self.policy(role).guarantee)));
        let (mut kept, mut useless) = (false, false);
        for kind in 0..16 {
            let guaranteed = self.guaranteed(kind);
            match &quota {
                _ if class == REVOCABLE && guaranteed => {
                    cut(&mut amounts, kind, self.below("", kind) - self.uses_revocable(kind));
                    kept |= amounts.get(kind) > 0;
                }
                _ if class == REVOCABLE => {}
                Some((role, quota)) if quota.iter().any(|(of, _)| of == &kind) => {
                    cut(&mut amounts, kind, self.lacks(role, kind) - self.others(&facts.role, role, kind));
                    useless |= kind == CPUS && amounts.get(CPUS) < 10 || kind == MEM && amounts.get(MEM) < 32;
                }
                // What nobody has a guarantee of is anybody's, and so are pools.
                _ if guaranteed => cut(&mut amounts, kind, self.surplus(&facts.role, kind)),
                _ => {}
            }
        }
        if nothing || useless || class == REVOCABLE && !kept {
            return None;
        }
        let refused = self.filters.get(&(agent, id)).map(|(refused, _)| refused);
        let (sum, pieces) = self.pieces(facts, place, class, refused, amounts)?;
        if sum.get(CPUS) < 10 && sum.get(MEM) < 32 {
            return None;
        }
        let line = lineage(&facts.role);
        let least = line.iter().rev().map(|role| self.policy(role).min_offer);
        let least = least.map(|least| Vector::of(least.cpus_milli, least.mem_mib, least.disk_mib));
        let least = least.filter(|least| !least.is_zero()).next().unwrap_or_default();
        if pieces.is_empty() && !sum.contains(&least) {
            return None;
        }
        let refused = pieces.is_empty() && refused.is_some_and(|refused| refused.contains(&sum));
        (!refused).then_some((sum, pieces))
    }

    fn guaranteed(&self, kind: usize) -> bool {
        self.roles.values().any(|policy| self.quota(&policy.guarantee).iter().any(|(of, _)| *of == kind))
    }

    fn uses_revocable(&self, kind: usize) -> i64 {
        self.agents.values().map(|facts| self.kinds.counted(&facts.revocable).get(kind)).sum()
    }

    fn pieces(
        &self,
        facts: &FrameworkFacts,
        place: &AgentFacts,
        class: usize,
        refused: Option<&Vector>,
        amounts: Vector,
    ) -> Option<(Vector, Pieces)> {
        if facts.wants.is_empty() {
            return Some((amounts, Vec::new()));
        }
        let (mut left, mut sum, mut pieces) = (amounts, Vector::default(), Vec::new());
        let total = self.total();
        for (at, want) in facts.wants.iter().enumerate() {
            let here = want.constraints.iter().all(|constraint| constraint.holds(&place.info));
            let declined = refused.is_some_and(|refused| refused.contains(&want.piece));
            if !here || declined || want.revocable != (class == REVOCABLE) {
                continue;
            }
            let mut count = 0;
            let missing = want.count - facts.offered.get(at).copied().unwrap_or(0);
            let (mut part, mut more) = (Vector::default(), true);
            while more && count < missing && left.contains(&want.piece) && want.piece.any() {
                left.take(&want.piece);
                part.add(&want.piece);
                count += 1;
                // Others are asked again after a sixty-fourth of the whole, but nothing is too small for an offer.
                part.add(&want.piece);
                let small = [CPUS, MEM].iter().all(|kind| part.get(*kind) <= total.get(*kind) / 64);
                part.take(&want.piece);
                more = small || part.get(CPUS) < 10 && part.get(MEM) < 32;
            }
            sum.add(&part);
            if count > 0 {
                pieces.push((at, count));
            }
            if !more && count < missing && left.contains(&want.piece) {
                break;
            }
        }
        (!pieces.is_empty()).then_some((sum, pieces))
    }

    fn grant(&mut self, id: FrameworkId, agent: AgentId, class: usize, part: (Vector, Pieces), grants: &mut Vec<Grant>) {
        let (amounts, pieces) = part;
        let place = self.agents.get_mut(&agent).unwrap();
        place.free.take(&amounts);
        if class == REVOCABLE {
            place.revocable.add(&amounts);
        }
        let facts = self.frameworks.get_mut(&id).unwrap();
        facts.uses[class].add(&amounts);
        facts.offered.resize(facts.wants.len(), 0);
        for (at, count) in &pieces {
            facts.offered[*at] += count;
        }
        let revocable = class == REVOCABLE;
        let same = |grant: &&mut Grant| grant.framework == id && grant.agent == agent && grant.revocable == revocable;
        match grants.iter_mut().find(same) {
            Some(before) => {
                before.amounts.add(&amounts);
                before.pieces.extend(pieces);
            }
            None => grants.push(Grant { framework: id, agent, amounts, revocable, pieces }),
        }
    }

    pub(super) fn round(&mut self, first: AgentId, now_ms: u64) -> Vec<Grant> {
        self.filters.retain(|_, (_, until_ms)| *until_ms > now_ms);
        let open = self.agents.iter().filter(|(_, facts)| facts.open).map(|(id, _)| *id);
        let (before, after): (Vec<AgentId>, Vec<AgentId>) = open.partition(|id| *id < first);
        let order: Vec<AgentId> = after.into_iter().chain(before).collect();
        let mut grants = Vec::new();
        for agent in &order {
            while let Some((id, part)) = self.for_guarantees(*agent) {
                self.grant(id, *agent, REGULAR, part, &mut grants);
            }
        }
        for agent in &order {
            for class in [REGULAR, REVOCABLE] {
                loop {
                    let willing = self.willing(class, "").into_iter();
                    let mut found = willing.filter_map(|id| Some((id, self.part(id, *agent, class, None)?)));
                    let Some((id, part)) = found.next() else { break };
                    drop(found);
                    self.grant(id, *agent, class, part, &mut grants);
                }
            }
        }
        grants
    }

    fn for_guarantees(&self, agent: AgentId) -> Option<(FrameworkId, (Vector, Pieces))> {
        let needy = self.roles.iter().filter(|(role, policy)| {
            self.quota(&policy.guarantee).iter().any(|(kind, _)| self.lacks(role, *kind) > 0)
        });
        let mut needy: Vec<_> = needy.collect();
        needy.sort_by(|(one, a), (other, b)| {
            let of = |role: &str, policy: &RolePolicy| {
                self.share(&self.uses(REGULAR, |of| within(of, role)), policy.weight_milli)
            };
            let shares = less(of(one, a), of(other, b));
            b.priority.cmp(&a.priority).then(shares).then_with(|| one.cmp(other))
        });
        needy.into_iter().find_map(|(role, _)| {
            let mut willing = self.willing(REGULAR, role).into_iter();
            willing.find_map(|id| Some((id, self.part(id, agent, REGULAR, Some(role))?)))
        })
    }
}

impl Model {
    /// In lines that one can read.
    pub(super) fn shown(&self) -> String {
        let mut text = String::from("\n");
        for (role, policy) in &self.roles {
            text += &format!("{role}: {policy:?}\n");
        }
        for (id, facts) in &self.frameworks {
            text += &format!("{id:?}: {facts:?}\n");
        }
        for (id, facts) in &self.agents {
            text += &format!("{id:?}: {facts:?}\n");
        }
        for (of, refused) in &self.filters {
            text += &format!("{of:?}: {refused:?}\n");
        }
        text
    }
}
