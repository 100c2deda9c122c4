//! Turns of the whole framework, with the test in the place of cluster and agents. Native tasks are
//! run for real, by `/bin/sh`, so that the pipeline and the format of the answer are tested against
//! coreutils.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tessera_sdk::testing::contract::{FileContent, NativeCommand, TaskBody};
use tessera_sdk::testing::{Call, Harness, Launched, launched, offer, status};
use tessera_sdk::{Config, Event, TaskState, TaskStatus};

use crate::text::{self, Counts};
use crate::{PAGE_BYTES, Settings, Totals, WordCount, checked_counts, page};

type Cluster = Harness<WordCount>;

/// A folder that is deleted in the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wordcount-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Run a shell command in a folder and return the content of a file that it leaves there.
fn shell(input: &[u8], command: &str, result: &str) -> Vec<u8> {
    let folder = Folder::new();
    std::fs::write(folder.0.join("input"), input).unwrap();
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .current_dir(&folder.0)
        .status()
        .unwrap();
    assert!(status.success(), "{command}: {status}");
    std::fs::read(folder.0.join(result)).unwrap()
}

/// The same words by the pipeline that the documentation names.
fn coreutils(input: &[u8]) -> String {
    let command = "export LC_ALL=C; cat input | tr -cs 'A-Za-z' '\\n' | tr 'A-Z' 'a-z' | grep . | sort | uniq -c | \
                   sort -k1,1nr -k2,2 | sed 's/^ *//' > lines";
    String::from_utf8(shell(input, command, "lines")).unwrap()
}

/// Do what an agent would, and return the terminal status.
fn run(task: &Launched) -> TaskStatus {
    if let TaskBody::Executor(given) = &task.spec.body {
        let mut ended = status(&task.task, TaskState::Finished);
        ended.data = lines_of(&given.data);
        return ended;
    }
    let [file] = task.spec.files.as_slice() else {
        panic!("one file: {:?}", task.spec.files)
    };
    let FileContent::Inline(input) = &file.content else {
        panic!("an inline file")
    };
    assert_eq!(
        (file.path.as_str(), task.spec.result_file.as_deref()),
        ("input", Some("counts"))
    );
    let mut ended = status(&task.task, TaskState::Finished);
    ended.exit_code = Some(0);
    ended.data = match &task.spec.body {
        TaskBody::Native(NativeCommand::Shell(command)) => shell(input, command, "counts"),
        TaskBody::Wasm(command) => {
            assert_eq!(command.args, ["input", "counts"]);
            lines_of(input)
        }
        other => panic!("unexpected body {other:?}"),
    };
    ended
}

/// What the component `wordcount-task` writes.
fn lines_of(input: &[u8]) -> Vec<u8> {
    let mut counts = Counts::new();
    let lower = input.to_ascii_lowercase();
    for word in lower
        .split(|byte| !byte.is_ascii_lowercase())
        .filter(|word| !word.is_empty())
    {
        *counts
            .entry(String::from_utf8(word.to_vec()).unwrap())
            .or_default() += 1;
    }
    counts
        .iter()
        .map(|(word, count)| format!("{count} {word}\n"))
        .collect::<String>()
        .into_bytes()
}

fn ask(cluster: &mut Cluster, method: &str, target: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let (response, _) = cluster.request(method, target, body).unwrap();
    let response = response.expect("an answer");
    (response.status, response.body)
}

fn progress(cluster: &mut Cluster) -> Value {
    let (status, body) = ask(cluster, "GET", "/", b"");
    assert_eq!(status, 200);
    serde_json::from_slice(&body).unwrap()
}

/// All lines, page by page, as a client reads them.
fn all_lines(cluster: &mut Cluster, limit: usize) -> String {
    let mut lines = String::new();
    loop {
        let offset = lines.lines().count();
        let (status, body) = ask(
            cluster,
            "GET",
            &format!("/counts?format=text&offset={offset}&limit={limit}"),
            b"",
        );
        assert_eq!(status, 200);
        if body.is_empty() {
            return lines;
        }
        lines.push_str(&String::from_utf8(body).unwrap());
    }
}

/// A text with many different words and bytes that are no letters, by a fixed generator.
fn sample(lines: u32) -> Vec<u8> {
    let mut seed: u32 = 99;
    let mut text = String::new();
    for line in 0..lines {
        for _ in 0..8 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = seed >> 18;
            let letters = "etaoinshrdlu".as_bytes();
            let mut rest = word;
            while rest > 0 {
                let letter = char::from(letters[usize::try_from(rest % 12).unwrap()]);
                text.push(if line % 5 == 0 {
                    letter.to_ascii_uppercase()
                } else {
                    letter
                });
                rest /= 12;
            }
            text.push_str([" ", ", ", "é", "--", "\t"][usize::try_from(word % 5).unwrap()]);
        }
        text.push('\n');
    }
    text.into_bytes()
}

