//! The turn of an executor while it is being made: calls of its driver are checked here and enqueued.
//!
//! Invariants: what is refused has enqueued nothing; a draft never exceeds the limits of a turn, so that
//! it fits into one message and one record of the agent's checkpoint; a child's spec that was taken can be
//! decoded. Whose task a status is about, and whether a child fits, is the agent's to decide. This file
//! must never know the contract's generated types.

use crate::draft::{Refused, check_timer_id, fixed, invalid, limit, task_id, timer_due};
use std::collections::BTreeSet;
use tessera_types::{
    EffectiveLimits, ExecutorId, LimitName, TaskBody, TaskSpec, TaskState, TimeMs, limits, validate_spec,
};
use tessera_wire::v1::{self, executor_operation::Operation};

/// One turn under construction, and what the instance carries from turn to turn for it.
#[derive(Debug, Default)]
pub(crate) struct ExecutorDraft {
    limits: EffectiveLimits,
    /// Added to `after` by `set_timer`; zero during `init`, whose turn has no time yet.
    time_ms: TimeMs,
    operations: Vec<v1::ExecutorOperation>,
    bytes: usize,
    calls_again: bool,
    finishes: bool,
    /// Children that have not ended as far as this instance was told.
    children: BTreeSet<String>,
}

impl ExecutorDraft {
    pub(crate) fn new(limits: EffectiveLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// From the next call on.
    pub(crate) fn set_limits(&mut self, limits: EffectiveLimits) {
        self.limits = limits;
    }

    /// The turn with this time begins. What `init` enqueued stays and gets the turn's time.
    pub(crate) fn begin(&mut self, time_ms: TimeMs) {
        for operation in &mut self.operations {
            if let Some(Operation::SetTimer(timer)) = &mut operation.operation {
                timer.due_ms = timer.due_ms.saturating_add(time_ms);
            }
        }
        self.time_ms = time_ms;
    }

    /// The instance is told of a child.
    pub(crate) fn see_child(&mut self, child: &str, state: TaskState) {
        if state.is_terminal() {
            self.children.remove(child);
        } else {
            self.children.insert(child.to_owned());
        }
    }

    /// The turn has ended.
    pub(crate) fn finish_turn(&mut self) -> Vec<v1::ExecutorOperation> {
        (self.bytes, self.calls_again, self.finishes) = (0, false, false);
        std::mem::take(&mut self.operations)
    }

    fn push(&mut self, operation: Operation) -> Result<(), Refused> {
        let max = self.limits.size(LimitName::TurnOperations);
        if self.operations.len() >= max {
            return limit(LimitName::TurnOperations, max);
        }
        let bytes = self.bytes + size(&operation);
        let max = self.limits.size(LimitName::TurnOperationBytes);
        if bytes > max {
            return limit(LimitName::TurnOperationBytes, max);
        }
        self.bytes = bytes;
        self.operations.push(v1::ExecutorOperation { operation: Some(operation) });
        Ok(())
    }

    pub(crate) fn status(
        &mut self,
        task: &str,
        state: TaskState,
        message: String,
        data: Vec<u8>,
    ) -> Result<(), Refused> {
        let task = task_id("task", task)?.to_string();
        use TaskState as S;
        let own = [S::Starting, S::Running, S::Killing, S::Finished, S::Failed, S::Killed, S::Error];
        if !own.contains(&state) {
            return invalid("state", "starting, running, killing, finished, failed, killed or error");
        }
        if !data.is_empty() && !state.is_terminal() {
            return invalid("data", "only the status with which a task ends has data");
        }
        if data.len() > limits::RESULT_BYTES_MAX {
            return invalid("data", &format!("at most {} bytes", limits::RESULT_BYTES_MAX));
        }
        if message.len() > limits::MESSAGE_BYTES_MAX {
            return invalid("message", &format!("at most {} bytes", limits::MESSAGE_BYTES_MAX));
        }
        let state = v1::TaskState::from(state).into();
        self.push(Operation::Status(v1::ExecutorStatus { task, state, message, data }))
    }

    pub(crate) fn send(&mut self, data: Vec<u8>) -> Result<(), Refused> {
        if data.len() > limits::MESSAGE_DATA_BYTES_MAX {
            return invalid("data", &format!("at most {} bytes", limits::MESSAGE_DATA_BYTES_MAX));
        }
        self.push(Operation::Send(data))
    }

    pub(crate) fn start_child(&mut self, child: &str, spec: &TaskSpec) -> Result<(), Refused> {
        check_child(child)?;
        if matches!(spec.body, TaskBody::Executor(_)) {
            return invalid("spec.body", "a child is a native command or a Wasm task, not one of an executor");
        }
        validate_spec(spec)?;
        let encoded = tessera_wire::encode_spec(spec);
        if encoded.len() > limits::SPEC_BYTES_MAX {
            return fixed("task-spec-bytes", limits::SPEC_BYTES_MAX);
        }
        let max = self.limits.size(LimitName::ExecutorChildren);
        if !self.children.contains(child) && self.children.len() >= max {
            return limit(LimitName::ExecutorChildren, max);
        }
        self.push(Operation::StartChild(v1::StartChild { child: child.to_owned(), spec: encoded }))?;
        self.children.insert(child.to_owned());
        Ok(())
    }

    pub(crate) fn stop_child(&mut self, child: &str, grace_ms: u32) -> Result<(), Refused> {
        check_child(child)?;
        let grace_ms = u64::from(grace_ms);
        if grace_ms > limits::GRACE_MAX_MS {
            return invalid("grace-ms", &format!("at most {}", limits::GRACE_MAX_MS));
        }
        self.push(Operation::StopChild(v1::StopChild { child: child.to_owned(), grace_ms }))
    }

    pub(crate) fn set_timer(&mut self, id: String, after_ms: u64) -> Result<(), Refused> {
        let due_ms = timer_due(&id, after_ms, self.time_ms)?;
        self.push(Operation::SetTimer(v1::ExecutorTimer { id, due_ms, ..v1::ExecutorTimer::default() }))
    }

    pub(crate) fn cancel_timer(&mut self, id: String) -> Result<(), Refused> {
        check_timer_id(&id)?;
        self.push(Operation::CancelTimer(id))
    }

    /// "Call me again" once per turn; saying it again changes nothing.
    pub(crate) fn call_again(&mut self) -> Result<(), Refused> {
        if !self.calls_again {
            self.push(Operation::CallAgain(v1::Empty {}))?;
            self.calls_again = true;
        }
        Ok(())
    }

    /// Likewise.
    pub(crate) fn finish(&mut self) -> Result<(), Refused> {
        if !self.finishes {
            self.push(Operation::Finish(v1::Empty {}))?;
            self.finishes = true;
        }
        Ok(())
    }
}

/// What an operation costs in a message, roughly.
fn size(operation: &Operation) -> usize {
    16 + match operation {
        Operation::Status(status) => status.task.len() + status.message.len() + status.data.len(),
        Operation::Send(data) => data.len(),
        Operation::StartChild(start) => start.child.len() + start.spec.len(),
        Operation::StopChild(stop) => stop.child.len(),
        Operation::SetTimer(timer) => timer.id.len(),
        Operation::CancelTimer(id) => id.len(),
        Operation::CallAgain(_) | Operation::Finish(_) => 0,
    }
}

/// Children are named as executors are.
fn check_child(child: &str) -> Result<(), Refused> {
    match child.parse::<ExecutorId>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Refused::Invalid(format!("child: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{NativeCommand, Quantities};

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "child".into(),
            body: TaskBody::Native(NativeCommand::Shell("true".into())),
            resources: Quantities { cpus_milli: 100, mem_mib: 16, disk_mib: 0 }.into(),
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

    fn draft(set: &[(LimitName, u64)]) -> ExecutorDraft {
        let mut limits = EffectiveLimits::default();
        for (name, value) in set {
            limits.put(*name, *value);
        }
        ExecutorDraft::new(limits)
    }

    fn named(refused: Result<(), Refused>) -> String {
        match refused {
            Ok(()) => "ok".into(),
            Err(Refused::Limit(passed)) => passed.name.into(),
            Err(other) => other.to_string().split(':').next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn statuses_are_of_the_states_that_an_executor_decides() {
        let mut draft = draft(&[]);
        for state in TaskState::ALL {
            let own = matches!(
                state,
                TaskState::Starting
                    | TaskState::Running
                    | TaskState::Killing
                    | TaskState::Finished
                    | TaskState::Failed
                    | TaskState::Killed
                    | TaskState::Error
            );
            let said = named(draft.status("t", state, String::new(), vec![]));
            assert_eq!(said, if own { "ok" } else { "state" }, "{state}");
        }
        let long = "x".repeat(limits::MESSAGE_BYTES_MAX + 1);
        let big = vec![0; limits::RESULT_BYTES_MAX + 1];
        for (task, state, message, data, field) in [
            ("", TaskState::Running, "", &b""[..], "task"),
            ("t", TaskState::Running, "", b"x", "data"),
            ("t", TaskState::Finished, "", &big, "data"),
            ("t", TaskState::Finished, &long, b"", "message"),
            ("t", TaskState::Finished, "", &big[1..], "ok"),
        ] {
            assert_eq!(named(draft.status(task, state, message.into(), data.to_vec())), field);
        }
        assert_eq!(draft.finish_turn().len(), 8);
    }

    #[test]
    fn operations_of_a_turn_are_limited_by_count_and_by_bytes() {
        let mut few = draft(&[(LimitName::TurnOperations, 10)]);
        for _ in 0..10 {
            assert_eq!(few.send(vec![]), Ok(()));
        }
        assert_eq!(named(few.send(vec![])), "turn-operations");
        assert_eq!(few.finish_turn().len(), 10);
        assert_eq!(few.send(vec![]), Ok(()));

        let mut small = draft(&[(LimitName::TurnOperationBytes, 64 << 10)]);
        assert_eq!(small.send(vec![0; 60 << 10]), Ok(()));
        assert_eq!(named(small.send(vec![0; 5 << 10])), "turn-operation-bytes");
        assert_eq!(named(small.send(vec![0; (64 << 10) + 1])), "data");
        assert_eq!(small.finish_turn().len(), 1);
    }

    #[test]
    fn children_are_counted_until_their_end_is_told() {
        let mut draft = draft(&[(LimitName::ExecutorChildren, 2)]);
        assert_eq!(draft.start_child("a", &spec()), Ok(()));
        assert_eq!(draft.start_child("b", &spec()), Ok(()));
        assert_eq!(draft.start_child("a", &spec()), Ok(()), "again is the same child");
        assert_eq!(named(draft.start_child("c", &spec())), "executor-children");
        draft.see_child("a", TaskState::Running);
        assert_eq!(named(draft.start_child("c", &spec())), "executor-children");
        draft.see_child("a", TaskState::Failed);
        assert_eq!(draft.start_child("c", &spec()), Ok(()));
        assert_eq!(named(draft.start_child("..", &spec())), "child");
        let mut bad = spec();
        bad.files.push(tessera_types::FileSpec { path: "../x".into(), mode: 0o644, content: vec![] });
        assert_eq!(named(draft.start_child("b", &bad)), "files.path");
        assert_eq!(named(draft.stop_child("b", u32::MAX)), "grace-ms");
        assert_eq!(draft.stop_child("b", 5), Ok(()));
    }

    #[test]
    fn timers_set_by_init_count_from_the_first_turn() {
        let mut draft = draft(&[]);
        assert_eq!(draft.set_timer("a".into(), 50), Ok(()));
        draft.begin(1_000);
        assert_eq!(draft.set_timer("b".into(), 60), Ok(()));
        assert_eq!(named(draft.set_timer("c".into(), 9)), "after-ms");
        assert_eq!(named(draft.set_timer(String::new(), 90)), "id");
        assert_eq!(draft.call_again(), Ok(()));
        assert_eq!(draft.call_again(), Ok(()));
        let operations = draft.finish_turn();
        let due = operations.iter().filter_map(|operation| match &operation.operation {
            Some(Operation::SetTimer(timer)) => Some(timer.due_ms),
            _ => None,
        });
        assert_eq!(due.collect::<Vec<_>>(), [1_050, 1_060]);
        assert_eq!(operations.len(), 3);
    }
}
