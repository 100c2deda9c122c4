//! The log of a process that serves: what is in it, and what it looks like.
//!
//! Invariants: it goes to stderr; a flag wins over the environment. Must never be started by a command that only asks.

use crate::error::{CliError, Kind};
use std::ffi::OsString;
use tessera_telemetry::log::{self, FORMAT_VARIABLE, Format};
use tracing_subscriber::EnvFilter;

/// What is logged where nothing is said.
const DEFAULT_FILTER: &str = "info";
/// Chooses what is logged, as `info` or `tessera_master=debug`.
const FILTER_VARIABLE: &str = "TESSERA_LOG";

/// How to log.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct LoggingArgs {
    /// What the log looks like: text, or json with one object per line [default: TESSERA_LOG_FORMAT, else text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

impl LoggingArgs {
    /// Begin to log.
    ///
    /// # Errors
    /// When the environment asks for a form that is none, or for levels that are none.
    pub fn start(self, process: &'static str) -> Result<(), CliError> {
        let format = match self.log_format {
            Some(format) => format,
            None => from_environment(std::env::var(FORMAT_VARIABLE).ok())?,
        };
        log::start(process, format, filter(std::env::var(FILTER_VARIABLE).ok())?);
        Ok(())
    }

    /// The same for a child process.
    pub fn arguments(self) -> Vec<OsString> {
        let said = self.log_format.map(|format| ["--log-format".into(), format.name().into()]);
        said.into_iter().flatten().collect()
    }
}

fn from_environment(said: Option<String>) -> Result<Format, CliError> {
    let said = said.filter(|text| !text.is_empty());
    let format = said.map(|text| text.parse()).transpose();
    let format = format.map_err(|rule: String| CliError::new(Kind::Usage, format!("{FORMAT_VARIABLE}: {rule}")))?;
    Ok(format.unwrap_or_default())
}

fn filter(said: Option<String>) -> Result<EnvFilter, CliError> {
    let said = said.filter(|text| !text.is_empty());
    EnvFilter::try_new(said.as_deref().unwrap_or(DEFAULT_FILTER)).map_err(|error| {
        CliError::new(Kind::Usage, format!("{FILTER_VARIABLE}: {error}")).hint("levels are error, warn, info, debug and trace: info, or tessera_master=debug,info")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_or_refused() {
        for (said, format) in [(None, Some(Format::Text)), (Some(""), Some(Format::Text)), (Some("json"), Some(Format::Json)), (Some("xml"), None)] {
            let read = from_environment(said.map(str::to_owned));
            assert_eq!(read.as_ref().ok().copied(), format, "{said:?}");
            if let Err(error) = read {
                assert!(error.to_string().starts_with(FORMAT_VARIABLE), "{error}");
            }
        }
    }

    #[test]
    fn levels_are_read_or_refused() {
        for (said, good) in [(None, true), (Some(""), true), (Some("debug"), true), (Some("tessera_master=debug,info"), true), (Some("bogus=xx"), false)] {
            assert_eq!(filter(said.map(str::to_owned)).is_ok(), good, "{said:?}");
        }
    }

    #[test]
    fn children_are_told_what_was_said() {
        let said = LoggingArgs { log_format: Some(Format::Json) };
        assert_eq!(said.arguments(), ["--log-format", "json"]);
        assert!(LoggingArgs::default().arguments().is_empty());
    }
}
