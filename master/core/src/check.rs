//! The whole-state self-check, used by tests and the simulator after every step.
//!
//! Invariant: it recomputes every index from the tables alone, and shares no code with what maintains
//! them.

use crate::Core;
use crate::leader::{Leader, check_allocator};
use crate::lifecycle::VersionOutcome;
use crate::limits;
use crate::roles::RoleUses;
use crate::rows::{self, Rows};
use crate::state::{Executor, Framework, State, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use tessera_types::limits::VERSIONS_MAX;
use tessera_types::{
    AgentId, Digest, ExecutorId, ExecutorTask, FrameworkId, Resources, TaskBody, TaskId, TaskState,
};

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

impl Core {
    /// Verify what must always hold. To be called when the effects of what was applied have been
    /// performed.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), String> {
        check_state(&self.state)?;
        match &self.leader {
            Some(leader) => check_leader(&self.state, leader),
            None => Ok(()),
        }
    }

    /// Verify what can only be seen in the rows: totals of the states that instances see, and that no
    /// generation is left over.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn check_rows(&self, rows: &dyn Rows) -> Result<(), String> {
        let mut above: BTreeMap<FrameworkId, BTreeMap<Vec<u8>, Vec<u8>>> = BTreeMap::new();
        let mut seen: BTreeMap<FrameworkId, BTreeMap<Vec<u8>, usize>> = BTreeMap::new();
        for table in [rows::VALUES, rows::GENERATION] {
            rows::for_each(rows, table, |key, value| {
                let Some((id, rest)) = rows::split_owned(key) else { return Ok(()) };
                if table == rows::VALUES {
                    seen.entry(id).or_default().insert(rest.to_vec(), value.len());
                } else {
                    above.entry(id).or_default().insert(rest.to_vec(), value.to_vec());
                }
                Ok(())
            })
            .map_err(|error| error.to_string())?;
        }
        for (id, newer) in above {
            let owner = self.state.frameworks.get(&id);
            ensure!(
                owner.is_some_and(|f| f.upgrade.is_some() || f.merging),
                "{id} has values of another generation, and no upgrade"
            );
            let values = seen.entry(id).or_default();
            for (key, row) in newer {
                match row.split_first() {
                    Some((&rows::WRITTEN, value)) => values.insert(key, value.len()),
                    _ => values.remove(&key),
                };
            }
        }
        for (id, framework) in &self.state.frameworks {
            let values = seen.remove(id).unwrap_or_default();
            let bytes: usize = values.iter().map(|(key, value)| key.len() + value).sum();
            let (found, counted) = ((bytes as u64, values.len() as u64), (framework.state_bytes, framework.state_keys));
            ensure!(found == counted, "{id} counts {counted:?} bytes and keys of state, there are {found:?}");
        }
        ensure!(seen.is_empty(), "values of frameworks that are not there: {:?}", seen.keys());
        Ok(())
    }

    /// How the replicated state differs from another one's, if it does.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Option<String> {
        let (a, b) = (&self.state, &other.state);
        differ("meta", &a.meta, &b.meta)
            .or_else(|| differ_maps("agent", &a.agents, &b.agents))
            .or_else(|| differ_maps("agent key", &a.agent_keys, &b.agent_keys))
            .or_else(|| differ_maps("component", &a.components, &b.components))
            .or_else(|| differ_maps("framework", &a.frameworks, &b.frameworks))
            .or_else(|| differ_maps("name", &a.names, &b.names))
            .or_else(|| differ_maps("limits of", &a.limits, &b.limits))
            .or_else(|| differ_maps("role", &a.roles, &b.roles))
            .or_else(|| differ_maps("use of role", &a.role_used, &b.role_used))
            .or_else(|| differ("events", &a.event_ids, &b.event_ids))
            .or_else(|| differ_maps("gone agent", &a.gone, &b.gone))
            .or_else(|| differ_maps("request", &a.requests, &b.requests))
            .or_else(|| differ_maps("answer", &a.answers, &b.answers))
            .or_else(|| differ_maps("answer number", &a.answer_numbers, &b.answer_numbers))
            .or_else(|| differ_maps("open request", &a.open, &b.open))
            .or_else(|| differ_maps("request session", &a.sessions, &b.sessions))
            .or_else(|| differ("state", a, b))
    }
}

fn differ<T: PartialEq + Debug>(what: &str, a: &T, b: &T) -> Option<String> {
    (a != b).then(|| format!("{what}: {a:?} and {b:?}"))
}

