//! Lists, a piece at a time: whoever lists much asks often, and the loop that owns the state is never held for long.
//!
//! Invariants: each call looks at a bounded number of rows; a place in a list stays right when what it names is gone;
//! nothing that is there all the time is left out. What changes meanwhile may be listed twice. Changes nothing.

use crate::Core;
use crate::api::{AgentView, ComponentView, FrameworkView, TaskView};
use crate::query::task_view;
use crate::rows::{self, Rows, RowsError};
use crate::state::{Framework, State, Task};
use std::collections::BTreeMap;
use std::ops::Bound;
use tessera_types::{AgentId, Digest, FrameworkId, RoleName, TaskId, TaskState};

/// What reading one row of the history counts as: it is read from disk.
const HISTORY_COSTS: usize = 8;

/// Rows of the history that are read at once.
const HISTORY_PAGE: usize = 64;

/// Which tasks to list. What is absent is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPick {
    /// Of this framework.
    pub framework: Option<FrameworkId>,
    /// Of frameworks in this role, or below it.
    pub role: Option<RoleName>,
    /// On this agent.
    pub agent: Option<AgentId>,
    /// In one of these states; none means any.
    pub states: Vec<TaskState>,
    /// That have not ended.
    pub live: bool,
    /// Whose name begins like this.
    pub name: Option<String>,
    /// Of this task group.
    pub group: Option<u64>,
    /// That somebody asked to end.
    pub killed: bool,
}

/// A place in the list of tasks: what stands before it has been listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskPlace {
    /// After this one of those in memory.
    Memory(FrameworkId, TaskId),
    /// After this one of the history, which comes then.
    History(FrameworkId, u64),
}

/// A task of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLine {
    /// It.
    pub view: TaskView,
    /// The name of its framework.
    pub framework_name: String,
    /// Whether its agent has a session with this master.
    pub connected: bool,
}

/// A piece of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<T, P> {
    /// What was found; perhaps nothing.
    pub found: Vec<T>,
    /// Where to go on; nothing at the end of the list.
    pub next: Option<P>,
}

/// How much one call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Find at most so many.
    pub find: usize,
    /// Look at about so many.
    pub look: usize,
}

