//! Applying one log entry: decode, run each command, write the rows that changed.
//!
//! Owns the only way in which the state changes. Invariants: deterministic; a command either is
//! carried out or changes nothing; each changed row is written once per entry; charges change with the
//! tasks that they are for. Must never look at leader-only state.

use crate::api::{Applied, EventId, RequestError};
use crate::codec::{self, LoadError};
use crate::commands;
use crate::effect::{CommandResult, Effect};
use crate::ledger;
use crate::limits;
use crate::status_steps::{self, StatusStep};
use crate::repeats::{self, Known};
use crate::roles;
use crate::rows::{self, Overlay, Rows, RowsError};
use crate::state::{State, StoredUpdate, Task};
use tessera_types::TraceId;
use crate::upkeep::Gone;
use prost::Message;
use std::collections::BTreeSet;
use tessera_types::{
    AgentId, Digest, FrameworkId, Reason, Resources, TaskId, TaskState, TaskStatus, TimeMs, check_transition,
};
use tessera_wire::v1;

/// Version of entries that this build writes and the newest that it reads.
pub(crate) const BATCH_VERSION: u32 = 1;

/// An entry could not be applied. Going on would make this replica differ from the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Rows could not be read.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// A row that was read is broken.
    #[error(transparent)]
    Row(#[from] LoadError),
    /// The entry is no batch of commands.
    #[error("entry {index} is not a batch of commands: {rule}")]
    Malformed {
        /// Its index.
        index: u64,
        /// What is wrong.
        rule: String,
    },
    /// A newer build wrote it.
    #[error("entry {index} has version {found}; this build knows up to {BATCH_VERSION}")]
    NewerVersion {
        /// Its index.
        index: u64,
        /// Its version.
        found: u32,
    },
}

/// A row of the memory that has to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dirty {
    Agent(AgentId),
    Framework(FrameworkId),
    Gone(String),
    Limits(String),
    Role(String),
    Spec(FrameworkId, Digest),
    Timer(FrameworkId, String),
    Task(FrameworkId, TaskId),
}

/// What commands work on.
pub(crate) struct Apply<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) rows: Overlay<'a>,
    pub(crate) time_ms: TimeMs,
    /// Who asked for the command at hand.
    pub(crate) principal: String,
    /// The trace of the turn at hand.
    pub(crate) trace: Option<TraceId>,
    effects: Vec<Effect>,
    dirty: BTreeSet<Dirty>,
    index: u64,
    events: u32,
}

/// Apply one entry.
pub(crate) fn apply(
    state: &mut State,
    index: u64,
    term: u64,
    entry: &[u8],
    rows: &dyn Rows,
) -> Result<Applied, ApplyError> {
    let batch = v1::CommandBatch::decode(entry)
        .map_err(|error| ApplyError::Malformed { index, rule: error.to_string() })?;
    if batch.version == 0 || batch.version > BATCH_VERSION {
        return Err(ApplyError::NewerVersion { index, found: batch.version });
    }
    state.meta.advance(batch.time_ms);
    let time_ms = state.meta.time_ms;
    state.meta.index = index;
    let mut apply = Apply {
        state,
        rows: Overlay::new(rows),
        time_ms,
        principal: String::new(),
        trace: None,
        effects: Vec::new(),
        dirty: BTreeSet::new(),
        index,
        events: 0,
    };
    for command in batch.commands {
        let ticket = command.ticket;
        let origin = command.origin.unwrap_or_default();
        let known = repeats::of(&origin);
        apply.principal = origin.principal;
        apply.trace = None;
        let result = match (command.command, known) {
            (_, Err(error)) => CommandResult::Refused(error),
            (Some(command), Ok(None)) => commands::run(&mut apply, command)?,
            (Some(command), Ok(Some(known))) => run_once(&mut apply, command, known)?,
            // A newer leader's command; the cluster version keeps it from being sent for real.
            (None, Ok(_)) => CommandResult::Refused(RequestError::Invalid {
                field: "command",
                rule: "is not known to this version".into(),
            }),
        };
        apply.effects.push(Effect::Done { term, ticket, result });
    }
    Ok(apply.finish())
}