fn differ_maps<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
) -> Option<String> {
    let keys: BTreeSet<&K> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        differ(&format!("{what} {key:?}"), &a.get(key), &b.get(key))
    })
}

/// Policies are as they may be, and uses are sums over frameworks.
fn roles(state: &State) -> Result<(), String> {
    ensure!(state.roles.len() <= limits::ROLES_MAX, "something is said of too many roles");
    for (role, policy) in &state.roles {
        ensure!(!policy.is_default() && policy.version > 0, "role {role} is listed and nothing is said of it");
        policy.check().map_err(|error| format!("role {role}: {error}"))?;
    }
    let mut used = RoleUses::new();
    for framework in state.frameworks.values() {
        for (revocable, sum) in [(false, &framework.charged), (true, &framework.charged_revocable)] {
            if *sum != Resources::ZERO {
                crate::roles::add(&mut used, &framework.role, sum, revocable);
            }
        }
    }
    ensure!(used == state.role_used, "roles use {used:?}, and {:?} is counted", state.role_used);
    Ok(())
}

fn check_state(state: &State) -> Result<(), String> {
    let mut charged: BTreeMap<(AgentId, bool), Resources> = BTreeMap::new();
    let mut running: BTreeMap<AgentId, BTreeSet<(FrameworkId, TaskId)>> = BTreeMap::new();
    let mut executors: BTreeMap<AgentId, Executors> = BTreeMap::new();
    let mut states: BTreeMap<TaskState, usize> = BTreeMap::new();
    for (id, framework) in &state.frameworks {
        check_framework(*id, framework)?;
        check_versions(*id, framework)?;
        for (task_id, task) in framework.tasks.iter().filter(|(_, t)| !t.state.is_terminal()) {
            ensure!(
                state.agents.contains_key(&task.agent),
                "{id} {task_id} runs on {} which is not known",
                task.agent
            );
            *states.entry(task.state).or_default() += 1;
            let sum = charged.entry((task.agent, task.revocable)).or_default();
            sum.add(&task.charge);
            running.entry(task.agent).or_default().insert((*id, task_id.clone()));
            if let Some(named) = executor_of(framework, task) {
                let here = executors.entry(task.agent).or_default();
                let key = (*id, named.executor.clone());
                let (first, revocable, tasks) = here.entry(key).or_insert_with(|| (named, task.revocable, BTreeSet::new()));
                tasks.insert(task_id.clone());
                let same = first.component == named.component
                    && first.resources == named.resources
                    && first.config == named.config
                    && *revocable == task.revocable;
                ensure!(same, "{id} {task_id} names its executor otherwise than another task");
            }
        }
        if let Some(agent) = framework.agent {
            ensure!(state.agents.contains_key(&agent), "{id} is placed on {agent}, not known");
        }
        let name = (framework.role.tenant().to_owned(), framework.name.to_string());
        ensure!(state.names.get(&name) == Some(id), "{id} is not found by its name");
    }
    let counted = &state.live_states;
    ensure!(*counted == states, "{counted:?} tasks are counted by state, not {states:?}");
    ensure!(state.names.len() == state.frameworks.len(), "names and frameworks differ in number");
    for (id, agent) in &state.agents {
        let named = executors.remove(id).unwrap_or_default();
        for (revocable, counted) in [(false, &agent.charged), (true, &agent.charged_revocable)] {
            let mut sum = charged.remove(&(*id, revocable)).unwrap_or_default();
            let executors = named.values().filter(|(_, of, _)| *of == revocable);
            executors.for_each(|(first, ..)| sum.add(&first.resources));
            agent.strangers.values().filter(|_| !revocable).for_each(|charge| sum.add(charge));
            ensure!(*counted == sum, "{id} is charged {counted} but its tasks need {sum}, revocable: {revocable}");
        }
        let known = agent.strangers.keys().find(|(framework, task)| state.task(*framework, task).is_some());
        ensure!(known.is_none(), "{id} has a stranger that is known: {known:?}");
        let expected = named.into_iter().map(|(key, (first, revocable, tasks))| {
            let config = first.config.clone();
            let (component, resources) = (first.component, first.resources.clone());
            (key, Executor { component, resources, config, revocable, tasks })
        });
        let expected: BTreeMap<_, _> = expected.collect();
        ensure!(agent.executors == expected, "{id} lists other executors than its tasks name");
        let tasks = running.remove(id).unwrap_or_default();
        ensure!(agent.tasks == tasks, "{id} lists other tasks than run on it");
        ensure!(state.agent_keys.get(&agent.key) == Some(id), "{id} is not found by its key");
        ensure!(!state.gone.contains_key(&agent.key), "{id} is there although it is gone");
        ensure!(agent.drain.is_none() || agent.deactivated, "{id} is drained and still in use");
        let again = agent.boots_before.contains(&agent.boot);
        ensure!(!again, "{id} has a boot that ended before");
    }
    ensure!(state.agent_keys.len() == state.agents.len(), "agents and their keys differ in number");
    let numbered = state.requests.iter().all(|(n, kept)| state.request_numbers.get(&kept.key) == Some(n));
    ensure!(
        numbered && state.requests.len() == state.request_numbers.len(),
        "results of requests and their numbers differ"
    );
    let of = state.requests_of.iter().map(|(of, numbers)| (of, numbers.len()));
    let counted = of.clone().map(|(_, count)| count).sum::<usize>() == state.requests.len();
    let listed = state.requests.iter().all(|(number, kept)| {
        state.requests_of.get(&kept.key.0).is_some_and(|numbers| numbers.contains(number))
    });
    ensure!(counted && listed, "results of requests are listed for other principals");
    let bounded = of.clone().all(|(_, count)| count > 0 && count <= limits::REQUESTS_OF_PRINCIPAL_MAX);
    ensure!(bounded && state.requests.len() <= limits::REQUESTS_MAX, "too many results of requests");
    sessions(state)?;
    roles(state)?;
    for (role, limits) in &state.limits {
        ensure!(!limits.is_empty(), "role {role:?} has limits and none is set");
    }
    ensure!(
        state.answers.len() == state.answer_numbers.len()
            && state.answers.iter().all(|(n, key)| state.answer_numbers.get(key) == Some(n)),
        "answers and their numbers differ"
    );
    for (framework, request) in state.open.keys() {
        ensure!(state.frameworks.contains_key(framework), "{framework} is not there and has request {request} open");
    }
    let ids: Vec<_> = state.event_ids.iter().collect();
    ensure!(ids.is_sorted(), "events are out of order");
    ensure!(ids.len() <= crate::limits::EVENTS_MAX, "too many events");
    Ok(())
}

