//! A scheduler as a guest would write one, in plain Rust: deterministic, rebuilt from its state alone.
//!
//! Owns: what a framework of the simulation wants. It launches a number of jobs, which are single tasks,
//! tasks of executors, task groups and gangs, some to be killed later, and replaces those that the cluster
//! lost; a later version carries its records over by migration. Invariants:
//! everything that it must remember is in its state and is written in the turn in which it learns it;
//! every turn that changes anything adds one to `count`. Must never see anything but its state, its
//! configuration and events.

mod asking;
mod jobs;

pub use asking::ASKS_KEY;
pub use jobs::{
    EXECUTOR as EXECUTOR_NEEDS, GPUS, Hosted, Job, Kind, Shape, ZONES, child_spec, is_hosted, needs, number_of, run_of,
    unit_of,
};

use crate::builds::Build;
use crate::user::executor_component;
use jobs::{EXECUTOR, Record, ended_well, executor_of, native, spec_of};
use std::collections::BTreeMap;
use tessera_types::{
    AgentId, Consumed, Digest, Event, ExecutorMessage, ExecutorTask, Filters, HttpAnswer, KeyWrite,
    Launch, Member, MigrationStep, Offer, OfferId, Operation, Reason, Resources, TaskBody,
    TaskId, TaskSpec, TaskState, TaskStatus, Turn, TurnHeader,
};
use tessera_wire::encode_spec;

/// Key of the number of turns that changed anything.
pub const COUNT_KEY: &str = "count";
/// Key of the epoch whose instance wrote last.
pub const EPOCH_KEY: &str = "epoch";
/// Key of the newest configuration's note.
pub const NOTE_KEY: &str = "note";
/// Prefix of the keys that users write, and no turn reads or writes.
pub const OUTSIDE_PREFIX: &str = "out/";
/// Prefix of the keys of tasks.
pub const TASK_PREFIX: &str = "task/";
/// Records that one step of a migration carries over: keeps it from being over in one turn.
const MIGRATED_PER_STEP: usize = 3;
/// Time between two firings of the model's timer.
const TIMER_MS: u64 = 700;
/// Tasks that may be launched at once in the beginning.
const FIRST_TASKS: u64 = 2;
/// Launches in one turn, unless a job has more members: keeps a run from being over before the first fault.
const LAUNCHES_PER_TURN: usize = 3;
/// Time for which unused resources are refused.
const REFUSE_MS: u64 = 300;
/// Of so many ticks one asks for tasks of which nothing was heard.
const RECONCILED_EVERY: u64 = 4;
/// Of so many ticks one is greedy.
const GREEDY_EVERY: u64 = 3;


/// One instance's memory.
#[derive(Clone, Debug)]
pub struct Model {
    build: Build,
    tasks: u64,
    command: Digest,
    traps: bool,
    /// It says what it waits for.
    asks: bool,
    note: String,
    state: BTreeMap<String, Vec<u8>>,
}

/// The form of a record's text.
fn format_of(text: &[u8]) -> u32 {
    if text.starts_with(b"v2 ") { 2 } else { 1 }
}

fn value<'a>(config: &'a [(String, String)], key: &str) -> Option<&'a str> {
    config.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

/// Whether a configuration tells a scheduler to trap.
#[must_use]
pub fn tells_to_trap(config: &[(String, String)]) -> bool {
    value(config, "trap") == Some("1")
}

/// The note of a configuration.
#[must_use]
pub fn note_of(config: &[(String, String)]) -> &str {
    value(config, NOTE_KEY).unwrap_or_default()
}

/// An offer, and what is launched on it.
struct Seat {
    offer: OfferId,
    left: Resources,
    revocable: bool,
    launches: Vec<Member>,
    gang: u32,
}

impl Seat {
    fn new(offer: Offer) -> Self {
        let Offer { id, available, revocable, .. } = offer;
        Self { offer: id, left: available, revocable, launches: Vec::new(), gang: 0 }
    }
}

/// What a turn is made of while it is being made.
struct Draft {
    turn: Turn,
    changes: BTreeMap<String, Vec<u8>>,
}

