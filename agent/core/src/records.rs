//! Checkpoint records: how they are built and what replaying them gives.
//!
//! Invariants: records are versioned and their bytes are fixed by golden tests; a replay of a prefix is
//! a state that the agent was in. This file must never decide what to do about what it finds.

use crate::action::TaskKey;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_types::{Digest, Launch, RoleName, TaskSpec, TaskStatus};
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
    pub abandoned: bool,
    pub ended: Option<TaskStatus>,
    pub acked: bool,
}

/// Everything that a checkpoint says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Replay {
    pub generation: u64,
    pub tasks: BTreeMap<TaskKey, Kept>,
    specs: BTreeMap<Digest, Arc<TaskSpec>>,
}

pub(crate) fn record(record: Record) -> v1::CheckpointRecord {
    v1::CheckpointRecord {
        version: CHECKPOINT_VERSION,
        record: Some(record),
    }
}

fn wire(field: &'static str, rule: impl ToString) -> RecordError {
    RecordError::Damaged(tessera_wire::WireError::new(field, rule.to_string()))
}

fn key_of(key: Option<v1::TaskKey>) -> Result<TaskKey, RecordError> {
    let key = key.ok_or_else(|| wire("key", "is missing"))?;
    Ok(TaskKey {
        framework: tessera_types::FrameworkId(key.framework),
        task: key
            .task
            .try_into()
            .map_err(|error| wire("key.task", error))?,
    })
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
            Record::Generation(kept) => self.generation = kept.generation,
            Record::Forgotten(forgotten) => {
                self.tasks.remove(&key_of(forgotten.key)?);
            }
            Record::Attempt(attempt) => {
                self.change(attempt.key, |task| task.attempt = attempt.attempt)?;
            }
            Record::WasmSent(sent) => {
                self.change(sent.key, |task| {
                    task.wasm_sent = Some((sent.attempt, sent.worker))
                })?;
            }
            Record::Kill(kill) => self.change(kill.key, |task| {
                task.kill_grace_ms = Some(kill.grace_ms);
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
        let key = TaskKey {
            framework: tessera_types::FrameworkId(accepted.framework),
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
            abandoned: false,
            ended: None,
            acked: false,
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
}

/// Records that give exactly this set of tasks: what a compacted checkpoint holds.
pub(crate) fn compacted<'a>(
    generation: u64,
    tasks: impl Iterator<Item = (&'a TaskKey, Kept)>,
) -> Vec<v1::CheckpointRecord> {
    let mut specs = std::collections::BTreeSet::new();
    let mut records = Vec::new();
    for (key, task) in tasks {
        let wire_key = || Some(v1::TaskKey::from(key));
        if specs.insert(task.launch.spec) {
            let encoded = tessera_wire::encode_spec(&task.spec);
            records.push(record(Record::Spec(v1::SpecKept { encoded })));
        }
        records.push(record(Record::Accepted(v1::TaskAccepted {
            framework: key.framework.0,
            role: task.role.to_string(),
            launch: Some((&task.launch).into()),
        })));
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
    records.push(record(Record::Generation(v1::GenerationKept {
        generation,
    })));
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use tessera_types::{AgentId, FrameworkId, NativeCommand, Quantities, TaskBody, TaskState};

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "n".into(),
            body: TaskBody::Native(NativeCommand::Shell("true".into())),
            resources: Quantities {
                cpus_milli: 1,
                mem_mib: 2,
                disk_mib: 0,
            },
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
        let key = TaskKey {
            framework: FrameworkId(1),
            task: launch.task.clone(),
        };
        let kept = Kept {
            role: "r".parse().unwrap(),
            launch,
            spec: Arc::new(spec()),
            attempt: 2,
            wasm_sent: Some((2, "w".into())),
            kill_grace_ms: Some(5),
            abandoned: true,
            ended: Some(ended),
            acked: true,
        };
        (key, kept)
    }

    #[test]
    fn a_compacted_checkpoint_replays_to_the_same_tasks() {
        let (key, task) = kept();
        let records = compacted(7, [(&key, task.clone())].into_iter());
        let mut replay = Replay::default();
        for record in records {
            let bytes = record.encode_to_vec();
            replay
                .add(v1::CheckpointRecord::decode(bytes.as_slice()).unwrap())
                .unwrap();
        }
        assert_eq!(
            (replay.generation, replay.tasks),
            (7, BTreeMap::from([(key, task)]))
        );
    }

    #[test]
    fn the_bytes_of_every_record_are_fixed() {
        let (key, task) = kept();
        let hex: Vec<String> = compacted(7, [(&key, task)].into_iter())
            .iter()
            .chain([&record(Record::Forgotten(v1::TaskForgotten {
                key: Some((&key).into()),
            }))])
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
