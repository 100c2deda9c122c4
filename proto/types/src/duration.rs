//! Durations as people write them, in arguments and in files.
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
///
/// # Errors
/// What is expected, for people; also when it is more than fits.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let rule = || format!("{text:?} is no duration: a number and a unit, ms, s, m, h or d, as in \"10m\"");
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(rule)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| rule())?;
    let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(rule)?;
    number.checked_mul(*size).ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::parse_duration;

    #[test]
    fn durations_are_read_with_units() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
        for text in [
            "", "10", "m", "5 s", "-1s", "1.5s", "1w", "99999999999999999999s", "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