/// Whether a role is another one, or below it.
fn within(role: &RoleName, above: &RoleName) -> bool {
    let rest = role.as_str().strip_prefix(above.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl TaskPick {
    fn takes_framework(&self, id: FrameworkId, framework: Option<&Framework>) -> bool {
        let in_role = |role| framework.is_some_and(|framework| within(&framework.role, role));
        self.framework.is_none_or(|only| only == id) && self.role.as_ref().is_none_or(in_role)
    }

    fn takes(&self, task: &Task) -> bool {
        self.agent.is_none_or(|agent| task.agent == agent)
            && (self.states.is_empty() || self.states.contains(&task.state))
            && !(self.live && task.state.is_terminal())
            && self.name.as_ref().is_none_or(|prefix| task.name.starts_with(prefix.as_str()))
            && self.group.is_none_or(|group| group != 0 && task.group == group)
            && !(self.killed && task.kill.is_none())
    }

    /// Nothing that has ended is asked for.
    fn only_live(&self) -> bool {
        self.live || !self.states.is_empty() && !self.states.iter().any(|state| state.is_terminal())
    }
}

/// One call's work on the list of tasks.
struct Walk<'a> {
    core: &'a Core,
    pick: &'a TaskPick,
    budget: Budget,
    found: Vec<TaskLine>,
}

impl Walk<'_> {
    fn line(&mut self, id: FrameworkId, owner: Option<&Framework>, task: &Task, history: Option<u64>) {
        let links = self.core.leader.as_ref().map(|leader| &leader.links);
        let link = links.and_then(|links| links.get(&task.agent));
        self.found.push(TaskLine {
            view: task_view(id, owner, task, history),
            framework_name: owner.map(|owner| owner.name.to_string()).unwrap_or_default(),
            connected: link.is_some_and(|link| link.session.is_some()),
        });
    }

    const fn is_over(&self) -> bool {
        self.budget.look == 0 || self.found.len() >= self.budget.find
    }

    fn looked(&mut self, at: usize) {
        self.budget.look = self.budget.look.saturating_sub(at);
    }

    /// Tasks of an agent that have not ended, by the agent's own index.
    fn on_agent(&mut self, agent: AgentId, after: Option<(FrameworkId, TaskId)>) -> Option<TaskPlace> {
        let state: &State = &self.core.state;
        let row = state.agents.get(&agent)?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (id, name) in row.tasks.range((from, Bound::Unbounded)) {
            self.looked(1);
            let owner = state.frameworks.get(id);
            let task = owner.and_then(|owner| owner.tasks.get(name));
            if let Some(task) = task.filter(|task| self.pick.takes_framework(*id, owner) && self.pick.takes(task)) {
                self.line(*id, owner, task, None);
            }
            if self.is_over() {
                return Some(TaskPlace::Memory(*id, name.clone()));
            }
        }
        None
    }

    /// Tasks in memory, by framework and id.
    fn in_memory(&mut self, after: Option<(FrameworkId, TaskId)>) -> Option<TaskPlace> {
        let first = self.pick.framework.unwrap_or(FrameworkId(0));
        let from = after.as_ref().map_or(first, |(id, _)| *id).max(first);
        for (id, owner) in self.core.state.frameworks.range(from..) {
            if self.pick.framework.is_some_and(|only| only < *id) {
                break;
            }
            self.looked(1);
            if !self.pick.takes_framework(*id, Some(owner)) {
                continue;
            }
            let from = match &after {
                Some((of, task)) if of == id => Bound::Excluded(task),
                _ => Bound::Unbounded,
            };
            for (name, task) in owner.tasks.range::<TaskId, _>((from, Bound::Unbounded)) {
                self.looked(1);
                if self.pick.takes(task) {
                    self.line(*id, Some(owner), task, None);
                }
                if self.is_over() {
                    return Some(TaskPlace::Memory(*id, name.clone()));
                }
            }
        }
        None
    }

    /// Tasks of the history, by framework and number.
    fn in_history(
        &mut self,
        after: (FrameworkId, u64),
        rows: &dyn Rows,
    ) -> Result<Option<TaskPlace>, RowsError> {
        let first = self.pick.framework.unwrap_or(FrameworkId(0));
        for (id, owner) in self.core.state.frameworks.range(after.0.max(first)..) {
            if self.pick.framework.is_some_and(|only| only < *id) {
                break;
            }
            self.looked(1);
            if !self.pick.takes_framework(*id, Some(owner)) || owner.history_first == owner.history_next {
                continue;
            }
            let mut number = if after.0 == *id { after.1 } else { 0 };
            // Each call gets further, however little it may look at.
            let mut further = after.0 != *id;
            loop {
                if further && self.is_over() {
                    return Ok(Some(TaskPlace::History(*id, number)));
                }
                let from = rows::history_key(*id, number);
                let prefix = rows::framework_key(*id);
                let room = (self.budget.find - self.found.len()).min(HISTORY_PAGE);
                let page = rows.scan(rows::HISTORY, &prefix, Some(&from), room)?;
                if page.is_empty() {
                    break;
                }
                further = true;
                for (key, value) in page {
                    self.looked(HISTORY_COSTS);
                    let rest = rows::split_owned(&key).and_then(|(_, rest)| rest.try_into().ok());
                    number = rest.map(u64::from_be_bytes).ok_or_else(|| RowsError("a history row with a short key".into()))?;
                    let task = Task::decode(rows::HISTORY, &value).map_err(|error| RowsError(error.to_string()))?;
                    if self.pick.takes(&task) {
                        self.line(*id, Some(owner), &task, Some(number));
                    }
                }
            }
        }
        Ok(None)
    }
}

