//! The bulk lane for files: ranges of sandbox files and scheduler logs, asked of the agent that has them.
//!
//! Invariants: at most [`WAITING_MAX`] questions are open; each is answered, or given up after
//! [`ANSWER_TIMEOUT`]. State is not involved: what cannot be reached now can be asked for again.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tessera_types::{AgentId, FrameworkId};
use tessera_wire::v1;
use tokio::sync::{mpsc, oneshot};

/// Questions open at once over all agents; more are told to come back.
const WAITING_MAX: usize = 1_024;

/// Questions queued for one agent.
const QUEUE_MAX: usize = 64;

/// How long an agent may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of one answer.
pub const RANGE_BYTES_MAX: u32 = 64 << 10;

/// A range of a file.
#[derive(Clone, Debug)]
pub struct Range {
    /// Whose.
    pub framework: FrameworkId,
    /// Which task's; empty for the scheduler's log.
    pub task: String,
    /// Path in the sandbox.
    pub path: String,
    /// From this byte on.
    pub offset: u64,
    /// Most bytes.
    pub length: u32,
}

/// Bytes of a file, and how long it is now.
#[derive(Debug, PartialEq, Eq)]
pub struct FileBytes {
    /// The bytes.
    pub data: Vec<u8>,
    /// Size of the whole file.
    pub size: u64,
}

/// Why there are no bytes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The agent is not connected.
    #[error("agent {0} is not connected")]
    NotConnected(AgentId),
    /// Too many questions are open.
    #[error("too many files are being read")]
    Busy,
    /// The agent did not answer.
    #[error("agent {0} did not answer in time")]
    TimedOut(AgentId),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
}

#[derive(Default)]
struct Lanes {
    agents: HashMap<AgentId, mpsc::Sender<v1::FileRequest>>,
    /// By request: who was asked, and who waits.
    waiting: HashMap<u64, (AgentId, oneshot::Sender<v1::FileChunk>)>,
    last_request: u64,
}

/// The lanes of all connected agents.
pub struct FileLane {
    lanes: Mutex<Lanes>,
    timeout: Duration,
}

impl Default for FileLane {
    fn default() -> Self {
        Self {
            lanes: Mutex::default(),
            timeout: ANSWER_TIMEOUT,
        }
    }
}

impl FileLane {
    fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes> {
        // A panic while holding the lock cannot leave the maps half changed.
        self.lanes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// An agent opened its lane; the newest one counts.
    pub fn attach(&self, agent: AgentId) -> mpsc::Receiver<v1::FileRequest> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        self.lanes().agents.insert(agent, sender);
        receiver
    }

    /// An agent answered. What another agent was asked is not its to answer.
    pub fn answer(&self, agent: AgentId, chunk: v1::FileChunk) {
        let mut lanes = self.lanes();
        let asked = lanes
            .waiting
            .get(&chunk.request)
            .is_some_and(|(asked, _)| *asked == agent);
        if asked && let Some((_, waiting)) = lanes.waiting.remove(&chunk.request) {
            // Whoever asked may have gone away.
            let _ = waiting.send(chunk);
        }
    }

    /// Read a range.
    ///
    /// # Errors
    /// When the agent cannot be asked, does not answer, or says no.
    pub async fn read(&self, agent: AgentId, range: Range) -> Result<FileBytes, FileError> {
        let (sender, answered) = oneshot::channel();
        let (lane, request) = {
            let mut lanes = self.lanes();
            let lane = lanes
                .agents
                .get(&agent)
                .cloned()
                .ok_or(FileError::NotConnected(agent))?;
            if lanes.waiting.len() >= WAITING_MAX {
                return Err(FileError::Busy);
            }
            lanes.last_request += 1;
            let request = lanes.last_request;
            lanes.waiting.insert(request, (agent, sender));
            (lane, request)
        };
        let _forget = Forget {
            lane: self,
            request,
        };
        let question = v1::FileRequest {
            request,
            framework: range.framework.0,
            task: range.task,
            path: range.path,
            offset: range.offset,
            length: range.length.min(RANGE_BYTES_MAX),
        };
        if lane.is_closed() || lane.send(question).await.is_err() {
            return Err(FileError::NotConnected(agent));
        }
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(chunk)) if chunk.error.is_empty() => Ok(FileBytes {
                data: chunk.data,
                size: chunk.size,
            }),
            Ok(Ok(chunk)) => Err(FileError::Refused(chunk.error)),
            Ok(Err(_)) => Err(FileError::NotConnected(agent)),
            Err(_) => Err(FileError::TimedOut(agent)),
        }
    }
}

/// Takes a question back when its asker goes away or gives up.
struct Forget<'a> {
    lane: &'a FileLane,
    request: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.lane.lanes().waiting.remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Range {
        Range {
            framework: FrameworkId(1),
            task: "t".into(),
            path: "stdout".into(),
            offset: 0,
            length: 10,
        }
    }

    #[tokio::test]
    async fn answers_reach_the_asker() {
        let lane = FileLane::default();
        assert_eq!(
            lane.read(AgentId(1), range()).await,
            Err(FileError::NotConnected(AgentId(1)))
        );
        let mut requests = lane.attach(AgentId(1));
        let answer = async {
            let request = requests.recv().await.unwrap();
            assert_eq!(request.length, 10);
            let chunk = |data: &[u8]| v1::FileChunk {
                request: request.request,
                data: data.to_vec(),
                size: 5,
                ..Default::default()
            };
            lane.answer(AgentId(2), chunk(b"forged"));
            lane.answer(AgentId(1), chunk(b"hello"));
        };
        let (read, ()) = tokio::join!(lane.read(AgentId(1), range()), answer);
        assert_eq!(
            read,
            Ok(FileBytes {
                data: b"hello".to_vec(),
                size: 5
            })
        );
        assert!(lane.lanes().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_silent_agent_is_given_up_and_forgotten() {
        let lane = FileLane {
            timeout: Duration::from_millis(5),
            ..FileLane::default()
        };
        let _requests = lane.attach(AgentId(1));
        assert_eq!(
            lane.read(AgentId(1), range()).await,
            Err(FileError::TimedOut(AgentId(1)))
        );
        assert!(lane.lanes().waiting.is_empty());
    }
}
