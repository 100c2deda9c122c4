//! What people and scripts see: tables, documents, times, amounts.
//!
//! Invariants: data goes to stdout and talk to stderr; with `-o json` only JSON goes to stdout; text from the
//! cluster never reaches a terminal with control characters in it; colour goes to terminals only, unless it is
//! asked for. Must never read from the cluster.

mod table;
mod yaml;

use crate::api::Resources;
use crate::error::CliError;
use serde_json::Value;
use std::io::{IsTerminal as _, Write};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

pub use table::{Column, col, text, wide};

/// Columns of a terminal that does not say how many it has.
const WIDTH: usize = 80;
/// A number in a text of the cluster's own is taken for milliseconds since the Unix epoch from 2001 on, and before 2100.
const MOMENTS_FROM: u64 = 1_000_000_000_000;
const MOMENTS_TO: u64 = 4_102_444_800_000;

/// Who reads the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// People: tables and sentences
    #[default]
    Table,
    /// Tables with all their columns, and nothing cut
    Wide,
    /// Scripts: the masters' documents
    Json,
    /// The same as YAML
    Yaml,
    /// What names each object, one a line
    Name,
}

/// How to write, found out once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is written.
    pub format: Format,
    /// Tables begin with the names of their columns.
    pub headers: bool,
    /// Colour goes to stdout.
    pub color: bool,
    /// Columns of the terminal; none without one.
    pub width: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Table, headers: true, color: false, width: None }
    }
}

impl Settings {
    /// From flags, environment and terminal.
    pub fn find(format: Format, headers: bool, no_color: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let color = wants_color(no_color, terminal, set);
        let width = terminal.then(|| terminal_width(set("COLUMNS")));
        Self { format, headers, color, width }
    }

    /// Whether nothing is left out.
    pub fn wide(&self) -> bool {
        self.format == Format::Wide
    }
}

/// The flag, then <https://no-color.org>, then FORCE_COLOR, then whether a terminal that knows colour reads it.
fn wants_color(no_color: bool, terminal: bool, set: impl Fn(&str) -> Option<String>) -> bool {
    if no_color || set("NO_COLOR").is_some() {
        return false;
    }
    match set("FORCE_COLOR") {
        Some(value) => value != "0",
        None => terminal && set("TERM").is_none_or(|term| term != "dumb"),
    }
}

/// As the shell was told, or as the terminal says.
fn terminal_width(columns: Option<String>) -> usize {
    let told = columns.or_else(|| {
        let tty = std::fs::File::open("/dev/tty").ok()?;
        let asked = std::process::Command::new("stty").arg("size").stdin(tty).output().ok()?;
        Some(String::from_utf8_lossy(&asked.stdout).split_whitespace().nth(1)?.to_owned())
    });
    told.and_then(|told| told.parse().ok()).filter(|&width| width > 0).unwrap_or(WIDTH)
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Write like this from now on; only the first call counts.
pub fn set(settings: Settings) {
    let _ = SETTINGS.set(settings);
}

/// How to write.
pub fn settings() -> &'static Settings {
    SETTINGS.get_or_init(Settings::default)
}

/// Whether a person can be asked: both what is typed and what is said is on a terminal.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether a person watches what is said beside the data.
pub fn is_watched() -> bool {
    std::io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb")
}

/// Write to stdout; that nobody reads it any more ends the command like a finished one.
///
/// # Errors
/// When stdout cannot be written to.
pub fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(CliError::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Write a line to stdout.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> Result<(), CliError> {
    write(format!("{text}\n").as_bytes())
}

/// Write a note to stderr, which is for people in every format.
pub fn note(text: &str) {
    // Nobody is left to be told when this fails.
    let _ = writeln!(std::io::stderr(), "tessera: {text}");
}

/// Write a document in the format that was asked for.
///
/// # Errors
/// As [`write`].
pub fn document(value: &Value) -> Result<(), CliError> {
    match settings().format {
        Format::Yaml => write(yaml::text(value).as_bytes()),
        Format::Name => names(value).iter().try_for_each(|name| line(&clean(name))),
        Format::Table | Format::Wide | Format::Json => line(&format!("{value:#}")),
    }
}

/// Write a document of a stream of them: on one line as JSON, between dashes as YAML.
///
/// # Errors
/// As [`write`].
pub fn document_of_many(value: &Value) -> Result<(), CliError> {
    match settings().format {
        Format::Yaml => write(format!("---\n{}", yaml::text(value)).as_bytes()),
        Format::Name => document(value),
        Format::Table | Format::Wide | Format::Json => line(&value.to_string()),
    }
}

/// What names the objects of a document, so that it can be given to other commands.
pub fn names(value: &Value) -> Vec<String> {
    match value.get("items").or_else(|| value.get("limits")) {
        Some(Value::Array(items)) => items.iter().filter_map(name).collect(),
        _ => name(value).into_iter().collect(),
    }
}

/// What names one object.
pub fn name(value: &Value) -> Option<String> {
    let field = |name: &str| match value.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    if let (Some(task), Some(framework)) = (field("task"), field("framework_name").or_else(|| field("framework"))) {
        return Some(format!("{framework}/{task}"));
    }
    let known = ["digest", "id", "node", "executor", "key", "role", "name", "request_id", "kind", "framework", "agent"];
    known.into_iter().find_map(field)
}

/// The lines of a table.
pub fn table_lines(columns: &[Column], rows: Vec<Vec<String>>) -> Vec<String> {
    table::lines(columns, rows, settings())
}

/// Write a table, or a sentence when it would be empty.
///
/// # Errors
/// As [`write`].
pub fn table(columns: &[Column], rows: Vec<Vec<String>>, when_empty: &str) -> Result<(), CliError> {
    if rows.is_empty() {
        note(when_empty);
        return Ok(());
    }
    line(&table_lines(columns, rows).join("\n"))
}

/// Write named values below each other; those without a value are left out.
///
/// # Errors
/// As [`write`].
pub fn fields(pairs: &[(&str, String)]) -> Result<(), CliError> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        line(&format!("{name:<width$}  {}", clean(value)))?;
    }
    Ok(())
}

