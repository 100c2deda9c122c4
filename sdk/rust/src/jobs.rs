//! Jobs: tasks that are wanted. They are placed, tried again when they fail, and remembered.
//!
//! An author says what is wanted, and passes events and ends of turns on; [`Jobs`] answers offers, declines
//! and suppresses them, launches, waits between attempts, and gives up after a number of failures.
//!
//! ```
//! use tessera_sdk::jobs::{Job, Jobs};
//! use tessera_sdk::{Config, Error, Event, Scheduler, TaskSpec, Turn};
//!
//! struct Batch { jobs: Jobs }
//!
//! impl Scheduler for Batch {
//!     fn init(config: &Config) -> Result<Self, Error> {
//!         let count: u32 = config.parse_or("count", 3)?;
//!         let spec = TaskSpec::shell("echo task $NUMBER").cpus(0.1).mem_mib(32);
//!         let job = |n: u32| Job::new(format!("task-{n}"), spec.clone()).env("NUMBER", n.to_string());
//!         Ok(Self { jobs: Jobs::load((1..=count).map(job))? })
//!     }
//!
//!     fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
//!         self.jobs.handle(turn, &event)
//!     }
//!
//!     fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
//!         self.jobs.end_turn(turn)
//!     }
//! }
//! # tessera_sdk::scheduler!(Batch, state_version = 1);
//! # fn main() {}
//! ```
//!
//! Invariants: what became of a job is in the state, under keys that begin with `jobs/`, in the turn that
//! learned it; what it runs is not, since each instance says that anew. No task id is used twice, not even
//! after a job was removed and is wanted again. Must never answer a request, nor touch other keys.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::state::{self, Map};
use crate::turn::{Bounds, MAX_LAUNCHES_PER_PLACE, MAX_MISSES_PER_PLACE, REFUSE_MS, Reached};
use crate::{Error, Event, Offer, Pending, TaskSpec, TaskState, TaskStatus, Turn, log};

/// Jobs at a time: each may take a key of the state, of which a framework has 100,000.
pub const MAX_JOBS: usize = 10_000;
/// Bytes of a job's name: with the number of a launch it is a task id, which has at most 255.
pub const MAX_NAME_BYTES: usize = 200;

const RECORDS: Map<Record> = Map::new("jobs/by-name/");
/// The most launches that any removed job had: numbers of later jobs begin above it.
const FLOOR: &str = "jobs/floor";
/// The one timer, set to when something next is to be tried.
const TIMER: &str = "jobs";

/// Failures after which a job that is to finish is tried again, unless said otherwise.
const RETRIES: u32 = 3;
/// First and longest pause before a job is tried again, in ms, unless said otherwise.
const BACK_OFF_MS: (u64, u64) = (1_000, 60_000);
/// A job that is to keep running and has done so for this long has not failed in a row, in ms.
const STEADY_MS: u64 = 60_000;
/// Time between two requests for all offers: each costs the cluster a look at every agent.
const REVIVE_MS: u64 = 1_000;
/// Bytes of what is kept of how an attempt ended.
const REMARK_BYTES: usize = 256;
/// State writes that are left to others in a turn in which jobs are removed.
const SPARE_KEYS: usize = 300;

/// A task that is wanted.
#[derive(Clone, Debug)]
pub struct Job {
    name: String,
    task: Pending,
    retries: Option<u32>,
    back_off_ms: (u64, u64),
    keep_running: bool,
}

impl Job {
    /// A job that is to finish: it is tried again after up to 3 failures. The name has 1 to 200 bytes of
    /// `A-Z a-z 0-9 . _ -` and is its own among the jobs; its tasks are called `NAME.1`, `NAME.2`, ….
    ///
    /// Clone one spec for jobs that run the same: it is sent to the cluster once.
    pub fn new(name: impl Into<String>, spec: TaskSpec) -> Self {
        let name = name.into();
        Self {
            task: Pending::new(String::new(), spec),
            name,
            retries: Some(RETRIES),
            back_off_ms: BACK_OFF_MS,
            keep_running: false,
        }
    }