/// Executors of one agent as its tasks name them, whether they are revocable, and those tasks.
type Executors<'a> = BTreeMap<(FrameworkId, ExecutorId), (&'a ExecutorTask, bool, BTreeSet<TaskId>)>;

fn sessions(state: &State) -> Result<(), String> {
    let mut of_nodes: BTreeMap<u64, usize> = BTreeMap::new();
    for (id, session) in &state.sessions {
        ensure!(session.results.len() <= limits::SESSION_NUMBERS_MAX, "session {id:x} has too many results");
        *of_nodes.entry(session.node).or_default() += 1;
    }
    let most = of_nodes.values().max().copied().unwrap_or(0);
    ensure!(most <= limits::SESSIONS_OF_MASTER_MAX, "a master has {most} sessions");
    Ok(())
}

fn executor_of<'a>(framework: &'a Framework, task: &Task) -> Option<&'a ExecutorTask> {
    match &framework.specs.get(&task.launch.spec)?.spec.body {
        TaskBody::Executor(named) => Some(named),
        TaskBody::Native(_) | TaskBody::Wasm { .. } => None,
    }
}

/// The members of a task group that were launched are on one agent; all were launched, or all dropped.
fn check_groups(id: FrameworkId, framework: &Framework) -> Result<(), String> {
    let mut groups: BTreeMap<u64, &Task> = BTreeMap::new();
    for (task_id, task) in framework.tasks.iter().filter(|(_, task)| task.group != 0) {
        ensure!(task.group <= framework.next_group, "{id} {task_id} is in a group of the future");
        let first = groups.entry(task.group).or_insert(task);
        let launched = |task: &Task| task.agent_sequence > 0 || task.state != TaskState::Dropped;
        let together = first.agent == task.agent || !launched(task);
        ensure!(together, "{id} {task_id} is not where its group is");
        ensure!(launched(first) == launched(task), "{id}: group {} was launched in part", task.group);
    }
    Ok(())
}

