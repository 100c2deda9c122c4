//! The replicated state in memory: everything except values, history, events and answers, which are
//! only rows.
//!
//! Invariants: changed only through [`crate::apply::Apply`]; indexes (names, charges, tasks of an agent,
//! order of updates, uses of specs) always agree with the tables, which `check` verifies. Must never
//! hold what is not derived from commands.

use crate::status_steps::StatusSteps;
use crate::api::{EventId, World};
use crate::generation::Layer;
use crate::lifecycle::{Failures, FrameworkVersion, Quarantine, StateVersions, Upgrade};
use crate::limits::BOOTS_KEPT_MAX;
use crate::numbered::Session;
use crate::open::OpenRequest;
use crate::repeats::{KeptRequest, RequestKey};
use crate::restore::Restore;
use crate::roles::RoleUses;
use tessera_types::TraceId;
use crate::upkeep::{Drain, Gone, Maintenance, UnreachablePolicy};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tessera_types::{
    AgentId, AgentInfo, AgentResources, Digest, EffectiveLimits, Epoch, ExecutorId, FrameworkId,
    FrameworkName, Launch, Reason, ResourceRequest, Resources, RoleLimits, RoleName, RolePolicy, TaskId, TaskSpec, TaskState, TaskStatus, TimeMs, TurnNumber,
};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    pub(crate) agents: BTreeMap<AgentId, Agent>,
    pub(crate) agent_keys: BTreeMap<String, AgentId>,
    pub(crate) components: BTreeMap<Digest, Component>,
    pub(crate) frameworks: BTreeMap<FrameworkId, Framework>,
    /// By role; the empty one is the cluster. None of them is empty.
    pub(crate) limits: BTreeMap<String, RoleLimits>,
    /// What is said of roles; none of them says nothing.
    pub(crate) roles: BTreeMap<String, RolePolicy>,
    /// Index: what frameworks of a role and below use.
    pub(crate) role_used: RoleUses,
    /// By tenant and name.
    pub(crate) names: BTreeMap<(String, String), FrameworkId>,
    pub(crate) event_ids: VecDeque<EventId>,
    /// By key: agents that were declared gone.
    pub(crate) gone: BTreeMap<String, Gone>,
    pub(crate) requests: BTreeMap<u64, KeptRequest>,
    pub(crate) request_numbers: BTreeMap<RequestKey, u64>,
    /// Index: numbers of each principal's requests.
    pub(crate) requests_of: BTreeMap<String, BTreeSet<u64>>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) answers: BTreeMap<u64, AnswerKey>,
    pub(crate) answer_numbers: BTreeMap<AnswerKey, u64>,
    pub(crate) open: BTreeMap<(FrameworkId, u64), OpenRequest>,
    /// Index: how many tasks that have not ended are in each state.
    pub(crate) live_states: BTreeMap<TaskState, usize>,
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) cluster: String,
    pub(crate) time_ms: TimeMs,
    /// As `time_ms`, without its jumps, once the cluster counts it.
    pub(crate) steady_ms: TimeMs,
    pub(crate) next_agent: u64,
    pub(crate) next_framework: u64,
    pub(crate) index: u64,
    pub(crate) answers_next: u64,
    pub(crate) events_last: EventId,
    pub(crate) requests_next: u64,
    pub(crate) cluster_version: u32,
    /// Oldest first.
    pub(crate) restores: Vec<Restore>,
}

/// Names a stored answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AnswerKey {
    pub(crate) framework: FrameworkId,
    pub(crate) principal: String,
    pub(crate) key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) key: String,
    pub(crate) boot: String,
    pub(crate) hostname: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) version: String,
    pub(crate) missing: Vec<(String, String)>,
    pub(crate) engine: String,
    pub(crate) resources: AgentResources,
    pub(crate) registered_ms: TimeMs,
    pub(crate) unreachable_ms: Option<TimeMs>,
    /// Nothing new is placed on it.
    pub(crate) deactivated: bool,
    pub(crate) drain: Option<Drain>,
    pub(crate) maintenance: Option<Maintenance>,
    /// Boots of its machine before the present one, oldest first: one that comes back is another machine's.
    pub(crate) boots_before: Vec<String>,
    /// Tasks on it that the state does not know, because it was restored, and what each takes.
    pub(crate) strangers: BTreeMap<(FrameworkId, TaskId), Resources>,
    /// Index: sum over `tasks`, `executors` and `strangers`, without what is revocable.
    pub(crate) charged: Resources,
    /// Index: sum over `tasks` and `executors` that are revocable.
    pub(crate) charged_revocable: Resources,
    /// Index: tasks on it that have not ended.
    pub(crate) tasks: BTreeSet<(FrameworkId, TaskId)>,
    /// Index: executors that those tasks name, each charged once.
    pub(crate) executors: BTreeMap<(FrameworkId, ExecutorId), Executor>,
}

