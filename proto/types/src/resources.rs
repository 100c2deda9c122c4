//! Resource arithmetic in integers. Amounts are thousandths of a resource's unit (cores, MiB, pieces).
//!
//! Invariants: `Quantities` holds what is on every hot path; `Resources` adds items with their full
//! identity, and costs no allocation when there are none. No item is there with an amount of zero, so that
//! equal amounts are equal values. Arithmetic saturates, far beyond [`AMOUNT_MAX`], instead of wrapping, and only `free`
//! amounts may be negative (an agent that came back smaller).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// CPU, memory and disk: the amounts that almost everything is made of. Signed, because what is free
/// on an agent may be negative; what users ask for is checked to be not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quantities {
    /// Thousandths of a core.
    pub cpus_milli: i64,
    /// MiB of memory.
    pub mem_mib: i64,
    /// MiB of disk.
    pub disk_mib: i64,
}

/// Most of any one amount: 2^40 units are beyond any machine, and sums of many stay far from overflow.
pub const AMOUNT_MAX: i64 = 1 << 40;

impl Quantities {
    /// Nothing.
    pub const ZERO: Self = Self { cpus_milli: 0, mem_mib: 0, disk_mib: 0 };

    /// Sum; amounts saturate, which [`AMOUNT_MAX`] keeps out of reach.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpus_milli: self.cpus_milli.saturating_add(other.cpus_milli),
            mem_mib: self.mem_mib.saturating_add(other.mem_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
        }
    }

    /// Difference; may be negative.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpus_milli: self.cpus_milli.saturating_sub(other.cpus_milli),
            mem_mib: self.mem_mib.saturating_sub(other.mem_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
        }
    }

    /// Whether `other` fits inside, amount by amount.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.cpus_milli >= other.cpus_milli
            && self.mem_mib >= other.mem_mib
            && self.disk_mib >= other.disk_mib
    }

    /// Whether no amount is above zero.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.cpus_milli <= 0 && self.mem_mib <= 0 && self.disk_mib <= 0
    }

    /// Whether some amount is below zero.
    #[must_use]
    pub const fn any_negative(self) -> bool {
        self.cpus_milli < 0 || self.mem_mib < 0 || self.disk_mib < 0
    }

    /// The same with amounts below zero raised to zero: what may be offered of something free.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self {
            cpus_milli: self.cpus_milli.max(0),
            mem_mib: self.mem_mib.max(0),
            disk_mib: self.disk_mib.max(0),
        }
    }

    /// Check an amount that somebody asked for.
    ///
    /// # Errors
    /// When an amount is negative or above [`AMOUNT_MAX`].
    pub fn validate(self) -> Result<(), ResourcesError> {
        for (name, amount) in
            [("cpus", self.cpus_milli), ("mem", self.mem_mib), ("disk", self.disk_mib)]
        {
            if amount < 0 {
                return Err(ResourcesError::Negative { name: name.into() });
            }
            if amount > AMOUNT_MAX {
                return Err(ResourcesError::TooLarge { name: name.into() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Quantities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.cpus_milli < 0 { "-" } else { "" };
        let milli = self.cpus_milli.unsigned_abs();
        write!(f, "cpus={sign}{}.{:03} mem={}MiB", milli / 1000, milli % 1000, self.mem_mib)?;
        if self.disk_mib != 0 {
            write!(f, " disk={}MiB", self.disk_mib)?;
        }
        Ok(())
    }
}

/// Kinds of resources beside cpus, mem and disk that one agent has, and that one task asks for: what is free is
/// compared kind by kind.
pub const RESOURCE_ITEMS_MAX: usize = 16;
/// Bytes of the name of a resource.
pub const RESOURCE_NAME_BYTES_MAX: usize = 64;

/// What makes two amounts the same resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceKey {
    /// `cpus`, `mem`, `disk`, or a name that agents advertise.
    pub name: String,
    /// Roles that reserved it, outermost first.
    pub reservation: Vec<String>,
    /// The persistent volume that it is.
    pub volume: Option<String>,
    /// May be taken back at any time.
    pub revocable: bool,
    /// May be used by several tasks at once.
    pub shared: bool,
}

impl ResourceKey {
    /// A resource that nobody reserved and that is no volume: what agents name, and tasks ask for.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// What this version does not account for, if it is more than a name.
    fn unsupported(&self) -> Option<&'static str> {
        if !self.reservation.is_empty() {
            Some("a reservation")
        } else if self.volume.is_some() {
            Some("a persistent volume")
        } else if self.shared {
            Some("a shared resource")
        } else {
            None
        }
    }
}

/// One amount of one resource, as the contract with guests lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceItem {
    /// Which resource.
    pub key: ResourceKey,
    /// Thousandths of its unit.
    pub amount_milli: i64,
}

