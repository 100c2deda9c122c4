//! A scheduler that launches tasks at a given rate and times each from the turn that launched it to the turn
//! that heard that it runs, by the times of turns. It keeps no state: the masters' own is what it loads.
//!
//! Configuration: `cpus` (0.05), `mem-mib` (32), `per-offer` (8): tasks on one offer at most, `command` (a shell
//! command). `POST /?rate=N` sets tasks per second and begins a new measurement; `GET /` answers with what was
//! measured since. Of each turn's offers it keeps what it will need soon, and declines the others for a while.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Serialize;
use tessera_sdk::http::Response;
use tessera_sdk::{Config, Error, Event, Offer, Pending, Resources, Scheduler, TaskSpec, TaskState, TaskStatus, Turn};

/// Pause between two looks at what is due, when nothing else happens.
const TICK_MS: u64 = 20;
/// Offers are kept for what is launched in so long: well below the time after which they expire.
const AHEAD_MS: u64 = 500;
/// For how long the others are declined.
const REFUSE_MS: u64 = 3_000;
/// Tasks of one turn, which defines at most 256 specs: the rest waits for the next one.
const LAUNCHES_MAX: u64 = 250;

/// What is counted since the rate was set.
#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    rate: u64,
    since_ms: u64,
    now_ms: u64,
    /// Tasks that should have been launched until now.
    due: u64,
    launched: u64,
    /// Of those, how many were heard of as running, and how many were dropped or failed.
    running: u64,
    lost: u64,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
    /// Longest time in which a task was launched and heard of, and after that another one.
    pause_ms: u64,
    turns: u64,
    /// Offers in hand.
    offers: usize,
}

struct Load {
    spec: TaskSpec,
    per_offer: u64,
    needs: Resources,
    /// The oldest are used first, so that none expires.
    offers: VecDeque<Offer>,
    next: u64,
    /// When tasks of this measurement were launched that are not known to run.
    waiting: HashMap<String, u64>,
    times: BTreeMap<u64, u64>,
    /// When the last two tasks were heard of, each launched after the one before it was.
    heard_ms: [u64; 2],
    counts: Counts,
    ticking: bool,
}

tessera_sdk::scheduler!(Load, state_version = 1);

impl Scheduler for Load {
    fn init(config: &Config) -> Result<Self, Error> {
        let (cpus, mem_mib) = (config.parse_or("cpus", 0.05)?, config.parse_or("mem-mib", 32)?);
        let command = config.get("command").unwrap_or("sleep 5");
        Ok(Self {
            spec: TaskSpec::shell(command).name("load").cpus(cpus).mem_mib(mem_mib),
            per_offer: config.parse_or("per-offer", 8)?,
            needs: Resources::new(cpus, mem_mib),
            offers: VecDeque::new(),
            next: 0,
            waiting: HashMap::new(),
            times: BTreeMap::new(),
            heard_ms: [0; 2],
            counts: Counts::default(),
            ticking: false,
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => {
                self.ticking = false;
                self.offers.clear();
            }
            Event::Offers(offers) => self.offers.extend(offers),
            Event::Rescinded(gone) => self.offers.retain(|offer| !gone.contains(&offer.id)),
            Event::Timer(_) => self.ticking = false,
            Event::Update(status) => self.on_update(turn.time_ms(), &status),
            Event::Http(request) => {
                if request.method == "POST" {
                    match request.query_number("rate", 0) {
                        Ok(rate) => self.begin(turn.time_ms(), rate as u64),
                        Err(response) => return request.respond(response),
                    }
                }
                request.respond(Response::json(&self.measured(turn.time_ms())))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.counts.turns += 1;
        let now_ms = turn.time_ms();
        let due = self.due(now_ms).saturating_sub(self.counts.launched).min(LAUNCHES_MAX);
        self.launch(turn, due)?;
        self.decline(turn)?;
        if self.counts.rate > 0 && !self.ticking {
            turn.set_timer("tick", TICK_MS)?;
            self.ticking = true;
        }
        Ok(())
    }
}

impl Load {
    fn begin(&mut self, now_ms: u64, rate: u64) {
        self.waiting.clear();
        self.times.clear();
        self.heard_ms = [now_ms; 2];
        self.counts = Counts { rate, since_ms: now_ms, ..Counts::default() };
    }

    fn due(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.counts.since_ms) * self.counts.rate / 1_000
    }

    fn on_update(&mut self, now_ms: u64, status: &TaskStatus) {
        // Tasks of an earlier measurement are not known any more.
        let Some(launched_ms) = self.waiting.get(&status.task).copied() else { return };
        if status.state == TaskState::Running {
            *self.times.entry(now_ms.saturating_sub(launched_ms)).or_default() += 1;
            self.counts.running += 1;
            let [first, second] = self.heard_ms;
            if launched_ms >= second {
                self.counts.pause_ms = self.counts.pause_ms.max(now_ms.saturating_sub(first));
                self.heard_ms = [second, now_ms];
            }
        } else if status.state.is_terminal() {
            self.counts.lost += 1;
        } else {
            return;
        }
        self.waiting.remove(&status.task);
    }

    fn launch(&mut self, turn: &mut Turn, mut due: u64) -> Result<(), Error> {
        while due > 0 {
            let Some(offer) = self.offers.pop_front() else { return Ok(()) };
            let mut left = offer.available.clone();
            let mut tasks = Vec::new();
            while (tasks.len() as u64) < self.per_offer.min(due) {
                let Some(rest) = left.minus(&self.needs) else { break };
                left = rest;
                self.next += 1;
                // Numbers of turns that committed never come again, also for an instance that is built anew.
                let id = format!("{}-{}", turn.number(), self.next);
                tasks.push(Pending::new(id, self.spec.clone()));
            }
            if tasks.is_empty() {
                turn.decline(&[offer], REFUSE_MS)?;
                continue;
            }
            let placed = turn.place(vec![offer], tasks, 0)?.launched;
            if placed.is_empty() {
                // The turn takes no more.
                return Ok(());
            }
            due = due.saturating_sub(placed.len() as u64);
            self.counts.launched += placed.len() as u64;
            self.waiting.extend(placed.into_iter().map(|id| (id, turn.time_ms())));
        }
        Ok(())
    }

    fn decline(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let ahead = self.counts.rate * AHEAD_MS / 1_000 / self.per_offer.max(1);
        let keep = usize::try_from(ahead).unwrap_or(usize::MAX).saturating_add(1);
        if self.offers.len() > keep {
            let rest: Vec<Offer> = self.offers.split_off(keep).into();
            turn.decline(&rest, REFUSE_MS)?;
        }
        Ok(())
    }

    fn measured(&self, now_ms: u64) -> Counts {
        let at = |part: u64| {
            let rank = self.counts.running * part / 100;
            let mut seen = 0;
            let found = self.times.iter().find(|(_, count)| {
                seen += **count;
                seen > rank
            });
            found.or(self.times.last_key_value()).map_or(0, |(ms, _)| *ms)
        };
        Counts {
            now_ms,
            due: self.due(now_ms),
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: self.times.last_key_value().map_or(0, |(ms, _)| *ms),
            offers: self.offers.len(),
            ..self.counts.clone()
        }
    }
}
