//! Starts real clusters for tests and measurements: processes, ports, directories, and waiting.
//!
//! Invariants: clusters of one test binary run one after the other, because control groups and CPU
//! are the machine's, but for those that say that they do not mind others; every wait has a deadline and says what it saw last; a cluster that was not
//! finished leaves its directory, with its logs, and says where. Must never reach into a process: all
//! that is known comes from REST, files and /proc.

pub mod cli;
pub mod cluster;
pub mod disk;
pub mod guests;
pub mod masters;
pub mod net;
pub mod procfs;
pub mod random;
pub mod rest;
pub mod site;
pub mod wait;

/// What tests and measurements fail with.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A result of a test or measurement.
pub type Outcome<T = ()> = Result<T, Failure>;

/// A failure with this text.
pub fn failure(text: impl Into<String>) -> Failure {
    text.into().into()
}

/// Here is less than a test needs. That is said past the harness, which keeps what passing tests print.
///
/// # Errors
/// Unless `TESSERA_ALLOW_SKIP` is set.
pub fn skipped(what: &str) -> Outcome {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "SKIPPED: {what}")?;
    ensure(std::env::var_os("TESSERA_ALLOW_SKIP").is_some(), || {
        format!("not tested: {what}; run as root, or set TESSERA_ALLOW_SKIP")
    })
}

/// Fails with the text unless the condition holds.
///
/// # Errors
/// When it does not.
pub fn ensure(condition: bool, text: impl FnOnce() -> String) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(failure(text()))
    }
}
