//! Unit tests of schedulers, on the machine itself: turns against a state in memory.
//!
//! A [`Harness`] holds one scheduler. It commits the writes of a turn that ends well, forgets those
//! of one that fails, enforces the limits of the contract on state and specs, and returns what the
//! scheduler asked for as [`Call`]s. It allocates nothing and launches nothing by itself: the test
//! plays the cluster. Not part of components.

pub(crate) mod calls;

use std::collections::BTreeMap;

pub use calls::{Call, Launched};

use crate::bindings::exports::tessera::framework::scheduler::TurnInfo;
use crate::bindings::tessera::framework::events::HttpRequest;
/// The records of the contract, as launches carry them.
pub use crate::bindings::tessera::framework::types as contract;
use crate::event::Subscription;
use crate::http::{Request, Response};
use crate::{
    Config, Error, Event, Migration, Offer, Resources, Scheduler, TaskState, TaskStatus, Turn, http, state,
};

/// Time of the first turn, in ms since the Unix epoch.
const START_MS: u64 = 1_700_000_000_000;
/// Time between turns, in ms.
const STEP_MS: u64 = 10;

/// A scheduler and its state.
///
/// One at a time per thread: it stands in for the host of its thread.
pub struct Harness<S> {
    scheduler: S,
    config: Config,
    turns: u64,
    passed_ms: u64,
    requests: u64,
}

/// A turn of this number, so many ms after the first one.
pub(crate) fn turn_info(number: u64, passed_ms: u64) -> TurnInfo {
    TurnInfo { number, epoch: 1, time_ms: START_MS + number * STEP_MS + passed_ms }
}

impl<S: Scheduler> Harness<S> {
    /// A framework with an empty state, subscribed. Fails as the scheduler's `init` or first turn
    /// does.
    pub fn new(config: &[(&str, &str)]) -> Result<Self, Error> {
        calls::reset();
        let pairs = config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let config = Config::from(pairs.collect::<Vec<_>>());
        let scheduler = init(&config)?;
        let mut harness = Self {
            scheduler,
            config,
            turns: 0,
            passed_ms: 0,
            requests: 0,
        };
        harness.turn([Event::Subscribed(subscription())])?;
        Ok(harness)
    }

    /// Drop the instance and rebuild it from the committed state, as after a crash.
    pub fn restart(&mut self) -> Result<Vec<Call>, Error> {
        calls::roll_back();
        self.scheduler = init(&self.config)?;
        self.turn([Event::Resumed(subscription())])
    }

    /// Let so much time pass before the next turn. Timers are not fired: give their events to it.
    pub fn pass(&mut self, ms: u64) {
        self.passed_ms += ms;
    }

    /// Run one turn with these events. When it fails its writes are forgotten, and the instance
    /// must be rebuilt with [`restart`](Self::restart), as the cluster would.
    pub fn turn(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Vec<Call>, Error> {
        self.turns += 1;
        let mut turn = Turn::new(turn_info(self.turns, self.passed_ms));
        let mut outcome = Ok(());
        let mut config = None;
        for event in events {
            if let Event::ConfigChanged(changed) = &event {
                config = Some(changed.clone());
            }
            outcome = outcome.and_then(|()| self.scheduler.handle(&mut turn, event));
        }
        outcome = outcome.and_then(|()| self.scheduler.end_turn(&mut turn));
        state::reset_room();
        http::reset_answered();
        match outcome {
            Ok(()) => {
                // What an instance has committed to know is what the next one starts with.
                self.config = config.unwrap_or_else(|| self.config.clone());
                Ok(calls::commit())
            }
            Err(error) => {
                calls::roll_back();
                Err(error)
            }
        }
    }

    /// Send a request in a turn of its own; its answer and what else was asked for. Nothing if the
    /// scheduler did not answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<(Option<Response>, Vec<Call>), Error> {
        self.requests += 1;
        let id = self.requests;
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let request = Request::from(HttpRequest {
            id,
            method: method.to_owned(),
            path: path.to_owned(),
            query,
            headers: Vec::new(),
            body: body.to_vec(),
            principal: "admin".to_owned(),
            idempotency_key: None,
        });
        let calls = self.turn([Event::Http(request)])?;
        Ok((calls::take_answer(id), calls))
    }

    /// The committed state.
    pub fn state(&self) -> BTreeMap<String, Vec<u8>> {
        calls::committed()
    }
}

/// Migrate a state from this version, step by step, each in a turn of its own. The state that comes
/// out, and how many steps it took.
pub fn migrate<M: Migration>(
    state: BTreeMap<String, Vec<u8>>,
    from: u32,
) -> Result<(BTreeMap<String, Vec<u8>>, u64), Error> {
    calls::restore(state);
    let mut steps = 0;
    loop {
        steps += 1;
        let done = M::step(from)?;
        state::reset_room();
        calls::commit();
        if done {
            return Ok((calls::committed(), steps));
        }
    }
}

