//! Tables of lists: which columns there are, what fits a terminal, where colour goes.
//!
//! Invariants: one line per object and no blanks in a header, so that `awk` can read it; nothing is cut and
//! nothing is coloured where no person looks. Must never write.

use super::{Settings, clean};
use comfy_table::{Table, presets};

/// A column keeps at least so many characters when it is cut.
const CUT_KEEPS: usize = 8;

/// When a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Always, whole.
    Always,
    /// Always; cut where the terminal is too narrow.
    Cut,
    /// Only with `-o wide`.
    Wide,
}

/// A column of a list.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    shown: Shown,
}

/// A column that is always shown whole.
pub const fn col(name: &'static str) -> Column {
    Column { name, shown: Shown::Always }
}

/// A column of words, which gives way where a terminal is narrow.
pub const fn text(name: &'static str) -> Column {
    Column { name, shown: Shown::Cut }
}

/// A column of `-o wide`.
pub const fn wide(name: &'static str) -> Column {
    Column { name, shown: Shown::Wide }
}

/// The lines of a table, the header first if there is one.
pub fn lines(columns: &[Column], rows: Vec<Vec<String>>, settings: &Settings) -> Vec<String> {
    let shown: Vec<usize> = (0..columns.len())
        .filter(|&at| settings.wide() || columns[at].shown != Shown::Wide)
        .collect();
    let mut rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| shown.iter().map(|&at| cell(row.get(at))).collect())
        .collect();
    if let Some(width) = settings.width.filter(|_| !settings.wide()) {
        cut(columns, &shown, &mut rows, width);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if settings.headers {
        table.set_header(shown.iter().map(|&at| columns[at].name));
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    if settings.color { painted(lines, settings.headers) } else { lines }
}

/// What has nothing to show is told apart from a column that was left out.
fn cell(text: Option<&String>) -> String {
    match text.map(|text| clean(text)) {
        Some(text) if !text.trim().is_empty() => text,
        _ => "-".to_owned(),
    }
}

/// Takes from the columns that give way what the line is too long, the longest first.
fn cut(columns: &[Column], shown: &[usize], rows: &mut [Vec<String>], width: usize) {
    let longest = |rows: &[Vec<String>], at: usize, name: &str| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.max().unwrap_or(0).max(name.len())
    };
    let mut widths: Vec<usize> =
        shown.iter().enumerate().map(|(place, &at)| longest(rows, place, columns[at].name)).collect();
    let gaps = 2 * shown.len().saturating_sub(1);
    let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    while over > 0 {
        let candidates = (0..shown.len()).filter(|&place| columns[shown[place]].shown == Shown::Cut);
        let Some(place) = candidates.max_by_key(|&place| widths[place]) else { return };
        let least = CUT_KEEPS.max(columns[shown[place]].name.len());
        if widths[place] <= least {
            return;
        }
        widths[place] -= 1;
        over -= 1;
    }
    for row in rows {
        for (place, cell) in row.iter_mut().enumerate() {
            if cell.chars().count() > widths[place] {
                *cell = cell.chars().take(widths[place].saturating_sub(1)).chain(['…']).collect();
            }
        }
    }
}

/// Bold headers, and states in the colour of what they mean.
fn painted(lines: Vec<String>, headers: bool) -> Vec<String> {
    let state = lines.first().filter(|_| headers).and_then(|header| {
        let whole = |at: usize| header[..at].ends_with(' ') && (header[at..].len() == 5 || header[at + 5..].starts_with(' '));
        header.match_indices("STATE").map(|(at, _)| at).find(|&at| at == 0 || whole(at))
    });
    let painted = lines.into_iter().enumerate().map(|(row, line)| match (row, state) {
        (0, _) if headers => format!("\x1b[1m{line}\x1b[0m"),
        (_, Some(at)) => paint_from(&line, at),
        _ => line,
    });
    painted.collect()
}

/// Paints the word that begins at this column.
fn paint_from(line: &str, column: usize) -> String {
    let Some((at, _)) = line.char_indices().nth(column) else { return line.to_owned() };
    let (before, rest) = line.split_at(at);
    let end = rest.find(|c: char| c == ' ' || c == ',').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    format!("{before}{}{after}", paint(word))
}

/// A state in the colour of what it means; other words as they are.
fn paint(word: &str) -> String {
    let code = match word {
        "TASK_RUNNING" | "TASK_FINISHED" | "running" | "connected" | "ok" | "leader" | "active" => "32",
        "TASK_STAGING" | "TASK_STARTING" | "TASK_KILLING" | "starting" | "migrating" | "trial" | "removing"
        | "unplaced" | "draining" | "warning" => "33",
        "TASK_FAILED" | "TASK_ERROR" | "TASK_LOST" | "TASK_GONE" | "TASK_GONE_BY_OPERATOR" | "TASK_DROPPED"
        | "TASK_UNREACHABLE" | "quarantined" | "backing-off" | "unreachable" | "disconnected" | "silent"
        | "problem" => "31",
        _ => return word.to_owned(),
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::{Column, col, lines, text, wide};
    use crate::output::{Format, Settings};

    const COLUMNS: [Column; 4] = [col("ID"), wide("HOST"), col("STATE"), text("WHY")];

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        vec![
            row(["f1", "h1", "running", ""]),
            row(["f22", "h2", "quarantined", "it failed 3 times in a row, and nobody released it"]),
        ]
    }

    #[test]
    fn tables_are_the_same_every_time() {
        let plain = Settings::default();
        let cases = [
            (plain.clone(), "ID   STATE        WHY\nf1   running      -\nf22  quarantined  it failed 3 times in a row, and nobody released it"),
            (Settings { width: Some(34), ..plain.clone() }, "ID   STATE        WHY\nf1   running      -\nf22  quarantined  it failed 3 tim…"),
            (Settings { headers: false, width: Some(34), ..plain.clone() }, "f1   running      -\nf22  quarantined  it failed 3 tim…"),
            (
                Settings { format: Format::Wide, width: Some(34), ..plain.clone() },
                "ID   HOST  STATE        WHY\nf1   h1    running      -\nf22  h2    quarantined  it failed 3 times in a row, and nobody released it",
            ),
            (
                Settings { color: true, width: Some(34), ..plain },
                "\x1b[1mID   STATE        WHY\x1b[0m\nf1   \x1b[32mrunning\x1b[0m      -\nf22  \x1b[31mquarantined\x1b[0m  it failed 3 tim…",
            ),
        ];
        for (settings, expected) in cases {
            assert_eq!(lines(&COLUMNS, rows(), &settings).join("\n"), expected, "{settings:?}");
        }
    }

    #[test]
    fn a_table_without_a_column_that_gives_way_is_not_cut() {
        let settings = Settings { width: Some(4), ..Settings::default() };
        let rows = vec![vec!["a-long-word".to_owned()]];
        assert_eq!(lines(&[col("ID")], rows, &settings), ["ID", "a-long-word"]);
    }
}
