//! Making room: revocable tasks that stand in the way of a role that is to have what they use.
//!
//! Level-triggered: what is missing is what the allocator says now, less what tasks that are being killed will leave.
//! Must never end a task that is not revocable.

use super::{Desk, Pending};
use crate::limits::PREEMPTED_MAX;
use crate::state::{State, Task};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use tessera_types::{AgentId, FrameworkId, Resources, TaskId};
use tessera_wire::v1::{self, command::Command};

/// What is missing on an agent, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) role: String,
    pub(crate) agent: AgentId,
    pub(crate) resources: Resources,
}

impl Desk<'_> {
    /// End revocable tasks for what is missing. One command at a time: its tasks count as being killed from then on.
    pub(super) fn preempt(&mut self, shortages: &[Shortage]) {
        if self.leader.preempting {
            return;
        }
        for shortage in shortages {
            let tasks = victims(self.state, shortage);
            if tasks.is_empty() {
                continue;
            }
            let tasks = tasks.into_iter().map(|(framework, task)| v1::preempt_tasks::Task {
                framework: framework.0,
                task: task.to_string(),
            });
            let command = v1::PreemptTasks { tasks: tasks.collect(), role: shortage.role.clone() };
            self.leader.preempting = true;
            let tasks = command.tasks.len() as u64;
            self.propose("", Command::PreemptTasks(command), Pending::Preempt { tasks });
            return;
        }
    }

    /// That command is applied with so many tasks, or lost.
    pub(super) const fn preempted(&mut self, tasks: u64) {
        self.leader.preempting = false;
        self.leader.tally.preempted += tasks;
    }
}

/// The revocable tasks of an agent whose end leaves what is missing: those of roles with the lowest priority first,
/// of these the youngest, which have done the least; of those launched at once, what is named last. None if even all of them would not be enough of any kind.
pub(crate) fn victims(state: &State, shortage: &Shortage) -> Vec<(FrameworkId, TaskId)> {
    let Some(agent) = state.agents.get(&shortage.agent) else { return Vec::new() };
    let mut missing = shortage.resources.clone();
    let mut candidates = Vec::new();
    for (id, task) in &agent.tasks {
        let Some(framework) = state.frameworks.get(id) else { continue };
        let Some(row) = framework.tasks.get(task) else { continue };
        if !row.revocable {
            continue;
        }
        if row.kill.is_some() {
            missing.take(&row.charge);
            continue;
        }
        let priority = framework.role.lineage().map(|role| state.policy(role).priority).max().unwrap_or(0);
        candidates.push(((priority, Reverse(row.created_ms), *id, Reverse(counted(task))), task, row));
    }
    candidates.sort_by(|one, other| one.0.cmp(&other.0));
    let mut chosen: Vec<(FrameworkId, TaskId)> = Vec::new();
    let mut groups = BTreeSet::new();
    for ((_, _, id, _), task, row) in candidates {
        if missing.is_empty() || chosen.len() >= PREEMPTED_MAX {
            break;
        }
        if !helps(&missing, row) || (row.group != 0 && !groups.insert((id, row.group))) {
            continue;
        }
        // The members of a task group end together.
        let members = state.frameworks.get(&id).into_iter().flat_map(|framework| framework.tasks.values());
        let members = members.filter(|member| {
            row.group != 0 && member.group == row.group && member.agent == row.agent && !member.state.is_terminal()
        });
        match row.group {
            0 => missing.take(&row.charge),
            _ => members.for_each(|member| missing.take(&member.charge)),
        }
        chosen.push((id, task.clone()));
    }
    chosen
}

/// A task id by which ids are in the order in which people count: 9 before 10.
fn counted(task: &TaskId) -> String {
    let mut key = String::new();
    let mut rest = task.as_str();
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        // Of two numbers without zeros in front the longer one is larger.
        key.extend(u8::try_from(digits).ok().filter(|digits| *digits > 0).map(char::from));
        key.push_str(number);
        let text = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (text, after) = after.split_at(text);
        key.push_str(text);
        rest = after;
    }
    key
}

/// Whether a task has anything of what is missing.
fn helps(missing: &Resources, task: &Task) -> bool {
    let kinds = [tessera_types::CPUS, tessera_types::MEM, tessera_types::DISK].into_iter();
    let mut kinds = kinds.chain(missing.items.keys().map(|key| key.name.as_str()));
    kinds.any(|kind| missing.amount(kind) > 0 && task.charge.amount(kind) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_in_which_people_count() {
        let mut ids = ["t10", "job-10.1", "t9", "job-9.12", "a", "t", "job-9.2", "t1b", "7"].map(|id| id.parse().unwrap());
        ids.sort_by_key(counted);
        let ids: Vec<String> = ids.iter().map(TaskId::to_string).collect();
        assert_eq!(ids, ["7", "a", "job-9.2", "job-9.12", "job-10.1", "t", "t1b", "t9", "t10"]);
    }
}
