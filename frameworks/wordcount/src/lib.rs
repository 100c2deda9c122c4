//! The demo: word frequencies over many texts, counted by native and Wasm tasks and by an executor.
//!
//! HTTP, below `/frameworks/<name>`:
//! - `PUT /texts/NAME` (or POST) with a text of at most 960 KiB: 201, or 200 if it was there;
//! - `POST /start`: begin; texts that come later are counted as they come;
//! - `GET /`: progress as JSON, `state` being `idle`, `running` or `done`;
//! - `GET /counts`: all words, most frequent first, then by word, as JSON, or as lines
//!   `<count> <word>` with `?format=text` or `Accept: text/plain`. `?top=N` or `?offset=&limit=`
//!   choose a part; an answer holds what fits into 64 KiB, and the header `next-offset` (in JSON the
//!   field `next_offset`) tells where to go on. An offset behind the last word gives no lines.
//!
//! A word is a run of ASCII letters in lower case. With coreutils, for files that end with a line
//! end, the same lines come from
//! `cat FILES | tr -cs 'A-Za-z' '\n' | tr 'A-Z' 'a-z' | grep . | sort | uniq -c |
//! sort -k1,1nr -k2,2 | sed 's/^ *//'` under `LC_ALL=C`.
//!
//! Configuration: `wasm-task` is the digest of the component `wordcount-task`; with it every other
//! chunk is counted by a Wasm task, without it all are native. `executor` is the digest of the component
//! `wordcount-executor`; with both, every third chunk is given to it, which counts it twice, with a native
//! and a Wasm child, and compares. `chunk-kib` (4 to 24, default 24) is
//! the size of a chunk. `pace-ms` (0 to 60,000, default 0) makes each task wait so long before it
//! counts, so that there is time to disturb it. What is changed later holds from the next instance.
//!
//! State: `started`; `text/NAME` what is known of a text; for each chunk `chunk/N` where it stands,
//! and either `input/N`, its bytes, or `result/N`, its counts. The turn that receives the terminal
//! status of a chunk's task writes the result and marks the chunk done, so each is counted exactly
//! once. Memory holds the sum of the results and is rebuilt from them.

mod jobs;
#[cfg(test)]
mod tests;
mod text;

use jobs::{Chunk, Jobs, Kind, Outcome, parse_task_id};
use serde::{Deserialize, Serialize};
use tessera_sdk::http::{Request, Response};
use tessera_sdk::state::{self, Map};
use tessera_sdk::{
    Config, Error, Event, Offer, Pending, REFUSE_MS, Resources, Scheduler, TaskSpec, TaskState, TaskStatus,
    Turn, log,
};
use text::Counts;

const TEXTS: Map<Text> = Map::new("text/");
const CHUNKS: Map<Chunk> = Map::new("chunk/");
const STARTED: &str = "started";

/// Bytes of one text: one turn writes at most 1 MiB, records of its chunks included.
const MAX_TEXT_BYTES: usize = 960 * 1024;
/// Bytes of all texts: if all their words differed, the counts and their order would still fit into
/// the 64 MiB of memory of an instance, and into the CPU time in which it is rebuilt.
const MAX_TOTAL_BYTES: u64 = 3 << 20;
/// Texts; all records are listed in memory.
const MAX_TEXTS: usize = 1_000;
/// Bytes that the keys and the record of a chunk take in a turn, generously.
const CHUNK_RECORD_BYTES: usize = 160;
/// Bytes at which a page of words ends, below the 64 KiB of an answer by a longest word.
const PAGE_BYTES: usize = 36 * 1024;
/// Memory of a task, in MiB: what `sort` or a small component needs.
const TASK_MEM_MIB: u64 = 32;

/// What is known of a text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Text {
    bytes: u64,
    fingerprint: u64,
}

struct Settings {
    wasm_task: Option<String>,
    executor: Option<String>,
    chunk_bytes: usize,
    pace_ms: u64,
}

