//! What a task went through: its states, newest last, as few bytes in the row of the task.
//!
//! Invariants: at most [`STEPS_MAX`] steps, the oldest go; each is some ten bytes, for every task of the cluster is
//! in every master's memory. Bytes that cannot be read are no steps: nothing is decided by them.

use tessera_types::{Reason, TaskState, TimeMs};
use tessera_wire::v1;

/// Steps kept of one task: more than a task without restarts has, and the last few restarts of one with.
pub const STEPS_MAX: usize = 16;

/// The cluster version from which on masters keep them.
pub(crate) const SINCE: u32 = 4;

/// Longest code of a reason that is kept: theirs are names.
const REASON_BYTES_MAX: usize = 64;

/// One state that a task was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusStep {
    /// Which.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// When that was committed.
    pub at_ms: TimeMs,
    /// Of which attempt.
    pub attempt: u32,
}

/// The steps of one task, each as state, time since the task was accepted, attempt and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatusSteps(Box<[u8]>);

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The first step, which is taken off.
fn next(bytes: &mut &[u8], created_ms: TimeMs) -> Option<StatusStep> {
    let state = v1::TaskState::try_from(i32::try_from(take(bytes)?).ok()?).ok()?;
    let after_ms = take(bytes)?;
    let attempt = u32::try_from(take(bytes)?).ok()?;
    let length = usize::try_from(take(bytes)?).ok()?;
    let (code, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(StatusStep {
        state: state.try_into().ok()?,
        reason: Reason::of_code(std::str::from_utf8(code).ok()?),
        at_ms: created_ms.saturating_add(after_ms),
        attempt,
    })
}

impl StatusSteps {
    /// As a row has them.
    pub(crate) fn of_row(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// For a row.
    pub(crate) fn to_row(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// Note one more of a task that was accepted then.
    pub(crate) fn note(&mut self, created_ms: TimeMs, step: StatusStep) {
        let mut kept: &[u8] = &self.0;
        if self.of(created_ms).len() >= STEPS_MAX {
            // It can be read: it was counted.
            let _ = next(&mut kept, created_ms);
        }
        let mut bytes = kept.to_vec();
        let state = i32::from(v1::TaskState::from(step.state));
        put(&mut bytes, state.unsigned_abs().into());
        put(&mut bytes, step.at_ms.saturating_sub(created_ms));
        put(&mut bytes, step.attempt.into());
        let code = step.reason.code();
        let code = if code.len() <= REASON_BYTES_MAX { code } else { Reason::Other.code() };
        put(&mut bytes, code.len() as u64);
        bytes.extend_from_slice(code.as_bytes());
        self.0 = bytes.into();
    }

    /// All of them, oldest first.
    pub(crate) fn of(&self, created_ms: TimeMs) -> Vec<StatusStep> {
        let mut bytes: &[u8] = &self.0;
        let mut steps = Vec::new();
        while let Some(step) = next(&mut bytes, created_ms) {
            steps.push(step);
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(n: u64) -> StatusStep {
        let state = if n % 2 == 0 { TaskState::Running } else { TaskState::Killed };
        let reason = if n % 2 == 0 { Reason::None } else { Reason::MemoryLimit };
        StatusStep { state, reason, at_ms: 1_000 + n * n * 100_000, attempt: u32::try_from(n).unwrap() }
    }

    #[test]
    fn the_newest_steps_are_kept_and_read_back() {
        let mut steps = StatusSteps::default();
        assert!(steps.of(1_000).is_empty());
        for n in 0..40 {
            steps.note(1_000, step(n));
            let kept = (n + 1).saturating_sub(STEPS_MAX as u64)..=n;
            let expected: Vec<StatusStep> = kept.map(step).collect();
            assert_eq!(StatusSteps::of_row(steps.to_row()).of(1_000), expected, "{n}");
        }
    }

    #[test]
    fn a_usual_task_takes_few_bytes() {
        let mut steps = StatusSteps::default();
        for (after_ms, state, reason) in [
            (20, TaskState::Starting, Reason::None),
            (50, TaskState::Running, Reason::None),
            (60_000, TaskState::Finished, Reason::None),
        ] {
            steps.note(5, StatusStep { state, reason, at_ms: 5 + after_ms, attempt: 1 });
        }
        assert!(steps.to_row().len() <= 20, "{}", steps.to_row().len());
    }

    #[test]
    fn what_cannot_be_read_is_no_step() {
        for bytes in [vec![0xff; 20], vec![200, 0, 0, 0], vec![2, 0, 1, 9, 65], vec![2]] {
            assert!(StatusSteps::of_row(bytes.clone()).of(0).is_empty(), "{bytes:?}");
        }
    }
}
