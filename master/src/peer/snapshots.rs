//! Snapshots on their way between masters, in chunks, outside of the node's thread.
//!
//! Invariants: one snapshot is received at a time, and one is sent to each peer; a transfer that breaks off
//! goes on where the receiver is; the node hears how each that it asked for ended. Bytes are checked
//! before they are kept, and the whole before it is installed. Must never look at rows.

use super::call::{CallError, Caller};
use super::{PeerService, envelope, gone};
use crate::members::Topology;
use crate::node_handle::NodeHandle;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tessera_replica::{Chunk, SnapshotError, SnapshotSource, SnapshotToSend, Staging};
use tessera_wire::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// How long a snapshot may take; the view that it is read from holds back the cleaning of the disk.
const SEND_WITHIN: Duration = Duration::from_secs(600);

/// Pause after a transfer broke off.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 4;

/// How long the receiver may take to install what it has: all rows are read once.
const INSTALL_WITHIN: Duration = Duration::from_secs(120);
/// How long the next chunk may take. A sender that is cut off does not say so, and until then no other stream
/// goes on with what it has sent.
const CHUNK_WITHIN: Duration = Duration::from_secs(5);

/// Snapshots on their way out, by peer.
#[derive(Default)]
pub struct Outgoing {
    tasks: Mutex<BTreeMap<u64, AbortHandle>>,
}

impl Outgoing {
    /// Send a snapshot; an older one to the same peer is given up.
    pub fn begin(
        &self,
        runtime: &tokio::runtime::Handle,
        sending: Sending,
    ) {
        let peer = sending.snapshot.peer;
        let task = runtime.spawn(sending.run()).abort_handle();
        // A panic while holding the lock cannot leave the map half changed.
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|_, task| !task.is_finished());
        if let Some(older) = tasks.insert(peer, task) {
            older.abort();
        }
    }
}

/// One snapshot and where it goes.
pub struct Sending {
    pub snapshot: SnapshotToSend,
    pub address: watch::Receiver<String>,
    pub caller: Caller,
    pub topology: watch::Receiver<Topology>,
    pub handle: NodeHandle,
}

/// Why a transfer broke off.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error("reading the snapshot: {0}")]
    Disk(#[from] tessera_replica::DiskError),
    #[error("the receiver has more than there is")]
    PastTheEnd,
    #[error("its reader ended")]
    Reader,
}

