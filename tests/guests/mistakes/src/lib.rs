//! Makes the mistake that its configuration names (`mistake`) when it is given offers: what the messages
//! about each are is held by a test.

use tessera_sdk::{Config, Error, Event, Offer, Pending, REFUSE_MS, Scheduler, TaskSpec, Turn, state};

struct Mistakes {
    mistake: String,
}

tessera_sdk::scheduler!(Mistakes, state_version = 1);

impl Scheduler for Mistakes {
    fn init(config: &Config) -> Result<Self, Error> {
        let mistake = config.require("mistake")?.to_owned();
        if mistake == "other-state" {
            state::get::<u32>("count")?;
        }
        Ok(Self { mistake })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Offers(offers) => self.make(turn, &offers),
            _ => Ok(()),
        }
    }
}

impl Mistakes {
    fn make(&self, turn: &mut Turn, offers: &[Offer]) -> Result<(), Error> {
        let task = |id: &str, spec: TaskSpec| Pending::new(id, spec);
        match self.mistake.as_str() {
            "keeps-offers" => Ok(()),
            "large-value" => state::set_bytes("all", &vec![b'x'; 300_000]),
            "large-turn" => {
                (0..5).try_for_each(|n| state::set_bytes(&format!("part-{n}"), &vec![b'x'; 250_000]))
            }
            "many-keys" => (0..1_001).try_for_each(|n| state::set(&format!("key-{n}"), &n)),
            "panics" => {
                let count: Option<u32> = state::get("count")?;
                let count = count.expect("the count was written when it began");
                state::set("count", &(count + 1))
            }
            "empty-command" => turn.launch(&offers[0], task("a", TaskSpec::argv([""; 0])), REFUSE_MS),
            "bad-file" => turn.launch(&offers[0], task("a", TaskSpec::shell("cat x").file("../x", "y")), REFUSE_MS),
            "bad-id" => turn.launch(&offers[0], task("a task", TaskSpec::shell("true")), REFUSE_MS),
            "too-large" => turn.launch(&offers[0], task("a", TaskSpec::shell("true").cpus(64.0)), REFUSE_MS),
            "id-again" => turn.launch(&offers[0], task("a", TaskSpec::shell("true")), REFUSE_MS),
            "spins" => loop {
                std::hint::black_box(0);
            },
            "hoards" => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1_u8; 1 << 20]);
                }
            }
            other => Err(Error::failed(format!("no mistake is called {other}"))),
        }
    }
}
