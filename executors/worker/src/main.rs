//! The binary `tessera-worker`: reads its arguments, limits itself and runs one mode.
//!
//! Invariants: nothing but answers goes to stdout; logs go to stderr. This file must
//! never hold behaviour of a mode.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tessera_telemetry::log;
use tessera_types::{EffectiveLimits, LimitError, LimitName, RoleLimits};
use tessera_wit_host::{engine_key, new_engine};
use tessera_worker::isolation::Isolation;
use tessera_worker::{Hosts, bench, jail, judge, play, replay, seccomp, serve, thread, tries};

/// The component cannot be used; why is on stdout.
const EXIT_UNUSABLE: u8 = 2;
/// The replay differs from the recording; how is on stdout.
const EXIT_DIVERGED: u8 = 3;

#[derive(Parser)]
#[command(
    name = "tessera-worker",
    version,
    about = "Runs WebAssembly components for an agent"
)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Schedulers.
    Schedulers,
    /// Wasm tasks.
    Tasks,
}

#[derive(Subcommand)]
enum Mode {
    /// Serve an agent.
    Serve {
        /// Unix socket to listen on.
        #[arg(long)]
        socket: PathBuf,
        /// Whose guests these are.
        #[arg(long)]
        tenant: String,
        /// What runs here.
        #[arg(long)]
        kind: Kind,
        #[command(flatten)]
        isolation: Isolation,
    },
    /// Try to be isolated, and say what this machine or this user cannot give.
    ProbeIsolation {
        #[command(flatten)]
        isolation: Isolation,
    },
    /// Judge and compile a component.
    Compile {
        /// The component.
        #[arg(long = "in")]
        input: PathBuf,
        /// The file to write the image to; it stays empty when there is none.
        #[arg(long = "out")]
        output: PathBuf,
        /// A limit of components, as in the table of limits; repeat it for more.
        #[arg(long = "limit", value_name = "NAME=VALUE")]
        limits: Vec<String>,
        /// Nobody waits for it: everything else on the machine comes first.
        #[arg(long)]
        behind: bool,
        #[command(flatten)]
        isolation: Isolation,
    },
    /// Say what an upload is.
    Inspect {
        /// The upload.
        #[arg(long = "in")]
        input: PathBuf,
        /// Where to write the component that is made of a core module.
        #[arg(long = "out")]
        made: Option<PathBuf>,
        /// A limit of components, as in the table of limits; repeat it for more.
        #[arg(long = "limit", value_name = "NAME=VALUE")]
        limits: Vec<String>,
    },
    /// Give a recorded life of a scheduler to an instance again, and say what it does differently.
    #[command(
        after_help = "Prints JSON. Exit code 0: nothing differs; 3: something does; 1: it cannot be replayed."
    )]
    Replay {
        /// The recording, as `tessera framework recordings` names it and fetches it.
        #[arg(long)]
        recording: PathBuf,
        /// The component that it is of.
        #[arg(long)]
        component: PathBuf,
        /// The component is a changed one: show the first turn in which it does something else.
        #[arg(long)]
        component_changed: bool,
    },
    /// Give a scheduler the batches that stdin has, one JSON document per line, and answer each with what it
    /// came to.
    Play {
        /// The component.
        #[arg(long)]
        component: PathBuf,
    },
    /// Give up system calls as other modes do, unless told not to, and say what became of those that are
    /// tried. For tests.
    #[command(hide = true)]
    ProbeCalls {
        /// Try them without having given them up.
        #[arg(long)]
        free: bool,
    },
    /// Be isolated as it is asked for, system calls excepted, and say what became of what is tried. For tests.
    #[command(hide = true)]
    ProbeReach {
        #[command(flatten)]
        isolation: Isolation,
        /// What to try, as the module `tries` names it, with its argument behind a colon.
        tries: Vec<String>,
    },
    /// Print the key under which compiled code is cached.
    EngineKey,
    /// Measure turns of a scheduler.
    BenchTurn {
        /// The component.
        #[arg(long)]
        component: PathBuf,
        /// Offers in each batch.
        #[arg(long, default_value_t = 100)]
        offers: usize,
        /// Turns to measure.
        #[arg(long, default_value_t = 2_000)]
        turns: usize,
        /// Idle instances whose memory is measured.
        #[arg(long, default_value_t = 1_000)]
        idle: usize,
    },
}

