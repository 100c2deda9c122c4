//! The tree of roles: what each uses, in which order they come, and what their guarantees still need.
//!
//! Invariants: a role's use is the sum of its own frameworks' and its children's; orders hold exactly those
//! below whom somebody may be offered something, the lowest share first; a need is what the role's guarantee
//! lacks, or what those below it need together, whichever is more. Must never know agents.

use super::consider::leaves_some;
use super::share::Share;
use super::vector::{CPUS, Kinds, MEM, Vector};
use super::{Allocator, CLASSES, LANES, LEVELS, REGULAR};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use tessera_types::RolePolicy;

/// The virtual child that stands for a role's own frameworks.
pub(super) const OWN: usize = usize::MAX;
/// The root's place.
pub(super) const ROOT: usize = 0;
/// Weight of a virtual child.
const OWN_WEIGHT: u32 = 1_000;

/// What somebody uses of one class, offers included.
#[derive(Clone, Debug)]
pub(super) struct Use {
    pub(super) sum: Vector,
    pub(super) share: Share,
}

impl Default for Use {
    fn default() -> Self {
        Self { sum: Vector::default(), share: Share::NONE }
    }
}

impl Use {
    fn change(&mut self, by: &Vector, more: bool, total: &Vector) {
        if more {
            self.sum.add(by);
        } else {
            self.sum.take(by);
        }
        self.share = Share::dominant(&self.sum, total).0;
    }
}

/// Amounts of some kinds only.
pub(super) type Quota = Vec<(usize, i64)>;

/// What is said of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Somebody said it.
    pub(super) set: bool,
    pub(super) weight: u32,
    pub(super) priority: u16,
    pub(super) guarantee: Quota,
    pub(super) limit: Quota,
    pub(super) min_offer: Vector,
    pub(super) hold_back: bool,
}

impl Default for Said {
    fn default() -> Self {
        let (guarantee, limit) = (Quota::new(), Quota::new());
        let min_offer = Vector::default();
        Self { set: false, weight: OWN_WEIGHT, priority: 0, guarantee, limit, min_offer, hold_back: false }
    }
}

/// One role.
#[derive(Clone, Debug, Default)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) parent: usize,
    pub(super) children: BTreeSet<usize>,
    pub(super) frameworks: BTreeSet<usize>,
    pub(super) said: Said,
    pub(super) own: [Use; CLASSES],
    pub(super) all: [Use; CLASSES],
    /// What its guarantee and those below need.
    pub(super) need: Vector,
    /// What its children need together.
    pub(super) below: Vector,
    /// Its children below whom somebody may be offered something, by lane.
    pub(super) orders: [Vec<usize>; LANES],
    /// Its own frameworks that may be offered something.
    pub(super) members: [Vec<usize>; LANES],
    /// How many there are of those with all roles below.
    pub(super) active: [usize; LANES],
    /// From which place in the queue of looked-at agents on somebody was passed over for its quota limit, or because
    /// its guarantee lacked less.
    pub(super) missed: Option<u64>,
}

impl Role {
    /// What its guarantee still lacks of a kind.
    pub(super) fn lacks(&self, kind: usize) -> i64 {
        let of = self.said.guarantee.iter().find(|(of, _)| *of == kind);
        of.map_or(0, |(_, amount)| (amount - self.all[REGULAR].sum.get(kind)).max(0))
    }

    /// Whether its guarantee lacks anything.
    pub(super) fn lacks_any(&self) -> bool {
        self.said.guarantee.iter().any(|(kind, amount)| *amount > self.all[REGULAR].sum.get(*kind))
    }

    /// Its quota limit leaves so little that nobody in it or below is offered anything.
    pub(super) fn shut(&self) -> bool {
        self.said.limit.iter().any(|(kind, limit)| !leaves_some(*kind, limit - self.all[REGULAR].sum.get(*kind)))
    }

    /// It has a guarantee, and as much CPU and memory as that says: nobody there has more room than everybody has.
    pub(super) fn met(&self) -> bool {
        !self.said.guarantee.is_empty() && self.lacks(CPUS) == 0 && self.lacks(MEM) == 0
    }

