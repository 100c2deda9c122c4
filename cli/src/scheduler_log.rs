//! Lines of a scheduler's log, for people: agents keep them as JSON, one object per line.
//!
//! Must never drop a line that it does not understand.

use crate::output;
use serde::Deserialize;

/// A line, as agents write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    at_ms: u64,
    turn: u64,
    level: String,
    target: String,
    text: String,
    /// Whose it is, when it is not the scheduler's.
    executor: String,
    fields: Vec<(String, String)>,
}

/// Lines of what comes piece by piece.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The lines that are whole with this piece.
    pub fn push(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        self.partial.extend_from_slice(piece);
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.partial.drain(..end).collect();
        whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    /// What has no end yet.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial)).filter(|rest| !rest.is_empty())
    }
}

/// `2026-01-31 23:59:59Z  turn 7  WARN scheduler: text name=value`, on request without time and turn; what is no line
/// of a log is shown as it is, and an empty one not at all.
pub fn sentence(line: &[u8], when: bool) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let Ok(line) = serde_json::from_str::<Line>(&text) else {
        return Some(output::clean(text.trim_end()));
    };
    if line.text.trim().is_empty() && line.fields.is_empty() {
        return None;
    }
    let mut shown = String::new();
    if when {
        shown.push_str(&format!("{}  turn {}  ", output::time(line.at_ms), line.turn));
    }
    shown.push_str(&line.level.to_uppercase());
    if !line.executor.is_empty() {
        shown.push_str(&format!(" executor {}", line.executor));
    }
    shown.push_str(&format!(" {}: {}", line.target, line.text));
    for (name, value) in line.fields {
        shown.push_str(&format!(" {name}={value}"));
    }
    Some(output::clean(&shown))
}

#[cfg(test)]
mod tests {
    use super::{Lines, sentence};

    #[test]
    fn log_lines_are_readable() {
        let line = b"{\"at_ms\":1735689599999,\"turn\":7,\"level\":\"warn\",\"target\":\"scheduler\",\"text\":\"a\\u001bb\",\"fields\":[[\"n\",\"1\"]]}\n";
        assert_eq!(sentence(line, false).as_deref(), Some("WARN scheduler: a b n=1"));
        assert_eq!(sentence(line, true).as_deref(), Some("2024-12-31 23:59:59Z  turn 7  WARN scheduler: a b n=1"));
        assert_eq!(sentence(b"{\"level\":\"info\",\"executor\":\"x\",\"target\":\"t\",\"text\":\"a\"}", false).as_deref(), Some("INFO executor x t: a"));
        assert_eq!(sentence(b"not json\n", true).as_deref(), Some("not json"));
        assert_eq!(sentence(b"{\"level\":\"warn\",\"target\":\"stderr\",\"text\":\"\"}\n", true), None);
    }

    #[test]
    fn pieces_become_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), [b"a\n".to_vec()]);
        assert!(lines.push(b"").is_empty());
        assert_eq!(lines.push(b"c\n\nd"), [b"bc\n".to_vec(), b"\n".to_vec()]);
        assert_eq!((lines.rest(), lines.rest()), (Some(b"d".to_vec()), None));
    }
}
