//! What goes in and comes out: requests, replies, outputs, views.
//!
//! Invariant: everything here is owned data; no view borrows from the state. Must never hold a rule.

use crate::auth::Forbidden;
use crate::commands::TAG_BYTES;
use crate::effect::Effect;
use crate::lifecycle::{Failures, FrameworkVersion, Phase, Quarantine, StateVersions, Upgrade};
use crate::roles::RoleChange;
use crate::rows::RowChange;
use crate::status_steps::StatusStep;
use crate::upkeep::{Drain, Maintenance, UnreachablePolicy};
use crate::trace::Tracing;
use tessera_types::{
    AgentId, Digest, Epoch, ExecutorId, FrameworkId, FrameworkName, HttpAnswer, Launch, LimitName,
    OfferId, Quantities, ResourceRequest, Resources, RoleName, TaskId, TaskState, TaskStatus, TimeMs, TurnNumber,
};
use tessera_wire::v1::{self, write_state::Condition};

/// The present, as two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Milliseconds of a clock that never steps; only differences count.
    pub mono_ms: u64,
}

/// Durations that an operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Without a session for so long, an agent is unreachable.
    pub agent_timeout_ms: u64,
    /// Without a session for so long, its schedulers are placed elsewhere.
    pub scheduler_grace_ms: u64,
    /// A session without a beat for so long is given up.
    pub session_silence_ms: u64,
    /// An offer that is not answered for so long is declined.
    pub offer_timeout_ms: u64,
    /// A request to a scheduler that is not answered for so long fails.
    pub http_timeout_ms: u64,
    /// The newest cluster version that this build understands.
    pub understands: u32,
    /// What is traced.
    pub traced: Tracing,
    /// For what is measured.
    pub stopwatch: Stopwatch,
}

/// A clock for measuring: microseconds since any beginning. Nothing is decided by it.
#[derive(Clone, Copy)]
pub struct Stopwatch(pub fn() -> u64);

impl Default for Stopwatch {
    /// One that stands still.
    fn default() -> Self {
        Self(|| 0)
    }
}

impl std::fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopwatch")
    }
}

/// Nothing that is decided tells one from another.
impl PartialEq for Stopwatch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Stopwatch {}

/// The newest cluster version that this build understands.
pub const CLUSTER_VERSION: u32 = 4;

impl Default for Config {
    fn default() -> Self {
        Self {
            agent_timeout_ms: 12_000,
            scheduler_grace_ms: 6_000,
            session_silence_ms: 5_000,
            offer_timeout_ms: 5_000,
            http_timeout_ms: 30_000,
            understands: CLUSTER_VERSION,
            traced: Tracing::default(),
            stopwatch: Stopwatch::default(),
        }
    }
}

impl Config {
    /// Shorter ones, for a cluster on one machine.
    #[must_use]
    pub fn dev() -> Self {
        Self {
            scheduler_grace_ms: 3_000,
            ..Self::default()
        }
    }
}

/// What applying an entry did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows changed.
    pub rows: Vec<RowChange>,
    /// For the leader.
    pub effects: Vec<Effect>,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Propose; several may go into one entry by [`crate::Core::encode_batch`].
    Propose(v1::Command),
    /// Send to an agent.
    SendAgent {
        /// Which session.
        session: u64,
        /// What.
        message: v1::MasterMessage,
    },
    /// End a session, after everything sent before.
    CloseSession {
        /// Which.
        session: u64,
        /// Why.
        reason: String,
    },
    /// Confirm that this is still the leader, then call [`crate::Core::on_read_ready`].
    ReadIndex {
        /// For the call.
        ticket: u64,
    },
    /// Answer a request to a scheduler.
    Answer {
        /// The shell's ticket.
        ticket: u64,
        /// The scheduler's answer, or why there is none.
        answer: Result<HttpAnswer, HttpFailure>,
    },
    /// Answer a request to the master.
    Reply {
        /// The shell's ticket.
        ticket: u64,
        /// The result.
        result: Result<Reply, RequestError>,
    },
    /// Something that an operator should see.
    Report {
        /// The text.
        text: String,
    },
}