impl Settings {
    fn read(config: &Config) -> Result<Self, Error> {
        let limits =
            |key: &str, value: u64, low: u64, high: u64| match (low..=high).contains(&value) {
                true => Ok(value),
                false => Err(Error::Config {
                    key: key.to_owned(),
                    rule: format!("must be from {low} to {high}"),
                }),
            };
        let chunk_kib = limits("chunk-kib", config.parse_or("chunk-kib", 24)?, 4, 24)?;
        Ok(Self {
            wasm_task: config.get("wasm-task").map(str::to_owned),
            executor: config.get("executor").map(str::to_owned),
            chunk_bytes: usize::try_from(chunk_kib * 1024).unwrap_or(24 * 1024),
            pace_ms: limits("pace-ms", config.parse_or("pace-ms", 0)?, 0, 60_000)?,
        })
    }

    /// Chunks are dealt to the kinds that there are in turn.
    fn kind(&self, chunk: u32) -> Kind {
        match (&self.wasm_task, &self.executor) {
            (None, _) => Kind::Native,
            (Some(_), None) => [Kind::Native, Kind::Wasm][chunk as usize % 2],
            (Some(_), Some(_)) => [Kind::Native, Kind::Wasm, Kind::Executor][chunk as usize % 3],
        }
    }

    /// The executor's task: it and its two children have the memory of three tasks.
    fn executor_task(&self, executor: &str, wasm_task: &str, input: Vec<u8>) -> TaskSpec {
        TaskSpec::executor("twice", executor)
            .executor_resources(Resources::new(0.05, TASK_MEM_MIB))
            .executor_config("wasm-task", wasm_task)
            .executor_config("pace-ms", self.pace_ms.to_string())
            .data(input)
            .name("wordcount")
            .cpus(0.1)
            .mem_mib(2 * TASK_MEM_MIB)
    }

    fn task(&self, chunk: u32, input: Vec<u8>) -> TaskSpec {
        let spec = match (&self.wasm_task, self.kind(chunk), &self.executor) {
            (Some(component), Kind::Executor, Some(executor)) => {
                return self.executor_task(executor, component, input);
            }
            (Some(component), Kind::Wasm, _) => TaskSpec::wasm(component, ["input", "counts"])
                .env("PACE_MS", self.pace_ms.to_string()),
            _ => {
                // A pipeline ends as its last command does, so what could fail first is tested.
                let sleep = format!("sleep {}.{:03}", self.pace_ms / 1000, self.pace_ms % 1000);
                TaskSpec::shell(format!(
                    "export LC_ALL=C && {sleep} && test -s input && \
                     tr -cs 'A-Za-z' '\\n' < input | tr 'A-Z' 'a-z' | sort -S 4M | uniq -c > counts"
                ))
            }
        };
        spec.name("wordcount")
            .cpus(0.1)
            .mem_mib(TASK_MEM_MIB)
            .file("input", input)
            .result_file("counts")
    }
}

/// The sum of all results, and the order in which it is served.
#[derive(Default)]
struct Totals {
    counts: Counts,
    /// Count and word, most frequent first; made when asked for.
    sorted: Option<Vec<(u64, String)>>,
}

impl Totals {
    fn merge(&mut self, counts: &Counts) {
        text::merge(&mut self.counts, counts);
        self.sorted = None;
    }

    fn sorted(&mut self) -> &[(u64, String)] {
        let counts = &self.counts;
        self.sorted.get_or_insert_with(|| {
            let mut sorted: Vec<(u64, String)> = counts
                .iter()
                .map(|(word, count)| (*count, word.clone()))
                .collect();
            sorted.sort_by(|(left, a), (right, b)| right.cmp(left).then_with(|| a.cmp(b)));
            sorted
        })
    }
}

struct WordCount {
    settings: Settings,
    texts: usize,
    total_bytes: u64,
    started: bool,
    jobs: Jobs,
    totals: Totals,
    /// Whether the cluster makes offers to this framework; unknown to a new instance.
    receives_offers: Option<bool>,
    /// A chunk waits that did not when offers were last declined.
    revive: bool,
}

tessera_sdk::scheduler!(WordCount, state_version = 1);

