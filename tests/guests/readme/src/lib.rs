//! The scheduler of README.md, word by word, so that it is compiled and can be run; a rule of
//! `tests/tidy` holds the two together.

use tessera_sdk::http::Response;
use tessera_sdk::jobs::{Job, Jobs};
use tessera_sdk::{Config, Error, Event, Scheduler, TaskSpec, Turn};

/// Runs as many tasks as its configuration says, tries again what fails, and tells how it stands.
struct Batch { jobs: Jobs }

impl Scheduler for Batch {
    fn init(config: &Config) -> Result<Self, Error> {
        let count: u32 = config.parse_or("count", 5)?;
        let spec = TaskSpec::shell("echo I am task $NUMBER").cpus(0.1).mem_mib(32);
        let job = |n: u32| Job::new(format!("task-{n}"), spec.clone()).env("NUMBER", n.to_string());
        Ok(Self { jobs: Jobs::load((1..=count).map(job))? })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        self.jobs.handle(turn, &event)?;
        match event {
            Event::Http(request) => request.respond(Response::json(&self.jobs.counts())),
            _ => Ok(()),
        }
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.jobs.end_turn(turn)
    }
}

tessera_sdk::scheduler!(Batch, state_version = 1);
