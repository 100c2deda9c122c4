//! A scheduler as a guest would write one, in plain Rust: deterministic, rebuilt from its state alone.
//!
//! Owns: what a framework of the simulation wants. It launches a number of tasks of several kinds, some
//! to be killed later, and replaces those that the cluster lost. Invariants: everything that it must
//! remember is in its state and is written in the turn in which it learns it; every turn that changes
//! anything adds one to `count`. Must never see anything but its state, its configuration and events.

use std::collections::BTreeMap;
use tessera_types::{
    Consumed, Digest, Event, Filters, HttpAnswer, KeyWrite, Launch, NativeCommand, Offer, Operation,
    Quantities, Reason, TaskBody, TaskId, TaskSpec, TaskState, TaskStatus, Turn, TurnHeader,
};
use tessera_wire::encode_spec;

/// Key of the number of turns that changed anything.
pub const COUNT_KEY: &str = "count";
/// Key of the epoch whose instance wrote last.
pub const EPOCH_KEY: &str = "epoch";
/// Prefix of the keys of tasks.
pub const TASK_PREFIX: &str = "task/";
/// Time between two firings of the model's timer.
const TIMER_MS: u64 = 700;
/// Tasks that may be launched at once in the beginning.
const FIRST_TASKS: u64 = 2;
/// Launches in one turn: keeps a run from being over before the first fault.
const LAUNCHES_PER_TURN: usize = 3;
/// Time for which unused resources are refused.
const REFUSE_MS: u64 = 300;

/// What a task is meant to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command that succeeds after so many ms.
    Native(u64),
    /// A component that succeeds after so many ms.
    Wasm(u64),
    /// A command that exits with 3 after so many ms.
    Failing(u64),
    /// A command that runs until it is killed.
    Endless,
    /// A component that runs until it is killed.
    EndlessWasm,
}

impl Kind {
    /// The kind of the task with this number.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        let run_ms = 200 + number * 137 % 2_600;
        match number % 7 {
            0 | 3 => Self::Native(run_ms),
            1 | 5 => Self::Wasm(run_ms),
            2 => Self::Failing(run_ms),
            4 => Self::Endless,
            _ => Self::EndlessWasm,
        }
    }

    /// How it ends when nothing goes wrong.
    #[must_use]
    pub const fn expected(self) -> TaskState {
        match self {
            Self::Native(_) | Self::Wasm(_) => TaskState::Finished,
            Self::Failing(_) => TaskState::Failed,
            Self::Endless | Self::EndlessWasm => TaskState::Killed,
        }
    }

    const fn is_wasm(self) -> bool {
        matches!(self, Self::Wasm(_) | Self::EndlessWasm)
    }

    /// Run time and exit code, as the words of the command.
    fn words(self) -> [String; 2] {
        let (run_ms, code) = match self {
            Self::Native(ms) | Self::Wasm(ms) => (ms, 0),
            Self::Failing(ms) => (ms, 3),
            Self::Endless | Self::EndlessWasm => (u64::from(u32::MAX), 0),
        };
        [run_ms.to_string(), code.to_string()]
    }
}

/// What the task with this number needs.
#[must_use]
pub fn needs(number: u64) -> Quantities {
    let cpus_milli = 200 + i64::try_from(number % 4).unwrap_or(0) * 100;
    Quantities { cpus_milli, mem_mib: 64, disk_mib: 0 }
}

/// What a command's words mean: run time in ms and exit code.
#[must_use]
pub fn run_of(words: &[String]) -> (u64, i32) {
    let mut numbers = words.iter().rev().filter_map(|word| word.parse::<u64>().ok());
    let code = numbers.next().unwrap_or(0);
    (numbers.next().unwrap_or(0), i32::try_from(code).unwrap_or(1))
}

/// What it remembers of one task, as text: last sequence and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    sequence: u64,
    state: TaskState,
    reason: Reason,
}

impl Record {
    fn text(self) -> String {
        format!("{} {} {}", self.sequence, self.state.name(), self.reason.code())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let sequence = words.next()?.parse().ok()?;
        let name = words.next()?;
        let state = TaskState::ALL.into_iter().find(|state| state.name() == name)?;
        Some(Self { sequence, state, reason: Reason::of_code(words.next().unwrap_or_default()) })
    }
}

/// Whether a task ended as it was meant to: otherwise it is replaced by one of another id.
#[must_use]
pub fn ended_well(number: u64, state: TaskState, reason: Reason) -> bool {
    let by_itself = !matches!(reason, Reason::WorkerLost | Reason::ShimLost | Reason::LaunchFailed | Reason::AgentRebooted);
    state == Kind::of(number).expected() && by_itself
}

