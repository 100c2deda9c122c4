//! A master's process: the real node on a simulated disk, in place of its loop and its sessions.
//!
//! Invariants: inputs are taken in batches and settled together a little later, as the real loop does;
//! one sync of the disk is under way at a time, and is for what was written before it began; a crash forgets
//! everything but the disk; while it is stopped, what arrives waits. Must never change what goes in or
//! comes out, unless a mutation is planted.

use crate::calls::Answer;
use crate::disk::{FaultyDisk, SnapshotFault};
use crate::files::Files;
use crate::mutation::Mutation;
use crate::network::ConnId;
use crate::numbered;
use crate::queue::{Asked, Down, Event, Letter, Up};
use crate::world::World;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use tessera_master::node::{Node, Settled};
use tessera_master_core::{CLUSTER_VERSION, Config, Now, Numbers, Output};
use tessera_replica::{
    ClusterId, ElectionTimeout, FatalError, Identity, Limits, MemDisk, Outlet, ReplicaConfig, WriteJob,
};
use tessera_types::{AgentId, Epoch, FrameworkId};
use tessera_virtual::Random;
use tessera_wire::v1::{self, master_message::Message as MasterSays};

/// The wall clock at virtual time zero, in ms: any moment will do.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
/// One tick of the loop, in us.
pub(crate) const TICK_US: u64 = 50_000;
/// Inputs taken before what they caused is written, as in the real loop.
const INPUTS_PER_ROUND_MAX: usize = 512;
/// Time between two looks whether a stopped process goes on, in us.
const LOOK_US: u64 = 200_000;
/// Entries of a framework's state in one chunk.
const STATE_PAGE: usize = 7;

/// Whose disk one is: each restore makes another cluster.
pub(crate) const fn identity(era: u8, node: u64) -> Identity {
    Identity { cluster: ClusterId([7 + era; 16]), node }
}

/// What a member says of itself.
pub(crate) fn info_of(slot: usize, understands: u32) -> v1::MemberInfo {
    v1::MemberInfo {
        name: format!("m{slot}"),
        peer_address: format!("m{slot}:1"),
        rest_address: format!("m{slot}:2"),
        understands,
        ..v1::MemberInfo::default()
    }
}

/// The same as its record.
pub(crate) fn attributes(slot: usize, understands: u32) -> Vec<u8> {
    info_of(slot, understands).encode_to_vec()
}

/// Something that waits for the master's loop.
#[derive(Debug)]
pub(crate) enum Inbound {
    Up { conn: ConnId, message: Up },
    Gone { conn: ConnId },
    Ask { call: u64, forwarded: bool },
    Raft { letter: Letter },
}

/// What the crash that is coming spares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// Inputs were taken, nothing was written.
    BeforeSettle,
    /// A sync fails in the middle.
    InSync,
    /// All is durable, nothing was sent.
    BeforeSend,
}

/// What leaves a node while it settles.
struct Leaving {
    messages: Vec<(u64, Vec<u8>)>,
    disk: FaultyDisk,
    /// The first job, and for how many writes of the disk it is.
    job: Option<(WriteJob, u64)>,
}

impl Outlet for Leaving {
    fn send(&mut self, node: u64, message: Vec<u8>) {
        self.messages.push((node, message));
    }

    fn write(&mut self, job: WriteJob) {
        self.job.get_or_insert((job, self.disk.writes()));
    }
}

