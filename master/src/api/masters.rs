//! `/v1/masters`: who the masters are and how they are, and changing that.

use super::Api;
use super::dry_run::{self, DryRun};
use super::error::ApiError;
use super::extract::{Document, Path, Query};
use crate::members::Topology;
use crate::node_handle::{ChangeRefused, NoAnswer, NodeStatus, TransferRefused};
use crate::upkeep::plan::{Known, waits_for};
use crate::upkeep::steward::{Health, SILENT_AFTER, lacks_now, others_answer};
use axum::Json;
use axum::extract::State;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::time::{Duration, Instant};
use tessera_replica::{ChangeError, Member, MemberChange, MemberRole, Standing, TransferError};
use tokio_stream::wrappers::ReceiverStream;

/// How long a leader that is to be removed waits until another one leads.
const STEP_DOWN_WITHIN: Duration = Duration::from_secs(3);

/// How long a removal waits for others to be heard of, or for another change to end.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Pause between two looks.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// One master.
#[derive(Debug, Serialize, JsonSchema)]
struct MasterJson {
    node: u64,
    name: String,
    role: &'static str,
    leader: bool,
    healthy: bool,
    /// What a learner lacks for becoming a voter.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<&'static str>,
    peer_address: String,
    rest_address: String,
    version: String,
    added_at_ms: u64,
    /// Newest entry known to be on its disk; only the leader knows it of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_contact_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    components_missing: Option<u64>,
}

/// All masters, and what the cluster can bear.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MastersJson {
    cluster: String,
    term: u64,
    index: u64,
    leader: Option<u64>,
    /// The newest version whose commands all masters understand.
    cluster_version: u32,
    voters: usize,
    healthy_voters: usize,
    /// Voters that must answer for anything to be written.
    quorum: usize,
    /// How many more voters may be lost now.
    failures_tolerated: usize,
    healthy: bool,
    warnings: Vec<String>,
    items: Vec<MasterJson>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn of(view: &Topology, status: &NodeStatus, known: &Known, health: &Health) -> MastersJson {
    let (heard, replies) = (health.all(), health.fresh());
    let items: Vec<MasterJson> = view
        .members
        .iter()
        .map(|(node, member)| {
            let own = *node == view.node();
            let peer = status.peers.iter().find(|peer| peer.node == *node);
            let heard_of = heard.get(node);
            let silent = heard_of.is_none_or(|heard| heard.at.elapsed() > SILENT_AFTER);
            let answers = !silent && peer.is_some_and(|peer| peer.recently_active);
            MasterJson {
                node: *node,
                name: member.info.name.clone(),
                role: if member.votes { "voter" } else { "learner" },
                leader: view.leader == Some(*node),
                healthy: own || answers,
                waits_for: (view.leads && !member.votes)
                    .then(|| waits_for(*node, &replies, known))
                    .flatten(),
                peer_address: member.info.peer_address.clone(),
                rest_address: member.info.rest_address.clone(),
                version: member.info.software_version.clone(),
                added_at_ms: member.info.added_at_ms,
                stored_index: match own {
                    true => Some(status.last_index),
                    false => peer.map(|peer| peer.matched),
                },
                applied_index: match own {
                    true => Some(status.applied.index),
                    false => heard_of.map(|heard| heard.reply.applied_index),
                },
                last_contact_ms: heard_of.map(|heard| millis(heard.at.elapsed())),
                components_missing: heard_of.map(|heard| heard.reply.components_missing),
            }
        })
        .collect();
    let voters = view.voters();
    let healthy_voters = items.iter().filter(|item| item.role == "voter" && item.healthy).count();
    let quorum = voters / 2 + 1;
    MastersJson {
        cluster: view.cluster().to_string(),
        term: status.term,
        index: status.applied.index,
        leader: view.leader,
        cluster_version: known.cluster_version,
        voters,
        healthy_voters,
        quorum,
        failures_tolerated: healthy_voters.saturating_sub(quorum),
        healthy: items.iter().all(|item| item.healthy),
        warnings: warnings(voters, healthy_voters, quorum, view),
        items,
    }
}

fn warnings(voters: usize, healthy: usize, quorum: usize, view: &Topology) -> Vec<String> {
    let mut warnings = Vec::new();
    if voters > 0 && voters % 2 == 0 {
        warnings.push(format!(
            "{voters} voting masters bear no more failures than {}: add one, or remove one",
            voters - 1
        ));
    }
    if voters > 2 && healthy == quorum {
        warnings.push("one more failure of a voting master stops all writes".to_owned());
    }
    if view.membership.changing {
        warnings.push("a master is being replaced".to_owned());
    }
    warnings
}

