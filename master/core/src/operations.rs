//! What is under way: everything that was asked for, by users or by the cluster itself, and is not done.
//!
//! Invariants: an operation is derived from the state and is there exactly as long as it is not done; each says what
//! it waits for. Changes nothing.

use crate::Core;
use crate::listing::{Budget, Piece, TaskPick, TaskPlace};
use crate::rows::{Rows, RowsError};
use crate::state::{Agent, Framework};
use std::ops::Bound;
use tessera_types::{AgentId, FrameworkId, Reason, TaskId, TimeMs};

/// What kind of operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    /// An agent is emptied.
    Drain,
    /// An agent will be, or is, worked on.
    Maintenance,
    /// A framework is removed.
    Removal,
    /// A new component is on trial.
    Upgrade,
    /// The state of a framework is written anew for another component.
    Migration,
    /// A scheduler gets a place.
    Placement,
    /// A task is ended.
    Kill,
    /// A task is ended for those who are guaranteed its resources.
    Preemption,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Drain,
        Self::Maintenance,
        Self::Removal,
        Self::Upgrade,
        Self::Migration,
        Self::Placement,
        Self::Kill,
        Self::Preemption,
    ];

    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
            Self::Removal => "removal",
            Self::Upgrade => "upgrade",
            Self::Migration => "migration",
            Self::Placement => "placement",
            Self::Kill => "kill",
            Self::Preemption => "preemption",
        }
    }
}

/// Which operations to list. What is absent is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationPick {
    /// Of this framework.
    pub framework: Option<FrameworkId>,
    /// Of this kind.
    pub kind: Option<OperationKind>,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationView {
    /// What.
    pub kind: OperationKind,
    /// The framework, if it is about one.
    pub framework: Option<FrameworkId>,
    /// The task.
    pub task: Option<TaskId>,
    /// The agent.
    pub agent: Option<AgentId>,
    /// Since when, if that is noted.
    pub since_ms: Option<TimeMs>,
    /// What it waits for.
    pub waits_for: String,
}

/// A place in the list of operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationPlace {
    /// After those of this agent.
    Agent(AgentId),
    /// After those of this framework.
    Framework(FrameworkId),
    /// After this task.
    Task(TaskPlace),
}

fn of_agent(id: AgentId, agent: &Agent, schedulers: usize, now_ms: TimeMs) -> Vec<OperationView> {
    let tasks = agent.tasks.len();
    let operation = |kind, since_ms, waits_for| OperationView {
        kind,
        framework: None,
        task: None,
        agent: Some(id),
        since_ms: Some(since_ms),
        waits_for,
    };
    let mut found = Vec::new();
    // One that is empty has done what it was asked for.
    if let Some(drain) = agent.drain.filter(|_| tasks > 0 || schedulers > 0) {
        let text = match drain.over {
            true => format!("{tasks} tasks are being killed, and {schedulers} schedulers move as soon as there is room"),
            false => format!("{tasks} tasks have until {} to end, {schedulers} schedulers move as soon as there is room", drain.deadline_ms),
        };
        found.push(operation(OperationKind::Drain, drain.since_ms, text));
    }
    if let Some(window) = agent.maintenance.filter(|window| now_ms < window.end_ms) {
        let text = match now_ms < window.start_ms {
            true => format!("its beginning at {}", window.start_ms),
            false => format!("its end at {}", window.end_ms),
        };
        found.push(operation(OperationKind::Maintenance, window.start_ms, text));
    }
    found
}

fn of_framework(id: FrameworkId, framework: &Framework, ready: bool) -> Vec<OperationView> {
    let operation = |kind, since_ms, waits_for: String| OperationView {
        kind,
        framework: Some(id),
        task: None,
        agent: framework.agent,
        since_ms,
        waits_for,
    };
    if framework.removing {
        let text = format!("{} tasks have not ended", framework.live);
        return vec![operation(OperationKind::Removal, None, text)];
    }
    let since_ms = framework.versions.last().map(|last| last.since_ms);
    if let Some(upgrade) = &framework.upgrade {
        let (kind, text) = match upgrade.migrating {
            true => (OperationKind::Migration, "the new component writes the state anew".to_owned()),
            false => (OperationKind::Upgrade, "the first turn of the new component that does more than write state".to_owned()),
        };
        return vec![operation(kind, since_ms, text)];
    }
    if framework.quarantine.is_some() || ready {
        return Vec::new();
    }
    let text = match framework.agent {
        Some(agent) => format!("{agent} has not said that the scheduler is ready"),
        None => "an agent with room in its slice for schedulers".to_owned(),
    };
    let since_ms = if framework.placed_ms == 0 { framework.created_ms } else { framework.placed_ms };
    vec![operation(OperationKind::Placement, Some(since_ms), text)]
}

