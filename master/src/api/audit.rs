//! Who did what through this master: bounded files of lines, written beside everything else.
//!
//! Invariants: a record is one line of JSON with a number that only grows; files are at most [`FILES_MAX`] of
//! [`FILE_BYTES_MAX`] each, the oldest go. What strangers were refused is counted and stands in files of its own, so
//! that nobody pushes out what was done. Requests never wait for the disk of the audit: what cannot be written in
//! time is counted as lost, and the next record says how many. Each master has records of what it was asked itself.

use super::refusals::{Refusals, Whose};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Bytes after which another file is begun: some 50,000 records.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Files that are kept.
const FILES_MAX: usize = 8;

/// Bytes of a file of refusals of strangers: some 10,000 records of what was counted.
const REFUSED_FILE_BYTES_MAX: u64 = 4 << 20;

/// Files of those that are kept: a day of strangers from everywhere.
const REFUSED_FILES_MAX: usize = 2;

/// How long refusals are counted until there is a record of them; it is there sooner when somebody reads the audit.
const COUNTED_FOR: Duration = Duration::from_secs(60);

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
    pub times: u64,
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Its number, which only grows at one master.
    pub number: u64,
    /// When the answer was given, in milliseconds since the Unix epoch: of several the first one.
    pub at_ms: u64,
    /// The request's id.
    pub request_id: String,
    /// Who asked; empty without a valid token.
    pub principal: String,
    /// The address that it came from; `others` when refusals came from too many to tell apart.
    pub remote: String,
    /// The method.
    pub method: String,
    /// The operation, as this document names it; empty when there is none.
    pub operation: String,
    /// What it was done to: the path.
    pub object: String,
    /// HTTP status of the answer; 499 when the caller hung up before there was one.
    pub status: u16,
    /// `done`, `refused`, `failed` or `unknown`.
    pub outcome: String,
    /// The code of a refusal by this master.
    pub code: Option<String>,
    /// It was only asked what would be.
    pub dry_run: bool,
    /// How long it took.
    pub ms: u64,
    /// How many such requests this record stands for, of which it shows the first: refusals without a valid token, and
    /// beyond a rate, are counted for a minute.
    #[serde(default = "once")]
    pub times: u64,
    /// Records before this one that could not be written.
    #[serde(default)]
    pub lost_before: u64,
}

const fn once() -> u64 {
    1
}

enum Message {
    Note(Box<Draft>),
    /// Answered when everything before is written, with the number of the last record.
    Written(oneshot::Sender<u64>),
}

/// What is waiting beside the queue.
#[derive(Default)]
struct Waiting {
    lost: AtomicU64,
    refusals: Mutex<Refusals>,
}

impl Waiting {
    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        // A panic while holding the lock cannot leave more than a count half changed.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The audit of this master.
pub struct Audit {
    dir: PathBuf,
    messages: SyncSender<Message>,
    waiting: Arc<Waiting>,
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

/// One kind of files.
#[derive(Clone, Copy)]
struct Kind {
    /// What their names begin with.
    stem: &'static str,
    file_bytes_max: u64,
    files_max: usize,
}

/// What principals did.
const DONE: Kind = Kind { stem: "audit", file_bytes_max: FILE_BYTES_MAX, files_max: FILES_MAX };
/// What strangers were refused.
const REFUSED: Kind = Kind { stem: "refused", file_bytes_max: REFUSED_FILE_BYTES_MAX, files_max: REFUSED_FILES_MAX };

impl Kind {
    /// The file that is written.
    fn current(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.jsonl", self.stem))
    }

    /// A file that is not written any more, named by its first record.
    fn old(self, dir: &Path, first: u64) -> PathBuf {
        dir.join(format!("{}.{first:020}.jsonl", self.stem))
    }

