//! The master's core: replicated state, commands, and what only the leader knows. Synchronous and
//! deterministic.
//!
//! Map: `apply` runs one log entry, `commands` has one file per command, `state` the tables, `codec`
//! their rows, `ledger` what tasks and executors are charged, `leader` sessions, offers, batches and
//! turns, `allocator` who is offered what, `lifecycle` what a framework has run and how it failed,
//! `generation` the state under an upgrade, `restore` a state from a saved snapshot, `uses` who uses which
//! component, `why` why somebody gets nothing, `clock` the time by which commands go, `query` the views, `check` the whole-state self-check, `auth` the one `authorize`.
//!
//! Invariants: replicated state changes only in [`Core::apply`]; leader-only state is dropped by
//! [`Core::follow`]; time, ids of clusters and rows are arguments; input from users, guests and peers is
//! refused with field and rule, and never panics. Must never know tokio, raft, rocksdb, wasmtime, a
//! clock, randomness or a log.

mod allocator;
mod api;
mod apply;
mod auth;
mod check;
mod clock;
mod codec;
mod commands;
mod effect;
mod generation;
mod leader;
mod listing;
mod lifecycle;
mod ledger;
pub mod limits;
mod numbered;
mod numbers;
mod open;
mod operations;
mod query;
mod rehearsal;
mod repeats;
mod restore;
mod role_view;
mod roles;
pub mod rows;
mod state;
mod status_steps;
mod tally;
pub mod testing;
mod trace;
mod upkeep;
mod uses;
mod why;

pub use api::{
    AgentView, AheadState, Applied, ComponentView, Config, Counts, EventId, EventRecord, EventsPage, ExecutorView,
    Expected, FetchRefusal, Fetched, FrameworkView, HttpFailure, LimitSource, LimitView, LookupError, Now, OfferView,
    CLUSTER_VERSION, Output, Reply, Request, RequestError, StandbyView, Stopwatch, TaskFilter, TaskView, Waiting, World,
};
pub use apply::ApplyError;
pub use auth::{Action, Forbidden, Object, Principal, PrincipalKind, authorize};
pub use codec::LoadError;
pub use commands::{TAG_BYTES, value_tag};
pub use effect::{CommandResult, Effect};
pub use lifecycle::{
    Failures, FrameworkVersion, Phase, Quarantine, StateVersions, Upgrade, VersionOrigin,
    VersionOutcome,
};
pub use listing::{Budget, Piece, TaskLine, TaskPick, TaskPlace};
pub use numbered::Numbered;
pub use numbers::Numbers;
pub use operations::{OperationKind, OperationPick, OperationPlace, OperationView};
pub use rehearsal::Rehearsal;
pub use repeats::{Known, Once};
pub use restore::restored;
pub use role_view::RoleView;
pub use roles::RoleChange;
pub use status_steps::{STEPS_MAX, StatusStep};
pub use rows::{RowChange, Rows, RowsError};
pub use tally::{Gauges, OfferEnd, Tally, TurnTally};
pub use trace::{TraceSpan, Tracing};
pub use upkeep::{Drain, Keep, Maintenance, UnreachablePolicy};
pub use uses::{ComponentUse, UsedAs};
pub use why::Why;

use clock::Heard;
use leader::{Desk, Leader};
use prost::Message;
use state::State;
use tessera_types::{AgentId, Epoch, FrameworkId, HttpRequest};
use tessera_wire::v1;

/// A build that does not understand the state must not go on with it.
fn check_version(state: &State, config: &Config) -> Result<(), LoadError> {
    let (found, understands) = (state.meta.cluster_version, config.understands);
    if found > understands {
        return Err(LoadError::NewerCluster { found, understands });
    }
    Ok(())
}

/// One master.
#[derive(Debug)]
pub struct Core {
    state: State,
    config: Config,
    leader: Option<Box<Leader>>,
    /// What was counted when it led before.
    tally: Tally,
    heard: Heard,
    /// Not before the last entry that changed which components there are.
    components_index: u64,
    last_mono_ms: u64,
    last_wall_ms: u64,
}

impl Core {
    /// Rebuild the memory from rows, at boot and after a snapshot. It does not lead.
    ///
    /// # Errors
    /// When rows cannot be read, are malformed, or of a newer version.
    pub fn load(rows: &dyn Rows, config: Config) -> Result<Self, LoadError> {
        let state = codec::load(rows)?;
        check_version(&state, &config)?;
        let components_index = state.meta.index;
        let heard = Heard::default();
        Ok(Self { state, config, leader: None, tally: Tally::default(), heard, components_index, last_mono_ms: 0, last_wall_ms: 0 })
    }