/// Run a command, unless it was run before.
fn run_once(
    apply: &mut Apply<'_>,
    command: v1::command::Command,
    known: Known,
) -> Result<CommandResult, ApplyError> {
    match apply.state.repeated(&apply.principal, &known) {
        Some(Ok(result)) => return Ok(result.clone()),
        Some(Err(error)) => return Ok(CommandResult::Refused(error)),
        None => {}
    }
    let result = commands::run(apply, command)?;
    apply.keep_result(known, &result);
    Ok(result)
}

impl Apply<'_> {
    pub(crate) fn mark(&mut self, dirty: Dirty) {
        self.dirty.insert(dirty);
    }

    /// Index of the entry.
    pub(crate) const fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Write an event for watchers.
    pub(crate) fn event(
        &mut self,
        kind: &str,
        framework: Option<FrameworkId>,
        task: Option<&TaskId>,
        agent: Option<AgentId>,
        text: &str,
    ) {
        let id = EventId { index: self.index, n: self.events };
        self.events += 1;
        let row = v1::EventRow {
            version: codec::ROW_VERSION,
            at_ms: self.time_ms,
            kind: kind.to_owned(),
            framework: framework.map_or(0, |id| id.0),
            task: task.map(ToString::to_string).unwrap_or_default(),
            agent: agent.map_or(0, |id| id.0),
            text: text.to_owned(),
            principal: self.principal.clone(),
        };
        self.rows.put(rows::EVENTS, rows::event_key(id.index, id.n), row.encode_to_vec());
        self.state.event_ids.push_back(id);
        self.state.meta.events_last = id;
        while self.state.event_ids.len() > limits::EVENTS_MAX {
            if let Some(old) = self.state.event_ids.pop_front() {
                self.rows.delete(rows::EVENTS, rows::event_key(old.index, old.n));
            }
        }
    }

    /// Put a new task into the state: charged unless it has ended already.
    pub(crate) fn insert_task(&mut self, framework: FrameworkId, mut task: Task) {
        task.trace = self.trace.map(Box::new);
        let id = task.launch.task.clone();
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return };
        State::note_state(&mut self.state.live_states, None, Some(task.state));
        if task.state.is_terminal() {
            self.effects.push(Effect::Ended { state: task.state, reason: task.status.reason });
        } else {
            if let Some(agent) = self.state.agents.get_mut(&task.agent) {
                let sum = ledger::charge(framework, owner, agent, &task.charged());
                roles::add(&mut self.state.role_used, &owner.role, &sum, task.revocable);
            }
            self.effects.push(Effect::Task { agent: task.agent, framework, task: id.clone() });
        }
        owner.tasks.insert(id.clone(), task);
        self.use_id(framework, &id);
        self.mark(Dirty::Task(framework, id));
    }

    /// A task id is refused from now on.
    pub(crate) fn use_id(&mut self, framework: FrameworkId, id: &TaskId) {
        let used = v1::UsedIdRow { version: codec::ROW_VERSION, history: 0 };
        self.rows.put(rows::USED_IDS, rows::task_key(framework, id), used.encode_to_vec());
        if let Some(owner) = self.state.frameworks.get_mut(&framework) {
            owner.used_ids += 1;
            self.mark(Dirty::Framework(framework));
        }
    }

    /// Give a task a new status, if the table has the step. Returns whether it has.
    pub(crate) fn set_status(
        &mut self,
        framework: FrameworkId,
        id: &TaskId,
        mut status: TaskStatus,
        agent_sequence: Option<u64>,
    ) -> bool {
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return false };
        let Some(task) = owner.tasks.get_mut(id) else { return false };
        if let Some(sequence) = agent_sequence {
            task.agent_sequence = task.agent_sequence.max(sequence);
            self.dirty.insert(Dirty::Task(framework, id.clone()));
        }
        if check_transition(task.state, status.state).is_err() {
            return false;
        }
        // An agent knows that it was told to end the task, not by whom.
        if let (Reason::None | Reason::SchedulerKill, TaskState::Killed, Some(kill)) =
            (status.reason, status.state, task.kill)
        {
            status.reason = kill.reason;
        }
        // Whoever is preempted is told so while there is time.
        if let (TaskState::Killing, Some(kill)) = (status.state, task.kill)
            && kill.reason == Reason::Preempted
        {
            let message = format!("others need what it uses; KILL follows TERM after {} ms", kill.grace_ms);
            status = status.because(kill.reason, &message);
        }
        let ends = status.state.is_terminal();
        let kind = format!("task.{}", status.state);
        let agent = task.agent;
        task.sequence += 1;
        State::note_state(&mut self.state.live_states, Some(task.state), Some(status.state));
        if task.trace.is_some() {
            self.effects.push(Effect::Traced { framework, task: id.clone(), state: status.state });
        }
        task.state = status.state;
        task.attempt = status.attempt;
        if task.unconsumed() {
            owner.updates.remove(&task.order);
        }
        task.order = owner.next_order;
        owner.next_order += 1;
        owner.updates.insert(task.order, id.clone());
        let text = status.message.clone();
        let (state, reason) = (status.state, status.reason);
        task.status = TaskStatus { data: Vec::new(), ..status.clone() };
        if self.state.meta.cluster_version >= status_steps::SINCE {
            let (attempt, at_ms) = (status.attempt, self.time_ms);
            task.steps.note(task.created_ms, StatusStep { state, reason, at_ms, attempt });
        }
        let stored = StoredUpdate { sequence: task.sequence, status };
        if ends {
            task.terminal = Some(stored);
            let (launch, resources, revocable) = (task.launch.clone(), task.charge.clone(), task.revocable);
            if let Some(agent) = self.state.agents.get_mut(&agent) {
                let charge = ledger::Charge { launch: &launch, resources: &resources, revocable };
                let sum = ledger::release(framework, owner, agent, &charge);
                roles::take(&mut self.state.role_used, &owner.role, &sum, revocable);
            }
            self.effects.push(Effect::Freed);
            self.effects.push(Effect::Ended { state, reason });
            self.effects.push(Effect::Task { agent, framework, task: id.clone() });
        } else {
            task.latest = Some(stored);
        }
        let removing = owner.removing;
        self.mark(Dirty::Framework(framework));
        self.mark(Dirty::Task(framework, id.clone()));
        self.effect(Effect::Framework(framework));
        let text = match (reason.code(), text.as_str()) {
            ("", text) => text.to_owned(),
            (code, "") => code.to_owned(),
            (code, text) => format!("{code}: {text}"),
        };
        self.event(&kind, Some(framework), Some(id), (agent.0 != 0).then_some(agent), &text);
        if ends && removing {
            self.drop_task(framework, id);
            self.finish_removal(framework);
        }
        true
    }

    /// Forget what the scheduler has consumed of a task; one that has ended and is consumed moves to
    /// the history.
    pub(crate) fn consume_update(
        &mut self,
        framework: FrameworkId,
        id: &TaskId,
        sequence: u64,
    ) {
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return };
        let Some(task) = owner.tasks.get_mut(id) else { return };
        if !task.unconsumed() {
            return;
        }
        task.latest = task.latest.take().filter(|update| update.sequence > sequence);
        task.terminal = task.terminal.take().filter(|update| update.sequence > sequence);
        if !task.unconsumed() {
            owner.updates.remove(&task.order);
        }
        let retire = task.state.is_terminal() && !task.unconsumed();
        self.dirty.insert(Dirty::Task(framework, id.clone()));
        if retire {
            self.retire(framework, id);
        }
    }

    fn retire(&mut self, framework: FrameworkId, id: &TaskId) {
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return };
        let Some(task) = owner.tasks.remove(id) else { return };
        let number = owner.history_next;
        owner.history_next += 1;
        self.rows.put(rows::HISTORY, rows::history_key(framework, number), task.encode());
        let used = v1::UsedIdRow { version: codec::ROW_VERSION, history: number };
        self.rows.put(rows::USED_IDS, rows::task_key(framework, id), used.encode_to_vec());
        while owner.history_next - owner.history_first > limits::HISTORY_MAX {
            let old = rows::history_key(framework, owner.history_first);
            self.rows.delete(rows::HISTORY, old);
            owner.history_first += 1;
        }
        self.mark(Dirty::Framework(framework));
        self.mark(Dirty::Task(framework, id.clone()));
    }

    /// Remove an ended task of a framework that is going away.
    pub(crate) fn drop_task(&mut self, framework: FrameworkId, id: &TaskId) {
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return };
        if let Some(task) = owner.tasks.remove(id)
            && task.unconsumed()
        {
            owner.updates.remove(&task.order);
        }
        self.mark(Dirty::Task(framework, id.clone()));
    }

    /// Remove a framework for good, once nothing of it runs.
    pub(crate) fn finish_removal(&mut self, framework: FrameworkId) {
        let Some(owner) = self.state.frameworks.get(&framework) else { return };
        if !owner.removing || owner.live > 0 {
            return;
        }
        let name = (owner.role.tenant().to_owned(), owner.name.to_string());
        self.state.names.remove(&name);
        self.state.frameworks.remove(&framework);
        let tables = [
            rows::SPECS,
            rows::TASKS,
            rows::USED_IDS,
            rows::VALUES,
            rows::GENERATION,
            rows::HISTORY,
            rows::TIMERS,
        ];
        for table in tables {
            self.rows.delete_prefix(table, rows::framework_key(framework));
        }
        let gone: Vec<u64> = self
            .state
            .answers
            .iter()
            .filter(|(_, key)| key.framework == framework)
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.drop_answer(number);
        }
        self.close_requests(framework);
        self.dirty.retain(|dirty| match dirty {
            Dirty::Spec(id, _) | Dirty::Timer(id, _) | Dirty::Task(id, _) => *id != framework,
            Dirty::Agent(_) | Dirty::Gone(_) | Dirty::Limits(_) | Dirty::Role(_) | Dirty::Framework(_) => true,
        });
        self.mark(Dirty::Framework(framework));
        self.effect(Effect::Framework(framework));
        self.event("framework.removed", Some(framework), None, None, "");
    }

    /// Remove a stored answer.
    pub(crate) fn drop_answer(&mut self, number: u64) {
        if let Some(key) = self.state.answers.remove(&number) {
            self.state.answer_numbers.remove(&key);
            self.rows.delete(rows::ANSWERS, number.to_be_bytes().to_vec());
        }
    }

    /// What is free on an agent: may be negative. None if the agent is not known.
    pub(crate) fn free(&self, agent: AgentId) -> Option<Resources> {
        Some(self.state.agents.get(&agent)?.free())
    }

    fn finish(mut self) -> Applied {
        for dirty in std::mem::take(&mut self.dirty) {
            let (table, key, value) = self.state.row(&dirty);
            match value {
                Some(value) => self.rows.put(table, key, value),
                None => self.rows.delete(table, key),
            }
        }
        self.rows.put(rows::META, b"meta".to_vec(), self.state.meta.encode());
        if self.events > 0 {
            let last = self.state.meta.events_last;
            self.effects.push(Effect::Events { last });
        }
        Applied { rows: self.rows.into_changes(), effects: self.effects }
    }
}

