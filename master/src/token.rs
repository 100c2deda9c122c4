//! The administrator's token: made at first start, kept in a file that only its owner reads.
//!
//! Invariants: a token is compared in constant time, and never logged.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the file in the master's data directory.
pub const TOKEN_FILE: &str = "admin.token";

/// Random bytes of a token; 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read or written.
    #[error("reading or writing the token file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read the file.
    #[error("the token file {path} has mode {mode:o}; nobody but its owner may read it: chmod 600")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds no token.
    #[error("the token file {path} holds no token; remove it to have a new one made")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The directory has another one than it was given.
    #[error(
        "the token file {given} holds another token than {path}; leave out --token-file, or have both the same"
    )]
    Differs {
        /// The directory's.
        path: PathBuf,
        /// The one that was given.
        given: PathBuf,
    },
    /// The system has no randomness.
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A token that callers are compared with.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Read the token of a data directory, or make one.
    ///
    /// # Errors
    /// When the file cannot be used, or others may read it.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, TokenError> {
        let path = data_dir.join(TOKEN_FILE);
        let io = |source| TokenError::Io {
            path: path.clone(),
            source,
        };
        match File::open(&path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Mode { path, mode });
                }
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(io)?;
                let text = text.trim();
                if text.is_empty() {
                    return Err(TokenError::Empty { path });
                }
                Ok(Self(text.to_owned()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut random = [0; TOKEN_BYTES];
                getrandom::fill(&mut random).map_err(TokenError::Random)?;
                let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                write(data_dir, &text).map_err(io)?;
                Ok(Self(text))
            }
            Err(error) => Err(io(error)),
        }
    }

    /// Read the token of a data directory, or take over the one in a file.
    ///
    /// # Errors
    /// When one of them cannot be used, or they differ.
    pub fn load_or_copy(data_dir: &Path, from: &Path) -> Result<Self, TokenError> {
        let own = data_dir.join(TOKEN_FILE);
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| TokenError::Io { path, source }
        };
        let given = std::fs::read_to_string(from).map_err(io(from))?;
        let given = given.trim();
        if given.is_empty() {
            return Err(TokenError::Empty { path: from.to_owned() });
        }
        if !own.exists() {
            write(data_dir, given).map_err(io(&own))?;
        }
        let kept = Self::load_or_make(data_dir)?;
        match kept.matches(&format!("Bearer {given}")) {
            true => Ok(kept),
            false => Err(TokenError::Differs { path: own, given: from.to_owned() }),
        }
    }

    /// The value of an `authorization` header that carries it.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether the value of an `authorization` header carries this token.
    #[must_use]
    pub fn matches(&self, header: &str) -> bool {
        let Some(given) = header.strip_prefix("Bearer ") else {
            return false;
        };
        let (given, ours) = (given.trim().as_bytes(), self.0.as_bytes());
        let differing = given.iter().zip(ours).fold(0, |sum, (a, b)| sum | (a ^ b));
        given.len() == ours.len() && differing == 0
    }
}

/// Writes the token of a data directory, whole or not at all.
fn write(data_dir: &Path, text: &str) -> std::io::Result<()> {
    let temporary = data_dir.join("admin.token.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, data_dir.join(TOKEN_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("given");
        std::fs::write(&from, "abc\n").unwrap();
        let taken = Token::load_or_copy(dir.path(), &from).unwrap();
        assert!(taken.matches("Bearer abc"));
        assert!(Token::load_or_copy(dir.path(), &from).is_ok());
        std::fs::write(&from, "other").unwrap();
        let differs = Token::load_or_copy(dir.path(), &from);
        assert!(matches!(differs, Err(TokenError::Differs { .. })));
        std::fs::write(&from, " ").unwrap();
        let empty = Token::load_or_copy(dir.path(), &from);
        assert!(matches!(empty, Err(TokenError::Empty { .. })));
    }

    #[test]
    fn a_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let made = Token::load_or_make(dir.path()).unwrap();
        let read = Token::load_or_make(dir.path()).unwrap();
        assert_eq!(made.0, read.0);
        assert!(made.matches(&format!("Bearer {}", read.0)));
        for bad in [
            "",
            "Bearer ",
            "Bearer x",
            &read.0,
            &format!("Bearer {}0", read.0),
        ] {
            assert!(!made.matches(bad), "{bad}");
        }
        let path = dir.path().join(TOKEN_FILE);
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(
            Token::load_or_make(dir.path()),
            Err(TokenError::Mode { .. })
        ));
    }
}
