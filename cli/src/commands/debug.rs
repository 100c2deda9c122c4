//! `tessera debug`: one file that helps to find a fault, for somebody who has no access to the cluster.
//!
//! Invariants: no token, no value of a scheduler's state, and no value of a configuration is in it, unless values are
//! asked for; what would be in it is listed before; the file is for its owner alone. Must never change anything.

use crate::client::Client;
use crate::commands::doctor;
use crate::error::{CliError, Kind, io_error};
use crate::list::all_items;
use crate::output::{Column, col, text};
use crate::sse::Reader;
use crate::wait::YesArgs;
use crate::{Context, output};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long one document may take: what a master cannot say is left out, and that is said.
const ASK_FOR: Duration = Duration::from_secs(10);
/// Objects of one list: the file stays below what can be sent by mail.
const ITEMS_MAX: usize = 10_000;
/// Frameworks whose logs and explanations are fetched.
const FRAMEWORKS_MAX: usize = 200;
/// The end of each log.
const LOG_BYTES: u64 = 65_536;
/// After so long without one there are no more events.
const EVENTS_PAUSE: Duration = Duration::from_millis(500);
/// Several times what 10,000 events have, which is as many as masters keep.
const EVENTS_BYTES_MAX: usize = 16 << 20;
/// What stands in the place of something that is not shown.
const HIDDEN: &str = "(hidden)";

/// Arguments of `tessera debug`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera debug --list\n  tessera debug -f incident.tar.gz\n  tessera debug --logs --yes\n\nTokens and values of state are never in it. Look into it before you give it away: names of frameworks, tasks and hosts\nare, and with --logs whatever schedulers write."
)]
pub struct DebugArgs {
    /// The file [default: tessera-debug-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only list what would be in it
    #[arg(long)]
    list: bool,
    /// With the values of frameworks' configurations
    #[arg(long)]
    config_values: bool,
    /// With the end of each scheduler's log
    #[arg(long)]
    logs: bool,
    #[command(flatten)]
    yes: YesArgs,
}

/// A document that is asked for.
struct Part {
    file: &'static str,
    segments: &'static [&'static str],
    what: &'static str,
}

const PARTS: [Part; 13] = [
    Part { file: "version.json", segments: &["v1", "version"], what: "versions of the cluster" },
    Part { file: "health.json", segments: &["health"], what: "whether the master that is asked leads" },
    Part { file: "masters.json", segments: &["v1", "masters"], what: "masters, their addresses and how they are" },
    Part { file: "agents.json", segments: &["v1", "agents"], what: "agents, their hosts' names, attributes and use" },
    Part { file: "frameworks.json", segments: &["v1", "frameworks"], what: "frameworks; values of their configurations with --config-values only" },
    Part { file: "tasks.json", segments: &["v1", "tasks"], what: "tasks, their states and messages" },
    Part { file: "components.json", segments: &["v1", "components"], what: "digests of components and who uses them" },
    Part { file: "roles.json", segments: &["v1", "roles"], what: "roles, their quota and use" },
    Part { file: "limits.json", segments: &["v1", "limits"], what: "limits of the cluster" },
    Part { file: "offers.json", segments: &["v1", "offers"], what: "offers that wait for an answer" },
    Part { file: "operations.json", segments: &["v1", "operations"], what: "what is under way" },
    Part { file: "audit.json", segments: &["v1", "audit"], what: "who changed what, as far as the master remembers" },
    Part { file: "metrics.txt", segments: &["metrics"], what: "metrics of the master that is asked" },
];

const COLUMNS: [Column; 2] = [col("FILE"), text("WHAT")];

