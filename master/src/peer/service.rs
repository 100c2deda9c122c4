//! The masters' side of the port that agents connect to.
//!
//! Invariants: every call carries the token; a message of a member names the cluster, its sender and this
//! node, and is refused otherwise with what is wrong. A peer's input never panics and never waits for more
//! than the loop's queue. This file must never change state: it only carries messages.

use super::sender::REMOVED;
use super::lives::SpokenFor;
use super::snapshots::Incoming;
use super::{Peers, envelope, gone, writes};
use crate::join::check_address;
use crate::members::{Topology, understands};
use crate::node_handle::NodeHandle;
use crate::sessions::file_chunks;
use crate::store::ComponentStore;
use crate::upkeep::components::Fetcher;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tessera_types::Digest;
use tessera_wire::{PEER_PROTOCOL, go_together, v1};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Request, Response, Status, Streaming};

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service that other masters call.
pub struct PeerService {
    /// The node.
    pub node: NodeHandle,
    /// Who is a member.
    pub topology: watch::Receiver<Topology>,
    /// Where the others are.
    pub peers: Arc<Peers>,
    /// Component files.
    pub store: Arc<ComponentStore>,
    /// Fetches component files that are missing.
    pub fetcher: Arc<Fetcher>,
    /// What this master says of itself.
    pub info: v1::MemberInfo,
    /// The snapshot that is being received.
    pub incoming: Arc<Incoming>,
}

/// Checks who speaks to whom; the sender.
fn check(topology: &Topology, envelope: Option<&v1::PeerEnvelope>) -> Result<u64, Status> {
    let envelope =
        envelope.ok_or_else(|| Status::invalid_argument("envelope: it must be there"))?;
    check_sender(topology, &envelope.cluster, envelope.from, envelope.protocol)?;
    if envelope.to != topology.node() {
        return Err(Status::failed_precondition(format!(
            "to: this is node {}, the message is for node {}; its disk was replaced, or another master has its \
             address",
            topology.node(),
            envelope.to
        )));
    }
    Ok(envelope.from)
}

/// Checks who speaks.
fn check_sender(
    topology: &Topology,
    cluster: &[u8],
    from: u64,
    protocol: u32,
) -> Result<(), Status> {
    if !go_together(PEER_PROTOCOL, protocol) {
        return Err(Status::failed_precondition(format!(
            "protocol: this master speaks {PEER_PROTOCOL}, the sender {protocol}; upgrade one version at a time"
        )));
    }
    if cluster != topology.cluster().0 {
        return Err(Status::failed_precondition(format!(
            "cluster: this master is of cluster {}, the message is of another one; check the addresses that the \
             sender was given",
            topology.cluster()
        )));
    }
    if topology.was_removed(from) {
        let text = format!(
            "from: node {from} was removed from cluster {}; to come back, start it with an empty data directory and \
             --join",
            topology.cluster()
        );
        let mut metadata = MetadataMap::new();
        metadata.insert(REMOVED, AsciiMetadataValue::from_static("1"));
        return Err(Status::with_metadata(Code::FailedPrecondition, text, metadata));
    }
    Ok(())
}

fn spoken_for(error: SpokenFor) -> Status {
    Status::failed_precondition(error.to_string())
}

/// All frames of a stream are of one sender.
fn same(first: u64, later: u64) -> Result<(), Status> {
    if later == first {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("from: the stream began as one of node {first}, not of node {later}")))
}

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::from_slice(bytes).map_err(|error| Status::invalid_argument(format!("digest: {error}")))
}

