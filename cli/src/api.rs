//! The documents of REST `/v1` as far as people are shown them.
//!
//! Invariants: every field has a default, so that a master which adds or leaves out fields can still
//! be read; `-o json` shows what the master sent and never passes through these types.

use crate::error::CliError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpus_milli: i64,
    /// MiB.
    pub mem_mib: i64,
    /// MiB.
    pub disk_mib: i64,
    /// Others by name, in thousandths.
    pub items: BTreeMap<String, i64>,
}

/// A component.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Component {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// `scheduler` or `command`.
    pub world: String,
    /// Since the Unix epoch.
    pub uploaded_ms: u64,
    /// Whether this upload brought it.
    pub created: bool,
    /// Who uploaded it.
    pub uploaded_by: String,
    /// Where it was pulled from.
    pub source: Option<String>,
    /// Of a scheduler.
    pub state: Option<StateVersions>,
    /// Digest of the bytes that it was made from.
    pub componentized_from: Option<String>,
    /// What its judgement found; in the document of one component only.
    pub report: Option<Value>,
    /// How many uses there are.
    pub uses: usize,
    /// The first of them.
    pub used_by: Vec<ComponentUse>,
}

/// One use of a component.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ComponentUse {
    /// Name of the framework.
    pub name: String,
    /// `current`, `next`, `previous`, `spec` or `executor`.
    #[serde(rename = "as")]
    pub used_as: String,
    /// Of a spec.
    pub tasks: Option<usize>,
    /// Which executor.
    pub executor: Option<String>,
    /// Where it is.
    pub agent: Option<String>,
}

/// How many files, and how large they are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Files {
    /// How many.
    pub count: u64,
    /// Of all.
    pub bytes: u64,
}

/// What an agent keeps of components.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Caches {
    /// Their bytes.
    pub components: Files,
    /// What was compiled of them.
    pub images: Files,
    /// How many components are in use.
    pub in_use: Option<u64>,
    /// All of it together, unless more is in use.
    pub bytes_max: u64,
    /// How long without use.
    pub unused_kept_s: u64,
}

/// What a scheduler says of the state that it keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StateVersions {
    /// The version that it writes.
    pub writes: u32,
    /// Older ones that it can start from.
    pub reads: Vec<u32>,
    /// It carries older ones over.
    pub migrates: bool,
}

/// Failures that count towards quarantine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Failures {
    /// Without a committed turn between.
    pub in_a_row: u32,
    /// When, the newest ones.
    pub at_ms: Vec<u64>,
}

/// Why a scheduler is kept from running.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Quarantine {
    /// Since the Unix epoch.
    pub since_ms: u64,
    /// The limit on failures that was reached.
    pub rule: String,
    /// Upper-case reason of the last failure.
    pub reason: Option<String>,
    /// The limit that it hit.
    pub limit: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// The turn in which it failed.
    pub turn: u64,
    /// The command that ends it.
    pub release: String,
}

/// A component that a framework has run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Counts from 1.
    pub version: u64,
    /// Its digest.
    pub component: String,
    /// Version of the state that it writes.
    pub writes_state: u32,
    /// Since the Unix epoch.
    pub since_ms: u64,
    /// Who asked for it.
    pub by: String,
    /// `created`, `upgraded` or `rolled-back`.
    pub how: String,
    /// `running`, `trial`, `migrating`, `replaced` or `failed: …`.
    pub outcome: String,
}

/// The configuration of a framework.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Names and values.
    pub config: BTreeMap<String, String>,
    /// Counts its replacements.
    pub config_version: u64,
    /// The newest one that the scheduler has seen.
    pub config_seen: u64,
}

/// A recording of one life of a scheduler's instance.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Recording {
    /// `e3-1`.
    pub id: String,
    /// The agent that has it.
    pub agent: String,
    /// Placement of the scheduler.
    pub epoch: u64,
    /// Which instance of that placement.
    pub life: u64,
    /// Its size.
    pub bytes: u64,
    /// First turn in it.
    pub first_turn: Option<u64>,
    /// Last turn in it.
    pub last_turn: Option<u64>,
    /// The instance lives on.
    pub live: bool,
    /// The limit of recordings was reached.
    pub stopped: bool,
}

/// The limits of a role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// All of the table.
    pub limits: Vec<Limit>,
}

/// A limit in force.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Kebab case.
    pub name: String,
    /// `bytes`, `ms` or `count`.
    pub unit: String,
    /// In force.
    pub value: u64,
    /// In force where nothing is set.
    pub default: u64,
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
    /// `default`, `cluster` or a role.
    pub from: String,
    /// For people.
    pub what: String,
}

