//! Who did what through this master: a bounded file of lines, written beside everything else.
//!
//! Invariants: a record is one line of JSON with a number that only grows; files are at most [`FILES_MAX`] of
//! [`FILE_BYTES_MAX`] each, the oldest go. Requests never wait for the disk of the audit: what cannot be written in
//! time is counted as lost, and the next record says how many. Each master has records of what it was asked itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// The file that is written.
const FILE: &str = "audit.jsonl";

/// Bytes after which another file is begun: some 50,000 records.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Files that are kept.
const FILES_MAX: usize = 8;

/// Records that wait for the disk.
const WAITING_MAX: usize = 4_096;

/// Bytes that one question reads: then it comes back with a cursor.
const READ_BYTES_MAX: u64 = 32 << 20;

/// Bytes of one line: a path has 512, and the rest is names.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// A record that has no number yet.
#[derive(Debug)]
pub struct Draft {
    pub at_ms: u64,
    pub request_id: String,
    pub principal: String,
    pub remote: String,
    pub method: String,
    pub operation: String,
    pub object: String,
    pub status: u16,
    pub outcome: &'static str,
    pub code: Option<String>,
    pub dry_run: bool,
    pub ms: u64,
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Its number, which only grows at one master.
    pub number: u64,
    /// When the answer was given, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The request's id.
    pub request_id: String,
    /// Who asked; empty without a valid token.
    pub principal: String,
    /// The address that it came from.
    pub remote: String,
    /// The method.
    pub method: String,
    /// The operation, as this document names it; empty when there is none.
    pub operation: String,
    /// What it was done to: the path.
    pub object: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// `done`, `refused`, `failed` or `unknown`.
    pub outcome: String,
    /// The code of a refusal by this master.
    pub code: Option<String>,
    /// It was only asked what would be.
    pub dry_run: bool,
    /// How long it took.
    pub ms: u64,
    /// Records before this one that could not be written.
    #[serde(default)]
    pub lost_before: u64,
}

enum Message {
    Note(Box<Draft>),
    /// Answered when everything before is written.
    Written(oneshot::Sender<()>),
}

/// The audit of this master.
pub struct Audit {
    dir: PathBuf,
    messages: SyncSender<Message>,
    lost: AtomicU64,
}

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Pick {
    /// After this number.
    pub after: u64,
    /// By this principal.
    pub principal: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// The newest ones instead of those that come first.
    pub newest: bool,
}

/// Some records, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// They.
    pub found: VecDeque<Record>,
    /// The number after which to go on; nothing at the end.
    pub next: Option<u64>,
    /// The newest number.
    pub last: u64,
}

/// A file that is not written any more, named by its first record.
fn old_file(first: u64) -> String {
    format!("audit.{first:020}.jsonl")
}

/// Files with the numbers that they begin with, oldest first; the last one is being written.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("audit.")?.strip_suffix(".jsonl")?.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    let current = dir.join(FILE);
    if current.exists() {
        found.push((u64::MAX, current));
    }
    Ok(found)
}

/// Calls with each record of a file, until that says no; how many bytes were read. Lines that cannot be read are passed over.
fn each(path: &Path, mut with: impl FnMut(Record) -> bool) -> io::Result<u64> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut bytes = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        bytes += read;
        if read == 0 {
            return Ok(bytes);
        }
        if let Ok(record) = serde_json::from_slice(&line)
            && !with(record)
        {
            return Ok(bytes);
        }
    }
}

/// Writes.
struct Writer {
    dir: PathBuf,
    file: File,
    bytes: u64,
    /// Number of the first record of the file, and of the next one.
    first: u64,
    next: u64,
    lost: u64,
}

impl Writer {
    fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path)?;
        let bytes = file.metadata()?.len();
        let (mut first, mut last) = (0, 0);
        each(&path, |record| {
            first = if first == 0 { record.number } else { first };
            last = record.number;
            true
        })?;
        if last == 0
            && let Some((_, newest)) = files(dir)?.into_iter().rev().nth(1)
        {
            each(&newest, |record| {
                last = record.number;
                true
            })?;
        }
        if bytes > 0 {
            let mut end = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut end)?;
            // What was being written when the process ended stays a line of its own.
            if end != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        let next = last + 1;
        Ok(Self { dir: dir.to_owned(), file, bytes, first: if first == 0 { next } else { first }, next, lost: 0 })
    }

    fn write(&mut self, draft: Draft) -> io::Result<()> {
        let record = Record {
            number: self.next,
            at_ms: draft.at_ms,
            request_id: draft.request_id,
            principal: draft.principal,
            remote: draft.remote,
            method: draft.method,
            operation: draft.operation,
            object: draft.object,
            status: draft.status,
            outcome: draft.outcome.to_owned(),
            code: draft.code,
            dry_run: draft.dry_run,
            ms: draft.ms,
            lost_before: self.lost,
        };
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        self.next += 1;
        self.lost = 0;
        if self.bytes >= FILE_BYTES_MAX {
            self.turn_over()?;
        }
        Ok(())
    }

    /// Begin another file.
    fn turn_over(&mut self) -> io::Result<()> {
        std::fs::rename(self.dir.join(FILE), self.dir.join(old_file(self.first)))?;
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.join(FILE))?;
        self.bytes = 0;
        self.first = self.next;
        let all = files(&self.dir)?;
        for (_, path) in all.iter().take(all.len().saturating_sub(FILES_MAX)) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    fn run(mut self, messages: &Receiver<Message>, lost: impl Fn() -> u64) {
        while let Ok(message) = messages.recv() {
            match message {
                Message::Note(draft) => {
                    self.lost += lost();
                    if let Err(error) = self.write(*draft) {
                        self.lost += 1;
                        tracing::error!(%error, "a record of the audit could not be written");
                    }
                }
                // Whoever asked may have gone away.
                Message::Written(done) => drop(done.send(())),
            }
        }
    }
}