/// The number of a task and how often it was replaced, from its id `t<number>.<replacement>`.
#[must_use]
pub fn number_of(task: &str) -> Option<(u64, u64)> {
    let (number, replacement) = task.strip_prefix('t')?.split_once('.')?;
    Some((number.parse().ok()?, replacement.parse().ok()?))
}

/// One instance's memory.
#[derive(Clone, Debug)]
pub struct Model {
    tasks: u64,
    command: Digest,
    state: BTreeMap<String, Vec<u8>>,
}

/// What a turn is made of while it is being made.
struct Draft {
    turn: Turn,
    changes: BTreeMap<String, Vec<u8>>,
}

impl Draft {
    fn operation(&mut self, operation: Operation) {
        self.turn.operations.push(operation);
    }
}

impl Model {
    /// An instance from its configuration and its committed state.
    #[must_use]
    pub fn build(config: &[(String, String)], state: &BTreeMap<String, Vec<u8>>) -> Self {
        let value = |key: &str| config.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        Self {
            tasks: value("tasks").and_then(|text| text.parse().ok()).unwrap_or(0),
            command: value("command").and_then(|text| text.parse().ok()).unwrap_or(Digest([0; 32])),
            state: state.clone(),
        }
    }

    /// Handle one batch.
    pub fn handle(&mut self, header: TurnHeader, events: &[Event]) -> Turn {
        let turn = Turn {
            header,
            consumed: Vec::new(),
            operations: Vec::new(),
            writes: Vec::new(),
            specs: Vec::new(),
            migration: None,
        };
        let mut draft = Draft { turn, changes: BTreeMap::new() };
        let mut offers: Vec<Offer> = Vec::new();
        let mut tick = false;
        for event in events {
            match event {
                Event::Subscribed(_) => self.wind(&mut draft),
                Event::Resumed(_) => offers.clear(),
                Event::Offers(new) => offers.extend(new.iter().cloned()),
                Event::Rescinded(gone) => offers.retain(|offer| !gone.contains(&offer.id)),
                Event::Update { sequence, status } => self.update(&mut draft, *sequence, status),
                Event::Timer { id, due_ms } => {
                    draft.turn.consumed.push(Consumed::Timer { id: id.clone(), due_ms: *due_ms });
                    tick = true;
                }
                Event::Http(request) => {
                    let body = self.number(COUNT_KEY).to_string().into_bytes();
                    let answer = HttpAnswer { status: 200, headers: Vec::new(), body };
                    draft.operation(Operation::Respond { request: request.id, answer });
                }
                Event::Agent(_)
                | Event::Again
                | Event::ConfigChanged { .. }
                | Event::Message(_)
                | Event::ExecutorFailed { .. } => {}
            }
        }
        if tick {
            self.on_timer(&mut draft);
        }
        self.place(&mut draft, offers);
        self.finish(draft)
    }

