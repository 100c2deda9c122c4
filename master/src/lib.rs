//! A master: one replica of the cluster's state, its REST API, and the sessions of its agents.
//!
//! Owns: the process around the node: configuration, the data directory's lock, listeners, shutdown.
//! Invariants: one loop owns the state (`node_loop`); everything else holds a handle; every task that
//! is spawned ends with the process. Must never: decide anything about state or allocation.

mod api;
mod backup;
mod beats;
mod config;
mod files;
mod forward;
mod inspect;
mod join;
mod listener;
mod members;
mod metrics;
mod names;
pub mod node;
mod node_handle;
mod node_loop;
mod node_writer;
mod oci;
mod pause;
mod peer;
mod sessions;
pub mod shelf;
mod stage;
mod start;
mod store;
mod token;
mod trace;
pub mod upkeep;

pub use backup::{BackupError, Summary, inspect as inspect_snapshot};
pub use config::{COMPONENT_GRACE, InvalidConfig, MasterConfig, REQUESTS_PER_S, TraceConfig};
pub use join::JoinError;
pub use node_handle::LoopError;
pub use oci::KeyError;
pub use token::{TOKEN_FILE, TokenError};
pub use tessera_telemetry::export::Collector;

use crate::api::audit::Audit;
use crate::api::{Api, Hub, Shared};
use crate::config::member_info;
use crate::files::FileLane;
use crate::forward::Forwarder;
use crate::inspect::Inspector;
use crate::listener::Bounded;
use crate::metrics::Metrics;
use crate::node::NodeOpenError;
use crate::node_handle::{NodeHandle, Stopped};
use crate::node_loop::NodeLoop;
use crate::oci::{Key, Puller};
use crate::peer::{Caller, Incoming, PEER_MESSAGE_BYTES_MAX, PeerService, Peers, Writes};
use crate::sessions::{AgentService, MESSAGE_BYTES_MAX, check_token};
use crate::stage::Staging;
use crate::store::ComponentStore;
use crate::token::Token;
use crate::trace::Tracer;
use tessera_telemetry::export;
use crate::upkeep::components::{Fetcher, reconcile};
use crate::upkeep::steward::{Health, Steward};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tessera_replica::{BootstrapError, DiskError, OpenError};
use tessera_wire::v1::agent_session_server::AgentSessionServer;
use tessera_wire::v1::peer_server::PeerServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

/// Connections of clients, watchers included: far below the descriptors that a process usually has, as
/// the database needs some, too.
const CLIENTS_MAX: usize = 1_024;
/// Connections of agents, each of which has one for all its lanes, and of other masters: more than the largest
/// cluster that is planned for. The process's descriptors may end before.
const AGENTS_MAX: usize = 49_152;

/// The database in a data directory.
const DB_DIR: &str = "db";

/// How long a leader that is stopped waits until another master leads: an election takes about a second.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);

