//! The master's process: the real node on a simulated disk, in place of its loop and its sessions.
//!
//! Invariants: inputs are taken in batches and settled together a little later, as the real loop does;
//! a crash forgets everything but the disk; while it is stopped, what arrives waits. Must never change
//! what goes in or comes out, unless a mutation is planted.

use crate::disk::FaultyDisk;
use crate::mutation::Mutation;
use crate::network::ConnId;
use crate::queue::{Down, Event, Up};
use crate::rng::Rng;
use crate::world::World;
use std::collections::{BTreeMap, VecDeque};
use tessera_master::node::{Node, Settled};
use tessera_master_core::{
    Config, HttpFailure, Now, Output, Principal, Reply, Request, RequestError,
};
use tessera_replica::{ClusterId, ElectionTimeout, Identity, Limits, MemDisk, Replica, ReplicaConfig};
use tessera_types::{AgentId, Epoch, FrameworkId, HttpAnswer, HttpRequest};
use tessera_wire::v1::{self, agent_message::Message as AgentSays, master_message::Message as MasterSays};

/// The wall clock at virtual time zero, in ms: any moment will do.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// One tick of the loop, in us.
const TICK_US: u64 = 50_000;
/// Inputs taken before what they caused is persisted, as in the real loop.
const INPUTS_PER_ROUND_MAX: usize = 512;
/// Entries of a framework's state in one chunk.
const STATE_PAGE: usize = 7;

fn identity() -> Identity {
    Identity { cluster: ClusterId([7; 16]), node: 1 }
}

/// Something that waits for the master's loop.
#[derive(Debug)]
pub(crate) enum Inbound {
    Up { conn: ConnId, message: Up },
    Gone { conn: ConnId },
    Request { request: Request },
    Http { framework: FrameworkId, request: HttpRequest },
}

/// What the crash that is coming spares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// Inputs were taken, nothing was persisted.
    BeforeSettle,
    /// A sync fails in the middle.
    InSync,
    /// All is durable, nothing was sent.
    BeforeSend,
}

/// The process and its disk.
pub(crate) struct Master {
    pub(crate) node: Option<Node<FaultyDisk>>,
    disk: FaultyDisk,
    pub(crate) life: u64,
    started_us: u64,
    pub(crate) paused_until_us: u64,
    pub(crate) wall_offset_ms: i64,
    inbox: VecDeque<Inbound>,
    take_scheduled: bool,
    settle_scheduled: bool,
    pub(crate) crash_at: Option<CrashPoint>,
    next_number: u64,
    sessions: BTreeMap<u64, ConnId>,
    requests: BTreeMap<u64, Request>,
    https: BTreeMap<u64, FrameworkId>,
    pub(crate) config: Config,
    rng: Rng,
}

impl Master {
    pub(crate) fn new(mut rng: Rng, mutation: Option<Mutation>) -> Result<Self, String> {
        let mut disk = MemDisk::new();
        Replica::bootstrap(&mut disk, identity(), Vec::new()).map_err(|error| error.to_string())?;
        let config = Config {
            agent_timeout_ms: rng.range(5_000, 9_000),
            scheduler_grace_ms: rng.range(1_200, 3_000),
            session_silence_ms: 2_500,
            offer_timeout_ms: rng.range(1_500, 5_000),
            http_timeout_ms: 6_000,
        };
        Ok(Self {
            node: None,
            disk: FaultyDisk::new(disk, mutation),
            life: 0,
            started_us: 0,
            paused_until_us: 0,
            wall_offset_ms: 0,
            inbox: VecDeque::new(),
            take_scheduled: false,
            settle_scheduled: false,
            crash_at: None,
            next_number: 1,
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            https: BTreeMap::new(),
            config,
            rng,
        })
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        let wall_ms = (EPOCH_MS + now_us / 1_000).saturating_add_signed(self.wall_offset_ms);
        Now { wall_ms, mono_ms: now_us.saturating_sub(self.started_us) / 1_000 }
    }

    /// Requests to schedulers that nobody has answered.
    pub(crate) fn waiting_https(&self) -> usize {
        self.https.len()
    }
}

/// Mutation: a turn whose launches stand alone.
fn torn_apart(mut message: v1::AgentMessage) -> v1::AgentMessage {
    if let Some(AgentSays::Turn(turn)) = &mut message.message {
        for operation in &mut turn.operations {
            if let Some(v1::operation::Operation::Accept(accept)) = &mut operation.operation {
                accept.groups.clear();
                accept.gang = 0;
            }
        }
    }
    message
}

