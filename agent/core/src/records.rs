//! Checkpoint records: how they are built and what replaying them gives.
//!
//! Invariants: records are versioned and their bytes are fixed by golden tests; a replay of a prefix is
//! a state that the agent was in. This file must never decide what to do about what it finds.

use crate::action::{ExecutorKey, Parent, TaskKey};
use crate::executor_records::KeptExecutor;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_types::{
    Digest, FrameworkId, Launch, NameError, RoleName, TaskBody, TaskSpec, TaskState, TaskStatus,
};
use tessera_wire::v1;
use v1::checkpoint_record::Record;

/// Version of the records that this crate writes and the newest that it reads.
pub const CHECKPOINT_VERSION: u32 = 1;

/// Why a checkpoint cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer agent.
    #[error("the checkpoint has records of version {found}; this agent reads up to {known}")]
    Newer {
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// A field that breaks a rule.
    #[error("a checkpoint record is damaged: {0}")]
    Damaged(#[from] tessera_wire::WireError),
    /// A record of a kind that is not known, or none.
    #[error("a checkpoint record is of an unknown kind")]
    Unknown,
}

/// A task as the checkpoint knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    pub role: RoleName,
    pub launch: Launch,
    pub spec: Arc<TaskSpec>,
    pub attempt: u32,
    pub wasm_sent: Option<(u32, String)>,
    pub kill_grace_ms: Option<u64>,
    pub kill_group: bool,
    pub abandoned: bool,
    pub ended: Option<TaskStatus>,
    pub acked: bool,
    pub group: u64,
    pub launched: bool,
    /// The newest state that its executor said; only of a task that was launched.
    pub state: Option<TaskState>,
}

/// Everything that a checkpoint says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Replay {
    pub generation: u64,
    /// Lives of executors so far.
    pub lives: u64,
    pub limits: Vec<v1::RoleLimits>,
    pub tasks: BTreeMap<TaskKey, Kept>,
    pub executors: BTreeMap<ExecutorKey, KeptExecutor>,
    specs: BTreeMap<Digest, Arc<TaskSpec>>,
}

pub(crate) fn record(record: Record) -> v1::CheckpointRecord {
    v1::CheckpointRecord {
        version: CHECKPOINT_VERSION,
        record: Some(record),
    }
}

pub(crate) fn wire(field: &'static str, rule: impl ToString) -> RecordError {
    RecordError::Damaged(tessera_wire::WireError::new(field, rule.to_string()))
}

pub(crate) fn executor_key(framework: u64, executor: String) -> Result<ExecutorKey, RecordError> {
    Ok(ExecutorKey {
        framework: FrameworkId(framework),
        executor: executor
            .try_into()
            .map_err(|error| wire("executor", error))?,
    })
}

/// The record of a task or child that was taken up.
pub(crate) fn accepted(key: &TaskKey, role: &RoleName, launch: &Launch, group: u64) -> Record {
    let (executor, life) = match &key.parent {
        Some(parent) => (parent.executor.to_string(), parent.life),
        None => (String::new(), 0),
    };
    Record::Accepted(v1::TaskAccepted {
        framework: key.framework.0,
        role: role.to_string(),
        launch: Some(launch.into()),
        group,
        executor,
        life,
    })
}

fn key_of(key: Option<v1::TaskKey>) -> Result<TaskKey, RecordError> {
    let key = key.ok_or_else(|| wire("key", "is missing"))?;
    let framework = FrameworkId(key.framework);
    TaskKey::parse(framework, &key.task).map_err(|error| wire("key.task", error))
}

