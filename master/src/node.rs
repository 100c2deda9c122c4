//! One master's synchronous node: replica and core glued together.
//!
//! Owns: the order in which inputs become commands, commands become entries, and applied entries become
//! outputs. Invariants: effects are performed only for entries that are applied, which the replica
//! reports only once they are durable; every proposal's tickets are answered, also when it is lost.
//! While the disk writes, commands are collected for the next entry: they would wait for it anyway.
//! This file must never block, spawn, or read a clock: the loop around it and the simulator run the
//! same code, and have done elsewhere what is to be made durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_master_core as core;
use tessera_master_core::{Core, Effect, Now, Output};
use tessera_replica::{
    Applied, ChangeError, Disk, DiskError, DiskSync, EntryId, FatalError, Identity, Machine, MachineError,
    MemberChange, Membership, OpenError, Outlet, Replica, ReplicaConfig, RoleChange, RowChange,
    RowReader, SnapshotSource, SnapshotToSend, Staged, Staging, StepError, WriteJob,
};
use tessera_wire::v1;

/// Bytes of commands packed into one entry. Half of what the replica accepts: one more command of the
/// largest kind always fits.
const ENTRY_BYTES_TARGET: usize = 4 << 20;

/// Entries of commands that are not applied yet beyond which commands wait for the next one. An entry has its
/// price on every master, whatever it holds; masters that have too much to do would otherwise make many small
/// ones of it. With a few under way, commands wait for a small part of the time that an entry takes.
const ENTRIES_OPEN_MAX: usize = 4;

/// Rounds of propose and apply in one [`Node::settle`]. Effects of a command may propose another, a few
/// deep; a longer chain goes on with the next input, so that ticks are never kept waiting.
const SETTLE_ROUNDS_MAX: usize = 64;

/// Marks the contexts of reads of the shell's own; those of the core are its tickets, which count from one.
const SHELLS_READ: u64 = 1 << 63;

const fn is_shells(context: u64) -> bool {
    context & SHELLS_READ != 0
}

/// Measures what the node does, for whoever has a clock: the node has none.
pub trait Meter: Send + Sync {
    /// An entry was proposed here.
    fn proposed(&self, id: EntryId);
    /// An entry is applied by calling this once.
    fn applying(&self, apply: &mut dyn FnMut());
    /// An entry was applied, and wrote so many events.
    fn applied(&self, id: EntryId, events: u64);
    /// An entry that was proposed here will not be applied.
    fn lost(&self, id: EntryId);
}

/// The core as the replica's machine.
struct CoreMachine {
    core: Core,
    config: core::Config,
    meter: Option<Arc<dyn Meter>>,
}

/// The replica's rows as the core reads them.
pub struct RowsOf<'a>(pub &'a dyn RowReader);

impl core::Rows for RowsOf<'_> {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, core::RowsError> {
        self.0
            .get(table, key)
            .map_err(|error| core::RowsError(error.to_string()))
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, core::RowsError> {
        self.0
            .scan(table, prefix, after, limit)
            .map_err(|error| core::RowsError(error.to_string()))
    }
}

/// A change of the core's as the replica writes it.
pub(crate) fn row_change(change: core::RowChange) -> RowChange {
    match change {
        core::RowChange::Put { table, key, value } => RowChange::Put { table, key, value },
        core::RowChange::Delete { table, key } => RowChange::Delete { table, key },
        core::RowChange::DeletePrefix { table, prefix } => {
            RowChange::DeletePrefix { table, prefix }
        }
    }
}

