//! What must always hold, checked after each step against a view of its own.
//!
//! Owns: the shadow of everything that was acknowledged. Invariants: it learns from what goes over the
//! borders of the cores only, and shares no code with what it checks; the first violation is kept.
//! Must never change the run.

mod events;
mod restored;
mod roles;
mod tasks;
mod turns;

pub(crate) use restored::Saved;
pub(crate) use turns::read_state;

use crate::disk::FaultyDisk;
use crate::executor::Name;
use crate::group::Group;
use crate::master::Master;
use crate::sandboxes::Sandboxes;
use crate::wishes::Wishes;
use std::collections::{BTreeMap, BTreeSet};
use tasks::task_of;
use tessera_master::node::{Node, Settled};
use tessera_master_core::{Config, Core, EventId, TaskFilter};
use tessera_types::{AgentId, FrameworkId, Reason, TaskState, TaskStatus, Turn};
use tessera_wire::v1;
use tessera_wire::v1::executor_operation::Operation as ExecutorOperation;

/// Steps that changed something between two comparisons of memory with rows: each reads all rows.
const STEPS_PER_COMPARISON: u64 = 20;

/// Names a task over all agents.
pub(crate) type TaskName = (u64, String);

/// A turn that some instance made.
#[derive(Clone, Debug)]
struct Made {
    epoch: u64,
    turn: Turn,
    /// What the batch said of each update.
    statuses: BTreeMap<(String, u64), TaskStatus>,
}

/// A framework as far as it is committed.
#[derive(Clone, Debug, Default)]
struct Shadow {
    epoch: u64,
    last_turn: u64,
    state: BTreeMap<String, Vec<u8>>,
    /// Last consumed sequence and state of each task.
    consumed: BTreeMap<String, (u64, TaskState)>,
    ended: BTreeMap<String, (TaskState, Reason)>,
    /// Committed turns, by number.
    turns: BTreeMap<u64, Turn>,
    /// Number of the version in force.
    version: u64,
    /// As it was when the upgrade that is under way began.
    before: Option<Before>,
    /// Turns that were given up with an upgrade.
    given_up: u64,
    config_seen: u64,
    /// Since this turn it wants no offers.
    suppressed: Option<u64>,
    /// Since when it is quarantined.
    quarantined_ms: Option<u64>,
    /// What it waits for.
    asked: roles::Asked,
}

/// A framework when an upgrade of it began.
#[derive(Clone, Debug)]
struct Before {
    last_turn: u64,
    state: BTreeMap<String, Vec<u8>>,
    config_seen: u64,
}

/// How the processes of a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// The shadow of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    violation: Option<String>,
    made: BTreeMap<(u64, u64), Vec<Made>>,
    frameworks: BTreeMap<u64, Shadow>,
    tasks: BTreeMap<TaskName, TaskState>,
    starts: BTreeMap<(u64, String, u32), u64>,
    /// Process and agent of what runs.
    alive: BTreeMap<TaskName, (u64, usize)>,
    ends: BTreeMap<TaskName, Ended>,
    /// Where tasks were launched.
    placed: BTreeMap<TaskName, AgentId>,
    /// Tasks of which a worker died on their agent.
    orphans: BTreeSet<TaskName>,
    /// Tasks of which the machine went down.
    rebooted: BTreeSet<TaskName>,
    /// Tasks of which the shim died.
    shimless: BTreeSet<TaskName>,
    /// Frameworks that the user wants removed: nobody hears of their turns and tasks any more.
    leaving: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    /// Keys of the agents that got each number.
    numbers: BTreeMap<AgentId, String>,
    /// Newest term and generation that was sent to each agent.
    generations: BTreeMap<usize, (u64, u64)>,
    /// When agents were given up, by the leader's clock and by the right one.
    given_up: Vec<(u64, u64)>,
    pub(crate) now_us: u64,
    /// Every offer that a scheduler was sent.
    offered: BTreeSet<u64>,
    group: Group,
    /// Masters of whose disk a bit turned over.
    pub(crate) flipped: BTreeSet<usize>,
    last_applied: u64,
    events_last: EventId,
    steps: u64,
    commits: u64,
    /// Life and last kept turn of each executor, by agent.
    executors: BTreeMap<(usize, Name), (u64, u64)>,
    /// Tasks of which their executor said that they finished.
    finished: BTreeSet<TaskName>,
    /// What executors said to their schedulers, and when it was heard.
    heard: BTreeMap<(u64, String, Vec<u8>), u64>,
    /// Tasks that the user wanted ended.
    user_kills: BTreeSet<TaskName>,
    /// Agents that the user has had emptied.
    pub(crate) drained: BTreeSet<AgentId>,
    /// What operators asked for.
    pub(crate) wishes: Wishes,
    /// How often what came up.
    seen: BTreeMap<&'static str, u64>,
    /// Tasks that somebody wants ended.
    killing: BTreeSet<TaskName>,
    pub(crate) sandboxes: Sandboxes,
    /// A saved state was restored, and these tasks that it does not know ran then.
    strangers: Option<BTreeSet<TaskName>>,
    /// Tasks that the restored state takes for launched, whether their agents know them or not.
    uncertain: BTreeSet<TaskName>,
    /// What is known of roles.
    roles: roles::Roles,
}

