//! `tessera-worker bench-turn`: what a turn costs in the worker, and what an idle instance keeps.
//!
//! Invariants: a measured turn goes the whole way from a decoded batch to the encoded turn, with the
//! code that serves real ones. This file must never print anything but numbers that it measured.

use crate::recorder::Recorder;
use crate::thread;
use prost::Message as _;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tessera_types::{
    AgentId, AgentInfo, EffectiveLimits, Epoch, Event, FrameworkId, KeyWrite, LimitName, Offer, OfferId, Quantities, Subscription,
    TurnHeader, TurnNumber,
};
use tessera_wire::v1;
use tessera_wit_host::{
    Scheduler, SchedulerHost, SchedulerImage, Start, State, THREAD_STACK_BYTES, Ticker, new_engine,
    new_engine_without_epochs,
};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Rebuilds that are measured.
const REBUILDS: usize = 50;
/// State of the instance that is rebuilt: so many keys of 1 KiB.
const REBUILD_KEYS: usize = 1 << 10;
/// Calls of the thread's clock that are measured.
const CLOCK_READINGS: u32 = 100_000;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    turns: usize,
    offers: usize,
    p50_us: f64,
    p99_us: f64,
    mean_us: f64,
    operations_per_turn: usize,
    build_us: f64,
    /// The same turns in code that does not look whether its time is up.
    p50_without_epochs_us: f64,
    /// Reading the thread's CPU time before and after a turn.
    budget_us: f64,
    /// Recording a turn: its batch, what came of it, its outcome; written, not synced.
    recording_p50_us: f64,
    recorded_bytes_per_turn: u64,
    /// From the loss of an instance to the end of the next one's first turn, with 1 MiB of state,
    /// recording included.
    rebuild_p50_us: f64,
    rebuild_state_bytes: u64,
    idle_instances: usize,
    idle_private_kib_each: f64,
    linear_memory_kib: u64,
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Offers in each batch.
    pub offers: usize,
    /// Turns.
    pub turns: usize,
    /// Instances whose memory is measured.
    pub idle: usize,
}

fn batch(number: u64, offers: usize, first_offer: u64) -> v1::Batch {
    let mut events = Vec::new();
    if number == 1 {
        events.push(Event::Subscribed(Subscription {
            framework: FrameworkId(1),
            name: "bench".into(),
            role: "bench".into(),
            epoch: Epoch(1),
        }));
        events.extend((0..offers as u64).map(|n| {
            Event::Agent(AgentInfo {
                id: AgentId(n),
                hostname: format!("agent-{n}"),
                attributes: vec![("rack".into(), format!("r{}", n % 10))],
                reachable: true,
            })
        }));
    }
    let offer = |n: u64| Offer {
        id: OfferId(first_offer + n),
        agent: AgentId(n),
        available: Quantities { cpus_milli: 4_000, mem_mib: 8_192, disk_mib: 100_000 }.into(),
        revocable: false,
    };
    events.push(Event::Offers((0..offers as u64).map(offer).collect()));
    v1::Batch {
        key: Some(v1::InstanceKey {
            framework: 1,
            epoch: 1,
        }),
        number,
        time_ms: 1_700_000_000_000 + number,
        events: events.iter().map(Into::into).collect(),
    }
}

fn turn(scheduler: &mut Scheduler, batch: v1::Batch) -> Result<(usize, usize), String> {
    let header = TurnHeader {
        framework: FrameworkId(1),
        epoch: Epoch(1),
        number: TurnNumber(batch.number),
        time_ms: batch.time_ms,
    };
    let events: Vec<Event> = batch
        .events
        .into_iter()
        .map(TryInto::try_into)
        .collect::<Result<_, _>>()
        .map_err(|error: tessera_wire::WireError| error.to_string())?;
    let turn = scheduler
        .turn(header, events)
        .map_err(|failure| failure.to_string())?;
    let bytes = v1::Turn::from(&turn).encode_to_vec();
    Ok((turn.operations.len(), bytes.len()))
}

/// Bytes of memory that belong to this process alone.
fn private_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn load(component: &Path, engine: wasmtime::Result<Engine>) -> Result<SchedulerImage, String> {
    let engine = engine.map_err(|error| error.to_string())?;
    let bytes = std::fs::read(component).map_err(|error| error.to_string())?;
    let component =
        Component::from_binary(&engine, &bytes).map_err(|error| format!("{error:#}"))?;
    let ticker = Arc::new(Ticker::start(&engine).map_err(|error| error.to_string())?);
    let host = SchedulerHost::new(&engine, ticker, thread::CONTROL)
        .map_err(|error| error.to_string())?;
    host.link(&component).map_err(|failure| failure.to_string())
}

fn build(image: &SchedulerImage) -> Result<Scheduler, String> {
    let start = Start {
        seed: 1,
        ..Start::default()
    };
    image
        .build(&start, State::default())
        .map_err(|failed| failed.0.to_string())
}

