//! The workers of this agent: having them, talking to them, and what of their talk is not the core's.
//!
//! Invariants: a link is given up together with its process, so that what is reported lost is gone; a
//! worker of another engine is never started, and its schedulers are not heard; the log of guests never
//! holds up the loop. This file must never decide what a worker runs.

use crate::input::Input;
use crate::scheduler_log::SchedulerLogs;
use crate::worker_link::{self, Link, LinkEvent, WorkerPaths};
use crate::worker_room::{GIVE_BACK_AFTER, RoomMaker, Rooms};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;
use tessera_agent_core::{WorkerKey, WorkerKind, WorkerLoad};
use tessera_oci::process;
use tessera_types::{FrameworkId, LogLine};
use tessera_wire::v1;
use tokio::sync::{Semaphore, mpsc};

/// Link events that wait for the loop; readers of links wait when it is full.
pub const EVENTS_MAX: usize = 1_024;
/// How long a worker may take from connection to greeting: it needs no more than a free thread.
const GREETING_WITHIN: Duration = Duration::from_secs(20);
/// How long a worker that was asked to end may take: it has nothing to do but to exit.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Workers that are started at once: each takes a core for some ten milliseconds, and more would only
/// make each other late.
const STARTS_MAX: usize = 4;
/// Log messages that wait for the disk; more are dropped and counted.
const LOGS_MAX: usize = 1_024;

/// All workers.
pub struct Workers {
    work_dir: PathBuf,
    bin_dir: PathBuf,
    rooms: Rooms,
    starts: Arc<Semaphore>,
    links: BTreeMap<WorkerKey, Link>,
    events: mpsc::Sender<(WorkerKey, LinkEvent)>,
    inputs: mpsc::Sender<Input>,
    logs: blocking::SyncSender<v1::GuestLog>,
    logs_dropped: u64,
}

impl Workers {
    /// No workers yet.
    ///
    /// # Errors
    /// When the thread for logs cannot be started.
    pub fn new(
        work_dir: PathBuf,
        bin_dir: PathBuf,
        rooms: Rooms,
        logs: Arc<SchedulerLogs>,
        events: mpsc::Sender<(WorkerKey, LinkEvent)>,
        inputs: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let (sender, lines) = blocking::sync_channel(LOGS_MAX);
        // Ends with the sender, that is with the agent's loop.
        std::thread::Builder::new()
            .name("guest-logs".into())
            .spawn(move || write_logs(&logs, &lines))?;
        Ok(Self {
            work_dir,
            bin_dir,
            rooms,
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
            links: BTreeMap::new(),
            events,
            inputs,
            logs: sender,
            logs_dropped: 0,
        })
    }

    fn paths(&self, key: &WorkerKey) -> WorkerPaths {
        WorkerPaths::new(&self.work_dir, &self.bin_dir, key, self.rooms.engine_tag())
    }

    /// Connect to a worker that may be there from before, or start it; one of another engine is not
    /// started.
    pub fn ensure(&mut self, key: WorkerKey) {
        let (paths, room) = (self.paths(&key), self.rooms.maker(&key));
        let (events, inputs) = (self.events.clone(), self.inputs.clone());
        let starts = Arc::clone(&self.starts);
        tokio::spawn(async move {
            if worker_link::adopt(&key, &paths, &events).await {
                return;
            }
            let started = async {
                if key.old.is_some() {
                    return Err("it is of another engine, and ended".to_owned());
                }
                let _permit = starts.acquire().await.map_err(|closed| closed.to_string())?;
                start(&key, &paths, room, &events).await
            };
            if let Err(error) = started.await {
                tracing::warn!(tenant = key.tenant, kind = key.kind.name(), error, "no worker");
                // The loop is gone only when the agent ends.
                let _ = inputs.send(Input::NoWorker(key)).await;
            }
        });
    }

    /// A link stands.
    pub fn on_connected(&mut self, key: WorkerKey, link: Link) {
        tracing::info!(
            tenant = key.tenant,
            kind = key.kind.name(),
            pid = link.process.pid,
            adopted = link.adopted,
            "a worker is connected"
        );
        let due = Input::GreetingDue(key.clone(), link.process_name());
        self.links.insert(key, link);
        self.remind(GREETING_WITHIN, due);
    }

