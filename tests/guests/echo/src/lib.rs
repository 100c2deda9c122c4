//! A good neighbour: each turn counts itself in the state and sets a timer `tick-ms` (50) ahead, for
//! ever. With `tick-ms` 0 it is a quiet one: it counts nothing, sets no timer and wants no offers. With `offers` 0 it wants
//! none either; else it keeps those that it gets.
//! `GET /` answers with the count as text, `GET /state/<key>` with a key of its state, `GET /changes` with the keys
//! of which it was told that users wrote them; any other request is answered with its own body.

use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Scheduler, Turn, state};

/// Time between turns unless the configuration says another, in ms.
const TICK_MS: u64 = 50;

struct Echo {
    turns: u64,
    tick_ms: u64,
    wants_offers: bool,
    /// Whether it receives offers that it does not want.
    is_offered: bool,
    changes: Vec<String>,
}

tessera_sdk::scheduler!(Echo, state_version = 1);

impl Scheduler for Echo {
    fn init(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            turns: state::get("turns")?.unwrap_or(0),
            tick_ms: config.parse_or("tick-ms", TICK_MS)?,
            wants_offers: config.parse_or("offers", 1_u8)? != 0,
            is_offered: true,
            changes: Vec::new(),
        })
    }

    fn handle(&mut self, _turn: &mut Turn, event: Event) -> Result<(), Error> {
        let request = match event {
            Event::Http(request) => request,
            Event::Subscribed(_) | Event::Resumed(_) => {
                self.is_offered = true;
                return Ok(());
            }
            Event::Other(other) if other.key == "state-changed" => {
                self.changes.push(String::from_utf8_lossy(&other.value).into_owned());
                return Ok(());
            }
            _ => return Ok(()),
        };
        let key = request.path.strip_prefix("/state/");
        let response = match (request.method.as_str(), key) {
            ("GET", Some(key)) => match state::get_bytes(key) {
                Some(value) => Response::text(String::from_utf8_lossy(&value)),
                None => Response::text("nothing"),
            },
            ("GET", None) if request.path == "/changes" => Response::text(self.changes.join(" ")),
            ("GET", None) => Response::text(format!("{}\n", self.turns)),
            _ => Response::text(String::from_utf8_lossy(&request.body)),
        };
        request.respond(response)
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        if (self.tick_ms == 0 || !self.wants_offers) && std::mem::take(&mut self.is_offered) {
            turn.suppress()?;
        }
        if self.tick_ms == 0 {
            return Ok(());
        }
        self.turns += 1;
        state::set("turns", &self.turns)?;
        turn.set_timer("tick", self.tick_ms)
    }
}