fn init<S: Scheduler>(config: &Config) -> Result<S, Error> {
    S::init(config).inspect_err(|_| calls::roll_back())
}

fn subscription() -> Subscription {
    Subscription {
        framework: 1,
        name: "test".to_owned(),
        role: "test".to_owned(),
        epoch: 1,
    }
}

/// An offer of agent 1.
pub fn offer(id: u64, cpus: f64, mem_mib: u64) -> Offer {
    Offer {
        id,
        agent: 1,
        available: Resources::new(cpus, mem_mib),
        items: Vec::new(),
    }
}

/// A status of a task on agent 1 with nothing but its state.
pub fn status(task: &str, state: TaskState) -> TaskStatus {
    TaskStatus {
        task: task.to_owned(),
        agent: 1,
        state,
        reason: String::new(),
        message: String::new(),
        exit_code: None,
        signal: None,
        data: Vec::new(),
        attempt: 1,
        at_ms: START_MS,
    }
}

/// All tasks that were launched by these calls.
pub fn launched(calls: &[Call]) -> Vec<Launched> {
    let launches = calls.iter().filter_map(|call| match call {
        Call::Accept { launches, .. } => Some(launches.clone()),
        _ => None,
    });
    launches.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pending, TaskSpec, state};

    /// Does everything that is done all or none, on its offers.
    struct Together {
        remark: Option<String>,
    }

    impl Scheduler for Together {
        fn init(config: &Config) -> Result<Self, Error> {
            let remark = config.get("remark").map(str::to_owned);
            Ok(Self { remark })
        }

        fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
            let pending = |task: &str| Pending::new(task, TaskSpec::shell("true"));
            match event {
                Event::Offers(offers) => {
                    turn.launch_group(&offers[..1], [pending("a"), pending("b")], 0)?;
                    turn.gang(|turn| {
                        turn.launch(&offers[1], pending("c"), 0)?;
                        turn.launch(&offers[2], pending("d"), 0)
                    })?;
                    turn.send(1, "builder", b"hello")?;
                    turn.shutdown_executor(1, "builder")
                }
                Event::Http(request) => {
                    request.respond(Response::text(self.remark.clone().unwrap_or_default()))
                }
                Event::Again => turn.gang(|turn| turn.gang(|_| Ok(()))),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn groups_and_gangs_are_asked_for_as_the_contract_has_them() {
        let mut harness = Harness::<Together>::new(&[]).unwrap();
        let offers = vec![offer(1, 1.0, 64), offer(2, 1.0, 64), offer(3, 1.0, 64)];
        let calls = harness.turn([Event::Offers(offers)]).unwrap();
        let groups: Vec<_> = launched(&calls).into_iter().map(|task| (task.task, task.group)).collect();
        let expected = [("a", 1), ("b", 1), ("c", 0), ("d", 0)].map(|(task, group)| (task.to_owned(), group));
        assert_eq!(groups, expected);
        assert!(matches!(
            &calls[1..],
            [
                Call::BeginGroup,
                Call::Accept { .. },
                Call::Accept { .. },
                Call::EndGroup,
                Call::Send { agent: 1, .. },
                Call::ShutdownExecutor(1, _),
            ]
        ));
        assert!(harness.turn([Event::Again]).is_err(), "gangs do not nest");
    }

    #[test]
    fn a_changed_configuration_is_kept_for_the_next_instance() {
        let mut harness = Harness::<Together>::new(&[("remark", "old")]).unwrap();
        let changed = Config::from(vec![("remark".to_owned(), "new".to_owned())]);
        harness.turn([Event::ConfigChanged(changed)]).unwrap();
        harness.restart().unwrap();
        let (answer, _) = harness.request("GET", "/", b"").unwrap();
        assert_eq!(answer.unwrap().body, b"new");
    }

    /// Moves one key per step.
    struct Moves;

    impl Migration for Moves {
        fn step(from: u32) -> Result<bool, Error> {
            let Some((key, value)) = state::scan_bytes(&format!("v{from}/")).next() else {
                return Ok(true);
            };
            state::set_bytes(&key.replacen("v1/", "v2/", 1), &value)?;
            state::delete(&key)?;
            Ok(false)
        }
    }

    #[test]
    fn a_migration_runs_until_it_is_done() {
        let old = ["a", "b"].map(|key| (format!("v1/{key}"), b"x".to_vec()));
        let (new, steps) = migrate::<Moves>(BTreeMap::from(old), 1).unwrap();
        assert_eq!(steps, 3);
        assert_eq!(new.keys().collect::<Vec<_>>(), ["v2/a", "v2/b"]);
    }
}