impl World {
    pub(crate) fn master_start(&mut self) {
        let now_us = self.now_us;
        let master = &mut self.master;
        if master.node.is_some() {
            return;
        }
        let limits = Limits {
            log_compact_after_entries: 120,
            log_keep_entries: 40,
            ..Limits::default()
        };
        let replica = ReplicaConfig {
            election_timeout: ElectionTimeout::Fixed(12),
            limits,
            ..ReplicaConfig::new(identity())
        };
        match Node::open(master.config.clone(), replica, master.disk.clone()) {
            Ok(node) => {
                master.life += 1;
                master.started_us = now_us;
                master.node = Some(node);
                master.next_number = 0;
                let life = master.life;
                self.journal.line(now_us, &format!("master: life {life} begins"));
                self.oracle.on_master_open(self.master.node.as_ref());
                self.queue.at(now_us, Event::MasterTick { life });
            }
            Err(error) => {
                self.oracle.violate(format!("after a crash the master's disk is refused: {error}"));
            }
        }
    }

    pub(crate) fn master_crash(&mut self) {
        let now_us = self.now_us;
        let master = &mut self.master;
        if master.node.take().is_none() {
            return;
        }
        let survivors = master.rng.index(master.disk.unsynced_batches() + 1);
        master.disk.crash(survivors);
        master.inbox.clear();
        master.take_scheduled = false;
        master.settle_scheduled = false;
        master.crash_at = None;
        master.paused_until_us = 0;
        master.sessions.clear();
        master.requests.clear();
        master.https.clear();
        let back_us = now_us + master.rng.range(50_000, 2_500_000);
        self.journal.line(now_us, "master: crashes");
        self.user.on_master_crash();
        self.queue.at(back_us, Event::MasterStart);
        let ended: Vec<ConnId> =
            self.net.conns.iter().filter(|(_, conn)| conn.master_open).map(|(id, _)| *id).collect();
        for id in ended {
            self.net.close_by_master(&mut self.queue, now_us, id);
        }
    }

    /// Something arrives at the master's process.
    pub(crate) fn master_inbound(&mut self, inbound: Inbound) {
        if self.master.node.is_none() {
            return;
        }
        if let Inbound::Up { conn, message: Up::Control(message) } = &inbound {
            self.plant_at_arrival(*conn, message.clone());
        }
        self.master.inbox.push_back(inbound);
        if !self.master.take_scheduled {
            self.master.take_scheduled = true;
            let at_us = self.now_us.max(self.master.paused_until_us) + self.master.rng.range(5, 300);
            self.queue.at(at_us, Event::MasterTake { life: self.master.life });
        }
    }

    /// Mutations: answers that leave before anything is committed.
    fn plant_at_arrival(&mut self, conn: ConnId, message: v1::AgentMessage) {
        let now_us = self.now_us;
        let answer = match (self.mutation, message.message) {
            (Some(Mutation::StatusesAcknowledgedEarly), Some(AgentSays::Statuses(statuses))) => {
                let acks = statuses.updates.into_iter().map(|update| v1::StatusAck {
                    framework: update.framework,
                    task: update.status.unwrap_or_default().task,
                    sequence: update.sequence,
                });
                MasterSays::StatusAcks(v1::StatusAcks { acks: acks.collect() })
            }
            (Some(Mutation::TurnAnsweredEarly), Some(AgentSays::Turn(turn))) => {
                if turn.writes.is_empty() {
                    return;
                }
                let key = v1::InstanceKey { framework: turn.framework, epoch: turn.epoch };
                let outcome = v1::turn_outcome::Outcome::Next(turn.number + 1);
                MasterSays::TurnResult(v1::TurnResult {
                    key: Some(key),
                    number: turn.number,
                    outcome: Some(v1::TurnOutcome { outcome: Some(outcome) }),
                })
            }
            _ => return,
        };
        let down = Down::Control(v1::MasterMessage { message: Some(answer) });
        self.net.down(&mut self.queue, now_us, conn, down);
    }

    pub(crate) fn master_take(&mut self, life: u64) {
        if self.master.life != life || self.master.node.is_none() {
            return;
        }
        if self.now_us < self.master.paused_until_us {
            self.queue.at(self.master.paused_until_us, Event::MasterTake { life });
            return;
        }
        self.master.take_scheduled = false;
        for _ in 0..INPUTS_PER_ROUND_MAX {
            let Some(inbound) = self.master.inbox.pop_front() else { break };
            self.master_input(inbound);
        }
        self.settle_soon();
    }

    fn settle_soon(&mut self) {
        if self.master.settle_scheduled {
            return;
        }
        self.master.settle_scheduled = true;
        // The time of an fsync, which is sometimes slow.
        let slow = self.master.rng.chance(4);
        let latency_us = self.master.rng.range(100, if slow { 60_000 } else { 4_000 });
        self.queue.at(self.now_us + latency_us, Event::MasterSettle { life: self.master.life });
    }

