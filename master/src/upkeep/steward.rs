//! The leader looks after the members: asks how they are, keeps what they say of themselves, makes voters
//! of learners that have everything, and lets a master that lost its disk take the place of its old node.
//!
//! What is done follows from what was heard lately (`plan`). Invariant: one change at a time, each checked again
//! by the replica.

use crate::members::{MasterNode, Topology};
use crate::node_handle::{NoAnswer, NodeHandle};
use crate::peer::{CallError, Caller, Peers, status_request};
use crate::upkeep::plan::{Known, Replies, plan, understood_by_all, waits_for};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_master_core::{Principal, Request};
use tessera_replica::{ChangeError, MemberChange};
use tessera_wire::v1;

/// How often the members are asked. A learner is promoted about so long after it has everything.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A member that did not answer for so long is silent, and what it said before does not count any more.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// What was last heard of a member.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// What it said.
    pub reply: v1::MasterStatusReply,
}

/// How the members are, as the leader knows; empty elsewhere.
#[derive(Default)]
pub struct Health {
    heard: Mutex<BTreeMap<u64, Heard>>,
}

impl Health {
    fn heard(&self) -> MutexGuard<'_, BTreeMap<u64, Heard>> {
        // A panic while holding the lock cannot leave the map half changed.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of it.
    pub fn all(&self) -> BTreeMap<u64, Heard> {
        self.heard().clone()
    }

    /// What was said lately.
    pub fn fresh(&self) -> Replies {
        let heard = self.heard();
        let fresh = heard.iter().filter(|(_, heard)| heard.at.elapsed() <= SILENT_AFTER);
        fresh.map(|(node, heard)| (*node, heard.reply.clone())).collect()
    }
}

/// Looks after the members while this master leads.
pub struct Steward {
    /// The node.
    pub node: NodeHandle,
    /// To ask the others.
    pub caller: Caller,
    /// Where they are.
    pub peers: Arc<Peers>,
    /// What was heard, for others to read.
    pub health: Arc<Health>,
    /// What this master says of itself.
    pub info: v1::MemberInfo,
}

impl Steward {
    /// Runs until the loop is gone.
    pub async fn run(self) {
        let mut topology = self.node.topology();
        let mut last_refusal = String::new();
        let mut warned_of = 0;
        loop {
            let view = topology.borrow_and_update().clone();
            if view.leads {
                self.ask(&view).await;
                warn_of_even(&view, &mut warned_of);
                self.raise_version(&view).await;
                if !self.change(&view, &mut last_refusal).await {
                    return;
                }
            } else {
                self.health.heard().clear();
            }
            if let Ok(Err(_)) = tokio::time::timeout(ASK_EVERY, topology.changed()).await {
                return;
            }
        }
    }

