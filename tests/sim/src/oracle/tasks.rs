//! Tasks: each runs once, ends as it really did, and is known until its scheduler heard of its end.
//!
//! Invariant: what runs is learnt from the machines, what is said of it from the masters. Must never change the run.

use super::{Ended, Oracle, TaskName};
use crate::agent::Agent;
use crate::executor::CHILD_PREFIX;
use crate::model;
use std::collections::{BTreeMap, BTreeSet};
use tessera_master_core::{Core, FrameworkView, TaskView};
use tessera_types::{
    AgentId, Consumed, FrameworkId, LimitName, Operation, Quantities, Reason, TaskId, TaskState, TaskStatus, Turn,
};

impl Oracle {
    /// An agent was told that its status is committed.
    pub(crate) fn on_status_acknowledged(&mut self, framework: u64, status: &TaskStatus) {
        if self.leaving.contains(&framework) {
            return;
        }
        let task = status.task.to_string();
        let known = self.tasks.get(&(framework, task.clone())).copied();
        let usurped = self.wishes.is_usurped(&(framework, task.clone()));
        let safe = usurped || !status.state.is_terminal() || known.is_none_or(TaskState::is_terminal);
        self.ensure(safe, || {
            format!("an acknowledged status is lost: {task} is {known:?}, not {}", status.state)
        });
    }

    /// A task's processes begin on some agent.
    pub(crate) fn on_start(&mut self, agent: usize, name: &TaskName, attempt: u32, process: u64) {
        let starts = self.starts.entry((name.0, name.1.clone(), attempt)).or_default();
        *starts += 1;
        let starts = *starts;
        let parent = (name.0, task_of(&name.1).to_owned());
        let usurped = self.wishes.is_usurped(name) || self.wishes.is_usurped(&parent);
        self.ensure(starts == 1 || usurped, || {
            format!("f{}/{} attempt {attempt} was started {starts} times (on #{agent})", name.0, name.1)
        });
        let alive = self.alive.insert(name.clone(), (process, agent));
        self.ensure(alive.is_none() || usurped, || format!("f{}/{} runs twice at once", name.0, name.1));
        let here = self.alive.iter().filter(|(_, (_, on))| *on == agent);
        let used = here
            .filter_map(|(name, _)| model::number_of(&name.1))
            .fold(Quantities::ZERO, |sum, number| sum.plus(model::needs(number)));
        self.ensure(Agent::total().contains(used), || {
            format!("agent #{agent} runs more than it has: {used}")
        });
        let unit = (name.0, model::unit_of(&name.1).to_owned());
        let unprepared = self.sandboxes.has_failed(&unit);
        self.ensure(!unprepared, || {
            format!("f{}/{} starts though a member of its group could not be prepared", name.0, name.1)
        });
        let of = (name.0, task_of(&name.1).to_owned());
        let known = self.tasks.get(&of).is_some_and(|state| of == *name || !state.is_terminal());
        // Its agent may not have heard yet.
        let launched = known || self.wishes.is_given_up(&of) || self.wishes.is_usurped(&of);
        self.ensure(launched, || format!("f{}/{} runs but was never launched", name.0, name.1));
    }

    /// The user asks for the end of a task.
    pub(crate) fn on_user_kill(&mut self, framework: u64, task: &TaskId) {
        self.user_kills.insert((framework, task.to_string()));
    }