impl Draft {
    fn new(header: TurnHeader) -> Self {
        let turn = Turn {
            header,
            consumed: Vec::new(),
            operations: Vec::new(),
            writes: Vec::new(),
            specs: Vec::new(),
            migration: None,
        };
        Self { turn, changes: BTreeMap::new() }
    }

    fn operation(&mut self, operation: Operation) {
        self.turn.operations.push(operation);
    }
}

impl Model {
    /// An instance from its configuration and its committed state.
    #[must_use]
    pub fn build(
        build: Build,
        config: &[(String, String)],
        state: &BTreeMap<String, Vec<u8>>,
    ) -> Self {
        let mut model = Self {
            build,
            tasks: 0,
            command: Digest([0; 32]),
            traps: false,
            asks: false,
            note: String::new(),
            state: state.clone(),
        };
        model.configure(config);
        model
    }

    fn configure(&mut self, config: &[(String, String)]) {
        self.tasks = value(config, "tasks").and_then(|text| text.parse().ok()).unwrap_or(0);
        let command = value(config, "command").and_then(|text| text.parse().ok());
        self.command = command.unwrap_or(Digest([0; 32]));
        self.traps = tells_to_trap(config);
        self.asks = value(config, ASKS_KEY) == Some("1");
        note_of(config).clone_into(&mut self.note);
    }

    /// A record whose form its build does not know, if there is one.
    #[must_use]
    pub fn foreign(&self) -> Option<&str> {
        let mut records = self.state.iter().filter(|(key, _)| key.starts_with(TASK_PREFIX));
        let found = records.find(|(_, text)| format_of(text) != self.build.format());
        found.map(|(key, _)| key.as_str())
    }

    /// Whether the next batch, or step of a migration, traps.
    #[must_use]
    pub fn will_trap(&self, migrating: bool) -> bool {
        let mut records = self.state.iter().filter(|(key, _)| key.starts_with(TASK_PREFIX));
        let first_step = records.all(|(_, text)| format_of(text) == 1);
        self.build.traps(migrating, first_step) || (self.traps && !migrating)
    }

    /// One step of a migration.
    pub fn migrate(&mut self, header: TurnHeader) -> Turn {
        let mut draft = Draft::new(header);
        let old: Vec<(String, Record)> = self
            .state
            .iter()
            .filter(|(key, text)| key.starts_with(TASK_PREFIX) && format_of(text) != self.build.format())
            .filter_map(|(key, text)| Some((key.clone(), Record::parse(text)?)))
            .collect();
        for (key, record) in old.iter().take(MIGRATED_PER_STEP) {
            let task = key.strip_prefix(TASK_PREFIX).unwrap_or(key);
            self.note(&mut draft, task, *record);
        }
        draft.turn.migration = Some(MigrationStep { done: old.len() <= MIGRATED_PER_STEP });
        self.finish(draft)
    }

