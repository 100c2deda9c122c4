//! What an agent counts of itself and its workers, and the page that it serves to whoever has the token.
//!
//! Invariants: the page is served apart from the loop, which is asked for a look at its tables and nothing else; control
//! groups are read by whoever asks, not by the loop. Must never be needed for the agent to work, or listen where
//! nobody said.

use crate::input::Input;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_agent_core::WorkerKey;
use tessera_oci::Cgroups;
use tessera_telemetry::export::Spans;
use tessera_telemetry::{Counter, Histogram, Name, Page, Process, Value, Who};
use tessera_types::{Quantities, TaskState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Bytes of a request's head: what collects metrics sends a few hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long a request may take from the first byte to the last of its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Requests at once: those who collect are few.
const REQUESTS_MAX: usize = 16;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    process: Process,
    /// Sessions that began.
    pub sessions: Counter,
    /// Rounds of the loop.
    pub rounds: Histogram,
    /// Writes of the checkpoint.
    pub syncs: Histogram,
    /// Turns that workers sent.
    pub turns: Counter,
    /// How long they took in their schedulers.
    pub turn_seconds: Histogram,
    /// Spans on their way.
    pub spans: Arc<Spans>,
    /// Instances that failed, the component being to blame.
    pub failures_of_guests: Counter,
    /// Instances that failed for another reason.
    pub failures_of_others: Counter,
    /// Workers whose link ended.
    pub workers_lost: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            process: Process::started(),
            sessions: Counter::new(),
            rounds: Histogram::new(),
            syncs: Histogram::new(),
            turns: Counter::new(),
            turn_seconds: Histogram::new(),
            spans: Arc::default(),
            failures_of_guests: Counter::new(),
            failures_of_others: Counter::new(),
            workers_lost: Counter::new(),
        }
    }
}

/// A look at the loop's tables.
#[derive(Debug, Default)]
pub struct Look {
    /// Its number; 0 before it has one.
    pub agent: u64,
    /// Its name.
    pub hostname: String,
    /// It has a session.
    pub connected: bool,
    /// Tasks by state.
    pub tasks: BTreeMap<TaskState, u64>,
    /// Executors.
    pub executors: u64,
    /// What it offers.
    pub total: Quantities,
    /// Bytes of the checkpoint.
    pub checkpoint: u64,
    /// Schedulers that it is to host.
    pub schedulers: u64,
    /// Workers and their control groups.
    pub workers: Vec<(WorkerKey, String)>,
}

/// Serves the page until the process ends.
pub struct Server {
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Asks the loop.
    pub inputs: mpsc::Sender<Input>,
    /// Where numbers of control groups are.
    pub cgroups: Cgroups,
    /// The token, as a header has it.
    pub authorization: String,
}

