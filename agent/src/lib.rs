//! The agent: runs tasks and hosts schedulers on one machine, and keeps them running whatever happens
//! to the masters or to itself.
//!
//! Invariants: decisions are those of `tessera-agent-core`; this crate keeps its records, performs its
//! actions and tells it what happened. The end of the agent's process ends no task. This crate must
//! never hold a rule about tasks, instances or resources.

mod caches;
mod checkpoint;
mod children;
mod collector;
mod components;
mod config;
mod file_lane;
mod identity;
mod images;
mod in_turn;
mod input;
mod masters;
mod metrics;
mod native;
mod perform;
mod protections;
mod reach;
mod recordings;
mod sandbox;
mod scheduler_log;
mod session;
mod simulated;
mod supervisor;
mod tenants;
mod trace;
mod users;
mod worker_link;
mod worker_room;
mod workers;

pub use config::{AgentConfig, ConfigError};
pub use identity::IdentityError;
pub use tessera_telemetry::export::Collector;
pub use simulated::{ATTRIBUTE as SIMULATED_ATTRIBUTE, SimulatedConfig, simulate};

use checkpoint::{Checkpoint, CheckpointError};
use config::Settings;
use protections::Protections;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use supervisor::{Ears, Supervisor};
use tessera_agent_core::{Action, Core, CoreConfig, Now, RecordError, TaskKey};
use tessera_oci::Cgroups;
use tessera_telemetry::export;
use tessera_types::AgentId;
use tessera_wire::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Session events that wait for the loop; the session's task waits when it is full.
const SESSION_EVENTS_MAX: usize = 1_024;
/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting was refused.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// The work directory is not usable.
    #[error("work directory")]
    Identity(#[from] IdentityError),
    /// The disk refused.
    #[error("{what}")]
    Disk {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The checkpoint is not usable.
    #[error("checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint's writer failed.
    #[error("the checkpoint was lost while it was written")]
    CheckpointGone,
    /// A record is not usable.
    #[error("checkpoint")]
    Record(#[from] RecordError),
    /// A record is not readable.
    #[error("checkpoint: a record is not readable")]
    Unreadable(#[from] prost::DecodeError),
    /// A port cannot be had.
    #[error("metrics_listen: listening on {address}: {source}; stop what uses it, or choose another port")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The masters are those of another cluster.
    #[error(
        "the work directory belongs to cluster {own}, the master is of cluster {found}; use another work directory or other masters"
    )]
    OtherCluster {
        /// Of the work directory.
        own: String,
        /// Of the master.
        found: String,
    },
    /// The masters do not take this agent, and never will.
    #[error("the master refuses this agent: {field}: {rule}")]
    Refused {
        /// The field.
        field: String,
        /// The rule that it breaks.
        rule: String,
    },
}

/// Run an agent until `shutdown` or until it cannot go on. Its tasks and workers go on in either case.
///
/// # Errors
/// When it cannot start, or something happened that a restart must not hide.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    let settings = config.settle()?;
    allow_descriptors();
    let (session_sender, session) = mpsc::channel(SESSION_EVENTS_MAX);
    let (links_sender, links) = mpsc::channel(workers::EVENTS_MAX);
    let (inputs_sender, inputs) = mpsc::channel(input::INPUTS_MAX);
    // A port that cannot be had is said before anything is begun.
    let port = match &settings.metrics {
        Some(port) => Some((listen(port).await?, port.authorization.clone())),
        None => None,
    };
    let looks = inputs_sender.clone();
    let (supervisor, actions) = open(&settings, links_sender, inputs_sender).await?;
    let server = port.map(|(listener, authorization)| {
        let (metrics, cgroups) = (supervisor.metrics.clone(), supervisor.native.cgroups().clone());
        let server = metrics::Server { metrics, inputs: looks, cgroups, authorization };
        tokio::spawn(server.run(listener))
    });
    let keeper = tokio::spawn(session::keep_session(
        masters::Masters::open(settings.masters, &settings.work_dir),
        settings.token,
        session_sender,
    ));
    let ears = Ears {
        session,
        links,
        inputs,
    };
    let ended = tokio::select! {
        ended = supervisor.run(ears, actions) => ended,
        () = shutdown.cancelled() => Ok(()),
    };
    keeper.abort();
    if let Some(server) = server {
        server.abort();
    }
    ended
}

