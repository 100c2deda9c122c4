//! A workload that never pauses: clients that write, read, swap and remove values through any master, and a
//! scheduler that is asked for tasks all the time. Everything that a client saw is kept.
//!
//! Invariants: a request that changes something has a key of its own and is repeated, with it, at other
//! masters until it is answered; what was never answered counts as unknown; every value is written once.

use crate::chaos_places::{Name, Place, Request, Seen};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, framework};
use tessera_cluster::random::Random;
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure};
use tessera_linear::{History, OperationId, Recorder, RegisterAnswer, RegisterCall};

/// Frameworks whose configuration is a register.
const CONFIGS: usize = 2;
/// Roles of which a limit is a register.
const ROLES: usize = 2;
/// Keys of a framework's state that are registers.
const KEYS: usize = 4;
/// Clients that write and read.
const CLIENTS: usize = 5;
/// Between two requests of a client; more would only measure this machine.
const PAUSE: Duration = Duration::from_millis(60);
/// Between two tasks. Their scheduler's page has to fit into one answer, so a round has a bounded number.
const JOB_PAUSE: Duration = Duration::from_millis(280);
/// Tasks of one scheduler, as its page is at most 64 KiB.
pub const JOBS_MAX: usize = 230;
/// One attempt at one master; a follower itself waits for the next leader for longer.
const ATTEMPT: Duration = Duration::from_secs(4);
/// After this a request counts as unanswered.
const GIVE_UP: Duration = Duration::from_secs(25);

type Noted = Recorder<RegisterCall, RegisterAnswer>;

/// What became of a request.
enum Asked {
    /// An answer that is not just "later" or "elsewhere".
    Answered(Answer),
    /// It may have been carried out; the last thing that was heard.
    Unanswered(String),
}

/// What all clients share.
pub struct Ledger {
    began: Instant,
    noted: Mutex<Noted>,
    /// Jobs that were posted, and whether they were acknowledged.
    jobs: Mutex<BTreeMap<String, bool>>,
    /// What no client may ever see.
    wrong: Mutex<Vec<String>>,
    /// When the last change was acknowledged, and the longest time without one.
    gap: Mutex<(Instant, Duration)>,
    /// Which masters said that they lead, by term.
    claims: Mutex<BTreeMap<u64, Vec<usize>>>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done by a panic while it is locked.
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn acknowledged(&self) {
        let mut gap = lock(&self.gap);
        *gap = (Instant::now(), gap.1.max(gap.0.elapsed()));
    }

    fn complain(&self, text: String) {
        eprintln!("wrong: {text}");
        lock(&self.wrong).push(text);
    }
}

/// A workload while it runs.
pub struct Load {
    masters: Vec<Rest>,
    /// What was seen so far.
    pub ledger: Arc<Ledger>,
    /// Name of the scheduler that launches tasks.
    pub scheduler: String,
    /// Where each task writes its id.
    pub ran: PathBuf,
    frameworks: Vec<String>,
    places: Vec<Place>,
    stop: Arc<AtomicBool>,
    running: Vec<tokio::task::JoinHandle<()>>,
}

/// Send a request until it is answered, at one master after the other; how often it was sent for that.
async fn ask(masters: &[Rest], first: usize, request: &Request) -> (Asked, usize) {
    let deadline = Instant::now() + GIVE_UP;
    let headers: Vec<(&str, &str)> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut last = String::new();
    let mut attempts = 0;
    while Instant::now() < deadline {
        let master = &masters[(first + attempts) % masters.len()];
        attempts += 1;
        let sent = master.send(request.method, &request.path, &headers, request.body.clone());
        match tokio::time::timeout(ATTEMPT, sent).await {
            Ok(Ok(answer)) if matches!(answer.status, 502..=504) => last = answer.text(),
            Ok(Ok(answer)) => return (Asked::Answered(answer), attempts),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {} s", ATTEMPT.as_secs()),
        }
        pass(Duration::from_millis(20)).await;
    }
    (Asked::Unanswered(last), attempts)
}

/// One client and what it has to know.
struct Client {
    masters: Vec<Rest>,
    ledger: Arc<Ledger>,
    places: Vec<Place>,
    random: Random,
    /// Its number; a client whose request was never answered goes on as another process.
    process: u64,
    /// The next value; clients never share one.
    value: u64,
    requests: u64,
}

/// Processes of one client lie this far apart from the next one's.
const PROCESSES: u64 = 1_000_000;
/// Values are counted up in steps of the number of writers.
const WRITERS: u64 = CLIENTS as u64 + 1;