impl PeerService {
    /// Checks who speaks to whom; the sender.
    pub(super) fn check(&self, envelope: Option<&v1::PeerEnvelope>) -> Result<u64, Status> {
        check(&self.topology.borrow(), envelope)
    }
}

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    type RaftStream = Reply<v1::RaftAck>;
    type CopyComponentStream = Reply<v1::Chunk>;
    type WriteStateStream = Reply<v1::StateAnswers>;

    async fn raft(
        &self,
        request: Request<Streaming<v1::RaftFrame>>,
    ) -> Result<Response<Self::RaftStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("envelope: the first frame must be there"))?;
        let from = self.check(first.envelope.as_ref())?;
        let speaks = self.peers.lives().begin(from, first.life, Instant::now()).map_err(spoken_for)?;
        if check_address("address", &first.address).is_ok() {
            self.peers.learn(&self.node, from, &first.address);
        }
        let (node, topology) = (self.node.clone(), self.topology.clone());
        let me = topology.borrow().node();
        // One acknowledgement, then whatever ends the stream.
        let (answers, out) = tokio::sync::mpsc::channel(2);
        // There is room for it in a new channel.
        let _ = answers.try_send(Ok(v1::RaftAck { node: me }));
        tokio::spawn(async move {
            loop {
                let checked = match incoming.message().await {
                    Ok(Some(frame)) => check(&topology.borrow(), frame.envelope.as_ref())
                        .and_then(|sender| same(from, sender))
                        .and_then(|()| speaks.heard(Instant::now()).map_err(spoken_for))
                        .map(|()| frame),
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(from, %status, "a stream of another master broke");
                        return;
                    }
                };
                let taken = match checked {
                    Ok(frame) => node.raft(from, frame.messages).await.map_err(gone),
                    Err(status) => Err(status),
                };
                if let Err(status) = taken {
                    // The sender may have gone away, and connects again if it comes back.
                    let _ = answers.send(Err(status)).await;
                    return;
                }
            }
        });
        let out = tokio_stream::wrappers::ReceiverStream::new(out);
        Ok(Response::new(Box::pin(out)))
    }

    async fn write_state(
        &self,
        request: Request<Streaming<v1::StateWrites>>,
    ) -> Result<Response<Self::WriteStateStream>, Status> {
        let topology = self.topology.clone();
        let check = move |frame: &v1::StateWrites| {
            check(&topology.borrow(), frame.envelope.as_ref()).map(|_| ())
        };
        let (answers, out) = tokio::sync::mpsc::channel(writes::FRAMES_MAX);
        // Ends with the stream.
        tokio::spawn(writes::serve(self.node.clone(), request.into_inner(), check, answers));
        let out = tokio_stream::wrappers::ReceiverStream::new(out);
        Ok(Response::new(Box::pin(out)))
    }

    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let request = request.into_inner();
        let topology = self.topology.borrow().clone();
        check_sender(&topology, &request.cluster, request.from, request.protocol)?;
        check_address("address", &request.address).map_err(Status::invalid_argument)?;
        self.peers.lives().check(request.from, request.life, Instant::now()).map_err(spoken_for)?;
        self.peers.learn(&self.node, request.from, &request.address);
        let node = topology.node();
        Ok(Response::new(v1::HelloReply { node }))
    }

    async fn master_status(
        &self,
        request: Request<v1::MasterStatusRequest>,
    ) -> Result<Response<v1::MasterStatusReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let from = request.envelope.map_or(0, |envelope| envelope.from);
        let leads = self.topology.borrow().leader == Some(from);
        let time_ms = Some(request.time_ms).filter(|time_ms| leads && *time_ms > 0);
        let reply = self
            .node
            .query_status(move |core, _, status| {
                if let Some(time_ms) = time_ms {
                    core.told_time(time_ms);
                }
                v1::MasterStatusReply {
                    node: status.node,
                    term: status.term,
                    applied_index: status.applied.index,
                    ..v1::MasterStatusReply::default()
                }
            })
            .await
            .map_err(gone)?;
        // After the index: whatever the state named by then is looked for.
        let missing = self.fetcher.missing(&self.node).await.map_err(gone)?;
        Ok(Response::new(v1::MasterStatusReply {
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            understands: understands(),
            components_missing: missing.len() as u64,
            member: Some(self.info.clone()),
            ..reply
        }))
    }

    async fn copy_component(
        &self,
        request: Request<v1::CopyComponentRequest>,
    ) -> Result<Response<Self::CopyComponentStream>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let digest = digest(&request.digest)?;
        let (_, pieces) = self
            .store
            .send(digest)
            .await
            .map_err(|error| Status::not_found(format!("component {digest}: {error}")))?;
        Ok(Response::new(Box::pin(file_chunks(pieces))))
    }

    async fn ensure_component(
        &self,
        request: Request<v1::EnsureComponentRequest>,
    ) -> Result<Response<v1::EnsureComponentReply>, Status> {
        let request = request.into_inner();
        let from = self.check(request.envelope.as_ref())?;
        let digest = digest(&request.digest)?;
        let present = match self.fetcher.ensure(digest, request.size_bytes, &[from]).await {
            Ok(()) => true,
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(v1::EnsureComponentReply { present }))
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let request = request.into_inner();
        if !go_together(PEER_PROTOCOL, request.protocol) {
            return Err(Status::failed_precondition(format!(
                "protocol: this cluster speaks {PEER_PROTOCOL}, the joiner {}; use a build that is at most one version away",
                request.protocol
            )));
        }
        let topology = self.topology.borrow().clone();
        if !request.cluster.is_empty() && request.cluster != topology.cluster().0 {
            return Err(Status::failed_precondition(format!(
                "cluster: this is cluster {}, the joiner expects another one",
                topology.cluster()
            )));
        }
        crate::join::answer(&self.node, &topology, request)
            .await
            .map(Response::new)
    }

    async fn snapshot_offset(
        &self,
        request: Request<v1::SnapshotOffsetRequest>,
    ) -> Result<Response<v1::SnapshotOffsetReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let offset = self.offset_of(request.message).await?;
        Ok(Response::new(v1::SnapshotOffsetReply { offset }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let offset = self.receive(request.into_inner()).await?;
        Ok(Response::new(v1::SnapshotReply { offset }))
    }
}

