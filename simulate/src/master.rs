//! The leading master: the real core over rows in memory, with entries that commit after a while.
//!
//! Invariants: commands become entries in the order in which they were proposed; what is written in the
//! cluster's own record of events is counted once. One master leads from the beginning to the end: what
//! several masters do among themselves is not a scheduler's concern. Must never decide anything: the core
//! does.

use crate::measure::Measure;
use crate::queue::{Event, Queue};
use crate::world::{COMMIT_US, NET_US, World};
use std::collections::BTreeMap;
use tessera_master_core::testing::MemRows;
use tessera_master_core::{
    Config, Core, EventId, EventRecord, Now, Output, Principal, Reply, Request, StateVersions,
    UnreachablePolicy, World as Made,
};
use tessera_types::{Digest, FrameworkId, HttpRequest};
use tessera_wire::v1;

/// The wall clock at virtual time zero: 2025-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_735_689_600_000;
/// The only term.
const TERM: u64 = 1;
/// Commands of one entry: fewer events than the core keeps for readers come of them.
const ENTRY_COMMANDS_MAX: usize = 64;
/// Events that are read at once.
const EVENTS_PAGE: usize = 1_000;
/// Times that a request which is answered 503 is sent.
const TRIES_MAX: u32 = 60;
/// Shortest time until it is sent again.
const AGAIN_US: u64 = 1_000_000;

/// The master.
pub(crate) struct Master {
    pub(crate) core: Core,
    pub(crate) rows: MemRows,
    index: u64,
    pending: Vec<v1::Command>,
    committing: bool,
    pub(crate) sessions: BTreeMap<u64, usize>,
    next_session: u64,
    events_seen: Option<EventId>,
    tickets: u64,
    /// Requests to the master that create the frameworks, and which of the plan it is.
    creating: BTreeMap<u64, usize>,
    /// The framework of each scheduler of the plan.
    pub(crate) frameworks: BTreeMap<FrameworkId, usize>,
    pub(crate) calls: BTreeMap<u64, Call>,
}

/// A request of the trace that has no answer yet.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) line: usize,
    n: u64,
    first_us: u64,
    tries: u32,
}

pub(crate) const fn now(now_us: u64) -> Now {
    Now { wall_ms: EPOCH_MS + now_us / 1_000, mono_ms: now_us / 1_000 }
}

