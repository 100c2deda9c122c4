//! `tessera-worker replay`: give a recorded life to an instance again and tell the first thing that it
//! does differently.
//!
//! Invariants: an instance gets exactly what the recorded one got, in its order; what follows a frame
//! that was altered is not replayed; what depends on time, and not on what was given, is not compared
//! and is said. This file must never change a recording.

use crate::batch;
use crate::compare::{self, Difference};
use crate::jail;
use crate::thread;
use prost::Message as _;
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_types::{Digest, KeyWrite, LimitName, Turn};
use tessera_wire::recording::{RECORDING_FORMAT, Unsealed, Unsealer};
use tessera_wire::{effective_limits, v1};
use tessera_wit_host::{
    CONTRACT_VERSION, Failure, Limits, Scheduler, SchedulerHost, SchedulerImage, Start, State, Ticker,
    check_bytes, engine_key, new_engine,
};
use v1::recording_item::Item;
use wasmtime::component::Component;

/// What to replay.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The recording.
    pub recording: PathBuf,
    /// The component that it is of, or a changed one.
    pub component: PathBuf,
    /// The component may be another one than the recorded one.
    pub changed: bool,
}

/// The first thing that is not as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// Number of the turn; 0 is before the first.
    pub turn: u64,
    /// `recording-altered`, `instance`, `consumed`, `operations`, `writes`, `specs`, `migration`, `failure`
    /// or `trap`.
    pub kind: &'static str,
    /// What is recorded.
    pub expected: String,
    /// What came out.
    pub got: String,
}

/// Something that cannot be compared, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreplayed {
    /// Number of the turn; 0 is before the first.
    pub turn: u64,
    /// Why.
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The framework's name.
    pub framework: String,
    /// Epoch of the recorded instance.
    pub epoch: u64,
    /// Its life in that epoch.
    pub life: u64,
    /// Digest of the recorded component.
    pub component: String,
    /// Whether another component was run.
    pub component_changed: bool,
    /// Engine of the recorded instance.
    pub engine: String,
    /// Engine that ran it again.
    pub replayed_with: String,
    /// Turns that were run again and compared.
    pub turns: u64,
    /// Nothing differs, as far as the recording goes.
    pub equal: bool,
    /// The first difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// Recording stopped before this turn, at its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<u64>,
    /// What ended the replay early without being a difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreplayed: Option<Unreplayed>,
}

/// The recording, item by item.
struct Items {
    items: Unsealer<BufReader<File>>,
    /// Number of the turn that the next item belongs to.
    turn: u64,
}

/// What ends a replay.
enum End {
    /// The recording is at its end.
    Over,
    Diverged(Divergence),
    Unreplayed(Unreplayed),
    /// Recording stopped before this turn.
    Stopped(u64),
}

impl Items {
    /// The next item that is as it was written.
    fn next(&mut self) -> Result<Item, Stop> {
        match self.items.next_item().map_err(cannot("the recording"))? {
            Some(Unsealed::Item(Item::Stopped(turn))) => Err(End::Stopped(turn).into()),
            Some(Unsealed::Item(item)) => Ok(item),
            None => Err(End::Over.into()),
            Some(Unsealed::Altered) => Err(self.altered("it is not what was written here")),
        }
    }

    fn altered(&self, what: &str) -> Stop {
        let divergence = Divergence {
            turn: self.turn,
            kind: "recording-altered",
            expected: "a frame that follows from those before it".to_owned(),
            got: what.to_owned(),
        };
        End::Diverged(divergence).into()
    }

    /// The header, and the state up to its end.
    fn header(&mut self) -> Result<v1::RecordingHeader, Stop> {
        let header = match self.next() {
            Ok(Item::Header(header)) => header,
            Ok(_) | Err(Stop::End(End::Over)) => {
                return Err(Stop::Cannot("this is not a recording: it has no header".to_owned()));
            }
            Err(stop) => return Err(stop),
        };
        if header.format != RECORDING_FORMAT || header.contract != CONTRACT_VERSION {
            return Err(Stop::Cannot(format!(
                "the recording is of format {} and contract {}; this replays format {RECORDING_FORMAT} and \
                 contract {CONTRACT_VERSION}",
                header.format, header.contract
            )));
        }
        self.turn = header.next_turn;
        Ok(header)
    }

