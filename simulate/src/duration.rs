//! Durations as people write and read them.
//!
//! Must never know what they are for.

/// Units, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Reads `500ms`, `30s`, `10m`, `2h` or `1d` as milliseconds.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let rule = || format!("{text:?} is no duration: a number and a unit, ms, s, m, h or d, as in \"10m\"");
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(rule)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| rule())?;
    let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(rule)?;
    number.checked_mul(*size).ok_or_else(rule)
}

/// `250ms`, `12.3s`, `5m07s`, `3h02m`.
pub(crate) fn show(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{}h{:02}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, ms, shown) in [
            ("250ms", 250, "250ms"),
            ("12s", 12_000, "12.0s"),
            ("5m", 300_000, "5m00s"),
            ("3h", 10_800_000, "3h00m"),
            ("1d", 86_400_000, "24h00m"),
        ] {
            assert_eq!(parse(text), Ok(ms));
            assert_eq!(show(ms), shown);
        }
        for bad in ["", "5", "s", "5 s", "-5s", "5w", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
