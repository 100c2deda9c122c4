//! Applying one log entry: decode, run each command, write the rows that changed.
//!
//! Owns the only way in which the state changes. Invariants: deterministic; a command either is
//! carried out or changes nothing; each changed row is written once per entry; a task's charge, its
//! agent's charge and its spec's uses change together. Must never look at leader-only state.

use crate::api::{Applied, EventId, RequestError};
use crate::codec::{self, LoadError};
use crate::commands;
use crate::effect::{CommandResult, Effect};
use crate::limits;
use crate::rows::{self, Overlay, Rows, RowsError};
use crate::state::{State, StoredUpdate, Task};
use prost::Message;
use std::collections::BTreeSet;
use tessera_types::{
    AgentId, Digest, FrameworkId, Quantities, Reason, TaskId, TaskStatus, TimeMs, check_transition,
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
    Component(Digest),
    Framework(FrameworkId),
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
    let time_ms = state.meta.time_ms.max(batch.time_ms);
    state.meta.time_ms = time_ms;
    state.meta.index = index;
    let mut apply = Apply {
        state,
        rows: Overlay::new(rows),
        time_ms,
        principal: String::new(),
        effects: Vec::new(),
        dirty: BTreeSet::new(),
        index,
        events: 0,
    };
    for command in batch.commands {
        let ticket = command.ticket;
        apply.principal = command.origin.unwrap_or_default().principal;
        let result = match command.command {
            Some(command) => commands::run(&mut apply, command)?,
            // A newer leader's command; the cluster version keeps it from being sent for real.
            None => CommandResult::Refused(RequestError::Invalid {
                field: "command",
                rule: "is not known to this version".into(),
            }),
        };
        apply.effects.push(Effect::Done { term, ticket, result });
    }
    Ok(apply.finish())
}

