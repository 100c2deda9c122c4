//! How much of a guest's log leaves the worker.
//!
//! Invariants: on average not more than [`BYTES_PER_S`] of one framework; what is not passed on is
//! counted and told with the next lines that are. This file must never look into a line.

use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tessera_wire::v1;
use tessera_wit_host::Logged;

/// Bytes per second and framework: what an agent's disk and a reader can follow.
const BYTES_PER_S: u64 = 256 << 10;
/// Bytes at once: a whole turn's log.
const BURST_BYTES: u64 = 2 << 20;
/// What a line costs beside its text.
const LINE_BYTES: u64 = 32;

/// The gate of one guest's log.
#[derive(Debug)]
pub struct LogGate {
    framework: u64,
    /// Whose the log is; empty for the scheduler.
    executor: String,
    allowance: u64,
    refilled: Option<Instant>,
    dropped: u64,
}

impl LogGate {
    /// A gate that is fully open.
    #[must_use]
    pub const fn new(framework: u64) -> Self {
        Self::of_executor(framework, String::new())
    }

    /// Likewise for a custom executor of the framework.
    #[must_use]
    pub const fn of_executor(framework: u64, executor: String) -> Self {
        Self {
            framework,
            executor,
            allowance: BURST_BYTES,
            refilled: None,
            dropped: 0,
        }
    }

    /// Hand on what may be sent of this; `send` says whether it was taken.
    pub fn say(&mut self, mut logged: Logged, send: impl FnOnce(v1::GuestLog) -> bool) {
        // Lines of `init` belong to no turn and so have no time: they get this machine's.
        for line in logged.lines.iter_mut().filter(|line| line.at_ms == 0) {
            line.at_ms = now_ms();
        }
        if let Some(log) = self.pass(logged, Instant::now()) {
            let (lines, before) = (log.lines.len() as u64, log.dropped);
            if !send(log) {
                self.dropped += before + lines;
            }
        }
    }

    /// What may be sent of this; none when there is nothing to say.
    fn pass(&mut self, logged: Logged, now: Instant) -> Option<v1::GuestLog> {
        self.dropped += logged.dropped;
        if let Some(then) = self.refilled {
            let ms = u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(0);
            let more = ms.saturating_mul(BYTES_PER_S) / 1_000;
            self.allowance = self.allowance.saturating_add(more).min(BURST_BYTES);
        }
        self.refilled = Some(now);
        let mut lines = Vec::with_capacity(logged.lines.len());
        for line in &logged.lines {
            let fields: usize = line
                .fields
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum();
            let size = (line.text.len() + line.target.len() + fields) as u64 + LINE_BYTES;
            if size > self.allowance {
                self.dropped += 1;
                continue;
            }
            self.allowance -= size;
            lines.push(line.into());
        }
        if lines.is_empty() {
            return None;
        }
        let dropped = std::mem::take(&mut self.dropped);
        Some(v1::GuestLog {
            framework: self.framework,
            lines,
            dropped,
            executor: self.executor.clone(),
        })
    }
}

/// Time of this machine, for log lines that belong to no turn.
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tessera_types::{LogLevel, LogLine, TurnNumber};

    fn logged(lines: usize) -> Logged {
        let line = LogLine {
            at_ms: 0,
            turn: TurnNumber(1),
            level: LogLevel::Info,
            target: String::new(),
            text: "x".repeat(8_000),
            fields: vec![],
        };
        Logged {
            lines: vec![line; lines],
            dropped: 0,
        }
    }

    #[test]
    fn a_flood_is_cut_and_counted_and_the_gate_opens_again() {
        let mut gate = LogGate::new(1);
        let start = Instant::now();
        let first = gate.pass(logged(1_000), start).unwrap();
        assert!(
            (200..300).contains(&first.lines.len()),
            "{}",
            first.lines.len()
        );
        assert_eq!(first.dropped, 1_000 - first.lines.len() as u64);
        assert_eq!(gate.pass(logged(10), start), None);
        let later = gate
            .pass(logged(100), start + Duration::from_secs(1))
            .unwrap();
        assert!(
            (30..35).contains(&later.lines.len()),
            "{}",
            later.lines.len()
        );
        assert_eq!(later.dropped, 10 + 100 - later.lines.len() as u64);
    }
}