    /// Handle one batch.
    pub fn handle(&mut self, header: TurnHeader, events: &[Event]) -> Turn {
        let mut draft = Draft::new(header);
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
                Event::ConfigChanged { version, config } => {
                    draft.turn.consumed.push(Consumed::Config { version: *version });
                    self.configure(config);
                    let note = self.note.parse().unwrap_or(0);
                    self.write(&mut draft, NOTE_KEY, note);
                }
                Event::Agent(_)
                | Event::InverseOffers(_)
                | Event::InverseRescinded(_)
                | Event::StateChanged { .. }
                | Event::Again
                | Event::Message(_)
                | Event::ExecutorFailed { .. } => {}
            }
        }
        if tick {
            self.on_timer(&mut draft);
        }
        self.place(&mut draft, offers);
        self.ask(&mut draft, tick);
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
        let value = record.text(self.build.format()).into_bytes();
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
        if sequence == 0 && status.state == TaskState::Unknown && known.is_silent() {
            // It was refused, and the leader that said so is gone.
            let record = Record { state: TaskState::Dropped, ..known };
            return self.note(draft, &task, record);
        }
        let newer = sequence > known.sequence || (sequence == 0 && status.state.is_terminal());
        if status.state == TaskState::Running && is_hosted(&task) {
            self.write(draft, "where", status.agent.0);
        }
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
            wanted |= self.due(number).is_some();
            let killed = Job::of(number).is_killed() && (!self.may_be_lent(number) || self.is_late(number));
            let Some((_, members)) = self.newest(number).filter(|_| killed) else {
                continue;
            };
            for (task, _) in members.into_iter().filter(|(_, r)| r.state == TaskState::Running) {
                draft.operation(Operation::Kill { task, grace_ms: Some(400) });
            }
        }
        if ticks.is_multiple_of(RECONCILED_EVERY) {
            self.reconcile(draft);
        }
        self.speak(draft, ticks);
        if wanted && self.number("suppressed") == 1 {
            self.write(draft, "suppressed", 0);
            draft.operation(Operation::Revive);
        }
    }

    /// Ask for what nothing was heard of.
    fn reconcile(&self, draft: &mut Draft) {
        let members = (0..self.released()).filter_map(|number| self.newest(number)).flat_map(|(_, members)| members);
        let tasks: Vec<TaskId> = members.filter(|(_, record)| record.is_silent()).map(|(task, _)| task).collect();
        if !tasks.is_empty() {
            draft.operation(Operation::Reconcile { tasks });
        }
    }

    /// Say a number to an executor: each is said once.
    fn speak(&self, draft: &mut Draft, ticks: u64) {
        let lent = self.asks && ticks % 4 > 1;
        if let Some(executor) = executor_of(ticks, lent).filter(|_| self.number("where") != 0) {
            draft.operation(Operation::SendMessage(ExecutorMessage {
                agent: AgentId(self.number("where")),
                executor,
                data: ticks.to_string().into_bytes(),
            }));
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

    /// The newest replacement of a job and its members, if it was launched.
    fn newest(&self, number: u64) -> Option<(u64, Vec<(TaskId, Record)>)> {
        let job = Job::of(number);
        let of = |replacement| -> Option<Vec<(TaskId, Record)>> {
            let tasks = (0..job.members.len()).map(|member| {
                let task = job.task(number, replacement, member);
                Some((task.parse().ok()?, self.record(&task)?))
            });
            tasks.collect()
        };
        let mut newest = None;
        for replacement in 0.. {
            let Some(members) = of(replacement) else { break };
            newest = Some((replacement, members));
        }
        newest
    }

    /// The replacement of a job that has to be launched, if any.
    fn due(&self, number: u64) -> Option<u64> {
        let Some((replacement, members)) = self.newest(number) else { return Some(0) };
        let over = members.iter().all(|(_, record)| record.state.is_terminal());
        let well = members.iter().enumerate().all(|(n, (_, record))| ended_well(number, n, *record));
        (over && !well).then_some(replacement + 1)
    }

    /// Launch what is due on what is offered.
    fn place(&mut self, draft: &mut Draft, offers: Vec<Offer>) {
        let mut due: Vec<(u64, u64)> =
            (0..self.released()).filter_map(|number| Some((number, self.due(number)?))).collect();
        due.reverse();
        let waiting = !due.is_empty();
        let mut table: Vec<Seat> = offers.into_iter().map(Seat::new).collect();
        let mut room = LAUNCHES_PER_TURN;
        let mut gangs = 0;
        while let Some((number, replacement)) = due.last().copied().filter(|_| room > 0) {
            due.pop();
            // What does not fit now must not keep others from starting.
            let Some((seats, revocable)) = self.seats_for(number, &table) else { continue };
            let revocable = revocable != self.errs(number, replacement);
            room = room.saturating_sub(seats.len());
            let job = Job::of(number);
            if job.shape == Shape::Gang {
                gangs += 1;
            }
            for (member, seat) in seats.into_iter().enumerate() {
                let of = (number, replacement, member);
                let Some(launch) = self.launch(draft, of, revocable) else { continue };
                let cost = self.cost(number, member);
                let seat = &mut table[seat];
                seat.left.take(&cost);
                let group = if job.shape == Shape::Group { 1 + u32::try_from(number).unwrap_or(0) } else { 0 };
                seat.launches.push(Member { launch, group });
                if job.shape == Shape::Gang {
                    seat.gang = gangs;
                }
            }
        }
        for seat in table {
            let filters = Filters { refuse_ms: REFUSE_MS };
            let offers = vec![seat.offer];
            draft.operation(if seat.launches.is_empty() {
                Operation::Decline { offers, filters }
            } else {
                Operation::Accept { offers, launches: seat.launches, filters, gang: seat.gang }
            });
        }
        if !waiting && self.number("suppressed") == 0 && self.number(COUNT_KEY) > 0 {
            self.write(draft, "suppressed", 1);
            draft.operation(Operation::Suppress);
        }
    }

    /// Where the members of a job go. Groups and gangs are now and then launched where only a part of
    /// them fits: then none of them may be.
    fn seats(&self, number: u64, table: &[Seat], revocable: bool) -> Option<Vec<usize>> {
        let job = Job::of(number);
        let count = job.members.len();
        let all = &self.cost(number, 0);
        let whole = &self.whole(number);
        let greedy = self.number("ticks") % GREEDY_EVERY == 0;
        let free = |seat: &(usize, &Seat)| seat.1.gang == 0 && seat.1.revocable == revocable;
        let mut seats = table.iter().enumerate();
        match job.shape {
            Shape::Alone => seats.find(|s| free(s) && s.1.left.contains(all)).map(|(n, _)| vec![n]),
            Shape::Group => {
                let wanted = if greedy { all } else { whole };
                seats.find(|s| free(s) && s.1.left.contains(wanted)).map(|(n, _)| vec![n; count])
            }
            Shape::Gang => {
                let unused = |s: &(usize, &Seat)| free(s) && s.1.launches.is_empty() && s.1.left.contains(all);
                let unused: Vec<usize> = seats.filter(unused).map(|(n, _)| n).collect();
                match unused.as_slice() {
                    [first, second, ..] => Some(vec![*first, *second]),
                    [only] if greedy => Some(vec![*only; count]),
                    _ => None,
                }
            }
        }
    }

    fn launch(
        &mut self,
        draft: &mut Draft,
        (number, replacement, member): (u64, u64, usize),
        revocable: bool,
    ) -> Option<Launch> {
        let encoded = encode_spec(&self.spec(number, member, revocable)?);
        let digest = Digest::of(&encoded);
        if !draft.turn.specs.iter().any(|(known, _)| *known == digest) {
            draft.turn.specs.push((digest, encoded));
        }
        let task = Job::of(number).task(number, replacement, member);
        let record = Record { sequence: 0, state: TaskState::Staging, reason: Reason::None };
        self.note(draft, &task, record);
        Some(Launch { task: task.parse().ok()?, spec: digest, args: Vec::new(), env: Vec::new() })
    }

    fn spec(&self, number: u64, member: usize, revocable: bool) -> Option<TaskSpec> {
        let kind = Kind::of(number, member);
        let kind = if revocable { kind.lent() } else { kind };
        let words = kind.words();
        let body = match kind {
            Kind::Wasm(_) | Kind::EndlessWasm => {
                TaskBody::Wasm { component: self.command, args: words.to_vec() }
            }
            Kind::Native(_) | Kind::Failing(_) | Kind::Endless => native(&words),
            Kind::Hosted(hosted) => TaskBody::Executor(ExecutorTask {
                executor: executor_of(number, revocable)?,
                component: executor_component(),
                resources: EXECUTOR.into(),
                config: Vec::new(),
                data: hosted.data(),
            }),
        };
        let restarts = u32::from(number % 26 == 2);
        let spec = spec_of(&format!("kind-{}", number % 13), body, needs(number));
        Some(TaskSpec { restarts, revocable, resources: self.task(number), ..spec })
    }

    fn finish(&mut self, mut draft: Draft) -> Turn {
        let changes = draft.turn.migration.is_some()
            || !draft.changes.is_empty()
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
    let mut model = Model::build(Build::First, &[], state);
    model.tasks = tasks;
    let ended = |number: u64| {
        model.newest(number).is_some_and(|(_, members)| {
            let over = members.iter().all(|(_, record)| record.state.is_terminal());
            over && model.due(number).is_none()
        })
    };
    (0..tasks).all(ended)
}
