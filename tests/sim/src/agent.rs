//! An agent's process around the real core: its checkpoint, its session, its order of doings.
//!
//! Invariants: actions are performed in order; what follows a synced checkpoint waits until it is on
//! stable storage; a crash forgets all but the synced part of the checkpoint, a prefix of the rest, the
//! identity and what lives beside the process. Must never decide what to do: the core does.

use crate::model::{GPUS, ZONES};
use crate::mutation::Mutation;
use crate::network::{ConnId, SILENCE_US};
use crate::queue::{Asked, Down, Event, Later, Up};
use crate::shims::Natives;
use crate::worker::Worker;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tessera_agent_core::{Action, Core, CoreConfig, Now, WorkerKey};
use tessera_types::{AgentId, Digest, Quantities, REGION, Resources, TaskStatus, ZONE};
use tessera_virtual::Random;
use tessera_wire::decode_spec;
use tessera_wire::v1::{self, agent_message::Message as AgentSays, master_message::Message as MasterSays};

/// The wall clock at virtual time zero, in ms; agents' clocks differ a little from the master's.
const EPOCH_MS: u64 = 1_700_000_000_321;
/// Longest time between two looks at the clock, in us.
const TICK_US: u64 = 100_000;
/// Time between two beats, in us.
const BEAT_US: u64 = 500_000;
/// Longest pause before an agent connects again, in us.
const RECONNECT_MAX_US: u64 = 800_000;
/// Hints who leads that are followed in a row, as the real agent does.
const HINTS_MAX: u32 = 4;
/// Of so many agents one has GPUs, and so much of them, in thousandths.
const GPUS_EVERY: u64 = 3;
const GPUS_MILLI: i64 = 2_000;
/// Records after which a checkpoint is compacted at the next start.
const COMPACT_AFTER: usize = 40;

/// The part of a checkpoint that a crash may or may not keep.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    synced: Vec<v1::CheckpointRecord>,
    unsynced: VecDeque<(u64, Vec<v1::CheckpointRecord>)>,
    writes: u64,
}

/// What is under way for one instance's state.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub(crate) worker: WorkerKey,
    /// The worker's process: another one gets nothing of it.
    process: Option<u64>,
    pub(crate) framework: u64,
    pub(crate) epoch: u64,
    last_key: Option<String>,
    asked: Option<Asked>,
}

/// The process, its disk, and what lives beside it.
pub(crate) struct Agent {
    name: u64,
    /// Starts of the machine.
    pub(crate) boot: u64,
    pub(crate) rng: Random,
    pub(crate) core: Option<Core>,
    pub(crate) life: u64,
    started_us: u64,
    /// On disk.
    identity: Option<(AgentId, String)>,
    /// Tells its keys apart.
    key: u64,
    /// It has further resources, and says where it stands.
    rich: bool,
    /// It began with the directory of another one.
    pub(crate) is_copy: bool,
    checkpoint: Checkpoint,
    pub(crate) components: BTreeSet<Digest>,
    pub(crate) images: BTreeSet<Digest>,
    /// Beside the process.
    pub(crate) workers: BTreeMap<WorkerKey, Worker>,
    pub(crate) natives: Natives,
    /// In the process.
    actions: VecDeque<Action>,
    waits_for_write: Option<u64>,
    pub(crate) linked: BTreeSet<WorkerKey>,
    pub(crate) conn: Option<ConnId>,
    /// Masters that are tried next.
    masters: VecDeque<usize>,
    /// Hints who leads that were followed in a row.
    hints: u32,
    pub(crate) registered: bool,
    beat_us: u64,
    pub(crate) fetches: BTreeMap<u64, Fetch>,
    next_fetch: u64,
    pub(crate) slow_until_us: u64,
    /// Nothing can be written to its disk until then.
    pub(crate) full_until_us: u64,
    /// How far its clock is off, in ms.
    pub(crate) wall_offset_ms: i64,
    /// Mutation: what it was told of each task.
    told: BTreeMap<(u64, String), v1::DesiredTask>,
    /// Statuses that were sent, for the oracle.
    sent: BTreeMap<(u64, String), BTreeMap<u64, TaskStatus>>,
}

