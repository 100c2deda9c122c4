//! Rows to and from the state: the one place that knows how each is stored.
//!
//! Invariants: encoding is deterministic; a row of a newer version is refused by name; loading rebuilds
//! exactly the memory that applying built. Must never apply rules beyond the form of a row.

mod lifecycle;
mod restore;
mod upkeep;

pub(crate) use lifecycle::encode_limits;
pub(crate) use upkeep::encode_request;

use crate::api::{EventId, World};
use crate::lifecycle::Failures;
use crate::ledger;
use crate::rows::{self, Rows, RowsError};
use crate::upkeep::UnreachablePolicy;
use crate::status_steps::StatusSteps;
use tessera_types::TraceId;
use crate::state::{
    Agent, AnswerKey, Component, Framework, KillIntent, Meta, Spec, State, StoredUpdate, Task,
};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::{
    AgentId, Digest, Epoch, FrameworkId, Reason, Resources, TaskId, TaskState, TurnNumber,
};
use tessera_wire::{decode_spec, v1};

/// Version of every row that this build writes and the newest that it reads.
pub(crate) const ROW_VERSION: u32 = 1;

/// The rows do not make a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// They could not be read.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// A newer build wrote them.
    #[error("table {table} has a row of version {found}; this build reads up to {ROW_VERSION}")]
    NewerVersion {
        /// The table.
        table: u8,
        /// Its version.
        found: u32,
    },
    /// Newer builds changed what the state means.
    #[error("the state is of cluster version {found}; this build understands up to {understands}, use the newer one")]
    NewerCluster {
        /// The cluster's.
        found: u32,
        /// This build's.
        understands: u32,
    },
    /// A row breaks its form.
    #[error("table {table} has a row that cannot be read: {rule}")]
    Malformed {
        /// The table.
        table: u8,
        /// What is wrong.
        rule: String,
    },
}

pub(crate) fn bad(table: u8, rule: impl std::fmt::Display) -> LoadError {
    LoadError::Malformed { table, rule: rule.to_string() }
}

pub(crate) fn decode<M: Message + Default>(table: u8, bytes: &[u8]) -> Result<M, LoadError> {
    M::decode(bytes).map_err(|error| bad(table, error))
}

pub(crate) fn version(table: u8, found: u32) -> Result<(), LoadError> {
    if found == 0 || found > ROW_VERSION {
        return Err(LoadError::NewerVersion { table, found });
    }
    Ok(())
}

pub(crate) fn pairs(pairs: &[(String, String)]) -> Vec<v1::Pair> {
    pairs.iter().map(|(key, value)| v1::Pair { key: key.clone(), value: value.clone() }).collect()
}

pub(crate) fn unpair(pairs: Vec<v1::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

impl From<World> for v1::World {
    fn from(world: World) -> Self {
        match world {
            World::Scheduler => Self::Scheduler,
            World::Executor => Self::Executor,
            World::Command => Self::Command,
        }
    }
}

/// The world of a message.
pub(crate) fn world(wire: v1::World) -> Option<World> {
    match wire {
        v1::World::Scheduler => Some(World::Scheduler),
        v1::World::Executor => Some(World::Executor),
        v1::World::Command => Some(World::Command),
        v1::World::Unspecified => None,
    }
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        v1::MetaRow {
            version: ROW_VERSION,
            cluster: self.cluster.clone(),
            time_ms: self.time_ms,
            next_agent: self.next_agent,
            next_framework: self.next_framework,
            index: self.index,
            answers_next: self.answers_next,
            events_last_index: self.events_last.index,
            events_last_n: self.events_last.n,
            requests_next: self.requests_next,
            cluster_version: self.cluster_version,
            restores: self.restores.iter().map(Into::into).collect(),
            steady_ms: self.steady_ms,
        }
        .encode_to_vec()
    }
}

