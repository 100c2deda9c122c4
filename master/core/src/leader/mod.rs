//! What only the leader has: sessions, offers, batches, requests that wait. Dropped on stepping down.
//!
//! Owns [`Leader`] and [`Desk`], the view that every input works through. Invariants: nothing here is
//! needed after a failover; every input ends in [`Desk::settle`], which looks at what is to be and
//! does what is undone, so that a new leader has no path of its own. Must never change the state.

mod allocation;
mod executors;
mod http;
mod instances;
mod lifecycle;
mod limits;
mod liveness;
mod offers;
mod outside;
mod pace;
mod placement;
pub(crate) mod preempt;
mod plan;
mod requests;
mod results;
mod sessions;
mod standby;
mod strangers;
mod tasks;
mod tenant_memory;
mod throttle;
mod turns;
mod upkeep;

pub(crate) use allocation::check as check_allocator;
pub(crate) use http::not_leader;
pub(crate) use instances::Instance;

use crate::api::{Config, Now, Output};
use crate::commands::{FIRST_VERSION, since};
use crate::limits::CLOCK_JUMP_MAX_MS;
use crate::state::State;
use crate::tally::Tally;
use crate::trace::Traces;
use http::Waiters;
use liveness::Liveness;
use offers::Offers;
use outside::Outside;
use pace::Statuses;
use sessions::{Link, Session};
use standby::Standbys;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, FrameworkId, Resources};
use tessera_wire::v1;
use throttle::Throttle;
use turns::PendingTurn;
use upkeep::Due;

/// Bits of a number that count within a term; the term is above them, so that numbers of an older
/// leader are never mistaken for this one's.
const TERM_SHIFT: u32 = 40;

/// Everything that the leader remembers.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) term: u64,
    count: u64,
    started: Now,
    jump_reported: bool,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) links: BTreeMap<AgentId, Link>,
    pub(crate) instances: BTreeMap<FrameworkId, Instance>,
    pub(crate) offers: Offers,
    pub(crate) waiters: Waiters,
    pub(crate) throttle: Throttle,
    pub(crate) outside: Outside,
    pub(crate) liveness: Liveness,
    pub(crate) standbys: Standbys,
    /// Agents that were claimed from another boot while they had a session: which, and when last.
    rivals: BTreeMap<AgentId, (String, u64)>,
    /// What is due and proposed.
    due: BTreeSet<Due>,
    due_looked_ms: u64,
    /// Revocable tasks are being preempted.
    preempting: bool,
    /// Room may have come for schedulers without a place.
    room_came: bool,
    pub(crate) pending: BTreeMap<u64, Pending>,
    /// Messages between schedulers and executors that could not be delivered.
    pub(crate) messages_dropped: u64,
    /// Since the process began, not since it leads.
    pub(crate) tally: Tally,
    pub(crate) traces: Traces,
    /// How long rounds of the allocator took, in microseconds.
    pub(crate) rounds_us: Vec<u64>,
    dirty_frameworks: BTreeSet<FrameworkId>,
    dirty_links: BTreeSet<AgentId>,
    /// Counts changes of limits.
    limits_generation: u64,
    /// Frameworks that wait for their next turn, and until when.
    resting: BTreeMap<FrameworkId, u64>,
    /// What agents reported and is not proposed.
    statuses: Statuses,
    /// Limits as agents are told them, and the newest framework whose role they cover.
    limits: Option<(u64, Vec<v1::RoleLimits>)>,
    allocate: bool,
    /// What the commit that is just applied refused to launch.
    given_back: Vec<(FrameworkId, AgentId, Resources)>,
    /// Commands of this leader's own that not every master understands yet.
    too_new: Vec<u64>,
    out: Vec<Output>,
}

/// Who waits for a command or a read.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A user.
    Request { ticket: u64 },
    /// A session that registers.
    Register { session: u64 },
    /// A session whose set of tasks is brought into line.
    Reconcile { session: u64 },
    /// A session whose agent runs what the state does not know.
    Strangers { session: u64 },
    /// A session to be told that statuses are committed.
    Statuses { session: u64, acks: Vec<v1::StatusAck> },
    /// A turn.
    Turn(Box<PendingTurn>),
    /// A placement.
    Place { framework: FrameworkId },
    /// A rollback of an upgrade that failed.
    RollBack { framework: FrameworkId },
    /// A part of a merge.
    Merge { framework: FrameworkId },
    /// An agent to be marked.
    Unreachable { agent: AgentId },
    /// Something that was due.
    Due(Due),
    /// So many tasks to be preempted.
    Preempt { tasks: u64 },
    /// Nobody.
    Nobody,
}

/// A view of everything that an input needs.
pub(crate) struct Desk<'a> {
    pub(crate) state: &'a State,
    pub(crate) config: &'a Config,
    pub(crate) leader: &'a mut Leader,
    pub(crate) now: Now,
}