impl Sending {
    /// Sends until it is delivered or too late, and tells the node.
    async fn run(self) {
        let peer = self.snapshot.peer;
        let deadline = Instant::now() + SEND_WITHIN;
        let message = self.snapshot.message.clone();
        let mut source = Some(self.snapshot.source);
        let mut delivered = false;
        while let Some(taken) = source.take() {
            let address = self.address.borrow().clone();
            let to = To { peer, address, caller: &self.caller, topology: &self.topology };
            let (back, result) = to.send(&message, taken).await;
            match result {
                Ok(bytes) => {
                    tracing::info!(peer, bytes, "sent a snapshot");
                    delivered = true;
                }
                Err(error) => {
                    tracing::info!(peer, %error, "a snapshot is not delivered yet");
                    // What the receiver does not want, or cannot be read, is not tried again.
                    let lasting = matches!(&error, SendError::Refused(status) if is_lasting(status));
                    if lasting || Instant::now() + RETRY_PAUSE >= deadline {
                        break;
                    }
                    source = back;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        // A loop that is gone does not need to know.
        let _ = self.handle.snapshot_sent(peer, delivered).await;
    }
}

fn is_lasting(status: &Status) -> bool {
    use tonic::Code::{FailedPrecondition, InvalidArgument, Unauthenticated};
    matches!(status.code(), FailedPrecondition | InvalidArgument | Unauthenticated)
}

struct To<'a> {
    peer: u64,
    address: String,
    caller: &'a Caller,
    topology: &'a watch::Receiver<Topology>,
}

impl To<'_> {
    /// One try; gives the source back unless it cannot be used again.
    async fn send(
        &self,
        message: &[u8],
        source: SnapshotSource,
    ) -> (Option<SnapshotSource>, Result<u64, SendError>) {
        let offset = match self.offset(message).await {
            Ok(offset) => offset,
            Err(error) => return (Some(source), Err(error)),
        };
        if offset > 0 {
            tracing::info!(peer = self.peer, offset, "a snapshot goes on where it broke off");
        }
        let mut client = match self.caller.connect(&self.address).await {
            Ok(client) => client,
            Err(error) => return (Some(source), Err(error.into())),
        };
        let (chunks, outgoing) = mpsc::channel(CHUNKS_AHEAD);
        let (envelope, message) = (envelope(&self.topology.borrow(), self.peer), message.to_vec());
        let reader = spawn_blocking(move || read(source, offset, envelope, message, &chunks));
        let answered = client.install_snapshot(ReceiverStream::new(outgoing)).await;
        let Ok((source, read)) = reader.await else {
            return (None, Err(SendError::Reader));
        };
        let result = match (answered, read) {
            (Ok(reply), _) => Ok(reply.into_inner().offset),
            (Err(_), Err(error)) => Err(error),
            (Err(status), Ok(())) => Err(status.into()),
        };
        (Some(source), result)
    }

    async fn offset(&self, message: &[u8]) -> Result<u64, SendError> {
        let request = v1::SnapshotOffsetRequest {
            envelope: Some(envelope(&self.topology.borrow(), self.peer)),
            message: message.to_vec(),
        };
        let ask = |mut client: super::call::Client| async move { client.snapshot_offset(request).await };
        Ok(self.caller.ask(&self.address, ask).await?.offset)
    }
}

/// Reads chunks from `offset` on into the channel; ends early when nobody takes them.
fn read(
    mut source: SnapshotSource,
    offset: u64,
    envelope: v1::PeerEnvelope,
    message: Vec<u8>,
    chunks: &mpsc::Sender<v1::SnapshotChunk>,
) -> (SnapshotSource, Result<(), SendError>) {
    let result = (|| {
        if !source.seek(offset)? {
            return Err(SendError::PastTheEnd);
        }
        let mut message = Some(message);
        while let Some(Chunk { offset, bytes, crc32c, last }) = source.next_chunk()? {
            let chunk = v1::SnapshotChunk {
                envelope: Some(envelope.clone()),
                message: message.take().unwrap_or_default(),
                offset,
                data: bytes,
                crc: crc32c,
                last,
            };
            if chunks.blocking_send(chunk).is_err() {
                return Ok(());
            }
        }
        Ok(())
    })();
    (source, result)
}

/// The snapshot that is being received.
#[derive(Default)]
pub struct Incoming {
    /// Its message and what is staged of it; the latter is absent while a stream writes to it.
    current: Mutex<Option<(Vec<u8>, Option<Staging>)>>,
}

impl Incoming {
    fn current(&self) -> MutexGuard<'_, Option<(Vec<u8>, Option<Staging>)>> {
        // A panic while holding the lock cannot leave it half changed.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the snapshot with this message is; None when it is another one, or none.
    fn offset(&self, message: &[u8]) -> Option<Result<u64, Status>> {
        match &*self.current() {
            Some((known, Some(staging))) if known == message => Some(Ok(staging.offset())),
            Some((known, None)) if known == message => {
                Some(Err(Status::unavailable("another stream of it is not over yet")))
            }
            _ => None,
        }
    }

    fn take(&self, message: &[u8]) -> Option<Staging> {
        match &mut *self.current() {
            Some((known, staging)) if known == message => staging.take(),
            _ => None,
        }
    }

    fn put(&self, message: Vec<u8>, staging: Option<Staging>) {
        *self.current() = Some((message, staging));
    }

    /// Back for the next stream, unless another snapshot was begun meanwhile.
    fn put_back(&self, message: &[u8], staging: Staging) {
        if let Some((known, place)) = &mut *self.current()
            && known == message
        {
            *place = Some(staging);
        }
    }