    /// One more argument for this job only.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.task = self.task.arg(arg);
        self
    }

    /// One more environment variable for this job only.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.task = self.task.env(name, value);
        self
    }

    /// Give it up when it fails once more often than this. What ends from outside (its agent was lost, its
    /// launch came too late, somebody killed it) is no failure, and is always tried again.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Pause before the first further attempt, and the longest one; they double in between. 1 s and 1 min
    /// otherwise.
    pub fn back_off_ms(mut self, first: u64, longest: u64) -> Self {
        self.back_off_ms = (first, longest.max(first));
        self
    }

    /// It is to run for ever: it is started again however it ends, and never given up unless
    /// [`retries`](Self::retries) is called after this.
    pub fn keep_running(mut self) -> Self {
        self.keep_running = true;
        self.retries = None;
        self
    }

    fn check(&self) -> Result<(), Error> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let length = self.name.len();
        if !(1..=MAX_NAME_BYTES).contains(&length) || !self.name.bytes().all(good) || self.name.starts_with('.') {
            return Err(Error::Invalid(format!(
                "job name {:?}: 1 to {MAX_NAME_BYTES} bytes of A-Z a-z 0-9 . _ -, the first no dot",
                self.name
            )));
        }
        Ok(())
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For an offer, or for the end of a pause.
    #[default]
    Waiting,
    /// A task of it was launched and has not ended.
    Launched,
    /// A task of it finished.
    Finished,
    /// It was given up.
    Failed,
    /// It is not wanted any more, and its task is being killed.
    Removed,
}

/// What is remembered of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    phase: Phase,
    /// Launches so far.
    launches: u32,
    /// Failures in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
    /// Ends from outside in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    interruptions: u32,
    /// When the task began to run, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    running_ms: Option<u64>,
    /// Until when it pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before_ms: Option<u64>,
    /// How the last task ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    remark: String,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A job as others may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it stands.
    pub phase: Phase,
    /// Its task runs.
    pub running: bool,
    /// The task that was launched last.
    pub task: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// How its last task ended; empty if none has.
    pub ended: &'a str,
}

/// How many jobs stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// For an offer, or for the end of a pause.
    pub waiting: usize,
    /// Launched, and not ended; running or about to.
    pub launched: usize,
    /// Finished.
    pub finished: usize,
    /// Given up.
    pub failed: usize,
}

struct Entry {
    /// None: it is not wanted any more.
    job: Option<Job>,
    record: Record,
    /// Jobs are tried in the order in which they were named.
    order: u64,
}

impl Entry {
    fn ready_ms(&self) -> u64 {
        self.record.not_before_ms.unwrap_or(0)
    }
}

/// The jobs of a scheduler.
pub struct Jobs {
    entries: BTreeMap<String, Entry>,
    /// What waits: when it may be tried, in which order, and its name.
    waiting: BTreeSet<(u64, u64, String)>,
    /// What is not wanted any more and still has a task or a record.
    unwanted: BTreeSet<String>,
    order: u64,
    floor: u32,
    /// Whether the cluster makes offers; unknown to a new instance.
    receives_offers: Option<bool>,
    /// Where the last placing gave up, among what waits: the next one begins behind it.
    next: Option<(u64, u64, String)>,
    /// How many were tried in a row since something was launched.
    missed: usize,
    /// Something became ready since all offers were last asked for.
    fresh: bool,
    revived_ms: u64,
    timer_ms: Option<u64>,
}

impl Jobs {
    /// What is wanted, and what became of it so far: read from the state. Jobs of the state that are not
    /// named here are removed by the first turn, and their tasks killed.
    pub fn load(wanted: impl IntoIterator<Item = Job>) -> Result<Self, Error> {
        let mut jobs = Self {
            entries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            unwanted: BTreeSet::new(),
            order: 0,
            floor: state::get(FLOOR)?.unwrap_or(0),
            receives_offers: None,
            next: None,
            missed: 0,
            fresh: false,
            revived_ms: 0,
            timer_ms: None,
        };
        for entry in RECORDS.iter() {
            let (name, record) = entry?;
            jobs.unwanted.insert(name.clone());
            jobs.entries.insert(name, Entry { job: None, record, order: 0 });
        }
        for job in wanted {
            jobs.add(job)?;
        }
        Ok(jobs)
    }

