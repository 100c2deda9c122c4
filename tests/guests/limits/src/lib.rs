//! A scheduler that goes as far towards a limit as it is told, and no further: `GET /<what>/<n>`, where
//! `what` is a row of the table of limits or near one. The answer is `done`, or `refused=<error>`.
//! What ends the instance is not answered.
//!
//! Configuration: `init-spin` spins so many rounds in `init`; 0 is for ever.

use std::cell::RefCell;
use std::hint::black_box;

use tessera_sdk::http::{Request, Response};
use tessera_sdk::{
    Config, Error, Event, Offer, Pending, Resources, Scheduler, TaskSpec, Turn, log, state,
};
use wasip2::clocks::monotonic_clock;
use wasip2::io::poll::Pollable;
use wasip2::random::random;

/// Bytes of a page of linear memory.
const PAGE: usize = 64 << 10;
/// Bytes of each piece of state that is written in a row.
const PIECE: usize = 16 << 10;
/// Bytes of the one file of a large spec.
const FILE_BYTES: usize = 30 << 10;

thread_local! {
    static HANDLES: RefCell<Vec<Pollable>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Limits {
    /// Requests that wait for an answer.
    held: Vec<Request>,
    specs: u64,
}

tessera_sdk::scheduler!(Limits, state_version = 1);

impl Scheduler for Limits {
    fn init(config: &Config) -> Result<Self, Error> {
        if config.get("init-spin").is_some() {
            spin(config.parse_or("init-spin", 1)?);
        }
        Ok(Self::default())
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        let Event::Http(request) = event else {
            return Ok(());
        };
        let (what, count) = match request.route().1.as_slice() {
            [what, count] => ((*what).to_owned(), count.parse().unwrap_or(0)),
            _ => (String::new(), 0),
        };
        let done = match what.as_str() {
            "error" => return Err(Error::failed("e".repeat(count))),
            "hold" => {
                self.held.push(request);
                return Ok(());
            }
            "answer-held" => {
                let held = std::mem::take(&mut self.held).into_iter();
                held.map(|request| request.respond(Response::text("late"))).collect()
            }
            _ => self.go(turn, &what, count),
        };
        request.respond(Response::text(match done {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("refused={error}"),
        }))
    }
}

impl Limits {
    fn go(&mut self, turn: &mut Turn, what: &str, count: usize) -> Result<(), Error> {
        let each = |step: &mut dyn FnMut(usize) -> Result<(), Error>| -> Result<(), Error> {
            (0..count).try_for_each(step)
        };
        match what {
            "memory" => memory(count),
            "spin" => Ok(spin(count as u64)),
            "handles" => each(&mut |_| {
                let pollable = monotonic_clock::subscribe_duration(1);
                HANDLES.with_borrow_mut(|handles| handles.push(pollable));
                Ok(())
            }),
            "host-calls" => each(&mut |_| {
                black_box(state::get_bytes("k"));
                Ok(())
            }),
            "text" => Ok(log::info("t".repeat(count))),
            "lines" => each(&mut |line| Ok(log::info(format!("{line:04}")))),
            "random" => {
                black_box(random::get_random_bytes(count as u64));
                Ok(())
            }
            "operations" => each(&mut |offer| turn.decline(&[foreign(offer)], 0)),
            "timers" => each(&mut |timer| turn.set_timer(&format!("{timer:0>255}"), 3_600_000)),
            "keys" => each(&mut |key| state::set_bytes(&format!("k{key}"), b"")),
            "value" => state::set_bytes("v", &vec![b'v'; count]),
            "pieces" => each(&mut |piece| state::set_bytes(&format!("p{piece}"), &[1; PIECE])),
            // One whose number is the count: a state that grows turn by turn.
            "piece" => state::set_bytes(&format!("p{count}"), &[1; PIECE]),
            "key" => state::set_bytes(&format!("k{count}"), b""),
            "specs" => each(&mut |_| self.launch(turn, TaskSpec::shell("true"))),
            "large-specs" => each(&mut |_| {
                let spec = TaskSpec::shell("true").file("f", vec![b'f'; FILE_BYTES]);
                self.launch(turn, spec)
            }),
            other => Err(Error::failed(format!("nobody knows {other}"))),
        }
    }

    /// Launch a task with a spec of its own.
    fn launch(&mut self, turn: &mut Turn, spec: TaskSpec) -> Result<(), Error> {
        self.specs += 1;
        let name = format!("s{}", self.specs);
        let task = Pending::new(&name, spec.name(&name));
        turn.launch(&foreign(self.specs as usize), task, 0)
    }
}

fn foreign(index: usize) -> Offer {
    Offer {
        id: u64::MAX - index as u64,
        agent: 1,
        available: Resources::new(1.0, 64),
        items: Vec::new(),
    }
}

/// Grow memory to so many pages.
fn memory(pages: usize) -> Result<(), Error> {
    #[cfg(target_arch = "wasm32")]
    {
        let missing = pages.saturating_sub(core::arch::wasm32::memory_size::<0>());
        if core::arch::wasm32::memory_grow::<0>(missing) == usize::MAX {
            return Err(Error::failed(format!("{} bytes", pages * PAGE)));
        }
    }
    Ok(())
}

/// Compute for so many rounds of a million steps; 0 is for ever.
fn spin(rounds: u64) {
    let mut sum: u64 = 0;
    let mut round: u64 = 0;
    while rounds == 0 || round < rounds {
        for step in 0..1_000_000_u64 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(step));
        }
        round = round.wrapping_add(1);
    }
}