/// Quantities and whatever they have no field for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resources {
    /// CPU, memory and disk, unreserved.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// The rest, in thousandths of each unit; none is zero.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "by_name")]
    pub items: BTreeMap<ResourceKey, i64>,
}

/// Items in text formats, whose keys are names.
mod by_name {
    use super::ResourceKey;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(items: &BTreeMap<ResourceKey, i64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(items.iter().map(|(key, amount)| (&key.name, amount)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<ResourceKey, i64>, D::Error> {
        let named = BTreeMap::<String, i64>::deserialize(from)?;
        Ok(named.into_iter().map(|(name, amount)| (ResourceKey::named(name), amount)).collect())
    }
}

/// Why resources were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourcesError {
    /// Below zero.
    #[error("resource {name:?} must not be negative")]
    Negative {
        /// The resource.
        name: String,
    },
    /// Above [`AMOUNT_MAX`].
    #[error("resource {name:?} is larger than any machine")]
    TooLarge {
        /// The resource.
        name: String,
    },
    /// Not built yet.
    #[error("resource {name:?}: {what} is not supported by this version")]
    Unsupported {
        /// The resource.
        name: String,
        /// The feature.
        what: &'static str,
    },
    /// Listed twice.
    #[error("resource {name:?} is listed twice")]
    Duplicate {
        /// The resource.
        name: String,
    },
    /// Not a name.
    #[error("resource {name:?}: a name is 1 to {RESOURCE_NAME_BYTES_MAX} bytes of A-Z a-z 0-9 . _ -")]
    Name {
        /// What was given.
        name: String,
    },
    /// Something else is meant.
    #[error("there is no resource {name:?}; {meant:?} is its name")]
    Misnomer {
        /// The name.
        name: String,
        /// What is meant.
        meant: &'static str,
    },
    /// It has a field of its own.
    #[error("resource {name:?} has a field of its own; items are for other resources, and for revocable ones")]
    Field {
        /// The resource.
        name: String,
    },
    /// Too many.
    #[error("at most {RESOURCE_ITEMS_MAX} resources beside cpus, mem and disk, not {count}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Some may be taken back, others not.
    #[error("resource {name:?}: either all resources are revocable, written as items with no cpus, mem and disk beside them, or none is")]
    Mixed {
        /// The first that differs.
        name: String,
    },
    /// A part of a MiB.
    #[error("resource {name:?} counts whole MiB: thousandths in thousands")]
    Fraction {
        /// The resource.
        name: String,
    },
}

/// Check the name of a resource that agents have.
///
/// # Errors
/// When it is no name, or that of a resource with a field of its own.
pub fn validate_resource_name(name: &str) -> Result<(), ResourcesError> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > RESOURCE_NAME_BYTES_MAX || !name.chars().all(named) {
        return Err(ResourcesError::Name { name: name.into() });
    }
    if matches!(name, "cpus" | "mem" | "disk") {
        return Err(ResourcesError::Field { name: name.into() });
    }
    if let Some(meant) = meant_by(name) {
        return Err(ResourcesError::Misnomer { name: name.into(), meant });
    }
    Ok(())
}

/// Names that people write for what has another one: a resource that is called so would be looked for in vain.
const MISNOMERS: [(&str, &str); 5] =
    [("cpu", "cpus"), ("core", "cpus"), ("cores", "cpus"), ("memory", "mem"), ("ram", "mem")];

/// What is meant by a name that people write for another one.
#[must_use]
pub fn meant_by(name: &str) -> Option<&'static str> {
    MISNOMERS.iter().find(|(wrong, _)| *wrong == name).map(|(_, right)| *right)
}

/// Thousandths as a decimal with as many places as it needs.
#[must_use]
pub fn write_milli(milli: i64) -> String {
    let sign = if milli < 0 { "-" } else { "" };
    let (whole, part) = (milli.unsigned_abs() / 1_000, milli.unsigned_abs() % 1_000);
    let text = format!("{sign}{whole}.{part:03}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A decimal number that is not negative, with at most three places, in thousandths.
#[must_use]
pub fn parse_milli(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return None;
    }
    let part: i64 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1000)?.checked_add(part)
}