    /// Whether less use of it leaves more room to those below.
    fn eases(&self) -> bool {
        !self.shut() && (!self.said.limit.is_empty() || self.said.guarantee.is_empty() || self.lacks_any())
    }

    /// Whether it stands in the order of its parent.
    fn linked(&self, lane: usize) -> bool {
        self.active[lane] > 0 && !(lane < LEVELS && self.shut())
    }

    fn wanted(&self) -> bool {
        self.active[..LEVELS].iter().any(|active| *active > 0)
    }
}

fn quota(kinds: &mut Kinds, amounts: &tessera_types::Amounts) -> Quota {
    amounts.iter().filter_map(|(name, amount)| Some((kinds.number(&super::vector::plain(name))?, amount))).collect()
}

impl Allocator {
    /// The place of a role; it gets one, with all above it, if it has none.
    pub(super) fn role(&mut self, name: &str) -> usize {
        if let Some(place) = self.role_of.get(name) {
            return *place;
        }
        let parent = name.rsplit_once('/').map_or(ROOT, |(above, _)| self.role(above));
        let role = Role { name: name.to_owned(), parent, ..Role::default() };
        let place = match self.free_roles.pop() {
            Some(place) => {
                self.roles[place] = role;
                place
            }
            None => {
                self.roles.push(role);
                self.roles.len() - 1
            }
        };
        self.roles[parent].children.insert(place);
        self.role_of.insert(name.to_owned(), place);
        place
    }

    /// Forget a role of which nothing is left, and those above it likewise.
    fn drop_role(&mut self, mut place: usize) {
        while place != ROOT {
            let role = &self.roles[place];
            if role.said.set || !role.children.is_empty() || !role.frameworks.is_empty() {
                return;
            }
            let parent = role.parent;
            self.role_of.remove(&role.name);
            self.roles[parent].children.remove(&place);
            self.roles[place] = Role::default();
            self.free_roles.push(place);
            place = parent;
        }
    }

    /// What is said of a role.
    pub(crate) fn set_role(&mut self, name: &str, policy: Option<&RolePolicy>) {
        if policy.is_none() && !self.role_of.contains_key(name) {
            return;
        }
        let place = self.role(name);
        let default = RolePolicy::default();
        let said = policy.unwrap_or(&default);
        let guarantee = quota(&mut self.kinds, &said.guarantee);
        let limit = quota(&mut self.kinds, &said.limit);
        let least = said.min_offer;
        let said = Said {
            set: policy.is_some(),
            weight: said.weight_milli.max(1),
            priority: said.priority,
            guarantee,
            limit,
            min_offer: Vector::of(least.cpus_milli, least.mem_mib, least.disk_mib),
            hold_back: said.hold_back,
        };
        if self.roles[place].said == said {
            return self.drop_role(place);
        }
        self.roles[place].said = said;
        // Anything may follow from that: it is rare.
        self.unsorted = true;
        self.look_everywhere();
        self.drop_role(place);
    }

