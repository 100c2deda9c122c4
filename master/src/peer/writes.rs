//! Writes of state that came to another master than the leader: many share a stream and its frames.
//!
//! Only what was done is told as done. Whatever else becomes of one, a refusal included, the master that took
//! it passes the whole request on as it does with any other, under the same key, so that nothing is done
//! twice and every refusal has its own words. Must never be the only way to anything.

use super::call::Caller;
use super::numbering::{Given, Numbering};
use super::{Peers, envelope};
use crate::members::Topology;
use crate::node_handle::{ANSWER_MAX, Among, Asker, NodeHandle, ReplyTo};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_master_core::{Expected, Known, Once, Principal, Request};
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

/// A write that is on its way to the leader.
pub struct Passed(oneshot::Receiver<bool>);

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
    numbering: Arc<Numbering>,
    done: AtomicU64,
}

impl Writes {
    /// None is open yet.
    pub fn new(caller: Caller, peers: Arc<Peers>, topology: watch::Receiver<Topology>) -> Self {
        let numbering = Numbering::new(peers.life());
        Self { caller, peers, topology, stream: Mutex::new(None), numbering, done: AtomicU64::new(0) }
    }

    /// A number for a request that goes to the leader. None until the session is open, which this sees to.
    pub fn number(&self, leader: u64) -> Option<Given> {
        let given = self.numbering.give();
        if given.is_none() {
            self.stream_to(leader);
        }
        given
    }

    /// Have the leader do it; none if that is not on its way. See [`Writes::answer`].
    pub fn pass_on(&self, leader: u64, write: v1::PassedWrite) -> Option<Passed> {
        let writes = self.stream_to(leader)?;
        let (done, answered) = oneshot::channel();
        writes.try_send(Waiting { write, done }).ok()?;
        Some(Passed(answered))
    }

    /// False when it is not known to be done, at the latest after [`ANSWER_MAX`].
    pub async fn answer(&self, passed: Passed) -> bool {
        let answer = tokio::time::timeout(ANSWER_MAX, passed.0).await;
        let done = matches!(answer, Ok(Ok(true)));
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
        let numbering = self.numbering.clone();
        let run = run(self.caller.clone(), self.topology.clone(), numbering, leader, address, waiting);
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
    numbering: Arc<Numbering>,
    leader: u64,
    address: String,
    waiting: mpsc::Receiver<Waiting>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = caller.connect(&address).await?;
    let (frames, out) = mpsc::channel(FRAMES_MAX);
    let open = Open::default();
    // It begins with an empty frame, which says who speaks.
    let first = v1::StateWrites {
        envelope: Some(envelope(&topology.borrow(), leader)),
        writes: Vec::new(),
        open_session: numbering.to_open(),
    };
    frames.try_send(first)?;
    let mut answers = client.write_state(ReceiverStream::new(out)).await?.into_inner();
    let mut watched = topology.clone();
    let leads_no_more = watched.wait_for(|now| now.leader != Some(leader));
    let writing = write(topology.clone(), numbering.clone(), leader, waiting, frames, open.clone());
    let reading = async {
        while let Some(bundle) = answers.message().await? {
            if bundle.opened_session != 0 {
                numbering.opened(bundle.opened_session);
            }
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
        // It may be one that was stopped, whose connection would stay; or this master was cut off.
        _ = leads_no_more => Ok(()),
    }
}

async fn write(
    topology: watch::Receiver<Topology>,
    numbering: Arc<Numbering>,
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
        let open_session = numbering.to_open();
        if frames.send(v1::StateWrites { envelope, writes, open_session }).await.is_err() {
            return;
        }
    }
}

/// The request that was passed on.
fn request(write: v1::PassedWrite) -> Option<(Asker, String, v1::WriteState)> {
    let known = match write.once {
        Some(number) => Known::Number(number.into()),
        None if write.idempotency_key.is_empty() => return None,
        None => Known::Key(Once {
            key: write.idempotency_key,
            fingerprint: Digest::from_slice(&write.fingerprint).ok()?,
        }),
    };
    // The other master has looked at the same token.
    let asker = Asker { principal: Principal::administrator(), known: Some(known) };
    Some((asker, write.framework, write.write?))
}

/// What is asked of the node, and how it is told.
type Asked = (Asker, Request, ReplyTo);

/// What a frame asks for; whatever cannot even be asked for is told at once as not done.
async fn asked(
    node: &NodeHandle,
    writes: Vec<v1::PassedWrite>,
    replies: &mpsc::UnboundedSender<(u64, bool)>,
) -> Vec<Asked> {
    let mut asked = Vec::with_capacity(writes.len());
    for write in writes {
        let reply = Among::new(write.number, replies.clone());
        let Some((asker, framework, write)) = request(write) else { continue };
        let Some(framework) = node.names.find(node, &framework).await else { continue };
        let Some(expected) = Expected::of(write.condition) else { continue };
        let request = Request::WriteState { framework, key: write.key, value: write.value, expected };
        asked.push((asker, request, ReplyTo::Among(reply)));
    }
    asked
}

/// Has the cluster know the session of another master's process, and tells it.
async fn open_session(
    node: NodeHandle,
    from: u64,
    session: u64,
    answers: mpsc::Sender<Result<v1::StateAnswers, Status>>,
) {
    let members = node.topology().borrow().members.keys().copied().collect();
    let request = Request::OpenSession { node: from, session, members };
    match node.request(Principal::administrator(), request).await {
        Ok(_) => {
            let opened = v1::StateAnswers { answers: Vec::new(), opened_session: session };
            // The other side may have gone away, and asks again.
            let _ = answers.send(Ok(opened)).await;
        }
        // Requests have keys until it can be.
        Err(error) => tracing::debug!(from, %error, "a session of a master was not opened"),
    }
}

/// The leader's side: takes frames, and answers what is done.
pub(super) async fn serve(
    node: NodeHandle,
    mut frames: Streaming<v1::StateWrites>,
    check: impl Fn(&v1::StateWrites) -> Result<(), Status>,
    answers: mpsc::Sender<Result<v1::StateAnswers, Status>>,
) {
    // Bounded by how many are open.
    let (replies, mut replied) = mpsc::unbounded_channel();
    let mut open = 0;
    loop {
        tokio::select! {
            biased;
            Some(first) = replied.recv() => {
                let mut bundle = Vec::new();
                let mut next = Some(first);
                while let Some((number, done)) = next {
                    bundle.push(v1::StateAnswer { number, done });
                    next = replied.try_recv().ok();
                }
                open -= bundle.len();
                if bundle.iter().any(|answer| !answer.done) {
                    node.names.forget_all();
                }
                let bundle = v1::StateAnswers { answers: bundle, opened_session: 0 };
                if answers.send(Ok(bundle)).await.is_err() {
                    return;
                }
            }
            frame = frames.message(), if open < WAITING_MAX => {
                let Ok(Some(frame)) = frame else { return };
                if let Err(status) = check(&frame) {
                    // The sender may have gone away.
                    let _ = answers.send(Err(status)).await;
                    return;
                }
                if frame.open_session != 0 {
                    let from = frame.envelope.map_or(0, |envelope| envelope.from);
                    // Ends with its answer, which comes within a time; the other side asks once in a while.
                    tokio::spawn(open_session(node.clone(), from, frame.open_session, answers.clone()));
                }
                open += frame.writes.len();
                let asked = asked(&node, frame.writes, &replies).await;
                if node.requests(asked).await.is_err() {
                    return;
                }
            }
        }
    }
}