    /// What a turn launched all or none is all there, or all dropped; a task group is on one agent.
    pub(super) fn check_units(&mut self, id: u64, turn: &Turn) {
        let mut units: BTreeMap<(u32, usize, u32), Vec<TaskName>> = BTreeMap::new();
        for (at, operation) in turn.operations.iter().enumerate() {
            let Operation::Accept { launches, gang, .. } = operation else { continue };
            for member in launches {
                let name = (id, member.launch.task.to_string());
                if *gang != 0 {
                    units.entry((*gang, 0, 0)).or_default().push(name.clone());
                }
                if member.group != 0 {
                    units.entry((0, at, member.group)).or_default().push(name);
                }
            }
        }
        for ((gang, ..), members) in units {
            // A restored state may launch what it does not know to be there.
            if members.iter().any(|name| self.wishes.is_usurped(name)) {
                continue;
            }
            // One that a limit keeps out is not even recorded.
            let dropped = |name: &&TaskName| self.tasks.get(*name).is_none_or(|s| *s == TaskState::Dropped);
            let gone = members.iter().filter(dropped).count();
            let agents: BTreeSet<_> = members.iter().filter_map(|name| self.placed.get(name)).copied().collect();
            self.ensure(gone == 0 || gone == members.len(), || {
                format!("of {members:?}, launched all or none, {gone} were dropped")
            });
            self.ensure(gang != 0 || agents.len() <= 1, || {
                format!("the task group {members:?} is on {agents:?}")
            });
        }
    }

    /// They ended.
    pub(crate) fn on_end(&mut self, name: &TaskName, process: u64, ended: Ended) {
        if self.wishes.is_given_up(name) {
            self.saw("a task that was given up is stopped");
        }
        if self.alive.get(name).is_some_and(|(alive, _)| *alive == process) {
            self.alive.remove(name);
        }
        self.ends.insert(name.clone(), ended);
    }

    /// The shim of a task died.
    pub(crate) fn on_shim_death(&mut self, name: TaskName) {
        self.shimless.insert(name);
    }

    /// The machine of an agent went down.
    pub(crate) fn on_machine_death(&mut self, agent: AgentId, frameworks: &BTreeSet<u64>) {
        let lost = self.live_on(agent, frameworks);
        self.orphans.extend(lost.iter().cloned());
        self.rebooted.extend(lost);
    }

    pub(super) fn live_on(&self, agent: AgentId, frameworks: &BTreeSet<u64>) -> Vec<TaskName> {
        let live = self.tasks.iter().filter(|(name, state)| {
            !state.is_terminal()
                && frameworks.contains(&name.0)
                && self.placed.get(*name) == Some(&agent)
        });
        live.map(|(name, _)| name.clone()).collect()
    }

    /// A worker of these frameworks' tasks died on an agent.
    pub(crate) fn on_worker_death(&mut self, agent: AgentId, frameworks: &BTreeSet<u64>) {
        let lost = self.live_on(agent, frameworks);
        self.orphans.extend(lost);
    }

    pub(super) fn check_tasks(&mut self, core: &Core, tasks: &[TaskView], lines: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for view in tasks {
            let name = (view.framework.0, view.launch.task.to_string());
            seen.insert(name.clone());
            self.placed.insert(name.clone(), view.agent);
            if view.kill_requested && self.killing.insert(name.clone()) {
                let held = self.frameworks.get(&name.0).is_some_and(|f| f.quarantined_ms.is_some());
                let asked = self.user_kills.contains(&name)
                    || self.leaving.contains(&name.0)
                    || self.is_taken(&name)
                    || self.drained.contains(&view.agent);
                self.ensure(!held || asked, || {
                    format!("f{} is quarantined, and its task {} is to end", name.0, name.1)
                });
            }
            let before = self.tasks.insert(name.clone(), view.state);
            if before == Some(view.state) {
                continue;
            }
            lines.push(format!("master: f{}/{} is {}", name.0, name.1, view.state));
            if let Some(before) = before {
                self.ensure(!before.is_terminal(), || {
                    format!("f{}/{} left {before} for {}", name.0, name.1, view.state)
                });
            }
            self.check_told(&name, view);
            if view.state.is_terminal() {
                self.check_end(&name, &view.status);
            }
        }
        let unseen: Vec<TaskName> = self
            .tasks
            .iter()
            .filter(|(name, _)| !seen.contains(*name) && !self.leaving.contains(&name.0))
            .map(|(name, _)| name.clone())
            .collect();
        for name in unseen {
            let ended = self.frameworks.get(&name.0).is_some_and(|f| f.ended.contains_key(&name.1));
            let about_to = self.about_to_end(core, &name);
            self.ensure(ended || about_to, || {
                format!("f{}/{} vanished before its end was consumed", name.0, name.1)
            });
        }
    }

