//! Roles as they are shown: what is said of each, what it uses, and its share.
//!
//! Invariant: everything here follows from the state and from the offers that stand; followers know no
//! offers. Must never be what the allocator decides by: it has its own sums.

use crate::Core;
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{CPUS, DISK, MEM, Resources, RoleName, RolePolicy};

/// Parts of a whole: shares are told in millionths.
const PPM: i128 = 1_000_000;

/// One role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleView {
    /// Its name.
    pub role: String,
    /// What is said of it, or what holds where nothing is.
    pub policy: RolePolicy,
    /// Whether something is said of it.
    pub set: bool,
    /// Charged to its frameworks and to those of roles below.
    pub used: Resources,
    /// Offered to them, or being accepted by them.
    pub offered: Resources,
    /// Used beside that, and may be taken back.
    pub revocable: Resources,
    /// The largest part that it has of any kind of resource, in millionths, offers included.
    pub share_ppm: u64,
    /// The kind of which it has that part; none when it has nothing.
    pub dominant: Option<String>,
    /// What it would have of the whole if all roles that have frameworks wanted more than they get.
    pub fair_share_ppm: u64,
    /// Frameworks in the role itself.
    pub frameworks: usize,
    /// Names of roles right below it.
    pub children: Vec<String>,
}

/// What is gathered for all roles at once.
struct Survey<'a> {
    state: &'a State,
    offered: BTreeMap<&'a str, Resources>,
    total: Resources,
    /// How many frameworks each role has itself.
    own: BTreeMap<&'a str, usize>,
    children: BTreeMap<&'a str, BTreeSet<&'a str>>,
    names: BTreeSet<&'a str>,
    /// Roles with a framework in them or below.
    active: BTreeSet<&'a str>,
    /// By parent: the weights of such roles right below it, together.
    weights: BTreeMap<&'a str, i128>,
    /// How often a weight was looked up.
    #[cfg(test)]
    weighed: std::cell::Cell<usize>,
}

/// The names of a role and of all above it.
fn lineage(role: &str) -> impl Iterator<Item = &str> {
    let above = role.match_indices('/').map(|(at, _)| &role[..at]);
    above.chain(std::iter::once(role))
}

fn parent(role: &str) -> &str {
    role.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl<'a> Survey<'a> {
    fn of(core: &'a Core) -> Self {
        let state = &core.state;
        let mut survey = Self {
            state,
            offered: BTreeMap::new(),
            total: state.total(),
            own: BTreeMap::new(),
            children: BTreeMap::new(),
            names: BTreeSet::new(),
            active: BTreeSet::new(),
            weights: BTreeMap::new(),
            #[cfg(test)]
            weighed: std::cell::Cell::default(),
        };
        for (id, framework) in &state.frameworks {
            let role = framework.role.as_str();
            *survey.own.entry(role).or_default() += 1;
            survey.name(role);
            let offered = core.leader.as_ref().map(|leader| leader.offers.held_as(*id, false));
            let offered = offered.filter(|offered| *offered != Resources::ZERO);
            for above in lineage(role) {
                if !framework.removing {
                    survey.active.insert(above);
                }
                if let Some(offered) = &offered {
                    survey.offered.entry(above).or_default().add(offered);
                }
            }
        }
        for role in state.roles.keys() {
            survey.name(role);
        }
        survey.weigh();
        survey
    }

    fn weigh(&mut self) {
        let mut weights = BTreeMap::new();
        for role in &self.active {
            *weights.entry(parent(role)).or_default() += self.weight(role);
        }
        self.weights = weights;
    }

    fn name(&mut self, role: &'a str) {
        for role in lineage(role) {
            if self.names.insert(role) {
                self.children.entry(parent(role)).or_default().insert(role);
            }
        }
    }

    fn weight(&self, role: &str) -> i128 {
        #[cfg(test)]
        self.weighed.set(self.weighed.get() + 1);
        let policy = self.state.roles.get(role);
        policy.map_or_else(|| RolePolicy::default().weight_milli, |policy| policy.weight_milli).into()
    }

    /// Among those who stand beside it. A role's own frameworks stand beside the roles below it as one more.
    fn fair_share(&self, role: &str) -> i128 {
        let mut share = PPM;
        let mut above = "";
        for part in lineage(role) {
            let weight = self.weight(part);
            let active = self.weights.get(above).copied().unwrap_or(0);
            // It may have no frameworks, or not be there at all: it is counted as if it had some.
            let absent = if self.active.contains(part) { 0 } else { weight };
            let own = if self.own.contains_key(above) { RolePolicy::default().weight_milli.into() } else { 0 };
            share = share * weight / (active + absent + own).max(1);
            above = part;
        }
        share
    }

    /// The largest part that a role has of any kind, offers included, and of which.
    fn share(&self, role: &str) -> (i128, Option<String>) {
        match (self.state.role_used.get(role), self.offered.get(role)) {
            (None, None) => (0, None),
            (Some(used), None) => dominant(&used.charged, &self.total),
            (None, Some(offered)) => dominant(offered, &self.total),
            (Some(used), Some(offered)) => dominant(&used.charged.plus(offered), &self.total),
        }
    }

    fn view(&self, role: &str) -> RoleView {
        let used = self.state.role_used.get(role).cloned().unwrap_or_default();
        let offered = self.offered.get(role).cloned().unwrap_or_default();
        let (share, dominant) = self.share(role);
        let children = self.children.get(role).into_iter().flatten();
        RoleView {
            role: role.to_owned(),
            policy: self.state.policy(role),
            set: self.state.roles.contains_key(role),
            used: used.charged,
            offered,
            revocable: used.revocable,
            share_ppm: ppm(share),
            dominant,
            fair_share_ppm: ppm(self.fair_share(role)),
            frameworks: self.own.get(role).copied().unwrap_or(0),
            children: children.map(|child| (*child).to_owned()).collect(),
        }
    }
}

impl Survey<'_> {
    fn largest(&self, max: usize) -> Vec<RoleView> {
        let mut roles: Vec<(i128, &str)> = self.names.iter().map(|role| (self.share(role).0, *role)).collect();
        roles.sort_unstable_by(|(share, role), (other, than)| other.cmp(share).then_with(|| role.cmp(than)));
        roles.truncate(max);
        roles.into_iter().map(|(_, role)| self.view(role)).collect()
    }
}

