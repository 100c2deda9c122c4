//! What is counted for metrics: how often the leader did what, since the process began.
//!
//! Invariants: plain additions, on no path anything but that; nothing here is replicated or looked at by a decision.
//! Must never grow with time: what is kept per framework goes with the framework.

use crate::Core;
use crate::lifecycle::Phase;
use crate::role_view::RoleView;
use crate::state::State;
use std::collections::BTreeMap;
use tessera_types::{FrameworkId, Reason, Resources, TaskState};

/// How an offer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferEnd {
    /// Launches took it, or a part of it.
    Accepted,
    /// Its framework did not want it.
    Declined,
    /// Nobody answered.
    Expired,
    /// It was taken back.
    Rescinded,
}

impl OfferEnd {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Declined, Self::Expired, Self::Rescinded];

    /// As metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Declined => "declined",
            Self::Expired => "expired",
            Self::Rescinded => "rescinded",
        }
    }
}

/// Of one framework.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnTally {
    /// Turns that were committed.
    pub committed: u64,
    /// Turns that changed nothing.
    pub read: u64,
    /// Turns that were refused.
    pub refused: u64,
    /// Operations of committed turns.
    pub operations: u64,
    /// Failures of its scheduler.
    pub failures: u64,
    /// CPU time that its guest took for turns that came, in microseconds.
    pub cpu_us: u64,
    /// Time that passed meanwhile, likewise.
    pub wall_us: u64,
}

impl TurnTally {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            committed: self.committed + other.committed,
            read: self.read + other.read,
            refused: self.refused + other.refused,
            operations: self.operations + other.operations,
            failures: self.failures + other.failures,
            cpu_us: self.cpu_us + other.cpu_us,
            wall_us: self.wall_us + other.wall_us,
        }
    }

    /// What came since an earlier look.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            committed: self.committed.saturating_sub(earlier.committed),
            read: self.read.saturating_sub(earlier.read),
            refused: self.refused.saturating_sub(earlier.refused),
            operations: self.operations.saturating_sub(earlier.operations),
            failures: self.failures.saturating_sub(earlier.failures),
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
            wall_us: self.wall_us.saturating_sub(earlier.wall_us),
        }
    }

    /// By which frameworks are put in order.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        self.committed + self.read + self.refused
    }
}

/// Everything that is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds of the allocator.
    pub rounds: u64,
    /// Agents that those looked at.
    pub agents_looked: u64,
    /// Tasks that were preempted.
    pub preempted: u64,
    /// Offers that were made.
    pub offers_made: u64,
    /// Offers that ended, in the order of [`OfferEnd::ALL`].
    pub offers_ended: [u64; 4],
    /// Turns by framework.
    pub turns: BTreeMap<FrameworkId, TurnTally>,
    /// Tasks that ended: in which states, and why.
    pub ended: BTreeMap<(TaskState, Reason), u64>,
}

impl Tally {
    pub(crate) const fn offer_ended(&mut self, how: OfferEnd) {
        self.offers_ended[how as usize] += 1;
    }

    pub(crate) fn of(&mut self, framework: FrameworkId) -> &mut TurnTally {
        self.turns.entry(framework).or_default()
    }
}

/// How many there are of what, at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Tasks that have not ended, by state.
    pub tasks: BTreeMap<TaskState, usize>,
    /// Frameworks, by what their schedulers do.
    pub phases: BTreeMap<&'static str, usize>,
    /// Agents with a session here.
    pub connected: usize,
    /// Agents without one that are not given up, as the leader knows.
    pub disconnected: usize,
    /// Agents that are.
    pub unreachable: usize,
    /// Agents on which nothing new is placed.
    pub deactivated: usize,
    /// Sessions of agents.
    pub sessions: usize,
    /// Components.
    pub components: usize,
    /// Offers that stand.
    pub offers: usize,
    /// Declined resources that are not offered again for a while.
    pub filters: usize,
    /// Requests that wait for schedulers.
    pub requests: usize,
    /// Messages that could not be delivered since this master leads.
    pub messages_dropped: u64,
    /// What all reachable agents have.
    pub total: Resources,
    /// What is charged on them.
    pub used: Resources,
    /// What is offered of them.
    pub offered: Resources,
    /// Names of the frameworks of [`Tally::turns`], with their tenants.
    pub names: BTreeMap<FrameworkId, String>,
    /// Roles: those with the largest shares.
    pub roles: Vec<RoleView>,
    /// What was counted.
    pub tally: Tally,
}

