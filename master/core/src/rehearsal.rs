//! Dry runs: what a request would do, found by carrying it out on a sketch of the state.
//!
//! Invariants: the state is not changed; the commands themselves decide, so that a dry run is refused exactly when
//! the request would be; a sketch holds what the command looks at, and of frameworks that are only counted nothing but
//! their names and roles, since it is made on the leader's one thread. What is decided between rehearsal and request may
//! differ.

use crate::Core;
use crate::api::{Reply, Request, RequestError};
use crate::apply;
use crate::auth::Principal;
use crate::commands::new_framework;
use crate::effect::Effect;
use crate::limits::{COMPONENTS_MAX, FRAMEWORKS_MAX};
use crate::query;
use crate::rows::{self, RowChange, Rows};
use crate::state::{Framework, State};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, Digest, FrameworkId, TaskId};
use tessera_wire::v1;

/// What a request would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// Its reply.
    pub reply: Reply,
    /// The events that would be written, as kind and text.
    pub events: Vec<(String, String)>,
}

/// A framework without its tasks, but for one.
fn bare(framework: &Framework, task: Option<&TaskId>) -> Framework {
    let one = task.and_then(|id| framework.tasks.get_key_value(id));
    let spec = one.and_then(|(_, task)| framework.specs.get_key_value(&task.launch.spec));
    Framework {
        name: framework.name.clone(),
        role: framework.role.clone(),
        config: framework.config.clone(),
        requests: framework.requests.clone(),
        principal: framework.principal.clone(),
        last_turn_hash: framework.last_turn_hash.clone(),
        versions: framework.versions.clone(),
        upgrade: framework.upgrade.clone(),
        failures: framework.failures.clone(),
        quarantine: framework.quarantine.clone(),
        specs: spec.map(|(digest, spec)| (*digest, spec.clone())).into_iter().collect(),
        timers: BTreeMap::new(),
        tasks: one.map(|(id, task)| (id.clone(), task.clone())).into_iter().collect(),
        due: BTreeSet::new(),
        updates: BTreeMap::new(),
        charged: framework.charged.clone(),
        charged_revocable: framework.charged_revocable.clone(),
        ..*framework
    }
}

impl State {
    /// As much of the state as a request looks at; nothing for those that are not rehearsed.
    fn sketch(&self, request: &Request) -> Option<Self> {
        let mut sketch = Self { meta: self.meta.clone(), ..Self::default() };
        let mut framework = |id: &FrameworkId, task: Option<&TaskId>| {
            if let Some(found) = self.frameworks.get(id) {
                let found = bare(found, task);
                sketch.names.insert((found.role.tenant().to_owned(), found.name.to_string()), *id);
                sketch.frameworks.insert(*id, found);
            }
        };
        let mut agent = None;
        let mut component = None;
        match request {
            Request::CreateFramework { role, component: of, .. } => {
                // How many there are counts, and their names: those of others only if there may be no more at all.
                let full = self.frameworks.len() >= FRAMEWORKS_MAX;
                let counted = self.frameworks.iter().filter(|(_, of)| full || of.role.tenant() == role.tenant());
                for (id, found) in counted {
                    sketch.names.insert((found.role.tenant().to_owned(), found.name.to_string()), *id);
                    sketch.frameworks.insert(*id, new_framework(found.name.clone(), found.role.clone(), found.component));
                }
                sketch.limits.clone_from(&self.limits);
                component = Some(*of);
            }
            Request::UpgradeFramework { framework: id, component: of } => {
                framework(id, None);
                component = Some(*of);
            }
            Request::RollBackFramework { framework: id, .. }
            | Request::SetConfig { framework: id, .. }
            | Request::ReleaseFramework { framework: id }
            | Request::RemoveFramework { framework: id } => framework(id, None),
            Request::WriteState { framework: id, .. } => {
                framework(id, None);
                sketch.limits.clone_from(&self.limits);
            }
            Request::KillTask { framework: id, task, .. } => framework(id, Some(task)),
            Request::SetLimits { .. } => sketch.limits.clone_from(&self.limits),
            Request::AddComponent { digest, .. } => {
                if self.components.len() >= COMPONENTS_MAX {
                    sketch.components.clone_from(&self.components);
                }
                sketch.limits.clone_from(&self.limits);
                component = Some(*digest);
            }
            Request::SetRole { .. } => sketch.roles.clone_from(&self.roles),
            Request::SetAgentMode { agent: id, .. }
            | Request::SetMaintenance { agent: id, .. }
            | Request::EndStrangers { agent: id } => agent = Some(*id),
            Request::MarkGone { agent: id } => {
                agent = Some(*id);
                sketch.gone.clone_from(&self.gone);
            }
            _ => return None,
        }
        let versions = sketch.frameworks.values().flat_map(|framework| &framework.versions);
        let named: Vec<Digest> = versions.map(|version| version.component).chain(component).collect();
        let named = named.iter().filter_map(|digest| self.components.get_key_value(digest));
        sketch.components.extend(named.map(|(digest, component)| (*digest, component.clone())));
        if let Some((id, row)) = agent.and_then(|id: AgentId| self.agents.get_key_value(&id)) {
            sketch.agents.insert(*id, row.clone());
        }
        Some(sketch)
    }
}

