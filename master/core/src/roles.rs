//! Roles in the replicated state: what is said of them, and what they use.
//!
//! Owns [`RoleChange`], the rules between a role and those above and below it, and the index of uses, which the
//! ledger alone changes. Invariants: a policy that is stored is within its bounds and fits its relatives; a role's
//! use is the sum over all frameworks in it and below. Must never decide who is offered what.

use crate::api::RequestError;
use crate::codec::{self, LoadError};
use crate::limits::ROLES_MAX;
use crate::rows;
use crate::state::State;
use prost::Message as _;
use std::collections::BTreeMap;
use std::ops::Bound;
use tessera_types::{Amounts, Quantities, Resources, RoleName, RolePolicy, WEIGHT_DEFAULT_MILLI, write_amount};
use tessera_wire::v1;

/// The cluster version from which on masters know of roles.
pub(crate) const SINCE: u32 = 4;

/// What is to be said of a role from now on; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleChange {
    /// Its weight, in thousandths.
    pub weight_milli: Option<u32>,
    /// Its priority.
    pub priority: Option<u32>,
    /// All of its guarantee.
    pub guarantee: Option<Amounts>,
    /// All of its quota limit.
    pub limit: Option<Amounts>,
    /// The smallest offer.
    pub min_offer: Option<Quantities>,
    /// Whether agents are held for it.
    pub hold_back: Option<bool>,
}