impl Scheduler for WordCount {
    fn init(config: &Config) -> Result<Self, Error> {
        let mut jobs = Jobs::default();
        for entry in CHUNKS.iter() {
            let (id, chunk) = entry?;
            jobs.insert(
                id.parse()
                    .map_err(|_| Error::failed(format!("state key chunk/{id} has no number")))?,
                chunk,
            );
        }
        let mut totals = Totals::default();
        for (key, value) in state::scan_bytes("result/") {
            let counts = text::decode(&value)
                .ok_or_else(|| Error::failed(format!("state key {key} holds no counts")))?;
            totals.merge(&counts);
        }
        let texts: Vec<Text> = TEXTS
            .iter()
            .map(|entry| Ok(entry?.1))
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            settings: Settings::read(config)?,
            texts: texts.len(),
            total_bytes: texts.iter().map(|text| text.bytes).sum(),
            started: state::get(STARTED)?.unwrap_or(false),
            jobs,
            totals,
            receives_offers: None,
            revive: false,
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Subscribed(_) | Event::Resumed(_) => self.receives_offers = None,
            Event::Offers(offers) => self.on_offers(turn, offers)?,
            Event::Update(status) if status.state.is_terminal() => self.on_ended(status)?,
            Event::Http(request) => {
                let response = self.on_request(&request)?;
                request.respond(response)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let wants = self.started && self.jobs.wants_offers();
        if wants && (self.revive || self.receives_offers != Some(true)) {
            turn.revive()?;
        }
        if !wants && self.receives_offers != Some(false) {
            turn.suppress()?;
        }
        self.receives_offers = Some(wants);
        self.revive = false;
        Ok(())
    }
}

impl WordCount {
    fn on_offers(&mut self, turn: &mut Turn, offers: Vec<Offer>) -> Result<(), Error> {
        if !self.started {
            return turn.decline(&offers, REFUSE_MS);
        }
        let settings = &self.settings;
        let pending = self.jobs.next_tasks().map_while(|(number, task)| {
            let input = state::get_bytes(&input_key(number))?;
            Some(Pending::new(task, settings.task(number, input)))
        });
        let placed = turn.place(offers, pending, REFUSE_MS)?;
        for task in placed.launched {
            if let Some((number, _)) = parse_task_id(&task) {
                self.jobs.on_launched(number, self.settings.kind(number));
                self.save(number)?;
            }
        }
        for (task, error) in placed.refused {
            if let Some((number, _)) = parse_task_id(&task) {
                log::error(format!("{task} cannot be launched: {error}"));
                self.jobs.on_refused(number, error.to_string());
                self.save(number)?;
            }
        }
        Ok(())
    }

    /// A task ended: keep its counts if they are right, or let its chunk wait again.
    fn on_ended(&mut self, status: TaskStatus) -> Result<(), Error> {
        let Some((number, chunk)) = self.jobs.current(&status.task) else {
            return Ok(());
        };
        let counted = match status.state {
            TaskState::Finished => checked_counts(&status.data, chunk.words),
            _ => Err(status.describe()),
        };
        let outcome = match counted {
            Ok(counts) => {
                state::set_bytes(&result_key(number), &text::encode(&counts))?;
                state::delete(&input_key(number))?;
                self.totals.merge(&counts);
                Outcome::Counted
            }
            Err(reason) => {
                log::warn(format!("{} has to be repeated: {reason}", status.task));
                self.revive = true;
                if status.ended_from_outside() {
                    Outcome::Lost
                } else {
                    Outcome::Failed(reason)
                }
            }
        };
        self.jobs.on_ended(&status.task, outcome);
        self.save(number)
    }

    fn on_request(&mut self, request: &Request) -> Result<Response, Error> {
        let (method, path) = request.route();
        match (method, path.as_slice()) {
            ("GET", []) => Ok(self.progress()),
            ("PUT" | "POST", ["texts", name]) => self.add_text(name, &request.body),
            ("POST", ["start"]) => self.start(),
            ("GET", ["counts"]) => Ok(self.counts(request)),
            (_, [] | ["texts", _] | ["start"] | ["counts"]) => Ok(Response::error(
                405,
                format!("{method} is not possible here"),
            )),
            _ => Ok(Response::not_found(format!(
                "no such path: {}",
                request.path
            ))),
        }
    }

