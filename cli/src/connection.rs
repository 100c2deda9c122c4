//! Where the cluster is and who asks: flags, environment, contexts and defaults become an address and a token.
//!
//! Invariants: a token is never printed and never taken from the command line, where others could
//! read it; the token of a context goes to the addresses of that context only. Must never open a connection.

use crate::contexts::{ConfigFile, Entry};
use crate::error::{CliError, Kind, io_error};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// REST address when nothing is said: that of `tessera dev`.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:5050";
/// A larger token file is some other file.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// Flags of every command that speaks to a master.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConnectionArgs {
    /// REST address of a master; several, separated by commas, are tried in turn [env: TESSERA_ADDRESS]
    /// [default: that of the context, or of `tessera dev`]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub address: Option<String>,
    /// File with the token [env: TESSERA_TOKEN (the token itself), TESSERA_TOKEN_FILE]
    /// [default: that of the context, or of `tessera dev`]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// Which cluster of the file of contexts [env: TESSERA_CONTEXT] [default: `tessera context use`]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub context: Option<String>,
}

/// Who said what a value is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    Flag(&'static str),
    /// This variable of the environment.
    Env(&'static str),
    /// The context in force.
    Context,
    /// The file of contexts.
    File,
    /// Nobody.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Context => f.write_str("context"),
            Self::File => f.write_str("file of contexts"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Where a token is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In this variable of the environment.
    Env(&'static str),
    /// In this file.
    File(PathBuf),
    /// This command writes it to its stdout.
    Command(Vec<String>),
}

impl std::fmt::Display for TokenPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Env(_) => f.write_str("(not shown)"),
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Command(argv) => write!(f, "from `{}`", argv.join(" ")),
        }
    }
}

/// What flags, environment, contexts and defaults come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The context in force, if there is one.
    pub context: Option<(String, Origin)>,
    /// Addresses of masters, separated by commas.
    pub address: (String, Origin),
    /// Where the token is.
    pub token: (TokenPlace, Origin),
}

impl ConnectionArgs {
    /// Find out where the cluster is, and who asks.
    ///
    /// # Errors
    /// When the file of contexts cannot be used, or there is no such context.
    pub fn resolve(&self) -> Result<Connection, CliError> {
        self.resolve_with(&ConfigFile::load()?, &environment)
    }

    fn resolve_with(
        &self,
        file: &ConfigFile,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Connection, CliError> {
        let named = match (&self.context, env("TESSERA_CONTEXT")) {
            (Some(name), _) => Some((name.clone(), Origin::Flag("context"))),
            (None, Some(name)) => Some((name, Origin::Env("TESSERA_CONTEXT"))),
            (None, None) => file.chosen()?.map(|name| (name.to_owned(), Origin::File)),
        };
        let entry = match &named {
            Some((name, _)) => {
                let entry = file.entry(name)?.clone();
                // What a flag or the environment says stands for what is wrong in it.
                let address = entry.address.clone().filter(|_| self.address.is_none() && env("TESSERA_ADDRESS").is_none());
                Entry { address, ..entry.clone() }.check(name)?;
                entry
            }
            None => Entry::default(),
        };
        let address = match (&self.address, env("TESSERA_ADDRESS"), &entry.address) {
            (Some(address), ..) => (address.clone(), Origin::Flag("address")),
            (None, Some(address), _) => (address, Origin::Env("TESSERA_ADDRESS")),
            (None, None, Some(address)) => (address.clone(), Origin::Context),
            (None, None, None) => (DEFAULT_ADDRESS.to_owned(), Origin::Default),
        };
        let env_file = env("TESSERA_TOKEN_FILE").map(PathBuf::from);
        // Another cluster is not to be shown the token of this one.
        let its_address = entry.address.as_deref().unwrap_or(DEFAULT_ADDRESS);
        let kept = entry.token().filter(|_| address.0 == its_address);
        let token = match (&self.token_file, env("TESSERA_TOKEN"), env_file, kept) {
            (Some(path), ..) => (TokenPlace::File(path.clone()), Origin::Flag("token-file")),
            (None, Some(_), ..) => (TokenPlace::Env("TESSERA_TOKEN"), Origin::Env("TESSERA_TOKEN")),
            (None, None, Some(path), _) => (TokenPlace::File(path), Origin::Env("TESSERA_TOKEN_FILE")),
            (None, None, None, Some(place)) => (place, Origin::Context),
            (None, None, None, None) => (TokenPlace::File(token_path(&default_dev_dir())), Origin::Default),
        };
        Ok(Connection { context: named, address, token })
    }

    /// The file that a flag or the environment names.
    pub fn token_file(&self) -> Option<PathBuf> {
        self.token_file.clone().or_else(|| environment("TESSERA_TOKEN_FILE").map(PathBuf::from))
    }
}

/// A variable that is set to something.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Connection {
    /// The addresses, checked, without a slash at their end; at least one.
    ///
    /// # Errors
    /// When one is no `http` URL.
    pub fn bases(&self) -> Result<Vec<reqwest::Url>, CliError> {
        bases(&self.address.0)
    }