const CONFIG: &[(&str, &str)] =
    &[("wasm-task", "sha256:00"), ("executor", "sha256:00"), ("chunk-kib", "4")];

#[test]
fn the_answer_is_that_of_coreutils_whatever_is_lost_doubled_or_restarted() {
    let mut cluster = Cluster::new(CONFIG).unwrap();
    let texts = [sample(900), b"-- only\nthree words\n".to_vec(), sample(300)];
    for (number, text) in texts.iter().enumerate() {
        let target = format!("/texts/text-{number}");
        assert_eq!(ask(&mut cluster, "PUT", &target, text).0, 201);
        assert_eq!(
            ask(&mut cluster, "POST", &target, text).0,
            200,
            "the same again changes nothing"
        );
    }
    assert_eq!(progress(&mut cluster)["state"], "idle");
    let calls = cluster
        .turn([Event::Offers(vec![offer(1, 8.0, 4096)])])
        .unwrap();
    assert!(launched(&calls).is_empty(), "not started yet");
    assert_eq!(ask(&mut cluster, "POST", "/start", b"").0, 202);
    let mut round = 0;
    while progress(&mut cluster)["state"] != "done" {
        round += 1;
        assert!(round < 200, "{}", progress(&mut cluster));
        let calls = cluster
            .turn([Event::Offers(vec![offer(round, 0.5, 4096)])])
            .unwrap();
        for (index, task) in launched(&calls).iter().enumerate() {
            let ended = match (u64::try_from(index).unwrap() + round) % 7 {
                0 => status(&task.task, TaskState::Lost),
                1 => status(&task.task, TaskState::Dropped),
                2 => TaskStatus {
                    data: b"1 wrong\n".to_vec(),
                    ..status(&task.task, TaskState::Finished)
                },
                _ => run(task),
            };
            cluster
                .turn([Event::Update(ended.clone()), Event::Update(ended)])
                .unwrap();
        }
        if round % 3 == 0 {
            cluster.restart().unwrap();
        }
    }
    let report = progress(&mut cluster);
    assert_eq!(report["failed"], 0);
    for kind in ["native_done", "wasm_done", "executor_done"] {
        assert!(report[kind].as_u64() > Some(2), "{kind}: {report}");
    }
    let expected = coreutils(&texts.concat());
    assert_eq!(all_lines(&mut cluster, 100_000), expected);
    assert_eq!(all_lines(&mut cluster, 700), expected);
    assert!(
        cluster.state().keys().all(|key| !key.starts_with("input/")),
        "texts are deleted when counted"
    );
    let (_, top) = ask(&mut cluster, "GET", "/counts?top=3", b"");
    let top: Value = serde_json::from_slice(&top).unwrap();
    assert_eq!(top["counts"].as_array().map(Vec::len), Some(3));
    assert_eq!(top["next_offset"], 3);
}

#[test]
fn failures_end_after_five_attempts_and_are_told() {
    let mut cluster = Cluster::new(&[]).unwrap();
    ask(&mut cluster, "PUT", "/texts/a", b"one two\n");
    ask(&mut cluster, "POST", "/start", b"");
    for attempt in 1..=5 {
        let calls = cluster
            .turn([Event::Offers(vec![offer(attempt, 1.0, 512)])])
            .unwrap();
        let tasks = launched(&calls);
        assert_eq!(
            tasks
                .iter()
                .map(|task| task.task.clone())
                .collect::<Vec<_>>(),
            [format!("chunk-0.{attempt}")]
        );
        let failed = TaskStatus {
            exit_code: Some(9),
            ..status(&tasks[0].task, TaskState::Failed)
        };
        cluster.turn([Event::Update(failed)]).unwrap();
    }
    let report = progress(&mut cluster);
    assert_eq!(
        (&report["state"], &report["failed"]),
        (&"done".into(), &1.into())
    );
    assert_eq!(report["first_failure"], "chunk 0: TASK_FAILED, exit code 9");
    let calls = cluster.restart().unwrap();
    assert_eq!(calls, [Call::Suppress]);
}