    pub(crate) fn master_tick(&mut self, life: u64) {
        if self.master.life != life || self.master.node.is_none() {
            return;
        }
        let next_us = self.now_us.max(self.master.paused_until_us) + TICK_US;
        self.queue.at(next_us, Event::MasterTick { life });
        if self.now_us < self.master.paused_until_us {
            return;
        }
        let now = self.master.now(self.now_us);
        if let Some(node) = &mut self.master.node {
            node.tick();
            node.input(|core| core.on_tick(now));
        }
        self.settle_soon();
    }

    fn master_input(&mut self, inbound: Inbound) {
        let now = self.master.now(self.now_us);
        match inbound {
            Inbound::Up { conn, message } => self.master_up(conn, message, now),
            Inbound::Gone { conn } => {
                let open = self.net.conns.get_mut(&conn).filter(|conn| conn.master_open);
                let Some(open) = open else { return };
                open.master_open = false;
                if let Some(session) = open.session {
                    self.master.sessions.remove(&session);
                    self.feed(|core| core.on_session_closed(session, now));
                }
            }
            Inbound::Request { request } => {
                let ticket = self.master.number();
                self.master.requests.insert(ticket, request.clone());
                let principal = Principal::administrator();
                self.feed(|core| core.on_request(ticket, &principal, request, now));
            }
            Inbound::Http { framework, request } => {
                let ticket = self.master.number();
                self.master.https.insert(ticket, framework);
                let principal = Principal::administrator();
                if let Some(node) = &mut self.master.node {
                    node.input_with_rows(|core, rows| {
                        core.on_http(ticket, &principal, framework, request, rows, now)
                    });
                }
            }
        }
    }

    fn feed(&mut self, input: impl FnOnce(&mut tessera_master_core::Core) -> Vec<Output>) {
        if let Some(node) = &mut self.master.node {
            node.input(input);
        }
    }

    fn master_up(&mut self, id: ConnId, message: Up, now: Now) {
        let Some(conn) = self.net.conns.get_mut(&id).filter(|conn| conn.master_open) else { return };
        match (message, conn.session) {
            (Up::Register(register), None) => {
                let session = self.master.number();
                conn.session = Some(session);
                let line = format!("master: session {session} opens for agent #{}", conn.agent);
                self.journal.line(self.now_us, &line);
                self.master.sessions.insert(session, id);
                self.feed(|core| core.on_session_open(session, register, now));
            }
            (Up::Control(message), Some(session)) => {
                if self.master.sessions.contains_key(&session) {
                    let (session, message) = self.plant_at_input(session, message);
                    self.feed(|core| core.on_agent_message(session, message, now));
                }
            }
            (Up::Beat, Some(session)) => {
                self.feed(|core| {
                    core.on_beat(session, now);
                    Vec::new()
                });
                self.net.down(&mut self.queue, self.now_us, id, Down::Beat);
            }
            (Up::Fetch { framework, epoch, serial, after, next_turn }, Some(session)) => {
                self.master_fetch(id, session, (framework, epoch, serial), after, next_turn);
            }
            _ => {}
        }
    }

    /// Mutation: a turn of a fenced instance is taken for one of the instance that took its place.
    fn plant_at_input(&self, session: u64, message: v1::AgentMessage) -> (u64, v1::AgentMessage) {
        let unchanged = (session, message.clone());
        if self.mutation == Some(Mutation::UnitsTornApart) {
            return (session, torn_apart(message));
        }
        if self.mutation != Some(Mutation::StaleEpochRelabelled) {
            return unchanged;
        }
        let (Some(AgentSays::Turn(mut turn)), Some(node)) = (message.message, &self.master.node) else {
            return unchanged;
        };
        let view = node.core().framework(FrameworkId(turn.framework));
        let Some(view) = view.filter(|view| view.epoch.0 > turn.epoch) else { return unchanged };
        let host = view.agent.and_then(|agent| {
            let hosts = |conn: &&ConnId| {
                self.net.conns.get(conn).is_some_and(|c| self.agent_number(c.agent) == Some(agent))
            };
            self.master.sessions.iter().find(|(_, conn)| hosts(conn)).map(|(session, _)| *session)
        });
        let Some(host) = host else { return unchanged };
        turn.epoch = view.epoch.0;
        turn.number = view.last_turn.0 + 1;
        (host, v1::AgentMessage { message: Some(AgentSays::Turn(turn)) })
    }