/// A framework.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Framework {
    /// `f1`.
    pub id: String,
    /// Unique per tenant.
    pub name: String,
    /// Whose share it uses.
    pub role: String,
    /// Digest of its component.
    pub component: String,
    /// What it was created with.
    pub config: BTreeMap<String, String>,
    /// `running`, `starting`, `backing-off`, `quarantined`, `migrating`, `trial`, `removing` or `unplaced`.
    pub state: String,
    /// Why what is pending waits.
    #[serde(deserialize_with = "texts")]
    pub why: Vec<String>,
    /// Where its scheduler is.
    pub agent: Option<String>,
    /// Where it would go.
    pub standby: Option<Standby>,
    /// Placements so far.
    pub epoch: u64,
    /// Committed turns.
    pub turns: u64,
    /// Whether it wants no offers.
    pub suppressed: bool,
    /// Bytes of its state.
    pub state_bytes: u64,
    /// Keys of its state.
    pub state_keys: u64,
    /// Timers that are set.
    pub timers: u64,
    /// Tasks by state.
    pub tasks: BTreeMap<String, u64>,
    /// The last failure of its scheduler.
    pub last_error: Option<String>,
    /// Failures that count towards quarantine.
    pub failures: Failures,
    /// Why it is kept from running.
    pub quarantine: Option<Quarantine>,
    /// What it has run, oldest first.
    pub versions: Vec<Version>,
    /// An upgrade that is not final, if there is one.
    pub upgrade: Option<Value>,
    /// Version of its state.
    pub state_version: u32,
    /// Counts replacements of its configuration.
    pub config_version: u64,
    /// The newest one that its scheduler has seen.
    pub config_seen: u64,
    /// Charged by its revocable tasks.
    pub revocable: Resources,
    /// What it waits to launch.
    pub requests: Vec<ResourceRequest>,
    /// Since the Unix epoch.
    pub created_ms: u64,
}

/// So many tasks of one size that a framework waits to launch.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResourceRequest {
    /// Its framework's name of it.
    pub id: String,
    /// What each of them needs.
    pub resources: Resources,
    /// How many.
    pub count: u32,
    /// What an agent has to fulfil, in words.
    pub constraints: Vec<String>,
    /// Revocable resources will do, and nothing else.
    pub revocable: bool,
}

/// A task.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Task {
    /// Id of its framework.
    pub framework: String,
    /// Name of its framework.
    pub framework_name: String,
    /// Id within its framework.
    pub task: String,
    /// Where it runs.
    pub agent: Option<String>,
    /// `TASK_RUNNING` and so on.
    pub state: String,
    /// Upper-case reason.
    pub reason: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// When it exited by itself.
    pub exit_code: Option<i32>,
    /// When a signal ended it.
    pub signal: Option<i32>,
    /// Counts local restarts.
    pub attempt: u64,
    /// It may be preempted.
    pub revocable: bool,
    /// What it went through, oldest first.
    pub history: Vec<PastStatus>,
    /// What it was given.
    pub resources: Resources,
    /// For people.
    pub name: String,
    /// Its task group, by number.
    pub group: Option<u64>,
    /// The executor that runs it.
    pub executor: Option<String>,
    /// Since the Unix epoch.
    pub launched_ms: u64,
    /// Since the Unix epoch.
    pub updated_ms: u64,
    /// Why it waits.
    #[serde(deserialize_with = "texts")]
    pub why: Vec<String>,
}

impl Task {
    /// Whether nothing can follow.
    pub fn is_terminal(&self) -> bool {
        is_terminal(&self.state)
    }

    /// How it ended, in a few words.
    pub fn outcome(&self) -> String {
        match (self.exit_code, self.signal) {
            (_, Some(signal)) => format!("signal {signal}"),
            (Some(code), None) => format!("exit {code}"),
            (None, None) => String::new(),
        }
    }
}

/// Nothing, one text, or several.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Texts {
        Several(Vec<String>),
        One(Option<String>),
    }
    Ok(match Texts::deserialize(deserializer)? {
        Texts::Several(texts) => texts,
        Texts::One(text) => text.into_iter().collect(),
    })
}

/// Whether a state, by its Mesos name, is terminal. Names that are not known are not.
pub fn is_terminal(state: &str) -> bool {
    tessera_types::TaskState::ALL
        .iter()
        .any(|known| known.is_terminal() && known.name() == state)
}

/// The agent that has a scheduler's code compiled, in case that its own is lost.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Standby {
    /// `a1`.
    pub agent: String,
    /// `unknown`, `waiting`, `compiled` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
}