    /// Apply one committed entry: the rows to write, and the effects for the leader.
    ///
    /// # Errors
    /// Only when going on would make this replica differ from others; it has to stop.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        entry: &[u8],
        rows: &dyn Rows,
    ) -> Result<Applied, ApplyError> {
        let applied = apply::apply(&mut self.state, index, term, entry, rows)?;
        check_version(&self.state, &self.config)?;
        if applied.rows.iter().any(|change| change.table() == rows::COMPONENTS) {
            self.components_index = index;
        }
        // Before the first input it is not known when this is.
        if self.last_mono_ms > 0 {
            self.heard.note(self.state.meta.time_ms, self.last_mono_ms);
        }
        Ok(applied)
    }

    /// The cluster version: the newest whose commands all masters understand.
    #[must_use]
    pub fn cluster_version(&self) -> u32 {
        self.state.meta.cluster_version
    }

    /// An entry from which on a state names all components that this one does: the last that changed which there are,
    /// or, if that was before this was loaded, a later one.
    #[must_use]
    pub const fn components_index(&self) -> u64 {
        self.components_index
    }

    /// One log entry of these commands, stamped with the command time.
    #[must_use]
    pub fn encode_batch(&self, commands: Vec<v1::Command>, now: Now) -> Vec<u8> {
        let wall_ms = self.leader.as_ref().map_or(now.wall_ms, |leader| leader.wall_ms(now));
        let time_ms = self.state.meta.time_ms.max(wall_ms);
        v1::CommandBatch { version: apply::BATCH_VERSION, time_ms, commands }.encode_to_vec()
    }

    /// Perform effects of applied entries, in order. Only the leader does.
    #[must_use]
    pub fn perform(&mut self, effects: Vec<Effect>, now: Now) -> Vec<Output> {
        self.with(now, |desk| {
            for effect in effects {
                desk.perform(effect);
            }
        })
    }

    /// Become the leader: walk the state and do what is undone. `fresh_cluster_id` is used if the
    /// cluster has none yet.
    #[must_use]
    pub fn lead(&mut self, term: u64, fresh_cluster_id: &str, now: Now) -> Vec<Output> {
        let expected_ms = self.heard.expected_ms(now.mono_ms);
        let tally = self.leader.take().map_or_else(|| std::mem::take(&mut self.tally), |leader| leader.tally);
        let mut leader = Leader::new(term, &self.state, expected_ms, now);
        leader.tally = tally;
        self.leader = Some(Box::new(leader));
        let cluster = fresh_cluster_id.to_owned();
        self.with(now, |desk| desk.create_cluster(cluster))
    }

    /// Stop leading: everything that is not replicated is dropped, but for the time by which it went.
    pub fn follow(&mut self) {
        if let Some(time_ms) = self.time_ms() {
            self.heard = Heard::led(time_ms, self.last_mono_ms);
        }
        if let Some(leader) = self.leader.take() {
            self.tally = leader.tally;
        }
    }

    /// Spans of traces since the last call, and how many there was no room for.
    pub fn take_spans(&mut self) -> (Vec<TraceSpan>, u64) {
        self.leader.as_mut().map(|leader| leader.traces.take()).unwrap_or_default()
    }

    /// How long rounds of the allocator took since the last call, in microseconds.
    pub fn take_rounds(&mut self) -> Vec<u64> {
        self.leader.as_mut().map(|leader| std::mem::take(&mut leader.rounds_us)).unwrap_or_default()
    }

    /// The time by which commands went at the last input, in ms since 1970, if this one leads.
    #[must_use]
    pub fn time_ms(&self) -> Option<u64> {
        self.leader.as_ref().map(|leader| leader.wall_ms(self.last_now()))
    }

    /// The leader says by which time commands go now. Only for one that follows.
    pub fn told_time(&mut self, time_ms: u64) {
        if self.leader.is_none() && self.last_mono_ms > 0 {
            self.heard.told(time_ms, self.last_mono_ms);
        }
    }

    /// Whether it leads.
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        self.leader.is_some()
    }

    /// An agent opened a session; `session` is the shell's number for it and never used again.
    #[must_use]
    pub fn on_session_open(
        &mut self,
        session: u64,
        register: v1::Register,
        now: Now,
    ) -> Vec<Output> {
        if self.leader.is_none() {
            let reason = "this master does not lead".to_owned();
            return vec![Output::CloseSession { session, reason }];
        }
        self.with(now, |desk| desk.session_open(session, register))
    }

    /// A message of an agent.
    #[must_use]
    pub fn on_agent_message(
        &mut self,
        session: u64,
        message: v1::AgentMessage,
        now: Now,
    ) -> Vec<Output> {
        self.with(now, |desk| desk.agent_message(session, message))
    }

    /// A session ended.
    #[must_use]
    pub fn on_session_closed(&mut self, session: u64, now: Now) -> Vec<Output> {
        self.with(now, |desk| desk.session_closed(session))
    }

    /// A sign of life.
    pub fn on_beat(&mut self, session: u64, now: Now) {
        if let Some(mut desk) = self.desk(now) {
            desk.beat(session, now.mono_ms);
        }
    }

    /// Signs of life, each with the time at which it came.
    pub fn on_beats(&mut self, beats: &[(u64, u64)], now: Now) {
        if let Some(mut desk) = self.desk(now) {
            for (session, at_ms) in beats {
                desk.beat(*session, *at_ms);
            }
        }
    }

    /// A request of a user. Exactly one [`Output::Reply`] follows, unless this stops leading.
    #[must_use]
    pub fn on_request(
        &mut self,
        ticket: u64,
        principal: &Principal,
        request: Request,
        now: Now,
    ) -> Vec<Output> {
        if self.leader.is_none() {
            return vec![Output::Reply { ticket, result: Err(RequestError::NotLeader) }];
        }
        self.with(now, |desk| desk.request(ticket, principal, request, None))
    }

    /// A request that may come again: under the same key it is carried out once, and every time answered
    /// as the first time, by whichever master.
    #[must_use]
    pub fn on_request_once(
        &mut self,
        ticket: u64,
        principal: &Principal,
        request: Request,
        known: impl Into<Known>,
        now: Now,
    ) -> Vec<Output> {
        if self.leader.is_none() {
            return vec![Output::Reply { ticket, result: Err(RequestError::NotLeader) }];
        }
        self.with(now, |desk| desk.request(ticket, principal, request, Some(known.into())))
    }

    /// A request to a scheduler. Exactly one [`Output::Answer`] follows, unless the caller goes first or
    /// this stops leading.
    #[must_use]
    pub fn on_http(
        &mut self,
        ticket: u64,
        principal: &Principal,
        framework: FrameworkId,
        request: HttpRequest,
        rows: &dyn Rows,
        now: Now,
    ) -> Vec<Output> {
        if self.leader.is_none() {
            return vec![Output::Answer { ticket, answer: Err(leader::not_leader()) }];
        }
        self.with(now, |desk| desk.http(ticket, principal, framework, request, rows))
    }

    /// The caller of a request hung up; no answer follows.
    pub fn on_http_gone(&mut self, ticket: u64, now: Now) {
        if let Some(mut desk) = self.desk(now) {
            desk.http_gone(ticket);
        }
    }

    /// Answers an [`Output::ReadIndex`].
    #[must_use]
    pub fn on_read_ready(&mut self, ticket: u64, now: Now) -> Vec<Output> {
        self.with(now, |desk| desk.read_ready(ticket))
    }

    /// These commands will not commit under the entry that they were proposed in.
    #[must_use]
    pub fn on_propose_failed(&mut self, tickets: &[u64], now: Now) -> Vec<Output> {
        self.with(now, |desk| desk.propose_failed(tickets))
    }

    /// Time passed; to be called about ten times a second.
    #[must_use]
    pub fn on_tick(&mut self, now: Now) -> Vec<Output> {
        self.with(now, |desk| desk.tick())
    }

    /// An agent wants the state of a framework for a new instance: the number of its next turn. To be
    /// asked again before the last chunk is sent; if that number differs, the chunks do not belong
    /// together. Writes from outside that come meanwhile are in some pages and not in others, and the
    /// first batch brings them all.
    ///
    /// # Errors
    /// When the session is not the host's, or a turn is about to commit.
    pub fn state_fetch(
        &mut self,
        agent: AgentId,
        session: u64,
        framework: FrameworkId,
        epoch: Epoch,
    ) -> Result<Fetched, FetchRefusal> {
        let now = self.last_now();
        let mut desk = self.desk(now).ok_or(FetchRefusal::NoSession)?;
        desk.state_fetch(agent, session, framework, epoch)
    }

    /// To be called for every message that is about to leave: batches are given values that only rows have.
    ///
    /// # Errors
    /// When rows cannot be read; the message must not leave.
    pub fn complete(
        &mut self,
        message: &mut v1::MasterMessage,
        rows: &dyn Rows,
    ) -> Result<(), RowsError> {
        let Some(v1::master_message::Message::Batch(batch)) = &mut message.message else {
            return Ok(());
        };
        let now = self.last_now();
        match self.desk(now) {
            Some(mut desk) => desk.complete(batch, rows),
            None => Ok(()),
        }
    }

    fn last_now(&self) -> Now {
        Now { wall_ms: self.last_wall_ms, mono_ms: self.last_mono_ms }
    }

    fn desk(&mut self, now: Now) -> Option<Desk<'_>> {
        self.last_mono_ms = now.mono_ms;
        self.last_wall_ms = now.wall_ms;
        let leader = self.leader.as_deref_mut()?;
        Some(Desk { state: &self.state, config: &self.config, leader, now })
    }

    fn with(&mut self, now: Now, input: impl FnOnce(&mut Desk<'_>)) -> Vec<Output> {
        let Some(mut desk) = self.desk(now) else { return Vec::new() };
        input(&mut desk);
        desk.settle();
        desk.take()
    }
}
