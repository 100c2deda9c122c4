//! Reading: views of the state for lists, inspection and metrics. Changes nothing.

use crate::Core;
use crate::api::{
    AgentView, AheadState, ComponentView, Counts, EventId, EventRecord, EventsPage, ExecutorView, FrameworkView, LimitSource,
    LimitView, LookupError, OfferView, Reply, RequestError, TaskFilter, TaskView, Waiting, World,
};
use crate::auth::Principal;
use crate::codec::{self, ROW_VERSION};
use crate::commands;
use crate::effect::CommandResult;
use crate::generation;
use crate::leader::Instance;
use crate::lifecycle::Phase;
use crate::limits::LIST_MAX;
use crate::repeats::Known;
use crate::rows::{self, Rows, RowsError};
use crate::state::{Agent, Component, Framework, State, Task};
use prost::Message;
use std::ops::Bound;
use tessera_types::{
    AgentId, Digest, EffectiveLimits, FrameworkId, KeyWrite, LimitName, OfferId, Quantities, Resources, RoleName, TaskBody, TaskId, TimeMs,
};
use tessera_wire::v1;

impl ComponentView {
    pub(crate) fn of(digest: Digest, component: &Component) -> Self {
        Self {
            digest,
            size_bytes: component.size_bytes,
            world: component.world,
            principal: component.principal.clone(),
            added_ms: component.added_ms,
            state: component.state.clone(),
            source: component.source.clone(),
        }
    }
}

pub(crate) fn task_view(
    framework: FrameworkId,
    owner: Option<&Framework>,
    task: &Task,
    history: Option<u64>,
) -> TaskView {
    let spec = owner.and_then(|owner| owner.specs.get(&task.launch.spec));
    let executor = spec.and_then(|spec| match &spec.spec.body {
        TaskBody::Executor(task) => Some(task.executor.clone()),
        TaskBody::Native(_) | TaskBody::Wasm { .. } => None,
    });
    TaskView {
        framework,
        launch: task.launch.clone(),
        name: task.name.clone(),
        agent: task.agent,
        resources: task.charge.clone(),
        revocable: task.revocable,
        state: task.state,
        attempt: task.attempt,
        created_ms: task.created_ms,
        status: task.status.clone(),
        kill_requested: task.kill.is_some(),
        history,
        group: (task.group != 0).then_some(task.group),
        executor,
        steps: Vec::new(),
    }
}

/// With the states that it was in.
fn with_steps(framework: FrameworkId, owner: Option<&Framework>, task: &Task, history: Option<u64>) -> TaskView {
    TaskView { steps: task.steps.of(task.created_ms), ..task_view(framework, owner, task, history) }
}

pub(crate) fn phase(framework: &Framework, instance: Option<&Instance>) -> Phase {
    let ready = instance.is_some_and(|instance| instance.ready);
    let failed = instance.is_some_and(|instance| instance.failed);
    match &framework.upgrade {
        _ if framework.removing => Phase::Removing,
        _ if framework.quarantine.is_some() => Phase::Quarantined,
        Some(upgrade) if upgrade.migrating => Phase::Migrating,
        Some(_) => Phase::Trial,
        None if framework.agent.is_none() => Phase::Unplaced,
        None if ready => Phase::Running,
        None if failed => Phase::BackingOff,
        None => Phase::Starting,
    }
}

const fn page(limit: usize) -> usize {
    if limit == 0 || limit > LIST_MAX { LIST_MAX } else { limit }
}

fn unreadable(what: impl std::fmt::Display) -> RowsError {
    RowsError(what.to_string())
}

/// The answer to a request from what became of its command.
pub(crate) fn reply(state: &State, result: CommandResult) -> Result<Reply, RequestError> {
    match result {
        CommandResult::Component { digest, created } => {
            let component = state.components.get(&digest);
            let component = component.ok_or_else(|| RequestError::NotFound {
                what: "component",
                name: digest.to_string(),
            })?;
            Ok(Reply::Component { view: ComponentView::of(digest, component), created })
        }
        CommandResult::Framework(id) => Ok(Reply::Framework(id)),
        CommandResult::Version(version) => Ok(Reply::Version(version)),
        CommandResult::Refused(error) => Err(error),
        CommandResult::Done
        | CommandResult::Agent(_)
        | CommandResult::Placed(_)
        | CommandResult::Turn(_) => Ok(Reply::Done),
    }
}

