//! The agents' side of the master: the session's lanes as a gRPC service.
//!
//! Invariants: every call carries the token; a control stream says Register first, and ends when the
//! node drops its sender; nothing is believed before the core has checked it. This file must never
//! change state: it only carries messages.

use crate::files::FileLane;
use crate::members::Topology;
use crate::node_handle::{NoAnswer, NodeHandle};
use crate::node_loop::SESSION_QUEUE_MAX;
use crate::store::ComponentStore;
use crate::token::Token;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tessera_types::{AgentId, Digest, Epoch, FrameworkId};
use tessera_wire::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

/// Bytes of one chunk of the bulk lane: small enough that control is never kept waiting.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Chunks read ahead of a slow agent.
const CHUNKS_AHEAD: usize = 8;

/// Entries of state read at once.
const STATE_PAGE_ENTRIES: usize = 256;

/// How long an agent may take to say Register after connecting.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Names the leader's address to an agent that came to another master.
const LEADER: &str = "tessera-leader";

/// Names the term of a leader that an agent has lost.
const AFTER_TERM: &str = "tessera-after-term";

/// How long an agent waits here while nobody leads: an election takes less than a second.
const LEADER_WITHIN: Duration = Duration::from_secs(2);

/// Largest message of an agent: a turn with everything at its limit.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The service that agents call.
pub struct AgentService {
    node: NodeHandle,
    store: Arc<ComponentStore>,
    files: Arc<FileLane>,
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl AgentService {
    /// A service in front of a node.
    #[must_use]
    pub const fn new(node: NodeHandle, store: Arc<ComponentStore>, files: Arc<FileLane>) -> Self {
        Self { node, store, files }
    }

    /// Agents are told where the leader is; what they do with it is their affair. While nobody leads they wait here,
    /// so that all of them are with the next leader as soon as there is one, and ask once. The leader of the term that
    /// an agent has lost counts as none: this master may be about to find that out.
    async fn refuse_unless_leading(&self, lost: u64) -> Result<(), Status> {
        let mut topology = self.node.topology();
        let known = topology.wait_for(|view| is_of_use(view, lost));
        // If none comes, or the loop is gone, it is said that this one does not lead.
        let _ = tokio::time::timeout(LEADER_WITHIN, known).await;
        let view = topology.borrow();
        if view.leads {
            return Ok(());
        }
        let mut metadata = MetadataMap::new();
        let leader = view.leader_peer().filter(|_| view.leader != Some(view.node()));
        if let Some(address) = leader.and_then(|address| address.parse().ok()) {
            metadata.insert(LEADER, address);
        }
        let text = "this master does not lead";
        Err(Status::with_metadata(Code::FailedPrecondition, text, metadata))
    }
}

/// Whether this master serves agents, or knows where one is served that has lost the leader of this term.
fn is_of_use(view: &Topology, lost: u64) -> bool {
    view.leads || view.term > lost && view.leader.is_some_and(|leader| leader != view.node())
}

/// Refuses calls without the token.
pub fn check_token(token: Token) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |request| {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok());
        if header.is_some_and(|header| token.matches(header)) {
            Ok(request)
        } else {
            Err(Status::unauthenticated(
                "the call does not carry the cluster's token",
            ))
        }
    }
}

fn gone(error: impl Into<NoAnswer>) -> Status {
    Status::unavailable(error.into().to_string())
}

#[tonic::async_trait]
impl v1::agent_session_server::AgentSession for AgentService {
    type ControlStream = Reply<v1::MasterMessage>;
    type LivenessStream = Reply<v1::Beat>;
    type FetchComponentStream = Reply<v1::Chunk>;
    type FetchStateStream = Reply<v1::StateChunk>;
    type FilesStream = Reply<v1::FileRequest>;

