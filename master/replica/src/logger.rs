//! Passes raft's own log lines on to `tracing`.
//!
//! Owns: the slog drain. Invariants: a line that nobody listens to is not formatted.
//! Must never: fail or block.

use std::fmt::Write as _;

use slog::{KV as _, Level, OwnedKVList, Record};

/// The logger given to raft.
pub(crate) fn raft_logger() -> slog::Logger {
    slog::Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

struct Pairs(String);

impl slog::Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}

fn line(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut pairs = Pairs(record.msg().to_string());
    // A value that cannot be formatted is left out of the line.
    let _ = record.kv().serialize(record, &mut pairs);
    let _ = values.serialize(record, &mut pairs);
    pairs.0
}

impl slog::Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: "raft", "{}", line(record, values))
            }
            Level::Warning => tracing::warn!(target: "raft", "{}", line(record, values)),
            Level::Info => tracing::info!(target: "raft", "{}", line(record, values)),
            Level::Debug => tracing::debug!(target: "raft", "{}", line(record, values)),
            Level::Trace => tracing::trace!(target: "raft", "{}", line(record, values)),
        }
        Ok(())
    }
}
