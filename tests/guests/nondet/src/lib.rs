//! A scheduler that reports everything by which two lives of it could differ: clocks, sleeping,
//! random bytes, the order of a `HashMap`, NaN bits, environment. `GET /` answers with JSON; the
//! same report of `init` is under `init`. Two instances with equal inputs must answer equally.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Scheduler, Turn};

struct Nondet {
    init: Value,
}

tessera_sdk::scheduler!(Nondet, state_version = 1);

impl Scheduler for Nondet {
    fn init(_config: &Config) -> Result<Self, Error> {
        Ok(Self { init: report() })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        let Event::Http(request) = event else {
            return Ok(());
        };
        let body = json!({
            "turn": turn.number(),
            "time_ms": turn.time_ms(),
            "init": self.init,
            "now": report(),
        });
        request.respond(Response::json(&body))
    }
}

fn system_ns() -> String {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos().to_string(),
        Err(_) => "before 1970".to_owned(),
    }
}

fn report() -> Value {
    let first = Instant::now();
    let system_before = system_ns();
    std::thread::sleep(Duration::from_millis(20));
    let slept_ns = first.elapsed().as_nanos().to_string();
    let mut random = [0_u8; 16];
    let random = match getrandom::fill(&mut random) {
        Ok(()) => random.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(error) => error.to_string(),
    };
    let map: HashMap<u32, ()> = (0..16).map(|number| (number, ())).collect();
    let order: Vec<u32> = map.into_keys().collect();
    let nan = black_box(0.0_f64) / black_box(0.0_f64);
    json!({
        "system_ns": system_before,
        "system_ns_after_sleep": system_ns(),
        "slept_ns": slept_ns,
        "random": random,
        "order": order,
        "nan_bits": format!("{:016x}", nan.to_bits()),
        "environment": std::env::vars().collect::<Vec<_>>(),
        "args": std::env::args().collect::<Vec<_>>(),
    })
}
