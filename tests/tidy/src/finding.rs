//! What a checker says. Owns the one format of all findings; knows no rule.

use std::fmt;

/// One place that breaks one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path below the root of the repository.
    pub file: String,
    /// Line, counted from 1; 0 where the whole file or its absence is meant.
    pub line: usize,
    /// The rule, as a short sentence with what was found.
    pub rule: String,
    /// What to do instead.
    pub way_out: &'static str,
}

impl Finding {
    /// A finding at `file`:`line`.
    pub fn new(file: &str, line: usize, rule: impl Into<String>, way_out: &'static str) -> Self {
        Self {
            file: file.to_owned(),
            line,
            rule: rule.into(),
            way_out,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}\n    way out: {}",
            self.file, self.line, self.rule, self.way_out
        )
    }
}

/// All findings as one text, in order; empty when there are none.
pub fn report(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect()
}
