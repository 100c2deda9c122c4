//! The link to one worker: its process, its socket, its frames.
//!
//! Invariants: a worker outlives the agent's process, so that a link first tries the socket of a worker
//! that may be there; queues are bounded, and a worker that does not read is given up. This file must
//! never decide what a worker does: it carries messages.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tessera_agent_core::{WorkerKey, WorkerKind};
use tessera_oci::Identity;
use tessera_telemetry::log;
use tessera_wire::{frame, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::mpsc;

/// Messages queued for one worker. Batches and starts are bounded by what it hosts; one that does not
/// take so many is stuck.
const QUEUE_MAX: usize = 4_096;

/// Bytes that are read at once: many of a worker's small frames.
const READ_BYTES: usize = 16 << 10;

/// How long a new worker may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Sockets and logs of workers, in the work directory.
const RUN_DIR: &str = "run";

/// Characters of an engine's tag: enough to tell the few engines apart that one machine ever has at once.
pub const ENGINE_TAG_CHARS: usize = 8;

/// How often a new worker's socket is tried.
const CONNECT_EVERY: Duration = Duration::from_millis(5);

/// What a link tells its owner.
#[derive(Debug)]
pub enum LinkEvent {
    /// It stands. Comes first.
    Connected(Link),
    /// The worker said something.
    Message(Box<v1::FromWorker>),
    /// The link broke. Nothing comes after it.
    Broken,
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The process could not be started.
    #[error("starting {program}")]
    Start {
        /// The worker's binary.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended at once.
    #[error("the worker ended before it listened: {0}; see its log {1}")]
    Ended(std::process::ExitStatus, PathBuf),
    /// It does not listen.
    #[error("the worker did not listen on {socket} within {START_TIMEOUT:?}")]
    Silent {
        /// Where.
        socket: PathBuf,
    },
}

/// Where a worker's things are.
#[derive(Clone, Debug)]
pub struct WorkerPaths {
    /// The binary.
    pub program: PathBuf,
    /// The socket on which it listens; at most 107 bytes, as the kernel demands.
    pub socket: PathBuf,
    /// Where its own messages go.
    pub log: PathBuf,
    /// The agent's work directory, which is the worker's too: it reaches what is below by relative paths,
    /// whoever may pass through the directories above.
    pub dir: PathBuf,
}

/// Tells workers of one tenant and kind that have different engines apart; part of file names.
#[must_use]
pub fn engine_tag(engine: &str) -> String {
    let hash = tessera_types::Digest::of(engine.as_bytes()).hex();
    hash[..ENGINE_TAG_CHARS].to_owned()
}

impl WorkerPaths {
    /// Paths of one worker, for the present engine unless its key names another. The socket's name has a
    /// fixed length, since a tenant's name may be longer than a socket's path.
    #[must_use]
    pub fn new(work_dir: &Path, bin_dir: &Path, key: &WorkerKey, engine_tag: &str) -> Self {
        let stem = worker_name(key, engine_tag);
        let run = work_dir.join(RUN_DIR);
        Self {
            program: bin_dir.join("tessera-worker"),
            socket: run.join(format!("{stem}.sock")),
            log: run.join(format!("{stem}.log")),
            dir: work_dir.to_owned(),
        }
    }
}

/// Names a worker in files and groups.
#[must_use]
pub fn worker_name(key: &WorkerKey, engine_tag: &str) -> String {
    let tenant = tessera_types::Digest::of(key.tenant.as_bytes()).hex();
    let tag = key.old.as_deref().unwrap_or(engine_tag);
    format!("{}-{}-{tag}", &tenant[..16], key.kind.name())
}

/// Workers of these tenants that an earlier agent left and that answer. Sockets on which nobody answers
/// are removed.
///
/// # Errors
/// When the directory cannot be read.
pub fn find(work_dir: &Path, tenants: &[String], engine: &str) -> io::Result<Vec<WorkerKey>> {
    let mut known = BTreeMap::new();
    for tenant in tenants {
        for kind in [WorkerKind::Schedulers, WorkerKind::Tasks] {
            let key = WorkerKey::new(tenant, kind);
            let name = worker_name(&key, "");
            known.insert(name, key);
        }
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(work_dir.join(RUN_DIR))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(stem) = name.and_then(|name| name.strip_suffix(".sock")) else {
            continue;
        };
        let split = stem.len().saturating_sub(ENGINE_TAG_CHARS);
        let (name, tag) = stem.split_at_checked(split).unwrap_or_default();
        let Some(key) = known.get(name) else { continue };
        if std::os::unix::net::UnixStream::connect(&path).is_err() {
            std::fs::remove_file(&path)?;
            continue;
        }
        found.push(WorkerKey {
            old: (tag != engine).then(|| tag.to_owned()),
            ..key.clone()
        });
    }
    found.sort();
    Ok(found)
}

/// A worker's link: what is sent into it, and the worker's pid.
#[derive(Debug)]
pub struct Link {
    sender: mpsc::Sender<v1::ToWorker>,
    /// The worker.
    pub process: Identity,
    /// Whether the worker was there before.
    pub adopted: bool,
    /// Whether it has said Hello.
    pub greeted: bool,
    /// Whether it was asked to end.
    pub ending: bool,
}

impl Link {
    /// Queue a message; false if the link is broken or the worker does not read.
    #[must_use]
    pub fn send(&self, message: v1::to_worker::Message) -> bool {
        self.sender
            .try_send(v1::ToWorker {
                message: Some(message),
            })
            .is_ok()
    }

    /// For senders that wait until there is room.
    #[must_use]
    pub fn sender(&self) -> mpsc::Sender<v1::ToWorker> {
        self.sender.clone()
    }

    /// Names the process in records: another worker never has the same.
    #[must_use]
    pub fn process_name(&self) -> String {
        format!(
            "{}:{}:{}",
            self.process.boot, self.process.pid, self.process.start_ticks
        )
    }
}

/// Connect to a worker that is there; false if there is none. `events` gets the link and what the
/// worker says.
pub async fn adopt(
    key: &WorkerKey,
    paths: &WorkerPaths,
    events: &mpsc::Sender<(WorkerKey, LinkEvent)>,
) -> bool {
    match UnixStream::connect(&paths.socket).await {
        Ok(stream) => link(key, stream, events, true).await,
        Err(_) => false,
    }
}

/// Start a worker and connect to it. It belongs to no process group or session of the agent; `isolation`
/// are the arguments that keep it apart.
///
/// # Errors
/// When it cannot be started or does not listen.
pub async fn start(
    key: &WorkerKey,
    paths: &WorkerPaths,
    isolation: &[OsString],
    events: &mpsc::Sender<(WorkerKey, LinkEvent)>,
) -> Result<(), LinkError> {
    let start = |source| LinkError::Start {
        program: paths.program.clone(),
        source,
    };
    // The socket of a worker that died: nobody answers on it.
    let _ = std::fs::remove_file(&paths.socket);
    let log = std::fs::File::create(&paths.log).map_err(start)?;
    log.set_permissions(PermissionsExt::from_mode(0o600))
        .map_err(start)?;
    let mut child = Command::new(&paths.program)
        .arg("serve")
        .arg("--socket")
        .arg(&paths.socket)
        .args(["--tenant", &key.tenant, "--kind", key.kind.name()])
        .args(isolation)
        .env(log::FORMAT_VARIABLE, log::format().name())
        .current_dir(&paths.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        if let Ok(stream) = UnixStream::connect(&paths.socket).await
            && link(key, stream, events, false).await
        {
            // Reaps the worker whenever it ends; the link's own end is what the owner acts on.
            tokio::spawn(async move { child.wait().await });
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(LinkError::Ended(status, paths.log.clone()));
        }
        if tokio::time::Instant::now() >= deadline {
            // It is of no use; a later start makes another.
            let _ = child.start_kill();
            return Err(LinkError::Silent {
                socket: paths.socket.clone(),
            });
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// Hand a link to its owner and carry its messages; false when the worker or the owner is gone.
async fn link(
    key: &WorkerKey,
    stream: UnixStream,
    events: &mpsc::Sender<(WorkerKey, LinkEvent)>,
    adopted: bool,
) -> bool {
    // A worker that ended meanwhile has no identity any more.
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let Some(process) = pid.and_then(|pid| Identity::of(pid).ok()) else {
        return false;
    };
    let (reader, writer) = stream.into_split();
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let connected = LinkEvent::Connected(Link {
        sender,
        process,
        adopted,
        greeted: false,
        ending: false,
    });
    if events.send((key.clone(), connected)).await.is_err() {
        return false;
    }
    tokio::spawn(write_frames(writer, queue));
    tokio::spawn(read_frames(key.clone(), reader, events.clone()));
    true
}

async fn write_frames(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<v1::ToWorker>) {
    let mut buffer = Vec::new();
    while let Some(message) = queue.recv().await {
        buffer.clear();
        frame::encode(&message, &mut buffer);
        while let Ok(message) = queue.try_recv() {
            frame::encode(&message, &mut buffer);
            if buffer.len() > frame::FRAME_BYTES_MAX {
                break;
            }
        }
        if writer.write_all(&buffer).await.is_err() {
            // The reader notices too, and tells the owner.
            return;
        }
    }
}

async fn read_frames(
    key: WorkerKey,
    reader: OwnedReadHalf,
    events: mpsc::Sender<(WorkerKey, LinkEvent)>,
) {
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    loop {
        let event = match read_frame(&mut reader).await {
            Ok(message) => LinkEvent::Message(Box::new(message)),
            Err(error) => {
                tracing::debug!(tenant = key.tenant, %error, "a worker's link broke");
                LinkEvent::Broken
            }
        };
        let last = matches!(event, LinkEvent::Broken);
        if events.send((key.clone(), event)).await.is_err() || last {
            return;
        }
    }
}

async fn read_frame(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<v1::FromWorker> {
    let mut header = [0; 4];
    reader.read_exact(&mut header).await?;
    let mut content = vec![0; frame::length(header)?];
    reader.read_exact(&mut content).await?;
    frame::decode(&content)
}