impl Replay {
    /// Add one record. Records of tasks that are not known are left out: the task was forgotten.
    pub(crate) fn add(&mut self, record: v1::CheckpointRecord) -> Result<(), RecordError> {
        if record.version > CHECKPOINT_VERSION {
            return Err(RecordError::Newer {
                found: record.version,
                known: CHECKPOINT_VERSION,
            });
        }
        match record.record.ok_or(RecordError::Unknown)? {
            Record::Spec(spec) => {
                let decoded = tessera_wire::decode_spec(&spec.encoded)?;
                self.specs
                    .insert(Digest::of(&spec.encoded), Arc::new(decoded));
            }
            Record::Accepted(accepted) => self.accept(accepted)?,
            Record::Generation(kept) => {
                self.generation = kept.generation;
                self.lives = self.lives.max(kept.lives);
            }
            Record::Limits(kept) => self.limits = kept.roles,
            Record::ExecutorBegun(begun) => self.begin_executor(begun)?,
            Record::ExecutorTurn(turn) => self.add_turn(turn)?,
            Record::ExecutorStopping(executor) => {
                let key = executor_key(executor.framework, executor.executor)?;
                if let Some(executor) = self.executors.get_mut(&key) {
                    executor.stopping = true;
                }
            }
            Record::ExecutorEnded(executor) => {
                self.executors
                    .remove(&executor_key(executor.framework, executor.executor)?);
            }
            Record::Forgotten(forgotten) => {
                self.tasks.remove(&key_of(forgotten.key)?);
            }
            Record::Attempt(attempt) => {
                self.change(attempt.key, |task| task.attempt = attempt.attempt)?;
            }
            Record::WasmSent(sent) => {
                self.change(sent.key, |task| {
                    // To no worker: the one that it was sent to had no room for it.
                    let sent = (sent.attempt, sent.worker);
                    task.wasm_sent = (!sent.1.is_empty()).then_some(sent);
                })?;
            }
            Record::Kill(kill) => self.change(kill.key, |task| {
                task.kill_grace_ms = Some(kill.grace_ms);
                task.kill_group = kill.group;
                task.abandoned |= kill.abandoned;
            })?,
            Record::Ended(ended) => {
                let status = ended
                    .status
                    .ok_or_else(|| wire("status", "is missing"))?
                    .try_into()?;
                self.change(ended.key, |task| task.ended = Some(status))?;
            }
            Record::Acked(acked) => self.change(acked.key, |task| task.acked = true)?,
        }
        Ok(())
    }

    fn accept(&mut self, accepted: v1::TaskAccepted) -> Result<(), RecordError> {
        let launch: Launch = accepted
            .launch
            .ok_or_else(|| wire("launch", "is missing"))?
            .try_into()?;
        let spec = self
            .specs
            .get(&launch.spec)
            .ok_or_else(|| wire("launch.spec", "is not on record"))?;
        let parent = if accepted.executor.is_empty() {
            None
        } else {
            let executor = accepted.executor.parse();
            Some(Parent {
                executor: executor.map_err(|error: NameError| wire("executor", error))?,
                life: accepted.life,
            })
        };
        let key = TaskKey {
            framework: FrameworkId(accepted.framework),
            parent,
            task: launch.task.clone(),
        };
        let kept = Kept {
            role: accepted
                .role
                .try_into()
                .map_err(|error| wire("role", error))?,
            spec: Arc::clone(spec),
            launch,
            attempt: 1,
            wasm_sent: None,
            kill_grace_ms: None,
            kill_group: false,
            abandoned: false,
            ended: None,
            acked: false,
            group: accepted.group,
            launched: false,
            state: None,
        };
        self.tasks.insert(key, kept);
        Ok(())
    }

    fn change(
        &mut self,
        key: Option<v1::TaskKey>,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), RecordError> {
        if let Some(task) = self.tasks.get_mut(&key_of(key)?) {
            change(task);
        }
        Ok(())
    }

    /// Change a task by its name.
    pub(crate) fn change_task(
        &mut self,
        framework: u64,
        task: &str,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), RecordError> {
        let task = task.to_owned();
        self.change(Some(v1::TaskKey { framework, task }), change)
    }
}

/// What a compacted checkpoint holds beside tasks.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub generation: u64,
    pub lives: u64,
    pub limits: Vec<v1::RoleLimits>,
    pub executors: BTreeMap<ExecutorKey, KeptExecutor>,
}

