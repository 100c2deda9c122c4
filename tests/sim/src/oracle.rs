//! What must always hold, checked after each step against a view of its own.
//!
//! Owns: the shadow of everything that was acknowledged. Invariants: it learns from what goes over the
//! borders of the cores only, and shares no code with what it checks; the first violation is kept.
//! Must never change the run.

use crate::agent::Agent;
use crate::disk::FaultyDisk;
use crate::executor::{CHILD_PREFIX, Name};
use crate::group::Group;
use crate::master::Master;
use crate::model;
use crate::sandboxes::Sandboxes;
use crate::wishes::Wishes;
use std::collections::{BTreeMap, BTreeSet};
use tessera_master::node::{Node, Settled};
use tessera_master_core::{Config, Core, EventId, FrameworkView, TaskFilter, VersionOutcome};
use tessera_types::{
    AgentId, Consumed, FrameworkId, LimitName, Operation, Quantities, Reason, TaskId, TaskState,
    TaskStatus, Turn, check_transition,
};
use tessera_wire::v1;
use tessera_wire::v1::executor_operation::Operation as ExecutorOperation;

/// Steps that changed something between two comparisons of memory with rows: each reads all rows.
const STEPS_PER_COMPARISON: u64 = 20;
/// So many agents may be given up at once; more are a fault of the masters' network.
const AT_ONCE_MAX: usize = 3;
/// Less time than the next ones have to wait for, in ms.
const AT_ONCE_MS: u64 = 250;
/// Events read at a time.
const EVENTS_PAGE: usize = 500;

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
#[derive(Debug, Default)]
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
    /// Frameworks that the user wants removed: nobody hears of their turns and tasks any more.
    leaving: BTreeSet<u64>,
    removed: BTreeSet<u64>,
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

    /// An instance made a turn out of a batch.
    pub(crate) fn on_turn_made(&mut self, epoch: u64, turn: &Turn, batch: &v1::Batch) {
        let mut statuses = BTreeMap::new();
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        self.hear(turn.header.framework.0, batch);
        for event in &batch.events {
            let Some(v1::event::Event::Update(update)) = &event.event else { continue };
            let Some(status) = update.status.clone().and_then(|s| TaskStatus::try_from(s).ok()) else {
                self.violate("a batch has an update without a status".to_owned());
                continue;
            };
            if update.sequence == 0 {
                continue;
            }
            let task = status.task.to_string();
            let before = last.insert(task.clone(), update.sequence).unwrap_or(0);
            self.ensure(update.sequence > before, || {
                format!("statuses of {task} are out of order within a batch")
            });
            statuses.insert((task, update.sequence), status);
        }
        let key = (turn.header.framework.0, turn.header.number.0);
        let made = Made { epoch, turn: turn.clone(), statuses };
        let known = self.made.entry(key).or_default();
        if !known.iter().any(|other| other.turn == made.turn && other.epoch == epoch) {
            known.push(made);
        }
    }

    /// A scheduler hears its executors.
    fn hear(&mut self, framework: u64, batch: &v1::Batch) {
        for event in &batch.events {
            let Some(v1::event::Event::Message(message)) = &event.event else { continue };
            let (executor, data) = (message.executor.clone(), message.data.clone());
            let text = String::from_utf8_lossy(&data).into_owned();
            let before = self.heard.insert((framework, executor, data), batch.time_ms);
            self.ensure(before.is_none(), || {
                format!("f{framework} hears {text} of {} for the second time", message.executor)
            });
        }
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

    /// A worker was told that a turn is committed.
    pub(crate) fn on_turn_acknowledged(&mut self, turn: &Turn, next: u64) {
        let header = turn.header;
        if self.leaving.contains(&header.framework.0) {
            return;
        }
        if next == header.number.0 {
            self.ensure(!turn.changes_state(), || {
                format!("turn {} of {} changes state but took no number", header.number, header.framework)
            });
            return;
        }
        let shadow = self.frameworks.get(&header.framework.0);
        let committed = shadow.and_then(|shadow| shadow.turns.get(&header.number.0));
        let same = committed == Some(turn);
        self.ensure(same, || {
            format!(
                "an acknowledged turn is lost: {} {} of {} is not what is committed",
                header.number, header.framework, header.epoch
            )
        });
    }

    /// An agent was told that its status is committed.
    pub(crate) fn on_status_acknowledged(&mut self, framework: u64, status: &TaskStatus) {
        if self.leaving.contains(&framework) {
            return;
        }
        let task = status.task.to_string();
        let known = self.tasks.get(&(framework, task.clone())).copied();
        let safe = !status.state.is_terminal() || known.is_none_or(TaskState::is_terminal);
        self.ensure(safe, || {
            format!("an acknowledged status is lost: {task} is {known:?}, not {}", status.state)
        });
    }

    /// A task's processes begin on some agent.
    pub(crate) fn on_start(&mut self, agent: usize, name: &TaskName, attempt: u32, process: u64) {
        let starts = self.starts.entry((name.0, name.1.clone(), attempt)).or_default();
        *starts += 1;
        let starts = *starts;
        let usurped = self.wishes.is_usurped(name);
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
        let launched = known || self.wishes.is_given_up(&of);
        self.ensure(launched, || format!("f{}/{} runs but was never launched", name.0, name.1));
    }

    /// The user asks for the end of a task.
    pub(crate) fn on_user_kill(&mut self, framework: u64, task: &TaskId) {
        self.user_kills.insert((framework, task.to_string()));
    }

    /// What a turn launched all or none is all there, or all dropped; a task group is on one agent.
    fn check_units(&mut self, id: u64, turn: &Turn) {
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

    /// The machine of an agent went down.
    pub(crate) fn on_machine_death(&mut self, agent: AgentId, frameworks: &BTreeSet<u64>) {
        let lost = self.live_on(agent, frameworks);
        self.orphans.extend(lost.iter().cloned());
        self.rebooted.extend(lost);
    }

    fn live_on(&self, agent: AgentId, frameworks: &BTreeSet<u64>) -> Vec<TaskName> {
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

    /// An agent is another one from now on.
    pub(crate) fn forget_generations(&mut self, agent: usize) {
        self.generations.remove(&agent);
    }

    /// Two machines speak for an agent: of what was launched there anything may become.
    pub(crate) fn on_two_machines(&mut self, agent: AgentId) {
        let live = self.tasks.iter().filter(|(_, state)| !state.is_terminal()).map(|(name, _)| name.clone());
        let here = live.filter(|name| self.placed.get(name) == Some(&agent)).collect();
        self.wishes.on_two_machines(here);
        self.saw("another machine speaks for an agent");
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
    pub(crate) fn on_batch_sent(&mut self, batch: &v1::Batch) {
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
                    offered |= self.offered.insert(offer.id);
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

    /// What a framework counted so far, and how many turns were given up with its upgrades.
    pub(crate) fn counted(&self, framework: u64) -> (u64, u64) {
        let shadow = self.frameworks.get(&framework);
        shadow.map_or((0, 0), |f| (f.last_turn - f.given_up.min(f.last_turn), f.given_up))
    }

    /// A scheduler answered with its count, which was asked for when it stood at least at this.
    pub(crate) fn on_count(&mut self, framework: u64, body: &[u8], (floor, given_up): (u64, u64)) {
        let answered = std::str::from_utf8(body).ok().and_then(|text| text.parse::<u64>().ok());
        let comparable = self.counted(framework).1 == given_up && self.frameworks.contains_key(&framework);
        self.ensure(!comparable || answered.is_some_and(|count| count >= floor), || {
            format!("the scheduler of f{framework} answers {answered:?}, and {floor} turns were committed when it was asked")
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
        for view in core.frameworks() {
            self.wishes.on_policy(view.id.0, view.unreachable);
        }
        self.check_tasks(core, &mut lines);
        for framework in core.frameworks() {
            self.check_live(core, &framework);
            self.check_framework(node, &framework, &mut lines);
        }
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

    fn check_events(&mut self, node: &Node<FaultyDisk>, settled: &Settled, lines: &mut Vec<String>) {
        let after = self.events_last;
        loop {
            let rows = node.rows();
            let page = match node.core().events(Some(self.events_last), EVENTS_PAGE, &rows) {
                Ok(page) => page,
                Err(error) => return self.violate(format!("events cannot be read: {error}")),
            };
            self.ensure(!page.gap, || "events are missing for a watcher that was not behind".to_owned());
            self.ensure(page.last >= after, || "the newest event's id falls".to_owned());
            if page.events.is_empty() {
                break;
            }
            for event in page.events {
                let before = self.events_last;
                self.ensure(event.id > before, || "event ids do not rise".to_owned());
                self.events_last = event.id;
                let task = event.task.map(|task| task.to_string()).unwrap_or_default();
                let framework = event.framework.map(|id| id.to_string()).unwrap_or_default();
                lines.push(format!("event: {} {framework} {task} {}", event.kind, event.text));
                let refused = event.kind == "launch.refused";
                let above = refused && self.wishes.limits_launches(&event.text);
                if above {
                    self.saw("tasks above a limit are dropped");
                }
                let duplicate = refused && !above;
                self.note_event(&event.kind, event.at_ms);
                self.ensure(!duplicate, || format!("a launch of {task} was refused: {}", event.text));
            }
        }
        if let Some(last) = settled.events {
            self.ensure(last >= after, || "watchers are woken for an old event".to_owned());
        }
    }

    /// What the cluster itself says came up.
    fn note_event(&mut self, kind: &str, at_ms: u64) {
        match kind {
            "agent.unreachable" => {
                let last = self.given_up.len().checked_sub(AT_ONCE_MAX).and_then(|at| self.given_up.get(at));
                // The leader's clock may stand still, and its disk may be slow.
                let paced = |(then_ms, then_us): &(u64, u64)| {
                    at_ms >= then_ms + AT_ONCE_MS || self.now_us >= then_us + AT_ONCE_MS * 1_000
                };
                let braked = last.is_none_or(paced);
                self.ensure(braked, || format!("more than {AT_ONCE_MAX} agents are given up within {AT_ONCE_MS} ms"));
                self.given_up.push((at_ms, self.now_us));
            }
            "agents.expiry-held" => self.saw("the brake is on"),
            "agent.copied" => self.saw("a copy of a work directory is refused"),
            _ => {}
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
                name.0 == id && !self.wishes.is_given_up(&(id, task_of(&name.1).to_owned()))
            };
            let running = self.alive.keys().find(wanted).cloned();
            self.ensure(running.is_none(), || format!("f{id} is gone, and {running:?} runs"));
        }
    }

    /// Frameworks that the user had removed.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.len() as u64
    }

    fn check_tasks(&mut self, core: &Core, lines: &mut Vec<String>) {
        let filter = TaskFilter { limit: 1_000, ..TaskFilter::default() };
        let mut seen = BTreeSet::new();
        for view in core.tasks(&filter) {
            let name = (view.framework.0, view.launch.task.to_string());
            seen.insert(name.clone());
            self.placed.insert(name.clone(), view.agent);
            if view.kill_requested && self.killing.insert(name.clone()) {
                let held = self.frameworks.get(&name.0).is_some_and(|f| f.quarantined_ms.is_some());
                let asked = self.user_kills.contains(&name)
                    || self.leaving.contains(&name.0)
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
    fn about_to_end(&self, core: &Core, name: &TaskName) -> bool {
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
    fn check_end(&mut self, name: &TaskName, status: &TaskStatus) {
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
            (TaskState::Failed, Reason::AgentRebooted) => self.rebooted.contains(name),
            (TaskState::Lost, _) => false,
            (TaskState::Finished, _) => ended.is_some_and(|ended| ended.code == Some(0)),
            (TaskState::Failed, Reason::CommandExited) => {
                ended.is_some_and(|ended| ended.code.is_some() && ended.code == status.exit_code)
            }
            // Of a member that never started: its group did not.
            (TaskState::Failed, Reason::TaskGroup | Reason::LaunchFailed) => ended.is_none(),
            (TaskState::Dropped, _) => ended.is_none() && !alive,
            (TaskState::Killed, _) => !alive,
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
    fn check_live(&mut self, core: &Core, view: &FrameworkView) {
        let of = self.tasks.range((view.id.0, String::new())..(view.id.0 + 1, String::new()));
        let live = of.filter(|(_, state)| !state.is_terminal()).count() as u64;
        let most = core.effective_limits(Some(&view.role)).get(LimitName::LiveTasks);
        if let Err(what) = self.wishes.on_live(view.id.0, live, most) {
            self.violate(what);
        }
    }

    fn check_framework(
        &mut self,
        node: &Node<FaultyDisk>,
        view: &FrameworkView,
        lines: &mut Vec<String>,
    ) {
        let id = view.id.0;
        let shadow = self.frameworks.entry(id).or_default();
        let (epoch, last) = (shadow.epoch, shadow.last_turn);
        shadow.epoch = view.epoch.0;
        let held_since = view.quarantine.as_ref().map(|quarantine| quarantine.since_ms);
        let held = shadow.quarantined_ms.is_some() && shadow.quarantined_ms == held_since;
        shadow.quarantined_ms = held_since;
        if view.epoch.0 < epoch {
            return self.violate(format!("the epoch of f{id} falls from {epoch} to {}", view.epoch));
        }
        // Its state goes at once, with the last turn that it may have committed.
        if view.removing {
            return;
        }
        self.ensure(!held || view.last_turn.0 == last, || {
            format!("f{id} is quarantined and commits turn {}", view.last_turn)
        });
        let given_up = self.gave_up(view);
        // A turn of an upgrade that was given up in this very step; of one that also began in it there is
        // none.
        let undone = given_up && self.frameworks.get(&id).is_some_and(|f| f.before.is_some());
        if view.last_turn.0 != last && !undone {
            self.check_commit(node, view, epoch, lines);
        }
        self.check_version(node, view, given_up);
    }

    /// Whether an upgrade was given up since the framework was looked at.
    fn gave_up(&self, view: &FrameworkView) -> bool {
        let Some(shadow) = self.frameworks.get(&view.id.0) else { return false };
        let new = view.versions.iter().filter(|version| version.version > shadow.version);
        let failed = new.clone().any(|version| {
            let before = view.versions.iter().find(|before| before.version + 1 == version.version);
            before.is_some_and(|before| matches!(before.outcome, VersionOutcome::Failed(_)))
        });
        shadow.version != 0 && failed
    }

    /// After an upgrade that was given up everything is as it was when it began; otherwise note how it is
    /// when one begins.
    fn check_version(&mut self, node: &Node<FaultyDisk>, view: &FrameworkView, given_up: bool) {
        let id = view.id.0;
        if given_up {
            let state = match read_state(node, view.id).map(of_turns) {
                Ok(state) => state,
                Err(error) => return self.violate(error),
            };
            let Some(shadow) = self.frameworks.get_mut(&id) else { return };
            // An upgrade that was given up as soon as it began left nothing behind.
            let before = shadow.before.take().unwrap_or_else(|| Before {
                last_turn: shadow.last_turn,
                state: shadow.state.clone(),
                config_seen: view.config_seen,
            });
            for number in shadow.last_turn + 1..=view.last_turn.0 {
                // It was pure state, which is gone with the upgrade.
                let made = self.made.get(&(id, number)).into_iter().flatten();
                let made = made.filter(|made| is_pure(&made.turn)).next_back();
                if let Some(made) = made {
                    shadow.turns.insert(number, made.turn.clone());
                }
            }
            shadow.given_up += view.last_turn.0 - before.last_turn;
            shadow.last_turn = view.last_turn.0;
            let restored = before.state == state && before.config_seen == view.config_seen;
            shadow.state = state;
            self.ensure(restored, || {
                format!("f{id} went back to version {:?}, but not to its state", view.versions.last())
            });
        }
        let Some(shadow) = self.frameworks.get_mut(&id) else { return };
        let version = view.versions.last().map_or(0, |last| last.version);
        match &view.upgrade {
            None => shadow.before = None,
            Some(_) if shadow.version != version => {
                shadow.before = Some(Before {
                    last_turn: shadow.last_turn,
                    state: shadow.state.clone(),
                    config_seen: view.config_seen,
                });
            }
            Some(_) => {}
        }
        shadow.version = version;
    }

    /// A turn was committed.
    fn check_commit(
        &mut self,
        node: &Node<FaultyDisk>,
        view: &FrameworkView,
        epoch: u64,
        lines: &mut Vec<String>,
    ) {
        let id = view.id.0;
        let Some(shadow) = self.frameworks.get(&id) else { return };
        let (last, given_up, version) = (shadow.last_turn, shadow.given_up, shadow.version);
        if view.last_turn.0 != last + 1 {
            let now = view.last_turn;
            return self.violate(format!("f{id} jumps from turn {last} to {now} in one step"));
        }
        let state = match read_state(node, view.id).map(of_turns) {
            Ok(state) => state,
            Err(error) => return self.violate(error),
        };
        let Some(made) = self.committed(id, view.last_turn.0, &state) else {
            let number = view.last_turn;
            return self.violate(format!(
                "the state of f{id} after turn {number} is that of no turn that was made"
            ));
        };
        lines.push(format!("master: {} of f{id} (epoch {}) is committed", view.last_turn, made.epoch));
        self.commits += 1;
        if made.epoch < epoch {
            let was = made.epoch;
            self.violate(format!("a turn of epoch {was} of f{id} committed under epoch {epoch}"));
        }
        let count = state.get(model::COUNT_KEY).cloned().unwrap_or_default();
        let expected = (view.last_turn.0 - given_up).to_string();
        self.ensure(count == expected.as_bytes(), || {
            format!("f{id} counts {count:?} turns of {expected}: one is lost or doubled")
        });
        let tried = view.upgrade.is_some() && view.versions.last().is_some_and(|v| v.version == version);
        self.ensure(!tried || is_pure(&made.turn), || {
            format!("f{id} is on trial or migrates after turn {}, which did more than write", view.last_turn)
        });
        let alone = made.turn.operations.is_empty() && made.turn.consumed.is_empty();
        self.ensure(made.turn.migration.is_none() || alone, || {
            format!("turn {} of f{id} migrates and does something else", view.last_turn)
        });
        self.note_wishes(id, &made.turn);
        self.check_units(id, &made.turn);
        self.consume(id, &made);
        if let Some(shadow) = self.frameworks.get_mut(&id) {
            shadow.last_turn = view.last_turn.0;
            shadow.state = state;
            shadow.turns.insert(view.last_turn.0, made.turn);
        }
    }

    /// Whether it wants offers.
    fn note_wishes(&mut self, id: u64, turn: &Turn) {
        let Some(shadow) = self.frameworks.get_mut(&id) else { return };
        for operation in &turn.operations {
            match operation {
                Operation::Suppress => shadow.suppressed = Some(turn.header.number.0),
                Operation::Revive => shadow.suppressed = None,
                _ => {}
            }
        }
    }

    /// The turn under this number that leads from the last state to this one.
    fn committed(&self, id: u64, number: u64, state: &BTreeMap<String, Vec<u8>>) -> Option<Made> {
        let shadow = self.frameworks.get(&id)?;
        let leads_here = |made: &&Made| {
            let mut after = shadow.state.clone();
            for write in &made.turn.writes {
                match &write.value {
                    Some(value) => after.insert(write.key.clone(), value.clone()),
                    None => after.remove(&write.key),
                };
            }
            after == *state
        };
        // A relabelled turn is found under its own number.
        let under = self.made.get(&(id, number)).into_iter().flatten().rev().find(leads_here);
        let any = || self.made.range((id, 0)..=(id, u64::MAX)).flat_map(|(_, made)| made);
        under.or_else(|| any().find(leads_here)).cloned()
    }

    fn consume(&mut self, id: u64, made: &Made) {
        for consumed in &made.turn.consumed {
            if let Consumed::Config { version } = consumed
                && let Some(shadow) = self.frameworks.get_mut(&id)
            {
                let before = std::mem::replace(&mut shadow.config_seen, *version);
                self.ensure(*version > before, || {
                    format!("f{id} saw configuration {version} after {before}")
                });
            }
            let Consumed::Update { task, sequence } = consumed else { continue };
            let task = task.to_string();
            let Some(status) = made.statuses.get(&(task.clone(), *sequence)) else {
                self.violate(format!("f{id} consumed an update of {task} that it never got"));
                continue;
            };
            let Some(shadow) = self.frameworks.get_mut(&id) else { continue };
            let before = shadow.consumed.insert(task.clone(), (*sequence, status.state));
            let mut again = false;
            if status.state.is_terminal() {
                let end = (status.state, status.reason);
                again = shadow.ended.insert(task.clone(), end).is_some();
            }
            self.ensure(!again, || format!("the end of f{id}/{task} was consumed twice"));
            let Some((last, state)) = before else { continue };
            self.ensure(*sequence > last, || {
                format!("f{id} consumed status {sequence} of {task} after {last}")
            });
            // Non-terminal ones in between may be left out, but never turned round.
            let legal = check_transition(state, status.state).is_ok();
            self.ensure(legal, || format!("f{id} heard that {task} went from {state} to {}", status.state));
        }
    }

    /// After the last fault: everything that was launched ended once, and everybody knows.
    pub(crate) fn unfinished(&self, tasks: u64) -> Option<String> {
        for (id, shadow) in &self.frameworks {
            if !model::is_done(tasks, &shadow.state) {
                return Some(format!("f{id} has not got all its tasks done"));
            }
        }
        for (name, state) in &self.tasks {
            let consumed = self.frameworks.get(&name.0).and_then(|f| f.ended.get(&name.1));
            if consumed.is_none() {
                return Some(format!("the end of f{}/{} ({state}) is not consumed", name.0, name.1));
            }
        }
        self.alive.keys().next().map(|name| format!("f{}/{} still runs", name.0, name.1))
    }
}

/// The task for which a child works, or the task itself.
fn task_of(name: &str) -> &str {
    let child = name.rsplit_once('/').and_then(|(_, child)| child.strip_prefix(CHILD_PREFIX));
    child.unwrap_or(name)
}

/// Whether a turn did nothing but write state.
fn is_pure(turn: &Turn) -> bool {
    turn.consumed.is_empty() && turn.operations.iter().all(|operation| !operation.changes_state())
}

/// All keys and values of a framework.
pub(crate) fn read_state(
    node: &Node<FaultyDisk>,
    framework: FrameworkId,
) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let rows = node.rows();
    let mut state = BTreeMap::new();
    loop {
        let after = state.last_key_value().map(|(key, _): (&String, &Vec<u8>)| key.clone());
        let page = node
            .core()
            .state_page(framework, after.as_deref(), 500, &rows)
            .map_err(|error| format!("the state cannot be read: {error}"))?;
        if page.is_empty() {
            return Ok(state);
        }
        state.extend(page.into_iter().filter_map(|write| Some((write.key, write.value?))));
    }
}

/// The state without what users write, which no turn explains.
fn of_turns(mut state: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    state.retain(|key, _| !key.starts_with(model::OUTSIDE_PREFIX));
    state
}