    fn add_text(&mut self, name: &str, body: &[u8]) -> Result<Response, Error> {
        if let Err(response) = check_text(name, body) {
            return Ok(response);
        }
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let text = Text {
            bytes,
            fingerprint: text::fingerprint(body),
        };
        if let Some(known) = TEXTS.get(name)? {
            let same = known.bytes == text.bytes && known.fingerprint == text.fingerprint;
            return Ok(match same {
                true => Response::json(&Added {
                    text: name,
                    bytes,
                    chunks: None,
                }),
                false => Response::error(409, format!("there is another text named `{name}`")),
            });
        }
        if self.texts >= MAX_TEXTS || self.total_bytes.saturating_add(bytes) > MAX_TOTAL_BYTES {
            return Ok(Response::error(
                507,
                format!("at most {MAX_TEXTS} texts and {MAX_TOTAL_BYTES} bytes are held"),
            ));
        }
        let chunks = match text::split(body, self.settings.chunk_bytes) {
            Ok(chunks) => chunks,
            Err(text::WordTooLong { at }) => {
                let limit = self.settings.chunk_bytes;
                return Ok(Response::error(
                    422,
                    format!("the word at byte {at} is longer than {limit} bytes"),
                ));
            }
        };
        if let Err(response) = check_room(body.len(), chunks.len()) {
            return Ok(response);
        }
        for chunk in &chunks {
            let number = self.jobs.next_number();
            state::set_bytes(&input_key(number), chunk)?;
            self.jobs
                .insert(number, Chunk::new(text::count_words(chunk)));
            self.save(number)?;
        }
        TEXTS.insert(name, &text)?;
        self.texts += 1;
        self.total_bytes += bytes;
        self.revive = true;
        Ok(Response::json(&Added {
            text: name,
            bytes,
            chunks: Some(chunks.len()),
        })
        .status(201))
    }

    fn start(&mut self) -> Result<Response, Error> {
        if self.texts == 0 {
            return Ok(Response::error(
                409,
                "there is no text yet: PUT /texts/NAME",
            ));
        }
        if !self.started {
            self.started = true;
            self.revive = true;
            state::set(STARTED, &true)?;
        }
        Ok(self.progress().status(202))
    }

    fn progress(&self) -> Response {
        let progress = self.jobs.progress();
        let done = progress.native_done + progress.wasm_done + progress.executor_done;
        let all_ended = done + progress.failed == progress.total;
        Response::json(&Report {
            state: match (self.started, all_ended) {
                (false, _) => "idle",
                (true, false) => "running",
                (true, true) => "done",
            },
            texts: self.texts,
            tasks_total: progress.total,
            tasks_done: done,
            native_done: progress.native_done,
            wasm_done: progress.wasm_done,
            executor_done: progress.executor_done,
            failed: progress.failed,
            repeated: progress.repeated,
            words: text::total(&self.totals.counts),
            distinct_words: self.totals.counts.len(),
            first_failure: self.jobs.first_failure(),
        })
    }

    fn counts(&mut self, request: &Request) -> Response {
        let numbers = request.query_number("offset", 0).and_then(|offset| {
            let limit = request.query_number("limit", usize::MAX)?;
            Ok((offset, limit.min(request.query_number("top", usize::MAX)?)))
        });
        let (offset, limit) = match numbers {
            Ok(numbers) => numbers,
            Err(response) => return response,
        };
        let as_text = match request.query_value("format") {
            Some(format) => format == "text",
            None => request
                .header("accept")
                .is_some_and(|accept| accept.contains("text/plain")),
        };
        let sorted = self.totals.sorted();
        let rest = sorted.get(offset..).unwrap_or_default();
        let page = page(rest, limit, if as_text { 0 } else { JSON_ENTRY_BYTES });
        let end = offset.saturating_add(page.len());
        let next_offset = (end < sorted.len()).then_some(end);
        if as_text {
            let lines: String = page
                .iter()
                .map(|(count, word)| format!("{count} {word}\n"))
                .collect();
            let response = Response::text(lines);
            return match next_offset {
                Some(next) => response.header("next-offset", next.to_string()),
                None => response,
            };
        }
        let counts = page
            .iter()
            .map(|(count, word)| Entry {
                count: *count,
                word,
            })
            .collect();
        Response::json(&Page {
            offset,
            next_offset,
            distinct_words: sorted.len(),
            counts,
        })
    }