fn check_versions(id: FrameworkId, framework: &Framework) -> Result<(), String> {
    let numbers: Vec<u64> = framework.versions.iter().map(|version| version.version).collect();
    ensure!(numbers.is_sorted_by(|a, b| a < b), "{id}: versions are out of order: {numbers:?}");
    ensure!(numbers.len() <= VERSIONS_MAX, "{id}: too many versions");
    ensure!(framework.config_seen <= framework.config_version, "{id}: saw a later configuration");
    if let Some(quarantine) = &framework.quarantine {
        ensure!(framework.agent.is_none(), "{id} is quarantined ({}) and placed", quarantine.rule);
        ensure!(framework.upgrade.is_none(), "{id} is quarantined and being upgraded");
    }
    if framework.removing {
        return Ok(());
    }
    let Some(last) = framework.versions.last() else { return Err(format!("{id} has no version")) };
    ensure!(last.component == framework.component, "{id}: another component than its version's");
    let Some(upgrade) = &framework.upgrade else {
        ensure!(last.outcome == VersionOutcome::Running, "{id}: {} without upgrade", last.outcome);
        return Ok(());
    };
    let outcome = if upgrade.migrating { VersionOutcome::Migrating } else { VersionOutcome::Trial };
    ensure!(last.outcome == outcome, "{id}: an upgrade, and its version is {}", last.outcome);
    ensure!(numbers.contains(&upgrade.from_version), "{id}: cannot go back, the version is gone");
    ensure!(!framework.merging, "{id}: an upgrade while another one is being merged");
    if upgrade.migrating {
        ensure!(framework.state_version == upgrade.migrate_from, "{id}: migrating, and done");
    }
    Ok(())
}

fn check_framework(id: FrameworkId, framework: &Framework) -> Result<(), String> {
    let mut uses: BTreeMap<Digest, usize> = BTreeMap::new();
    check_groups(id, framework)?;
    let (mut charged, mut revocable, mut live) = (Resources::ZERO, Resources::ZERO, 0);
    let mut executors = BTreeSet::new();
    let mut updates = BTreeMap::new();
    for (task_id, task) in &framework.tasks {
        ensure!(task_id == &task.launch.task, "{id} {task_id} is stored under another id");
        ensure!(task.state == task.status.state, "{id} {task_id}: state and status differ");
        ensure!(
            !task.state.is_terminal() || task.unconsumed(),
            "{id} {task_id} has ended and is consumed, but was not retired"
        );
        if task.unconsumed() {
            updates.insert(task.order, task_id.clone());
        }
        if !task.state.is_terminal() {
            ensure!(task.terminal.is_none(), "{id} {task_id} lives and has a terminal update");
            ensure!(
                framework.specs.contains_key(&task.launch.spec),
                "{id} {task_id} lives and its spec is gone"
            );
            let sum = if task.revocable { &mut revocable } else { &mut charged };
            sum.add(&task.charge);
            if let Some(named) = executor_of(framework, task)
                && executors.insert((task.agent, &named.executor))
            {
                sum.add(&named.resources);
            }
            live += 1;
            *uses.entry(task.launch.spec).or_default() += 1;
        }
    }
    ensure!(framework.charged == charged, "{id} is charged {} not {charged}", framework.charged);
    let counted = &framework.charged_revocable;
    ensure!(*counted == revocable, "{id} is charged {counted} not {revocable} of what is revocable");
    ensure!(framework.live == live, "{id} counts {} live tasks, not {live}", framework.live);
    ensure!(framework.updates == updates, "{id}: the order of updates is not that of its tasks");
    for (digest, spec) in &framework.specs {
        let count = uses.get(digest).copied().unwrap_or(0);
        ensure!(spec.uses == count, "{id}: spec {digest} counts {} uses, not {count}", spec.uses);
    }
    let due: BTreeSet<_> = framework.timers.iter().map(|(t, due)| (*due, t.clone())).collect();
    ensure!(framework.due == due, "{id}: timers and their order differ");
    ensure!(!framework.removing || live > 0, "{id} is being removed but nothing of it runs");
    Ok(())
}

fn check_leader(state: &State, leader: &Leader) -> Result<(), String> {
    leader.offers.check()?;
    check_allocator(state, leader)?;
    for (id, agent) in &state.agents {
        let standing = leader.offers.standing_of(*id);
        let accepting = leader.offers.held_of(*id).minus(&standing);
        ensure!(!standing.any_negative(), "{id}: offers of a negative amount");
        let free = agent.free().minus(&accepting);
        // What strangers take may be more than is left of one kind; of others there may be enough.
        ensure!(
            standing == Resources::ZERO || free.clamped().contains(&standing),
            "{id}: {standing} are offered, {free} are free"
        );
    }
    for (offer, standing) in leader.offers.standing() {
        ensure!(
            state.frameworks.contains_key(&standing.framework),
            "{offer} stands for {} which is gone",
            standing.framework
        );
        ensure!(
            leader.links.get(&standing.agent).is_some_and(|link| link.session.is_some()),
            "{offer} stands for {} which has no session",
            standing.agent
        );
    }
    Ok(())
}
