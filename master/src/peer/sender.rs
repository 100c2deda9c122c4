//! Carries the log's messages to one other master: one stream at a time, opened when there is something
//! to say.
//!
//! Invariants: what waited while the other one could not be reached is thrown away, because it is
//! repeated in a newer form; between two tries there is a pause of at most [`BACKOFF_MAX`]. Whether the other one's
//! process is gone is found out at once, though there may be nothing to say to it: it may be the leader.

use super::queue::Queue;
use super::{CallError, Caller, envelope};
use crate::members::Topology;
use crate::node_handle::NodeHandle;
use futures::stream::{self, Stream, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tessera_wire::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// First and longest pause between two tries: a master that is back is wanted at once.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Marks a refusal that is for good: this node is no member any more.
pub const REMOVED: &str = "tessera-removed";

/// Where frames come from, and whither they go.
type Way = (Arc<Queue>, watch::Receiver<Topology>, u64);

/// What the task needs to know.
pub struct Sender {
    pub node: u64,
    pub queue: Arc<Queue>,
    pub address: watch::Receiver<String>,
    pub caller: Caller,
    pub handle: NodeHandle,
    pub topology: watch::Receiver<Topology>,
    pub own_address: String,
    pub life: u64,
}

impl Sender {
    /// Carries messages for ever; ends when it is aborted or the node is gone.
    pub async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut last_reason = String::new();
        let mut broke = false;
        loop {
            if !broke {
                self.queue.filled().await;
            }
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
            broke = carried;
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
            Err(error) => {
                if matches!(error, CallError::Connect { nobody: true, .. }) {
                    // A loop that is gone has ended anyway.
                    let _ = self.handle.is_gone(self.node).await;
                }
                return error.to_string();
            }
        };
        // Whatever ends this call ends the frames: they must not take messages from those of the next one.
        let over = CancellationToken::new();
        let frames = self.frames().take_until(over.clone().cancelled_owned());
        let _over = over.drop_guard();
        let mut answers = match client.raft(frames).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return self.refused(&status).await,
        };
        *carried = true;
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "it ended the stream".into(),
                Err(status) => return self.refused(&status).await,
            }
        }
    }

    /// One that says who speaks, then what waits, taken whenever the connection has room: the rest waits where
    /// it can be dropped.
    fn frames(&self) -> impl Stream<Item = v1::RaftFrame> + Send + use<> {
        let hello = v1::RaftFrame {
            envelope: Some(envelope(&self.topology.borrow(), self.node)),
            messages: Vec::new(),
            address: self.own_address.clone(),
            life: self.life,
        };
        let of = (Arc::clone(&self.queue), self.topology.clone(), self.node);
        let rest = stream::unfold(of, |(queue, topology, node): Way| async move {
            let messages = queue.take().await;
            let envelope = Some(envelope(&topology.borrow(), node));
            let frame = v1::RaftFrame { envelope, messages, ..v1::RaftFrame::default() };
            Some((frame, (queue, topology, node)))
        });
        stream::once(std::future::ready(hello)).chain(rest)
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