    fn state(&mut self) -> Result<State, Stop> {
        let mut state = State::default();
        loop {
            let chunk = match self.next() {
                Ok(Item::State(chunk)) => chunk,
                Ok(_) => return Err(self.altered("the state has no end")),
                Err(Stop::End(End::Over)) => {
                    let why = "the recording ends within the state that the instance was built from";
                    return Err(unreplayed(0, why.to_owned()));
                }
                Err(stop) => return Err(stop),
            };
            let entries = chunk.entries.into_iter().map(KeyWrite::try_from);
            let entries = entries.collect::<Result<Vec<_>, _>>();
            state.load(entries.map_err(|error| self.altered(&format!("state: {error}")))?);
            if chunk.last {
                return Ok(state);
            }
        }
    }
}

/// Why a replay goes no further.
enum Stop {
    Cannot(String),
    End(End),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

fn cannot<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Stop {
    move |error| Stop::Cannot(format!("{what}: {error}"))
}

fn unreplayed(turn: u64, why: String) -> Stop {
    End::Unreplayed(Unreplayed { turn, why }).into()
}

/// Replay a recording.
///
/// # Errors
/// Why it cannot be replayed at all.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let open = |path: &Path| File::open(path).map_err(|error| format!("{}: {error}", path.display()));
    // Opened first: the jail has no files.
    let (file, component) = (open(&plan.recording)?, open(&plan.component)?);
    jail::enter_replay().map_err(|error| error.to_string())?;
    let mut items = Items {
        items: Unsealer::new(BufReader::with_capacity(64 << 10, file)),
        turn: 0,
    };
    let mut report = Report::default();
    let end = match replay(plan, component, &mut items, &mut report) {
        Ok(never) => match never {},
        Err(Stop::Cannot(text)) => return Err(text),
        Err(Stop::End(end)) => end,
    };
    report.equal = true;
    match end {
        End::Over => {}
        End::Stopped(turn) => report.stopped = Some(turn),
        End::Unreplayed(unreplayed) => report.unreplayed = Some(unreplayed),
        End::Diverged(divergence) => {
            report.equal = false;
            report.divergence = Some(divergence);
        }
    }
    Ok(report)
}

fn replay(
    plan: &Plan,
    component: File,
    items: &mut Items,
    report: &mut Report,
) -> Result<std::convert::Infallible, Stop> {
    let header = items.header()?;
    let (image, digest, engine) = load(&plan.component, component)?;
    let recorded = Digest::from_slice(&header.component).map_err(cannot("the recording's header"))?;
    if digest != recorded && !plan.changed {
        return Err(Stop::Cannot(format!(
            "the recording is of component {recorded}, {} is {digest}; to replay it with a changed \
             component, say --component-changed",
            plan.component.display()
        )));
    }
    *report = Report {
        framework: header.name.clone(),
        epoch: header.epoch,
        life: header.life,
        component: recorded.to_string(),
        component_changed: digest != recorded,
        engine: header.engine.clone(),
        replayed_with: engine,
        ..Report::default()
    };
    let state = items.state()?;
    let mut scheduler = build(&image, &header, state, items)?;
    loop {
        match items.next()? {
            Item::Batch(batch) => {
                items.turn = batch.number;
                turn(&mut scheduler, batch, items)?;
                report.turns += 1;
            }
            Item::Limits(changed) => {
                scheduler.set_limits(limits(&changed.limits));
            }
            Item::Outcome(said) => match said.outcome.and_then(|outcome| outcome.outcome) {
                Some(v1::turn_outcome::Outcome::Next(next)) => {
                    scheduler.commit();
                    items.turn = next;
                }
                // The instance was dropped with the turn that was refused.
                _ => return Err(End::Over.into()),
            },
            Item::Header(_) | Item::State(_) | Item::Turn(_) | Item::Failure(_) | Item::Stopped(_) => {
                return Err(items.altered("a frame out of its order"));
            }
        }
    }
}

fn limits(changed: &[v1::Limit]) -> Limits {
    Limits::of(&effective_limits(changed)).without_time()
}

