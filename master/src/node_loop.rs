//! The one loop that owns a master's node; everything else talks to it by its handle.
//!
//! Invariants: cluster state has one owner, an OS thread without async; the queue into it is bounded
//! and makes senders wait; queues out of it never do: a session that does not read is closed, a caller
//! that is gone is forgotten. It does not wait for the disk: another thread does (`node_writer`). A failure
//! of the replica or of the disk ends the loop, and with it the process.

use crate::beats::Beats;
use crate::members::Topology;
use crate::metrics::Metrics;
use crate::node::{Node, Settled};
use crate::node_handle::{
    AnswerSender, Asker, BarrierSender, ChangeRefused, ChangeSender, Input, LoopError, NodeHandle,
    NotLeading, ReplyTo, TransferRefused,
};
use crate::node_writer::LogWriter;
use crate::pause::Pause;
use crate::peer::Peers;
use crate::trace::Tracer;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tessera_master_core::{EventId, Now, Output, Request};
use tessera_replica::{Disk, EntryId, FatalError, Outlet, SnapshotToSend, StepError, WriteJob};
use tessera_wire::v1;
use tokio::sync::{mpsc, watch};

/// Inputs waiting for the loop. Senders wait when it is full, which reaches back to their peers.
const INPUTS_MAX: usize = 4_096;

/// Inputs taken before what they caused is written: they share one write.
const INPUTS_PER_ROUND_MAX: usize = 512;

/// Messages queued for one agent. One that is so far behind gets a fresh session instead.
pub const SESSION_QUEUE_MAX: usize = 4_096;

/// One tick of the replica; followers give a leader up that was silent for 10 of them.
const TICK: Duration = Duration::from_millis(50);

/// The loop: a node and the ends of everything it answers to.
pub struct NodeLoop<D: Disk> {
    node: Node<D>,
    inputs: mpsc::Receiver<Input>,
    events: watch::Sender<EventId>,
    topology: watch::Sender<Topology>,
    peers: Option<Arc<Peers>>,
    /// Callers that wait for a round among the masters, by its context.
    barriers: HashMap<u64, Vec<BarrierSender>>,
    /// Callers whose round is not begun.
    barriers_new: Vec<BarrierSender>,
    last_barrier: u64,
    /// Who waits for a change of the members; one is under way at a time.
    changes: HashMap<EntryId, ChangeSender>,
    ended: Option<LoopError>,
    sessions: HashMap<u64, mpsc::Sender<v1::MasterMessage>>,
    replies: HashMap<u64, ReplyTo>,
    answers: HashMap<u64, AnswerSender>,
    handle: NodeHandle,
    started: Instant,
    /// Terms up to this one began before it did.
    first_term: u64,
    last_tick: Instant,
}

