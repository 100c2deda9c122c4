//! Writes of state that came to another master than the leader: many share a stream and its frames.
//!
//! Only what was done is told as done. Whatever else becomes of one, a refusal included, the master that took
//! it passes the whole request on as it does with any other, under the same key, so that nothing is done
//! twice and every refusal has its own words. Must never be the only way to anything.

use super::call::Caller;
use super::{Peers, envelope};
use crate::members::Topology;
use crate::node_handle::{Asker, NodeHandle};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_master_core::{Expected, Once, Principal, Request};
use tessera_types::Digest;
use tessera_wire::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Writes that wait for a frame, or for the leader; more go the ordinary way.
const WAITING_MAX: usize = 4_096;
/// Writes in one frame.
const FRAME_WRITES_MAX: usize = 256;
/// Bytes of them, up to one write more.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Frames, or bundles of answers, that wait for the connection.
pub(super) const FRAMES_MAX: usize = 4;
/// After a stream broke, or could not be had.
const PAUSE: Duration = Duration::from_secs(1);

/// A write that is to go to the leader.
struct Waiting {
    write: v1::PassedWrite,
    done: oneshot::Sender<bool>,
}

/// The stream to one leader.
struct Stream {
    leader: u64,
    writes: mpsc::Sender<Waiting>,
    since: Instant,
}

/// The way to the leader.
pub struct Writes {
    caller: Caller,
    peers: Arc<Peers>,
    topology: watch::Receiver<Topology>,
    stream: Mutex<Option<Stream>>,
    done: AtomicU64,
}

impl Writes {
    /// None is open yet.
    pub fn new(caller: Caller, peers: Arc<Peers>, topology: watch::Receiver<Topology>) -> Self {
        Self { caller, peers, topology, stream: Mutex::new(None), done: AtomicU64::new(0) }
    }

    /// Have the leader do it. False when it is not known to be done.
    pub async fn pass_on(&self, leader: u64, write: v1::PassedWrite) -> bool {
        let Some(writes) = self.stream_to(leader) else { return false };
        let (done, answered) = oneshot::channel();
        if writes.try_send(Waiting { write, done }).is_err() {
            return false;
        }
        let done = answered.await.unwrap_or(false);
        self.done.fetch_add(u64::from(done), Ordering::Relaxed);
        done
    }

    /// How many it has had done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn stream_to(&self, leader: u64) -> Option<mpsc::Sender<Waiting>> {
        // A panic while holding the lock cannot leave it half changed.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = stream.as_ref().filter(|open| open.leader == leader) {
            if !open.writes.is_closed() {
                return Some(open.writes.clone());
            }
            if open.since.elapsed() < PAUSE {
                return None;
            }
        }
        let address = self.peers.address(leader)?;
        let (writes, waiting) = mpsc::channel(WAITING_MAX);
        *stream = Some(Stream { leader, writes: writes.clone(), since: Instant::now() });
        let run = run(self.caller.clone(), self.topology.clone(), leader, address, waiting);
        // Ends with the stream, which ends with the leader or when it is not used any more.
        tokio::spawn(async move {
            if let Err(error) = run.await {
                tracing::debug!(leader, %error, "the stream of writes to the leader ended");
            }
        });
        Some(writes)
    }
}

/// Writes without an answer, by number.
type Open = Arc<Mutex<HashMap<u64, oneshot::Sender<bool>>>>;

