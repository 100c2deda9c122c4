//! What a master answers before it is one: that it joins, and how far it is.
//!
//! Invariants: every request is answered at once, and its connection ends with the answer, so that the next one
//! finds the whole API. Must never look at what is asked.

use super::error::ApiError;
use crate::listener::Bounded;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Connections at once: nobody has anything to do here for long.
const CLIENTS_MAX: usize = 64;

/// How far the joining is.
#[derive(Clone, Default)]
struct Progress(Arc<Mutex<String>>);

/// Answers as long as it lives.
pub struct Joining {
    progress: Progress,
    joined: CancellationToken,
}

impl Joining {
    /// Begin to answer on a port that somebody else goes on with later.
    ///
    /// # Errors
    /// When the port cannot be shared.
    pub fn begin(rest: &TcpListener) -> io::Result<Self> {
        let shared = std::net::TcpListener::from(rest.as_fd().try_clone_to_owned()?);
        let shared = TcpListener::from_std(shared)?;
        let begun = Self { progress: Progress::default(), joined: CancellationToken::new() };
        begun.note("it asks the masters named by --join");
        let app = Router::new().fallback(answer).with_state(begun.progress.clone());
        let served = axum::serve(Bounded::new(shared, CLIENTS_MAX), app)
            .with_graceful_shutdown(begun.joined.clone().cancelled_owned());
        // Ends with this value; a port that breaks is found by whoever goes on with it.
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%error, "nobody is told that this master joins");
            }
        });
        Ok(begun)
    }

    /// How far it is.
    pub fn note(&self, state: &str) {
        // A panic while holding the lock cannot leave the text half changed.
        state.clone_into(&mut self.progress.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.joined.cancel();
    }
}

async fn answer(State(progress): State<Progress>) -> Response {
    let state = progress.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut response = ApiError::joining(&state).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
