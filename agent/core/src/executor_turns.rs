//! Turns of executors: what a batch came to, kept and then done.
//!
//! Invariants: a turn is on record before the worker hears so and before anything of it happens; its
//! record comes after those of what it did; a turn that was kept is only acknowledged again; what an
//! executor says of tasks that are not its own, or that ended, is left out. This file must never trust
//! that a worker held a limit.

use crate::action::{Action, ExecutorKey, Now, TaskKey, WorkerKey};
use crate::core::Core;
use crate::executor_events::{AGAIN_MS, Given};
use crate::executor_records::KeptTimer;
use crate::executors::Phase;
use crate::outbox::sequence;
use crate::task::{Ending, Phase as TaskPhase};
use prost::Message as _;
use tessera_types::{LimitName, Reason, TaskState, limits};
use tessera_wire::v1;
use v1::checkpoint_record::Record;
use v1::executor_operation::Operation;
use v1::to_worker::Message as ToWorker;

/// Bytes of turns that one executor may have written down in a second: the disk is the whole agent's.
const TURN_BYTES_PER_SECOND: u64 = 4 << 20;
/// Bytes of one turn's record, below what a checkpoint takes: writes and operations have at most half of
/// it each.
const TURN_BYTES_MAX: usize = 4 << 20;

impl Core {
    /// A worker submits what an executor made of its batch.
    pub fn on_executor_turn(
        &mut self,
        worker: &WorkerKey,
        turn: v1::ExecutorTurn,
        now: Now,
    ) -> Vec<Action> {
        if let Some(key) = self.executor_in(worker, turn.key.clone())
            && let Some(executor) = self.executors.live.get_mut(&key)
            && executor.phase == Phase::Ready
        {
            if turn.number < executor.kept.next_turn {
                self.acknowledge(worker, &key, turn.number);
            } else if executor.outstanding.as_ref().map(|given| given.number) == Some(turn.number) {
                match self.check_turn(&key, &turn) {
                    Ok(()) => self.keep_turn(worker, &key, turn, now),
                    Err(why) => {
                        self.stop_instance_of(&key);
                        self.executor_failed(&key, true, &why, now);
                    }
                }
            }
        }
        self.finish(now)
    }

    fn acknowledge(&mut self, worker: &WorkerKey, key: &ExecutorKey, number: u64) {
        self.actions.push(Action::ToWorker {
            worker: worker.clone(),
            message: ToWorker::ExecutorTurnKept(v1::ExecutorTurnKept {
                key: Some(key.into()),
                number,
            }),
        });
    }

    /// Whether a turn may be kept, or which limit it breaks.
    fn check_turn(&self, key: &ExecutorKey, turn: &v1::ExecutorTurn) -> Result<(), String> {
        let Some(executor) = self.executors.live.get(key) else {
            return Ok(());
        };
        if turn.encoded_len() > TURN_BYTES_MAX {
            return Err(format!("a turn has at most {TURN_BYTES_MAX} bytes"));
        }
        let told = tessera_wire::effective_limits(&executor.told);
        let state = &executor.kept.state;
        let (mut bytes, mut keys) = (executor.state_bytes, state.len() as u64);
        let mut written: std::collections::BTreeMap<&str, Option<usize>> = Default::default();
        for write in &turn.writes {
            if write.key.is_empty() || write.key.len() > limits::KEY_BYTES_MAX {
                return Err(format!("a key has 1 to {} bytes", limits::KEY_BYTES_MAX));
            }
            let new = write.value.as_ref().map(Vec::len);
            if new.is_some_and(|value| value > limits::VALUE_BYTES_MAX) {
                return Err(format!("a value has at most {} bytes", limits::VALUE_BYTES_MAX));
            }
            let before = written
                .insert(&write.key, new)
                .unwrap_or_else(|| state.get(&write.key).map(Vec::len));
            let size = |value: Option<usize>| value.map_or(0, |v| (v + write.key.len()) as u64);
            bytes = (bytes + size(new)).saturating_sub(size(before));
            keys = (keys + u64::from(new.is_some())).saturating_sub(u64::from(before.is_some()));
        }
        for (name, value) in [
            (LimitName::ExecutorStateBytes, bytes),
            (LimitName::ExecutorStateKeys, keys),
        ] {
            let most = told.get(name);
            // What was written under a higher limit stays, and may shrink.
            if value > most && !turn.writes.is_empty() && value > executor.size_of(name) {
                return Err(format!("limit {name}: at most {most}"));
            }
        }
        Ok(())
    }

