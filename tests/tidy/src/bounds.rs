//! The fixed bounds in the page on limits against the constants in the code.
//!
//! Owns how both write numbers; knows no reasons. A file of bounds that the contract has with its
//! guests has to be in the page as a whole, and of the masters' own every bound on how many or how much.

use crate::finding::Finding;

/// The page; rows of its last column say which constant, and in which file.
pub const BOUNDS_LISTED_IN: &str = "docs/limits.md";
/// The file of which every constant has to be listed, or to be a default of the page's first table.
pub const BOUNDS_OF_THE_CONTRACT: &str = "proto/types/src/limits.rs";
/// The file of which every constant that is a maximum has to be listed.
pub const BOUNDS_OF_THE_MASTERS: &str = "master/core/src/limits.rs";
/// Where the first file's constants are taken as defaults of limits that an operator sets.
pub const DEFAULTS_TAKEN_IN: &str = "proto/types/src/limit_table.rs";

const SAY_IT: &str = "write into docs/limits.md what the code says";
const LIST_IT: &str = "add a row to the last table of docs/limits.md";

/// One row: what the page says of a constant.
struct Row<'a> {
    line: usize,
    value: &'a str,
    name: &'a str,
    path: &'a str,
}

fn rows(page: &str) -> Vec<Row<'_>> {
    fn row(at: usize, line: &str) -> Option<Row<'_>> {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, value, constant] = cells.as_slice() else {
            return None;
        };
        let (name, path) = constant.split_once(" in ")?;
        Some(Row {
            line: at + 1,
            value,
            name: name.trim_matches('`'),
            path: path.trim_matches('`'),
        })
    }
    page.lines()
        .enumerate()
        .filter_map(|(at, line)| row(at, line))
        .collect()
}

