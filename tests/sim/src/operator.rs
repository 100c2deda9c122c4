//! The operator: declares agents gone, says when they will be worked on, and sets limits for a while.
//!
//! Invariants: one change of limits is under way at a time, so that they come in the order in which they are
//! wanted; after the last fault none is left. Must never do what users do.

use crate::calls::Ask;
use crate::master::EPOCH_MS;
use crate::world::World;
use tessera_master_core::{Keep, Maintenance, Request, UnreachablePolicy};
use tessera_types::{FrameworkId, LimitName, RoleName};

/// Agents that are declared gone in one run: each loses the work of an agent.
const GONE_MAX: usize = 2;
/// Of 100 looks so many declare an agent gone that answers.
const GONE: u64 = 1;
/// The same of an agent that does not.
const GONE_AWAY: u64 = 15;
/// Of 100 looks so many say when an agent will be worked on.
const MAINTAINED: u64 = 4;
/// Of 100 looks so many set a limit.
const LIMITED: u64 = 5;
/// Of 100 looks so many take one back: it holds up what users want.
const RELEASED: u64 = 15;
/// After so long the schedulers are told that they may replace a task, or lose it.
const REPLACE_AFTER_MS: u64 = 2_000;

/// What becomes of the tasks of the n-th framework while their agent is away: all kinds come up.
pub(crate) fn policy(n: u64) -> UnreachablePolicy {
    match n % 3 {
        0 => UnreachablePolicy { replace_after_ms: None, keep: Keep::First },
        1 => UnreachablePolicy { replace_after_ms: Some(REPLACE_AFTER_MS), keep: Keep::First },
        _ => UnreachablePolicy { replace_after_ms: Some(REPLACE_AFTER_MS), keep: Keep::Last },
    }
}

/// A limit that is in force, and whose it is.
pub(crate) type Limited = (Option<RoleName>, LimitName);

impl World {
    /// Returns whether there was something to do.
    pub(crate) fn operator_acts(&mut self) -> bool {
        self.operator_ends_strangers()
            || self.operator_limits()
            || self.operator_shares()
            || (self.faults_on && (self.operator_declares_gone() || self.operator_maintains()))
    }

    pub(crate) fn order(&mut self, request: Request) -> bool {
        self.ask(Ask::Change(request), None);
        true
    }

    fn operator_declares_gone(&mut self) -> bool {
        if self.oracle.wishes.gone.len() >= GONE_MAX {
            return false;
        }
        let Some(node) = self.leading() else { return false };
        let agents = node.core().agents();
        let away = agents.iter().filter(|view| view.unreachable_ms.is_some()).map(|view| view.id);
        let away: Vec<_> = away.collect();
        let all: Vec<_> = agents.iter().map(|view| view.id).collect();
        let agent = match (away.as_slice(), all.as_slice()) {
            ([_, ..], _) if self.rng.chance(GONE_AWAY) => away[self.rng.index(away.len())],
            (_, [_, ..]) if self.rng.chance(GONE) => all[self.rng.index(all.len())],
            _ => return false,
        };
        self.oracle.wishes.gone.insert(agent);
        let (is_away, answers) = ("an agent that is away is declared gone", "an agent that answers is declared gone");
        self.oracle.saw(if away.contains(&agent) { is_away } else { answers });
        self.order(Request::MarkGone { agent })
    }

    fn operator_maintains(&mut self) -> bool {
        if !self.rng.chance(MAINTAINED) {
            return false;
        }
        let now_ms = EPOCH_MS + self.now_us / 1_000;
        let agents = self.leading().map(|node| node.core().agents()).unwrap_or_default();
        if agents.is_empty() {
            return false;
        }
        let agent = agents[self.rng.index(agents.len())].id;
        let start_ms = now_ms + self.rng.range(0, 2_000);
        let end_ms = start_ms + self.rng.range(500, 4_000);
        let maintenance = self.rng.chance(70).then_some(Maintenance { start_ms, end_ms });
        self.oracle.wishes.asked_back.insert(agent);
        self.oracle.saw("maintenance is announced");
        self.order(Request::SetMaintenance { agent, maintenance })
    }

    /// One limit at a time, for the cluster or for a tenant.
    fn operator_limits(&mut self) -> bool {
        if self.calls.asks(|request| matches!(request, Request::SetLimits { .. })) {
            return false;
        }
        if let Some((role, name)) = self.user.limited.clone() {
            if self.faults_on && !self.rng.chance(RELEASED) {
                return false;
            }
            self.user.limited = None;
            return self.order(Request::SetLimits { role, set: Vec::new(), unset: vec![name], expected: None });
        }
        if !self.faults_on || !self.rng.chance(LIMITED) {
            return false;
        }
        let kinds = if self.shares.is_some() { 5 } else { 4 };
        let (name, most) = match self.rng.below(kinds) {
            4 => (LimitName::PreemptionGraceMs, 3_000),
            0 => (LimitName::LiveTasks, 4),
            1 => (LimitName::TurnsPerSecond, 10),
            2 => (LimitName::Failures, 2),
            _ => (LimitName::ExecutorsPerAgent, 1),
        };
        let least = name.row().min;
        let value = self.rng.range(least, most);
        let tenant = self.rng.below(self.plan.frameworks);
        let role = RoleName::try_from(format!("tenant{tenant}")).ok().filter(|_| self.rng.chance(50));
        self.oracle.wishes.limited.insert(name);
        self.oracle.saw("a limit is set");
        self.user.limited = Some((role.clone(), name));
        self.order(Request::SetLimits { role, set: vec![(name, value)], unset: Vec::new(), expected: None })
    }

    /// The policy that comes with a new configuration, if one does.
    pub(crate) fn another_policy(&mut self, framework: FrameworkId) -> Option<UnreachablePolicy> {
        if !self.rng.chance(30) {
            return None;
        }
        let policy = policy(self.rng.below(3));
        self.oracle.wishes.on_policy(framework.0, policy);
        Some(policy)
    }
}