/// Run it.
///
/// # Errors
/// When the cluster cannot be reached at all, or the file cannot be written.
pub async fn run(context: &Context, args: DebugArgs) -> Result<ExitCode, CliError> {
    show_contents(context, &args)?;
    if args.list {
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.file.clone().unwrap_or_else(|| {
        let now = output::now_ms();
        let time: String = output::time(now).chars().filter(char::is_ascii_digit).collect();
        // Two within one second do not meet.
        PathBuf::from(format!("tessera-debug-{time}-{:03}.tar.gz", now % 1_000))
    });
    args.yes.confirm(&format!("This is written to {}.", path.display()))?;
    let token = context.connection.resolve()?.token()?;
    let client = context.client()?;
    let mut bundle = Bundle { files: Vec::new(), token, config_values: args.config_values };
    let found = doctor::examine(&context.connection, true, true).await;
    bundle.add("doctor.json", doctor::document(&found));
    gather(&client, &mut bundle, args.logs).await;
    let bytes = gzip(&tar(&bundle.files, output::now_ms() / 1_000));
    let about = |error: std::io::Error| io_error("write", &path, &error);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(about)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(about)?;
    if context.is_data() {
        output::document(&json!({"name": path, "bytes": bytes.len()}))?;
    } else {
        output::line(&path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_contents(context: &Context, args: &DebugArgs) -> Result<(), CliError> {
    let mut rows: Vec<[&str; 2]> = vec![["doctor.json", "what `tessera doctor` finds on this machine and in the cluster"]];
    rows.extend(PARTS.iter().map(|part| [part.file, part.what]));
    rows.push(["events.jsonl", "the last events of the cluster, as many as masters keep"]);
    rows.push(["explain/*.json", "why each framework gets what it gets"]);
    if args.logs {
        rows.push(["logs/*", "the end of each scheduler's log"]);
    }
    if context.is_data() {
        if args.list {
            let items: Vec<Value> = rows.iter().map(|[name, what]| json!({"name": name, "what": what})).collect();
            return output::document(&json!({ "items": items }));
        }
        return Ok(());
    }
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
    if args.list {
        return output::table(&COLUMNS, rows, "");
    }
    output::note("what is in it:");
    for row in rows {
        output::note(&format!("  {:<18} {}", row[0], row[1]));
    }
    Ok(())
}

/// What goes into the file.
struct Bundle {
    files: Vec<(String, Vec<u8>)>,
    token: String,
    config_values: bool,
}

impl Bundle {
    fn add(&mut self, name: &str, mut value: Value) {
        redact(&mut value, self.config_values);
        self.add_text(name, format!("{value:#}\n").into_bytes());
    }

    fn add_text(&mut self, name: &str, text: Vec<u8>) {
        let text = String::from_utf8_lossy(&text).replace(&self.token, HIDDEN);
        self.files.push((name.to_owned(), text.into_bytes()));
    }

    /// What could not be had says so in its place.
    fn failed(&mut self, name: &str, error: &CliError) {
        self.add_text(&format!("{name}.failed"), format!("{error}\n").into_bytes());
    }
}

async fn gather(client: &Client, bundle: &mut Bundle, logs: bool) {
    let mut frameworks = Vec::new();
    for part in &PARTS {
        let request = client.get(part.segments).retry_for(Duration::ZERO).within(ASK_FOR);
        if part.file.ends_with(".txt") {
            let answer = async { client.body(client.send(request).await?).await };
            match answer.await {
                Ok(text) => bundle.add_text(part.file, text),
                Err(error) => bundle.failed(part.file, &error),
            }
            continue;
        }
        match all_items(client, request).await {
            Ok(mut value) => {
                if let Some(Value::Array(items)) = value.get_mut("items") {
                    items.truncate(ITEMS_MAX);
                }
                if part.file == "frameworks.json" {
                    frameworks = output::names(&value);
                }
                bundle.add(part.file, value);
            }
            Err(error) => bundle.failed(part.file, &error),
        }
    }
    match events(client).await {
        Ok(text) => bundle.add_text("events.jsonl", text),
        Err(error) => bundle.failed("events.jsonl", &error),
    }
    for framework in frameworks.iter().take(FRAMEWORKS_MAX) {
        let request = client.get(&["v1", "explain"]).query("framework", framework);
        match client.json(request.retry_for(Duration::ZERO).within(ASK_FOR)).await {
            Ok(value) => bundle.add(&format!("explain/{framework}.json"), value),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => bundle.failed(&format!("explain/{framework}.json"), &error),
        }
        if logs && let Some(text) = log_of(client, framework).await {
            bundle.add_text(&format!("logs/{framework}.jsonl"), text);
        }
    }
}

/// All events that the master that is asked keeps, one document per line: the stream is left when it pauses.
async fn events(client: &Client) -> Result<Vec<u8>, CliError> {
    let request = client.get(&["v1", "events"]).header("accept", "text/event-stream").header("last-event-id", "0-0");
    let mut stream = client.send(request.retry_for(Duration::ZERO).within(ASK_FOR)).await?.bytes_stream();
    let (mut reader, mut text) = (Reader::default(), Vec::new());
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(EVENTS_PAUSE, stream.next()).await {
        for event in reader.push(&chunk)? {
            text.extend_from_slice(event.data.as_bytes());
            text.push(b'\n');
        }
        if text.len() > EVENTS_BYTES_MAX {
            break;
        }
    }
    Ok(text)
}

/// The end of a scheduler's log.
async fn log_of(client: &Client, framework: &str) -> Option<Vec<u8>> {
    let request = |offset: u64, length: u64| {
        let request = client.get(&["v1", "frameworks", framework, "log"]);
        request.query("offset", offset).query("length", length).retry_for(Duration::ZERO).within(ASK_FOR)
    };
    let first = client.send(request(0, 1)).await.ok()?;
    let size: u64 = first.headers().get("x-tessera-size")?.to_str().ok()?.parse().ok()?;
    let last = client.send(request(size.saturating_sub(LOG_BYTES), LOG_BYTES)).await.ok()?;
    client.body(last).await.ok()
}

/// Puts something else in the place of what is not to be shown.
fn redact(value: &mut Value, config_values: bool) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let lower = name.to_ascii_lowercase();
                let secret = ["token", "secret", "password", "authorization", "credential"].iter().any(|word| lower.contains(word));
                match (secret, lower.as_str()) {
                    (true, _) if !value.is_null() => *value = Value::from(HIDDEN),
                    (false, "config") if !config_values => hide_values(value),
                    (false, "env" | "state_values") => hide_values(value),
                    _ => redact(value, config_values),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, config_values)),
        _ => {}
    }
}

/// Names stay, values go.
fn hide_values(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| *value = Value::from(HIDDEN)),
        Value::Null => {}
        other => *other = Value::from(HIDDEN),
    }
}