    async fn control(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let lost = request.metadata().get(AFTER_TERM);
        let lost = lost.and_then(|term| term.to_str().ok()?.parse().ok());
        self.refuse_unless_leading(lost.unwrap_or(0)).await?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(REGISTER_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Register came"))??;
        let Some(v1::agent_message::Message::Register(register)) = first.and_then(|m| m.message)
        else {
            return Err(Status::invalid_argument(
                "message: the first one must be Register",
            ));
        };
        let session = self.node.new_session();
        let (sender, outgoing) = mpsc::channel(SESSION_QUEUE_MAX);
        let closed = sender.clone();
        self.node
            .session_open(session, register, sender)
            .await
            .map_err(gone)?;
        let node = self.node.clone();
        let closed = closed.downgrade();
        tokio::spawn(async move {
            read_control(&node, session, incoming, &closed).await;
            // A loop that is gone closes every session with it.
            let _ = node.session_closed(session).await;
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(outgoing).map(Ok),
        )))
    }

    async fn liveness(
        &self,
        request: Request<Streaming<v1::Beat>>,
    ) -> Result<Response<Self::LivenessStream>, Status> {
        let node = self.node.clone();
        let beats = request.into_inner().map(move |beat| {
            let beat = beat?;
            node.beat(beat.session)
                .map_err(|refused| Status::unavailable(refused.to_string()))?;
            Ok(beat)
        });
        Ok(Response::new(Box::pin(beats)))
    }

    async fn fetch_component(
        &self,
        request: Request<v1::FetchComponentRequest>,
    ) -> Result<Response<Self::FetchComponentStream>, Status> {
        let request = request.into_inner();
        let digest = Digest::from_slice(&request.digest)
            .map_err(|error| Status::invalid_argument(format!("digest: {error}")))?;
        let (agent, session) = (AgentId(request.agent), request.session);
        let (known, may) = self
            .node
            .query(move |core, _| {
                let theirs = core.session_agent(session) == Some(agent);
                let may = theirs && core.may_fetch_component(agent, &digest);
                (core.component(&digest).is_some(), may)
            })
            .await
            .map_err(gone)?;
        if !known {
            return Err(Status::not_found(format!("there is no component {digest}")));
        }
        if !may {
            return Err(Status::permission_denied(format!(
                "agent {agent} hosts nothing that needs component {digest}"
            )));
        }
        let (_, pieces) = self
            .store
            .send(digest)
            .await
            .map_err(|error| Status::unavailable(format!("component {digest}: {error}")))?;
        Ok(Response::new(Box::pin(file_chunks(pieces))))
    }

    async fn fetch_state(
        &self,
        request: Request<v1::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        let request = request.into_inner();
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let node = self.node.clone();
        tokio::spawn(async move {
            if let Err(status) = send_state(&node, &request, &sender).await {
                // The agent may have gone away, and asks again if it comes back.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn files(
        &self,
        request: Request<Streaming<v1::FileChunk>>,
    ) -> Result<Response<Self::FilesStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("agent: the first message must name it"))?;
        let (agent, session) = (AgentId(first.agent), first.session);
        let registered = self
            .node
            .query(move |core, _| core.session_agent(session) == Some(agent))
            .await
            .map_err(gone)?;
        if !registered {
            return Err(Status::failed_precondition(format!(
                "session: it is not one of agent {agent}"
            )));
        }
        let requests = self.files.attach(agent);
        let files = self.files.clone();
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = incoming.message().await {
                files.answer(agent, chunk);
            }
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(requests).map(Ok),
        )))
    }

    async fn leader(
        &self,
        request: Request<v1::LeaderRequest>,
    ) -> Result<Response<v1::LeaderReply>, Status> {
        let lost = request.into_inner().after_term;
        let mut topology = self.node.topology();
        let later = topology.wait_for(|view| view.leader.is_some() && view.term > lost);
        // If none comes, the agent is told who led last, and asks again.
        let _ = tokio::time::timeout(LEADER_WITHIN, later).await;
        let view = topology.borrow();
        let address = view.leader_peer().unwrap_or_default().to_owned();
        Ok(Response::new(v1::LeaderReply { term: view.term, address }))
    }
}

