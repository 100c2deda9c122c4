//! A scheduler that launches a given number of tasks once each and keeps a durable record of every
//! terminal status it receives, so that a test can see whether any task was lost or doubled.
//!
//! Configuration: `count` (1), `kind` (`native` or `wasm`), `command` (a shell command, or the
//! digest of a component), `args` (of a component, separated by blanks), `cpus` (0.1), `mem-mib`
//! (16). Each task finds its id in the variable `SPAWN_TASK`.
//!
//! A task that never started (dropped) is launched again under a new id, `spawn-7.2`; any other
//! end is final. `GET /` answers with the totals and a page of the records (`?offset=&limit=`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_sdk::http::{Request, Response};
use tessera_sdk::state::Map;
use tessera_sdk::{
    Config, Error, Event, Pending, REFUSE_MS, Scheduler, TaskSpec, TaskState, TaskStatus, Turn,
};

const TASKS: Map<Record> = Map::new("task/");
/// Records in an answer unless fewer are asked for; about 100 bytes each.
const PAGE: usize = 300;
/// Most tasks; all records are kept in memory.
const MAX_COUNT: u32 = 10_000;

/// One task as it is kept, and as it is served.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Id of the latest launch.
    task: String,
    launches: u32,
    launched: bool,
    /// Its final state, once there is one.
    state: Option<String>,
    exit_code: Option<i32>,
    reason: String,
    /// How often each terminal state was received, by launch and state.
    received: BTreeMap<String, u32>,
}

struct Spawn {
    records: BTreeMap<u32, Record>,
    waiting: BTreeSet<u32>,
    spec: TaskSpec,
    suppressed: Option<bool>,
}

tessera_sdk::scheduler!(Spawn, state_version = 1);

fn spec(config: &Config) -> Result<TaskSpec, Error> {
    let command = config.require("command")?;
    let spec = match config.get("kind").unwrap_or("native") {
        "native" => TaskSpec::shell(command),
        "wasm" => TaskSpec::wasm(
            command,
            config.get("args").unwrap_or_default().split_whitespace(),
        ),
        other => {
            return Err(Error::failed(format!(
                "kind must be native or wasm, not `{other}`"
            )));
        }
    };
    Ok(spec
        .name("spawn")
        .cpus(config.parse_or("cpus", 0.1)?)
        .mem_mib(config.parse_or("mem-mib", 16)?))
}

fn launch_id(number: u32, launches: u32) -> String {
    match launches {
        0 => format!("spawn-{number}"),
        _ => format!("spawn-{number}.{}", launches.saturating_add(1)),
    }
}

fn number_of(task: &str) -> Option<u32> {
    task.strip_prefix("spawn-")?.split('.').next()?.parse().ok()
}

impl Scheduler for Spawn {
    fn init(config: &Config) -> Result<Self, Error> {
        let count: u32 = config.parse_or("count", 1)?;
        if count > MAX_COUNT {
            return Err(Error::failed(format!("count must be at most {MAX_COUNT}")));
        }
        let mut records: BTreeMap<u32, Record> = (0..count)
            .map(|number| (number, Record::default()))
            .collect();
        for entry in TASKS.iter() {
            let (id, record) = entry?;
            records.insert(
                id.parse()
                    .map_err(|_| Error::failed(format!("bad key {id}")))?,
                record,
            );
        }
        let waiting = records
            .iter()
            .filter(|(_, record)| !record.launched)
            .map(|(number, _)| *number)
            .collect();
        Ok(Self {
            records,
            waiting,
            spec: spec(config)?,
            suppressed: None,
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => self.suppressed = None,
            Event::Offers(offers) => {
                let pending = self.waiting.iter().map(|number| {
                    let launches = self.records.get(number).map_or(0, |record| record.launches);
                    let id = launch_id(*number, launches);
                    Pending::new(&id, self.spec.clone()).env("SPAWN_TASK", id)
                });
                let placed = turn.place(offers, pending, REFUSE_MS)?;
                for id in placed.launched {
                    self.on_launched(id)?;
                }
                if let Some((task, error)) = placed.refused.into_iter().next() {
                    return Err(Error::failed(format!("{task} was refused: {error}")));
                }
            }
            Event::Update(status) if status.state.is_terminal() => self.on_end(status)?,
            Event::Http(request) => {
                let response = self.page(&request);
                request.respond(response)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let idle = self.waiting.is_empty();
        if self.suppressed != Some(idle) {
            if idle {
                turn.suppress()?
            } else {
                turn.revive()?
            }
            self.suppressed = Some(idle);
        }
        Ok(())
    }
}

impl Spawn {
    fn on_launched(&mut self, id: String) -> Result<(), Error> {
        let Some(number) = number_of(&id) else {
            return Ok(());
        };
        let Some(record) = self.records.get_mut(&number) else {
            return Ok(());
        };
        record.task = id;
        record.launches += 1;
        record.launched = true;
        self.waiting.remove(&number);
        TASKS.insert(&format!("{number:05}"), record)
    }

    fn on_end(&mut self, status: TaskStatus) -> Result<(), Error> {
        let Some(number) = number_of(&status.task) else {
            return Ok(());
        };
        let Some(record) = self.records.get_mut(&number) else {
            return Ok(());
        };
        let seen = record
            .received
            .entry(format!("{} {}", status.task, status.state.name()))
            .or_default();
        *seen += 1;
        if status.state == TaskState::Dropped && record.task == status.task {
            record.launched = false;
            self.waiting.insert(number);
        } else {
            record.state = Some(status.state.name().to_owned());
            record.exit_code = status.exit_code;
            record.reason = status.reason;
        }
        TASKS.insert(&format!("{number:05}"), record)
    }

    fn page(&self, request: &Request) -> Response {
        let numbers = request
            .query_number("offset", 0)
            .and_then(|offset| Ok((offset, request.query_number("limit", PAGE)?.min(PAGE))));
        let (offset, limit) = match numbers {
            Ok(numbers) => numbers,
            Err(response) => return response,
        };
        Response::json(&Page {
            count: self.records.len(),
            launched: self
                .records
                .values()
                .filter(|record| record.launched)
                .count(),
            ended: self
                .records
                .values()
                .filter(|record| record.state.is_some())
                .count(),
            tasks: self.records.values().skip(offset).take(limit).collect(),
        })
    }
}

#[derive(Serialize)]
struct Page<'a> {
    count: usize,
    launched: usize,
    ended: usize,
    tasks: Vec<&'a Record>,
}