impl Master {
    pub(crate) fn new() -> Result<Self, String> {
        let rows = MemRows::default();
        let core = Core::load(&rows, Config::default()).map_err(|error| error.to_string())?;
        Ok(Self {
            core,
            rows,
            index: 0,
            pending: Vec::new(),
            committing: false,
            sessions: BTreeMap::new(),
            next_session: 0,
            events_seen: None,
            tickets: 0,
            creating: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            calls: BTreeMap::new(),
        })
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// The framework of this scheduler, once it is created.
    pub(crate) fn framework(&self, index: usize) -> Option<FrameworkId> {
        self.frameworks.iter().find(|(_, of)| **of == index).map(|(id, _)| *id)
    }

    /// Do what outputs ask for; what concerns the world is handed back.
    fn handle(&mut self, queue: &mut Queue, now_us: u64, outputs: Vec<Output>) -> Vec<Output> {
        let mut rest = Vec::new();
        let mut reads = Vec::new();
        for output in outputs {
            match output {
                Output::Propose(command) => self.pending.push(command),
                Output::ReadIndex { ticket } => reads.push(ticket),
                Output::SendAgent { session, message } => {
                    if let Some(agent) = self.sessions.get(&session) {
                        let event = Event::ToAgent { agent: *agent, session, message };
                        queue.at(now_us + NET_US, event);
                    }
                }
                Output::CloseSession { session, .. } => {
                    if let Some(agent) = self.sessions.remove(&session) {
                        queue.at(now_us + NET_US, Event::Closed { agent, session });
                    }
                }
                other => rest.push(other),
            }
        }
        if !self.pending.is_empty() && !self.committing {
            self.committing = true;
            queue.at(now_us + COMMIT_US, Event::Commit);
        }
        for ticket in reads {
            let outputs = self.core.on_read_ready(ticket, now(now_us));
            rest.extend(self.handle(queue, now_us, outputs));
        }
        rest
    }

    /// Apply the commands that wait, and count what they wrote down.
    fn commit(&mut self, measure: &mut Measure, now_us: u64) -> Result<Vec<Output>, String> {
        self.committing = false;
        let mut pending = std::mem::take(&mut self.pending).into_iter().peekable();
        let mut outputs = Vec::new();
        while pending.peek().is_some() {
            let commands = pending.by_ref().take(ENTRY_COMMANDS_MAX).collect();
            self.index += 1;
            let entry = self.core.encode_batch(commands, now(now_us));
            let applied = self
                .core
                .apply(self.index, TERM, &entry, &self.rows)
                .map_err(|error| error.to_string())?;
            self.rows.write(applied.rows);
            self.count_events(measure, now_us)?;
            outputs.extend(self.core.perform(applied.effects, now(now_us)));
        }
        Ok(outputs)
    }

    fn count_events(&mut self, measure: &mut Measure, now_us: u64) -> Result<(), String> {
        loop {
            let page = self.core.events(self.events_seen, EVENTS_PAGE, &self.rows);
            let page = page.map_err(|error| error.to_string())?;
            if page.gap {
                return Err("more happened in one entry than is kept for readers".to_owned());
            }
            let more = page.events.len() >= EVENTS_PAGE;
            for event in page.events {
                self.events_seen = Some(event.id);
                self.count(measure, &event, now_us);
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn count(&self, measure: &mut Measure, event: &EventRecord, now_us: u64) {
        let of = event.framework.and_then(|id| self.frameworks.get(&id));
        let of = of.and_then(|index| measure.frameworks.get_mut(*index));
        match (event.kind.strip_prefix("task."), of) {
            (Some(state), Some(of)) if state.starts_with("TASK_") => {
                of.on_task(event.task.as_ref(), state, &event.text, now_us);
            }
            (_, of) => {
                *measure.events.entry(event.kind.clone()).or_default() += 1;
                if let (Some(of), "framework.quarantined") = (of, event.kind.as_str()) {
                    of.quarantined_at_us.get_or_insert(now_us);
                }
            }
        }
    }
}

impl World<'_> {
    /// Give the master an input.
    pub(crate) fn master_input(&mut self, input: impl FnOnce(&mut Core, Now) -> Vec<Output>) {
        let outputs = input(&mut self.master.core, now(self.now_us));
        self.master_outputs(outputs);
    }

    fn master_outputs(&mut self, outputs: Vec<Output>) {
        for output in self.master.handle(&mut self.queue, self.now_us, outputs) {
            match output {
                Output::Answer { ticket, answer } => match answer {
                    Ok(answer) => self.on_answer(ticket, answer.status, None),
                    Err(failure) => self.on_answer(ticket, failure.status, Some(failure.retry_after_s)),
                },
                Output::Reply { ticket, result } => match (self.master.creating.remove(&ticket), result) {
                    (Some(index), Ok(Reply::Framework(id))) => {
                        self.master.frameworks.insert(id, index);
                    }
                    (_, Ok(_)) => {}
                    (_, Err(error)) => self.fail(format!("the master refuses: {error}")),
                },
                Output::Report { text } => self.measure.note(format!("{}: {text}", self.clock())),
                Output::Propose(_)
                | Output::ReadIndex { .. }
                | Output::SendAgent { .. }
                | Output::CloseSession { .. } => {}
            }
        }
    }

    pub(crate) fn master_commits(&mut self) {
        match self.master.commit(&mut self.measure, self.now_us) {
            Ok(outputs) => self.master_outputs(outputs),
            Err(text) => self.fail(format!("an entry could not be applied: {text}")),
        }
    }

    /// Begin to lead, and create what the plan names.
    pub(crate) fn master_begins(&mut self) {
        let cluster = format!("sim-{}", self.plan.seed);
        self.master_input(|core, now| core.lead(TERM, &cluster, now));
        self.master_commits();
        for component in self.guests.components() {
            let request = Request::AddComponent {
                digest: component.digest,
                size_bytes: component.size_bytes,
                world: component.world,
                state: component.state.clone(),
                source: String::new(),
                report: String::new(),
            };
            self.ask_master(request, None);
        }
        self.master_commits();
        for (index, digest) in self.guests.schedulers().into_iter().enumerate() {
            let Some(planned) = self.plan.schedulers.get(index) else { continue };
            let request = Request::CreateFramework {
                name: planned.name.clone(),
                role: planned.role.clone(),
                component: digest,
                config: planned.config.clone(),
                unreachable: UnreachablePolicy::default(),
            };
            self.ask_master(request, Some(index));
        }
    }

    /// Ask the master to change something.
    pub(crate) fn ask_master(&mut self, request: Request, creates: Option<usize>) {
        let ticket = self.master.ticket();
        if let Some(index) = creates {
            self.master.creating.insert(ticket, index);
        }
        let principal = Principal::administrator();
        self.master_input(|core, now| core.on_request(ticket, &principal, request, now));
    }

    /// An agent's first message arrives.
    pub(crate) fn master_registers(&mut self, agent: usize, register: v1::Register) {
        self.master.next_session += 1;
        let session = self.master.next_session;
        self.master.sessions.insert(session, agent);
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.session = Some(session);
        }
        self.master_input(|core, now| core.on_session_open(session, register, now));
    }

    /// Agents that are there are heard.
    pub(crate) fn master_hears_beats(&mut self) {
        let at_ms = self.now_us / 1_000;
        let sessions = self.agents.iter().filter(|agent| !agent.dark);
        let beats: Vec<(u64, u64)> = sessions.filter_map(|agent| Some((agent.session?, at_ms))).collect();
        self.master.core.on_beats(&beats, now(self.now_us));
    }

    // Requests of the trace.

    /// A line asks a scheduler for the n-th time.
    pub(crate) fn ask_scheduler(&mut self, line: usize, n: u64) {
        let call = self.master.ticket();
        self.master.calls.insert(call, Call { line, n, first_us: self.now_us, tries: 0 });
        self.send_call(call);
    }

    /// Send a request, for the first time or again.
    pub(crate) fn send_call(&mut self, ticket: u64) {
        let Some(mut call) = self.master.calls.remove(&ticket) else { return };
        let Some(request) = self.request_of(call.line) else { return };
        let (path, query, body) = request.nth(call.n);
        let index = request.framework;
        let asked = HttpRequest {
            method: request.method.clone(),
            path,
            query,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body,
            ..HttpRequest::default()
        };
        if let Some(of) = self.measure.frameworks.get_mut(index) {
            let count = if call.tries == 0 { &mut of.sent } else { &mut of.repeated };
            *count += 1;
        }
        call.tries += 1;
        // Each try has a ticket of its own: the master answers each once.
        let ticket = self.master.ticket();
        self.master.calls.insert(ticket, call);
        let Some(framework) = self.master.framework(index) else {
            return self.on_answer(ticket, 503, Some(None));
        };
        let principal = Principal::administrator();
        let Master { core, rows, .. } = &mut self.master;
        let outputs = core.on_http(ticket, &principal, framework, asked, rows, now(self.now_us));
        self.master_outputs(outputs);
    }

    /// A request has an answer, `again` being what was said of trying again when it is the master's.
    fn on_answer(&mut self, ticket: u64, status: u16, again: Option<Option<u32>>) {
        let Some(call) = self.master.calls.get(&ticket) else { return };
        let (line, first_us, tries) = (call.line, call.first_us, call.tries);
        if let (503, Some(after_s)) = (status, again)
            && tries < TRIES_MAX
        {
            let after_us = after_s.map_or(0, |s| u64::from(s) * 1_000_000).max(AGAIN_US);
            return self.queue.at(self.now_us + after_us, Event::Ask { call: ticket });
        }
        self.master.calls.remove(&ticket);
        let Some((index, tasks)) = self.request_of(line).map(|r| (r.framework, r.tasks)) else { return };
        let Some(of) = self.measure.frameworks.get_mut(index) else { return };
        *of.answered.entry(status).or_default() += 1;
        of.answers.add(self.now_us - first_us);
        if (200..300).contains(&status) {
            of.asked(tasks, first_us);
        }
    }
}

/// A component that is made known to the master.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) world: Made,
    pub(crate) state: StateVersions,
}
