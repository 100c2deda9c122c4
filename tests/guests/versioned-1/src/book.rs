//! The scheduler that all versions share: it launches `count` tasks once each and keeps a durable record
//! of each; how the records are written is what the versions differ by.
//!
//! Configuration: `count` (10), `command` (`true`), `cpus` (0.01), `mem-mib` (16), and `next`, which
//! tells the next version how to behave: `fail-in-migration`, `trap-in-migration`, `spin-in-migration`,
//! `trap-in-first-turn`, `fail-in-init`. It is kept in the state, since a migration sees nothing else.
//! A task that never started (dropped) is launched again under a new id, `task-7.2`; any other end is
//! final. `GET /` answers with [`Page`].

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};
use tessera_sdk::http::Response;
use tessera_sdk::{
    Config, Error, Event, Pending, REFUSE_MS, Scheduler, TaskSpec, TaskState, TaskStatus, Turn, state,
};

/// How one version writes its records.
pub trait Format: 'static {
    /// The version of the state.
    const VERSION: u32;

    /// All records.
    fn load() -> Result<BTreeMap<u32, Record>, Error>;

    /// Write one record.
    fn save(number: u32, record: &Record) -> Result<(), Error>;
}

/// One task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How often it was launched.
    pub launches: u32,
    /// Whether its latest launch has not been dropped.
    pub launched: bool,
    /// Its final state, once there is one.
    pub state: Option<String>,
    /// Terminal states that were received of the latest launch.
    pub ends: u32,
}

/// The answer to a request.
#[derive(Serialize)]
pub struct Page {
    /// Version of the state that this component writes.
    pub version: u32,
    /// What the configuration calls `remark`.
    pub remark: Option<String>,
    /// Turns that this instance has handled.
    pub turns: u64,
    /// Tasks.
    pub count: usize,
    /// Tasks that have been launched.
    pub launched: usize,
    /// Tasks that have ended.
    pub ended: usize,
    /// Tasks whose end was received more than once.
    pub doubled: usize,
}

/// The scheduler, with records as `F` writes them.
pub struct Book<F> {
    records: BTreeMap<u32, Record>,
    waiting: BTreeSet<u32>,
    config: Config,
    spec: TaskSpec,
    turns: u64,
    is_suppressed: Option<bool>,
    format: PhantomData<F>,
}

/// How the version before wants this one to behave.
pub fn mode() -> Result<String, Error> {
    Ok(state::get("next")?.unwrap_or_default())
}

fn spec(config: &Config) -> Result<TaskSpec, Error> {
    Ok(TaskSpec::shell(config.get("command").unwrap_or("true"))
        .name("versioned")
        .cpus(config.parse_or("cpus", 0.01)?)
        .mem_mib(config.parse_or("mem-mib", 16)?))
}

fn launch_id(number: u32, launches: u32) -> String {
    match launches {
        0 => format!("task-{number}"),
        _ => format!("task-{number}.{}", launches.saturating_add(1)),
    }
}

fn number_of(task: &str) -> Option<u32> {
    task.strip_prefix("task-")?.split('.').next()?.parse().ok()
}

impl<F: Format> Scheduler for Book<F> {
    fn init(config: &Config) -> Result<Self, Error> {
        // Only a version that follows another finds how it is to behave.
        if F::VERSION > 1 && mode()? == "fail-in-init" {
            return Err(Error::failed("asked to fail in init"));
        }
        let mut book = Self {
            records: F::load()?,
            waiting: BTreeSet::new(),
            config: config.clone(),
            spec: spec(config)?,
            turns: 0,
            is_suppressed: None,
            format: PhantomData,
        };
        book.configure(config.clone())?;
        Ok(book)
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        if F::VERSION > 1 && mode()? == "trap-in-first-turn" {
            panic!("asked to panic in the first turn");
        }
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => self.is_suppressed = None,
            Event::ConfigChanged(config) => self.configure(config)?,
            Event::Offers(offers) => {
                let pending = self.waiting.iter().map(|number| {
                    let launches = self.records.get(number).map_or(0, |record| record.launches);
                    Pending::new(launch_id(*number, launches), self.spec.clone())
                });
                let placed = turn.place(offers, pending, REFUSE_MS)?;
                for id in placed.launched {
                    self.on_launched(&id)?;
                }
                if let Some((task, error)) = placed.refused.into_iter().next() {
                    return Err(Error::failed(format!("{task} was refused: {error}")));
                }
            }
            Event::Update(status) if status.state.is_terminal() => self.on_end(&status)?,
            Event::Http(request) => request.respond(Response::json(&self.page()))?,
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.turns += 1;
        let is_idle = self.waiting.is_empty();
        if self.is_suppressed != Some(is_idle) {
            if is_idle {
                turn.suppress()?
            } else {
                turn.revive()?
            }
            self.is_suppressed = Some(is_idle);
        }
        Ok(())
    }
}

impl<F: Format> Book<F> {
    fn configure(&mut self, config: Config) -> Result<(), Error> {
        let count: u32 = config.parse_or("count", 10)?;
        self.spec = spec(&config)?;
        for number in 0..count {
            self.records.entry(number).or_default();
        }
        let waiting = self.records.iter().filter(|(_, record)| !record.launched);
        self.waiting = waiting.map(|(number, _)| *number).collect();
        if F::VERSION == 1 {
            state::set("next", &config.get("next").unwrap_or_default())?;
        }
        self.config = config;
        Ok(())
    }

    fn on_launched(&mut self, id: &str) -> Result<(), Error> {
        let Some(number) = number_of(id) else {
            return Ok(());
        };
        let record = self.records.entry(number).or_default();
        record.launches += 1;
        record.launched = true;
        record.ends = 0;
        self.waiting.remove(&number);
        F::save(number, record)
    }

    fn on_end(&mut self, status: &TaskStatus) -> Result<(), Error> {
        let Some(number) = number_of(&status.task) else {
            return Ok(());
        };
        let Some(record) = self.records.get_mut(&number) else {
            return Ok(());
        };
        if launch_id(number, record.launches.saturating_sub(1)) != status.task {
            return Ok(());
        }
        if status.state == TaskState::Dropped {
            record.launched = false;
            self.waiting.insert(number);
        } else {
            record.ends += 1;
            record.state = Some(status.state.name().to_owned());
        }
        F::save(number, record)
    }

    fn page(&self) -> Page {
        let count = |pick: fn(&&Record) -> bool| self.records.values().filter(pick).count();
        Page {
            version: F::VERSION,
            remark: self.config.get("remark").map(str::to_owned),
            turns: self.turns,
            count: self.records.len(),
            launched: count(|record| record.launched),
            ended: count(|record| record.state.is_some()),
            doubled: count(|record| record.ends > 1),
        }
    }
}