/// A number of the page, in bytes, milliseconds or pieces.
fn said(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number: u64 = number.replace(',', "").parse().ok()?;
    let size = match unit {
        "" | "B" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "days" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(size)
}

/// A constant's value, likewise: a number, a shifted one, or a duration.
fn meant(expression: &str) -> Option<u64> {
    let inside = |text: &str, from: &str| -> Option<u64> {
        let number = text.strip_prefix(from)?.strip_suffix(')')?;
        number.replace('_', "").parse().ok()
    };
    if let Some(seconds) = inside(expression, "Duration::from_secs(") {
        return seconds.checked_mul(1_000);
    }
    if let Some(millis) = inside(expression, "Duration::from_millis(") {
        return Some(millis);
    }
    let plain = expression.replace('_', "");
    match plain.split_once(" << ") {
        Some((number, by)) => number.parse::<u64>().ok()?.checked_shl(by.parse().ok()?),
        None => plain.parse().ok(),
    }
}

/// The constants of a file: line, name and expression.
fn constants(source: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    source.lines().enumerate().filter_map(|(at, line)| {
        let line = line.trim_start().trim_start_matches("pub ");
        let (name, rest) = line.strip_prefix("const ")?.split_once(": ")?;
        let (_, expression) = rest.split_once(" = ")?;
        Some((at + 1, name, expression.trim_end_matches(';')))
    })
}

/// Refuses rows whose constant is another or is not there, and constants of the contract without a row.
pub fn check_bounds<'a>(page: &str, mut read: impl FnMut(&str) -> Option<&'a str>) -> Vec<Finding> {
    let rows = rows(page);
    let mut findings = Vec::new();
    for row in &rows {
        let source = read(row.path).unwrap_or_default();
        let found = constants(source).find(|(_, name, _)| *name == row.name);
        let rule = match found {
            None => format!("there is no constant `{}` in {}", row.name, row.path),
            Some((_, _, expression)) if said(row.value) != meant(expression) => {
                format!("`{}` is {expression}, not {}", row.name, row.value)
            }
            Some((_, _, expression)) if meant(expression).is_none() => {
                format!("`{}` is {expression}, which is no number", row.name)
            }
            Some(_) => continue,
        };
        findings.push(Finding::new(BOUNDS_LISTED_IN, row.line, rule, SAY_IT));
    }
    let defaults = read(DEFAULTS_TAKEN_IN).unwrap_or_default();
    let is_default = |name: &str| defaults.contains(&format!("fixed::{name}"));
    let is_maximum = |name: &str| name.split('_').any(|word| word == "MAX");
    for (path, whole) in [(BOUNDS_OF_THE_CONTRACT, true), (BOUNDS_OF_THE_MASTERS, false)] {
        for (line, name, _) in constants(read(path).unwrap_or_default()) {
            let listed = rows.iter().any(|row| row.name == name && row.path == path);
            let exempt = if whole { is_default(name) } else { !is_maximum(name) };
            if !listed && !exempt {
                let rule = format!("the bound `{name}` is not listed");
                findings.push(Finding::new(path, line, rule, LIST_IT));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "/// Keys.\npub const KEYS: usize = 1_000;\npub const SIZE: u64 = 64 << 10;\npub const WAIT: Duration = Duration::from_secs(90);\npub const TAKEN: u64 = 7;\n";

    fn page(keys: &str, size: &str, wait: &str) -> String {
        let row = |value: &str, name: &str| {
            format!("| something | {value} | `{name}` in `{BOUNDS_OF_THE_CONTRACT}` |\n")
        };
        let head = "| limit | default | from | to |\n| `x` | 1 | 2 | 3 |\n";
        format!(
            "{head}{}{}{}",
            row(keys, "KEYS"),
            row(size, "SIZE"),
            row(wait, "WAIT")
        )
    }

    #[test]
    fn rows_say_what_the_code_says() {
        let whole = page("1,000", "64 KiB", "90 s");
        let unlisted = format!("{CODE}pub const MORE: u64 = 1;\n");
        let masters = "pub const EVERY_MS: u64 = 9;\npub const TASKS_MAX: usize = 3;\n";
        let cases = [
            (&whole, CODE, ""),
            (
                &page("100", "64 KiB", "90 s"),
                CODE,
                "docs/limits.md:3: `KEYS` is 1_000, not 100",
            ),
            (
                &page("1,000", "64 MiB", "90 s"),
                CODE,
                "docs/limits.md:4: `SIZE` is 64 << 10, not 64 MiB",
            ),
            (
                &whole.replace("`WAIT`", "`WAITS`"),
                CODE,
                "docs/limits.md:5: there is no constant `WAITS` in proto/types/src/limits.rs",
            ),
            (
                &whole,
                &unlisted,
                "proto/types/src/limits.rs:6: the bound `MORE` is not listed",
            ),
        ];
        let listed = format!("{whole}| tasks | 3 | `TASKS_MAX` in `{BOUNDS_OF_THE_MASTERS}` |\n");
        let unlisted = "master/core/src/limits.rs:2: the bound `TASKS_MAX` is not listed";
        let of_masters = [(&listed, masters, ""), (&whole, masters, unlisted)];
        let cases = cases.map(|(page, code, expected)| (page, code, "", expected));
        let of_masters = of_masters.map(|(page, masters, expected)| (page, CODE, masters, expected));
        for (page, code, masters, expected) in cases.into_iter().chain(of_masters) {
            let read = |path: &str| match path {
                BOUNDS_OF_THE_CONTRACT => Some(code),
                BOUNDS_OF_THE_MASTERS => Some(masters),
                DEFAULTS_TAKEN_IN => Some("fixed::TAKEN"),
                _ => None,
            };
            let found: Vec<String> = check_bounds(page, read)
                .iter()
                .map(ToString::to_string)
                .collect();
            let first = found.first().and_then(|text| text.lines().next());
            assert_eq!(first.unwrap_or_default(), expected, "{found:?}");
        }
    }
}