/// Measure a component.
///
/// # Errors
/// When it cannot be read, compiled or built, or a turn fails.
pub fn run(component: &Path, plan: Plan) -> Result<Report, String> {
    let image = load(component, new_engine())?;
    let started = Instant::now();
    let mut scheduler = build(&image)?;
    let build_us = micros(started);
    let (times, operations) = turns(&mut scheduler, plan)?;
    let linear_memory_kib = scheduler.memory_bytes() >> 10;
    drop(scheduler);
    let unbounded = load(component, new_engine_without_epochs())?;
    let (without_epochs, _) = turns(&mut build(&unbounded)?, plan)?;
    let (recording, recorded_bytes_per_turn) = recording(plan)?;
    let (rebuilds, rebuild_state_bytes) = rebuilds(&image)?;
    let idle_private_kib_each = idle_memory(&image, plan.idle)?;
    let at = |share: f64| share_of(&times, share);
    Ok(Report {
        turns: times.len(),
        offers: plan.offers,
        p50_us: at(0.5),
        p99_us: at(0.99),
        mean_us: times.iter().sum::<f64>() / times.len() as f64,
        operations_per_turn: operations / times.len(),
        build_us,
        p50_without_epochs_us: share_of(&without_epochs, 0.5),
        budget_us: budget(),
        recording_p50_us: share_of(&recording, 0.5),
        recorded_bytes_per_turn,
        rebuild_p50_us: share_of(&rebuilds, 0.5),
        rebuild_state_bytes,
        idle_instances: plan.idle,
        idle_private_kib_each,
        linear_memory_kib,
    })
}

/// Times of turns, sorted, and the operations in all of them.
fn turns(scheduler: &mut Scheduler, plan: Plan) -> Result<(Vec<f64>, usize), String> {
    let mut times = Vec::with_capacity(plan.turns);
    let mut operations = 0;
    for number in 1..=plan.turns.max(1) as u64 {
        let batch = batch(number, plan.offers, number * plan.offers as u64);
        let started = Instant::now();
        let (count, _) = turn(scheduler, batch)?;
        times.push(micros(started));
        operations += count;
        scheduler.commit();
        scheduler.take_logged();
    }
    times.sort_by(f64::total_cmp);
    Ok((times, operations))
}

fn share_of(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// What a turn pays for its budget beside the looks in the guest's code.
fn budget() -> f64 {
    let started = Instant::now();
    for _ in 0..CLOCK_READINGS {
        std::hint::black_box((thread::CONTROL.cpu_time)());
    }
    micros(started) / f64::from(CLOCK_READINGS) * 2.0
}

/// A directory for recordings that goes when it is dropped.
struct Recordings(PathBuf);

impl Recordings {
    fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("tessera-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// A recording that is not stopped by its limit.
    fn begin(&self, state: &State) -> Recorder {
        let mut limits = EffectiveLimits::default();
        limits.put(LimitName::RecordingBytes, LimitName::RecordingBytes.row().max);
        Recorder::begin(&self.0, v1::RecordingHeader::default(), state, &limits)
    }
}

impl Drop for Recordings {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Times of recording turns, sorted, and bytes of each.
fn recording(plan: Plan) -> Result<(Vec<f64>, u64), String> {
    let recordings = Recordings::new()?;
    let mut recorder = recordings.begin(&State::default());
    let mut times = Vec::with_capacity(plan.turns);
    for number in 2..=plan.turns.max(1) as u64 + 1 {
        let batch = batch(number, plan.offers, number * plan.offers as u64);
        let outcome = v1::TurnOutcome {
            outcome: Some(v1::turn_outcome::Outcome::Next(number + 1)),
        };
        let turn = v1::Turn {
            number,
            ..v1::Turn::default()
        };
        let started = Instant::now();
        recorder.batch(&batch);
        recorder.turn(turn.encode_to_vec());
        recorder.outcome(number, outcome);
        times.push(micros(started));
    }
    drop(recorder);
    times.sort_by(f64::total_cmp);
    let file = std::fs::metadata(recordings.0.join("e0-1.rec"));
    let bytes = file.map_err(|error| error.to_string())?.len();
    Ok((times, bytes / plan.turns.max(1) as u64))
}

/// Times of rebuilding an instance, sorted, and the bytes of its state.
fn rebuilds(image: &SchedulerImage) -> Result<(Vec<f64>, u64), String> {
    let recordings = Recordings::new()?;
    let mut state = State::default();
    state.load((0..REBUILD_KEYS).map(|key| KeyWrite {
        key: format!("bench/{key:05}"),
        value: Some(vec![b'x'; 1 << 10]),
    }));
    let bytes = state.committed_bytes();
    let start = Start::default();
    let mut times = Vec::with_capacity(REBUILDS);
    for _ in 0..REBUILDS {
        let started = Instant::now();
        drop(recordings.begin(&state));
        let built = image.build(&start, state);
        let mut scheduler = built.map_err(|failed| failed.0.to_string())?;
        turn(&mut scheduler, batch(1, 1, 1))?;
        times.push(micros(started));
        state = scheduler.into_state();
    }
    times.sort_by(f64::total_cmp);
    Ok((times, bytes))
}

/// Private KiB of an instance that has had a turn and waits, its thread included.
fn idle_memory(image: &SchedulerImage, instances: usize) -> Result<f64, String> {
    let before = private_kib();
    let (said, built) = std::sync::mpsc::sync_channel(instances);
    let mut threads = Vec::with_capacity(instances);
    for _ in 0..instances {
        let (image, said) = (image.clone(), said.clone());
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
        let thread = thread.spawn(move || {
            let instance = build(&image)
                .and_then(|mut instance| turn(&mut instance, batch(1, 1, 1)).map(|_| instance));
            let _ = said.send(instance.as_ref().map(|_| ()).map_err(Clone::clone));
            // Ends when the other side is dropped.
            let _ = wait.recv();
        });
        threads.push((go, thread.map_err(|error| error.to_string())?));
        built.recv().map_err(|error| error.to_string())??;
    }
    let grown = private_kib().saturating_sub(before);
    for (go, thread) in threads {
        drop(go);
        let _ = thread.join();
    }
    Ok(grown as f64 / instances.max(1) as f64)
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