/// A component that an agent compiles ahead.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ahead {
    /// Its digest.
    pub component: String,
    /// `unknown`, `waiting`, `compiled` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
}

/// A task that the restored state of a cluster does not know.
#[derive(Clone, Debug, Deserialize)]
pub struct Stranger {
    /// `f3`.
    pub framework: String,
    /// Its id.
    pub task: String,
    /// What it takes.
    pub resources: Resources,
}

/// An agent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// `a1`.
    pub id: String,
    /// What it calls itself.
    pub hostname: String,
    /// `connected`, `disconnected` or `unreachable`.
    pub state: String,
    /// All it has.
    pub total: Resources,
    /// Kept for schedulers.
    pub reserved: Resources,
    /// Charged for tasks, without what is revocable.
    pub used: Resources,
    /// Charged for revocable tasks.
    pub revocable: Resources,
    /// In offers.
    pub offered: Resources,
    /// The rest.
    pub free: Resources,
    /// Named values.
    pub attributes: BTreeMap<String, String>,
    /// Tasks that have not ended.
    pub tasks: u64,
    /// Tasks on it that the cluster does not know, because it was restored.
    pub strangers: Vec<Stranger>,
    /// Schedulers that it hosts.
    pub schedulers: u64,
    /// Schedulers of other agents that it stands by for.
    pub standby_for: u64,
    /// What it compiles ahead for them.
    pub ahead: Vec<Ahead>,
    /// Components that its process has compiled.
    pub compilations: Option<u64>,
    /// Its version.
    pub version: String,
    /// Key of its compiled images.
    pub engine: String,
    /// Protections that it cannot give.
    pub missing: Vec<Missing>,
    /// Since the Unix epoch.
    pub registered_ms: u64,
    /// `active`, `deactivated`, `draining` or `drained`.
    pub mode: String,
    /// What is on it has to go.
    pub drain: Option<Drain>,
    /// It will be worked on.
    pub maintenance: Option<Maintenance>,
    /// It is silent, and so many others are that it is not given up.
    pub expiry_held: bool,
}

/// What is on an agent has to go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Drain {
    /// What is left then is killed.
    pub deadline_ms: u64,
    /// That has happened.
    pub over: bool,
}

/// When an agent will be worked on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Maintenance {
    /// From.
    pub start_ms: u64,
    /// To.
    pub end_ms: u64,
}

/// A protection that an agent cannot give.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Missing {
    /// Which.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A custom executor on one agent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Executor {
    /// Its id.
    pub executor: String,
    /// Where.
    pub agent: String,
    /// A task of it has not ended.
    pub live: bool,
    /// How many of those there are.
    pub tasks: u64,
    /// What it started, as far as its agent still has it.
    pub children: Vec<Child>,
    /// There are more.
    pub children_more: bool,
    /// Why they are not known.
    pub children_unknown: Option<String>,
}

/// A child of an executor.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Child {
    /// Its id.
    pub child: String,
    /// None when only its sandbox is left.
    pub state: Option<String>,
}

/// An amount: a number, or a text that says one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// As a number.
    Number(serde_json::Number),
    /// As a text.
    Text(String),
}

impl Amount {
    /// Whether there is nothing.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Number(number) => number.as_f64() == Some(0.0),
            Self::Text(text) => text == "0",
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Default for Amount {
    fn default() -> Self {
        Self::Number(serde_json::Number::from(0))
    }
}

/// A role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Role {
    /// Its name.
    pub role: String,
    /// Among its siblings.
    pub weight: Amount,
    /// Whose guarantee is met first.
    pub priority: u64,
    /// What it gets before others get more.
    pub guarantee: BTreeMap<String, Amount>,
    /// What it never passes.
    pub limit: BTreeMap<String, Amount>,
    /// Smaller offers are not made.
    #[serde(deserialize_with = "or_default")]
    pub min_offer: BTreeMap<String, Amount>,
    /// Agents are kept free for requests that fit nowhere else.
    pub hold_back: bool,
    /// Counts changes.
    pub version: u64,
    /// Charged, with all roles below.
    pub used: BTreeMap<String, Amount>,
    /// In offers.
    pub offered: BTreeMap<String, Amount>,
    /// Charged for revocable work.
    pub revocable: BTreeMap<String, Amount>,
    /// Dominant share, in parts of a million.
    pub share_ppm: u64,
    /// Of what that is the share.
    pub dominant: Option<String>,
    /// What would be fair, in parts of a million.
    pub fair_share_ppm: u64,
    /// Its own frameworks.
    pub frameworks: Value,
    /// Roles below.
    pub children: Value,
}