#[test]
fn all_results_of_a_full_flight_fit_into_one_turn() {
    let mut cluster = Cluster::new(&[("wasm-task", "sha256:00")]).unwrap();
    for number in 0..2 {
        assert_eq!(
            ask(
                &mut cluster,
                "PUT",
                &format!("/texts/{number}"),
                &dense(500_000)
            )
            .0,
            201
        );
    }
    ask(&mut cluster, "POST", "/start", b"");
    let offers = (1..=4).map(|id| offer(id, 2.0, 4096)).collect();
    let calls = cluster.turn([Event::Offers(offers)]).unwrap();
    let tasks = launched(&calls);
    assert_eq!(tasks.len(), crate::jobs::MAX_IN_FLIGHT);
    let updates: Vec<Event> = tasks.iter().map(|task| Event::Update(run(task))).collect();
    cluster.turn(updates).unwrap();
    assert_eq!(progress(&mut cluster)["tasks_done"], tasks.len());
}

/// The text with the longest results: all words different and short.
fn dense(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes);
    let mut number: u32 = 0;
    while text.len() + 4 < bytes {
        let letters =
            [number, number / 26, number / 676].map(|part| b'a' + u8::try_from(part % 26).unwrap());
        text.extend_from_slice(&letters);
        text.push(b'\n');
        number += 1;
    }
    text
}

#[test]
fn a_largest_text_is_taken_and_bad_requests_are_answered() {
    let mut cluster = Cluster::new(&[]).unwrap();
    let largest = dense(crate::MAX_TEXT_BYTES);
    assert_eq!(ask(&mut cluster, "POST", "/start", b"").0, 409);
    assert_eq!(ask(&mut cluster, "PUT", "/texts/largest", &largest).0, 201);
    let before = cluster.state();
    let too_large = vec![b' '; crate::MAX_TEXT_BYTES + 1];
    let long_word = vec![b'x'; 25 * 1024];
    for (method, target, body, expected) in [
        ("PUT", "/texts/largest", &b"another"[..], 409),
        ("PUT", "/texts/large", &too_large, 413),
        ("PUT", "/texts/word", &long_word, 422),
        ("PUT", "/texts/empty", b"", 422),
        ("PUT", "/texts/bad%20name", b"x", 422),
        ("DELETE", "/texts/largest", b"", 405),
        ("GET", "/counts?top=x", b"", 400),
        ("GET", "/nowhere", b"", 404),
    ] {
        let (status, body) = ask(&mut cluster, method, target, body);
        assert_eq!(
            status,
            expected,
            "{method} {target}: {}",
            String::from_utf8_lossy(&body)
        );
    }
    assert_eq!(cluster.state(), before);
    assert_eq!(
        ask(
            &mut cluster,
            "GET",
            "/counts?format=text&offset=999999",
            b""
        ),
        (200, Vec::new())
    );
    assert_eq!(
        text::count_words(&largest),
        u64::try_from(largest.len() / 4).unwrap()
    );
}

fn config(pairs: &[(&str, &str)]) -> Config {
    Config::from(
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<Vec<_>>(),
    )
}

#[test]
fn settings_are_checked() {
    assert_eq!(
        Settings::read(&config(&[]))
            .map(|settings| settings.chunk_bytes)
            .ok(),
        Some(24 * 1024)
    );
    for bad in [
        ("chunk-kib", "3"),
        ("chunk-kib", "25"),
        ("pace-ms", "60001"),
        ("pace-ms", "-1"),
    ] {
        assert!(Settings::read(&config(&[bad])).is_err(), "{bad:?}");
    }
}

#[test]
fn words_are_served_by_count_then_name() {
    let mut totals = Totals::default();
    totals.merge(&checked_counts(b"2 b\n1 c\n2 a\n", 5).unwrap());
    totals.merge(&checked_counts(b"3 c\n", 3).unwrap());
    let words: Vec<&str> = totals
        .sorted()
        .iter()
        .map(|(_, word)| word.as_str())
        .collect();
    assert_eq!(words, ["c", "a", "b"]);
    assert!(
        checked_counts(b"2 b\n", 3).is_err(),
        "a result that does not add up"
    );
}

#[test]
fn pages_fit_and_make_headway() {
    let entries: Vec<(u64, String)> = (0..10_000)
        .map(|number| (number, "word".repeat(5)))
        .collect();
    let first = page(&entries, usize::MAX, 0);
    let bytes: usize = first
        .iter()
        .map(|(count, word)| format!("{count} {word}\n").len())
        .sum();
    assert!(!first.is_empty() && bytes <= PAGE_BYTES + 64);
    assert_eq!(page(&entries, 3, 0).len(), 3);
    let long = vec![(1, "x".repeat(24 * 1024)); 3];
    assert_eq!(
        page(&long, usize::MAX, 24).len(),
        2,
        "below 64 KiB, and at least one"
    );
    assert!(page(&[], 3, 0).is_empty());
}