    fn save(&self, number: u32) -> Result<(), Error> {
        match self.jobs.get(number) {
            Some(chunk) => CHUNKS.insert(&format!("{number:08}"), chunk),
            None => Ok(()),
        }
    }
}

/// Bytes that JSON adds to a line.
const JSON_ENTRY_BYTES: usize = 24;

/// As many entries from the start as fit into one answer, at least one, at most `limit`.
fn page(entries: &[(u64, String)], limit: usize, extra_bytes: usize) -> &[(u64, String)] {
    /// Digits of the longest count, a blank and a line end.
    const LINE_BYTES: usize = 22;
    let mut bytes = 0;
    let fitting = entries
        .iter()
        .take(limit)
        .take_while(|(_, word)| {
            let fits = bytes < PAGE_BYTES;
            bytes += word.len() + LINE_BYTES + extra_bytes;
            fits
        })
        .count();
    entries.get(..fitting).unwrap_or_default()
}

/// Counts as a task wrote them, if they add up to the words of its chunk.
fn checked_counts(output: &[u8], words: u64) -> Result<Counts, String> {
    let counts = text::parse_counts(output)?;
    let counted = text::total(&counts);
    if counted != words {
        return Err(format!("{counted} words were counted, there are {words}"));
    }
    Ok(counts)
}

fn check_text(name: &str, body: &[u8]) -> Result<(), Response> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.len() > 128 || !name.bytes().all(allowed) {
        return Err(Response::error(
            422,
            "a text's name has 1 to 128 bytes of A-Z a-z 0-9 . _ -",
        ));
    }
    if body.is_empty() {
        return Err(Response::error(422, "the text is empty"));
    }
    if body.len() > MAX_TEXT_BYTES {
        return Err(Response::error(
            413,
            format!("a text has at most {MAX_TEXT_BYTES} bytes; send it in parts"),
        ));
    }
    Ok(())
}

/// Whether this turn can still write a text of that many bytes and chunks.
fn check_room(bytes: usize, chunks: usize) -> Result<(), Response> {
    let needs = state::Room {
        bytes: bytes.saturating_add(chunks.saturating_add(2).saturating_mul(CHUNK_RECORD_BYTES)),
        keys: chunks.saturating_mul(2).saturating_add(1),
    };
    let fits = |room: state::Room| needs.bytes <= room.bytes && needs.keys <= room.keys;
    if !fits(state::Room {
        bytes: state::MAX_TURN_BYTES,
        keys: state::MAX_TURN_KEYS,
    }) {
        return Err(Response::error(
            413,
            "the text has too many chunks for one request; send it in parts",
        ));
    }
    if !fits(state::room()) {
        return Err(Response::retry_after(1, "too many texts at once"));
    }
    Ok(())
}

fn input_key(number: u32) -> String {
    format!("input/{number:08}")
}

fn result_key(number: u32) -> String {
    format!("result/{number:08}")
}

#[derive(Serialize)]
struct Added<'a> {
    text: &'a str,
    bytes: u64,
    /// Absent when the text was there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<usize>,
}

#[derive(Serialize)]
struct Report {
    state: &'static str,
    texts: usize,
    tasks_total: usize,
    tasks_done: usize,
    native_done: usize,
    wasm_done: usize,
    executor_done: usize,
    failed: usize,
    /// Launches beyond the first of each chunk.
    repeated: u64,
    words: u64,
    distinct_words: usize,
    first_failure: Option<String>,
}

#[derive(Serialize)]
struct Page<'a> {
    offset: usize,
    next_offset: Option<usize>,
    distinct_words: usize,
    counts: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    count: u64,
    word: &'a str,
}
