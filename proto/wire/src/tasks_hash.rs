//! The hash with which master and agent compare their sets of tasks at the start of a session.

use crate::v1;
use tessera_types::{Digest, FrameworkId, TaskId, TaskState};

/// Hash of a set of tasks, which must come sorted by (framework, task).
pub fn tasks_hash<'a>(
    tasks: impl Iterator<Item = (FrameworkId, &'a TaskId, u32, TaskState)>,
) -> [u8; 32] {
    let mut bytes = Vec::new();
    for (framework, task, attempt, state) in tasks {
        bytes.extend_from_slice(&framework.0.to_be_bytes());
        bytes.extend_from_slice(task.as_str().as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&attempt.to_be_bytes());
        bytes.extend_from_slice(&(v1::TaskState::from(state) as i32).to_be_bytes());
    }
    Digest::of(&bytes).0
}
