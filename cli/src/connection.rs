//! Where the cluster is and who asks: flags, environment and defaults become an address and a token.
//!
//! Invariants: a token is never printed and never taken from the command line, where others could
//! read it. Must never open a connection.

use crate::error::{CliError, Kind, io_error};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// REST address when nothing is said: that of `tessera dev`.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:5050";
/// A larger token file is some other file.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// Flags of every command that speaks to a master.
#[derive(Clone, Debug, clap::Args)]
pub struct ConnectionArgs {
    /// REST address of a master; several, separated by commas, are tried in turn
    #[arg(long, global = true, env = "TESSERA_ADDRESS", default_value = DEFAULT_ADDRESS, value_name = "URL", help_heading = "Connection")]
    pub address: String,
    /// File with the token; TESSERA_TOKEN (the token itself) comes first if it is set
    /// [default: that of `tessera dev`]
    #[arg(
        long,
        global = true,
        env = "TESSERA_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// The addresses, checked, without a slash at their end; at least one.
    ///
    /// # Errors
    /// When one is no `http` URL.
    pub fn bases(&self) -> Result<Vec<reqwest::Url>, CliError> {
        self.address.split(',').map(|address| Self::base(address.trim())).collect()
    }

    fn base(address: &str) -> Result<reqwest::Url, CliError> {
        let text = if address.contains("://") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        let url = reqwest::Url::parse(&text).map_err(|error| {
            CliError::new(
                Kind::Usage,
                format!("the address {address:?} is no URL: {error}"),
            )
        })?;
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(CliError::new(
                Kind::Usage,
                format!(
                    "the address {address:?} must start with http:// and name a host"
                ),
            )
            .hint("reach a remote master through a tunnel: ssh -L 5050:127.0.0.1:5050 HOST"));
        }
        Ok(url)
    }

    /// The token.
    ///
    /// # Errors
    /// When there is none, or its file cannot be read.
    pub fn token(&self) -> Result<String, CliError> {
        // The flag is more explicit than the environment; clap cannot tell which of both it was.
        if let Ok(token) = std::env::var("TESSERA_TOKEN") {
            return check_token(&token, "TESSERA_TOKEN");
        }
        let path = match &self.token_file {
            Some(path) => path.clone(),
            None => token_path(&default_dev_dir()),
        };
        read_token(&path).map_err(|error| match error.kind {
            Kind::NotFound => error.hint(
                "start a cluster with `tessera dev`, or name the token of another one: --token-file, \
                 TESSERA_TOKEN_FILE or TESSERA_TOKEN; a master writes it to admin.token in its data directory",
            ),
            _ => error,
        })
    }
}

/// Read a token from its file.
///
/// # Errors
/// When it cannot be read, or holds no token.
pub fn read_token(path: &Path) -> Result<String, CliError> {
    let about = |error: std::io::Error| io_error("read the token file", path, &error);
    // The length that a file has says nothing of what a device or a pipe would give.
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(about)?;
    file.take(TOKEN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(about)?;
    if text.len() as u64 > TOKEN_BYTES_MAX {
        return Err(CliError::new(
            Kind::Usage,
            format!("{} is too large for a token", path.display()),
        ));
    }
    check_token(&text, &path.display().to_string())
}

fn check_token(text: &str, source: &str) -> Result<String, CliError> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CliError::new(
            Kind::Usage,
            format!("{source} holds no token: one word of printable ASCII is expected"),
        ));
    }
    Ok(token.to_owned())
}

/// The data directory of `tessera dev` when nothing is said. Not in root's home: its tasks run as other
/// users, who may not pass through there to their sandboxes.
pub fn default_dev_dir() -> PathBuf {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = || absolute("HOME").filter(|_| !nix::unistd::Uid::effective().is_root());
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| home().map(|home| home.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"));
    data.join("tessera/dev")
}

/// The master's data directory below that of `tessera dev`.
pub fn master_dir(dev_dir: &Path) -> PathBuf {
    dev_dir.join("master")
}

/// The agent's work directory below that of `tessera dev`.
pub fn agent_dir(dev_dir: &Path) -> PathBuf {
    dev_dir.join("agent")
}

/// The token below the directory of `tessera dev`.
pub fn token_path(dev_dir: &Path) -> PathBuf {
    master_dir(dev_dir).join("admin.token")
}

#[cfg(test)]
mod tests {
    use super::{ConnectionArgs, check_token, read_token};
    use std::path::Path;

    fn args(address: &str) -> ConnectionArgs {
        ConnectionArgs {
            address: address.to_owned(),
            token_file: None,
        }
    }

    #[test]
    fn addresses_are_checked() {
        for good in [
            "http://127.0.0.1:5050",
            "127.0.0.1:5050",
            "http://[::1]:1",
            "localhost:80",
            "10.0.0.1:5050, http://10.0.0.2:5050",
        ] {
            assert!(args(good).bases().is_ok(), "{good}");
        }
        for bad in [
            "https://host",
            "ftp://host",
            "http://",
            "127.0.0.1:notaport",
            "127.0.0.1:80,",
        ] {
            assert!(args(bad).bases().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_file_without_end_is_refused() {
        let error = read_token(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }

    #[test]
    fn tokens_are_one_word() {
        assert_eq!(check_token("abc\n", "x").unwrap(), "abc");
        for bad in ["", " \n", "a b", "a\nb", "ä"] {
            assert!(check_token(bad, "x").is_err(), "{bad:?}");
        }
    }
}