/// A file in chunks of the bulk lane.
pub fn file_chunks(
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
) -> impl Stream<Item = Result<v1::Chunk, Status>> + Send + 'static {
    ReceiverStream::new(pieces).map(|piece| match piece {
        Ok(data) => Ok(v1::Chunk { data }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Status::data_loss(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
    })
}

async fn read_control(
    node: &NodeHandle,
    session: u64,
    mut incoming: Streaming<v1::AgentMessage>,
    closed: &mpsc::WeakSender<v1::MasterMessage>,
) {
    loop {
        match incoming.message().await {
            // A session that the node closed is not read any further.
            Ok(Some(_)) if closed.upgrade().is_none() => return,
            Ok(Some(message)) => {
                if node.agent_message(session, message).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(session, %status, "an agent's session broke");
                return;
            }
        }
    }
}

/// Sends the committed state of a framework. The turn number is taken at the start and checked at the
/// end: a turn that committed in between would have mixed two states.
async fn send_state(
    node: &NodeHandle,
    request: &v1::FetchStateRequest,
    sender: &mpsc::Sender<Result<v1::StateChunk, Status>>,
) -> Result<(), Status> {
    let agent = AgentId(request.agent);
    let framework = FrameworkId(request.framework);
    let (session, epoch) = (request.session, Epoch(request.epoch));
    let fetch = move |core: &mut tessera_master_core::Core| {
        core.state_fetch(agent, session, framework, epoch)
    };
    let refused = |refusal: tessera_master_core::FetchRefusal| {
        Status::failed_precondition(refusal.to_string())
    };
    let first = node
        .query(move |core, _| fetch(core))
        .await
        .map_err(gone)?
        .map_err(refused)?;
    let mut after: Option<String> = None;
    loop {
        let from = after.clone();
        let page = node
            .query(move |core, rows| {
                core.state_page(framework, from.as_deref(), STATE_PAGE_ENTRIES, rows)
            })
            .await
            .map_err(gone)?
            .map_err(|error| Status::internal(error.to_string()))?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        for chunk in chunks_of(page) {
            let chunk = v1::StateChunk {
                entries: chunk,
                ..v1::StateChunk::default()
            };
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }
    let still = node
        .query(move |core, _| fetch(core))
        .await
        .map_err(gone)?
        .map_err(refused)?;
    if still.next != first.next {
        return Err(Status::aborted("a turn was committed meanwhile; ask again"));
    }
    let last = v1::StateChunk {
        entries: Vec::new(),
        next_turn: Some(first.next.0),
        outside: first.outside,
    };
    // The agent may have gone away, and asks again if it comes back.
    let _ = sender.send(Ok(last)).await;
    Ok(())
}

/// Splits a page into chunks of about [`CHUNK_BYTES`]; a larger value is a chunk of its own.
fn chunks_of(page: Vec<tessera_types::KeyWrite>) -> Vec<Vec<v1::KeyWrite>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for entry in page {
        let size = entry.key.len() + entry.value.as_ref().map_or(0, Vec::len);
        if bytes + size > CHUNK_BYTES && !chunk.is_empty() {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += size;
        chunk.push((&entry).into());
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_replica::{ClusterId, Identity};
    use tessera_types::KeyWrite;

    #[test]
    fn an_agent_is_not_sent_back_to_the_leader_that_it_has_lost() {
        let identity = Identity { cluster: ClusterId([1; 16]), node: 1 };
        for (leads, leader, term, lost, expected) in [
            (false, Some(2), 7, 0, true),
            (false, Some(2), 7, 6, true),
            (false, Some(2), 7, 7, false),
            (false, None, 8, 7, false),
            // This one is elected, and serves in a moment.
            (false, Some(1), 8, 7, false),
            (true, Some(1), 8, 7, true),
            // The cluster was restored, and counts its terms anew.
            (true, Some(1), 2, 7, true),
        ] {
            let view = Topology { leads, leader, term, ..Topology::new(identity) };
            assert_eq!(is_of_use(&view, lost), expected, "{leads} {leader:?} {term} {lost}");
        }
    }

    #[test]
    fn pages_are_cut_into_chunks_and_nothing_is_lost() {
        let entry = |n: usize, size: usize| KeyWrite {
            key: format!("k{n}"),
            value: Some(vec![0; size]),
        };
        let page: Vec<_> = [10, 40_000, 40_000, 200_000, 5]
            .iter()
            .enumerate()
            .map(|(n, s)| entry(n, *s))
            .collect();
        let chunks = chunks_of(page);
        let sizes: Vec<usize> = chunks.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        assert!(chunks_of(Vec::new()).is_empty());
    }
}