    /// Want these and no others: jobs that are not named are removed, and their tasks killed. Those that are
    /// known stay as they are; what they run next is as said here.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = Job>) -> Result<(), Error> {
        let mut before: BTreeSet<String> = self.entries.keys().cloned().collect();
        for job in wanted {
            before.remove(&job.name);
            self.add(job)?;
        }
        for name in before {
            self.remove(&name);
        }
        Ok(())
    }

    /// Want one more. Nothing happens to one that is known: a task that runs goes on, and what has ended has
    /// ended.
    pub fn add(&mut self, job: Job) -> Result<(), Error> {
        job.check()?;
        let name = job.name.clone();
        if !self.entries.contains_key(&name) && self.entries.len() >= MAX_JOBS {
            return Err(Error::Limit(format!("at most {MAX_JOBS} jobs; remove those that have ended")));
        }
        let floor = self.floor;
        self.order += 1;
        let order = self.order;
        let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry {
            job: None,
            record: Record { launches: floor, ..Record::default() },
            order,
        });
        if entry.job.replace(job).is_none() {
            entry.order = order;
            if entry.record.phase == Phase::Waiting {
                self.waiting.insert((entry.ready_ms(), order, name.clone()));
                self.fresh = true;
            }
        }
        // One whose task is being killed comes back as one that waits, when that has ended.
        self.unwanted.remove(&name);
        Ok(())
    }

    /// Want it no more: its task is killed, and then it is forgotten. Nothing happens if it is unknown.
    pub fn remove(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.job = None;
            self.waiting.remove(&(entry.ready_ms(), entry.order, name.to_owned()));
            self.unwanted.insert(name.to_owned());
        }
    }

    /// How many jobs stand where.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.entries.values() {
            match entry.record.phase {
                Phase::Waiting => counts.waiting += 1,
                Phase::Launched => counts.launched += 1,
                Phase::Finished => counts.finished += 1,
                Phase::Failed => counts.failed += 1,
                Phase::Removed => {}
            }
        }
        counts
    }

    /// One job.
    pub fn get(&self, name: &str) -> Option<View<'_>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        Some(view(name, entry))
    }

    /// All jobs, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = View<'_>> {
        self.entries.iter().map(|(name, entry)| view(name, entry))
    }

    /// Do what an event asks for: offers, updates of tasks, and its own timer. Call it with every event; what
    /// else an event means to the scheduler is for the caller, who must leave offers alone.
    pub fn handle(&mut self, turn: &mut Turn, event: &Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => self.receives_offers = None,
            Event::Offers(offers) => self.place(turn, offers)?,
            Event::Update(status) => self.update(turn, status)?,
            Event::Timer(timer) if timer.id == TIMER => {
                self.timer_ms = None;
                self.fresh = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Call it at the end of each turn: asks for offers or suppresses them, and ends what is not wanted.
    pub fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.end_unwanted(turn)?;
        let now = turn.time_ms();
        let next = self.waiting.first().map(|(at, ..)| *at);
        let later = self.waiting.range((now + 1, 0, String::new())..).next().map(|(at, ..)| *at);
        let wants = next.is_some_and(|at| at <= now);
        let mut timer = later;
        if wants {
            let may_again = self.revived_ms.saturating_add(REVIVE_MS);
            if self.receives_offers != Some(true) || (self.fresh && now >= may_again) {
                turn.revive()?;
                self.revived_ms = now;
                self.fresh = false;
            } else if self.fresh {
                timer = Some(timer.map_or(may_again, |at| at.min(may_again)));
            }
        } else {
            self.fresh = false;
            if self.receives_offers != Some(false) {
                turn.suppress()?;
            }
        }
        self.receives_offers = Some(wants);
        // One that is due no later is left alone: it comes, and another is set then.
        if let Some(at) = timer
            && self.timer_ms.is_none_or(|set| at < set)
        {
            turn.set_timer(TIMER, at.saturating_sub(now).max(10))?;
            self.timer_ms = Some(at);
        }
        Ok(())
    }

    fn place(&mut self, turn: &mut Turn, offers: &[Offer]) -> Result<(), Error> {
        let now = turn.time_ms();
        // A key is written for each launch; others may be needed in the same turn.
        let most = (state::room().keys / 2).min(MAX_LAUNCHES_PER_PLACE);
        let entries = &self.entries;
        let ready = || self.waiting.iter().take_while(|(at, ..)| *at <= now);
        let start = self.next.take();
        let behind = |job: &&(u64, u64, String)| start.as_ref().is_none_or(|start| *job > start);
        // Nothing is tried twice, and what is behind the place where it was given up comes before the rest.
        let order = ready().filter(behind).chain(ready().filter(|job| !behind(job)));
        let tried = Cell::new((0, None));
        let pending = order.filter_map(|job| {
            tried.set((tried.get().0 + 1, Some(job)));
            let entry = entries.get(&job.2)?;
            let mut task = entry.job.as_ref()?.task.clone();
            task.task = task_id(&job.2, entry.record.launches.saturating_add(1));
            Some(task)
        });
        // As long as not all were tried, offers that were given up are to come again at once.
        let others = ready().count() > self.missed.saturating_add(MAX_MISSES_PER_PLACE);
        let refuse_missed_ms = if others { 0 } else { REFUSE_MS };
        let bounds = Bounds { most, refuse_ms: REFUSE_MS, refuse_missed_ms };
        let (placed, reached) = turn.place_some(offers.to_vec(), pending, bounds)?;
        let (count, last) = tried.get();
        self.next = last.filter(|_| reached == Reached::Misses).cloned();
        let goes_on = reached == Reached::Misses && others && placed.launched.is_empty();
        self.missed = if goes_on { self.missed.saturating_add(count) } else { 0 };
        for task in &placed.launched {
            self.change(task, 1, |record| {
                record.launches = record.launches.saturating_add(1);
                record.phase = Phase::Launched;
                record.not_before_ms = None;
            })?;
        }
        for (task, error) in placed.refused {
            log::error(format!("{task} cannot be launched, and is given up: {error}"));
            self.change(&task, 1, |record| {
                record.phase = Phase::Failed;
                record.remark = cut(&error.to_string());
            })?;
        }
        Ok(())
    }

    /// Change the record of a task, which is the last that was launched of its job, or the next one; and
    /// write it.
    fn change(&mut self, task: &str, next: u32, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let Some((name, launch)) = parse_task_id(task) else { return Ok(()) };
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        if entry.record.launches.saturating_add(next) != launch {
            return Ok(());
        }
        self.waiting.remove(&(entry.ready_ms(), entry.order, name.to_owned()));
        change(&mut entry.record);
        if entry.record.phase == Phase::Waiting && entry.job.is_some() {
            self.waiting.insert((entry.ready_ms(), entry.order, name.to_owned()));
        }
        RECORDS.insert(name, &entry.record)
    }

    fn update(&mut self, turn: &Turn, status: &TaskStatus) -> Result<(), Error> {
        let Some((name, launch)) = parse_task_id(&status.task) else { return Ok(()) };
        let Some(entry) = self.entries.get(name) else { return Ok(()) };
        let lives = matches!(entry.record.phase, Phase::Launched | Phase::Removed);
        if !lives || entry.record.launches != launch {
            return Ok(());
        }
        if !status.state.is_terminal() {
            let running = (status.state == TaskState::Running).then_some(status.at_ms);
            if running.is_none() || entry.record.running_ms.is_some() {
                return Ok(());
            }
            return self.change(&status.task, 0, |record| record.running_ms = running);
        }
        let Some(job) = &entry.job else {
            return self.forget(name);
        };
        let next = after_end(job, &entry.record, status, turn.time_ms());
        tell(&status.task, job, &next, turn.time_ms());
        self.change(&status.task, 0, |record| *record = next)
    }

    /// Kill tasks that are not wanted, and forget jobs that have none.
    fn end_unwanted(&mut self, turn: &mut Turn) -> Result<(), Error> {
        for name in std::mem::take(&mut self.unwanted) {
            if state::room().keys <= SPARE_KEYS {
                self.unwanted.insert(name);
                turn.call_again();
                continue;
            }
            match self.entries.get_mut(&name) {
                Some(entry) if entry.record.phase == Phase::Launched => {
                    turn.kill(&task_id(&name, entry.record.launches), None)?;
                    entry.record.phase = Phase::Removed;
                    RECORDS.insert(&name, &entry.record)?;
                }
                Some(entry) if entry.record.phase == Phase::Removed => {}
                Some(_) => self.forget(&name)?,
                None => {}
            }
        }
        Ok(())
    }

    fn forget(&mut self, name: &str) -> Result<(), Error> {
        let Some(entry) = self.entries.remove(name) else { return Ok(()) };
        if entry.record.launches > self.floor {
            self.floor = entry.record.launches;
            state::set(FLOOR, &self.floor)?;
        }
        RECORDS.remove(name)
    }
}