/// A tar archive of plain files.
fn tar(files: &[(String, Vec<u8>)], time: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in files {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        // Names are made here, and far shorter than 99 bytes, but ids come from the cluster.
        let path: String = format!("tessera-debug/{name}").chars().filter(char::is_ascii_graphic).take(99).collect();
        put(0, &path);
        put(100, "0000600\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", bytes.len()));
        put(136, &format!("{time:011o}\0"));
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1_024, 0);
    out
}

/// RFC 1952, with one member.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 6));
    out.extend(crc32(bytes).to_le_bytes());
    // The length is told modulo 2^32.
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|byte| (0..8).fold(byte, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }))
        .collect();
    let step = |crc: u32, byte: &u8| table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ crc >> 8;
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::{Bundle, crc32, gzip, redact, tar};
    use serde_json::json;

    #[test]
    fn nothing_secret_is_left() {
        let document = json!({"items": [{"name": "w", "config": {"password-file": "/p", "pace": "5"}, "env": {"A": "b"},
            "admin_token": "t", "nested": {"client_secret": "s", "kept": 1}, "token": null}]});
        let mut hidden = document.clone();
        redact(&mut hidden, false);
        assert_eq!(hidden, json!({"items": [{"name": "w", "config": {"password-file": "(hidden)", "pace": "(hidden)"},
            "env": {"A": "(hidden)"}, "admin_token": "(hidden)", "nested": {"client_secret": "(hidden)", "kept": 1}, "token": null}]}));
        let mut shown = document;
        redact(&mut shown, true);
        // What calls itself a secret is one, whatever was asked for.
        assert_eq!(shown["items"][0]["config"], json!({"password-file": "(hidden)", "pace": "5"}));
    }

    #[test]
    fn the_token_itself_is_nowhere() {
        let mut bundle = Bundle { files: Vec::new(), token: "abc123".into(), config_values: true };
        bundle.add_text("log", b"it says abc123!".to_vec());
        bundle.add("a.json", json!({"message": "abc123"}));
        assert!(bundle.files.iter().all(|(_, bytes)| !String::from_utf8_lossy(bytes).contains("abc123")));
    }

    #[test]
    fn tar_and_gzip_are_read_by_others() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let archive = tar(&[("a.txt".into(), b"hello\n".to_vec()), ("d/b".into(), vec![b'x'; 600])], 1_700_000_000);
        assert_eq!(archive.len() % 512, 0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar.gz");
        std::fs::write(&file, gzip(&archive)).unwrap();
        let status = std::process::Command::new("tar").arg("xzf").arg(&file).arg("-C").arg(dir.path()).status().unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read(dir.path().join("tessera-debug/a.txt")).unwrap(), b"hello\n");
        assert_eq!(std::fs::read(dir.path().join("tessera-debug/d/b")).unwrap(), vec![b'x'; 600]);
    }
}