impl<D: Disk> NodeLoop<D> {
    /// A loop around a node, and its handle.
    pub fn new(mut node: Node<D>, metrics: Arc<Metrics>, tracer: Option<Tracer>) -> (Self, NodeHandle) {
        node.measure(metrics.clone());
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (events, watch) = watch::channel(EventId::default());
        let now = Instant::now();
        let (topology, topology_watch) = watch::channel(Topology::new(node.identity()));
        let handle = NodeHandle {
            inputs: sender,
            events: watch,
            topology: topology_watch,
            tickets: Arc::new(std::sync::atomic::AtomicU64::new(1)),
            beats: Arc::new(Beats::new(now)),
            names: Arc::default(),
            metrics,
            tracer,
        };
        let first_term = node.term();
        let this = Self {
            node,
            inputs,
            events,
            topology,
            peers: None,
            barriers: HashMap::new(),
            barriers_new: Vec::new(),
            last_barrier: 0,
            changes: HashMap::new(),
            ended: None,
            sessions: HashMap::new(),
            replies: HashMap::new(),
            answers: HashMap::new(),
            handle: handle.clone(),
            started: now,
            first_term,
            last_tick: now,
        };
        (this, handle)
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            mono_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Run until told to stop. Must be called on a thread of its own, inside a runtime's context.
    ///
    /// # Errors
    /// When the replica cannot go on, or this master is no member any more.
    pub fn run(
        mut self,
        runtime: &tokio::runtime::Handle,
        peers: Arc<Peers>,
    ) -> Result<(), LoopError> {
        self.peers = Some(peers);
        // For what is spawned on the way; the loop itself waits for nothing of the runtime.
        let _context = runtime.enter();
        let pause = Pause::new();
        let writer = LogWriter::start(self.node.syncer(), self.handle.metrics.clone()).map_err(FatalError::from)?;
        self.publish(true);
        let mut more = true;
        loop {
            let first = match more {
                true => self.inputs.try_recv().ok(),
                false => {
                    let until = self.last_tick + TICK;
                    pause.wait(self.next(&writer), until).flatten()
                }
            };
            let began = Instant::now();
            if let Some(job) = writer.take().map_err(FatalError::from)? {
                self.node.on_written(job);
            }
            let mut stop = false;
            if let Some(input) = first {
                stop |= self.take(input);
                for _ in 1..INPUTS_PER_ROUND_MAX {
                    match self.inputs.try_recv() {
                        Ok(input) => stop |= self.take(input),
                        Err(_) => break,
                    }
                }
            }
            if self.last_tick.elapsed() >= TICK {
                self.last_tick = Instant::now();
                self.node.tick();
                let now = self.now();
                self.hear();
                self.node.input(|core| core.on_tick(now));
            }
            self.begin_barriers();
            let settled = self.settle(&writer).map_err(|error| match error {
                FatalError::Disk(error) => FatalError::from(writer.failure().unwrap_or(error)),
                error => error,
            })?;
            more = settled.more;
            self.perform(settled);
            if let Some(tracer) = &self.handle.tracer {
                tracer.put_all(self.node.take_spans());
            }
            for us in self.node.take_rounds() {
                self.handle.metrics.allocations.took(Duration::from_micros(us));
            }
            self.handle.metrics.rounds.took(began.elapsed());
            if let Some(error) = self.ended.take() {
                return Err(error);
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// Waits for an input or the disk.
    async fn next(&mut self, writer: &LogWriter) -> Option<Input> {
        tokio::select! {
            biased;
            () = writer.done() => None,
            // The loop holds a handle itself, so that the queue never closes.
            input = self.inputs.recv() => input,
        }
    }

    /// One round among the masters for all callers that came since the last one.
    fn begin_barriers(&mut self) {
        if self.barriers_new.is_empty() {
            return;
        }
        self.last_barrier += 1;
        let waiting = std::mem::take(&mut self.barriers_new);
        if self.node.core().is_leader() && self.node.read_index(self.last_barrier) {
            self.barriers.insert(self.last_barrier, waiting);
        } else {
            answer_all(waiting, Err(NotLeading));
        }
    }

    /// Tells everybody who leads and who the members are, when that changed.
    fn publish(&mut self, members_changed: bool) {
        let before = self.topology.borrow().clone();
        let mut after = Topology {
            leader: self.node.leader(),
            term: self.node.term(),
            leads: self.node.core().is_leader(),
            ..before.clone()
        };
        if members_changed {
            after.set_membership(self.node.membership().clone());
        }
        if after == before {
            return;
        }
        self.handle.metrics.terms.add(after.term.saturating_sub(before.term.max(self.first_term)));
        self.handle.metrics.leaderships.add(u64::from(after.leads && !before.leads));
        if members_changed && let Some(peers) = &self.peers {
            peers.follow(&self.handle, &after);
        }
        let moved = after.leads && after.peer_addresses() != before.peer_addresses();
        self.topology.send_replace(after);
        if moved {
            self.tell_masters();
        }
    }

    /// Agents are told where the masters are now: they may soon need another one.
    fn tell_masters(&mut self) {
        let addresses = self.topology.borrow().peer_addresses();
        let message = v1::master_message::Message::Masters(v1::Masters { addresses });
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.send_agent(session, v1::MasterMessage { message: Some(message.clone()) });
        }
    }

    fn settle(&mut self, writer: &LogWriter) -> Result<Settled, FatalError> {
        let now = self.now();
        let mut out = Sending {
            peers: self.peers.as_deref(),
            writer,
            lost: BTreeSet::new(),
        };
        let settled = self.node.settle(now, &mut out)?;
        for node in out.lost {
            self.node.report_unreachable(node);
        }
        Ok(settled)
    }

    fn send_snapshots(&mut self, snapshots: Vec<SnapshotToSend>) {
        let Some(peers) = &self.peers else { return };
        for snapshot in snapshots {
            let node = snapshot.peer;
            if !peers.send_snapshot(&self.handle, snapshot) {
                self.node.report_snapshot(node, false);
            }
        }
    }

    fn step(&mut self, from: u64, messages: &[Vec<u8>]) {
        for message in messages {
            match self.node.step(message) {
                Ok(()) => {}
                Err(error @ StepError::LostLog { .. }) => {
                    self.ended = Some(LoopError::LostLog(error));
                }
                Err(error) => tracing::debug!(from, %error, "a message of a master was refused"),
            }
        }
    }

    fn transfer(&mut self, node: Option<u64>) -> Result<u64, TransferRefused> {
        let node = match node.or_else(|| self.node.best_successor()) {
            Some(node) => node,
            None => return Err(TransferRefused::Nobody),
        };
        self.node.transfer_leadership(node)?;
        Ok(node)
    }

    /// Tell the core of the beats that were noted meanwhile, each with its own time.
    fn hear(&mut self) {
        let beats = self.handle.beats.take(Instant::now());
        let at_ms = |at: Instant| at.saturating_duration_since(self.started).as_millis();
        let beats: Vec<(u64, u64)> = beats
            .into_iter()
            .map(|(session, at)| (session, u64::try_from(at_ms(at)).unwrap_or(u64::MAX)))
            .collect();
        let now = self.now();
        self.node.input(|core| {
            core.on_beats(&beats, now);
            Vec::new()
        });
    }

    fn request(&mut self, asker: Asker, request: Request, reply: ReplyTo, now: Now) {
        let ticket = self.handle.next_ticket();
        self.replies.insert(ticket, reply);
        let Asker { principal, known } = asker;
        self.node.input(|core| match known {
            Some(known) => core.on_request_once(ticket, &principal, request, known, now),
            None => core.on_request(ticket, &principal, request, now),
        });
    }

    /// Takes one input; says whether it was the last.
    fn take(&mut self, input: Input) -> bool {
        let now = self.now();
        self.handle.metrics.inputs.one();
        match input {
            Input::SessionOpen {
                session,
                register,
                sender,
            } => {
                self.sessions.insert(session, sender);
                self.handle.beats.open(session);
                self.node
                    .input(|core| core.on_session_open(session, register, now));
            }
            Input::AgentMessage { session, message } => {
                if self.sessions.contains_key(&session) {
                    self.node
                        .input(|core| core.on_agent_message(session, message, now));
                }
            }
            Input::SessionClosed { session } => {
                self.sessions.remove(&session);
                self.handle.beats.close(session);
                self.node.input(|core| core.on_session_closed(session, now));
            }
            Input::Request { asker, request, reply } => self.request(asker, request, reply, now),
            Input::Requests(requests) => {
                for (asker, request, reply) in requests {
                    self.request(asker, request, reply, now);
                }
            }
            Input::Http {
                principal,
                framework,
                request,
                answer,
                ticket,
            } => {
                self.answers.insert(ticket, answer);
                self.node.input_with_rows(|core, rows| {
                    core.on_http(ticket, &principal, framework, request, rows, now)
                });
            }
            Input::HttpGone { ticket } => {
                self.answers.remove(&ticket);
                self.node.input(|core| {
                    core.on_http_gone(ticket, now);
                    Vec::new()
                });
            }
            Input::Query(query) => self.node.query(query),
            Input::Raft { from, messages } => self.step(from, &messages),
            Input::Unreachable { node } => self.node.report_unreachable(node),
            Input::Gone { node } => self.node.report_gone(node),
            Input::ToldRemoved { by } => self.node.on_told_removed(by),
            Input::Snapshot(reply) => {
                let components = self.node.core().components().into_iter();
                let components = components.map(|view| view.digest).collect();
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.node.snapshot().map(|source| (source, components)));
            }
            Input::SnapshotSent { node, delivered } => {
                self.handle.metrics.snapshots_sent.add(u64::from(delivered));
                self.node.report_snapshot(node, delivered);
            }
            Input::BeginInstall { message, reply } => {
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.node.begin_install(&message));
            }
            Input::StepSnapshot { message, staged, reply } => {
                // As above.
                let taken = self.node.step_snapshot(&message, staged);
                self.handle.metrics.snapshots_taken.add(u64::from(taken.is_ok()));
                let _ = reply.send(taken);
            }
            Input::Change { change, reply } => match self.node.propose_change(&change) {
                Ok(id) => {
                    self.changes.insert(id, reply);
                }
                Err(error) => {
                    // The caller may have gone away, which is its own affair.
                    let _ = reply.send(Err(error.into()));
                }
            },
            Input::Barrier(reply) => self.barriers_new.push(reply),
            Input::Transfer { node, reply } => {
                // The caller may have gone away, which is its own affair.
                let _ = reply.send(self.transfer(node));
            }
            Input::Stop => return true,
        }
        false
    }

    fn perform(&mut self, settled: Settled) {
        self.publish(settled.members_changed);
        self.send_snapshots(settled.snapshots);
        for (id, done) in settled.changes {
            if let Some(sender) = self.changes.remove(&id) {
                // The caller may have gone away.
                let _ = sender.send(if done { Ok(()) } else { Err(ChangeRefused::Lost) });
            }
        }
        for context in settled.reads {
            answer_all(self.barriers.remove(&context).unwrap_or_default(), Ok(()));
        }
        for context in settled.reads_dropped {
            let waiting = self.barriers.remove(&context).unwrap_or_default();
            answer_all(waiting, Err(NotLeading));
        }
        if let Some(last) = settled.events {
            self.events.send_replace(last);
        }
        if settled.stepped_down {
            // Dropping them tells agents to look for the leader, and callers that there is none here.
            self.sessions.clear();
            self.handle.beats.clear();
            self.replies.clear();
            self.answers.clear();
            for (_, sender) in self.changes.drain() {
                // The caller may have gone away.
                let _ = sender.send(Err(ChangeRefused::Lost));
            }
        }
        let mut outputs = settled.outputs;
        // What goes to one agent stands together, in its order: it then leaves in one packet.
        outputs.sort_by_key(|output| match output {
            Output::SendAgent { session, .. } | Output::CloseSession { session, .. } => *session,
            _ => 0,
        });
        for output in outputs {
            match output {
                Output::SendAgent { session, message } => self.send_agent(session, message),
                Output::CloseSession { session, reason } => {
                    tracing::info!(session, reason, "closing an agent's session");
                    self.close(session);
                }
                Output::Answer { ticket, answer } => {
                    if let Some(sender) = self.answers.remove(&ticket) {
                        // The caller may have hung up.
                        let _ = sender.send(answer);
                    }
                }
                Output::Reply { ticket, result } => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        reply.send(result);
                    }
                }
                Output::Report { text } => tracing::warn!("{text}"),
                // Done by the node.
                Output::Propose(_) | Output::ReadIndex { .. } => {}
            }
        }
    }

    fn send_agent(&mut self, session: u64, mut message: v1::MasterMessage) {
        if let Some(v1::master_message::Message::Registered(registered)) = &mut message.message {
            // The core does not know where masters are.
            registered.masters = self.topology.borrow().peer_addresses();
        }
        let Some(sender) = self.sessions.get(&session) else {
            return;
        };
        if sender.try_send(message).is_err() {
            tracing::warn!(session, "an agent does not read its session; closing it");
            self.close(session);
        }
    }

    fn close(&mut self, session: u64) {
        if self.sessions.remove(&session).is_some() {
            self.handle.beats.close(session);
            let now = self.now();
            self.node.input(|core| core.on_session_closed(session, now));
        }
    }
}

/// Where things go while the node settles.
struct Sending<'a> {
    peers: Option<&'a Peers>,
    writer: &'a LogWriter,
    /// Nodes to which something could not be sent.
    lost: BTreeSet<u64>,
}

impl Outlet for Sending<'_> {
    fn send(&mut self, node: u64, message: Vec<u8>) {
        if self.peers.is_some_and(|peers| !peers.send(node, message)) {
            self.lost.insert(node);
        }
    }

    fn write(&mut self, job: WriteJob) {
        self.writer.ask(job);
    }
}

fn answer_all(waiting: Vec<BarrierSender>, answer: Result<(), NotLeading>) {
    for sender in waiting {
        // The caller may have gone away.
        let _ = sender.send(answer);
    }
}