fn main() -> ExitCode {
    log::start("tessera-worker", log::Format::from_environment(), tracing_subscriber::EnvFilter::new("info"));
    match run(Arguments::parse().mode) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("tessera-worker: {text}");
            ExitCode::FAILURE
        }
    }
}

fn print(answer: &impl serde::Serialize) -> Result<(), String> {
    let text = serde_json::to_string(answer).map_err(|error| error.to_string())?;
    println!("{text}");
    Ok(())
}

fn limits_of(arguments: &[String]) -> Result<RoleLimits, String> {
    let mut limits = RoleLimits::default();
    for argument in arguments {
        let value = argument.split_once('=').and_then(|(name, value)| Some((name, value.parse().ok()?)));
        let (name, value) = value.ok_or_else(|| format!("--limit {argument}: not NAME=NUMBER"))?;
        let name: LimitName = name.parse().map_err(|error: LimitError| error.to_string())?;
        limits.set(name, value).map_err(|error| error.to_string())?;
    }
    Ok(limits)
}

fn report(verdict: Result<judge::Verdict, judge::JudgeError>) -> Result<ExitCode, String> {
    let verdict = verdict.map_err(|error| error.to_string())?;
    print(&verdict)?;
    Ok(if verdict.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn run(mode: Mode) -> Result<ExitCode, String> {
    match mode {
        Mode::Serve {
            socket,
            tenant,
            kind,
            isolation,
        } => {
            log::i_am("tenant", tenant.clone());
            isolation.join_group()?;
            let listener = serve::bind(&socket)
                .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
            let instances_max = serve::instances_max();
            jail::enter_worker().map_err(|error| error.to_string())?;
            isolation.enter()?;
            let hosts = Hosts::new().map_err(|error| format!("{error:#}"))?;
            tracing::info!(tenant, ?kind, socket = %socket.display(), "serving");
            let worker = serve::Worker::new(Arc::new(hosts), instances_max);
            worker.run(&listener).map_err(|error| error.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::Compile {
            input,
            output,
            limits,
            behind,
            isolation,
        } => {
            if behind {
                thread::step_aside();
            }
            isolation.join_group()?;
            report(judge::compile(&input, &output, &limits_of(&limits)?, &isolation))
        }
        Mode::Inspect {
            input,
            made,
            limits,
        } => report(judge::inspect(&input, made.as_deref(), &limits_of(&limits)?)),
        Mode::ProbeCalls { free } => {
            if !free {
                jail::enter_compile(&EffectiveLimits::default()).map_err(|error| error.to_string())?;
            }
            print(&seccomp::try_calls())?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::ProbeReach { isolation, tries } => {
            isolation.leave()?;
            print(&tries::run(&tries)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::ProbeIsolation { isolation } => {
            print(&isolation.probe())?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::Replay {
            recording,
            component,
            component_changed,
        } => {
            let report = replay::run(&replay::Plan {
                recording,
                component,
                changed: component_changed,
            })?;
            print(&report)?;
            Ok(match report.divergence {
                None => ExitCode::SUCCESS,
                Some(_) => ExitCode::from(EXIT_DIVERGED),
            })
        }
        Mode::Play { component } => {
            play::run(&component)?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::EngineKey => {
            let engine = new_engine().map_err(|error| format!("{error:#}"))?;
            println!("{}", engine_key(&engine));
            Ok(ExitCode::SUCCESS)
        }
        Mode::BenchTurn {
            component,
            offers,
            turns,
            idle,
        } => {
            let plan = bench::Plan {
                offers,
                turns,
                idle,
            };
            print(&bench::run(&component, plan)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
