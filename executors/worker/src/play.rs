//! `tessera-worker play`: give a scheduler batches that its author made up, one after the other, and tell
//! what each came to. What `tessera framework test` drives.
//!
//! Invariants: the component is judged as an upload is, and runs under the limits of a cluster; a turn that
//! came to something is committed before the next one, a failure drops the instance and not its state. This
//! file must never judge what a scheduler does.

use crate::jail;
use crate::judge::{self, Judged};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::Path;
use tessera_types::limits::BATCH_EVENTS_MAX;
use tessera_types::{
    EffectiveLimits, Epoch, Event, FrameworkId, KeyWrite, LimitName, LogLine, RoleLimits, TaskSpec, TimeMs, Turn,
    TurnHeader, TurnNumber,
};
use tessera_wit_host::{Failure, Limits, Logged, Scheduler, Start, State};

/// Bytes of one line of what is asked: a batch of the largest events has less.
const ASK_BYTES_MAX: u64 = 16 << 20;
/// Limits that are counted of a component, which no cluster has to allow.
const OF_COMPONENTS: [LimitName; 4] = [
    LimitName::ComponentBytes,
    LimitName::ComponentFunctions,
    LimitName::FunctionBytes,
    LimitName::FunctionLocals,
];

/// One line of stdin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    /// Make an instance: the first line, and whenever the one that there is should be rebuilt.
    Build(Build),
    /// Give it a batch.
    Turn {
        /// Time of the turn.
        time_ms: TimeMs,
        /// The batch.
        events: Vec<Event>,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Build {
    config: Vec<(String, String)>,
    /// The state that it starts from; the committed one when absent.
    state: Option<Vec<KeyWrite>>,
    /// Limits of its role, as the table names them.
    limits: Vec<(String, u64)>,
}

/// One line of stdout, for each line of stdin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The component cannot be used: there are no more answers.
    Unusable(String),
    Built {
        log: Vec<LogLine>,
    },
    Turn {
        turn: Box<Turn>,
        /// The specs that it launches, by digest.
        specs: BTreeMap<String, TaskSpec>,
        log: Vec<LogLine>,
        log_dropped: u64,
        cpu_us: u64,
        /// Limits by which calls were refused, and how often.
        refused: BTreeMap<&'static str, u64>,
    },
    Failed {
        code: &'static str,
        limit: &'static str,
        message: String,
        log: Vec<LogLine>,
    },
}

struct Play {
    judged: Judged,
    config: Vec<(String, String)>,
    limits: EffectiveLimits,
    scheduler: Option<Scheduler>,
    state: State,
    /// Turns that were committed.
    turns: u64,
}

/// Play until stdin ends.
///
/// # Errors
/// When it cannot be played at all, or a line cannot be read.
pub fn run(component: &Path) -> Result<(), String> {
    // Opened first: the jail has no files.
    let file = File::open(component).map_err(|error| format!("{}: {error}", component.display()))?;
    jail::enter_replay().map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a larger file from one that just fits.
    let read = file.take(LimitName::ComponentBytes.row().max + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("{}: {error}", component.display()))?;
    let mut limits = RoleLimits::default();
    for name in OF_COMPONENTS {
        // The largest value of a row is within its bounds.
        let _ = limits.set(name, name.row().max);
    }
    let judged = match judge::scheduler(&bytes, &EffectiveLimits::resolve([&limits])) {
        Ok(judged) => judged,
        Err(text) => return print(&Answer::Unusable(text)),
    };
    drop(bytes);
    jail::widen_for_replay().map_err(|error| error.to_string())?;
    let mut play = Play {
        judged,
        config: Vec::new(),
        limits: EffectiveLimits::default(),
        scheduler: None,
        state: State::default(),
        turns: 0,
    };
    let mut input = BufReader::new(std::io::stdin().lock());
    loop {
        let mut line = String::new();
        let read = input.by_ref().take(ASK_BYTES_MAX).read_line(&mut line);
        if read.map_err(|error| format!("stdin: {error}"))? == 0 {
            return Ok(());
        }
        let ask = serde_json::from_str(&line).map_err(|error| format!("stdin: {error}"))?;
        print(&play.answer(ask)?)?;
    }
}

fn print(answer: &Answer) -> Result<(), String> {
    let text = serde_json::to_string(answer).map_err(|error| error.to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| format!("stdout: {error}"))
}

impl Play {
    fn answer(&mut self, ask: Ask) -> Result<Answer, String> {
        match ask {
            Ask::Build(build) => self.build(build),
            Ask::Turn { time_ms, events } => self.turn(time_ms, events),
        }
    }

    fn build(&mut self, build: Build) -> Result<Answer, String> {
        if let Some(scheduler) = self.scheduler.take() {
            self.state = scheduler.into_state();
        }
        if let Some(entries) = build.state {
            self.state = State::default();
            self.state.load(entries);
        }
        let mut set = RoleLimits::default();
        for (name, value) in build.limits {
            let name: LimitName = name.parse().map_err(|error| format!("limits: {error}"))?;
            set.set(name, value).map_err(|error| format!("limits: {error}"))?;
        }
        (self.config, self.limits) = (build.config, EffectiveLimits::resolve([&set]));
        let start = Start {
            config: self.config.clone(),
            limits: Limits::of(&self.limits),
            ..Start::default()
        };
        Ok(match self.judged.image.build(&start, std::mem::take(&mut self.state)) {
            Ok(mut scheduler) => {
                let log = scheduler.take_logged().lines;
                self.scheduler = Some(scheduler);
                Answer::Built { log }
            }
            Err(failed) => {
                let (failure, state, logged) = *failed;
                self.state = state;
                failed_as(&failure, logged)
            }
        })
    }

    fn turn(&mut self, time_ms: TimeMs, events: Vec<Event>) -> Result<Answer, String> {
        let Some(scheduler) = &mut self.scheduler else {
            return Err("stdin: a turn without an instance: build one first".to_owned());
        };
        if events.len() > BATCH_EVENTS_MAX {
            return Err(format!("stdin: at most {BATCH_EVENTS_MAX} events in a batch"));
        }
        let header = TurnHeader {
            framework: FrameworkId(1),
            epoch: Epoch(1),
            number: TurnNumber(self.turns + 1),
            time_ms,
        };
        let turn = scheduler.turn(header, events);
        let logged = scheduler.take_logged();
        let turn = match turn {
            Ok(turn) => turn,
            Err(failure) => {
                if let Some(scheduler) = self.scheduler.take() {
                    self.state = scheduler.into_state();
                }
                return Ok(failed_as(&failure, logged));
            }
        };
        scheduler.commit();
        self.turns += 1;
        let specs = turn.specs.iter().map(|(digest, encoded)| {
            let spec = tessera_wire::decode_spec(encoded).map_err(|error| format!("a spec: {error}"))?;
            Ok((digest.to_string(), spec))
        });
        Ok(Answer::Turn {
            specs: specs.collect::<Result<_, String>>()?,
            turn: Box::new(turn),
            log: logged.lines,
            log_dropped: logged.dropped,
            cpu_us: u64::try_from(scheduler.cpu_time().as_micros()).unwrap_or(u64::MAX),
            refused: scheduler.take_refused(),
        })
    }
}

fn failed_as(failure: &Failure, logged: Logged) -> Answer {
    Answer::Failed {
        code: failure.code(),
        limit: failure.limit(),
        message: failure.to_string(),
        log: logged.lines,
    }
}