/// Used where a call is made; here so that both sides stand together. `time_ms` is said by a leader.
pub fn status_request(topology: &Topology, to: u64, time_ms: Option<u64>) -> v1::MasterStatusRequest {
    v1::MasterStatusRequest {
        envelope: Some(envelope(topology, to)),
        time_ms: time_ms.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_replica::{ClusterId, Identity, Member, MemberRole, Membership};

    #[test]
    fn every_mistake_of_an_envelope_is_named() {
        let member = |node| Member {
            node,
            role: MemberRole::Voter,
            attributes: Vec::new(),
        };
        let mut topology = Topology::new(Identity {
            cluster: ClusterId([7; 16]),
            node: 3,
        });
        topology.set_membership(Membership {
            members: vec![member(1), member(3)],
            next_node: 4,
            ..Membership::default()
        });
        let good = v1::PeerEnvelope {
            cluster: vec![7; 16],
            from: 1,
            to: 3,
            protocol: PEER_PROTOCOL,
        };
        assert_eq!(check(&topology, Some(&good)).unwrap(), 1);
        // One that joined after this node's log ended: it knows more, and must be heard.
        let later = v1::PeerEnvelope { from: 9, ..good.clone() };
        assert_eq!(check(&topology, Some(&later)).unwrap(), 9);
        type Edit = fn(&mut v1::PeerEnvelope);
        let cases: [(&str, Edit); 4] = [
            ("protocol", |e| e.protocol = 9),
            ("cluster", |e| e.cluster = vec![8; 16]),
            ("to", |e| e.to = 1),
            ("from: node 2 was removed", |e| e.from = 2),
        ];
        for (word, edit) in cases {
            let mut bad = good.clone();
            edit(&mut bad);
            let status = check(&topology, Some(&bad)).unwrap_err();
            assert!(status.message().starts_with(word), "{status}");
        }
        assert!(check(&topology, None).is_err());
    }
}
