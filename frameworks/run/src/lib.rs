//! The framework behind `tessera run -- COMMAND`: one-shot native commands.
//!
//! HTTP, below `/frameworks/<name>`:
//! - `POST /tasks` with `{"argv": [..]}` or `{"shell": ".."}`, and optionally `cpus` (0.1),
//!   `mem_mib` (32), `env`, `name`: 201 and `{"task": "run-17"}`;
//! - `GET /tasks/run-17`: where it stands; `GET /tasks`: the newest ones, `?before=` and `?limit=`
//!   for more; `DELETE /tasks/run-17`: kill it.
//!
//! A task's cluster id is its own id; only when a launch never started (its offer had gone) it is
//! launched again under another one, which `launched_as` tells. Offers are suppressed while
//! nothing waits. Waiting tasks are tried oldest first, but smaller ones overtake those that fit
//! nowhere.
//!
//! State: `next` is the next number, `task/<number>` the record of a task, `request/<number>` what
//! it runs, until it ends. Memory is a cache of it. An error is returned only for what would make
//! memory and state differ; bad requests are answered.

mod book;
#[cfg(test)]
mod tests;

use book::{Book, Change, Status, Submission, Task, cut, launch_id, parse_task_id, task_id};
use serde::Serialize;
use tessera_sdk::http::{Request, Response};
use tessera_sdk::state::{self, Map};
use tessera_sdk::{
    Config, Error, Event, Offer, Pending, REFUSE_MS, Resources, Scheduler, TaskSpec, TaskStatus,
    Turn, log,
};

const TASKS: Map<Task> = Map::new("task/");
const REQUESTS: Map<Submission> = Map::new("request/");
const NEXT: &str = "next";

/// Bytes of a submission's body; 500 of them must fit into memory and state many times over.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// State writes that must be left in a turn before a submission is taken; what does not fit is
/// asked to come again.
const SUBMIT_ROOM: state::Room = state::Room {
    bytes: 64 * 1024,
    keys: 8,
};
/// Tasks in a list unless the client asks for fewer.
const LIST_LIMIT: usize = 100;
/// Bytes at which a list ends; below the 64 KiB of an answer by more than one entry.
const LIST_BYTES: usize = 56 * 1024;

struct Run {
    book: Book,
    next: u64,
    /// The largest offer since the instance began, to tell waiting tasks.
    largest_offer: Option<Resources>,
    /// Whether the cluster makes offers to this framework; unknown to a new instance.
    receives_offers: Option<bool>,
    /// A task came since offers were last declined: they are worth having again.
    revive: bool,
}

tessera_sdk::scheduler!(Run, state_version = 1);