    /// The token.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn token(&self) -> Result<String, CliError> {
        if self.token.1 == Origin::Default && !self.is_here()? {
            let text = format!("no token is named for {}, and that of `tessera dev` is not shown to other machines", self.address.0);
            return Err(CliError::new(Kind::Usage, text).hint(NAME_TOKEN));
        }
        let read = match &self.token.0 {
            TokenPlace::Env(name) => check_token(&environment(name).unwrap_or_default(), name),
            TokenPlace::File(path) => {
                if self.token.1 == Origin::Context {
                    check_private(path)?;
                }
                read_token(path)
            }
            TokenPlace::Command(argv) => run_for_token(argv),
        };
        // A file that somebody named is a setting that is wrong; that of `tessera dev` says that there is no cluster.
        let missing = if self.token.1 == Origin::Default { Kind::Unavailable } else { Kind::Usage };
        read.map_err(|error| match error.kind {
            Kind::NotFound => {
                CliError { kind: missing, ..error }.hint(format!("start a cluster with `tessera dev`, or {NAME_TOKEN}"))
            }
            _ => error,
        })
    }

    /// Whether every address is of this machine.
    fn is_here(&self) -> Result<bool, CliError> {
        let loopback = |url: &reqwest::Url| {
            let host = url.host_str().unwrap_or_default();
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        Ok(self.bases()?.iter().all(loopback))
    }
}

/// How a token is named.
const NAME_TOKEN: &str = "name the token of that cluster: --token-file, TESSERA_TOKEN_FILE, TESSERA_TOKEN or `tessera context set`; a master writes it to admin.token in its data directory";

/// Addresses separated by commas, checked.
///
/// # Errors
/// When one is no `http` URL.
pub fn bases(addresses: &str) -> Result<Vec<reqwest::Url>, CliError> {
    addresses.split(',').map(|address| base(address.trim())).collect()
}

fn base(address: &str) -> Result<reqwest::Url, CliError> {
    let text = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let url = reqwest::Url::parse(&text).map_err(|error| {
        CliError::new(Kind::Usage, format!("the address {address:?} is no URL: {error}"))
    })?;
    // A word is a host, too, as far as URLs go, with a port that no master is at.
    let port = address.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if !address.contains("://") && !port {
        return Err(CliError::new(Kind::Usage, format!("the address {address:?} names no port"))
            .hint("http://HOST:PORT, or HOST:PORT; masters are at port 5050 unless they are told otherwise"));
    }
    if url.scheme() != "http" || url.host_str().is_none() {
        return Err(CliError::new(
            Kind::Usage,
            format!("the address {address:?} must start with http:// and name a host"),
        )
        .hint("reach a remote master through a tunnel: ssh -L 5050:127.0.0.1:5050 HOST"));
    }
    Ok(url)
}

/// A token that others of this machine can read is no token.
fn check_private(path: &Path) -> Result<(), CliError> {
    let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let text = format!("others can read the token file {} (mode {mode:o})", path.display());
    Err(CliError::new(Kind::Refused, text).hint(format!("chmod 600 {}", path.display())))
}

