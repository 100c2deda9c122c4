//! What processes tell about themselves: the table of metrics and their text, spans, and lines of the log.
//!
//! Invariants: every metric is a row of one table, from which `docs/metrics.md` is made, and no other name leaves a
//! process; what is counted where work is done is an integer atomic, and nothing there takes a lock or allocates; spans leave
//! on a thread of their own. Must never hold a rule of the cluster, or let anybody wait.

pub mod export;
pub mod log;
mod number;
mod page;
mod parse;
mod process;
pub mod span;
mod table;

pub use number::{Counter, Histogram};
pub use page::{Page, Value};
pub use parse::{Family, parse};
pub use process::Process;
pub use table::{FRAMEWORKS_SHOWN_MAX, Kind, METRICS, Metric, Name, OTHERS, ROLES_SHOWN_MAX, Who};

/// What this program was made from, as far as whoever built it said: `make dist` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// Version.
    pub version: &'static str,
    /// Commit; empty when not said.
    pub commit: &'static str,
    /// When, as RFC 3339; empty when not said.
    pub built: &'static str,
    /// Compiler; empty when not said.
    pub rustc: &'static str,
}

/// What this program was made from.
pub const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    commit: said(option_env!("TESSERA_BUILD_COMMIT")),
    built: said(option_env!("TESSERA_BUILD_TIME")),
    rustc: said(option_env!("TESSERA_BUILD_RUSTC")),
};

const fn said(value: Option<&'static str>) -> &'static str {
    match value {
        Some(value) => value,
        None => "",
    }
}