impl Machine for CoreMachine {
    type Effect = Effect;

    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        rows: &dyn RowReader,
    ) -> Result<Applied<Effect>, MachineError> {
        let rows = RowsOf(rows);
        let applied = match &self.meter {
            None => self.core.apply(id.index, id.term, entry, &rows),
            Some(meter) => {
                let mut done = None;
                meter.applying(&mut || done = Some(self.core.apply(id.index, id.term, entry, &rows)));
                // A meter that does not call it breaks its contract.
                done.ok_or_else(|| MachineError::new("the entry was measured and not applied"))?
            }
        };
        let applied = applied.map_err(|error| MachineError::new(error.to_string()))?;
        if let Some(meter) = &self.meter {
            let written = |change: &&core::RowChange| {
                matches!(change, core::RowChange::Put { table: core::rows::EVENTS, .. })
            };
            meter.applied(id, applied.rows.iter().filter(written).count() as u64);
        }
        Ok(Applied {
            rows: applied.rows.into_iter().map(row_change).collect(),
            effects: applied.effects,
        })
    }

    fn restore(&mut self, _id: EntryId, rows: &dyn RowReader) -> Result<(), MachineError> {
        self.core = Core::load(&RowsOf(rows), self.config.clone())
            .map_err(|error| MachineError::new(error.to_string()))?;
        Ok(())
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeOpenError {
    /// The replica refused its disk.
    #[error(transparent)]
    Replica(#[from] OpenError),
    /// The rows make no state.
    #[error("building the state from its rows")]
    Load(#[from] core::LoadError),
}

/// A master's replica and core.
pub struct Node<D: Disk> {
    replica: Replica<D>,
    machine: CoreMachine,
    /// Tickets of the commands in entries of ours that are not applied yet; bounded by what the
    /// replica lets be uncommitted.
    tickets: BTreeMap<EntryId, Vec<u64>>,
    pending: Vec<Output>,
    /// Commands for the next entry, and their bytes: at most [`ENTRY_BYTES_TARGET`] and one command.
    commands: Vec<v1::Command>,
    commands_bytes: usize,
    identity: Identity,
    led_term: Option<u64>,
}

/// What came of settling.
#[derive(Debug, Default)]
pub struct Settled {
    /// What the shell has to do, in order. Never `Propose` or `ReadIndex`: those were done here.
    pub outputs: Vec<Output>,
    /// The newest event written, if any were: watchers wake up.
    pub events: Option<core::EventId>,
    /// The shell's own reads that may be served now, and those that never will.
    pub reads: Vec<u64>,
    /// See `reads`.
    pub reads_dropped: Vec<u64>,
    /// The members are not what they were.
    pub members_changed: bool,
    /// Snapshots to other masters.
    pub snapshots: Vec<SnapshotToSend>,
    /// Changes of the members that were asked for here: whether each is applied, or lost.
    pub changes: Vec<(EntryId, bool)>,
    /// Leadership was lost: sessions and callers that the core forgot are to be let go.
    pub stepped_down: bool,
    /// More is ready: settle again after looking at the inputs.
    pub more: bool,
}

impl<D: Disk> Node<D> {
    /// Open a bootstrapped disk and build the state from its rows.
    ///
    /// # Errors
    /// When the disk or its rows are refused.
    pub fn open(
        config: core::Config,
        replica: ReplicaConfig,
        disk: D,
    ) -> Result<Self, NodeOpenError> {
        let identity = replica.identity;
        let replica = Replica::open(replica, disk)?;
        let core = Core::load(&RowsOf(replica.rows()), config.clone())?;
        Ok(Self {
            replica,
            machine: CoreMachine { core, config, meter: None },
            tickets: BTreeMap::new(),
            pending: Vec::new(),
            commands: Vec::new(),
            commands_bytes: 0,
            identity,
            led_term: None,
        })
    }

    /// Spans of traces since the last call, and how many were lost.
    pub fn take_spans(&mut self) -> (Vec<core::TraceSpan>, u64) {
        self.machine.core.take_spans()
    }

    /// How long rounds of the allocator took since the last call, in microseconds.
    pub fn take_rounds(&mut self) -> Vec<u64> {
        self.machine.core.take_rounds()
    }

    /// Have what this does measured.
    pub fn measure(&mut self, meter: Arc<dyn Meter>) {
        self.machine.meter = Some(meter);
    }

    /// The state, for queries.
    #[must_use]
    pub const fn core(&self) -> &Core {
        &self.machine.core
    }

    /// Ask the state, its rows and the replica. The core is borrowed mutably because some questions
    /// take notes in leader-only state; none puts anything out.
    pub fn query(
        &mut self,
        question: impl FnOnce(&mut Core, &dyn core::Rows, &tessera_replica::Status),
    ) {
        let status = self.replica.status();
        question(
            &mut self.machine.core,
            &RowsOf(self.replica.rows()),
            &status,
        );
    }

    /// The rows, for queries that need values.
    #[must_use]
    pub fn rows(&self) -> RowsOf<'_> {
        RowsOf(self.replica.rows())
    }

    /// The replica's view of itself.
    #[must_use]
    pub fn status(&self) -> tessera_replica::Status {
        self.replica.status()
    }

    /// Give an input to the core. What it puts out waits for [`Node::settle`].
    pub fn input(&mut self, input: impl FnOnce(&mut Core) -> Vec<Output>) {
        let outputs = input(&mut self.machine.core);
        self.pending.extend(outputs);
    }

    /// Give an input that reads rows.
    pub fn input_with_rows(
        &mut self,
        input: impl FnOnce(&mut Core, &dyn core::Rows) -> Vec<Output>,
    ) {
        let outputs = input(&mut self.machine.core, &RowsOf(self.replica.rows()));
        self.pending.extend(outputs);
    }

    /// One unit of the replica's time.
    pub fn tick(&mut self) {
        self.replica.tick();
    }

    /// Take a message of another master. One that is malformed or foreign changes nothing.
    ///
    /// # Errors
    /// When the replica refuses it.
    pub fn step(&mut self, message: &[u8]) -> Result<(), tessera_replica::StepError> {
        self.replica.step(message)
    }

    /// Begin a read of the shell's own; its context comes back in [`Settled::reads`]. False when this node
    /// does not lead.
    pub fn read_index(&mut self, context: u64) -> bool {
        self.replica.read_index(context | SHELLS_READ).is_ok()
    }

    /// Whose disk this is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The leader that this node knows of.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.replica.leader()
    }

    /// The newest term that this node knows of.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.replica.term()
    }

    /// Who the members are.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.replica.membership()
    }

    /// Change the members. The id comes back in [`Settled::changes`].
    ///
    /// # Errors
    /// When this node does not lead, or the change is not sensible now.
    pub fn propose_change(&mut self, change: &MemberChange) -> Result<EntryId, ChangeError> {
        self.replica.propose_change(change)
    }

    /// The voter that is best suited to lead next.
    #[must_use]
    pub fn best_successor(&self) -> Option<u64> {
        self.replica.best_successor()
    }

    /// How sending a snapshot ended.
    pub fn report_snapshot(&mut self, node: u64, delivered: bool) {
        self.replica.report_snapshot(node, delivered);
    }

    /// Where the rows of a snapshot that another master offers are to be staged.
    ///
    /// # Errors
    /// When it is not wanted.
    pub fn begin_install(&mut self, message: &[u8]) -> Result<Staging, StepError> {
        self.replica.begin_install(message)
    }

    /// The rows of a snapshot are staged.
    ///
    /// # Errors
    /// When it is not wanted any more.
    pub fn step_snapshot(&mut self, message: &[u8], staged: Staged) -> Result<(), StepError> {
        self.replica.step_snapshot(message, staged)
    }

    /// The whole state as it is applied, to be read on another thread.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn snapshot(&self) -> Result<SnapshotSource, DiskError> {
        self.replica.snapshot()
    }

    /// What was sent to a node is lost.
    pub fn report_unreachable(&mut self, node: u64) {
        self.replica.report_unreachable(node);
    }

    /// The process of another node is known to have ended.
    pub fn report_gone(&mut self, node: u64) {
        self.replica.report_gone(node);
    }

    /// Another node says that this one was removed; once most of the others do, [`Node::settle`] ends with it.
    pub fn on_told_removed(&mut self, by: u64) {
        self.replica.on_told_removed(by);
    }

    /// Hand leadership to another node.
    ///
    /// # Errors
    /// When this node does not lead, or the other one cannot.
    pub fn transfer_leadership(&mut self, node: u64) -> Result<(), tessera_replica::TransferError> {
        self.replica.transfer_leadership(node)
    }

    /// The hold on the disk of whoever makes durable what was written.
    #[must_use]
    pub fn syncer(&self) -> Box<dyn DiskSync> {
        self.replica.syncer()
    }

    /// What is to be made durable, if anything is.
    #[must_use]
    pub fn unwritten(&self) -> Option<WriteJob> {
        self.replica.unwritten()
    }

    /// A job is done: settle again.
    pub fn on_written(&mut self, job: WriteJob) {
        self.replica.on_written(job);
    }

    /// Propose, persist, apply and perform until nothing is left to do but to wait for the disk, or the
    /// round bound is met. Gives every message to `out` as soon as it may leave, so that the other masters
    /// write while this one does, and what is to be made durable as soon as it is written.
    ///
    /// # Errors
    /// When the replica cannot go on; the process must end.
    pub fn settle(&mut self, now: Now, out: &mut dyn Outlet) -> Result<Settled, FatalError> {
        let mut settled = Settled::default();
        for _ in 0..SETTLE_ROUNDS_MAX {
            let proposed = self.dispatch(&mut settled, now);
            let progress = self.replica.process_sending(&mut self.machine, out)?;
            let quiet = !proposed
                && !progress.more
                && progress.applied.is_empty()
                && progress.role_changes.is_empty()
                && progress.reads.is_empty()
                && progress.reads_dropped.is_empty()
                && progress.lost.is_empty()
                && progress.changed.is_empty()
                && progress.membership.is_none()
                && progress.unknown.is_empty();
            settled.snapshots.extend(progress.snapshots);
            settled.members_changed |= progress.membership.is_some();
            settled.changes.extend(progress.changed.into_iter().map(|id| (id, true)));
            if quiet {
                settled.more = !self.pending.is_empty();
                return Ok(settled);
            }
            for change in progress.role_changes {
                settled.stepped_down |= matches!(change, RoleChange::SteppedDown { .. });
                self.on_role_change(change, now);
            }
            for (id, effects) in progress.applied {
                self.tickets.remove(&id);
                for effect in &effects {
                    if let Effect::Events { last } = effect {
                        settled.events = Some(*last);
                    }
                }
                // A new leader has walked the state, which holds what entries of older terms did.
                if self.led_term == Some(id.term) {
                    let outputs = self.machine.core.perform(effects, now);
                    self.pending.extend(outputs);
                }
            }
            for id in progress.lost.into_iter().chain(progress.unknown) {
                settled.changes.push((id, false));
                if let Some(meter) = &self.machine.meter {
                    meter.lost(id);
                }
                if let Some(tickets) = self.tickets.remove(&id) {
                    self.input(|core| core.on_propose_failed(&tickets, now));
                }
            }
            for ticket in progress.reads {
                if is_shells(ticket) {
                    settled.reads.push(ticket & !SHELLS_READ);
                } else {
                    self.input(|core| core.on_read_ready(ticket, now));
                }
            }
            let (shells, cores): (Vec<u64>, Vec<u64>) =
                progress.reads_dropped.into_iter().partition(|ticket| is_shells(*ticket));
            settled.reads_dropped.extend(shells.iter().map(|context| context & !SHELLS_READ));
            if !cores.is_empty() {
                self.input(|core| core.on_propose_failed(&cores, now));
            }
        }
        settled.more = true;
        Ok(settled)
    }

    fn on_role_change(&mut self, change: RoleChange, now: Now) {
        match change {
            RoleChange::BecameLeader { term } => {
                self.led_term = Some(term);
                let cluster = self.identity.cluster.to_string();
                self.input(|core| core.lead(term, &cluster, now));
            }
            RoleChange::SteppedDown { .. } => {
                self.led_term = None;
                self.pending.clear();
                self.commands.clear();
                self.commands_bytes = 0;
                self.tickets.clear();
                self.machine.core.follow();
            }
        }
    }

    /// Hands pending outputs on: commands and reads to the replica, the rest to the shell. Says
    /// whether the replica got anything.
    fn dispatch(&mut self, settled: &mut Settled, now: Now) -> bool {
        let mut any = false;
        for output in std::mem::take(&mut self.pending) {
            match output {
                Output::Propose(command) => {
                    self.commands_bytes += prost::Message::encoded_len(&command);
                    self.commands.push(command);
                    if self.commands_bytes >= ENTRY_BYTES_TARGET {
                        any |= self.propose(now);
                    }
                }
                Output::ReadIndex { ticket } => {
                    any = true;
                    if self.replica.read_index(ticket).is_err() {
                        self.input(|core| core.on_propose_failed(&[ticket], now));
                    }
                }
                Output::SendAgent { session, mut message } => {
                    let rows = RowsOf(self.replica.rows());
                    let output = match self.machine.core.complete(&mut message, &rows) {
                        Ok(()) => Output::SendAgent { session, message },
                        // The instance is built anew in another session.
                        Err(error) => Output::CloseSession { session, reason: error.to_string() },
                    };
                    settled.outputs.push(output);
                }
                Output::CloseSession { .. }
                | Output::Answer { .. }
                | Output::Reply { .. }
                | Output::Report { .. } => settled.outputs.push(output),
            }
        }
        if self.replica.unwritten().is_none() && self.tickets.len() < ENTRIES_OPEN_MAX {
            any |= self.propose(now);
        }
        any
    }

    /// Proposes the commands that were collected; says whether there were any.
    fn propose(&mut self, now: Now) -> bool {
        if self.commands.is_empty() {
            return false;
        }
        let commands = std::mem::take(&mut self.commands);
        self.commands_bytes = 0;
        let tickets: Vec<u64> = commands.iter().map(|command| command.ticket).collect();
        let entry = self.machine.core.encode_batch(commands, now);
        match self.replica.propose(entry) {
            Ok(id) => {
                if let Some(meter) = &self.machine.meter {
                    meter.proposed(id);
                }
                self.tickets.insert(id, tickets);
            }
            Err(_) => self.input(|core| core.on_propose_failed(&tickets, now)),
        }
        true
    }
}