impl Agent {
    pub(crate) fn encode(&self, id: AgentId) -> Vec<u8> {
        v1::AgentRow {
            version: ROW_VERSION,
            agent: id.0,
            agent_key: self.key.clone(),
            boot: self.boot.clone(),
            description: Some(self.description()),
            registered_ms: self.registered_ms,
            unreachable_ms: self.unreachable_ms,
            deactivated: self.deactivated,
            drain: self.drain.map(Into::into),
            maintenance: self.maintenance.map(Into::into),
            boots_before: self.boots_before.clone(),
            strangers: restore::strangers(&self.strangers),
        }
        .encode_to_vec()
    }

    pub(crate) fn description(&self) -> v1::AgentDescription {
        v1::AgentDescription {
            hostname: self.hostname.clone(),
            attributes: pairs(&self.attributes),
            total: Some((&self.resources.total).into()),
            reserved: Some((&self.resources.reserved).into()),
            version: self.version.clone(),
            missing: pairs(&self.missing),
            engine: self.engine.clone(),
        }
    }
}

impl Component {
    /// The row; the report is nowhere else.
    pub(crate) fn encode(&self, digest: &Digest, report: String) -> Vec<u8> {
        v1::ComponentRow {
            version: ROW_VERSION,
            digest: digest.0.to_vec(),
            size_bytes: self.size_bytes,
            world: v1::World::from(self.world).into(),
            principal: self.principal.clone(),
            added_ms: self.added_ms,
            state: Some((&self.state).into()),
            source: self.source.clone(),
            report,
        }
        .encode_to_vec()
    }
}

impl Framework {
    pub(crate) fn encode(&self, id: FrameworkId) -> Vec<u8> {
        v1::FrameworkRow {
            version: ROW_VERSION,
            framework: id.0,
            name: self.name.to_string(),
            role: self.role.to_string(),
            component: self.component.0.to_vec(),
            config: pairs(&self.config),
            principal: self.principal.clone(),
            created_ms: self.created_ms,
            epoch: self.epoch.0,
            agent: self.agent.map_or(0, |agent| agent.0),
            last_turn: self.last_turn.0,
            last_turn_epoch: self.last_turn_epoch.0,
            last_turn_hash: self.last_turn_hash.clone(),
            suppressed: self.suppressed,
            requests: self.requests.iter().map(Into::into).collect(),
            removing: self.removing,
            versions: self.versions.iter().map(Into::into).collect(),
            upgrade: self.upgrade.as_ref().map(Into::into),
            failures: (self.failures != Failures::default()).then(|| (&self.failures).into()),
            quarantine: self.quarantine.as_ref().map(Into::into),
            config_version: self.config_version,
            config_seen: self.config_seen,
            state_version: self.state_version,
            merging: self.merging,
            state_bytes: self.state_bytes,
            state_keys: self.state_keys,
            outside_writes: self.outside_writes,
            used_ids: self.used_ids,
            next_order: self.next_order,
            next_group: self.next_group,
            history_first: self.history_first,
            history_next: self.history_next,
            placed_ms: self.placed_ms,
            unreachable: (self.unreachable != UnreachablePolicy::default())
                .then(|| self.unreachable.into()),
        }
        .encode_to_vec()
    }
}

impl Spec {
    pub(crate) fn encode(&self) -> Vec<u8> {
        v1::SpecRow { version: ROW_VERSION, encoded: self.encoded.to_vec() }.encode_to_vec()
    }
}

pub(crate) fn encode_timer(due_ms: u64) -> Vec<u8> {
    v1::TimerRow { version: ROW_VERSION, due_ms }.encode_to_vec()
}

fn stored(update: &StoredUpdate) -> v1::StoredUpdate {
    v1::StoredUpdate { sequence: update.sequence, status: Some((&update.status).into()) }
}

impl Task {
    pub(crate) fn encode(&self) -> Vec<u8> {
        v1::TaskRow {
            version: ROW_VERSION,
            launch: Some((&self.launch).into()),
            agent: self.agent.0,
            charge: Some((&self.charge).into()),
            state: v1::TaskState::from(self.state).into(),
            attempt: self.attempt,
            created_ms: self.created_ms,
            sequence: self.sequence,
            agent_sequence: self.agent_sequence,
            order: self.order,
            latest: self.latest.as_ref().map(stored),
            terminal: self.terminal.as_ref().map(stored),
            status: Some((&self.status).into()),
            kill: self.kill.map(|kill| v1::KillIntent {
                grace_ms: kill.grace_ms,
                reason: kill.reason.code().to_owned(),
            }),
            name: self.name.clone(),
            group: self.group,
            steps: self.steps.to_row(),
            trace: self.trace.as_deref().map_or_else(Vec::new, |trace| trace.to_bytes()),
            revocable: self.revocable,
        }
        .encode_to_vec()
    }

