//! Carries the log's messages to one other master: one stream at a time, opened when there is something
//! to say.
//!
//! Invariants: what waited while the other one could not be reached is thrown away, because it is
//! repeated in a newer form; between two tries there is a pause of at most [`BACKOFF_MAX`].

use super::queue::Queue;
use super::{Caller, envelope};
use crate::members::Topology;
use crate::node_handle::NodeHandle;
use std::sync::Arc;
use std::time::Duration;
use tessera_wire::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// First and longest pause between two tries: a master that is back is wanted at once.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Frames on their way into the connection; the rest waits where it can be dropped.
const FRAMES_AHEAD: usize = 8;

/// Marks a refusal that is for good: this node is no member any more.
pub const REMOVED: &str = "tessera-removed";

/// What the task needs to know.
pub struct Sender {
    pub node: u64,
    pub queue: Arc<Queue>,
    pub address: watch::Receiver<String>,
    pub caller: Caller,
    pub handle: NodeHandle,
    pub topology: watch::Receiver<Topology>,
    pub own_address: String,
}

impl Sender {
    /// Carries messages for ever; ends when it is aborted or the node is gone.
    pub async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut last_reason = String::new();
        loop {
            self.queue.filled().await;
            let address = self.address.borrow_and_update().clone();
            let mut carried = false;
            let mut moved = self.address.clone();
            let reason = tokio::select! {
                reason = self.carry(&address, &mut carried) => reason,
                changed = moved.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            if carried {
                backoff = BACKOFF_MIN;
                last_reason.clear();
            }
            if reason != last_reason {
                tracing::info!(node = self.node, address, reason, "another master is not reached");
                last_reason = reason;
            }
            self.queue.clear();
            if self.handle.unreachable(self.node).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Holds one stream; says why it ended.
    async fn carry(&self, address: &str, carried: &mut bool) -> String {
        let mut client = match self.caller.connect(address).await {
            Ok(client) => client,
            Err(error) => return error.to_string(),
        };
        let (frames, outgoing) = mpsc::channel(FRAMES_AHEAD);
        let hello = v1::RaftFrame {
            envelope: Some(self.envelope()),
            messages: Vec::new(),
            address: self.own_address.clone(),
        };
        // There is room for one frame in a new channel.
        let _ = frames.try_send(hello);
        let mut answers = match client.raft(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return self.refused(&status).await,
        };
        *carried = true;
        loop {
            tokio::select! {
                messages = self.queue.take() => {
                    let frame = v1::RaftFrame {
                        envelope: Some(self.envelope()),
                        messages,
                        address: String::new(),
                    };
                    if frames.send(frame).await.is_err() {
                        return "the connection broke".into();
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(_)) => {}
                    Ok(None) => return "it ended the stream".into(),
                    Err(status) => return self.refused(&status).await,
                },
            }
        }
    }

    fn envelope(&self) -> v1::PeerEnvelope {
        envelope(&self.topology.borrow(), self.node)
    }

    async fn refused(&self, status: &Status) -> String {
        let removed = status.code() == Code::FailedPrecondition
            && status.metadata().contains_key(REMOVED);
        if removed {
            // A loop that is gone has ended anyway.
            let _ = self.handle.told_removed(self.node).await;
        }
        status.message().to_owned()
    }
}
