//! Lines of the log: text for people, or one JSON object per line for programs.
//!
//! Invariants: a line is one object whatever is logged, also when a value has line breaks; what an event says besides its
//! message stands under `fields`. Must never log a token, which nobody may give to it.

use serde_json::{Map, Value};
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Names the form of the log where no flag does.
pub const FORMAT_VARIABLE: &str = "TESSERA_LOG_FORMAT";

/// What a log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a form of a log: text and json are")),
        }
    }
}

impl Format {
    /// As it is called on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// What the environment says; text where it says nothing that is known.
    ///
    /// For processes that are started by others of ours, which have checked it.
    #[must_use]
    pub fn from_environment() -> Self {
        std::env::var(FORMAT_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

static FORMAT: OnceLock<Format> = OnceLock::new();
static PROCESS: OnceLock<&'static str> = OnceLock::new();
static WHO: OnceLock<(&'static str, String)> = OnceLock::new();

/// From now on each line of JSON says who writes it: `node` or `agent`, and its id. Said once, when it is known.
pub fn i_am(kind: &'static str, id: impl Into<String>) {
    // It does not change while a process lives.
    let _ = WHO.set((kind, id.into()));
}

/// What this process's log looks like, for those that it starts.
#[must_use]
pub fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Begin to log to stderr. Does nothing when somebody did before.
pub fn start(process: &'static str, format: Format, filter: tracing_subscriber::EnvFilter) {
    // As with logging: whoever was first stays.
    let _ = PROCESS.set(process);
    let _ = FORMAT.set(format);
    let built = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let _ = match format {
        Format::Text => built.try_init(),
        Format::Json => built.event_format(JsonLines).try_init(),
    };
}

/// Writes events as JSON.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writeln!(writer, "{}", object(event, SystemTime::now()))
    }
}

fn object(event: &Event<'_>, now: SystemTime) -> Value {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let mut line = Map::new();
    line.insert("time".into(), time(now).into());
    line.insert("level".into(), event.metadata().level().as_str().into());
    line.insert("target".into(), event.metadata().target().into());
    if let Some(process) = PROCESS.get() {
        line.insert("process".into(), (*process).into());
    }
    if let Some((kind, id)) = WHO.get() {
        line.insert((*kind).into(), id.as_str().into());
    }
    line.insert("pid".into(), std::process::id().into());
    line.insert("message".into(), fields.message.into());
    if !fields.others.is_empty() {
        line.insert("fields".into(), fields.others.into());
    }
    Value::Object(line)
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.into(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// A time as RFC 3339 with microseconds, in UTC.
#[must_use]
pub fn time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// A time in milliseconds since the Unix epoch as sentences have it, in UTC: `2025-01-31 23:59:59Z`.
#[must_use]
pub fn moment(at_ms: u64) -> String {
    let at = time(SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms));
    let (day, of_day) = at.split_once('T').unwrap_or((&at, ""));
    format!("{day} {}Z", of_day.split('.').next().unwrap_or_default())
}

/// Year, month and day so many days after 1970-01-01, by the calendar of 400 years of 146,097 days that begin in March.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year + era * 400 + (month <= 2) as u64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(moment(1_735_689_599_999), "2024-12-31 23:59:59Z");
        assert_eq!(moment(253_402_300_800_000), "10000-01-01 00:00:00Z");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn each_event_is_one_object_on_one_line() {
        let lines = Lines::default();
        let built = tracing_subscriber::fmt().with_writer(lines.clone()).event_format(JsonLines).finish();
        tracing::subscriber::with_default(built, || {
            tracing::info!(node = 3, ready = true, error = %"two\nlines", path = ?"a\"b", "master \"serves\"");
            tracing::warn!("plain");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let read: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), 2, "{text}");
        assert_eq!(read[0]["message"], "master \"serves\"");
        assert_eq!(read[0]["level"], "INFO");
        assert_eq!(read[0]["fields"]["node"], 3);
        assert_eq!(read[0]["fields"]["ready"], true);
        assert_eq!(read[0]["fields"]["error"], "two\nlines");
        assert_eq!(read[1]["message"], "plain");
        assert!(read[1].get("fields").is_none());
        assert!(read[1]["time"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 27));
    }

    #[test]
    fn forms_have_names() {
        for format in [Format::Text, Format::Json] {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("yaml".parse::<Format>().unwrap_err().contains("text and json"));
    }
}