    /// The role and all above it, without the root.
    pub(super) fn lineage(&self, place: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(place), |place| Some(self.roles[*place].parent))
            .take_while(|place| *place != ROOT)
    }

    /// Whether a role is another one, or below it.
    pub(super) fn within(&self, place: usize, above: usize) -> bool {
        above == ROOT || self.lineage(place).any(|place| place == above)
    }

    fn cmp_children(&self, parent: usize, class: usize, one: usize, other: usize) -> Ordering {
        let of = |child: usize| match child {
            OWN => (&self.roles[parent].own[class].share, OWN_WEIGHT, ""),
            child => {
                let role = &self.roles[child];
                (&role.all[class].share, role.said.weight, role.name.as_str())
            }
        };
        let ((one, weight, name), (other, other_weight, other_name)) = (of(one), of(other));
        one.cmp_weighted(weight, other, other_weight).then_with(|| name.cmp(other_name))
    }

    fn cmp_members(&self, class: usize, one: usize, other: usize) -> Ordering {
        let (one, other) = (&self.frameworks[one], &self.frameworks[other]);
        one.uses[class].share.cmp(&other.uses[class].share).then(one.id.cmp(&other.id))
    }

    pub(super) fn cmp_needy(&self, one: usize, other: usize) -> Ordering {
        let (one, other) = (&self.roles[one], &self.roles[other]);
        let shares =
            || one.all[REGULAR].share.cmp_weighted(one.said.weight, &other.all[REGULAR].share, other.said.weight);
        other.said.priority.cmp(&one.said.priority).then_with(shares).then_with(|| one.name.cmp(&other.name))
    }

    fn insert(list: &mut Vec<usize>, item: usize, cmp: impl Fn(usize) -> Ordering) {
        let at = list.binary_search_by(|other| cmp(*other)).unwrap_or_else(|at| at);
        list.insert(at, item);
    }

    fn remove(list: &mut Vec<usize>, item: usize, cmp: impl Fn(usize) -> Ordering) {
        // It is not where it should be only while the whole has changed and orders have not been made anew.
        match list.binary_search_by(|other| cmp(*other)) {
            Ok(at) if list[at] == item => {
                list.remove(at);
            }
            _ => list.retain(|other| *other != item),
        }
    }

    /// Take a framework and all above it out of their orders, to be put back when what they use has changed.
    fn pull(&mut self, framework: usize, class: usize) {
        self.relink(framework, class, false);
    }

    fn push(&mut self, framework: usize, class: usize) {
        self.relink(framework, class, true);
    }

    fn relink(&mut self, framework: usize, class: usize, insert: bool) {
        let own = self.frameworks[framework].role;
        if let Some(lane) = self.frameworks[framework].lanes[class] {
            let mut list = std::mem::take(&mut self.roles[own].members[lane]);
            if !insert && list.len() == 1 {
                // The virtual child goes with its last member.
                self.move_child(own, OWN, class, lane, false);
            }
            let was_empty = list.is_empty();
            let cmp = |other| self.cmp_members(class, other, framework);
            if insert { Self::insert(&mut list, framework, cmp) } else { Self::remove(&mut list, framework, cmp) }
            self.roles[own].members[lane] = list;
            if insert && was_empty {
                self.move_child(own, OWN, class, lane, true);
            }
        }
    }

    fn move_child(&mut self, parent: usize, child: usize, class: usize, lane: usize, insert: bool) {
        let mut list = std::mem::take(&mut self.roles[parent].orders[lane]);
        let cmp = |other| self.cmp_children(parent, class, other, child);
        if insert { Self::insert(&mut list, child, cmp) } else { Self::remove(&mut list, child, cmp) }
        self.roles[parent].orders[lane] = list;
    }

    /// Take all above a framework out of their orders, or put them back.
    fn move_line(&mut self, role: usize, class: usize, insert: bool) {
        let lanes = class * LEVELS..(class + 1) * LEVELS;
        for lane in lanes.clone() {
            if !self.roles[role].members[lane].is_empty() {
                self.move_child(role, OWN, class, lane, insert);
            }
        }
        let mut place = role;
        while place != ROOT {
            let parent = self.roles[place].parent;
            for lane in lanes.clone() {
                if self.roles[place].linked(lane) {
                    self.move_child(parent, place, class, lane, insert);
                }
            }
            if class == REGULAR && !self.roles[place].said.guarantee.is_empty() {
                self.move_needy(place, insert);
            }
            place = parent;
        }
    }

    fn move_needy(&mut self, place: usize, insert: bool) {
        if insert && !(self.roles[place].lacks_any() && self.roles[place].wanted()) {
            return;
        }
        let mut list = std::mem::take(&mut self.needy);
        let cmp = |other| self.cmp_needy(other, place);
        if insert { Self::insert(&mut list, place, cmp) } else { Self::remove(&mut list, place, cmp) }
        self.needy = list;
    }

    /// A framework uses more or less than before.
    pub(super) fn change_use(&mut self, framework: usize, class: usize, by: &Vector, more: bool) {
        if by.is_zero() {
            return;
        }
        let own = self.frameworks[framework].role;
        if self.unsorted {
            // All orders are made anew before they are looked at.
            self.add_use(framework, class, by, more);
            return;
        }
        self.move_line(own, class, false);
        self.relink_member(framework, class, by, more);
        self.move_line(own, class, true);
    }

    fn relink_member(&mut self, framework: usize, class: usize, by: &Vector, more: bool) {
        let own = self.frameworks[framework].role;
        let lane = self.frameworks[framework].lanes[class];
        let mut list = lane.map(|lane| std::mem::take(&mut self.roles[own].members[lane])).unwrap_or_default();
        if lane.is_some() {
            Self::remove(&mut list, framework, |other| self.cmp_members(class, other, framework));
        }
        self.add_use(framework, class, by, more);
        if let Some(lane) = lane {
            Self::insert(&mut list, framework, |other| self.cmp_members(class, other, framework));
            self.roles[own].members[lane] = list;
        }
    }

    fn add_use(&mut self, framework: usize, class: usize, by: &Vector, more: bool) {
        let own = self.frameworks[framework].role;
        self.frameworks[framework].uses[class].change(by, more, &self.total);
        self.roles[own].own[class].change(by, more, &self.total);
        let mut place = own;
        while place != ROOT {
            self.roles[place].all[class].change(by, more, &self.total);
            let role = &self.roles[place];
            let less = !more || by.iter().any(|(_, amount)| amount < 0);
            if class == REGULAR && less && role.missed.is_some() && role.eases() {
                self.role_eased(place);
            }
            let role = &self.roles[place];
            if class == REGULAR && (role.shut() || role.met()) {
                self.miss(place, self.last_looked + 1);
            }
            place = self.roles[place].parent;
        }
        if class == REGULAR && !self.unsorted {
            self.change_need(own);
        }
    }

    /// What a role and those above it need may have changed.
    fn change_need(&mut self, role: usize) {
        let mut place = role;
        while place != ROOT && self.any_guarantee {
            let need = self.need_of(place);
            let parent = self.roles[place].parent;
            if need != self.roles[place].need {
                let before = std::mem::replace(&mut self.roles[place].need, need.clone());
                self.roles[parent].below.take(&before);
                self.roles[parent].below.add(&need);
            }
            place = parent;
        }
    }

    fn need_of(&self, place: usize) -> Vector {
        let role = &self.roles[place];
        let mut need = role.below.clone();
        for (kind, _) in &role.said.guarantee {
            need.set(*kind, need.get(*kind).max(role.lacks(*kind)));
        }
        need
    }

    /// Somebody may be offered something from now on, or not.
    pub(super) fn set_lane(&mut self, framework: usize, class: usize, lane: Option<usize>) {
        let before = self.frameworks[framework].lanes[class];
        if before == lane {
            return;
        }
        self.open[class].put(framework, lane.is_some());
        let own = self.frameworks[framework].role;
        let line: Vec<usize> = self.lineage(own).collect();
        if self.unsorted {
            self.frameworks[framework].lanes[class] = lane;
            return;
        }
        if class == REGULAR {
            for place in &line {
                if !self.roles[*place].said.guarantee.is_empty() {
                    self.move_needy(*place, false);
                }
            }
        }
        if let Some(lane) = before {
            self.pull(framework, class);
            for place in &line {
                let was = self.roles[*place].linked(lane);
                self.roles[*place].active[lane] -= 1;
                if was && self.roles[*place].active[lane] == 0 {
                    self.move_child(self.roles[*place].parent, *place, class, lane, false);
                }
            }
        }
        self.frameworks[framework].lanes[class] = lane;
        if let Some(lane) = lane {
            self.push(framework, class);
            for place in &line {
                self.roles[*place].active[lane] += 1;
                if self.roles[*place].active[lane] == 1 && self.roles[*place].linked(lane) {
                    self.move_child(self.roles[*place].parent, *place, class, lane, true);
                }
            }
        }
        if class == REGULAR {
            for place in line {
                if !self.roles[place].said.guarantee.is_empty() {
                    self.move_needy(place, true);
                }
            }
        }
    }

    /// A framework belongs to a role from now on.
    pub(super) fn join_role(&mut self, framework: usize, role: usize) {
        self.roles[role].frameworks.insert(framework);
    }

    /// The reverse; what it used is given back before.
    pub(super) fn leave_role(&mut self, framework: usize) {
        let role = self.frameworks[framework].role;
        self.roles[role].frameworks.remove(&framework);
        self.drop_role(role);
    }

    /// All shares have changed, because the whole has.
    fn rescale(&mut self) {
        let total = &self.total;
        let used = |uses: &&mut Use| !uses.sum.is_zero();
        for uses in self.frameworks.iter_mut().flat_map(|framework| &mut framework.uses).filter(used) {
            uses.share = Share::dominant(&uses.sum, total).0;
        }
        for uses in self.roles.iter_mut().flat_map(|role| role.own.iter_mut().chain(&mut role.all)).filter(used) {
            uses.share = Share::dominant(&uses.sum, total).0;
        }
    }

    /// Shares have changed, and with them orders, though less than one might think: all grow or shrink alike.
    fn sort_again(&mut self) {
        for place in 0..self.roles.len() {
            for lane in 0..LANES {
                let class = lane / LEVELS;
                let mut members = std::mem::take(&mut self.roles[place].members[lane]);
                if members.len() > 1 {
                    members.sort_by(|one, other| self.cmp_members(class, *one, *other));
                }
                self.roles[place].members[lane] = members;
                let mut order = std::mem::take(&mut self.roles[place].orders[lane]);
                if order.len() > 1 {
                    order.sort_by(|one, other| self.cmp_children(place, class, *one, *other));
                }
                self.roles[place].orders[lane] = order;
            }
        }
        let mut needy = std::mem::take(&mut self.needy);
        needy.sort_by(|one, other| self.cmp_needy(*one, *other));
        self.needy = needy;
    }

    /// Put everything in order that was left out of it, because all shares or the rules have changed.
    pub(super) fn sort(&mut self) {
        let rescaled = std::mem::take(&mut self.rescaled);
        if rescaled {
            self.rescale();
        }
        if !std::mem::take(&mut self.unsorted) {
            if rescaled {
                self.sort_again();
            }
            return;
        }
        for role in &mut self.roles {
            role.active = [0; LANES];
            role.orders.iter_mut().chain(&mut role.members).for_each(Vec::clear);
            role.below = Vector::default();
            role.need = Vector::default();
        }
        for framework in 0..self.frameworks.len() {
            let own = self.frameworks[framework].role;
            for lane in self.frameworks[framework].lanes.into_iter().flatten() {
                self.roles[own].members[lane].push(framework);
                let line: Vec<usize> = self.lineage(own).collect();
                for place in line {
                    self.roles[place].active[lane] += 1;
                }
            }
        }
        let guaranteed = self.roles.iter().flat_map(|role| &role.said.guarantee);
        self.guaranteed = guaranteed.map(|(kind, _)| *kind).collect();
        self.any_guarantee = !self.guaranteed.is_empty();
        self.any_least = self.roles.iter().any(|role| !role.said.min_offer.is_zero());
        self.any_limit = self.roles.iter().any(|role| !role.said.limit.is_empty());
        self.sort_below(ROOT);
        let closed = |place: &usize| self.roles[*place].shut() || self.roles[*place].met();
        let closed: Vec<usize> = self.role_of.values().copied().filter(closed).collect();
        // It may be that nobody there is considered at any agent from now on.
        closed.into_iter().for_each(|place| self.miss(place, 1));
        let needy = self.role_of.values().copied();
        let needy = needy.filter(|place| self.roles[*place].lacks_any() && self.roles[*place].wanted());
        let mut needy: Vec<usize> = needy.collect();
        needy.sort_by(|one, other| self.cmp_needy(*one, *other));
        self.needy = needy;
    }

    fn sort_below(&mut self, place: usize) {
        let children: Vec<usize> = self.roles[place].children.iter().copied().collect();
        for child in &children {
            self.sort_below(*child);
            let need = self.roles[*child].need.clone();
            self.roles[place].below.add(&need);
        }
        for lane in 0..LANES {
            let class = lane / LEVELS;
            let mut members = std::mem::take(&mut self.roles[place].members[lane]);
            members.sort_by(|one, other| self.cmp_members(class, *one, *other));
            let mut order: Vec<usize> =
                children.iter().copied().filter(|child| self.roles[*child].linked(lane)).collect();
            order.extend(Some(OWN).filter(|_| !members.is_empty()));
            order.sort_by(|one, other| self.cmp_children(place, class, *one, *other));
            self.roles[place].members[lane] = members;
            self.roles[place].orders[lane] = order;
        }
        if place != ROOT {
            self.roles[place].need = self.need_of(place);
        }
    }
}