    /// The task of a row of the tasks or the history.
    pub(crate) fn decode(table: u8, bytes: &[u8]) -> Result<Self, LoadError> {
        let row: v1::TaskRow = decode(table, bytes)?;
        version(table, row.version)?;
        let state = TaskState::try_from(row.state()).map_err(|error| bad(table, error))?;
        let update = |update: Option<v1::StoredUpdate>| -> Result<_, LoadError> {
            let Some(update) = update else { return Ok(None) };
            let status = update.status.ok_or_else(|| bad(table, "an update without status"))?;
            Ok(Some(StoredUpdate {
                sequence: update.sequence,
                status: status.try_into().map_err(|error| bad(table, error))?,
            }))
        };
        Ok(Self {
            launch: row
                .launch
                .ok_or_else(|| bad(table, "no launch"))?
                .try_into()
                .map_err(|error| bad(table, error))?,
            name: row.name,
            agent: AgentId(row.agent),
            charge: row.charge.unwrap_or_default().into(),
            group: row.group,
            steps: StatusSteps::of_row(row.steps),
            trace: TraceId::of_bytes(&row.trace).map(Box::new),
            revocable: row.revocable,
            state,
            attempt: row.attempt,
            created_ms: row.created_ms,
            sequence: row.sequence,
            agent_sequence: row.agent_sequence,
            order: row.order,
            latest: update(row.latest)?,
            terminal: update(row.terminal)?,
            status: row
                .status
                .ok_or_else(|| bad(table, "no status"))?
                .try_into()
                .map_err(|error| bad(table, error))?,
            kill: row.kill.map(|kill| KillIntent {
                grace_ms: kill.grace_ms,
                reason: Reason::of_code(&kill.reason),
            }),
        })
    }
}

/// Rebuild the memory from rows.
pub(crate) fn load(rows: &dyn Rows) -> Result<State, LoadError> {
    let mut state = State::default();
    if let Some(bytes) = rows.get(rows::META, b"meta")? {
        let row: v1::MetaRow = decode(rows::META, &bytes)?;
        version(rows::META, row.version)?;
        state.meta = Meta {
            cluster: row.cluster,
            time_ms: row.time_ms,
            next_agent: row.next_agent,
            next_framework: row.next_framework,
            index: row.index,
            answers_next: row.answers_next,
            events_last: EventId { index: row.events_last_index, n: row.events_last_n },
            requests_next: row.requests_next,
            cluster_version: row.cluster_version,
            restores: row.restores.into_iter().map(Into::into).collect(),
            steady_ms: row.steady_ms,
        };
    }
    let mut load = Load { rows, state: &mut state };
    load.each(rows::AGENTS, Load::agent)?;
    load.each(rows::COMPONENTS, Load::component)?;
    load.each(rows::FRAMEWORKS, Load::framework)?;
    load.each(rows::LIMITS, Load::limits)?;
    load.each(rows::ROLES, crate::roles::load)?;
    load.each(rows::SPECS, Load::spec)?;
    load.each(rows::TIMERS, Load::timer)?;
    load.each(rows::TASKS, Load::task)?;
    load.each(rows::EVENTS, Load::event)?;
    load.each(rows::ANSWERS, Load::answer)?;
    load.each(rows::REQUESTS, Load::request)?;
    load.each(rows::GONE, Load::gone)?;
    load.each(rows::OPEN, crate::open::load)?;
    load.each(rows::SESSIONS, crate::numbered::load)?;
    Ok(state)
}

struct Load<'a> {
    rows: &'a dyn Rows,
    state: &'a mut State,
}