/// All masters as the leader knows them, or, when a stale answer is asked for, as this one does.
pub async fn list(State(api): State<Api>) -> Result<Json<MastersJson>, ApiError> {
    let (status, known) = api
        .node
        .query_status(|core, _, status| (status.clone(), Known::of(core, status)))
        .await?;
    let view = api.node.topology().borrow().clone();
    Ok(Json(of(&view, &status, &known, &api.health)))
}

fn node_id(text: &str) -> Result<u64, ApiError> {
    text.parse()
        .ok()
        .filter(|node| *node > 0)
        .ok_or_else(|| ApiError::invalid("node", "the number of a master, as `tessera operator raft list` shows it"))
}

/// Make a learner a voter now.
pub async fn promote(
    State(api): State<Api>,
    Path(node): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let node = node_id(&node)?;
    let view = api.node.topology().borrow().clone();
    if dry.asked() {
        let member = member(&view, node)?;
        if member.role == MemberRole::Voter {
            return Err(ChangeRefused::Replica(ChangeError::AlreadyVoter(node)).into());
        }
    }
    let learns = view.members.get(&node).is_some_and(|member| !member.votes);
    if learns
        && let Some(lacks) = lacks_now(&api.caller, &api.peers, &api.node, &view, node).await?
    {
        return Err(ApiError::conflict("node", format!("node {node} cannot vote yet: {lacks}"))
            .hint("it votes by itself as soon as it has the log and every component file; if it is away, start it"));
    }
    if dry.asked() {
        return Ok(dry_run::answer(vec![format!("make node {node} a voter, the {}. of the cluster", view.voters() + 1)], Vec::new()));
    }
    api.node.change(MemberChange::Promote { node }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A member, in the words in which a change of it would be refused.
fn member(view: &Topology, node: u64) -> Result<&Member, ChangeRefused> {
    let membership = &view.membership;
    if membership.changing {
        return Err(ChangeRefused::Replica(ChangeError::InProgress));
    }
    membership.get(node).ok_or_else(|| ChangeRefused::Replica(match membership.standing(node) {
        Standing::Removed => ChangeError::Removed(node),
        Standing::Member | Standing::Unknown => ChangeError::NotAMember(node),
    }))
}

/// What the removal of a master would do.
async fn removal_foreseen(api: &Api, node: u64) -> Result<Vec<String>, ApiError> {
    let view = api.node.topology().borrow().clone();
    let votes = match member(&view, node) {
        Ok(member) => member.role == MemberRole::Voter,
        Err(ChangeRefused::Replica(ChangeError::Removed(_))) => return Ok(vec![format!("nothing: node {node} was removed before")]),
        Err(refused) => return Err(refused.into()),
    };
    if votes && view.voters() == 1 {
        return Err(ChangeRefused::Replica(ChangeError::LastVoter(node)).into());
    }
    others_answer(&api.caller, &api.peers, &view, node).await.map_err(ChangeRefused::Replica)?;
    let mut would = Vec::new();
    if node == view.node() {
        let status = api.node.query_status(|_, _, status| status.clone()).await?;
        let heir = successor(&view, &status).ok_or(TransferRefused::Nobody)?;
        would.push(format!("hand leadership over to node {heir}"));
    }
    let left = view.voters() - usize::from(votes);
    would.push(format!("remove node {node} for good; {left} voters are left, {} of which must answer", left / 2 + 1));
    Ok(would)
}

/// The voter that would take over with the least delay: it answers, and holds the most of the log.
fn successor(view: &Topology, status: &NodeStatus) -> Option<u64> {
    let votes = |node: u64| view.members.get(&node).is_some_and(|member| member.votes);
    let heirs = status.peers.iter().filter(|peer| peer.node != view.node() && peer.recently_active && votes(peer.node));
    heirs.max_by_key(|peer| (peer.matched, Reverse(peer.node))).map(|peer| peer.node)
}

/// Remove a master for good. A leader hands leadership over first, and the request goes to the next one.
pub async fn remove(
    State(api): State<Api>,
    Path(node): Path<String>,
    Query(dry): Query<DryRun>,
) -> Result<Response, ApiError> {
    let node = node_id(&node)?;
    if dry.asked() {
        return Ok(dry_run::answer(removal_foreseen(&api, node).await?, Vec::new()));
    }
    let began = Instant::now();
    let changed = loop {
        let view = api.node.topology().borrow().clone();
        // The leader itself hands over first; the next one asks.
        let answer = match node == view.node() {
            true => Ok(()),
            false => others_answer(&api.caller, &api.peers, &view, node).await,
        };
        let changed = match answer {
            Ok(()) => api.node.change(MemberChange::Remove { node }).await,
            Err(refused) => Err(ChangeRefused::Replica(refused)),
        };
        match changed {
            // A leader that is new has not heard of everybody yet.
            Err(ChangeRefused::Replica(ChangeError::NoQuorum { .. } | ChangeError::InProgress))
                if began.elapsed() < SETTLE_WITHIN =>
            {
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
            changed => break changed,
        }
    };
    match changed {
        // Removed is removed, also when somebody asks twice.
        Ok(()) | Err(ChangeRefused::Replica(ChangeError::Removed(_))) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(ChangeRefused::Replica(ChangeError::RemovesLeader(_))) => {
            api.node.transfer(None).await?;
            let mut topology = api.node.topology();
            let led = topology.wait_for(|view| view.leader.is_some_and(|leader| leader != node));
            // If nobody takes it, the next try says why.
            let _ = tokio::time::timeout(STEP_DOWN_WITHIN, led).await;
            Err(ApiError::no_leader("leadership was handed over, so that the master can be removed"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The whole state with its component files, as one file.
pub async fn save(State(api): State<Api>) -> Result<Response, ApiError> {
    let saved = api.node.snapshot().await?;
    let (source, components) = saved.map_err(|error| {
        tracing::error!(%error, "reading the state for a snapshot");
        ApiError::internal("the state could not be read")
    })?;
    let pieces = crate::backup::stream(source, components, api.store.clone());
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(pieces)));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// To whom leadership is to go.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The number of a master; the one that is furthest when absent.
    to: Option<u64>,
}

/// Who was asked to lead.
#[derive(Serialize, JsonSchema)]
pub struct Transferred {
    to: u64,
}

/// Hand leadership to another master.
pub async fn transfer(
    State(api): State<Api>,
    Query(dry): Query<DryRun>,
    Document(transfer): Document<Transfer>,
) -> Result<Response, ApiError> {
    if dry.asked() {
        let view = api.node.topology().borrow().clone();
        let status = api.node.query_status(|_, _, status| status.clone()).await?;
        let to = transfer.to.or_else(|| successor(&view, &status)).ok_or(TransferRefused::Nobody)?;
        let votes = view.members.get(&to).is_some_and(|member| member.votes);
        if to == view.node() || !votes {
            return Err(TransferRefused::Replica(TransferError::NotAVoter(to)).into());
        }
        let would = format!("hand leadership over from node {} to node {to}", view.node());
        return Ok(dry_run::answer(vec![would], Vec::new()));
    }
    let to = api.node.transfer(transfer.to).await?;
    let mut topology = api.node.topology();
    let led = topology.wait_for(|view| view.leader == Some(to));
    match tokio::time::timeout(STEP_DOWN_WITHIN, led).await {
        Ok(_) => Ok(Json(Transferred { to }).into_response()),
        Err(_) => Err(ApiError::unavailable(format!(
            "node {to} did not take leadership within {} s",
            STEP_DOWN_WITHIN.as_secs()
        ))),
    }
}

impl From<ChangeRefused> for ApiError {
    fn from(error: ChangeRefused) -> Self {
        let text = error.to_string();
        let ChangeRefused::Replica(refused) = error else {
            return Self::outcome_unknown(text);
        };
        match refused {
            ChangeError::NotLeader { .. } | ChangeError::Stopped => Self::no_leader(text),
            ChangeError::InProgress => Self::unavailable(text),
            ChangeError::NotAMember(_) | ChangeError::Removed(_) => Self::missing("node", text)
                .hint("`tessera operator raft list` shows the masters"),
            _ => Self::conflict("node", text),
        }
    }
}

impl From<TransferRefused> for ApiError {
    fn from(error: TransferRefused) -> Self {
        let text = error.to_string();
        match error {
            TransferRefused::Replica(TransferError::NotLeader { .. } | TransferError::Stopped)
            | TransferRefused::NoAnswer(NoAnswer::Stopped(_)) => Self::no_leader(text),
            TransferRefused::NoAnswer(NoAnswer::Late) => Self::outcome_unknown(text),
            TransferRefused::Replica(_) => Self::conflict("to", text),
            TransferRefused::Nobody => Self::conflict("to", text)
                .hint("start another master with --join, or wait until one has kept up"),
        }
    }
}