    fn keep_turn(
        &mut self,
        worker: &WorkerKey,
        key: &ExecutorKey,
        turn: v1::ExecutorTurn,
        now: Now,
    ) {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        let Some(given) = executor.outstanding.take() else {
            return;
        };
        let bytes = turn.encoded_len() as u64;
        let mut record = v1::ExecutorTurnKeptRecord {
            framework: key.framework.0,
            executor: key.executor.to_string(),
            number: turn.number,
            ..v1::ExecutorTurnKeptRecord::default()
        };
        self.settle(key, given, &mut record, now);
        self.write_state(key, turn.writes, &mut record);
        let mut left_out: Vec<String> = Vec::new();
        for operation in turn.operations.into_iter().filter_map(|o| o.operation) {
            if let Err(why) = self.operate(key, operation, &mut record, now) {
                left_out.push(why);
            }
        }
        if let Some(first) = left_out.first() {
            let others = left_out.len() - 1;
            let text = format!("executor {key}: left out of its turn: {first}; {others} more");
            self.actions.push(Action::Warn(text));
        }
        self.state_of_tasks(key, &mut record);
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        executor.kept.next_turn = turn.number + 1;
        executor.kept.again = record.again;
        executor.kept.finish |= record.finish;
        executor.worked();
        let rest_ms = bytes * 1_000 / TURN_BYTES_PER_SECOND;
        let rest_ms = rest_ms.max(if record.again { AGAIN_MS } else { 0 });
        executor.rest_until_ms = (rest_ms > 0).then_some(now.mono_ms + rest_ms);
        self.keep(Record::ExecutorTurn(record));
        self.acknowledge(worker, key, turn.number);
    }

