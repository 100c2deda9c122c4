//! The agent's session with the leading master: connecting, lanes, back-off.
//!
//! Invariants: one session at a time; after it ended another is tried with a back-off that stays below
//! a second, because a quiet cluster should be whole again before anybody looks. A master that has become
//! silent is left only for one that leads in a later term, or when it was silent for long. What is said in the
//! session is decided elsewhere.

use std::pin::Pin;
use std::time::{Duration, Instant};
use tessera_wire::v1;
use tessera_wire::v1::agent_session_client::AgentSessionClient;
use crate::masters::{Masters, is_usable};
use v1::master_message::Message as FromMaster;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Messages queued for the master. Statuses are repeated until acknowledged and turns until answered,
/// so that a session that does not take so many is ended without loss.
const QUEUE_MAX: usize = 4_096;

/// How long a connection may take: with several masters another one answers sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a master is probed. One that stands still keeps its connections, and nothing is placed on an
/// agent that waits for it.
const PROBE_EVERY: Duration = Duration::from_millis(1_500);

/// How long it may take to answer: longer than a busy machine holds back any process.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// First and longest wait between two tries.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(800);

/// A session that lasted so long was a good one, and the next try may come at once. Shorter ones are
/// refusals, or another agent that takes the place of this one.
const SETTLED: Duration = Duration::from_secs(2);

/// Time between two beats; the master gives a session up after several of them.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Beats that may stay unanswered before the session is given up.
const BEATS_UNANSWERED_MAX: u64 = 10;

/// After a beat was unanswered for so long the other masters are asked whether there is another leader by now. Asking
/// costs little: a busy machine may well hold back an answer for so long.
const SILENT_AFTER: Duration = Duration::from_millis(500);

/// Between asking one of them and the next one: they wait with the answer while nobody leads.
const ASK_NEXT: Duration = Duration::from_millis(300);

/// How long one may take to answer, more than it waits for a leader; and then the pause until it is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
const ASK_PAUSE: Duration = Duration::from_millis(500);

/// Names the term of the leader that was lost.
const AFTER_TERM: &str = "tessera-after-term";

/// Largest message of the master: a full batch, or what an agent is to run.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Puts the token on every call.
#[derive(Clone)]
pub struct WithToken(MetadataValue<Ascii>);

impl tonic::service::Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Something that may come while a session is held.
type Waiting = Pin<Box<dyn Future<Output = String> + Send>>;

/// A client of the master that leads.
pub type Client = AgentSessionClient<InterceptedService<Channel, WithToken>>;

/// A token that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("token: visible ASCII characters only")]
pub struct BadToken;

impl WithToken {
    /// From the token's text.
    ///
    /// # Errors
    /// When it has characters that a header cannot carry.
    pub fn new(token: &str) -> Result<Self, BadToken> {
        format!("Bearer {token}")
            .parse()
            .map(Self)
            .map_err(|_| BadToken)
    }
}

/// What the session tells the agent's loop.
pub enum SessionEvent {
    /// A connection stands; the loop answers with Register through `sender`.
    Connected {
        /// Takes what is to be said.
        sender: mpsc::Sender<v1::AgentMessage>,
        /// For the bulk lane.
        client: Client,
    },
    /// The master said something.
    Message(Box<v1::MasterMessage>),
    /// It is over; another one is being tried.
    Disconnected {
        /// Why.
        reason: String,
    },
}

/// How a session ended.
struct Ended {
    reason: String,
    /// The master had become silent.
    silent: bool,
    /// Another master leads, in a later term.
    leader: Option<String>,
}