/// What a command writes, which asks whoever keeps the token.
fn run_for_token(argv: &[String]) -> Result<String, CliError> {
    let told = argv.join(" ");
    let Some((program, args)) = argv.split_first() else {
        return Err(CliError::new(Kind::Usage, "the context's token_command is empty"));
    };
    let output = std::process::Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::inherit())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| CliError::failed(format!("cannot run `{told}` for the token: {error}")))?;
    if !output.status.success() {
        return Err(CliError::failed(format!("`{told}` gave no token: {}", output.status)));
    }
    if output.stdout.len() as u64 > TOKEN_BYTES_MAX {
        return Err(CliError::new(Kind::Usage, format!("what `{told}` wrote is too large for a token")));
    }
    check_token(&String::from_utf8_lossy(&output.stdout), &format!("what `{told}` wrote"))
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
    use super::{Connection, ConnectionArgs, Origin, TokenPlace, bases, check_private, check_token, read_token, run_for_token};
    use crate::contexts::ConfigFile;
    use crate::error::Kind;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};

    #[test]
    fn addresses_are_checked() {
        for good in [
            "http://127.0.0.1:5050",
            "127.0.0.1:5050",
            "http://[::1]:1",
            "localhost:80",
            "10.0.0.1:5050, http://10.0.0.2:5050",
        ] {
            assert!(bases(good).is_ok(), "{good}");
        }
        for bad in [
            "https://host",
            "ftp://host",
            "http://",
            "127.0.0.1:notaport",
            "127.0.0.1:80,",
            "nonsense",
            "localhost",
            "[::1]",
            "host:",
        ] {
            assert!(bases(bad).is_err(), "{bad}");
        }
    }

    const FILE: &str = "current = \"a\"\n\
        [contexts.a]\naddress = \"http://a:1\"\ntoken_file = \"/a\"\n\
        [contexts.b]\naddress = \"http://b:1\"\ntoken_command = [\"keys\", \"b\"]\n\
        [contexts.c]\ntoken_file = \"/c\"\n";

    #[test]
    fn a_flag_wins_over_the_environment_over_the_context_over_the_default() {
        let file = |path: &str| TokenPlace::File(PathBuf::from(path));
        let dev = || file(&super::token_path(&super::default_dev_dir()).display().to_string());
        type Env = &'static [(&'static str, &'static str)];
        // Flags, environment, and what they come to: context, address and its origin, token and its origin.
        let cases: Vec<([Option<&str>; 3], Env, Option<&str>, (&str, Origin), (TokenPlace, Origin))> = vec![
            ([None; 3], &[], Some("a"), ("http://a:1", Origin::Context), (file("/a"), Origin::Context)),
            ([None, None, Some("b")], &[("TESSERA_CONTEXT", "a")], Some("b"), ("http://b:1", Origin::Context),
                (TokenPlace::Command(vec!["keys".into(), "b".into()]), Origin::Context)),
            ([None; 3], &[("TESSERA_CONTEXT", "c")], Some("c"), (super::DEFAULT_ADDRESS, Origin::Default), (file("/c"), Origin::Context)),
            ([None; 3], &[("TESSERA_ADDRESS", "x:1")], Some("a"), ("x:1", Origin::Env("TESSERA_ADDRESS")), (dev(), Origin::Default)),
            ([None; 3], &[("TESSERA_ADDRESS", "http://a:1")], Some("a"), ("http://a:1", Origin::Env("TESSERA_ADDRESS")), (file("/a"), Origin::Context)),
            ([Some("y:1"), Some("/t"), None], &[("TESSERA_ADDRESS", "x:1"), ("TESSERA_TOKEN", "t")], Some("a"),
                ("y:1", Origin::Flag("address")), (file("/t"), Origin::Flag("token-file"))),
            ([None; 3], &[("TESSERA_TOKEN", "t"), ("TESSERA_TOKEN_FILE", "/u")], Some("a"), ("http://a:1", Origin::Context),
                (TokenPlace::Env("TESSERA_TOKEN"), Origin::Env("TESSERA_TOKEN"))),
            ([None; 3], &[("TESSERA_TOKEN_FILE", "/u")], Some("a"), ("http://a:1", Origin::Context), (file("/u"), Origin::Env("TESSERA_TOKEN_FILE"))),
        ];
        let config = ConfigFile::parse(FILE, Path::new("x")).unwrap();
        for ([address, token_file, context], env, named, expected, token) in cases {
            let args = ConnectionArgs {
                address: address.map(str::to_owned),
                token_file: token_file.map(PathBuf::from),
                context: context.map(str::to_owned),
            };
            let get = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            let found = args.resolve_with(&config, &get).unwrap();
            assert_eq!(found.context.as_ref().map(|(name, _)| name.as_str()), named, "{args:?} {env:?}");
            assert_eq!((found.address.0.as_str(), found.address.1), expected, "{args:?} {env:?}");
            assert_eq!(found.token, token, "{args:?} {env:?}");
        }
        // One that is wrong is in nobody's way who does not mean it.
        let wrong = ConfigFile::parse("[contexts.a]\naddress = \"nonsense\"\n[contexts.b]\naddress = \"b:1\"\n", Path::new("x")).unwrap();
        for (context, address, good) in [("b", None, true), ("a", None, false), ("a", Some("c:1"), true)] {
            let args = ConnectionArgs { context: Some(context.into()), address: address.map(str::to_owned), token_file: None };
            assert_eq!(args.resolve_with(&wrong, &|_| None).is_ok(), good, "{context} {address:?}");
        }
        let args = ConnectionArgs { context: Some("d".into()), ..ConnectionArgs::default() };
        let error = args.resolve_with(&config, &|_| None).unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.hint.unwrap().contains("a, b, c"));
    }

    #[test]
    fn a_token_that_is_not_there_is_a_wrong_setting_unless_nobody_named_it() {
        let place = TokenPlace::File(PathBuf::from("/nowhere/token"));
        for (origin, kind) in [
            (Origin::Flag("token-file"), Kind::Usage),
            (Origin::Env("TESSERA_TOKEN_FILE"), Kind::Usage),
            (Origin::Context, Kind::Usage),
            (Origin::Default, Kind::Unavailable),
        ] {
            let address = (super::DEFAULT_ADDRESS.to_owned(), Origin::Default);
            let error = super::Connection { context: None, address, token: (place.clone(), origin) }.token().unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.hint.is_some_and(|hint| hint.contains("--token-file")));
        }
    }

    #[test]
    fn a_token_file_without_end_is_refused() {
        let error = read_token(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }

    #[test]
    fn token_files_of_contexts_are_for_their_owner_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_private(file.path()).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn commands_give_tokens() {
        let argv = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(run_for_token(&argv(&["echo", "abc"])).unwrap(), "abc");
        for bad in [argv(&["false"]), argv(&["echo", "a b"]), argv(&["/nowhere"]), argv(&[])] {
            assert!(run_for_token(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_token_of_this_machine_stays_on_it() {
        let of = |address: &str| Connection {
            context: None,
            address: (address.into(), Origin::Flag("address")),
            token: (TokenPlace::File(PathBuf::from("/nowhere/token")), Origin::Default),
        };
        for address in ["http://127.0.0.1:5050", "localhost:7001", "http://[::1]:5050", "127.0.0.1:1,127.0.0.1:2"] {
            assert!(of(address).is_here().unwrap(), "{address}");
        }
        for address in ["http://10.0.0.1:5050", "master.example:5050", "127.0.0.1:1,10.0.0.1:1", "127.0.0.1.example:1"] {
            let error = of(address).token().unwrap_err();
            assert!(error.kind == Kind::Usage && error.message.contains("not shown to other machines"), "{address}: {error}");
        }
    }

    #[test]
    fn tokens_are_one_word() {
        assert_eq!(check_token("abc\n", "x").unwrap(), "abc");
        for bad in ["", " \n", "a b", "a\nb", "ä"] {
            assert!(check_token(bad, "x").is_err(), "{bad:?}");
        }
    }
}
