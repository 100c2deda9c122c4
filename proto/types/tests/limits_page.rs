//! `docs/limits.md` lists every limit of the table with its values, as the table has them.
//!
//! `TESSERA_UPDATE_PAGES=1` writes the rows anew. Must never judge what a limit is for.

use std::fmt::Write as _;
use std::path::Path;
use tessera_types::{LimitName, LimitRow, LimitUnit};

/// What stands around the rows.
const BEGIN: &str = "<!-- the table of limits -->\n";
const END: &str = "<!-- end of the table of limits -->\n";

/// A number with separators between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As people read it: in the largest unit in which it is whole.
fn shown(unit: LimitUnit, value: u64) -> String {
    let units: &[(u64, &str)] = match unit {
        LimitUnit::Bytes => &[
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
            (1, "B"),
        ],
        LimitUnit::Ms => &[(3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")],
        LimitUnit::Count => return grouped(value),
    };
    let found = units
        .iter()
        .find(|(size, _)| value >= *size && value.is_multiple_of(*size));
    found.map_or_else(
        || "0".to_owned(),
        |(size, name)| format!("{} {name}", grouped(value / size)),
    )
}

fn rows() -> String {
    let mut text =
        String::from("| limit | default | from | to | what it bounds |\n|---|---|---|---|---|\n");
    for name in LimitName::ALL {
        let LimitRow {
            name,
            unit,
            default,
            min,
            max,
            what,
        } = name.row();
        let [default, min, max] = [default, min, max].map(|value| shown(unit, value));
        writeln!(text, "| `{name}` | {default} | {min} | {max} | {what} |").expect("text has room");
    }
    text
}

#[test]
fn the_page_has_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/limits.md");
    let text = std::fs::read_to_string(&page).expect("the page is there");
    let (before, rest) = text.split_once(BEGIN).expect("the table begins");
    let (found, after) = rest.split_once(END).expect("the table ends");
    let expected = rows();
    if std::env::var_os("TESSERA_UPDATE_PAGES").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{expected}{END}{after}"))
            .expect("it can be written");
    } else {
        assert_eq!(
            found, expected,
            "docs/limits.md: write it anew with TESSERA_UPDATE_PAGES=1"
        );
    }
}

#[test]
fn values_are_shown_in_whole_units() {
    let cases = [
        (LimitUnit::Bytes, 64 << 20, "64 MiB"),
        (LimitUnit::Bytes, 1_536, "1,536 B"),
        (LimitUnit::Bytes, 0, "0"),
        (LimitUnit::Ms, 86_400_000, "24 h"),
        (LimitUnit::Ms, 1_500, "1,500 ms"),
        (LimitUnit::Count, 1_000_000, "1,000,000"),
    ];
    for (unit, value, expected) in cases {
        assert_eq!(shown(unit, value), expected);
    }
}
