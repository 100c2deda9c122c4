//! The throw-away modes: compile a component, or say what one is.
//!
//! Invariants: limits stand before the file is read; the answer is one JSON object on stdout, and an
//! exit code of 0 says that the component can be used. This file must never keep what it was given
//! longer than its process lives.

use crate::image;
use crate::jail::{self, JailError};
use crate::thread;
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use tessera_types::{Digest, limits::COMPONENT_BYTES_MAX};
use tessera_wit_host::{
    ExecutorHost, Inspection, Inspector, Limits, SchedulerHost, TaskHost, Ticker, engine_key, new_engine,
};
use wasmtime::Engine;
use wasmtime::component::Component;

/// The answer of `compile` and `inspect`.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether the component can be used.
    pub ok: bool,
    /// `scheduler`, `command`, `executor` or `none`.
    pub world: &'static str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Digest of the bytes.
    pub digest: String,
    /// Bytes of the component.
    pub size_bytes: u64,
    /// Key of the engine that judged it.
    pub engine: String,
    /// Names of what it imports.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
    /// Of a scheduler: version of the state that it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes_state: Option<u32>,
    /// Of a scheduler: versions of the state that it can start from.
    pub reads_state: Vec<u32>,
    /// Linear memories that it makes.
    pub memories: u32,
    /// Bytes of its largest memory at the start.
    pub initial_memory_bytes: u64,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The process could not be limited.
    #[error("cannot limit this process: {0}")]
    Jail(#[from] JailError),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// The engine could not be made.
    #[error("cannot make the engine: {0}")]
    Engine(String),
}

struct Judge {
    engine: Engine,
    schedulers: SchedulerHost,
    executors: ExecutorHost,
    tasks: TaskHost,
}

impl Judge {
    fn new() -> Result<Self, JudgeError> {
        let fault = |error: wasmtime::Error| JudgeError::Engine(format!("{error:#}"));
        let engine = new_engine().map_err(fault)?;
        let ticker =
            Ticker::start(&engine).map_err(|error| JudgeError::Engine(error.to_string()))?;
        let (ticker, limits) = (Arc::new(ticker), Limits::default());
        let schedulers = SchedulerHost::new(&engine, ticker.clone(), thread::CONTROL);
        let executors = ExecutorHost::new(&engine, ticker.clone(), thread::CONTROL).map_err(fault)?;
        let tasks = TaskHost::new(&engine, ticker, limits).map_err(fault)?;
        Ok(Self {
            schedulers: schedulers.map_err(fault)?,
            executors,
            tasks,
            engine,
        })
    }

    fn inspect(&self, bytes: &[u8]) -> Result<(Inspection, Option<Component>), JudgeError> {
        let mut widened = Ok(());
        let found = Inspector {
            engine: &self.engine,
            schedulers: &self.schedulers,
            executors: &self.executors,
            tasks: &self.tasks,
        }
        .inspect(bytes, || widened = jail::widen_for_run());
        widened?;
        Ok(found)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, JudgeError> {
    let fault = |error| JudgeError::File(path.display().to_string(), error);
    let mut bytes = Vec::new();
    // One byte more than allowed tells a larger file from one that just fits.
    let file = File::open(path).map_err(fault)?;
    file.take(COMPONENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fault)?;
    Ok(bytes)
}

fn verdict(engine: &Engine, bytes: &[u8], found: Inspection) -> Verdict {
    let (writes_state, reads_state) = match found.description {
        Some(said) => (Some(said.writes_state), said.reads_state),
        None => (None, Vec::new()),
    };
    Verdict {
        ok: found.error.is_none(),
        world: found.world.name(),
        error: found.error.map(|error| error.to_string()),
        digest: Digest::of(bytes).to_string(),
        size_bytes: bytes.len() as u64,
        engine: engine_key(engine),
        imports: found.imports,
        exports: found.exports,
        writes_state,
        reads_state,
        memories: found.memories,
        initial_memory_bytes: found.initial_memory_bytes,
    }
}

/// Say what a component is.
///
/// # Errors
/// When there is no verdict; a component that cannot be used has one.
pub fn inspect(input: &Path) -> Result<Verdict, JudgeError> {
    jail::enter_compile()?;
    let judge = Judge::new()?;
    let bytes = read(input)?;
    let (found, _) = judge.inspect(&bytes)?;
    Ok(verdict(&judge.engine, &bytes, found))
}

/// Judge a component and, if it can be used, write its image.
///
/// # Errors
/// When there is no verdict; a component that cannot be used has one.
pub fn compile(input: &Path, output: &Path) -> Result<Verdict, JudgeError> {
    jail::enter_compile()?;
    let judge = Judge::new()?;
    let bytes = read(input)?;
    let (found, component) = judge.inspect(&bytes)?;
    let verdict = verdict(&judge.engine, &bytes, found);
    if let Some(component) = component {
        image::write(&judge.engine, &component, Digest::of(&bytes), output)
            .map_err(|error| JudgeError::File(output.display().to_string(), error))?;
    }
    Ok(verdict)
}