    fn number(&self, key: &str) -> u64 {
        let text = self.state.get(key).and_then(|value| std::str::from_utf8(value).ok());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn record(&self, task: &str) -> Option<Record> {
        self.state.get(&format!("{TASK_PREFIX}{task}")).and_then(|value| Record::parse(value))
    }

    fn note(&mut self, draft: &mut Draft, task: &str, record: Record) {
        let key = format!("{TASK_PREFIX}{task}");
        let value = record.text().into_bytes();
        self.state.insert(key.clone(), value.clone());
        draft.changes.insert(key, value);
    }

    fn wind(&mut self, draft: &mut Draft) {
        let due_ms = draft.turn.header.time_ms + TIMER_MS;
        draft.operation(Operation::SetTimer { id: "tick".to_owned(), due_ms });
    }

    fn update(&mut self, draft: &mut Draft, sequence: u64, status: &TaskStatus) {
        let task = status.task.to_string();
        if sequence > 0 {
            draft.turn.consumed.push(Consumed::Update { task: status.task.clone(), sequence });
        }
        let Some(known) = self.record(&task) else { return };
        let newer = sequence > known.sequence || (sequence == 0 && status.state.is_terminal());
        if newer && !known.state.is_terminal() {
            let record = Record { sequence, state: status.state, reason: status.reason };
            self.note(draft, &task, record);
        }
    }

    fn on_timer(&mut self, draft: &mut Draft) {
        self.wind(draft);
        let ticks = self.number("ticks") + 1;
        self.write(draft, "ticks", ticks);
        let mut wanted = false;
        for number in 0..self.released() {
            let Some((task, record)) = self.newest(number) else {
                wanted = true;
                continue;
            };
            wanted |= record.state.is_terminal() && !ended_well(number, record.state, record.reason);
            let endless = Kind::of(number).expected() == TaskState::Killed;
            if endless && record.state == TaskState::Running {
                draft.operation(Operation::Kill { task, grace_ms: Some(400) });
            }
        }
        if wanted && self.number("suppressed") == 1 {
            self.write(draft, "suppressed", 0);
            draft.operation(Operation::Revive);
        }
    }

    fn write(&mut self, draft: &mut Draft, key: &str, number: u64) {
        let value = number.to_string().into_bytes();
        self.state.insert(key.to_owned(), value.clone());
        draft.changes.insert(key.to_owned(), value);
    }

    /// Tasks that may be launched by now: they come one by one, so that faults strike at all stages.
    fn released(&self) -> u64 {
        (FIRST_TASKS + self.number("ticks")).min(self.tasks)
    }

    /// The newest task of a number, if one was launched.
    fn newest(&self, number: u64) -> Option<(TaskId, Record)> {
        let mut newest = None;
        for replacement in 0.. {
            let task = format!("t{number}.{replacement}");
            let Some(record) = self.record(&task) else { break };
            newest = task.parse().ok().map(|id| (id, record));
        }
        newest
    }

    /// The next task of a number that has to be launched, if any.
    fn due(&self, number: u64) -> Option<TaskId> {
        let replacement = match self.newest(number) {
            None => 0,
            Some((task, record)) => {
                if !record.state.is_terminal() || ended_well(number, record.state, record.reason) {
                    return None;
                }
                number_of(task.as_str())?.1 + 1
            }
        };
        format!("t{number}.{replacement}").parse().ok()
    }

    fn place(&mut self, draft: &mut Draft, offers: Vec<Offer>) {
        let mut due: Vec<(u64, TaskId)> =
            (0..self.released()).filter_map(|number| Some((number, self.due(number)?))).collect();
        due.reverse();
        let waiting = !due.is_empty();
        let mut room = LAUNCHES_PER_TURN;
        for offer in offers {
            let mut left = offer.available;
            let mut launches = Vec::new();
            while let Some((number, task)) = due.last().filter(|_| room > 0).cloned() {
                let spec = self.spec(number);
                if !left.contains(spec.resources) {
                    break;
                }
                due.pop();
                room -= 1;
                left = left.minus(spec.resources);
                let encoded = encode_spec(&spec);
                let digest = Digest::of(&encoded);
                if !draft.turn.specs.iter().any(|(known, _)| *known == digest) {
                    draft.turn.specs.push((digest, encoded));
                }
                let record =
                    Record { sequence: 0, state: TaskState::Staging, reason: Reason::None };
                self.note(draft, task.as_str(), record);
                let launch = Launch { task, spec: digest, args: Vec::new(), env: Vec::new() };
                launches.push(launch.into());
            }
            let filters = Filters { refuse_ms: REFUSE_MS };
            let offers = vec![offer.id];
            draft.operation(if launches.is_empty() {
                Operation::Decline { offers, filters }
            } else {
                Operation::Accept { offers, launches, filters, gang: 0 }
            });
        }
        if !waiting && self.number("suppressed") == 0 && self.number(COUNT_KEY) > 0 {
            self.write(draft, "suppressed", 1);
            draft.operation(Operation::Suppress);
        }
    }

    fn spec(&self, number: u64) -> TaskSpec {
        let kind = Kind::of(number);
        let words = kind.words();
        let body = if kind.is_wasm() {
            TaskBody::Wasm { component: self.command, args: words.to_vec() }
        } else {
            let [run_ms, code] = words;
            TaskBody::Native(NativeCommand::Argv(vec!["work".to_owned(), run_ms, code]))
        };
        TaskSpec {
            name: format!("kind-{}", number % 7),
            body,
            resources: needs(number),
            cpus_limit_milli: None,
            pids_limit: None,
            user: None,
            env: Vec::new(),
            files: Vec::new(),
            result_file: None,
            grace_ms: None,
            restarts: u32::from(number % 14 == 2),
            labels: Vec::new(),
        }
    }

    fn finish(&mut self, mut draft: Draft) -> Turn {
        let changes = !draft.changes.is_empty()
            || !draft.turn.consumed.is_empty()
            || draft.turn.operations.iter().any(Operation::changes_state);
        if changes {
            let count = self.number(COUNT_KEY) + 1;
            self.write(&mut draft, COUNT_KEY, count);
            let epoch = draft.turn.header.epoch.0;
            self.write(&mut draft, EPOCH_KEY, epoch);
        }
        draft.turn.writes = draft
            .changes
            .into_iter()
            .map(|(key, value)| KeyWrite { key, value: Some(value) })
            .collect();
        draft.turn
    }
}

/// Whether a framework of `tasks` tasks has all that it wants, by its committed state.
#[must_use]
pub fn is_done(tasks: u64, state: &BTreeMap<String, Vec<u8>>) -> bool {
    let model = Model { tasks, command: Digest([0; 32]), state: state.clone() };
    let ended = |number: u64| {
        model.newest(number).is_some_and(|(_, record)| {
            record.state.is_terminal() && ended_well(number, record.state, record.reason)
        })
    };
    (0..tasks).all(ended)
}
