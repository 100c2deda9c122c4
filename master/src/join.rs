//! How a master becomes a member: what the joiner asks, and what the leader answers.
//!
//! Invariants: asking again with the same join id gives the same node, so that a joiner that dies at any
//! moment can ask anew; a joiner has a node id only once the cluster has it as a learner; nothing is
//! written to its log before the leader sends it. A refusal that waiting cannot mend ends the joiner.

use crate::api::joining::Joining;
use crate::config::MasterConfig;
use crate::members::Topology;
use crate::node_handle::{ChangeRefused, NodeHandle};
use crate::peer::call::Client;
use crate::peer::{CallError, Caller, Peers};
use crate::upkeep::plan::too_old;
use prost::Message as _;
use std::collections::VecDeque;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tessera_replica::{ChangeError, ClusterId, Identity, JoinId, MemberChange};
use tessera_wire::{PEER_PROTOCOL, v1};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Where a joiner keeps its join id until it has a node id.
const JOIN_FILE: &str = "join.id";

/// Pause after all addresses were tried.
const PAUSE: Duration = Duration::from_millis(500);

/// How often the leader tries again when another change of the members was quicker.
const TRIES: usize = 20;

/// Pause between those: a change takes a round among the masters.
const TRY_PAUSE: Duration = Duration::from_millis(100);

/// Longest text of each thing that a member says of itself.
const TEXT_BYTES_MAX: usize = 255;

/// Why a master could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster does not take it, and never will.
    #[error("joining by {address}: {reason}")]
    Refused {
        /// Who was asked.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The join id cannot be kept.
    #[error("keeping the join id in {0}: {1}")]
    Io(std::path::PathBuf, std::io::Error),
    /// The system has no randomness.
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
    /// It was stopped before it had joined.
    #[error("it was stopped before it had joined")]
    Stopped,
}

/// Ask these masters until one of them gives a node id.
///
/// # Errors
/// When the cluster refuses for good, or `shutdown` comes first.
pub async fn enter(
    config: &MasterConfig,
    caller: &Caller,
    info: &v1::MemberInfo,
    shutdown: &CancellationToken,
    joining: &Joining,
) -> Result<Identity, JoinError> {
    let request = v1::JoinRequest {
        join_id: join_id(&config.data_dir)?.to_vec(),
        member: Some(info.clone()),
        protocol: PEER_PROTOCOL,
        cluster: Vec::new(),
    };
    let mut addresses: VecDeque<String> = config.join.iter().cloned().collect();
    let mut last_reason = String::new();
    for round in 0_usize.. {
        let Some(address) = addresses.pop_front() else {
            addresses = config.join.iter().cloned().collect();
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => continue,
                () = shutdown.cancelled() => break,
            }
        };
        let asked = request.clone();
        let answer = caller.ask(&address, |mut client| async move { client.join(asked).await });
        let reason = match answer.await {
            Ok(reply) if reply.node != 0 => {
                let cluster = ClusterId(reply.cluster.try_into().map_err(|_| JoinError::Refused {
                    address,
                    reason: "it answered with a cluster id that is none".into(),
                })?);
                return Ok(Identity { cluster, node: reply.node });
            }
            Ok(reply) => {
                let told = std::iter::once(reply.leader).chain(reply.masters);
                let told = told.filter(|other| !other.is_empty() && *other != address);
                // The leader first; bounded, as the answer is a peer's.
                addresses.extend(told.take(TRIES));
                addresses.truncate(TRIES);
                "another master leads".to_owned()
            }
            Err(CallError::Refused { address, status }) if is_lasting(status.code()) => {
                let reason = status.message().to_owned();
                return Err(JoinError::Refused { address, reason });
            }
            Err(error) => error.to_string(),
        };
        if reason != last_reason || round == 0 {
            tracing::info!(reason, "not joined yet");
            joining.note(&reason);
            last_reason = reason;
        }
    }
    Err(JoinError::Stopped)
}

const fn is_lasting(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}