/// What is null is nothing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An offer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// Its id.
    #[serde(deserialize_with = "id_text")]
    pub id: String,
    /// Id of a framework.
    pub framework: String,
    /// Name of that framework.
    pub framework_name: String,
    /// Role of that framework.
    pub role: String,
    /// Whose resources.
    pub agent: String,
    /// What.
    pub available: Resources,
    /// What is launched on it may be preempted.
    pub revocable: bool,
    /// For how long.
    pub age_ms: u64,
}

/// An id that may be a number.
fn id_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        other => other.to_string(),
    })
}

/// Something that is under way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Operation {
    /// Its id.
    #[serde(deserialize_with = "id_text")]
    pub id: String,
    /// `kill`, `drain`, `upgrade` and so on.
    pub kind: String,
    /// Of a framework.
    pub framework: Option<String>,
    /// Its name.
    pub framework_name: Option<String>,
    /// Of a task.
    pub task: Option<String>,
    /// On an agent.
    pub agent: Option<String>,
    /// Since the Unix epoch.
    pub since_ms: Option<u64>,
    /// For people.
    #[serde(deserialize_with = "texts")]
    pub waits_for: Vec<String>,
}

/// Why something gets nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// In one sentence.
    pub summary: String,
    /// The decisions that it comes from.
    pub reasons: Vec<Reason>,
}

/// One decision of the allocator.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reason {
    /// Upper-case.
    pub code: String,
    /// For people.
    pub text: String,
    /// The way out.
    #[serde(deserialize_with = "or_default")]
    pub hint: String,
    /// How many agents it is true of.
    pub agents: u64,
}

/// Who did what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuditEntry {
    /// Since the Unix epoch.
    pub at_ms: u64,
    /// Who.
    pub principal: String,
    /// From where.
    pub remote: String,
    /// Of the request.
    pub method: String,
    /// What was asked for.
    pub operation: String,
    /// What was to be changed.
    pub object: String,
    /// `done`, `refused`, `failed` or `unknown`.
    pub outcome: String,
    /// Of a refusal.
    pub code: Option<String>,
    /// Of HTTP.
    pub status: u64,
    /// Nothing was to be changed.
    pub dry_run: bool,
    /// Names the request.
    pub request_id: String,
}

/// One status of a task.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PastStatus {
    /// `TASK_RUNNING` and so on.
    pub state: String,
    /// Upper-case.
    pub reason: Option<String>,
    /// Since the Unix epoch.
    pub at_ms: u64,
    /// Counts local restarts.
    pub attempt: u64,
}

/// An event of `/v1/events`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// What happened to what: `task.TASK_RUNNING`, `framework.placed`.
    pub kind: String,
    /// Id of a framework.
    pub framework: Option<String>,
    /// Id of a task.
    pub task: Option<String>,
    /// Id of an agent.
    pub agent: Option<String>,
    /// Since the Unix epoch.
    pub at_ms: u64,
    /// For people.
    pub text: Option<String>,
}

/// Read a document.
///
/// # Errors
/// When it has another shape.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, CliError> {
    T::deserialize(value)
        .map_err(|error| CliError::failed(format!("the master's answer cannot be read: {error}")))
}

/// A key of a framework's state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StateKey {
    /// Its name.
    pub key: String,
    /// Bytes of its value.
    pub bytes: u64,
    /// Names its value.
    pub etag: String,
}

/// Read the items of a list.
///
/// # Errors
/// When it is no list, or an item has another shape.
pub fn read_items<T: DeserializeOwned>(list: &Value) -> Result<Vec<T>, CliError> {
    match list.get("items") {
        Some(items) => read(items),
        None => Err(CliError::failed("the master's answer is no list")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Task, is_terminal, read, read_items};
    use serde_json::json;

    #[test]
    fn documents_may_grow_and_lack() {
        let task: Task =
            read(&json!({"task": "t", "state": "TASK_FAILED", "exit_code": 3, "later": []}))
                .unwrap();
        assert!(task.is_terminal());
        assert_eq!(task.outcome(), "exit 3");
        assert!(read::<Task>(&json!({"task": 1})).is_err());
        for (why, count) in [(json!(null), 0), (json!("a"), 1), (json!(["a", "b"]), 2)] {
            assert_eq!(read::<Task>(&json!({"why": why})).unwrap().why.len(), count);
        }
        assert!(read_items::<Task>(&json!({})).is_err());
    }

    #[test]
    fn states_are_known_by_name() {
        assert!(
            is_terminal("TASK_LOST")
                && !is_terminal("TASK_RUNNING")
                && !is_terminal("TASK_UNREACHABLE")
        );
        assert!(!is_terminal("PENDING"));
    }
}