/// How long a master that ends waits for its database to be closed in order. A disk that hangs may keep it for ever, and
/// nothing that was promised depends on it.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Why a master ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting breaks a rule.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The data directory cannot be used.
    #[error("using the data directory {path}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another master runs on the data directory.
    #[error(
        "the data directory {path} is in use by another master; stop it, or choose another one with --data-dir"
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key of components cannot be used.
    #[error("component-key: {0}")]
    Key(#[from] KeyError),
    /// The disk cannot be opened.
    #[error("opening the replicated state: {0}")]
    Disk(#[from] DiskError),
    /// The identity of the disk cannot be read.
    #[error("opening the replicated state: {0}")]
    Identity(#[from] OpenError),
    /// A new disk could not be made ready.
    #[error("preparing a new replicated state: {0}")]
    Bootstrap(#[from] BootstrapError),
    /// The node did not start.
    #[error("starting from the replicated state: {0}")]
    Node(#[from] NodeOpenError),
    /// A port cannot be had.
    #[error(
        "{field}: listening on {address}: {source}; stop what uses it, or choose another port with --{field}"
    )]
    Listen {
        /// The setting.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The node's loop ended by itself.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The directory has no cluster, and nobody said where one is.
    #[error(
        "the data directory {path} belongs to no cluster; make one with `tessera operator init --data-dir {path}`, or name the masters of one with --join HOST:PORT"
    )]
    NoCluster {
        /// Which.
        path: PathBuf,
    },
    /// The cluster was not joined.
    #[error("joining the cluster: {0}")]
    Join(#[from] JoinError),
    /// A saved snapshot cannot be used.
    #[error("the saved snapshot: {0}")]
    Backup(#[from] BackupError),
    /// The token cannot be sent.
    #[error("token: visible ASCII characters only")]
    TokenText,
    /// A listener broke.
    #[error("serving: {0}")]
    Serve(String),
    /// The system has no randomness.
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Make a cluster of one in an empty data directory; its id.
///
/// # Errors
/// When the directory belongs to a cluster already, or cannot be used.
pub fn init(config: &MasterConfig) -> Result<String, RunError> {
    config.validate()?;
    let identity = start::make_cluster(&config.data_dir, &member_info(config))?;
    Ok(identity.cluster.to_string())
}

/// Make a cluster of one from a saved snapshot in an empty data directory; its id, and what the file held.
///
/// # Errors
/// When the directory belongs to a cluster already, or the file cannot be used.
pub fn restore(
    file: &std::path::Path,
    config: &MasterConfig,
) -> Result<(String, Summary), RunError> {
    config.validate()?;
    let (identity, summary) = start::restore_cluster(file, &config.data_dir, &member_info(config))?;
    Ok((identity.cluster.to_string(), summary))
}

/// Whether a data directory has a cluster, or was to join one.
#[must_use]
pub fn is_initialised(data_dir: &std::path::Path) -> bool {
    data_dir.join(DB_DIR).exists()
}

/// Run a master until `shutdown`.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub async fn run(mut config: MasterConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    config.validate()?;
    if config.join.is_empty() && !is_initialised(&config.data_dir) {
        // Nothing is made in a directory that may be the wrong one.
        let path = config.data_dir;
        return Err(RunError::NoCluster { path });
    }
    let _lock = start::lock_data_dir(&config.data_dir)?;
    let token = match &config.token_file {
        Some(file) => Token::load_or_copy(&config.data_dir, file)?,
        None => Token::load_or_make(&config.data_dir)?,
    };
    let key = config.component_key.as_deref().map(Key::load).transpose()?;
    let rest = listen("listen", config.listen).await?;
    let agents = listen("agent-listen", config.agent_listen).await?;
    // Any free port may have been asked for; the others are told the one that it is.
    config.listen = rest.local_addr().unwrap_or(config.listen);
    config.agent_listen = agents.local_addr().unwrap_or(config.agent_listen);
    let data_dir = |source| RunError::DataDir {
        path: config.data_dir.clone(),
        source,
    };
    let store = Arc::new(ComponentStore::open(&config.data_dir).map_err(data_dir)?);
    let staging = Arc::new(Staging::open(&config.data_dir).map_err(data_dir)?);
    let audit = Audit::open(&config.data_dir).map_err(data_dir)?;
    let caller = Caller::new(&token).map_err(|_| RunError::TokenText)?;
    let (disk, identity) = start::open_disk(&config, &caller, &shutdown, &rest).await?;
    let node = start::open_node(&config, disk, identity)?;
    let metrics = Arc::<Metrics>::default();
    let tracer = match config.tracing.collector.clone() {
        Some(collector) => {
            let (node, spans) = (identity.node.to_string(), Arc::clone(&metrics.spans));
            let queue = export::start(collector, "tessera-master", node, spans).map_err(data_dir)?;
            Some(Tracer::new(queue, config.tracing.sample_ppm))
        }
        None => None,
    };
    let (node_loop, handle) = NodeLoop::new(node, metrics, tracer);
    let info = member_info(&config);
    let life = getrandom::u64().map_err(RunError::Random)?.max(1);
    let peers = Peers::new(caller.clone(), handle.topology(), info.peer_address.clone(), life);

    let runtime = tokio::runtime::Handle::current();
    let (ended, loop_ended) = tokio::sync::oneshot::channel();
    let loop_peers = Arc::clone(&peers);
    let thread = std::thread::Builder::new()
        .name("node".into())
        .spawn(move || {
            // The receiver is gone only when the process is ending anyway.
            let _ = ended.send(node_loop.run(&runtime, loop_peers));
        })
        .map_err(data_dir)?;

    let fetcher = Arc::new(Fetcher::new(store.clone(), caller.clone(), handle.topology()));
    let health = Arc::new(Health::default());
    let steward = Steward {
        node: handle.clone(),
        caller: caller.clone(),
        peers: peers.clone(),
        health: health.clone(),
        info: info.clone(),
    };
    let files = Arc::new(FileLane::default());
    let agent_service = AgentService::new(handle.clone(), store.clone(), files.clone());
    let peer_service = PeerService {
        node: handle.clone(),
        topology: handle.topology(),
        peers: peers.clone(),
        store: store.clone(),
        fetcher: fetcher.clone(),
        info: info.clone(),
        incoming: Arc::new(Incoming::default()),
    };
    let serve_agents = serve_agents(agents, agent_service, peer_service, token.clone());
    let greet = join::greet(&config.join, &caller, &peers, &handle, &info.peer_address);
    let reconcile = reconcile(fetcher.clone(), handle.clone(), config.component_grace);
    let events = Hub::new(handle.clone());
    let api = Api::from(Shared {
        node: handle.clone(),
        store,
        files,
        inspector: Arc::new(Inspector::new(&config.bin_dir)),
        puller: Arc::new(Puller::new(config.component_registries.clone(), key)),
        allow_unsigned_uploads: config.allow_unsigned_uploads,
        token,
        forwarder: Arc::new(Forwarder::default()),
        staging,
        caller: caller.clone(),
        peers: peers.clone(),
        fetcher,
        health,
        writes: Writes::new(caller.clone(), peers.clone(), handle.topology()),
        events: events.clone(),
        audit: audit.clone(),
    });
    let serve_rest = api::door::serve(Bounded::new(rest, CLIENTS_MAX), api, audit, config.requests_per_s);
    let serve_rest = async { tokio::join!(serve_rest, events.run()) };
    tessera_telemetry::log::i_am("node", identity.node.to_string());
    tracing::info!(rest = %config.listen, agents = %config.agent_listen, node = identity.node, "master serves");
    let result = tokio::select! {
        ended = loop_ended => match ended {
            Ok(result) => result.map_err(RunError::from),
            Err(_) => Err(RunError::Serve("the node's thread ended".into())),
        },
        result = serve_agents => result,
        ((), ()) = serve_rest => Ok(()),
        () = look_after(steward, reconcile, greet) => Ok(()),
        // Open streams of watchers and agents would keep the listeners for ever; they are served until
        // another master leads.
        () = async { shutdown.cancelled().await; hand_over(&handle).await } => Ok(()),
    };
    end(&handle, thread).await;
    result
}

/// The loop writes nothing after Stop; waiting for it closes the database in order.
async fn end(handle: &NodeHandle, thread: std::thread::JoinHandle<()>) {
    let end = async {
        handle.stop().await;
        tokio::task::spawn_blocking(move || thread.join()).await.is_ok()
    };
    if tokio::time::timeout(END_WITHIN, end).await != Ok(true) {
        tracing::warn!("the node's thread did not end in order");
    }
}

/// What goes on beside the loop. Ends with it, and leaves it to the loop to say why.
async fn look_after(
    steward: Steward,
    reconcile: impl Future<Output = Stopped>,
    greet: impl Future<Output = ()>,
) {
    let (stopped, (), ()) = tokio::join!(reconcile, steward.run(), greet);
    tracing::debug!(%stopped, "nothing is looked after any more");
    std::future::pending().await
}

/// A leader that is stopped hands leadership over first, so that nobody waits for an election.
async fn hand_over(handle: &NodeHandle) {
    let mut topology = handle.topology();
    let (leads, voters, me) = {
        let view = topology.borrow();
        (view.leads, view.voters(), view.node())
    };
    if !leads || voters < 2 {
        return;
    }
    let other = topology.wait_for(|view| view.leader.is_some_and(|leader| leader != me));
    match handle.transfer(None).await {
        Ok(node) => {
            let led = tokio::time::timeout(HAND_OVER_WITHIN, other).await.is_ok();
            tracing::info!(node, led, "handed leadership over");
        }
        Err(error) => tracing::warn!(%error, "leadership is not handed over; the others elect"),
    }
}

async fn listen(field: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen {
            field,
            address,
            source,
        })
}

async fn serve_agents(
    listener: TcpListener,
    agents: AgentService,
    peers: PeerService,
    token: Token,
) -> Result<(), RunError> {
    let agents = AgentSessionServer::new(agents)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let peers = PeerServer::new(peers)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .add_service(InterceptedService::new(agents, check_token(token.clone())))
        .add_service(InterceptedService::new(peers, check_token(token)))
        .serve_with_incoming(Bounded::new(listener, AGENTS_MAX).into_stream())
        .await
        .map_err(|error| RunError::Serve(error.to_string()))
}
