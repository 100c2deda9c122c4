//! `/v1/operations`: what is under way, and what each waits for.

use super::error::ApiError;
use super::extract::Query;
use super::paging::{self, List, Place};
use super::tasks::{read_task_place, write_task_place};
use super::{Api, lookup};
use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_master_core::{Core, OperationKind, OperationPick, OperationPlace, OperationView, Piece};

/// Which operations.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationsQuery {
    /// Only of this framework: its id, name, or `tenant:name`.
    framework: Option<String>,
    /// Only of this kind: `kill`, `drain`, `upgrade`, `migration`, `removal`, `placement`, `maintenance` or `preemption`.
    kind: Option<String>,
    /// Operations of one page, 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

/// Something that is under way.
#[derive(Serialize, JsonSchema)]
pub struct OperationJson {
    /// Names it while it is under way.
    id: String,
    /// What it is.
    kind: &'static str,
    /// The framework, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    framework: Option<String>,
    /// The framework's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    framework_name: Option<String>,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    /// Since when, if that was noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    /// What it waits for.
    waits_for: String,
}

impl OperationJson {
    fn of(view: OperationView, core: &Core) -> Self {
        let named = view.framework.and_then(|id| core.framework_names(id));
        let framework = view.framework.map(|id| id.to_string());
        let task = view.task.map(|id| id.to_string());
        let agent = view.agent.map(|id| id.to_string());
        let about = match (&framework, &task, &agent) {
            (Some(framework), Some(task), _) => format!("{framework}-{task}"),
            (Some(framework), None, _) => framework.clone(),
            (None, _, agent) => agent.clone().unwrap_or_default(),
        };
        Self {
            id: format!("{}-{about}", view.kind.name()),
            kind: view.kind.name(),
            framework,
            framework_name: named.map(|(name, _)| name),
            task,
            agent,
            since_ms: view.since_ms,
            waits_for: view.waits_for,
        }
    }
}

struct At(OperationPlace);

impl Place for At {
    fn write(&self) -> String {
        match &self.0 {
            OperationPlace::Agent(agent) => format!("pa{agent}"),
            OperationPlace::Framework(framework) => format!("pf{framework}"),
            OperationPlace::Task(place) => format!("pt{}", write_task_place(place)),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('p')?;
        Some(Self(match rest.split_at_checked(1)? {
            ("a", agent) => OperationPlace::Agent(agent.parse().ok()?),
            ("f", framework) => OperationPlace::Framework(framework.parse().ok()?),
            ("t", task) => OperationPlace::Task(read_task_place(task)?),
            _ => return None,
        }))
    }
}

fn kind(text: &str) -> Result<OperationKind, ApiError> {
    OperationKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        let names: Vec<&str> = OperationKind::ALL.iter().map(|kind| kind.name()).collect();
        ApiError::invalid("kind", format!("one of {}", names.join(", ")))
    })
}

/// What is under way.
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<OperationsQuery>,
) -> Result<Json<List<OperationJson>>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let pick = OperationPick {
        framework: lookup::some_framework(&api.node, query.framework).await?,
        kind: query.kind.as_deref().map(kind).transpose()?,
    };
    let list = paging::gather(&api.node, query.after.as_deref(), limit, move |core, rows, after: Option<At>, budget| {
        let piece = core.operations_from(&pick, after.map(|At(place)| place), budget, rows)?;
        let found = piece.found.into_iter().map(|view| OperationJson::of(view, core));
        Ok(Piece { found: found.collect(), next: piece.next.map(At) })
    });
    list.await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_master_core::TaskPlace;
    use tessera_types::{AgentId, FrameworkId};

    #[test]
    fn places_are_read_as_they_are_written() {
        let task = TaskPlace::Memory(FrameworkId(3), "a.b-c".parse().unwrap());
        for place in [
            OperationPlace::Agent(AgentId(7)),
            OperationPlace::Framework(FrameworkId(1)),
            OperationPlace::Task(task),
            OperationPlace::Task(TaskPlace::History(FrameworkId(3), 12)),
        ] {
            assert_eq!(At::read(&At(place.clone()).write()).map(|At(place)| place), Some(place));
        }
        for bad in ["", "p", "pz1", "pt", "ptm", "q"] {
            assert!(At::read(bad).is_none(), "{bad}");
        }
    }
}
