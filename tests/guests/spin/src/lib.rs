//! A scheduler that never returns: from `init`, a timer or a request, as `spin-on` says (`init`,
//! `timer`, `http`). Must be stopped by the host, and must not disturb its neighbours.

use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Scheduler, Turn};

/// Time until the timer on which it spins, in ms.
const TIMER_MS: u64 = 50;

struct Spin {
    on: String,
}

tessera_sdk::scheduler!(Spin, state_version = 1);

fn spin() -> ! {
    let mut turns: u64 = 0;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

impl Scheduler for Spin {
    fn init(config: &Config) -> Result<Self, Error> {
        let on = config.get("spin-on").unwrap_or("timer").to_owned();
        match on.as_str() {
            "init" => spin(),
            "timer" | "http" => Ok(Self { on }),
            other => Err(Error::failed(format!(
                "spin-on must be init, timer or http, not `{other}`"
            ))),
        }
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) if self.on == "timer" => {
                turn.set_timer("spin", TIMER_MS)?
            }
            Event::Timer(_) => spin(),
            Event::Http(_) if self.on == "http" => spin(),
            Event::Http(request) => request.respond(Response::text("not yet\n"))?,
            _ => {}
        }
        Ok(())
    }
}
