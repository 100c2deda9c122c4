//! A master: one replica of the cluster's state, its REST API, and the sessions of its agents.
//!
//! Owns: the process around the node: configuration, the data directory's lock, listeners, shutdown.
//! Invariants: one loop owns the state (`node_loop`); everything else holds a handle; every task that
//! is spawned ends with the process. Must never: decide anything about state or allocation.

mod api;
mod config;
mod files;
mod inspect;
mod listener;
pub mod node;
mod node_loop;
mod oci;
mod sessions;
mod store;
mod token;

pub use config::{InvalidConfig, MasterConfig};
pub use oci::KeyError;
pub use token::{TOKEN_FILE, TokenError};

use crate::api::Api;
use crate::files::FileLane;
use crate::inspect::Inspector;
use crate::listener::Bounded;
use crate::node::{Node, NodeOpenError};
use crate::node_loop::{NodeHandle, NodeLoop};
use crate::oci::{Key, Puller};
use crate::sessions::{AgentService, MESSAGE_BYTES_MAX, check_token};
use crate::store::ComponentStore;
use crate::token::Token;
use std::fs::{DirBuilder, File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_master_core::Config;
use tessera_replica::{
    BootstrapError, ClusterId, DiskError, FatalError, Identity, OpenError, Replica, ReplicaConfig,
    RocksDisk,
};
use tessera_wire::v1::agent_session_server::AgentSessionServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

/// Connections of clients, watchers included: far below the descriptors that a process usually has, as
/// the database needs some, too.
const CLIENTS_MAX: usize = 1_024;
/// Connections of agents; each has one for all its lanes.
const AGENTS_MAX: usize = 4_096;

/// The id of a cluster's first node.
const FIRST_NODE: u64 = 1;

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
    /// The replica cannot go on.
    #[error("the replica cannot go on: {0}")]
    Replica(#[from] FatalError),
    /// A listener broke.
    #[error("serving: {0}")]
    Serve(String),
    /// The system has no randomness.
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Run a master until `shutdown`.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub async fn run(config: MasterConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    config.validate()?;
    let _lock = lock_data_dir(&config.data_dir)?;
    let token = Token::load_or_make(&config.data_dir)?;
    let key = config.component_key.as_deref().map(Key::load).transpose()?;
    let rest = listen("listen", config.listen).await?;
    let agents = listen("agent-listen", config.agent_listen).await?;
    let data_dir = |source| RunError::DataDir {
        path: config.data_dir.clone(),
        source,
    };
    let store = Arc::new(ComponentStore::open(&config.data_dir).map_err(data_dir)?);
    let node = open_node(&config)?;
    let (node_loop, handle) = NodeLoop::new(node);

    let runtime = tokio::runtime::Handle::current();
    let (ended, loop_ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("node".into())
        .spawn(move || {
            // The receiver is gone only when the process is ending anyway.
            let _ = ended.send(node_loop.run(&runtime));
        })
        .map_err(data_dir)?;

    let files = Arc::new(FileLane::default());
    let serve_agents = serve_agents(
        agents,
        &handle,
        &store,
        &files,
        token.clone(),
        shutdown.clone(),
    );
    let api = Api {
        node: handle.clone(),
        store,
        files,
        inspector: Arc::new(Inspector::new(&config.bin_dir)),
        puller: Arc::new(Puller::new(config.component_registries.clone(), key)),
        allow_unsigned_uploads: config.allow_unsigned_uploads,
        token,
    };
    let rest_shutdown = shutdown.clone();
    let serve_rest = async move {
        axum::serve(Bounded::new(rest, CLIENTS_MAX), api::router(api))
            .with_graceful_shutdown(rest_shutdown.cancelled_owned())
            .await
            .map_err(|error| RunError::Serve(error.to_string()))
    };
    tracing::info!(rest = %config.listen, agents = %config.agent_listen, "master serves");
    let result = tokio::select! {
        ended = loop_ended => match ended {
            Ok(result) => result.map_err(RunError::from),
            Err(_) => Err(RunError::Serve("the node's thread ended".into())),
        },
        result = serve_agents => result,
        result = serve_rest => result,
        // Open streams of watchers and agents would keep the listeners for ever.
        () = shutdown.cancelled() => Ok(()),
    };
    handle.stop().await;
    // The loop writes nothing after Stop; waiting for it closes the database in order.
    if tokio::task::spawn_blocking(move || thread.join())
        .await
        .is_err()
    {
        tracing::warn!("the node's thread did not end in order");
    }
    result
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

/// Makes the directory, private to its owner, and locks it for as long as the file lives.
fn lock_data_dir(dir: &Path) -> Result<File, RunError> {
    let error = |source| RunError::DataDir {
        path: dir.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(error)?;
    let lock = File::create(dir.join("LOCK")).map_err(error)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(RunError::InUse {
            path: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

fn open_node(config: &MasterConfig) -> Result<Node<RocksDisk>, RunError> {
    let mut disk = RocksDisk::open(&config.data_dir.join("db"))?;
    let identity = match Replica::identity(&disk)? {
        Some(identity) => identity,
        None => {
            let mut cluster = [0; 16];
            getrandom::fill(&mut cluster).map_err(RunError::Random)?;
            let identity = Identity {
                cluster: ClusterId(cluster),
                node: FIRST_NODE,
            };
            Replica::bootstrap(&mut disk, identity, Vec::new())?;
            tracing::info!(cluster = %identity.cluster, "made a new cluster");
            identity
        }
    };
    let core = Config {
        agent_timeout_ms: config.agent_timeout_ms,
        scheduler_grace_ms: config.scheduler_grace_ms,
        session_silence_ms: Config::default()
            .session_silence_ms
            .min(config.agent_timeout_ms),
        ..Config::default()
    };
    Ok(Node::open(core, ReplicaConfig::new(identity), disk)?)
}

fn serve_agents(
    listener: TcpListener,
    node: &NodeHandle,
    store: &Arc<ComponentStore>,
    files: &Arc<FileLane>,
    token: Token,
    shutdown: CancellationToken,
) -> impl Future<Output = Result<(), RunError>> + use<> {
    let service = AgentService::new(node.clone(), store.clone(), files.clone());
    let service = AgentSessionServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let service = InterceptedService::new(service, check_token(token));
    async move {
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(
                Bounded::new(listener, AGENTS_MAX).into_stream(),
                shutdown.cancelled_owned(),
            )
            .await
            .map_err(|error| RunError::Serve(error.to_string()))
    }
}