impl Core {
    /// The cluster's id; empty before it is created.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.state.meta.cluster
    }

    /// Time of the last applied command.
    #[must_use]
    pub fn applied_time_ms(&self) -> TimeMs {
        self.state.meta.time_ms
    }

    /// Index of the last applied entry that held commands.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.state.meta.index
    }

    /// All agents.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentView> {
        let hosted = self.state.schedulers();
        let view = |(id, agent): (&AgentId, &Agent)| {
            self.agent_view(*id, agent, hosted.get(id).copied().unwrap_or(0))
        };
        self.state.agents.iter().map(view).collect()
    }

    /// One agent.
    #[must_use]
    pub fn agent(&self, id: AgentId) -> Option<AgentView> {
        let agent = self.state.agents.get(&id)?;
        Some(self.agent_view(id, agent, self.state.schedulers_on(id)))
    }

    pub(crate) fn agent_view(&self, id: AgentId, agent: &Agent, schedulers: usize) -> AgentView {
        let leader = self.leader.as_ref();
        let offered = leader.map_or(Resources::ZERO, |leader| leader.offers.held_of(id));
        let link = leader.and_then(|leader| leader.links.get(&id));
        let standing = leader.and_then(|leader| leader.standbys.by(id));
        let said = |digest: &Digest| link.and_then(|link| link.compiled.ahead.get(digest)).cloned();
        let ahead = standing.into_iter().flat_map(|standing| standing.components.iter());
        AgentView {
            id,
            hostname: agent.hostname.clone(),
            attributes: agent.attributes.clone(),
            version: agent.version.clone(),
            missing: agent.missing.clone(),
            engine: agent.engine.clone(),
            total: agent.resources.total.clone(),
            reserved: agent.resources.reserved,
            used: agent.charged.clone(),
            revocable: agent.charged_revocable.clone(),
            free: agent.free().minus(&offered),
            offered,
            registered_ms: agent.registered_ms,
            unreachable_ms: agent.unreachable_ms,
            deactivated: agent.deactivated,
            drain: agent.drain,
            maintenance: agent.maintenance,
            silent_ms: leader.and_then(|leader| leader.silent_ms(id, self.last_mono_ms)),
            expiry_held: agent.unreachable_ms.is_none()
                && leader.is_some_and(|leader| leader.expiry_held(id)),
            connected: link.is_some_and(|link| link.session.is_some()),
            tasks: agent.tasks.len(),
            strangers: agent.strangers.iter().map(|((id, task), charge)| (*id, task.clone(), charge.clone())).collect(),
            schedulers,
            standby_for: standing.map_or(0, |standing| standing.schedulers),
            ahead: ahead.map(|digest| (*digest, said(digest).unwrap_or(AheadState::Unknown))).collect(),
            compilations: link.and_then(|link| link.compiled.compilations),
        }
    }

    /// The session of an agent with this leader, as the shell named it.
    #[must_use]
    pub fn agent_session(&self, id: AgentId) -> Option<u64> {
        self.leader.as_ref()?.links.get(&id)?.session
    }

    /// The agent of a session that is registered.
    #[must_use]
    pub fn session_agent(&self, session: u64) -> Option<AgentId> {
        self.leader.as_ref()?.sessions.get(&session)?.agent
    }

    /// What became of a request that comes again; none if it was never carried out, or long ago.
    #[must_use]
    pub fn repeated(
        &self,
        principal: &Principal,
        known: &Known,
    ) -> Option<Result<Reply, RequestError>> {
        let result = self.state.repeated(&principal.name, known)?;
        Some(result.and_then(|result| reply(&self.state, result.clone())))
    }

    /// All frameworks.
    #[must_use]
    pub fn frameworks(&self) -> Vec<FrameworkView> {
        self.state.frameworks.iter().map(|(id, f)| self.framework_view(*id, f)).collect()
    }

    /// One framework.
    #[must_use]
    pub fn framework(&self, id: FrameworkId) -> Option<FrameworkView> {
        self.state.frameworks.get(&id).map(|framework| self.framework_view(id, framework))
    }

    pub(crate) fn framework_view(&self, id: FrameworkId, framework: &Framework) -> FrameworkView {
        let leader = self.leader.as_ref();
        let instance = leader.and_then(|leader| leader.instances.get(&id));
        FrameworkView {
            id,
            name: framework.name.clone(),
            role: framework.role.clone(),
            component: framework.component,
            config: framework.config.clone(),
            principal: framework.principal.clone(),
            created_ms: framework.created_ms,
            epoch: framework.epoch,
            agent: framework.agent,
            standby: leader.and_then(|leader| leader.standby(id, framework)),
            last_turn: framework.last_turn,
            suppressed: framework.suppressed,
            requests: framework.requests.clone(),
            removing: framework.removing,
            ready: instance.is_some_and(|instance| instance.ready),
            last_error: instance.and_then(|instance| instance.last_error.clone()),
            failures: instance.map_or(0, |instance| instance.failures),
            state_bytes: framework.state_bytes,
            state_keys: framework.state_keys,
            timers: framework.timers.len(),
            tasks_live: framework.live,
            tasks_total: framework.used_ids,
            used: framework.charged.clone(),
            revocable: framework.charged_revocable.clone(),
            offered: leader.map_or(Resources::ZERO, |leader| leader.offers.held_by(id)),
            phase: phase(framework, instance),
            failing: framework.failures.clone(),
            quarantine: framework.quarantine.clone(),
            versions: framework.versions.clone(),
            upgrade: framework.upgrade.clone(),
            state_version: framework.state_version,
            config_version: framework.config_version,
            config_seen: framework.config_seen,
            merging: framework.merging,
            unreachable: framework.unreachable,
        }
    }

    /// The limits in force for a role, or for the cluster.
    #[must_use]
    pub fn limits(&self, role: Option<&RoleName>) -> Vec<LimitView> {
        let lineage: Vec<&str> =
            std::iter::once("").chain(role.into_iter().flat_map(RoleName::lineage)).collect();
        let limits = self.effective_limits(role);
        let from = |name: LimitName| {
            let sets = |role: &&&str| {
                self.state.limits.get(**role).is_some_and(|limits| limits.get(name).is_some())
            };
            match lineage.iter().rev().find(sets) {
                None => LimitSource::Default,
                Some(&"") => LimitSource::Cluster,
                Some(role) => LimitSource::Role((*role).to_owned()),
            }
        };
        let all = LimitName::ALL.iter();
        all.map(|name| LimitView { name: *name, value: limits.get(*name), from: from(*name) }).collect()
    }

    /// A tag of what is set for a role itself, or for the cluster.
    #[must_use]
    pub fn limits_tag(&self, role: Option<&RoleName>) -> Vec<u8> {
        let set = self.state.limits.get(role.map_or("", RoleName::as_str));
        commands::limits_tag(&set.cloned().unwrap_or_default())
    }

    /// The same as values alone.
    #[must_use]
    pub fn effective_limits(&self, role: Option<&RoleName>) -> EffectiveLimits {
        role.map_or_else(|| self.state.cluster_limits(), |role| self.state.limits_of(role))
    }

    /// What the inspection of a component found, as JSON; empty if nothing was recorded.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn component_report(
        &self,
        digest: &Digest,
        rows: &dyn Rows,
    ) -> Result<Option<String>, RowsError> {
        let Some(row) = rows.get(rows::COMPONENTS, &digest.0)? else { return Ok(None) };
        let row = v1::ComponentRow::decode(row.as_slice()).map_err(unreadable)?;
        Ok(Some(row.report))
    }

    /// Find a framework by name, or by its number written as `f12`.
    ///
    /// # Errors
    /// When none has the name, or several tenants have one and none was named.
    pub fn framework_by_name(
        &self,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<FrameworkId, LookupError> {
        if let Some(tenant) = tenant {
            let key = (tenant.to_owned(), name.to_owned());
            let found = self.state.names.get(&key).copied();
            return found.ok_or_else(|| LookupError::NotFound(format!("{tenant}/{name}")));
        }
        let mut named = self.state.names.iter().filter(|((_, n), _)| n == name);
        match (named.next(), named.next()) {
            (Some((_, id)), None) => Ok(*id),
            (Some(_), Some(_)) => Err(LookupError::Ambiguous(name.to_owned())),
            (None, _) => name
                .parse()
                .ok()
                .filter(|id| self.state.frameworks.contains_key(id))
                .ok_or_else(|| LookupError::NotFound(name.to_owned())),
        }
    }

    /// The role of a framework, for `authorize`.
    #[must_use]
    pub fn role_of(&self, id: FrameworkId) -> Option<RoleName> {
        self.state.frameworks.get(&id).map(|framework| framework.role.clone())
    }

    /// All components.
    #[must_use]
    pub fn components(&self) -> Vec<ComponentView> {
        self.state.components.iter().map(|(digest, c)| ComponentView::of(*digest, c)).collect()
    }

    /// One component.
    #[must_use]
    pub fn component(&self, digest: &Digest) -> Option<ComponentView> {
        self.state.components.get(digest).map(|c| ComponentView::of(*digest, c))
    }

    /// Tasks that are live or whose end the scheduler has not consumed, in order of (framework, id).
    #[must_use]
    pub fn tasks(&self, filter: &TaskFilter) -> Vec<TaskView> {
        let mut found = Vec::new();
        let from = filter.after.as_ref().map_or(FrameworkId(0), |(framework, _)| *framework);
        for (id, framework) in self.state.frameworks.range(from..) {
            if filter.framework.is_some_and(|only| only != *id) {
                continue;
            }
            let after = match &filter.after {
                Some((of, after)) if of == id => Bound::Excluded(after),
                _ => Bound::Unbounded,
            };
            let tasks = framework.tasks.range::<TaskId, _>((after, Bound::Unbounded));
            for (_, task) in tasks {
                let wanted = filter.agent.is_none_or(|agent| task.agent == agent)
                    && !(filter.live_only && task.state.is_terminal());
                if wanted {
                    found.push(task_view(*id, Some(framework), task, None));
                    if found.len() >= page(filter.limit) {
                        return found;
                    }
                }
            }
        }
        found
    }

    /// Executors of a framework, by agent.
    #[must_use]
    pub fn executors(&self, framework: FrameworkId) -> Vec<ExecutorView> {
        let on_agents = self.state.agents.iter().flat_map(|(agent, row)| {
            let executors = row.executors.iter().filter(move |((of, _), _)| *of == framework);
            executors.map(|((_, id), executor)| ExecutorView {
                executor: id.clone(),
                agent: *agent,
                component: executor.component,
                resources: executor.resources.clone(),
                tasks: executor.tasks.iter().cloned().collect(),
            })
        });
        on_agents.collect()
    }

    /// One task, in the history too.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn task(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        rows: &dyn Rows,
    ) -> Result<Option<TaskView>, RowsError> {
        let owner = self.state.frameworks.get(&framework);
        if let Some(found) = owner.and_then(|owner| owner.tasks.get(task)) {
            return Ok(Some(with_steps(framework, owner, found, None)));
        }
        let Some(used) = rows.get(rows::USED_IDS, &rows::task_key(framework, task))? else {
            return Ok(None);
        };
        let used = v1::UsedIdRow::decode(used.as_slice()).map_err(unreadable)?;
        let key = rows::history_key(framework, used.history);
        let Some(row) = rows.get(rows::HISTORY, &key)? else { return Ok(None) };
        let found = Task::decode(rows::HISTORY, &row).map_err(unreadable)?;
        Ok(Some(with_steps(framework, owner, &found, Some(used.history))))
    }

    /// Ended tasks of a framework, oldest first.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn history(
        &self,
        framework: FrameworkId,
        after: Option<u64>,
        limit: usize,
        rows: &dyn Rows,
    ) -> Result<Vec<TaskView>, RowsError> {
        let after = after.map(|number| rows::history_key(framework, number));
        let prefix = rows::framework_key(framework);
        let found = rows.scan(rows::HISTORY, &prefix, after.as_deref(), page(limit))?;
        found
            .into_iter()
            .map(|(key, value)| {
                let task = Task::decode(rows::HISTORY, &value).map_err(unreadable)?;
                let number = rows::split_owned(&key)
                    .and_then(|(_, rest)| rest.try_into().ok())
                    .map(u64::from_be_bytes);
                Ok(task_view(framework, self.state.frameworks.get(&framework), &task, number))
            })
            .collect()
    }

    /// Offers that stand; none on followers.
    #[must_use]
    pub fn offers(&self) -> Vec<OfferView> {
        let Some(leader) = &self.leader else { return Vec::new() };
        let standing = leader.offers.standing().iter();
        standing
            .map(|(id, offer)| OfferView {
                id: *id,
                framework: offer.framework,
                agent: offer.agent,
                available: offer.quantities.clone(),
                revocable: offer.revocable,
                age_ms: self.last_mono_ms.saturating_sub(offer.made_ms),
            })
            .collect()
    }

    /// Take an offer back; whether it stood. Nothing on followers.
    pub fn take_back(&mut self, offer: OfferId) -> Option<bool> {
        let now = self.last_now();
        Some(self.desk(now)?.take_offer_back(offer))
    }

    /// Events after one, oldest first.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn events(
        &self,
        after: Option<EventId>,
        limit: usize,
        rows: &dyn Rows,
    ) -> Result<EventsPage, RowsError> {
        let last = self.state.meta.events_last;
        let floor = self.state.event_ids.front().copied().unwrap_or(last);
        // The first event that was ever written has a floor of its own; before it nothing is missing.
        let gap = after.is_some_and(|after| after < floor)
            && self.state.event_ids.len() >= crate::limits::EVENTS_MAX;
        let key = after.map(|id| rows::event_key(id.index, id.n));
        let found = rows.scan(rows::EVENTS, &[], key.as_deref(), page(limit))?;
        let mut events = Vec::with_capacity(found.len());
        for (key, value) in found {
            let id = codec::event_id(&key).ok_or_else(|| unreadable("an event with a short key"))?;
            let row = v1::EventRow::decode(value.as_slice()).map_err(unreadable)?;
            if row.version > ROW_VERSION {
                return Err(unreadable("an event of a newer version"));
            }
            events.push(EventRecord {
                id,
                at_ms: row.at_ms,
                kind: row.kind,
                framework: (row.framework != 0).then_some(FrameworkId(row.framework)),
                task: row.task.parse().ok(),
                agent: (row.agent != 0).then_some(AgentId(row.agent)),
                text: row.text,
                principal: row.principal,
            });
        }
        Ok(EventsPage { events, gap, floor, last })
    }

    /// Why something of a framework is pending; empty on followers, which do not know.
    #[must_use]
    pub fn explain(&mut self, framework: FrameworkId) -> Vec<Waiting> {
        let now = self.last_now();
        self.desk(now).map(|desk| desk.explain(framework)).unwrap_or_default()
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let leader = self.leader.as_ref();
        let agents = self.state.agents.values();
        Counts {
            agents: self.state.agents.len(),
            agents_connected: leader
                .map_or(0, |l| l.links.values().filter(|link| link.session.is_some()).count()),
            frameworks: self.state.frameworks.len(),
            components: self.state.components.len(),
            tasks_live: self.state.frameworks.values().map(|framework| framework.live).sum(),
            offers: leader.map_or(0, |leader| leader.offers.standing().len()),
            http_in_flight: leader.map_or(0, |leader| leader.waiters.by_request.len()),
            messages_dropped: leader.map_or(0, |leader| leader.messages_dropped),
            total: self.state.total().quantities,
            used: agents.fold(Quantities::ZERO, |sum, agent| {
                sum.plus(agent.charged.quantities).plus(agent.charged_revocable.quantities)
            }),
        }
    }

    /// The value of a key of a framework's state.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn state_value(
        &self,
        framework: FrameworkId,
        key: &str,
        rows: &dyn Rows,
    ) -> Result<Option<Vec<u8>>, RowsError> {
        let Some(row) = self.state.frameworks.get(&framework) else { return Ok(None) };
        let key = rows::owned_key(framework, key.as_bytes());
        generation::get(&rows::Overlay::new(rows), row.layer(), &key)
    }

    /// A page of a framework's state, in order of keys.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub fn state_page(
        &self,
        framework: FrameworkId,
        after: Option<&str>,
        limit: usize,
        rows: &dyn Rows,
    ) -> Result<Vec<KeyWrite>, RowsError> {
        let two = self.state.frameworks.get(&framework).is_some_and(Framework::two_generations);
        let after = after.map(|key| rows::owned_key(framework, key.as_bytes()));
        let found = generation::page(rows, two, framework, after, page(limit))?;
        found
            .into_iter()
            .map(|(key, value)| {
                let (_, rest) =
                    rows::split_owned(&key).ok_or_else(|| unreadable("a value with a short key"))?;
                let key = String::from_utf8(rest.to_vec()).map_err(unreadable)?;
                Ok(KeyWrite { key, value: Some(value) })
            })
            .collect()
    }

    /// Whether the agent of a session may fetch a component: it hosts a scheduler or a task of it, stands by
    /// for a scheduler, or hosts an executor, which may start any command, as its scheduler might launch any.
    #[must_use]
    pub fn may_fetch_component(&self, agent: AgentId, digest: &Digest) -> bool {
        let hosts = |f: &Framework| f.agent == Some(agent) && f.component == *digest;
        if self.state.frameworks.values().any(hosts) {
            return true;
        }
        let standing = self.leader.as_ref().and_then(|leader| leader.standbys.by(agent));
        if standing.is_some_and(|standing| standing.components.contains(digest)) {
            return true;
        }
        let Some(row) = self.state.agents.get(&agent) else { return false };
        // What an executor starts inside of itself is known to its agent alone.
        let component = self.state.components.get(digest);
        if !row.executors.is_empty() && component.is_some_and(|c| c.world == World::Command) {
            return true;
        }
        row.tasks.iter().any(|(framework, task)| {
            let owner = self.state.frameworks.get(framework);
            let spec = owner.and_then(|f| f.specs.get(&f.tasks.get(task)?.launch.spec));
            spec.is_some_and(|spec| match &spec.spec.body {
                TaskBody::Wasm { component, .. } => component == digest,
                TaskBody::Executor(task) => task.component == *digest,
                TaskBody::Native(_) => false,
            })
        })
    }
}