/// Keeps a session with one of the masters for ever; ends only when nobody listens any more.
pub async fn keep_session(
    mut masters: Masters,
    token: WithToken,
    events: mpsc::Sender<SessionEvent>,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let master = masters.next();
        let began = Instant::now();
        let mut told = false;
        let reason = match connect(&master, &token).await {
            Ok(client) => match hold(client, &master, &token, &mut masters, &events).await {
                Ok(ended) => {
                    if began.elapsed() >= SETTLED {
                        backoff = BACKOFF_MIN;
                        masters.lost(&master, ended.silent);
                    }
                    // Terms rise: this does not go on for ever.
                    if let Some(leader) = ended.leader {
                        masters.found(leader);
                        told = true;
                    }
                    ended.reason
                }
                Err(status) => {
                    told = masters.told(&status);
                    status.message().to_owned()
                }
            },
            Err(error) => error,
        };
        let event = SessionEvent::Disconnected {
            reason: format!("{master}: {reason}"),
        };
        if events.send(event).await.is_err() {
            return;
        }
        if !told {
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

async fn connect(master: &str, token: &WithToken) -> Result<Client, String> {
    let endpoint = Endpoint::from_shared(format!("http://{master}"))
        .map_err(|error| error.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE_EVERY)
        .keep_alive_timeout(PROBE_TIMEOUT);
    // The time-out above is for the connection alone: one that is accepted and says nothing counts, too.
    let channel = tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect())
        .await
        .map_err(|_| "no connection in time".to_owned())?
        .map_err(|error| chain(&error))?;
    Ok(AgentSessionClient::with_interceptor(channel, token.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Where another master leads in a later term, as soon as one of these says so.
async fn another_leader(masters: Vec<String>, token: WithToken, after_term: u64) -> String {
    loop {
        let mut asked = JoinSet::new();
        for (place, master) in (0..).zip(&masters) {
            let (master, token) = (master.clone(), token.clone());
            asked.spawn(async move {
                tokio::time::sleep(ASK_NEXT * place).await;
                let asked = tokio::time::timeout(ASK_TIMEOUT, ask(&master, &token, after_term));
                asked.await.ok().flatten()
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(leader)) = answer {
                return leader;
            }
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

/// Nothing when it does not know of one, or is of a build that cannot be asked.
async fn ask(master: &str, token: &WithToken, after_term: u64) -> Option<String> {
    let mut client = connect(master, token).await.ok()?;
    let reply = client.leader(v1::LeaderRequest { after_term }).await.ok()?.into_inner();
    (reply.term > after_term && is_usable(&reply.address)).then_some(reply.address)
}

/// Holds one session until it ends; says how. An error says that there was none.
async fn hold(
    mut client: Client,
    master: &str,
    token: &WithToken,
    masters: &mut Masters,
    events: &mpsc::Sender<SessionEvent>,
) -> Result<Ended, Status> {
    let (sender, outgoing) = mpsc::channel(QUEUE_MAX);
    let connected = SessionEvent::Connected {
        sender,
        client: client.clone(),
    };
    let (silence, mut silent) = watch::channel(false);
    let ended = |reason: String, silent: &watch::Receiver<bool>| {
        Ok(Ended { reason, silent: *silent.borrow(), leader: None })
    };
    if events.send(connected).await.is_err() {
        return ended("the agent ends".into(), &silent);
    }
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if masters.term() > 0 {
        request.metadata_mut().insert(AFTER_TERM, masters.term().into());
    }
    let mut incoming = client.control(request).await?.into_inner();
    let mut liveness: Waiting = Box::pin(std::future::pending());
    let mut other: Waiting = Box::pin(std::future::pending());
    let mut agent = 0;
    loop {
        tokio::select! {
            message = incoming.message() => match message {
                Ok(Some(message)) => {
                    match &message.message {
                        Some(FromMaster::Registered(registered)) => {
                            masters.learn(&registered.masters);
                            masters.registered(registered.term);
                            agent = registered.agent;
                            let beating = beat(client.clone(), agent, registered.session, silence.clone());
                            liveness = Box::pin(beating);
                        }
                        Some(FromMaster::Masters(moved)) => {
                            masters.learn(&moved.addresses);
                            continue;
                        }
                        _ => {}
                    }
                    if events.send(SessionEvent::Message(Box::new(message))).await.is_err() {
                        return ended("the agent ends".into(), &silent);
                    }
                }
                Ok(None) => return ended("the master closed the session".into(), &silent),
                Err(status) => return ended(status.to_string(), &silent),
            },
            reason = &mut liveness => return ended(reason, &silent),
            // This function holds a sender.
            _ = silent.changed() => {
                let others = masters.others(master, agent);
                other = if *silent.borrow_and_update() && !others.is_empty() {
                    Box::pin(another_leader(others, token.clone(), masters.term()))
                } else {
                    Box::pin(std::future::pending())
                };
            }
            leader = &mut other => {
                let reason = format!("it became silent, and {leader} leads in a later term");
                return Ok(Ended { reason, silent: true, leader: Some(leader) });
            }
        }
    }
}

/// Beats until the master is silent for too long; says why it ended, and meanwhile whether it is silent.
async fn beat(mut client: Client, agent: u64, session: u64, silence: watch::Sender<bool>) -> String {
    let (sender, outgoing) = mpsc::channel(1);
    let mut answers: Streaming<v1::Beat> =
        match client.liveness(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.to_string(),
        };
    let mut every = tokio::time::interval(BEAT_EVERY);
    let (mut sent, mut answered) = (0, 0);
    // Since when a beat is unanswered.
    let mut since: Option<Instant> = None;
    loop {
        let silent_at = since.filter(|_| !*silence.borrow()).map(|since| since + SILENT_AFTER);
        tokio::select! {
            _ = every.tick() => {
                if sent >= answered + BEATS_UNANSWERED_MAX {
                    return "the master does not answer".into();
                }
                sent += 1;
                since.get_or_insert_with(Instant::now);
                // A full queue is a beat that the master has not read yet: it counts as unanswered.
                let _ = sender.try_send(v1::Beat { agent, session, count: sent });
            }
            answer = answers.message() => match answer {
                Ok(Some(beat)) => {
                    answered = beat.count.min(sent);
                    since = (answered < sent).then(Instant::now);
                    silence.send_if_modified(|silent| std::mem::take(silent));
                }
                Ok(None) => return "the master ended the liveness lane".into(),
                Err(status) => return status.to_string(),
            },
            () = sleep_until(silent_at) => {
                silence.send_replace(true);
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
