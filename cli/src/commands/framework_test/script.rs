//! Scripts: what happens to a scheduler, step by step, and what is expected of it.
//!
//! Invariants: a field that is not known is an error that names it, so that a misspelt expectation does not
//! pass. Must never run anything.

use crate::commands::framework_test::show::matches;
use crate::error::{CliError, Kind, io_error};
use crate::names::closest;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tessera_types::{
    AgentId, AgentInfo, Event, ExecutorMessage, HttpRequest, KeyWrite, Offer, OfferId, Quantities, Reason, Resources,
    TaskState, TaskStatus, TimeMs, parse_duration,
};

/// Bytes of a script: more is no test that somebody reads.
const SCRIPT_BYTES_MAX: u64 = 4 << 20;

/// A whole script.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// What the scheduler is created with, and what is expected of its first turn.
    pub framework: Framework,
    /// What happens then.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
}

/// What the scheduler is created with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Framework {
    pub name: Option<String>,
    pub role: Option<String>,
    pub config: BTreeMap<String, String>,
    /// State that is there already: text, or anything else as JSON.
    pub state: BTreeMap<String, Value>,
    /// Limits of the role, as `tessera role limits` names them, in bytes, ms and pieces.
    pub limits: BTreeMap<String, u64>,
    #[serde(flatten)]
    pub expected: Expected,
}

/// One step. What it brings comes in one batch, after its time has passed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// For people.
    pub name: Option<String>,
    /// So much time passes first; timers that are due fire, each in a turn of its own.
    pub after: Option<String>,
    /// The instance is dropped and rebuilt from its state first.
    pub restart: bool,
    pub agents: Vec<AgentStep>,
    /// The whole new configuration.
    pub config: Option<BTreeMap<String, String>>,
    /// Keys that somebody writes from outside; null deletes.
    pub state: BTreeMap<String, Value>,
    pub offers: Vec<OfferStep>,
    /// Offers that are taken back.
    pub rescind: Vec<u64>,
    pub updates: Vec<UpdateStep>,
    pub messages: Vec<MessageStep>,
    /// Timers that fire now, whenever they are due.
    pub timers: Vec<String>,
    pub http: Option<HttpStep>,
    #[serde(flatten)]
    pub expected: Expected,
}

