//! Turns that wait because their tenant has used up its turns, or its bytes of turns, of the moment.
//!
//! Owns one pair of token buckets per tenant and the turns that wait for them, first come, first served.
//! Invariants: at most one turn of a framework waits, because it counts as under way; a turn is admitted
//! when there is any token, and may leave a debt, so that a turn larger than the bucket passes too; time
//! is monotonic, amounts are integers. Must never hold a batch or an answer.

use super::Desk;
use std::collections::{BTreeMap, VecDeque};
use tessera_types::{EffectiveLimits, FrameworkId, LimitName, RoleName, Turn, TurnOutcome, TurnRefusal};

/// Parts of a token, so that a millisecond's worth of one is a whole number.
const PARTS: i64 = 1_000;

/// A turn that was checked for its sender, and is not planned yet.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) session: u64,
    /// It answers the batch that was sent last; else it was sent before.
    pub(super) first: bool,
    pub(super) turn: Turn,
    pub(super) hash: Vec<u8>,
    /// Requests that its batch delivered and that wait here.
    pub(super) http: Vec<u64>,
    /// Requests that its batch delivered under a former leader, and that nobody noted.
    pub(super) former: Vec<u64>,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    parts: i64,
    at_ms: u64,
}

impl Bucket {
    fn full(rate: u64, at_ms: u64) -> Self {
        Self { parts: cap(rate), at_ms }
    }

    /// Add what came since: `rate` tokens in a second, and at most as many.
    fn refill(&mut self, rate: u64, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.at_ms);
        let gained = i64::try_from(rate.saturating_mul(elapsed)).unwrap_or(i64::MAX);
        self.parts = self.parts.saturating_add(gained).min(cap(rate));
        self.at_ms = self.at_ms.max(now_ms);
    }

    fn take(&mut self, tokens: u64) {
        let parts = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(PARTS);
        self.parts = self.parts.saturating_sub(parts);
    }
}

fn cap(rate: u64) -> i64 {
    i64::try_from(rate).unwrap_or(i64::MAX).saturating_mul(PARTS)
}

#[derive(Debug)]
struct Tenant {
    turns: Bucket,
    bytes: Bucket,
    waiting: VecDeque<Submission>,
}

impl Tenant {
    fn refill(&mut self, limits: &EffectiveLimits, now_ms: u64) {
        self.turns.refill(limits.get(LimitName::TurnsPerSecond), now_ms);
        self.bytes.refill(limits.get(LimitName::TurnBytesPerSecond), now_ms);
    }

    const fn admits(&self) -> bool {
        self.turns.parts > 0 && self.bytes.parts > 0
    }

    fn take(&mut self, bytes: u64) {
        self.turns.take(1);
        self.bytes.take(bytes);
    }

    /// What is used up.
    const fn lacks(&self) -> LimitName {
        if self.turns.parts > 0 { LimitName::TurnBytesPerSecond } else { LimitName::TurnsPerSecond }
    }
}

/// All tenants that took turns lately.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    tenants: BTreeMap<String, Tenant>,
}

impl Throttle {
    /// What a framework's turn waits for, if it does.
    pub(super) fn waits(&self, tenant: &str, framework: FrameworkId) -> Option<LimitName> {
        let tenant = self.tenants.get(tenant)?;
        let mut waiting = tenant.waiting.iter();
        let waits = waiting.any(|held| held.turn.header.framework == framework);
        waits.then(|| tenant.lacks())
    }
}