/// The events among changed rows.
fn events(changes: &[RowChange]) -> Vec<(String, String)> {
    let events = changes.iter().filter_map(|change| match change {
        RowChange::Put { table: rows::EVENTS, value, .. } => v1::EventRow::decode(value.as_slice()).ok(),
        _ => None,
    });
    events.map(|event| (event.kind, event.text)).collect()
}

impl Core {
    /// What a request would do now.
    ///
    /// # Errors
    /// As the request would be refused; or when it is none that can be rehearsed.
    pub fn rehearse(
        &mut self,
        principal: &Principal,
        request: Request,
        rows: &dyn Rows,
    ) -> Result<Rehearsal, RequestError> {
        let Some(mut sketch) = self.state.sketch(&request) else {
            let rule = "this request has no dry run".to_owned();
            return Err(RequestError::Invalid { field: "dry_run", rule });
        };
        let now = self.last_now();
        let desk = self.desk(now).ok_or(RequestError::NotLeader)?;
        let command = desk.rehearsed(principal, request)?;
        let origin = v1::Origin { principal: principal.name.clone(), ..v1::Origin::default() };
        let batch = v1::CommandBatch {
            version: apply::BATCH_VERSION,
            time_ms: sketch.meta.time_ms,
            commands: vec![v1::Command { ticket: 0, origin: Some(origin), command: Some(command) }],
        };
        let index = sketch.meta.index + 1;
        let applied = apply::apply(&mut sketch, index, 0, &batch.encode_to_vec(), rows)
            .map_err(|error| RequestError::Unavailable(error.to_string()))?;
        let result = applied.effects.into_iter().find_map(|effect| match effect {
            Effect::Done { result, .. } => Some(result),
            _ => None,
        });
        let result = result.ok_or_else(|| RequestError::Unavailable("the command said nothing".into()))?;
        let reply = query::reply(&sketch, result)?;
        Ok(Rehearsal { reply, events: events(&applied.rows) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::World;
    use crate::lifecycle::{FrameworkVersion, StateVersions, VersionOrigin, VersionOutcome};
    use crate::state::Component;
    use crate::upkeep::UnreachablePolicy;

    fn state() -> State {
        let mut state = State::default();
        for number in 0..200_u64 {
            let component = Digest([u8::try_from(number).unwrap(); 32]);
            let known = Component {
                size_bytes: 1,
                world: World::Scheduler,
                principal: String::new(),
                added_ms: 0,
                state: StateVersions::default(),
                source: "x".repeat(1_000),
            };
            state.components.insert(component, known);
            let role = format!("tenant-{}/team", number % 20);
            let name = format!("web-{number}").parse().unwrap();
            let mut framework = new_framework(name, role.parse().unwrap(), component);
            framework.config = vec![("key".into(), "x".repeat(20_000))];
            framework.versions = vec![FrameworkVersion {
                version: 1,
                component,
                writes_state: 0,
                since_ms: 0,
                principal: String::new(),
                origin: VersionOrigin::Created,
                outcome: VersionOutcome::Running,
            }];
            let key = (framework.role.tenant().to_owned(), framework.name.to_string());
            state.names.insert(key, FrameworkId(number));
            state.frameworks.insert(FrameworkId(number), framework);
        }
        state
    }

    #[test]
    fn a_sketch_has_what_is_counted_without_its_contents() {
        let state = state();
        let request = Request::CreateFramework {
            name: "new".parse().unwrap(),
            role: "tenant-3/other".parse().unwrap(),
            component: Digest([7; 32]),
            config: Vec::new(),
            unreachable: UnreachablePolicy::default(),
        };
        let sketch = state.sketch(&request).unwrap();
        assert_eq!((sketch.frameworks.len(), sketch.names.len()), (10, 10), "those of the tenant");
        let bytes = |framework: &Framework| framework.config.iter().map(|(_, value)| value.len()).sum::<usize>();
        assert_eq!(sketch.frameworks.values().map(bytes).sum::<usize>(), 0);
        assert_eq!(sketch.components.keys().collect::<Vec<_>>(), [&Digest([7; 32])]);
        let roll_back = Request::RollBackFramework { framework: FrameworkId(9), version: None };
        let sketch = state.sketch(&roll_back).unwrap();
        assert_eq!(sketch.components.keys().collect::<Vec<_>>(), [&Digest([9; 32])], "what its versions ran");
        assert_eq!(sketch.frameworks.values().map(bytes).sum::<usize>(), 20_000);
    }
}
