//! A scheduler that counts its turns in its state, and fails as asked: `/trap` panics, `/error`
//! returns an error, `/abort` aborts. `GET /` serves the count as `{"turns": n, "instance": m}`,
//! where `m` counts the turns of this instance only.

use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Scheduler, Turn, state};

struct Trap {
    turns: u64,
    instance_turns: u64,
}

tessera_sdk::scheduler!(Trap, state_version = 1);

impl Scheduler for Trap {
    fn init(_config: &Config) -> Result<Self, Error> {
        Ok(Self {
            turns: state::get("turns")?.unwrap_or(0),
            instance_turns: 0,
        })
    }

    fn handle(&mut self, _turn: &mut Turn, event: Event) -> Result<(), Error> {
        let Event::Http(request) = event else {
            return Ok(());
        };
        // Lost with the turn when it fails: a test can look for it.
        state::set("last-path", &request.path)?;
        match request.route().1.as_slice() {
            ["trap"] => panic!("asked to panic"),
            ["error"] => Err(Error::failed("asked to fail")),
            ["abort"] => std::process::abort(),
            _ => {
                let counts = format!(
                    "{{\"turns\":{},\"instance\":{}}}\n",
                    self.turns, self.instance_turns
                );
                request.respond(Response::text(counts))
            }
        }
    }

    fn end_turn(&mut self, _turn: &mut Turn) -> Result<(), Error> {
        self.turns += 1;
        self.instance_turns += 1;
        state::set("turns", &self.turns)
    }
}