impl From<Quantities> for Resources {
    fn from(quantities: Quantities) -> Self {
        Self::of(quantities)
    }
}

impl Resources {
    /// Nothing.
    pub const ZERO: Self = Self::of(Quantities::ZERO);

    /// Only quantities.
    #[must_use]
    pub const fn of(quantities: Quantities) -> Self {
        Self { quantities, items: BTreeMap::new() }
    }

    /// The same with so many thousandths of a named resource instead of what it had of that.
    #[must_use]
    pub fn with(mut self, name: &str, amount_milli: i64) -> Self {
        let key = ResourceKey::named(name);
        if amount_milli == 0 {
            self.items.remove(&key);
        } else {
            self.items.insert(key, amount_milli);
        }
        self
    }

    /// Add to it.
    pub fn add(&mut self, other: &Self) {
        self.quantities = self.quantities.plus(other.quantities);
        for (key, amount) in &other.items {
            self.change(key, |own| own.saturating_add(*amount));
        }
    }

    /// Take from it; amounts may become negative.
    pub fn take(&mut self, other: &Self) {
        self.quantities = self.quantities.minus(other.quantities);
        for (key, amount) in &other.items {
            self.change(key, |own| own.saturating_sub(*amount));
        }
    }

    fn change(&mut self, key: &ResourceKey, to: impl FnOnce(i64) -> i64) {
        match self.items.get_mut(key) {
            Some(own) => {
                *own = to(*own);
                if *own == 0 {
                    self.items.remove(key);
                }
            }
            None => {
                let amount = to(0);
                if amount != 0 {
                    self.items.insert(key.clone(), amount);
                }
            }
        }
    }

