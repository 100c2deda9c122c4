//! A whole cluster in one thread on virtual time.
//!
//! Owns: the masters, the agents with their workers and processes, the network, the user and the order
//! of everything. Invariants: a run is a function of its options alone; the first violation ends it.
//! Must never use real time, threads, files or sockets.

use crate::agent::Agent;
use crate::agreement::Settled;
use crate::calls::Calls;
use crate::files::Upload;
use crate::journal::Journal;
use crate::master::{Inbound, Master, attributes, identity};
use crate::mutation::Mutation;
use crate::network::Network;
use crate::oracle::Oracle;
use crate::peers::Transfer;
use crate::queue::{Event, Queue, Up};
use crate::restore::Saved;
use crate::shares::Shares;
use crate::shims::Process;
use crate::user::User;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tessera_master_core::{CLUSTER_VERSION, Config};
use tessera_replica::{MemDisk, Replica};
use tessera_types::Digest;
use tessera_virtual::Random;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// A planted bug.
    pub mutation: Option<Mutation>,
    /// Print the whole log.
    pub print: bool,
    /// Faults that do not strike: bit n stands for the n-th.
    pub spared: u128,
}

impl Options {
    /// A seed and nothing else.
    #[must_use]
    pub const fn of(seed: u64) -> Self {
        Self { seed, mutation: None, print: false, spared: 0 }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What did not hold.
    pub violation: Option<String>,
    /// Fingerprint of the whole log.
    pub fingerprint: u64,
    /// Lines of the log.
    pub lines: u64,
    /// The last of them.
    pub tail: Vec<String>,
    /// Turns that committed.
    pub commits: u64,
    /// Addresses of masters.
    pub masters: usize,
    /// Lives of all masters.
    pub master_lives: u64,
    /// Faults that struck, or would have.
    pub faults: u32,
    /// Virtual time at the end, in ms.
    pub ended_ms: u64,
    /// What users saw of configurations, as JSON lines for `tessera-linear`.
    pub history: Vec<u8>,
    /// Time from the last fault until everything agreed, in ms.
    pub converged_ms: u64,
    /// How often what came up.
    pub seen: BTreeMap<&'static str, u64>,
}

/// What a seed chooses once.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) frameworks: u64,
    pub(crate) tasks: u64,
    /// Longest time between two faults, in us.
    pub(crate) fault_us: u64,
    /// When everything heals.
    pub(crate) heal_us: u64,
    /// When everything must be done.
    pub(crate) deadline_us: u64,
    /// Elections follow from it.
    pub(crate) elections: u64,
    /// Leaderships so far.
    pub(crate) leaderships: u64,
    /// Faults so far.
    pub(crate) faults: u32,
    spared: u128,
}

impl Plan {
    /// Whether the next fault strikes.
    pub(crate) fn strikes(&mut self) -> bool {
        let bit = 1_u128.checked_shl(self.faults).unwrap_or(0);
        self.faults += 1;
        self.spared & bit == 0
    }
}

/// Everything.
pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) queue: Queue,
    pub(crate) journal: Journal,
    pub(crate) rng: Random,
    pub(crate) net: Network,
    pub(crate) masters: Vec<Master>,
    pub(crate) transfers: BTreeMap<u64, Transfer>,
    pub(crate) uploads: BTreeMap<u64, Upload>,
    /// Component files that were damaged where they should be.
    pub(crate) damaged: BTreeSet<(usize, Digest)>,
    /// Since when components are named, in us.
    pub(crate) named_since: BTreeMap<Digest, u64>,
    /// Nodes that did not vote when the files were looked at.
    pub(crate) learners: BTreeSet<u64>,
    /// Since when they vote, in us.
    pub(crate) new_voters: BTreeMap<u64, u64>,
    /// Components, changes of folders and members when they were.
    pub(crate) files_looked: (usize, u64, usize),
    pub(crate) calls: Calls,
    pub(crate) agents: Vec<Agent>,
    pub(crate) oracle: Oracle,
    pub(crate) user: User,
    /// Roles share what there is.
    pub(crate) shares: Option<Shares>,
    pub(crate) plan: Plan,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) faults_on: bool,
    /// Restores so far.
    pub(crate) era: u8,
    /// A state that is to be restored.
    pub(crate) saved: Option<Saved>,
    /// No master starts before, in us.
    pub(crate) dark_until_us: u64,
    /// So many turns are submitted twice.
    pub(crate) turns_twice: u32,
    pub(crate) processes: BTreeMap<u64, Process>,
    numbers: u64,
    pub(crate) next_look_us: u64,
    /// Since everything agrees.
    pub(crate) settled: Option<Settled>,
}

/// Time for everything to agree again after the last fault, in us: the longest time-out that may have
/// begun, twice, and the work that is left.
const CONVERGENCE_US: u64 = 60_000_000;

/// In so many of 100 seeds users also upload and remove components that nothing uses: a file goes some time
/// after the last fault, which is much to simulate.
const EXTRAS: u64 = 40;

