//! The throw-away modes: compile a component, or say what an upload is.
//!
//! Invariants: limits stand before the file is read; the answer is one JSON object on stdout, and an
//! exit code of 0 says that the component can be used. This file must never keep what it was given
//! longer than its process lives.

use crate::componentize::componentize;
use crate::grants::{Grant, grants};
use crate::image;
use crate::isolation::Isolation;
use crate::jail::{self, JailError};
use crate::statics::{self, Counted};
use crate::thread;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use tessera_types::{Digest, EffectiveLimits, LimitName, RoleLimits};
use tessera_wit_host::{
    ExecutorHost, Inspection, Inspector, LimitPassed, Limits, SchedulerHost, SchedulerImage, TaskHost, Ticker,
    Unusable, World, check_bytes, engine_key, new_engine,
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
    /// Of a scheduler: it can carry older state to the version that it writes.
    pub migrates: bool,
    /// What it asks of WASI, and what guests of its world are given.
    pub grants: Vec<Grant>,
    /// Functions of all its modules.
    pub functions: u64,
    /// Linear memories that it makes.
    pub memories: u32,
    /// Bytes of its largest memory at the start.
    pub initial_memory_bytes: u64,
    /// The component that was made of a core module; everything else is about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub componentized: Option<Componentized>,
}

