//! A scheduler that says what it waits for, launches it where it is offered, and says what is left.
//!
//! - `POST /wants` takes a list of [`Want`]s, which replace those before; an empty one asks for nothing, and whole
//!   agents are offered again.
//! - `POST /kill/<task>` kills a task.
//! - `GET /` answers with [`Page`]: what was offered, what it was told, and what became of tasks.
//!
//! Tasks sleep until they are killed, or do what their want says. Offers are given back for a moment when nothing fits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_sdk::http::{Request, Response};
use tessera_sdk::{Config, Error, Event, Offer, Pending, Scheduler, TaskSpec, TaskStatus, Turn, state};

/// Offers that are remembered.
const OFFERS_MAX: usize = 500;
/// Updates that are remembered.
const HEARD_MAX: usize = 500;
/// Time for which what is left over is not offered again, in ms.
const REFUSE_MS: u64 = 200;

/// So many sleeping tasks of one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Want {
    id: String,
    #[serde(default)]
    cpus: f64,
    #[serde(default)]
    mem_mib: u64,
    #[serde(default)]
    gpus: u64,
    count: u32,
    /// Zones that will do; any if there is none.
    #[serde(default)]
    zones: Vec<String>,
    #[serde(default)]
    revocable: bool,
    /// A shell command instead of sleep.
    run: Option<String>,
    /// Launched so far.
    #[serde(default)]
    launched: u32,
}

/// What was offered.
#[derive(Serialize)]
struct Seen {
    agent: u64,
    cpus_milli: u64,
    mem_mib: u64,
    gpus: f64,
    revocable: bool,
}

/// An update.
#[derive(Serialize)]
struct Heard {
    task: String,
    state: String,
    reason: String,
    message: String,
}

#[derive(Serialize)]
struct Page<'a> {
    offers: &'a [Seen],
    heard: &'a [Heard],
    tasks: &'a BTreeMap<String, (String, String, u64)>,
    left: u32,
}

#[derive(Default)]
struct Waiting {
    wants: Vec<Want>,
    /// Requests are to be said again.
    is_new: bool,
    offers: Vec<Seen>,
    heard: Vec<Heard>,
    /// State, reason and agent.
    tasks: BTreeMap<String, (String, String, u64)>,
}

tessera_sdk::scheduler!(Waiting, state_version = 1);

impl Want {
    fn spec(&self) -> TaskSpec {
        let spec = TaskSpec::shell(self.run.as_deref().unwrap_or("sleep 1000")).name(&self.id).cpus(self.cpus).mem_mib(self.mem_mib);
        let spec = if self.gpus > 0 { spec.gpus(self.gpus) } else { spec };
        if self.revocable { spec.revocable() } else { spec }
    }

    fn left(&self) -> u32 {
        self.count.saturating_sub(self.launched)
    }

    fn request(&self) -> tessera_sdk::Request {
        let request = tessera_sdk::Request::of(&self.id, &self.spec()).count(self.left());
        if self.zones.is_empty() { request } else { request.zone(self.zones.clone()) }
    }
}

impl Scheduler for Waiting {
    fn init(_config: &Config) -> Result<Self, Error> {
        let wants: Vec<Want> = state::get("wants")?.unwrap_or_default();
        Ok(Self { wants, ..Self::default() })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Offers(offers) => self.place(turn, offers)?,
            Event::Update(status) => self.on_update(status),
            Event::Http(request) => {
                let response = self.serve(turn, &request)?;
                request.respond(response)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        if !std::mem::take(&mut self.is_new) {
            return Ok(());
        }
        state::set("wants", &self.wants)?;
        turn.request(self.wants.iter().filter(|want| want.left() > 0).map(Want::request))
    }
}

impl Waiting {
    fn place(&mut self, turn: &mut Turn, offers: Vec<Offer>) -> Result<(), Error> {
        for offer in &offers {
            let resources = offer.resources();
            let seen = Seen {
                agent: offer.agent,
                cpus_milli: resources.cpus_milli,
                mem_mib: resources.mem_mib,
                gpus: offer.resource("gpus"),
                revocable: offer.is_revocable(),
            };
            if self.offers.len() < OFFERS_MAX {
                self.offers.push(seen);
            }
        }
        let number = |want: &Want, n: u32| format!("{}-{n}", want.id);
        let pending: Vec<Pending> = self
            .wants
            .iter()
            .flat_map(|want| (want.launched..want.count).map(|n| Pending::new(number(want, n), want.spec())))
            .collect();
        let placed = turn.place(offers, pending, REFUSE_MS)?;
        for task in &placed.launched {
            let of = self.wants.iter_mut().find(|want| number(want, want.launched) == *task);
            of.ok_or_else(|| Error::failed(format!("{task} is out of order")))?.launched += 1;
            self.is_new = true;
        }
        for (task, error) in placed.refused {
            self.tasks.insert(task, ("refused".to_owned(), error.to_string(), 0));
        }
        Ok(())
    }

    fn on_update(&mut self, status: TaskStatus) {
        if self.heard.len() < HEARD_MAX {
            self.heard.push(Heard {
                task: status.task.clone(),
                state: status.state.name().to_owned(),
                reason: status.reason.clone(),
                message: status.message.clone(),
            });
        }
        let state = (status.state.name().to_owned(), status.reason, status.agent);
        self.tasks.insert(status.task, state);
    }

    fn serve(&mut self, turn: &mut Turn, request: &Request) -> Result<Response, Error> {
        let (method, path) = request.route();
        Ok(match (method, path.as_slice()) {
            ("GET", []) => Response::json(&Page {
                offers: &self.offers,
                heard: &self.heard,
                tasks: &self.tasks,
                left: self.wants.iter().map(Want::left).sum(),
            }),
            ("POST", ["wants"]) => match request.json::<Vec<Want>>() {
                Ok(wants) => {
                    self.wants = wants;
                    self.offers.clear();
                    self.is_new = true;
                    Response::text("ok\n")
                }
                Err(refused) => refused,
            },
            ("POST", ["kill", task]) => {
                turn.kill(task, Some(0))?;
                Response::text("killed\n")
            }
            _ => Response::not_found("wants or kill/<task>"),
        })
    }
}