    /// What a batch told is told for good.
    fn settle(
        &mut self,
        key: &ExecutorKey,
        given: Given,
        record: &mut v1::ExecutorTurnKeptRecord,
        now: Now,
    ) {
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.introduced |= given.started;
            let told = given.refused.min(executor.kept.refused.len());
            executor.kept.refused.drain(..told);
            record.refusals_told = u32::try_from(told).unwrap_or(u32::MAX);
            for (id, timer) in given.timers {
                if executor.kept.timers.get(&id) == Some(&timer) {
                    executor.kept.timers.remove(&id);
                    executor.timer_at.remove(&id);
                    record.cancelled.push(id);
                }
            }
            if let Some(stopping) = &mut executor.stopping {
                stopping.told |= given.shutdown;
            }
        }
        for task_key in given.launched {
            let Some(task) = self.tasks.get_mut(&task_key) else {
                continue;
            };
            if task.over().is_some() {
                continue;
            }
            task.launched = true;
            record.launched.push(task_key.task.to_string());
            if task.killing.is_none() {
                self.report(&task_key, TaskState::Starting, now);
            }
        }
        for (task, grace_ms) in given.kills {
            if let Some(task) = self.tasks.get_mut(&task) {
                task.kill_told = Some(grace_ms);
            }
        }
        for (child, told) in given.children {
            let Some(task) = self.tasks.get_mut(&child) else {
                continue;
            };
            task.told = Some(told);
            // Seen to its end: nothing has to be known of it any more.
            if task.over().is_some_and(|s| (s.attempt, s.state) == told) {
                self.forget(&child);
            }
        }
    }

    fn write_state(
        &mut self,
        key: &ExecutorKey,
        writes: Vec<v1::KeyWrite>,
        record: &mut v1::ExecutorTurnKeptRecord,
    ) {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return;
        };
        for write in &writes {
            let size = |value: &Vec<u8>| (value.len() + write.key.len()) as u64;
            let before = match &write.value {
                Some(value) => {
                    executor.state_bytes += size(value);
                    executor.kept.state.insert(write.key.clone(), value.clone())
                }
                None => executor.kept.state.remove(&write.key),
            };
            let gone = before.as_ref().map_or(0, size);
            executor.state_bytes = executor.state_bytes.saturating_sub(gone);
        }
        record.writes = writes;
    }

    fn operate(
        &mut self,
        key: &ExecutorKey,
        operation: Operation,
        record: &mut v1::ExecutorTurnKeptRecord,
        now: Now,
    ) -> Result<(), String> {
        match operation {
            Operation::Status(status) => self.take_status(key, status, now)?,
            Operation::StartChild(start) => self.start_child(key, start, record, now)?,
            Operation::StopChild(stop) => self.stop_child(key, &stop, now),
            Operation::Send(data) => {
                if data.len() > limits::MESSAGE_DATA_BYTES_MAX {
                    return Err(format!(
                        "a message has at most {} bytes",
                        limits::MESSAGE_DATA_BYTES_MAX
                    ));
                }
                if let Some(executor) = self.executors.live.get_mut(key) {
                    executor.send(data);
                }
            }
            Operation::SetTimer(timer) => self.set_timer(key, timer, record, now)?,
            Operation::CancelTimer(id) => {
                if let Some(executor) = self.executors.live.get_mut(key) {
                    executor.kept.timers.remove(&id);
                    executor.timer_at.remove(&id);
                }
                record.timers.retain(|timer| timer.id != id);
                record.cancelled.push(id);
            }
            Operation::CallAgain(_) => record.again = true,
            Operation::Finish(_) => record.finish = true,
        }
        Ok(())
    }

    fn set_timer(
        &mut self,
        key: &ExecutorKey,
        timer: v1::ExecutorTimer,
        record: &mut v1::ExecutorTurnKeptRecord,
        now: Now,
    ) -> Result<(), String> {
        let Some(executor) = self.executors.live.get_mut(key) else {
            return Ok(());
        };
        let role = executor.kept.role.clone();
        let known = executor.kept.timers.contains_key(&timer.id);
        let count = executor.kept.timers.len() as u64;
        let most = self.limits_of(&role).get(LimitName::Timers);
        if !known && count >= most {
            return Err(format!("limit {}: at most {most}", LimitName::Timers));
        }
        let latest = now.wall_ms.saturating_add(limits::DURATION_MAX_MS);
        let due_ms = timer.due_ms.min(latest);
        let delay_ms = due_ms.saturating_sub(now.wall_ms).max(limits::TIMER_MIN_MS);
        let timer = v1::ExecutorTimer { id: timer.id, due_ms, delay_ms };
        if let Some(executor) = self.executors.live.get_mut(key) {
            executor.kept.timers.insert(timer.id.clone(), KeptTimer { due_ms, delay_ms });
            executor.timer_at.insert(timer.id.clone(), now.mono_ms + delay_ms);
        }
        record.timers.retain(|other| other.id != timer.id);
        record.timers.push(timer);
        Ok(())
    }

    /// An executor says how one of its tasks is.
    fn take_status(
        &mut self,
        key: &ExecutorKey,
        status: v1::ExecutorStatus,
        now: Now,
    ) -> Result<(), String> {
        let state = TaskState::try_from(status.state()).map_err(|error| error.to_string())?;
        let own = status.task.parse().ok().map(|task| TaskKey::of(key.framework, task));
        let own = own.filter(|task| {
            let executor = self.executors.live.get(key);
            executor.is_some_and(|executor| executor.tasks.contains(task))
        });
        let launched = own.as_ref().and_then(|key| self.tasks.get_mut(key));
        let (Some(task_key), Some(task)) = (&own, launched.filter(|task| task.launched)) else {
            return Err(format!("{:?} is not a task that it has", status.task));
        };
        match state {
            TaskState::Starting | TaskState::Running | TaskState::Killing => {
                // What was said already, or is behind that, says nothing.
                if sequence(1, state) > sequence(1, task.state) {
                    if state == TaskState::Running {
                        task.phase = TaskPhase::Running;
                    }
                    self.report_saying(task_key, state, &status.message, now);
                }
                Ok(())
            }
            TaskState::Finished | TaskState::Failed | TaskState::Killed | TaskState::Error => {
                let mut ending = Ending::new(state, Reason::None, status.message, now.wall_ms);
                ending.data = status.data;
                if let (TaskState::Killed, Some(killing)) = (state, &task.killing) {
                    ending.reason = killing.reason();
                }
                self.end_for_good(task_key, ending, now);
                Ok(())
            }
            TaskState::Staging
            | TaskState::Dropped
            | TaskState::Lost
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unreachable
            | TaskState::Unknown => Err(format!("{state} is not for an executor to say")),
        }
    }

    /// The states of tasks after a turn, for its record.
    fn state_of_tasks(&self, key: &ExecutorKey, record: &mut v1::ExecutorTurnKeptRecord) {
        let Some(executor) = self.executors.live.get(key) else {
            return;
        };
        for task_key in &executor.tasks {
            let Some(task) = self.tasks.get(task_key).filter(|task| task.launched) else {
                continue;
            };
            record.live.push(v1::ExecutorStatus {
                task: task_key.task.to_string(),
                state: v1::TaskState::from(task.state).into(),
                ..v1::ExecutorStatus::default()
            });
        }
    }
}

impl crate::executors::Executor {
    /// How much of a limit of its state it uses now.
    fn size_of(&self, name: LimitName) -> u64 {
        match name {
            LimitName::ExecutorStateBytes => self.state_bytes,
            _ => self.kept.state.len() as u64,
        }
    }
}