fn ppm(share: i128) -> u64 {
    u64::try_from(share).unwrap_or(0)
}

/// The largest part of a whole, and of what.
fn dominant(part: &Resources, whole: &Resources) -> (i128, Option<String>) {
    let kinds = [CPUS, MEM, DISK].into_iter().chain(part.items.keys().map(|key| key.name.as_str()));
    let mut largest = (0, None);
    for kind in kinds {
        let (part, whole) = (i128::from(part.amount(kind)), i128::from(whole.amount(kind)));
        if part > 0 && whole > 0 && part * PPM / whole > largest.0 {
            largest = (part * PPM / whole, Some(kind.to_owned()));
        }
    }
    largest
}

impl Core {
    /// Roles that have frameworks, or of which something is said, and those above them: in order of names, after
    /// one, at most so many.
    #[must_use]
    pub fn roles(&self, after: Option<&str>, limit: usize) -> Vec<RoleView> {
        let survey = Survey::of(self);
        let names = survey.names.iter().filter(|name| after.is_none_or(|after| **name > after));
        names.take(limit).map(|name| survey.view(name)).collect()
    }

    /// Those with the largest shares, at most so many. What costs more than its share is found for these only.
    pub(crate) fn largest_roles(&self, max: usize) -> Vec<RoleView> {
        Survey::of(self).largest(max)
    }

    /// One role, also when nothing is said of it and nobody is in it.
    #[must_use]
    pub fn role(&self, role: &RoleName) -> RoleView {
        Survey::of(self).view(role.as_str())
    }

    /// What would be said of a role after a change, if it was not refused.
    ///
    /// # Errors
    /// As the change would be.
    pub fn plan_role(
        &self,
        role: &RoleName,
        change: crate::RoleChange,
        expected_version: Option<u64>,
    ) -> Result<RolePolicy, crate::RequestError> {
        self.state.changed_policy(role, change, expected_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::Quantities;

    #[test]
    fn the_dominant_part_is_the_largest() {
        let of = |cpus_milli, mem_mib| Resources::of(Quantities { cpus_milli, mem_mib, disk_mib: 0 });
        let whole = of(1_000, 1_000).with("gpus", 4_000);
        assert_eq!(dominant(&of(100, 250), &whole), (250_000, Some("mem".into())));
        assert_eq!(dominant(&of(100, 0).with("gpus", 2_000), &whole), (500_000, Some("gpus".into())));
        assert_eq!(dominant(&of(0, 0), &whole), (0, None));
        assert_eq!(dominant(&of(1, 1), &Resources::ZERO), (0, None));
    }

    #[test]
    fn fair_shares_follow_weights_down_the_tree() {
        let mut core = Core::load(&crate::testing::MemRows::default(), crate::Config::default()).unwrap();
        for (role, weight_milli) in [("a", 3_000), ("b", 1_000), ("a/x", 1_000), ("a/y", 3_000)] {
            let policy = RolePolicy { weight_milli, ..RolePolicy::default() };
            core.state.roles.insert(role.to_owned(), policy);
        }
        let survey = |core: &Core, role: &str| core.role(&role.parse().unwrap()).fair_share_ppm;
        // Without frameworks a role is compared with itself alone.
        assert_eq!(survey(&core, "a/x"), 1_000_000);
        assert_eq!(survey(&core, "n/o/t/h/i/n/g/o/f/t/h/i/s"), 1_000_000);
        let mut survey = Survey::of(&core);
        survey.active = ["a", "b", "a/x", "a/y"].into();
        survey.weigh();
        assert_eq!(survey.fair_share("a"), 750_000);
        assert_eq!(survey.fair_share("a/y"), 562_500);
        assert_eq!(survey.fair_share("c/new"), 200_000);
        survey.own.insert("a", 1);
        assert_eq!(survey.fair_share("a/x"), 150_000);
        assert_eq!(core.roles(Some("a"), 2).iter().map(|view| view.role.as_str()).collect::<Vec<_>>(), ["a/x", "a/y"]);
    }

    #[test]
    fn many_siblings_are_weighed_once_each_however_many_are_shown() {
        let mut core = Core::load(&crate::testing::MemRows::default(), crate::Config::default()).unwrap();
        let names: Vec<String> = (0..2_000).map(|number| format!("tenant-{number:04}")).collect();
        for name in &names {
            core.state.roles.insert(name.clone(), RolePolicy { version: 1, ..RolePolicy::default() });
        }
        let mut survey = Survey::of(&core);
        survey.active = names.iter().map(String::as_str).collect();
        survey.weigh();
        assert_eq!(survey.largest(20).iter().map(|view| view.fair_share_ppm).collect::<Vec<_>>(), [500; 20]);
        assert!(survey.weighed.get() <= 2_000 + 20, "{} weights for 20 roles", survey.weighed.get());
        assert_eq!(survey.largest(usize::MAX).len(), 2_000);
        assert!(survey.weighed.get() <= 2 * 2_000 + 20, "{} weights for all roles", survey.weighed.get());
    }
}