impl Client {
    fn pick(&mut self) -> usize {
        usize::try_from(self.random.next() % 1_000).unwrap_or(0)
    }

    fn next_value(&mut self) -> u64 {
        self.value += WRITERS;
        self.value
    }

    /// Rounds on one cluster have other places, and keys with them.
    fn key(&mut self, place: &Place) -> String {
        self.requests += 1;
        format!("{}-c{}-{}", place.key(), self.process, self.requests)
    }

    fn called(&self, place: &Place, input: RegisterCall) -> OperationId {
        lock(&self.ledger.noted).called(self.process, &place.key(), input, self.ledger.now())
    }

    /// Read a register.
    async fn read(&mut self, place: &Place, first: usize) -> Option<Seen> {
        let id = self.called(place, RegisterCall::Read);
        let (asked, _) = ask(&self.masters, first, &place.get()).await;
        let found = match &asked {
            Asked::Answered(answer) => {
                let found = place.read(answer);
                if found.is_none() {
                    let text = format!("a read of {} got {}: {}", place.key(), answer.status, answer.text());
                    self.ledger.complain(text);
                }
                found
            }
            Asked::Unanswered(_) => None,
        };
        let mut noted = lock(&self.ledger.noted);
        match &found {
            Some(seen) => {
                let value = RegisterAnswer::Value { value: seen.value.clone() };
                noted.returned(id, value, self.ledger.now());
            }
            // A read changes nothing, whether it was carried out or not.
            None => noted.never_happened(id),
        }
        found
    }

    /// Write a register whatever it holds.
    async fn write(&mut self, place: &Place) {
        let value = self.next_value();
        let input = RegisterCall::Write { value: Some(value.to_string()) };
        self.change(place, input, place.put(value, None)).await;
    }

    /// Write it if it holds what was seen.
    async fn swap(&mut self, place: &Place, from: Option<String>, name: &Name) {
        let value = self.next_value();
        let input = RegisterCall::Cas { from, to: Some(value.to_string()) };
        self.change(place, input, place.put(value, Some(name))).await;
    }

    async fn change(&mut self, place: &Place, input: RegisterCall, request: Request) {
        let (key, first) = (self.key(place), self.pick());
        let swaps = matches!(input, RegisterCall::Cas { .. });
        let from_nothing = matches!(input, RegisterCall::Cas { from: None, .. });
        let id = self.called(place, input);
        let (asked, attempts) = ask(&self.masters, first, &request.under(key)).await;
        let now = self.ledger.now();
        match asked {
            Asked::Answered(answer) if (200..300).contains(&answer.status) => {
                lock(&self.ledger.noted).returned(id, RegisterAnswer::Done, now);
                self.ledger.acknowledged();
            }
            // A key that was refused is free again: an attempt that is still under way may yet find nothing there.
            Asked::Answered(answer) if place.differs(&answer) && from_nothing && attempts > 1 => self.process += 1,
            Asked::Answered(answer) if place.differs(&answer) && swaps => {
                lock(&self.ledger.noted).returned(id, RegisterAnswer::Differs, now);
            }
            Asked::Answered(answer) => {
                let text = format!("a write to {} got {}: {}", place.key(), answer.status, answer.text());
                self.ledger.complain(text);
                self.process += 1;
            }
            Asked::Unanswered(_) => self.process += 1,
        }
    }

    async fn step(&mut self) {
        let at = self.pick() % self.places.len();
        let place = self.places[at].clone();
        match (self.pick() % 10, place.delete()) {
            (0..=4, _) => {
                let first = self.pick();
                self.read(&place, first).await;
            }
            (5, Some(delete)) => self.change(&place, RegisterCall::Write { value: None }, delete).await,
            (5..=7, _) => self.write(&place).await,
            _ => {
                let first = self.pick();
                match self.read(&place, first).await {
                    Some(Seen { value, name: Some(name) }) => self.swap(&place, value, &name).await,
                    Some(_) => self.write(&place).await,
                    None => {}
                }
            }
        }
    }
}

/// Asks for tasks until told to stop.
async fn post_jobs(masters: Vec<Rest>, ledger: Arc<Ledger>, scheduler: String, ran: PathBuf, stop: Arc<AtomicBool>) {
    let path = format!("/frameworks/{scheduler}/jobs");
    for number in 0..JOBS_MAX {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("t{number}");
        let run = format!("echo {id} >> {}; sleep 0.2", ran.display());
        let body = json!({"tasks": [{"id": id, "run": run}]});
        lock(&ledger.jobs).insert(id.clone(), false);
        let request = Request::new("POST", path.clone(), &body).under(format!("{scheduler}-{id}"));
        match ask(&masters, number, &request).await.0 {
            Asked::Answered(answer) if answer.status == 201 => {
                lock(&ledger.jobs).insert(id, true);
                ledger.acknowledged();
            }
            Asked::Answered(answer) => {
                ledger.complain(format!("job {id} got {}: {}", answer.status, answer.text()));
            }
            Asked::Unanswered(_) => {}
        }
        pass(JOB_PAUSE).await;
    }
}

