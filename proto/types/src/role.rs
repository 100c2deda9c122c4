//! What an operator says of a role: its weight, its priority, and its quota.
//!
//! Invariants: a policy that was checked is within its bounds, and its guarantee within its limit; a policy
//! without any setting is the default one. Must never know who holds what.

use crate::resources::{AMOUNT_MAX, meant_by, write_milli};
use crate::{Quantities, Resources};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weight of a role that has none of its own: one.
pub const WEIGHT_DEFAULT_MILLI: u32 = 1_000;
/// Largest weight: shares stay exact in 128 bits.
pub const WEIGHT_MAX_MILLI: u32 = 1_000_000_000;
/// Largest priority.
pub const PRIORITY_MAX: u16 = 1_000;
/// Most kinds of resources that a quota names: as many as agents name, with a reserve.
pub const QUOTA_KINDS_MAX: usize = 64;
/// Longest name of a kind.
const KIND_BYTES_MAX: usize = 64;

/// CPU, in thousandths of a core.
pub const CPUS: &str = "cpus";
/// Memory, in MiB.
pub const MEM: &str = "mem";
/// Disk, in MiB.
pub const DISK: &str = "disk";

/// Amounts by kind: `cpus` in thousandths of a core, `mem` and `disk` in MiB, anything else that agents name in
/// thousandths of its unit. A kind that is absent is not spoken of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts(pub BTreeMap<String, i64>);

/// An amount of a kind for people: cores, MiB, or pieces.
#[must_use]
pub fn write_amount(kind: &str, amount: i64) -> String {
    match kind {
        MEM | DISK => format!("{amount} MiB"),
        _ => write_milli(amount),
    }
}

/// A kind with an amount of it, in one word.
#[must_use]
pub fn write_named(kind: &str, amount: i64) -> String {
    format!("{kind}={}", write_amount(kind, amount).replace(' ', ""))
}

impl Amounts {
    /// The amount of a kind, if it is spoken of.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<i64> {
        self.0.get(kind).copied()
    }

    /// Whether nothing is spoken of.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Kind and amount, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(kind, amount)| (kind.as_str(), *amount))
    }

    /// The first kind of which some resources have more than is said here.
    #[must_use]
    pub fn passed_by(&self, resources: &Resources) -> Option<(&str, i64, i64)> {
        self.iter().find_map(|(kind, most)| {
            let amount = resources.amount(kind);
            (amount > most).then_some((kind, most, amount))
        })
    }

    fn check(&self, field: &'static str) -> Result<(), RoleError> {
        if self.0.len() > QUOTA_KINDS_MAX {
            let rule = format!("names at most {QUOTA_KINDS_MAX} kinds of resources");
            return Err(RoleError { field, rule });
        }
        for (kind, amount) in self.iter() {
            let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if kind.is_empty() || kind.len() > KIND_BYTES_MAX || !kind.chars().all(named) {
                let rule = format!("{kind:?} is no kind of resource: 1 to {KIND_BYTES_MAX} of A-Z a-z 0-9 . _ -");
                return Err(RoleError { field, rule });
            }
            if let Some(meant) = meant_by(kind) {
                return Err(RoleError { field, rule: format!("there is no {kind:?}; {meant:?} is its name") });
            }
            if !(0..=AMOUNT_MAX).contains(&amount) {
                return Err(RoleError { field, rule: format!("{kind} is 0 to {AMOUNT_MAX}, not {amount}") });
            }
        }
        Ok(())
    }
}

impl Resources {
    /// The amount of a kind that nobody reserved, in the unit of [`Amounts`].
    #[must_use]
    pub fn amount(&self, kind: &str) -> i64 {
        match kind {
            CPUS => self.quantities.cpus_milli,
            MEM => self.quantities.mem_mib,
            DISK => self.quantities.disk_mib,
            _ => {
                let named = self.items.iter().filter(|(key, _)| key.name == kind);
                named.fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
            }
        }
    }
}

/// What is said of one role. Children of a role share what it gets; what is said of them counts beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolePolicy {
    /// Its weight among its siblings, in thousandths: a role with twice the weight gets twice the share.
    pub weight_milli: u32,
    /// Whose guarantee is met first, and whose revocable work goes last; the higher the earlier.
    pub priority: u16,
    /// What it gets before others get more than theirs.
    pub guarantee: Amounts,
    /// What it, with all roles below, never passes.
    pub limit: Amounts,
    /// Offers that are smaller than this are not made: each amount that is not zero has to be there.
    pub min_offer: Quantities,
    /// Keep an agent free for a request that fits nowhere else, as far as the guarantee goes.
    pub hold_back: bool,
    /// Counts changes; 0 is a role of which nothing was ever said.
    pub version: u64,
}