/// A member that is started says to its contacts where it is: its address may be another one than the
/// others know, and all of theirs, too. Ends when it knows who leads.
pub async fn greet(contacts: &[String], caller: &Caller, peers: &Peers, node: &NodeHandle, own: &str) {
    let mut topology = node.topology();
    while topology.borrow_and_update().leader.is_none() {
        let view = topology.borrow().clone();
        for contact in contacts.iter().filter(|contact| *contact != own) {
            let request = v1::HelloRequest {
                cluster: view.cluster().0.to_vec(),
                from: view.node(),
                protocol: PEER_PROTOCOL,
                address: own.to_owned(),
                life: peers.life(),
            };
            let hello = |mut client: Client| async move { client.hello(request).await };
            match caller.ask(contact, hello).await {
                Ok(reply) if reply.node != 0 && reply.node != view.node() => {
                    peers.learn(node, reply.node, contact);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a contact did not answer"),
            }
        }
        // Whatever comes first: a leader, or the next round.
        if let Ok(Err(_)) = tokio::time::timeout(PAUSE, topology.changed()).await {
            return;
        }
    }
}

/// The joiner has its node id on disk.
pub fn forget_join_id(data_dir: &Path) {
    // What is left behind is not read again.
    let _ = std::fs::remove_file(data_dir.join(JOIN_FILE));
}

fn join_id(data_dir: &Path) -> Result<[u8; 16], JoinError> {
    let path = data_dir.join(JOIN_FILE);
    let io = |error| JoinError::Io(path.clone(), error);
    if let Ok(bytes) = std::fs::read(&path)
        && let Ok(id) = bytes.try_into()
    {
        return Ok(id);
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(JoinError::Random)?;
    let new = data_dir.join("join.id.new");
    let mut file = std::fs::File::create(&new).map_err(io)?;
    file.write_all(&id).map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&new, &path).map_err(io)?;
    std::fs::File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    Ok(id)
}

/// Refuses what a member may not say of itself.
pub fn check_info(info: &v1::MemberInfo) -> Result<(), String> {
    for (field, text) in [
        ("peer_address", &info.peer_address),
        ("rest_address", &info.rest_address),
    ] {
        check_address(field, text)?;
    }
    let texts = [&info.name, &info.peer_address, &info.rest_address, &info.software_version];
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(format!("member: each text has at most {TEXT_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// Refuses what is no address.
pub fn check_address(field: &str, text: &str) -> Result<(), String> {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok()?;
        (!host.is_empty() && port != 0).then_some(port)
    });
    let written = text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    match port {
        Some(_) if written => Ok(()),
        _ => Err(format!(
            "{field}: {:?} is no host:port",
            text.chars().take(TEXT_BYTES_MAX).collect::<String>()
        )),
    }
}

/// The leader's side: a learner of that join id, made if it is not there.
///
/// # Errors
/// A refusal for the joiner.
pub async fn answer(
    node: &NodeHandle,
    topology: &Topology,
    request: v1::JoinRequest,
) -> Result<v1::JoinReply, Status> {
    let join: [u8; 16] = request
        .join_id
        .try_into()
        .map_err(|_| Status::invalid_argument("join_id: 16 bytes"))?;
    let mut info = request.member.unwrap_or_default();
    check_info(&info).map_err(Status::invalid_argument)?;
    let reply = v1::JoinReply {
        cluster: topology.cluster().0.to_vec(),
        masters: topology.peer_addresses(),
        ..v1::JoinReply::default()
    };
    if !topology.leads {
        let leader = topology.leader_peer().unwrap_or_default().to_owned();
        if leader.is_empty() {
            return Err(Status::unavailable("no master leads the cluster now"));
        }
        return Ok(v1::JoinReply { leader, ..reply });
    }
    let version = node.query(|core, _| core.cluster_version()).await;
    let version = version.map_err(|error| Status::unavailable(error.to_string()))?;
    if let Some(refusal) = too_old(&info, version) {
        return Err(Status::failed_precondition(refusal));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    info.added_at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let attributes = info.encode_to_vec();
    let join = JoinId(join);
    for _ in 0..TRIES {
        let membership = node.topology().borrow().membership.clone();
        if let Some(given) = membership.node_of(join) {
            if membership.get(given).is_none() {
                return Err(Status::failed_precondition(format!(
                    "join_id: node {given} was removed; empty the data directory to join anew"
                )));
            }
            return Ok(v1::JoinReply { node: given, ..reply });
        }
        let change = MemberChange::AddLearner {
            node: membership.next_node,
            attributes: attributes.clone(),
            join,
        };
        match node.change(change).await {
            // The list is read again: only it says that the node is in it.
            Ok(()) => {}
            Err(
                ChangeRefused::Replica(ChangeError::WrongNodeId { .. } | ChangeError::InProgress)
                | ChangeRefused::Lost,
            ) => tokio::time::sleep(TRY_PAUSE).await,
            Err(ChangeRefused::Replica(error @ ChangeError::TooManyMembers)) => {
                return Err(Status::resource_exhausted(error.to_string()));
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        }
    }
    Err(Status::unavailable("other changes of the members are under way"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_says_is_checked() {
        let info = |peer: &str, rest: &str| v1::MemberInfo {
            peer_address: peer.into(),
            rest_address: rest.into(),
            ..v1::MemberInfo::default()
        };
        assert_eq!(check_info(&info("10.0.0.1:5051", "host.example:5050")), Ok(()));
        assert_eq!(check_info(&info("[::1]:5051", "h:1")), Ok(()));
        for (peer, rest, field) in [
            ("", "h:1", "peer_address"),
            ("h", "h:1", "peer_address"),
            ("h:0", "h:1", "peer_address"),
            ("h:1", "h:70000", "rest_address"),
            ("h:1", ":1", "rest_address"),
            ("h:1", "a b:1", "rest_address"),
        ] {
            let error = check_info(&info(peer, rest)).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
        let long = v1::MemberInfo {
            name: "n".repeat(TEXT_BYTES_MAX + 1),
            ..info("h:1", "h:2")
        };
        assert!(check_info(&long).is_err());
    }

    #[test]
    fn a_join_id_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = join_id(dir.path()).unwrap();
        assert_eq!(join_id(dir.path()).unwrap(), first);
        forget_join_id(dir.path());
        assert_ne!(join_id(dir.path()).unwrap(), first);
    }
}
