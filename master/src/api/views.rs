//! What the API shows, as JSON. Field names are the API's promise; the core's views stop here.

use super::error::ApiError;
use crate::files::{FileBytes, RANGE_BYTES_MAX};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use tessera_master_core::{
    AgentView, AheadState, ComponentUse, ComponentView, Core, Failures, FrameworkVersion, FrameworkView, Keep,
    Quarantine, StandbyView, UnreachablePolicy, Upgrade, UsedAs, World,
};
use tessera_types::{AgentId, Digest, FrameworkId, Quantities, ResourceRequest, Resources, TaskId};

/// Amounts of resources.
#[derive(Serialize, JsonSchema)]
pub struct ResourcesJson {
    /// Thousandths of a core.
    cpus_milli: i64,
    /// MiB of memory.
    mem_mib: i64,
    /// MiB of disk.
    disk_mib: i64,
    /// Other resources that agents name, in thousandths of each unit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    items: BTreeMap<String, i64>,
}

impl From<Quantities> for ResourcesJson {
    fn from(Quantities { cpus_milli, mem_mib, disk_mib }: Quantities) -> Self {
        Self { cpus_milli, mem_mib, disk_mib, items: BTreeMap::new() }
    }
}

impl From<Resources> for ResourcesJson {
    fn from(resources: Resources) -> Self {
        let mut shown = Self::from(resources.quantities);
        for (key, amount) in resources.items {
            let sum = shown.items.entry(key.name).or_default();
            *sum = sum.saturating_add(amount);
        }
        shown
    }
}

/// So many tasks of one size that a framework waits to launch.
#[derive(Serialize, JsonSchema)]
pub struct ResourceRequestJson {
    id: String,
    /// What each of them needs.
    resources: ResourcesJson,
    count: u32,
    /// What an agent has to fulfil, in words.
    constraints: Vec<String>,
    /// Revocable resources will do, and nothing else.
    revocable: bool,
}

impl From<ResourceRequest> for ResourceRequestJson {
    fn from(request: ResourceRequest) -> Self {
        Self {
            id: request.id,
            resources: request.resources.into(),
            count: request.count,
            constraints: request.constraints.iter().map(ToString::to_string).collect(),
            revocable: request.revocable,
        }
    }
}

/// An agent.
#[derive(Serialize, JsonSchema)]
pub struct AgentJson {
    id: String,
    hostname: String,
    state: &'static str,
    total: ResourcesJson,
    reserved: ResourcesJson,
    /// Charged by tasks, without what is revocable.
    used: ResourcesJson,
    /// Charged by revocable tasks.
    revocable: ResourcesJson,
    offered: ResourcesJson,
    free: ResourcesJson,
    attributes: BTreeMap<String, String>,
    tasks: usize,
    strangers: Vec<StrangerJson>,
    schedulers: usize,
    standby_for: usize,
    ahead: Vec<AheadJson>,
    compilations: Option<u64>,
    version: String,
    engine: String,
    missing: Vec<MissingJson>,
    registered_ms: u64,
    unreachable_ms: Option<u64>,
    mode: &'static str,
    drain: Option<DrainJson>,
    maintenance: Option<MaintenanceJson>,
    silent_ms: Option<u64>,
    expiry_held: bool,
}

/// What becomes of a framework's tasks whose agent does not answer.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyJson {
    /// They wait for ever without it.
    replace_after_ms: Option<NonZeroU64>,
    #[serde(default)]
    keep: KeepJson,
}

/// Which copy stays.
#[derive(Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum KeepJson {
    First,
    #[default]
    Last,
}

impl From<PolicyJson> for UnreachablePolicy {
    fn from(json: PolicyJson) -> Self {
        let keep = match json.keep {
            KeepJson::First => Keep::First,
            KeepJson::Last => Keep::Last,
        };
        Self {
            replace_after_ms: json.replace_after_ms.map(NonZeroU64::get),
            keep,
        }
    }
}

impl From<UnreachablePolicy> for PolicyJson {
    fn from(policy: UnreachablePolicy) -> Self {
        let keep = match policy.keep {
            Keep::First => KeepJson::First,
            Keep::Last => KeepJson::Last,
        };
        Self {
            replace_after_ms: policy.replace_after_ms.and_then(NonZeroU64::new),
            keep,
        }
    }
}

/// What is on an agent has to go.
#[derive(Serialize, JsonSchema)]
struct DrainJson {
    since_ms: u64,
    deadline_ms: u64,
    /// What was left is being killed.
    over: bool,
}