impl Desk<'_> {
    pub(super) fn tenant_limits(&self, tenant: &str) -> EffectiveLimits {
        match RoleName::try_from(tenant.to_owned()) {
            Ok(role) => self.state.limits_of(&role),
            Err(_) => self.state.cluster_limits(),
        }
    }

    /// Let a turn go on if its tenant has tokens; otherwise it waits.
    pub(super) fn pace(&mut self, submission: Submission) {
        let id = submission.turn.header.framework;
        let Some(framework) = self.state.frameworks.get(&id) else { return };
        let name = framework.role.tenant();
        let limits = self.tenant_limits(name);
        let now_ms = self.now.mono_ms;
        let tenants = &mut self.leader.throttle.tenants;
        let tenant = tenants.entry(name.to_owned()).or_insert_with(|| Tenant {
            turns: Bucket::full(limits.get(LimitName::TurnsPerSecond), now_ms),
            bytes: Bucket::full(limits.get(LimitName::TurnBytesPerSecond), now_ms),
            waiting: VecDeque::new(),
        });
        tenant.refill(&limits, now_ms);
        if tenant.waiting.is_empty() && tenant.admits() {
            tenant.take(submission.bytes);
            return self.go_on(submission);
        }
        // One of an older epoch is fenced already.
        let (stale, waiting) = std::mem::take(&mut tenant.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|held| held.turn.header.framework == id);
        tenant.waiting = waiting;
        let under_way = Some((submission.turn.header.number, submission.hash.clone()));
        tenant.waiting.push_back(submission);
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.in_flight = under_way;
        }
        for held in stale {
            self.fail_http(&held.http, 502, "SCHEDULER_MOVED", "the scheduler was moved");
        }
    }

    /// Let turns go on whose tenants have tokens again.
    pub(super) fn pace_waiting(&mut self) {
        let waiting = self.leader.throttle.tenants.iter().filter(|(_, t)| !t.waiting.is_empty());
        let names: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
        for name in names {
            let limits = self.tenant_limits(&name);
            let now_ms = self.now.mono_ms;
            while let Some(tenant) = self.leader.throttle.tenants.get_mut(&name) {
                tenant.refill(&limits, now_ms);
                if !tenant.admits() {
                    break;
                }
                let Some(next) = tenant.waiting.pop_front() else { break };
                tenant.take(next.bytes);
                self.resume(next);
            }
        }
    }

    /// Go on with a turn that waited, unless it was overtaken.
    fn resume(&mut self, held: Submission) {
        let header = held.turn.header;
        let (id, number) = (header.framework, header.number);
        let current = self.state.frameworks.get(&id).filter(|f| !f.removing);
        let refusal = match current {
            None => Some(TurnRefusal::NoFramework),
            Some(f) if f.epoch != header.epoch => {
                Some(TurnRefusal::WrongEpoch { given: header.epoch, current: f.epoch })
            }
            Some(f) if f.next_turn() != number => {
                Some(TurnRefusal::WrongNumber { given: number, expected: f.next_turn() })
            }
            Some(_) => None,
        };
        let instance = self.leader.instances.get_mut(&id);
        if let Some(instance) = instance.filter(|instance| instance.epoch == header.epoch) {
            instance.in_flight = None;
        }
        self.leader.dirty_frameworks.insert(id);
        match refusal {
            Some(refusal) => {
                self.refuse_turn(header, held.session, TurnOutcome::Refused(refusal), &held.http);
            }
            None => self.go_on(held),
        }
    }

    /// Forget tenants that have what they may have.
    pub(super) fn tick_throttle(&mut self) {
        let now_ms = self.now.mono_ms;
        let names: Vec<String> = self.leader.throttle.tenants.keys().cloned().collect();
        for name in names {
            let limits = self.tenant_limits(&name);
            let full = self.leader.throttle.tenants.get_mut(&name).is_some_and(|tenant| {
                tenant.refill(&limits, now_ms);
                tenant.waiting.is_empty()
                    && tenant.turns.parts >= cap(limits.get(LimitName::TurnsPerSecond))
                    && tenant.bytes.parts >= cap(limits.get(LimitName::TurnBytesPerSecond))
            });
            if full {
                self.leader.throttle.tenants.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_second_and_pays_back_debts() {
        let mut bucket = Bucket::full(100, 1_000);
        assert_eq!(bucket.parts, 100 * PARTS);
        bucket.take(250);
        assert_eq!(bucket.parts, -150 * PARTS, "one that is larger than the bucket passes");
        bucket.refill(100, 2_499);
        assert!(bucket.parts <= 0, "the debt is not paid back yet");
        bucket.refill(100, 2_510);
        assert!(bucket.parts > 0);
        bucket.refill(100, 1_000_000);
        assert_eq!(bucket.parts, 100 * PARTS, "no more than a second's worth");
        bucket.refill(10, 1_000_000);
        assert_eq!(bucket.parts, 10 * PARTS, "a lower rate counts at once");
        bucket.refill(u64::MAX, u64::MAX);
        assert_eq!(bucket.parts, i64::MAX);
    }
}