    async fn ask(&self, view: &Topology) {
        let time_ms = self.node.query(|core, _| core.time_ms()).await.ok().flatten();
        let answers = ask_all(&self.caller, &self.peers, view, time_ms, |_, _| true).await;
        let mut heard = self.health.heard();
        heard.retain(|node, _| view.members.contains_key(node));
        for (node, answer) in answers {
            match answer {
                Ok(reply) if reply.node == node => {
                    let at = Instant::now();
                    heard.insert(node, Heard { at, reply });
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(node, %error, "a master did not say how it is"),
            }
        }
    }

    /// Commands of a newer version may be proposed once every voting master understands them.
    async fn raise_version(&self, view: &Topology) {
        let all = understood_by_all(view, &self.info, &self.health.fresh());
        let present = self.node.query(|core, _| core.cluster_version()).await;
        if present.is_ok_and(|present| all > present) {
            let request = Request::SetClusterVersion { version: all };
            match self.node.request(Principal::administrator(), request).await {
                Ok(_) => tracing::info!(version = all, "every voting master understands it: raised the cluster's version"),
                // It is tried again in a moment.
                Err(error) => tracing::debug!(%error, "the cluster's version is not raised yet"),
            }
        }
    }

    /// Does what is to be done next; false when the loop is gone.
    async fn change(&self, view: &Topology, last_refusal: &mut String) -> bool {
        let known = match known(&self.node).await {
            Ok(known) => known,
            Err(NoAnswer::Stopped(_)) => return false,
            Err(NoAnswer::Late) => return true,
        };
        let Some(change) = plan(view, &self.info, &self.health.fresh(), &known) else {
            return true;
        };
        let what = describe(&change);
        match self.node.change(change).await {
            Ok(()) => {
                last_refusal.clear();
                tracing::info!(what, "members changed");
            }
            Err(error) => {
                let refusal = format!("{what}: {error}");
                if refusal != *last_refusal {
                    tracing::info!(refusal, "members are not changed yet");
                    *last_refusal = refusal;
                }
            }
        }
        true
    }
}

/// What the leader knows at this time of the log and of the components.
///
/// # Errors
/// When there is no answer in time.
pub async fn known(node: &NodeHandle) -> Result<Known, NoAnswer> {
    node.query_status(|core, _, status| Known::of(core, status)).await
}

/// What a learner lacks at this time for becoming a voter: it is asked, and what the leader knows is of after its
/// answer, so that no component was named meanwhile.
///
/// # Errors
/// When the leader's own loop does not answer in time.
pub async fn lacks_now(
    caller: &Caller,
    peers: &Peers,
    handle: &NodeHandle,
    view: &Topology,
    node: u64,
) -> Result<Option<&'static str>, NoAnswer> {
    let answers = ask_all(caller, peers, view, None, |asked, _| asked == node).await;
    let answers = answers.into_iter().filter_map(|(node, answer)| Some((node, answer.ok()?)));
    let replies = answers.filter(|(node, reply)| reply.node == *node).collect();
    Ok(waits_for(node, &replies, &known(handle).await?))
}

/// Asks members how they are, and tells them the time if it is given: what each says, or why it says nothing.
async fn ask_all(
    caller: &Caller,
    peers: &Peers,
    view: &Topology,
    time_ms: Option<u64>,
    asked: impl Fn(u64, &MasterNode) -> bool,
) -> Vec<(u64, Result<v1::MasterStatusReply, CallError>)> {
    let others = view.members.iter().filter(|(node, member)| **node != view.node() && asked(**node, member));
    let asked = others.map(|(node, member)| async move {
        let request = status_request(view, *node, time_ms);
        let address = peers.address(*node);
        let address = address.as_ref().unwrap_or(&member.info.peer_address);
        let answer =
            caller.ask(address, |mut client| async move { client.master_status(request).await }).await;
        (*node, answer)
    });
    join_all(asked).await
}

/// Refuses to take a voter away unless enough of the others answer at this moment: who was heard of half a
/// second ago may have died since.
///
/// # Errors
/// When too few answer.
pub async fn others_answer(
    caller: &Caller,
    peers: &Peers,
    view: &Topology,
    removed: u64,
) -> Result<(), ChangeError> {
    let leaves = |node: &u64| *node == removed;
    if !view.members.get(&removed).is_some_and(|member| member.votes) {
        return Ok(());
    }
    let answers = ask_all(caller, peers, view, None, |_, member| member.votes).await;
    let answered = answers.iter().filter(|(node, answer)| !leaves(node) && answer.is_ok());
    let own = view.members.get(&view.node()).is_some_and(|member| member.votes && !leaves(&view.node()));
    let active = answered.count() + usize::from(own);
    let voters = view.voters() - 1;
    let needed = voters / 2 + 1;
    if voters > 0 && active < needed {
        return Err(ChangeError::NoQuorum { voters, active, needed });
    }
    Ok(())
}

fn warn_of_even(view: &Topology, warned_of: &mut usize) {
    let voters = view.voters();
    if voters % 2 == 0 && voters != *warned_of {
        tracing::warn!(
            voters,
            "an even number of voting masters outlives no more failures than one less: add or remove one"
        );
    }
    *warned_of = voters;
}

fn describe(change: &MemberChange) -> String {
    match change {
        MemberChange::AddLearner { node, .. } => format!("node {node} joins"),
        MemberChange::Promote { node } => format!("node {node} becomes a voter"),
        MemberChange::Remove { node } => format!("node {node} is removed"),
        MemberChange::Replace { remove, promote } => {
            format!("node {promote} takes the place of node {remove}")
        }
        MemberChange::Update { node, .. } => format!("node {node} says something else of itself"),
    }
}
