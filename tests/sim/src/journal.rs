//! What happened, line by line.
//!
//! Invariants: the fingerprint covers every line ever written, so two runs with equal fingerprints
//! did the same; memory is bounded unless lines go to standard output. Must never hold real time.

use std::collections::VecDeque;

/// Lines kept for a failure report: some hundred milliseconds of a busy cluster.
const LINES_KEPT_MAX: usize = 200;

/// The log of one run.
#[derive(Debug, Default)]
pub struct Journal {
    lines: VecDeque<String>,
    fingerprint: u64,
    count: u64,
    print: bool,
}

impl Journal {
    /// An empty log; with `print` every line also goes to standard output.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self { print, fingerprint: 0xcbf2_9ce4_8422_2325, ..Self::default() }
    }

    /// Write one line.
    pub fn line(&mut self, now_us: u64, text: &str) {
        let line = format!("{:>6}.{:03} ms  {text}", now_us / 1_000, now_us % 1_000);
        for byte in line.bytes() {
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.count += 1;
        if self.print {
            println!("{line}");
        }
        if self.lines.len() == LINES_KEPT_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Covers all lines.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How many lines were written.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
