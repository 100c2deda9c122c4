//! What is gathered for a moment before it goes on, when much happens: events of one scheduler, statuses of agents.
//!
//! A turn costs the same whether it handles one event or a hundred, and so does a log entry. Invariants: after a
//! pause a burst goes on at once, and then one per interval; nobody who waits for an answer waits here; what is
//! held goes on with the first input after its time, at the latest with a tick. Must never drop anything.

use super::{Desk, Pending};
use crate::limits::{PACE_BURST, STATUSES_EVERY_MS, TURN_EVERY_MS};
use tessera_types::{AgentId, FrameworkId};
use tessera_wire::v1;

/// Lets a burst pass, and then one per interval.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When the next one would be due if all had kept to the interval.
    next_ms: u64,
}

impl Pace {
    /// From when on the next one may pass.
    pub(super) const fn due_ms(self, every_ms: u64) -> u64 {
        self.next_ms.saturating_sub(every_ms.saturating_mul(PACE_BURST))
    }

    /// One passes now.
    pub(super) fn pass(&mut self, every_ms: u64, now_ms: u64) {
        self.next_ms = self.next_ms.max(now_ms).saturating_add(every_ms);
    }
}

/// Statuses of one agent that were not proposed yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) session: u64,
    pub(super) agent: AgentId,
    pub(super) statuses: Vec<v1::AgentStatus>,
    pub(super) acks: Vec<v1::StatusAck>,
}

/// The statuses of all agents, which share an entry of the log. Bounded by what each session may have under way.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    held: Vec<Held>,
    pace: Pace,
}

impl Desk<'_> {
    /// Whether a framework that is given many turns waits for the next one. It is looked at again in time.
    pub(super) fn rests(&mut self, id: FrameworkId) -> bool {
        let Some(instance) = self.leader.instances.get(&id) else { return false };
        let due_ms = instance.pace.due_ms(TURN_EVERY_MS);
        let rests = due_ms > self.now.mono_ms && !instance.is_urgent();
        if rests {
            self.leader.resting.insert(id, due_ms);
        }
        rests
    }

    /// A framework is given a turn. One that somebody waits for is not counted.
    pub(super) fn count_turn(&mut self, id: FrameworkId, urgent: bool) {
        let now_ms = self.now.mono_ms;
        self.leader.resting.remove(&id);
        if let Some(instance) = self.leader.instances.get_mut(&id).filter(|_| !urgent) {
            instance.pace.pass(TURN_EVERY_MS, now_ms);
        }
    }

    /// Frameworks that have rested for long enough.
    pub(super) fn wake_resting(&mut self) {
        let now_ms = self.now.mono_ms;
        let leader = &mut *self.leader;
        leader.resting.retain(|id, due_ms| {
            let due = *due_ms <= now_ms;
            if due {
                leader.dirty_frameworks.insert(*id);
            }
            !due
        });
    }

    /// Have statuses of an agent proposed with those of others.
    pub(super) fn hold_statuses(&mut self, held: Held) {
        self.leader.statuses.held.push(held);
    }

    /// Propose the statuses that are held, unless some were proposed just now.
    pub(super) fn propose_statuses(&mut self) {
        let now_ms = self.now.mono_ms;
        let statuses = &mut self.leader.statuses;
        if statuses.held.is_empty() || statuses.pace.due_ms(STATUSES_EVERY_MS) > now_ms {
            return;
        }
        statuses.pace.pass(STATUSES_EVERY_MS, now_ms);
        for Held { session, agent, statuses, acks } in std::mem::take(&mut statuses.held) {
            let command = v1::UpdateStatuses { agent: agent.0, statuses };
            let command = v1::command::Command::UpdateStatuses(command);
            self.propose("", command, Pending::Statuses { session, acks });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let mut pace = Pace::default();
        let mut passed = Vec::new();
        for now_ms in 1_000..1_100 {
            while pace.due_ms(10) <= now_ms {
                pace.pass(10, now_ms);
                passed.push(now_ms);
            }
        }
        let burst = usize::try_from(PACE_BURST).unwrap_or(usize::MAX) + 1;
        assert!(passed.iter().take(burst).all(|at| *at == 1_000), "{passed:?}");
        let rest: Vec<u64> = passed.iter().skip(burst).copied().collect();
        assert_eq!(rest, [1_010, 1_020, 1_030, 1_040, 1_050, 1_060, 1_070, 1_080, 1_090]);
        // After a pause it may be fast again, and no faster than at first.
        let mut again = 0;
        while pace.due_ms(10) <= 9_000 {
            pace.pass(10, 9_000);
            again += 1;
        }
        assert_eq!(again, burst);
    }
}