impl Scheduler for Run {
    fn init(_config: &Config) -> Result<Self, Error> {
        let mut book = Book::default();
        for entry in TASKS.iter() {
            let (id, task) = entry?;
            let number = id
                .parse()
                .map_err(|_| Error::failed(format!("state key task/{id} has no number")))?;
            book.insert(number, task);
        }
        let next = state::get(NEXT)?.unwrap_or(1);
        Ok(Self {
            book,
            next,
            largest_offer: None,
            receives_offers: None,
            revive: false,
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => self.receives_offers = None,
            Event::Offers(offers) => self.on_offers(turn, offers)?,
            Event::Update(status) => self.on_update(turn, status)?,
            Event::Http(request) => {
                let response = self.on_request(turn, &request)?;
                request.respond(response)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        while let Some(number) = self.book.forget_one() {
            TASKS.remove(&key(number))?;
        }
        let wants = self.book.has_waiting();
        if wants && (self.revive || self.receives_offers != Some(true)) {
            turn.revive()?;
        }
        if !wants && self.receives_offers != Some(false) {
            turn.suppress()?;
        }
        self.revive = false;
        self.receives_offers = Some(wants);
        Ok(())
    }
}

impl Run {
    fn on_offers(&mut self, turn: &mut Turn, offers: Vec<Offer>) -> Result<(), Error> {
        for offer in &offers {
            let size = |resources: &Resources| (resources.cpus_milli, resources.mem_mib);
            if self
                .largest_offer
                .as_ref()
                .is_none_or(|largest| size(largest) < size(&offer.available))
            {
                self.largest_offer = Some(offer.available);
            }
        }
        // One key is written for each launch; others may be needed in the same turn.
        let most = state::room().keys / 2;
        let book = &self.book;
        let mut unreadable = None;
        let pending =
            book.waiting()
                .take(most)
                .map_while(|number| match pending_task(book, number) {
                    Ok(task) => Some(task),
                    Err(error) => {
                        unreadable = Some(error);
                        None
                    }
                });
        let placed = turn.place(offers, pending, REFUSE_MS)?;
        if let Some(error) = unreadable {
            return Err(error);
        }
        for id in &placed.launched {
            if let Some(number) = launched_number(id) {
                self.book.on_launched(number);
                self.save(number)?;
            }
        }
        for (id, error) in placed.refused {
            if let Some(number) = launched_number(&id) {
                let status = Status {
                    state: "TASK_ERROR".to_owned(),
                    reason: "INVALID_TASK".to_owned(),
                    message: cut(&error.to_string(), book::MAX_MESSAGE_BYTES),
                    ..Status::default()
                };
                self.book.end(number, status, turn.time_ms());
                self.save_ended(number)?;
            }
        }
        Ok(())
    }

    fn on_update(&mut self, turn: &mut Turn, update: TaskStatus) -> Result<(), Error> {
        let terminal = update.state.is_terminal();
        let status = Status {
            state: update.state.name().to_owned(),
            exit_code: update.exit_code,
            signal: update.signal,
            reason: cut(&update.reason, 64),
            message: cut(&update.message, book::MAX_MESSAGE_BYTES),
            agent: Some(update.agent),
        };
        match self
            .book
            .on_update(&update.task, status, terminal, turn.time_ms())
        {
            None => {}
            Some((number, Change::Updated)) => self.save(number)?,
            Some((number, Change::Requeued)) => {
                log::info(format!(
                    "{} did not start and waits again: {}",
                    update.task,
                    update.describe()
                ));
                self.revive = true;
                self.save(number)?;
            }
            Some((number, Change::Ended)) => self.save_ended(number)?,
        }
        Ok(())
    }

    fn on_request(&mut self, turn: &mut Turn, request: &Request) -> Result<Response, Error> {
        let (method, path) = request.route();
        match (method, path.as_slice()) {
            ("POST", ["tasks"]) => self.submit(turn, request),
            ("GET", ["tasks"]) => Ok(self.list(request)),
            ("GET", ["tasks", id]) => Ok(match self.find(id) {
                Some((number, task)) => Response::json(&self.view(number, task)),
                None => Response::not_found(format!(
                    "no task `{id}`; the last {} ended ones are kept",
                    book::MAX_ENDED
                )),
            }),
            ("DELETE", ["tasks", id]) => self.kill(turn, id),
            (_, [] | ["tasks"] | ["tasks", _]) => Ok(Response::error(
                405,
                format!("{method} is not possible here"),
            )),
            _ => Ok(Response::not_found(format!(
                "no such path: {}",
                request.path
            ))),
        }
    }

    fn submit(&mut self, turn: &Turn, request: &Request) -> Result<Response, Error> {
        if request.body.len() > MAX_BODY_BYTES {
            return Ok(Response::error(
                413,
                format!("a submission has at most {MAX_BODY_BYTES} bytes"),
            ));
        }
        let submission: Submission = match request.json() {
            Ok(submission) => submission,
            Err(response) => return Ok(response),
        };
        if let Err(rule) = submission.validate() {
            return Ok(Response::error(422, rule));
        }
        if self.book.is_full() {
            return Ok(Response::retry_after(
                5,
                format!("{} tasks wait or run; no more are taken", book::MAX_ACTIVE),
            ));
        }
        let room = state::room();
        if room.bytes < SUBMIT_ROOM.bytes || room.keys < SUBMIT_ROOM.keys {
            return Ok(Response::retry_after(1, "too many submissions at once"));
        }
        let number = self.next;
        let cpus_milli = Resources::new(submission.cpus, 0).cpus_milli;
        self.book.submit(
            number,
            &submission,
            cpus_milli,
            &cut(&request.principal, 255),
            turn.time_ms(),
        );
        self.next = number.saturating_add(1);
        self.revive = true;
        state::set(NEXT, &self.next)?;
        REQUESTS.insert(&key(number), &submission)?;
        self.save(number)?;
        let id = task_id(number);
        let body = Submitted { task: &id };
        Ok(Response::json(&body).status(201))
    }

    fn kill(&mut self, turn: &mut Turn, id: &str) -> Result<Response, Error> {
        let Some(number) = parse_task_id(id).filter(|number| self.book.get(*number).is_some())
        else {
            return Ok(Response::not_found(format!("no task `{id}`")));
        };
        match self.book.on_kill(number, turn.time_ms()) {
            None => {}
            Some(false) => self.save_ended(number)?,
            Some(true) => {
                let drops = self.book.get(number).map_or(0, |task| task.drops);
                turn.kill(&launch_id(number, drops), None)?;
                self.save(number)?;
            }
        }
        let ended = self
            .book
            .get(number)
            .is_none_or(|task| task.ended_ms.is_some());
        Ok(match self.find(id) {
            Some((number, task)) => {
                Response::json(&self.view(number, task)).status(if ended { 200 } else { 202 })
            }
            None => Response::not_found(format!("no task `{id}`")),
        })
    }

    fn list(&self, request: &Request) -> Response {
        let before = match request.query_value("before") {
            None => u64::MAX,
            Some(id) => match parse_task_id(&id) {
                Some(number) => number,
                None => {
                    return Response::error(
                        400,
                        format!("query parameter `before` is no task id: `{id}`"),
                    );
                }
            },
        };
        let limit = match request.query_number("limit", LIST_LIMIT) {
            Ok(limit) => limit.clamp(1, LIST_LIMIT),
            Err(response) => return response,
        };
        let mut tasks = Vec::new();
        let mut bytes = 0;
        let mut next = None;
        for (number, task) in self.book.newest_first(before) {
            if tasks.len() == limit || bytes > LIST_BYTES {
                next = tasks.last().map(|view: &View<'_>| view.task.clone());
                break;
            }
            let view = self.view(number, task);
            // Each character may be escaped; the constant covers names and numbers.
            bytes += 400 + 2 * (view.message.len() + view.name.len());
            tasks.push(view);
        }
        Response::json(&List { tasks, next })
    }

    fn find(&self, id: &str) -> Option<(u64, &Task)> {
        let number = parse_task_id(id)?;
        Some((number, self.book.get(number)?))
    }

    fn view<'a>(&self, number: u64, task: &'a Task) -> View<'a> {
        let waits = task.ended_ms.is_none() && !task.launched;
        View {
            task: task_id(number),
            name: &task.name,
            launched_as: task.launched.then(|| launch_id(number, task.drops)),
            state: &task.status.state,
            terminal: task.ended_ms.is_some(),
            exit_code: task.status.exit_code,
            signal: task.status.signal,
            reason: if waits {
                "WAITING_FOR_OFFER"
            } else {
                &task.status.reason
            },
            message: if waits {
                self.why_waiting(task)
            } else {
                task.status.message.clone()
            },
            agent: task.status.agent,
            submitted_ms: task.submitted_ms,
            ended_ms: task.ended_ms,
        }
    }

    fn why_waiting(&self, task: &Task) -> String {
        let wanted = Resources {
            cpus_milli: task.cpus_milli,
            mem_mib: task.mem_mib,
            disk_mib: 0,
        };
        let needs = format!("needs {}", wanted.describe());
        match &self.largest_offer {
            None => format!("{needs}; no offer has come yet"),
            Some(largest) if largest.contains(&wanted) => {
                format!("{needs}; waits for the next offer of that size")
            }
            Some(largest) => format!(
                "{needs}; the largest offer so far had {}",
                largest.describe()
            ),
        }
    }

    fn save(&self, number: u64) -> Result<(), Error> {
        match self.book.get(number) {
            Some(task) => TASKS.insert(&key(number), task),
            None => Ok(()),
        }
    }

    fn save_ended(&self, number: u64) -> Result<(), Error> {
        REQUESTS.remove(&key(number))?;
        self.save(number)
    }
}

/// Build the task of a waiting number.
fn pending_task(book: &Book, number: u64) -> Result<Pending, Error> {
    let submission = REQUESTS.get(&key(number))?.ok_or_else(|| {
        Error::failed(format!("the request of task {number} is not in the state"))
    })?;
    let drops = book.get(number).map_or(0, |task| task.drops);
    let name = submission.display_name();
    let spec = match (submission.argv, submission.shell) {
        (Some(argv), _) => TaskSpec::argv(argv),
        (None, shell) => TaskSpec::shell(shell.unwrap_or_default()),
    };
    let mut spec = spec
        .name(name)
        .cpus(submission.cpus)
        .mem_mib(submission.mem_mib);
    for (variable, value) in submission.env {
        spec = spec.env(variable, value);
    }
    Ok(Pending::new(launch_id(number, drops), spec))
}

/// The number of a launch that this framework named itself.
fn launched_number(id: &str) -> Option<u64> {
    parse_task_id(id.split_once('.').map_or(id, |(task, _)| task))
}

/// Numbers as keys, so that byte order is their order.
fn key(number: u64) -> String {
    format!("{number:020}")
}

#[derive(Serialize)]
struct Submitted<'a> {
    task: &'a str,
}

#[derive(Serialize)]
struct List<'a> {
    tasks: Vec<View<'a>>,
    /// What to pass as `before` to see more.
    next: Option<String>,
}

/// A task as clients see it.
#[derive(Serialize)]
struct View<'a> {
    task: String,
    name: &'a str,
    launched_as: Option<String>,
    state: &'a str,
    terminal: bool,
    exit_code: Option<i32>,
    signal: Option<i32>,
    reason: &'a str,
    message: String,
    agent: Option<u64>,
    submitted_ms: u64,
    ended_ms: Option<u64>,
}
