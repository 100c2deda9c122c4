//! Follows files of the cluster that grow: output of tasks, logs of schedulers.
//!
//! Invariants: bytes come out once and in order; a master that is away for less than [`PATIENCE`]
//! does not end a following. Must never decide what a task's state means.

use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use std::time::{Duration, Instant};

/// Bytes asked for at a time: a chunk of the bulk lane.
const CHUNK_BYTES: u64 = 65_536;
/// First pause between two looks, and the longest; it doubles while nothing comes.
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_MOST: Duration = Duration::from_millis(300);
/// How long a master or agent may be away: a restart of both takes a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A file and how far it was read.
#[derive(Clone, Debug)]
pub struct Tail {
    segments: Vec<String>,
    agent: Option<String>,
    offset: u64,
}

impl Tail {
    /// Read the file under these path segments from its beginning.
    pub fn new(segments: &[&str]) -> Self {
        Self {
            segments: segments.iter().map(|&segment| segment.to_owned()).collect(),
            agent: None,
            offset: 0,
        }
    }

    /// On this agent, where the master cannot know which.
    pub fn on_agent(mut self, agent: Option<&str>) -> Self {
        self.agent = agent.map(str::to_owned);
        self
    }

    /// The output of a task: `stdout`, `stderr` or another file of its sandbox.
    pub fn of_task(framework: &str, task: &str, path: &str) -> Self {
        let mut segments = vec!["v1", "tasks", framework, task, "files"];
        segments.extend(path.split('/'));
        Self::new(&segments)
    }

    fn request(&self, client: &Client) -> Request {
        let segments: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        let request = client
            .get(&segments)
            .query("offset", self.offset)
            .query("length", CHUNK_BYTES);
        match &self.agent {
            Some(agent) => request.query("agent", agent),
            None => request,
        }
    }

    /// See whether the file is there.
    ///
    /// # Errors
    /// When it is not, or the cluster refuses or cannot be reached.
    pub async fn check(&self, client: &Client) -> Result<(), CliError> {
        client.send(self.request(client)).await.map(drop)
    }

    /// What has come since the last call, at most a chunk; nothing while the file is not there.
    ///
    /// # Errors
    /// When the cluster refuses or cannot be reached.
    pub async fn next(&mut self, client: &Client) -> Result<Vec<u8>, CliError> {
        let response = match client.send(self.request(client)).await {
            Ok(response) => response,
            Err(error) if error.kind == Kind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        };
        // A rotated file begins anew; what was cut off in between is gone.
        if header("x-tessera-size").is_some_and(|size| size < self.offset) {
            self.offset = 0;
            return Ok(Vec::new());
        }
        // A log whose beginning was dropped is served from where it begins now.
        let start = header("x-tessera-offset")
            .unwrap_or(self.offset)
            .max(self.offset);
        let bytes = client.body(response).await?;
        self.offset = start.saturating_add(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Pauses that grow while nothing happens.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: POLL_FIRST }
    }
}

impl Pace {
    /// Wait; shorter after something happened.
    pub async fn wait(&mut self, happened: bool) {
        self.pause = if happened {
            POLL_FIRST
        } else {
            (self.pause * 3 / 2).min(POLL_MOST)
        };
        tokio::time::sleep(self.pause).await;
    }
}

/// Remembers since when nobody answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    away_since: Option<Instant>,
}

impl Patience {
    /// The value, or nothing while patience lasts.
    ///
    /// # Errors
    /// Every failure other than being unavailable, and that one after [`PATIENCE`].
    pub fn judge<T>(&mut self, result: Result<T, CliError>) -> Result<Option<T>, CliError> {
        match result {
            Ok(value) => {
                self.away_since = None;
                Ok(Some(value))
            }
            Err(error) if error.kind == Kind::Unavailable => {
                let since = *self.away_since.get_or_insert_with(Instant::now);
                if since.elapsed() < PATIENCE {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }
}
