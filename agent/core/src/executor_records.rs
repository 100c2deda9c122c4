//! What a checkpoint knows of custom executors: replaying their records, and writing their present state
//! as records again.
//!
//! Invariants: a kept turn is on record whole, after the records of what it did, so that a torn
//! checkpoint has the doings without the turn, and the turn is done again; doing so changes nothing.
//! This file must never decide what to do about what it finds.

use crate::action::{ExecutorKey, Now};
use crate::records::{RecordError, Replay, executor_key, wire};
use std::collections::{BTreeMap, VecDeque};
use tessera_types::{Digest, NameError, Resources, RoleName, TaskState, TaskStatus, TimeMs};
use tessera_wire::v1;
use v1::checkpoint_record::Record;

/// Bytes of state in one record of a compacted checkpoint, far below what one record may have.
const CHUNK_BYTES: usize = 1 << 20;
/// Ids of children that are remembered per life, so that none is used twice. Older ones are forgotten:
/// their sandboxes were collected long before.
pub(crate) const CHILD_IDS_MAX: usize = 16_384;

/// A timer that an executor has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptTimer {
    /// When it is due, by the clock on the wall.
    pub due_ms: TimeMs,
    /// How long after it was set. The clock may have been put back since: it is waited for no longer than this
    /// again.
    pub delay_ms: u64,
}

impl KeptTimer {
    /// How long it has to be waited for after a start.
    pub(crate) fn left_ms(&self, now: Now) -> u64 {
        self.due_ms.saturating_sub(now.wall_ms).min(self.delay_ms)
    }
}

/// An executor as the checkpoint knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptExecutor {
    pub life: u64,
    pub role: RoleName,
    pub component: Digest,
    pub resources: Resources,
    pub config: Vec<(String, String)>,
    pub next_turn: u64,
    pub state: BTreeMap<String, Vec<u8>>,
    pub timers: BTreeMap<String, KeptTimer>,
    /// Ids that its children had, oldest first.
    pub child_ids: VecDeque<String>,
    /// Children that were not started, and why, as long as it has not been told.
    pub refused: VecDeque<(String, TaskStatus)>,
    pub again: bool,
    pub finish: bool,
    pub stopping: bool,
}

impl Replay {
    pub(crate) fn begin_executor(&mut self, begun: v1::ExecutorBegun) -> Result<(), RecordError> {
        let key = executor_key(begun.framework, begun.executor)?;
        let role = begun.role.try_into();
        let component = Digest::from_slice(&begun.component);
        let config: Vec<(String, String)> = v1::PairList {
            pairs: begun.config,
        }
        .into();
        self.lives = self.lives.max(begun.life);
        let kept = KeptExecutor {
            life: begun.life,
            role: role.map_err(|error: NameError| wire("role", error))?,
            component: component.map_err(|error| wire("component", error))?,
            resources: begun.resources.unwrap_or_default().into(),
            config,
            next_turn: 1,
            state: BTreeMap::new(),
            timers: BTreeMap::new(),
            child_ids: VecDeque::new(),
            refused: VecDeque::new(),
            again: false,
            finish: false,
            stopping: false,
        };
        self.executors.insert(key, kept);
        Ok(())
    }

    pub(crate) fn add_turn(
        &mut self,
        turn: v1::ExecutorTurnKeptRecord,
    ) -> Result<(), RecordError> {
        let key = executor_key(turn.framework, turn.executor.clone())?;
        for name in &turn.launched {
            self.change_task(turn.framework, name, |task| task.launched = true)?;
        }
        for live in &turn.live {
            let state =
                TaskState::try_from(live.state()).map_err(|error| wire("live.state", error))?;
            self.change_task(turn.framework, &live.task, |task| task.state = Some(state))?;
        }
        match self.executors.get_mut(&key) {
            Some(executor) => executor.add_turn(turn),
            None => Ok(()),
        }
    }
}

