//! One scheduler that is played with: its process, the time, and as much of a cluster as tells an author
//! what would have become of a launch.
//!
//! Invariants: each line that is asked is answered by one; what a turn asked for is looked at only after
//! it is whole. Must never run a guest in this process.

use crate::commands::framework_test::script::{Numbers, Script, Step, writes};
use crate::commands::framework_test::show;
use crate::error::{CliError, Kind, io_error};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use tessera_types::{
    AgentId, Epoch, Event, FrameworkId, LogLine, OfferId, Operation, Resources, Subscription, TaskBody, TaskId, TaskSpec,
    TimeMs, Turn,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Time of the first turn: 2026-01-01. The same in every run, so that outputs are.
const START_MS: TimeMs = 1_767_225_600_000;
/// Time between turns.
const STEP_MS: u64 = 10;
/// Turns that one step may cause by timers and `call again`: more is a scheduler that never rests.
const TURNS_PER_STEP: usize = 1_000;
/// Bytes of what the worker says when it fails.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// What the worker answers, as `tessera-worker play` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Unusable(String),
    Built {
        log: Vec<LogLine>,
    },
    Turn {
        turn: Box<Turn>,
        specs: BTreeMap<String, TaskSpec>,
        log: Vec<LogLine>,
        log_dropped: u64,
        refused: BTreeMap<String, u64>,
    },
    Failed {
        code: String,
        message: String,
        log: Vec<LogLine>,
    },
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What happened, in words.
    pub events: Vec<String>,
    /// What the scheduler did, a line each.
    pub lines: Vec<String>,
    /// Why a turn of it failed.
    pub failure: Option<String>,
}

/// An offer that was not answered yet.
#[derive(Debug)]
struct Standing {
    agent: AgentId,
    left: Resources,
    revocable: bool,
}

/// The scheduler, and what surrounds it.
pub struct Play {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    config: BTreeMap<String, String>,
    limits: BTreeMap<String, u64>,
    subscription: Subscription,
    now: TimeMs,
    numbers: Numbers,
    timers: BTreeMap<String, TimeMs>,
    offers: BTreeMap<OfferId, Standing>,
    /// Every task that was launched, and where.
    tasks: BTreeMap<TaskId, AgentId>,
    /// Executors that are there, by agent and name.
    executors: BTreeSet<(AgentId, String)>,
}

