//! Carries whole requests to the leader's REST port.
//!
//! Invariants: connections are kept for the next request only once their answer was read to its end; at
//! most [`IDLE_MAX`] are kept, and none longer than the other side keeps a silent one; a leader that cannot be
//! reached any more is found within seconds, however long it may take to answer. Must never decide whether a request
//! may be sent again.

use crate::api::request_id_header;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Idle connections that are kept: as many requests may be on their way at once without a new handshake.
const IDLE_MAX: usize = 256;

/// How long one is kept: shorter than the other side's patience with a silent connection.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// How long a connection may take between masters.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection from which nothing comes is asked after so long, and so often; it is given up when nobody answers that,
/// or takes what was sent, for [`GONE_AFTER`]. The kernels do that, however long a request takes.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A machine that is reachable answers within this.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// Says which master passed a request on; such a request is never passed on again.
pub const FORWARDED_BY: HeaderName = HeaderName::from_static("tessera-forwarded-by");

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The request never left.
    #[error("the leader at {address} cannot be reached: {reason}")]
    Unreached {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// It may have been acted on.
    #[error("the leader at {address} did not answer: {reason}")]
    Unanswered {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

struct Idle {
    address: String,
    since: Instant,
    connection: SendRequest<Body>,
}

/// Connections to leaders.
#[derive(Default)]
pub struct Forwarder {
    idle: Mutex<VecDeque<Idle>>,
}

impl Forwarder {
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        // A panic while holding the lock cannot leave the list half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that can be used at once, if one is kept.
    fn kept(&self, address: &str) -> Option<SendRequest<Body>> {
        let mut idle = self.idle();
        let old = |idle: &Idle| idle.address != address || idle.since.elapsed() >= IDLE_FOR;
        while idle.pop_front_if(|idle| old(idle)).is_some() {}
        // The newest one: the others may rest until they are too old.
        while let Some(newest) = idle.pop_back() {
            if newest.connection.is_ready() && !old(&newest) {
                return Some(newest.connection);
            }
        }
        None
    }

    fn keep(&self, address: String, connection: SendRequest<Body>) {
        let mut idle = self.idle();
        idle.push_back(Idle {
            address,
            since: Instant::now(),
            connection,
        });
        while idle.len() > IDLE_MAX {
            idle.pop_front();
        }
    }

    async fn connect(address: &str) -> Result<SendRequest<Body>, ForwardError> {
        let failed = |reason: String| ForwardError::Unreached {
            address: address.to_owned(),
            reason,
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| failed("no connection in time".into()))?
            .map_err(|error| failed(error.to_string()))?;
        // Without it small messages wait 40 ms for each other; a failure costs only that.
        let _ = stream.set_nodelay(true);
        find_lost(&stream).map_err(|error| failed(error.to_string()))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.to_string()))?;
        // Ends with the connection, which ends with its last user.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Send a request to a leader, in the name of a node.
    ///
    /// # Errors
    /// When there is no answer; says whether the request may have been acted on.
    pub async fn send(
        self: &Arc<Self>,
        address: &str,
        node: u64,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ForwardError> {
        let mut connection = match self.kept(address) {
            Some(connection) => connection,
            None => Self::connect(address).await?,
        };
        strip(request.headers_mut());
        let headers = request.headers_mut();
        headers.insert(FORWARDED_BY, HeaderValue::from(node));
        if let Some(id) = request_id_header() {
            headers.insert("x-request-id", id);
        }
        let host = HeaderValue::from_str(address).unwrap_or(HeaderValue::from_static("master"));
        headers.insert(header::HOST, host);
        // Only the path: that is what goes over the wire to a server.
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = path.into();
        }
        let answer = connection.try_send_request(request).await;
        let mut response = answer.map_err(|mut failure| {
            let reason = failure.error().to_string();
            let address = address.to_owned();
            match failure.take_message() {
                Some(_) => ForwardError::Unreached { address, reason },
                None => ForwardError::Unanswered { address, reason },
            }
        })?;
        strip(response.headers_mut());
        let (pool, address) = (Arc::clone(self), address.to_owned());
        // Ends when the answer was read, or its reader is gone and the connection with it.
        tokio::spawn(async move {
            if connection.ready().await.is_ok() {
                pool.keep(address, connection);
            }
        });
        Ok(response.map(Body::new))
    }
}

/// Has the kernel end a connection whose other side does not answer.
fn find_lost(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))?;
    socket.set_tcp_user_timeout(Some(GONE_AFTER))
}

/// Headers that speak of one connection and its framing.
fn strip(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::net::TcpListener;

    async fn echo(request: Request<Body>) -> Response<Body> {
        let by = request.headers()[FORWARDED_BY].to_str().unwrap().to_owned();
        let path = request.uri().to_string();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let text = format!("{by} {path} {}", String::from_utf8_lossy(&body));
        Response::new(Body::from(text))
    }

    #[tokio::test]
    async fn requests_are_carried_whole_and_connections_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = axum::Router::new().fallback(echo);
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let forwarder = Arc::new(Forwarder::default());
        for n in 0..3 {
            let request = Request::post("http://elsewhere/a/b?c=d")
                .body(Body::from(format!("body {n}")))
                .unwrap();
            let answer = forwarder.send(&address, 7, request).await.unwrap();
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, format!("7 /a/b?c=d body {n}"));
        }
        server.abort();
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let forwarder = Arc::new(Forwarder::default());
        let dropped = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut byte = [0; 1];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut byte).await.unwrap();
        });
        let request = || Request::get("/x").body(Body::empty()).unwrap();
        let error = forwarder.send(&address, 1, request()).await.unwrap_err();
        assert!(matches!(error, ForwardError::Unanswered { .. }), "{error}");
        dropped.await.unwrap();
        let error = forwarder.send(&address, 1, request()).await.unwrap_err();
        assert!(matches!(error, ForwardError::Unreached { .. }), "{error}");
    }
}
