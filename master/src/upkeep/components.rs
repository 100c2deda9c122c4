//! Component files on every master: what the state names is there, and what it does not name goes.
//!
//! Invariants: a file is kept only with the digest that its name says, synced; a file that no state names
//! stays for the operator's grace, because the command that will name it may be on its way, and who removed
//! it may have been wrong; one file is fetched at a time. Must never change state.

use crate::members::Topology;
use crate::node_handle::{NoAnswer, NodeHandle, Stopped};
use crate::peer::{CallError, Caller, envelope, status_request};
use crate::store::{ComponentStore, UploadError};
use crate::upkeep::rules::{self, Spread};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tessera_types::Digest;
use tessera_wire::v1;
use tokio::sync::{Mutex, watch};
use tonic::Status;

/// How often files and state are compared, if no event asks for it before.
const COMPARE_EVERY: Duration = Duration::from_secs(2);

/// Shortest time between two comparisons.
const COMPARE_PAUSE: Duration = Duration::from_millis(200);

/// How long fetching one file may take: the largest component on a slow line.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the others are waited for before a command names a component.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody has it, or nobody answers.
    #[error("component {digest} could not be copied from another master: {reason}")]
    Nobody {
        /// Which.
        digest: Digest,
        /// What was tried last.
        reason: String,
    },
    /// Too few masters have it.
    #[error(
        "component {digest} is on {have} of {voters} voting masters, and on {needed} it must be before it is used: {reason}"
    )]
    NoMajority {
        /// Which.
        digest: Digest,
        /// How many have it.
        have: usize,
        /// How many vote.
        voters: usize,
        /// How many must have it.
        needed: usize,
        /// Why others have not.
        reason: String,
    },
}

/// Why one master did not give a file.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error(transparent)]
    Store(#[from] UploadError),
}

/// Fetches component files from other masters.
pub struct Fetcher {
    store: Arc<ComponentStore>,
    caller: Caller,
    topology: watch::Receiver<Topology>,
    one_at_a_time: Mutex<()>,
}

impl Fetcher {
    /// Into this store.
    pub fn new(
        store: Arc<ComponentStore>,
        caller: Caller,
        topology: watch::Receiver<Topology>,
    ) -> Self {
        Self {
            store,
            caller,
            topology,
            one_at_a_time: Mutex::default(),
        }
    }

    /// Have a file, synced; fetch it from one of these nodes if it is not there.
    ///
    /// # Errors
    /// When none of them gives it.
    pub async fn ensure(
        &self,
        digest: Digest,
        size_bytes: u64,
        sources: &[u64],
    ) -> Result<(), FetchError> {
        let _turn = self.one_at_a_time.lock().await;
        // Somebody is about to name it: it must not go meanwhile.
        let _held = self.store.hold(digest);
        let mut reason = match self.store.claim(digest).await {
            Ok(true) => return Ok(()),
            Ok(false) => "there is no other master".to_owned(),
            Err(error) => error.to_string(),
        };
        for source in sources {
            let copied = tokio::time::timeout(FETCH_TIMEOUT, self.copy(digest, size_bytes, *source));
            match copied.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("node {source} was too slow"),
            }
        }
        Err(FetchError::Nobody { digest, reason })
    }

    async fn copy(&self, digest: Digest, size_bytes: u64, source: u64) -> Result<(), CopyError> {
        let topology = self.topology.borrow().clone();
        let member = topology
            .members
            .get(&source)
            .ok_or_else(|| Status::not_found(format!("node {source} is no member")))?;
        let mut client = self.caller.client(&member.info.peer_address)?;
        let request = v1::CopyComponentRequest {
            envelope: Some(envelope(&topology, source)),
            digest: digest.0.to_vec(),
        };
        let mut chunks = client.copy_component(request).await?.into_inner();
        let mut upload = self.store.begin(size_bytes).await?;
        while let Some(chunk) = chunks.message().await? {
            upload.write(&chunk.data).await?;
        }
        let staged = upload.finish(Some(digest)).await?;
        self.store.keep(staged).await?;
        tracing::info!(%digest, source, "copied a component");
        Ok(())
    }

    /// Have a majority of the voting masters keep a file that is here, before a command names it.
    ///
    /// # Errors
    /// When too few could be reached.
    pub async fn spread(&self, digest: Digest, size_bytes: u64) -> Result<(), FetchError> {
        let topology = self.topology.borrow().clone();
        let voters = topology.members.iter().filter(|(_, member)| member.votes);
        let mut spread = Spread::new(topology.node(), voters.map(|(node, _)| *node));
        let mut asked: FuturesUnordered<_> = topology
            .members
            .iter()
            .filter(|(node, _)| **node != topology.node())
            .map(|(node, member)| {
                let request = v1::EnsureComponentRequest {
                    envelope: Some(envelope(&topology, *node)),
                    digest: digest.0.to_vec(),
                    size_bytes,
                };
                let (node, address) = (*node, member.info.peer_address.clone());
                async move {
                    let mut client = self.caller.client(&address).map_err(|e| e.to_string())?;
                    let answer = client.ensure_component(request).await;
                    answer.map(|_| node).map_err(|s| format!("{address}: {}", s.message()))
                }
            })
            .collect();
        let mut reason = "no other master answered in time".to_owned();
        let deadline = tokio::time::Instant::now() + SPREAD_TIMEOUT;
        while !spread.is_enough() {
            match tokio::time::timeout_at(deadline, asked.next()).await {
                Ok(Some(Ok(node))) => spread.keeps(node),
                Ok(Some(Err(why))) => reason = why,
                Ok(None) | Err(_) => {
                    let (have, voters, needed) = (spread.have(), spread.voters(), spread.needed());
                    return Err(FetchError::NoMajority { digest, have, voters, needed, reason });
                }
            }
        }
        Ok(())
    }

    /// Which files the state names and are not here. Reads the folder outside of the node's thread.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn missing(&self, node: &NodeHandle) -> Result<Vec<(Digest, u64)>, NoAnswer> {
        let known = node
            .query(|core, _| {
                let all = core.components().into_iter();
                all.map(|view| (view.digest, view.size_bytes)).collect::<Vec<_>>()
            })
            .await?;
        let missing = known.into_iter().filter(|(digest, _)| !self.store.has(digest));
        Ok(missing.collect())
    }

    /// The leader first, then everybody else.
    fn sources(&self) -> Vec<u64> {
        let topology = self.topology.borrow();
        rules::sources(topology.node(), topology.leader, topology.members.keys().copied())
    }

    /// What the leader has applied at some moment from now on; none if nobody can say.
    async fn leader_applied(&self, node: &NodeHandle) -> Option<u64> {
        let topology = self.topology.borrow().clone();
        if topology.leads {
            node.barrier().await.ok()?;
            return node.query_status(|_, _, status| status.applied.index).await.ok();
        }
        let leader = topology.leader?;
        let address = topology.leader_peer()?.to_owned();
        let request = status_request(&topology, leader, None);
        let asked = self.caller.ask(&address, |mut client| async move { client.master_status(request).await });
        let reply = asked.await.ok()?;
        (reply.node == leader).then_some(reply.applied_index)
    }
}