impl Core {
    /// Some operations: those of agents, then those of frameworks, then those of tasks.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn operations_from(
        &self,
        pick: &OperationPick,
        after: Option<OperationPlace>,
        budget: Budget,
        rows: &dyn Rows,
    ) -> Result<Piece<OperationView, OperationPlace>, RowsError> {
        let wanted = |found: &OperationView| {
            pick.kind.is_none_or(|kind| found.kind == kind)
                && pick.framework.is_none_or(|framework| found.framework == Some(framework))
        };
        let mut found: Vec<OperationView> = Vec::new();
        let mut look = budget.look;
        let now_ms = self.applied_time_ms();
        if matches!(after, None | Some(OperationPlace::Agent(_))) && pick.framework.is_none() {
            let hosted = self.state.schedulers();
            let from = match after {
                Some(OperationPlace::Agent(agent)) => Bound::Excluded(agent),
                _ => Bound::Unbounded,
            };
            for (id, agent) in self.state.agents.range((from, Bound::Unbounded)) {
                let schedulers = hosted.get(id).copied().unwrap_or(0);
                found.extend(of_agent(*id, agent, schedulers, now_ms).into_iter().filter(wanted));
                look = look.saturating_sub(1);
                if found.len() >= budget.find || look == 0 {
                    return Ok(Piece { found, next: Some(OperationPlace::Agent(*id)) });
                }
            }
        }
        if !matches!(after, Some(OperationPlace::Task(_))) {
            let from = match after {
                Some(OperationPlace::Framework(framework)) => Bound::Excluded(framework),
                _ => Bound::Unbounded,
            };
            for (id, framework) in self.state.frameworks.range((from, Bound::Unbounded)) {
                let ready = self.leader.as_ref().is_none_or(|leader| {
                    leader.instances.get(id).is_some_and(|instance| instance.ready)
                });
                found.extend(of_framework(*id, framework, ready).into_iter().filter(wanted));
                look = look.saturating_sub(1);
                if found.len() >= budget.find || look == 0 {
                    return Ok(Piece { found, next: Some(OperationPlace::Framework(*id)) });
                }
            }
        }
        if pick.kind.is_some_and(|kind| !matches!(kind, OperationKind::Kill | OperationKind::Preemption)) {
            return Ok(Piece { found, next: None });
        }
        let tasks = TaskPick { framework: pick.framework, live: true, killed: true, ..TaskPick::default() };
        let after = match after {
            Some(OperationPlace::Task(place)) => Some(place),
            _ => None,
        };
        let room = Budget { find: budget.find.saturating_sub(found.len()).max(1), look: look.max(1) };
        let piece = self.tasks_from(&tasks, after, room, rows)?;
        found.extend(piece.found.into_iter().map(|line| self.of_task(line)).filter(wanted));
        Ok(Piece { found, next: piece.next.map(OperationPlace::Task) })
    }

    fn of_task(&self, line: crate::listing::TaskLine) -> OperationView {
        let task = self.state.task(line.view.framework, &line.view.launch.task);
        let reason = task.and_then(|task| task.kill).map_or(Reason::None, |kill| kill.reason);
        let kind = match reason.code() {
            "PREEMPTED" => OperationKind::Preemption,
            _ => OperationKind::Kill,
        };
        let agent = line.view.agent;
        let waits_for = match line.connected {
            true => format!("{agent} has not said that the task ended"),
            false => format!("{agent} is not connected"),
        };
        OperationView {
            kind,
            framework: Some(line.view.framework),
            task: Some(line.view.launch.task),
            agent: Some(agent),
            since_ms: None,
            waits_for,
        }
    }
}