impl Server {
    /// Serve for ever.
    pub async fn run(self, listener: TcpListener) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::debug!(%error, "a connection for metrics was not taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let this = Arc::clone(&this);
            // Ends with its answer, or its time.
            tokio::spawn(async move {
                let answered = tokio::time::timeout(ANSWER_MAX, this.answer(connection)).await;
                if let Ok(Err(error)) = answered {
                    tracing::trace!(%error, "a request for metrics broke off");
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if head.len() >= HEAD_BYTES_MAX || connection.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let (status, body) = match refusal(&String::from_utf8_lossy(&head), &self.authorization) {
            Some(refused) => refused,
            None => match self.page().await {
                Some(page) => ("200 OK", page),
                None => ("503 Service Unavailable", "the agent is ending\n".to_owned()),
            },
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(body.as_bytes()).await?;
        connection.shutdown().await
    }

    async fn page(&self) -> Option<String> {
        let (asker, asked) = oneshot::channel();
        self.inputs.send(Input::Look(asker)).await.ok()?;
        let look = asked.await.ok()?;
        let (metrics, cgroups) = (Arc::clone(&self.metrics), self.cgroups.clone());
        tokio::task::spawn_blocking(move || write(&metrics, &look, &cgroups)).await.ok()
    }
}

/// What speaks against a request: it has to ask for the page, with the token.
fn refusal(head: &str, authorization: &str) -> Option<(&'static str, String)> {
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let said = lines.filter_map(|line| line.split_once(':'));
    let mut said = said.filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.trim());
    if !said.any(|value| same(value.as_bytes(), authorization.as_bytes())) {
        return Some(("401 Unauthorized", "the cluster's token is needed: Authorization: Bearer …\n".to_owned()));
    }
    if path.split('?').next() != Some("/metrics") {
        return Some(("404 Not Found", "only /metrics is here\n".to_owned()));
    }
    (method != "GET").then(|| ("405 Method Not Allowed", "GET\n".to_owned()))
}

/// Whether both are the same, in a time that says nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn write(metrics: &Metrics, look: &Look, cgroups: &Cgroups) -> String {
    let mut page = Page::new(Who::Agent);
    metrics.process.write(&mut page);
    let id = if look.agent == 0 { String::new() } else { format!("a{}", look.agent) };
    page.whole(Name::AgentInfo, &[&id, &look.hostname], 1);
    page.whole(Name::AgentConnected, &[], u64::from(look.connected));
    page.whole(Name::AgentSessions, &[], metrics.sessions.get());
    for (state, count) in &look.tasks {
        page.whole(Name::AgentTasks, &[&state.to_string()], *count);
    }
    page.whole(Name::AgentExecutors, &[], look.executors);
    page.histogram(Name::AgentRoundSeconds, &[], &metrics.rounds);
    page.histogram(Name::AgentSyncSeconds, &[], &metrics.syncs);
    page.whole(Name::AgentCheckpoint, &[], look.checkpoint);
    page.set(Name::AgentCpus, &[], Value::Milli(look.total.cpus_milli));
    page.whole(Name::AgentMemory, &[], u64::try_from(look.total.mem_mib).unwrap_or(0) << 20);
    if let Some(use_of) = cgroups.usage("") {
        page.set(Name::AgentGroupCpu, &[], Value::Micro(use_of.cpu_us));
        page.whole(Name::AgentGroupMemory, &[], use_of.memory_bytes);
    }
    let mut kinds: BTreeMap<&str, u64> = [("schedulers", 0), ("tasks", 0)].into();
    for (key, group) in &look.workers {
        *kinds.entry(key.kind.name()).or_default() += 1;
        // One of an older engine stands beside the present one until its last guest has ended.
        if key.old.is_none()
            && let Some(use_of) = cgroups.usage(group)
        {
            let labels = [key.tenant.as_str(), key.kind.name()];
            page.set(Name::WorkerCpu, &labels, Value::Micro(use_of.cpu_us));
            page.whole(Name::WorkerMemory, &labels, use_of.memory_bytes);
        }
    }
    for (kind, count) in kinds {
        page.whole(Name::Workers, &[kind], count);
    }
    page.whole(Name::WorkerInstances, &[], look.schedulers);
    page.whole(Name::WorkerTurns, &[], metrics.turns.get());
    page.histogram(Name::WorkerTurnSeconds, &[], &metrics.turn_seconds);
    metrics.spans.write(&mut page);
    page.whole(Name::WorkerFailures, &["true"], metrics.failures_of_guests.get());
    page.whole(Name::WorkerFailures, &["false"], metrics.failures_of_others.get());
    page.whole(Name::WorkersLost, &[], metrics.workers_lost.get());
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_is_there_and_only_with_the_token() {
        let token = "Bearer secret";
        let with = |first: &str, header: &str| format!("{first} HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n");
        for (head, status) in [
            (with("GET /metrics", "AUTHORIZATION: Bearer secret"), None),
            (with("GET /metrics?x=y", "authorization:Bearer secret"), None),
            (with("GET /metrics", "authorization: Bearer secreT"), Some("401 Unauthorized")),
            (with("GET /metrics", "authorization: Bearer secret2"), Some("401 Unauthorized")),
            (with("GET /metrics", "x: y"), Some("401 Unauthorized")),
            (with("GET /", "authorization: Bearer secret"), Some("404 Not Found")),
            (with("POST /metrics", "authorization: Bearer secret"), Some("405 Method Not Allowed")),
            (String::new(), Some("401 Unauthorized")),
        ] {
            assert_eq!(refusal(&head, token).map(|(status, _)| status), status, "{head}");
        }
    }

    #[test]
    fn what_is_not_there_yet_makes_a_page_all_the_same() {
        let text = write(&Metrics::default(), &Look::default(), &Cgroups::from_mounts("", "t"));
        let families = tessera_telemetry::parse(&text).unwrap();
        assert!(families.iter().any(|family| family.name == Name::AgentConnected.row().name && family.samples.len() == 1));
    }
}