impl Core {
    /// Some tasks: those in memory by framework and id, then the history by framework and number. A task that ends
    /// meanwhile may be in both.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn tasks_from(
        &self,
        pick: &TaskPick,
        after: Option<TaskPlace>,
        budget: Budget,
        rows: &dyn Rows,
    ) -> Result<Piece<TaskLine, TaskPlace>, RowsError> {
        let mut walk = Walk { core: self, pick, budget, found: Vec::new() };
        let ended = match after {
            Some(TaskPlace::History(id, number)) => Some((id, number)),
            place => {
                let after = place.and_then(|place| match place {
                    TaskPlace::Memory(id, task) => Some((id, task)),
                    TaskPlace::History(..) => None,
                });
                let next = match pick.agent.filter(|_| pick.only_live()) {
                    Some(agent) => walk.on_agent(agent, after),
                    None => walk.in_memory(after),
                };
                if next.is_some() {
                    return Ok(Piece { found: walk.found, next });
                }
                None
            }
        };
        if pick.only_live() || pick.killed {
            return Ok(Piece { found: walk.found, next: None });
        }
        let next = walk.in_history(ended.unwrap_or((FrameworkId(0), 0)), rows)?;
        Ok(Piece { found: walk.found, next })
    }

    /// One task as lists have it, in the history too, with the states that it was in.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn task_line(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        rows: &dyn Rows,
    ) -> Result<Option<TaskLine>, RowsError> {
        let Some(view) = self.task(framework, task, rows)? else { return Ok(None) };
        let name = self.framework_names(framework).map(|(name, _)| name);
        let connected = self.is_connected(view.agent);
        Ok(Some(TaskLine { view, framework_name: name.unwrap_or_default(), connected }))
    }

    /// How many tasks of a framework that have not ended are in each state, and how many were looked at.
    #[must_use]
    pub fn task_counts(&self, framework: FrameworkId) -> (BTreeMap<TaskState, usize>, usize) {
        let mut counts = BTreeMap::new();
        let Some(row) = self.state.frameworks.get(&framework) else { return (counts, 0) };
        for task in row.tasks.values().filter(|task| !task.state.is_terminal()) {
            *counts.entry(task.state).or_insert(0) += 1;
        }
        (counts, row.tasks.len())
    }

    /// Some frameworks, in a role or below it if one is named, in order of ids. Each counts as what `cost` says.
    #[must_use]
    pub fn frameworks_from(
        &self,
        role: Option<&RoleName>,
        after: Option<FrameworkId>,
        budget: Budget,
    ) -> Piece<FrameworkView, FrameworkId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = Vec::new();
        let mut look = budget.look;
        for (id, framework) in self.state.frameworks.range((from, Bound::Unbounded)) {
            look = look.saturating_sub(1);
            if role.is_none_or(|role| within(&framework.role, role)) {
                // Its tasks are going to be counted.
                look = look.saturating_sub(framework.tasks.len());
                found.push(self.framework_view(*id, framework));
            }
            if found.len() >= budget.find || look == 0 {
                return Piece { found, next: Some(*id) };
            }
        }
        Piece { found, next: None }
    }

    /// Some agents, in order of ids.
    #[must_use]
    pub fn agents_from(&self, after: Option<AgentId>, find: usize) -> Piece<AgentView, AgentId> {
        let hosted = self.state.schedulers();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let agents = self.state.agents.range((from, Bound::Unbounded)).take(find);
        let found: Vec<AgentView> = agents
            .map(|(id, agent)| self.agent_view(*id, agent, hosted.get(id).copied().unwrap_or(0)))
            .collect();
        let next = found.last().filter(|_| found.len() >= find).map(|last| last.id);
        Piece { found, next }
    }

    /// Some components, in order of digests.
    #[must_use]
    pub fn components_from(&self, after: Option<Digest>, find: usize) -> Piece<ComponentView, Digest> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let components = self.state.components.range((from, Bound::Unbounded)).take(find);
        let found: Vec<ComponentView> =
            components.map(|(digest, component)| ComponentView::of(*digest, component)).collect();
        let next = found.last().filter(|_| found.len() >= find).map(|last| last.digest);
        Piece { found, next }
    }

    /// The name and the role of a framework.
    #[must_use]
    pub fn framework_names(&self, id: FrameworkId) -> Option<(String, RoleName)> {
        let framework = self.state.frameworks.get(&id)?;
        Some((framework.name.to_string(), framework.role.clone()))
    }

    /// Whether an agent has a session with this master.
    #[must_use]
    pub fn is_connected(&self, agent: AgentId) -> bool {
        let link = self.leader.as_ref().and_then(|leader| leader.links.get(&agent));
        link.is_some_and(|link| link.session.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::rows::RowChange;
    use crate::status_steps::StatusSteps;
    use crate::testing::MemRows;
    use prost::Message as _;
    use tessera_types::{Launch, Resources, TaskStatus};
    use tessera_wire::v1;
    use tessera_wire::v1::command::Command as C;

    fn task(n: u64, state: TaskState) -> Task {
        let id: TaskId = format!("t{n:04}").parse().unwrap();
        let status = TaskStatus::new(id.clone(), AgentId(1), state, 5);
        Task {
            launch: Launch { task: id, spec: Digest([7; 32]), args: vec![], env: vec![] },
            name: if n % 3 == 0 { "third".into() } else { "other".into() },
            agent: AgentId(1 + n % 2),
            charge: Resources::default(),
            revocable: false,
            group: n % 5,
            state,
            attempt: 1,
            created_ms: 1,
            sequence: 0,
            agent_sequence: 0,
            order: 0,
            latest: None,
            terminal: None,
            status,
            kill: None,
            steps: StatusSteps::default(),
            trace: None,
        }
    }

    /// Three frameworks in two roles, each with tasks in memory and in the history.
    fn cluster() -> (Core, MemRows) {
        let mut rows = MemRows::default();
        let mut core = Core::load(&rows, Config::default()).unwrap();
        let digest = vec![1; 32];
        let mut commands = vec![C::AddComponent(v1::AddComponent {
            digest: digest.clone(),
            size_bytes: 1,
            world: v1::World::Scheduler.into(),
            ..v1::AddComponent::default()
        })];
        for (name, role) in [("a", "eng"), ("b", "engine"), ("c", "eng/search")] {
            commands.push(C::CreateFramework(v1::CreateFramework {
                name: name.into(),
                role: role.into(),
                component: digest.clone(),
                ..v1::CreateFramework::default()
            }));
        }
        let commands = commands.into_iter().map(|command| v1::Command { command: Some(command), ..v1::Command::default() });
        let batch = v1::CommandBatch { version: 1, time_ms: 5, commands: commands.collect() };
        let applied = crate::apply::apply(&mut core.state, 1, 1, &batch.encode_to_vec(), &rows).unwrap();
        rows.write(applied.rows);
        for (id, framework) in &mut core.state.frameworks {
            for n in 0..40 {
                let state = if n % 4 == 0 { TaskState::Finished } else { TaskState::Running };
                let task = task(n, state);
                framework.tasks.insert(task.launch.task.clone(), task);
            }
            framework.history_next = 31;
            let ended = (1..31).map(|number| RowChange::Put {
                table: rows::HISTORY,
                key: rows::history_key(*id, number),
                value: task(1_000 + number, TaskState::Failed).encode(),
            });
            rows.write(ended.collect());
        }
        (core, rows)
    }

    fn all(core: &Core, rows: &MemRows, pick: &TaskPick, budget: Budget) -> Vec<(FrameworkId, String)> {
        let mut found = Vec::new();
        let mut place = None;
        for _ in 0..10_000 {
            let piece = core.tasks_from(pick, place, budget, rows).unwrap();
            assert!(piece.found.len() <= budget.find);
            found.extend(piece.found.into_iter().map(|line| (line.view.framework, line.view.launch.task.to_string())));
            place = piece.next;
            if place.is_none() {
                return found;
            }
        }
        panic!("the list does not end");
    }

    #[test]
    fn pieces_of_any_size_make_the_same_list() {
        let (core, rows) = cluster();
        let eng: RoleName = "eng".parse().unwrap();
        let picks = [
            (TaskPick::default(), 210),
            (TaskPick { live: true, ..TaskPick::default() }, 90),
            (TaskPick { framework: Some(FrameworkId(2)), ..TaskPick::default() }, 70),
            (TaskPick { role: Some(eng), ..TaskPick::default() }, 140),
            (TaskPick { states: vec![TaskState::Failed], ..TaskPick::default() }, 90),
            (TaskPick { states: vec![TaskState::Finished, TaskState::Failed], agent: Some(AgentId(1)), ..TaskPick::default() }, 75),
            (TaskPick { name: Some("th".into()), live: true, ..TaskPick::default() }, 30),
            (TaskPick { group: Some(1), live: true, ..TaskPick::default() }, 18),
            (TaskPick { group: Some(0), ..TaskPick::default() }, 0),
            (TaskPick { killed: true, ..TaskPick::default() }, 0),
        ];
        for (pick, count) in picks {
            let whole = all(&core, &rows, &pick, Budget { find: 1_000, look: 1_000_000 });
            assert_eq!(whole.len(), count, "{pick:?}");
            for (find, look) in [(1, 1), (1, 1_000_000), (7, 10), (1_000, 3), (64, 64)] {
                assert_eq!(all(&core, &rows, &pick, Budget { find, look }), whole, "{pick:?} {find} {look}");
            }
        }
    }

    #[test]
    fn a_place_stays_right_when_what_it_names_is_gone() {
        let (mut core, rows) = cluster();
        let pick = TaskPick::default();
        let budget = Budget { find: 50, look: 1_000_000 };
        let first = core.tasks_from(&pick, None, budget, &rows).unwrap();
        let gone: TaskId = "t0009".parse().unwrap();
        assert_eq!(first.next, Some(TaskPlace::Memory(FrameworkId(2), gone.clone())));
        core.state.frameworks.get_mut(&FrameworkId(2)).unwrap().tasks.remove(&gone);
        let rest = core.tasks_from(&pick, first.next.clone(), budget, &rows).unwrap();
        assert_eq!(rest.found.first().map(|line| line.view.launch.task.to_string()).as_deref(), Some("t0010"));
        core.state.frameworks.remove(&FrameworkId(2));
        let rest = core.tasks_from(&pick, first.next, budget, &rows).unwrap();
        assert_eq!(rest.found.first().map(|line| line.view.framework), Some(FrameworkId(3)));
    }

    #[test]
    fn frameworks_are_listed_by_role_and_their_tasks_counted() {
        let (core, _) = cluster();
        let eng: RoleName = "eng".parse().unwrap();
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let piece = core.frameworks_from(Some(&eng), after, Budget { find: 1, look: 1 });
            found.extend(piece.found.iter().map(|view| view.id));
            after = piece.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, [FrameworkId(1), FrameworkId(3)], "engine is no part of eng");
        assert_eq!(core.task_counts(FrameworkId(1)).0, [(TaskState::Running, 30)].into());
    }
}