impl Leader {
    pub(crate) fn new(term: u64, state: &State, expected_ms: Option<u64>, now: Now) -> Self {
        let links = state.agents.keys().map(|agent| (*agent, Link::new(now.mono_ms))).collect();
        Self {
            term,
            count: 0,
            started: Now { wall_ms: unless_far(now.wall_ms, expected_ms).max(state.meta.time_ms), ..now },
            jump_reported: false,
            sessions: BTreeMap::new(),
            links,
            instances: BTreeMap::new(),
            offers: Offers::default(),
            waiters: Waiters::default(),
            throttle: Throttle::default(),
            outside: Outside::default(),
            liveness: Liveness::default(),
            standbys: Standbys::default(),
            rivals: BTreeMap::new(),
            due: BTreeSet::new(),
            due_looked_ms: 0,
            preempting: false,
            room_came: false,
            pending: BTreeMap::new(),
            messages_dropped: 0,
            tally: Tally::default(),
            traces: Traces::default(),
            rounds_us: Vec::new(),
            dirty_frameworks: state.frameworks.keys().copied().collect(),
            dirty_links: BTreeSet::new(),
            limits_generation: 1,
            resting: BTreeMap::new(),
            statuses: Statuses::default(),
            limits: None,
            allocate: true,
            given_back: Vec::new(),
            too_new: Vec::new(),
            out: Vec::new(),
        }
    }

    /// A number that no other leader gives out.
    fn fresh(&mut self) -> u64 {
        self.count += 1;
        (self.term << TERM_SHIFT) + self.count
    }

    /// The wall clock, unless it has jumped away from the monotonic one.
    pub(crate) fn wall_ms(&self, now: Now) -> u64 {
        let expected = self.started.wall_ms + now.mono_ms.saturating_sub(self.started.mono_ms);
        unless_far(now.wall_ms, Some(expected))
    }
}

/// The wall clock, unless it is far from what is expected of it: then time goes on as it did.
fn unless_far(wall_ms: u64, expected_ms: Option<u64>) -> u64 {
    expected_ms.filter(|expected| wall_ms.abs_diff(*expected) > CLOCK_JUMP_MAX_MS).unwrap_or(wall_ms)
}

