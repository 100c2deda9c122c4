//! Durations as people read them.
//!
//! Must never know what they are for.

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
    fn durations_are_shown() {
        for (ms, shown) in [
            (250, "250ms"),
            (12_000, "12.0s"),
            (300_000, "5m00s"),
            (10_800_000, "3h00m"),
            (86_400_000, "24h00m"),
        ] {
            assert_eq!(show(ms), shown);
        }
    }
}
