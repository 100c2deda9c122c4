//! The page of a master's metrics, from what it counted and what its node says.
//!
//! Invariants: only the largest frameworks and roles have values of their own; whatever belongs to the leader is left
//! out, or 0, on other masters. Must never hold the node for longer than a look at agents, frameworks and roles.

use super::Metrics;
use super::others::Others;
use crate::node_handle::NodeStatus;
use std::sync::PoisonError;
use tessera_master_core::{Gauges, OfferEnd, RoleView, TurnTally};
use tessera_replica::Role;
use tessera_telemetry::{FRAMEWORKS_SHOWN_MAX, Name, OTHERS, Page, Value, Who};
use tessera_types::{CPUS, DISK, FrameworkId, MEM, Resources};

/// What the page is made from.
pub struct Sources<'a> {
    /// What was counted.
    pub metrics: &'a Metrics,
    /// Of the state.
    pub gauges: &'a Gauges,
    /// Of the replica.
    pub status: &'a NodeStatus,
    /// Inputs that wait for the loop.
    pub queue: usize,
    /// Open streams of events.
    pub watchers: usize,
    /// Writes of state that were passed on.
    pub passed_on: u64,
}

/// The page.
#[must_use]
pub fn write(sources: &Sources<'_>) -> String {
    let mut page = Page::new(Who::Master);
    let metrics = sources.metrics;
    metrics.process.write(&mut page);
    metrics.http.write(&mut page);
    page.whole(Name::SchedulerRequests, &[], sources.gauges.requests as u64);
    page.whole(Name::Watchers, &[], sources.watchers as u64);
    page.whole(Name::WritesPassedOn, &[], sources.passed_on);
    page.whole(Name::NodeInputs, &[], metrics.inputs.get());
    page.whole(Name::NodeQueue, &[], sources.queue as u64);
    page.histogram(Name::NodeRoundSeconds, &[], &metrics.rounds);
    page.histogram(Name::ApplySeconds, &[], &metrics.applies);
    page.histogram(Name::CommitSeconds, &[], &metrics.commits);
    page.histogram(Name::SyncSeconds, &[], &metrics.syncs);
    page.whole(Name::Events, &[], metrics.events.get());
    metrics.spans.write(&mut page);
    raft(&mut page, metrics, sources.status);
    state(&mut page, sources.gauges);
    offers(&mut page, sources.gauges);
    page.histogram(Name::AllocationSeconds, &[], &metrics.allocations);
    for role in &sources.gauges.roles {
        write_role(&mut page, role);
    }
    turns(&mut page, sources.gauges, &mut metrics.others.lock().unwrap_or_else(PoisonError::into_inner));
    page.finish()
}

fn raft(page: &mut Page, metrics: &Metrics, status: &NodeStatus) {
    let leads = status.role == Role::Leader;
    page.whole(Name::LogSyncs, &[], status.syncs);
    page.whole(Name::LogBytes, &[], status.log_bytes);
    page.whole(Name::LogEntries, &[], (status.last_index + 1).saturating_sub(status.first_index));
    page.whole(Name::UncommittedBytes, &[], status.uncommitted_bytes as u64);
    page.whole(Name::Leader, &[], u64::from(leads));
    page.whole(Name::LeaderKnown, &[], u64::from(status.leader.is_some()));
    page.whole(Name::Term, &[], status.term);
    page.whole(Name::CommitIndex, &[], status.commit_index);
    page.whole(Name::AppliedIndex, &[], status.applied.index);
    page.whole(Name::LastIndex, &[], status.last_index);
    page.whole(Name::Voters, &[], status.voters.len() as u64);
    page.whole(Name::Elections, &[], metrics.terms.get());
    page.whole(Name::LeadsBegun, &[], metrics.leaderships.get());
    page.whole(Name::SnapshotsSent, &[], metrics.snapshots_sent.get());
    page.whole(Name::SnapshotsTaken, &[], metrics.snapshots_taken.get());
    for peer in status.peers.iter().filter(|_| leads) {
        let node = peer.node.to_string();
        page.whole(Name::PeerLag, &[&node], status.last_index.saturating_sub(peer.matched));
        page.whole(Name::PeerActive, &[&node], u64::from(peer.recently_active));
        page.whole(Name::PeerSnapshot, &[&node], u64::from(peer.needs_snapshot));
    }
}

fn state(page: &mut Page, gauges: &Gauges) {
    for (state, count) in &gauges.tasks {
        page.whole(Name::Tasks, &[&state.to_string()], *count as u64);
    }
    for ((state, reason), count) in &gauges.tally.ended {
        page.whole(Name::TasksEnded, &[&state.to_string(), reason.code()], *count);
    }
    for (phase, count) in &gauges.phases {
        page.whole(Name::Frameworks, &[phase], *count as u64);
    }
    let agents = [("connected", gauges.connected), ("disconnected", gauges.disconnected), ("unreachable", gauges.unreachable)];
    for (state, count) in agents {
        page.whole(Name::Agents, &[state], count as u64);
    }
    page.whole(Name::AgentsDeactivated, &[], gauges.deactivated as u64);
    page.whole(Name::Sessions, &[], gauges.sessions as u64);
    page.whole(Name::Components, &[], gauges.components as u64);
    page.whole(Name::MessagesDropped, &[], gauges.messages_dropped);
    for (kind, resources) in [("total", &gauges.total), ("used", &gauges.used), ("offered", &gauges.offered)] {
        page.set(Name::Cpus, &[kind], amount(CPUS, resources.amount(CPUS)));
        page.set(Name::Memory, &[kind], amount(MEM, resources.amount(MEM)));
        page.set(Name::Disk, &[kind], amount(DISK, resources.amount(DISK)));
    }
}