    /// Files with the numbers that they begin with, oldest first; the last one is being written.
    fn all(self, dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(self.stem)?.strip_prefix('.')?.strip_suffix(".jsonl"));
            if let Some(number) = rest.and_then(|rest| rest.parse().ok()) {
                found.push((number, entry.path()));
            }
        }
        found.sort_unstable();
        let current = self.current(dir);
        if current.exists() {
            found.push((u64::MAX, current));
        }
        Ok(found)
    }

    fn create(self, dir: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(self.current(dir))
    }
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

/// The files of one kind, of which the newest is written.
struct Lines {
    kind: Kind,
    dir: PathBuf,
    file: File,
    bytes: u64,
    /// Number of the first record of that file; 0 while it has none.
    first: u64,
}

impl Lines {
    /// With the number of the last record that is there.
    fn open(kind: Kind, dir: &Path) -> io::Result<(Self, u64)> {
        let mut file = kind.create(dir)?;
        let bytes = file.metadata()?.len();
        let (mut first, mut last) = (0, 0);
        each(&kind.current(dir), |record| {
            first = if first == 0 { record.number } else { first };
            last = record.number;
            true
        })?;
        if last == 0
            && let Some((_, newest)) = kind.all(dir)?.into_iter().rev().nth(1)
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
        Ok((Self { kind, dir: dir.to_owned(), file, bytes, first }, last))
    }

    fn append(&mut self, number: u64, line: &[u8]) -> io::Result<()> {
        // Before, so that a file that cannot be put aside does not grow.
        if self.bytes >= self.kind.file_bytes_max {
            self.turn_over(number)?;
        }
        if self.first == 0 {
            self.first = number;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Begin another file, for a record; done once more when it failed half-way.
    fn turn_over(&mut self, number: u64) -> io::Result<()> {
        let first = if self.first == 0 { number } else { self.first };
        match std::fs::rename(self.kind.current(&self.dir), self.kind.old(&self.dir, first)) {
            // It was put aside already, and then there was no other file to be had.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = self.kind.create(&self.dir)?;
        self.bytes = 0;
        self.first = 0;
        if let Err(error) = self.prune() {
            tracing::error!(%error, "old files of the audit could not be removed");
        }
        Ok(())
    }

    fn prune(&self) -> io::Result<()> {
        let all = self.kind.all(&self.dir)?;
        for (_, path) in all.iter().take(all.len().saturating_sub(self.kind.files_max)) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Writes.
struct Writer {
    done: Lines,
    refused: Lines,
    /// Number of the next record of both.
    next: u64,
    lost: u64,
}

impl Writer {
    fn open(dir: &Path) -> io::Result<Self> {
        let (done, last) = Lines::open(DONE, dir)?;
        let (refused, last_refused) = Lines::open(REFUSED, dir)?;
        Ok(Self { done, refused, next: last.max(last_refused) + 1, lost: 0 })
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
            times: draft.times,
            lost_before: self.lost,
        };
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        let lines = if record.principal.is_empty() { &mut self.refused } else { &mut self.done };
        lines.append(record.number, &line)?;
        self.next += 1;
        self.lost = 0;
        Ok(())
    }

    fn note(&mut self, draft: Draft, waiting: &Waiting) {
        self.lost += waiting.lost.swap(0, Ordering::Relaxed);
        if let Err(error) = self.write(draft) {
            self.lost += 1;
            tracing::error!(%error, "a record of the audit could not be written");
        }
    }

    fn put_counted(&mut self, waiting: &Waiting) {
        let counted = waiting.refusals().take();
        for draft in counted {
            self.note(draft, waiting);
        }
    }

    /// Until the last handle is gone.
    fn run(mut self, messages: &Receiver<Message>, waiting: &Waiting) {
        let mut due = Instant::now() + COUNTED_FOR;
        loop {
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Note(draft)) => self.note(*draft, waiting),
                Ok(Message::Written(done)) => {
                    self.put_counted(waiting);
                    // Whoever asked may have gone away.
                    let _ = done.send(self.next - 1);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.put_counted(waiting),
            }
            if due <= Instant::now() {
                self.put_counted(waiting);
                due = Instant::now() + COUNTED_FOR;
            }
        }
    }
}

/// What an answer gathers, in order of numbers.
struct Gathering<'a> {
    pick: &'a Pick,
    /// What was refused to strangers, which stands in other files.
    refused: VecDeque<Record>,
    records: Records,
    /// There is more than what was asked for.
    more: bool,
}

impl Gathering<'_> {
    /// The next record of those that were done; whether another one is wanted.
    fn take(&mut self, record: Record) -> bool {
        while let Some(refused) = self.refused.pop_front_if(|refused| refused.number < record.number) {
            if !self.add(refused) {
                return false;
            }
        }
        self.add(record)
    }

    fn add(&mut self, record: Record) -> bool {
        let Pick { limit, newest, ref principal, .. } = *self.pick;
        let found = &mut self.records.found;
        if !newest && found.len() >= limit {
            self.more = true;
            return false;
        }
        self.records.last = record.number;
        if principal.as_ref().is_none_or(|principal| *principal == record.principal) {
            found.push_back(record);
        }
        if newest && found.len() > limit {
            found.pop_front();
        }
        true
    }
}

impl Audit {
    /// In a data directory. The thread that writes ends with the last handle.
    pub fn open(dir: &Path) -> io::Result<Arc<Self>> {
        let writer = Writer::open(dir)?;
        let (messages, received) = sync_channel(WAITING_MAX);
        let waiting = Arc::<Waiting>::default();
        let audit = Arc::new(Self { dir: dir.to_owned(), messages, waiting: Arc::clone(&waiting) });
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&received, &waiting))?;
        Ok(audit)
    }