/// A component that was made of a core module.
#[derive(Debug, Serialize)]
pub struct Componentized {
    /// Where it is.
    pub path: String,
    /// Digest of its bytes.
    pub digest: String,
    /// Bytes of it.
    pub size_bytes: u64,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The process could not be limited.
    #[error("cannot limit this process: {0}")]
    Jail(#[from] JailError),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(String, io::Error),
    /// The process could not be kept apart.
    #[error("{0}")]
    Isolation(String),
    /// The engine could not be made.
    #[error("cannot make the engine: {0}")]
    Engine(String),
}

struct Judge {
    engine: Engine,
    schedulers: SchedulerHost,
    executors: ExecutorHost,
    tasks: TaskHost,
    limits: Limits,
}

impl Judge {
    fn new(limits: Limits) -> Result<Self, JudgeError> {
        let fault = |error: wasmtime::Error| JudgeError::Engine(format!("{error:#}"));
        let engine = new_engine().map_err(fault)?;
        let ticker =
            Ticker::start(&engine).map_err(|error| JudgeError::Engine(error.to_string()))?;
        let ticker = Arc::new(ticker);
        let schedulers = SchedulerHost::new(&engine, ticker.clone(), thread::CONTROL);
        let executors = ExecutorHost::new(&engine, ticker.clone(), thread::CONTROL).map_err(fault)?;
        let tasks = TaskHost::new(&engine, ticker).map_err(fault)?;
        Ok(Self {
            schedulers: schedulers.map_err(fault)?,
            executors,
            tasks,
            limits,
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
            limits: self.limits,
        }
        .inspect(bytes, || widened = jail::widen_for_run());
        widened?;
        Ok(found)
    }
}

/// Bytes of linear memory that a component may have while it describes itself to an agent: what it has
/// later is for the role that it runs in to allow, and this process has no use for more.
const DESCRIBE_MEMORY_BYTES: u64 = 1 << 30;

/// What `describe` may use once the component was accepted: as much of a kind as any role may be given.
fn widest(limits: &EffectiveLimits) -> Limits {
    let mut widest = *limits;
    use LimitName as L;
    let made_of = [L::TableElements, L::Instances, L::Tables, L::Memories];
    let done = [L::Handles, L::HostcallBytes, L::HostCalls, L::RandomBytes, L::InitCpuMs, L::InitWallMs];
    for name in made_of.into_iter().chain(done) {
        widest.put(name, name.row().max);
    }
    widest.put(L::MemoryBytes, DESCRIBE_MEMORY_BYTES);
    Limits::of(&widest)
}

/// What is set, with the bounds of what is counted of a component out of the way where nothing is: it was
/// judged under the cluster's when it was uploaded.
fn judged_before(set: &RoleLimits) -> EffectiveLimits {
    use LimitName as L;
    let mut most = RoleLimits::default();
    for name in [L::ComponentBytes, L::ComponentFunctions, L::FunctionBytes, L::FunctionLocals] {
        // The largest value of a row is within its bounds.
        let _ = most.set(name, name.row().max);
    }
    EffectiveLimits::resolve([&most, set])
}

fn at(path: &Path) -> impl Fn(io::Error) -> JudgeError {
    move |error| JudgeError::File(path.display().to_string(), error)
}

fn read(file: File, limits: &EffectiveLimits) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a larger file from one that just fits.
    let most = limits.get(LimitName::ComponentBytes).saturating_add(1);
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// First bytes of a core module.
const MODULE: &[u8; 8] = b"\0asm\x01\0\0\0";

/// Whether a file begins as a core module. It is not read further.
fn is_module(file: &File) -> io::Result<bool> {
    let mut first = [0; MODULE.len()];
    match file.read_exact_at(&mut first, 0) {
        Ok(()) => Ok(&first == MODULE),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn check_size(bytes: &[u8], limits: &EffectiveLimits) -> Result<(), Unusable> {
    let (max, name) = (limits.get(LimitName::ComponentBytes), LimitName::ComponentBytes.row().name);
    if bytes.len() as u64 > max {
        let text = format!("more than the {max} bytes that a component may have");
        return Err(LimitPassed { name, text }.into());
    }
    Ok(())
}

/// What is known of an upload before anything is compiled.
enum Upload {
    Component(Counted),
    /// A core module, and the component that was made of it.
    Made(Vec<u8>, Counted),
}

/// Count, and make a component of a module. Nothing is compiled yet.
fn prepare(bytes: &[u8], limits: &EffectiveLimits) -> Result<Upload, Unusable> {
    check_size(bytes, limits)?;
    if !bytes.starts_with(MODULE) {
        check_bytes(bytes)?;
        return Ok(Upload::Component(statics::count(bytes, limits)?));
    }
    let made = componentize(bytes, &statics::count(bytes, limits)?)?;
    check_size(&made, limits)?;
    let counted = statics::count(&made, limits)?;
    Ok(Upload::Made(made, counted))
}

fn verdict(engine: &Engine, bytes: &[u8], functions: u64, found: Inspection) -> Verdict {
    let grants = grants(found.world, &found.imports);
    let said = found.description;
    Verdict {
        ok: found.error.is_none(),
        world: found.world.name(),
        error: found.error.map(|error| error.to_string()),
        digest: Digest::of(bytes).to_string(),
        size_bytes: bytes.len() as u64,
        engine: engine_key(engine),
        imports: found.imports,
        exports: found.exports,
        writes_state: said.as_ref().map(|said| said.writes_state),
        migrates: said.as_ref().is_some_and(|said| said.migrates),
        reads_state: said.map(|said| said.reads_state).unwrap_or_default(),
        grants,
        functions,
        memories: found.memories,
        initial_memory_bytes: found.initial_memory_bytes,
        componentized: None,
    }
}

/// Say what an upload is, under what is set for the whole cluster: it belongs to no role. A component that
/// was made of a core module is written to `made`.
///
/// # Errors
/// When there is no verdict; an upload that cannot be used has one.
pub fn inspect(input: &Path, made: Option<&Path>, set: &RoleLimits) -> Result<Verdict, JudgeError> {
    let limits = EffectiveLimits::resolve([set]);
    // Opened first: the jail has no files.
    let upload = File::open(input).map_err(at(input))?;
    let mut made = match made {
        Some(path) if is_module(&upload).map_err(at(input))? => Some((path, File::create(path).map_err(at(path))?)),
        _ => None,
    };
    jail::enter_compile(&limits)?;
    let judge = Judge::new(Limits::of(&limits))?;
    let bytes = read(upload, &limits).map_err(at(input))?;
    let (component, counted) = match prepare(&bytes, &limits) {
        Ok(Upload::Component(counted)) => (None, counted),
        Ok(Upload::Made(component, counted)) => (Some(component), counted),
        Err(error) => return Ok(verdict(&judge.engine, &bytes, 0, Inspection::refused(error))),
    };
    let (found, _) = judge.inspect(component.as_deref().unwrap_or(&bytes))?;
    let mut verdict = verdict(&judge.engine, &bytes, counted.functions, found);
    if let (Some(component), true) = (component, verdict.ok) {
        let Some((path, file)) = &mut made else {
            verdict.ok = false;
            verdict.error = Some("this is a core module, and there is no file for its component".into());
            return Ok(verdict);
        };
        file.write_all(&component).map_err(at(path))?;
        verdict.componentized = Some(Componentized {
            path: path.display().to_string(),
            digest: Digest::of(&component).to_string(),
            size_bytes: component.len() as u64,
        });
    }
    Ok(verdict)
}

/// Judge a component and, if it can be used, write its image; `output` stays empty otherwise. A core
/// module is none: what was made of it when it was uploaded is.
///
/// # Errors
/// When there is no verdict; a component that cannot be used has one.
pub fn compile(
    input: &Path,
    output: &Path,
    set: &RoleLimits,
    isolation: &Isolation,
) -> Result<Verdict, JudgeError> {
    let limits = judged_before(set);
    // Opened first: the user that this process becomes can open neither.
    let component = File::open(input).map_err(at(input))?;
    let mut image = image::create(output).map_err(at(output))?;
    isolation.leave().map_err(JudgeError::Isolation)?;
    jail::enter_compile(&limits)?;
    let judge = Judge::new(widest(&limits))?;
    let bytes = read(component, &limits).map_err(at(input))?;
    let counted = check_size(&bytes, &limits)
        .and_then(|()| check_bytes(&bytes))
        .and_then(|()| statics::count(&bytes, &limits));
    let counted = match counted {
        Ok(counted) => counted,
        Err(error) => return Ok(verdict(&judge.engine, &bytes, 0, Inspection::refused(error))),
    };
    let (found, component) = judge.inspect(&bytes)?;
    let verdict = verdict(&judge.engine, &bytes, counted.functions, found);
    if let Some(component) = component {
        image::write(&judge.engine, &component, Digest::of(&bytes), &mut image).map_err(at(output))?;
    }
    Ok(verdict)
}

/// A scheduler that was judged as an upload is, and can be run.
pub(crate) struct Judged {
    /// Built into instances.
    pub image: SchedulerImage,
}

/// Judge a scheduler in this process, which is limited already.
///
/// # Errors
/// Why it cannot be used as one.
pub(crate) fn scheduler(bytes: &[u8], limits: &EffectiveLimits) -> Result<Judged, String> {
    let judge = Judge::new(Limits::of(limits)).map_err(|error| error.to_string())?;
    let made = match prepare(bytes, limits) {
        Ok(Upload::Component(_)) => None,
        Ok(Upload::Made(component, _)) => Some(component),
        Err(error) => return Err(error.to_string()),
    };
    let (found, component) = judge.inspect(made.as_deref().unwrap_or(bytes)).map_err(|error| error.to_string())?;
    match (found.error, component) {
        (Some(error), _) => Err(error.to_string()),
        (None, Some(component)) if found.world == World::Scheduler => {
            let image = judge.schedulers.link(&component).map_err(|failure| failure.to_string())?;
            Ok(Judged { image })
        }
        _ => Err(format!("this is a component of the world `{}`, not a scheduler", found.world.name())),
    }
}
