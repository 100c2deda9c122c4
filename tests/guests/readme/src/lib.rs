//! The scheduler of README.md, word by word, so that it is compiled and can be run; a rule of
//! `tests/tidy` holds the two together.

use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Pending, REFUSE_MS, Scheduler, TaskSpec, Turn, state};

/// Runs `date` once, and answers requests with what became of it.
struct Once { launched: bool }

impl Scheduler for Once {
    fn init(_config: &Config) -> Result<Self, Error> {
        Ok(Self { launched: state::get("launched")?.unwrap_or(false) })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Offers(offers) if !self.launched => {
                let date = TaskSpec::shell("date > now").cpus(0.1).mem_mib(16).result_file("now");
                let placed = turn.place(offers, [Pending::new("date", date)], REFUSE_MS)?;
                self.launched = !placed.launched.is_empty();
                state::set("launched", &self.launched)?;
            }
            Event::Offers(offers) => turn.decline(&offers, REFUSE_MS)?,
            Event::Update(status) if status.state.is_terminal() => state::set("outcome", &status.describe())?,
            Event::Http(request) => {
                let outcome: Option<String> = state::get("outcome")?;
                request.respond(Response::json(&outcome))?;
            }
            _ => {}
        }
        Ok(())
    }
}

tessera_sdk::scheduler!(Once, state_version = 1);
