//! `tessera man`: manual pages, one for each command, made of the command line's own definition.

use crate::Cli;
use crate::error::{CliError, Kind};
use clap::CommandFactory as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `tessera man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tessera man --dir ~/.local/share/man/man1\n  man tessera-framework-create")]
pub struct ManArgs {
    /// Where the pages are written; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Write them; pages that are there already are replaced.
///
/// # Errors
/// When the directory or a page cannot be written.
pub fn run(args: &ManArgs) -> Result<ExitCode, CliError> {
    let written = std::fs::create_dir_all(&args.dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir));
    written.map_err(|error| CliError::new(Kind::Failed, format!("cannot write manual pages to {}: {error}", args.dir.display())))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_with_its_examples() {
        let dir = tempfile::tempdir().unwrap();
        run(&ManArgs { dir: dir.path().join("man1") }).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).unwrap_or_default();
        assert!(page("tessera.1").contains("tessera\\-framework(1)"));
        assert!(page("tessera-role-set.1").contains("tessera role set eng \\-\\-weight 2"));
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(!page(&format!("tessera-{}.1", command.get_name())).is_empty(), "{}", command.get_name());
        }
    }
}