/// An agent will be worked on.
#[derive(Serialize, JsonSchema)]
struct MaintenanceJson {
    start_ms: u64,
    end_ms: u64,
}

fn mode(view: &AgentView) -> &'static str {
    match (view.deactivated, view.drain) {
        (_, Some(_)) if view.tasks == 0 && view.schedulers == 0 => "drained",
        (_, Some(_)) => "draining",
        (true, None) => "deactivated",
        (false, None) => "active",
    }
}

/// A component that an agent compiles ahead of need.
#[derive(Serialize, JsonSchema)]
struct AheadJson {
    component: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<(Digest, AheadState)> for AheadJson {
    fn from((digest, state): (Digest, AheadState)) -> Self {
        Self {
            component: digest.to_string(),
            state: state.name(),
            error: failure(state),
        }
    }
}

/// The agent that has a scheduler's code compiled, in case that its own is lost.
#[derive(Serialize, JsonSchema)]
struct StandbyJson {
    agent: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<StandbyView> for StandbyJson {
    fn from(view: StandbyView) -> Self {
        Self {
            agent: view.agent.to_string(),
            state: view.state.name(),
            error: failure(view.state),
        }
    }
}

fn failure(state: AheadState) -> Option<String> {
    match state {
        AheadState::Failed(error) => Some(error),
        AheadState::Unknown | AheadState::Waiting | AheadState::Compiled => None,
    }
}

/// A task on an agent that the state does not know, because it was restored.
#[derive(Serialize, JsonSchema)]
struct StrangerJson {
    framework: String,
    task: String,
    resources: ResourcesJson,
}

impl From<(FrameworkId, TaskId, Resources)> for StrangerJson {
    fn from((framework, task, resources): (FrameworkId, TaskId, Resources)) -> Self {
        Self {
            framework: framework.to_string(),
            task: task.to_string(),
            resources: resources.into(),
        }
    }
}

/// A protection that an agent cannot give its tasks and guests.
#[derive(Serialize, JsonSchema)]
struct MissingJson {
    name: String,
    why: String,
}

impl From<AgentView> for AgentJson {
    fn from(view: AgentView) -> Self {
        let state = match (view.connected, view.unreachable_ms) {
            (true, _) => "connected",
            (false, None) => "disconnected",
            (false, Some(_)) => "unreachable",
        };
        Self {
            mode: mode(&view),
            drain: view.drain.map(|drain| DrainJson {
                since_ms: drain.since_ms,
                deadline_ms: drain.deadline_ms,
                over: drain.over,
            }),
            maintenance: view.maintenance.map(|window| MaintenanceJson {
                start_ms: window.start_ms,
                end_ms: window.end_ms,
            }),
            silent_ms: view.silent_ms,
            expiry_held: view.expiry_held,
            id: view.id.to_string(),
            hostname: view.hostname,
            state,
            total: view.total.into(),
            reserved: view.reserved.into(),
            used: view.used.into(),
            revocable: view.revocable.into(),
            offered: view.offered.into(),
            free: view.free.into(),
            attributes: view.attributes.into_iter().collect(),
            tasks: view.tasks,
            strangers: view.strangers.into_iter().map(Into::into).collect(),
            schedulers: view.schedulers,
            standby_for: view.standby_for,
            ahead: view.ahead.into_iter().map(Into::into).collect(),
            compilations: view.compilations,
            version: view.version,
            engine: view.engine,
            missing: view
                .missing
                .into_iter()
                .map(|(name, why)| MissingJson { name, why })
                .collect(),
            registered_ms: view.registered_ms,
            unreachable_ms: view.unreachable_ms,
        }
    }
}

/// A component.
#[derive(Serialize, JsonSchema)]
pub struct ComponentJson {
    digest: String,
    size: u64,
    world: &'static str,
    uploaded_by: String,
    uploaded_ms: u64,
    created: bool,
    source: Option<String>,
    state: Option<StateJson>,
    /// Digest of the bytes that were sent, where they were made into a component first.
    #[serde(skip_serializing_if = "Option::is_none")]
    componentized_from: Option<String>,
    /// What its judgement found; in the answer about one component only.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<serde_json::Value>,
    #[serde(flatten)]
    uses: Option<UsesJson>,
}

/// Uses of a component that one document names: enough to find them, and a bound on lists.
const USES_SHOWN_MAX: usize = 16;

/// Who uses a component.
#[derive(Serialize, JsonSchema)]
pub struct UsesJson {
    /// How many there are.
    uses: usize,
    /// The first of them.
    used_by: Vec<UseJson>,
}

#[derive(Serialize, JsonSchema)]
struct UseJson {
    framework: String,
    name: String,
    role: String,
    #[serde(rename = "as")]
    used_as: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
}

impl UsesJson {
    /// Of one component.
    pub fn of(uses: &[ComponentUse]) -> Self {
        Self {
            uses: uses.len(),
            used_by: uses.iter().take(USES_SHOWN_MAX).map(UseJson::of).collect(),
        }
    }
}

impl UseJson {
    fn of(used: &ComponentUse) -> Self {
        let (tasks, executor) = match &used.used_as {
            UsedAs::Current | UsedAs::Next | UsedAs::Previous => (None, None),
            UsedAs::Spec { tasks } => (Some(*tasks), None),
            UsedAs::Executor { executor, agent } => (None, Some((executor, agent))),
        };
        Self {
            framework: used.framework.to_string(),
            name: used.name.clone(),
            role: used.role.to_string(),
            used_as: used.used_as.name(),
            tasks,
            executor: executor.map(|(executor, _)| executor.to_string()),
            agent: executor.map(|(_, agent)| agent.to_string()),
        }
    }
}

/// What a scheduler says of the state that it keeps.
#[derive(Serialize, JsonSchema)]
struct StateJson {
    writes: u32,
    reads: Vec<u32>,
    migrates: bool,
}

impl ComponentJson {
    /// A component; `created` says whether this call made it known.
    pub fn of(view: ComponentView, created: bool) -> Self {
        let state = (view.world == World::Scheduler).then_some(StateJson {
            writes: view.state.writes,
            reads: view.state.reads,
            migrates: view.state.migrates,
        });
        Self {
            digest: view.digest.to_string(),
            size: view.size_bytes,
            world: view.world.name(),
            uploaded_by: view.principal,
            uploaded_ms: view.added_ms,
            created,
            source: (!view.source.is_empty()).then_some(view.source),
            state,
            componentized_from: None,
            report: None,
            uses: None,
        }
    }