impl Desk<'_> {
    fn send(&mut self, session: u64, message: v1::master_message::Message) {
        let message = v1::MasterMessage { message: Some(message) };
        self.leader.out.push(Output::SendAgent { session, message });
    }

    /// Propose a command; returns the ticket under which its result will come.
    fn propose(
        &mut self,
        principal: &str,
        command: v1::command::Command,
        pending: Pending,
    ) -> u64 {
        self.propose_as(principal, "", command, pending)
    }

    /// The same for somebody who acts in a role.
    fn propose_as(
        &mut self,
        principal: &str,
        role: &str,
        command: v1::command::Command,
        pending: Pending,
    ) -> u64 {
        let (principal, role) = (principal.to_owned(), role.to_owned());
        self.propose_from(v1::Origin { principal, role, ..v1::Origin::default() }, command, pending)
    }

    fn propose_from(
        &mut self,
        origin: v1::Origin,
        command: v1::command::Command,
        pending: Pending,
    ) -> u64 {
        let ticket = self.leader.fresh();
        self.leader.pending.insert(ticket, pending);
        if since(&command) > self.cluster_version() {
            // Whoever asked for it asks again when time has passed, as after a command that was lost.
            self.leader.too_new.push(ticket);
            return ticket;
        }
        let origin = (!origin.principal.is_empty()).then_some(origin);
        self.leader.out.push(Output::Propose(v1::Command { ticket, origin, command: Some(command) }));
        ticket
    }

    /// The version whose commands every master understands.
    fn cluster_version(&self) -> u32 {
        self.state.meta.cluster_version.max(FIRST_VERSION)
    }

    /// Time for a turn: never before the last command.
    fn time_ms(&self) -> u64 {
        self.state.meta.time_ms.max(self.leader.wall_ms(self.now))
    }

    /// Do everything that is undone as far as somebody noted it.
    pub(crate) fn settle(&mut self) {
        self.pace_waiting();
        self.wake_resting();
        self.propose_statuses();
        for framework in self.leader.dirty_frameworks.clone() {
            self.settle_framework(framework);
        }
        for agent in std::mem::take(&mut self.leader.dirty_links) {
            self.send_desired(agent);
        }
        if std::mem::take(&mut self.leader.allocate) {
            self.allocate();
        }
        for framework in std::mem::take(&mut self.leader.dirty_frameworks) {
            self.dispatch(framework);
            // Now that it was told of its offers, or has too much to do, it may be offered more, or nothing.
            self.leader.offers.look_at_framework(framework);
        }
        let too_new = std::mem::take(&mut self.leader.too_new);
        self.propose_failed(&too_new);
    }

    /// Give a cluster that has no id one.
    pub(crate) fn create_cluster(&mut self, cluster: String) {
        if self.state.meta.cluster.is_empty() {
            let command = v1::command::Command::InitCluster(v1::InitCluster { cluster });
            self.propose("", command, Pending::Nobody);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.leader.out)
    }

    /// What time alone brings.
    pub(crate) fn tick(&mut self) {
        let wall = self.leader.wall_ms(self.now);
        if wall != self.now.wall_ms && !self.leader.jump_reported {
            self.leader.jump_reported = true;
            let by = self.now.wall_ms.abs_diff(wall);
            let side = if self.now.wall_ms > wall { "ahead of" } else { "behind" };
            let text = format!(
                "this master's clock is {by} ms {side} the time that commands go by, which does not follow it; set the clock, or stop all masters at once if it is right"
            );
            self.leader.out.push(Output::Report { text });
        }
        self.tick_liveness();
        self.tick_standbys();
        self.tick_upkeep();
        self.tick_offers();
        self.tick_shortages();
        self.tick_http();
        self.tick_throttle();
        self.tick_instances();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemRows;
    use crate::apply::BATCH_VERSION;
    use crate::{CLUSTER_VERSION, Core};
    use prost::Message as _;
    use v1::command::Command as C;

    /// What is put out for a command that the leader proposes by itself.
    fn proposed(cluster_version: u32, command: C) -> usize {
        let mut core = Core::load(&MemRows::default(), Config::default()).unwrap();
        core.state.meta.cluster_version = cluster_version;
        let now = Now { mono_ms: 1, wall_ms: 1 };
        let _ = core.lead(1, "cluster", now);
        let outputs = core.with(now, |desk| {
            desk.propose("", command, Pending::Nobody);
        });
        assert!(core.leader.as_ref().is_some_and(|leader| leader.too_new.is_empty()));
        outputs.iter().filter(|output| matches!(output, Output::Propose(_))).count()
    }

    /// By how much the time of its first entry is off, when a master whose clock is off comes to lead after it heard
    /// so many entries of another one.
    fn time_is_off(off_ms: i64, heard: u64) -> i64 {
        const HOUR_MS: u64 = 3_600_000;
        let rows = MemRows::default();
        let mut core = Core::load(&rows, Config::default()).unwrap();
        let at = |second: u64, off_ms| Now {
            mono_ms: second * 1_000,
            wall_ms: (24 * HOUR_MS + second * 1_000).saturating_add_signed(off_ms),
        };
        for second in 1..=heard {
            let _ = core.on_tick(at(second, off_ms));
            let time_ms = at(second, 0).wall_ms;
            let batch = v1::CommandBatch { version: BATCH_VERSION, time_ms, commands: Vec::new() };
            core.apply(second, 1, &batch.encode_to_vec(), &rows).unwrap();
        }
        // Nothing is written for an hour, during which the other one leads.
        let now = at(3_600, off_ms);
        let _ = core.lead(2, "cluster", now);
        let batch = core.encode_batch(Vec::new(), now);
        let time_ms = v1::CommandBatch::decode(batch.as_slice()).unwrap().time_ms;
        i64::try_from(time_ms).unwrap() - i64::try_from(at(3_600, 0).wall_ms).unwrap()
    }

    #[test]
    fn time_goes_on_when_a_master_leads_whose_clock_is_off() {
        let hour_ms = 3_600_000;
        for (off_ms, heard, expected) in [
            (hour_ms, 5, 0),
            (-hour_ms, 5, 0),
            (5_000, 5, 5_000),
            // The whole cluster was started: the clock may have been set.
            (hour_ms, 0, hour_ms),
        ] {
            assert_eq!(time_is_off(off_ms, heard), expected, "off by {off_ms} ms, {heard} entries");
        }
    }

    #[test]
    fn the_clock_of_a_master_that_led_or_was_told_the_time_may_be_set_wrong_in_a_cluster_that_writes_nothing() {
        const DAY_MS: u64 = 24 * 3_600_000;
        let at = |second: u64, off_ms: u64| Now { mono_ms: second * 1_000, wall_ms: DAY_MS + second * 1_000 + off_ms };
        let of = |core: &Core, now: Now| {
            let batch = core.encode_batch(Vec::new(), now);
            v1::CommandBatch::decode(batch.as_slice()).unwrap().time_ms
        };
        for led in [true, false] {
            let mut core = Core::load(&MemRows::default(), Config::default()).unwrap();
            let _ = core.on_tick(at(1, 0));
            if led {
                let _ = core.lead(1, "cluster", at(1, 0));
                core.follow();
            } else {
                for second in 1..=3 {
                    let _ = core.on_tick(at(second, 0));
                    core.told_time(at(second, 0).wall_ms);
                }
            }
            let now = at(10, 3_600_000);
            let _ = core.lead(3, "cluster", now);
            assert_eq!(of(&core, now), at(10, 0).wall_ms, "led before: {led}");
        }
    }

    #[test]
    fn a_leader_proposes_nothing_that_others_do_not_understand() {
        let newest = C::SetRole(v1::SetRole::default());
        assert_eq!(since(&newest), CLUSTER_VERSION, "another command is the newest now");
        assert_eq!(proposed(CLUSTER_VERSION, newest.clone()), 1);
        assert_eq!(proposed(CLUSTER_VERSION - 1, newest), 0);
        let old = C::MergeState(v1::MergeState::default());
        assert_eq!(proposed(0, old), 1);
    }
}