/// Why a scheduler did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HttpFailure {
    /// HTTP status.
    pub status: u16,
    /// Seconds after which the caller may try again.
    pub retry_after_s: Option<u32>,
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// What kind of component it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum World {
    /// A scheduler.
    Scheduler,
    /// A custom executor.
    Executor,
    /// A command: a Wasm task.
    Command,
}

impl World {
    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Executor => "executor",
            Self::Command => "command",
        }
    }
}

/// What a user may ask the master to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make a component known. Its file must be stored already.
    AddComponent {
        /// Digest of its bytes.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// What it is.
        world: World,
        /// Of a scheduler: the state that it keeps.
        state: StateVersions,
        /// Where it came from, `oci://…@sha256:…`; empty when it was uploaded.
        source: String,
        /// What its inspection found, as JSON; at most 64 KiB.
        report: String,
    },
    /// Forget a component that nothing uses.
    RemoveComponent {
        /// Digest of its bytes.
        digest: Digest,
    },
    /// Create a framework.
    CreateFramework {
        /// Unique within the tenant.
        name: FrameworkName,
        /// Its role; the first part is the tenant.
        role: RoleName,
        /// A scheduler.
        component: Digest,
        /// Given to the scheduler.
        config: Vec<(String, String)>,
        /// What becomes of its tasks whose agent does not answer.
        unreachable: UnreachablePolicy,
    },
    /// End a framework and everything that it runs.
    RemoveFramework {
        /// Which.
        framework: FrameworkId,
    },
    /// End a task.
    KillTask {
        /// Whose.
        framework: FrameworkId,
        /// Which.
        task: TaskId,
        /// Time between TERM and KILL; the spec's when absent.
        grace_ms: Option<u64>,
    },
    /// Set limits of a role, or of the whole cluster: all of them or none.
    SetLimits {
        /// Whose; none is the cluster.
        role: Option<RoleName>,
        /// To be set.
        set: Vec<(LimitName, u64)>,
        /// To fall back to what the parent role says.
        unset: Vec<LimitName>,
        /// Refused if what is set for it has another tag, see `limits_tag`.
        expected: Option<Vec<u8>>,
    },
    /// Change what is said of a role; `RoleChange::reset()` takes it back.
    SetRole {
        /// Which.
        role: RoleName,
        /// What to say.
        change: RoleChange,
        /// Refused if another version is in force.
        expected_version: Option<u64>,
    },
    /// Change the component of a framework.
    UpgradeFramework {
        /// Which.
        framework: FrameworkId,
        /// A scheduler that reads the framework's state.
        component: Digest,
    },
    /// Go back to an earlier component; while an upgrade is on trial or migrating, give it up.
    RollBackFramework {
        /// Which.
        framework: FrameworkId,
        /// Of its history; the one before if absent.
        version: Option<u64>,
    },
    /// Replace the configuration; the scheduler is told.
    SetConfig {
        /// Which.
        framework: FrameworkId,
        /// All of it.
        config: Vec<(String, String)>,
        /// Refused if another version is in force.
        expected_version: Option<u64>,
        /// Another policy for unreachable tasks; the present one stays when absent.
        unreachable: Option<UnreachablePolicy>,
    },
    /// Take an agent out of use, or put it to use again.
    SetAgentMode {
        /// Which.
        agent: AgentId,
        /// Nothing new is placed on it.
        deactivated: bool,
        /// Beside that: what is on it has to go within so long.
        drain_ms: Option<u64>,
    },
    /// What the agent runs and a restored state does not know is to end.
    EndStrangers {
        /// Which.
        agent: AgentId,
    },
    /// The agent will not come back.
    MarkGone {
        /// Which.
        agent: AgentId,
    },
    /// All voting masters understand this version.
    SetClusterVersion {
        /// The version.
        version: u32,
    },
    /// Say when an agent will be worked on, or that it will not.
    SetMaintenance {
        /// Which.
        agent: AgentId,
        /// When.
        maintenance: Option<Maintenance>,
    },
    /// Write a key of a framework's state, or delete it.
    WriteState {
        /// Whose.
        framework: FrameworkId,
        /// Which key.
        key: String,
        /// What it has afterwards; none deletes it.
        value: Option<Vec<u8>>,
        /// Refused if something else is there.
        expected: Expected,
    },
    /// A process of a master is going to pass requests on under numbers.
    OpenSession {
        /// Which master.
        node: u64,
        /// Drawn by the process.
        session: u64,
        /// All masters there are.
        members: Vec<u64>,
    },
    /// Let a quarantined scheduler run again.
    ReleaseFramework {
        /// Which.
        framework: FrameworkId,
    },
}

