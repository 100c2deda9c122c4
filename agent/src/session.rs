//! The agent's session with the leading master: connecting, lanes, back-off.
//!
//! Invariants: one session at a time; after it ended another is tried with a back-off that stays below
//! a second, because a quiet cluster should be whole again before anybody looks. What is said in the
//! session is decided elsewhere.

use std::pin::Pin;
use std::time::{Duration, Instant};
use tessera_wire::v1;
use tessera_wire::v1::agent_session_client::AgentSessionClient;
use crate::masters::Masters;
use v1::master_message::Message as FromMaster;
use tokio::sync::mpsc;
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
            Ok(client) => match hold(client, &mut masters, &events).await {
                Ok(reason) => {
                    if began.elapsed() >= SETTLED {
                        backoff = BACKOFF_MIN;
                        // It led until now: who comes next is not known, and this one may be back first.
                        masters.lost(&master);
                    }
                    reason
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

/// Holds one session until it ends; says why it did. An error says that there was none.
async fn hold(
    mut client: Client,
    masters: &mut Masters,
    events: &mpsc::Sender<SessionEvent>,
) -> Result<String, Status> {
    let (sender, outgoing) = mpsc::channel(QUEUE_MAX);
    let connected = SessionEvent::Connected {
        sender,
        client: client.clone(),
    };
    if events.send(connected).await.is_err() {
        return Ok("the agent ends".into());
    }
    let mut incoming = client
        .control(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let mut liveness: Pin<Box<dyn Future<Output = String> + Send>> =
        Box::pin(std::future::pending());
    loop {
        tokio::select! {
            message = incoming.message() => match message {
                Ok(Some(message)) => {
                    match &message.message {
                        Some(FromMaster::Registered(registered)) => {
                            masters.learn(&registered.masters);
                            liveness = Box::pin(beat(client.clone(), registered.agent, registered.session));
                        }
                        Some(FromMaster::Masters(moved)) => {
                            masters.learn(&moved.addresses);
                            continue;
                        }
                        _ => {}
                    }
                    if events.send(SessionEvent::Message(Box::new(message))).await.is_err() {
                        return Ok("the agent ends".into());
                    }
                }
                Ok(None) => return Ok("the master closed the session".into()),
                Err(status) => return Ok(status.to_string()),
            },
            reason = &mut liveness => return Ok(reason),
        }
    }
}

/// Beats until the master is silent for too long; says why it ended.
async fn beat(mut client: Client, agent: u64, session: u64) -> String {
    let (sender, outgoing) = mpsc::channel(1);
    let mut answers: Streaming<v1::Beat> =
        match client.liveness(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.to_string(),
        };
    let mut every = tokio::time::interval(BEAT_EVERY);
    let (mut sent, mut answered) = (0, 0);
    loop {
        tokio::select! {
            _ = every.tick() => {
                if sent >= answered + BEATS_UNANSWERED_MAX {
                    return "the master does not answer".into();
                }
                sent += 1;
                // A full queue is a beat that the master has not read yet: it counts as unanswered.
                let _ = sender.try_send(v1::Beat { agent, session, count: sent });
            }
            answer = answers.message() => match answer {
                Ok(Some(beat)) => answered = beat.count.min(sent),
                Ok(None) => return "the master ended the liveness lane".into(),
                Err(status) => return status.to_string(),
            },
        }
    }
}