/// Text of others, without what could steer a terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || turns_text(c) {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Characters that change the direction of what follows, so that it reads as something else.
const fn turns_text(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `0.5 cpu, 64 MiB`.
pub fn resources(amounts: &Resources) -> String {
    let mut text = format!("{} cpu, {} MiB", cpus(amounts.cpus_milli), amounts.mem_mib);
    if amounts.disk_mib != 0 {
        text.push_str(&format!(", {} MiB disk", amounts.disk_mib));
    }
    for (name, milli) in amounts.items.iter().filter(|(_, milli)| **milli != 0) {
        text.push_str(&format!(", {} {name}", cpus(*milli)));
    }
    text
}

/// What revocable tasks are charged for; nothing when there are none.
pub fn revocable(amounts: &Resources) -> String {
    if *amounts == Resources::default() { String::new() } else { resources(amounts) }
}

/// Thousandths as a decimal: of a core, or of what else agents have.
pub fn cpus(milli: i64) -> String {
    tessera_types::write_milli(milli)
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{} KiB", count / 1_024),
        _ => format!("{}.{} MiB", count >> 20, (count % (1 << 20)) * 10 >> 20),
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| {
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        })
}

/// The text with numbers that are milliseconds since the Unix epoch written as times.
pub fn with_times(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let number = word.trim_end_matches([',', ';', '.', ':']);
        match number.parse::<u64>() {
            Ok(at_ms) if (MOMENTS_FROM..MOMENTS_TO).contains(&at_ms) => format!("{}{}", time(at_ms), &word[number.len()..]),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// How long ago it was: `12s`, `5m`, `3h`, `2d`; nothing for no time at all.
pub fn age(at_ms: u64, now_ms: u64) -> String {
    if at_ms == 0 {
        return String::new();
    }
    let seconds = now_ms.saturating_sub(at_ms) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A time in UTC: `2025-01-31 23:59:59Z`; nothing for no time at all.
pub fn time(at_ms: u64) -> String {
    if at_ms == 0 {
        return String::new();
    }
    tessera_telemetry::log::moment(at_ms)
}

#[cfg(test)]
mod tests {
    use super::{age, bytes, clean, cpus, name, time, wants_color, with_times};
    use serde_json::json;

    #[test]
    fn colour_is_for_terminals_unless_asked_for() {
        for (flag, terminal, env, expected) in [
            (false, true, vec![], true),
            (false, false, vec![], false),
            (true, true, vec![("FORCE_COLOR", "1")], false),
            (false, true, vec![("NO_COLOR", "1")], false),
            (false, true, vec![("TERM", "dumb")], false),
            (false, true, vec![("TERM", "xterm")], true),
            (false, false, vec![("FORCE_COLOR", "1"), ("TERM", "dumb")], true),
            (false, true, vec![("FORCE_COLOR", "0")], false),
            (false, false, vec![("FORCE_COLOR", "1"), ("NO_COLOR", "1")], false),
        ] {
            let set = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(wants_color(flag, terminal, set), expected, "{flag} {terminal} {env:?}");
        }
    }

    #[test]
    fn objects_have_names_that_commands_take() {
        for (value, expected) in [
            (json!({"framework": "f1", "framework_name": "words", "task": "t"}), "words/t"),
            (json!({"framework": "f1", "task": "t", "id": "x"}), "f1/t"),
            (json!({"id": "f1", "name": "words", "role": "eng"}), "f1"),
            (json!({"digest": "sha256:00", "world": "scheduler"}), "sha256:00"),
            (json!({"node": 3, "name": "m"}), "3"),
            (json!({"role": "eng/search", "weight": 1}), "eng/search"),
        ] {
            assert_eq!(name(&value).as_deref(), Some(expected), "{value}");
        }
        assert_eq!(name(&json!({})), None);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(0), "");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(time(1_735_689_599_999), "2024-12-31 23:59:59Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn moments_in_texts_are_times() {
        for (text, expected) in [
            ("its end at 1735689599999", "its end at 2024-12-31 23:59:59Z"),
            ("from 1735689600000, for 5 s", "from 2025-01-01 00:00:00Z, for 5 s"),
            ("turn 12 of 999999999999", "turn 12 of 999999999999"),
            ("", ""),
        ] {
            assert_eq!(with_times(text), expected);
        }
    }

    #[test]
    fn amounts_are_short() {
        let cases = [
            (0, "0"),
            (100, "0.1"),
            (1_000, "1"),
            (2_250, "2.25"),
            (-500, "-0.5"),
        ];
        for (milli, text) in cases {
            assert_eq!(cpus(milli), text);
        }
        assert_eq!(
            [bytes(12), bytes(2_048), bytes(3 << 19)].join(" "),
            "12 B 2 KiB 1.5 MiB"
        );
        assert_eq!(
            [age(1_000, 61_000), age(1, 600_001), age(9, 1)].join(" "),
            "60s 10m 0s"
        );
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(clean("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(clean("a\u{202e}b"), "a b");
    }
}