/// A process and its disk.
pub(crate) struct Master {
    /// Its address.
    pub(crate) slot: usize,
    /// The cluster to which it belongs.
    pub(crate) era: u8,
    /// Its node on this disk; none while it joins.
    pub(crate) number: Option<u64>,
    /// Disks that this address has had: names the attempt to join.
    pub(crate) disks: u8,
    pub(crate) node: Option<Node<FaultyDisk>>,
    pub(crate) disk: FaultyDisk,
    mutation: Option<Mutation>,
    /// The newest cluster version that its build understands.
    pub(crate) understands: u32,
    pub(crate) life: u64,
    /// Under which it passes requests on.
    pub(crate) numbers: Numbers,
    pub(crate) started_us: u64,
    pub(crate) paused_until_us: u64,
    pub(crate) full_until_us: u64,
    pub(crate) slow_until_us: u64,
    pub(crate) wall_offset_ms: i64,
    /// Of the next snapshot that it takes.
    pub(crate) snapshot_fault: Option<SnapshotFault>,
    /// It is asked to join then.
    pub(crate) joins_us: u64,
    inbox: VecDeque<Inbound>,
    take_scheduled: bool,
    settle_scheduled: bool,
    /// The sync that is under way, and for how many writes it is.
    writing: Option<(WriteJob, u64)>,
    pub(crate) crash_at: Option<CrashPoint>,
    /// Leaderships of this life and all before.
    pub(crate) led: u64,
    leads: bool,
    next_number: u64,
    pub(crate) sessions: BTreeMap<u64, ConnId>,
    /// Requests by their tickets, reads by their rounds.
    pub(crate) requests: BTreeMap<u64, u64>,
    pub(crate) https: BTreeMap<u64, u64>,
    pub(crate) reads: BTreeMap<u64, u64>,
    pub(crate) files: Files,
    pub(crate) config: Config,
    pub(crate) rng: Random,
}

impl Master {
    pub(crate) fn new(
        slot: usize,
        config: Config,
        rng: Random,
        grace_ms: u64,
        mutation: Option<Mutation>,
    ) -> Self {
        Self {
            slot,
            era: 0,
            number: None,
            disks: 0,
            node: None,
            disk: FaultyDisk::new(MemDisk::new(), mutation),
            mutation,
            understands: CLUSTER_VERSION,
            life: 0,
            numbers: numbered::numbers(slot, 0),
            started_us: 0,
            paused_until_us: 0,
            full_until_us: 0,
            slow_until_us: 0,
            wall_offset_ms: 0,
            snapshot_fault: None,
            joins_us: 0,
            inbox: VecDeque::new(),
            take_scheduled: false,
            settle_scheduled: false,
            writing: None,
            crash_at: None,
            led: 0,
            leads: false,
            next_number: 0,
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            https: BTreeMap::new(),
            reads: BTreeMap::new(),
            files: Files::new(grace_ms, mutation),
            config,
            rng,
        }
    }

    /// Another disk, which belongs to this node of the cluster, or to none yet.
    pub(crate) fn put_disk(&mut self, disk: MemDisk, number: Option<u64>) {
        self.disk = FaultyDisk::new(disk, self.mutation);
        self.files.put_folder(self.mutation);
        self.disks += 1;
        self.number = number;
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        let wall_ms = (EPOCH_MS + now_us / 1_000).saturating_add_signed(self.wall_offset_ms);
        Now { wall_ms, mono_ms: now_us.saturating_sub(self.started_us) / 1_000 }
    }

    /// Whether it serves.
    pub(crate) fn leads(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.core().is_leader())
    }

    /// When it, or what waits for it, looks again whether it is still stopped: everything may heal before.
    pub(crate) fn looks_again_us(&self, now_us: u64) -> u64 {
        now_us.max(self.paused_until_us.min(now_us + LOOK_US))
    }

    /// Whether it looks at anything now.
    pub(crate) fn runs(&self, now_us: u64) -> bool {
        self.node.is_some() && now_us >= self.paused_until_us
    }

    fn forget(&mut self) {
        self.sessions.clear();
        self.https.clear();
        self.reads.clear();
        self.requests.clear();
        self.files.let_all_go();
    }
}