/// Run one seed to its end.
#[must_use]
pub fn run(options: Options) -> Outcome {
    let mut world = match World::new(options) {
        Ok(world) => world,
        Err(violation) => {
            return Outcome {
                violation: Some(violation),
                fingerprint: 0,
                lines: 0,
                tail: Vec::new(),
                commits: 0,
                masters: 0,
                master_lives: 0,
                faults: 0,
                ended_ms: 0,
                history: Vec::new(),
                converged_ms: 0,
                seen: BTreeMap::new(),
            };
        }
    };
    // A process that panics is a violation like others, and its journal is wanted.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.play())) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        world.oracle.violate(format!("a process panics: {text}"));
    }
    world.finish()
}

/// How many masters a world has, and how many of them found the cluster: the others join them later.
fn masters_of(rng: &mut Random) -> (usize, usize) {
    match rng.below(24) {
        0..7 => (1, 1),
        7 => (2, 1),
        8..10 => (3, 1),
        10..19 => (3, 3),
        19 => (4, 3),
        20 => (2 + 2 * rng.index(2), 2),
        21 => (5, 3),
        _ => (5, 5),
    }
}

/// How many agents it has: in a few seeds enough for a mass of them to fall silent.
fn agents_of(rng: &mut Random) -> u64 {
    if rng.chance(8) { rng.range(6, 8) } else { rng.range(2, 4) }
}

/// Addresses with disks that form a cluster.
fn first_masters(
    (count, first): (usize, usize),
    rng: &mut Random,
    mutation: Option<Mutation>,
) -> Result<Vec<Master>, String> {
    let config = Config {
        agent_timeout_ms: rng.range(5_000, 9_000),
        scheduler_grace_ms: rng.range(1_200, 3_000),
        session_silence_ms: 2_500,
        offer_timeout_ms: rng.range(1_500, 5_000),
        http_timeout_ms: 6_000,
        ..Config::default()
    };
    let grace_ms = rng.range(6_000, 9_000);
    let list: Vec<(u64, Vec<u8>)> = (0..first).map(|slot| (slot as u64 + 1, attributes(slot, CLUSTER_VERSION))).collect();
    let mut masters = Vec::new();
    for (slot, (number, _)) in list.iter().enumerate() {
        let mut disk = MemDisk::new();
        Replica::bootstrap_voters(&mut disk, identity(0, *number), &list).map_err(|error| error.to_string())?;
        let mut master = Master::new(slot, config.clone(), rng.fork(1_000 + number), grace_ms, mutation);
        master.put_disk(disk, Some(*number));
        masters.push(master);
    }
    for slot in first..count {
        let fork = rng.fork(1_001 + slot as u64);
        let mut master = Master::new(slot, config.clone(), fork, grace_ms, mutation);
        master.joins_us = rng.range(3_000_000, 12_000_000);
        masters.push(master);
    }
    Ok(masters)
}

impl World {
    fn new(options: Options) -> Result<Self, String> {
        let mut rng = Random::new(options.seed);
        let heal_us = rng.range(15_000_000, 30_000_000);
        // A bug that has nothing to do with roles is met on the course that a seed takes without them.
        let shares = Shares::of(options.seed).filter(|_| options.mutation.is_none_or(Mutation::is_of_roles));
        let (frameworks, tasks) = (rng.range(1, 3), rng.range(12, 36));
        // There is something to share, and no more to do in all.
        let (frameworks, tasks) =
            if shares.is_some() { (frameworks.max(2), 10 + tasks / 3) } else { (frameworks, tasks) };
        let plan = Plan {
            frameworks,
            tasks,
            fault_us: rng.range(400_000, 4_000_000),
            heal_us,
            deadline_us: heal_us + CONVERGENCE_US,
            elections: rng.draw(),
            leaderships: 0,
            faults: 0,
            spared: options.spared,
        };
        let delay_us = rng.range(200, 8_000);
        let net = Network::new(rng.fork(1), delay_us);
        let masters = first_masters(masters_of(&mut rng), &mut rng, options.mutation)?;
        let count = agents_of(&mut rng);
        let rich = shares.is_some();
        let agents = (0..count).map(|n| Agent::new(n, rich, rng.fork(100 + n))).collect();
        let (policy, extras) = (rng.below(3), rng.chance(EXTRAS));
        let user = User::new((plan.frameworks, plan.tasks), policy, extras, shares.as_ref());
        let mut world = Self {
            now_us: 0,
            queue: Queue::default(),
            journal: Journal::new(options.print),
            rng,
            net,
            masters,
            transfers: BTreeMap::new(),
            uploads: BTreeMap::new(),
            damaged: BTreeSet::new(),
            named_since: BTreeMap::new(),
            learners: BTreeSet::new(),
            new_voters: BTreeMap::new(),
            files_looked: (0, 0, 0),
            calls: Calls::default(),
            agents,
            oracle: Oracle::default(),
            user,
            shares,
            plan,
            mutation: options.mutation,
            faults_on: true,
            era: 0,
            saved: None,
            dark_until_us: 0,
            turns_twice: 0,
            processes: BTreeMap::new(),
            numbers: 0,
            next_look_us: 0,
            settled: None,
        };
        if world.masters.len().is_multiple_of(2) {
            world.oracle.saw("a number of masters that is even");
        }
        for master in 0..world.masters.len() {
            world.queue.at(0, Event::MasterStart { master });
        }
        world.queue.at(500_000, Event::Steward);
        world.queue.at(50_000, Event::User);
        world.queue.at(1_000_000, Event::Fault);
        world.queue.at(heal_us, Event::Heal);
        world.plan_save();
        for agent in 0..world.agents.len() {
            let at_us = world.rng.range(0, 1_500_000);
            world.queue.at(at_us, Event::AgentStart { agent });
        }
        Ok(world)
    }

