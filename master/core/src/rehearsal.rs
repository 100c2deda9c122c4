//! Dry runs: what a request would do, found by carrying it out on a sketch of the state.
//!
//! Invariants: the state is not changed; the commands themselves decide, so that a dry run is refused exactly when
//! the request would be; a sketch holds what the command looks at, not the tasks of the cluster. What is decided
//! between rehearsal and request may differ.

use crate::Core;
use crate::api::{Reply, Request, RequestError};
use crate::apply;
use crate::auth::Principal;
use crate::effect::Effect;
use crate::query;
use crate::rows::{self, RowChange, Rows};
use crate::state::{Framework, State};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{AgentId, FrameworkId, TaskId};
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
        match request {
            Request::CreateFramework { .. } => {
                // How many there are counts, and their names.
                for id in self.frameworks.keys() {
                    framework(id, None);
                }
                sketch.limits.clone_from(&self.limits);
            }
            Request::UpgradeFramework { framework: id, .. }
            | Request::RollBackFramework { framework: id, .. }
            | Request::SetConfig { framework: id, .. }
            | Request::RemoveFramework { framework: id } => framework(id, None),
            Request::KillTask { framework: id, task, .. } => framework(id, Some(task)),
            Request::SetLimits { .. } => sketch.limits.clone_from(&self.limits),
            Request::SetRole { .. } => sketch.roles.clone_from(&self.roles),
            Request::SetAgentMode { agent: id, .. } | Request::EndStrangers { agent: id } => agent = Some(*id),
            Request::MarkGone { agent: id } => {
                agent = Some(*id);
                sketch.gone.clone_from(&self.gone);
            }
            _ => return None,
        }
        sketch.components.clone_from(&self.components);
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
