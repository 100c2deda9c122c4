//! Logs of hosted schedulers and of their executors on this agent: one file per framework, one JSON object per line, rotated.
//!
//! Invariants: a file has at most [`LOG_BYTES_MAX`], and one older one is kept; text of guests is
//! escaped by JSON, so that no line can pretend to be another or move a terminal's cursor.

use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tessera_types::{FrameworkId, LogLevel, LogLine};

/// Bytes of a log before it is rotated; with the older one it bounds what a framework keeps on disk.
pub const LOG_BYTES_MAX: u64 = 8 << 20;

/// Name of the log in a framework's folder.
pub const LOG_FILE: &str = "scheduler.log";

/// The folder of frameworks.
#[derive(Debug)]
pub struct SchedulerLogs {
    frameworks: PathBuf,
}

#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    turn: u64,
    level: LogLevel,
    target: &'a str,
    text: &'a str,
    /// Whose line it is, when it is not the scheduler's.
    #[serde(skip_serializing_if = "str::is_empty")]
    executor: &'a str,
    #[serde(skip_serializing_if = "<[(String, String)]>::is_empty")]
    fields: &'a [(String, String)],
}

impl SchedulerLogs {
    /// Open or make the folder.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(work_dir: &Path) -> io::Result<Self> {
        let frameworks = work_dir.join("frameworks");
        fs::create_dir_all(&frameworks)?;
        Ok(Self { frameworks })
    }

    /// The folder of a framework.
    #[must_use]
    pub fn dir(&self, framework: FrameworkId) -> PathBuf {
        self.frameworks.join(framework.to_string())
    }

    /// Append lines of the scheduler, or of an executor with an id, and a remark on how many were dropped before they came here.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn append(
        &self,
        framework: FrameworkId,
        executor: &str,
        lines: &[LogLine],
        dropped: u64,
    ) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            write_line(&mut text, executor, line)?;
        }
        if let (Some(last), true) = (lines.last(), dropped > 0) {
            let remark = LogLine {
                level: LogLevel::Warn,
                target: "host".into(),
                text: format!("{dropped} lines over the limit of a turn were dropped"),
                fields: Vec::new(),
                ..last.clone()
            };
            write_line(&mut text, executor, &remark)?;
        }
        let mut file = self.file_for(framework, text.len() as u64)?;
        file.write_all(&text)
    }

    fn file_for(&self, framework: FrameworkId, more: u64) -> io::Result<File> {
        let dir = self.dir(framework);
        let path = dir.join(LOG_FILE);
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let file = match open() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&dir)?;
                open()?
            }
            Err(error) => return Err(error),
        };
        let size = file.metadata()?.len();
        if size > 0 && size + more > LOG_BYTES_MAX {
            fs::rename(&path, dir.join(format!("{LOG_FILE}.1")))?;
            return open();
        }
        Ok(file)
    }
}

fn write_line(text: &mut Vec<u8>, executor: &str, line: &LogLine) -> io::Result<()> {
    let json = Line {
        at_ms: line.at_ms,
        turn: line.turn.0,
        level: line.level,
        target: &line.target,
        text: &line.text,
        executor,
        fields: &line.fields,
    };
    serde_json::to_writer(&mut *text, &json)?;
    text.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::TurnNumber;

    fn line(text: &str) -> LogLine {
        LogLine {
            at_ms: 1,
            turn: TurnNumber(2),
            level: LogLevel::Info,
            target: "t".into(),
            text: text.into(),
            fields: Vec::new(),
        }
    }

    #[test]
    fn lines_are_escaped_counted_and_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let logs = SchedulerLogs::open(dir.path()).unwrap();
        let id = FrameworkId(3);
        logs.append(id, "", &[line("a\n\u{1b}[2J")], 5).unwrap();
        let path = logs.dir(id).join(LOG_FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            !text.contains('\u{1b}') && text.contains("5 lines"),
            "{text}"
        );
        let large = line(&"x".repeat(1 << 20));
        for _ in 0..20 {
            logs.append(id, "e", std::slice::from_ref(&large), 0).unwrap();
        }
        assert!(path.metadata().unwrap().len() <= LOG_BYTES_MAX);
        let files = fs::read_dir(logs.dir(id)).unwrap().count();
        assert_eq!(files, 2);
    }
}