    /// A number for a process.
    pub(crate) const fn fresh(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn play(&mut self) {
        while let Some((at_us, event)) = self.queue.pop() {
            self.now_us = at_us;
            self.oracle.now_us = at_us;
            self.step(event);
            if self.oracle.violation().is_some() {
                break;
            }
            if self.is_over() {
                break;
            }
        }
    }

    fn finish(&mut self) -> Outcome {
        if self.oracle.violation().is_none() {
            self.compare_masters();
        }
        let agreed_us = self.settled.map_or(self.now_us, |settled| settled.at_us);
        let (wrong, history) = self.calls.judge();
        if let Some(violation) = wrong {
            self.oracle.violate(violation);
        }
        Outcome {
            violation: self.oracle.violation().cloned(),
            fingerprint: self.journal.fingerprint(),
            lines: self.journal.count(),
            tail: self.journal.tail(),
            commits: self.oracle.commits(),
            masters: self.masters.len(),
            master_lives: self.masters.iter().map(|master| master.life).sum(),
            faults: self.plan.faults,
            ended_ms: self.now_us / 1_000,
            history,
            seen: self.oracle.seen(),
            converged_ms: (agreed_us + CONVERGENCE_US).saturating_sub(self.plan.deadline_us) / 1_000,
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::MasterStart { master } => self.master_start(master),
            Event::MasterTake { master, life } => self.master_take(master, life),
            Event::MasterSettle { master, life } => self.master_settle(master, life),
            Event::MasterWritten { master, life } => self.master_written(master, life),
            Event::MasterTick { master, life } => self.master_tick(master, life),
            Event::Raft { letter } => self.letter_arrives(letter),
            Event::Snapshot { transfer } => self.snapshot_goes_on(transfer),
            Event::Steward => self.look_after_members(),
            Event::File(event) => self.file_goes_on(event),
            Event::Ask { master, call, forwarded } => {
                self.master_inbound(master, Inbound::Ask { call, forwarded });
            }
            Event::Answer { call, answer } => self.answered(call, *answer),
            Event::AskAgain { call, attempt } => self.ask_again(call, attempt),
            Event::AgentStart { agent } => self.agent_start(agent),
            Event::AgentTick { agent, life } => self.agent_tick(agent, life),
            Event::AgentSynced { agent, life, write } => self.agent_synced(agent, life, write),
            Event::Connect { agent, life } => self.agent_connect(agent, life),
            Event::ToMaster { conn, message } => self.arrive_at_master(conn, message),
            Event::ToAgent { conn, message } => {
                if self.net.arrives_down(self.now_us, conn) {
                    self.agent_hears(conn, message);
                }
            }
            Event::MasterSideGone { conn } => {
                if let Some(master) = self.net.conns.get(&conn).map(|conn| conn.master) {
                    self.master_inbound(master, Inbound::Gone { conn });
                }
            }
            Event::AgentSideGone { conn } => self.agent_side_gone(conn),
            Event::Built { agent, framework, serial } => self.worker_built(agent, framework, serial),
            Event::Handled { agent, framework, serial } => {
                self.worker_handled(agent, framework, serial);
            }
            Event::ExecutorGoesOn { agent, name, serial } => {
                self.executor_goes_on(agent, &name, serial);
            }
            Event::TaskEnds { agent, process, code, signal } => {
                self.task_ends(agent, process, code, signal);
            }
            Event::AgentLater { agent, life, what } => self.agent_later(agent, life, what),
            Event::User => self.user_acts(),
            Event::Fault => self.fault_strikes(),
            Event::MasterFindsEnded { master, number } => self.master_finds_ended(master, number),
            Event::Flap { master, until_us } => self.master_flaps(master, until_us),
            Event::StopsInOrder { master, life, until_us } => self.stops_in_order(master, life, until_us),
            Event::Save => self.save(),
            Event::Restore => self.restore(),
            Event::Heal => self.heal(),
        }
    }

    fn arrive_at_master(&mut self, conn: u64, message: Up) {
        let Some(there) = self.net.conns.get(&conn) else { return };
        let (master, life) = (there.master, there.master_life);
        if self.masters[master].life == life && self.net.arrives_up(self.now_us, conn) {
            self.master_inbound(master, Inbound::Up { conn, message });
        }
    }
}