impl Play {
    /// Start the scheduler's process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(worker: &Path, component: &Path, script: &Script) -> Result<Self, CliError> {
        let mut child = Command::new(worker)
            .arg("play")
            .arg("--component")
            .arg(component)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io_error("run", worker, &error))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(CliError::failed(format!("{} has no pipes", worker.display())));
        };
        let name = script.framework.name.clone().unwrap_or_else(|| "test".to_owned());
        Ok(Self {
            child,
            input,
            answers: BufReader::new(output).lines(),
            config: script.framework.config.clone(),
            limits: script.framework.limits.clone(),
            subscription: Subscription {
                framework: FrameworkId(1),
                role: script.framework.role.clone().unwrap_or_else(|| "default".to_owned()),
                name,
                epoch: Epoch(1),
            },
            now: START_MS,
            numbers: Numbers::default(),
            timers: BTreeMap::new(),
            offers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            executors: BTreeSet::new(),
        })
    }

    /// Build the first instance and give it its first turn.
    ///
    /// # Errors
    /// When the component cannot be used, or the process fails.
    pub async fn begin(&mut self, script: &Script) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        let state = Some(writes(&script.framework.state));
        if self.build(json!(state), &mut outcome).await? {
            let first = vec![Event::Subscribed(self.subscription.clone())];
            self.turns(first, &mut outcome).await?;
        }
        Ok(outcome)
    }

    /// Do one step.
    ///
    /// # Errors
    /// When a value of it cannot be, or the process fails.
    pub async fn step(&mut self, step: &Step) -> Result<Outcome, CliError> {
        let mut outcome = Outcome::default();
        self.pass(step.wait_ms(), &mut outcome).await?;
        if step.restart && self.build(Value::Null, &mut outcome).await? {
            self.resume(&mut outcome).await?;
        }
        if let Some(config) = &step.config {
            self.config.clone_from(config);
        }
        let mut numbers = std::mem::take(&mut self.numbers);
        let agent_of = |task: &str| self.tasks.get(&task.parse().ok()?).copied();
        for update in step.updates.iter().filter(|update| agent_of(&update.task).is_none()) {
            outcome.lines.push(format!("note: {} was not launched in this script", update.task));
        }
        let events = step.events(&mut numbers, agent_of, self.now);
        self.numbers = numbers;
        let events = events.map_err(|text| CliError::new(Kind::Usage, text))?;
        if !events.is_empty() {
            self.turns(events, &mut outcome).await?;
        }
        Ok(outcome)
    }

    /// What was offered and neither accepted nor declined nor taken back.
    pub fn unanswered(&self) -> Vec<u64> {
        self.offers.keys().map(|id| id.0).collect()
    }

    /// Time passes, and timers that are due fire in their order.
    async fn pass(&mut self, wait_ms: u64, outcome: &mut Outcome) -> Result<(), CliError> {
        let until = self.now.saturating_add(wait_ms);
        for _ in 0..TURNS_PER_STEP {
            let next = self.timers.iter().filter(|(_, due)| **due <= until).min_by_key(|(_, due)| **due);
            let Some((id, due)) = next.map(|(id, due)| (id.clone(), *due)) else {
                self.now = self.now.max(until);
                return Ok(());
            };
            self.timers.remove(&id);
            self.now = self.now.max(due);
            self.turns(vec![Event::Timer { id, due_ms: due }], outcome).await?;
        }
        Err(never_rests("sets timers that are due at once"))
    }

    async fn resume(&mut self, outcome: &mut Outcome) -> Result<(), CliError> {
        self.offers.clear();
        self.numbers.told.clear();
        let resumed = vec![Event::Resumed(self.subscription.clone())];
        self.turns(resumed, outcome).await
    }

    /// A batch, and as many more turns as the scheduler asks for. When one fails, the instance is rebuilt and
    /// told so, as in a cluster; once.
    async fn turns(&mut self, batch: Vec<Event>, outcome: &mut Outcome) -> Result<(), CliError> {
        let mut batch = Some(batch);
        let mut failed = false;
        for _ in 0..TURNS_PER_STEP {
            let Some(events) = batch.take() else { return Ok(()) };
            outcome.events.extend(events.iter().map(show::event));
            for event in &events {
                self.look_at(event);
            }
            self.now += STEP_MS;
            let ask = json!({"turn": {"time_ms": self.now, "events": events}});
            match self.ask(&ask).await? {
                Answer::Turn { turn, specs, log, log_dropped, refused } => {
                    outcome.lines.extend(show::logs(&log));
                    if log_dropped > 0 {
                        outcome.lines.push(format!("note: {log_dropped} lines more were logged than are kept"));
                    }
                    for (limit, count) in refused {
                        outcome.lines.push(format!("limit {limit} was reached {count} times"));
                    }
                    if self.take(&turn, &specs, outcome) {
                        batch = Some(vec![Event::Again]);
                    }
                }
                Answer::Failed { code, message, log } => {
                    outcome.lines.extend(show::logs(&log));
                    outcome.lines.push(format!("fails {code}: {message}"));
                    outcome.failure.get_or_insert(message);
                    if failed || !self.build(Value::Null, outcome).await? {
                        return Ok(());
                    }
                    failed = true;
                    self.offers.clear();
                    self.numbers.told.clear();
                    batch = Some(vec![Event::Resumed(self.subscription.clone())]);
                }
                Answer::Unusable(text) => return Err(unusable(&text)),
                Answer::Built { .. } => return Err(CliError::failed("the worker answers what was not asked")),
            }
        }
        Err(never_rests("always asks to be called again"))
    }

    /// Whether there is an instance then.
    async fn build(&mut self, state: Value, outcome: &mut Outcome) -> Result<bool, CliError> {
        let config: Vec<_> = self.config.iter().collect();
        let limits: Vec<_> = self.limits.iter().collect();
        match self.ask(&json!({"build": {"config": config, "state": state, "limits": limits}})).await? {
            Answer::Built { log } => {
                outcome.lines.extend(show::logs(&log));
                Ok(true)
            }
            Answer::Failed { code, message, log } => {
                outcome.lines.extend(show::logs(&log));
                outcome.lines.push(format!("fails {code}: {message}"));
                outcome.failure.get_or_insert(message);
                Ok(false)
            }
            Answer::Unusable(text) => Err(unusable(&text)),
            Answer::Turn { .. } => Err(CliError::failed("the worker answers what was not asked")),
        }
    }

    async fn ask(&mut self, ask: &Value) -> Result<Answer, CliError> {
        // When it is gone it cannot be written to; what it said tells why.
        let _ = self.input.write_all(format!("{ask}\n").as_bytes()).await;
        let line = self.answers.next_line().await;
        if let Ok(Some(line)) = line {
            return serde_json::from_str(&line)
                .map_err(|error| CliError::failed(format!("the worker's answer cannot be read: {error}")));
        }
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            // What it can say of itself is all that there is.
            let _ = stderr.take(SAID_BYTES_MAX).read_to_string(&mut said).await;
        }
        let last = said.lines().last().unwrap_or("it said nothing");
        let last = last.strip_prefix("tessera-worker: ").unwrap_or(last);
        // What it could not read, or take, is the script's.
        let script = last.strip_prefix("stdin: ").or_else(|| last.starts_with("limits: ").then_some(last));
        match script {
            Some(rule) => Err(CliError::new(Kind::Usage, format!("the script: {rule}"))),
            None => Err(CliError::failed(format!("the worker ended: {last}"))),
        }
    }

    /// Remember what an event means for those after it.
    fn look_at(&mut self, event: &Event) {
        match event {
            Event::Offers(offers) => {
                for offer in offers {
                    let left = offer.available.clone();
                    let standing = Standing { agent: offer.agent, left, revocable: offer.revocable };
                    self.offers.insert(offer.id, standing);
                }
            }
            Event::Rescinded(offers) => {
                for id in offers {
                    self.offers.remove(id);
                }
            }
            Event::Timer { id, .. } => drop(self.timers.remove(id)),
            _ => {}
        }
    }

    /// Show what a turn asks for, and remember it. Whether it asks to be called again.
    fn take(&mut self, turn: &Turn, specs: &BTreeMap<String, TaskSpec>, outcome: &mut Outcome) -> bool {
        let mut again = false;
        for operation in &turn.operations {
            match operation {
                Operation::Accept { offers, launches, .. } => {
                    let mut pool = self.pool(offers);
                    for member in launches {
                        let launch = &member.launch;
                        let spec = specs.get(&launch.spec.to_string());
                        let dropped = match (&mut pool, spec) {
                            (Ok(pool), Some(spec)) => self.dropped(pool, &launch.task, spec),
                            (Err(why), _) => Some(why.clone()),
                            (_, None) => None,
                        };
                        let agent = pool.as_ref().map_or_else(|_| "no agent".to_owned(), |pool| pool.agent.to_string());
                        let shown = show::launch(launch, specs);
                        let dropped = dropped.map(|why| format!("; would be TASK_DROPPED: {why}")).unwrap_or_default();
                        outcome.lines.push(format!("launch {} on {agent}: {shown}{dropped}", launch.task));
                    }
                }
                Operation::Decline { offers, .. } => self.offers.retain(|id, _| !offers.contains(id)),
                Operation::SetTimer { id, due_ms } => drop(self.timers.insert(id.clone(), *due_ms)),
                Operation::CancelTimer { id } => drop(self.timers.remove(id)),
                Operation::Suppress => self.offers.clear(),
                Operation::CallAgain => again = true,
                _ => {}
            }
            outcome.lines.push(show::operation(operation, self.now));
        }
        outcome.lines.extend(turn.writes.iter().map(show::write));
        again
    }

    /// What is left of accepted offers, as one; why they cannot be used together.
    fn pool(&mut self, offers: &[OfferId]) -> Result<Standing, String> {
        let mut pool: Option<Standing> = None;
        let mut missing = None;
        for id in offers {
            match (self.offers.remove(id), &mut pool) {
                (None, _) => missing = Some(format!("offer {} was answered or taken back before", id.0)),
                (Some(standing), None) => pool = Some(standing),
                (Some(standing), Some(pool)) if standing.agent != pool.agent => {
                    missing = Some("the offers are of several agents".to_owned());
                }
                (Some(standing), Some(pool)) => pool.left = pool.left.plus(&standing.left),
            }
        }
        match (missing, pool) {
            (Some(why), _) => Err(why),
            (None, Some(pool)) => Ok(pool),
            (None, None) => Err("no offer is accepted".to_owned()),
        }
    }

    /// Charge a launch; why a cluster would drop it.
    fn dropped(&mut self, pool: &mut Standing, task: &TaskId, spec: &TaskSpec) -> Option<String> {
        if self.tasks.insert(task.clone(), pool.agent).is_some() {
            return Some(format!("the id {task} was used before; task ids are used once"));
        }
        if spec.revocable != pool.revocable {
            return Some("a revocable task needs a revocable offer, and another one needs another".to_owned());
        }
        let mut wanted = spec.resources.clone();
        if let TaskBody::Executor(executor) = &spec.body
            && self.executors.insert((pool.agent, executor.executor.to_string()))
        {
            wanted = wanted.plus(&executor.resources);
        }
        if !pool.left.contains(&wanted) {
            let (wanted, left) = (show::amounts(&wanted), show::amounts(&pool.left));
            return Some(format!("it asks for {wanted}, and the offer has {left} left"));
        }
        pool.left = pool.left.minus(&wanted);
        None
    }
}

fn never_rests(what: &str) -> CliError {
    CliError::failed(format!("the scheduler {what}: {TURNS_PER_STEP} turns in one step"))
        .hint("a cluster would slow it down (limit minute-cpu-ms)")
}

fn unusable(text: &str) -> CliError {
    CliError::new(Kind::Refused, format!("this cannot be a scheduler: {text}"))
}
