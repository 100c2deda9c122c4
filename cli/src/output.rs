//! What people and scripts see: tables, documents, times, amounts.
//!
//! Invariants: with `-o json` only JSON goes to stdout; text from the cluster never reaches a
//! terminal with control characters in it. Must never read from the cluster.

use crate::api::Resources;
use crate::error::CliError;
use comfy_table::{Table, presets};
use serde_json::Value;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who reads the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// People: tables and sentences
    #[default]
    Table,
    /// Scripts: the master's documents
    Json,
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

/// Write a document.
///
/// # Errors
/// As [`write`].
pub fn json(value: &Value) -> Result<(), CliError> {
    line(&format!("{value:#}"))
}

/// Write a table, or a sentence when it would be empty.
///
/// # Errors
/// As [`write`].
pub fn table(header: &[&str], rows: Vec<Vec<String>>, when_empty: &str) -> Result<(), CliError> {
    if rows.is_empty() {
        note(when_empty);
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    line(&text.join("\n"))
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
    text
}

/// Thousandths of a core as cores.
pub fn cpus(milli: i64) -> String {
    let sign = if milli < 0 { "-" } else { "" };
    let (whole, rest) = (milli.unsigned_abs() / 1_000, milli.unsigned_abs() % 1_000);
    let text = format!("{sign}{whole}.{rest:03}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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
    let seconds = at_ms / 1_000;
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// Days since the Unix epoch as a Gregorian date, counted in eras of 400 years that start in March.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{age, bytes, clean, cpus, time};

    #[test]
    fn times_are_utc() {
        assert_eq!(time(0), "");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(time(1_735_689_599_999), "2024-12-31 23:59:59Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00Z");
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
