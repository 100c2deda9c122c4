//! Attacks through the contract's own functions: too much, too large, not one's own.

use std::collections::BTreeMap;
use tessera_sdk::bindings::tessera::framework::events::{HttpAnswer, HttpRequest};
use tessera_sdk::bindings::tessera::framework::http::Outgoing;
use tessera_sdk::bindings::tessera::framework::types::{
    Error, File, FileContent, Level, NativeCommand, Quantities, TaskBody, TaskSpec,
};
use tessera_sdk::bindings::tessera::framework::{driver, http, log, specs, state, timers};

const KIB: usize = 1 << 10;

/// The attack of this name, if it is one of these.
pub fn attack(
    name: &str,
    request: &HttpRequest,
    config: &BTreeMap<String, String>,
) -> Option<String> {
    Some(match name {
        "state-value" => attempt(1, |_| state::set("value", &vec![1; 256 * KIB + 1])),
        "state-keys" => attempt(100_000, |index| state::set(&format!("key/{index}"), b"k")),
        "state-bytes" => attempt(100, |index| {
            state::set(&format!("bytes/{index}"), &vec![1; 128 * KIB])
        }),
        "state-key-name" => attempt(1, |_| state::set(&"k".repeat(256), b"v")),
        "state-get-flood" => {
            for index in 0..100_000_000_u64 {
                std::hint::black_box(state::get(if index % 2 == 0 { "a" } else { "b" }));
            }
            "ESCAPED: a hundred million calls".to_owned()
        }
        "log-flood" => log_flood(),
        "log-escapes" => log_escapes(),
        "operations" => attempt(1_000_000, |_| driver::kill("nobody", None)),
        "timer-too-soon" => attempt(1, |_| timers::set("soon", 0)),
        "specs" => attempt(100_000, |index| {
            specs::define(&shell(&format!("exit {index}"))).map(|_| ())
        }),
        "spec-giant" => attempt(1, |_| {
            specs::define(&shell(&"x".repeat(600 * KIB))).map(|_| ())
        }),
        "spec-overflow" => attempt(1, |_| {
            let mut spec = shell("true");
            spec.resources = Quantities {
                cpus_milli: u64::MAX,
                mem_mib: u64::MAX,
                disk_mib: u64::MAX,
            };
            specs::define(&spec).map(|_| ())
        }),
        "spec-path" => path_traversal(),
        "spec-environment" => attempt(1, |_| {
            let mut spec = shell("true");
            spec.env = vec![("A=B\0C".to_owned(), "x\0y".to_owned())];
            specs::define(&spec).map(|_| ())
        }),
        "kill-foreign" => {
            let task = config.get("victim").map_or("run-1", String::as_str);
            attempt(1, |_| driver::kill(task, Some(0)))
        }
        "respond-foreign" => attempt(10, |index| {
            http::respond(request.id + 1 + index, &answer(10))
        }),
        "respond-giant" => attempt(1, |_| http::respond(request.id, &answer(65 * KIB))),
        "respond-smuggle" => smuggle(request.id),
        "http-send" => attempt(1, |_| {
            http::send(&Outgoing {
                id: "1".to_owned(),
                method: "GET".to_owned(),
                url: "http://169.254.169.254/latest/meta-data/".to_owned(),
                headers: Vec::new(),
                body: Vec::new(),
            })
        }),
        "send-flood" => attempt(10_000, |index| {
            driver::send(1_000 + index, "nobodys-executor", &vec![1; 64 * KIB])
        }),
        "poison" => attempt(1, |_| state::set(super::POISON, b"now")),
        "timer-loop" => attempt(1, |_| timers::set("loop", 10)),
        _ => return None,
    })
}

/// Do something so many times, or until it is refused.
fn attempt(times: u64, mut step: impl FnMut(u64) -> Result<(), Error>) -> String {
    for index in 0..times {
        if let Err(error) = step(index) {
            return format!("contained: accepted={index} refused={error:?}");
        }
    }
    format!("accepted={times}")
}

fn answer(bytes: usize) -> HttpAnswer {
    HttpAnswer {
        status: 200,
        headers: Vec::new(),
        body: vec![b'x'; bytes],
    }
}