/// A custom executor on one agent: it is there while a live task names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executor {
    pub(crate) component: Digest,
    pub(crate) resources: Resources,
    pub(crate) config: Vec<(String, String)>,
    /// Of its first task, and of all others.
    pub(crate) revocable: bool,
    pub(crate) tasks: BTreeSet<TaskId>,
}

impl Agent {
    /// A boot of its machine, or of a copy, is not to be heard of again.
    pub(crate) fn end_boot(&mut self, boot: String) {
        self.boots_before.extend(Some(boot).filter(|boot| !boot.is_empty()));
        let excess = self.boots_before.len().saturating_sub(BOOTS_KEPT_MAX);
        self.boots_before.drain(..excess);
    }

    pub(crate) fn info(&self, id: AgentId) -> AgentInfo {
        AgentInfo {
            id,
            hostname: self.hostname.clone(),
            attributes: self.attributes.clone(),
            reachable: self.unreachable_ms.is_none(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Component {
    pub(crate) size_bytes: u64,
    pub(crate) world: World,
    pub(crate) principal: String,
    pub(crate) added_ms: TimeMs,
    pub(crate) state: StateVersions,
    pub(crate) source: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Framework {
    pub(crate) name: FrameworkName,
    pub(crate) role: RoleName,
    pub(crate) component: Digest,
    pub(crate) config: Vec<(String, String)>,
    pub(crate) principal: String,
    pub(crate) created_ms: TimeMs,

    pub(crate) epoch: Epoch,
    pub(crate) agent: Option<AgentId>,
    pub(crate) placed_ms: TimeMs,
    pub(crate) last_turn: TurnNumber,
    pub(crate) last_turn_epoch: Epoch,
    pub(crate) last_turn_hash: Vec<u8>,
    pub(crate) suppressed: bool,
    /// What it says that it waits for; nothing is anything.
    pub(crate) requests: Vec<ResourceRequest>,
    pub(crate) removing: bool,

    pub(crate) config_version: u64,
    pub(crate) config_seen: u64,
    /// Oldest first; the last one is in force.
    pub(crate) versions: Vec<FrameworkVersion>,
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) failures: Failures,
    pub(crate) quarantine: Option<Quarantine>,
    pub(crate) state_version: u32,
    /// Values of the new generation are being folded into the old one.
    pub(crate) merging: bool,
    pub(crate) unreachable: UnreachablePolicy,

    /// Of the state that its instances see: values, and those of the new generation above them.
    pub(crate) state_bytes: u64,
    pub(crate) state_keys: u64,
    /// Writes of state that were not its scheduler's.
    pub(crate) outside_writes: u64,
    pub(crate) used_ids: u64,
    pub(crate) next_order: u64,
    /// Number of the newest task group.
    pub(crate) next_group: u64,
    pub(crate) history_first: u64,
    pub(crate) history_next: u64,

    pub(crate) specs: BTreeMap<Digest, Spec>,
    pub(crate) timers: BTreeMap<String, TimeMs>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Index: timers by time.
    pub(crate) due: BTreeSet<(TimeMs, String)>,
    /// Index: tasks with unconsumed updates, in the order of the newest.
    pub(crate) updates: BTreeMap<u64, TaskId>,
    /// Index: sum over tasks that have not ended, and their executors on each agent, without what is revocable.
    pub(crate) charged: Resources,
    /// Index: the same of what is revocable.
    pub(crate) charged_revocable: Resources,
    /// Index: how many those are.
    pub(crate) live: usize,
}

impl Framework {
    pub(crate) fn next_turn(&self) -> TurnNumber {
        TurnNumber(self.last_turn.0 + 1)
    }

    pub(crate) fn spec_bytes(&self) -> usize {
        self.specs.values().map(|spec| spec.encoded.len()).sum()
    }

    pub(crate) fn migrating(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.migrating)
    }

    /// Where its writes go.
    pub(crate) const fn layer(&self) -> Layer {
        match (&self.upgrade, self.merging) {
            (Some(_), _) => Layer::Above,
            (None, true) => Layer::Folding,
            (None, false) => Layer::Values,
        }
    }

    /// Whether values may lie in the new generation.
    pub(crate) fn two_generations(&self) -> bool {
        self.layer() != Layer::Values
    }

    /// Number of the version in force.
    pub(crate) fn version(&self) -> u64 {
        self.versions.last().map_or(0, |last| last.version)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) encoded: Arc<[u8]>,
    pub(crate) spec: Arc<TaskSpec>,
    /// Index: tasks that have not ended and refer to it.
    pub(crate) uses: usize,
}

/// An update that the scheduler has not consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredUpdate {
    pub(crate) sequence: u64,
    pub(crate) status: TaskStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KillIntent {
    pub(crate) grace_ms: u64,
    pub(crate) reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) launch: Launch,
    pub(crate) name: String,
    pub(crate) agent: AgentId,
    pub(crate) charge: Resources,
    /// It may be ended at any time to make room; charged apart.
    pub(crate) revocable: bool,
    /// Its task group within the framework; 0 is none.
    pub(crate) group: u64,
    pub(crate) state: TaskState,
    pub(crate) attempt: u32,
    pub(crate) created_ms: TimeMs,
    pub(crate) sequence: u64,
    pub(crate) agent_sequence: u64,
    pub(crate) order: u64,
    pub(crate) latest: Option<StoredUpdate>,
    pub(crate) terminal: Option<StoredUpdate>,
    pub(crate) status: TaskStatus,
    pub(crate) kill: Option<KillIntent>,
    pub(crate) steps: StatusSteps,
    /// The trace that its launch belongs to.
    pub(crate) trace: Option<Box<TraceId>>,
}

impl Task {
    pub(crate) const fn unconsumed(&self) -> bool {
        self.latest.is_some() || self.terminal.is_some()
    }
}

impl State {
    pub(crate) fn task(&self, framework: FrameworkId, task: &TaskId) -> Option<&Task> {
        self.frameworks.get(&framework)?.tasks.get(task)
    }

    /// A task that has not ended.
    pub(crate) fn live_task(&self, framework: FrameworkId, task: &TaskId) -> Option<&Task> {
        self.task(framework, task).filter(|task| !task.state.is_terminal())
    }

    /// The limits in force for a role.
    pub(crate) fn limits_of(&self, role: &RoleName) -> EffectiveLimits {
        let lineage = std::iter::once("").chain(role.lineage());
        EffectiveLimits::resolve(lineage.filter_map(|role| self.limits.get(role)))
    }

    /// The limits in force where no role has a say.
    pub(crate) fn cluster_limits(&self) -> EffectiveLimits {
        EffectiveLimits::resolve(self.limits.get(""))
    }

    pub(crate) fn schedulers_on(&self, agent: AgentId) -> usize {
        self.frameworks.values().filter(|f| f.agent == Some(agent) && !f.removing).count()
    }

    /// How many schedulers each agent hosts that hosts any.
    pub(crate) fn schedulers(&self) -> BTreeMap<AgentId, usize> {
        let mut hosted = BTreeMap::new();
        for agent in self.frameworks.values().filter(|f| !f.removing).filter_map(|f| f.agent) {
            *hosted.entry(agent).or_default() += 1;
        }
        hosted
    }

    /// What all reachable agents have together.
    pub(crate) fn total(&self) -> Resources {
        self.agents
            .values()
            .filter(|agent| agent.unreachable_ms.is_none())
            .fold(Resources::ZERO, |sum, agent| sum.plus(&agent.resources.total))
    }
}
