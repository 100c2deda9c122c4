//! What can go wrong in a command, how it is told to people, and the exit code that goes with it.
//!
//! Invariants: the exit code is chosen here and nowhere else; every message says what was attempted,
//! and a way out stands in the hint where there is one. Must never print.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, and what they say. `docs/cli.md` has the same table, which a test holds.
pub const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "done"),
    ("1", "failed; `tessera doctor` found a problem"),
    ("2", "wrong usage: a flag, an argument, a file of settings"),
    ("3", "not found"),
    ("4", "refused: a rule or a permission stands against it, or an upgrade was given up"),
    ("5", "the cluster could not be reached, or is not ready"),
    ("6", "it differs: `tessera framework replay` found a divergence"),
    ("7", "timed out waiting; what was asked for goes on"),
    ("124", "`tessera run --timeout`: the command was killed, its time was over"),
    ("125", "`tessera run`: the command could not be run"),
    ("130", "interrupted; what was waited for goes on"),
    ("128+N", "`tessera run`: signal N ended the command; else it ends with the command's own code"),
];

/// The table of exit codes for the end of the help.
pub fn exit_codes_help() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("  {code:<6} {meaning}\n"));
    }
    text
}

/// Code of `tessera run` when the command could not be run: out of the way of the usual codes of
/// commands, as with other runners.
pub const EXIT_RUN_FAILED: u8 = 125;

/// Kinds of failure that scripts tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything that the other kinds do not name.
    Failed,
    /// Flags or arguments are wrong.
    Usage,
    /// The object is not there.
    NotFound,
    /// A rule or a permission stands against it.
    Refused,
    /// Nobody answers, or the cluster is not ready.
    Unavailable,
    /// What was waited for did not happen in time, and may yet.
    Timeout,
    /// The user left while something was waited for, which goes on.
    Interrupted,
}

impl Kind {
    /// The exit code of this kind.
    pub const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Unavailable => 5,
            Self::Timeout => 7,
            Self::Interrupted => 130,
        }
    }

    /// The kind that an HTTP status stands for.
    pub const fn of_status(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            400 | 401 | 403 | 405 | 409 | 412 | 413 | 422 | 501 => Self::Refused,
            429 | 502..=504 => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub struct CliError {
    /// What scripts are told.
    pub kind: Kind,
    /// What was attempted, and why it could not be.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// A child's exit code that is passed on instead of the kind's.
    pub exit_code: Option<u8>,
    /// The HTTP status of a refusal.
    pub status: Option<u16>,
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl CliError {
    /// A failure of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            exit_code: None,
            status: None,
        }
    }

    /// A failure of no special kind.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// With a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With an exit code of its own.
    #[must_use]
    pub fn exit(mut self, code: u8) -> Self {
        self.exit_code = Some(code);
        self
    }

    /// The code that the process ends with.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit_code.unwrap_or_else(|| self.kind.code()))
    }
}

/// A failure to read or write a file, with its path.
pub fn io_error(attempt: &str, path: &std::path::Path, error: &std::io::Error) -> CliError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        _ => Kind::Failed,
    };
    CliError::new(
        kind,
        format!("cannot {attempt} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::{CliError, EXIT_CODES, EXIT_RUN_FAILED, Kind, exit_codes_help};

    #[test]
    fn every_code_is_in_the_table_and_the_table_in_the_documentation() {
        let kinds = [
            Kind::Failed,
            Kind::Usage,
            Kind::NotFound,
            Kind::Refused,
            Kind::Unavailable,
            Kind::Timeout,
            Kind::Interrupted,
        ];
        let codes = kinds.map(Kind::code).into_iter().chain([0, 6, 124, EXIT_RUN_FAILED]);
        for code in codes {
            assert!(EXIT_CODES.iter().any(|(known, _)| *known == code.to_string()), "{code}");
        }
        let page = include_str!("../../docs/cli.md");
        for (code, meaning) in EXIT_CODES {
            assert!(page.contains(&format!("| {code} | {meaning} |")), "docs/cli.md lacks {code}: {meaning}");
            assert!(exit_codes_help().contains(meaning));
        }
        let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains(" | "));
        let of_codes = rows.filter(|line| line[2..].starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(of_codes.count(), EXIT_CODES.len());
    }

    #[test]
    fn statuses_have_kinds() {
        let cases = [
            (404, Kind::NotFound),
            (400, Kind::Refused),
            (401, Kind::Refused),
            (503, Kind::Unavailable),
            (500, Kind::Failed),
        ];
        for (status, kind) in cases {
            assert_eq!(Kind::of_status(status), kind, "{status}");
        }
    }

    #[test]
    fn a_hint_stands_on_its_own_line() {
        let error = CliError::failed("cannot do it").hint("do something else");
        assert_eq!(error.to_string(), "cannot do it\n  hint: do something else");
    }
}
