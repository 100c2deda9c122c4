//! A scheduler that attacks its host and its neighbours, as `attack` in its configuration says.
//!
//! Most attacks run when the first request comes, and the answer tells what became of them:
//! `contained: …` when the host refused or hid what was tried, `ESCAPED: …` when it did not. Others
//! run in `init`, with the first event, on offers or on a timer. `task` launches the component `task`
//! with the argument `argument`. Statuses of tasks are added to the
//! answer as they arrive. What is expected of each attack stands in the table of the test that
//! starts it.

mod calls;
mod memory;
mod offers;
mod raw;
mod wasi;

use std::cell::RefCell;
use std::collections::BTreeMap;
use tessera_sdk::bindings::exports::tessera::framework::scheduler::{Description, Guest, TurnInfo};
use tessera_sdk::bindings::tessera::framework::events::{Event, HttpAnswer, HttpRequest};
use tessera_sdk::bindings::tessera::framework::{driver, http, state, timers};

/// Key whose presence makes `init` fail in the attack `poison`.
const POISON: &str = "poison";

/// What one instance knows.
#[derive(Default)]
struct Hostile {
    attack: String,
    config: BTreeMap<String, String>,
    report: Option<String>,
    notes: Vec<String>,
    turns: u64,
    launched: bool,
    /// The newest offer of its own.
    offer: Option<u64>,
    /// Turns in which others' offers were tried.
    guessed: u64,
}

thread_local! {
    static HOSTILE: RefCell<Hostile> = RefCell::default();
}

struct Component;

impl Guest for Component {
    fn describe() -> Description {
        Description {
            writes_state: 1,
            reads_state: vec![1],
        }
    }

    fn init(config: Vec<(String, String)>) -> Result<(), String> {
        HOSTILE.with_borrow_mut(|hostile| {
            hostile.config = config.into_iter().collect();
            hostile.attack = hostile.config.get("attack").cloned().unwrap_or_default();
            match hostile.attack.as_str() {
                "init-loop" => memory::spin(),
                "init-grow" => memory::grow_and_touch(),
                "poison" if state::get(POISON).is_some() => panic!("the state is poisoned"),
                _ => Ok(()),
            }
        })
    }

    fn handle(turn: TurnInfo, batch: Vec<Event>) -> Result<(), String> {
        HOSTILE.with_borrow_mut(|hostile| hostile.handle(&turn, batch))
    }
}

// Only a component has the symbols; unit tests run on the machine itself.
#[cfg(target_family = "wasm")]
tessera_sdk::bindings::export!(Component with_types_in tessera_sdk::bindings);
#[cfg(not(target_family = "wasm"))]
const _: fn() = tessera_sdk::runtime::assert_exported::<Component>;

impl Hostile {
    fn handle(&mut self, turn: &TurnInfo, batch: Vec<Event>) -> Result<(), String> {
        self.turns += 1;
        if self.attack == "trap-storm" {
            panic!("every turn ends like this");
        }
        for event in batch {
            match event {
                Event::Http(request) => self.answer(&request)?,
                Event::Offers(offered) => {
                    let attack = if self.launched {
                        ""
                    } else {
                        self.attack.as_str()
                    };
                    let notes = offers::on_offers(attack, &offered, &self.config);
                    self.launched = true;
                    self.notes.extend(notes);
                    self.offer = offered.iter().map(|offer| offer.id).max().or(self.offer);
                }
                Event::Update(status) => {
                    let note = format!(
                        "{} {:?} {} {} data={}",
                        status.task,
                        status.state,
                        status.reason,
                        status.message,
                        status.data.len()
                    );
                    if status.task.starts_with("foreign-") && !note.contains("INVALID_OFFER") {
                        self.notes.push("ESCAPED: with another's offer".to_owned());
                    }
                    self.notes.push(note);
                }
                Event::Timer(_) if self.attack == "timer-loop" => memory::spin(),
                _ => {}
            }
        }
        self.each_turn(turn);
        Ok(())
    }

    /// What goes on turn after turn.
    fn each_turn(&mut self, turn: &TurnInfo) {
        match self.attack.as_str() {
            "again-storm" => {
                // A turn that writes is a commit.
                if let Err(error) = state::set("turns", &self.turns.to_le_bytes()) {
                    self.notes.push(format!("{error:?}"));
                }
                driver::call_again();
            }
            "timer-storm" => {
                for number in 0..100 {
                    if let Err(error) = timers::set(&format!("storm-{number}"), 10) {
                        self.notes.push(format!("{error:?}"));
                    }
                }
            }
            "state-full" => {
                let note = calls::fill_state(turn.number);
                self.notes.truncate(3);
                self.notes.extend(note);
                driver::call_again();
            }
            "state-scan" if self.turns <= 5 => {
                self.notes.push(calls::scan(self.turns));
                driver::call_again();
            }
            "offers-foreign" if self.guessed < 10 => {
                if let Some(offer) = self.offer {
                    let tried = self.guessed * offers::GUESSES;
                    self.notes.extend(offers::guess(offer + tried));
                    self.guessed += 1;
                    driver::call_again();
                }
            }
            "timers-full" if self.turns <= 4 => {
                self.notes.push(calls::more_timers(self.turns));
                driver::call_again();
            }
            _ => {}
        }
    }

    fn answer(&mut self, request: &HttpRequest) -> Result<(), String> {
        if self.attack == "poison" && self.report.is_some() {
            panic!("whoever comes next finds the poison");
        }
        if self.report.is_none() {
            self.report = Some(self.attack(request)?);
        }
        let report = self.report.clone().unwrap_or_default();
        let body = format!(
            "{report}\n{}\nturns={}\n",
            self.notes.join("\n"),
            self.turns
        );
        let answer = HttpAnswer {
            status: 200,
            headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
            body: body.into_bytes(),
        };
        // The attack may have answered already.
        let _ = http::respond(request.id, &answer);
        Ok(())
    }

    /// Attacks that a request starts.
    fn attack(&self, request: &HttpRequest) -> Result<String, String> {
        let name = self.attack.as_str();
        if name == "error-giant" {
            return Err("E".repeat(1 << 20));
        }
        let found = memory::attack(name)
            .or_else(|| wasi::attack(name))
            .or_else(|| raw::attack(name))
            .or_else(|| calls::attack(name, request, &self.config))
            .or_else(|| offers::attack(name));
        Ok(found.unwrap_or_else(|| format!("waiting: {name}")))
    }
}