impl Default for RolePolicy {
    fn default() -> Self {
        Self {
            weight_milli: WEIGHT_DEFAULT_MILLI,
            priority: 0,
            guarantee: Amounts::default(),
            limit: Amounts::default(),
            min_offer: Quantities::ZERO,
            hold_back: false,
            version: 0,
        }
    }
}

/// Why a policy was refused: which field, and which rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct RoleError {
    /// The field.
    pub field: &'static str,
    /// The rule.
    pub rule: String,
}

impl RolePolicy {
    /// Whether it says nothing, but for its version.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let Self { weight_milli, priority, guarantee, limit, min_offer, hold_back, version: _ } = self;
        *weight_milli == WEIGHT_DEFAULT_MILLI
            && *priority == 0
            && guarantee.is_empty()
            && limit.is_empty()
            && *min_offer == Quantities::ZERO
            && !hold_back
    }

    /// Check it for itself; how it goes with its parent and its children is for whoever knows those.
    ///
    /// # Errors
    /// When a field breaks its rule.
    pub fn check(&self) -> Result<(), RoleError> {
        if !(1..=WEIGHT_MAX_MILLI).contains(&self.weight_milli) {
            let rule = format!("is 0.001 to {}", WEIGHT_MAX_MILLI / 1_000);
            return Err(RoleError { field: "weight", rule });
        }
        if self.priority > PRIORITY_MAX {
            return Err(RoleError { field: "priority", rule: format!("is 0 to {PRIORITY_MAX}") });
        }
        self.guarantee.check("guarantee")?;
        self.limit.check("limit")?;
        if let Err(error) = self.min_offer.validate() {
            return Err(RoleError { field: "min_offer", rule: error.to_string() });
        }
        for (kind, guaranteed) in self.guarantee.iter() {
            if let Some(most) = self.limit.get(kind).filter(|most| *most < guaranteed) {
                let [guaranteed, most] = [guaranteed, most].map(|amount| write_amount(kind, amount));
                let rule = format!("{kind}: {guaranteed} is more than the limit, {most}");
                return Err(RoleError { field: "guarantee", rule });
            }
        }
        if self.hold_back && self.guarantee.is_empty() {
            let rule = "an agent is held only as far as a guarantee goes, and there is none".to_owned();
            return Err(RoleError { field: "hold_back", rule });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(of: &[(&str, i64)]) -> Amounts {
        Amounts(of.iter().map(|(kind, amount)| ((*kind).to_owned(), *amount)).collect())
    }

    #[test]
    fn policies_are_checked_field_by_field() {
        let policy = RolePolicy::default;
        let cases = [
            (policy(), None),
            (RolePolicy { weight_milli: 0, ..policy() }, Some("weight")),
            (RolePolicy { weight_milli: WEIGHT_MAX_MILLI + 1, ..policy() }, Some("weight")),
            (RolePolicy { priority: PRIORITY_MAX + 1, ..policy() }, Some("priority")),
            (RolePolicy { limit: amounts(&[("cpus", -1)]), ..policy() }, Some("limit")),
            (RolePolicy { limit: amounts(&[("", 1)]), ..policy() }, Some("limit")),
            (RolePolicy { guarantee: amounts(&[("a b", 1)]), ..policy() }, Some("guarantee")),
            (
                RolePolicy { guarantee: amounts(&[("mem", 2)]), limit: amounts(&[("mem", 1)]), ..policy() },
                Some("guarantee"),
            ),
            (
                RolePolicy { guarantee: amounts(&[("mem", 2)]), limit: amounts(&[("cpus", 1)]), ..policy() },
                None,
            ),
            (RolePolicy { hold_back: true, ..policy() }, Some("hold_back")),
            (RolePolicy { hold_back: true, guarantee: amounts(&[("mem", 2)]), ..policy() }, None),
            (
                RolePolicy { min_offer: Quantities { mem_mib: -1, ..Quantities::ZERO }, ..policy() },
                Some("min_offer"),
            ),
        ];
        for (policy, field) in cases {
            assert_eq!(policy.check().err().map(|error| error.field), field, "{policy:?}");
        }
    }

    #[test]
    fn a_limit_is_passed_by_the_first_kind_that_passes_it() {
        let limit = amounts(&[("cpus", 1_000), ("gpus", 0), ("mem", 10)]);
        let of = |cpus_milli, mem_mib| {
            Resources::of(Quantities { cpus_milli, mem_mib, disk_mib: 1 << 30 })
        };
        assert_eq!(limit.passed_by(&of(1_000, 10)), None);
        assert_eq!(limit.passed_by(&of(1_001, 11)), Some(("cpus", 1_000, 1_001)));
        assert_eq!(limit.passed_by(&of(0, 11)), Some(("mem", 10, 11)));
    }
}