impl Core {
    /// Numbers for metrics, with so many roles at most. Costs a look at every agent, framework and role, and at no task.
    #[must_use]
    pub fn gauges(&mut self, roles_max: usize) -> Gauges {
        let mut gauges = self.counted();
        gauges.roles = self.largest_roles(roles_max);
        let frameworks = &self.state.frameworks;
        let tally = self.leader.as_mut().map_or(&mut self.tally, |leader| &mut leader.tally);
        tally.turns.retain(|id, _| frameworks.contains_key(id));
        gauges.tally = tally.clone();
        let named = gauges.tally.turns.keys().filter_map(|id| Some((*id, label(frameworks.get(id)?))));
        gauges.names = named.collect();
        gauges
    }

    fn counted(&self) -> Gauges {
        let state = &self.state;
        let mut gauges = Gauges {
            tasks: state.live_states.clone(),
            components: state.components.len(),
            total: state.total(),
            ..Gauges::default()
        };
        for (id, framework) in &state.frameworks {
            let instance = self.leader.as_ref().and_then(|leader| leader.instances.get(id));
            let phase: Phase = crate::query::phase(framework, instance);
            *gauges.phases.entry(phase.name()).or_default() += 1;
        }
        for (id, agent) in &state.agents {
            gauges.deactivated += usize::from(agent.deactivated);
            let link = self.leader.as_ref().map(|leader| leader.links.get(id).is_some_and(|link| link.session.is_some()));
            match (agent.unreachable_ms, link) {
                (Some(_), _) => gauges.unreachable += 1,
                (None, Some(true)) => gauges.connected += 1,
                (None, Some(false)) => gauges.disconnected += 1,
                (None, None) => {}
            }
            if agent.unreachable_ms.is_none() {
                gauges.used.add(&agent.charged);
            }
        }
        if let Some(leader) = &self.leader {
            gauges.sessions = leader.sessions.len();
            gauges.requests = leader.waiters.by_request.len();
            gauges.messages_dropped = leader.messages_dropped;
            gauges.offers = leader.offers.standing().len();
            gauges.filters = leader.offers.filters_len();
            for standing in leader.offers.standing().values() {
                gauges.offered.add(&standing.quantities);
            }
        }
        gauges
    }
}

/// A framework as metrics call it: its name, which may be that of another tenant's, after its tenant.
fn label(framework: &crate::state::Framework) -> String {
    format!("{}:{}", framework.role.tenant(), framework.name)
}

impl State {
    /// The index of live tasks by state follows a task.
    pub(crate) fn note_state(states: &mut BTreeMap<TaskState, usize>, from: Option<TaskState>, to: Option<TaskState>) {
        if let Some(from) = from.filter(|state| !state.is_terminal())
            && let Some(count) = states.get_mut(&from)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                states.remove(&from);
            }
        }
        if let Some(to) = to.filter(|state| !state.is_terminal()) {
            *states.entry(to).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_tasks_are_counted_by_state() {
        let mut states = BTreeMap::new();
        let steps = [
            (None, Some(TaskState::Staging)),
            (None, Some(TaskState::Staging)),
            (Some(TaskState::Staging), Some(TaskState::Running)),
            (Some(TaskState::Staging), Some(TaskState::Failed)),
            (None, Some(TaskState::Dropped)),
        ];
        for (from, to) in steps {
            State::note_state(&mut states, from, to);
        }
        assert_eq!(states, BTreeMap::from([(TaskState::Running, 1)]));
    }

    #[test]
    fn each_end_of_an_offer_has_a_place() {
        let mut tally = Tally::default();
        for how in OfferEnd::ALL {
            tally.offer_ended(how);
        }
        assert_eq!(tally.offers_ended, [1; 4]);
    }
}