fn load(path: &Path, file: File) -> Result<(SchedulerImage, Digest, String), Stop> {
    let engine = new_engine().map_err(cannot("the engine"))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a larger file from one that just fits.
    file.take(LimitName::ComponentBytes.row().max + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot(&path.display().to_string()))?;
    check_bytes(&bytes).map_err(cannot(&path.display().to_string()))?;
    let component = Component::from_binary(&engine, &bytes)
        .map_err(|error| Stop::Cannot(format!("{}: {error:#}", path.display())))?;
    jail::widen_for_replay().map_err(cannot("this process"))?;
    let ticker = Arc::new(Ticker::start(&engine).map_err(cannot("the engine"))?);
    let host = SchedulerHost::new(&engine, ticker, thread::CONTROL).map_err(cannot("the engine"))?;
    let image = host.link(&component).map_err(cannot(&path.display().to_string()))?;
    Ok((image, Digest::of(&bytes), engine_key(&engine)))
}

fn build(
    image: &SchedulerImage,
    header: &v1::RecordingHeader,
    state: State,
    items: &mut Items,
) -> Result<Scheduler, Stop> {
    let start = Start {
        seed: header.seed,
        config: header
            .config
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        limits: limits(&header.limits),
        migrate_from: header.migrate_from,
    };
    let mut scheduler = match image.build(&start, state) {
        Ok(scheduler) => scheduler,
        Err(failed) => return Err(built_failed(&failed.0, items)),
    };
    // As in the recorded life: what a guest may log in its first turn does not depend on its `init`.
    scheduler.take_logged();
    Ok(scheduler)
}

/// The instance could not be built; that is as it should be if the recorded one could not either.
fn built_failed(failure: &Failure, items: &mut Items) -> Stop {
    let expected = match items.next() {
        Ok(Item::Failure(recorded)) => match compare::failures(&recorded, failure) {
            Ok(()) => return End::Over.into(),
            Err(difference) => difference.expected,
        },
        Ok(_) => "an instance that could be built".to_owned(),
        Err(Stop::End(End::Over)) => "an instance whose recording ends here".to_owned(),
        Err(stop) => return stop,
    };
    End::Diverged(Divergence {
        turn: 0,
        kind: "instance",
        expected,
        got: failure.to_string(),
    })
    .into()
}

/// Run one turn again and compare it with the recorded one.
fn turn(scheduler: &mut Scheduler, batch: v1::Batch, items: &mut Items) -> Result<(), Stop> {
    let number = batch.number;
    let recorded = match items.next() {
        Ok(Item::Turn(bytes)) => Ok(bytes),
        Ok(Item::Failure(failure)) => {
            if let Some(why) = compare::depends_on_time(&failure) {
                return Err(unreplayed(number, why));
            }
            Err(failure)
        }
        Ok(_) => return Err(items.altered("a frame out of its order")),
        Err(Stop::End(End::Over)) => {
            let why = "the recording ends before what came of this turn; the worker may have died";
            return Err(unreplayed(number, why.to_owned()));
        }
        Err(stop) => return Err(stop),
    };
    let (header, events) = batch::open(batch).map_err(|text| items.altered(&text))?;
    let got = scheduler.turn(header, events);
    scheduler.take_logged();
    if let Err(failure) = &got
        && failure.limit().ends_with("-ms")
    {
        return Err(unreplayed(number, format!("it took too long: {failure}")));
    }
    let compared = match (&recorded, &got) {
        (Ok(bytes), Ok(turn)) => {
            let decoded = v1::Turn::decode(bytes.as_slice()).ok();
            let Some(expected) = decoded.and_then(|turn| Turn::try_from(turn).ok()) else {
                return Err(items.altered("what is recorded is no turn"));
            };
            compare::turns(&expected, turn)
        }
        (Ok(_), Err(failure)) => Err(Difference {
            kind: if matches!(failure, Failure::Trapped(_)) { "trap" } else { "failure" },
            expected: "a turn".to_owned(),
            got: failure.to_string(),
        }),
        (Err(recorded), Ok(_)) => Err(Difference {
            kind: "failure",
            expected: recorded.message.clone(),
            got: "a turn".to_owned(),
        }),
        (Err(recorded), Err(failure)) => {
            compare::failures(recorded, failure)
        }
    };
    match compared {
        // Its life ended here.
        Ok(()) if got.is_err() => Err(End::Over.into()),
        Ok(()) => Ok(()),
        Err(Difference { kind, expected, got }) => Err(End::Diverged(Divergence {
            turn: number,
            kind,
            expected,
            got,
        })
        .into()),
    }
}
