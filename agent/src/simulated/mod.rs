//! Many agents in one process whose machines do not exist: they have sessions, beats and the core of every
//! agent, and start nothing.
//!
//! Invariants: towards the masters each is an agent like any other; all carry the attribute
//! [`ATTRIBUTE`], keep nothing for schedulers, and keep no records, so that another run of the same name is the
//! same machines started anew. Must never read or write a work directory.

mod machine;

use crate::config::{self, ConfigError, refuse};
use crate::masters::Masters;
use crate::session::{WithToken, keep_session};
use crate::{RunError, SESSION_EVENTS_MAX, allow_descriptors, disk};
use machine::Machine;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tessera_types::Quantities;
use tessera_wire::v1;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The name of the attribute that every simulated agent has, with the value `true`.
pub const ATTRIBUTE: &str = "simulated";

/// Agents of one process: each has a connection.
const COUNT_MAX: u32 = 50_000;

/// Characters of a name: it is a part of host names and keys.
const NAME_CHARS_MAX: usize = 32;

/// How often it is looked at how many have a session.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A new identity of each run: the machines were started anew.
const UUID_FILE: &str = "/proc/sys/kernel/random/uuid";

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimulatedConfig {
    /// How many agents.
    pub count: u32,
    /// What they are called, with a number each.
    pub name: String,
    /// Where masters listen for agents, separated by commas.
    pub masters: String,
    /// The token of the cluster.
    pub token: String,
    /// What each of them has.
    pub each: Quantities,
    /// Further attributes.
    pub attributes: Vec<(String, String)>,
    /// Tasks end by themselves after so long; without it when they are killed.
    pub task_ms: Option<u64>,
}

/// What all machines of a run have in common.
#[derive(Debug)]
struct Run {
    config: SimulatedConfig,
    boot: String,
    began: Instant,
    /// Agents that are registered in a session.
    registered: AtomicUsize,
}

impl SimulatedConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !(1..=COUNT_MAX).contains(&self.count) {
            return refuse("count", format!("1 to {COUNT_MAX}"));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > NAME_CHARS_MAX || !self.name.chars().all(word) {
            return refuse("name", format!("1 to {NAME_CHARS_MAX} letters, digits and hyphens"));
        }
        let description = self.description(0).resources();
        description.map(drop).map_err(|error| ConfigError::Field { field: error.field, rule: error.rule })
    }

    fn hostname(&self, number: u32) -> String {
        format!("{}-{number}", self.name)
    }

    fn description(&self, number: u32) -> v1::AgentDescription {
        let own = (ATTRIBUTE.to_owned(), "true".to_owned());
        let given = self.attributes.iter().filter(|(key, _)| key != ATTRIBUTE);
        let pair = |(key, value): (String, String)| v1::Pair { key, value };
        v1::AgentDescription {
            hostname: self.hostname(number),
            attributes: given.cloned().chain([own]).map(pair).collect(),
            total: Some((&self.each).into()),
            reserved: Some((&Quantities::ZERO).into()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::AgentDescription::default()
        }
    }
}

/// Run them until `shutdown`, or until one of them is refused for good. Their tasks end with the process.
///
/// # Errors
/// When a setting is refused, or the masters refuse an agent.
pub async fn simulate(config: SimulatedConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    config.check()?;
    let masters = config::masters(&config.masters)?;
    let token = WithToken::new(&config.token).map_err(|error| ConfigError::Field {
        field: "token",
        rule: error.to_string(),
    })?;
    allow_descriptors();
    let boot = std::fs::read_to_string(UUID_FILE).map_err(disk("making a boot id"))?;
    let run = Arc::new(Run {
        boot: boot.trim().to_owned(),
        began: Instant::now(),
        registered: AtomicUsize::new(0),
        config,
    });
    let mut machines = JoinSet::new();
    for number in 1..=run.config.count {
        let (sender, events) = mpsc::channel(SESSION_EVENTS_MAX);
        let masters = Masters::without_memory(masters.clone(), number as usize);
        let session = keep_session(masters, token.clone(), sender);
        let machine = Machine::new(Arc::clone(&run), number).live(events);
        // One task for both: what the session hears is decided at once, without waking another one.
        machines.spawn(async move {
            tokio::select! {
                biased;
                () = session => Ok(()),
                ended = machine => ended,
            }
        });
    }
    let watch = tokio::spawn(watch(Arc::clone(&run)));
    let ended = tokio::select! {
        ended = machines.join_next() => match ended {
            Some(Ok(ended)) => ended,
            Some(Err(_)) | None => Ok(()),
        },
        () = shutdown.cancelled() => Ok(()),
    };
    watch.abort();
    machines.shutdown().await;
    ended
}

/// Say how many have a session, whenever that has changed and settled, and when it is all of them.
async fn watch(run: Arc<Run>) {
    let count = run.config.count as usize;
    let (mut before, mut said) = (0, 0);
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        every.tick().await;
        let registered = run.registered.load(Ordering::Relaxed);
        let settled = registered == before || registered == count;
        before = registered;
        if settled && registered != said {
            said = registered;
            let seconds = run.began.elapsed().as_secs_f64();
            tracing::info!("{registered} of {count} agents are registered after {seconds:.1} s");
        }
    }
}
