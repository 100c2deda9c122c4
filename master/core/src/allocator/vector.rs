//! Amounts as the allocator computes with them: one number per kind of resource.
//!
//! Owns [`Vector`] and [`Kinds`], which numbers the kinds. Invariants: arithmetic saturates and never wraps;
//! a kind keeps its number as long as there is this allocator; kinds get one for what agents have and for what quota names,
//! never for what schedulers ask for, so that these cannot make vectors long. Must never know who holds what.

use crate::limits::KINDS_MAX;
use std::collections::BTreeMap;
use tessera_types::{Quantities, ResourceKey, Resources};

/// Number of CPU among the kinds.
pub(crate) const CPUS: usize = 0;
/// Number of memory.
pub(crate) const MEM: usize = 1;
/// Number of disk.
pub(crate) const DISK: usize = 2;
/// Kinds that are always there.
const BASE: usize = 3;
/// The kind that stands for all that have no number: no agent has anything of it.
const NOBODYS: usize = 3;

/// Amounts by kind. What is not there is nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vector {
    base: [i64; BASE],
    more: Vec<i64>,
}

impl PartialEq for Vector {
    fn eq(&self, other: &Self) -> bool {
        (0..self.len().max(other.len())).all(|kind| self.get(kind) == other.get(kind))
    }
}

impl Eq for Vector {}

impl Vector {
    pub(crate) const fn of(cpus: i64, mem: i64, disk: i64) -> Self {
        Self { base: [cpus, mem, disk], more: Vec::new() }
    }

    /// How many kinds it speaks of.
    pub(crate) fn len(&self) -> usize {
        BASE + self.more.len()
    }

    pub(crate) fn get(&self, kind: usize) -> i64 {
        match kind.checked_sub(BASE) {
            None => self.base[kind],
            Some(more) => self.more.get(more).copied().unwrap_or(0),
        }
    }