/// What a caller expects to find where it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    #[default]
    Anything,
    /// Something.
    Present,
    /// Nothing.
    Absent,
    /// The value with this tag.
    Same([u8; TAG_BYTES]),
}

impl Expected {
    /// As commands have it.
    #[must_use]
    pub fn condition(self) -> Option<Condition> {
        match self {
            Self::Anything => None,
            Self::Present => Some(Condition::Present(v1::Empty {})),
            Self::Absent => Some(Condition::Absent(v1::Empty {})),
            Self::Same(tag) => Some(Condition::Same(tag.to_vec())),
        }
    }

    /// Of a command's condition; nothing if it has none of these forms.
    #[must_use]
    pub fn of(condition: Option<Condition>) -> Option<Self> {
        Some(match condition {
            None => Self::Anything,
            Some(Condition::Present(v1::Empty {})) => Self::Present,
            Some(Condition::Absent(v1::Empty {})) => Self::Absent,
            Some(Condition::Same(tag)) => Self::Same(tag.try_into().ok()?),
        })
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The component is known.
    Component {
        /// It.
        view: ComponentView,
        /// Whether it was not known before.
        created: bool,
    },
    /// The framework was created.
    Framework(FrameworkId),
    /// The component, or the configuration, has this version now.
    Version(u64),
    /// It is committed.
    Done,
}

/// What a new instance begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Number of its first turn.
    pub next: TurnNumber,
    /// Writes from outside that the state has, whenever its pages are read from now on.
    pub outside: u64,
}

/// Why a request was refused; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The caller may not.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// It is not known.
    #[error("there is no {what} {name}")]
    NotFound {
        /// Kind.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// It collides with what is there.
    #[error("{field}: {rule}")]
    Conflict {
        /// The field.
        field: &'static str,
        /// The rule.
        rule: String,
    },
    /// It breaks a rule.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The rule.
        rule: String,
    },
    /// What is there is not what the caller expects.
    #[error("{rule}")]
    Precondition {
        /// What to do about it.
        rule: String,
    },
    /// A limit was reached.
    #[error("limit {name}: {rule}")]
    Limit {
        /// The limit.
        name: &'static str,
        /// The rule.
        rule: String,
    },
    /// Its key came with another request before.
    #[error("the key {key} was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// Another master leads.
    #[error("this master does not lead")]
    NotLeader,
    /// Its fate is not known; asking again is safe where it is idempotent.
    #[error("not available now: {0}")]
    Unavailable(String),
}

/// Names one event: the log entry, and the number within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Index of the entry.
    pub index: u64,
    /// Number within it, from 0.
    pub n: u32,
}

/// One event for watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Its name.
    pub id: EventId,
    /// Time of its command.
    pub at_ms: TimeMs,
    /// For example `task.TASK_RUNNING` or `agent.registered`.
    pub kind: String,
    /// The framework, if it is about one.
    pub framework: Option<FrameworkId>,
    /// The task.
    pub task: Option<TaskId>,
    /// The agent.
    pub agent: Option<AgentId>,
    /// Details for people.
    pub text: String,
    /// Who caused it; empty for the cluster itself.
    pub principal: String,
}

/// Some events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsPage {
    /// In order.
    pub events: Vec<EventRecord>,
    /// Events after the one asked for are no longer there.
    pub gap: bool,
    /// The oldest that is there.
    pub floor: EventId,
    /// The newest.
    pub last: EventId,
}

/// What became of a component that an agent is to compile ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AheadState {
    /// The agent has not said.
    Unknown,
    /// Its turn has not come.
    Waiting,
    /// It is compiled.
    Compiled,
    /// Why it was not compiled.
    Failed(String),
}

impl AheadState {
    /// Its word in the API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Waiting => "waiting",
            Self::Compiled => "compiled",
            Self::Failed(_) => "failed",
        }
    }
}