/// Records that give exactly this set of tasks and executors: what a compacted checkpoint holds.
pub(crate) fn compacted<'a>(
    whole: Whole,
    tasks: impl Iterator<Item = (&'a TaskKey, Kept)>,
) -> Vec<v1::CheckpointRecord> {
    let mut launched: BTreeMap<ExecutorKey, Vec<(String, TaskState)>> = BTreeMap::new();
    let mut specs = std::collections::BTreeSet::new();
    let mut records = Vec::new();
    for (key, task) in tasks {
        let wire_key = || Some(v1::TaskKey::from(key));
        if let (TaskBody::Executor(of), true) = (&task.spec.body, task.launched) {
            let executor = ExecutorKey {
                framework: key.framework,
                executor: of.executor.clone(),
            };
            let state = task.state.unwrap_or(TaskState::Starting);
            let tasks = launched.entry(executor).or_default();
            tasks.push((key.task.to_string(), state));
        }
        if specs.insert(task.launch.spec) {
            let encoded = tessera_wire::encode_spec(&task.spec);
            records.push(record(Record::Spec(v1::SpecKept { encoded })));
        }
        records.push(record(accepted(key, &task.role, &task.launch, task.group)));
        if task.attempt > 1 {
            let attempt = v1::TaskAttempt {
                key: wire_key(),
                attempt: task.attempt,
            };
            records.push(record(Record::Attempt(attempt)));
        }
        if let Some((attempt, worker)) = task.wasm_sent {
            records.push(record(Record::WasmSent(v1::WasmSent {
                key: wire_key(),
                attempt,
                worker,
            })));
        }
        if let Some(grace_ms) = task.kill_grace_ms {
            let kill = v1::TaskKill {
                key: wire_key(),
                grace_ms,
                abandoned: task.abandoned,
                group: task.kill_group,
            };
            records.push(record(Record::Kill(kill)));
        }
        if let Some(status) = &task.ended {
            let ended = v1::TaskEnded {
                key: wire_key(),
                status: Some(status.into()),
            };
            records.push(record(Record::Ended(ended)));
        }
        if task.acked {
            records.push(record(Record::Acked(v1::TaskAcked { key: wire_key() })));
        }
    }
    for (key, executor) in &whole.executors {
        let launched = launched.remove(key).unwrap_or_default();
        records.extend(executor.records(key, &launched).into_iter().map(record));
    }
    if !whole.limits.is_empty() {
        records.push(record(Record::Limits(v1::LimitsKept {
            roles: whole.limits,
        })));
    }
    records.push(record(Record::Generation(v1::GenerationKept {
        generation: whole.generation,
        lives: whole.lives,
    })));
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor_records::KeptTimer;
    use prost::Message as _;
    use tessera_types::{AgentId, FrameworkId, NativeCommand, Quantities, Resources, TaskBody, TaskState};

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "n".into(),
            body: TaskBody::Native(NativeCommand::Shell("true".into())),
            resources: Quantities { cpus_milli: 1, mem_mib: 2, disk_mib: 0 }.into(),
            revocable: false,
            cpus_limit_milli: None,
            pids_limit: None,
            user: None,
            env: vec![],
            files: vec![],
            result_file: None,
            grace_ms: None,
            restarts: 0,
            labels: vec![],
        }
    }

    fn kept() -> (TaskKey, Kept) {
        let encoded = tessera_wire::encode_spec(&spec());
        let launch = Launch {
            task: "t".parse().unwrap(),
            spec: Digest::of(&encoded),
            args: vec![],
            env: vec![],
        };
        let mut ended = TaskStatus::new(launch.task.clone(), AgentId(3), TaskState::Killed, 9);
        ended.attempt = 2;
        let key = TaskKey::of(FrameworkId(1), launch.task.clone());
        let kept = Kept {
            role: "r".parse().unwrap(),
            launch,
            spec: Arc::new(spec()),
            attempt: 2,
            wasm_sent: Some((2, "w".into())),
            kill_grace_ms: Some(5),
            kill_group: false,
            abandoned: true,
            ended: Some(ended),
            acked: true,
            group: 0,
            launched: false,
            state: None,
        };
        (key, kept)
    }

    /// A task in a group that its executor has, a child of that executor, and the rest.
    fn whole() -> (Whole, Vec<(TaskKey, Kept)>) {
        let resources = Resources::of(Quantities { cpus_milli: 1, mem_mib: 16, disk_mib: 0 });
        let executor = ExecutorKey {
            framework: FrameworkId(1),
            executor: "e".parse().unwrap(),
        };
        let body = TaskBody::Executor(tessera_types::ExecutorTask {
            executor: executor.executor.clone(),
            component: Digest::of(b"c"),
            resources: resources.clone(),
            config: vec![("k".into(), "v".into())],
            data: vec![1],
        });
        let (_, plain) = kept();
        let plain = Kept {
            attempt: 1,
            wasm_sent: None,
            kill_grace_ms: None,
            abandoned: false,
            ended: None,
            acked: false,
            ..plain
        };
        let spec = TaskSpec { body, ..spec() };
        let mut task = Kept {
            kill_grace_ms: Some(7),
            kill_group: true,
            group: 3,
            launched: true,
            state: Some(TaskState::Running),
            ..plain.clone()
        };
        task.launch.spec = Digest::of(&tessera_wire::encode_spec(&spec));
        task.spec = Arc::new(spec);
        let child = TaskKey {
            framework: FrameworkId(1),
            parent: Some(Parent {
                executor: executor.executor.clone(),
                life: 2,
            }),
            task: "c".parse().unwrap(),
        };
        let mut of_child = plain;
        of_child.launch.task = child.task.clone();
        let refused = "x".parse().unwrap();
        let refused = TaskStatus::new(refused, tessera_types::AgentId(1), TaskState::Error, 3);
        let kept = KeptExecutor {
            life: 2,
            role: "r".parse().unwrap(),
            component: Digest::of(b"c"),
            resources,
            config: vec![("k".into(), "v".into())],
            next_turn: 5,
            state: BTreeMap::from([("s".into(), vec![9])]),
            timers: BTreeMap::from([("t".into(), KeptTimer { due_ms: 8, delay_ms: 3 })]),
            child_ids: ["c".to_owned()].into(),
            refused: [("x".to_owned(), refused)].into(),
            again: true,
            finish: true,
            stopping: true,
        };
        let whole = Whole {
            generation: 7,
            lives: 4,
            limits: vec![v1::RoleLimits {
                role: "r".into(),
                limits: vec![(tessera_types::LimitName::Timers, 6).into()],
            }],
            executors: BTreeMap::from([(executor, kept)]),
        };
        let key = TaskKey::of(FrameworkId(1), "t".parse().unwrap());
        (whole, vec![(key, task), (child, of_child)])
    }

    fn replayed(records: Vec<v1::CheckpointRecord>) -> Replay {
        let mut replay = Replay::default();
        for record in records {
            let bytes = record.encode_to_vec();
            let record = v1::CheckpointRecord::decode(bytes.as_slice()).unwrap();
            replay.add(record).unwrap();
        }
        replay
    }

    #[test]
    fn a_compacted_checkpoint_replays_to_the_same_executors() {
        let (whole, tasks) = whole();
        let (executors, limits) = (whole.executors.clone(), whole.limits.clone());
        let replay = replayed(compacted(whole, tasks.iter().map(|(k, t)| (k, t.clone()))));
        assert_eq!((replay.lives, replay.limits), (4, limits));
        assert_eq!(replay.executors, executors);
        assert_eq!(replay.tasks, tasks.into_iter().collect());
    }

    #[test]
    fn a_compacted_checkpoint_replays_to_the_same_tasks() {
        let (key, task) = kept();
        let whole = Whole {
            generation: 7,
            ..Whole::default()
        };
        let replay = replayed(compacted(whole, [(&key, task.clone())].into_iter()));
        assert_eq!(
            (replay.generation, replay.tasks),
            (7, BTreeMap::from([(key, task)]))
        );
    }

    #[test]
    fn the_bytes_of_every_record_are_fixed() {
        let (key, task) = kept();
        let first = Whole {
            generation: 7,
            ..Whole::default()
        };
        let (whole, tasks) = whole();
        let forgotten = record(Record::Forgotten(v1::TaskForgotten {
            key: Some((&key).into()),
        }));
        let ended = record(Record::ExecutorEnded(v1::ExecutorEnded {
            framework: 1,
            executor: "e".into(),
        }));
        let hex: Vec<String> = compacted(first, [(&key, task)].into_iter())
            .iter()
            .chain([&forgotten])
            .chain(&compacted(whole, tasks.iter().map(|(k, t)| (k, t.clone()))))
            .chain([&ended])
            .map(|record| {
                record
                    .encode_to_vec()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect()
            })
            .collect();
        assert_eq!(hex.join("\n"), include_str!("golden/records.txt").trim());
    }

    #[test]
    fn newer_and_unknown_records_are_refused_and_unknown_tasks_are_not() {
        let mut replay = Replay::default();
        let newer = v1::CheckpointRecord {
            version: 2,
            record: None,
        };
        assert_eq!(
            replay.add(newer),
            Err(RecordError::Newer { found: 2, known: 1 })
        );
        let empty = v1::CheckpointRecord {
            version: 1,
            record: None,
        };
        assert_eq!(replay.add(empty), Err(RecordError::Unknown));
        let (key, _) = kept();
        let stray = v1::TaskAttempt {
            key: Some((&key).into()),
            attempt: 4,
        };
        assert_eq!(replay.add(record(Record::Attempt(stray))), Ok(()));
        assert_eq!(replay, Replay::default());
    }
}
