//! A scheduler that launches what it is told to, and keeps a durable record of what became of it.
//!
//! - `POST /jobs` takes a [`Job`]: tasks that are launched each on its own (`single`), all on one agent or
//!   none (`group`), or each on an agent of its own, all or none (`gang`). With `force` they are launched
//!   on whatever was offered, whether it fits or not.
//! - `POST /kill/<task>` kills a task; `POST /send/<executor>` sends the body to an executor of this name
//!   on every agent that has been offered; `POST /trap` panics.
//! - `GET /` answers with [`Page`]: every state of every task with the number of times that it was
//!   received, what executors have sent, and which agents are wanted back.
//!
//! Offers are kept until they are used or withdrawn, so that a job never has to wait for a filter.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_sdk::event::InverseOffer;
use tessera_sdk::http::{Request, Response};
use tessera_sdk::state::Map;
use tessera_sdk::{
    Config, Error, Event, Offer, Pending, Resources, Scheduler, TaskSpec, TaskStatus, Turn, state,
};

const JOBS: Map<Job> = Map::new("job/");
const TASKS: Map<Record> = Map::new("task/");
/// Messages that are remembered.
const MESSAGES_MAX: usize = 200;

/// Tasks that belong together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    /// `single`, `group` or `gang`.
    #[serde(default = "single")]
    how: String,
    #[serde(default)]
    force: bool,
    tasks: Vec<Task>,
}

fn single() -> String {
    "single".to_owned()
}

/// One task of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    id: String,
    /// A shell command, or the digest of a component.
    run: String,
    /// Whether `run` is a component.
    #[serde(default)]
    wasm: bool,
    /// Arguments of a component.
    #[serde(default)]
    args: Vec<String>,
    /// Name of the executor whose component `run` is.
    executor: Option<String>,
    /// What the executor is to do.
    #[serde(default)]
    data: String,
    #[serde(default = "little_cpu")]
    cpus: f64,
    #[serde(default = "little_memory")]
    mem_mib: u64,
    #[serde(default)]
    restarts: u32,
}

const fn little_cpu() -> f64 {
    0.05
}

const fn little_memory() -> u64 {
    32
}

/// What became of one task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The newest state.
    state: String,
    reason: String,
    message: String,
    exit_code: Option<i32>,
    data: String,
    agent: u64,
    /// How often each state was received.
    received: BTreeMap<String, u32>,
}

#[derive(Serialize)]
struct Page<'a> {
    tasks: &'a BTreeMap<String, Record>,
    waiting: usize,
    agents: usize,
    messages: &'a [String],
    wanted_back: Vec<Wanted>,
}

/// An agent that is wanted back.
#[derive(Serialize)]
struct Wanted {
    agent: u64,
    start_ms: u64,
    duration_ms: Option<u64>,
}

#[derive(Default)]
struct Launcher {
    jobs: BTreeMap<String, Job>,
    next_job: u64,
    tasks: BTreeMap<String, Record>,
    held: Vec<Offer>,
    agents: BTreeSet<u64>,
    messages: Vec<String>,
    wanted_back: Vec<InverseOffer>,
}

tessera_sdk::scheduler!(Launcher, state_version = 1);

impl Task {
    fn pending(&self) -> Pending {
        let spec = match &self.executor {
            Some(executor) => TaskSpec::executor(executor, &self.run)
                .data(self.data.as_bytes())
                .executor_resources(executor_resources()),
            None if self.wasm => TaskSpec::wasm(&self.run, self.args.iter().map(String::as_str)),
            None => TaskSpec::shell(&self.run),
        };
        let spec = spec.name("launcher").cpus(self.cpus).mem_mib(self.mem_mib);
        Pending::new(&self.id, spec.restarts(self.restarts))
    }

    /// What it takes, with its executor's share.
    fn needs(&self) -> Resources {
        let mut needs = Resources::new(self.cpus, self.mem_mib);
        if self.executor.is_some() {
            needs.cpus_milli += executor_resources().cpus_milli;
            needs.mem_mib += executor_resources().mem_mib;
        }
        needs
    }
}

fn wanted(offer: &InverseOffer) -> Wanted {
    Wanted { agent: offer.agent, start_ms: offer.start_ms, duration_ms: offer.duration_ms }
}

fn executor_resources() -> Resources {
    Resources::new(0.05, 32)
}

fn sum<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Resources {
    tasks
        .into_iter()
        .fold(Resources::new(0.0, 0), |mut sum, task| {
            let needs = task.needs();
            sum.cpus_milli += needs.cpus_milli;
            sum.mem_mib += needs.mem_mib;
            sum
        })
}