/// Users write to states from this version of the cluster on, which a new one reaches in a moment.
///
/// # Errors
/// When it does not in time.
pub async fn understand_state_writes(master: &Rest) -> Outcome {
    until("the masters understand all commands", PATIENCE, async || {
        let view = master.document("/v1/masters").await.map_err(|error| error.to_string())?;
        match view["cluster_version"].as_u64() >= Some(2) {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await
}

/// Notes which masters say that they lead.
async fn watch(masters: Vec<Rest>, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        for (index, master) in masters.iter().enumerate() {
            let answer = tokio::time::timeout(Duration::from_millis(300), master.get("/health")).await;
            let Ok(Ok(answer)) = answer else { continue };
            let health = answer.json();
            if health["leader"] == true {
                let term = health["term"].as_u64().unwrap_or(0);
                let mut claims = lock(&ledger.claims);
                let all = claims.entry(term).or_default();
                if !all.contains(&index) {
                    all.push(index);
                }
            }
        }
        pass(Duration::from_millis(150)).await;
    }
}

impl Load {
    /// Make frameworks and registers, and start clients. `round` tells this load from others on the same
    /// cluster.
    ///
    /// # Errors
    /// When a framework is refused or does not run in time.
    pub async fn start(masters: Vec<Rest>, round: usize, ran: &Path, seed: u64) -> Outcome<Self> {
        understand_state_writes(&masters[0]).await?;
        Self::start_with(masters, round, ran, seed, KEYS).await
    }

    /// The same with so many keys of a state, which a cluster of the version before has not.
    ///
    /// # Errors
    /// When a framework is refused or does not run in time.
    pub async fn start_with(masters: Vec<Rest>, round: usize, ran: &Path, seed: u64, keys: usize) -> Outcome<Self> {
        let ledger = Arc::new(Ledger {
            began: Instant::now(),
            noted: Mutex::default(),
            jobs: Mutex::default(),
            wrong: Mutex::default(),
            gap: Mutex::new((Instant::now(), Duration::ZERO)),
            claims: Mutex::default(),
        });
        let scheduler = format!("launcher-{round}");
        framework(&masters[0], &scheduler, "launcher", &[]).await?;
        let mut frameworks = vec![scheduler.clone()];
        let mut places = Vec::new();
        for number in 0..CONFIGS {
            let name = format!("config-{round}-{number}");
            // It launches nothing and wants no offers.
            framework(&masters[0], &name, "spawn", &[("count", "0"), ("command", "true")]).await?;
            frameworks.push(name.clone());
            places.push(Place::Config(name));
        }
        places.extend((0..ROLES).map(|number| Place::Limit(format!("limit-{round}-{number}"))));
        let kept = format!("kept-{round}");
        // It says what it has, and does nothing by itself.
        framework(&masters[0], &kept, "echo", &[("tick-ms", "0")]).await?;
        frameworks.push(kept.clone());
        places.extend((0..keys).map(|number| Place::State(kept.clone(), format!("key/{number}"))));
        let mut first = Client {
            masters: masters.clone(),
            ledger: Arc::clone(&ledger),
            places: places.clone(),
            random: Random::new(seed),
            process: 0,
            value: 0,
            requests: 0,
        };
        // What a register holds before its first write is no value of ours.
        for place in &places {
            first.write(place).await;
        }
        ensure(first.process == 0, || "the first writes were not answered".to_owned())?;
        // Schedulers took their time to start, and that is no gap.
        *lock(&ledger.gap) = (Instant::now(), Duration::ZERO);
        let mut load = Self {
            masters,
            ledger,
            scheduler,
            ran: ran.to_owned(),
            frameworks,
            places,
            stop: Arc::default(),
            running: Vec::new(),
        };
        load.run(seed);
        Ok(load)
    }

    fn run(&mut self, seed: u64) {
        for number in 1..=CLIENTS as u64 {
            let mut client = Client {
                masters: self.masters.clone(),
                ledger: Arc::clone(&self.ledger),
                places: self.places.clone(),
                random: Random::new(seed.wrapping_mul(31).wrapping_add(number)),
                process: number * PROCESSES,
                value: number,
                requests: 0,
            };
            let stop = Arc::clone(&self.stop);
            self.running.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.step().await;
                    pass(PAUSE).await;
                }
            }));
        }
        let shared = || (self.masters.clone(), Arc::clone(&self.ledger), Arc::clone(&self.stop));
        let (masters, ledger, stop) = shared();
        self.running.push(tokio::spawn(watch(masters, ledger, stop)));
        let (masters, ledger, stop) = shared();
        let (scheduler, ran) = (self.scheduler.clone(), self.ran.clone());
        self.running.push(tokio::spawn(post_jobs(masters, ledger, scheduler, ran, stop)));
    }

    /// No more requests; those under way are answered or given up.
    ///
    /// # Errors
    /// When a client panicked, or saw what none may see.
    pub async fn stop(&mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.running.drain(..) {
            task.await?;
        }
        let wrong = lock(&self.ledger.wrong).clone();
        ensure(wrong.is_empty(), || wrong.join("\n"))?;
        let claims = lock(&self.ledger.claims).clone();
        match claims.iter().find(|(_, masters)| masters.len() > 1) {
            None => Ok(()),
            Some((term, masters)) => Err(failure(format!("in term {term} these led: {masters:?}"))),
        }
    }

    /// Read every register through every master once more: what was acknowledged is there.
    ///
    /// # Errors
    /// When a read is not answered.
    pub async fn read_all(&self) -> Outcome {
        for at in 0..self.masters.len() {
            let mut client = Client {
                masters: vec![self.masters[at].clone()],
                ledger: Arc::clone(&self.ledger),
                places: Vec::new(),
                random: Random::new(0),
                process: (WRITERS + at as u64) * PROCESSES,
                value: 0,
                requests: 0,
            };
            for place in &self.places {
                let found = client.read(place, 0).await;
                ensure(found.is_some(), || format!("master {at} does not answer for {}", place.key()))?;
            }
        }
        Ok(())
    }

    /// Schedulers have in their own copies what users wrote to their states.
    ///
    /// # Errors
    /// When one has not in time.
    pub async fn schedulers_agree(&self) -> Outcome {
        let master = &self.masters[0];
        for place in &self.places {
            let Some(path) = place.scheduler_path() else { continue };
            let request = place.get();
            until(&format!("the scheduler has {}", place.key()), PATIENCE, async || {
                let of = async |path: &str| master.get(path).await.map_err(|error| error.to_string());
                let answer = of(&request.path).await?;
                let seen = place.read(&answer).ok_or_else(|| answer.text())?;
                let wanted = seen.value.unwrap_or_else(|| "nothing".to_owned());
                let has = of(&path).await?;
                match has.status == 200 && has.text() == wanted {
                    true => Ok(()),
                    false => Err(format!("it has {}, the state {wanted}", has.text())),
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Paths of documents that every master has in its own state, for a further parameter.
    pub fn documents(&self) -> BTreeSet<String> {
        let tasks = format!("/v1/tasks?framework={}&", self.scheduler);
        self.places.iter().map(Place::document).chain([tasks]).collect()
    }

    /// Posted jobs, and whether each was acknowledged.
    pub fn jobs(&self) -> BTreeMap<String, bool> {
        lock(&self.ledger.jobs).clone()
    }

    /// The longest time without an acknowledged change.
    pub fn longest_gap(&self) -> Duration {
        lock(&self.ledger.gap).1
    }

    /// Terms in which somebody was seen to lead.
    pub fn terms(&self) -> usize {
        lock(&self.ledger.claims).len()
    }

    /// What the clients of registers saw.
    ///
    /// # Errors
    /// When it does not fit together, which would be a mistake of this test.
    pub fn history(&self) -> Outcome<History<RegisterCall, RegisterAnswer>> {
        Ok(std::mem::take(&mut *lock(&self.ledger.noted)).finish()?)
    }

    /// Remove the frameworks of this load.
    ///
    /// # Errors
    /// When that is refused.
    pub async fn remove(&self) -> Outcome {
        for (number, name) in self.frameworks.iter().enumerate() {
            let path = format!("/v1/frameworks/{name}");
            let request = Request::new("DELETE", path, &Value::Null).under(format!("remove-{name}"));
            match ask(&self.masters, number, &request).await.0 {
                Asked::Answered(answer) => answer.ok()?,
                Asked::Unanswered(last) => return Err(failure(format!("removing {name}: {last}"))),
            };
        }
        Ok(())
    }
}
