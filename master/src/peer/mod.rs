//! What masters say to each other: the log's messages, joining, component files.
//!
//! Invariants: every message between members names the cluster, the sender and the receiver, and is refused
//! when one of them is not as expected; nothing here waits for the node's thread to read, nor makes it
//! wait; a peer that takes nothing costs no more than its queue. This module must never decide anything
//! about members: it carries what the node and the steward decided.

pub mod call;
mod lives;
mod numbering;
mod queue;
pub mod sender;
mod service;
mod snapshots;
mod writes;

pub use call::{CallError, Caller};
pub use numbering::Given;
pub use service::{PeerService, status_request};
pub use snapshots::Incoming;
pub use writes::{Passed, Writes};

use crate::members::Topology;
use crate::node_handle::{NoAnswer, NodeHandle};
use lives::Lives;
use queue::Queue;
use snapshots::{Outgoing, Sending};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_replica::{MAX_MESSAGE_BYTES, SnapshotToSend};
use tessera_wire::{PEER_PROTOCOL, v1};
use tokio::sync::watch;
use tonic::Status;

/// Nodes that may be spoken to without being known as members: those that joined while this one was away.
const LEARNED_MAX: usize = 64;

/// Largest message between masters: an entry of the largest kind with its frame, or several of less.
pub const PEER_MESSAGE_BYTES_MAX: usize = MAX_MESSAGE_BYTES + (1 << 20);

/// One other master.
struct Peer {
    queue: Arc<Queue>,
    address: watch::Sender<String>,
    task: tokio::task::AbortHandle,
    /// Where the list of members says it is; nothing if it is not in the list.
    recorded: Option<String>,
    /// Where it said itself that it is, since the list said so.
    told: Option<String>,
}

impl Peer {
    /// What it said itself is newer than the list.
    fn settle(&self) {
        let Some(address) = self.told.as_ref().or(self.recorded.as_ref()) else { return };
        self.address.send_if_modified(|known| {
            let differs = known != address;
            if differs {
                known.clone_from(address);
            }
            differs
        });
    }
}

/// All other masters, as the transport knows them.
pub struct Peers {
    caller: Caller,
    topology: watch::Receiver<Topology>,
    /// Where this one is reached: the others answer there before they know it as a member.
    own_address: String,
    /// Tells this process from another one on a copy of its data directory.
    life: u64,
    lives: Arc<Lives>,
    runtime: tokio::runtime::Handle,
    peers: Mutex<BTreeMap<u64, Peer>>,
    snapshots: Outgoing,
}

impl Peers {
    /// None are known yet; `life` is not zero. Must be made inside a runtime's context.
    pub fn new(
        caller: Caller,
        topology: watch::Receiver<Topology>,
        own_address: String,
        life: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            caller,
            topology,
            own_address,
            life,
            lives: Arc::default(),
            runtime: tokio::runtime::Handle::current(),
            peers: Mutex::default(),
            snapshots: Outgoing::default(),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<u64, Peer>> {
        // A panic while holding the lock cannot leave the map half changed.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes to a node; says false when it is lost.
    pub fn send(&self, node: u64, message: Vec<u8>) -> bool {
        match self.peers().get(&node) {
            Some(peer) => !peer.queue.push(message),
            None => false,
        }
    }

    /// A snapshot goes to a node; says false when nobody knows where that is.
    pub fn send_snapshot(&self, handle: &NodeHandle, snapshot: SnapshotToSend) -> bool {
        let peers = self.peers();
        let Some(peer) = peers.get(&snapshot.peer) else {
            return false;
        };
        let sending = Sending {
            snapshot,
            address: peer.address.subscribe(),
            caller: self.caller.clone(),
            topology: self.topology.clone(),
            handle: handle.clone(),
        };
        drop(peers);
        self.snapshots.begin(&self.runtime, sending);
        true
    }

    /// Follow the members: new ones get a task, those that are gone lose theirs.
    pub fn follow(&self, handle: &NodeHandle, topology: &Topology) {
        let mut peers = self.peers();
        peers.retain(|node, peer| {
            let known = topology.members.contains_key(node);
            let stays = known || peer.told.is_some() && !topology.was_removed(*node);
            if !known {
                peer.recorded = None;
            }
            if !stays {
                peer.task.abort();
            }
            stays
        });
        for (node, member) in topology.members.iter() {
            let address = &member.info.peer_address;
            if *node == topology.node() || address.is_empty() {
                continue;
            }
            let peer = peers.entry(*node).or_insert_with(|| self.begin(handle, *node, address));
            if peer.recorded.as_ref() != Some(address) {
                peer.recorded = Some(address.clone());
                peer.told = None;
            }
            peer.settle();
        }
    }

    /// A node said where it is now.
    pub fn learn(&self, handle: &NodeHandle, node: u64, address: &str) {
        let mut peers = self.peers();
        let learned = peers.values().filter(|peer| peer.recorded.is_none()).count();
        if node == self.topology.borrow().node()
            || learned >= LEARNED_MAX && !peers.contains_key(&node)
        {
            return;
        }
        let peer = peers.entry(node).or_insert_with(|| self.begin(handle, node, address));
        peer.told = Some(address.to_owned()).filter(|told| peer.recorded.as_ref() != Some(told));
        peer.settle();
    }

    /// What this process is told from others by.
    pub const fn life(&self) -> u64 {
        self.life
    }

    /// Which process speaks for each other node.
    fn lives(&self) -> &Arc<Lives> {
        &self.lives
    }

    /// Where a node is reached now, as far as this one knows.
    pub fn address(&self, node: u64) -> Option<String> {
        self.peers().get(&node).map(|peer| peer.address.borrow().clone())
    }

    fn begin(&self, handle: &NodeHandle, node: u64, address: &str) -> Peer {
        let queue = Arc::new(Queue::default());
        let (sender, address) = watch::channel(address.to_owned());
        let task = sender::Sender {
            node,
            queue: Arc::clone(&queue),
            address,
            caller: self.caller.clone(),
            handle: handle.clone(),
            topology: self.topology.clone(),
            own_address: self.own_address.clone(),
            life: self.life,
        };
        let task = self.runtime.spawn(task.run()).abort_handle();
        Peer {
            queue,
            address: sender,
            task,
            recorded: None,
            told: None,
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in self.peers().values() {
            peer.task.abort();
        }
    }
}

fn gone(error: impl Into<NoAnswer>) -> Status {
    Status::unavailable(error.into().to_string())
}

/// What stands in every message to a member.
pub fn envelope(topology: &Topology, to: u64) -> v1::PeerEnvelope {
    v1::PeerEnvelope {
        cluster: topology.cluster().0.to_vec(),
        from: topology.node(),
        to,
        protocol: PEER_PROTOCOL,
    }
}