fn view<'a>(name: &'a str, entry: &'a Entry) -> View<'a> {
    let record = &entry.record;
    View {
        name,
        phase: record.phase,
        running: record.running_ms.is_some(),
        task: (record.phase != Phase::Waiting || !record.remark.is_empty()).then(|| task_id(name, record.launches)),
        failures: record.failures,
        ended: &record.remark,
    }
}

/// What is remembered of a job whose task has ended so.
fn after_end(job: &Job, before: &Record, status: &TaskStatus, now_ms: u64) -> Record {
    let mut record = Record {
        phase: Phase::Waiting,
        launches: before.launches,
        failures: before.failures,
        remark: cut(&status.describe()),
        ..Record::default()
    };
    let finished = status.state == TaskState::Finished;
    if finished && !job.keep_running {
        record.phase = Phase::Finished;
        record.failures = 0;
        return record;
    }
    if status.state == TaskState::Error {
        // What is wrong with its description is wrong the next time, too.
        record.phase = Phase::Failed;
        return record;
    }
    let in_a_row = if status.ended_from_outside() && before.phase != Phase::Removed {
        record.interruptions = before.interruptions.saturating_add(1);
        record.interruptions
    } else if before.phase == Phase::Removed {
        1
    } else {
        let ran_ms = before.running_ms.map_or(0, |since| status.at_ms.saturating_sub(since));
        let steady = job.keep_running && (finished || ran_ms >= STEADY_MS);
        record.failures = if steady { u32::from(!finished) } else { before.failures.saturating_add(1) };
        if job.retries.is_some_and(|retries| record.failures > retries) {
            record.phase = Phase::Failed;
            return record;
        }
        record.failures.max(1)
    };
    let (first, longest) = job.back_off_ms;
    let pause = first.saturating_mul(1 << in_a_row.saturating_sub(1).min(20)).min(longest);
    record.not_before_ms = Some(now_ms.saturating_add(pause));
    record
}

/// Tell the author, in the scheduler's log, what was made of an end.
fn tell(task: &str, job: &Job, next: &Record, now_ms: u64) {
    let ended = &next.remark;
    match (next.phase, next.not_before_ms) {
        (Phase::Finished, _) => log::debug(format!("{task} has finished")),
        (Phase::Failed, _) => log::error(format!("{} is given up: {task} ended as {ended}", job.name)),
        (_, Some(at)) => {
            let count = match (next.failures, job.retries) {
                (0, _) | (_, None) => String::new(),
                (failures, Some(retries)) => format!(", failure {failures} of at most {retries}"),
            };
            let pause = at.saturating_sub(now_ms);
            log::info(format!("{task} ended as {ended}; {} is tried again in {pause} ms{count}", job.name));
        }
        (_, None) => {}
    }
}

fn task_id(name: &str, launch: u32) -> String {
    format!("{name}.{launch}")
}

fn parse_task_id(task: &str) -> Option<(&str, u32)> {
    let (name, launch) = task.rsplit_once('.')?;
    Some((name, launch.parse().ok()?))
}

/// The beginning of a text.
fn cut(text: &str) -> String {
    let mut end = text.len().min(REMARK_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
