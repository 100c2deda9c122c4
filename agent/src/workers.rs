//! The workers of this agent: having them, talking to them, and what of their talk is not the core's.
//!
//! Invariants: a link is given up together with its process, so that what is reported lost is gone; a
//! worker of another engine is replaced; the log of guests never holds up the loop. This file must never
//! decide what a worker runs.

use crate::input::Input;
use crate::scheduler_log::SchedulerLogs;
use crate::worker_link::{self, Link, LinkEvent, WorkerPaths};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;
use tessera_agent_core::WorkerKey;
use tessera_oci::{Cgroups, process};
use tessera_types::{FrameworkId, LogLine};
use tessera_wire::v1;
use tokio::sync::mpsc;

/// Link events that wait for the loop; readers of links wait when it is full.
pub const EVENTS_MAX: usize = 1_024;
/// How long a worker may take from connection to greeting: it needs no more than a free thread.
const GREETING_WITHIN: Duration = Duration::from_secs(20);
/// Log messages that wait for the disk; more are dropped and counted.
const LOGS_MAX: usize = 1_024;

/// All workers.
pub struct Workers {
    work_dir: PathBuf,
    bin_dir: PathBuf,
    cgroups: Cgroups,
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
        cgroups: Cgroups,
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
            cgroups,
            links: BTreeMap::new(),
            events,
            inputs,
            logs: sender,
            logs_dropped: 0,
        })
    }

    fn paths(&self, key: &WorkerKey) -> WorkerPaths {
        WorkerPaths::new(&self.work_dir, &self.bin_dir, key)
    }

    /// Connect to a worker that may be there from before, or start it.
    pub fn ensure(&self, key: WorkerKey) {
        let (paths, events, inputs) = (self.paths(&key), self.events.clone(), self.inputs.clone());
        tokio::spawn(async move {
            if worker_link::adopt(&key, &paths, &events).await {
                return;
            }
            if let Err(error) = worker_link::start(&key, &paths, &events).await {
                let cause = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                tracing::warn!(tenant = key.tenant, kind = key.kind.name(), %error, cause, "no worker");
                // The loop is gone only when the agent ends.
                let _ = inputs.send(Input::NoWorker(key)).await;
            }
        });
    }

    /// A link stands.
    pub fn on_connected(&mut self, key: WorkerKey, link: Link) {
        if !link.adopted {
            self.leave_group(&key, link.process.pid);
        }
        tracing::info!(
            tenant = key.tenant,
            kind = key.kind.name(),
            pid = link.process.pid,
            adopted = link.adopted,
            "a worker is connected"
        );
        let (inputs, process) = (self.inputs.clone(), link.process_name());
        let due = Input::GreetingDue(key.clone(), process);
        self.links.insert(key, link);
        // Ends by itself, or with the loop that it reports to.
        tokio::spawn(async move {
            tokio::time::sleep(GREETING_WITHIN).await;
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

    /// Put a worker into a group of its own, out of the agent's.
    fn leave_group(&self, key: &WorkerKey, pid: i32) {
        let hash = tessera_types::Digest::of(key.tenant.as_bytes()).hex();
        let name = format!("worker-{}-{}", &hash[..16], key.kind.name());
        let cgroups = self.cgroups.clone();
        tokio::task::spawn_blocking(move || {
            let moved = cgroups
                .create_plain(&name)
                .map_err(|error| error.to_string())
                .and_then(|group| {
                    let pid = pid.to_string();
                    group
                        .procs
                        .iter()
                        .try_for_each(|path| std::fs::write(path, &pid))
                        .map_err(|e| e.to_string())
                });
            if let Err(error) = moved {
                tracing::warn!(
                    group = name,
                    error,
                    "a worker stays in the agent's control group"
                );
            }
        });
    }

    /// A link broke: whatever is left of the process must not go on.
    pub fn on_broken(&mut self, key: &WorkerKey) {
        let Some(link) = self.links.remove(key) else {
            return;
        };
        tracing::warn!(
            tenant = key.tenant,
            kind = key.kind.name(),
            pid = link.process.pid,
            "a worker is gone"
        );
        match link.process.open() {
            Ok(Some(alive)) => {
                if let Err(error) = process::signal(&alive, libc::SIGKILL) {
                    tracing::warn!(%error, pid = link.process.pid, "a worker without a link could not be ended");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a worker without a link could not be looked up"),
        }
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
        if let Err(error) = logs.append(FrameworkId(log.framework), &read, log.dropped) {
            tracing::warn!(framework = log.framework, %error, "a scheduler's log could not be written");
        }
    }
}