    fn forget(&self, message: &[u8]) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|(known, _)| known == message) {
            *current = None;
        }
    }
}

impl PeerService {
    /// How much of a snapshot is here; begins a new one.
    pub(super) async fn offset_of(&self, message: Vec<u8>) -> Result<u64, Status> {
        if let Some(known) = self.incoming.offset(&message) {
            return known;
        }
        let begun = self.node.begin_install(message.clone()).await.map_err(gone)?;
        let staging = begun.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let offset = staging.offset();
        self.incoming.put(message, Some(staging));
        Ok(offset)
    }

    /// Takes the chunks of a snapshot, and installs it at its end.
    pub(super) async fn receive(
        &self,
        mut chunks: Streaming<v1::SnapshotChunk>,
    ) -> Result<u64, Status> {
        let first = chunks
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("message: the first chunk must be there"))?;
        self.check(first.envelope.as_ref())?;
        let message = first.message.clone();
        let staging = self
            .incoming
            .take(&message)
            .ok_or_else(|| Status::unavailable("this snapshot is not expected; ask for its offset"))?;
        // A task of its own: one whose caller is gone would be dropped with what it has staged.
        let incoming = Arc::clone(&self.incoming);
        let taking = tokio::spawn(take_chunks(incoming, message.clone(), staging, first, chunks));
        let staging = taking.await.map_err(|_| Status::internal("taking the snapshot failed"))??;
        self.install(message, staging).await
    }

    async fn install(&self, message: Vec<u8>, staging: Staging) -> Result<u64, Status> {
        let finished = spawn_blocking(move || staging.finish()).await;
        let finished = finished.map_err(|_| Status::internal("finishing a snapshot failed"))?;
        self.incoming.forget(&message);
        let staged = finished.map_err(|(error, _)| Status::unavailable(error.to_string()))?;
        let bytes = staged.bytes;
        let stepped = self.node.step_snapshot(message, staged);
        match tokio::time::timeout(INSTALL_WITHIN, stepped).await {
            Ok(Ok(Ok(()))) => {
                tracing::info!(bytes, "received a snapshot");
                Ok(bytes)
            }
            Ok(Ok(Err(error))) => Err(Status::failed_precondition(error.to_string())),
            Ok(Err(stopped)) => Err(gone(stopped)),
            Err(_) => Err(Status::deadline_exceeded("installing the snapshot takes too long")),
        }
    }
}

/// Takes chunks until the snapshot is whole. What is staged goes back when the stream ends before.
async fn take_chunks(
    incoming: Arc<Incoming>,
    message: Vec<u8>,
    mut staging: Staging,
    mut chunk: v1::SnapshotChunk,
    mut chunks: Streaming<v1::SnapshotChunk>,
) -> Result<Staging, Status> {
    loop {
        let (last, written);
        (staging, last, written) = spawn_blocking(move || write(staging, &chunk))
            .await
            .map_err(|_| Status::internal("writing a chunk failed"))?;
        match written {
            Ok(()) if last => return Ok(staging),
            Ok(()) => {}
            Err(error) => {
                if matches!(error, SnapshotError::WrongOffset { .. }) {
                    incoming.put_back(&message, staging);
                } else {
                    incoming.forget(&message);
                }
                return Err(Status::unavailable(error.to_string()));
            }
        }
        chunk = match tokio::time::timeout(CHUNK_WITHIN, chunks.message()).await {
            Ok(Ok(Some(next))) => next,
            ended => {
                incoming.put_back(&message, staging);
                ended.map_err(|_| Status::unavailable("no chunk came for too long"))??;
                return Err(Status::unavailable("the stream ended before the snapshot did"));
            }
        };
    }
}

/// Checks and keeps one chunk.
fn write(
    mut staging: Staging,
    chunk: &v1::SnapshotChunk,
) -> (Staging, bool, Result<(), SnapshotError>) {
    let written = staging.write(chunk.offset, &chunk.data);
    (staging, chunk.last, written)
}
