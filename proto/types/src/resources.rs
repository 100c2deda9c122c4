//! Resource arithmetic in integers. Amounts are thousandths of a resource's unit (cores, MiB, pieces).
//!
//! Invariants: `Quantities` holds what is on every hot path; `Resources` adds items with their full
//! identity. Arithmetic is checked: it refuses to overflow instead of wrapping, and only `free` amounts
//! may be negative (an agent that came back smaller).

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

/// What makes two amounts the same resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// One amount of one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceItem {
    /// Which resource.
    pub key: ResourceKey,
    /// Thousandths of its unit.
    pub amount_milli: i64,
}

/// Quantities and whatever they have no field for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU, memory and disk, unreserved.
    pub quantities: Quantities,
    /// The rest, in thousandths of each unit.
    pub items: BTreeMap<ResourceKey, i64>,
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
}

impl Resources {
    /// Only quantities.
    #[must_use]
    pub const fn of(quantities: Quantities) -> Self {
        Self { quantities, items: BTreeMap::new() }
    }

    /// Build from quantities and items, refusing what this version cannot account for: every item,
    /// since only cpus, mem and disk are accounted, and those have fields.
    ///
    /// # Errors
    /// When an amount is negative or too large, or an item is present.
    pub fn checked(
        quantities: Quantities,
        items: &[ResourceItem],
    ) -> Result<Self, ResourcesError> {
        quantities.validate()?;
        if let Some(item) = items.first() {
            let name = item.key.name.clone();
            if item.amount_milli < 0 {
                return Err(ResourcesError::Negative { name });
            }
            let what = if !item.key.reservation.is_empty() {
                "a reservation"
            } else if item.key.volume.is_some() {
                "a persistent volume"
            } else if item.key.revocable {
                "a revocable resource"
            } else if item.key.shared {
                "a shared resource"
            } else {
                "a resource other than cpus, mem and disk"
            };
            return Err(ResourcesError::Unsupported { name, what });
        }
        Ok(Self::of(quantities))
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
    fn what_is_not_built_is_refused_by_name() {
        let item = |edit: fn(&mut ResourceKey)| {
            let mut key = ResourceKey {
                name: "gpus".into(),
                reservation: vec![],
                volume: None,
                revocable: false,
                shared: false,
            };
            edit(&mut key);
            ResourceItem { key, amount_milli: 1000 }
        };
        for (item, what) in [
            (item(|_| ()), "other than"),
            (item(|k| k.revocable = true), "revocable"),
            (item(|k| k.shared = true), "shared"),
            (item(|k| k.volume = Some("v".into())), "volume"),
            (item(|k| k.reservation.push("r".into())), "reservation"),
        ] {
            let error = Resources::checked(Quantities::ZERO, &[item]).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(q(-1, 0, 0).validate().is_err());
        assert!(q(0, AMOUNT_MAX + 1, 0).validate().is_err());
    }
}