impl State {
    /// A row as it is to be stored; none when it is to be removed.
    pub(crate) fn row(&self, dirty: &Dirty) -> (u8, Vec<u8>, Option<Vec<u8>>) {
        let state = self;
        let owner = |id: &FrameworkId| state.frameworks.get(id);
        match dirty {
            Dirty::Agent(id) => (
                rows::AGENTS,
                rows::agent_key(*id),
                state.agents.get(id).map(|agent| agent.encode(*id)),
            ),
            Dirty::Gone(key) => (
                rows::GONE,
                key.as_bytes().to_vec(),
                state.gone.get(key).map(Gone::encode),
            ),
            Dirty::Limits(role) => (
                rows::LIMITS,
                role.as_bytes().to_vec(),
                state.limits.get(role).map(|limits| codec::encode_limits(role, limits)),
            ),
            Dirty::Role(role) => (
                rows::ROLES,
                role.as_bytes().to_vec(),
                state.roles.get(role).map(|policy| roles::encode(role, policy)),
            ),
            Dirty::Framework(id) => (
                rows::FRAMEWORKS,
                rows::framework_key(*id),
                owner(id).map(|framework| framework.encode(*id)),
            ),
            Dirty::Spec(id, digest) => (
                rows::SPECS,
                rows::spec_key(*id, digest),
                owner(id).and_then(|f| f.specs.get(digest)).map(crate::state::Spec::encode),
            ),
            Dirty::Timer(id, timer) => (
                rows::TIMERS,
                rows::owned_key(*id, timer.as_bytes()),
                owner(id).and_then(|f| f.timers.get(timer)).map(|due| codec::encode_timer(*due)),
            ),
            Dirty::Task(id, task) => (
                rows::TASKS,
                rows::task_key(*id, task),
                owner(id).and_then(|f| f.tasks.get(task)).map(Task::encode),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
