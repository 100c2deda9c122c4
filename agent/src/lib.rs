//! The agent: runs tasks and hosts schedulers on one machine, and keeps them running whatever happens
//! to the masters or to itself.
//!
//! Invariants: decisions are those of `tessera-agent-core`; this crate keeps its records, performs its
//! actions and tells it what happened. The end of the agent's process ends no task. This crate must
//! never hold a rule about tasks, instances or resources.

mod checkpoint;
mod collector;
mod components;
mod config;
mod file_lane;
mod identity;
mod images;
mod input;
mod native;
mod perform;
mod sandbox;
mod scheduler_log;
mod session;
mod supervisor;
mod worker_link;
mod workers;

pub use config::{AgentConfig, ConfigError};
pub use identity::IdentityError;

use checkpoint::{Checkpoint, CheckpointError};
use config::Settings;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use supervisor::{Ears, Supervisor};
use tessera_agent_core::{Action, Core, CoreConfig, Now, RecordError, TaskKey};
use tessera_oci::Cgroups;
use tessera_types::{AgentId, Quantities};
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
    let (supervisor, actions) = open(&settings, links_sender, inputs_sender)?;
    let keeper = tokio::spawn(session::keep_session(
        settings.masters,
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
    ended
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
fn open(
    settings: &Settings,
    links: mpsc::Sender<(tessera_agent_core::WorkerKey, worker_link::LinkEvent)>,
    inputs: mpsc::Sender<input::Input>,
) -> Result<(Supervisor, Vec<Action>), RunError> {
    let dir = settings.work_dir.as_path();
    let work_dir = identity::WorkDir::open(dir)?;
    let boot = tessera_oci::process::boot_id().map_err(disk("reading the boot id"))?;
    std::fs::create_dir_all(dir.join("run")).map_err(disk("making run/"))?;
    let began = Instant::now();
    let agent = AgentId(work_dir.identity().agent);
    let (checkpoint, core, actions) = recover(dir, agent, settings.total)?;
    let cgroups = cgroups(&work_dir.identity().key);
    let sandboxes = sandbox::Sandboxes::open(dir).map_err(disk("opening tasks/"))?;
    let native = native::Native::new(
        sandboxes.clone(),
        cgroups.clone(),
        &settings.bin_dir,
        settings.users.clone(),
        inputs.clone(),
    );
    let known: BTreeSet<TaskKey> = core.tasks().map(|(key, _, _)| key.clone()).collect();
    native.clear_strangers(
        &core
            .tasks()
            .map(|(key, attempt, _)| native::group_name(key, attempt))
            .collect(),
    );
    let logs =
        Arc::new(scheduler_log::SchedulerLogs::open(dir).map_err(disk("opening frameworks/"))?);
    let workers = workers::Workers::new(
        dir.to_owned(),
        settings.bin_dir.clone(),
        cgroups.clone(),
        Arc::clone(&logs),
        links,
        inputs.clone(),
    )
    .map_err(disk("starting the thread for logs"))?;
    let supply = perform::Supply {
        components: Arc::new(
            components::Components::open(dir).map_err(disk("opening components/"))?,
        ),
        images: Arc::new(
            images::Images::open(dir, &settings.bin_dir).map_err(disk("opening images/"))?,
        ),
        sandboxes: sandboxes.clone(),
        inputs,
    };
    let collector = collector::Collector::open(sandboxes.clone(), &known, collector::KEPT_MAX)
        .map_err(disk("looking through tasks/"))?;
    let supervisor = Supervisor {
        core,
        work_dir,
        description: describe(&settings.description, &cgroups),
        boot,
        checkpoint: Some(checkpoint),
        rewrite_at: checkpoint::REWRITE_BYTES,
        native,
        workers,
        supply,
        collector,
        files: file_lane::Files { sandboxes, logs },
        began,
        line: supervisor::Line::default(),
        fetches: std::collections::BTreeMap::new(),
    };
    Ok((supervisor, actions))
}

/// Read the checkpoint, and rebuild the core from it.
fn recover(
    dir: &Path,
    agent: AgentId,
    total: Quantities,
) -> Result<(Checkpoint, Core, Vec<Action>), RunError> {
    let (checkpoint, records) = Checkpoint::open(&dir.join("checkpoint"))?;
    let records = records
        .iter()
        .map(|bytes| v1::CheckpointRecord::decode(bytes.as_slice()))
        .collect::<Result<Vec<_>, _>>()?;
    let wall_ms = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_millis() as u64);
    let now = Now {
        mono_ms: 0,
        wall_ms,
    };
    let (core, actions) = Core::recover(CoreConfig { total }, agent, records.into_iter(), now)?;
    Ok((checkpoint, core, actions))
}

/// Control groups below a root of this work directory's own.
fn cgroups(key: &str) -> Cgroups {
    let cgroups = Cgroups::detect(&format!("tessera/{}", key.get(..16).unwrap_or(key)));
    if let Some(why) = cgroups.unlimited_because() {
        tracing::warn!(why, "tasks run without limits of memory, CPU and processes");
    }
    cgroups
}

/// The description, with a word on limits that cannot be kept.
fn describe(description: &v1::AgentDescription, cgroups: &Cgroups) -> v1::AgentDescription {
    let mut description = description.clone();
    if cgroups.unlimited_because().is_some() {
        description.attributes.push(v1::Pair {
            key: "limits".into(),
            value: "none".into(),
        });
    }
    description
}
