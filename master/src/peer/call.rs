//! Connections to other masters, and single calls to them.
//!
//! Invariants: every call has a deadline and carries the token; a connection that does not answer is found
//! within seconds.

use crate::token::Token;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tessera_wire::v1::peer_client::PeerClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long a connection may take: far longer than a network that is of use for electing leaders.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection on which nothing was heard for so long is asked, and given up when it does not answer
/// either: a machine that vanished must not hold what is sent to its successor.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a short question may take.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a master could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answers there.
    #[error("{address}: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        reason: String,
        /// The machine says that nobody listens there.
        nobody: bool,
    },
    /// It answered with a refusal.
    #[error("{address}: {}", .status.message())]
    Refused {
        /// Where.
        address: String,
        /// The refusal.
        status: Box<Status>,
    },
}

impl CallError {
    /// With where it was.
    pub fn refused(address: &str, status: Status) -> Self {
        Self::Refused {
            address: address.to_owned(),
            status: Box::new(status),
        }
    }
}

/// Puts the token on every call.
#[derive(Clone)]
pub struct WithToken(MetadataValue<Ascii>);

impl tonic::service::Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A client of another master.
pub type Client = PeerClient<InterceptedService<Channel, WithToken>>;

/// Masters to whom a connection for short questions is kept; far more than a cluster has.
const KEPT_MAX: usize = 64;

/// Makes connections to other masters.
#[derive(Clone)]
pub struct Caller {
    token: WithToken,
    /// By address; they connect again by themselves.
    kept: Arc<Mutex<BTreeMap<String, Client>>>,
}

impl Caller {
    /// With the cluster's token.
    ///
    /// # Errors
    /// When it has characters that a header cannot carry.
    pub fn new(token: &Token) -> Result<Self, tonic::metadata::errors::InvalidMetadataValue> {
        let token = token.header().parse().map(WithToken)?;
        let kept = Arc::default();
        Ok(Self { token, kept })
    }

    fn endpoint(address: &str) -> Result<Endpoint, CallError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| CallError::Connect {
            address: address.to_owned(),
            reason: error.to_string(),
            nobody: false,
        })?;
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT))
    }

    fn on(&self, channel: Channel) -> Client {
        PeerClient::with_interceptor(channel, self.token.clone())
            .max_decoding_message_size(super::PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(super::PEER_MESSAGE_BYTES_MAX)
    }

    /// A client for short questions, which connects when it is used.
    ///
    /// # Errors
    /// When the address is none.
    pub fn client(&self, address: &str) -> Result<Client, CallError> {
        // A panic while holding the lock cannot leave the map half changed.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept.get(address) {
            return Ok(client.clone());
        }
        let client = self.on(Self::endpoint(address)?.connect_lazy());
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(address.to_owned(), client.clone());
        Ok(client)
    }

    /// Connect to a master.
    ///
    /// # Errors
    /// When nobody answers in time.
    pub async fn connect(&self, address: &str) -> Result<Client, CallError> {
        let failed = |reason: String, nobody: bool| CallError::Connect {
            address: address.to_owned(),
            reason,
            nobody,
        };
        let endpoint = Self::endpoint(address)?;
        // The time-out above is for the connection alone, not for the peer's first words.
        let connected = tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect()).await;
        let channel = connected
            .map_err(|_| failed("no connection in time".into(), false))?
            .map_err(|error| failed(causes(&error), is_refused(&error)))?;
        Ok(self.on(channel))
    }

    /// Ask one short question.
    ///
    /// # Errors
    /// When nobody answers in time, or the master refuses.
    pub async fn ask<T, F>(
        &self,
        address: &str,
        question: impl FnOnce(Client) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let client = self.client(address)?;
        let late = |_| Status::deadline_exceeded("no answer in time");
        match tokio::time::timeout(ASK_TIMEOUT, question(client)).await.map_err(late) {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) | Err(status) => Err(CallError::refused(address, status)),
        }
    }
}

/// The other machine has no process there.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        next = error.source();
    }
    false
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