impl Agent {
    pub(crate) fn new(name: u64, rich: bool, rng: Random) -> Self {
        Self {
            name,
            boot: 1,
            rng,
            core: None,
            life: 0,
            started_us: 0,
            identity: None,
            key: 0,
            rich,
            is_copy: false,
            checkpoint: Checkpoint::default(),
            components: BTreeSet::new(),
            images: BTreeSet::new(),
            workers: BTreeMap::new(),
            natives: Natives::default(),
            actions: VecDeque::new(),
            waits_for_write: None,
            linked: BTreeSet::new(),
            conn: None,
            masters: VecDeque::new(),
            hints: 0,
            registered: false,
            beat_us: 0,
            fetches: BTreeMap::new(),
            next_fetch: 0,
            slow_until_us: 0,
            full_until_us: 0,
            wall_offset_ms: 0,
            told: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Whether nothing is in its directory but its identity.
    pub(crate) fn is_empty(&self) -> bool {
        self.registered && self.core.as_ref().is_some_and(Core::is_empty)
    }

    /// Writes that it has made.
    pub(crate) const fn writes(&self) -> u64 {
        self.checkpoint.writes
    }

    /// Whether it has tasks, as far as its process says.
    pub(crate) fn runs_something(&self) -> bool {
        self.tasks() > 0
    }

    /// Another machine with a copy of its directory.
    pub(crate) fn copied(&self, boot: u64, rng: Random) -> Self {
        let (identity, key) = (self.identity.clone(), self.key);
        let checkpoint = Checkpoint { synced: self.checkpoint.synced.clone(), ..Checkpoint::default() };
        Self { boot, identity, key, checkpoint, is_copy: true, ..Self::new(self.name, self.rich, rng) }
    }

    /// Its directory is emptied while it is down; it makes a key of its own.
    pub(crate) fn empty(&mut self, key: u64) {
        self.identity = None;
        self.key = key;
        self.checkpoint = Checkpoint::default();
        self.components.clear();
        self.images.clear();
        self.natives = Natives::default();
    }

    /// The number that the master gave it.
    pub(crate) fn number(&self) -> Option<AgentId> {
        self.identity.as_ref().map(|(number, _)| *number)
    }

    pub(crate) const fn now(&self, now_us: u64) -> Now {
        Now {
            mono_ms: now_us.saturating_sub(self.started_us) / 1_000,
            wall_ms: (EPOCH_MS + now_us / 1_000).saturating_add_signed(self.wall_offset_ms),
        }
    }

    pub(crate) const fn total() -> Quantities {
        Quantities { cpus_milli: 1_600, mem_mib: 1_024, disk_mib: 0 }
    }

    /// All that it has.
    pub(crate) fn resources(&self) -> Resources {
        let gpus = if self.rich && self.name.is_multiple_of(GPUS_EVERY) { GPUS_MILLI } else { 0 };
        Resources::of(Self::total()).with(GPUS, gpus)
    }

    /// Where it stands, and how often its machine was started.
    pub(crate) fn attributes(&self) -> Vec<(String, String)> {
        if !self.rich {
            return Vec::new();
        }
        let zone = ZONES[usize::try_from(self.name).unwrap_or(0) % ZONES.len()];
        let pairs = [(REGION, "here".to_owned()), (ZONE, zone.to_owned()), ("started", self.boot.to_string())];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn register(&self) -> v1::Register {
        let (agent, cluster) = self.identity.clone().unwrap_or((AgentId(0), String::new()));
        let description = v1::AgentDescription {
            hostname: format!("host{}", self.name),
            attributes: self.attributes().into_iter().map(|(key, value)| v1::Pair { key, value }).collect(),
            total: Some((&self.resources()).into()),
            reserved: Some((&Quantities { cpus_milli: 100, mem_mib: 256, disk_mib: 0 }).into()),
            version: "sim".to_owned(), ..Default::default() };
        v1::Register {
            cluster,
            agent: agent.0,
            agent_key: format!("key-{}-{}", self.name, self.key),
            boot: format!("boot-{}", self.boot),
            description: Some(description),
            tasks_hash: self.core.as_ref().map(|core| core.tasks_hash().to_vec()).unwrap_or_default(),
            protocol: tessera_wire::SESSION_PROTOCOL,
        }
    }

    /// Tasks of the core, for the comparison at the end.
    fn tasks(&self) -> usize {
        self.core.as_ref().map_or(0, |core| core.tasks().count())
    }
}

impl World {
    pub(crate) fn agent_start(&mut self, index: usize) {
        let now_us = self.now_us;
        let mutation = self.mutation;
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.core.is_none()) else { return };
        agent.life += 1;
        agent.started_us = now_us;
        agent.beat_us = now_us;
        let life = agent.life;
        let mut records = agent.checkpoint.synced.clone();
        if mutation == Some(Mutation::CheckpointForgotten) {
            records.clear();
        }
        let config = CoreConfig::new(agent.resources());
        let number = agent.number().unwrap_or(AgentId(0));
        let now = agent.now(now_us);
        match Core::recover(config, number, records.into_iter(), now) {
            Ok((core, actions)) => {
                if agent.checkpoint.synced.len() > COMPACT_AFTER {
                    agent.checkpoint.synced = core.compacted();
                }
                agent.core = Some(core);
                self.journal.line(now_us, &format!("agent #{index}: life {life} begins"));
                self.queue.at(now_us, Event::Connect { agent: index, life });
                self.queue.at(now_us + TICK_US, Event::AgentTick { agent: index, life });
                self.perform(index, actions);
            }
            Err(error) => {
                self.oracle.violate(format!("agent #{index} refuses its own checkpoint: {error}"));
            }
        }
    }

    pub(crate) fn agent_crash(&mut self, index: usize) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.core.is_some()) else { return };
        agent.core = None;
        self.oracle.sandboxes.on_crash(index);
        let survivors = agent.rng.index(agent.checkpoint.unsynced.len() + 1);
        let kept: Vec<_> = agent.checkpoint.unsynced.drain(..).take(survivors).collect();
        agent.checkpoint.synced.extend(kept.into_iter().flat_map(|(_, records)| records));
        agent.actions.clear();
        agent.waits_for_write = None;
        agent.linked.clear();
        agent.fetches.clear();
        agent.registered = false;
        let back_us = now_us + agent.rng.range(30_000, 2_000_000);
        let conn = agent.conn.take();
        self.journal.line(now_us, &format!("fault: agent #{index} crashes"));
        self.queue.at(back_us, Event::AgentStart { agent: index });
        if let Some(conn) = conn {
            self.net.close_by_agent(&mut self.queue, now_us, conn);
        }
    }