    /// Put something on record; waits for nothing.
    pub fn note(&self, draft: Draft) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.messages.try_send(Message::Note(Box::new(draft))) {
            self.waiting.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request was refused with a status as many others may be: it goes on record together with them.
    pub fn count(&self, whose: Whose, status: u16, first: impl FnOnce() -> Draft) {
        self.waiting.refusals().count(whose, status, first);
    }

    /// Records that are on disk, those of before this call included. Waits for the disk: not for tasks that others wait for.
    pub fn read(&self, pick: &Pick) -> io::Result<Records> {
        let (done, written) = oneshot::channel();
        let asked = self.messages.send(Message::Written(done)).is_ok();
        // The writer ends only with the process. What it writes from now on may be in one file and not yet in another.
        let until = written.blocking_recv().ok().filter(|_| asked).unwrap_or(u64::MAX);
        let after = pick.after;
        let mut refused = VecDeque::new();
        for (_, path) in REFUSED.all(&self.dir)? {
            each(&path, |record| {
                let number = record.number;
                if number > after && number <= until {
                    refused.push_back(record);
                }
                number <= until
            })?;
        }
        let files = DONE.all(&self.dir)?;
        // The last file that begins at or before what is asked for.
        let starts = files.iter().rposition(|(first, _)| *first <= after.saturating_add(1)).unwrap_or(0);
        let starts = if pick.newest { files.len().saturating_sub(2) } else { starts };
        let mut gathering = Gathering { pick, refused, records: Records::default(), more: false };
        let mut bytes = 0;
        for (_, path) in files.iter().skip(starts) {
            bytes += each(path, |record| record.number <= after || record.number <= until && gathering.take(record))?;
            if gathering.more || bytes >= READ_BYTES_MAX {
                break;
            }
        }
        let full = bytes >= READ_BYTES_MAX && !pick.newest;
        let rest = std::mem::take(&mut gathering.refused);
        for refused in rest.into_iter().filter(|_| !full) {
            if gathering.more || !gathering.add(refused) {
                break;
            }
        }
        let Gathering { mut records, more, .. } = gathering;
        records.next = (more || full).then_some(records.last);
        Ok(records)
    }
}

#[cfg(test)]
pub fn draft(principal: &str, n: u64) -> Draft {
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
        times: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusals::ADDRESSES_MAX;
    use super::*;
    use std::net::IpAddr;

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
        let mut file = OpenOptions::new().append(true).open(DONE.current(dir.path())).unwrap();
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
            writer.done.turn_over(writer.next).unwrap();
        }
        let kept = DONE.all(dir.path()).unwrap();
        assert_eq!(kept.len(), FILES_MAX);
        let audit = Audit::open(dir.path()).unwrap();
        audit.note(draft("a", 0));
        let all = audit.read(&Pick { limit: 100, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&all), (24..=31).collect::<Vec<_>>());
    }

    #[test]
    fn strangers_push_nothing_out_and_stand_where_they_came() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let mut expected = Vec::new();
        for round in 0..4_u64 {
            audit.note(draft("a", round));
            for n in 0..50_000_u32 {
                let address = IpAddr::from((n % 40).to_be_bytes());
                audit.count(Whose::Address(address), 401, || draft("", round));
            }
            let page = audit.read(&Pick { limit: 1, newest: true, ..Pick::default() }).unwrap();
            assert_eq!(page.last, (round + 1) * (ADDRESSES_MAX as u64 + 2), "one, and a few for all the others");
            expected.push(1 + round * (ADDRESSES_MAX as u64 + 2));
        }
        drop(audit);
        let audit = Audit::open(dir.path()).unwrap();
        let all = audit.read(&Pick { limit: 1_000, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&all), (1..=all.last).collect::<Vec<_>>(), "in one order");
        assert_eq!(all.found.iter().filter(|record| record.principal.is_empty()).map(|record| record.times).sum::<u64>(), 200_000);
        let own = audit.read(&Pick { limit: 1_000, principal: Some("a".into()), ..Pick::default() }).unwrap();
        assert_eq!(numbers(&own), expected);
        // By pages of any size, each once.
        let (mut paged, mut pick) = (Vec::new(), Pick { limit: 5, ..Pick::default() });
        loop {
            let page = audit.read(&pick).unwrap();
            paged.extend(numbers(&page));
            let Some(next) = page.next else { break };
            pick.after = next;
        }
        assert_eq!(paged, numbers(&all));
    }

    #[test]
    fn files_of_strangers_are_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path()).unwrap();
        writer.write(draft("a", 0)).unwrap();
        for n in 0..10 {
            writer.write(draft("", n)).unwrap();
            writer.refused.turn_over(writer.next).unwrap();
        }
        assert_eq!(REFUSED.all(dir.path()).unwrap().len(), REFUSED_FILES_MAX);
        let audit = Audit::open(dir.path()).unwrap();
        audit.note(draft("a", 0));
        let all = audit.read(&Pick { limit: 100, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&all), [1, 11, 12]);
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_does_not_grow_and_is_when_that_is_possible() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path()).unwrap();
        writer.write(draft("a", 0)).unwrap();
        let (current, old) = (DONE.current(dir.path()), DONE.old(dir.path(), 1));
        writer.done.bytes = FILE_BYTES_MAX;
        // As if it had been put aside, and then no other one could be opened; and still cannot.
        std::fs::rename(&current, &old).unwrap();
        std::fs::create_dir(&current).unwrap();
        let bytes = std::fs::metadata(&old).unwrap().len();
        for n in 0..3 {
            assert!(writer.write(draft("a", n)).is_err());
        }
        assert_eq!(std::fs::metadata(&old).unwrap().len(), bytes);
        std::fs::remove_dir(&current).unwrap();
        writer.write(draft("a", 1)).unwrap();
        writer.write(draft("a", 2)).unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let all = audit.read(&Pick { limit: 100, ..Pick::default() }).unwrap();
        assert_eq!(numbers(&all), [1, 2, 3]);
        assert_eq!(DONE.all(dir.path()).unwrap().len(), 2);
    }
}
