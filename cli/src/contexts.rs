//! The file of contexts: clusters by name, and which of them is meant when nothing is said.
//!
//! Invariants: an unknown key is refused with the one that may have been meant; no token stands in the file; a file
//! that somebody else can write is not believed, because it can name a command. Must never read a token.

use crate::connection::{TokenPlace, bases};
use crate::error::{CliError, Kind, io_error};
use crate::names::closest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A larger file is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a context.
const NAME_BYTES_MAX: usize = 64;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The context that is meant when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All of them.
    #[serde(default)]
    pub contexts: BTreeMap<String, Entry>,
}

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Addresses of its masters, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// File with its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A command, with its arguments, that writes its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_command: Option<Vec<String>>,
}

impl Entry {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, name: &str) -> Result<(), CliError> {
        let about = |error: CliError| CliError {
            kind: Kind::Usage,
            message: format!("contexts.{name}: {}", error.message),
            hint: error.hint.or_else(|| Some(format!("`tessera context set {name}` sets it anew, `tessera context rm {name}` removes it"))),
            ..error
        };
        check_name(name).map_err(about)?;
        if let Some(address) = &self.address {
            bases(address).map_err(about)?;
        }
        if self.token_file.is_some() && self.token_command.is_some() {
            return Err(about(CliError::failed("token_file and token_command exclude each other")));
        }
        if self.token_command.as_ref().is_some_and(Vec::is_empty) {
            return Err(about(CliError::failed("token_command names no program")));
        }
        Ok(())
    }

    /// Where its token is.
    pub fn token(&self) -> Option<TokenPlace> {
        match (&self.token_file, &self.token_command) {
            (Some(path), _) => Some(TokenPlace::File(path.clone())),
            (None, Some(argv)) => Some(TokenPlace::Command(argv.clone())),
            (None, None) => None,
        }
    }
}

impl ConfigFile {
    /// Where it is: `TESSERA_CONFIG`, or `tessera/config.toml` where configuration belongs.
    pub fn path() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = || set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        set("TESSERA_CONFIG").or_else(|| config().map(|dir| dir.join("tessera/config.toml")))
    }

    /// As it is; empty when there is none.
    ///
    /// # Errors
    /// When it cannot be read, somebody else can write it, or something in it is wrong.
    pub fn load() -> Result<Self, CliError> {
        match Self::path() {
            Some(path) => Self::load_from(&path),
            None => Ok(Self::default()),
        }
    }

    /// As [`Self::load`], from this file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(path: &Path) -> Result<Self, CliError> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io_error("read", path, &error)),
        };
        let (mode, owner) = (found.permissions().mode() & 0o777, found.uid());
        if mode & 0o022 != 0 {
            let text = format!("others can write {} (mode {mode:o})", path.display());
            return Err(CliError::new(Kind::Refused, text).hint(format!("chmod 600 {}", path.display())));
        }
        if owner != 0 && owner != nix::unistd::Uid::effective().as_raw() {
            let text = format!("{} belongs to another user ({owner})", path.display());
            return Err(CliError::new(Kind::Refused, text).hint("name a file of your own in TESSERA_CONFIG"));
        }
        if !found.is_file() || found.len() > FILE_BYTES_MAX {
            let text = format!("{} is no file of contexts: at most {FILE_BYTES_MAX} bytes", path.display());
            return Err(CliError::new(Kind::Usage, text));
        }
        let text = std::fs::read_to_string(path).map_err(|error| io_error("read", path, &error))?;
        Self::parse(&text, path)
    }

    /// Read its text.
    ///
    /// # Errors
    /// When something in it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, CliError> {
        toml::from_str(text).map_err(|error| wrong(text, path, &error))
    }

    /// Judge everything in it; a command judges only the context that is in force, so that one which is wrong can be
    /// left alone, set anew or removed.
    ///
    /// # Errors
    /// When a context is wrong, or the one that is meant is not there.
    pub fn check(&self) -> Result<(), CliError> {
        self.contexts.iter().try_for_each(|(name, entry)| entry.check(name))?;
        self.chosen().map(drop)
    }

    /// The context that is meant when nothing is said, if there is one.
    ///
    /// # Errors
    /// When it is not there.
    pub fn chosen(&self) -> Result<Option<&str>, CliError> {
        let Some(current) = &self.current else { return Ok(None) };
        self.entry(current).map(|_| Some(current.as_str())).map_err(|error| {
            let place = Self::path().map_or_else(String::new, |path| format!("{}: ", path.display()));
            let failed = CliError::new(Kind::Usage, format!("{place}current: {}", error.message));
            failed.hint("`tessera context use NAME` chooses another, or name one with --context")
        })
    }

    /// The context of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn entry(&self, name: &str) -> Result<&Entry, CliError> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let hint = match (known.is_empty(), closest(name, &known)) {
                (true, _) => "there is no context yet: `tessera context set NAME --url URL` makes one".to_owned(),
                (_, Some(near)) => format!("did you mean {near}? There are: {}", known.join(", ")),
                (_, None) => format!("there are: {}", known.join(", ")),
            };
            CliError::new(Kind::NotFound, format!("there is no context {name:?}")).hint(hint)
        })
    }

    /// Write it to its place, whole or not at all, for its owner alone.
    ///
    /// # Errors
    /// When there is no place for it, or it cannot be written.
    pub fn save(&self) -> Result<PathBuf, CliError> {
        let path = Self::path().ok_or_else(|| {
            CliError::new(Kind::Usage, "there is no place for a file of contexts").hint("name one in TESSERA_CONFIG")
        })?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(|error| io_error("make", dir, &error))?;
        let text = toml::to_string(self).map_err(|error| CliError::failed(format!("cannot write contexts: {error}")))?;
        let written = tempfile::NamedTempFile::new_in(dir)
            .and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file))
            .map_err(|error| io_error("write in", dir, &error))?;
        written.persist(&path).map_err(|error| io_error("write", &path, &error.error))?;
        Ok(path)
    }
}