impl Load<'_> {
    fn each(
        &mut self,
        table: u8,
        visit: fn(&mut State, &[u8], &[u8]) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let mut failed = None;
        rows::for_each(self.rows, table, |key, value| {
            if failed.is_none() {
                failed = visit(self.state, key, value).err();
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn agent(state: &mut State, _key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::AgentRow = decode(rows::AGENTS, value)?;
        version(rows::AGENTS, row.version)?;
        let description = row.description.unwrap_or_default();
        let resources = description.resources().map_err(|error| bad(rows::AGENTS, error))?;
        let id = AgentId(row.agent);
        let strangers = restore::read_strangers(row.strangers)?;
        state.agent_keys.insert(row.agent_key.clone(), id);
        state.agents.insert(
            id,
            Agent {
                key: row.agent_key,
                boot: row.boot,
                hostname: description.hostname,
                attributes: unpair(description.attributes),
                version: description.version,
                missing: unpair(description.missing),
                engine: description.engine,
                resources,
                registered_ms: row.registered_ms,
                unreachable_ms: row.unreachable_ms,
                deactivated: row.deactivated,
                drain: row.drain.map(Into::into),
                maintenance: row.maintenance.map(Into::into),
                boots_before: row.boots_before,
                charged: strangers.values().fold(Resources::ZERO, |sum, charge| sum.plus(charge)),
                charged_revocable: Resources::ZERO,
                strangers,
                tasks: BTreeSet::new(),
                executors: BTreeMap::new(),
            },
        );
        Ok(())
    }

    fn component(state: &mut State, _key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::ComponentRow = decode(rows::COMPONENTS, value)?;
        version(rows::COMPONENTS, row.version)?;
        let digest = Digest::from_slice(&row.digest).map_err(|e| bad(rows::COMPONENTS, e))?;
        let world = world(row.world()).ok_or_else(|| bad(rows::COMPONENTS, "unknown world"))?;
        let component = Component {
            size_bytes: row.size_bytes,
            world,
            principal: row.principal,
            added_ms: row.added_ms,
            state: row.state.map(Into::into).unwrap_or_default(),
            source: row.source,
        };
        state.components.insert(digest, component);
        Ok(())
    }

    fn framework(state: &mut State, _key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        const TABLE: u8 = rows::FRAMEWORKS;
        let row: v1::FrameworkRow = decode(TABLE, value)?;
        version(TABLE, row.version)?;
        let id = FrameworkId(row.framework);
        let versions = row.versions.iter().cloned().map(lifecycle::framework_version);
        let mut versions = versions.collect::<Result<Vec<_>, _>>()?;
        if versions.is_empty() {
            // Rows of before versions were kept.
            versions.push(lifecycle::first_version(&row)?);
        }
        let requests = row.requests.into_iter().map(TryInto::try_into);
        let framework = Framework {
            name: row.name.try_into().map_err(|error| bad(TABLE, error))?,
            role: row.role.try_into().map_err(|error| bad(TABLE, error))?,
            component: Digest::from_slice(&row.component).map_err(|error| bad(TABLE, error))?,
            config: unpair(row.config),
            principal: row.principal,
            created_ms: row.created_ms,
            epoch: Epoch(row.epoch),
            agent: (row.agent != 0).then_some(AgentId(row.agent)),
            placed_ms: row.placed_ms,
            last_turn: TurnNumber(row.last_turn),
            last_turn_epoch: Epoch(row.last_turn_epoch),
            last_turn_hash: row.last_turn_hash,
            suppressed: row.suppressed,
            requests: requests.collect::<Result<_, _>>().map_err(|error| bad(TABLE, error))?,
            removing: row.removing,
            config_version: row.config_version.max(1),
            config_seen: row.config_seen.max(1),
            versions,
            upgrade: row.upgrade.map(Into::into),
            failures: row.failures.map(Into::into).unwrap_or_default(),
            quarantine: row.quarantine.map(Into::into),
            state_version: row.state_version,
            merging: row.merging,
            unreachable: row.unreachable.map(Into::into).unwrap_or_default(),
            state_bytes: row.state_bytes,
            state_keys: row.state_keys,
            outside_writes: row.outside_writes,
            used_ids: row.used_ids,
            next_order: row.next_order,
            next_group: row.next_group,
            history_first: row.history_first,
            history_next: row.history_next,
            specs: BTreeMap::new(),
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            due: BTreeSet::new(),
            updates: BTreeMap::new(),
            charged: Resources::ZERO,
            charged_revocable: Resources::ZERO,
            live: 0,
        };
        let name = (framework.role.tenant().to_owned(), framework.name.to_string());
        state.names.insert(name, id);
        state.frameworks.insert(id, framework);
        Ok(())
    }

    fn limits(state: &mut State, _key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::LimitsRow = decode(rows::LIMITS, value)?;
        version(rows::LIMITS, row.version)?;
        let limits = lifecycle::role_limits(&row.limits)?;
        if !limits.is_empty() {
            state.limits.insert(row.role, limits);
        }
        Ok(())
    }

    fn owner<'s, 'k>(
        state: &'s mut State,
        table: u8,
        key: &'k [u8],
    ) -> Result<(FrameworkId, &'s mut Framework, &'k [u8]), LoadError> {
        let (id, rest) = rows::split_owned(key).ok_or_else(|| bad(table, "a short key"))?;
        let framework =
            state.frameworks.get_mut(&id).ok_or_else(|| bad(table, format!("{id} is not there")))?;
        Ok((id, framework, rest))
    }

    fn spec(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::SpecRow = decode(rows::SPECS, value)?;
        version(rows::SPECS, row.version)?;
        let (_, framework, rest) = Self::owner(state, rows::SPECS, key)?;
        let digest = Digest::from_slice(rest).map_err(|error| bad(rows::SPECS, error))?;
        let spec = decode_spec(&row.encoded).map_err(|error| bad(rows::SPECS, error))?;
        let spec = Spec { encoded: row.encoded.into(), spec: Arc::new(spec), uses: 0 };
        framework.specs.insert(digest, spec);
        Ok(())
    }

    fn timer(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::TimerRow = decode(rows::TIMERS, value)?;
        version(rows::TIMERS, row.version)?;
        let (_, framework, rest) = Self::owner(state, rows::TIMERS, key)?;
        let id = std::str::from_utf8(rest).map_err(|error| bad(rows::TIMERS, error))?;
        framework.timers.insert(id.to_owned(), row.due_ms);
        framework.due.insert((row.due_ms, id.to_owned()));
        Ok(())
    }

    fn task(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        const TABLE: u8 = rows::TASKS;
        let task = Task::decode(TABLE, value)?;
        let (id, framework, _) = Self::owner(state, TABLE, key)?;
        let task_id: TaskId = task.launch.task.clone();
        if task.unconsumed() {
            framework.updates.insert(task.order, task_id.clone());
        }
        State::note_state(&mut state.live_states, None, Some(task.state));
        if !task.state.is_terminal() {
            let agent = state.agents.get_mut(&task.agent);
            let agent = agent.ok_or_else(|| bad(TABLE, "no such agent"))?;
            let framework = state.frameworks.get_mut(&id);
            let framework = framework.ok_or_else(|| bad(TABLE, format!("{id} is not there")))?;
            let sum = ledger::charge(id, framework, agent, &task.charged());
            crate::roles::add(&mut state.role_used, &framework.role, &sum, task.revocable);
        }
        if let Some(framework) = state.frameworks.get_mut(&id) {
            framework.tasks.insert(task_id, task);
        }
        Ok(())
    }

    fn event(state: &mut State, key: &[u8], _value: &[u8]) -> Result<(), LoadError> {
        state.event_ids.push_back(event_id(key).ok_or_else(|| bad(rows::EVENTS, "a short key"))?);
        Ok(())
    }

    fn request(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::RequestRow = decode(rows::REQUESTS, value)?;
        version(rows::REQUESTS, row.version)?;
        let number: [u8; 8] = key.try_into().map_err(|_| bad(rows::REQUESTS, "a short key"))?;
        let (number, kept) = (u64::from_be_bytes(number), upkeep::request(row)?);
        state.index_request(&kept.key, number);
        state.requests.insert(number, kept);
        Ok(())
    }

    fn gone(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::GoneRow = decode(rows::GONE, value)?;
        version(rows::GONE, row.version)?;
        let key = std::str::from_utf8(key).map_err(|error| bad(rows::GONE, error))?;
        state.gone.insert(key.to_owned(), upkeep::gone(row));
        Ok(())
    }

    fn answer(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let row: v1::AnswerRow = decode(rows::ANSWERS, value)?;
        version(rows::ANSWERS, row.version)?;
        let number: [u8; 8] = key.try_into().map_err(|_| bad(rows::ANSWERS, "a short key"))?;
        let number = u64::from_be_bytes(number);
        let key = AnswerKey {
            framework: FrameworkId(row.framework),
            principal: row.principal,
            key: row.idempotency_key,
        };
        state.answer_numbers.insert(key.clone(), number);
        state.answers.insert(number, key);
        Ok(())
    }
}

/// The event that a key names.
pub(crate) fn event_id(key: &[u8]) -> Option<EventId> {
    let (index, n) = key.split_first_chunk::<8>()?;
    Some(EventId { index: u64::from_be_bytes(*index), n: u32::from_be_bytes(n.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::CommandResult;
    use crate::lifecycle::StateVersions;
    use crate::repeats::KeptRequest;
    use crate::rows::RowChange;
    use crate::upkeep::{Drain, Gone, Maintenance};
    use crate::testing::MemRows;
    use tessera_types::{Launch, TaskStatus};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn task() -> Task {
        let status = TaskStatus::new("t1".parse().unwrap(), AgentId(3), TaskState::Running, 17);
        Task {
            launch: Launch {
                task: "t1".parse().unwrap(),
                spec: Digest([7; 32]),
                args: vec!["a".into()],
                env: vec![("K".into(), "v".into())],
            },
            name: "count".into(),
            agent: AgentId(3),
            charge: Resources::of(tessera_types::Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }),
            revocable: false,
            group: 0,
            state: TaskState::Running,
            attempt: 1,
            created_ms: 16,
            sequence: 2,
            agent_sequence: 2,
            order: 5,
            latest: Some(StoredUpdate { sequence: 2, status: status.clone() }),
            terminal: None,
            status,
            kill: Some(KillIntent { grace_ms: 3000, reason: Reason::UserKill }),
            steps: StatusSteps::default(),
            trace: None,
        }
    }

    #[test]
    fn rows_have_these_bytes() {
        let meta = Meta {
            cluster: "c".into(),
            time_ms: 1,
            next_agent: 2,
            next_framework: 3,
            index: 4,
            answers_next: 5,
            events_last: EventId { index: 6, n: 7 },
            requests_next: 8,
            cluster_version: 0,
            restores: Vec::new(),
            steady_ms: 0,
        };
        assert_eq!(hex(&meta.encode()), "080112016318012002280330043805400648075008");
        let component = Component {
            size_bytes: 300,
            world: World::Command,
            principal: "admin".into(),
            added_ms: 9,
            state: StateVersions { writes: 2, reads: vec![1], migrates: true },
            source: "oci://r".into(),
        };
        assert_eq!(hex(&component.encode(&Digest([1; 32]), "{}".into())), "08011220010101010101010101010101010101010101010101010101010101010101010118ac0220032a0561646d696e30093a070802120101180142076f63693a2f2f724a027b7d");
        assert_eq!(hex(&encode_timer(1000)), "080110e807");
        assert_eq!(hex(&task().encode()), "080112310a027431122007070707070707070707070707070707070707070707070707070707070707071a016122060a014b1201761803220508c80110402803300138104002480250055a100802120c0a02743110031803480150116a0c0a0274311003180348015011720e08b8171209555345525f4b494c4c7a05636f756e74");
    }

    #[test]
    fn rows_of_upkeep_have_these_bytes_and_load_again() {
        let agent = Agent {
            key: "k".into(),
            boot: "b2".into(),
            hostname: "h".into(),
            attributes: vec![],
            version: String::new(),
            missing: vec![],
            engine: String::new(),
            resources: tessera_types::AgentResources::default(),
            registered_ms: 1,
            unreachable_ms: None,
            deactivated: true,
            drain: Some(Drain { since_ms: 2, deadline_ms: 3, over: true }),
            maintenance: Some(Maintenance { start_ms: 4, end_ms: 5 }),
            boots_before: vec!["b1".into()],
            strangers: BTreeMap::new(),
            charged: Resources::ZERO,
            charged_revocable: Resources::ZERO,
            tasks: BTreeSet::new(),
            executors: BTreeMap::new(),
        };
        let gone = Gone { agent: AgentId(7), at_ms: 8, hostname: "h".into() };
        let kept = KeptRequest {
            key: ("admin".into(), "k".into()),
            fingerprint: Digest([2; 32]),
            at_ms: 9,
            result: CommandResult::Version(3),
        };
        let rows_bytes = [
            (rows::AGENTS, rows::agent_key(AgentId(6)), agent.encode(AgentId(6))),
            (rows::GONE, b"old".to_vec(), gone.encode()),
            (rows::REQUESTS, 4_u64.to_be_bytes().to_vec(), encode_request(&kept).unwrap()),
        ];
        let expected = [
            "080110061a016b220262322a070a01681a002200300140014a060802100318015204080410055a026231",
            "080110071808220168",
            "0801120561646d696e1a016b2220020202020202020202020202020202020202020202020202020202020202020228094003",
        ];
        let mut stored = MemRows::default();
        for ((table, key, value), expected) in rows_bytes.into_iter().zip(expected) {
            assert_eq!(hex(&value), expected, "table {table}");
            stored.write(vec![RowChange::Put { table, key, value }]);
        }
        let state = load(&stored).unwrap();
        assert_eq!(state.agents[&AgentId(6)], agent);
        assert_eq!(state.gone["old"], gone);
        assert_eq!(state.requests[&4], kept);
        assert_eq!(state.request_numbers[&kept.key], 4);
    }

    #[test]
    fn a_task_row_round_trips() {
        assert_eq!(Task::decode(rows::TASKS, &task().encode()), Ok(task()));
    }

    #[test]
    fn a_framework_of_before_versions_were_kept_has_one() {
        let row = v1::FrameworkRow {
            version: ROW_VERSION,
            framework: 1,
            name: "web".into(),
            role: "prod".into(),
            component: vec![7; 32],
            created_ms: 5,
            ..v1::FrameworkRow::default()
        };
        let mut stored = MemRows::default();
        let key = rows::framework_key(FrameworkId(1));
        stored.write(vec![RowChange::Put { table: rows::FRAMEWORKS, key, value: row.encode_to_vec() }]);
        let state = load(&stored).unwrap();
        let framework = &state.frameworks[&FrameworkId(1)];
        assert_eq!((framework.version(), framework.config_version, framework.config_seen), (1, 1, 1));
        assert_eq!(framework.versions[0].component, framework.component);
    }

    #[test]
    fn rows_of_a_newer_build_and_broken_rows_are_refused() {
        let load_with = |table: u8, key: &[u8], value: Vec<u8>| {
            let mut stored = MemRows::default();
            stored.write(vec![RowChange::Put { table, key: key.to_vec(), value }]);
            load(&stored).unwrap_err()
        };
        let newer = v1::MetaRow { version: 2, ..v1::MetaRow::default() }.encode_to_vec();
        let error = load_with(rows::META, b"meta", newer);
        assert_eq!(error, LoadError::NewerVersion { table: rows::META, found: 2 });
        for table in [rows::AGENTS, rows::COMPONENTS, rows::FRAMEWORKS, rows::TASKS, rows::ANSWERS] {
            let error = load_with(table, &[0; 9], vec![0xff; 5]);
            assert!(matches!(error, LoadError::Malformed { .. }), "{table}: {error}");
        }
        let orphan = load_with(rows::TASKS, &rows::owned_key(FrameworkId(1), b"t1"), task().encode());
        assert!(orphan.to_string().contains("f1 is not there"), "{orphan}");
    }
}