impl World {
    pub(crate) fn master_start(&mut self, slot: usize) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        let Some(number) = master.number.filter(|_| master.node.is_none()) else { return };
        if now_us < self.dark_until_us {
            let at_us = self.dark_until_us + master.rng.range(1, 1_000_000);
            return self.queue.at(at_us, Event::MasterStart { master: slot });
        }
        let limits = Limits {
            log_compact_after_entries: 120,
            log_keep_entries: 40,
            // Followers that were away for long need snapshots.
            log_hold_entries: 60,
            snapshot_retry_ticks: 100,
            ..Limits::default()
        };
        let replica = ReplicaConfig {
            // Masters stand in turn; by chance more come together.
            election_timeout: match self.plan.elections % 2 {
                0 => ElectionTimeout::InTurn,
                _ => ElectionTimeout::Seeded(self.plan.elections),
            },
            limits,
            ..ReplicaConfig::new(identity(master.era, number))
        };
        let config = Config { understands: master.understands, ..master.config.clone() };
        match Node::open(config, replica, master.disk.clone()) {
            Ok(node) => {
                master.life += 1;
                master.numbers = numbered::numbers(slot, master.life);
                master.started_us = now_us;
                master.node = Some(node);
                master.next_number = 0;
                master.leads = false;
                let life = master.life;
                self.plant_at_start(slot);
                self.journal.line(now_us, &format!("master {slot}: life {life} of node {number} begins"));
                self.oracle.on_master_open(slot, self.masters[slot].node.as_ref());
                self.queue.at(now_us, Event::MasterTick { master: slot, life });
                self.files_open(slot);
            }
            Err(error) => {
                let line = format!("master {slot}: its disk is refused: {error}");
                self.journal.line(now_us, &line);
                if self.oracle.flipped.remove(&slot) {
                    // What the refusal says is what the operator does.
                    self.master_loses_disk(slot);
                } else if self.is_outgrown(slot) {
                    self.queue.at(now_us + 1_000_000, Event::MasterStart { master: slot });
                } else {
                    self.oracle.violate(format!("after a crash a master's disk is refused: {error}"));
                }
            }
        }
    }

    /// The process ends; says whether there was one.
    pub(crate) fn master_ends(&mut self, slot: usize) -> bool {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        if master.node.take().is_none() {
            return false;
        }
        let survivors = master.rng.index(master.disk.unsynced_batches() + 1);
        master.disk.crash(survivors);
        master.files.end(&mut master.rng);
        master.inbox.clear();
        master.take_scheduled = false;
        master.settle_scheduled = false;
        master.writing = None;
        master.crash_at = None;
        master.paused_until_us = 0;
        master.set_clock();
        master.forget();
        let ended: Vec<ConnId> = self
            .net
            .conns
            .iter()
            .filter(|(_, conn)| conn.master == slot && conn.master_open)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.net.close_by_master(&mut self.queue, now_us, id);
        }
        self.masters_find_ended(slot);
        true
    }

    /// Others find that nobody listens there any more, at once or when it may listen again already.
    fn masters_find_ended(&mut self, ended: usize) {
        let (now_us, number) = (self.now_us, self.masters[ended].number);
        let Some(number) = number else { return };
        for slot in (0..self.masters.len()).filter(|slot| *slot != ended) {
            let master = &mut self.masters[slot];
            if master.rng.chance(70) {
                let at_us = now_us + master.rng.range(500, 100_000);
                self.queue.at(at_us, Event::MasterFindsEnded { master: slot, number });
            }
        }
    }

    /// A master knows that the process of another one has ended.
    pub(crate) fn master_finds_ended(&mut self, slot: usize, number: u64) {
        let master = &mut self.masters[slot];
        if self.now_us < master.paused_until_us {
            return;
        }
        let Some(node) = &mut master.node else { return };
        if node.leader() == Some(number) {
            self.oracle.saw("a leader is known to have ended");
        }
        node.report_gone(number);
        self.settle_soon(slot);
    }

    pub(crate) fn master_crash(&mut self, slot: usize) {
        let now_us = self.now_us;
        if self.master_ends(slot) {
            let back_us = now_us + self.masters[slot].rng.range(50_000, 2_500_000);
            self.journal.line(now_us, &format!("master {slot}: crashes"));
            self.queue.at(back_us, Event::MasterStart { master: slot });
        }
    }

    /// Something arrives at a master's process.
    pub(crate) fn master_inbound(&mut self, slot: usize, inbound: Inbound) {
        if self.masters[slot].node.is_none() {
            return;
        }
        if let Inbound::Up { conn, message: Up::Control(message) } = &inbound {
            self.plant_at_arrival(*conn, message.clone());
        }
        let master = &mut self.masters[slot];
        master.inbox.push_back(inbound);
        if !master.take_scheduled {
            master.take_scheduled = true;
            let at_us = master.looks_again_us(self.now_us) + master.rng.range(5, 300);
            self.queue.at(at_us, Event::MasterTake { master: slot, life: master.life });
        }
    }

    pub(crate) fn master_take(&mut self, slot: usize, life: u64) {
        let master = &mut self.masters[slot];
        if master.life != life || master.node.is_none() {
            return;
        }
        if self.now_us < master.paused_until_us {
            self.queue.at(master.looks_again_us(self.now_us), Event::MasterTake { master: slot, life });
            return;
        }
        master.take_scheduled = false;
        for _ in 0..INPUTS_PER_ROUND_MAX {
            let Some(inbound) = self.masters[slot].inbox.pop_front() else { break };
            self.master_input(slot, inbound);
            if self.masters[slot].node.is_none() {
                return;
            }
        }
        self.settle_soon(slot);
    }

    pub(crate) fn settle_soon(&mut self, slot: usize) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        if master.settle_scheduled {
            return;
        }
        master.settle_scheduled = true;
        let at_us = now_us + master.rng.range(20, 300);
        self.queue.at(at_us, Event::MasterSettle { master: slot, life: master.life });
    }

    /// A master's disk begins to sync, which takes its time.
    fn sync_begins(&mut self, slot: usize, job: WriteJob, mark: u64) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        master.writing = Some((job, mark));
        let slow = master.rng.chance(4);
        let most_us = match master.slow_until_us > now_us {
            true => 1_000_000,
            false if slow => 60_000,
            false => 4_000,
        };
        let at_us = now_us + master.rng.range(100, most_us);
        self.queue.at(at_us, Event::MasterWritten { master: slot, life: master.life });
    }

    pub(crate) fn master_written(&mut self, slot: usize, life: u64) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        if master.life != life || master.node.is_none() {
            return;
        }
        if now_us < master.paused_until_us {
            self.queue.at(master.looks_again_us(now_us), Event::MasterWritten { master: slot, life });
            return;
        }
        let Some((job, mark)) = master.writing.take() else { return };
        if master.crash_at == Some(CrashPoint::InSync) {
            master.disk.fail_sync_after(master.rng.below(3));
        }
        if let Err(error) = master.disk.sync_to(mark) {
            self.journal.line(now_us, &format!("master {slot}: the disk fails: {error}"));
            return self.master_crash(slot);
        }
        if master.crash_at == Some(CrashPoint::BeforeSend) {
            return self.master_crash(slot);
        }
        if let Some(node) = &mut master.node {
            node.on_written(job);
        }
        // The thread of the disk goes on with what was written meanwhile.
        let (left, writes) = (master.node.as_ref().and_then(Node::unwritten), master.disk.writes());
        let planted = (self.plant_at_write(slot) && writes > mark).then_some(job);
        if let Some(job) = left.or(planted) {
            self.sync_begins(slot, job, writes);
        }
        self.settle_soon(slot);
    }

    /// What a master wrote is to be synced, unless a sync is under way: the next one is for it as well.
    fn after_writes(&mut self, slot: usize, first: Option<(WriteJob, u64)>) {
        if let Some((job, mark)) = first.filter(|_| self.masters[slot].writing.is_none()) {
            self.sync_begins(slot, job, mark);
        }
        let early = self.plant_at_write(slot);
        let node = self.masters[slot].node.as_mut();
        if let Some((node, job)) = node.and_then(|node| node.unwritten().map(|job| (node, job)))
            && early
        {
            node.on_written(job);
            self.settle_soon(slot);
        }
    }

    pub(crate) fn master_tick(&mut self, slot: usize, life: u64) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        if master.life != life || master.node.is_none() {
            return;
        }
        let next_us = master.looks_again_us(now_us) + TICK_US;
        self.queue.at(next_us, Event::MasterTick { master: slot, life });
        if now_us < master.paused_until_us {
            return;
        }
        let now = master.now(now_us);
        if let Some(node) = &mut master.node {
            node.tick();
            node.input(|core| core.on_tick(now));
        }
        self.plant_at_tick(slot);
        self.settle_soon(slot);
    }

    /// It is no member any more, and joins anew.
    fn master_is_removed(&mut self, slot: usize) {
        self.journal.line(self.now_us, &format!("master {slot}: was removed"));
        self.master_ends(slot);
        self.master_loses_disk(slot);
    }

    fn master_input(&mut self, slot: usize, inbound: Inbound) {
        let now = self.masters[slot].now(self.now_us);
        match inbound {
            Inbound::Up { conn, message } => self.master_up(slot, conn, message, now),
            Inbound::Gone { conn } => {
                let open = self.net.conns.get_mut(&conn).filter(|conn| conn.master_open);
                let Some(open) = open else { return };
                open.master_open = false;
                if let Some(session) = open.session {
                    self.masters[slot].sessions.remove(&session);
                    self.feed(slot, |core| core.on_session_closed(session, now));
                }
            }
            Inbound::Ask { call, forwarded } => self.master_asked(slot, call, forwarded, now),
            Inbound::Raft { letter } => self.master_steps(slot, &letter),
        }
    }

    pub(crate) fn feed(
        &mut self,
        slot: usize,
        input: impl FnOnce(&mut tessera_master_core::Core) -> Vec<Output>,
    ) {
        if let Some(node) = &mut self.masters[slot].node {
            node.input(input);
        }
    }

    fn master_up(&mut self, slot: usize, id: ConnId, message: Up, now: Now) {
        let Some(conn) = self.net.conns.get_mut(&id).filter(|conn| conn.master_open) else { return };
        match (message, conn.session) {
            (Up::Register(_), None) if !self.masters[slot].leads() => {
                let leader = self.leader_known_to(slot);
                let down = Down::Elsewhere { leader };
                self.net.down(&mut self.queue, self.now_us, id, down);
                self.net.close_by_master(&mut self.queue, self.now_us, id);
            }
            (Up::Register(register), None) => {
                let session = self.masters[slot].number();
                conn.session = Some(session);
                let line = format!("master {slot}: session {session} opens for agent #{}", conn.agent);
                self.journal.line(self.now_us, &line);
                self.masters[slot].sessions.insert(session, id);
                self.feed(slot, |core| core.on_session_open(session, register, now));
            }
            (Up::Control(message), Some(session)) => {
                if self.masters[slot].sessions.contains_key(&session) {
                    let (session, message) = self.plant_at_input(slot, session, message);
                    self.feed(slot, |core| core.on_agent_message(session, message, now));
                }
            }
            (Up::Beat, Some(session)) => {
                self.feed(slot, |core| {
                    core.on_beat(session, now);
                    Vec::new()
                });
                self.net.down(&mut self.queue, self.now_us, id, Down::Beat);
            }
            (Up::Fetch { framework, epoch, serial, after, asked }, Some(session)) => {
                self.master_fetch(slot, id, session, (framework, epoch, serial), after, asked);
            }
            _ => {}
        }
    }

    /// The bulk lane: one page of a framework's state, or the end of it.
    fn master_fetch(
        &mut self,
        slot: usize,
        id: ConnId,
        session: u64,
        (framework, epoch, serial): (u64, u64, u64),
        after: Option<String>,
        asked: Option<Asked>,
    ) {
        let Some(agent) = self.net.conns.get(&id).and_then(|c| self.agent_number(c.agent)) else {
            return;
        };
        let Some(node) = &mut self.masters[slot].node else { return };
        let mut fetched = None;
        node.input(|core| {
            fetched = Some(core.state_fetch(agent, session, FrameworkId(framework), Epoch(epoch)));
            Vec::new()
        });
        let began = match fetched {
            Some(Ok(now)) if asked.is_none_or(|asked| asked.next_turn == now.next.0) => {
                // Writes from outside that come between pages are in some of them and not in others.
                Some(asked.unwrap_or(Asked { next_turn: now.next.0, outside: now.outside }))
            }
            _ => None,
        };
        let rows = node.rows();
        let page = node.core().state_page(FrameworkId(framework), after.as_deref(), STATE_PAGE, &rows);
        let chunk = match (began, page) {
            (Some(began), Ok(page)) => Some(v1::StateChunk {
                next_turn: (page.len() < STATE_PAGE).then_some(began.next_turn),
                outside: began.outside,
                entries: page.iter().map(Into::into).collect(),
            }),
            _ => None,
        };
        let down = Down::State { serial, chunk, asked: began };
        self.net.down(&mut self.queue, self.now_us, id, down);
    }

    pub(crate) fn master_settle(&mut self, slot: usize, life: u64) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        if master.life != life || master.node.is_none() {
            return;
        }
        if now_us < master.paused_until_us {
            self.queue.at(master.looks_again_us(now_us), Event::MasterSettle { master: slot, life });
            return;
        }
        master.settle_scheduled = false;
        match master.crash_at {
            Some(CrashPoint::BeforeSettle) => return self.master_crash(slot),
            Some(CrashPoint::InSync | CrashPoint::BeforeSend) | None => {}
        }
        master.disk.set_full(master.full_until_us > now_us);
        let now = master.now(now_us);
        let Some(node) = &mut master.node else { return };
        // What leaves before the disk fails has left.
        let mut leaving = Leaving { messages: Vec::new(), disk: master.disk.clone(), job: None };
        let result = node.settle(now, &mut leaving);
        self.post(slot, leaving.messages);
        self.after_writes(slot, leaving.job);
        let struck = self.note_snapshot_fault(slot);
        match result {
            Err(FatalError::Removed { .. }) => self.master_is_removed(slot),
            Err(error) => {
                let line = format!("master {slot}: the replica stops: {error}");
                self.journal.line(now_us, &line);
                if !matches!(error, FatalError::Disk(_)) && !self.is_outgrown(slot) {
                    self.oracle.violate(format!("master {slot} stops: {error}"));
                }
                self.master_crash(slot);
            }
            Ok(settled) => {
                let master = &self.masters[slot];
                let before = self.oracle.last_applied();
                let checked = self.oracle.on_settled(master, &settled);
                for line in checked {
                    self.journal.line(now_us, &line);
                }
                if self.oracle.last_applied() > before {
                    self.check_files(slot);
                }
                self.master_perform(slot, settled);
                if struck == Some(SnapshotFault::EndsAfter) {
                    self.master_crash(slot);
                }
            }
        }
    }

    fn master_perform(&mut self, slot: usize, settled: Settled) {
        if settled.more {
            self.settle_soon(slot);
        }
        self.send_snapshots(slot, settled.snapshots);
        for (id, done) in settled.changes {
            let what = if done { "is made" } else { "is lost" };
            self.journal.line(self.now_us, &format!("master {slot}: change {id} of the members {what}"));
        }
        for round in settled.reads {
            if let Some(call) = self.masters[slot].reads.remove(&round) {
                self.serve_read(slot, call);
            }
        }
        for round in settled.reads_dropped {
            if let Some(call) = self.masters[slot].reads.remove(&round) {
                self.answer(call, Answer::NoLeader);
            }
        }
        self.note_leadership(slot, settled.stepped_down);
        for output in settled.outputs {
            match output {
                Output::SendAgent { session, message } => self.master_send(slot, session, message),
                Output::CloseSession { session, reason } => {
                    let line = format!("master {slot}: closes session {session}: {reason}");
                    self.journal.line(self.now_us, &line);
                    self.master_close(slot, session);
                }
                Output::Answer { ticket, answer } => match self.masters[slot].https.remove(&ticket) {
                    Some(call) => self.answer(call, Answer::Http(answer)),
                    // It was let go with all others.
                    None if settled.stepped_down => {}
                    None => self.oracle.violate(format!("an answer of a scheduler to nobody: {answer:?}")),
                },
                Output::Reply { ticket, result } => {
                    self.masters[slot].files.let_go(ticket);
                    match self.masters[slot].requests.remove(&ticket) {
                        Some(call) => self.answer(call, Answer::Reply(result)),
                        None if settled.stepped_down => {}
                        None => self.oracle.violate(format!("a reply to nobody: {result:?}")),
                    }
                }
                Output::Report { text } => {
                    if text.contains("this master's clock is") {
                        self.oracle.saw("a clock that is far off is reported");
                    }
                    self.journal.line(self.now_us, &format!("master {slot}: reports {text}"));
                }
                Output::Propose(_) | Output::ReadIndex { .. } => {
                    self.oracle.violate("the node hands on what it should have done".to_owned());
                }
            }
        }
    }

    /// Who stops leading lets everybody go.
    fn note_leadership(&mut self, slot: usize, stepped_down: bool) {
        let now_us = self.now_us;
        if stepped_down {
            let master = &mut self.masters[slot];
            master.leads = false;
            let conns: Vec<ConnId> = master.sessions.values().copied().collect();
            let calls = [&master.requests, &master.https, &master.reads];
            let calls: Vec<u64> = calls.into_iter().flat_map(|map| map.values().copied()).collect();
            master.forget();
            self.journal.line(now_us, &format!("master {slot}: does not lead any more"));
            for conn in conns {
                self.net.close_by_master(&mut self.queue, now_us, conn);
            }
            for call in calls {
                self.answer(call, Answer::NoLeader);
            }
        }
        let master = &mut self.masters[slot];
        if !master.leads && master.leads() {
            master.leads = true;
            master.led += 1;
            self.plan.leaderships += 1;
            let term = master.node.as_ref().map_or(0, |node| node.status().term);
            self.journal.line(now_us, &format!("master {slot}: leads in term {term}"));
        }
    }

    fn master_send(&mut self, slot: usize, session: u64, message: v1::MasterMessage) {
        let Some(id) = self.masters[slot].sessions.get(&session).copied() else { return };
        let message = self.plant_at_output(message);
        let term = self.masters[slot].node.as_ref().map_or(0, |node| node.status().term);
        match (&message.message, self.net.conns.get(&id)) {
            (Some(MasterSays::Desired(desired)), Some(conn)) => {
                self.oracle.on_desired_sent(conn.agent, term, desired.generation);
            }
            (Some(MasterSays::Batch(batch)), Some(_)) => {
                let core = self.masters[slot].node.as_ref().map(Node::core);
                let about = |agent| core?.agent(agent).map(|view| (view.hostname, view.attributes));
                self.oracle.on_batch_sent(batch, about);
            }
            _ => {}
        }
        self.net.down(&mut self.queue, self.now_us, id, Down::Control(message));
    }

    fn master_close(&mut self, slot: usize, session: u64) {
        if let Some(id) = self.masters[slot].sessions.remove(&session) {
            self.net.close_by_master(&mut self.queue, self.now_us, id);
            let now = self.masters[slot].now(self.now_us);
            self.feed(slot, |core| core.on_session_closed(session, now));
            self.settle_soon(slot);
        }
    }

    /// Another master told this node that it is no member.
    pub(crate) fn master_told_removed(&mut self, slot: usize, node: u64, by: usize) {
        let Some(by) = self.masters[by].number else { return };
        let master = &mut self.masters[slot];
        if master.number == Some(node)
            && let Some(node) = &mut master.node
        {
            node.on_told_removed(by);
        }
    }

    /// The slot of the leader that a master knows of, unless it is itself.
    pub(crate) fn leader_known_to(&self, slot: usize) -> Option<usize> {
        let leader = self.masters[slot].node.as_ref()?.leader()?;
        self.slot_of(leader).filter(|leader| *leader != slot)
    }

    /// The master that leads in the newest term, if one does.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = self.masters.iter().filter(|master| master.leads());
        let term = |master: &&Master| master.node.as_ref().map_or(0, |node| node.status().term);
        leads.max_by_key(term).map(|master| master.slot)
    }

    /// The node of the leader, if there is one.
    pub(crate) fn leading(&self) -> Option<&Node<FaultyDisk>> {
        self.masters[self.leader()?].node.as_ref()
    }

    /// The number that the cluster gave an agent of the simulation.
    pub(crate) fn agent_number(&self, agent: usize) -> Option<AgentId> {
        self.agents.get(agent).and_then(|agent| agent.number())
    }
}
