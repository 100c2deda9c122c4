//! Tasks that an agent runs and a restored state does not know: noted when the sets are compared, forgotten when
//! they end.
//!
//! Invariant: nothing is desired of an agent before its strangers are on record, because what is on no list ends.
//! Must never decide which of them the state should know; the command does.

use super::{Desk, Pending};
use crate::limits::STRANGERS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, FrameworkId, TaskId, TaskState};
use tessera_wire::WireError;
use tessera_wire::v1::{self, command::Command};

/// What an agent says of its tasks: state, attempt, and what each takes.
pub(super) type Theirs = BTreeMap<(FrameworkId, TaskId), (TaskState, u32, v1::Resources)>;

impl Desk<'_> {
    /// Note what the state does not have for the agent, if it may be older than the agent is; whether there was
    /// anything to note.
    pub(super) fn compare_strangers(
        &mut self,
        session: u64,
        agent: AgentId,
        theirs: &Theirs,
    ) -> Result<bool, WireError> {
        let Some(row) = self.state.agents.get(&agent).filter(|_| self.state.is_restored()) else {
            return Ok(false);
        };
        let others = theirs.iter().filter(|(key, (state, ..))| !state.is_terminal() && !row.tasks.contains(*key));
        let others: BTreeMap<_, _> = others.collect();
        if others.len() > STRANGERS_MAX {
            let rule = format!(
                "the restored state does not know {} tasks of this agent, more than {STRANGERS_MAX}; end them there, or restore a newer snapshot",
                others.len()
            );
            return Err(WireError::new("task_set", rule));
        }
        if others.keys().copied().eq(row.strangers.keys()) {
            return Ok(false);
        }
        let tasks = others.into_iter().map(|((framework, task), (.., charge))| v1::Stranger {
            framework: framework.0,
            task: task.to_string(),
            charge: Some(charge.clone()),
        });
        let command = v1::NoteStrangers { agent: agent.0, tasks: tasks.collect() };
        self.propose("", Command::NoteStrangers(command), Pending::Strangers { session });
        Ok(true)
    }

    /// An agent says of tasks that are not known that they have ended.
    pub(super) fn strangers_ended(&mut self, agent: AgentId, ended: Vec<(FrameworkId, TaskId)>) {
        let Some(row) = self.state.agents.get(&agent) else { return };
        let ended: BTreeSet<_> = ended.into_iter().filter(|key| row.strangers.contains_key(key)).collect();
        if ended.is_empty() {
            return;
        }
        let name = |(framework, task): (FrameworkId, TaskId)| v1::TaskName { framework: framework.0, task: task.to_string() };
        let tasks = ended.into_iter().map(name).collect();
        let command = v1::EndStrangers { agent: agent.0, tasks, all: false };
        self.propose("", Command::EndStrangers(command), Pending::Nobody);
    }
}