    pub(crate) fn agent_slow(&mut self, index: usize, until_us: u64) {
        let now_us = self.now_us;
        if let Some(agent) = self.agents.get_mut(index) {
            agent.slow_until_us = until_us;
            for worker in agent.workers.values_mut() {
                worker.slow = until_us > now_us;
            }
        }
    }

    /// Give the core an input and perform what it asks for.
    pub(crate) fn agent_input(
        &mut self,
        index: usize,
        input: impl FnOnce(&mut Core, Now) -> Vec<Action>,
    ) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let now = agent.now(now_us);
        let Some(core) = &mut agent.core else { return };
        let actions = input(core, now);
        self.perform(index, actions);
    }

    fn perform(&mut self, index: usize, actions: Vec<Action>) {
        if let Some(agent) = self.agents.get_mut(index) {
            agent.actions.extend(actions);
        }
        self.go_on(index);
    }

    /// Perform actions until one has to wait.
    fn go_on(&mut self, index: usize) {
        loop {
            let Some(agent) = self.agents.get_mut(index) else { return };
            if agent.waits_for_write.is_some() {
                return;
            }
            let Some(action) = agent.actions.pop_front() else { return };
            match action {
                Action::Checkpoint { records, sync } => self.checkpoint(index, records, sync),
                Action::Send(message) => self.agent_says(index, message),
                action => self.agent_acts(index, action),
            }
        }
    }

    fn checkpoint(&mut self, index: usize, records: Vec<v1::CheckpointRecord>, sync: bool) {
        let now_us = self.now_us;
        let lazy = self.mutation == Some(Mutation::ActsBeforeCheckpoint);
        let mut records = records;
        if self.mutation == Some(Mutation::ExecutorTurnsForgotten) {
            let of_turn = |record: &v1::CheckpointRecord| {
                matches!(record.record, Some(v1::checkpoint_record::Record::ExecutorTurn(_)))
            };
            records.retain(|record| !of_turn(record));
        }
        let Some(agent) = self.agents.get_mut(index) else { return };
        agent.checkpoint.writes += 1;
        let write = agent.checkpoint.writes;
        agent.checkpoint.unsynced.push_back((write, records));
        if agent.full_until_us > now_us {
            // Some of it may be there all the same. The process ends.
            self.oracle.saw("an agent's disk refuses a write");
            return self.agent_crash(index);
        }
        if !sync {
            return;
        }
        let slow = agent.slow_until_us > now_us;
        let mut takes_us = agent.rng.range(100, if slow { 400_000 } else { 8_000 });
        if lazy {
            // The kernel writes back when it likes.
            takes_us = agent.rng.range(1_000_000, 5_000_000);
        } else {
            agent.waits_for_write = Some(write);
        }
        let synced = Event::AgentSynced { agent: index, life: agent.life, write };
        self.queue.at(now_us + takes_us, synced);
    }

    pub(crate) fn agent_synced(&mut self, index: usize, life: u64, write: u64) {
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.life == life) else { return };
        if agent.core.is_none() {
            return;
        }
        while let Some((_, records)) = agent.checkpoint.unsynced.pop_front_if(|(w, _)| *w <= write) {
            agent.checkpoint.synced.extend(records);
        }
        self.oracle.sandboxes.on_synced(index, write);
        if agent.waits_for_write == Some(write) {
            agent.waits_for_write = None;
            self.go_on(index);
        }
    }

    fn agent_says(&mut self, index: usize, message: AgentSays) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(conn) = agent.conn.filter(|_| agent.registered) else { return };
        if let AgentSays::Statuses(statuses) = &message {
            for update in &statuses.updates {
                let Some(status) = update.status.clone() else { continue };
                if let Ok(status) = TaskStatus::try_from(status) {
                    let key = (update.framework, status.task.to_string());
                    agent.sent.entry(key).or_default().insert(update.sequence, status);
                }
            }
        }
        let twice = matches!(message, AgentSays::Turn(_)) && self.turns_twice > 0;
        let doubled = matches!(message, AgentSays::FromExecutor(_))
            && self.mutation == Some(Mutation::MessagesDoubled);
        let up = Up::Control(v1::AgentMessage { message: Some(message) });
        if twice || doubled {
            self.turns_twice = self.turns_twice.saturating_sub(u32::from(twice));
            self.net.up(&mut self.queue, now_us, conn, up.clone());
        }
        self.net.up(&mut self.queue, now_us, conn, up);
    }

    pub(crate) fn agent_tick(&mut self, index: usize, life: u64) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.life == life) else { return };
        let Some(core) = &agent.core else { return };
        let (now, wake) = (agent.now(now_us), core.wake_ms());
        if wake.is_some_and(|wake| wake <= now.mono_ms) {
            self.agent_input(index, Core::on_tick);
        }
        self.agent_beats(index);
        let Some(agent) = self.agents.get_mut(index) else { return };
        let wake = agent.core.as_ref().and_then(Core::wake_ms);
        let rest_us = wake.map_or(TICK_US, |wake| wake.saturating_sub(now.mono_ms) * 1_000);
        let next_us = now_us + rest_us.clamp(2_000, TICK_US);
        self.queue.at(next_us, Event::AgentTick { agent: index, life });
    }

    fn agent_beats(&mut self, index: usize) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(conn) = agent.conn else { return };
        let heard_us = self.net.conns.get(&conn).map_or(0, |conn| conn.heard_us);
        if now_us > heard_us + SILENCE_US {
            self.agent_hangs_up(index, "the master is silent");
        } else if agent.registered && now_us >= agent.beat_us + BEAT_US {
            agent.beat_us = now_us;
            self.net.up(&mut self.queue, now_us, conn, Up::Beat);
        }
    }

    pub(crate) fn agent_connect(&mut self, index: usize, life: u64) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index).filter(|agent| agent.life == life) else { return };
        if agent.core.is_none() || agent.conn.is_some() {
            return;
        }
        if agent.masters.is_empty() {
            agent.masters.extend(0..self.masters.len());
        }
        let Some(slot) = agent.masters.pop_front() else { return };
        let master = &self.masters[slot];
        if master.node.is_none() || !self.net.reachable(now_us, index, slot) {
            let most_us = if agent.masters.is_empty() { RECONNECT_MAX_US } else { RECONNECT_MAX_US / 4 };
            let at_us = now_us + agent.rng.range(10_000, most_us);
            self.queue.at(at_us, Event::Connect { agent: index, life });
            return;
        }
        let conn = self.net.connect(now_us, (index, life), (slot, master.life));
        agent.conn = Some(conn);
        let register = agent.register();
        self.net.up(&mut self.queue, now_us, conn, Up::Register(register));
    }

    pub(crate) fn agent_side_gone(&mut self, conn: ConnId) {
        let Some(index) = self.net.conns.get(&conn).map(|conn| conn.agent) else { return };
        if self.agents.get(index).is_some_and(|agent| agent.conn == Some(conn)) {
            self.agent_hangs_up(index, "the connection ended");
        }
        if let Some(conn) = self.net.conns.get_mut(&conn) {
            conn.agent_open = false;
        }
        self.net.sweep();
    }

    fn agent_hangs_up(&mut self, index: usize, why: &str) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(conn) = agent.conn.take() else { return };
        agent.registered = false;
        let fetches = std::mem::take(&mut agent.fetches);
        let (life, pause_us) = (agent.life, agent.rng.range(10_000, RECONNECT_MAX_US));
        self.journal.line(now_us, &format!("agent #{index}: session over: {why}"));
        self.net.close_by_agent(&mut self.queue, now_us, conn);
        self.queue.at(now_us + pause_us, Event::Connect { agent: index, life });
        self.agent_input(index, Core::on_session_down);
        for fetch in fetches.into_values() {
            self.fetch_failed(index, &fetch);
        }
    }

    /// A master does not lead: the one that it names is next, unless they point at each other.
    fn agent_is_sent_on(&mut self, index: usize, leader: Option<usize>) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        match leader {
            Some(leader) if agent.hints < HINTS_MAX => {
                agent.hints += 1;
                agent.masters.retain(|other| *other != leader);
                agent.masters.push_front(leader);
            }
            _ => agent.hints = 0,
        }
        self.agent_hangs_up(index, "this master does not lead");
    }

    pub(crate) fn fetch_failed(&mut self, index: usize, fetch: &Fetch) {
        let key = v1::InstanceKey { framework: fetch.framework, epoch: fetch.epoch };
        self.agent_input(index, |core, now| core.on_state_failed(key, now));
    }

    /// A message of the master arrives.
    pub(crate) fn agent_hears(&mut self, id: ConnId, message: Down) {
        let now_us = self.now_us;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.heard_us = now_us;
        let (index, life) = (conn.agent, conn.agent_life);
        let current = self.agents.get(index).is_some_and(|agent| {
            agent.life == life && agent.core.is_some() && agent.conn == Some(id)
        });
        if !current {
            return;
        }
        match message {
            Down::Control(v1::MasterMessage { message: Some(message) }) => {
                self.agent_control(index, message);
            }
            Down::Control(_) => self.oracle.violate("the master sends an empty message".to_owned()),
            Down::Beat => {}
            Down::Elsewhere { leader } => self.agent_is_sent_on(index, leader),
            Down::State { serial, chunk, asked } => self.on_state_chunk(index, serial, chunk, asked),
        }
    }

    fn agent_control(&mut self, index: usize, message: MasterSays) {
        let now_us = self.now_us;
        let passed_over = self.mutation == Some(Mutation::GonePassedOver);
        match message {
            // Where masters are is not simulated.
            MasterSays::Masters(_) => {}
            MasterSays::ToExecutor(message) => {
                self.agent_input(index, |core, now| core.on_to_executor(message, now));
            }
            MasterSays::Registered(registered) => {
                let number = AgentId(registered.agent);
                let Some(agent) = self.agents.get_mut(index) else { return };
                let known = agent.number();
                if known.is_none() && agent.full_until_us > now_us {
                    self.oracle.saw("an agent cannot write down its number");
                    return self.agent_crash(index);
                }
                let key = agent.register().agent_key;
                agent.identity = Some((number, registered.cluster));
                agent.registered = true;
                agent.hints = 0;
                // One that came after a save that was restored is another one for the new masters.
                let another = known.is_some_and(|known| known != number);
                if known.is_none() || another {
                    self.oracle.on_number(number, key);
                }
                if another && self.era == 0 {
                    self.oracle.violate(format!("agent #{index} gets another number: {number}"));
                }
                let line = format!(
                    "agent #{index}: is {number}, sets equal: {}",
                    registered.tasks_equal
                );
                self.journal.line(now_us, &line);
                self.note_copies(index);
                self.agent_input(index, |core, now| {
                    core.on_registered(number, registered.tasks_equal, now)
                });
            }
            MasterSays::Refused(refused) if refused.gone && !passed_over => self.agent_is_gone(index),
            MasterSays::Refused(refused) if refused.field == "register.boot" => self.agent_begins_anew(index),
            MasterSays::Refused(refused) => {
                self.agent_hangs_up(index, &format!("refused: {}: {}", refused.field, refused.rule));
            }
            MasterSays::Desired(desired) => {
                let line = format!(
                    "agent #{index}: desired {}{}: {} tasks, {} removed, {} instances",
                    desired.generation,
                    if desired.full { " (full)" } else { "" },
                    desired.tasks.len(),
                    desired.removed.len(),
                    desired.instances.len()
                );
                self.journal.line(now_us, &line);
                let mut desired = desired;
                if self.mutation == Some(Mutation::GroupsForgotten) {
                    desired.tasks.iter_mut().for_each(|task| task.group = 0);
                }
                if self.mutation == Some(Mutation::GivenUpTasksKept) {
                    desired.full = false;
                }
                if self.mutation == Some(Mutation::GraceIgnored) {
                    desired.tasks.iter_mut().for_each(|task| task.kill_grace_ms = task.kill_grace_ms.map(|_| 0));
                }
                if self.mutation == Some(Mutation::NeighbourEnded) {
                    self.end_neighbours(index, &mut desired);
                }
                let again = desired.clone();
                self.agent_input(index, |core, now| core.on_desired(desired, now));
                if self.mutation == Some(Mutation::DesiredRunAgain) {
                    self.run_again(index, again);
                }
            }
            MasterSays::StatusAcks(acks) => {
                self.check_acks(index, &acks);
                self.agent_input(index, |core, now| core.on_status_acks(acks.acks, now));
            }
            MasterSays::Batch(batch) => {
                let framework = batch.key.unwrap_or_default().framework;
                let line = format!(
                    "agent #{index}: batch t{} for f{framework}: {} events",
                    batch.number,
                    batch.events.len()
                );
                self.journal.line(now_us, &line);
                self.agent_input(index, |core, now| core.on_batch(batch, now));
            }
            MasterSays::TurnResult(result) => {
                self.agent_input(index, |core, now| core.on_turn_result(result, now));
            }
        }
    }

    /// Mutation: where a revocable task ends for others, another one ends with it.
    fn end_neighbours(&mut self, index: usize, desired: &mut v1::Desired) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        for task in &desired.tasks {
            let name = task.launch.as_ref().map(|launch| launch.task.clone()).unwrap_or_default();
            agent.told.insert((task.framework, name), task.clone());
        }
        let revocable = |task: &v1::DesiredTask| decode_spec(&task.spec).is_ok_and(|spec| spec.revocable);
        let Some(grace_ms) = desired.tasks.iter().filter(|task| revocable(task)).find_map(|task| task.kill_grace_ms) else {
            return;
        };
        let runs = |name: &&(u64, String)| self.processes.values().any(|process| process.is_of(name));
        let found = agent.told.iter().find(|(name, task)| runs(name) && !revocable(task) && task.kill_grace_ms.is_none());
        if let Some((_, task)) = found {
            desired.tasks.push(v1::DesiredTask { kill_grace_ms: Some(grace_ms), ..task.clone() });
        }
    }

    /// It was declared gone: it ends what it runs, and comes back as another one once nothing is left.
    fn agent_is_gone(&mut self, index: usize) {
        self.agent_input(index, Core::on_gone);
        let key = self.fresh();
        let Some(agent) = self.agents.get_mut(index) else { return };
        if agent.core.as_ref().is_some_and(Core::is_empty) {
            agent.identity = None;
            agent.key = key;
            self.journal.line(self.now_us, &format!("agent #{index}: is to be another agent"));
            self.oracle.on_agent_renewed(index);
        }
        self.agent_hangs_up(index, "it was declared gone");
    }

    fn check_acks(&mut self, index: usize, acks: &v1::StatusAcks) {
        let Some(agent) = self.agents.get(index) else { return };
        for ack in &acks.acks {
            let sent = agent.sent.get(&(ack.framework, ack.task.clone()));
            for (_, status) in sent.into_iter().flat_map(|sent| sent.range(..=ack.sequence)) {
                self.oracle.on_status_acknowledged(ack.framework, status);
            }
        }
    }

    /// Ask the master for the state of an instance.
    pub(crate) fn fetch_state(&mut self, index: usize, worker: WorkerKey, key: (u64, u64)) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        agent.next_fetch += 1;
        let serial = agent.next_fetch;
        let (framework, epoch) = key;
        let process = agent.workers.get(&worker).map(|worker| worker.process);
        let fetch = Fetch { worker, process, framework, epoch, last_key: None, asked: None };
        agent.fetches.insert(serial, fetch);
        let life = agent.life;
        let at_us = now_us + agent.rng.range(100, 5_000);
        let what = Later::Fetch(serial);
        self.queue.at(at_us, Event::AgentLater { agent: index, life, what });
    }

    pub(crate) fn ask_state(&mut self, index: usize, serial: u64) {
        let now_us = self.now_us;
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(fetch) = agent.fetches.get(&serial).cloned() else { return };
        let Some(conn) = agent.conn.filter(|_| agent.registered) else {
            agent.fetches.remove(&serial);
            return self.fetch_failed(index, &fetch);
        };
        let up = Up::Fetch {
            framework: fetch.framework,
            epoch: fetch.epoch,
            serial,
            after: fetch.last_key,
            asked: fetch.asked,
        };
        self.net.up(&mut self.queue, now_us, conn, up);
    }

    fn on_state_chunk(
        &mut self,
        index: usize,
        serial: u64,
        chunk: Option<v1::StateChunk>,
        asked: Option<Asked>,
    ) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        let Some(fetch) = agent.fetches.get_mut(&serial) else { return };
        if agent.workers.get(&fetch.worker).map(|worker| worker.process) != fetch.process {
            agent.fetches.remove(&serial);
            return;
        }
        let Some(chunk) = chunk else {
            let fetch = fetch.clone();
            self.journal.line(self.now_us, &format!("agent #{index}: no state of f{}", fetch.framework));
            agent.fetches.remove(&serial);
            return self.fetch_failed(index, &fetch);
        };
        fetch.asked = asked;
        fetch.last_key = chunk.entries.last().map(|entry| entry.key.clone());
        let (worker, last) = (fetch.worker.clone(), chunk.next_turn.is_some());
        let key = v1::InstanceKey { framework: fetch.framework, epoch: fetch.epoch };
        if last {
            agent.fetches.remove(&serial);
        }
        let state = v1::InstanceState { key: Some(key), chunk: Some(chunk) };
        self.tell_worker(index, &worker, v1::to_worker::Message::InstanceState(state));
        if !last {
            self.ask_state(index, serial);
        }
    }

    /// What an agent and the master do not agree on.
    pub(crate) fn agent_disagrees(&self, index: usize) -> Option<String> {
        let agent = self.agents.get(index)?;
        if agent.core.is_none() {
            return Some(format!("agent #{index} is away"));
        }
        let tasks = agent.tasks();
        (tasks != 0).then(|| format!("agent #{index} still knows {tasks} tasks"))
    }
}