fn offers(page: &mut Page, gauges: &Gauges) {
    page.whole(Name::AllocationRounds, &[], gauges.tally.rounds);
    page.whole(Name::AllocationAgents, &[], gauges.tally.agents_looked);
    page.whole(Name::Preemptions, &[], gauges.tally.preempted);
    page.whole(Name::OffersStanding, &[], gauges.offers as u64);
    page.whole(Name::OffersMade, &[], gauges.tally.offers_made);
    page.whole(Name::Filters, &[], gauges.filters as u64);
    for (how, count) in OfferEnd::ALL.iter().zip(gauges.tally.offers_ended) {
        page.whole(Name::OffersEnded, &[how.name()], count);
    }
}

/// An amount of a kind of resource in the unit of metrics: cores, bytes, or the resource's own.
fn amount(kind: &str, amount: i64) -> Value {
    match kind {
        MEM | DISK => Value::Whole(u64::try_from(amount).unwrap_or(0) << 20),
        _ => Value::Milli(amount),
    }
}

fn write_role(page: &mut Page, role: &RoleView) {
    let name = role.role.as_str();
    for (kind, value) in kinds(&role.used) {
        page.set(Name::RoleUsed, &[name, kind], amount(kind, value));
    }
    for (kind, value) in kinds(&role.revocable).filter(|(_, value)| *value > 0) {
        page.set(Name::RoleRevocable, &[name, kind], amount(kind, value));
    }
    for (kind, value) in role.policy.guarantee.iter() {
        page.set(Name::RoleGuarantee, &[name, kind], amount(kind, value));
    }
    for (kind, value) in role.policy.limit.iter() {
        page.set(Name::RoleLimit, &[name, kind], amount(kind, value));
    }
    page.set(Name::RoleShare, &[name], Value::Micro(role.share_ppm));
    page.set(Name::RoleFairShare, &[name], Value::Micro(role.fair_share_ppm));
}

/// Every kind that some resources have, each once.
fn kinds(resources: &Resources) -> impl Iterator<Item = (&str, i64)> {
    let named: std::collections::BTreeSet<&str> = resources.items.keys().map(|key| key.name.as_str()).collect();
    [CPUS, MEM, DISK].into_iter().chain(named).map(|kind| (kind, resources.amount(kind)))
}

fn turns(page: &mut Page, gauges: &Gauges, others: &mut Others) {
    let mut all: Vec<(FrameworkId, TurnTally)> = gauges.tally.turns.iter().map(|(id, turns)| (*id, *turns)).collect();
    all.sort_by_key(|(id, turns)| (std::cmp::Reverse(turns.turns()), *id));
    let rest = all.split_off(all.len().min(FRAMEWORKS_SHOWN_MAX));
    for (id, turns) in &all {
        let name = gauges.names.get(id).map_or(OTHERS, String::as_str);
        write_turns(page, name, turns);
    }
    let sum = others.follow(&all, &rest);
    if sum != TurnTally::default() || !rest.is_empty() {
        write_turns(page, OTHERS, &sum);
    }
}

fn write_turns(page: &mut Page, name: &str, turns: &TurnTally) {
    for (outcome, count) in [("committed", turns.committed), ("read", turns.read), ("refused", turns.refused)] {
        page.whole(Name::Turns, &[name, outcome], count);
    }
    page.whole(Name::TurnOperations, &[name], turns.operations);
    page.set(Name::TurnCpu, &[name], Value::Micro(turns.cpu_us));
    page.set(Name::TurnWall, &[name], Value::Micro(turns.wall_us));
    page.whole(Name::SchedulerFailures, &[name], turns.failures);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_frameworks_are_added_up() {
        let mut gauges = Gauges::default();
        for id in 0..FRAMEWORKS_SHOWN_MAX as u64 + 50 {
            let turns = TurnTally { committed: 1_000 - id, operations: 1, cpu_us: 1_500_000, ..TurnTally::default() };
            gauges.tally.turns.insert(FrameworkId(id), turns);
            gauges.names.insert(FrameworkId(id), format!("eng:f{id}"));
        }
        let mut page = Page::new(Who::Master);
        let mut others = Others::default();
        turns(&mut page, &gauges, &mut others);
        let text = page.finish();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("tessera_turn_operations_total{")).collect();
        assert_eq!(lines.len(), FRAMEWORKS_SHOWN_MAX + 1);
        assert!(lines.contains(&"tessera_turn_operations_total{framework=\"_others\"} 50"), "{lines:?}");
        assert!(text.contains("tessera_turn_cpu_seconds_total{framework=\"_others\"} 75.000000"), "{text}");
        assert!(text.contains("{framework=\"eng:f0\",outcome=\"committed\"} 1000"));
        assert!(tessera_telemetry::parse(&text).is_ok());
        // The last one does the most from now on.
        let last = gauges.tally.turns.last_entry().unwrap().into_mut();
        (last.committed, last.operations) = (5_000, 1_001);
        let mut page = Page::new(Who::Master);
        turns(&mut page, &gauges, &mut others);
        let text = page.finish();
        assert!(text.contains("tessera_turn_operations_total{framework=\"_others\"} 50\n"), "it takes nothing with it");
    }

    #[test]
    fn amounts_are_in_units_that_dashboards_expect() {
        assert_eq!(amount(CPUS, 1_500).to_string(), "1.500");
        assert_eq!(amount(MEM, 2).to_string(), "2097152");
        assert_eq!(amount("gpus", 2_000).to_string(), "2.000");
    }
}
