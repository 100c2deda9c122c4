//! What a guest logs during a call, bounded.
//!
//! Invariants: lines, bytes and bytes of one line stay within the limits of the guest's role; control characters never get through, so that a log can be shown on
//! a terminal. What is dropped is counted. This file must never write anywhere.

use crate::limits::LogLimits;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_types::{LogLevel, LogLine, TimeMs, TurnNumber};

/// Fields of one line that are kept.
const FIELDS_MAX: usize = 32;

/// What one call logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logged {
    /// The lines, in order.
    pub lines: Vec<LogLine>,
    /// Lines that were over the limit of the call.
    pub dropped: u64,
}

/// Which of the two standard streams a text came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Default)]
struct Buffer {
    limits: LogLimits,
    logged: Logged,
    bytes: usize,
    at_ms: TimeMs,
    turn: TurnNumber,
    /// Unfinished lines of stdout and stderr.
    partial: [Vec<u8>; 2],
}

/// The log of one instance, shared with its standard streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Buffer>>);

/// `text` cut to `max` bytes at a character, with control characters replaced by spaces.
fn clean(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end]
        .chars()
        .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
        .collect()
}

impl Log {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on, this is kept.
    pub(crate) fn set_limits(&self, limits: LogLimits) {
        self.buffer().limits = limits;
    }

    /// From here on, lines belong to this turn.
    pub(crate) fn begin(&self, at_ms: TimeMs, turn: TurnNumber) {
        let mut buffer = self.buffer();
        (buffer.at_ms, buffer.turn) = (at_ms, turn);
    }

    pub(crate) fn write(
        &self,
        level: LogLevel,
        target: &str,
        text: &str,
        fields: &[(String, String)],
    ) {
        let limits = self.buffer().limits;
        let mut rest = limits.line_bytes;
        let mut take = |text: &str| {
            let part = clean(text, rest);
            rest -= part.len();
            part
        };
        let (target, text) = (take(target), take(text));
        let fields = fields
            .iter()
            .take(FIELDS_MAX)
            .map(|(k, v)| (take(k), take(v)))
            .collect();
        let size = limits.line_bytes - rest;
        let mut buffer = self.buffer();
        if buffer.logged.lines.len() >= limits.lines || buffer.bytes + size > limits.bytes
        {
            buffer.logged.dropped += 1;
            return;
        }
        buffer.bytes += size;
        let (at_ms, turn) = (buffer.at_ms, buffer.turn);
        buffer.logged.lines.push(LogLine {
            at_ms,
            turn,
            level,
            target,
            text,
            fields,
        });
    }

    /// What the guest said last on its standard error, hints on how to debug left out; after a panic, where
    /// it was and the whole message.
    pub(crate) fn last_stderr(&self) -> Option<String> {
        const PANICKED: &str = "panicked at ";
        let buffer = self.buffer();
        let said = buffer.logged.lines.iter().filter(|line| line.target == "stderr");
        let said: Vec<&str> = said
            .map(|line| line.text.trim())
            .filter(|text| !text.is_empty() && !text.starts_with("note: "))
            .collect();
        let panic = said.iter().enumerate().rev().find_map(|(at, text)| Some((at, text.find(PANICKED)?)));
        let Some((at, from)) = panic else {
            return said.last().map(|text| (*text).to_owned());
        };
        let place = said.get(at)?.get(from..)?;
        let message = said.get(at + 1..)?.join(" ");
        Some(format!("{place} {message}").trim_end().to_owned())
    }

    /// Whether another line would be kept. Who asks and hears no does not write: that line counts as
    /// dropped.
    pub(crate) fn has_room(&self) -> bool {
        let mut buffer = self.buffer();
        let limits = buffer.limits;
        let room = buffer.logged.lines.len() < limits.lines && buffer.bytes < limits.bytes;
        buffer.logged.dropped += u64::from(!room);
        room
    }

    /// Bytes that the guest printed. Each line of text becomes one line of the log.
    pub(crate) fn print(&self, stream: Stream, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = part.strip_suffix(b"\n");
            {
                let mut buffer = self.buffer();
                let line_bytes = buffer.limits.line_bytes;
                let partial = &mut buffer.partial[stream as usize];
                let room = line_bytes.saturating_sub(partial.len());
                let more = line.unwrap_or(part);
                partial.extend_from_slice(&more[..more.len().min(room)]);
            }
            if line.is_some() {
                self.end_line(stream);
            }
        }
    }

    fn end_line(&self, stream: Stream) {
        let line = std::mem::take(&mut self.buffer().partial[stream as usize]);
        let (level, target) = match stream {
            Stream::Stdout => (LogLevel::Info, "stdout"),
            Stream::Stderr => (LogLevel::Warn, "stderr"),
        };
        self.write(level, target, &String::from_utf8_lossy(&line), &[]);
    }

    /// What was logged since the last time, unfinished lines included.
    pub(crate) fn take(&self) -> Logged {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.buffer().partial[stream as usize].is_empty() {
                self.end_line(stream);
            }
        }
        let mut buffer = self.buffer();
        buffer.bytes = 0;
        std::mem::take(&mut buffer.logged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::limits;

    fn texts(log: &Log) -> Vec<String> {
        log.take().lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn printed_text_becomes_lines() {
        let log = Log::default();
        log.print(Stream::Stdout, b"a\nb");
        log.print(Stream::Stderr, b"x");
        log.print(Stream::Stdout, b"c\n\n");
        assert_eq!(texts(&log), ["a", "bc", "", "x"]);
        assert_eq!(texts(&log), Vec::<String>::new());
    }

    #[test]
    fn lines_are_cut_and_cleaned() {
        let log = Log::default();
        log.write(LogLevel::Info, "t", "\u{1b}[31mred\u{7}", &[]);
        log.write(
            LogLevel::Info,
            "t",
            &"ä".repeat(9_000),
            &[("k".into(), "v".repeat(9_000))],
        );
        log.print(Stream::Stdout, &vec![b'x'; 1 << 20]);
        let lines = log.take().lines;
        assert_eq!(lines[0].text, " [31mred ");
        let size = |line: &LogLine| {
            let fields: usize = line.fields.iter().map(|(k, v)| k.len() + v.len()).sum();
            line.target.len() + line.text.len() + fields
        };
        assert!(
            lines
                .iter()
                .all(|line| size(line) <= limits::LOG_LINE_BYTES_MAX)
        );
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let log = Log::default();
        for _ in 0..limits::TURN_LOG_LINES_MAX + 7 {
            log.write(LogLevel::Info, "t", "x", &[]);
        }
        assert!(!log.has_room());
        let logged = log.take();
        assert_eq!(
            (logged.lines.len(), logged.dropped),
            (limits::TURN_LOG_LINES_MAX, 8)
        );
        for _ in 0..1_000 {
            log.write(LogLevel::Info, "", &"x".repeat(8 << 10), &[]);
        }
        let logged = log.take();
        assert_eq!((logged.lines.len(), logged.dropped), (128, 872));
    }
}