    /// The bulk lane: one page of a framework's state, or the end of it.
    fn master_fetch(
        &mut self,
        id: ConnId,
        session: u64,
        (framework, epoch, serial): (u64, u64, u64),
        after: Option<String>,
        asked: Option<u64>,
    ) {
        let Some(agent) = self.net.conns.get(&id).and_then(|c| self.agent_number(c.agent)) else {
            return;
        };
        let Some(node) = &mut self.master.node else { return };
        let mut fetched = None;
        node.input(|core| {
            fetched = Some(core.state_fetch(agent, session, FrameworkId(framework), Epoch(epoch)));
            Vec::new()
        });
        let number = match fetched {
            Some(Ok(number)) if asked.is_none_or(|asked| asked == number.0) => Some(number.0),
            _ => None,
        };
        let rows = node.rows();
        let page = node.core().state_page(FrameworkId(framework), after.as_deref(), STATE_PAGE, &rows);
        let chunk = match (number, page) {
            (Some(number), Ok(page)) => Some(v1::StateChunk {
                next_turn: (page.len() < STATE_PAGE).then_some(number),
                entries: page.iter().map(Into::into).collect(),
            }),
            _ => None,
        };
        let down = Down::State { serial, chunk, asked: number };
        self.net.down(&mut self.queue, self.now_us, id, down);
    }

    pub(crate) fn master_settle(&mut self, life: u64) {
        if self.master.life != life || self.master.node.is_none() {
            return;
        }
        if self.now_us < self.master.paused_until_us {
            self.queue.at(self.master.paused_until_us, Event::MasterSettle { life });
            return;
        }
        self.master.settle_scheduled = false;
        match self.master.crash_at {
            Some(CrashPoint::BeforeSettle) => return self.master_crash(),
            Some(CrashPoint::InSync) => self.master.disk.fail_sync_after(self.master.rng.below(3)),
            Some(CrashPoint::BeforeSend) | None => {}
        }
        let now = self.master.now(self.now_us);
        let Some(node) = &mut self.master.node else { return };
        match node.settle(now) {
            Err(error) => {
                let line = format!("master: the replica stops: {error}");
                self.journal.line(self.now_us, &line);
                self.master_crash();
            }
            Ok(settled) => {
                let checked = self.oracle.on_settled(self.now_us, self.master.node.as_ref(), &settled);
                for line in checked {
                    self.journal.line(self.now_us, &line);
                }
                if self.master.crash_at == Some(CrashPoint::BeforeSend) {
                    return self.master_crash();
                }
                self.master_perform(settled);
            }
        }
    }

    fn master_perform(&mut self, settled: Settled) {
        if settled.more {
            self.settle_soon();
        }
        for output in settled.outputs {
            match output {
                Output::SendAgent { session, message } => self.master_send(session, message),
                Output::CloseSession { session, reason } => {
                    let line = format!("master: closes session {session}: {reason}");
                    self.journal.line(self.now_us, &line);
                    self.master_close(session);
                }
                Output::Answer { ticket, answer } => self.on_answer(ticket, answer),
                Output::Reply { ticket, result } => self.on_reply(ticket, result),
                Output::Report { text } => {
                    self.journal.line(self.now_us, &format!("master: reports {text}"));
                }
                Output::Propose(_) | Output::ReadIndex { .. } => {
                    self.oracle.violate("the node hands on what it should have done".to_owned());
                }
            }
        }
    }

    fn master_send(&mut self, session: u64, message: v1::MasterMessage) {
        let Some(id) = self.master.sessions.get(&session).copied() else { return };
        if let (Some(MasterSays::Desired(desired)), Some(conn)) =
            (&message.message, self.net.conns.get(&id))
        {
            self.oracle.on_desired_sent(conn.agent, desired.generation);
        }
        self.net.down(&mut self.queue, self.now_us, id, Down::Control(message));
    }

    fn master_close(&mut self, session: u64) {
        if let Some(id) = self.master.sessions.remove(&session) {
            self.net.close_by_master(&mut self.queue, self.now_us, id);
            let now = self.master.now(self.now_us);
            self.feed(|core| core.on_session_closed(session, now));
            self.settle_soon();
        }
    }

    fn on_answer(&mut self, ticket: u64, answer: Result<HttpAnswer, HttpFailure>) {
        if self.master.https.remove(&ticket).is_none() {
            self.oracle.violate(format!("a request to a scheduler was answered twice: {answer:?}"));
            return;
        }
        let line = match answer {
            Ok(answer) => format!("user: a scheduler answers {}", answer.status),
            Err(failure) => format!("user: no answer of a scheduler: {failure}"),
        };
        self.journal.line(self.now_us, &line);
    }

    fn on_reply(&mut self, ticket: u64, result: Result<Reply, RequestError>) {
        match self.master.requests.remove(&ticket) {
            Some(request) => self.user.on_reply(&request, &result),
            None => self.oracle.violate(format!("a request was answered twice: {result:?}")),
        }
        let line = match result {
            Ok(reply) => format!("user: done: {reply:?}"),
            Err(error) => format!("user: refused: {error}"),
        };
        self.journal.line(self.now_us, &line);
    }

    /// The number that the master gave an agent of the simulation.
    pub(crate) fn agent_number(&self, agent: usize) -> Option<AgentId> {
        self.agents.get(agent).and_then(|agent| agent.number())
    }
}
