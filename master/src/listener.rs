//! Connections of clients and agents: how many there may be, and how long one may say nothing.
//!
//! Invariants: a port never holds more than its bound of connections, whoever opens them; one on which
//! nothing moves in either direction for [`IDLE_MAX`] is given up. This file must never look at bytes.

use crate::inspect::ANSWER_MAX;
use futures::Stream;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Longest silence of a connection: longer than the judgement of an upload, waiting for it included (180 s),
/// than a scheduler may take to answer (30 s) and than the pauses between signs of life of watchers (15 s) and
/// agents, and short enough that a slot comes back.
const IDLE_MAX: Duration = Duration::from_secs(200);
const _: () = assert!(IDLE_MAX.as_secs() > ANSWER_MAX.as_secs());
/// Pause after the system refused a connection: it has no descriptors, and may have some later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port with a bound on its connections; more wait in the kernel's queue.
pub struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    idle_max: Duration,
}

impl Bounded {
    /// A port that holds at most so many connections.
    pub fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(connections_max)),
            idle_max: IDLE_MAX,
        }
    }

    /// All connections, one after the other, for ever.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |mut port| async {
            let (connection, _) = axum::serve::Listener::accept(&mut port).await;
            Some((Ok(connection), port))
        })
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // Nobody closes the semaphore, so that there is always a slot in the end.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Without it small messages wait 40 ms for each other; a failure costs only that.
                    let _ = stream.set_nodelay(true);
                    return (Connection::new(stream, slot, self.idle_max), address);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its slot; reading fails once nothing moved for too long.
pub struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    idle_max: Duration,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, slot: OwnedSemaphorePermit, idle_max: Duration) -> Self {
        let silence = Box::pin(tokio::time::sleep(idle_max));
        Self {
            stream,
            silence,
            idle_max,
            _slot: slot,
        }
    }

    fn moved(&mut self) {
        let until = Instant::now() + self.idle_max;
        self.silence.as_mut().reset(until);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.moved();
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.moved();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts));
        self.moved();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Longest wait for anything; reached only when something is broken.
    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_silent_connection_is_given_up_and_its_slot_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut port = Bounded::new(listener, 1);
        port.idle_max = Duration::from_millis(50);
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = port.accept().await;
        assert_eq!(
            port.slots.available_permits(),
            0,
            "the second one has to wait"
        );
        first.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        let silent = tokio::time::timeout(DEADLINE, connection.read_u8())
            .await
            .unwrap();
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        let (mut connection, _) = tokio::time::timeout(DEADLINE, port.accept()).await.unwrap();
        second.write_all(b"y").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'y');
    }
}