impl Oracle {
    pub(crate) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    /// Something came up that every run of the tests is to meet.
    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// How often what came up.
    pub(crate) fn seen(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.seen)
    }

    fn ensure(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.violate(sentence());
        }
    }

    /// Turns that committed so far.
    pub(crate) const fn commits(&self) -> u64 {
        self.commits
    }

    /// An executor's turn is kept.
    pub(crate) fn on_executor_kept(&mut self, agent: usize, name: &Name, number: u64) {
        if let Some((_, kept)) = self.executors.get_mut(&(agent, name.clone())) {
            *kept = number;
        }
    }

    /// An executor lives on an agent.
    pub(crate) fn on_executor_life(&mut self, agent: usize, name: Name, life: u64) {
        let known = self.executors.entry((agent, name)).or_insert((life, 0));
        if known.0 != life {
            *known = (life, 0);
        }
    }

    /// An executor and its children are gone.
    pub(crate) fn on_executor_ended(&mut self, agent: usize, name: &Name) {
        let prefix = format!("{}/", name.1);
        let runs = |(child, (_, on)): &(&TaskName, &(u64, usize))| {
            child.0 == name.0 && *on == agent && child.1.starts_with(&prefix)
        };
        let child = self.alive.iter().find(runs).map(|(child, _)| child.clone());
        self.ensure(child.is_none(), || format!("executor {name:?} has ended, and {child:?} runs"));
    }

    /// An instance of an executor is to be built.
    pub(crate) fn on_executor_start(&mut self, agent: usize, name: &Name, next_turn: u64) {
        let known = self.executors.get(&(agent, name.clone()));
        let kept = known.map_or(0, |(_, kept)| *kept);
        self.ensure(next_turn > kept, || {
            format!("executor {name:?} begins at turn {next_turn}, though turn {kept} was kept")
        });
    }

    /// An executor made a turn; it may still be lost.
    pub(crate) fn on_executor_spoke(&mut self, turn: &v1::ExecutorTurn) {
        let framework = turn.key.as_ref().map_or(0, |key| key.framework);
        for operation in &turn.operations {
            if let Some(ExecutorOperation::Status(status)) = &operation.operation
                && status.state() == v1::TaskState::TaskFinished
            {
                self.finished.insert((framework, status.task.clone()));
            }
        }
    }

    /// An agent is another one from now on.
    pub(crate) fn forget_generations(&mut self, agent: usize) {
        self.generations.remove(&agent);
        // Executors begin there as if there had never been one.
        self.executors.retain(|(on, _), _| *on != agent);
    }

    /// Two machines speak for an agent: of what was launched there anything may become.
    pub(crate) fn on_two_machines(&mut self, agent: AgentId) {
        let live = self.tasks.iter().filter(|(_, state)| !state.is_terminal()).map(|(name, _)| name.clone());
        let here = live.filter(|name| self.placed.get(name) == Some(&agent)).collect();
        self.wishes.on_two_machines(here);
        self.saw("another machine speaks for an agent");
    }

    /// An agent has its number: no other one gets it, whatever is restored.
    pub(crate) fn on_number(&mut self, number: AgentId, key: String) {
        let before = self.numbers.insert(number, key.clone());
        self.ensure(before.as_ref().is_none_or(|before| *before == key), || {
            format!("agent {number} is {key}, and was {before:?}")
        });
    }

    /// An agent that was declared gone is another one from now on.
    pub(crate) fn on_agent_renewed(&mut self, agent: usize) {
        self.forget_generations(agent);
        self.saw("an agent that was declared gone comes back as another one");
    }

    pub(crate) fn on_desired_sent(&mut self, agent: usize, term: u64, generation: u64) {
        let before = self.generations.get(&agent).copied().unwrap_or_default();
        if term < before.0 {
            // It does not know yet that another one leads.
            return;
        }
        self.generations.insert(agent, (term, generation));
        self.ensure(generation > before.1, || {
            format!("generations fall: {generation} after {} for agent #{agent}", before.1)
        });
    }

    /// Events are sent to a scheduler.
    pub(crate) fn on_batch_sent(
        &mut self,
        batch: &v1::Batch,
        about: impl Fn(AgentId) -> Option<(String, Vec<(String, String)>)>,
    ) {
        let framework = batch.key.as_ref().map_or(0, |key| key.framework);
        let mut offered = false;
        for event in &batch.events {
            if let Some(v1::event::Event::InverseOffers(wanted)) = &event.event {
                self.saw("an agent is asked back of a scheduler");
                let strange = wanted.offers.iter().find(|o| !self.wishes.asked_back.contains(&AgentId(o.agent)));
                let strange = strange.map(|offer| offer.agent);
                self.ensure(strange.is_none(), || {
                    format!("agent {strange:?} is asked back of f{framework}, and nobody wanted that")
                });
            }
            if let Some(v1::event::Event::Offers(offers)) = &event.event {
                for offer in &offers.offers {
                    if self.offered.insert(offer.id) {
                        offered = true;
                        self.check_offer((framework, batch.number), offer, &about);
                    }
                }
            }
        }
        // What was offered before the turn was committed comes with the next batch, and once more with
        // those after it when a session ended before its answer came.
        let shadow = self.frameworks.get(&framework);
        let unwanted = shadow.and_then(|f| f.suppressed).is_some_and(|turn| batch.number > turn + 1);
        self.ensure(!offered || !unwanted, || {
            format!("f{framework} wants no offers, and gets some in batch {}", batch.number)
        });
    }

    pub(crate) fn on_master_open(&mut self, slot: usize, node: Option<&Node<FaultyDisk>>) {
        let Some(node) = node else { return };
        self.group.on_open(slot);
        if let Err(what) = node.core().check() {
            self.violate(format!("after a crash: {what}"));
        }
    }

    /// A step of a master is done. Returns lines for the journal.
    pub(crate) fn on_settled(&mut self, master: &Master, settled: &Settled) -> Vec<String> {
        let Some(node) = &master.node else { return Vec::new() };
        let status = node.status();
        match self.group.on_settled(master.slot, node, &master.disk, &status, self.last_applied) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(what) => {
                self.violate(what);
                return Vec::new();
            }
        }
        let core = node.core();
        if let Err(what) = core.check() {
            self.violate(what);
        }
        let index = status.applied.index;
        if index <= self.last_applied {
            return Vec::new();
        }
        self.last_applied = index;
        let mut lines = Vec::new();
        self.check_events(node, settled, &mut lines);
        self.check_removals(core, &mut lines);
        let frameworks = core.frameworks();
        for view in &frameworks {
            self.wishes.on_policy(view.id.0, view.unreachable);
        }
        let tasks = core.tasks(&TaskFilter { limit: 1_000, ..TaskFilter::default() });
        self.check_tasks(core, &tasks, &mut lines);
        for framework in &frameworks {
            self.check_live(core, framework);
            self.check_framework(node, framework, &mut lines);
            self.note_requests(framework);
        }
        self.check_roles(core, &tasks, &frameworks);
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS_PER_COMPARISON) {
            self.compare(node);
        }
        lines
    }

    /// The newest entry that some master applied.
    pub(crate) const fn last_applied(&self) -> u64 {
        self.last_applied
    }

    /// Memory is exactly what the rows make.
    pub(crate) fn compare(&mut self, node: &Node<FaultyDisk>) {
        // It understands whatever the masters are upgraded to.
        let config = Config { understands: u32::MAX, ..Config::default() };
        match Core::load(&node.rows(), config) {
            Ok(loaded) => {
                if let Some(difference) = node.core().diff(&loaded) {
                    self.violate(format!("memory and rows differ: {difference}"));
                }
            }
            Err(error) => self.violate(format!("the rows make no state: {error}")),
        }
    }

    /// A framework that is gone takes its records with it, and may only go when nothing of it runs.
    fn check_removals(&mut self, core: &Core, lines: &mut Vec<String>) {
        let leaving = core.frameworks().into_iter().filter(|view| view.removing);
        self.leaving.extend(leaving.map(|view| view.id.0));
        let gone: Vec<u64> = self
            .frameworks
            .keys()
            .copied()
            .filter(|id| core.framework(FrameworkId(*id)).is_none())
            .collect();
        for id in gone {
            lines.push(format!("master: f{id} is gone"));
            self.frameworks.remove(&id);
            self.removed.insert(id);
            self.leaving.insert(id);
            self.tasks.retain(|name, _| name.0 != id);
            let wanted = |name: &&TaskName| {
                let task = (id, task_of(&name.1).to_owned());
                // Its last task may have been given up in the same moment, with its agent.
                let gone = self.placed.get(&task).is_some_and(|agent| self.wishes.gone.contains(agent));
                name.0 == id && !gone && !self.wishes.is_given_up(&task) && !self.wishes.is_usurped(&task)
            };
            let running = self.alive.keys().find(wanted).cloned();
            self.ensure(running.is_none(), || format!("f{id} is gone, and {running:?} runs"));
        }
    }

    /// Frameworks that the user had removed.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.len() as u64
    }
}