impl Audit {
    /// In a data directory. The thread that writes ends with the last handle.
    pub fn open(dir: &Path) -> io::Result<std::sync::Arc<Self>> {
        let writer = Writer::open(dir)?;
        let (messages, received) = sync_channel(WAITING_MAX);
        let audit = std::sync::Arc::new(Self { dir: dir.to_owned(), messages, lost: AtomicU64::new(0) });
        let known = std::sync::Arc::downgrade(&audit);
        let lost = move || known.upgrade().map_or(0, |audit| audit.lost.swap(0, Ordering::Relaxed));
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&received, lost))?;
        Ok(audit)
    }

    /// Put something on record; waits for nothing.
    pub fn note(&self, draft: Draft) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.messages.try_send(Message::Note(Box::new(draft))) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that are on disk, those of before this call included. Waits for the disk: not for tasks that others wait for.
    pub fn read(&self, pick: &Pick) -> io::Result<Records> {
        let (done, written) = oneshot::channel();
        if self.messages.send(Message::Written(done)).is_ok() {
            // The writer ends only with the process.
            let _ = written.blocking_recv();
        }
        let files = files(&self.dir)?;
        let mut records = Records::default();
        let after = pick.after;
        // The last file that begins at or before what is asked for.
        let starts = files.iter().rposition(|(first, _)| *first <= after.saturating_add(1)).unwrap_or(0);
        let starts = if pick.newest { files.len().saturating_sub(2) } else { starts };
        let mut bytes = 0;
        let mut more = false;
        for (_, path) in files.iter().skip(starts) {
            bytes += each(path, |record| {
                if record.number <= after {
                    return true;
                }
                if !pick.newest && records.found.len() >= pick.limit {
                    more = true;
                    return false;
                }
                records.last = record.number;
                if pick.principal.as_ref().is_none_or(|principal| *principal == record.principal) {
                    records.found.push_back(record);
                }
                if pick.newest && records.found.len() > pick.limit {
                    records.found.pop_front();
                }
                true
            })?;
            if more || bytes >= READ_BYTES_MAX {
                break;
            }
        }
        let stopped = !pick.newest && (more || bytes >= READ_BYTES_MAX);
        records.next = stopped.then_some(records.last);
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(principal: &str, n: u64) -> Draft {
        Draft {
            at_ms: n,
            request_id: format!("r{n}"),
            principal: principal.to_owned(),
            remote: "127.0.0.1:1".into(),
            method: "POST".into(),
            operation: "createFramework".into(),
            object: "/v1/frameworks".into(),
            status: 201,
            outcome: "done",
            code: None,
            dry_run: false,
            ms: 1,
        }
    }

    fn numbers(records: &Records) -> Vec<u64> {
        records.found.iter().map(|record| record.number).collect()
    }

    #[test]
    fn records_are_read_by_pages_and_numbers_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        for n in 0..10 {
            audit.note(draft(if n % 2 == 0 { "a" } else { "b" }, n));
        }
        let page = audit.read(&Pick { limit: 4, ..Pick::default() }).unwrap();
        assert_eq!((numbers(&page), page.next), (vec![1, 2, 3, 4], Some(4)));
        let page = audit.read(&Pick { after: 4, limit: 100, ..Pick::default() }).unwrap();
        assert_eq!((numbers(&page), page.next), ((5..=10).collect(), None));
        let by = Pick { principal: Some("b".into()), limit: 2, newest: true, ..Pick::default() };
        assert_eq!(numbers(&audit.read(&by).unwrap()), [8, 10]);
        drop(audit);
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"number\": 11, ").unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.note(draft("a", 0));
        let page = audit.read(&Pick { after: 9, limit: 100, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&page), [10, 11]);
    }

    #[test]
    fn old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path()).unwrap();
        for n in 0..30 {
            writer.write(draft("a", n)).unwrap();
            writer.turn_over().unwrap();
        }
        let kept = files(dir.path()).unwrap();
        assert_eq!(kept.len(), FILES_MAX);
        let audit = Audit::open(dir.path()).unwrap();
        audit.note(draft("a", 0));
        let all = audit.read(&Pick { limit: 100, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&all), (24..=31).collect::<Vec<_>>());
    }
}
