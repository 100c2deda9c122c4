//! A scheduler that passes limits, one per path:
//! - `/mem` grows memory until it is refused and answers how many MiB it got;
//! - `/stack` recurses without end;
//! - `/log` writes 100,000 lines;
//! - `/state/value`, `/state/keys`, `/state/bytes`, `/state/total` write too large a value, too
//!   many keys, too many bytes, and as much as a turn may again and again (one turn per request);
//! - `/ops` declines 100,000 offers that are not its own;
//! - `/timers` sets 2,000 timers;
//! - `/specs` defines 2,000 specs.
//!
//! Answers are `accepted=<n>` and, if the host refused something, `refused=<error>`. The turn then
//! ends normally, so what was accepted commits.

use std::hint::black_box;

use tessera_sdk::http::Response;
use tessera_sdk::{
    Config, Error, Event, Offer, Pending, Resources, Scheduler, TaskSpec, Turn, log, state,
};

const MIB: usize = 1 << 20;

struct Flood {
    total: u64,
}

tessera_sdk::scheduler!(Flood, state_version = 1);

impl Scheduler for Flood {
    fn init(_config: &Config) -> Result<Self, Error> {
        Ok(Self { total: 0 })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        let Event::Http(request) = event else {
            return Ok(());
        };
        let (_, path) = request.route();
        let response = match path.as_slice() {
            ["mem"] => Response::text(format!("accepted={}\n", grow())),
            ["stack"] => Response::text(format!("accepted={}\n", recurse(1))),
            ["log"] => attempt(100_000, |index| {
                log::info(format!("line {index} of a flood that is to be cut"));
                Ok(())
            }),
            ["state", "value"] => attempt(1, |_| {
                state::set_bytes("value", &vec![b'v'; 256 * 1024 + 1])
            }),
            ["state", "keys"] => attempt(1_001, |index| {
                state::set_bytes(&format!("key/{index}"), b"k")
            }),
            ["state", "bytes"] => attempt(5, |index| {
                state::set_bytes(&format!("bytes/{index}"), &vec![b'b'; MIB / 4])
            }),
            ["state", "total"] => {
                self.total += 1;
                let total = self.total;
                attempt(3, |index| {
                    state::set_bytes(&format!("total/{total}/{index}"), &vec![b't'; MIB / 4])
                })
            }
            ["ops"] => attempt(100_000, |index| turn.decline(&[foreign_offer(index)], 0)),
            ["timers"] => attempt(2_000, |index| {
                turn.set_timer(&format!("timer-{index}"), 3_600_000)
            }),
            ["specs"] => attempt(2_000, |index| {
                let task = Pending::new(
                    format!("task-{index}"),
                    TaskSpec::shell(format!("exit {index}")),
                );
                turn.launch(&foreign_offer(index), task, 0)
            }),
            _ => Response::text("a flood waits to be asked\n"),
        };
        request.respond(response)
    }
}

/// Do something so many times, or until it is refused.
fn attempt(times: u64, mut step: impl FnMut(u64) -> Result<(), Error>) -> Response {
    for index in 0..times {
        if let Err(error) = step(index) {
            return Response::text(format!("accepted={index} refused={error}\n"));
        }
    }
    Response::text(format!("accepted={times}\n"))
}

fn foreign_offer(index: u64) -> Offer {
    Offer {
        id: u64::MAX - index,
        agent: 1,
        available: Resources::new(1.0, 64),
        items: Vec::new(),
    }
}

/// Grow memory until it is refused; the MiB that were had.
fn grow() -> usize {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            return black_box(held.len());
        }
        block.resize(MIB, 1);
        if held.try_reserve(1).is_err() {
            return black_box(held.len());
        }
        held.push(block);
    }
}

/// Recurse until the stack ends.
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let below = recurse(black_box(depth.wrapping_add(1)));
    below.wrapping_add(frame.iter().sum())
}