impl Scheduler for Launcher {
    fn init(_config: &Config) -> Result<Self, Error> {
        let mut launcher = Self {
            next_job: state::get("next-job")?.unwrap_or(0),
            ..Self::default()
        };
        for entry in JOBS.iter() {
            launcher.jobs.extend([entry?]);
        }
        for entry in TASKS.iter() {
            launcher.tasks.extend([entry?]);
        }
        Ok(launcher)
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => {
                self.held.clear();
                self.wanted_back.clear();
            }
            Event::InverseOffers(offers) => self.wanted_back.extend(offers),
            Event::InverseRescinded(ids) => self.wanted_back.retain(|offer| !ids.contains(&offer.id)),
            Event::Offers(offers) => {
                self.agents.extend(offers.iter().map(|offer| offer.agent));
                self.held.extend(offers);
            }
            Event::Rescinded(ids) => self.held.retain(|offer| !ids.contains(&offer.id)),
            Event::Update(status) => self.on_update(status)?,
            Event::Message(message) => {
                if self.messages.len() < MESSAGES_MAX {
                    let text = String::from_utf8_lossy(&message.data).into_owned();
                    self.messages.push(format!("{}: {text}", message.executor));
                }
            }
            Event::ExecutorFailed(failure) => self
                .messages
                .push(format!("{} failed: {}", failure.executor, failure.message)),
            Event::Http(request) => {
                let response = self.serve(turn, &request)?;
                request.respond(response)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let jobs: Vec<String> = self.jobs.keys().cloned().collect();
        for key in jobs {
            let Some(job) = self.jobs.get(&key).cloned() else {
                continue;
            };
            if self.launch(turn, &job)? {
                self.jobs.remove(&key);
                JOBS.remove(&key)?;
            }
        }
        Ok(())
    }
}

impl Launcher {
    fn serve(&mut self, turn: &mut Turn, request: &Request) -> Result<Response, Error> {
        let (method, path) = request.route();
        Ok(match (method, path.as_slice()) {
            ("GET", []) => Response::json(&Page {
                tasks: &self.tasks,
                waiting: self.jobs.len(),
                agents: self.agents.len(),
                messages: &self.messages,
                wanted_back: self.wanted_back.iter().map(wanted).collect(),
            }),
            ("POST", ["jobs"]) => match request.json::<Job>() {
                Ok(job) => {
                    let key = format!("{:06}", self.next_job);
                    self.next_job += 1;
                    state::set("next-job", &self.next_job)?;
                    JOBS.insert(&key, &job)?;
                    self.jobs.insert(key.clone(), job);
                    Response::text(key).status(201)
                }
                Err(refused) => refused,
            },
            ("POST", ["kill", task]) => {
                turn.kill(task, None)?;
                Response::text("killed\n")
            }
            ("POST", ["send", executor]) => {
                for agent in &self.agents {
                    turn.send(*agent, executor, &request.body)?;
                }
                Response::text("sent\n")
            }
            ("POST", ["trap"]) => panic!("asked to panic"),
            _ => Response::not_found("jobs, kill/<task> or send/<executor>"),
        })
    }

    /// Launch a job if there is room; whether it is done.
    fn launch(&mut self, turn: &mut Turn, job: &Job) -> Result<bool, Error> {
        match job.how.as_str() {
            "group" => {
                let Some(at) = self.fitting(&sum(&job.tasks), job.force, &[]) else {
                    return Ok(false);
                };
                let offer = self.held.remove(at);
                turn.launch_group(&[offer], job.tasks.iter().map(Task::pending), 0)?;
            }
            "gang" => {
                let mut used: Vec<usize> = Vec::new();
                for task in &job.tasks {
                    let Some(at) = self.fitting(&task.needs(), job.force, &used) else {
                        return Ok(false);
                    };
                    used.push(at);
                }
                turn.gang(|turn| {
                    for (task, at) in job.tasks.iter().zip(&used) {
                        if let Some(offer) = self.held.get(*at) {
                            turn.launch(offer, task.pending(), 0)?;
                        }
                    }
                    Ok(())
                })?;
                let ids: Vec<u64> = used
                    .iter()
                    .filter_map(|at| Some(self.held.get(*at)?.id))
                    .collect();
                self.held.retain(|offer| !ids.contains(&offer.id));
            }
            _ => {
                let Some(at) = self.fitting(&sum(&job.tasks), job.force, &[]) else {
                    return Ok(false);
                };
                let offer = self.held.remove(at);
                let tasks: Vec<Pending> = job.tasks.iter().map(Task::pending).collect();
                turn.place(vec![offer], tasks, 0)?;
            }
        }
        Ok(true)
    }

    /// The first offer with room, on another agent than those that are used.
    fn fitting(&self, needs: &Resources, force: bool, used: &[usize]) -> Option<usize> {
        let agent = |at: &usize| self.held.get(*at).map(|offer| offer.agent);
        let taken: Vec<u64> = used.iter().filter_map(agent).collect();
        let fits = |offer: &Offer| force || offer.available.contains(needs);
        self.held
            .iter()
            .position(|offer| !taken.contains(&offer.agent) && fits(offer))
    }

    fn on_update(&mut self, status: TaskStatus) -> Result<(), Error> {
        let record = self.tasks.entry(status.task.clone()).or_default();
        let name = status.state.name().to_owned();
        *record.received.entry(name.clone()).or_default() += 1;
        record.state = name;
        record.reason = status.reason;
        record.message = status.message;
        record.exit_code = status.exit_code;
        record.agent = status.agent;
        record.data = String::from_utf8_lossy(&status.data).into_owned();
        TASKS.insert(&status.task, record)
    }
}