impl RoleChange {
    /// Back to where nothing is said.
    #[must_use]
    pub fn reset() -> Self {
        let RolePolicy { weight_milli, priority, guarantee, limit, min_offer, hold_back, version: _ } =
            RolePolicy::default();
        Self {
            weight_milli: Some(weight_milli),
            priority: Some(priority.into()),
            guarantee: Some(guarantee),
            limit: Some(limit),
            min_offer: Some(min_offer),
            hold_back: Some(hold_back),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn of(self, mut policy: RolePolicy) -> Result<RolePolicy, RequestError> {
        policy.weight_milli = self.weight_milli.unwrap_or(policy.weight_milli);
        if let Some(priority) = self.priority {
            // What does not fit is above every bound.
            policy.priority = u16::try_from(priority).unwrap_or(u16::MAX);
        }
        policy.guarantee = self.guarantee.unwrap_or(policy.guarantee);
        policy.limit = self.limit.unwrap_or(policy.limit);
        policy.min_offer = self.min_offer.unwrap_or(policy.min_offer);
        policy.hold_back = self.hold_back.unwrap_or(policy.hold_back);
        let refused = policy.check();
        refused.map_err(|error| RequestError::Invalid { field: error.field, rule: error.rule })?;
        Ok(policy)
    }
}

/// What a role uses, with all roles below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoleUse {
    pub(crate) charged: Resources,
    /// Beside that: what may be taken back at any time, outside of quota.
    pub(crate) revocable: Resources,
}

/// By role. Roles that use nothing are not there.
pub(crate) type RoleUses = BTreeMap<String, RoleUse>;

/// Add to the use of a role and of all above it.
pub(crate) fn add(uses: &mut RoleUses, role: &RoleName, resources: &Resources, revocable: bool) {
    for role in role.lineage() {
        if !uses.contains_key(role) {
            uses.insert(role.to_owned(), RoleUse::default());
        }
        if let Some(of) = uses.get_mut(role) {
            let sum = if revocable { &mut of.revocable } else { &mut of.charged };
            *sum = sum.plus(resources);
        }
    }
}

/// The reverse.
pub(crate) fn take(uses: &mut RoleUses, role: &RoleName, resources: &Resources, revocable: bool) {
    for role in role.lineage() {
        let Some(of) = uses.get_mut(role) else { continue };
        let sum = if revocable { &mut of.revocable } else { &mut of.charged };
        *sum = sum.minus(resources);
        if *of == RoleUse::default() {
            uses.remove(role);
        }
    }
}

/// Whether a role is below another one.
fn below(role: &str, above: &str) -> bool {
    role.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

fn conflict<T>(field: &'static str, rule: String) -> Result<T, RequestError> {
    Err(RequestError::Conflict { field, rule })
}

impl State {
    /// What is said of a role.
    pub(crate) fn policy(&self, role: &str) -> RolePolicy {
        self.roles.get(role).cloned().unwrap_or_default()
    }

    /// What would be said of a role after a change.
    pub(crate) fn changed_policy(
        &self,
        role: &RoleName,
        change: RoleChange,
        expected: Option<u64>,
    ) -> Result<RolePolicy, RequestError> {
        let before = self.policy(role.as_str());
        if let Some(expected) = expected.filter(|expected| *expected != before.version) {
            let found = before.version;
            return Err(RequestError::Precondition {
                rule: format!("role {role} is at version {found}, not at {expected}; read it again"),
            });
        }
        if change.is_empty() {
            let rule = "names nothing to set".to_owned();
            return Err(RequestError::Invalid { field: "role", rule });
        }
        let policy = change.of(before)?;
        let known = self.roles.contains_key(role.as_str());
        if !known && !policy.is_default() && self.roles.len() >= ROLES_MAX {
            let rule = format!("something is said of {ROLES_MAX} roles already; `tessera role rm` one of them");
            return Err(RequestError::Limit { name: "ROLES_MAX", rule });
        }
        self.fits_relatives(role, &policy)?;
        Ok(policy)
    }

    /// Guarantees are parts of the one above, and together never more than a quota limit above.
    fn fits_relatives(&self, role: &RoleName, policy: &RolePolicy) -> Result<(), RequestError> {
        for (kind, guaranteed) in policy.guarantee.iter() {
            for above in role.lineage().filter(|above| *above != role.as_str()) {
                let Some(most) = self.roles.get(above).and_then(|above| above.limit.get(kind)) else { continue };
                if guaranteed > most {
                    let [guaranteed, most] = [guaranteed, most].map(|amount| write_amount(kind, amount));
                    let rule = format!("{kind}: {guaranteed} is more than the quota limit of {above}, {most}");
                    return conflict("guarantee", rule);
                }
                let together = self.guaranteed_below(role, above, policy, kind);
                if together > most {
                    let [together, most] = [together, most].map(|amount| write_amount(kind, amount));
                    let rule = format!(
                        "{kind}: roles below {above} would be guaranteed {together} together, and its quota limit is {most}; raise that first"
                    );
                    return conflict("guarantee", rule);
                }
            }
        }
        for (kind, most) in policy.limit.iter() {
            let guaranteed = self.guaranteed_below(role, role.as_str(), policy, kind);
            if guaranteed > most {
                let [guaranteed, most] = [guaranteed, most].map(|amount| write_amount(kind, amount));
                let rule = format!("{kind}: roles below are guaranteed {guaranteed} together, more than {most}");
                return conflict("limit", rule);
            }
        }
        for holder in role.lineage() {
            let own = if holder == role.as_str() { Some(policy) } else { self.roles.get(holder) };
            for (kind, guaranteed) in own.into_iter().flat_map(|own| own.guarantee.iter()) {
                let parts = self.guaranteed_below(role, holder, policy, kind);
                if parts > guaranteed {
                    let [guaranteed, parts] = [guaranteed, parts].map(|amount| write_amount(kind, amount));
                    let rule = format!(
                        "{kind}: {holder} is guaranteed {guaranteed}, and roles below it would be guaranteed {parts} together; raise the guarantee of {holder} first"
                    );
                    return conflict("guarantee", rule);
                }
            }
        }
        Ok(())
    }

    /// What the nearest roles below one that have a guarantee of a kind have together, with a changed policy of
    /// one role in mind.
    fn guaranteed_below(&self, changed: &RoleName, above: &str, policy: &RolePolicy, kind: &str) -> i64 {
        let own = policy.guarantee.get(kind).map(|amount| (changed.as_str(), amount));
        let own = own.filter(|(role, _)| below(role, above));
        let others = self.roles.range::<str, _>((Bound::Excluded(above), Bound::Unbounded));
        let others = others.take_while(|(role, _)| role.starts_with(above));
        let others = others.filter(|(role, _)| below(role, above) && role.as_str() != changed.as_str());
        let others = others.filter_map(|(role, of)| Some((role.as_str(), of.guarantee.get(kind)?)));
        let mut all: Vec<(&str, i64)> = own.into_iter().chain(others).collect();
        // Sorted by the parts of their names, a role comes right before those below it.
        all.sort_unstable_by(|(one, _), (other, _)| one.split('/').cmp(other.split('/')));
        let mut sum: i64 = 0;
        let mut nearest = "";
        for (role, amount) in all {
            if !below(role, nearest) {
                sum = sum.saturating_add(amount);
                nearest = role;
            }
        }
        sum
    }

    /// The first quota limit that a role, or one above it, would pass with this much more.
    pub(crate) fn quota_passed(&self, role: &RoleName, more: &Resources) -> Option<String> {
        role.lineage().find_map(|role| {
            let policy = self.roles.get(role).filter(|policy| !policy.limit.is_empty())?;
            let used = self.role_used.get(role).map(|used| used.charged.clone()).unwrap_or_default();
            let (kind, most, would) = policy.limit.passed_by(&used.plus(more))?;
            let [most, would] = [most, would].map(|amount| write_amount(kind, amount));
            Some(format!("role {role} would use {kind} {would}, its quota limit is {most}"))
        })
    }
}

/// The row of a role.
pub(crate) fn encode(role: &str, policy: &RolePolicy) -> Vec<u8> {
    let row = v1::RoleRow {
        version: codec::ROW_VERSION,
        role: role.to_owned(),
        weight_milli: policy.weight_milli,
        priority: policy.priority.into(),
        guarantee: Some((&policy.guarantee).into()),
        limit: Some((&policy.limit).into()),
        min_offer: Some((&policy.min_offer).into()),
        hold_back: policy.hold_back,
        changed: policy.version,
    };
    row.encode_to_vec()
}

/// Read a row of a role.
pub(crate) fn load(state: &mut State, _key: &[u8], value: &[u8]) -> Result<(), LoadError> {
    let row: v1::RoleRow = codec::decode(rows::ROLES, value)?;
    codec::version(rows::ROLES, row.version)?;
    let policy = RolePolicy {
        weight_milli: if row.weight_milli == 0 { WEIGHT_DEFAULT_MILLI } else { row.weight_milli },
        priority: row.priority.try_into().map_err(|error| codec::bad(rows::ROLES, error))?,
        guarantee: row.guarantee.map(Into::into).unwrap_or_default(),
        limit: row.limit.map(Into::into).unwrap_or_default(),
        min_offer: row.min_offer.map(Into::into).unwrap_or_default(),
        hold_back: row.hold_back,
        version: row.changed,
    };
    state.roles.insert(row.role, policy);
    Ok(())
}

impl From<v1::SetRole> for RoleChange {
    fn from(command: v1::SetRole) -> Self {
        Self {
            weight_milli: command.weight_milli,
            priority: command.priority,
            guarantee: command.guarantee.map(Into::into),
            limit: command.limit.map(Into::into),
            min_offer: command.min_offer.map(Into::into),
            hold_back: command.hold_back,
        }
    }
}

/// The command that asks for a change.
pub(crate) fn command(role: &RoleName, change: RoleChange, expected_version: Option<u64>) -> v1::SetRole {
    v1::SetRole {
        role: role.to_string(),
        weight_milli: change.weight_milli,
        priority: change.priority,
        guarantee: change.guarantee.as_ref().map(Into::into),
        limit: change.limit.as_ref().map(Into::into),
        min_offer: change.min_offer.as_ref().map(Into::into),
        hold_back: change.hold_back,
        expected_version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(of: &[(&str, i64)]) -> Amounts {
        Amounts(of.iter().map(|(kind, amount)| ((*kind).to_owned(), *amount)).collect())
    }

    fn state(of: &[(&str, &[(&str, i64)], &[(&str, i64)])]) -> State {
        let mut state = State::default();
        for (role, guarantee, limit) in of {
            let policy =
                RolePolicy { guarantee: amounts(guarantee), limit: amounts(limit), ..RolePolicy::default() };
            state.roles.insert((*role).to_owned(), policy);
        }
        state
    }

    fn role(name: &str) -> RoleName {
        name.parse().unwrap()
    }

    #[test]
    fn guarantees_fit_between_relatives() {
        let state = state(&[
            ("a", &[("cpus", 10)], &[("cpus", 20), ("mem", 5)]),
            ("a-b", &[("cpus", 100)], &[]),
            ("a/b", &[("cpus", 4)], &[]),
            ("a/b/x", &[("cpus", 4)], &[]),
            ("a/c/y", &[("cpus", 3)], &[]),
            ("l", &[], &[("cpus", 10)]),
            ("l/b", &[("cpus", 6)], &[]),
            ("l/c/x", &[("cpus", 3)], &[]),
        ]);
        let cases: [(&str, &[(&str, i64)], &[(&str, i64)], Option<&str>); 18] = [
            ("a/d", &[("cpus", 3)], &[], None),
            ("a/d", &[("cpus", 4)], &[], Some("guarantee")),
            // It takes in what stands below it.
            ("a/c", &[("cpus", 6)], &[], None),
            ("a/c", &[("cpus", 2)], &[], Some("guarantee")),
            ("a/b", &[("cpus", 7)], &[], None),
            ("a/b", &[("cpus", 8)], &[], Some("guarantee")),
            ("a", &[("cpus", 6)], &[], Some("guarantee")),
            ("a", &[("cpus", 7)], &[], None),
            ("a", &[("cpus", 10)], &[("cpus", 6)], Some("guarantee")),
            ("a/c", &[], &[("cpus", 2)], Some("limit")),
            ("a/e", &[("mem", 6)], &[], Some("guarantee")),
            // Below a quota limit without a guarantee they are together no more than that.
            ("l/d", &[("cpus", 2)], &[], Some("guarantee")),
            ("l/d", &[("cpus", 1)], &[], None),
            ("l/c", &[("cpus", 4)], &[], None),
            ("l/c", &[("cpus", 5)], &[], Some("guarantee")),
            ("l/c/x/deep/down", &[("cpus", 3)], &[], None),
            ("l/b", &[], &[("cpus", 1)], None),
            ("l", &[], &[("cpus", 8)], Some("limit")),
        ];
        for (name, guarantee, limit, refused) in cases {
            let change = RoleChange {
                guarantee: Some(amounts(guarantee)),
                limit: Some(amounts(limit)),
                ..RoleChange::default()
            };
            let found = state.changed_policy(&role(name), change, None);
            let field = match &found {
                Ok(_) => None,
                Err(RequestError::Conflict { field, .. } | RequestError::Invalid { field, .. }) => Some(*field),
                Err(error) => panic!("{name}: {error}"),
            };
            assert_eq!(field, refused, "{name} {guarantee:?}: {found:?}");
        }
    }

    #[test]
    fn a_change_names_something_and_the_version_it_saw() {
        let state = state(&[]);
        let weight = RoleChange { weight_milli: Some(2_000), ..RoleChange::default() };
        assert!(state.changed_policy(&role("a"), weight.clone(), Some(0)).is_ok());
        let error = state.changed_policy(&role("a"), weight, Some(3)).unwrap_err();
        assert!(matches!(error, RequestError::Precondition { .. }), "{error}");
        assert!(state.changed_policy(&role("a"), RoleChange::default(), None).is_err());
        let high = RoleChange { priority: Some(70_000), ..RoleChange::default() };
        assert!(state.changed_policy(&role("a"), high, None).is_err());
    }

    #[test]
    fn a_use_counts_for_all_roles_above() {
        let mut uses = RoleUses::new();
        let one = Resources::of(Quantities { cpus_milli: 1, mem_mib: 2, disk_mib: 0 });
        add(&mut uses, &role("a/b"), &one, false);
        add(&mut uses, &role("a"), &one, true);
        assert_eq!(uses["a"], RoleUse { charged: one.clone(), revocable: one.clone() });
        assert_eq!(uses["a/b"].charged, one);
        take(&mut uses, &role("a/b"), &one, false);
        take(&mut uses, &role("a"), &one, true);
        assert!(uses.is_empty(), "{uses:?}");
    }

    #[test]
    fn rows_round_trip() {
        let policy = RolePolicy {
            weight_milli: 2_500,
            priority: 7,
            guarantee: amounts(&[("cpus", 5), ("gpus", 2_000)]),
            limit: amounts(&[("cpus", 6)]),
            min_offer: Quantities { cpus_milli: 1, mem_mib: 2, disk_mib: 3 },
            hold_back: true,
            version: 17,
        };
        let mut state = State::default();
        load(&mut state, b"a/b", &encode("a/b", &policy)).unwrap();
        assert_eq!(state.policy("a/b"), policy);
    }
}
