//! From a data directory to a node: making a cluster, joining one, or going on with what is there.
//!
//! Invariants: a directory belongs to one process; a cluster is made only when somebody asks for it in so
//! many words, so that a master that lost its disk never makes a second one; a node id is on disk before it
//! is used.

use crate::api::joining::Joining;
use crate::backup::{self, BackupError, Summary};
use crate::config::{MasterConfig, member_info};
use crate::join;
use crate::members::understands;
use crate::node::{Node, NodeOpenError, RowsOf, row_change};
use crate::peer::Caller;
use crate::store::ComponentStore;
use crate::token::Token;
use crate::{DB_DIR, RunError};
use prost::Message as _;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tessera_master_core::{Config, Stopwatch, Tracing};
use tessera_replica::{ClusterId, Disk as _, DiskBatch, Durability, Identity, Replica, ReplicaConfig, RestoreError, RocksDisk};
use tessera_wire::v1;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The id of a cluster's first node.
const FIRST_NODE: u64 = 1;

/// How often the lock is tried, and the pause between: a child process that was just being started when the
/// lock was let go holds it until it runs its own program.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Makes the directory, private to its owner, and locks it for as long as the file lives.
pub fn lock_data_dir(dir: &Path) -> Result<File, RunError> {
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
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
    }
    Err(RunError::InUse {
        path: dir.to_owned(),
    })
}

/// Makes a cluster of one in a directory that has none yet; its identity.
///
/// # Errors
/// When the directory belongs to a cluster, or cannot be used.
pub fn make_cluster(data_dir: &Path, info: &v1::MemberInfo) -> Result<Identity, RunError> {
    let _lock = lock_data_dir(data_dir)?;
    Token::load_or_make(data_dir)?;
    let (db, new) = (data_dir.join(DB_DIR), data_dir.join("db.new"));
    let io = |source| RunError::DataDir {
        path: data_dir.to_owned(),
        source,
    };
    // Made under another name: a database that is there has a cluster, or one that it was to join.
    let place = match db.exists() {
        true => &db,
        false => {
            match std::fs::remove_dir_all(&new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                _ => &new,
            }
        }
    };
    let mut disk = RocksDisk::open(place)?;
    let identity = new_identity()?;
    Replica::bootstrap(&mut disk, identity, info.encode_to_vec())?;
    drop(disk);
    if *place == new {
        std::fs::rename(&new, &db).map_err(io)?;
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    }
    Ok(identity)
}

/// Makes a cluster of one with the state of a saved snapshot, in a directory that has none yet.
///
/// # Errors
/// When the directory belongs to a cluster, or the file cannot be used.
pub fn restore_cluster(
    file: &Path,
    data_dir: &Path,
    info: &v1::MemberInfo,
) -> Result<(Identity, Summary), RunError> {
    let _lock = lock_data_dir(data_dir)?;
    let io = |source| RunError::DataDir {
        path: data_dir.to_owned(),
        source,
    };
    let db = data_dir.join(DB_DIR);
    if db.exists()
        && let Some(Identity { cluster, node }) = Replica::identity(&RocksDisk::open(&db)?)?
    {
        return Err(BackupError::from(RestoreError::NotEmpty { cluster, node }).into());
    }
    let new = data_dir.join("db.new");
    for left in [&db, &new] {
        match std::fs::remove_dir_all(left) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    let store = ComponentStore::open(data_dir).map_err(io)?;
    let identity = new_identity()?;
    let mut disk = RocksDisk::open(&new)?;
    let attributes = info.encode_to_vec();
    let summary = backup::restore(file, &mut disk, &store, identity, attributes)?;
    keep_clear(&mut disk)?;
    drop(disk);
    Token::load_or_make(data_dir)?;
    std::fs::rename(&new, &db).map_err(io)?;
    File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    Ok((identity, summary))
}

/// The state is one of before: what the old cluster gave out since is not given out again.
fn keep_clear(disk: &mut RocksDisk) -> Result<(), RunError> {
    let config = Config { understands: understands(), ..Config::default() };
    let changes = tessera_master_core::restored(&RowsOf(&*disk), &config).map_err(NodeOpenError::from)?;
    let rows = changes.into_iter().map(row_change).collect();
    disk.write(DiskBatch { rows, ..DiskBatch::default() }, Durability::Synced)?;
    Ok(())
}

fn new_identity() -> Result<Identity, RunError> {
    let mut cluster = [0; 16];
    getrandom::fill(&mut cluster).map_err(RunError::Random)?;
    Ok(Identity {
        cluster: ClusterId(cluster),
        node: FIRST_NODE,
    })
}

/// The disk of a member: one that is, or one that has just joined. Until it has, clients are told so.
///
/// # Errors
/// When the disk is refused, or the cluster does not take this master.
pub async fn open_disk(
    config: &MasterConfig,
    caller: &Caller,
    shutdown: &CancellationToken,
    rest: &TcpListener,
) -> Result<(RocksDisk, Identity), RunError> {
    let mut disk = RocksDisk::open(&config.data_dir.join(DB_DIR))?;
    if let Some(identity) = Replica::identity(&disk)? {
        join::forget_join_id(&config.data_dir);
        return Ok((disk, identity));
    }
    if config.join.is_empty() {
        return Err(RunError::NoCluster {
            path: config.data_dir.clone(),
        });
    }
    let joining = Joining::begin(rest).map_err(|error| RunError::Serve(error.to_string()))?;
    let identity = join::enter(config, caller, &member_info(config), shutdown, &joining).await?;
    Replica::prepare_joiner(&mut disk, identity)?;
    join::forget_join_id(&config.data_dir);
    tracing::info!(cluster = %identity.cluster, node = identity.node, "joined as a learner");
    Ok((disk, identity))
}

/// Microseconds since the first call.
fn now_us() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGAN.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The node on a member's disk.
///
/// # Errors
/// When the disk or its rows are refused.
pub fn open_node(
    config: &MasterConfig,
    disk: RocksDisk,
    identity: Identity,
) -> Result<Node<RocksDisk>, RunError> {
    let core = Config {
        agent_timeout_ms: config.agent_timeout_ms,
        scheduler_grace_ms: config.scheduler_grace_ms,
        session_silence_ms: Config::default()
            .session_silence_ms
            .min(config.agent_timeout_ms),
        understands: understands(),
        traced: Tracing { on: config.tracing.collector.is_some(), sample_ppm: config.tracing.sample_ppm },
        stopwatch: Stopwatch(now_us),
        ..Config::default()
    };
    Ok(Node::open(core, ReplicaConfig::new(identity), disk)?)
}