/// The agent that compiles a scheduler's code ahead, and where it goes if its own is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyView {
    /// Which agent.
    pub agent: AgentId,
    /// Whether it has the code compiled.
    pub state: AheadState,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentView {
    /// Number.
    pub id: AgentId,
    /// Host.
    pub hostname: String,
    /// Names and values.
    pub attributes: Vec<(String, String)>,
    /// Version of its software.
    pub version: String,
    /// Protections that it cannot give: name and why.
    pub missing: Vec<(String, String)>,
    /// Key of its compiled images.
    pub engine: String,
    /// What is offered of it, when free.
    pub total: Resources,
    /// Its slice for schedulers.
    pub reserved: Quantities,
    /// Charged by tasks, without what is revocable.
    pub used: Resources,
    /// Charged by revocable tasks.
    pub revocable: Resources,
    /// Offered now or being accepted; zero on followers.
    pub offered: Resources,
    /// The rest; may be negative.
    pub free: Resources,
    /// First registration.
    pub registered_ms: TimeMs,
    /// Since when it does not answer.
    pub unreachable_ms: Option<TimeMs>,
    /// Nothing new is placed on it.
    pub deactivated: bool,
    /// What is on it has to go.
    pub drain: Option<Drain>,
    /// It will be worked on.
    pub maintenance: Option<Maintenance>,
    /// How long this leader has not heard of it; none on followers.
    pub silent_ms: Option<u64>,
    /// It would be unreachable, but too many went silent with it.
    pub expiry_held: bool,
    /// Whether it has a session with this master.
    pub connected: bool,
    /// Tasks on it that have not ended.
    pub tasks: usize,
    /// Tasks on it that the state does not know, because it was restored, and what each takes.
    pub strangers: Vec<(FrameworkId, TaskId, Resources)>,
    /// Schedulers placed on it.
    pub schedulers: usize,
    /// Schedulers of other agents that it stands by for; none on followers.
    pub standby_for: usize,
    /// What it compiles ahead for them.
    pub ahead: Vec<(Digest, AheadState)>,
    /// Components that its process has compiled, if it has said so.
    pub compilations: Option<u64>,
}

/// A component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentView {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its size.
    pub size_bytes: u64,
    /// What it is.
    pub world: World,
    /// Who uploaded it.
    pub principal: String,
    /// When.
    pub added_ms: TimeMs,
    /// Of a scheduler: the state that it keeps.
    pub state: StateVersions,
    /// Where it came from; empty when it was uploaded.
    pub source: String,
}

/// Where the value of a limit comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// Nothing is set.
    Default,
    /// Set for the cluster.
    Cluster,
    /// Set for this role.
    Role(String),
}

/// A limit in force. Unit, default and bounds are in its row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitView {
    /// Which.
    pub name: LimitName,
    /// The value in force.
    pub value: u64,
    /// Who set it.
    pub from: LimitSource,
}