impl KeptExecutor {
    fn add_turn(&mut self, turn: v1::ExecutorTurnKeptRecord) -> Result<(), RecordError> {
        self.next_turn = turn.number + 1;
        for write in turn.writes {
            match write.value {
                Some(value) => self.state.insert(write.key, value),
                None => self.state.remove(&write.key),
            };
        }
        for id in turn.cancelled {
            self.timers.remove(&id);
        }
        for timer in turn.timers {
            let delay_ms = if timer.delay_ms == 0 { u64::MAX } else { timer.delay_ms };
            self.timers.insert(timer.id, KeptTimer { due_ms: timer.due_ms, delay_ms });
        }
        for id in turn.children {
            remember(&mut self.child_ids, id);
        }
        let told = usize::try_from(turn.refusals_told).unwrap_or(usize::MAX);
        self.refused.drain(..told.min(self.refused.len()));
        for refused in turn.refused {
            let status = TaskStatus::try_from(refused.status.unwrap_or_default());
            let status = status.map_err(|error| wire("refused.status", error))?;
            self.refused.push_back((refused.child, status));
        }
        self.again = turn.again;
        self.finish |= turn.finish;
        Ok(())
    }

    /// Records that give exactly this executor. `launched` are its tasks and their states.
    pub(crate) fn records(
        &self,
        key: &ExecutorKey,
        launched: &[(String, TaskState)],
    ) -> Vec<Record> {
        let mut records = vec![Record::ExecutorBegun(begun(key, self))];
        if let Some(number) = self.next_turn.checked_sub(1).filter(|number| *number > 0) {
            let turn = |writes| v1::ExecutorTurnKeptRecord {
                framework: key.framework.0,
                executor: key.executor.to_string(),
                number,
                writes,
                again: self.again,
                finish: self.finish,
                ..v1::ExecutorTurnKeptRecord::default()
            };
            for writes in chunks(&self.state) {
                records.push(Record::ExecutorTurn(turn(writes)));
            }
            let live = |(task, state): &(String, TaskState)| v1::ExecutorStatus {
                task: task.clone(),
                state: v1::TaskState::from(*state).into(),
                ..v1::ExecutorStatus::default()
            };
            let timer = |(id, timer): (&String, &KeptTimer)| v1::ExecutorTimer {
                id: id.clone(),
                due_ms: timer.due_ms,
                delay_ms: timer.delay_ms,
            };
            let refusal = |(child, status): &(String, TaskStatus)| v1::ChildStatus {
                child: child.clone(),
                status: Some(status.into()),
            };
            records.push(Record::ExecutorTurn(v1::ExecutorTurnKeptRecord {
                launched: launched.iter().map(|(task, _)| task.clone()).collect(),
                live: launched.iter().map(live).collect(),
                timers: self.timers.iter().map(timer).collect(),
                children: self.child_ids.iter().cloned().collect(),
                refused: self.refused.iter().map(refusal).collect(),
                ..turn(Vec::new())
            }));
        }
        if self.stopping {
            records.push(Record::ExecutorStopping(v1::ExecutorStopping {
                framework: key.framework.0,
                executor: key.executor.to_string(),
            }));
        }
        records
    }
}

/// The record of an executor's beginning.
pub(crate) fn begun(key: &ExecutorKey, executor: &KeptExecutor) -> v1::ExecutorBegun {
    v1::ExecutorBegun {
        framework: key.framework.0,
        executor: key.executor.to_string(),
        life: executor.life,
        role: executor.role.to_string(),
        component: executor.component.0.to_vec(),
        resources: Some((&executor.resources).into()),
        config: v1::PairList::from(executor.config.clone()).pairs,
    }
}

/// Remember that an id was used.
pub(crate) fn remember(ids: &mut VecDeque<String>, id: String) {
    if ids.len() >= CHILD_IDS_MAX {
        ids.pop_front();
    }
    ids.push_back(id);
}

/// A state in parts that fit into records and messages.
pub(crate) fn chunks(state: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<v1::KeyWrite>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for (key, value) in state {
        if bytes >= CHUNK_BYTES {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += key.len() + value.len();
        chunk.push(v1::KeyWrite {
            key: key.clone(),
            value: Some(value.clone()),
        });
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