    /// Tell the loop after a time.
    fn remind(&self, after: Duration, due: Input) {
        let inputs = self.inputs.clone();
        // Ends by itself, or with the loop that it reports to.
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = inputs.send(due).await;
        });
    }

    /// A worker greets; the name of its process.
    pub fn on_greeting(&mut self, key: &WorkerKey) -> Option<String> {
        let link = self.links.get_mut(key)?;
        link.greeted = true;
        Some(link.process_name())
    }

    /// End this process of a worker if it is connected and has not greeted: its link then breaks.
    pub fn end_if_silent(&self, key: &WorkerKey, process: &str) {
        if let Some(link) = self.links.get(key)
            && !link.greeted
            && link.process_name() == process
        {
            end_stuck(key, link, "a worker does not greet; it is ended");
        }
    }

    /// End a worker that nothing needs.
    pub fn stop(&mut self, key: &WorkerKey) {
        self.send(key, v1::to_worker::Message::Shutdown(v1::Shutdown {}));
        if let Some(link) = self.links.get_mut(key) {
            link.ending = true;
            let due = Input::EndDue(key.clone(), link.process_name());
            self.remind(END_WITHIN, due);
        }
    }

    /// End this process of a worker if it is still there although it was asked to end.
    pub fn end_if_lingering(&self, key: &WorkerKey, process: &str) {
        if let Some(link) = self.links.get(key)
            && link.ending
            && link.process_name() == process
        {
            end_stuck(key, link, "a worker does not end; it is ended");
        }
    }

    /// End a worker that was just started and has another engine than this agent knows: its link then
    /// breaks, and another one is tried after a pause.
    pub fn end_foreign(&self, key: &WorkerKey, engine: &str) {
        if let Some(link) = self.links.get(key) {
            tracing::error!(engine, "tessera-worker was replaced: restart the agent, which moves guests to the new one");
            end_stuck(key, link, "a worker has another engine; it is ended");
        }
    }

    /// Have room for what a worker hosts or is about to.
    pub fn size(&mut self, key: &WorkerKey, load: WorkerLoad) {
        if let Some(link) = self.links.get(key)
            && self.rooms.size(key, &link.process, load)
        {
            self.remind(GIVE_BACK_AFTER, Input::RoomDue(key.clone()));
        }
    }

    /// Take back room that a worker does not need.
    pub fn give_back(&mut self, key: &WorkerKey) {
        let process = self.links.get(key).map(|link| &link.process);
        self.rooms.give_back(key, process);
    }

    /// Have room for an image that a worker is about to load.
    pub fn expect_image(&mut self, key: &WorkerKey, image: Option<PathBuf>) {
        let (Some(link), Some(path)) = (self.links.get(key), image) else {
            return;
        };
        let bytes = std::fs::metadata(&path).map_or(0, |data| data.len());
        if self.rooms.expect_image(key, &link.process, path, bytes) {
            self.remind(GIVE_BACK_AFTER, Input::RoomDue(key.clone()));
        }
    }

    /// Whether what a worker says of this kind counts: schedulers of another engine are built anew by the
    /// present one, and what the old ones say comes too late.
    #[must_use]
    pub fn is_heard(key: &WorkerKey) -> bool {
        key.old.is_none() || key.kind == WorkerKind::Tasks
    }

    /// A link broke: whatever is left of the process must not go on. Whether nobody had asked it to end.
    pub fn on_broken(&mut self, key: &WorkerKey) -> bool {
        let Some(link) = self.links.remove(key) else {
            return false;
        };
        tracing::info!(
            tenant = key.tenant,
            kind = key.kind.name(),
            pid = link.process.pid,
            asked = link.ending,
            "a worker is gone"
        );
        if link.ending {
            self.rooms.remove(key);
        }
        match link.process.open() {
            Ok(Some(alive)) => {
                if let Err(error) = process::signal(&alive, libc::SIGKILL) {
                    tracing::warn!(%error, pid = link.process.pid, "a worker without a link could not be ended");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a worker without a link could not be looked up"),
        }
        !link.ending
    }

    /// Workers with a link, and their control groups.
    pub fn groups(&self) -> impl Iterator<Item = (WorkerKey, String)> {
        self.links.keys().map(|key| (key.clone(), self.rooms.group(key)))
    }

    /// The link to a worker.
    #[must_use]
    pub fn link(&self, key: &WorkerKey) -> Option<&Link> {
        self.links.get(key)
    }

    /// Send to a worker. One that does not read is given up: its link then breaks.
    pub fn send(&mut self, key: &WorkerKey, message: v1::to_worker::Message) {
        let Some(link) = self.links.get(key) else {
            return;
        };
        if link.send(message) {
            return;
        }
        end_stuck(key, link, "a worker does not read; it is ended");
    }

    /// Lines of a guest, for its log.
    pub fn log(&mut self, mut log: v1::GuestLog) {
        log.dropped += std::mem::take(&mut self.logs_dropped);
        let lines = log.lines.len() as u64 + log.dropped;
        if self.logs.try_send(log).is_err() {
            self.logs_dropped += lines;
        }
    }
}

/// Make a worker's room, start it and connect to it.
async fn start(
    key: &WorkerKey,
    paths: &WorkerPaths,
    room: RoomMaker,
    events: &mpsc::Sender<(WorkerKey, LinkEvent)>,
) -> Result<(), String> {
    let made = tokio::task::spawn_blocking(move || room.make()).await;
    let isolation = made
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("making its control group and user: {error}"))?;
    let started = worker_link::start(key, paths, &isolation, events).await;
    started.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// End a worker that is of no use; what it ran is reported when its link breaks.
fn end_stuck(key: &WorkerKey, link: &Link, why: &str) {
    tracing::error!(
        tenant = key.tenant,
        kind = key.kind.name(),
        pid = link.process.pid,
        "{why}"
    );
    if let Ok(Some(stuck)) = link.process.open() {
        // If this is refused the process ended by itself, which is what is wanted.
        let _ = process::signal(&stuck, libc::SIGKILL);
    }
}

fn write_logs(logs: &SchedulerLogs, lines: &blocking::Receiver<v1::GuestLog>) {
    while let Ok(log) = lines.recv() {
        let read: Vec<LogLine> = log
            .lines
            .into_iter()
            .filter_map(|line| line.try_into().ok())
            .collect();
        if let Err(error) = logs.append(
            FrameworkId(log.framework),
            &log.executor,
            &read,
            log.dropped,
        ) {
            tracing::warn!(framework = log.framework, %error, "a framework's log could not be written");
        }
    }
}