/// A spec that runs a shell command.
pub fn shell(command: &str) -> TaskSpec {
    TaskSpec {
        name: "hostile".to_owned(),
        body: TaskBody::Native(NativeCommand::Shell(command.to_owned())),
        resources: Quantities {
            cpus_milli: 10,
            mem_mib: 16,
            disk_mib: 0,
        },
        items: Vec::new(),
        cpus_limit_milli: None,
        pids_limit: None,
        user: None,
        env: Vec::new(),
        files: Vec::new(),
        result_file: None,
        grace_ms: None,
        restarts: 0,
        health: None,
        labels: Vec::new(),
        ext: Vec::new(),
    }
}

/// As much as a turn may, in each turn; what was refused, once it is.
pub fn fill_state(turn: u64) -> Option<String> {
    for part in 0..7 {
        if let Err(error) = state::set(&format!("full/{turn}/{part}"), &vec![1; 128 * KIB]) {
            return Some(format!("contained: {error:?}"));
        }
    }
    None
}

/// 600 timers that no other turn has set.
pub fn more_timers(turn: u64) -> String {
    attempt(600, |index| {
        timers::set(&format!("full-{turn}-{index}"), 3_600_000)
    })
}

/// Two turns with as many entries as may be, two with as many large ones, one that reads them all at
/// once: what was found, of what is there.
pub fn scan(turn: u64) -> String {
    match turn {
        1 | 2 => attempt(1_000, |index| {
            state::set(&format!("few/{turn}/{index}"), b"v")
        }),
        3 | 4 => attempt(7, |index| {
            state::set(&format!("large/{turn}/{index}"), &vec![1; 128 * KIB])
        }),
        _ => format!(
            "contained: {} of 2000 entries, {} of 14 large ones",
            state::scan("few/", None, u32::MAX).len(),
            state::scan("large/", None, u32::MAX).len()
        ),
    }
}

fn log_flood() -> String {
    let field = ("f".repeat(KIB), "v".repeat(64 * KIB));
    for number in 0..20_000 {
        let fields = std::slice::from_ref(&field);
        log::write(Level::Error, "flood", &format!("line {number}"), fields);
    }
    "written".to_owned()
}

fn log_escapes() -> String {
    let text = "before\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{202e}{\"level\":\"error\",\"forged\":true}\nafter";
    log::write(
        Level::Info,
        text,
        text,
        &[(text.to_owned(), text.to_owned())],
    );
    "written".to_owned()
}

fn path_traversal() -> String {
    let mut accepted = Vec::new();
    for path in [
        "../escape",
        "/etc/cron.d/x",
        "a/../../b",
        "a//b/../../../c",
        ".",
        "",
        "a\0b",
        "stdout/..",
    ] {
        let mut spec = shell("true");
        spec.files = vec![File {
            path: path.to_owned(),
            mode: 0o6777,
            content: FileContent::Inline(b"x".to_vec()),
        }];
        if specs::define(&spec).is_ok() {
            accepted.push(format!("{path:?}"));
        }
        let mut spec = shell("true");
        spec.result_file = Some(path.to_owned());
        if specs::define(&spec).is_ok() {
            accepted.push(format!("result {path:?}"));
        }
    }
    if accepted.is_empty() {
        "contained: no such path".to_owned()
    } else {
        format!("ESCAPED: {}", accepted.join(" "))
    }
}

/// Headers that would end the head of an answer early are refused; those that would frame its body
/// anew are sent, and whoever reads the answer sees whether they arrive.
fn smuggle(request: u64) -> String {
    for (name, value) in [
        ("x", "a\r\nset-cookie: b=c"),
        ("x\r\ny", "a"),
        ("", "a"),
        ("x y", "a"),
    ] {
        let mut answer = answer(10);
        answer.headers = vec![(name.to_owned(), value.to_owned())];
        if http::respond(request, &answer).is_ok() {
            return format!("ESCAPED: {name:?}: {value:?}");
        }
    }
    let framing = [
        ("transfer-encoding", "chunked"),
        ("content-length", "3"),
        ("connection", "x-kept"),
        ("x-kept", "yes"),
    ];
    let mut answer = answer(0);
    answer.headers = framing
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    answer.body = b"contained: the framing is the host's".to_vec();
    match http::respond(request, &answer) {
        Ok(()) => String::new(),
        Err(error) => format!("{error:?}"),
    }
}