impl Apply<'_> {
    pub(crate) fn mark(&mut self, dirty: Dirty) {
        self.dirty.insert(dirty);
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
    pub(crate) fn insert_task(&mut self, framework: FrameworkId, task: Task) {
        let id = task.launch.task.clone();
        let Some(owner) = self.state.frameworks.get_mut(&framework) else { return };
        if !task.state.is_terminal() {
            owner.charged = owner.charged.plus(task.charge);
            owner.live += 1;
            if let Some(spec) = owner.specs.get_mut(&task.launch.spec) {
                spec.uses += 1;
            }
            if let Some(agent) = self.state.agents.get_mut(&task.agent) {
                agent.charged = agent.charged.plus(task.charge);
                agent.tasks.insert((framework, id.clone()));
            }
            self.effects.push(Effect::Task { agent: task.agent, framework, task: id.clone() });
        }
        owner.used_ids += 1;
        owner.tasks.insert(id.clone(), task);
        let used = v1::UsedIdRow { version: codec::ROW_VERSION, history: 0 };
        self.rows.put(rows::USED_IDS, rows::task_key(framework, &id), used.encode_to_vec());
        self.mark(Dirty::Framework(framework));
        self.mark(Dirty::Task(framework, id));
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
        if let (Reason::None, tessera_types::TaskState::Killed, Some(kill)) =
            (status.reason, status.state, task.kill)
        {
            status.reason = kill.reason;
        }
        let ends = status.state.is_terminal();
        let agent = task.agent;
        task.sequence += 1;
        task.state = status.state;
        task.attempt = status.attempt;
        if task.unconsumed() {
            owner.updates.remove(&task.order);
        }
        task.order = owner.next_order;
        owner.next_order += 1;
        owner.updates.insert(task.order, id.clone());
        let text = status.message.clone();
        let reason = status.reason;
        task.status = TaskStatus { data: Vec::new(), ..status.clone() };
        let stored = StoredUpdate { sequence: task.sequence, status };
        if ends {
            task.terminal = Some(stored);
            owner.charged = owner.charged.minus(task.charge);
            owner.live -= 1;
            if let Some(spec) = owner.specs.get_mut(&task.launch.spec) {
                spec.uses = spec.uses.saturating_sub(1);
            }
            if let Some(agent) = self.state.agents.get_mut(&agent) {
                agent.charged = agent.charged.minus(task.charge);
                agent.tasks.remove(&(framework, id.clone()));
            }
            self.effects.push(Effect::Freed);
            self.effects.push(Effect::Task { agent, framework, task: id.clone() });
        } else {
            task.latest = Some(stored);
        }
        let kind = format!("task.{}", task.state);
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
        self.dirty.retain(|dirty| match dirty {
            Dirty::Spec(id, _) | Dirty::Timer(id, _) | Dirty::Task(id, _) => *id != framework,
            Dirty::Agent(_) | Dirty::Component(_) | Dirty::Framework(_) => true,
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
    pub(crate) fn free(&self, agent: AgentId) -> Option<Quantities> {
        let agent = self.state.agents.get(&agent)?;
        Some(agent.resources.total.minus(agent.charged))
    }

    fn finish(mut self) -> Applied {
        for dirty in std::mem::take(&mut self.dirty) {
            let (table, key, value) = self.row(&dirty);
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

    fn row(&self, dirty: &Dirty) -> (u8, Vec<u8>, Option<Vec<u8>>) {
        let state = &*self.state;
        let owner = |id: &FrameworkId| state.frameworks.get(id);
        match dirty {
            Dirty::Agent(id) => (
                rows::AGENTS,
                rows::agent_key(*id),
                state.agents.get(id).map(|agent| agent.encode(*id)),
            ),
            Dirty::Component(digest) => (
                rows::COMPONENTS,
                digest.0.to_vec(),
                state.components.get(digest).map(|component| component.encode(digest)),
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
mod tests {
    use super::*;
    use crate::testing::MemRows;
    use tessera_wire::v1::command::Command as C;

    fn batch(commands: Vec<C>) -> Vec<u8> {
        let commands = commands.into_iter().enumerate().map(|(n, command)| v1::Command {
            ticket: n as u64 + 1,
            origin: Some(v1::Origin { principal: "admin".into(), role: String::new() }),
            command: Some(command),
        });
        v1::CommandBatch { version: 1, time_ms: 5, commands: commands.collect() }.encode_to_vec()
    }

    fn results(applied: &Applied) -> Vec<CommandResult> {
        let done = applied.effects.iter().filter_map(|effect| match effect {
            Effect::Done { result, .. } => Some(result.clone()),
            _ => None,
        });
        done.collect()
    }

    /// Empty commands, one of each kind: what a hostile or broken leader could send.
    fn one_of_each() -> Vec<C> {
        vec![
            C::InitCluster(v1::InitCluster::default()),
            C::RegisterAgent(v1::RegisterAgent::default()),
            C::MarkUnreachable(v1::MarkUnreachable::default()),
            C::ReconcileAgent(v1::ReconcileAgent::default()),
            C::UpdateStatuses(v1::UpdateStatuses::default()),
            C::AddComponent(v1::AddComponent::default()),
            C::CreateFramework(v1::CreateFramework::default()),
            C::RemoveFramework(v1::RemoveFramework::default()),
            C::PlaceScheduler(v1::PlaceScheduler::default()),
            C::CommitTurn(v1::CommitTurn::default()),
            C::KillTask(v1::KillTask::default()),
            C::RecordFailure(v1::RecordFailure::default()),
        ]
    }

    #[test]
    fn an_entry_has_these_bytes() {
        let place = v1::PlaceScheduler { framework: 1, agent: 2, epoch: 3 };
        let bytes: String =
            batch(vec![C::PlaceScheduler(place)]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes, "080110051a13080112070a0561646d696e5a06080110021803");
    }

    #[test]
    fn empty_commands_are_refused_and_change_only_time_and_index() {
        let mut state = State::default();
        let rows = MemRows::default();
        let applied = apply(&mut state, 9, 1, &batch(one_of_each()), &rows).unwrap();
        assert_eq!(results(&applied).len(), one_of_each().len());
        for (command, result) in one_of_each().iter().zip(results(&applied)) {
            let refused = matches!(
                result,
                CommandResult::Refused(_)
                    | CommandResult::Turn(tessera_types::TurnOutcome::Refused(_))
            );
            assert!(refused, "{command:?}: {result:?}");
        }
        let meta = crate::state::Meta { time_ms: 5, index: 9, ..crate::state::Meta::default() };
        assert_eq!(state, State { meta, ..State::default() });
        assert_eq!(applied.rows.len(), 1, "only the row of counters");
    }

    #[test]
    fn entries_that_are_no_batches_or_newer_stop_the_replica() {
        let rows = MemRows::default();
        let mut state = State::default();
        let error = apply(&mut state, 1, 1, &[0xff; 9], &rows).unwrap_err();
        assert!(matches!(error, ApplyError::Malformed { index: 1, .. }), "{error}");
        let newer = v1::CommandBatch { version: 2, ..v1::CommandBatch::default() }.encode_to_vec();
        let error = apply(&mut state, 2, 1, &newer, &rows).unwrap_err();
        assert_eq!(error, ApplyError::NewerVersion { index: 2, found: 2 });
        assert_eq!(state, State::default());
    }

    #[test]
    fn time_never_goes_back() {
        let mut state = State::default();
        state.meta.time_ms = 100;
        let rows = MemRows::default();
        let init = C::InitCluster(v1::InitCluster { cluster: "c".into() });
        apply(&mut state, 1, 1, &batch(vec![init]), &rows).unwrap();
        assert_eq!(state.meta.time_ms, 100);
    }

    /// Any mixture of half-right commands leaves a state that passes the check and loads again.
    #[test]
    fn mutated_commands_never_break_the_state() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let mut rows = MemRows::default();
        let mut core = crate::Core::load(&rows, crate::Config::default()).unwrap();
        for index in 1..2_000_u64 {
            let commands = (0..=random(3)).map(|_| random_command(&mut random)).collect();
            let applied = core.apply(index, 1, &batch(commands), &rows).unwrap();
            rows.write(applied.rows);
            if index % 50 == 0 {
                let again = crate::Core::load(&rows, crate::Config::default()).unwrap();
                assert_eq!(core.diff(&again), None, "entry {index}");
            }
            assert_eq!(core.check(), Ok(()), "entry {index}");
        }
        assert!(core.counts().tasks_live > 0 && core.counts().frameworks > 0, "it was no idle run");
    }

    fn random_command(random: &mut impl FnMut(u64) -> u64) -> C {
        use tessera_wire::v1::planned_operation::Operation as Planned;
        let quantities = |n: i64| Some(v1::Quantities { cpus_milli: n, mem_mib: n, disk_mib: 0 });
        let framework = 1 + random(3);
        let agent = 1 + random(3);
        let task = format!("t{}", random(12));
        let spec = v1::TaskSpec {
            body: Some(v1::task_spec::Body::Shell("true".into())),
            resources: quantities(400),
            ..v1::TaskSpec::default()
        }
        .encode_to_vec();
        let digest = Digest::of(&spec).0.to_vec();
        match random(14) {
            0 => C::RegisterAgent(v1::RegisterAgent {
                agent: 0,
                agent_key: format!("k{agent}"),
                boot: "b".into(),
                description: Some(v1::AgentDescription {
                    hostname: "h".into(),
                    total: quantities(1_000 + i64::try_from(random(1_000)).unwrap()),
                    ..v1::AgentDescription::default()
                }),
            }),
            1 if random(4) == 0 => C::MarkUnreachable(v1::MarkUnreachable { agent }),
            1 => C::AddComponent(v1::AddComponent {
                digest: vec![1; 32],
                size_bytes: 1,
                world: v1::World::Scheduler.into(),
            }),
            2 if random(4) == 0 => C::RemoveFramework(v1::RemoveFramework { framework }),
            2 => C::CreateFramework(v1::CreateFramework {
                name: format!("n{}", random(3)),
                role: "r".into(),
                component: vec![1; 32],
                config: vec![],
            }),
            3 => C::PlaceScheduler(v1::PlaceScheduler { framework, agent, epoch: random(2) }),
            4 => C::KillTask(v1::KillTask { framework, task, grace_ms: None }),
            5 => C::ReconcileAgent(v1::ReconcileAgent {
                agent,
                tasks: vec![v1::ReconciledTask {
                    framework,
                    task,
                    state: i32::try_from(random(15)).unwrap(),
                    attempt: 1,
                }],
            }),
            6..=8 => C::UpdateStatuses(v1::UpdateStatuses {
                agent,
                statuses: vec![v1::AgentStatus {
                    framework,
                    sequence: random(6),
                    status: Some(v1::TaskStatus {
                        task,
                        state: 1 + i32::try_from(random(14)).unwrap(),
                        attempt: 1,
                        ..v1::TaskStatus::default()
                    }),
                }],
            }),
            _ => C::CommitTurn(v1::CommitTurn {
                framework,
                epoch: random(3),
                number: random(60),
                turn_hash: vec![0; 32],
                consumed: vec![v1::Consumed {
                    consumed: Some(v1::consumed::Consumed::Update(v1::ConsumedUpdate {
                        task: task.clone(),
                        sequence: random(5),
                    })),
                }],
                operations: vec![
                    v1::PlannedOperation {
                        operation: Some(Planned::Launch(v1::PlannedLaunch {
                            launch: Some(v1::Launch {
                                task: format!("t{}", random(400)),
                                spec: digest.clone(),
                                ..v1::Launch::default()
                            }),
                            agent,
                            ..v1::PlannedLaunch::default()
                        })),
                    },
                    v1::PlannedOperation {
                        operation: Some(Planned::SetTimer(v1::TimerEvent {
                            id: task,
                            due_ms: random(50),
                        })),
                    },
                ],
                writes: vec![v1::KeyWrite { key: "k".into(), value: Some(vec![0; 3]) }],
                specs: vec![v1::SpecBytes { digest, encoded: spec }],
            }),
        }
    }
}
