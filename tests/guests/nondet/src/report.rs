//! The report, and the scheduler that makes it. `nondet-changed` has the same and makes another remark.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Scheduler, Turn, state};

pub struct Nondet {
    init: Value,
    config: Config,
    sum: f64,
}

impl Scheduler for Nondet {
    fn init(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            init: report(),
            config: config.clone(),
            sum: state::get("sum")?.unwrap_or(0.1),
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        let request = match event {
            Event::Http(request) => request,
            Event::ConfigChanged(config) => {
                self.config = config;
                return Ok(());
            }
            _ => return Ok(()),
        };
        if request.path == "/trap" {
            panic!("asked to panic");
        }
        let now = report();
        state::set("last", &now)?;
        let body = json!({
            "turn": turn.number(),
            "time_ms": turn.time_ms(),
            "init": self.init,
            "now": now,
            "sum": self.sum,
            "remark": crate::remark(turn.number(), &self.config)?,
        });
        request.respond(Response::json(&body))
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        // Rounded differently when the order of the sum differs.
        let parts: HashMap<u32, f64> = (1..100).map(|n| (n, 1.0 / f64::from(n))).collect();
        self.sum = (self.sum + parts.values().sum::<f64>()).sin();
        state::set("sum", &self.sum)?;
        let first = parts.into_keys().next().unwrap_or_default();
        turn.set_timer(&format!("timer-{}", first % 7), 1_000 + u64::from(first))
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