/// What is expected of a step.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Expected {
    /// Each has to be the beginning of a line of its own, `*` standing for anything.
    pub expect: Vec<String>,
    /// None of these may be the beginning of a line.
    pub never: Vec<String>,
    /// The step has to fail, with a message that has this in it.
    pub fails: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStep {
    pub id: u64,
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    #[serde(default = "yes")]
    pub reachable: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferStep {
    /// Counted from 1 when absent.
    #[serde(default)]
    pub id: Option<u64>,
    #[serde(default = "one")]
    pub agent: u64,
    #[serde(default)]
    pub cpus: f64,
    #[serde(default)]
    pub mem_mib: i64,
    #[serde(default)]
    pub disk_mib: i64,
    /// Other resources, in their units.
    #[serde(default)]
    pub resources: BTreeMap<String, f64>,
    #[serde(default)]
    pub revocable: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateStep {
    pub task: String,
    /// `TASK_FINISHED` or `FINISHED`.
    pub state: String,
    /// Where it was launched, when absent.
    #[serde(default)]
    pub agent: Option<u64>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub signal: Option<i32>,
    /// Content of the result file.
    #[serde(default)]
    pub data: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageStep {
    #[serde(default = "one")]
    pub agent: u64,
    pub executor: String,
    pub data: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpStep {
    #[serde(default = "get")]
    pub method: String,
    /// With a query, if there is one.
    #[serde(default = "slash")]
    pub path: String,
    /// Text, or anything else as JSON.
    #[serde(default)]
    pub body: Value,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

const fn yes() -> bool {
    true
}

const fn one() -> u64 {
    1
}

fn get() -> String {
    "GET".to_owned()
}

fn slash() -> String {
    "/".to_owned()
}

/// Read a script: TOML, or JSON Lines when its name ends with `.jsonl`, each line a step and the first one
/// `{"framework": {…}}` if there is anything to say of it.
///
/// # Errors
/// When it cannot be read, with the place.
pub fn read(path: &Path) -> Result<Script, CliError> {
    let about = |error: std::io::Error| io_error("read", path, &error);
    let size = std::fs::metadata(path).map_err(about)?.len();
    if size > SCRIPT_BYTES_MAX {
        return Err(CliError::new(Kind::Usage, format!("{} is too large for a script", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(about)?;
    let lines = path.extension().is_some_and(|extension| extension == "jsonl");
    let script = if lines { from_lines(&text) } else { from_toml(&text) };
    script.map_err(|error| CliError::new(Kind::Usage, format!("{}: {error}", path.display())))
}

/// Read TOML.
///
/// # Errors
/// What is wrong, and where.
pub fn from_toml(text: &str) -> Result<Script, String> {
    let script: Script = toml::from_str(text).map_err(|error| told(text, &error))?;
    checked(script)
}

/// Keys of `[framework]`.
const FRAMEWORK_KEYS: [&str; 8] = ["name", "role", "config", "state", "limits", "expect", "never", "fails"];
/// Keys of `[[step]]`.
const STEP_KEYS: [&str; 15] = [
    "name", "after", "restart", "agents", "config", "state", "offers", "rescind", "updates", "messages", "timers", "http", "expect",
    "never", "fails",
];
/// What stands in the place of types of this program.
const TABLES: [(&str, &str); 5] = [
    ("struct HttpStep", "a table such as { method = \"GET\", path = \"/\" }"),
    ("struct OfferStep", "a table such as { cpus = 1, mem_mib = 512 }"),
    ("struct UpdateStep", "a table such as { task = \"a\", state = \"FINISHED\" }"),
    ("struct MessageStep", "a table such as { executor = \"x\", data = \"text\" }"),
    ("struct AgentStep", "a table such as { id = 1 }"),
];

/// What is wrong, with the line and the way out: of flattened tables the parser knows neither.
fn told(text: &str, error: &toml::de::Error) -> String {
    let mut message = error.message().to_owned();
    for (name, words) in TABLES {
        message = message.replace(name, words);
    }
    let quoted: Vec<&str> = error.message().split('`').skip(1).step_by(2).collect();
    let unknown = quoted.first().filter(|_| message.starts_with("unknown field"));
    let is_key = |line: &str, key: &str| {
        line.match_indices(key).any(|(at, _)| {
            let before = line[..at].trim_end();
            let begins = before.is_empty() || before.ends_with(['{', ',']);
            begins && line[at + key.len()..].trim_start().starts_with('=')
        })
    };
    let of_key = unknown.and_then(|key| text.lines().position(|line| is_key(line, key)));
    let of_error = || Some(text.get(..error.span()?.start)?.matches('\n').count());
    let Some(line) = of_key.or_else(of_error) else { return message };
    let place = format!("line {}: {message}", line + 1);
    let Some(key) = unknown else { return place };
    let header = text.lines().take(line).filter(|line| line.starts_with('[')).last().unwrap_or_default();
    let known: &[&str] = match quoted.get(1..) {
        Some(known) if !known.is_empty() => known,
        _ if header.starts_with("[framework") => &FRAMEWORK_KEYS,
        _ if header.starts_with("[[step") => &STEP_KEYS,
        _ => &["framework", "step"],
    };
    match closest(key, known) {
        Some(near) => format!("{place}; did you mean {near}?"),
        None if quoted.len() > 1 => place,
        None => format!("{place}; known are {}", known.join(", ")),
    }
}

fn from_lines(text: &str) -> Result<Script, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct First {
        framework: Framework,
    }
    let mut script = Script::default();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let at = |error: serde_json::Error| format!("line {number}: {error}");
        let is_first = number == 1 && line.contains("\"framework\"");
        if is_first {
            script.framework = serde_json::from_str::<First>(line).map_err(at)?.framework;
        } else {
            script.steps.push(serde_json::from_str(line).map_err(at)?);
        }
    }
    checked(script)
}

/// `deny_unknown_fields` does not see what is flattened.
fn checked(script: Script) -> Result<Script, String> {
    for (number, step) in (1..).zip(&script.steps) {
        if let Some(after) = &step.after {
            parse_duration(after).map_err(|error| format!("step {number}: after: {error}"))?;
        }
        for update in &step.updates {
            state_of(&update.state).map_err(|error| format!("step {number}: updates: {error}"))?;
            let task: Result<tessera_types::TaskId, _> = update.task.parse();
            task.map_err(|error| format!("step {number}: updates: {error}"))?;
        }
    }
    Ok(script)
}

fn state_of(text: &str) -> Result<TaskState, String> {
    let bare = text.strip_prefix("TASK_").unwrap_or(text);
    TaskState::ALL
        .into_iter()
        .find(|state| state.name().strip_prefix("TASK_") == Some(bare))
        .ok_or_else(|| format!("{text:?} is no state of a task, such as TASK_FINISHED"))
}

/// Text as it is, anything else as JSON.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

/// Keys as they are written.
pub fn writes(state: &BTreeMap<String, Value>) -> Vec<KeyWrite> {
    let write = |(key, value): (&String, &Value)| KeyWrite {
        key: key.clone(),
        value: (!value.is_null()).then(|| bytes(value)),
    };
    state.iter().map(write).collect()
}

/// What a script's events count on: where tasks run, and numbers that are not given twice.
#[derive(Debug, Default)]
pub struct Numbers {
    pub offer: u64,
    pub request: u64,
    pub sequence: u64,
    pub config: u64,
    pub outside: u64,
    /// Agents that the instance was told of.
    pub told: BTreeSet<u64>,
}

/// Thousandths, rounded.
fn milli(amount: f64) -> i64 {
    // A float to integer cast saturates and maps NaN to 0.
    (amount * 1000.0).round() as i64
}

impl OfferStep {
    fn offer(&self, numbers: &mut Numbers) -> Offer {
        let quantities = Quantities { cpus_milli: milli(self.cpus), mem_mib: self.mem_mib, disk_mib: self.disk_mib };
        let mut available = Resources::of(quantities);
        for (name, amount) in &self.resources {
            available = available.with(name, milli(*amount));
        }
        numbers.offer = self.id.unwrap_or(numbers.offer + 1).max(numbers.offer);
        Offer {
            id: OfferId(self.id.unwrap_or(numbers.offer)),
            agent: AgentId(self.agent),
            available,
            revocable: self.revocable,
        }
    }
}

impl AgentStep {
    /// One that nothing is said of.
    fn unknown(id: u64) -> Self {
        Self { id, hostname: None, attributes: BTreeMap::new(), reachable: true }
    }

    fn info(&self) -> AgentInfo {
        AgentInfo {
            id: AgentId(self.id),
            hostname: self.hostname.clone().unwrap_or_else(|| format!("host-{}", self.id)),
            attributes: self.attributes.clone().into_iter().collect(),
            reachable: self.reachable,
        }
    }
}

impl UpdateStep {
    fn status(&self, agent: AgentId, now: TimeMs) -> Result<TaskStatus, String> {
        let task = self.task.parse().map_err(|error| format!("updates: {error}"))?;
        let mut status = TaskStatus::new(task, agent, state_of(&self.state)?, now)
            .because(Reason::of_code(&self.reason), &self.message);
        (status.exit_code, status.signal) = (self.exit_code, self.signal);
        status.data = self.data.clone().into_bytes();
        Ok(status)
    }
}

impl HttpStep {
    fn request(&self, id: u64) -> HttpRequest {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (self.path.as_str(), None),
        };
        let lower = |(name, value): (&String, &String)| (name.to_ascii_lowercase(), value.clone());
        HttpRequest {
            id,
            method: self.method.to_ascii_uppercase(),
            path: path.to_owned(),
            query,
            headers: self.headers.iter().map(lower).collect(),
            body: bytes(&self.body),
            principal: "admin".to_owned(),
            idempotency_key: None,
        }
    }
}

impl Step {
    /// How long to wait first.
    pub fn wait_ms(&self) -> u64 {
        self.after.as_deref().and_then(|after| parse_duration(after).ok()).unwrap_or(0)
    }

    /// The batch: what is durable first, as a cluster does. An agent is told before what names it.
    ///
    /// # Errors
    /// When a value cannot be what it is said to be.
    pub fn events(
        &self,
        numbers: &mut Numbers,
        agent_of: impl Fn(&str) -> Option<AgentId>,
        now: TimeMs,
    ) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for agent in &self.agents {
            numbers.told.insert(agent.id);
            events.push(Event::Agent(agent.info()));
        }
        let tell = |events: &mut Vec<Event>, told: &mut BTreeSet<u64>, id: u64| {
            if told.insert(id) {
                events.push(Event::Agent(AgentStep::unknown(id).info()));
            }
        };
        for update in &self.updates {
            let agent = update.agent.map(AgentId).or_else(|| agent_of(&update.task)).unwrap_or(AgentId(1));
            tell(&mut events, &mut numbers.told, agent.0);
            numbers.sequence += 1;
            events.push(Event::Update { sequence: numbers.sequence, status: update.status(agent, now)? });
        }
        for id in &self.timers {
            events.push(Event::Timer { id: id.clone(), due_ms: now });
        }
        if let Some(config) = &self.config {
            numbers.config += 1;
            let config = config.clone().into_iter().collect();
            events.push(Event::ConfigChanged { version: numbers.config, config });
        }
        if !self.state.is_empty() {
            let writes = writes(&self.state);
            numbers.outside += writes.len() as u64;
            events.push(Event::StateChanged { count: numbers.outside, writes });
        }
        for message in &self.messages {
            tell(&mut events, &mut numbers.told, message.agent);
            events.push(Event::Message(ExecutorMessage {
                agent: AgentId(message.agent),
                executor: message.executor.parse().map_err(|error| format!("messages: {error}"))?,
                data: message.data.clone().into_bytes(),
            }));
        }
        if !self.rescind.is_empty() {
            events.push(Event::Rescinded(self.rescind.iter().copied().map(OfferId).collect()));
        }
        for offer in &self.offers {
            tell(&mut events, &mut numbers.told, offer.agent);
        }
        if !self.offers.is_empty() {
            events.push(Event::Offers(self.offers.iter().map(|offer| offer.offer(numbers)).collect()));
        }
        if let Some(http) = &self.http {
            numbers.request += 1;
            events.push(Event::Http(http.request(numbers.request)));
        }
        Ok(events)
    }
}

impl Expected {
    /// What is not as expected, in words.
    pub fn differences(&self, lines: &[String], failure: Option<&str>) -> Vec<String> {
        let mut found = Vec::new();
        let mut left: Vec<&String> = lines.iter().collect();
        for pattern in &self.expect {
            match left.iter().position(|line| matches(pattern, line)) {
                Some(at) => drop(left.remove(at)),
                None => found.push(format!("expected, and not there: {pattern}")),
            }
        }
        for pattern in &self.never {
            let unwanted = lines.iter().filter(|line| matches(pattern, line));
            found.extend(unwanted.map(|line| format!("never expected ({pattern}): {line}")));
        }
        match (&self.fails, failure) {
            (None, Some(_)) => found.push("it failed, and was not expected to (`fails`)".to_owned()),
            (Some(wanted), None) => found.push(format!("expected to fail: {wanted}")),
            (Some(wanted), Some(failure)) if !failure.contains(wanted.as_str()) => {
                found.push(format!("expected to fail with {wanted:?}, not with: {failure}"));
            }
            _ => {}
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read_and_what_is_unknown_is_named() {
        let good = "[framework]\nconfig = { count = \"2\" }\nexpect = [\"revive\"]\n[[step]]\nafter = \"5s\"\n\
                    offers = [{ cpus = 0.5, mem_mib = 64, resources = { gpus = 1.5 } }]\nnever = [\"launch\"]\n\
                    [[step]]\nupdates = [{ task = \"a\", state = \"FAILED\", exit_code = 3 }]\n\
                    http = { method = \"post\", path = \"/a?b\", body = { n = 1 } }\n";
        let script = from_toml(good).unwrap();
        assert_eq!((script.steps.len(), script.steps[0].wait_ms()), (2, 5_000));
        assert_eq!(script.framework.expected.expect, ["revive"]);
        let mut numbers = Numbers::default();
        let events = script.steps[0].events(&mut numbers, |_| None, 7).unwrap();
        let [Event::Agent(agent), Event::Offers(offers)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((agent.id, offers[0].id, offers[0].available.quantities.cpus_milli), (AgentId(1), OfferId(1), 500));
        let events = script.steps[1].events(&mut numbers, |_| Some(AgentId(1)), 7).unwrap();
        let [Event::Update { status, .. }, Event::Http(request)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((status.state, status.exit_code), (TaskState::Failed, Some(3)));
        assert_eq!((request.method.as_str(), request.query.as_deref(), &request.body[..]), ("POST", Some("b"), &b"{\"n\":1}"[..]));
        for (bad, what) in [
            ("[[step]]\noffer = []\n", "offer"),
            ("[[step]]\nexpects = []\n", "expects"),
            ("[framework]\nnam = \"x\"\n", "nam"),
            ("[[step]]\nafter = \"soon\"\n", "after"),
            ("[[step]]\nupdates = [{ task = \"a\", state = \"DONE\" }]\n", "DONE"),
            ("[[step]]\nupdates = [{ task = \"a b\", state = \"FAILED\" }]\n", "a task id consists of"),
        ] {
            let error = from_toml(bad).unwrap_err();
            assert!(error.contains(what), "{bad}: {error}");
        }
        for (bad, said) in [
            ("[framework]\nrole = \"x\"\n[[step]]\nafter = \"1s\"\nofers = []\n", "line 5: unknown field `ofers`; did you mean offers?"),
            ("[framework]\nrolle = \"x\"\n", "line 2: unknown field `rolle`; did you mean role?"),
            ("[[step]]\nwhatever_else = 1\n", "line 2: unknown field `whatever_else`; known are name, after, restart"),
            ("[[step]]\nname = \"a\"\noffers = [{ cpus = 1, memory = 2 }]\n", "line 3: unknown field `memory`, expected one of"),
            ("[[step]]\nhttp = \"GET /\"\n", "line 2: invalid type: string \"GET /\", expected a table such as { method"),
        ] {
            let error = from_toml(bad).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
        // Each of them is one: it is refused for its value, or not at all.
        for (header, keys) in [("[framework]", &FRAMEWORK_KEYS[..]), ("[[step]]", &STEP_KEYS[..])] {
            for key in keys {
                let refused = from_toml(&format!("{header}\n{key} = 7\n")).err().unwrap_or_default();
                assert!(!refused.contains("unknown field"), "{header} {key}: {refused}");
            }
        }
        let lines = "{\"framework\":{\"role\":\"x\"}}\n\n{\"after\":\"1s\"}\n";
        assert_eq!(from_lines(lines).unwrap().framework.role.as_deref(), Some("x"));
        assert!(from_lines("{}\n{\"x\":1}\n").unwrap_err().starts_with("line 2"));
    }

    #[test]
    fn differences_are_told() {
        let lines = ["launch a on a1", "launch b on a1", "suppress"].map(str::to_owned);
        let expected = |expect: &[&str], never: &[&str], fails: Option<&str>| Expected {
            expect: expect.iter().map(|&line| line.to_owned()).collect(),
            never: never.iter().map(|&line| line.to_owned()).collect(),
            fails: fails.map(str::to_owned),
        };
        for (expect, never, fails, failure, count) in [
            (&["launch", "launch", "supp"][..], &["kill"][..], None, None, 0),
            (&["launch", "launch", "launch"], &[], None, None, 1),
            (&["kill"], &["launch"], None, None, 3),
            (&[], &[], None, Some("boom"), 1),
            (&[], &[], Some("oo"), Some("boom"), 0),
            (&[], &[], Some("oo"), None, 1),
            (&[], &[], Some("x"), Some("boom"), 1),
        ] {
            let found = expected(expect, never, fails).differences(&lines, failure);
            assert_eq!(found.len(), count, "{found:?}");
        }
    }
}