/// Names are words, because they are keys of the file.
///
/// # Errors
/// When it is none.
pub fn check_name(name: &str) -> Result<(), CliError> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(named) {
        let text = format!("{name:?} is no name of a context: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -");
        return Err(CliError::new(Kind::Usage, text));
    }
    Ok(())
}

/// What is wrong, without the line itself, which may hold what is not to be shown.
fn wrong(text: &str, path: &Path, error: &toml::de::Error) -> CliError {
    let message = error.message().to_owned();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    // Of an unknown key the error knows the table only.
    let key = |line: &str| line.split('=').next().map(str::trim) == quoted.first().copied();
    let of_key = text.lines().position(|line| key(line)).map(|at| at + 1);
    let of_error = error.span().map(|span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
    let line = of_key.or(of_error);
    let place = line.map_or_else(|| path.display().to_string(), |line| format!("{}:{line}", path.display()));
    let failed = CliError::new(Kind::Usage, format!("{place}: {message}"));
    match quoted.split_first() {
        Some((&"token", _)) if message.starts_with("unknown field") => {
            failed.hint("tokens do not stand here: token_file or token_command says where one is to be had")
        }
        Some((unknown, known)) if message.starts_with("unknown field") => match closest(unknown, known) {
            Some(near) => failed.hint(format!("did you mean {near}?")),
            None => failed.hint(format!("known are: {}", known.join(", "))),
        },
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::ConfigFile;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    #[test]
    fn what_is_wrong_is_told_with_the_way_out() {
        for (text, message, hint) in [
            ("curent = \"a\"\n", "x:1: unknown field `curent`", Some("did you mean current?")),
            ("[contexts.a]\nadress = \"b\"\n", "x:2: unknown field `adress`", Some("did you mean address?")),
            ("[contexts.a]\ntoken = \"secret\"\n", "x:2: unknown field `token`", Some("tokens do not stand here")),
            ("[contexts.a]\nnothing_like_it = 1\n", "unknown field", Some("known are: address, token_file, token_command")),
            ("current = \"a\"\n", "there is no context \"a\"", None),
            ("[contexts.\"a b\"]\n", "no name of a context", None),
            ("[contexts.a]\naddress = \"https://x\"\n", "contexts.a: the address", None),
            ("[contexts.a]\ntoken_file = \"/t\"\ntoken_command = [\"t\"]\n", "exclude each other", None),
            ("[contexts.a]\ntoken_command = []\n", "names no program", None),
            ("[contexts.a\n", "x:1", None),
        ] {
            let judged = |file: ConfigFile| file.check();
            let error = ConfigFile::parse(text, Path::new("x")).and_then(judged).unwrap_err();
            assert!(error.message.contains(message), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
            if let Some(hint) = hint {
                assert!(error.hint.as_ref().is_some_and(|told| told.contains(hint)), "{text}: {error}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "current = \"a\"\n[contexts.a]\naddress = \"http://a:1\"\ntoken_file = \"/t\"\n[contexts.b]\ntoken_command = [\"x\", \"y z\"]\n";
        let file = ConfigFile::parse(text, Path::new("x")).unwrap();
        let again = ConfigFile::parse(&toml::to_string(&file).unwrap(), Path::new("x")).unwrap();
        assert_eq!(file, again);
    }

    #[test]
    fn a_file_that_others_can_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(ConfigFile::load_from(&path).unwrap(), ConfigFile::default());
        std::fs::write(&path, "[contexts.a]\n").unwrap();
        for (mode, good) in [(0o600, true), (0o644, true), (0o664, false), (0o602, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(ConfigFile::load_from(&path).is_ok(), good, "{mode:o}");
        }
    }
}