    /// Sum; amounts saturate, which [`AMOUNT_MAX`] keeps out of reach.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.add(other);
        sum
    }

    /// Difference; may be negative.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.take(other);
        rest
    }

    /// Whether `other` fits inside, amount by amount. Of items, those that `other` has count: whoever asks for
    /// none is not in the way of what is missing.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let own = |key: &ResourceKey| self.items.get(key).copied().unwrap_or(0);
        self.quantities.contains(other.quantities) && other.items.iter().all(|(key, amount)| own(key) >= *amount)
    }

    /// Whether no amount is above zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.quantities.is_empty() && self.items.values().all(|amount| *amount <= 0)
    }

    /// Whether some amount is below zero.
    #[must_use]
    pub fn any_negative(&self) -> bool {
        self.quantities.any_negative() || self.items.values().any(|amount| *amount < 0)
    }

    /// The same with amounts below zero raised to zero: what may be offered of something free.
    #[must_use]
    pub fn clamped(&self) -> Self {
        let above = self.items.iter().filter(|(_, amount)| **amount > 0);
        Self {
            quantities: self.quantities.clamped(),
            items: above.map(|(key, amount)| (key.clone(), *amount)).collect(),
        }
    }

    /// Check amounts that somebody asked for, or says to have.
    ///
    /// # Errors
    /// When an amount is negative or above [`AMOUNT_MAX`], items are too many or have bad names, or one is of a kind
    /// that this version does not account for.
    pub fn validate(&self) -> Result<(), ResourcesError> {
        self.quantities.validate()?;
        if self.items.len() > RESOURCE_ITEMS_MAX {
            return Err(ResourcesError::TooMany { count: self.items.len() });
        }
        for (key, amount) in &self.items {
            let name = || key.name.clone();
            validate_resource_name(&key.name)?;
            if let Some(what) = key.unsupported() {
                return Err(ResourcesError::Unsupported { name: name(), what });
            }
            if key.revocable {
                return Err(ResourcesError::Mixed { name: name() });
            }
            if *amount < 0 {
                return Err(ResourcesError::Negative { name: name() });
            }
            if *amount > AMOUNT_MAX {
                return Err(ResourcesError::TooLarge { name: name() });
            }
        }
        Ok(())
    }

    /// Read what a guest lists: resources, and whether they are revocable. Revocable ones are all items, `cpus`, `mem` and
    /// `disk` too.
    ///
    /// # Errors
    /// When an amount is negative or too large, a resource is listed twice or is of a kind that this version does not
    /// account for, or revocable and other resources are mixed.
    pub fn from_items(quantities: Quantities, items: &[ResourceItem]) -> Result<(Self, bool), ResourcesError> {
        let revocable = items.first().is_some_and(|item| item.key.revocable);
        let mut read = Self::of(quantities);
        if revocable && quantities != Quantities::ZERO {
            return Err(ResourcesError::Mixed { name: "cpus".into() });
        }
        for item in items {
            let name = || item.key.name.clone();
            if let Some(what) = item.key.unsupported() {
                return Err(ResourcesError::Unsupported { name: name(), what });
            }
            if item.key.revocable != revocable {
                return Err(ResourcesError::Mixed { name: name() });
            }
            if item.amount_milli < 0 {
                return Err(ResourcesError::Negative { name: name() });
            }
            let whole = item.amount_milli / 1000;
            let field = match item.key.name.as_str() {
                "cpus" if revocable => Some((&mut read.quantities.cpus_milli, item.amount_milli)),
                "mem" if revocable => Some((&mut read.quantities.mem_mib, whole)),
                "disk" if revocable => Some((&mut read.quantities.disk_mib, whole)),
                _ => None,
            };
            let key = ResourceKey::named(name());
            let twice = match field {
                Some((_, amount)) if item.key.name != "cpus" && amount * 1000 != item.amount_milli => {
                    return Err(ResourcesError::Fraction { name: name() });
                }
                Some((field, amount)) => std::mem::replace(field, amount) != 0,
                None if item.amount_milli == 0 => read.items.contains_key(&key),
                None => read.items.insert(key, item.amount_milli).is_some(),
            };
            if twice {
                return Err(ResourcesError::Duplicate { name: name() });
            }
        }
        read.validate()?;
        Ok((read, revocable))
    }

    /// The reverse of [`Self::from_items`], of what is not negative.
    #[must_use]
    pub fn to_items(&self, revocable: bool) -> (Quantities, Vec<ResourceItem>) {
        let mut items = Vec::new();
        let mut item = |name: &str, amount_milli: i64| {
            if amount_milli > 0 {
                let key = ResourceKey { revocable, ..ResourceKey::named(name) };
                items.push(ResourceItem { key, amount_milli });
            }
        };
        let q = self.quantities;
        if revocable {
            item("cpus", q.cpus_milli);
            item("mem", q.mem_mib.saturating_mul(1000));
            item("disk", q.disk_mib.saturating_mul(1000));
        }
        for (key, amount) in &self.items {
            item(&key.name, *amount);
        }
        (if revocable { Quantities::ZERO } else { q }, items)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.quantities.fmt(f)?;
        for (key, amount) in &self.items {
            let sign = if *amount < 0 { "-" } else { "" };
            let milli = amount.unsigned_abs();
            write!(f, " {}={sign}{}", key.name, milli / 1000)?;
            if milli % 1000 != 0 {
                write!(f, ".{:03}", milli % 1000)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn q(cpus_milli: i64, mem_mib: i64, disk_mib: i64) -> Quantities {
        Quantities { cpus_milli, mem_mib, disk_mib }
    }

    #[test]
    fn sums_and_differences() {
        assert_eq!(q(1, 2, 3).plus(q(10, 20, 30)), q(11, 22, 33));
        assert_eq!(q(1, 2, 3).minus(q(2, 2, 2)), q(-1, 0, 1));
        assert!(q(-1, 5, 0).any_negative());
        assert_eq!(q(-1, 5, 0).clamped(), q(0, 5, 0));
        assert!(q(5, 5, 5).contains(q(5, 0, 5)) && !q(5, 5, 5).contains(q(5, 6, 0)));
        assert_eq!(q(i64::MAX, 0, 0).plus(q(1, 0, 0)).cpus_milli, i64::MAX);
    }

    #[test]
    fn items_add_up_and_vanish_at_zero() {
        let gpus = |n: i64| Resources::of(q(100, 10, 0)).with("gpus", n);
        let two = gpus(1000).plus(&gpus(1000));
        assert_eq!(two, Resources::of(q(200, 20, 0)).with("gpus", 2000));
        assert_eq!(two.minus(&gpus(1000)), gpus(1000));
        assert_eq!(two.minus(&two), Resources::ZERO, "an amount of zero is no item");
        let short = gpus(1000).minus(&gpus(3000));
        assert!(short.any_negative() && short.is_empty());
        assert_eq!(short.clamped(), Resources::ZERO);
        assert_eq!(short.plus(&gpus(2000)), Resources::of(q(100, 10, 0)));
        assert!(two.contains(&gpus(2000)) && !two.contains(&gpus(2001)));
        assert!(!Resources::of(q(500, 50, 0)).contains(&gpus(1)));
        assert!(short.plus(&Resources::of(q(5, 5, 0))).contains(&Resources::of(q(5, 5, 0))), "asks for none");
        assert!(!Resources::ZERO.with("gpus", 1).is_empty());
        assert_eq!(gpus(1500).with("fpga", 1000).to_string(), "cpus=0.100 mem=10MiB fpga=1 gpus=1.500");
        assert_eq!(short.to_string(), "cpus=0.000 mem=0MiB gpus=-2");
    }

    #[test]
    fn decimals_are_read_exactly_or_not_at_all() {
        for (text, milli) in [("2", 2000), ("0.1", 100), ("1.005", 1005), ("007", 7000), ("999999999999999", 999_999_999_999_999_000)] {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        for text in ["", ".5", "1.", "-1", "+1", "1.0005", "1e3", "one", "9999999999999999"] {
            assert_eq!(parse_milli(text), None, "{text}");
        }
    }

    fn item(name: &str, amount_milli: i64, edit: fn(&mut ResourceKey)) -> ResourceItem {
        let mut key = ResourceKey::named(name);
        edit(&mut key);
        ResourceItem { key, amount_milli }
    }

    fn revocable(key: &mut ResourceKey) {
        key.revocable = true;
    }

    #[test]
    fn what_a_guest_lists_is_read_and_written_alike() {
        let some = Resources::of(q(1500, 64, 7)).with("gpus", 2000).with("fpga", 500);
        for revocable in [false, true] {
            let (quantities, items) = some.to_items(revocable);
            assert_eq!(Resources::from_items(quantities, &items), Ok((some.clone(), revocable)));
        }
        let (quantities, items) = some.to_items(true);
        assert_eq!((quantities, items.len()), (Quantities::ZERO, 5));
    }

    #[test]
    fn amounts_are_written_as_they_are_read() {
        for (milli, text) in [(0, "0"), (1, "0.001"), (500, "0.5"), (4_000, "4"), (12_340, "12.34"), (-1_500, "-1.5")] {
            assert_eq!(write_milli(milli), text);
            assert!(milli < 0 || parse_milli(text) == Some(milli));
        }
        assert_eq!(validate_resource_name("cpu").unwrap_err().to_string(), "there is no resource \"cpu\"; \"cpus\" is its name");
        assert_eq!(validate_resource_name("gpu"), Ok(()));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let cases: Vec<(Quantities, Vec<ResourceItem>, &str)> = vec![
            (q(0, 0, 0), vec![item("gpus", 1, |k| k.shared = true)], "shared"),
            (q(0, 0, 0), vec![item("gpus", 1, |k| k.volume = Some("v".into()))], "volume"),
            (q(0, 0, 0), vec![item("gpus", 1, |k| k.reservation.push("r".into()))], "reservation"),
            (q(1, 0, 0), vec![item("gpus", 1, revocable)], "either all"),
            (q(0, 0, 0), vec![item("cpus", 1, revocable), item("gpus", 1, |_| ())], "either all"),
            (q(0, 0, 0), vec![item("gpus", 1, |_| ()), item("fpga", 1, revocable)], "either all"),
            (q(0, 0, 0), vec![item("cpus", 1, |_| ())], "a field of its own"),
            (q(0, 0, 0), vec![item("gpus", 1, |_| ()), item("gpus", 1, |_| ())], "twice"),
            (q(0, 0, 0), vec![item("mem", 1000, revocable), item("mem", 1000, revocable)], "twice"),
            (q(0, 0, 0), vec![item("mem", 1001, revocable)], "whole MiB"),
            (q(0, 0, 0), vec![item("gpus", -1, |_| ())], "negative"),
            (q(0, 0, 0), vec![item("gpus", AMOUNT_MAX + 1, |_| ())], "larger"),
            (q(0, 0, 0), vec![item("a/b", 1, |_| ())], "a name is"),
            (q(0, 0, 0), vec![item("", 1, |_| ())], "a name is"),
            (q(0, 0, 0), (0..17).map(|n| item(&format!("n{n}"), 1, |_| ())).collect(), "at most 16"),
            (q(-1, 0, 0), vec![], "negative"),
            (q(0, AMOUNT_MAX + 1, 0), vec![], "larger"),
        ];
        for (quantities, items, what) in cases {
            let error = Resources::from_items(quantities, &items).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