/// Keeps files and state together until the loop is gone; what the state does not name goes after `grace`.
pub async fn reconcile(fetcher: Arc<Fetcher>, node: NodeHandle, grace: Duration) -> Stopped {
    let mut events = node.events();
    let every = rules::collect_every(grace);
    let mut collected: Option<tokio::time::Instant> = None;
    let mut last_reason = String::new();
    loop {
        let missing = match fetcher.missing(&node).await {
            Ok(missing) => missing,
            Err(NoAnswer::Stopped(stopped)) => return stopped,
            // Its disk stands still; whoever waits for it is told so.
            Err(NoAnswer::Late) => continue,
        };
        for (digest, size_bytes) in missing {
            match fetcher.ensure(digest, size_bytes, &fetcher.sources()).await {
                Ok(()) => last_reason.clear(),
                Err(error) if error.to_string() == last_reason => {}
                Err(error) => {
                    tracing::warn!(%error, "a component of the state is not on this master");
                    last_reason = error.to_string();
                }
            }
        }
        if collected.is_none_or(|at| at.elapsed() >= every) {
            collected = Some(tokio::time::Instant::now());
            if let Err(NoAnswer::Stopped(stopped)) = collect(&fetcher, &node, grace).await {
                return stopped;
            }
            scrub(&fetcher.store).await;
        }
        tokio::time::sleep(COMPARE_PAUSE).await;
        // An event may have named a component; without one it is looked again all the same.
        let _ = tokio::time::timeout(COMPARE_EVERY, events.changed()).await;
    }
}

/// Removes files that the state has not named for the grace.
async fn collect(fetcher: &Fetcher, node: &NodeHandle, grace: Duration) -> Result<(), NoAnswer> {
    let leader_applied = fetcher.leader_applied(node).await;
    let (known, applied): (BTreeSet<Digest>, u64) = node
        .query_status(|core, _, status| {
            (core.components().into_iter().map(|view| view.digest).collect(), status.applied.index)
        })
        .await?;
    let current = rules::may_collect(leader_applied, applied);
    match fetcher.store.collect(known, current, SystemTime::now(), grace).await {
        Ok(removed) => {
            for digest in removed {
                tracing::info!(%digest, "removed a component file that nothing names");
            }
        }
        Err(error) => tracing::warn!(%error, "looking for component files that nothing names"),
    }
    Ok(())
}

/// Looks for files that were damaged on the disk; they are fetched again like others that are missing.
async fn scrub(store: &ComponentStore) {
    match store.scrub().await {
        Ok(damaged) => {
            for digest in damaged {
                tracing::warn!(%digest, "a component file was damaged: it is fetched from another master, or upload it again");
            }
        }
        Err(error) => tracing::warn!(%error, "looking for damaged component files"),
    }
}