fn open_of(open: &Open) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<bool>>> {
    // A panic while holding the lock cannot leave the map half changed.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    caller: Caller,
    topology: watch::Receiver<Topology>,
    leader: u64,
    address: String,
    waiting: mpsc::Receiver<Waiting>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = caller.connect(&address).await?;
    let (frames, out) = mpsc::channel(FRAMES_MAX);
    let open = Open::default();
    // It begins with an empty frame, which says who speaks.
    let first = v1::StateWrites { envelope: Some(envelope(&topology.borrow(), leader)), writes: Vec::new() };
    frames.try_send(first)?;
    let mut answers = client.write_state(ReceiverStream::new(out)).await?.into_inner();
    let writing = write(topology, leader, waiting, frames, open.clone());
    let reading = async {
        while let Some(bundle) = answers.message().await? {
            let mut open = open_of(&open);
            for answer in bundle.answers {
                if let Some(done) = open.remove(&answer.number) {
                    // The caller may have gone away.
                    let _ = done.send(answer.done);
                }
            }
        }
        Ok(())
    };
    // What has no answer goes with the map.
    tokio::select! {
        () = writing => Ok(()),
        read = reading => read,
    }
}

async fn write(
    topology: watch::Receiver<Topology>,
    leader: u64,
    mut waiting: mpsc::Receiver<Waiting>,
    frames: mpsc::Sender<v1::StateWrites>,
    open: Open,
) {
    let mut number = 0;
    while let Some(first) = waiting.recv().await {
        let mut next = Some(first);
        let mut writes = Vec::new();
        let mut bytes = 0;
        while let Some(Waiting { mut write, done }) = next.take() {
            number += 1;
            write.number = number;
            bytes += prost::Message::encoded_len(&write);
            writes.push(write);
            open_of(&open).insert(number, done);
            if writes.len() < FRAME_WRITES_MAX && bytes < FRAME_BYTES_MAX {
                next = waiting.try_recv().ok();
            }
        }
        let envelope = Some(envelope(&topology.borrow(), leader));
        if frames.send(v1::StateWrites { envelope, writes }).await.is_err() {
            return;
        }
    }
}

/// The request that was passed on.
fn request(write: v1::PassedWrite) -> Option<(Asker, String, v1::WriteState)> {
    let key = write.idempotency_key;
    let fingerprint = Digest::from_slice(&write.fingerprint).ok()?;
    // The other master has looked at the same token.
    let principal = Principal::administrator();
    let once = (!key.is_empty()).then_some(Once { key, fingerprint })?;
    let asker = Asker { principal, once: Some(once) };
    Some((asker, write.framework, write.write?))
}

async fn carry_out(node: NodeHandle, write: v1::PassedWrite) -> v1::StateAnswer {
    let number = write.number;
    let done = match request(write) {
        Some((asker, framework, write)) => done(&node, asker, framework, write).await,
        None => false,
    };
    v1::StateAnswer { number, done }
}

async fn done(node: &NodeHandle, asker: Asker, framework: String, write: v1::WriteState) -> bool {
    let Some(framework) = node.names.find(node, framework).await else { return false };
    let Some(expected) = Expected::of(write.condition) else { return false };
    let request = Request::WriteState { framework, key: write.key, value: write.value, expected };
    node.request(asker, request).await.is_ok()
}

/// The leader's side: takes frames, and answers what is done.
pub(super) async fn serve(
    node: NodeHandle,
    mut frames: Streaming<v1::StateWrites>,
    check: impl Fn(&v1::StateWrites) -> Result<(), Status>,
    answers: mpsc::Sender<Result<v1::StateAnswers, Status>>,
) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answer) = open.next(), if !open.is_empty() => {
                let mut bundle = vec![answer];
                while let Some(Some(more)) = futures::FutureExt::now_or_never(open.next()) {
                    bundle.push(more);
                }
                if answers.send(Ok(v1::StateAnswers { answers: bundle })).await.is_err() {
                    return;
                }
            }
            frame = frames.message(), if open.len() < WAITING_MAX => {
                let Ok(Some(frame)) = frame else { return };
                if let Err(status) = check(&frame) {
                    // The sender may have gone away.
                    let _ = answers.send(Err(status)).await;
                    return;
                }
                open.extend(frame.writes.into_iter().map(|write| carry_out(node.clone(), write)));
            }
        }
    }
}