    pub(crate) fn set(&mut self, kind: usize, amount: i64) {
        match kind.checked_sub(BASE) {
            None => self.base[kind] = amount,
            Some(more) => {
                if more >= self.more.len() {
                    if amount == 0 {
                        return;
                    }
                    self.more.resize(more + 1, 0);
                }
                self.more[more] = amount;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, i64)> {
        self.base.iter().chain(&self.more).copied().enumerate()
    }

    fn each(&mut self, other: &Self, of: impl Fn(i64, i64) -> i64) {
        for (kind, amount) in self.base.iter_mut().enumerate() {
            *amount = of(*amount, other.base[kind]);
        }
        if self.more.len() < other.more.len() {
            self.more.resize(other.more.len(), 0);
        }
        for (kind, amount) in self.more.iter_mut().enumerate() {
            *amount = of(*amount, other.more.get(kind).copied().unwrap_or(0));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    pub(crate) fn take(&mut self, other: &Self) {
        self.each(other, i64::saturating_sub);
    }

    pub(crate) fn at_most(&mut self, other: &Self) {
        self.each(other, i64::min);
    }

    pub(crate) fn at_least(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.take(other);
        rest
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.add(other);
        sum
    }

    /// So many times as much.
    pub(crate) fn times(&self, count: i64) -> Self {
        let of = |amount: i64| amount.saturating_mul(count);
        Self { base: self.base.map(of), more: self.more.iter().copied().map(of).collect() }
    }

    /// The same without what is below nothing.
    pub(crate) fn clamped(&self) -> Self {
        let of = |amount: i64| amount.max(0);
        Self { base: self.base.map(of), more: self.more.iter().copied().map(of).collect() }
    }

    /// Whether `other` fits inside, kind by kind.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.base.iter().zip(&other.base).all(|(own, other)| own >= other)
            && (0..self.more.len().max(other.more.len()))
                .all(|more| self.get(BASE + more) >= other.get(BASE + more))
    }

    /// Whether it is nothing at all.
    pub(crate) fn is_zero(&self) -> bool {
        self.iter().all(|(_, amount)| amount == 0)
    }

    /// Whether there is something of any kind.
    pub(crate) fn any(&self) -> bool {
        self.iter().any(|(_, amount)| amount > 0)
    }

    /// How often `piece` fits inside; a piece of nothing fits any number of times.
    pub(crate) fn fits(&self, piece: &Self) -> i64 {
        let needed = piece.iter().filter(|(_, amount)| *amount > 0);
        needed.map(|(kind, amount)| self.get(kind).max(0) / amount).min().unwrap_or(i64::MAX)
    }
}

/// What is to be known of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    key: ResourceKey,
    /// The kind that nobody reserved: what shares and quota count it as.
    base: usize,
    /// Thousandths are counted as thousandths, but of memory and disk as whole MiB.
    unit: i64,
}

/// The kinds that were seen, with their numbers. A pool (what a role reserved, or a volume) is a kind of its own.
#[derive(Clone, Debug)]
pub(crate) struct Kinds {
    list: Vec<Kind>,
    numbers: BTreeMap<ResourceKey, usize>,
    pools: bool,
}

/// A resource of this name that nobody reserved.
pub(crate) fn plain(name: &str) -> ResourceKey {
    ResourceKey { name: name.to_owned(), reservation: Vec::new(), volume: None, revocable: false, shared: false }
}

impl Default for Kinds {
    fn default() -> Self {
        let mut kinds = Self { list: Vec::new(), numbers: BTreeMap::new(), pools: false };
        // The last is `NOBODYS`, under a name that no resource has.
        for name in ["cpus", "mem", "disk", ""] {
            kinds.number(&plain(name));
        }
        kinds
    }
}

impl Kinds {
    /// The number of a kind; it gets one if it has none, unless too many have one.
    pub(crate) fn number(&mut self, key: &ResourceKey) -> Option<usize> {
        if let Some(number) = self.numbers.get(key) {
            return Some(*number);
        }
        let base_key = plain(&key.name);
        let base = if *key == base_key { None } else { Some(self.number(&base_key)?) };
        let number = self.list.len();
        if number >= KINDS_MAX {
            return None;
        }
        let base = base.unwrap_or(number);
        let unit = if base == MEM || base == DISK { 1_000 } else { 1 };
        self.pools |= base != number;
        self.list.push(Kind { key: key.clone(), base, unit });
        self.numbers.insert(key.clone(), number);
        Some(number)
    }

    /// How many have a number.
    pub(crate) const fn count(&self) -> usize {
        self.list.len()
    }

    /// Whether no kind gets a number any more.
    pub(crate) const fn full(&self) -> bool {
        self.list.len() >= KINDS_MAX
    }

    /// What an agent has, as numbers. Of kinds that get none it has nothing: they are not offered.
    pub(crate) fn vector(&mut self, resources: &Resources) -> Vector {
        for key in resources.items.keys() {
            self.number(key);
        }
        let mut vector = self.vector_of_known(resources);
        vector.set(NOBODYS, 0);
        vector
    }

    /// What somebody uses or asks for, as numbers. What has none is as much of what no agent has.
    pub(crate) fn vector_of_known(&self, resources: &Resources) -> Vector {
        let Quantities { cpus_milli, mem_mib, disk_mib } = resources.quantities;
        let mut vector = Vector::of(cpus_milli, mem_mib, disk_mib);
        for (key, amount) in &resources.items {
            let kind = self.known(key).unwrap_or(NOBODYS);
            let unit = self.list.get(kind).map_or(1, |kind| kind.unit);
            vector.set(kind, vector.get(kind).saturating_add(amount / unit));
        }
        vector
    }

    /// The number of a kind, if it has one.
    pub(crate) fn known(&self, key: &ResourceKey) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    /// Whether there is a kind among them that has no number.
    pub(crate) fn knows_all(&self, resources: &Resources) -> bool {
        resources.items.keys().all(|key| self.known(key).is_some())
    }

    /// The reverse.
    pub(crate) fn resources(&self, vector: &Vector) -> Resources {
        let quantities =
            Quantities { cpus_milli: vector.get(CPUS), mem_mib: vector.get(MEM), disk_mib: vector.get(DISK) };
        let more = vector.iter().skip(BASE).filter(|(kind, amount)| *amount != 0 && *kind != NOBODYS);
        let items = more.filter_map(|(kind, amount)| {
            let kind = self.list.get(kind)?;
            Some((kind.key.clone(), amount.saturating_mul(kind.unit)))
        });
        Resources { quantities, items: items.collect() }
    }

    /// Whether there are pools.
    pub(crate) const fn have_pools(&self) -> bool {
        self.pools
    }

    /// What shares and quota count: pools as the kinds that they are pools of.
    pub(crate) fn counted(&self, vector: &Vector) -> Vector {
        if !self.pools {
            return vector.clone();
        }
        let mut sum = Vector::default();
        for (kind, amount) in vector.iter() {
            let base = self.base(kind);
            sum.set(base, sum.get(base).saturating_add(amount));
        }
        sum
    }

    /// Without the pools.
    pub(crate) fn unreserved(&self, vector: &Vector) -> Vector {
        let mut rest = vector.clone();
        if self.pools {
            for (kind, _) in vector.iter().filter(|(kind, _)| self.base(*kind) != *kind) {
                rest.set(kind, 0);
            }
        }
        rest
    }

    /// Without the pools that a role may not use: those that a role reserved which is not above it.
    pub(crate) fn open_to(&self, vector: &Vector, role: &str) -> Vector {
        let mut rest = vector.clone();
        if self.pools {
            for (kind, _) in vector.iter() {
                let reserved = self.list.get(kind).and_then(|kind| kind.key.reservation.last());
                if reserved.is_some_and(|by| role != by && !below(role, by)) {
                    rest.set(kind, 0);
                }
            }
        }
        rest
    }

    fn base(&self, kind: usize) -> usize {
        self.list.get(kind).map_or(kind, |kind| kind.base)
    }

    /// What people call a kind.
    pub(crate) fn name(&self, kind: usize) -> &str {
        self.list.get(kind).map_or("", |kind| kind.key.name.as_str())
    }
}

/// Whether a role is below another one.
fn below(role: &str, above: &str) -> bool {
    role.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_one_side_does_not_speak_of_are_nothing() {
        let mut gpus = Vector::of(1, 2, 3);
        gpus.set(4, 7);
        let none = Vector::of(1, 2, 3);
        assert!(gpus != none && gpus.contains(&none) && !none.contains(&gpus));
        assert_eq!(gpus.minus(&none).get(4), 7);
        assert_eq!(none.minus(&gpus).get(4), -7);
        assert_eq!(none.minus(&gpus).clamped(), Vector::default());
        let mut same = none.clone();
        same.set(4, 7);
        same.set(5, 0);
        assert_eq!(same, gpus);
        assert_eq!(gpus.fits(&Vector::of(1, 1, 0)), 1);
        assert_eq!(gpus.fits(&Vector::default()), i64::MAX);
        assert_eq!(none.fits(&gpus), 0);
    }

    #[test]
    fn pools_count_as_what_they_are_of_and_are_open_to_those_below_who_reserved_them() {
        let mut kinds = Kinds::default();
        let reserved = ResourceKey { reservation: vec!["eng".into(), "eng/ml".into()], ..plain("cpus") };
        let items = [(reserved, 2_000), (plain("gpus"), 1_000)].into_iter().collect();
        let quantities = Quantities { cpus_milli: 1_000, mem_mib: 5, disk_mib: 0 };
        let resources = Resources { quantities, items };
        let vector = kinds.vector(&resources);
        assert_eq!(kinds.resources(&vector), resources);
        assert_eq!(kinds.counted(&vector).get(CPUS), 3_000);
        assert_eq!(kinds.unreserved(&vector).get(CPUS), 1_000);
        for (role, open) in [("eng/ml", true), ("eng/ml/a", true), ("eng", false), ("eng/mlx", false)] {
            assert_eq!(kinds.open_to(&vector, role) == vector, open, "{role}");
        }
    }
}