/// Listen where metrics are to be served.
async fn listen(port: &config::MetricsPort) -> Result<tokio::net::TcpListener, RunError> {
    let listener = tokio::net::TcpListener::bind(port.address).await.map_err(|source| RunError::Listen {
        address: port.address,
        source,
    })?;
    let address = listener.local_addr().unwrap_or(port.address);
    tracing::info!(%address, "metrics are served");
    Ok(listener)
}

/// A running task takes a descriptor; take as many as the system allows.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn disk(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Disk { what, source }
}

/// Lock the work directory and rebuild everything from it.
async fn open(
    settings: &Settings,
    links: mpsc::Sender<(tessera_agent_core::WorkerKey, worker_link::LinkEvent)>,
    inputs: mpsc::Sender<input::Input>,
) -> Result<(Supervisor, Vec<Action>), RunError> {
    let dir = settings.work_dir.as_path();
    let work_dir = identity::WorkDir::open(dir)?;
    let boot = tessera_oci::process::boot_id().map_err(disk("reading the boot id"))?;
    let began = Instant::now();
    let agent = AgentId(work_dir.identity().agent);
    let config = CoreConfig {
        worker_idle_ms: settings.worker_idle_ms,
        ..CoreConfig::new(settings.total.clone())
    };
    let (checkpoint, mut core, mut actions) = recover(dir, agent, config)?;
    let cgroups = cgroups(work_dir.identity().groups());
    let sandboxes = sandbox::Sandboxes::open(dir).map_err(disk("opening tasks/"))?;
    let native = native::Native::new(
        sandboxes.clone(),
        cgroups.clone(),
        &settings.bin_dir,
        settings.users.clone(),
        inputs.clone(),
    );
    let known: BTreeSet<TaskKey> = core.tasks().map(|(key, _, _)| key.clone()).collect();
    core.set_hostname(settings.description.hostname.clone());
    let tasks = core.tasks();
    let tasks = tasks.map(|(key, attempt, _)| native::group_name(key, attempt));
    let executors = core.executors();
    let executors = executors.map(|(key, life)| native::executor_group(key, life));
    native.clear_strangers(&tasks.chain(executors).collect());
    let logs =
        Arc::new(scheduler_log::SchedulerLogs::open(dir).map_err(disk("opening frameworks/"))?);
    let hosting = hosting(settings, &cgroups).await?;
    actions.extend(core.on_workers_found(hosting.found, wall_now(began)));
    let reaches = Arc::new(reach::Reaches::new(dir));
    let workers = workers::Workers::new(
        dir.to_owned(),
        settings.bin_dir.clone(),
        worker_room::Rooms::new(
            cgroups.clone(),
            Arc::clone(&hosting.tenants),
            Arc::clone(&reaches),
            worker_room::Own::from(&hosting.protections),
            worker_link::engine_tag(&hosting.engine),
        ),
        Arc::clone(&logs),
        links,
        inputs.clone(),
    )
    .map_err(disk("starting the thread for logs"))?;
    let recordings = recordings::Recordings::new(dir);
    let supply = perform::Supply {
        components: Arc::new(
            components::Components::open(dir).map_err(disk("opening components/"))?,
        ),
        images: Arc::new(hosting.images),
        sandboxes: sandboxes.clone(),
        recordings: recordings.clone(),
        tenants: hosting.tenants,
        reaches,
        work_dir: dir.to_owned(),
        inputs: inputs.clone(),
    };
    let caches = Arc::new(caches::Caches::new(dir, settings.cache_bytes));
    let collector = collector::Collector::open(sandboxes.clone(), &known, collector::KEPT_MAX)
        .map_err(disk("looking through tasks/"))?;
    let metrics = Arc::<metrics::Metrics>::default();
    let tracer = tracer(settings, &metrics).map_err(disk("starting the thread for spans"))?;
    let supervisor = Supervisor {
        core,
        work_dir,
        description: describe(
            &settings.description,
            &cgroups,
            &hosting.protections,
            hosting.engine,
        ),
        boot,
        checkpoint: Some(checkpoint),
        rewrite_at: checkpoint::REWRITE_BYTES,
        native,
        workers,
        supply,
        collector,
        files: file_lane::Files {
            sandboxes,
            logs,
            recordings,
            caches,
            inputs,
        },
        began,
        total: settings.total.quantities,
        metrics,
        tracer,
        line: supervisor::Line::default(),
        fetches: std::collections::BTreeMap::new(),
        executor_starts: std::collections::BTreeMap::new(),
    };
    Ok((supervisor, actions))
}