    /// Whether the turn that consumes a task's end was committed in this very step.
    pub(super) fn about_to_end(&self, core: &Core, name: &TaskName) -> bool {
        let Some(view) = core.framework(FrameworkId(name.0)) else { return false };
        let Some(made) = self.made.get(&(name.0, view.last_turn.0)) else { return false };
        made.iter().any(|made| {
            made.turn.consumed.iter().any(|consumed| match consumed {
                Consumed::Update { task, .. } => task.as_str() == name.1,
                Consumed::Timer { .. } | Consumed::Config { .. } => false,
            })
        })
    }

    /// An end must be what really happened.
    pub(super) fn check_end(&mut self, name: &TaskName, status: &TaskStatus) {
        let ended = self.ends.get(name).copied();
        let orphan = self.orphans.contains(name);
        let alive = self.alive.contains_key(name);
        let works = |(child, _): &(&TaskName, &(u64, usize))| {
            child.0 == name.0 && *child != name && task_of(&child.1) == name.1
        };
        let child = self.alive.iter().find(works).map(|(child, _)| child.clone());
        if let Some(wanted) = self.wishes.on_end(name, status) {
            let how = status.reason.code();
            if alive {
                self.saw("a task that was given up runs on for now");
            }
            let state = status.state;
            return self.ensure(wanted, || format!("f{}/{} is {state} ({how}), and nobody wanted it", name.0, name.1));
        }
        self.ensure(child.is_none(), || {
            format!("f{}/{} is said to be {}, and its {child:?} runs", name.0, name.1, status.state)
        });
        let agrees = match (status.state, status.reason) {
            (TaskState::Finished, _) if model::is_hosted(&name.1) => self.finished.contains(name),
            (TaskState::Failed, Reason::None) => model::is_hosted(&name.1),
            (_, Reason::WorkerLost) => orphan,
            (TaskState::Failed, Reason::ShimLost) => self.shimless.contains(name),
            (TaskState::Failed, Reason::AgentRebooted) => self.rebooted.contains(name),
            (TaskState::Lost, Reason::AgentForgot) => self.uncertain.contains(name),
            (TaskState::Lost, _) => false,
            (TaskState::Finished, _) => ended.is_some_and(|ended| ended.code == Some(0)),
            (TaskState::Failed, Reason::CommandExited) => {
                ended.is_some_and(|ended| ended.code.is_some() && ended.code == status.exit_code)
            }
            // Of a member that never started: its group did not.
            (TaskState::Failed, Reason::TaskGroup | Reason::LaunchFailed) => ended.is_none(),
            (TaskState::Dropped, _) => ended.is_none() && !alive,
            (TaskState::Killed, _) => !alive && self.is_end_wanted(name),
            (TaskState::Error, Reason::FrameworkLimit) => {
                ended.is_none() && self.wishes.limited.contains(&LimitName::ExecutorsPerAgent)
            }
            _ => false,
        };
        self.ensure(agrees && !alive, || {
            format!(
                "f{}/{} is said to be {} ({}: {}), but it ended as {ended:?}{}",
                name.0,
                name.1,
                status.state,
                status.reason.code(),
                status.message,
                if alive { " and runs" } else { "" }
            )
        });
    }

    /// No launch brings a framework above its limit.
    pub(super) fn check_live(&mut self, core: &Core, view: &FrameworkView) {
        let of = self.tasks.range((view.id.0, String::new())..(view.id.0 + 1, String::new()));
        let live = of.filter(|(_, state)| !state.is_terminal()).count() as u64;
        let most = core.effective_limits(Some(&view.role)).get(LimitName::LiveTasks);
        if let Err(what) = self.wishes.on_live(view.id.0, live, most) {
            self.violate(what);
        }
    }
}

/// The task for which a child works, or the task itself.
pub(super) fn task_of(name: &str) -> &str {
    let child = name.rsplit_once('/').and_then(|(_, child)| child.strip_prefix(CHILD_PREFIX));
    child.unwrap_or(name)
}