/// A framework.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameworkView {
    /// Number.
    pub id: FrameworkId,
    /// Name.
    pub name: FrameworkName,
    /// Role.
    pub role: RoleName,
    /// Its scheduler.
    pub component: Digest,
    /// Given to the scheduler.
    pub config: Vec<(String, String)>,
    /// Who created it.
    pub principal: String,
    /// When.
    pub created_ms: TimeMs,
    /// Placements so far.
    pub epoch: Epoch,
    /// Where the scheduler is.
    pub agent: Option<AgentId>,
    /// Where it would go; none on followers.
    pub standby: Option<StandbyView>,
    /// The last committed turn.
    pub last_turn: TurnNumber,
    /// Wants no offers.
    pub suppressed: bool,
    /// What it says that it waits for; nothing is anything.
    pub requests: Vec<ResourceRequest>,
    /// Being removed.
    pub removing: bool,
    /// Its scheduler is ready; false on followers.
    pub ready: bool,
    /// The last failure of its scheduler that this leader saw.
    pub last_error: Option<String>,
    /// Failures that this leader saw.
    pub failures: u64,
    /// Bytes of state.
    pub state_bytes: u64,
    /// Keys of state.
    pub state_keys: u64,
    /// Timers set.
    pub timers: usize,
    /// Tasks that have not ended.
    pub tasks_live: usize,
    /// Task ids used so far.
    pub tasks_total: u64,
    /// Charged by its tasks, without what is revocable.
    pub used: Resources,
    /// Charged by its revocable tasks.
    pub revocable: Resources,
    /// Offered to it now.
    pub offered: Resources,
    /// What its scheduler is doing.
    pub phase: Phase,
    /// Failures on record that count towards quarantine.
    pub failing: Failures,
    /// It is kept from running.
    pub quarantine: Option<Quarantine>,
    /// What it has run, oldest first; the last one is in force.
    pub versions: Vec<FrameworkVersion>,
    /// An upgrade that is not final.
    pub upgrade: Option<Upgrade>,
    /// Version of its state.
    pub state_version: u32,
    /// Counts replacements of the configuration, from 1.
    pub config_version: u64,
    /// The newest configuration that a committed turn of its scheduler has seen.
    pub config_seen: u64,
    /// What a finished upgrade wrote is being folded into the state; another upgrade has to wait.
    pub merging: bool,
    /// What becomes of its tasks whose agent does not answer.
    pub unreachable: UnreachablePolicy,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Whose.
    pub framework: FrameworkId,
    /// What differs from its spec.
    pub launch: Launch,
    /// The spec's name.
    pub name: String,
    /// Where; `a0` if nowhere.
    pub agent: AgentId,
    /// What it is charged for, or was.
    pub resources: Resources,
    /// It may be ended at any time to make room.
    pub revocable: bool,
    /// State.
    pub state: TaskState,
    /// Restarts by the agent plus one.
    pub attempt: u32,
    /// When it was accepted.
    pub created_ms: TimeMs,
    /// Newest status, without data.
    pub status: TaskStatus,
    /// Somebody asked for its end.
    pub kill_requested: bool,
    /// Number in the history, when it is there.
    pub history: Option<u64>,
    /// Its task group, unique in its framework.
    pub group: Option<u64>,
    /// The executor that runs it, as long as its spec is known.
    pub executor: Option<ExecutorId>,
    /// The states that it was in, oldest first; in answers about one task only.
    pub steps: Vec<StatusStep>,
}

/// A custom executor on one agent; there while a live task names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorView {
    /// Its id in the framework.
    pub executor: ExecutorId,
    /// Where it is, or will be.
    pub agent: AgentId,
    /// What it runs.
    pub component: Digest,
    /// What it is charged for beside its tasks.
    pub resources: Resources,
    /// Its tasks that have not ended.
    pub tasks: Vec<TaskId>,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only of this framework.
    pub framework: Option<FrameworkId>,
    /// Only on this agent.
    pub agent: Option<AgentId>,
    /// Only those that have not ended.
    pub live_only: bool,
    /// Only after this one.
    pub after: Option<(FrameworkId, TaskId)>,
    /// At most so many; 0 is the largest page.
    pub limit: usize,
}

/// An offer that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferView {
    /// Number.
    pub id: OfferId,
    /// To whom.
    pub framework: FrameworkId,
    /// Of which agent.
    pub agent: AgentId,
    /// How much.
    pub available: Resources,
    /// It may be taken back, with what runs on it.
    pub revocable: bool,
    /// For how long it has stood.
    pub age_ms: u64,
}

/// Something pending, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What waits.
    pub what: String,
    /// For what.
    pub why: String,
}

/// A framework name did not lead to one framework.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// None has it.
    #[error("there is no framework {0}")]
    NotFound(String),
    /// Several tenants have one.
    #[error("several tenants have a framework {0}; name the tenant")]
    Ambiguous(String),
}

/// Why state was not handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchRefusal {
    /// This master does not lead, or the session is not the agent's.
    #[error("the session is not known")]
    NoSession,
    /// The agent does not host this epoch.
    #[error("the agent does not host this framework under this epoch")]
    NotHosting,
    /// A turn is about to commit; try again.
    #[error("a turn is about to commit, try again")]
    Busy,
}

/// Numbers for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Agents known.
    pub agents: usize,
    /// Of these with a session here.
    pub agents_connected: usize,
    /// Frameworks.
    pub frameworks: usize,
    /// Components.
    pub components: usize,
    /// Tasks that have not ended.
    pub tasks_live: usize,
    /// Offers that stand.
    pub offers: usize,
    /// Requests that wait for schedulers.
    pub http_in_flight: usize,
    /// Messages between schedulers and executors that could not be delivered since this master leads.
    pub messages_dropped: u64,
    /// What all agents have.
    pub total: Quantities,
    /// What tasks are charged for.
    pub used: Quantities,
}