    /// With the digest of what was sent.
    pub fn made_from(mut self, sent: Option<Digest>) -> Self {
        self.componentized_from = sent.map(|digest| digest.to_string());
        self
    }

    /// With who uses it.
    pub fn used_by(mut self, uses: &[ComponentUse]) -> Self {
        self.uses = Some(UsesJson::of(uses));
        self
    }

    /// With what its judgement found, as it was stored.
    pub fn with_report(mut self, report: &str) -> Self {
        self.report = serde_json::from_str(report).ok();
        self
    }
}

/// A framework.
#[derive(Serialize, JsonSchema)]
pub struct FrameworkJson {
    id: String,
    name: String,
    role: String,
    component: String,
    config: BTreeMap<String, String>,
    state: &'static str,
    why: Vec<String>,
    agent: Option<String>,
    standby: Option<StandbyJson>,
    epoch: u64,
    turns: u64,
    suppressed: bool,
    state_bytes: u64,
    state_keys: u64,
    timers: usize,
    tasks: BTreeMap<&'static str, usize>,
    tasks_total: u64,
    /// Charged by its tasks, without what is revocable.
    used: ResourcesJson,
    /// Charged by its revocable tasks.
    revocable: ResourcesJson,
    offered: ResourcesJson,
    /// What it says that it waits for; without any, whole agents are offered.
    requests: Vec<ResourceRequestJson>,
    failures: FailuresJson,
    quarantine: Option<QuarantineJson>,
    versions: Vec<VersionJson>,
    upgrade: Option<UpgradeJson>,
    state_version: u32,
    config_version: u64,
    config_seen: u64,
    unreachable: PolicyJson,
    last_error: Option<String>,
    created_ms: u64,
    /// For handlers that go on to ask the agent.
    #[serde(skip)]
    pub agent_id: Option<AgentId>,
}

/// Failures of a scheduler that count towards quarantine.
#[derive(Serialize, JsonSchema)]
struct FailuresJson {
    in_a_row: u32,
    /// When, the newest ones.
    at_ms: Vec<u64>,
    reason: Option<String>,
    limit: Option<String>,
    message: Option<String>,
    turn: u64,
    /// All that this master has seen since it leads, those that are nobody's fault included.
    seen: u64,
}

/// Why a scheduler is kept from running, and what ends it.
#[derive(Serialize, JsonSchema)]
struct QuarantineJson {
    since_ms: u64,
    rule: String,
    reason: Option<String>,
    limit: Option<String>,
    message: Option<String>,
    turn: u64,
    release: String,
}

/// A component that a framework has run.
#[derive(Serialize, JsonSchema)]
struct VersionJson {
    version: u64,
    component: String,
    writes_state: u32,
    since_ms: u64,
    by: String,
    how: &'static str,
    outcome: String,
}

/// An upgrade that is not final.
#[derive(Serialize, JsonSchema)]
struct UpgradeJson {
    from_version: u64,
    phase: &'static str,
    old_state_version: u32,
}

/// Nothing for no text.
fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl FailuresJson {
    fn of(failures: &Failures, seen: u64) -> Self {
        Self {
            in_a_row: failures.in_a_row,
            at_ms: failures.at_ms.clone(),
            reason: some(&failures.reason),
            limit: some(&failures.limit),
            message: some(&failures.message),
            turn: failures.turn,
            seen,
        }
    }
}

impl QuarantineJson {
    fn of(quarantine: Quarantine, failures: &Failures, framework: &str) -> Self {
        Self {
            since_ms: quarantine.since_ms,
            rule: quarantine.rule,
            reason: some(&failures.reason),
            limit: some(&failures.limit),
            message: some(&failures.message),
            turn: failures.turn,
            release: format!("tessera framework release {framework}"),
        }
    }
}

impl From<FrameworkVersion> for VersionJson {
    fn from(version: FrameworkVersion) -> Self {
        Self {
            version: version.version,
            component: version.component.to_string(),
            writes_state: version.writes_state,
            since_ms: version.since_ms,
            by: version.principal,
            how: version.origin.name(),
            outcome: version.outcome.to_string(),
        }
    }
}

impl From<Upgrade> for UpgradeJson {
    fn from(upgrade: Upgrade) -> Self {
        Self {
            from_version: upgrade.from_version,
            phase: if upgrade.migrating {
                "migrating"
            } else {
                "trial"
            },
            old_state_version: upgrade.migrate_from,
        }
    }
}

impl FrameworkJson {
    /// A framework, with the states of its live tasks counted.
    pub fn of(view: FrameworkView, core: &mut Core) -> Self {
        let (counts, _) = core.task_counts(view.id);
        let tasks = counts.into_iter().map(|(state, count)| (state.name(), count)).collect();
        let why = core
            .explain(view.id)
            .into_iter()
            .map(|w| format!("{}: {}", w.what, w.why))
            .collect();
        Self {
            id: view.id.to_string(),
            name: view.name.to_string(),
            role: view.role.to_string(),
            component: view.component.to_string(),
            config: view.config.into_iter().collect(),
            state: view.phase.name(),
            why,
            agent: view.agent.map(|agent| agent.to_string()),
            standby: view.standby.map(Into::into),
            epoch: view.epoch.0,
            turns: view.last_turn.0,
            suppressed: view.suppressed,
            state_bytes: view.state_bytes,
            state_keys: view.state_keys,
            timers: view.timers,
            tasks,
            tasks_total: view.tasks_total,
            requests: view.requests.into_iter().map(Into::into).collect(),
            revocable: view.revocable.into(),
            used: view.used.into(),
            offered: view.offered.into(),
            failures: FailuresJson::of(&view.failing, view.failures),
            quarantine: view
                .quarantine
                .map(|found| QuarantineJson::of(found, &view.failing, view.name.as_str())),
            versions: view.versions.into_iter().map(Into::into).collect(),
            upgrade: view.upgrade.map(Into::into),
            state_version: view.state_version,
            config_version: view.config_version,
            config_seen: view.config_seen,
            unreachable: view.unreachable.into(),
            last_error: view.last_error,
            created_ms: view.created_ms,
            agent_id: view.agent,
        }
    }
}

/// Which bytes of a file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RangeQuery {
    /// Bytes to pass over.
    pub(super) offset: Option<u64>,
    /// Bytes to read, at most 65536.
    pub(super) length: Option<u32>,
}

impl RangeQuery {
    /// Offset and length within their bounds.
    pub fn checked(&self) -> Result<(u64, u32), ApiError> {
        let length = self.length.unwrap_or(RANGE_BYTES_MAX);
        if length == 0 || length > RANGE_BYTES_MAX {
            return Err(ApiError::invalid(
                "length",
                format!("1 to {RANGE_BYTES_MAX}"),
            ));
        }
        Ok((self.offset.unwrap_or(0), length))
    }
}

/// Bytes of a file, and where they stand in it.
pub fn file_response(offset: u64, bytes: FileBytes) -> Response {
    let mut response = Response::new(Body::from(bytes.data));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert("x-tessera-offset", HeaderValue::from(offset));
    headers.insert("x-tessera-size", HeaderValue::from(bytes.size));
    response
}