/// What follows traces, if a collector is named.
fn tracer(settings: &Settings, metrics: &metrics::Metrics) -> std::io::Result<Option<trace::Tracer>> {
    let Some(collector) = settings.collector.clone() else { return Ok(None) };
    let hostname = settings.description.hostname.clone();
    let queue = export::start(collector, "tessera-agent", hostname, Arc::clone(&metrics.spans))?;
    Ok(Some(trace::Tracer::new(queue)))
}

/// What components need on this machine.
struct Hosting {
    images: images::Images,
    /// Key of the present engine; empty when the worker's binary cannot be asked.
    engine: String,
    protections: Protections,
    tenants: Arc<tenants::Tenants>,
    /// Workers of an earlier agent that answer.
    found: Vec<tessera_agent_core::WorkerKey>,
}

/// Find out which engine this machine has, how workers can be kept apart, and which of them are there.
async fn hosting(settings: &Settings, cgroups: &Cgroups) -> Result<Hosting, RunError> {
    let dir = settings.work_dir.as_path();
    let mut images =
        images::Images::open(dir, &settings.bin_dir).map_err(disk("opening images/"))?;
    let engine = match images.engine().await {
        Ok(engine) => engine.to_owned(),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "no component can run here");
            String::new()
        }
    };
    let worker = settings.bin_dir.join("tessera-worker");
    let protections = Protections::find(&worker, cgroups, settings.worker_uid_first).await;
    let uid_first = protections.users.then_some(settings.worker_uid_first);
    images.isolate(protections.network, uid_first.map(|first| first + tenants::COMPILER));
    let tenants =
        Arc::new(tenants::Tenants::open(dir, uid_first).map_err(disk("reading tenants.json"))?);
    let tag = worker_link::engine_tag(&engine);
    let found = worker_link::find(dir, &tenants.names(), &tag).map_err(disk("reading run/"))?;
    if !engine.is_empty() {
        let tags = found.iter().filter_map(|key| key.old.clone()).chain([tag]);
        images
            .forget_engines_but(&tags.collect())
            .map_err(disk("clearing images/"))?;
    }
    Ok(Hosting {
        images,
        engine,
        protections,
        tenants,
        found,
    })
}

fn wall_now(began: Instant) -> Now {
    let wall_ms = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_millis() as u64);
    Now {
        mono_ms: began.elapsed().as_millis() as u64,
        wall_ms,
    }
}

/// Read the checkpoint, and rebuild the core from it.
fn recover(
    dir: &Path,
    agent: AgentId,
    config: CoreConfig,
) -> Result<(Checkpoint, Core, Vec<Action>), RunError> {
    let (checkpoint, records) = Checkpoint::open(&dir.join("checkpoint"))?;
    let records = records
        .iter()
        .map(|bytes| v1::CheckpointRecord::decode(bytes.as_slice()))
        .collect::<Result<Vec<_>, _>>()?;
    let now = Now {
        mono_ms: 0,
        ..wall_now(Instant::now())
    };
    let (core, actions) = Core::recover(config, agent, records.into_iter(), now)?;
    Ok((checkpoint, core, actions))
}

/// Control groups below a root of this work directory's own.
fn cgroups(key: &str) -> Cgroups {
    Cgroups::detect(&format!("tessera/{}", key.get(..16).unwrap_or(key)))
}

/// The description, with what was found out: the engine, what protections are missing, and a word for
/// schedulers on limits that cannot be kept.
fn describe(
    description: &v1::AgentDescription,
    cgroups: &Cgroups,
    protections: &Protections,
    engine: String,
) -> v1::AgentDescription {
    let mut description = description.clone();
    if cgroups.unlimited_because().is_some() {
        description.attributes.push(v1::Pair {
            key: "limits".into(),
            value: "none".into(),
        });
    }
    description.missing = protections.to_wire();
    description.engine = engine;
    description
}
